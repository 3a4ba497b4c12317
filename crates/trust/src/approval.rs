//! Orders and rosters while operators are being asked for their signatures.

use muster_model::{
    Digest, Document, GlassSettlement, GlassToken, Mandate, Order, PublicKey, Roster, SigningRole, UnixTime,
};

use crate::authentic::{open, parse, signers};
use crate::dsse::ENVELOPE_BYTES_MAX;
use crate::root::RootExpiry;
use crate::{Envelope, TrustError, TrustRoot, join_signatures};

/// A document of the operators that may still lack signatures. Nothing that it says is to be carried out: whoever does
/// verifies it by its threshold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal<T> {
    /// What it says.
    pub document: T,
    /// The digest of the bytes that are signed. It stays the same whoever signs.
    pub payload_digest: Digest,
    /// The operators' keys that have signed it, each once, sorted; at least one.
    pub signers: Vec<PublicKey>,
    /// One signature of each of them, and no others.
    pub envelope: Envelope,
}

/// An order that may still lack signatures.
pub type OrderProposal = Proposal<Order>;

/// A roster that may still lack signatures.
pub type RosterProposal = Proposal<Roster>;

/// A mandate that may still lack signatures.
pub type MandateProposal = Proposal<Mandate>;

/// A break-glass token that may still lack signatures.
pub type GlassTokenProposal = Proposal<GlassToken>;

/// A settlement of broken glass that may still lack signatures.
pub type GlassSettlementProposal = Proposal<GlassSettlement>;

impl<T> Proposal<T> {
    /// How many more operators have to sign before the document holds by `root`.
    #[must_use]
    pub fn missing(&self, root: &TrustRoot) -> usize {
        let threshold = root.root().role(SigningRole::Operator).threshold as usize;
        threshold.saturating_sub(self.signers.len())
    }
}

impl TrustRoot {
    /// Looks at an order that may still lack signatures, but not all of them.
    pub fn review_order(&self, raw: &[u8], now: UnixTime) -> Result<OrderProposal, TrustError> {
        self.review_by_operators(&[raw], now)
    }

    /// The same for a roster.
    pub fn review_roster(&self, raw: &[u8], now: UnixTime) -> Result<RosterProposal, TrustError> {
        self.review_by_operators(&[raw], now)
    }

    /// The same for a mandate.
    pub fn review_mandate(&self, raw: &[u8], now: UnixTime) -> Result<MandateProposal, TrustError> {
        self.review_by_operators(&[raw], now)
    }

    /// The same for a break-glass token.
    pub fn review_glass_token(&self, raw: &[u8], now: UnixTime) -> Result<GlassTokenProposal, TrustError> {
        self.review_by_operators(&[raw], now)
    }

    /// The same for the settlement of broken glass.
    pub fn review_glass_settlement(
        &self,
        raw: &[u8],
        now: UnixTime,
    ) -> Result<GlassSettlementProposal, TrustError> {
        self.review_by_operators(&[raw], now)
    }

    /// Puts the signatures of two envelopes of one order together.
    pub fn join_orders(&self, held: &[u8], added: &[u8], now: UnixTime) -> Result<OrderProposal, TrustError> {
        self.review_by_operators(&[held, added], now)
    }

    fn review_by_operators<T: Document>(
        &self,
        raw: &[&[u8]],
        now: UnixTime,
    ) -> Result<Proposal<T>, TrustError> {
        self.check_expiry(RootExpiry::Enforced { now })?;
        let (name, keys) = (T::KIND.into(), self.root().role(SigningRole::Operator));
        let open = |raw: &&[u8]| open(raw, ENVELOPE_BYTES_MAX, T::KIND, &name);
        let envelopes = raw.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        for envelope in &envelopes {
            if signers(envelope, &name, keys)?.is_empty() {
                return Err(TrustError::Threshold {
                    document: name,
                    role: "operator",
                    signed: 0,
                    threshold: keys.threshold as usize,
                    keys: keys.keys.len(),
                });
            }
        }
        let envelope = join_signatures::<T>(&envelopes.iter().collect::<Vec<_>>(), keys)?;
        Ok(Proposal {
            document: parse(envelope.payload(), &name)?,
            payload_digest: Digest::of(envelope.payload()),
            signers: signers(&envelope, &name, keys)?,
            envelope,
        })
    }
}

#[cfg(test)]
mod tests;
