//! The coordinator is lost for good at any moment of a random history, and is rebuilt from its hosts.

use std::collections::BTreeMap;

use muster_model::{
    Blocker, Closing, Code, Commitment, Digest, Epoch, FlipMode, HostName, HostPlace, Incarnation,
    Leadership, Mandate, Membership, Purpose, RolloutId, Roster, RosterRevision, Secrets, Term,
};

use super::history::{goes_on, lived_until_the_loss};
use super::machine::Machine;
use super::papers::{SignedRoster, fleet_name, host_name, signed_roster_of};
use super::world::World;
use crate::fleet::{Papers, Phase, roster_ref};
use crate::host::{Host, HostRecord, Mode};
use crate::rebuild::{Before, Dossier, Mandated, Promise, Stopped, Testimony, Told, Verdict, judge};

/// How many histories are run.
const HISTORIES: u64 = 1_500;

/// The life of the database that follows.
const NEXT: Leadership = Leadership { incarnation: Incarnation(2), term: Term(1) };

#[test]
fn a_coordinator_that_is_lost_at_any_moment_is_rebuilt_and_every_invariant_holds() {
    let mut seen = BTreeMap::new();
    let mut count = |what: &'static str| *seen.entry(what).or_insert(0_u64) += 1;
    let seeds = match std::env::var("MUSTER_SEED") {
        Ok(seed) => seed.parse().map(|seed: u64| seed..seed + 1).expect("a number"),
        Err(_) => {
            0..std::env::var("MUSTER_HISTORIES")
                .map_or(HISTORIES, |text| text.parse().expect("the variable is a number"))
        }
    };
    let is_search = seeds.end - seeds.start >= HISTORIES;
    for seed in seeds {
        let mut world = lived_until_the_loss(seed);
        let found = world.violation.is_none().then(|| rebuild(&mut world));
        if let Some(Err(blockers)) = &found {
            world.violate(format!("it cannot be rebuilt: {blockers:?}"));
        }
        let is_waiting = world.coordinator.record.coming.is_some();
        goes_on(&mut world);
        assert_eq!(world.violation, None, "seed {seed}, {found:?}");
        let Some(Ok((verdict, change))) = found else { continue };
        match (&verdict.opened, &verdict.decided) {
            (None, None) => count("settled"),
            (Some(_), _) => count("opened"),
            (None, Some(_)) => count("decided"),
        }
        match (change, is_waiting) {
            (Change::None, _) => {}
            (Change::Joins, false) => count("joins"),
            (Change::Joins, true) => count("joins after what was decided"),
            (Change::Parks, false) => count("parks"),
            (Change::Parks, true) => count("parks after what was decided"),
            (Change::Drops, false) => count("drops"),
            (Change::Drops, true) => count("drops after what was decided"),
            (Change::Returns, false) => count("returns"),
            (Change::Returns, true) => count("returns after what was decided"),
        }
    }
    // A search that finds fleets in one state only has looked at nothing.
    let all = [
        "settled",
        "opened",
        "decided",
        "joins",
        "joins after what was decided",
        "parks",
        "parks after what was decided",
        "drops",
        "drops after what was decided",
        // After what was decided it is rare: a scenario shows it.
        "returns",
    ];
    for what in all {
        assert!(!is_search || seen.get(what).is_some_and(|count| *count > 2), "{what}: {seen:?}");
    }
}

/// What the mandated roster makes of the one that was in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Joins,
    Parks,
    Drops,
    /// It takes back who has closed for the one before.
    Returns,
}

