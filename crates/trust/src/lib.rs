//! Signed documents: DSSE envelopes, the keys that sign them, and the rules by which hosts believe them.
//!
//! A document is believed only as an [`Authentic`] value, and only this crate makes those. The bytes that were signed
//! are kept as they arrived; nothing is written anew in order to be checked. Every limit on size and work is here.
//!
//! The crate never decides whether a fleet may flip: whether an order is still open, a release fit or the attestations
//! young is for `crates/rollout`. It reads no clock but to end its wait for an `ssh-agent`, and touches no files but keys and the
//! roots that a machine has followed. What documents say is
//! defined in `crates/model`; transport identities and certificates are the business of `crates/mtls`.

mod addition;
mod approval;
mod authentic;
mod chain;
mod dsse;
mod error;
mod evidence;
mod join;
mod keys;
mod receipt;
mod root;
mod source;
mod ssh;
mod withdrawal;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod vectors;

pub use addition::operators_roster;
pub use approval::{
    GlassSettlementProposal, GlassTokenProposal, MandateProposal, OrderProposal, Proposal, RosterProposal,
};
pub use authentic::{Authentic, add_signature, join_signatures, sign, verify};
pub use chain::{RootChain, Succession};
pub use dsse::{ENVELOPE_BYTES_MAX, Envelope, EnvelopeError, SIGNATURES_MAX, Signature, pae};
pub use error::{DocumentName, TrustError};
pub use evidence::{
    ATTESTATION_BYTES_MAX, EVIDENCE_BYTES_MAX, Evidence, assemble_evidence, verify_attestation,
    verify_evidence,
};
pub use join::{
    JoinToken, JoinTokenError, TOKEN_SECRET_LEN, enrolment_possession, is_same_digest, recovery_possession,
    token_digest,
};
pub use keys::{KeyAlgorithm, Signer, SigningKey, is_signed_by};
pub use receipt::{RECEIPT_BYTES_MAX, Receipt, ReceiptError, VerifiedReceipt, verify_receipt};
pub use root::{ROOT_BYTES_MAX, RootProposal, TrustRoot};
pub use source::KeySource;
pub use ssh::{AgentKey, AgentSigner, KeyText, SshAgentError, public_key};
pub use withdrawal::{WITHDRAWAL_BYTES_MAX, verify_withdrawal};
