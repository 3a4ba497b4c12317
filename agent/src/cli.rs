//! The command line of `muster-agent`.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use muster_daemon::{LogFormat, Shutdown, init_logging, shutdown_on_signals};
use muster_model::FleetName;
use muster_store::EXIT_STORAGE;
use tokio::runtime::{Builder, Runtime};

use crate::agent::{Agent, Parts};
use crate::local;
use crate::refusal::chain;
use crate::{AgentConfig, AgentError};

/// More than all fleets of a host can use at once: each has a question to the guard, a journal and two checks of
/// seals under way, beside the measurements, installations and downloads that they share. Journal and guard must
/// always find a thread.
const BLOCKING_THREADS_MAX: usize = 320;

/// Threads are kept only as long as there is work: an idle agent is small.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// How long work that was begun may go on after everything else has ended. What it leaves behind is cleaned at the
/// next start.
const END_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Parser)]
#[command(
    name = "muster-agent",
    version,
    about = "Deploy, measure and attest on this host, and take it through flips."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent until SIGTERM or SIGINT. What is served goes on being served.
    Run {
        /// The agent's configuration, in TOML; `agent.toml` in /etc/muster, /run/muster and /usr/lib/muster if not
        /// given.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Stop what a fleet serves on this host, at once and until an order resumes it. Works with the coordinator and the
    /// agent dead: only the guard is asked.
    Halt {
        /// The fleet.
        fleet: FleetName,
        /// Why, for whoever looks.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The agent's configuration, as for `run`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show what a fleet serves on this host, as its guard sees it.
    Status {
        /// The fleet.
        fleet: FleetName,
        /// The agent's configuration, as for `run`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// See and settle what this host has seen of the coordinator's audit log.
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Look into the configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    /// Show the last checkpoint that this host has seen, and why it does not believe the log, if it does not.
    Show {
        /// The fleet.
        fleet: FleetName,
        /// The agent's configuration, as for `run`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Forget what was seen, so that the host begins anew with the log that it is shown next. It stays written down.
    Accept {
        /// The fleet.
        fleet: FleetName,
        /// Why it is in order, for whoever looks.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The agent's configuration, as for `run`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Read the configuration and everything that it names, and say what is wrong.
    Check {
        /// The agent's configuration, as for `run`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Parses this process's arguments and does what they say; the whole of `muster-agent`'s `main`.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Run { config } => AgentConfig::load(config.as_deref()).and_then(|config| run(&config)),
        Verb::Halt { fleet, reason, config } => {
            AgentConfig::load(config.as_deref()).and_then(|config| local::halt(&config, &fleet, &reason))
        }
        Verb::Status { fleet, config } => {
            AgentConfig::load(config.as_deref()).and_then(|config| local::status(&config, &fleet))
        }
        Verb::Audit(AuditVerb::Show { fleet, config }) => {
            AgentConfig::load(config.as_deref()).and_then(|config| local::show_audit(&config, &fleet))
        }
        Verb::Audit(AuditVerb::Accept { fleet, reason, config }) => AgentConfig::load(config.as_deref())
            .and_then(|config| local::accept_audit(&config, &fleet, &reason)),
        Verb::Config(ConfigVerb::Check { config }) => {
            AgentConfig::load(config.as_deref()).and_then(|config| check(&config))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error must not hide the exit code.
            let _ = writeln!(io::stderr(), "muster-agent: {}", chain(&error));
            if error.is_storage() { ExitCode::from(EXIT_STORAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn run(config: &AgentConfig) -> Result<(), AgentError> {
    log_as(config.log)?;
    let agent = Agent::new(Parts::load(config)?)?;
    tracing::info!(host = %agent.host(), coordinator = config.coordinator, "starting");
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let shutdown: Shutdown = shutdown_on_signals().map_err(|source| AgentError::Daemon { source })?;
        agent.run(shutdown).await
    });
    runtime.shutdown_timeout(END_TIMEOUT);
    outcome
}

/// Everything that `run` reads, without opening the state: an agent may be running on it.
fn check(config: &AgentConfig) -> Result<(), AgentError> {
    let parts = Parts::load(config)?;
    let identity = parts.coordinator.tls.credentials().identity().clone();
    let fleets: Vec<&str> = config.fleets.iter().map(|fleet| fleet.name.as_str()).collect();
    // A closed standard output is not an error of the configuration.
    let _ = writeln!(
        io::stdout(),
        "{identity}: coordinator {}, fleets {}",
        parts.coordinator.address,
        fleets.join(", ")
    );
    Ok(())
}

fn log_as(format: LogFormat) -> Result<(), AgentError> {
    init_logging(format).map_err(|source| AgentError::Daemon { source })
}

/// One thread waits for the network and the guard; whatever takes time runs on threads that come and go.
fn runtime() -> Result<Runtime, AgentError> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()
        .map_err(|source| AgentError::Runtime { source })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let parsed = Cli::try_parse_from(["muster-agent", "config", "check", "--config", "a.toml"]).unwrap();
        assert!(matches!(parsed.verb, Verb::Config(ConfigVerb::Check { config: Some(_) })));
        let parsed = Cli::try_parse_from(["muster-agent", "halt", "smars", "--reason", "fire"]).unwrap();
        assert!(matches!(parsed.verb, Verb::Halt { .. }));
        assert!(Cli::try_parse_from(["muster-agent", "halt", "smars"]).is_err(), "a halt has a reason");
        assert!(Cli::try_parse_from(["muster-agent"]).is_err());
    }
}
