use clap::Args;
use muster_mtls::{Credentials, KeyRequest, PemBundle};
use muster_proto::v1;

use super::show::Shown;
use crate::commands::Env;
use crate::connect::answer;
use crate::context::exchange_pair;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::read_bounded;

/// Authorities are small.
const CA_BYTES_MAX: u64 = 1 << 20;

/// Ask the coordinator for your next certificate, with a new key, and put both where the old ones are.
///
/// The files of the context are exchanged in a way that a power cut does no harm: the next command finishes what was begun.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster certificate renew")]
pub(crate) struct Renew {}

impl Renew {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        const DOING: &str = "renew the certificate";
        let session = env.session().await?;
        let paths = session.context().credential_paths();
        let request = KeyRequest::generate().map_err(CliError::tls(DOING))?;
        let der = request.to_der().map_err(CliError::tls(DOING))?;
        let mut client = session.certificates();
        let renewed = answer(DOING, client.renew(v1::RenewRequest { request: der })).await?;
        let (key, certificate) = (request.key_pem(), renewed.certificate);
        let ca = read_bounded(&paths.ca, CA_BYTES_MAX)?;
        let ca = String::from_utf8_lossy(&ca);
        // Only what can be used takes the place of what is in use.
        let pem = PemBundle { certificate: &certificate, key: &key, ca: &ca, crl: None };
        let credentials = Credentials::from_pem(pem).map_err(CliError::tls(DOING))?;
        exchange_pair(&paths, certificate.as_bytes(), key.as_bytes())?;
        env.ui.report(&Shown::new(&credentials, paths.certificate))?;
        Ok(Exit::Proven)
    }
}
