//! Who asks. A request may wait for its turn while whoever sent it dies, or gives up waiting: what it was to open or to arm
//! is then no longer wanted, and whoever asks next has decided on what the guard answered since.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

thread_local! {
    /// The connection of the request that this thread carries out, if there is one.
    static ASKER: RefCell<Option<UnixStream>> = const { RefCell::new(None) };
}

/// Whether somebody still waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Waits,
    Gone,
}

/// Carries out a request that came over `stream`.
pub(crate) fn on_behalf_of<T>(stream: &UnixStream, request: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            ASKER.with_borrow_mut(|asker| *asker = None);
        }
    }
    let _leave = Leave;
    // Without a descriptor of our own nobody could say whether the other end is there: then the request goes on.
    ASKER.with_borrow_mut(|asker| *asker = stream.try_clone().ok());
    request()
}

/// Looks at the connection without taking anything from it. A request that came over none waits for its own answer.
pub(crate) fn look() -> Asker {
    ASKER.with_borrow(|asker| match asker {
        None => Asker::Waits,
        Some(stream) => match recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Asker::Gone,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Asker::Waits,
            Err(_) => Asker::Gone,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_hung_up_waits_for_nothing() {
        assert_eq!(look(), Asker::Waits, "nobody asks over a connection");
        let (ours, theirs) = UnixStream::pair().unwrap();
        on_behalf_of(&ours, || {
            assert_eq!(look(), Asker::Waits);
            drop(theirs);
            assert_eq!(look(), Asker::Gone);
        });
        assert_eq!(look(), Asker::Waits);
    }
}