/// The roster that the operators mandate: the one in force, the one that was to come, or one that they sign now.
fn mandated(world: &mut World) -> (SignedRoster, Change) {
    let in_force = world.roster_in_force();
    let coming = world.roster_coming();
    let known = |world: &World, roster: &Roster| {
        world.rosters.iter().find(|it| **it.roster == *roster).expect("a roster of this world").clone()
    };
    if let Some(coming) = coming {
        // One that has hosts leave is shown to them before it holds, so that none before it can be mandated.
        let leaves = in_force.hosts().iter().any(|it| coming.member(&it.name) != Some(it));
        if leaves && world.random.chance(400) {
            let is_parked = |number: &usize| in_force.parked_host(&host_name(*number)).is_some();
            world.parked.retain(is_parked);
            return (taking_back(world, &coming), Change::Returns);
        }
        if leaves || world.random.chance(800) {
            return (known(world, &coming), if leaves { Change::Parks } else { Change::Joins });
        }
        return (known(world, &in_force), Change::None);
    }
    let hosts = world.hosts_listed();
    let has_closed = |world: &World, number: usize| {
        matches!(world.machines[number - 1].record.membership, Membership::Excluded(_))
    };
    if let Some(number) = world.parked.iter().copied().find(|number| has_closed(world, *number))
        && world.random.chance(400)
    {
        world.parked.remove(&number);
        return (taking_back(world, &in_force), Change::Returns);
    }
    let (next, are_enough) = (in_force.revision().next().0, in_force.hosts().len() > 2);
    let (signed, change) = match world.random.below(6) {
        0 if are_enough && in_force.position(&host_name(hosts)).is_some() => {
            (signed_roster_of(next, hosts - 1, &world.parked), Change::Drops)
        }
        1 if are_enough => {
            let number = world.random.index(hosts) + 1;
            world.parked.insert(number);
            (signed_roster_of(next, hosts, &world.parked), Change::Parks)
        }
        2 if world.machines.len() == hosts => {
            world.machines.push(Machine::new(fleet_name(), host_name(hosts + 1)));
            world.start_agent(hosts);
            (signed_roster_of(next, hosts + 1, &world.parked), Change::Joins)
        }
        _ => return (known(world, &in_force), Change::None),
    };
    world.rosters.push(signed.clone());
    (signed, change)
}

/// The roster that follows `last`, with those parked who still are.
fn taking_back(world: &mut World, last: &Roster) -> SignedRoster {
    let signed = signed_roster_of(last.revision().next().0, world.hosts_listed(), &world.parked);
    world.stated.retain(|host, _| signed.roster.member(host).is_none());
    world.rosters.push(signed.clone());
    signed
}

/// Hears all hosts of the roster under the new incarnation, and puts what follows in the place of what was lost.
fn rebuild(world: &mut World) -> Result<(Verdict, Change), Vec<Blocker>> {
    let (signed, change) = mandated(world);
    rebuild_under(world, &signed).map(|verdict| (verdict, change))
}

/// The same under this roster.
fn rebuild_under(world: &mut World, signed: &SignedRoster) -> Result<Verdict, Vec<Blocker>> {
    let before = world.roster_in_force();
    let gone = before.hosts().iter().map(|it| &it.name).filter(|host| signed.roster.place(host).is_none());
    let dropped: Vec<HostName> = gone.cloned().collect();
    let reference = roster_ref(&signed.roster, signed.digest);
    let mandate = |fenced| {
        let fleet = signed.roster.fleet().clone();
        Mandate::new(fleet, NEXT.incarnation, reference, fenced, "lost".to_owned()).expect("a mandate")
    };
    let mut told = BTreeMap::new();
    for index in 0..world.machines.len() {
        let machine = &mut world.machines[index];
        machine.shown.clear();
        let place = signed.roster.place(&machine.name);
        if place.is_some() && place != Some(HostPlace::Serving) {
            world.show(index, signed.envelope);
        }
    }
    world.rest();
    for index in 0..world.machines.len() {
        if signed.roster.place(&world.machines[index].name).is_some() {
            told.insert(world.machines[index].name.clone(), hear(world, index));
        }
    }
    // It may serve, whatever the others tell: it is heard as well, or it is off.
    let mut off = Vec::new();
    for host in &dropped {
        let refused = codes(judge(&signed.roster, &mandate(Vec::new()), Before::only(&before), &told));
        assert!(refused.contains(&(Code::RemovalNeedsEvidence, host.to_string())), "{refused:?}");
        let index = world.machines.iter().position(|it| it.name == *host).expect("it has a machine");
        if world.random.chance(300) {
            world.reboot(index);
            // If it is on again after all, it is shown the mandate like any other host.
            obeys_next(&mut world.machines[index]);
            off.push(host.clone());
        } else {
            world.show(index, signed.envelope);
            world.rest();
            told.insert(host.clone(), hear(world, index));
        }
    }
    let mandate = mandate(off);
    let verdict = judge(&signed.roster, &mandate, Before::only(&before), &told)?;
    let mut opened = verdict.opened.and_then(|promise| dossier(world, &promise, has_opened(&told, &promise)));
    if let Some(secrets) = opened.as_mut().and_then(|dossier| dossier.reveal(&told)) {
        let bytes = secrets.as_bytes();
        world.coordinator.documents.insert(Digest::of(bytes), bytes.clone());
    }
    if verdict.opened.is_none() {
        opened = settled_on(world, &verdict);
    }
    let decided = verdict.decided.and_then(|promise| dossier(world, &promise, Kept::No));
    let mandated =
        Mandated { roster: &signed.roster, reference, envelope: signed.envelope, mandate: &mandate };
    let made = verdict.record(NEXT, mandated, Vec::new(), opened.as_ref(), decided.as_ref());
    let (record, _) = made.map_err(|blocker| vec![blocker])?;
    // What the coordinator that was lost had decided, and nobody has acted on, is forgotten.
    if let Phase::Decided(armament) = &world.coordinator.record.phase
        && verdict.decided.is_none()
        && verdict.epoch == world.coordinator.record.epoch
    {
        world.fates.remove(&armament.rollout.k);
    }
    world.coordinator.sessions.clear();
    world.coordinator.install(record);
    Ok(verdict)
}

