use std::path::PathBuf;

use clap::Args;
use muster_model::GlassToken;
use muster_trust::add_signature;

use super::settlement;
use super::token::{TOKEN_BYTES_MAX, TokenView, announce, operator_key, review};
use crate::clock::unix_time;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, read_bounded, write};

/// Add your signature to a token that `muster break-glass issue` has made, or to a settlement, after showing what it says.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster break-glass sign glass.json")]
pub(crate) struct Sign {
    /// The token or settlement; your signature is added to this file
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
        let bytes = read_bounded(&self.file, TOKEN_BYTES_MAX)?;
        if settlement::is_one(&bytes) {
            return settlement::sign(env, &root, &*key, &bytes, self.file);
        }
        let held = review(&root, &self.file, &bytes)?;
        announce(env, &held.document);
        let signed = add_signature::<GlassToken>(&held.envelope, &*key).map_err(trust())?;
        let proposal = root.review_glass_token(signed.raw(), unix_time()).map_err(trust())?;
        write(&self.file, proposal.envelope.raw(), 0o600, Existing::Replace)?;
        env.ui.report(&TokenView::new(&root, &proposal, self.file))?;
        Ok(Exit::Proven)
    }
}
