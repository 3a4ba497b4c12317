//! `muster flip`, and what `muster rollback` and `muster resume` share with it.

mod approvals;
mod order;
mod outcome;
mod rollout;
mod watch;

use std::time::Duration;

use clap::{Args, ValueEnum};
use muster_model::{FlipMode, OnFailure};

use crate::args::{FleetArg, duration};
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::resolve::ReleaseName;

use approvals::Wait;
pub(super) use order::Terms;
pub(super) use rollout::{Verb, carry_out};

/// Make a release live on all hosts of the fleet at once, and only if every one of them proves that it has it.
///
/// Nothing happens unless all N hosts attest the same digest. Until the decision, Ctrl-C aborts and the old release goes
/// on being served; afterwards the rollout only goes forward. In strict mode there is a short moment in which no host
/// serves, the dark window, and none in which two releases are served.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster flip 1.4.0
  muster flip sha256:… --fleet demo --timeout 5m --output json
  muster flip 1.4.0 --on-failure rollback
  muster flip 1.4.0 --max-lapsed 0
  muster flip 1.4.0 --wait-for-approval")]
pub(crate) struct Flip {
    /// The release: its digest, at least 8 hex digits of it, or its version
    #[arg(value_name = "RELEASE")]
    release: ReleaseName,
    #[command(flatten)]
    fleet: FleetArg,
    #[command(flatten)]
    rollout: RolloutArgs,
    #[command(flatten)]
    mode: ModeArgs,
}

/// What every rollout is told.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct RolloutArgs {
    /// After this time an undecided rollout is aborted, and a decided one is no longer waited for
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2m")]
    timeout: Duration,
    /// How long the signed order holds; at most seven days
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    valid_for: Duration,
    /// Let the others open over so many hosts that fell silent after the decision, once their leases must have run out;
    /// with 0 they stay dark until every host has proven that it stopped [default: 1; 0 in a fleet of one]
    ///
    /// A silent host fences itself when its lease is over. That it has is then known from the coordinator's clock alone,
    /// not from a proof of the host's own: a coordinator that was taken over could lie about so many hosts, and no more.
    /// The receipt names them.
    #[arg(long, value_name = "HOSTS")]
    max_lapsed: Option<u32>,
    /// Where several operators must sign, wait until enough have, and then go on; for so long at most, or while the order
    /// holds
    ///
    /// Without it the order is left for the others, and the command ends with 12. Once they have signed, the same command
    /// begins it.
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, require_equals = true)]
    wait_for_approval: Option<Option<Duration>>,
}

/// How a fleet goes to another release.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ModeArgs {
    /// How the fleet flips
    #[arg(long, value_enum, default_value_t = Mode::Strict)]
    mode: Mode,
    /// What happens when hosts do not start the release
    #[arg(long, value_enum, default_value_t = Failure::Hold)]
    on_failure: Failure,
}

/// How the fleet flips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// No instant with two releases served, a short one with none
    Strict,
    /// At one instant by each host's own clock: no dark window, but for a moment some hosts may serve the old release and
    /// others the new one. That no two are ever served is not claimed; the skew is bounded, measured and reported
    Fast,
}

/// What happens when hosts do not start the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Failure {
    /// Those hosts stay dark, the others serve
    Hold,
    /// The fleet goes back by itself if one host in ten fails, and at least two, through the same gate as every flip. The
    /// order to go back is signed now, beside the other
    Rollback,
}

impl Flip {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let known = session.release(&fleet, &self.release).await?;
        let terms = self.rollout.terms(self.mode);
        Box::pin(carry_out(env, &session, &fleet, (&known).into(), terms, Verb::Flip)).await
    }
}

impl RolloutArgs {
    /// The terms of a rollout to another release.
    pub(super) const fn terms(self, mode: ModeArgs) -> Terms {
        let Self { timeout, valid_for, max_lapsed, wait_for_approval } = self;
        let (mode, on_failure) = (mode.mode.to_model(), mode.on_failure.to_model());
        let wait = match wait_for_approval {
            None => Wait::No,
            Some(None) => Wait::UntilExpiry,
            Some(Some(at_most)) => Wait::AtMost(at_most),
        };
        Terms { timeout, valid_for, max_lapsed, mode, on_failure, wait }
    }

    /// The terms of a rollout that leads nowhere else: there is no skew to accept, and nothing to go back to.
    pub(super) const fn strict_terms(self) -> Terms {
        self.terms(ModeArgs { mode: Mode::Strict, on_failure: Failure::Hold })
    }
}

impl Mode {
    const fn to_model(self) -> FlipMode {
        match self {
            Self::Strict => FlipMode::Strict,
            Self::Fast => FlipMode::Fast,
        }
    }
}

impl Failure {
    const fn to_model(self) -> OnFailure {
        match self {
            Self::Hold => OnFailure::Hold,
            Self::Rollback => OnFailure::Rollback,
        }
    }
}
