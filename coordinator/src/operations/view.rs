//! What is shown of a fleet. Every datum carries its age; what is not known is never shown as good.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_model::{Blocker, Code, Digest, HostName, Refusal, ServingReport, Version, Withdrawn};
use muster_proto::convert::{ReleaseRef, mode_to_wire};
use muster_proto::v1;
use muster_rollout::fleet::{DarkWindow, End, HostView, Outcome, Phase, State};

use crate::coordinator::Shared;
use crate::enrolment::certificate_warnings;
use crate::fleet::{FleetHandle, Held, View};
use crate::ledger::History;
use crate::status::listed;

/// A fleet on one line.
pub(super) async fn summary(shared: &Arc<Shared>, fleet: &FleetHandle) -> Result<v1::FleetSummary, Refusal> {
    let view = fleet.view().await?;
    let names = Names::of_fleet(&shared.ledger.history(&fleet.name));
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Ok(v1::FleetSummary {
        fleet: fleet.name.as_str().to_owned(),
        epoch: view.record.epoch.0,
        serving: view.record.serving.map(|manifest| names.of(manifest)),
        phase: phase(&view.record.phase).into(),
        hosts: count(view.hosts.len()),
        connected: count(view.hosts.iter().filter(|host| host.session.is_some()).count()),
    })
}

/// Everything about a fleet.
pub(super) async fn status(shared: &Arc<Shared>, fleet: &FleetHandle) -> Result<v1::FleetStatus, Refusal> {
    let view = fleet.view().await?;
    let history = shared.ledger.history(&fleet.name);
    let names = Names::of_fleet(&history);
    let inventory = fleet.inventory();
    let record = &view.record;
    let shown = |host: &HostView| host_status(shared, host, &view, inventory.get(&host.host), &names);
    let hosts = view.hosts.iter().map(shown).collect();
    let parked = view.parked.iter().map(|host| {
        let aside = view.roster.parked_host(&host.host).map(set_aside);
        v1::HostStatus { parked: aside, ..shown(host) }
    });
    let parked = parked.collect();
    let all = view.hosts.iter().chain(&view.parked);
    let blockers = view.frozen.iter().cloned().chain(all.flat_map(|host| host_blockers(host, &view)));
    let mut blockers: Vec<Blocker> = blockers.collect();
    let of_others = view.unproven.iter().filter(|it| !blockers.contains(it)).cloned().collect::<Vec<_>>();
    blockers.extend(of_others);
    Ok(v1::FleetStatus {
        fleet: fleet.name.as_str().to_owned(),
        incarnation: record.leadership.incarnation.0,
        term: record.leadership.term.0,
        epoch: record.epoch.0,
        serving: record.serving.map(|manifest| names.of(manifest)),
        previous: record.previous.map(|manifest| names.of(manifest)),
        phase: phase(&record.phase).into(),
        last_k: record.last_k.0,
        rollout: rollout(&view, &names),
        roster_revision: record.roster.revision.0,
        roster_digest: record.roster.digest.as_bytes().to_vec(),
        blockers: blockers.into_iter().map(v1::Blocker::from).collect(),
        hosts,
        parked,
        retired: view.roster.retired().iter().map(set_aside).collect(),
        coming: coming(&view),
        solo: shared.root().root().is_solo(),
        coordinator_version: env!("CARGO_PKG_VERSION").to_owned(),
        last_end: history.last_end.as_ref().map(|end| rollout_end(end, &names)),
        halted_k: record.halted.map(|k| k.0),
        root_version: shared.root().root().version,
        open_overrides: super::audit::open_overrides(shared, &fleet.name),
        coordinator_certificate: super::certificates::own(shared),
        warnings: warnings(shared, fleet).into_iter().map(v1::Blocker::from).collect(),
        waiting_orders: super::orders::waiting(shared, &history, record, &names),
        additions: super::roster::additions(shared, &fleet.roster().roster),
    })
}

fn host_status(
    shared: &Shared,
    host: &HostView,
    view: &View,
    held: Option<&Arc<Held>>,
    names: &Names,
) -> v1::HostStatus {
    let manifests = held.into_iter().flat_map(|held| held.manifests.iter());
    v1::HostStatus {
        host: host.host.as_str().to_owned(),
        connected: host.session.is_some(),
        age_ms: host.since.map(|since| ms(view.now.since(since))),
        mode: host.mode.map(mode_to_wire),
        serving_epoch: host.serving.map(|epoch| epoch.0),
        deployed: manifests.filter_map(|manifest| names.known(*manifest)).collect(),
        agent_version: host.agent_version.clone(),
        blockers: host_blockers(host, view).into_iter().map(v1::Blocker::from).collect(),
        lease_left_ms: host.leased_until.map(|until| ms(until.since(view.now))),
        halted_k: host.halted.map(|k| k.0),
        root_version: held.and_then(|held| held.root_version),
        certificate_expires_unix_ms: shared.certificate_of(&host.host).map(|it| it.not_after.0),
        certificate: held.and_then(|held| held.certificate.clone()),
        enforce: held.and_then(|held| held.enforce.clone()),
        assurance: held.and_then(|held| held.assurance.clone()),
        state: state(host.state).into(),
        parked: None,
        glass: host.glass.iter().cloned().map(v1::BrokenGlass::from).collect(),
    }
}

