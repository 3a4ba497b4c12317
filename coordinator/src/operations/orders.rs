//! Orders that wait until enough operators have signed them.
//!
//! They are kept here for the operators' convenience, and nothing follows from that: a rollout begins with an order that
//! verifies, and every host verifies it again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use muster_audit::Kind;
use muster_model::{
    Code, Digest, FleetName, OnFailure, Order, Refusal, RolloutId, RosterRef, SigningRole, UnixTime,
};
use muster_proto::v1;
use muster_rollout::fleet::{FleetRecord, is_bound_to};
use muster_trust::OrderProposal;

use super::blocking;
use super::flip::{Signed, invalid, release_of};
use super::view::Names;
use crate::audit::{approval_entries, propose_entry};
use crate::coordinator::Shared;
use crate::ledger::{Entry, History, OrderEntry};
use crate::status::blob_refusal;

/// The most orders that are kept of a fleet.
const ORDERS_MAX: usize = 32;

/// For so long an order that has expired is kept, so that whoever comes too late learns why.
const KEPT_AFTER_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// An order whose signatures were looked at, with the order to roll back where it has one.
struct Reviewed {
    order: OrderProposal,
    contingency: Option<OrderProposal>,
}

/// Keeps an order that at least one operator has signed. One that is kept already gets what signatures are new.
pub(super) async fn propose(
    shared: &Arc<Shared>,
    signed: Signed,
    operator: &str,
) -> Result<v1::PendingOrder, Refusal> {
    // Each approval stands in the audit log behind the root by which it counts.
    let _root_in_force = shared.hold_root().await;
    let now = shared.machine.unix_time();
    let reviewed = Reviewed::of(shared, &signed, now)?;
    check_usable(shared, &reviewed.order.document, now).await?;
    let (fleet, id) = (reviewed.order.document.fleet.clone(), reviewed.order.payload_digest);
    let _ordering = shared.ordering.lock().await;
    let history = shared.ledger.history(&fleet);
    if history.orders.iter().any(|known| known.id == id) {
        let known = find(shared, &fleet, id)?;
        return add(shared, known, signed, operator).await;
    }
    let dropped = to_drop(&history.orders, now);
    if history.orders.len() - dropped.len() >= ORDERS_MAX {
        let detail = format!("{} orders of {fleet} wait for approvals already", history.orders.len());
        return Err(Refusal::of(Code::TooManyOrders, detail));
    }
    let mut audited = vec![propose_entry(&shared.audit, &reviewed.order, operator)];
    audited.extend(approval_entries(&shared.audit, &reviewed.order, &reviewed.order.signers, operator));
    let entry = OrderEntry {
        fleet: fleet.clone(),
        id,
        envelope: reviewed.order.envelope.digest(),
        contingency: reviewed.contingency.as_ref().map(|it| it.envelope.digest()),
        counter: reviewed.order.document.counter,
        to: reviewed.order.document.to,
        expires_unix_ms: reviewed.order.document.expires_unix_ms,
        signers: reviewed.order.signers.clone(),
        proposed_by: operator.to_owned(),
        proposed_unix_ms: now,
        cancelled_by: None,
        roster: Some(bound_to(&reviewed.order.document)),
    };
    tracing::info!(%fleet, k = %entry.counter, %id, %operator, "order proposed; it waits for approvals");
    keep(shared, entry, reviewed, audited, dropped).await
}

/// Adds signatures to an order that is kept.
pub(super) async fn approve(
    shared: &Arc<Shared>,
    signed: Signed,
    operator: &str,
) -> Result<v1::PendingOrder, Refusal> {
    let _root_in_force = shared.hold_root().await;
    let now = shared.machine.unix_time();
    let added = Reviewed::of(shared, &signed, now)?;
    let _ordering = shared.ordering.lock().await;
    let fleet = &added.order.document.fleet;
    let known = find(shared, fleet, added.order.payload_digest)?;
    check_usable(shared, &added.order.document, now).await?;
    add(shared, known, signed, operator).await
}

