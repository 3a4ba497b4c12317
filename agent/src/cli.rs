//! The command line of `muster-agent`.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use muster_daemon::{LogFormat, ServiceManager, Shutdown, init_logging, shutdown_on_signals};
use muster_model::{Digest, FleetName};
use muster_mtls::Address;
use muster_store::EXIT_STORAGE;
use muster_trust::{JoinToken, JoinTokenError};
use tokio::runtime::{Builder, Runtime};
use zeroize::Zeroizing;

use crate::agent::{Agent, Parts};
use crate::enrol::{self, Enrolment, KeysWanted, Layout, SYSTEM_CONFIG, SYSTEM_STATE};
use crate::refusal::chain;
use crate::{AgentConfig, AgentError};
use crate::{break_glass, local};

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
    /// Start what a fleet has served last on this host, with no coordinator, by a token that operators have made ahead.
    ///
    /// For a host that is dark after a boot. Stop the agent first: only one process may write what the host promises. The host takes part
    /// in no rollout from then on, until operators have settled it (`muster break-glass settle`).
    #[command(after_help = "Example:
  systemctl stop muster-agent
  runuser -u muster -- muster-agent break-glass smars --token glass.json
  systemctl start muster-agent")]
    BreakGlass {
        /// The fleet.
        fleet: FleetName,
        /// The file with the token, which `muster break-glass issue` made.
        #[arg(long, value_name = "FILE")]
        token: PathBuf,
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
    /// Tell whether the guard can be restarted without a change to what is served: 0 if so, 3 if a fleet is armed, 4 if services
    /// would end with it. Packages ask this before they restart it.
    GuardIdle {
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
    /// Give this host its keys, its certificate and its configuration, for a token that an operator made.
    ///
    /// The keys are made here and stay here. It can be run again at any time within the token's life: it goes on with the keys
    /// that are there, and is given the same certificate. Files that it finds are kept.
    #[command(after_help = "Examples:
  muster-agent enrol --system --coordinator coordinator.example:7401 --ca-pin sha256:… --root root.json < token
  MUSTER_JOIN_TOKEN=… muster-agent enrol --coordinator 10.0.0.5:7401 --ca-pin sha256:… --root root.json --config .")]
    Enrol(Enrol),
}

#[derive(Debug, Args)]
struct Enrol {
    /// Where hosts without a certificate are expected.
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: Address,
    /// The token. Others can see it in the list of processes: rather use a file, stdin or MUSTER_JOIN_TOKEN.
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the token; `-` for stdin, which is also read where nothing else says the token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The SHA-256 of the authority's public key, as `muster host token` prints it.
    #[arg(long, value_name = "sha256:HEX")]
    ca_pin: Digest,
    /// The root document: which keys may sign orders, rosters and releases. It is never taken from the coordinator.
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// Write the configuration for the units that the packages install: in /etc/muster, with the state in /var/lib/muster and the links in
    /// /run/muster/fleets.
    #[arg(long, conflicts_with_all = ["config", "state"])]
    system: bool,
    /// The folder for keys, certificate, agent.toml and guard.toml.
    #[arg(long, value_name = "DIR", required_unless_present = "system")]
    config: Option<PathBuf>,
    /// Where agent and guard keep their state; the same folder if not given.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The link that services use, for a host of one fleet; below /run it vanishes at a reboot, as fleets ask for unless
    /// their policy says otherwise. In the state if not given.
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
    /// Make new keys, as those that are there may have been stolen, and put these aside as `*.replaced`. Whoever has to run it
    /// again with the same token leaves this out.
    #[arg(long)]
    new_keys: bool,
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
    /// Read the configuration with its drop-ins and everything that it names, and say all that is wrong.
    #[command(after_help = "Example:
  muster-agent config check && systemctl restart muster-agent")]
    Check {
        /// The agent's configuration, as for `run`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print what all its files say together, and which line of which file says it.
    Show {
        /// The agent's configuration, as for `run`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Parses this process's arguments and does what they say; the whole of `muster-agent`'s `main`.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::GuardIdle { config } => {
            match AgentConfig::load_without_keys(config.as_deref())
                .and_then(|config| local::guard_idle(&config))
            {
                Ok(idleness) => return idleness.into(),
                Err(error) => Err(error),
            }
        }
        Verb::Run { config } => AgentConfig::load(config.as_deref()).and_then(|config| run(&config)),
        Verb::Halt { fleet, reason, config } => AgentConfig::load_without_keys(config.as_deref())
            .and_then(|config| local::halt(&config, &fleet, &reason)),
        Verb::BreakGlass { fleet, token, config } => AgentConfig::load(config.as_deref())
            .and_then(|config| break_glass::break_glass(&config, &fleet, &token)),
        Verb::Status { fleet, config } => AgentConfig::load_without_keys(config.as_deref())
            .and_then(|config| local::status(&config, &fleet)),
        Verb::Audit(AuditVerb::Show { fleet, config }) => AgentConfig::load_without_keys(config.as_deref())
            .and_then(|config| local::show_audit(&config, &fleet)),
        Verb::Audit(AuditVerb::Accept { fleet, reason, config }) => {
            AgentConfig::load_without_keys(config.as_deref())
                .and_then(|config| local::accept_audit(&config, &fleet, &reason))
        }
        Verb::Config(ConfigVerb::Check { config }) => check(config.as_deref()),
        Verb::Config(ConfigVerb::Show { config }) => show(config.as_deref()),
        Verb::Enrol(verb) => enrol(verb),
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
        agent.run_under(ServiceManager::of_this_process(), shutdown).await
    });
    runtime.shutdown_timeout(END_TIMEOUT);
    outcome
}