/// What stands in the way of the next flip, or will, though nothing is wrong now.
fn warnings(shared: &Shared, fleet: &FleetHandle) -> Vec<Blocker> {
    let mut warnings = certificate_warnings(shared, fleet);
    let (inventory, roster) = (fleet.inventory(), fleet.roster().roster);
    for host in roster.hosts().iter().map(|member| &member.name) {
        if let Some(enforce) = inventory.get(host).and_then(|held| held.enforce.as_ref()) {
            let detail = format!("it takes part in no flip (`enforce = \"{enforce}\"` in its agent.toml)");
            warnings.push(Blocker::host(Code::NotEnforced, host, detail));
        }
    }
    warnings
}

fn set_aside(host: &Withdrawn) -> v1::SetAside {
    v1::SetAside {
        host: host.name.as_str().to_owned(),
        reason: host.reason.clone(),
        since_unix_ms: host.since_unix_ms.0,
    }
}

/// The roster that does not hold yet.
fn coming(view: &View) -> Option<v1::ComingRoster> {
    let (roster, awaited) = view.coming.as_ref()?;
    let names = |host: &HostName| host.as_str().to_owned();
    let joins = roster.hosts().iter().filter(|it| view.roster.member(&it.name) != Some(*it));
    Some(v1::ComingRoster {
        revision: roster.revision().0,
        awaited: awaited.iter().map(names).collect(),
        joining: joins.map(|it| names(&it.name)).collect(),
    })
}

const fn state(state: State) -> v1::HostState {
    match state {
        State::Joining => v1::HostState::Joining,
        State::Serving => v1::HostState::Serving,
        State::Leaving => v1::HostState::Leaving,
        State::Parked => v1::HostState::Parked,
    }
}

fn ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The versions of a fleet's releases.
pub(super) struct Names(BTreeMap<Digest, Version>);

impl Names {
    pub(super) fn of_fleet(history: &History) -> Self {
        Self(history.releases.iter().map(|release| (release.manifest, release.version.clone())).collect())
    }

    /// How reports name the release with this manifest, whether or not it is known.
    pub(super) fn of(&self, manifest: Digest) -> v1::ReleaseRef {
        self.known(manifest).unwrap_or_else(|| v1::ReleaseRef {
            version: String::new(),
            manifest: manifest.as_bytes().to_vec(),
        })
    }

    fn known(&self, manifest: Digest) -> Option<v1::ReleaseRef> {
        let version = self.0.get(&manifest)?.clone();
        Some(ReleaseRef { version, manifest }.into())
    }
}

/// How a rollout ended, on the wire.
pub(super) fn rollout_end(end: &End, names: &Names) -> v1::RolloutEnd {
    use v1::rollout_end::Outcome as Wire;
    let outcome = match end.outcome {
        Outcome::Flipped => Wire::Flipped,
        Outcome::Unchanged => Wire::Unchanged,
        Outcome::Dark => Wire::Dark,
    };
    v1::RolloutEnd {
        k: end.k.0,
        outcome: outcome.into(),
        epoch: end.epoch.0,
        blockers: listed(end.blockers.clone()),
        dark_window: end.dark_window.map(|DarkWindow { bound_ms, measured_ms, spread_ms }| v1::DarkWindow {
            bound_ms,
            measured_ms,
            spread_ms,
        }),
        release: Some(names.of(end.to)),
    }
}

fn rollout(view: &View, names: &Names) -> Option<v1::RolloutStatus> {
    let rollout = view.rollout?;
    let from = match view.record.phase {
        Phase::Opened(_) => view.record.previous,
        Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) | Phase::Decided(_) => view.record.serving,
    };
    let (hosts, acknowledged) = (view.hosts.len(), view.acknowledged);
    Some(v1::RolloutStatus {
        k: rollout.k.0,
        from: from.map(|manifest| names.of(manifest)),
        to: Some(names.of(rollout.to)),
        age_ms: view.rollout_age_ms,
        acknowledged: u32::try_from(acknowledged).unwrap_or(u32::MAX),
        outstanding: u32::try_from(hosts.saturating_sub(acknowledged)).unwrap_or(u32::MAX),
    })
}

/// What is wrong with a host: what it or the core says, and a darkness that nothing else explains.
fn host_blockers(host: &HostView, view: &View) -> Vec<Blocker> {
    let mut blockers = host.blockers.clone();
    if host.state == State::Parked {
        return blockers;
    }
    let serving = host.serving.map_or(ServingReport::Dark, ServingReport::Open);
    let is_dark = view.record.serving.is_some() && serving != ServingReport::Open(view.record.epoch);
    let is_closing = matches!(view.record.phase, Phase::Decided(_));
    if let Some(halted) = host.halted.or(view.record.halted)
        && is_dark
        && !blockers.iter().any(|blocker| blocker.code == Code::Halted)
    {
        let detail = format!("it was halted after rollout {halted}; only a newer order resumes it");
        blockers.push(Blocker::host(Code::Halted, &host.host, detail));
    }
    if blockers.is_empty() && is_dark && !is_closing {
        let detail = format!("it serves nothing, while the fleet serves epoch {}", view.record.epoch);
        blockers.push(Blocker::host(Code::HostDark, &host.host, detail));
    }
    blockers
}

const fn phase(phase: &Phase) -> v1::Phase {
    match phase {
        Phase::Settled => v1::Phase::Settled,
        Phase::Preparing(_) => v1::Phase::Preparing,
        Phase::Arming(_) => v1::Phase::Arming,
        Phase::Decided(_) => v1::Phase::Decided,
        Phase::Opened(_) => v1::Phase::Opened,
    }
}