/// The host obeys the new incarnation, durably, and tells what it has promised.
fn hear(world: &mut World, index: usize) -> Testimony {
    world.crash_agent(index);
    world.start_agent(index);
    world.crash_agent(index);
    let machine = &mut world.machines[index];
    obeys_next(machine);
    let mut testimony = Host::new(machine.record.clone(), machine.profile(false)).testify();
    testimony.serving = match (&machine.record.mode, machine.guard) {
        (Mode::Serve(serving) | Mode::Armed { serving, .. }, Some(_)) => Some(*serving),
        (Mode::Serve(_) | Mode::Armed { .. } | Mode::Closed { .. }, _) => None,
    };
    testimony.stopped = if machine.guard.is_none() { Stopped::Proven } else { Stopped::Unproven };
    world.start_agent(index);
    testimony
}

fn obeys_next(machine: &mut Machine) {
    let record = HostRecord { leadership: NEXT, token: None, ..machine.record.clone() };
    machine.install(record, machine.journal);
}

/// Whether some host keeps the closing secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    No,
    Yes,
}

/// A host that was opened keeps what it was opened with.
fn has_opened(told: &BTreeMap<HostName, Testimony>, promise: &Promise) -> Kept {
    let serves = |it: &Testimony| match &it.mode {
        Told::Serve(serving) | Told::Armed { serving, .. } => serving.epoch == promise.epoch,
        Told::Closed { .. } => false,
    };
    if told.values().any(serves) { Kept::Yes } else { Kept::No }
}

/// What hosts have kept of the rollout that settled on what they serve.
fn settled_on(world: &World, verdict: &Verdict) -> Option<Dossier> {
    let record = &world.coordinator.record;
    let last = record.phase.opening().or(record.completed.as_ref())?;
    let order = world.orders.get(&last.papers.order).filter(|order| Some(order.to) == verdict.serving)?;
    let signed = world.rosters.iter().find(|it| it.digest == order.roster)?;
    let evidence = world.attestations_in(world.coordinator.documents.get(&last.evidence)?);
    let commitment = |purpose: &Purpose| match purpose {
        Purpose::Rollout { commitment, .. } => Some(*commitment),
        Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => None,
    };
    let secrets = Secrets::from_bytes(world.coordinator.documents.get(&last.secrets)?)?;
    Some(Dossier {
        order: order.clone(),
        roster: (*signed.roster).clone(),
        papers: last.papers,
        evidence: last.evidence,
        commitments: evidence.iter().filter_map(|it| commitment(&it.purpose)).collect(),
        secrets: Some((last.secrets, secrets)),
    })
}

