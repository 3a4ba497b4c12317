//! `muster dev`: a whole fleet on this machine, with the real programs, for development and for seeing how it works.
//!
//! All processes have their own process group and outlive the command that started them; they are found again by their
//! command line, so that nothing else is ever ended in their place, whatever a file with a process number says.

mod demo;
mod down;
mod error;
mod fleet;
mod port;
mod process;
mod ready;
mod roster;
mod start;
mod stop;
mod up;

use clap::Subcommand;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) use error::DevError;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Run a fleet on this machine: real processes, real mutual TLS.
#[derive(Debug, Subcommand)]
pub(crate) enum Dev {
    Up(up::Up),
    Down(down::Down),
    Demo(demo::Demo),
}

impl Dev {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Up(up) => Box::pin(up.run(env)).await,
            Self::Down(down) => down.run(env),
            Self::Demo(demo) => Box::pin(demo.run(env)).await,
        }
    }
}

/// What asks a command of this process to end. From here on no such signal ends it by itself.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    fn listen() -> Result<Self, CliError> {
        let listen =
            |kind| signal(kind).map_err(|source| CliError::System { doing: "listen for signals", source });
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