/// Takes an order back: whoever has signed it, no rollout begins with it any more.
pub(super) async fn cancel(
    shared: &Arc<Shared>,
    fleet: &FleetName,
    id: Digest,
    operator: &str,
) -> Result<(), Refusal> {
    let _ordering = shared.ordering.lock().await;
    let known = find(shared, fleet, id)?;
    let cancelled = shared.audit.entry(Kind::Cancel, operator).of_fleet(fleet).of_rollout(known.counter);
    shared.audit(vec![cancelled.with("payload", id)]).await?;
    let entry = OrderEntry { cancelled_by: Some(operator.to_owned()), ..known };
    shared.write(move |ledger| ledger.append(vec![Entry::Order(Box::new(entry))])).await?;
    tracing::info!(%fleet, %id, %operator, "order cancelled");
    Ok(())
}

/// The orders that are kept, oldest first.
pub(super) async fn list(shared: &Arc<Shared>, fleet: &FleetName) -> Result<Vec<v1::PendingOrder>, Refusal> {
    let (documents, orders) = (shared.documents.clone(), shared.ledger.history(fleet).orders);
    blocking(&shared.machine, move || {
        let read = |digest| documents.read(digest).map_err(|error| blob_refusal(&error));
        let on_wire = |entry: &OrderEntry| {
            let contingency = entry.contingency.map(read).transpose()?;
            Ok(pending(entry, read(entry.envelope)?, contingency))
        };
        orders.iter().map(on_wire).collect()
    })
    .await
}

/// Those that may still be approved or begun, for the status.
pub(super) fn waiting(
    shared: &Shared,
    history: &History,
    record: &FleetRecord,
    names: &Names,
) -> Vec<v1::WaitingOrder> {
    let (root, now) = (shared.root(), shared.machine.unix_time());
    let keys = root.root().role(SigningRole::Operator);
    let waiting = history.orders.iter().filter(|it| is_waiting(it, record, now)).map(|order| {
        let counted = order.signers.iter().filter(|signer| keys.keys.contains(signer)).count();
        v1::WaitingOrder {
            id: order.id.as_bytes().to_vec(),
            k: order.counter.0,
            to: Some(names.of(order.to)),
            approvals: u32::try_from(counted).unwrap_or(u32::MAX),
            threshold: keys.threshold,
            expires_unix_ms: order.expires_unix_ms.0,
            outdated_roster_revision: outdated(order, record).map(|roster| roster.revision.0),
        }
    });
    waiting.collect()
}

/// The rollouts whose orders wait and are bound to the roster in force: none of them is begun under another one.
pub(super) fn bound_to_roster(shared: &Shared, record: &FleetRecord) -> BTreeSet<RolloutId> {
    let (history, now) = (shared.ledger.history(&record.fleet), shared.machine.unix_time());
    let bound = |it: &&OrderEntry| is_waiting(it, record, now) && outdated(it, record).is_none();
    history.orders.iter().filter(bound).map(|order| order.counter).collect()
}

fn is_waiting(order: &OrderEntry, record: &FleetRecord, now: UnixTime) -> bool {
    order.cancelled_by.is_none() && order.counter > record.last_k && now < order.expires_unix_ms
}

/// The roster that an order is bound to, if another one holds. What the operators signed for was its N.
fn outdated(order: &OrderEntry, record: &FleetRecord) -> Option<RosterRef> {
    order.roster.filter(|roster| *roster != record.roster)
}

const fn bound_to(order: &Order) -> RosterRef {
    RosterRef { digest: order.roster, revision: order.roster_revision, hosts: order.hosts }
}

