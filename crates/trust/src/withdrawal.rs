//! Withdrawals: a host's own word that it has closed, signed by the key that the rosters list it with.

use muster_model::{DocumentKind, FleetName, HostName, PublicKey, Roster, Verified, Withdrawal, Withdrawn};

use crate::authentic::{open, parse};
use crate::dsse::Envelope;
use crate::keys::is_signed_by;
use crate::root::check_fleet;
use crate::{Authentic, DocumentName, TrustError};

/// The largest envelope of a withdrawal that is read, in bytes. They have about 700.
pub const WITHDRAWAL_BYTES_MAX: usize = 4 << 10;

/// Verifies that a withdrawal is `host`'s own, of this fleet, and signed by `key`, once and by nobody else; and that it can be a line of
/// evidence. Whether it is of the right time is for who needs it ([`Roster::check_withdrawal`]).
///
/// # Errors
/// Names what is wrong with it.
pub fn verify_withdrawal(
    raw: &[u8],
    fleet: &FleetName,
    host: &HostName,
    key: &PublicKey,
) -> Result<Authentic<Withdrawal>, TrustError> {
    let name = DocumentName::withdrawal_of(host);
    let envelope = open(raw, WITHDRAWAL_BYTES_MAX, DocumentKind::Withdrawal, &name)?;
    if raw.contains(&b'\n') {
        return Err(TrustError::WithdrawalLineBreak { host: host.clone() });
    }
    check_signature(&envelope, host, key)?;
    let withdrawal: Withdrawal = parse(envelope.payload(), &name)?;
    if withdrawal.host != *host {
        return Err(TrustError::WithdrawalOf { host: host.clone(), found: withdrawal.host });
    }
    check_fleet(DocumentKind::Withdrawal, fleet, &withdrawal.fleet)?;
    Ok(Authentic::new(withdrawal, vec![key.clone()], &envelope))
}

/// Verifies that these are the withdrawals that a flip under `roster` needs: of each host that must give its word one, in order, by its
/// own key and of the right time. The caller has counted them.
pub(crate) fn verify_words<'a>(
    withdrawals: impl Iterator<Item = &'a [u8]>,
    roster: &Verified<Roster>,
) -> Result<Vec<Authentic<Withdrawal>>, TrustError> {
    let verify_one = |(raw, (entry, since)): (&[u8], (&Withdrawn, _))| {
        let name = DocumentName::withdrawal_of(&entry.name);
        let envelope = open(raw, WITHDRAWAL_BYTES_MAX, DocumentKind::Withdrawal, &name)?;
        check_signature(&envelope, &entry.name, &entry.attestation_key)?;
        let withdrawal: Withdrawal = parse(envelope.payload(), &name)?;
        roster
            .check_withdrawal((entry, since), &withdrawal)
            .map_err(|source| TrustError::Withdrawal { source })?;
        Ok(Authentic::new(withdrawal, vec![entry.attestation_key.clone()], &envelope))
    };
    withdrawals.zip(roster.must_have_withdrawn()).map(verify_one).collect()
}

fn check_signature(envelope: &Envelope, host: &HostName, key: &PublicKey) -> Result<(), TrustError> {
    let [signature] = envelope.signatures() else {
        let found = envelope.signatures().len();
        return Err(TrustError::WithdrawalSignatures { host: host.clone(), found });
    };
    if is_signed_by(key, &envelope.message(), &signature.sig) {
        return Ok(());
    }
    Err(TrustError::NotWithdrawnByItsKey { host: host.clone() })
}

#[cfg(test)]
mod tests;
