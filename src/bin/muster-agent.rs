//! The agent's program; everything is in `muster_agent::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_daemon::keep_out_of_dumps();
    muster_agent::cli::main()
}