/// An order that was taken back begins nothing, even if all have signed it.
pub(super) fn refuse_cancelled(shared: &Shared, fleet: &FleetName, id: Digest) -> Result<(), Refusal> {
    match find(shared, fleet, id) {
        Err(refusal) if refusal.code() == Some(Code::OrderCancelled) => Err(refusal),
        // One that was never kept here needed no approval, or got them elsewhere.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A rollout has begun with this order, which waits for nothing any more.
pub(super) async fn begun(shared: &Shared, fleet: &FleetName, id: Digest) -> Result<(), Refusal> {
    if !shared.ledger.history(fleet).orders.iter().any(|known| known.id == id) {
        return Ok(());
    }
    let dropped = Entry::OrdersDropped { fleet: fleet.clone(), orders: BTreeSet::from([id]) };
    shared.write(move |ledger| ledger.append(vec![dropped])).await.map(drop)
}

impl Reviewed {
    fn of(shared: &Shared, signed: &Signed, now: UnixTime) -> Result<Self, Refusal> {
        let root = shared.root();
        let order = root.review_order(&signed.order, now).map_err(invalid)?;
        let review = |envelope: &Vec<u8>| root.review_order(envelope, now);
        let contingency = signed.contingency.as_ref().map(review).transpose().map_err(invalid)?;
        Self { order, contingency }.checked()
    }

    /// Step 15: whoever signs that the fleet rolls back by itself signs the order to do so as well.
    fn checked(self) -> Result<Self, Refusal> {
        let refuse = |detail: &str| Err(Refusal::of(Code::OrderInvalid, detail));
        match (self.order.document.on_failure, &self.contingency) {
            (OnFailure::Hold, None) => Ok(self),
            (OnFailure::Rollback, Some(back)) => {
                if !back.document.leads_back(&self.order.document) {
                    return refuse("the order to roll back does not lead back to where the order starts");
                }
                if back.signers != self.order.signers {
                    return refuse("the order to roll back is not signed by those who signed the order");
                }
                Ok(self)
            }
            (OnFailure::Hold, Some(_)) | (OnFailure::Rollback, None) => refuse(
                "an order that rolls back by itself comes with the signed order to do so, no other does",
            ),
        }
    }
}

/// Puts the signatures that are held and those that have come together, durably.
async fn add(
    shared: &Arc<Shared>,
    known: OrderEntry,
    signed: Signed,
    operator: &str,
) -> Result<v1::PendingOrder, Refusal> {
    let (root, now) = (shared.root(), shared.machine.unix_time());
    let (documents, held) = (shared.documents.clone(), known.clone());
    let joined = blocking(&shared.machine, move || {
        let read = |digest| documents.read(digest).map_err(|error| blob_refusal(&error));
        let join = |held: Digest, added: &[u8]| root.join_orders(&read(held)?, added, now).map_err(invalid);
        let contingency = match (held.contingency, &signed.contingency) {
            (Some(held), Some(added)) => Some(join(held, added)?),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                let detail = "the order and the order to roll back are approved together";
                return Err(Refusal::of(Code::OrderInvalid, detail));
            }
        };
        Reviewed { order: join(held.envelope, &signed.order)?, contingency }.checked()
    });
    let joined = joined.await?;
    let is_new = |key: &&muster_model::PublicKey| !known.signers.contains(key);
    let new: Vec<_> = joined.order.signers.iter().filter(is_new).cloned().collect();
    let audited = approval_entries(&shared.audit, &joined.order, &new, operator);
    let entry = OrderEntry {
        envelope: joined.order.envelope.digest(),
        contingency: joined.contingency.as_ref().map(|it| it.envelope.digest()),
        signers: joined.order.signers.clone(),
        ..known
    };
    tracing::info!(fleet = %entry.fleet, id = %entry.id, new = new.len(), %operator, "order approved");
    keep(shared, entry, joined, audited, BTreeSet::new()).await
}

/// Documents first, then what they are about in the audit log, then the record that names them.
async fn keep(
    shared: &Arc<Shared>,
    entry: OrderEntry,
    reviewed: Reviewed,
    audited: Vec<muster_audit::Entry>,
    dropped: BTreeSet<Digest>,
) -> Result<v1::PendingOrder, Refusal> {
    let order = reviewed.order.envelope.raw().to_vec();
    let contingency = reviewed.contingency.map(|it| it.envelope.raw().to_vec());
    let (documents, envelopes) = (shared.documents.clone(), (order.clone(), contingency.clone()));
    blocking(&shared.machine, move || {
        for envelope in std::iter::once(&envelopes.0).chain(&envelopes.1) {
            documents.put(Digest::of(envelope), envelope).map_err(|error| blob_refusal(&error))?;
        }
        Ok(())
    })
    .await?;
    if !audited.is_empty() {
        shared.audit(audited).await?;
    }
    let answer = pending(&entry, order, contingency);
    let dropped =
        (!dropped.is_empty()).then(|| Entry::OrdersDropped { fleet: entry.fleet.clone(), orders: dropped });
    let entries = dropped.into_iter().chain([Entry::Order(Box::new(entry))]).collect();
    shared.write(move |ledger| ledger.append(entries)).await?;
    Ok(answer)
}

/// An order that is kept and was not taken back.
fn find(shared: &Shared, fleet: &FleetName, id: Digest) -> Result<OrderEntry, Refusal> {
    let history = shared.ledger.history(fleet);
    let known = history.orders.iter().find(|known| known.id == id).ok_or_else(|| {
        Refusal::of(Code::OrderUnknown, format!("no order {id} of {fleet} waits for approvals"))
    })?;
    match &known.cancelled_by {
        None => Ok(known.clone()),
        Some(who) => Err(Refusal::of(Code::OrderCancelled, format!("{who} took the order {id} back"))),
    }
}

/// Whether the order could be begun now, if enough had signed it and all hosts were there. The gate asks again.
async fn check_usable(shared: &Arc<Shared>, order: &Order, now: UnixTime) -> Result<(), Refusal> {
    let fleet = shared.fleet(&order.fleet).ok_or_else(|| super::fleet_unknown(&order.fleet))?;
    let refuse = |code, detail: String| Err(Refusal::of(code, detail));
    if now < order.not_before_unix_ms || now >= order.expires_unix_ms {
        return refuse(Code::OrderExpired, "the order is not valid at this time".to_owned());
    }
    let record = fleet.view().await?.record;
    if order.counter != record.last_k.next() {
        let (k, next) = (order.counter, record.last_k.next());
        return refuse(Code::Superseded, format!("the order is for rollout {k}, the next one is {next}"));
    }
    if !is_bound_to(order, &record.roster) {
        let detail = format!(
            "the order is for {} hosts of roster revision {}, in force is revision {} with {} hosts: who has proposed it \
             proposes it anew",
            order.hosts, order.roster_revision, record.roster.revision, record.roster.hosts
        );
        return refuse(Code::RosterChanged, detail);
    }
    if order.from != record.serving {
        return refuse(Code::OrderStale, "the order does not start from what the fleet serves".to_owned());
    }
    release_of(shared, &order.fleet, order.to).map(drop)
}

/// Orders that have been of no use for long.
fn to_drop(orders: &[OrderEntry], now: UnixTime) -> BTreeSet<Digest> {
    let is_full = orders.len() >= ORDERS_MAX;
    let is_useless = |order: &&OrderEntry| {
        let kept_until = order.expires_unix_ms.after(KEPT_AFTER_EXPIRY);
        now >= kept_until || (is_full && now >= order.expires_unix_ms)
    };
    orders.iter().filter(is_useless).map(|order| order.id).collect()
}

fn pending(entry: &OrderEntry, order: Vec<u8>, contingency: Option<Vec<u8>>) -> v1::PendingOrder {
    v1::PendingOrder {
        id: entry.id.as_bytes().to_vec(),
        order_envelope: order,
        contingency_envelope: contingency,
        proposed_by: entry.proposed_by.clone(),
        proposed_unix_ms: entry.proposed_unix_ms.0,
        cancelled_by: entry.cancelled_by.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(number: u64, expires: u64) -> OrderEntry {
        OrderEntry {
            fleet: FleetName::new("demo").unwrap(),
            id: Digest::of(&number.to_be_bytes()),
            envelope: Digest::of(b"envelope"),
            contingency: None,
            counter: RolloutId(1),
            to: Digest::of(b"release"),
            expires_unix_ms: UnixTime(expires),
            signers: Vec::new(),
            proposed_by: "alice".to_owned(),
            proposed_unix_ms: UnixTime(0),
            cancelled_by: None,
            roster: None,
        }
    }

    #[test]
    fn an_order_that_expired_makes_room_when_it_is_needed_and_goes_after_a_day() {
        let day_ms = 24 * 3600 * 1000;
        let few = [order(1, 1000), order(2, 2000)];
        assert!(to_drop(&few, UnixTime(1999)).is_empty(), "whoever comes too late is told why");
        assert_eq!(to_drop(&few, UnixTime(1000 + day_ms)), BTreeSet::from([few[0].id]));
        let full: Vec<OrderEntry> =
            (0..ORDERS_MAX as u64).map(|number| order(number, 1000 + number)).collect();
        assert_eq!(to_drop(&full, UnixTime(1001)).len(), 2);
        // One that was taken back is kept for as long as it could be used.
        let cancelled = |it: &OrderEntry| OrderEntry { cancelled_by: Some("bob".to_owned()), ..it.clone() };
        let cancelled: Vec<OrderEntry> = full.iter().map(cancelled).collect();
        assert!(to_drop(&cancelled, UnixTime(999)).is_empty());
    }
}
