//! A port for the coordinator, which it keeps when it is started again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use super::DevError;

/// Below the ports that Linux gives to outgoing connections (32768 and up): none of those can take the port while the
/// coordinator is down.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// How many ports are tried.
const ATTEMPTS_MAX: u16 = 256;

/// A port of the loopback address on which nobody listens. The search begins anywhere, so that fleets that are made
/// at the same time do not meet.
pub(super) fn free_port() -> Result<u16, DevError> {
    let start = RandomState::new().build_hasher().finish() % u64::from(COUNT);
    let start = u16::try_from(start).expect("a remainder of a 16-bit number has 16 bits");
    (0..ATTEMPTS_MAX)
        .map(|attempt| FIRST + (start + attempt) % COUNT)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .ok_or(DevError::NoPort { first: FIRST, last: FIRST + COUNT - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_can_be_listened_on() {
        let port = free_port().unwrap();
        assert!((FIRST..FIRST + COUNT).contains(&port));
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
