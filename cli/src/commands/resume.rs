use clap::Args;

use super::flip::{RolloutArgs, Verb, carry_out};
use crate::args::FleetArg;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::view::ReleaseView;

/// Serve again what was served when the fleet was halted.
///
/// It takes a signed order and the same gate as every flip: all N hosts attest, and open together or not at all. To go
/// elsewhere instead, `muster flip` to another release.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster resume
  muster resume --fleet demo --timeout 5m")]
pub(crate) struct Resume {
    #[command(flatten)]
    fleet: FleetArg,
    #[command(flatten)]
    rollout: RolloutArgs,
}

impl Resume {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let status = session.status(&fleet).await?;
        let doing = format!("find out what {fleet} served");
        let served = ReleaseView::optional(status.serving.as_ref()).map_err(CliError::answer(doing))?;
        let served = served.ok_or_else(|| CliError::Usage {
            what: format!("{fleet} has served nothing yet, so there is nothing to resume"),
            next: "deploy a release and `muster flip` to it: that order ends a halt as well".to_owned(),
        })?;
        let terms = self.rollout.strict_terms();
        Box::pin(carry_out(env, &session, &fleet, served, terms, Verb::Resume)).await
    }
}
