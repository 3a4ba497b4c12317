//! The operator's command line; everything is in `muster-cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_daemon::keep_out_of_dumps();
    muster_cli::run()
}
