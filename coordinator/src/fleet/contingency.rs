//! Step 15: the order to roll back that the operators signed beforehand.

use std::sync::Arc;

use muster_audit::{Kind, ORDER_DOCUMENT};
use muster_daemon::Machine;
use muster_model::{Code, FleetName, Order, Refusal, UnixTime};
use muster_rollout::fleet::{Event, Papers, Proposal};
use muster_trust::{Authentic, TrustRoot};

use super::FleetHandle;
use super::driver::Input;
use crate::audit::{AuditHandle, approvals};
use crate::ledger::Documents;
use crate::status::{blob_refusal, chain, not_stored};

/// What it takes to propose an order that lies ready.
pub(super) struct Place {
    pub(super) machine: Machine,
    pub(super) handle: Arc<FleetHandle>,
    pub(super) documents: Documents,
    pub(super) root: Arc<TrustRoot>,
    pub(super) audit: AuditHandle,
}

/// Proposes what was signed, as an operator would. Its own gate decides; one that is shut leaves what is served as it is.
pub(super) async fn propose(place: Place, papers: Papers) {
    let Place { machine, handle, documents, root, audit } = place;
    let name = handle.name.clone();
    let now = machine.unix_time();
    let read = machine.run_blocking(move || proposal(&documents, &root, &name, papers, now));
    let outcome = match read.await {
        Ok(Ok((proposal, order))) => {
            let k = proposal.order.counter;
            tracing::warn!(fleet = %handle.name, %k, "too many hosts did not start: the fleet rolls back");
            let given = audit
                .own_entry(Kind::Order)
                .of_fleet(&handle.name)
                .of_rollout(k)
                .with(ORDER_DOCUMENT, proposal.papers.order)
                .with("to", proposal.order.to)
                .saying("too many hosts did not start: the order to roll back that was signed beforehand");
            // Who approved it stands in the log where it was kept as well, which may be the log before this one.
            let entries = std::iter::once(given).chain(approvals(&audit, &order)).collect();
            match audit.write(entries).await {
                Ok(_) => handle.propose(proposal).await,
                // The next entry fails as well, and ends the coordinator.
                Err(error) => Err(not_stored(&error)),
            }
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
) -> Result<(Proposal, Authentic<Order>), Refusal> {
    let invalid = |error| Refusal::of(Code::SignatureInvalid, chain(&error));
    let order = documents.read(papers.order).map_err(|error| blob_refusal(&error))?;
    let release = documents.read(papers.release).map_err(|error| blob_refusal(&error))?;
    let order = root.verify_order(&order, now).map_err(invalid)?;
    let proposal = Proposal {
        order: order.document().clone(),
        release: root.verify_release(&release, fleet, now).map_err(invalid)?.into_document(),
        papers,
        contingency: None,
        now,
    };
    Ok((proposal, order))
}
