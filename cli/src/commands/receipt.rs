//! `muster receipt`: the portable proof of one flip.

mod show;
mod summary;
mod verify;

use clap::Subcommand;
use muster_trust::{TrustError, TrustRoot, VerifiedReceipt, verify_receipt};

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Show and verify the proof of a flip.
#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptCommand {
    Show(show::Show),
    Verify(verify::Verify),
}

impl ReceiptCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Show(show) => Box::pin(show.run(env)).await,
            Self::Verify(verify) => verify.run(env),
        }
    }
}

/// Verifies a receipt by the present root or, as a flip is signed by the keys of its time, by the latest root before it
/// that vouches for it. Tells the version of that root.
fn verify_by_its_time(
    bytes: &[u8],
    present: &TrustRoot,
    earlier: &[TrustRoot],
) -> Result<(VerifiedReceipt, u64), TrustError> {
    let by = |root: &TrustRoot| verify_receipt(bytes, root).map(|receipt| (receipt, root.root().version));
    by(present).or_else(|error| earlier.iter().find_map(|root| by(root).ok()).ok_or(error))
}
