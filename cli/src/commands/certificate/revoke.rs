use clap::Args;
use muster_mtls::Serial;
use muster_proto::v1;
use serde::Serialize;

use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};

/// Revoke one certificate and cut the connections that rest on it. Of a host, rather `muster host evict`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster certificate revoke 5f1c09ab --reason lost")]
pub(crate) struct Revoke {
    /// Its serial number in hex, as `muster certificate show` and the audit log tell it
    #[arg(value_name = "SERIAL")]
    serial: Serial,
    /// Why, for whoever looks
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Revoke {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let serial = self.serial.to_string();
        let request = v1::RevokeCertificateRequest { serial: serial.clone(), reason: self.reason };
        let mut client = session.operations();
        let doing = format!("revoke the certificate {serial}");
        let revoked = answer(&doing, client.revoke_certificate(request)).await?;
        env.ui.report(&Revoked { serial, connections: revoked.connections })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Revoked {
    serial: String,
    connections: u32,
}

impl Report for Revoked {
    const SCHEMA: &'static str = "muster.certificate-revoke/1";

    fn print(&self, page: &mut Page) {
        let Self { serial, connections } = self;
        page.toned(Tone::Good, format_args!("revoked {serial}; {} cut", counted(*connections, "connection")));
    }
}
