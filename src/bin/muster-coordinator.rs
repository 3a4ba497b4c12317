//! The coordinator's executable.

fn main() -> std::process::ExitCode {
    muster_coordinator::main()
}
