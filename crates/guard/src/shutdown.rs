//! Asking a guard to stop.

use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::error::GuardError;

/// Tells a guard when to stop. It is a file descriptor, so that the guard can wait for it beside its socket.
#[derive(Debug)]
pub struct Shutdown {
    wake: UnixStream,
}

/// Asks the guard to stop; dropping it does the same.
#[derive(Debug)]
pub struct ShutdownTrigger {
    _wake: UnixStream,
}

impl Shutdown {
    /// A trigger and what it triggers.
    pub fn pair() -> Result<(ShutdownTrigger, Self), GuardError> {
        let (wake, other) = UnixStream::pair().map_err(GuardError::io("make", Path::new("a socket pair")))?;
        Ok((ShutdownTrigger { _wake: other }, Self { wake }))
    }

    /// Triggered by SIGTERM and SIGINT of this process. For `main` only: it changes the process's signal handlers.
    pub fn on_signals() -> Result<Self, GuardError> {
        let (wake, other) = UnixStream::pair().map_err(GuardError::io("make", Path::new("a socket pair")))?;
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
            let other = other.try_clone().map_err(GuardError::io("copy", Path::new("a socket")))?;
            signal_hook::low_level::pipe::register(signal.as_raw(), other)
                .map_err(GuardError::io("handle", Path::new("a signal")))?;
        }
        Ok(Self { wake })
    }

    /// Readable once the guard is asked to stop.
    pub(crate) const fn wake(&self) -> &UnixStream {
        &self.wake
    }
}
