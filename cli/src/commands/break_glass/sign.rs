use std::path::PathBuf;

use clap::Args;
use muster_model::GlassToken;
use muster_trust::add_signature;

use super::token::{TokenView, announce, operator_key, read};
use crate::clock::unix_time;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};

/// Add your signature to a token that `muster break-glass issue` has made, after showing what it says.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster break-glass sign glass.json")]
pub(crate) struct Sign {
    /// The token; your signature is added to this file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Sign {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let context = env.context()?;
        let root = context.trust_root()?;
        let doing = format!("sign {}", self.file.display());
        let trust = || CliError::trust(doing.as_str());
        let key = operator_key(&context, &root, &doing)?;
        let held = read(&root, &self.file)?;
        announce(env, &held.document);
        let signed = add_signature::<GlassToken>(&held.envelope, &*key).map_err(trust())?;
        let proposal = root.review_glass_token(signed.raw(), unix_time()).map_err(trust())?;
        write(&self.file, proposal.envelope.raw(), 0o600, Existing::Replace)?;
        env.ui.report(&TokenView::new(&root, &proposal, self.file))?;
        Ok(Exit::Proven)
    }
}
