//! What a host shows that has no certificate yet: a token, and proof that its attestation key is its own.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use muster_model::{Digest, HostName, UnixTime};
use zeroize::Zeroizing;

use crate::dsse::pae;

/// What a host signs to enrol.
const ENROLMENT_TYPE: &str = "application/vnd.muster.enrolment-possession";
/// What it signs to recover.
const RECOVERY_TYPE: &str = "application/vnd.muster.recovery-possession";

/// How many random bytes make a token.
pub const TOKEN_SECRET_LEN: usize = 32;

/// A token with which one host can enrol, written `HOST.SECRET`. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    host: HostName,
    secret: Zeroizing<[u8; TOKEN_SECRET_LEN]>,
}

/// Why a text is not a [`JoinToken`]. It does not repeat the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token: one is written `HOST.SECRET`, as `muster host token` prints it")]
pub struct JoinTokenError;

impl JoinToken {
    /// The token of `host` with this secret.
    #[must_use]
    pub fn new(host: HostName, secret: [u8; TOKEN_SECRET_LEN]) -> Self {
        Self { host, secret: Zeroizing::new(secret) }
    }

    /// For which host.
    #[must_use]
    pub const fn host(&self) -> &HostName {
        &self.host
    }

    /// What is shown to the coordinator.
    #[must_use]
    pub fn secret(&self) -> &[u8] {
        &*self.secret
    }

    /// The token as text, once.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}.{}", self.host, URL_SAFE_NO_PAD.encode(self.secret.as_slice())))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("host", &self.host).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, secret) = text.rsplit_once('.').ok_or(JoinTokenError)?;
        let host = HostName::new(host).map_err(|_| JoinTokenError)?;
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).map_err(|_| JoinTokenError)?);
        let secret = secret.as_slice().try_into().map_err(|_| JoinTokenError)?;
        Ok(Self::new(host, secret))
    }
}

/// What is kept of a token's secret.
#[must_use]
pub fn token_digest(secret: &[u8]) -> Digest {
    Digest::of(secret)
}

/// Whether both are the same, in a time that does not depend on where they differ.
#[must_use]
pub fn is_same_digest(one: &Digest, other: &Digest) -> bool {
    verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

/// The message that an attestation key signs to enrol with a token and a certificate request.
#[must_use]
pub fn enrolment_possession(token: &Digest, host: &HostName, request: &[u8]) -> Vec<u8> {
    let body =
        [token.as_bytes().as_slice(), Digest::of(request).as_bytes(), host.as_str().as_bytes()].concat();
    pae(ENROLMENT_TYPE, &body)
}

/// The message that it signs to recover from an expired certificate.
#[must_use]
pub fn recovery_possession(host: &HostName, at: UnixTime, request: &[u8]) -> Vec<u8> {
    let at = at.0.to_be_bytes();
    let body = [at.as_slice(), Digest::of(request).as_bytes(), host.as_str().as_bytes()].concat();
    pae(RECOVERY_TYPE, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_one_text_and_shows_it_to_nobody_else() {
        let token = JoinToken::new(HostName::new("host-1").unwrap(), [0xAB; TOKEN_SECRET_LEN]);
        let text = token.to_text();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("q6ur"), "{token:?}");
        assert!(text.contains("q6ur"));
        for wrong in ["", "host-1", "host-1.", "host-1.AAAA", ".AAAA", &format!("{}=", &*text), &text[7..]] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(JoinTokenError), "{wrong}");
        }
        assert!(!JoinTokenError.to_string().contains("q6ur"));
    }

    #[test]
    fn what_is_signed_is_of_one_token_host_request_and_purpose() {
        let host = |name| HostName::new(name).unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let messages = [
            enrolment_possession(&one, &host("a"), b"r"),
            enrolment_possession(&two, &host("a"), b"r"),
            enrolment_possession(&one, &host("b"), b"r"),
            enrolment_possession(&one, &host("a"), b"s"),
            recovery_possession(&host("a"), UnixTime(1), b"r"),
            recovery_possession(&host("a"), UnixTime(2), b"r"),
            recovery_possession(&host("b"), UnixTime(1), b"r"),
            recovery_possession(&host("a"), UnixTime(1), b"s"),
        ];
        let distinct: std::collections::BTreeSet<_> = messages.iter().collect();
        assert_eq!(distinct.len(), messages.len());
        assert!(is_same_digest(&one, &Digest::of(b"1")) && !is_same_digest(&one, &two));
    }
}
