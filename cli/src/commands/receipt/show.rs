use std::path::PathBuf;

use clap::Args;
use muster_model::FleetName;
use muster_proto::v1;

use super::summary::Summary;
use super::verify_by_its_time;
use crate::args::FleetArg;
use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};

/// Fetch the receipt of a flip, verify it, and show what it proves; with `--out` keep it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster receipt show
  muster receipt show --epoch 3 --out flip.json")]
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
        let flipped = session.status(&fleet).await?.epoch;
        not_yet(&fleet, flipped, self.epoch)?;
        let mut client = session.operations();
        let shown = answer(&doing, client.show_receipt(request)).await?;
        let present = session.root();
        let earlier = session.context().earlier_roots(present.root().version);
        let (verified, version) =
            verify_by_its_time(&shown.receipt, present, &earlier).map_err(CliError::trust(doing.as_str()))?;
        let found = &verified.order().document().fleet;
        if *found != fleet {
            let what = format!("the coordinator answered with a receipt of the fleet {found}");
            return Err(CliError::Contradiction { doing, what });
        }
        if let Some(path) = &self.out {
            write(path, &shown.receipt, 0o644, Existing::Keep)?;
        }
        env.ui.report(&Summary::of(&verified, version, present))?;
        Ok(Exit::Proven)
    }
}

/// Every epoch begins with a flip, so that there are as many as flips were completed.
fn not_yet(fleet: &FleetName, flipped: u64, wanted: Option<u64>) -> Result<(), CliError> {
    if flipped == 0 {
        return Err(CliError::Absent {
            what: format!("nothing was flipped in {fleet} yet, so there is no receipt"),
            next:
                "flip a release: `muster release list` shows what there is, then `muster deploy RELEASE` and \
                   `muster flip RELEASE`"
                    .to_owned(),
        });
    }
    match wanted {
        Some(wanted) if wanted > flipped => Err(CliError::Absent {
            what: format!("{fleet} is at epoch {flipped}: no flip has begun epoch {wanted} yet"),
            next: format!("name an epoch up to {flipped}, or none for the newest"),
        }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_receipt_that_cannot_be_there_is_told_so() {
        let fleet = FleetName::new("demo").unwrap();
        let error = |flipped, wanted| not_yet(&fleet, flipped, wanted).unwrap_err();
        assert!(error(0, None).to_string().contains("nothing was flipped"));
        assert!(error(0, Some(1)).to_string().contains("nothing was flipped"));
        assert!(error(2, Some(3)).to_string().contains("at epoch 2"));
        assert_eq!(error(2, Some(3)).exit(), Exit::Missing);
        assert!(not_yet(&fleet, 2, None).is_ok() && not_yet(&fleet, 2, Some(2)).is_ok());
    }
}
