//! Conversion between the wire and the model.

mod control;
mod glass;
mod report;

use muster_model::{Blocker, Code, Digest, FleetName, HostName, Nonce, Refusal, Secret, Token};

use crate::v1;

pub use control::{from_coordinator, from_host, mode_from_wire, mode_to_wire, to_agent, to_coordinator};
pub use glass::all as broken_glass;
pub use report::{ReleaseRef, release_ref};

/// Why a message from the wire is not one of the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that the message needs is absent.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A field has a value that the model does not have.
    #[error("the field `{field}` is not valid: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConvertError {
    fn invalid(field: &'static str, reason: impl ToString) -> Self {
        Self::Invalid { field, reason: reason.to_string() }
    }
}

/// Most blockers that are read of one host's refusal, and of a report about a whole fleet.
const HOST_BLOCKERS_MAX: usize = 64;
const BLOCKERS_MAX: usize = 100_000;
/// Most bytes that are read of each of a blocker's texts.
const TEXT_BYTES_MAX: usize = 4096;

/// 32 bytes of SHA-256.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, ConvertError> {
    array(field, bytes).map(Digest::from_bytes)
}

/// A fleet's name.
pub fn fleet(text: &str) -> Result<FleetName, ConvertError> {
    FleetName::new(text).map_err(|error| ConvertError::invalid("fleet", error))
}

/// A host's name.
pub fn host(text: &str) -> Result<HostName, ConvertError> {
    HostName::new(text).map_err(|error| ConvertError::invalid("host", error))
}

/// 32 random bytes.
pub fn nonce(field: &'static str, bytes: &[u8]) -> Result<Nonce, ConvertError> {
    array(field, bytes).map(Nonce::from_bytes)
}

/// A blocker.
pub fn blocker(wire: v1::Blocker) -> Result<Blocker, ConvertError> {
    let code: Code = wire.code.parse().map_err(|error| ConvertError::invalid("code", error))?;
    let host = wire.host.as_deref().map(host).transpose()?;
    Ok(Blocker {
        code,
        host,
        path: wire.path.map(bounded),
        expected: wire.expected.map(bounded),
        measured: wire.measured.map(bounded),
        detail: bounded(wire.detail),
    })
}

fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

/// Several blockers.
pub fn blockers(wire: Vec<v1::Blocker>) -> Result<Vec<Blocker>, ConvertError> {
    wire.into_iter().take(BLOCKERS_MAX).map(blocker).collect()
}

/// A refusal, which has at least one reason; a peer that gives very many is cut short.
pub fn refusal(wire: Option<v1::Refusal>) -> Result<Refusal, ConvertError> {
    let mut reasons = wire.ok_or(ConvertError::Missing("refusal"))?.blockers;
    reasons.truncate(HOST_BLOCKERS_MAX);
    let blockers = blockers(reasons)?;
    if blockers.is_empty() {
        return Err(ConvertError::Missing("blockers"));
    }
    Ok(Refusal { blockers })
}

impl From<Blocker> for v1::Blocker {
    fn from(blocker: Blocker) -> Self {
        Self {
            code: blocker.code.as_str().to_owned(),
            host: blocker.host.map(String::from),
            path: blocker.path,
            expected: blocker.expected,
            measured: blocker.measured,
            detail: blocker.detail,
        }
    }
}

impl From<Refusal> for v1::Refusal {
    fn from(refusal: Refusal) -> Self {
        Self { blockers: refusal.blockers.into_iter().map(v1::Blocker::from).collect() }
    }
}

fn array(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], ConvertError> {
    bytes.try_into().map_err(|_| ConvertError::invalid(field, format!("{} bytes instead of 32", bytes.len())))
}

fn token(field: &'static str, bytes: &[u8]) -> Result<Token, ConvertError> {
    array(field, bytes).map(Token::from_bytes)
}

fn secret(field: &'static str, bytes: &[u8]) -> Result<Secret, ConvertError> {
    array(field, bytes).map(Secret::from_bytes)
}
