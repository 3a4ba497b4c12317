//! The agent's program; everything is in `muster_agent::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_agent::cli::main()
}
