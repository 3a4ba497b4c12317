//! Step 15: the order to roll back that the operators signed beforehand.

use std::sync::Arc;

use muster_daemon::Machine;
use muster_model::{Code, FleetName, Refusal, UnixTime};
use muster_rollout::fleet::{Event, Papers, Proposal};
use muster_trust::TrustRoot;

use super::FleetHandle;
use super::driver::Input;
use crate::ledger::Documents;
use crate::status::{blob_refusal, chain};

/// Proposes what was signed, as an operator would. Its own gate decides; one that is shut leaves what is served as it is.
pub(super) async fn propose(
    machine: Machine,
    handle: Arc<FleetHandle>,
    documents: Documents,
    root: Arc<TrustRoot>,
    papers: Papers,
) {
    let name = handle.name.clone();
    let now = machine.unix_time();
    let read = machine.run_blocking(move || proposal(&documents, &root, &name, papers, now));
    let outcome = match read.await {
        Ok(Ok(proposal)) => {
            let k = proposal.order.counter;
            tracing::warn!(fleet = %handle.name, %k, "too many hosts did not start: the fleet rolls back");
            handle.propose(proposal).await
        }
        Ok(Err(refusal)) => Err(refusal),
        Err(error) => Err(Refusal::of(Code::StoreFailed, error.to_string())),
    };
    if let Err(refusal) = outcome {
        tracing::error!(fleet = %handle.name, %refusal, "the fleet does not roll back, and serves what it serves");
        // The coordinator is ending if nobody listens.
        let _ = handle.tell(Input::Event(Box::new(Event::RollBackRefused(refusal)))).await;
    }
}

fn proposal(
    documents: &Documents,
    root: &TrustRoot,
    fleet: &FleetName,
    papers: Papers,
    now: UnixTime,
) -> Result<Proposal, Refusal> {
    let invalid = |error| Refusal::of(Code::SignatureInvalid, chain(&error));
    let order = documents.read(papers.order).map_err(|error| blob_refusal(&error))?;
    let release = documents.read(papers.release).map_err(|error| blob_refusal(&error))?;
    Ok(Proposal {
        order: root.verify_order(&order, now).map_err(invalid)?.into_document(),
        release: root.verify_release(&release, fleet, now).map_err(invalid)?.into_document(),
        papers,
        contingency: None,
        now,
    })
}
