//! The root of trust, and what it vouches for.

use muster_model::{
    Document, DocumentKind, FleetName, GlassSettlement, GlassToken, Mandate, Order, PublicKey, Release, Root,
    SigningRole, UnixTime, Verified,
};

use crate::authentic::{check_threshold, open, parse, signers};
use crate::{Authentic, Envelope, TrustError, verify};

/// The largest root that is read, in bytes of its envelope: some hundred keys and their signatures.
pub const ROOT_BYTES_MAX: usize = 256 << 10;

/// A verified root document: the beginning of all other trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRoot {
    root: Authentic<Root>,
}

/// The next root while its signatures are being collected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootProposal {
    /// What it says.
    pub root: Root,
    /// The root keys of the present root that have signed it, each once.
    pub by_present: Vec<PublicKey>,
    /// The root keys of the next root that have signed it, each once.
    pub by_next: Vec<PublicKey>,
}

/// Whether the root must not have expired. An enum, because forgetting the check means that nothing ever expires.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RootExpiry {
    /// What happens now needs a root that holds now.
    Enforced {
        /// The time now.
        now: UnixTime,
    },
    /// What is verified is history: it was right when it happened, and stays so.
    IgnoredForHistory,
}

impl TrustRoot {
    /// Takes a root document as given, once it is signed by its own root keys. Those who call this have the bytes from
    /// somewhere they trust, which is never the coordinator.
    ///
    /// Its expiry is checked whenever it is used.
    pub fn pin(raw: &[u8]) -> Result<Self, TrustError> {
        let name = DocumentKind::Root.into();
        let envelope = open(raw, ROOT_BYTES_MAX, DocumentKind::Root, &name)?;
        let root: Root = parse(envelope.payload(), &name)?;
        let signers = check_threshold(&envelope, &name, "root", root.role(SigningRole::Root))?;
        Ok(Self { root: Authentic::new(root, signers, &envelope) })
    }

    /// Goes on to the next version, which the thresholds of this root and of the next one must have signed. It may come
    /// from anywhere.
    ///
    /// An expired root still vouches for its successor: otherwise a host that was off for long could never come back.
    pub fn succeed(&self, raw: &[u8]) -> Result<Self, TrustError> {
        let name = DocumentKind::Root.into();
        let envelope = open(raw, ROOT_BYTES_MAX, DocumentKind::Root, &name)?;
        let by_old = check_threshold(&envelope, &name, "present root", self.root().role(SigningRole::Root))?;
        let next: Root = parse(envelope.payload(), &name)?;
        let by_new = check_threshold(&envelope, &name, "next root", next.role(SigningRole::Root))?;
        self.check_follows(&next)?;
        let mut signers = [by_old, by_new].concat();
        signers.sort();
        signers.dedup();
        Ok(Self { root: Authentic::new(next, signers, &envelope) })
    }

    /// Looks at a successor that may still lack signatures. Nothing in it is to be believed.
    pub fn review(&self, envelope: &Envelope) -> Result<RootProposal, TrustError> {
        let name = DocumentKind::Root.into();
        let envelope = open(envelope.raw(), ROOT_BYTES_MAX, DocumentKind::Root, &name)?;
        let root: Root = parse(envelope.payload(), &name)?;
        self.check_follows(&root)?;
        let signed_of = |keys| signers(&envelope, &name, keys);
        Ok(RootProposal {
            by_present: signed_of(self.root().role(SigningRole::Root))?,
            by_next: signed_of(root.role(SigningRole::Root))?,
            root,
        })
    }

    fn check_follows(&self, next: &Root) -> Result<(), TrustError> {
        let present = self.root().version;
        if present.checked_add(1) == Some(next.version) {
            return Ok(());
        }
        Err(TrustError::RootVersion { present, found: next.version })
    }

    /// The root document.
    #[must_use]
    pub const fn root(&self) -> &Verified<Root> {
        self.root.document()
    }

    /// The root document with its envelope.
    #[must_use]
    pub const fn authentic(&self) -> &Authentic<Root> {
        &self.root
    }

    /// Verifies a release, and that it is one of `fleet`. Whether it may still be flipped to is for the gate.
    pub fn verify_release(
        &self,
        raw: &[u8],
        fleet: &FleetName,
        now: UnixTime,
    ) -> Result<Authentic<Release>, TrustError> {
        self.release_of(raw, fleet, RootExpiry::Enforced { now })
    }

    /// Verifies a mandate. Whose it is, and whether it fits, is for the caller.
    pub fn verify_mandate(&self, raw: &[u8], now: UnixTime) -> Result<Authentic<Mandate>, TrustError> {
        self.verify_by(SigningRole::Operator, raw, RootExpiry::Enforced { now })
    }

    /// Verifies a break-glass token. Whether it is for this host, and for now, is for the host.
    pub fn verify_glass_token(&self, raw: &[u8], now: UnixTime) -> Result<Authentic<GlassToken>, TrustError> {
        self.verify_by(SigningRole::Operator, raw, RootExpiry::Enforced { now })
    }

    /// Verifies that the use of break-glass tokens is settled. Whose it is, is for the host.
    pub fn verify_glass_settlement(
        &self,
        raw: &[u8],
        now: UnixTime,
    ) -> Result<Authentic<GlassSettlement>, TrustError> {
        self.verify_by(SigningRole::Operator, raw, RootExpiry::Enforced { now })
    }

    /// Verifies an order. Whether it is open, fits the fleet and was not used before is for the gate and the hosts.
    pub fn verify_order(&self, raw: &[u8], now: UnixTime) -> Result<Authentic<Order>, TrustError> {
        self.verify_by(SigningRole::Operator, raw, RootExpiry::Enforced { now })
    }

    /// Verifies a release of `fleet`.
    pub(crate) fn release_of(
        &self,
        raw: &[u8],
        fleet: &FleetName,
        expiry: RootExpiry,
    ) -> Result<Authentic<Release>, TrustError> {
        let release: Authentic<Release> = self.verify_by(SigningRole::Release, raw, expiry)?;
        check_fleet(DocumentKind::Release, fleet, &release.document().fleet)?;
        Ok(release)
    }

    /// Verifies a document that `role` signs.
    pub(crate) fn verify_by<T: Document>(
        &self,
        role: SigningRole,
        raw: &[u8],
        expiry: RootExpiry,
    ) -> Result<Authentic<T>, TrustError> {
        self.check_expiry(expiry)?;
        verify(raw, self.root().role(role))
    }

    pub(crate) fn check_expiry(&self, expiry: RootExpiry) -> Result<(), TrustError> {
        match expiry {
            RootExpiry::Enforced { now } if now >= self.root().expires_unix_ms => {
                Err(TrustError::RootExpired {
                    version: self.root().version,
                    expired_unix_ms: self.root().expires_unix_ms,
                    now_unix_ms: now,
                })
            }
            RootExpiry::Enforced { .. } | RootExpiry::IgnoredForHistory => Ok(()),
        }
    }
}

/// Refuses a document of another fleet.
pub(crate) fn check_fleet(
    kind: DocumentKind,
    expected: &FleetName,
    found: &FleetName,
) -> Result<(), TrustError> {
    if expected == found {
        return Ok(());
    }
    Err(TrustError::ForeignFleet { document: kind.into(), expected: expected.clone(), found: found.clone() })
}

#[cfg(test)]
mod tests;
