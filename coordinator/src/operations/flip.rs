//! The flip: hands a signed order to the fleet and tells the operator how it goes.

use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, FleetName, Order, Refusal, RolloutId};
use muster_proto::v1;
use muster_proto::v1::flip_event::Event;
use muster_proto::v1::rollout_progress::Stage as Wire;
use muster_rollout::fleet::{End, Outcome, Papers, Phase, Proposal, Report, Stage};
use muster_trust::{Authentic, verify};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::Instant;

use super::view::{Names, rollout_end};
use super::{Sender, blocking, orders};
use crate::audit::{approvals, order_entries};
use crate::coordinator::Shared;
use crate::fleet::FleetHandle;
use crate::status::{blob_refusal, chain, listed};

/// One rollout that an operator waits for.
pub(super) struct Flip {
    shared: Arc<Shared>,
    fleet: Arc<FleetHandle>,
    reports: broadcast::Receiver<Report>,
    k: RolloutId,
    to: Digest,
    hosts: u32,
    deadline: Instant,
    follows: Follows,
}

/// Whether the rollout may be followed by one that leads back, which belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    Nothing,
    Contingency,
}

/// What the operators signed.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    /// The order's envelope.
    pub(super) order: Vec<u8>,
    /// The envelope of the order to roll back, where the order has the fleet roll back by itself.
    pub(super) contingency: Option<Vec<u8>>,
}

impl Flip {
    /// Verifies the order and proposes it. A refusal means that nothing was begun.
    pub(super) async fn begin(
        shared: &Arc<Shared>,
        signed: Signed,
        timeout: Duration,
        operator: &str,
    ) -> Result<Self, Refusal> {
        let envelope = signed.order;
        let _root_in_force = shared.hold_root().await;
        let root = shared.root();
        let keys = root.root().role(muster_model::SigningRole::Operator);
        let named = verify::<Order>(&envelope, keys).map_err(invalid)?;
        let name = named.document().fleet.clone();
        let fleet = shared.fleet(&name).ok_or_else(|| super::fleet_unknown(&name))?;
        let now = shared.machine.unix_time();
        let order = shared.root().verify_order(&envelope, now).map_err(invalid)?;
        let release_name = release_of(shared, &name, order.document().to)?;
        let documents = shared.documents.clone();
        let read = move || documents.read(release_name).map_err(|error| blob_refusal(&error));
        let release_bytes = blocking(&shared.machine, read).await?;
        let release = shared.root().verify_release(&release_bytes, &name, now).map_err(invalid)?;
        let (k, to, hosts) = (order.document().counter, order.document().to, order.document().hosts);
        // Until it is begun nobody takes it back.
        let ordering = shared.ordering.lock().await;
        let id = order.payload_digest();
        orders::refuse_cancelled(shared, &name, id)?;
        let order_name = order.envelope_digest();
        let papers = Papers { order: order_name, release: release_name, roster: fleet.roster().envelope };
        let follows = if signed.contingency.is_some() { Follows::Contingency } else { Follows::Nothing };
        let mut entries = order_entries(&shared.audit, &root, &order, operator);
        let contingency = match signed.contingency {
            Some(envelope) => {
                let (back, papers) = contingency(shared, order.document(), envelope, papers.roster).await?;
                entries.extend(approvals(&shared.audit, &back));
                Some(papers)
            }
            None => None,
        };
        let proposal = Proposal {
            order: order.into_document(),
            release: release.into_document(),
            papers,
            contingency,
            now,
        };
        // An order that would be refused is not kept, and one that is taken is durable before a record names it. Whether
        // it is taken is settled below: the fleet may have changed in between.
        fleet.rehearse(proposal.clone()).await?;
        let documents = shared.documents.clone();
        blocking(&shared.machine, move || {
            documents.put(order_name, &envelope).map_err(|error| blob_refusal(&error))
        })
        .await?;
        shared.audit(entries).await?;
        let reports = fleet.watch();
        tracing::info!(fleet = %name, %k, %to, %operator, "flip proposed");
        fleet.propose(proposal).await?;
        orders::begun(shared, &name, id).await?;
        drop(ordering);
        let deadline = Instant::now() + timeout;
        Ok(Self { shared: Arc::clone(shared), fleet, reports, k, to, hosts, deadline, follows })
    }

