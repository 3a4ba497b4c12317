//! Where a coordinator listens.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::ServerName;

use crate::Error;

/// Host and port of a coordinator, read from `host:port` or `https://host:port`; an IPv6 address stands in brackets.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    host: ServerName<'static>,
    port: u16,
}

impl Address {
    /// The name or IP address that the server's certificate must be valid for.
    pub(crate) const fn server_name(&self) -> &ServerName<'static> {
        &self.host
    }

    /// The host without brackets, as the resolver takes it.
    #[must_use]
    pub fn host(&self) -> String {
        self.host.to_str().into_owned()
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host();
        if host.contains(':') {
            write!(f, "[{host}]:{}", self.port)
        } else {
            write!(f, "{host}:{}", self.port)
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| Error::Address { text: text.escape_debug().to_string() })
    }
}

fn parse(text: &str) -> Option<Address> {
    let authority = match text.strip_prefix("https://") {
        Some(rest) => rest.strip_suffix('/').unwrap_or(rest),
        None => text,
    };
    let (host, port) = authority.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|ip| ip.contains(':'))?,
        None => Some(host).filter(|host| !host.contains(':'))?,
    };
    let port = Some(port).filter(|port| port.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    if port == 0 {
        return None;
    }
    Some(Address { host: ServerName::try_from(host).ok()?.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read() {
        for (text, written) in [
            ("coordinator.example:7443", "coordinator.example:7443"),
            ("https://coordinator.example:7443", "coordinator.example:7443"),
            ("https://127.0.0.1:7443/", "127.0.0.1:7443"),
            ("[::1]:7443", "[::1]:7443"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), written);
        }
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:+1",
            "host:65536",
            ":7443",
            "::1:7443",
            "[host]:7443",
            "http://host:7443",
            "https://host:7443/path",
            "user@host:7443",
            "a b:1",
        ] {
            assert!(matches!(bad.parse::<Address>(), Err(Error::Address { .. })), "{bad:?}");
        }
    }
}
