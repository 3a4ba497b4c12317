//! The coordinator's executable.

fn main() -> std::process::ExitCode {
    muster_daemon::keep_out_of_dumps();
    muster_coordinator::main()
}
