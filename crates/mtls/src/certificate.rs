//! What a certificate says of itself: serial number and validity.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_model::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use crate::IdentityError;

/// How far a new certificate's start lies in the past, so that a peer whose clock is late accepts it.
const BACKDATED: Duration = Duration::from_secs(5 * 60);

/// RFC 5280, 4.1.2.2: at most 20 bytes.
const MAX_SERIAL_LEN: usize = 20;

/// A certificate's serial number, written in lower-case hex without leading zero bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// Wraps big-endian bytes; leading zero bytes mean nothing and are dropped.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
        Self(bytes[start..].to_vec())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("00");
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Serial {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "a serial number is written as 1 to 20 bytes of lower-case hex";
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.is_empty()
            || !text.len().is_multiple_of(2)
            || text.len() > 2 * MAX_SERIAL_LEN
            || !text.bytes().all(digit)
        {
            return Err(RULE);
        }
        let bytes: Result<Vec<u8>, _> =
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16)).collect();
        Ok(Self::from_bytes(&bytes.map_err(|_| RULE)?))
    }
}

/// From when until when something is valid, both ends included, at a resolution of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Validity {
    /// The first instant.
    pub not_before: UnixTime,
    /// The last instant.
    pub not_after: UnixTime,
}

impl Validity {
    /// Valid for `lifetime` from `now`, back-dated by five minutes for peers whose clocks are late.
    #[must_use]
    pub fn starting(now: UnixTime, lifetime: Duration) -> Self {
        let backdated_ms = u64::try_from(BACKDATED.as_millis()).expect("five minutes fit into 64 bits");
        Self { not_before: UnixTime(now.0.saturating_sub(backdated_ms)), not_after: now.after(lifetime) }
    }

    /// When a life of use began: the start without what was back-dated.
    #[must_use]
    pub fn began(&self) -> UnixTime {
        let began = self.not_before.after(BACKDATED);
        if began < self.not_after { began } else { self.not_before }
    }

    /// Whether less than a third of the life is left at `now`: by then it should long have been renewed.
    #[must_use]
    pub fn is_ending(&self, now: UnixTime) -> bool {
        let life = self.not_after.0.saturating_sub(self.began().0);
        self.not_after.0.saturating_sub(now.0) < life / 3
    }

    /// Whether `now` lies inside.
    #[must_use]
    pub fn contains(&self, now: UnixTime) -> bool {
        RangeInclusive::new(self.not_before, self.not_after).contains(&now)
    }
}

/// Parses a certificate in DER, with nothing behind it.
pub(crate) fn parse(cert_der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(cert_der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err(IdentityError::Certificate { reason: "there are bytes behind it".to_owned() }),
        Err(error) => Err(IdentityError::Certificate { reason: error.to_string() }),
    }
}

/// The DNS names and IP addresses of a certificate in DER.
pub(crate) fn server_names(cert_der: &[u8]) -> Result<Vec<String>, IdentityError> {
    let unreadable = |reason: String| IdentityError::Certificate { reason };
    let cert = parse(cert_der)?;
    let names = cert.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let mut texts = Vec::new();
    for name in names {
        if let GeneralName::DNSName(name) = name {
            texts.push((*name).to_owned());
        }
        if let GeneralName::IPAddress(bytes) = name {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            let wrong = |_| unreadable("one of its addresses is neither of IPv4 nor of IPv6".to_owned());
            texts.push(address.map_err(wrong)?.to_string());
        }
    }
    Ok(texts)
}

/// Writes a certificate in DER as PEM.
pub(crate) fn to_pem(cert_der: &[u8]) -> String {
    const LINE: usize = 48;
    let lines = cert_der.chunks(LINE).map(|line| STANDARD.encode(line) + "\n");
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
}

pub(crate) fn serial_of(cert: &X509Certificate<'_>) -> Serial {
    Serial::from_bytes(cert.raw_serial())
}

pub(crate) fn validity_of(cert: &X509Certificate<'_>) -> Validity {
    let validity = cert.validity();
    Validity { not_before: unix_time(validity.not_before), not_after: unix_time(validity.not_after) }
}

/// X.509 counts in seconds and reaches back before 1970; such a date is as good as 1970 here.
pub(crate) fn unix_time(time: ASN1Time) -> UnixTime {
    UnixTime(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_have_one_spelling() {
        let serial = Serial::from_bytes(&[0, 0, 0x0a, 0xff]);
        assert_eq!(serial.to_string(), "0aff");
        assert_eq!("0aff".parse(), Ok(serial.clone()));
        assert_eq!("000aff".parse(), Ok(serial));
        for bad in ["", "a", "0AFF", "0x0a", "+a", &"00".repeat(21)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn validity_is_backdated() {
        let validity = Validity::starting(UnixTime(1_000_000), Duration::from_secs(60));
        assert_eq!(validity.not_before, UnixTime(700_000));
        assert_eq!(validity.not_after, UnixTime(1_060_000));
        assert!(validity.contains(UnixTime(700_000)) && validity.contains(UnixTime(1_060_000)));
        assert!(!validity.contains(UnixTime(699_999)) && !validity.contains(UnixTime(1_060_001)));
    }
}
