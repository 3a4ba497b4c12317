//! Limits of the process.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Raises the number of files that this process may have open as far as it is allowed to, and says how many that are.
///
/// The usual soft limit of 1,024 is for programs that use `select`; a coordinator has a connection for each host.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // A refusal leaves the limit as it was, which is what is reported then.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Keeps this process's memory, in which there are keys, out of core dumps and away from other processes of its user.
/// Programs that it starts are not concerned.
///
/// To be called once, by a `main`, before a key is read.
///
/// # Panics
/// Never: the kernel refuses only values that it does not know.
pub fn keep_out_of_dumps() {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).expect("every kernel knows this value");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        assert_eq!(Some(raise_open_files()), getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)));
    }
}