/// Everything that `run` reads, without opening the state: an agent may be running on it.
fn check(file: Option<&Path>) -> Result<(), AgentError> {
    let told = match AgentConfig::load(file) {
        Ok(config) => {
            let parts = Parts::load(&config)?;
            let identity = parts.coordinator.tls.credentials().identity().clone();
            format!("{identity}: coordinator {}, {}", parts.coordinator.address, fleets_of(&config))
        }
        // Only the agent's unit is passed them.
        Err(AgentError::Daemon { source: muster_daemon::Error::NoCredentials { name } }) => {
            let config = AgentConfig::load_without_keys(file)?;
            let fleets = fleets_of(&config);
            format!(
                "coordinator {}, {fleets}; keys were not looked at: `credential:{name}` is passed to the unit",
                config.coordinator
            )
        }
        Err(error) => return Err(error),
    };
    // A closed standard output is not an error of the configuration.
    let _ = writeln!(io::stdout(), "{told}");
    Ok(())
}

fn fleets_of(config: &AgentConfig) -> String {
    let fleets: Vec<&str> = config.fleets.iter().map(|fleet| fleet.name.as_str()).collect();
    format!("fleets {}", fleets.join(", "))
}

fn show(file: Option<&Path>) -> Result<(), AgentError> {
    let text = AgentConfig::fragments(file)?.show().map_err(|source| AgentError::Config { source })?;
    // A closed standard output is not an error of the configuration.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn enrol(verb: Enrol) -> Result<(), AgentError> {
    let (layout, folder, state) = match verb.config {
        Some(folder) => (Layout::OneUser, folder, verb.state),
        None => (Layout::system()?, SYSTEM_CONFIG.into(), Some(SYSTEM_STATE.into())),
    };
    let enrolment = Enrolment {
        layout,
        token: read_token(verb.token, verb.token_file.as_deref())?,
        coordinator: verb.coordinator,
        ca_pin: verb.ca_pin,
        root: verb.root,
        folder,
        state,
        link: verb.link,
        keys: if verb.new_keys { KeysWanted::New } else { KeysWanted::Present },
    };
    let enrolled = runtime()?.block_on(enrol::enrol(&enrolment))?;
    let fleets: Vec<&str> = enrolled.fleets.iter().map(FleetName::as_str).collect();
    let next = match layout {
        Layout::OneUser => {
            format!("muster-guard run, then muster-agent run --config {}", enrolled.config.display())
        }
        Layout::System { .. } => "systemctl start muster-guard muster-agent".to_owned(),
    };
    // A closed standard output takes nothing away from what was done.
    let _ = writeln!(
        io::stdout(),
        "enrolled as {}, fleets {}\nattestation key {}\nNext: {next}; it waits for a roster with this key: muster roster propose \
         --from-pending",
        enrolled.identity,
        fleets.join(", "),
        enrolled.attestation_key,
    );
    Ok(())
}

/// The token from wherever it is said. What is read is not repeated in any message.
fn read_token(said: Option<String>, file: Option<&Path>) -> Result<JoinToken, AgentError> {
    const VARIABLE: &str = "MUSTER_JOIN_TOKEN";
    const TOKEN_BYTES_MAX: u64 = 4096;
    let unreadable =
        |source: io::Error| AgentError::Enrolment { doing: "read the token", source: source.into() };
    let mut text = Zeroizing::new(String::new());
    match (said, file) {
        (Some(said), _) => *text = said,
        (None, Some(path)) if path != Path::new("-") => {
            let file = File::open(path).map_err(unreadable)?;
            file.take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
        }
        (None, file) => match std::env::var(VARIABLE) {
            Ok(variable) if file.is_none() => *text = variable,
            Ok(_) | Err(_) => {
                io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
            }
        },
    }
    text.trim().parse().map_err(|source: JoinTokenError| AgentError::Enrolment {
        doing: "use the token",
        source: source.into(),
    })
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