/// What hosts have kept of a rollout, as the simulated store still has it.
fn dossier(world: &World, promise: &Promise, kept: Kept) -> Option<Dossier> {
    let (order_name, order) = world.orders.iter().find(|(_, order)| {
        order.counter == promise.k && order.to == promise.release && order.mode == promise.mode
    })?;
    let signed = world.rosters.iter().find(|it| it.digest == order.roster)?;
    let commitments_in = |bytes: &[u8]| -> Option<Vec<Commitment>> {
        let lines = std::str::from_utf8(bytes).ok()?.lines();
        let known = lines.map(|line| world.attestations.get(line.parse::<usize>().ok()?));
        known
            .map(|it| match it?.purpose {
                Purpose::Rollout { commitment, .. } => Some(commitment),
                Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => None,
            })
            .collect()
    };
    let documents = &world.coordinator.documents;
    let (evidence, commitments) = documents.iter().find_map(|(digest, bytes)| {
        let commitments =
            commitments_in(bytes).filter(|it| Closing::of_commitments(it) == promise.closing)?;
        Some((*digest, commitments))
    })?;
    let secrets = documents.iter().find_map(|(digest, bytes)| {
        let secrets = Secrets::from_bytes(bytes).filter(|it| !it.as_bytes().is_empty())?;
        promise.closing.is_proven_by(&secrets, promise.max_lapsed).then_some((*digest, secrets))
    });
    let release: Digest = world.release_papers[world.position_of(promise.release)];
    Some(Dossier {
        order: order.clone(),
        roster: (*signed.roster).clone(),
        papers: Papers { order: *order_name, release, roster: signed.envelope },
        evidence,
        commitments,
        secrets: secrets.filter(|_| kept == Kept::Yes),
    })
}

/// All hosts have closed, and one of them has seen since that it is to leave: what it has closed for it can still prove.
#[test]
fn who_has_closed_for_a_roster_that_the_mandated_one_takes_back_lets_the_others_go_forward() {
    for hosts in [3, 4] {
        let mut world = World::settled();
        world.flip_until(1, super::scenarios::is_opened);
        // Nobody hears that the others have closed as well.
        world.crash_coordinator();
        (0..3).for_each(|index| world.cut(index));
        world.machines.iter_mut().for_each(|machine| machine.old_links.clear());
        let left_out = signed_roster_of(2, 3, &[3].into());
        world.rosters.push(left_out.clone());
        world.show(2, left_out.envelope);
        world.rest();
        assert_eq!(world.machines[2].record.membership, Membership::Excluded(RosterRevision(2)));
        assert!(world.machines.iter().all(|it| matches!(it.record.mode, Mode::Closed { .. })));
        for number in world.machines.len() + 1..=hosts {
            world.machines.push(Machine::new(fleet_name(), host_name(number)));
            world.start_agent(number - 1);
        }
        let signed = signed_roster_of(3, hosts, &[].into());
        world.rosters.push(signed.clone());
        let verdict = rebuild_under(&mut world, &signed).expect("all were heard");
        assert!(verdict.decided.is_some() && verdict.opened.is_none(), "{verdict:?}");
        world.start_coordinator();
        world.rest();
        world.deploy_everywhere();
        world.report_deployed();
        world.rest();
        world.expect_all_serve(1, 2);
        assert_eq!(world.coordinator.record.phase, Phase::Settled);
        assert_eq!((world.roster_in_force().hosts().len(), &world.violation), (hosts, &None));
    }
}

