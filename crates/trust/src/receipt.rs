//! The receipt: the portable proof of one flip, for anyone who has the root.
//!
//! It holds the envelopes themselves, so that it is verified from the same bytes that the hosts verified, without asking
//! anyone. It proves what was ordered, by whom, that N of N hosts measured exactly that, and that they had all closed
//! before one opened. It does not prove that the root was the right one: that is for the reader to know.

use muster_model::{
    Attestation, Comparable, Digest, DocumentKind, FlipMode, HostName, Order, Purpose, Release, RolloutId,
    Roster, RosterRevision, Secret, SigningRole, Withdrawal,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::evidence::{check_count, verify_in_order};
use crate::root::{RootExpiry, check_fleet};
use crate::withdrawal::verify_words;
use crate::{Authentic, TrustError, TrustRoot};

/// The largest receipt that is read, in bytes.
pub const RECEIPT_BYTES_MAX: usize = 128 << 20;

const FORMAT: &str = "muster.receipt/1";

/// What a receipt is made of.
#[derive(Debug, Clone, Copy)]
pub struct Receipt<'a> {
    /// The order.
    pub order: &'a Authentic<Order>,
    /// The roster it was for.
    pub roster: &'a Authentic<Roster>,
    /// The release that was flipped to.
    pub release: &'a Authentic<Release>,
    /// The attestations of all hosts, in the order of the roster.
    pub attestations: &'a [Authentic<Attestation>],
    /// The word of each host that the roster sets aside and that has to give it, in the order of [`Roster::must_have_withdrawn`].
    pub withdrawals: &'a [Authentic<Withdrawal>],
    /// The closing secrets of all hosts, in the order of the roster. A host whose lease had to lapse has none. Empty for
    /// a flip in fast mode, where no host waits for another to close.
    pub secrets: &'a [Option<Secret>],
}

/// A receipt that proves its flip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedReceipt {
    order: Authentic<Order>,
    roster: Authentic<Roster>,
    release: Authentic<Release>,
    attestations: Vec<Authentic<Attestation>>,
    withdrawals: Vec<Authentic<Withdrawal>>,
    lapsed: Vec<HostName>,
    is_solo: bool,
}

