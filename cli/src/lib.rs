//! The operator's command line.
//!
//! Each command is a file in `commands`: it parses its own arguments, asks the coordinator or works on local files, and
//! ends with a report and an exit code. What the coordinator says is believed where it verifies with the pinned root
//! document, and shown as its view where it does not.
//!
//! The crate never decides whether a fleet may flip: the gate is in `crates/rollout`, and every host verifies for
//! itself. It holds no state between two commands. Its other half is the coordinator's gRPC edge.

mod args;
mod clock;
mod commands;
mod confirm;
mod connect;
mod context;
mod error;
mod exit;
mod explain;
mod files;
mod hints;
mod orders;
mod output;
mod provision;
mod resolve;
mod seen;
mod suggest;
mod view;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Cli;
use crate::error::CliError;
use crate::output::{Detail, Ui};

/// Runs the command line of this process: parses, does what was asked, shows what came of it.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let detail = if cli.global.verbose { Detail::Full } else { Detail::Brief };
    let ui = Ui::new(cli.global.output, cli.global.no_progress, detail);
    // A connection has to be kept alive while this thread waits for somebody to agree that their agent signs.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|source| CliError::System { doing: "start the runtime", source });
    let outcome = runtime.and_then(|runtime| {
        let outcome = runtime.block_on(Box::pin(commands::run(cli, ui)));
        // A thread that still reads a file has nothing left to do for us.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            ui.failure(&error);
            error.exit().into()
        }
    }
}
