//! Work that must cost nobody anything: it runs where nothing else wants to.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// Does something on a thread of its own under `SCHED_IDLE`, as all threads are that it starts. The kernel takes what such a thread reads
/// for idle as well, where the disk's scheduler knows classes. A thread of a pool would stay so: only the privileged get out of it.
pub(crate) fn idly<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let idle = || {
            let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
            if let Err(error) =
                set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy)
            {
                tracing::debug!(?error, "what is done beside the service is done as fast as the rest");
            }
            work()
        };
        let thread = thread::Builder::new().name("muster-idle".to_owned()).spawn_scoped(scope, idle)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The policy of a thread, as sched(7) numbers them: the 41st field of its line.
    fn policy() -> String {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(41 - 3).unwrap().to_owned()
    }

    #[test]
    fn what_runs_idly_and_what_it_starts_are_idle_and_nothing_else_is() {
        const SCHED_IDLE: &str = "5";
        let before = policy();
        assert_ne!(before, SCHED_IDLE);
        let own = || thread::spawn(policy).join().unwrap();
        assert_eq!(idly(|| (policy(), own())).unwrap(), (SCHED_IDLE.to_owned(), SCHED_IDLE.to_owned()));
        assert_eq!(policy(), before);
    }
}