/// Why a receipt, whatever its signatures are worth, proves no flip.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// More bytes than are read.
    #[error("the receipt has {len} bytes; at most {max} are read")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Not the JSON of a receipt.
    #[error("this is not the JSON of a receipt; export it again with `muster receipt show`")]
    Syntax {
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// Another format.
    #[error("the receipt has format `{found}`; this program reads `{FORMAT}` (is its maker newer?)")]
    Format {
        /// What it says.
        found: String,
    },
    /// The order is for another roster.
    #[error("the receipt's order is for the roster {ordered}, but its roster is {found}")]
    Roster {
        /// What the order names.
        ordered: Digest,
        /// The digest of the roster in the receipt.
        found: Digest,
    },
    /// The order calls the roster by another revision.
    #[error("the receipt's order is for roster revision {ordered}, but its roster is revision {found}")]
    RosterRevision {
        /// What the order names.
        ordered: RosterRevision,
        /// The revision of the roster in the receipt.
        found: RosterRevision,
    },
    /// The order is for another number of hosts.
    #[error("the receipt's order is for {ordered} hosts, but its roster has {found}")]
    HostCount {
        /// What the order says.
        ordered: u32,
        /// The length of the roster.
        found: usize,
    },
    /// The release is not what was ordered.
    #[error("the receipt's order is for the manifest {ordered}, but its release is {found}")]
    Release {
        /// The manifest that was ordered.
        ordered: Digest,
        /// The manifest of the release in the receipt.
        found: Digest,
    },
    /// An attestation was made for something else.
    #[error(
        "the receipt's attestation of {host} was not made for rollout {ordered}; it proves nothing of it"
    )]
    Purpose {
        /// Whose attestation.
        host: HostName,
        /// The order's counter.
        ordered: RolloutId,
    },
    /// A host was asked about another manifest.
    #[error("the receipt's attestation of {host} is about the manifest {found}, but {ordered} was ordered")]
    Manifest {
        /// Whose attestation.
        host: HostName,
        /// The manifest that was ordered.
        ordered: Digest,
        /// The manifest it was asked about.
        found: Digest,
    },
    /// A host measured something else than was ordered.
    #[error("{host} measured {measured}, but {ordered} was ordered: the flip should never have happened")]
    Measured {
        /// Which host.
        host: HostName,
        /// The manifest that was ordered.
        ordered: Digest,
        /// What it measured.
        measured: Digest,
    },
    /// Two hosts answered different challenges.
    #[error(
        "the receipt's attestations of {host} and {first} answer different challenges; one of them is replayed"
    )]
    Challenge {
        /// Whose attestation differs.
        host: HostName,
        /// The first host of the roster.
        first: HostName,
    },
    /// Two hosts measured different things.
    #[error("the receipt's attestations of {host} and {first} differ in what must be the same on all hosts")]
    Compared {
        /// Whose attestation differs.
        host: HostName,
        /// The first host of the roster.
        first: HostName,
    },
    /// Not one place for a secret for each host.
    #[error("the receipt has {found} closing secrets for {expected} hosts")]
    SecretCount {
        /// The length of the roster.
        expected: usize,
        /// How many places there are.
        found: usize,
    },
    /// A secret is not the one that its host committed to.
    #[error(
        "the receipt's closing secret of {host} is not the one it committed to: nothing proves that it closed"
    )]
    Secret {
        /// Which host.
        host: HostName,
    },
    /// Something was changed that no signature covers and no check needs.
    #[error(
        "the receipt was changed after it was made, in a key id or in a signature that nothing rests on: it has the \
         digest {found}, and says {stated}; get it again"
    )]
    Digest {
        /// What it says.
        stated: Digest,
        /// The digest of what is in it.
        found: Digest,
    },
    /// More secrets are missing than the order allows.
    #[error("the receipt lacks the closing secrets of {} hosts, {} among them; the order allows {max_lapsed}", .hosts.len(), .hosts[0])]
    Lapsed {
        /// The hosts whose secret is missing; not empty.
        hosts: Vec<HostName>,
        /// How many the order allows.
        max_lapsed: u32,
    },
}

impl Receipt<'_> {
    /// Writes the receipt: one JSON document. What it says is checked by [`verify_receipt`] alone.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { order, roster, release, attestations, withdrawals, secrets } = *self;
        let wire = Wire {
            format: FORMAT.to_owned(),
            order: embed(order),
            roster: embed(roster),
            release: embed(release),
            attestations: attestations.iter().map(embed).collect(),
            withdrawals: withdrawals.iter().map(embed).collect(),
            secrets: secrets.to_vec(),
            digest: content_digest(self),
        };
        serde_json::to_vec(&wire).expect("a receipt has string keys and no failing serialisers")
    }
}

impl VerifiedReceipt {
    /// The order.
    #[must_use]
    pub const fn order(&self) -> &Authentic<Order> {
        &self.order
    }

    /// The roster.
    #[must_use]
    pub const fn roster(&self) -> &Authentic<Roster> {
        &self.roster
    }

    /// The release.
    #[must_use]
    pub const fn release(&self) -> &Authentic<Release> {
        &self.release
    }

    /// The attestations, in the order of the roster.
    #[must_use]
    pub fn attestations(&self) -> &[Authentic<Attestation>] {
        &self.attestations
    }

    /// The word of each host that the roster sets aside and that had to give it: it had closed.
    #[must_use]
    pub fn withdrawals(&self) -> &[Authentic<Withdrawal>] {
        &self.withdrawals
    }

    /// The hosts of which only the coordinator's clock says that they had stopped serving. The order allowed as many.
    #[must_use]
    pub fn lapsed(&self) -> &[HostName] {
        &self.lapsed
    }