#[test]
fn who_was_left_out_and_is_taken_back_is_heard_once_it_has_closed() {
    let (_, mut told, mandate) = settled();
    let signed = signed_roster_of(3, 3, &[].into());
    let before = signed_roster_of(2, 3, &[3].into()).roster;
    let reference = roster_ref(&signed.roster, signed.digest);
    let mandate = Mandate::new(mandate.fleet, NEXT.incarnation, reference, Vec::new(), "lost".to_owned());
    let mandate = mandate.expect("a mandate");
    let third = told.get_mut(&host_name(3)).expect("it was heard");
    // It has seen nothing of what the others did since.
    third.membership = Membership::Excluded(RosterRevision(2));
    third.mode = Told::Serve(crate::host::Serving { epoch: Epoch(0), release: None });
    third.last_k = RolloutId(1);
    let removal = [(Code::RemovalNeedsEvidence, "host-3".to_owned())];
    assert_eq!(codes(judge(&signed.roster, &mandate, Before::only(&before), &told)), removal, "it may serve");
    told.get_mut(&host_name(3)).expect("it was heard").stopped = Stopped::Proven;
    let verdict = judge(&signed.roster, &mandate, Before::only(&before), &told).expect("it has closed");
    assert_eq!((verdict.epoch.0, verdict.opened), (1, None));
}

#[test]
fn whom_only_a_roster_lists_that_nobody_keeps_who_serves_is_heard_as_well() {
    let (_, mut told, mandate) = settled();
    let (held, later) = (signed_roster_of(1, 3, &[].into()), signed_roster_of(2, 4, &[3].into()));
    let signed = signed_roster_of(3, 3, &[].into());
    let reference = roster_ref(&signed.roster, signed.digest);
    let mandated = |fenced| {
        let mandate =
            Mandate::new(mandate.fleet.clone(), NEXT.incarnation, reference, fenced, "lost".to_owned());
        mandate.expect("a mandate")
    };
    let third = told.get_mut(&host_name(3)).expect("it was heard");
    third.membership = Membership::Excluded(RosterRevision(2));
    third.stopped = Stopped::Proven;
    judge(&signed.roster, &mandated(Vec::new()), Before::only(&held.roster), &told)
        .expect("nobody else is known");
    let before = Before { held: &held.roster, later: &[&later.roster] };
    let outcome = judge(&signed.roster, &mandated(Vec::new()), before, &told);
    assert_eq!(codes(outcome), [(Code::RemovalNeedsEvidence, "host-4".to_owned())], "it may serve");
    judge(&signed.roster, &mandated(vec![host_name(4)]), before, &told).expect("it is stated to be off");
}

/// Three hosts that serve the first release, as they would tell it.
fn settled() -> (World, BTreeMap<HostName, Testimony>, Mandate) {
    let mut world = World::settled();
    world.crash_coordinator();
    let told = (0..3).map(|index| (host_name(index + 1), hear(&mut world, index))).collect();
    let signed = &world.rosters[0];
    let reference = roster_ref(&signed.roster, signed.digest);
    let fleet = signed.roster.fleet().clone();
    let mandate = Mandate::new(fleet, NEXT.incarnation, reference, Vec::new(), "lost".to_owned());
    (world, told, mandate.expect("a mandate"))
}

fn codes(outcome: Result<Verdict, Vec<Blocker>>) -> Vec<(Code, String)> {
    let blockers = outcome.expect_err("it does not fit together");
    blockers.into_iter().map(|it| (it.code, it.host.map(String::from).unwrap_or_default())).collect()
}