    /// Tells how it goes until the rollout has ended, time is up, or nobody listens.
    pub(super) async fn run(mut self, events: Sender<v1::FlipEvent>) {
        let mut last_blockers = Vec::new();
        loop {
            let report = tokio::select! {
                biased;
                report = self.reports.recv() => report,
                () = tokio::time::sleep_until(self.deadline) => {
                    self.time_is_up(&events, last_blockers).await;
                    return;
                }
                // The rollout goes on: it belongs to the fleet, not to whoever watches.
                () = events.closed() => return,
            };
            let event = match report {
                Ok(Report::Reached { k, stage, host, done }) if self.is_about(k) => {
                    Event::Progress(v1::RolloutProgress {
                        k: k.0,
                        stage: wire_stage(stage).into(),
                        host: host.map(String::from),
                        done: u32::try_from(done).unwrap_or(u32::MAX),
                        hosts: self.hosts,
                        blockers: Vec::new(),
                    })
                }
                Ok(Report::Trouble { k, blockers }) if self.is_about(k) => {
                    last_blockers.clone_from(&blockers);
                    Event::Progress(v1::RolloutProgress {
                        k: k.0,
                        stage: Wire::Trouble.into(),
                        hosts: self.hosts,
                        blockers: listed(blockers),
                        ..v1::RolloutProgress::default()
                    })
                }
                Ok(Report::Ended(end)) if self.is_about(end.k) => {
                    let names = self.names();
                    let _ =
                        events.send(Ok(ended(rollout_end(&as_end_of(self.k, self.to, end), &names)))).await;
                    return;
                }
                Ok(Report::Reached { .. } | Report::Trouble { .. } | Report::Ended(_)) => continue,
                // What was missed is progress or shows in the status.
                Err(RecvError::Lagged(_)) => {
                    if self.has_ended(&events).await {
                        return;
                    }
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            if events.send(Ok(v1::FlipEvent { event: Some(event) })).await.is_err() {
                return;
            }
        }
    }

    /// An undecided rollout is given up; a decided one goes on without being waited for.
    async fn time_is_up(&mut self, events: &Sender<v1::FlipEvent>, mut blockers: Vec<Blocker>) {
        let reason = Blocker::fleet(
            Code::TimedOut,
            "the rollout was not decided in the time that the operator gave it",
        );
        if self.fleet.abort(Some(self.k), reason.clone()).await.is_ok() {
            // The end was reported before the answer came.
            while let Ok(report) = self.reports.try_recv() {
                if let Report::Ended(end) = report
                    && end.k == self.k
                {
                    let names = self.names();
                    let _ = events.send(Ok(ended(rollout_end(&end, &names)))).await;
                    return;
                }
            }
        }
        if self.has_ended(events).await {
            return;
        }
        let mut epoch = 0;
        if let Ok(view) = self.fleet.view().await {
            epoch = view.record.epoch.0;
            // Who is waited for now, not what was in the way at some time.
            blockers = view.hosts.into_iter().flat_map(|host| host.blockers).collect();
        }
        blockers.insert(
            0,
            Blocker::fleet(Code::TimedOut, "the rollout was decided and goes on; it is not waited for"),
        );
        let end = v1::RolloutEnd {
            k: self.k.0,
            outcome: v1::rollout_end::Outcome::Pending.into(),
            epoch,
            blockers: listed(blockers),
            dark_window: None,
            release: Some(self.names().of(self.to)),
        };
        let _ = events.send(Ok(ended(end))).await;
    }

    /// Tells the end from the record, if the rollout is over.
    async fn has_ended(&self, events: &Sender<v1::FlipEvent>) -> bool {
        let Ok(view) = self.fleet.view().await else { return true };
        // Read after the phase: an end that is older than it is told by the next report.
        let last = self.shared.ledger.history(&self.fleet.name).last_end;
        let Some(end) = last.filter(|end| is_last_word(end, self.k, &view.record.phase)) else {
            return false;
        };
        let _ = events.send(Ok(ended(rollout_end(&end, &self.names())))).await;
        true
    }

    /// Step 15: a rollback that the operator signed beforehand is part of what the operator waits for.
    fn is_about(&self, k: RolloutId) -> bool {
        k == self.k || (self.follows == Follows::Contingency && k == self.k.next())
    }

    fn names(&self) -> Names {
        Names::of_fleet(&self.shared.ledger.history(&self.fleet.name))
    }
}

pub(super) fn invalid(error: muster_trust::TrustError) -> Refusal {
    Refusal::of(Code::SignatureInvalid, chain(&error))
}

/// The envelope of the release with this manifest.
pub(super) fn release_of(shared: &Shared, fleet: &FleetName, manifest: Digest) -> Result<Digest, Refusal> {
    let history = shared.ledger.history(fleet);
    history.release(manifest).map(|release| release.envelope).ok_or_else(|| {
        Refusal::of(Code::ReleaseUnknown, format!("{fleet} has no release {manifest}; push it first"))
    })
}

/// Step 15: keeps the order to roll back, if it leads from where `order` leads back to where it starts.
async fn contingency(
    shared: &Shared,
    order: &Order,
    envelope: Vec<u8>,
    roster: Digest,
) -> Result<(Authentic<Order>, Papers), Refusal> {
    let back = shared.root().verify_order(&envelope, shared.machine.unix_time()).map_err(invalid)?;
    let it = back.document();
    if !it.leads_back(order) {
        let detail = "the order to roll back does not lead back to where the order starts";
        return Err(Refusal::of(Code::OrderInvalid, detail));
    }
    let papers =
        Papers { order: back.envelope_digest(), release: release_of(shared, &order.fleet, it.to)?, roster };
    let documents = shared.documents.clone();
    blocking(&shared.machine, move || {
        documents.put(papers.order, &envelope).map_err(|error| blob_refusal(&error))
    })
    .await?;
    Ok((back, papers))
}

/// What an end means to whoever waits for rollout `k` to `to`: a rollback that was given up leaves what the rollout
/// itself has opened, with the hosts that failed.
fn as_end_of(k: RolloutId, to: Digest, end: End) -> End {
    if end.k == k || end.outcome != Outcome::Unchanged {
        return end;
    }
    End { k, to, outcome: Outcome::Dark, ..end }
}

/// Whether `end` is how rollout `k` stands. "Dark" is told to whoever watches as soon as it is known, whether or not the
/// watcher was there in time; but hosts may have opened since, and then a better end follows at once.
fn is_last_word(end: &End, k: RolloutId, phase: &Phase) -> bool {
    match end.outcome {
        Outcome::Flipped | Outcome::Unchanged => end.k == k,
        Outcome::Dark => end.k == k && *phase != Phase::Settled,
    }
}

const fn ended(end: v1::RolloutEnd) -> v1::FlipEvent {
    v1::FlipEvent { event: Some(Event::End(end)) }
}

const fn wire_stage(stage: Stage) -> Wire {
    match stage {
        Stage::Proposed => Wire::Proposed,
        Stage::Attested => Wire::Attested,
        Stage::Prepared => Wire::Prepared,
        Stage::Probed => Wire::Probed,
        Stage::Armed => Wire::Armed,
        Stage::Decided => Wire::Decided,
        Stage::Closed => Wire::Closed,
        Stage::Opened => Wire::Opened,
        Stage::Serving => Wire::Serving,
        Stage::Measured => Wire::Measured,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use muster_model::{Epoch, FlipMode};
    use muster_rollout::fleet::Opening;

    use super::*;

    fn end(k: u64, to: &str, outcome: Outcome) -> End {
        End {
            k: RolloutId(k),
            to: Digest::of(to.as_bytes()),
            outcome,
            epoch: Epoch(2),
            blockers: Vec::new(),
            dark_window: None,
        }
    }

    #[test]
    fn a_rollback_that_was_given_up_is_no_end_of_the_rollout_it_was_to_undo() {
        let (k, to) = (RolloutId(4), Digest::of(b"new"));
        let told = |it: End| as_end_of(k, to, it);
        assert_eq!(told(end(4, "new", Outcome::Unchanged)), end(4, "new", Outcome::Unchanged));
        assert_eq!(told(end(5, "old", Outcome::Flipped)), end(5, "old", Outcome::Flipped));
        assert_eq!(told(end(5, "old", Outcome::Dark)), end(5, "old", Outcome::Dark));
        assert_eq!(told(end(5, "old", Outcome::Unchanged)), end(4, "new", Outcome::Dark));
    }

    #[test]
    fn a_watcher_that_fell_behind_learns_how_its_own_rollout_stands() {
        let digest = Digest::of(b"document");
        let papers = Papers { order: digest, release: digest, roster: digest };
        let opened = Phase::Opened(Opening {
            k: RolloutId(4),
            papers,
            evidence: digest,
            secrets: digest,
            mode: FlipMode::Strict,
            lapsed: BTreeSet::new(),
            contingency: None,
        });
        let end = |k, outcome| end(k, "document", outcome);
        let cases = [
            (end(4, Outcome::Flipped), Phase::Settled, true),
            (end(4, Outcome::Unchanged), Phase::Settled, true),
            // The end that the last rollout had says nothing about this one.
            (end(3, Outcome::Flipped), Phase::Settled, false),
            (end(3, Outcome::Dark), opened.clone(), false),
            // Whoever watched in time was told that some hosts are dark, and went.
            (end(4, Outcome::Dark), opened, true),
            // The dark hosts have opened since: that it is flipped is about to be told.
            (end(4, Outcome::Dark), Phase::Settled, false),
        ];
        for (end, phase, is_told) in cases {
            assert_eq!(is_last_word(&end, RolloutId(4), &phase), is_told, "{end:?} {phase:?}");
        }
    }
}
