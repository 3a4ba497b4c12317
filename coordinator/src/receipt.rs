//! Putting the receipt of a completed flip together from its documents.

use muster_model::{Digest, Document, Order, Release, Secrets, SigningRole};
use muster_rollout::fleet::Opening;
use muster_trust::{Authentic, Evidence, Receipt, RootChain, TrustError, verify_evidence};

use crate::ledger::Documents;

/// Why no receipt can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiptFailure {
    /// A document is missing or damaged.
    #[error("a document of the flip cannot be read")]
    Document(#[from] muster_artifact::ArtifactError),
    /// There is no room for it, or the disk fails.
    #[error("the receipt cannot be written")]
    Write(#[source] muster_artifact::ArtifactError),
    /// The closing secrets are not what they were.
    #[error("the closing secrets are not 33 bytes for each host")]
    Secrets,
    /// A document's signatures do not hold any more.
    #[error("a document of the flip does not verify")]
    Trust(#[from] TrustError),
}

/// Makes the receipt of `opening` and keeps it as a document.
pub(crate) fn assemble(
    documents: &Documents,
    roots: &RootChain,
    opening: &Opening,
) -> Result<Digest, ReceiptFailure> {
    let order: Authentic<Order> = document(documents, roots, opening.papers.order, SigningRole::Operator)?;
    let roster = roots.verify_roster_history(&documents.read(opening.papers.roster)?)?;
    let release: Authentic<Release> =
        document(documents, roots, opening.papers.release, SigningRole::Release)?;
    let Evidence { attestations, withdrawals } =
        verify_evidence(&documents.read(opening.evidence)?, roster.document())?;
    let secrets = Secrets::from_bytes(&documents.read(opening.secrets)?).ok_or(ReceiptFailure::Secrets)?;
    let secrets: Vec<_> = secrets.iter().map(|closure| closure.secret()).collect();
    let receipt = Receipt {
        order: &order,
        roster: &roster,
        release: &release,
        attestations: &attestations,
        withdrawals: &withdrawals,
        secrets: &secrets,
    };
    let bytes = receipt.to_bytes();
    let digest = Digest::of(&bytes);
    documents.put(digest, &bytes).map_err(ReceiptFailure::Write)?;
    Ok(digest)
}

fn document<T: Document>(
    documents: &Documents,
    roots: &RootChain,
    digest: Digest,
    role: SigningRole,
) -> Result<Authentic<T>, ReceiptFailure> {
    Ok(roots.verify_history(role, &documents.read(digest)?)?)
}