#[test]
fn nothing_is_concluded_before_all_hosts_were_heard_and_agree() {
    let (world, told, mandate) = settled();
    let roster = &world.rosters[0].roster;
    let good = judge(roster, &mandate, Before::only(roster), &told).expect("all were heard");
    assert_eq!((good.epoch.0, good.opened, good.decided), (1, None, None));
    let with = |change: &dyn Fn(&mut BTreeMap<HostName, Testimony>)| {
        let mut told = told.clone();
        change(&mut told);
        codes(judge(roster, &mandate, Before::only(roster), &told))
    };
    let second = host_name(2);
    let at = |code| vec![(code, second.to_string())];
    assert_eq!(with(&|told| drop(told.remove(&second))), at(Code::HostMissing));
    let edit =
        |change: &dyn Fn(&mut Testimony)| with(&|told| change(told.get_mut(&second).expect("it was heard")));
    assert_eq!(edit(&|it| it.history = crate::host::History::Lost), at(Code::HistoryLost));
    assert_eq!(edit(&|it| it.roster_revision.0 += 1), at(Code::RosterChanged));
    // What comes of a close that is still draining is not known; and one that was left out has to see that it no longer is.
    assert_eq!(edit(&|it| it.closing = Some(RolloutId(1))), at(Code::HostSilent));
    assert_eq!(edit(&|it| it.membership = Membership::Excluded(RosterRevision(1))), at(Code::RosterChanged));
    // What would make whoever leads count past the end is no number of a rollout.
    assert_eq!(edit(&|it| it.last_k.0 = u64::MAX - 7), at(Code::HistoryLost));
    assert_eq!(edit(&|it| it.halted = Some(RolloutId(1 << 60))), at(Code::HistoryLost));
    let other = Digest::of(b"another release");
    let serve =
        |epoch, release| Told::Serve(crate::host::Serving { epoch: Epoch(epoch), release: Some(release) });
    assert_eq!(edit(&|it| it.mode = serve(u64::MAX, other)), at(Code::HistoryLost));
    assert_eq!(edit(&|it| it.mode = serve(1, other)), at(Code::Mismatch));
    // One that has gone ahead alone cannot be: the others are named, whose disks were set back.
    let ahead = edit(&|it| it.mode = serve(2, other));
    assert!(ahead.iter().all(|(code, host)| *code == Code::RolledBackDisk && *host != second.to_string()));
    assert_eq!(ahead.len(), 2);
}

#[test]
fn a_host_that_the_mandated_roster_parks_has_closed_or_is_stated_to_be_off() {
    let (_, mut told, mandate) = settled();
    let signed = signed_roster_of(2, 3, &[3].into());
    let reference = roster_ref(&signed.roster, signed.digest);
    let mandated = |fenced| {
        let reason = "lost".to_owned();
        Mandate::new(mandate.fleet.clone(), NEXT.incarnation, reference, fenced, reason).expect("a mandate")
    };
    let removal = [(Code::RemovalNeedsEvidence, "host-3".to_owned())];
    let outcome =
        |told: &_, fenced| judge(&signed.roster, &mandated(fenced), Before::only(&signed.roster), told);
    assert_eq!(codes(outcome(&told, vec![])), removal, "it serves, and nobody else knows");
    let parked = told.get_mut(&host_name(3)).expect("it was heard");
    parked.membership = Membership::Excluded(RosterRevision(2));
    assert_eq!(codes(outcome(&told, vec![])), removal, "it has not stopped yet");
    told.get_mut(&host_name(3)).expect("it was heard").serving = None;
    assert_eq!(codes(outcome(&told, vec![])), removal, "nothing is known of its guard");
    told.get_mut(&host_name(3)).expect("it was heard").stopped = Stopped::Proven;
    assert_eq!(outcome(&told, vec![]).expect("it has closed").epoch.0, 1);
    assert_eq!(outcome(&told, vec![host_name(3)]).expect("it has closed").epoch.0, 1);
    told.remove(&host_name(3));
    assert_eq!(codes(outcome(&told, vec![])), [(Code::HostMissing, "host-3".to_owned())]);
    assert_eq!(outcome(&told, vec![host_name(3)]).expect("it is off").epoch.0, 1);
}

#[test]
fn a_host_says_that_it_has_stopped_once_its_guard_has_answered() {
    let mut world = World::settled();
    let signed = signed_roster_of(2, 3, &[3].into());
    let envelope = signed.envelope;
    world.rosters.push(signed);
    let stopped = |world: &World| world.machines[2].agent.as_ref().expect("it runs").testify().stopped;
    assert_eq!(stopped(&world), Stopped::Unproven, "it serves");
    world.reboot(2);
    world.start_agent(2);
    assert_eq!(stopped(&world), Stopped::Unproven, "nothing is known of its guard");
    world.show(2, envelope);
    assert_eq!(stopped(&world), Stopped::Unproven, "it was asked");
    world.crash_coordinator();
    world.rest();
    assert_eq!(stopped(&world), Stopped::Proven);
}

