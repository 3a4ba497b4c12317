//! The Knight replay: 1 August 2012 again, eight servers with one missed, with this product at the gate.
//!
//! The demo types the commands that an operator types and runs this very program for each; nothing is simulated. It
//! ends with 0 only if every command ended as it has to and named what it has to name.

mod cut_off;
mod hold;
mod releases;
mod stage;
mod story;
mod two;
mod typed;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use self::cut_off::CutOff;
use self::stage::Stage;
use self::story::Figures;
use super::super::Env;
use super::{DevError, Interrupts};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Replay the Knight accident of 2012: eight hosts, one of them missed, told step by step with real processes. Then one is
/// cut off in the middle of a flip; then two operators must sign, and a receipt is verified by somebody else.
///
/// Everything happens in a folder of its own, which is removed at the end, and on 127.0.0.1. It takes less than a minute.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster dev demo
  muster dev demo --pace fast
  muster dev demo --dir ./knight --keep")]
pub(crate) struct Demo {
    /// Use this folder, which must be empty or not exist [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How long to pause for the reader
    #[arg(long, value_enum, default_value_t = Pace::Slow)]
    pace: Pace,
    /// Keep the folder, to look around in it or to start the fleet again
    #[arg(long)]
    keep: bool,
}

/// How long to pause for the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pace {
    /// A second after each thing that happens
    Slow,
    /// Not at all
    Fast,
}

impl Demo {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let mut interrupts = Interrupts::listen()?;
        let mut stage = Stage::build(self.dir, self.pace, self.keep, env.ui)?;
        let told = tokio::select! {
            told = story::tell(&mut stage) => told,
            () = interrupts.next() => Err(DevError::Interrupted.into()),
        };
        // Whatever happened, nothing of it is left behind; but what went wrong first is what is reported.
        let cleared = stage.clear();
        let Figures { flips, cut_off, flipped_bit } = told?;
        cleared?;
        let (hosts, steps) = (story::HOSTS, story::STEPS);
        env.ui.report(&Told { hosts, steps, flips, cut_off, flipped_bit })?;
        Ok(Exit::Proven)
    }
}

/// What the demo showed.
#[derive(Debug, Serialize)]
struct Told {
    hosts: u16,
    steps: usize,
    /// What each flip said of its dark window.
    flips: Vec<String>,
    cut_off: CutOff,
    /// What of a receipt was named in which one bit was flipped.
    flipped_bit: String,
}

impl Report for Told {
    const SCHEMA: &'static str = "muster.demo/1";

    fn print(&self, page: &mut Page) {
        let Self { hosts, steps, .. } = self;
        page.gap();
        page.toned(
            Tone::Good,
            format_args!(
                "All {steps} steps ended as they should, on {hosts} hosts. Nothing is left running."
            ),
        );
    }
}
