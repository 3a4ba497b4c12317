use std::path::PathBuf;

use clap::Args;
use muster_model::Mandate;
use muster_trust::add_signature;

use super::mandate::{MANDATE_BYTES_MAX, Signed, operator_key, show};
use crate::clock::unix_time;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, read_bounded, write};

/// Add your signature to a mandate that `muster coordinator rebuild` has made, after showing what it says.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster coordinator sign mandate.json")]
pub(crate) struct Sign {
    /// The mandate; your signature is added to this file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Sign {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let bytes = read_bounded(&self.file, MANDATE_BYTES_MAX)?;
        let session = env.session().await?;
        let doing = format!("sign {}", self.file.display());
        let trust = || CliError::trust(doing.as_str());
        let key = operator_key(&session, &doing)?;
        let held = session.root().review_mandate(&bytes, unix_time()).map_err(trust())?;
        show(env, &held.document);
        let signed = add_signature::<Mandate>(&held.envelope, &*key).map_err(trust())?;
        let proposal = session.root().review_mandate(signed.raw(), unix_time()).map_err(trust())?;
        // What others have signed before is in it as well.
        write(&self.file, proposal.envelope.raw(), 0o644, Existing::Replace)?;
        env.ui.report(&Signed::new(&session, &proposal, self.file))?;
        Ok(Exit::Proven)
    }
}