    /// Whether one person alone could have signed for some role.
    #[must_use]
    pub const fn is_solo(&self) -> bool {
        self.is_solo
    }
}

/// Verifies all signatures of a receipt, and that its parts are those of one flip.
///
/// The root's expiry is not looked at, for a receipt is history. It must be the root that the flip was made under.
pub fn verify_receipt(bytes: &[u8], root: &TrustRoot) -> Result<VerifiedReceipt, TrustError> {
    let wire = read(bytes)?;
    let history = RootExpiry::IgnoredForHistory;
    let order: Authentic<Order> = root.verify_by(SigningRole::Operator, raw(wire.order), history)?;
    let roster = root.roster_of(raw(wire.roster), history)?;
    let release = root.release_of(raw(wire.release), &order.document().fleet, history)?;
    check_order(&order, &roster, &release)?;

    let (expected, found) = (roster.document().hosts().len(), wire.attestations.len());
    if found != expected {
        return Err(TrustError::AttestationCount { expected, found });
    }
    let attestations = verify_in_order(wire.attestations.into_iter().map(raw), roster.document())?;
    check_attestations(&attestations, order.document())?;
    let lapsed = check_secrets(&wire.secrets, &attestations, order.document())?;
    check_count(roster.document().must_have_withdrawn().count(), wire.withdrawals.len())?;
    let withdrawals = verify_words(wire.withdrawals.into_iter().map(raw), roster.document())?;
    let found = content_digest(&Receipt {
        order: &order,
        roster: &roster,
        release: &release,
        attestations: &attestations,
        withdrawals: &withdrawals,
        secrets: &wire.secrets,
    });
    if found != wire.digest {
        return Err(ReceiptError::Digest { stated: wire.digest, found }.into());
    }
    let is_solo = root.root().is_solo();
    Ok(VerifiedReceipt { order, roster, release, attestations, withdrawals, lapsed, is_solo })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    format: String,
    #[serde(borrow)]
    order: &'a RawValue,
    #[serde(borrow)]
    roster: &'a RawValue,
    #[serde(borrow)]
    release: &'a RawValue,
    #[serde(borrow)]
    attestations: Vec<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    withdrawals: Vec<&'a RawValue>,
    secrets: Vec<Option<Secret>>,
    digest: Digest,
}

/// One digest over all that a receipt holds, however its JSON is laid out. It is no proof, as anyone can compute it: it
/// finds the accident that a signature cannot, since key ids are not signed and a threshold does not need every signature.
fn content_digest(receipt: &Receipt<'_>) -> Digest {
    let Receipt { order, roster, release, attestations, withdrawals, secrets } = *receipt;
    let mut parts = vec![order.normal_digest(), roster.normal_digest(), release.normal_digest()];
    parts.extend(attestations.iter().map(Authentic::normal_digest));
    // What a missing secret leaves is found by its place; the domain label in a commitment keeps the two apart.
    let places = secrets.iter().map(|secret| secret.map_or(Digest::of(&[]), |secret| secret.commitment().0));
    parts.extend(places);
    parts.extend(withdrawals.iter().map(Authentic::normal_digest));
    let parts: Vec<&[u8]> = parts.iter().map(|digest| &digest.as_bytes()[..]).collect();
    Digest::of_parts(&parts)
}

fn read(bytes: &[u8]) -> Result<Wire<'_>, ReceiptError> {
    if bytes.len() > RECEIPT_BYTES_MAX {
        return Err(ReceiptError::TooLarge { len: bytes.len(), max: RECEIPT_BYTES_MAX });
    }
    let wire: Wire<'_> = serde_json::from_slice(bytes).map_err(|source| ReceiptError::Syntax { source })?;
    if wire.format == FORMAT { Ok(wire) } else { Err(ReceiptError::Format { found: wire.format }) }
}

