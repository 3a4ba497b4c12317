//! Rosters: of operators, or with the hosts that a joiner's key has added to theirs.
//!
//! Whatever reads a roster does it here, so that an addition is nowhere verified by less than all of its rule.

use muster_model::{Addition, DocumentKind, Roster, SigningRole, UnixTime};

use crate::root::RootExpiry;
use crate::{Authentic, ENVELOPE_BYTES_MAX, Envelope, TrustError, TrustRoot, verify};

impl TrustRoot {
    /// Verifies a roster that is to be taken on. Whether its revision is the right one is for the caller.
    pub fn verify_roster(&self, raw: &[u8], now: UnixTime) -> Result<Authentic<Roster>, TrustError> {
        let roster = self.verify_held_roster(raw, now)?;
        if let (Some(_), Some(joiners)) = (roster.document().additions(), &self.root().joiners) {
            joiners.check_age(roster.document(), now).map_err(|source| TrustError::Addition { source })?;
        }
        Ok(roster)
    }

    /// Verifies a roster that was taken on before: how long ago operators signed what it builds on matters no more.
    pub fn verify_held_roster(&self, raw: &[u8], now: UnixTime) -> Result<Authentic<Roster>, TrustError> {
        self.roster_of(raw, RootExpiry::Enforced { now })
    }

    /// Verifies a roster of the time of this root, which may have expired. It is right for records, and never for what is to
    /// happen.
    pub fn verify_past_roster(&self, raw: &[u8]) -> Result<Authentic<Roster>, TrustError> {
        self.roster_of(raw, RootExpiry::IgnoredForHistory)
    }

    /// Verifies a roster by this root, both signatures of it if it is an addition.
    pub(crate) fn roster_of(&self, raw: &[u8], expiry: RootExpiry) -> Result<Authentic<Roster>, TrustError> {
        if !is_addition(raw) {
            return self.verify_by(SigningRole::Operator, raw, expiry);
        }
        self.check_expiry(expiry)?;
        let joiners = self.root().joiners.as_ref().ok_or(TrustError::NoJoiners)?;
        let addition: Authentic<Addition> = verify(raw, &joiners.role)?;
        // Only what operators signed: an addition in an addition has another payload type.
        let base: Authentic<Roster> =
            self.verify_by(SigningRole::Operator, addition.document().base().as_bytes(), expiry)?;
        let roster = addition
            .document()
            .onto(base.document(), base.payload_digest(), joiners)
            .map_err(|source| TrustError::Addition { source })?;
        Ok(addition.standing_for(roster))
    }
}

/// Whether these bytes claim to be an addition. That they are is for the signatures.
fn is_addition(raw: &[u8]) -> bool {
    Envelope::parse_bounded(raw, ENVELOPE_BYTES_MAX)
        .is_ok_and(|envelope| envelope.payload_type() == DocumentKind::Addition.payload_type())
}

/// The envelope of the roster that the operators have signed last: `roster` itself, or what is in it.
pub fn operators_roster(roster: &Authentic<Roster>) -> Result<String, TrustError> {
    let envelope = Envelope::parse(roster.raw())
        .map_err(|source| TrustError::Envelope { document: DocumentKind::Roster.into(), source })?;
    if envelope.payload_type() == DocumentKind::Addition.payload_type() {
        let addition: Addition = crate::authentic::parse(envelope.payload(), &DocumentKind::Addition.into())?;
        return Ok(addition.base().to_owned());
    }
    Ok(String::from_utf8(roster.raw().to_vec()).expect("an authentic envelope was parsed from JSON"))
}

#[cfg(test)]
mod tests;
