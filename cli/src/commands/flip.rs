//! `muster flip`, and what `muster rollback` shares with it.

mod outcome;
mod rollout;

use std::time::Duration;

use clap::{Args, ValueEnum};
use muster_model::{Code, Refusal};

use crate::args::{FleetArg, duration};
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::resolve::ReleaseName;

pub(super) use rollout::{Timing, Verb, carry_out};

/// Make a release live on all hosts of the fleet at once, and only if every one of them proves that it has it.
///
/// Nothing happens unless all N hosts attest the same digest. Until the decision, Ctrl-C aborts and the old release goes
/// on being served; afterwards the rollout only goes forward. In strict mode there is a short moment in which no host
/// serves, the dark window, and none in which two releases are served.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster flip 1.4.0
  muster flip sha256:… --fleet demo --timeout 5m --output json")]
pub(crate) struct Flip {
    /// The release: its digest, at least 8 hex digits of it, or its version
    #[arg(value_name = "RELEASE")]
    release: ReleaseName,
    #[command(flatten)]
    fleet: FleetArg,
    #[command(flatten)]
    timing: TimingArgs,
    /// How the fleet flips
    #[arg(long, value_enum, default_value_t = Mode::Strict)]
    mode: Mode,
    /// What happens when a host does not start the release
    #[arg(long, value_enum, default_value_t = Failure::Hold)]
    on_failure: Failure,
}

/// How long a rollout may take.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct TimingArgs {
    /// After this time an undecided rollout is aborted, and a decided one is no longer waited for
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2m")]
    timeout: Duration,
    /// How long the signed order holds; at most seven days
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    valid_for: Duration,
}

/// How the fleet flips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// No instant with two releases served, a short one with none
    Strict,
    /// At a fixed time, with bounded skew (not supported yet)
    Fast,
}

/// What happens when a host does not start the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Failure {
    /// That host stays dark, the others serve
    Hold,
    /// The fleet rolls back (not supported yet)
    Rollback,
}

impl Flip {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        self.refuse_what_is_not_built()?;
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let known = session.release(&fleet, &self.release).await?;
        Box::pin(carry_out(env, &session, &fleet, (&known).into(), self.timing.into(), Verb::Flip)).await
    }

    fn refuse_what_is_not_built(&self) -> Result<(), CliError> {
        let missing = match (self.mode, self.on_failure) {
            (Mode::Strict, Failure::Hold) => return Ok(()),
            (Mode::Fast, _) => "--mode fast is not supported yet: use strict",
            (Mode::Strict, Failure::Rollback) => {
                "--on-failure rollback is not supported yet: use hold, and `muster rollback` if a host fails"
            }
        };
        let refusal = Refusal::of(Code::Unsupported, missing);
        Err(CliError::refused(format!("flip to {}", self.release), refusal))
    }
}

impl From<TimingArgs> for Timing {
    fn from(args: TimingArgs) -> Self {
        Self { timeout: args.timeout, valid_for: args.valid_for }
    }
}
