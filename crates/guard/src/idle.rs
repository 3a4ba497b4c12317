//! Work beside a service that it must not hold up.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use rustix::process::setpriority_process;

use crate::log::log;

/// The least that there is.
const NICENESS: i32 = 19;

/// Does something on a thread of its own that gets what others leave of the processors; whatever it starts is as nice as it is.
pub(crate) fn nicely<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let nice = || {
            // Linux takes nobody in particular for the thread that asks.
            if let Err(error) = setpriority_process(None, NICENESS) {
                log!("what runs beside the service is as fast as the rest: {error}");
            }
            work()
        };
        let thread = thread::Builder::new().name("nice".to_owned()).spawn_scoped(scope, nice)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_started_nicely_is_nice_and_nothing_else_is() {
        let nice = || String::from_utf8(Command::new("nice").output().unwrap().stdout).unwrap();
        let before = nice();
        assert_eq!(nicely(nice).unwrap().trim(), "19");
        assert_eq!(nice(), before);
    }
}
