//! Asking a process to end, as a value: libraries wait for it and never see a signal.

use std::future;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::Error;

/// The wish that everything comes to an end. Clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested: watch::Receiver<bool>,
}

/// The other end of a [`Shutdown`]. If it is dropped unused, the wish never comes.
#[derive(Debug)]
pub struct ShutdownTrigger {
    requested: watch::Sender<bool>,
}

impl Shutdown {
    /// A shutdown that somebody else decides: a test, or a process that runs many agents.
    #[must_use]
    pub fn new() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger { requested: sender }, Self { requested: receiver })
    }

    /// Whether it has been wished for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// Resolves as soon as it is wished for, at once if it has been already. Borrows nothing, and can be dropped at any time.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut requested = self.requested.clone();
        async move {
            if requested.wait_for(|requested| *requested).await.is_err() {
                future::pending().await
            }
        }
    }
}

impl ShutdownTrigger {
    /// Wishes for it. Again makes no difference.
    pub fn request(&self) {
        self.requested.send_replace(true);
    }
}

/// A shutdown that SIGTERM or SIGINT asks for; a second signal ends the process there and then.
///
/// To be called once, by a `main`, within a tokio runtime.
pub fn shutdown_on_signals() -> Result<Shutdown, Error> {
    let listen = |kind| signal(kind).map_err(|source| Error::Signals { source });
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let (trigger, shutdown) = Shutdown::new();
    tokio::spawn(async move {
        let kind = next(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = kind.as_raw_value(), "asked to end; a second signal ends at once");
        trigger.request();
        let kind = next(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = kind.as_raw_value(), "ended by a second signal");
        // What a shell shows for a process that the signal killed.
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(shutdown)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate(),
        _ = interrupt.recv() => SignalKind::interrupt(),
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{self, BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, kill_process};

    use super::*;

    #[tokio::test]
    async fn a_wish_reaches_everyone_early_and_late() {
        let (trigger, shutdown) = Shutdown::new();
        let early = tokio::spawn(shutdown.requested());
        assert!(!shutdown.is_requested());
        trigger.request();
        early.await.unwrap();
        drop(trigger);
        assert!(shutdown.is_requested());
        shutdown.clone().requested().await;
    }

    /// This test runs itself as a second process, which is sent the signals.
    #[test]
    fn the_first_signal_asks_and_the_second_ends() {
        const CHILD: &str = "MUSTER_TEST_SHUTDOWN_CHILD";
        if env::var_os(CHILD).is_some() {
            return wait_for_two_signals();
        }
        let signals = [(rustix::process::Signal::TERM, 143), (rustix::process::Signal::INT, 130)];
        for (signal, code) in signals {
            let mut child = Command::new(env::current_exe().unwrap())
                .args([
                    "--exact",
                    "shutdown::tests::the_first_signal_asks_and_the_second_ends",
                    "--nocapture",
                ])
                .env(CHILD, "1")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let pid = Pid::from_child(&child);
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(lines.any(|line| line.ends_with("ready")));
            kill_process(pid, signal).unwrap();
            assert!(lines.any(|line| line.ends_with("asked")));
            kill_process(pid, signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(code));
        }
    }

    fn wait_for_two_signals() {
        let say = |line: &str| writeln!(io::stdout(), "{line}").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let shutdown = shutdown_on_signals().unwrap();
            say("ready");
            shutdown.requested().await;
            say("asked");
            future::pending::<()>().await;
        });
    }
}
