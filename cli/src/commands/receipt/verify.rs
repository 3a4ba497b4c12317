use std::path::PathBuf;

use clap::Args;
use muster_trust::RECEIPT_BYTES_MAX;

use super::summary::Summary;
use super::verify_by_its_time;
use crate::commands::Env;
use crate::context::read_root;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::read_bounded;

/// Verify a receipt offline: all that it takes is the root document.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster receipt verify release.receipt --root root.json")]
pub(crate) struct Verify {
    /// The receipt
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The root document, from somewhere you trust [default: the context's, or the one of the receipt's time that is kept beside it]
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
}

impl Verify {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let (root, earlier) = match &self.root {
            Some(path) => (read_root(path)?, Vec::new()),
            None => {
                let context = env.context()?;
                let root = context.trust_root()?;
                let earlier = context.earlier_roots(root.root().version);
                (root, earlier)
            }
        };
        let bytes = read_bounded(&self.file, RECEIPT_BYTES_MAX as u64)?;
        let doing = format!("verify the receipt {}", self.file.display());
        let (verified, version) =
            verify_by_its_time(&bytes, &root, &earlier).map_err(CliError::trust(doing))?;
        env.ui.report(&Summary::of(&verified, version, &root))?;
        Ok(Exit::Proven)
    }
}
