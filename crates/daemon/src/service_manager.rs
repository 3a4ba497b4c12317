//! What the service manager that started this process is told: that it is ready, what it does, that it lives, that it ends.
//!
//! Without a service manager nothing is told and nothing is asked for, so that a daemon runs the same in a terminal.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::Shutdown;

/// How often the status text is looked at where no watchdog asks more often.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);

/// The longest status text, in bytes; the rest is cut off.
const STATUS_BYTES_MAX: usize = 512;

/// The service manager of this process, if there is one. Clones are of the same one.
#[derive(Debug, Clone)]
pub struct ServiceManager(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    watchdog: Option<Duration>,
    /// The status that it was told last.
    status: Mutex<String>,
}

impl ServiceManager {
    /// The one that started this process, as the environment tells. To be called by a `main`.
    #[must_use]
    pub fn of_this_process() -> Self {
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        Self(
            is_there.then(|| {
                Arc::new(Link { watchdog: sd_notify::watchdog_enabled(), status: Mutex::default() })
            }),
        )
    }

    /// None: nothing is told to anybody.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Whether there is one.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Tells that the process does its work from now on.
    pub fn ready(&self, status: &str) {
        if self.0.is_some() {
            self.status(status);
            tell(&[NotifyState::Ready]);
        }
    }

    /// Tells in a line what the process does, if that is something else than before.
    pub fn status(&self, status: &str) {
        let Some(link) = &self.0 else { return };
        let status = one_line(status);
        let mut told = link.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != status {
            tell(&[NotifyState::Status(&status)]);
            *told = status;
        }
    }

    /// Tells that the process ends by itself.
    pub fn stopping(&self) {
        if self.0.is_some() {
            self.status("ends");
            tell(&[NotifyState::Stopping]);
        }
    }

    /// Tells again and again that the process lives, each time after `pulse` has been all the way through what it does;
    /// `pulse` answers the status. One that does not come back is told nothing for, and the process is killed if the unit has a
    /// `WatchdogSec=`. Returns when `shutdown` is asked for, and has told of that.
    pub async fn watch<P: Future<Output = String>>(&self, shutdown: &Shutdown, mut pulse: impl FnMut() -> P) {
        let Some(link) = &self.0 else {
            return shutdown.requested().await;
        };
        // Twice within the time that is allowed, and once more for what the pulse itself takes.
        let period = link.watchdog.map_or(STATUS_INTERVAL, |watchdog| watchdog / 3);
        let mut beats = interval(period.max(Duration::from_millis(1)));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut requested = std::pin::pin!(shutdown.requested());
        loop {
            let beat = async {
                beats.tick().await;
                pulse().await
            };
            tokio::select! {
                biased;
                () = &mut requested => break,
                status = beat => {
                    self.status(&status);
                    if link.watchdog.is_some() {
                        tell(&[NotifyState::Watchdog]);
                    }
                }
            }
        }
        self.stopping();
    }
}

/// A service manager that does not listen must not end what it manages.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

fn one_line(status: &str) -> String {
    let mut line = status.replace(['\n', '\r'], " ");
    line.truncate(line.floor_char_boundary(STATUS_BYTES_MAX));
    line
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    /// Runs one of these tests again as a process of its own, whose manager this one is, and hands on what it tells.
    fn managed(test: &str, watchdog: Option<Duration>, heard: impl FnOnce(&UnixDatagram)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", &format!("service_manager::tests::{test}"), "--nocapture"]);
        command.env("MUSTER_TEST_MANAGED", "1").env("NOTIFY_SOCKET", &path).env_remove("WATCHDOG_PID");
        match watchdog {
            Some(watchdog) => command.env("WATCHDOG_USEC", watchdog.as_micros().to_string()),
            None => command.env_remove("WATCHDOG_USEC"),
        };
        let mut child = command.spawn().unwrap();
        heard(&socket);
        assert!(child.wait().unwrap().success());
    }

    fn is_managed() -> bool {
        env::var_os("MUSTER_TEST_MANAGED").is_some()
    }

    fn next(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).expect("told in time");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn it_is_told_what_happens_in_order() {
        if is_managed() {
            let manager = ServiceManager::of_this_process();
            manager.status("waits\nfor the guard");
            manager.status("waits for the guard");
            manager.ready("serves");
            manager.stopping();
            return;
        }
        managed("it_is_told_what_happens_in_order", None, |socket| {
            let told: Vec<String> = (0..5).map(|_| next(socket)).collect();
            let told: Vec<&str> = told.iter().map(|line| line.trim_end()).collect();
            assert_eq!(
                told,
                ["STATUS=waits for the guard", "STATUS=serves", "READY=1", "STATUS=ends", "STOPPING=1"]
            );
        });
    }

    /// The pulse comes back twice and then never again: no third sign of life follows, until the end is wished for.
    #[test]
    fn what_hangs_is_told_of_no_more() {
        if is_managed() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (trigger, shutdown) = Shutdown::new();
                let mut pulses = 0;
                let manager = ServiceManager::of_this_process();
                manager
                    .watch(&shutdown, || {
                        pulses += 1;
                        let (turn, trigger) = (pulses, &trigger);
                        async move {
                            if turn == 3 {
                                // Longer than several beats, so that one that did not wait would show.
                                tokio::time::sleep(Duration::from_millis(200)).await;
                                trigger.request();
                                std::future::pending::<()>().await;
                            }
                            format!("turn {turn}")
                        }
                    })
                    .await;
            });
            return;
        }
        managed("what_hangs_is_told_of_no_more", Some(Duration::from_millis(60)), |socket| {
            let told: Vec<String> = (0..6).map(|_| next(socket).trim_end().to_owned()).collect();
            let beats = ["STATUS=turn 1", "WATCHDOG=1", "STATUS=turn 2", "WATCHDOG=1"];
            assert_eq!(told, [&beats[..], &["STATUS=ends", "STOPPING=1"]].concat());
        });
    }

    #[tokio::test]
    async fn without_one_nothing_is_asked() {
        let (trigger, shutdown) = Shutdown::new();
        trigger.request();
        let manager = ServiceManager::none();
        manager.ready("serves");
        manager.watch(&shutdown, || async { unreachable!("nobody listens") }).await;
        assert!(!manager.is_there());
    }

    #[test]
    fn a_status_is_cut_at_a_character() {
        let line = one_line(&"é".repeat(STATUS_BYTES_MAX));
        assert_eq!(line.len(), STATUS_BYTES_MAX);
        assert_eq!(one_line(&format!("a{}", "é".repeat(STATUS_BYTES_MAX))).len(), STATUS_BYTES_MAX - 1);
    }
}
