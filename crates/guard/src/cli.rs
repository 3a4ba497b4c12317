//! The command line of `muster-guard`.
//!
//! `run` is the guard. `keep-service` and `exec-service` are steps between the guard and a supervised command; they are
//! hidden, as only the guard calls them. Together they see to it that a service does not outlive its guard: the keeper
//! reads the guard's end of a pipe, and kills every descendant of the service when that ends, however the guard ended;
//! the service itself is killed by the kernel if the keeper dies.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::{GuardConfig, StopSignal};
use crate::error::GuardError;
use crate::log::log;
use crate::server;
use crate::service::keeper::{self, Keep};
use crate::shutdown::Shutdown;

/// What a shell answers for a command that cannot be run.
const CANNOT_EXECUTE: u8 = 127;

#[derive(Debug, Parser)]
#[command(
    name = "muster-guard",
    version,
    about = "Owns this host's link and service, and answers to its agent."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the guard until SIGTERM or SIGINT.
    Run {
        /// The guard's configuration, in TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Keep one run of a service (called by the guard).
    #[command(hide = true)]
    KeepService {
        #[arg(long)]
        stop_signal: StopSignal,
        #[arg(long)]
        stop_timeout_ms: u64,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Become a service (called by its keeper).
    #[command(hide = true)]
    ExecService {
        #[arg(long)]
        parent_pid: i32,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Parses this process's arguments and does what they say; the whole of `muster-guard`'s `main`.
pub fn main() -> Result<ExitCode, GuardError> {
    match Cli::parse().verb {
        Verb::Run { config } => {
            let settings = GuardConfig::load(&config)?;
            let shutdown = Shutdown::on_signals()?;
            server::run(&settings, &shutdown)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::KeepService { stop_signal, stop_timeout_ms, command } => {
            let stop_timeout = Duration::from_millis(stop_timeout_ms);
            match keeper::keep(Keep { stop_signal, stop_timeout, command }) {
                Ok(()) => Ok(ExitCode::SUCCESS),
                Err(error) => {
                    log!("cannot keep the service: {error}");
                    Ok(ExitCode::FAILURE)
                }
            }
        }
        Verb::ExecService { parent_pid, command } => {
            let error = keeper::exec(parent_pid, &command);
            log!("{error}");
            Ok(ExitCode::from(CANNOT_EXECUTE))
        }
    }
}
