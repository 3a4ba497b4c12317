use std::path::PathBuf;

use clap::Args;
use muster_proto::v1;
use muster_trust::verify_receipt;

use super::summary::Summary;
use crate::args::FleetArg;
use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};

/// Fetch the receipt of a flip, verify it, and show what it proves; with `--out` keep it.
#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    fleet: FleetArg,
    /// The epoch that the flip began [default: the newest]
    #[arg(long, value_name = "EPOCH", value_parser = clap::value_parser!(u64).range(1..))]
    epoch: Option<u64>,
    /// Write the receipt to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Show {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let doing = format!("see the receipt of {fleet}");
        let request = v1::ShowReceiptRequest { fleet: fleet.to_string(), epoch: self.epoch.unwrap_or(0) };
        let mut client = session.operations();
        let shown = answer(&doing, client.show_receipt(request)).await?;
        let verified =
            verify_receipt(&shown.receipt, session.root()).map_err(CliError::trust(doing.as_str()))?;
        let found = &verified.order().document().fleet;
        if *found != fleet {
            let what = format!("the coordinator answered with a receipt of the fleet {found}");
            return Err(CliError::Contradiction { doing, what });
        }
        if let Some(path) = &self.out {
            write(path, &shown.receipt, 0o644, Existing::Keep)?;
        }
        env.ui.report(&Summary::of(&verified))?;
        Ok(Exit::Proven)
    }
}
