//! The coordinator's command line.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use muster_daemon::{LogFormat, ServiceManager, init_logging, shutdown_on_signals};
use muster_store::EXIT_STORAGE;

use crate::status::chain;
use crate::{CoordinatorConfig, Error, restore, run_under};

/// Coordinate fleets: relay, keep count, and flip a release only when all N hosts attest it.
#[derive(Parser)]
#[command(name = "muster-coordinator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the coordinator.
    Run {
        /// Read this configuration instead of coordinator.toml in /etc/muster, /run/muster and /usr/lib/muster.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Write the address that is listened on to this file, once it is.
        #[arg(long)]
        address_file: Option<PathBuf>,
        /// Log in this format.
        #[arg(long, value_enum, default_value = "text")]
        log: Log,
    },
    /// Look into the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Build a state folder from a backup. Run it while no coordinator uses that folder.
    Restore {
        /// The backup, as `muster backup` wrote it.
        #[arg(long)]
        from: PathBuf,
        /// The state folder to build.
        #[arg(long)]
        state: PathBuf,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Read the configuration with its drop-ins, and say all that is wrong with it.
    #[command(after_help = "Example:
  muster-coordinator config check --config /etc/muster/coordinator/coordinator.toml")]
    Check {
        /// The configuration, as for `run`.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print what all its files say together, and which line of which file says it.
    Show {
        /// The configuration, as for `run`.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Log {
    Text,
    Json,
}

/// Runs the command line and says how the process ends.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config, address_file, log } => serve(config, address_file, log),
        Command::Config(ConfigCommand::Check { config }) => {
            CoordinatorConfig::load(config.as_deref()).map(|config| {
                let (listen, state) = (config.listen, config.state.display());
                let _ = writeln!(std::io::stdout(), "listens on {listen}, state in {state}");
            })
        }
        Command::Config(ConfigCommand::Show { config }) => show(config.as_deref()),
        Command::Restore { from, state } => restore(&from, &state).map(|summary| {
            // A closed standard output takes nothing away from what was done.
            let _ = writeln!(
                std::io::stdout(),
                "restored {} records; start the coordinator, and it waits for its hosts to join",
                summary.records
            );
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "muster-coordinator: {}", chain(&error));
            if is_storage(&error) { ExitCode::from(EXIT_STORAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn show(file: Option<&Path>) -> Result<(), Error> {
    let text = CoordinatorConfig::fragments(file)?.show()?;
    // A closed standard output is not an error of the configuration.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Whether a restart could adopt what never reached the disk.
fn is_storage(error: &Error) -> bool {
    match error {
        Error::StoreFailed(source) | Error::Store { source, .. } => source.is_fatal(),
        Error::Config(_)
        | Error::Daemon(_)
        | Error::Tls(_)
        | Error::Issuer { .. }
        | Error::AuditKey { .. }
        | Error::AuditLog { .. }
        | Error::Blobs(_)
        | Error::Record { .. }
        | Error::Document { .. }
        | Error::Root { .. }
        | Error::Listen { .. }
        | Error::Serve(_)
        | Error::File { .. }
        | Error::Identity { .. } => false,
    }
}

fn serve(config: Option<PathBuf>, address_file: Option<PathBuf>, log: Log) -> Result<(), Error> {
    init_logging(match log {
        Log::Text => LogFormat::Text,
        Log::Json => LogFormat::Json,
    })?;
    let config = CoordinatorConfig::load(config.as_deref())?;
    let descriptors = muster_daemon::raise_open_files();
    tracing::info!(descriptors, "each connected host takes one");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|source| Error::File { action: "start", path: "the runtime".into(), source })?;
    runtime.block_on(async {
        let shutdown = shutdown_on_signals()?;
        run_under(ServiceManager::of_this_process(), config, shutdown, |address| {
            let Some(path) = address_file else { return };
            if let Err(error) = std::fs::write(&path, format!("{address}\n")) {
                tracing::error!(path = %path.display(), %error, "the address cannot be written");
            }
        })
        .await
    })
}