#[test]
fn a_host_that_the_mandated_roster_parks_may_have_been_the_first_to_close_or_to_open() {
    let (world, mut told, _) = settled();
    let before = &world.rosters[0].roster;
    let signed = signed_roster_of(2, 3, &[3].into());
    let reference = roster_ref(&signed.roster, signed.digest);
    let mandate =
        Mandate::new(before.fleet().clone(), NEXT.incarnation, reference, Vec::new(), "lost".to_owned());
    let mandate = mandate.expect("a mandate");
    let k = RolloutId(2);
    let next = Promise {
        k,
        epoch: Epoch(2),
        release: Digest::of(b"another release"),
        closing: Closing::of_commitments(&[]),
        max_lapsed: 0,
        mode: FlipMode::Strict,
    };
    let served = told[&host_name(1)].serving.expect("it serves");
    let armed = Told::Armed { k, serving: served, next, set: false };
    let closed = Told::Closed { k, next, fallback: None };
    let opened = Told::Serve(crate::host::Serving { epoch: Epoch(2), release: Some(next.release) });
    let mut outcome = |others: &Told, parked: &Told| {
        for number in 1..=3 {
            let it = told.get_mut(&host_name(number)).expect("it was heard");
            it.mode = if number == 3 { parked.clone() } else { others.clone() };
            it.serving = None;
        }
        let it = told.get_mut(&host_name(3)).expect("it was heard");
        (it.membership, it.stopped) = (Membership::Excluded(RosterRevision(2)), Stopped::Proven);
        let verdict = judge(&signed.roster, &mandate, Before::only(before), &told).expect("it fits together");
        (verdict.epoch, verdict.opened, verdict.decided)
    };
    assert_eq!(outcome(&armed, &armed), (Epoch(1), None, None), "nobody has acted on it, and nobody can");
    assert_eq!(outcome(&armed, &closed), (Epoch(1), None, Some(next)), "it was decided");
    assert_eq!(outcome(&closed, &opened), (Epoch(2), Some(next), None), "it was opened");
}

#[test]
fn a_host_that_is_stated_to_be_off_is_not_heard() {
    let (world, mut told, mandate) = settled();
    let roster = &world.rosters[0].roster;
    let (fleet, reason) = (mandate.fleet.clone(), "it burned".to_owned());
    let fenced =
        Mandate::new(fleet, NEXT.incarnation, mandate.roster, vec![host_name(3)], reason).expect("a mandate");
    assert_eq!(
        codes(judge(roster, &fenced, Before::only(roster), &told)),
        [(Code::RemovalNeedsEvidence, "host-3".to_owned())],
        "it is connected"
    );
    told.remove(&host_name(3));
    assert_eq!(
        judge(roster, &fenced, Before::only(roster), &told).expect("the others were heard").epoch.0,
        1
    );
}

#[test]
fn a_rollout_that_the_lost_coordinator_could_still_open_for_a_host_that_is_off_goes_forward() {
    let (world, mut told, mandate) = settled();
    let roster = &world.rosters[0].roster;
    let fenced = vec![host_name(2), host_name(3)];
    let fleet = mandate.fleet.clone();
    let mandate = Mandate::new(fleet, NEXT.incarnation, mandate.roster, fenced.clone(), "lost".to_owned());
    let mandate = mandate.expect("a mandate");
    fenced.iter().for_each(|host| drop(told.remove(host)));
    let mut decided = |max_lapsed| {
        let k = RolloutId(2);
        let next = Promise {
            k,
            epoch: Epoch(2),
            release: Digest::of(b"another release"),
            closing: Closing::of_commitments(&[]),
            max_lapsed,
            mode: FlipMode::Strict,
        };
        let only = told.get_mut(&host_name(1)).expect("it was heard");
        let serving = Epoch(1);
        let serving =
            crate::host::Serving { epoch: serving, release: only.serving.and_then(|it| it.release) };
        only.mode = Told::Armed { k, serving, next, set: false };
        let verdict = judge(roster, &mandate, Before::only(roster), &told).expect("all were heard");
        (verdict.decided == Some(next), verdict.epoch.0)
    };
    // The others may have closed, and that order would open them over this one.
    assert_eq!(decided(1), (true, 1));
    assert_eq!(decided(0), (false, 1), "nobody opens without this host's secret, which it destroys");
}
