//! Limits of the process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the number of files that this process may have open as far as it is allowed to, and says how many that are.
///
/// The usual soft limit of 1,024 is for programs that use `select`; a coordinator has a connection for each host.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // A refusal leaves the limit as it was, which is what is reported then.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        assert_eq!(Some(raise_open_files()), getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)));
    }
}
