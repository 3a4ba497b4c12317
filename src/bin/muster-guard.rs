//! The guard's program; everything is in `muster_guard::cli`.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    Ok(muster_guard::cli::main()?)
}
