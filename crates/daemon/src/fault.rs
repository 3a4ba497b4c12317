//! Points at which tests let a daemon die or fail. **A release build contains neither.**
//!
//! In builds with debug assertions:
//! - `MUSTER_CRASH_AT=name` or `name#n` kills the process with SIGKILL at the first, or the n-th, time that it
//!   comes by `crash_point("name")`: nothing is flushed, dropped or answered any more.
//! - `MUSTER_FAULT_AT=name:ENOSPC` (or `EIO`, `EROFS`) makes every `fault_point("name")` fail with that error.
//!
//! Both variables are read once. A value that does not parse ends the process, so that no test passes because its
//! fault never happened.

#[cfg(debug_assertions)]
pub use armed::{crash_point, fault_point};
#[cfg(not(debug_assertions))]
pub use disarmed::{crash_point, fault_point};

#[cfg(debug_assertions)]
mod armed {
    use std::env;
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::io::Errno;
    use rustix::process::{Signal, getpid, kill_process};

    const CRASH_VARIABLE: &str = "MUSTER_CRASH_AT";
    const FAULT_VARIABLE: &str = "MUSTER_FAULT_AT";

    /// Dies here if a test says so; in a release build this is nothing.
    pub fn crash_point(name: &str) {
        static CRASH: OnceLock<Option<CrashAt>> = OnceLock::new();
        let crash = CRASH.get_or_init(|| from_env(CRASH_VARIABLE, CrashAt::parse));
        if crash.as_ref().is_some_and(|crash| crash.is_now(name)) {
            // Nobody can be told if this fails, and going on would be the one wrong thing to do.
            let _ = kill_process(getpid(), Signal::KILL);
            std::process::abort();
        }
    }

    /// Fails here if a test says so; in a release build this is always `Ok`.
    pub fn fault_point(name: &str) -> io::Result<()> {
        static FAULT: OnceLock<Option<FaultAt>> = OnceLock::new();
        let fault = FAULT.get_or_init(|| from_env(FAULT_VARIABLE, FaultAt::parse));
        match fault {
            Some(fault) if fault.name == name => Err(fault.errno.into()),
            Some(_) | None => Ok(()),
        }
    }

    fn from_env<T>(variable: &str, parse: fn(&str) -> Option<T>) -> Option<T> {
        let text = env::var_os(variable)?;
        let parsed = text.to_str().and_then(parse);
        Some(
            parsed.unwrap_or_else(|| panic!("{variable} has the value {text:?}, which is none of its forms")),
        )
    }

    struct CrashAt {
        name: String,
        nth: u64,
        hits: AtomicU64,
    }

    impl CrashAt {
        fn parse(text: &str) -> Option<Self> {
            let (name, nth) = match text.split_once('#') {
                Some((name, nth)) => (name, nth.parse().ok().filter(|nth| *nth > 0)?),
                None => (text, 1),
            };
            (!name.is_empty()).then(|| Self { name: name.to_owned(), nth, hits: AtomicU64::new(0) })
        }

        /// Counts one more pass, and says whether it is the one.
        fn is_now(&self, name: &str) -> bool {
            self.name == name && self.hits.fetch_add(1, Ordering::Relaxed) + 1 == self.nth
        }
    }

    struct FaultAt {
        name: String,
        errno: Errno,
    }

    impl FaultAt {
        fn parse(text: &str) -> Option<Self> {
            let (name, errno) = text.rsplit_once(':')?;
            let errno = match errno {
                "ENOSPC" => Errno::NOSPC,
                "EIO" => Errno::IO,
                "EROFS" => Errno::ROFS,
                _ => return None,
            };
            (!name.is_empty()).then(|| Self { name: name.to_owned(), errno })
        }
    }

    #[cfg(test)]
    mod tests {
        use std::os::unix::process::ExitStatusExt as _;
        use std::process::{Command, ExitStatus};

        use super::*;

        #[test]
        fn forms() {
            let crash = CrashAt::parse("prepare.sealed#2").unwrap();
            let hits = ["prepare.sealed", "other", "prepare.sealed", "prepare.sealed"]
                .map(|name| crash.is_now(name));
            assert_eq!(hits, [false, false, true, false]);
            assert!(CrashAt::parse("x").unwrap().is_now("x"));
            for bad in ["", "#1", "x#", "x#0", "x#-1", "x#y"] {
                assert!(CrashAt::parse(bad).is_none(), "{bad:?}");
            }
            let fault = FaultAt::parse("blob:write:EROFS").unwrap();
            assert_eq!((fault.name.as_str(), fault.errno), ("blob:write", Errno::ROFS));
            for bad in ["", "x", "x:", ":EIO", "x:eio", "x:EPERM"] {
                assert!(FaultAt::parse(bad).is_none(), "{bad:?}");
            }
        }

        /// This test also runs itself as a second process, in which the variables are set.
        #[test]
        fn points_do_nothing_unless_they_are_named() {
            for _ in 0..2 {
                crash_point("test.crash");
                fault_point("test.fault").unwrap();
            }
            if env::var_os(CRASH_VARIABLE).is_some() || env::var_os(FAULT_VARIABLE).is_some() {
                return;
            }
            assert!(run_with(CRASH_VARIABLE, "test.other").success());
            assert!(run_with(CRASH_VARIABLE, "test.crash#3").success());
            assert_eq!(run_with(CRASH_VARIABLE, "test.crash").signal(), Some(9));
            assert_eq!(run_with(CRASH_VARIABLE, "test.crash#2").signal(), Some(9));
            assert!(run_with(FAULT_VARIABLE, "test.other:EIO").success());
            assert!(run_with(FAULT_VARIABLE, "test.fault:EIO").code().is_some_and(|code| code != 0));
            assert!(run_with(CRASH_VARIABLE, "test.crash#x").code().is_some_and(|code| code != 0));
        }

        fn run_with(variable: &str, value: &str) -> ExitStatus {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", "fault::armed::tests::points_do_nothing_unless_they_are_named"])
                .env(variable, value)
                .output()
                .unwrap()
                .status
        }
    }
}

#[cfg(not(debug_assertions))]
mod disarmed {
    /// Dies here if a test says so; in a release build this is nothing.
    #[inline(always)]
    pub const fn crash_point(_name: &str) {}

    /// Fails here if a test says so; in a release build this is always `Ok`.
    #[inline(always)]
    pub const fn fault_point(_name: &str) -> std::io::Result<()> {
        Ok(())
    }
}
