use clap::Args;

use super::flip::{ModeArgs, RolloutArgs, Verb, carry_out};
use crate::args::FleetArg;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::resolve::ReleaseName;
use crate::view::ReleaseView;

/// Take the fleet back to what it served before, by digest and through the same gate as every flip.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster rollback
  muster rollback --to 1.3.0
  muster rollback --mode fast")]
pub(crate) struct Rollback {
    /// Go back to this release instead of the one that was served before
    #[arg(long, value_name = "RELEASE")]
    to: Option<ReleaseName>,
    #[command(flatten)]
    fleet: FleetArg,
    #[command(flatten)]
    rollout: RolloutArgs,
    #[command(flatten)]
    mode: ModeArgs,
}

impl Rollback {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let target = match &self.to {
            Some(name) => ReleaseView::from(&session.release(&fleet, name).await?),
            None => {
                let doing = format!("find out what {fleet} served before");
                let status = session.status(&fleet).await?;
                let previous =
                    ReleaseView::optional(status.previous.as_ref()).map_err(CliError::answer(doing))?;
                previous.ok_or_else(|| CliError::Usage {
                    what: format!("{fleet} has served nothing before, so there is nothing to go back to"),
                    next: "go forward instead: deploy another release and `muster flip` to it, or name one with --to; \
                           `muster release list` shows all"
                        .to_owned(),
                })?
            }
        };
        env.ui.say(format_args!("rolling {fleet} back to {target}"));
        let terms = self.rollout.terms(self.mode);
        Box::pin(carry_out(env, &session, &fleet, target, terms, Verb::Rollback)).await
    }
}
