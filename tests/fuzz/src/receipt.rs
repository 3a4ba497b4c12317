//! The receipt: whatever is done to it, it proves the flip that was, or nothing.

use muster_trust::verify_receipt;

use crate::Verdict;
use crate::fixture::{FLIP, ROOT};

pub(crate) fn run(bytes: &[u8]) -> Verdict {
    let Ok(receipt) = verify_receipt(bytes, &ROOT) else { return Verdict::Refused };
    assert_eq!(receipt.order().payload_digest(), FLIP.order.payload_digest());
    assert_eq!(receipt.roster().payload_digest(), FLIP.roster.payload_digest());
    assert_eq!(receipt.release().payload_digest(), FLIP.release.payload_digest());
    assert_eq!(receipt.attestations().len(), FLIP.attestations.len());
    for (found, made) in receipt.attestations().iter().zip(&FLIP.attestations) {
        assert_eq!(found.payload_digest(), made.payload_digest());
    }
    assert!(receipt.lapsed().len() <= 1, "as many as the order allows");
    Verdict::Taken
}