fn raw(value: &RawValue) -> &[u8] {
    value.get().as_bytes()
}

fn embed<T>(authentic: &Authentic<T>) -> &RawValue {
    serde_json::from_slice(authentic.raw()).expect("an authentic envelope was parsed from JSON")
}

/// The order, the roster and the release are about one and the same flip.
fn check_order(
    order: &Authentic<Order>,
    roster: &Authentic<Roster>,
    release: &Authentic<Release>,
) -> Result<(), TrustError> {
    let (ordered, listed) = (order.document(), roster.document());
    check_fleet(DocumentKind::Roster, &ordered.fleet, listed.fleet())?;
    if ordered.roster != roster.payload_digest() {
        return Err(ReceiptError::Roster { ordered: ordered.roster, found: roster.payload_digest() }.into());
    }
    if ordered.roster_revision != listed.revision() {
        let (ordered, found) = (ordered.roster_revision, listed.revision());
        return Err(ReceiptError::RosterRevision { ordered, found }.into());
    }
    if ordered.hosts as usize != listed.hosts().len() {
        return Err(ReceiptError::HostCount { ordered: ordered.hosts, found: listed.hosts().len() }.into());
    }
    let found = release.document().manifest;
    if ordered.to != found {
        return Err(ReceiptError::Release { ordered: ordered.to, found }.into());
    }
    Ok(())
}

/// All hosts measured exactly what was ordered, for this rollout and at one challenge.
fn check_attestations(attestations: &[Authentic<Attestation>], order: &Order) -> Result<(), ReceiptError> {
    let mut first: Option<&Attestation> = None;
    for attestation in attestations.iter().map(|attestation| &**attestation.document()) {
        let host = || attestation.host.clone();
        match attestation.purpose {
            Purpose::Rollout { k, .. } if k == order.counter => {}
            Purpose::Rollout { .. } | Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => {
                return Err(ReceiptError::Purpose { host: host(), ordered: order.counter });
            }
        }
        let Comparable { manifest, measured, .. } = attestation.compared;
        if manifest != order.to {
            return Err(ReceiptError::Manifest { host: host(), ordered: order.to, found: manifest });
        }
        if measured != order.to {
            return Err(ReceiptError::Measured { host: host(), ordered: order.to, measured });
        }
        let first = *first.get_or_insert(attestation);
        if attestation.challenge != first.challenge {
            return Err(ReceiptError::Challenge { host: host(), first: first.host.clone() });
        }
        if attestation.compared != first.compared {
            return Err(ReceiptError::Compared { host: host(), first: first.host.clone() });
        }
    }
    Ok(())
}

/// Every host revealed the secret that it had committed to, but for as many as the order lets lapse. Returns those.
fn check_secrets(
    secrets: &[Option<Secret>],
    attestations: &[Authentic<Attestation>],
    order: &Order,
) -> Result<Vec<HostName>, ReceiptError> {
    if order.mode == FlipMode::Fast && secrets.is_empty() {
        return Ok(Vec::new());
    }
    if secrets.len() != attestations.len() {
        return Err(ReceiptError::SecretCount { expected: attestations.len(), found: secrets.len() });
    }
    let mut lapsed = Vec::new();
    for (secret, attestation) in secrets.iter().zip(attestations) {
        let attestation = attestation.document();
        match (secret, attestation.purpose) {
            (None, _) => lapsed.push(attestation.host.clone()),
            (Some(secret), Purpose::Rollout { commitment, .. }) if secret.commitment() == commitment => {}
            (
                Some(_),
                Purpose::Rollout { .. } | Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. },
            ) => {
                return Err(ReceiptError::Secret { host: attestation.host.clone() });
            }
        }
    }
    if lapsed.len() > order.max_lapsed as usize {
        return Err(ReceiptError::Lapsed { hosts: lapsed, max_lapsed: order.max_lapsed });
    }
    Ok(lapsed)
}

#[cfg(test)]
mod tests;
