//! The attestation: what one host measured, signed by that host.

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::{
    BootId, Commitment, Digest, Document, DocumentError, DocumentKind, Epoch, FleetName, HostName, RolloutId,
    UnixTime,
};

const FORMAT: &str = "muster.attestation/1";

/// Why a host was asked to attest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Purpose {
    /// For the rollout with this number. The commitment is to the closing secret.
    Rollout {
        /// The rollout.
        k: RolloutId,
        /// `H(s)` of the host's closing secret.
        commitment: Commitment,
    },
    /// For a check outside of any rollout.
    Check,
    /// Of what runs on the host before any release of the fleet does: the manifest is that of a folder that the host's own
    /// configuration names.
    Adoption,
    /// After the release's self-test has passed on this host, outside of any rollout.
    Rehearsal {
        /// How long the self-test took, in milliseconds.
        took_ms: u64,
    },
}

/// The part of an attestation that must be the same on all hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparable {
    /// The manifest the host was asked about.
    pub manifest: Digest,
    /// The manifest rebuilt from what was read from disk; equal to `manifest` if and only if the tree is.
    pub measured: Digest,
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read from them.
    pub bytes: u64,
    /// One digest over all external paths that must be uniform on all hosts, if the release names any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniform: Option<Digest>,
}

/// What closing a host proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Only that the link no longer resolves anew; open descriptors outlive it.
    Link,
    /// That no process of the service is left.
    Process,
}

/// Whether the host's link vanishes at a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootGate {
    /// The link is in a folder that a reboot empties.
    Volatile,
    /// The link outlives a reboot.
    None,
}

/// Whether a host's clock goes on whatever happens to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockState {
    /// As far as the host can tell.
    Steady,
    /// It stands still while the host is paused, and nothing tells the host of it.
    Pausable,
}

/// What a digest of a file was computed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// Every byte was read and hashed.
    Sha256,
    /// The same, and the kernel has sealed every file with fs-verity as it was read: nobody can write to it, and nothing else is read of it.
    /// Who cannot read this word is from before hosts could do that, and reads no attestation that has it.
    Verity,
}

impl Assurance {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Verity => "verity",
        }
    }
}

/// The part of an attestation that belongs to one host and is not compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// What the host serves: the epoch, and the manifest if anything.
    pub epoch: Epoch,
    /// The manifest it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Digest>,
    /// The host's boot.
    pub boot_id: BootId,
    /// What closing proves on this host.
    pub scope: Scope,
    /// Whether the link vanishes at a reboot.
    pub boot_gate: BootGate,
    /// How far the clock that holds its deadlines can be trusted.
    pub clock: ClockState,
    /// How far its time of day may be off, in milliseconds, as its time daemon says; nothing if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_error_ms: Option<u64>,
    /// `F`: how long its last drill took to fence, in milliseconds; nothing if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence_ms: Option<u64>,
    /// How long its service may take to stop gently, in milliseconds.
    pub drain_ms: u64,
    /// How the bytes were measured.
    pub assurance: Assurance,
    /// The agent's version.
    pub agent_version: String,
    /// The digest of the agent's configuration.
    pub agent_config: Digest,
    /// Milliseconds since 1970 on the host's clock, when the measurement ended.
    pub measured_unix_ms: UnixTime,
    /// How long the measurement took, in milliseconds.
    pub elapsed_ms: u64,
}

/// What one host states of one release on its own disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    format: String,
    /// The fleet.
    pub fleet: FleetName,
    /// The host that measured.
    pub host: HostName,
    /// Why it did.
    pub purpose: Purpose,
    /// What makes it young: in a rollout the Merkle root over all hosts' nonces, in a check the asker's nonce.
    pub challenge: Digest,
    /// What must be the same on all hosts.
    pub compared: Comparable,
    /// What belongs to this host.
    pub facts: HostFacts,
}

impl Attestation {
    /// Puts an attestation together.
    #[must_use]
    pub fn new(
        fleet: FleetName,
        host: HostName,
        purpose: Purpose,
        challenge: Digest,
        compared: Comparable,
        facts: HostFacts,
    ) -> Self {
        Self { format: FORMAT.to_owned(), fleet, host, purpose, challenge, compared, facts }
    }

    /// Whether the host measured exactly the release it was asked about.
    #[must_use]
    pub fn matches(&self) -> bool {
        self.compared.manifest == self.compared.measured
    }
}

impl Document for Attestation {
    const KIND: DocumentKind = DocumentKind::Attestation;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let attestation: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &attestation.format, FORMAT)?;
        Ok(attestation)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}
