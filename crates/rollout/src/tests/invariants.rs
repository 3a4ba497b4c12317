//! What must hold in the simulated world after every action, and at every write and message.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_model::{
    Digest, Epoch, FlipMode, FromHost, HostName, Member, Membership, Purpose, RolloutId, Roster, ToHost,
};

use super::coordinator::Seat;
use super::machine::{GuardWork, Image, Machine};
use super::world::{Fate, Heard, World};
use crate::fleet::{Armament, FleetRecord, Identity, Limits, Phase};
use crate::host::{HostRecord, Mode, Switch, SwitchStage};

/// "OPENED within W + 2 s."
const COMPLETION_SLACK: Duration = Duration::from_secs(2);
const CLOCK_TICK_MS: u64 = 1;

impl World {
    /// What must hold at every moment.
    pub(super) fn check(&mut self) {
        let mut served = None;
        let mut violations = Vec::new();
        for machine in &self.machines {
            if let Some(open) = machine.guard {
                // P1: no instant at which two hosts serve different releases.
                // Whoever broke glass claims it no more; the others do.
                if !machine.record.is_glass_broken()
                    && *served.get_or_insert(open) != open
                    && self.mode == FlipMode::Strict
                {
                    violations.push(format!("P1: {served:?} and {open:?} are served at the same time"));
                }
                // P11: after boot no permit until ADMIT or OPEN.
                if !machine.permitted {
                    violations.push(format!("P11: {} serves after its boot without a permit", machine.name));
                }
                // P2: serving e+1 implies OPENED(e+1) is durable.
                if open.0 > self.coordinator.record.epoch && self.mode == FlipMode::Strict {
                    violations.push(format!("P2: epoch {} is served before it was opened", open.0));
                }
            }
            // P9: at most one active session for each host and fleet. What a leader has that was deposed does not count.
            let leadership = self.coordinator.record.leadership;
            let links = machine.link.iter().chain(&machine.old_links);
            let active = links.filter(|it| it.accepted && it.server_open && it.leadership == leadership);
            if active.count() > 1 {
                violations.push(format!("P9: {} has two sessions", machine.name));
            }
        }
        violations.extend(self.forgotten_statement());
        let roster = self.roster_in_force();
        // P14: a host that is parked serves nothing, unless somebody broke glass on it.
        let is_open = |machine: &&Machine| {
            let is_parked = roster.parked_host(&machine.name).is_some();
            is_parked && machine.guard.is_some() && !machine.record.is_glass_broken()
        };
        // Where that is the mistake, what is looked for is what it leads to.
        let is_planted = self.lies_about_withdrawals();
        let parked = self.machines.iter().filter(is_open).filter(|_| !is_planted);
        violations.extend(parked.map(|it| format!("P14: {} is parked and serves", it.name)));
        for violation in violations {
            self.violate(violation);
        }
        self.check_completed_in_time();
        self.check_skew();
    }

    /// What was stated of a host that is off is enough for it to leave, whatever was handed in since.
    fn forgotten_statement(&self) -> Option<String> {
        let record = &self.coordinator.record;
        let (coming, _) = (self.roster_coming()?, self.coordinator.fleet.as_ref()?);
        let roster = self.roster_in_force();
        let leaving = roster.hosts().iter().filter(|it| coming.member(&it.name) != Some(*it));
        let mut leaving = leaving.map(|member| &member.name).peekable();
        let is_free = matches!(record.phase, Phase::Settled | Phase::Opened(_)) && leaving.peek().is_some();
        let is_proven =
            |host: &HostName| self.stated.get(host) == Some(&Heard::No) || !record.offers.include(host);
        let revision = coming.revision();
        (is_free && leaving.all(is_proven))
            .then(|| format!("all who leave have, and revision {revision} waits"))
    }

    /// P12: once DECIDED and with a live leader and no more hosts silent than the order lets lapse, OPENED within W + 2 s.
    fn check_completed_in_time(&mut self) {
        let record = &self.coordinator.record;
        let (Phase::Decided(armament), Some(fleet)) = (&record.phase, &self.coordinator.fleet) else {
            self.completing = None;
            return;
        };
        let now = self.clock_of(Seat::Leading).at(self.now);
        let (k, leadership) = (armament.rollout.k, record.leadership);
        let since = match self.completing {
            Some((decided, leader, since)) if (decided, leader) == (k, leadership) => since,
            Some(_) | None => now,
        };
        let (silent, lead) = match armament.rollout.mode {
            FlipMode::Strict => (fleet.roster().hosts().len() - fleet.acknowledged(), Duration::ZERO),
            FlipMode::Fast => (0, Limits::default().fast_lead),
        };
        let limit = fleet.roster().policy().timing.wait() + lead + COMPLETION_SLACK;
        let is_late = now.since(since) > limit && silent <= armament.rollout.max_lapsed as usize;
        self.completing = Some((k, leadership, since));
        if is_late {
            self.violate(format!("P12: rollout {k} was decided and is not opened after {limit:?}"));
        }
    }

    /// P13: in fast mode no release is served beside the next for longer than clocks, fences and starts are apart.
    fn check_skew(&mut self) {
        let mut served = self.machines.iter().filter_map(|machine| machine.guard);
        let first = served.next();
        let is_mixed = self.mode == FlipMode::Fast && served.any(|open| Some(open) != first);
        let since = is_mixed.then(|| self.mixed_since.unwrap_or(self.now));
        self.mixed_since = since;
        let bound = self.skew_ms_max();
        if let Some(since) = since.filter(|since| self.now - since > bound) {
            let skew = self.now - since;
            self.violate(format!("P13: two releases are served for {skew} ms, and may be for {bound} ms"));
        }
    }

    /// "Skew ≤ 2ε + F + start jitter", and what the hosts' clocks may drift apart in the time to the instant, which is
    /// turned into each host's own time when it arms.
    fn skew_ms_max(&self) -> u64 {
        let timing = self.roster_in_force().policy().timing;
        let start_ms = self.machines.iter().map(|machine| machine.start_ms).max().unwrap_or_default();
        let drift = self.machines.iter().map(|machine| machine.clock.drift_ppm.unsigned_abs()).max();
        let drift = drift.unwrap_or_default();
        let on_hosts = 2 * timing.clock_error_ms + timing.fence_ms + start_ms;
        let apart = 2 * drift * self.instant_ahead_ms / (1_000_000 - drift);
        // Each of the two ends is read off a clock of whole milliseconds.
        on_hosts + on_hosts * drift / (1_000_000 - drift) + apart + 2 * CLOCK_TICK_MS
    }

    /// What must hold when a fleet record is written.
    pub(super) fn check_fleet_record(&mut self, next: &FleetRecord) {
        let before = self.coordinator.record.clone();
        if next.epoch < before.epoch || next.last_k < before.last_k || next.leadership < before.leadership {
            self.violate("P6: a counter of the coordinator's fell");
        }
        if next.revision <= before.revision {
            self.violate("a record was written over a newer one");
        }
        if next.roster.digest != before.roster.digest {
            let signed = self.rosters.iter().find(|it| it.digest == next.roster.digest);
            let roster = signed.expect("a roster of this world").roster.clone();
            self.check_parked(&roster);
            let in_force = self.roster_in_force();
            let stays = |it: &&Member| in_force.member(&it.name) == Some(*it);
            let staying = roster.hosts().iter().filter(stays).count();
            let is_exchange = staying < in_force.hosts().len() && staying < roster.hosts().len();
            self.seen.exchanged += u64::from(is_exchange && matches!(before.phase, Phase::Opened(_)));
        }
        let mut untold = next.missed.iter().flat_map(|missed| &missed.hosts);
        if let Some(host) = untold.find(|host| next.offers.include(host)) {
            self.violate(format!("{host} is offered service, and may not know that it was left out"));
        }
        // What was decided goes on also if its coordinator is lost and the operators have hosts leave then.
        if next.coming.is_some() && matches!(next.phase, Phase::Preparing(_) | Phase::Arming(_)) {
            self.check_coming(next);
        }
        if let Some(rollout) = next.phase.rollout() {
            let target = *self.targets.entry(rollout.k).or_insert(rollout.to);
            if target != rollout.to {
                self.violate(format!("P10: rollout {} has two targets", rollout.k));
            }
        }
        self.events += 1;
        match (&before.phase, &next.phase) {
            (Phase::Arming(was), Phase::Arming(is)) if was == is => {}
            (Phase::Arming(was), _) => {
                self.left_arming.insert(was.rollout.k, self.events);
            }
            _ => {}
        }
        if let Phase::Arming(Armament { instant: Some(instant), .. }) = &next.phase {
            self.instant_ahead_ms = instant.0.saturating_sub(self.unix_now().0);
        }
        match (&before.phase, &next.phase) {
            (Phase::Decided(was), Phase::Decided(is)) if was == is => {}
            (Phase::Arming(was), Phase::Decided(is)) if was == is => {
                self.decide(is.rollout.k, Fate::Decided);
                self.check_decided(is, next);
            }
            (_, Phase::Decided(_)) => self.violate("P10: decided from another phase than ARMING"),
            (Phase::Decided(was), Phase::Opened(is)) if was.rollout.k == is.k => {
                self.seen.lapsed += u64::from(!is.lapsed.is_empty());
                self.seen.fast += u64::from(is.mode == FlipMode::Fast);
                if is.mode == FlipMode::Strict {
                    self.check_opened(is.k, &is.lapsed);
                }
            }
            (Phase::Decided(was), _) => {
                self.violate(format!("P10: rollout {} was decided and then left", was.rollout.k));
            }
            (Phase::Preparing(_) | Phase::Arming(_), Phase::Settled | Phase::Opened(_)) => {
                if let Some(rollout) = before.phase.rollout() {
                    self.decide(rollout.k, Fate::Aborted);
                }
            }
            (Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) | Phase::Opened(_), _) => {}
        }
    }

    /// P14: a roster holds only once all whom it parks have closed, durably, and go on so.
    fn check_parked(&mut self, roster: &Roster) {
        let before = self.roster_in_force();
        let is_parked = |machine: &&Machine| {
            before.position(&machine.name).is_some() && roster.parked_host(&machine.name).is_some()
        };
        let (out, open): (Vec<&Machine>, Vec<&Machine>) = self
            .machines
            .iter()
            .filter(is_parked)
            .partition(|machine| matches!(newest(machine).membership, Membership::Excluded(_)));
        self.seen.parked += out.len() as u64;
        let offered: Vec<&Machine> =
            open.into_iter().filter(|it| self.coordinator.record.offers.include(&it.name)).collect();
        self.seen.off += offered.len() as u64;
        // Where that is the mistake, what is looked for is what it leads to.
        let is_planted = self.lies_about_withdrawals();
        let is_unproven = |machine: &&&Machine| !is_planted && !self.stated.contains_key(&machine.name);
        let unproven = offered.iter().find(is_unproven);
        if let Some(name) = unproven.map(|machine| machine.name.clone()) {
            self.violate(format!("P14: the roster parks {name}, which has not closed"));
        }
    }

    /// Nothing is flipped while a host is asked to leave.
    fn check_coming(&mut self, next: &FleetRecord) {
        let coming = next.coming.as_ref().expect("there is one");
        let coming = self.rosters.iter().find(|it| it.digest == coming.roster.digest);
        let coming = &coming.expect("a roster of this world").roster;
        let leaves = self.roster_in_force().hosts().iter().any(|it| coming.member(&it.name) != Some(it));
        if leaves {
            self.violate("P14: a rollout is under way while a host is asked to leave");
        }
    }

    /// What must hold when a host's record is written.
    pub(super) fn check_host_record(&mut self, index: usize, next: &HostRecord) {
        let before = &self.machines[index].record;
        let fell = next.last_k < before.last_k
            || next.leadership < before.leadership
            || next.roster_revision < before.roster_revision
            || epoch_of(next) < epoch_of(before);
        if fell {
            let violation = format!("P6: a counter of {} fell", next.host);
            self.violate(violation);
        }
    }

    /// P8: a permit implies that what runs is the release, as far as the last look at its tree in this boot goes. What is
    /// served already is not started again.
    pub(super) fn check_permit(&mut self, index: usize, epoch: Epoch, release: Digest) {
        let machine = &self.machines[index];
        let is_open = machine.guard == Some((epoch, release));
        if !is_open && !machine.examined[self.position_of(release)] {
            let violation = format!("P8: {} opens a tree that it has not found good", machine.name);
            self.violate(violation);
        }
    }

    /// P7: no message of a host's without its durable record before it.
    pub(super) fn check_from_host(&mut self, index: usize, message: &FromHost) {
        let record = &self.machines[index].record;
        let is_durable = match message {
            FromHost::Armed { k } => promised(record) == Some(*k),
            FromHost::Closed { k, .. } => {
                matches!(&record.mode, Mode::Closed { k: closed, fallback: None, .. } if closed == k)
            }
            FromHost::Disarmed { k } => !matches!(&record.mode, Mode::Armed { k: armed, .. } if armed == k),
            FromHost::Serving { epoch, .. } => {
                record.may_serve().is_some_and(|serving| serving.epoch == *epoch)
            }
            FromHost::Confirmed => record.token.is_some(),
            FromHost::Join(report) => report.standing == record.standing(),
            FromHost::Set { k } => matches!(
                &record.mode,
                Mode::Armed { k: armed, switch: Some(Switch { stage: SwitchStage::Set, .. }), .. } if armed == k
            ),
            FromHost::Renew { k, .. } => matches!(&record.mode, Mode::Armed { k: armed, .. } if armed == k),
            FromHost::Withdrawn { roster, .. } => {
                // Nor is it about to serve: P14.
                let machine = &self.machines[index];
                let may_open = machine.guard_work.iter().any(GuardWork::may_serve);
                record.membership == Membership::Excluded(*roster) && machine.guard.is_none() && !may_open
            }
            FromHost::Fresh { .. }
            | FromHost::CannotAttest { .. }
            | FromHost::Prepared { .. }
            | FromHost::Probed { .. }
            | FromHost::Measured { .. }
            | FromHost::Dark { .. }
            | FromHost::Refused { .. } => true,
        };
        if !is_durable {
            let violation =
                format!("P7: {} said {message:?} before it was durable", self.machines[index].name);
            self.violate(violation);
        }
    }

    /// P7 for the commitment of an attestation.
    pub(super) fn check_attested(&mut self, index: usize, k: RolloutId) {
        if self.machines[index].record.committed.is_none_or(|committed| committed.k != k) {
            self.violate(format!("P7: an attestation for {k} before its secret was durable"));
        }
    }

    /// P7: no message of the coordinator's without its durable record before it.
    pub(super) fn check_to_host(&mut self, seat: Seat, host: &HostName, message: &ToHost) {
        self.check_granted(host, message);
        // One that was deposed speaks of what was durable when it led.
        let record = match (seat, self.coordinator.at(seat)) {
            (Seat::Deposed, Some(fleet)) => fleet.record(),
            (Seat::Leading | Seat::Deposed, _) => &self.coordinator.record,
        };
        let is_offered = record.offers.include(host);
        let is_durable = match message {
            ToHost::Joined { next } => {
                self.coordinator.sessions.get(host).is_some_and(|session| session.next == *next)
            }
            ToHost::Propose { k, .. } | ToHost::Attest { k, .. } | ToHost::Prepare { k, .. } => {
                matches!(&record.phase, Phase::Preparing(rollout) if rollout.k == *k)
            }
            ToHost::Probe { k } => matches!(&record.phase, Phase::Preparing(it) if it.k == *k),
            ToHost::Arm { k, .. } => matches!(&record.phase, Phase::Arming(it) if it.rollout.k == *k),
            // P5: no GRANT from a read later than DECIDED.
            ToHost::Grant { k, .. } => matches!(&record.phase, Phase::Arming(it) if it.rollout.k == *k),
            ToHost::Set { k } => {
                matches!(&record.phase, Phase::Decided(it) if it.rollout.k == *k && it.instant.is_some())
            }
            ToHost::Close { k } => match &record.phase {
                Phase::Decided(it) => it.rollout.k == *k,
                phase @ (Phase::Settled | Phase::Preparing(_) | Phase::Arming(_) | Phase::Opened(_)) => {
                    phase.opening().is_some_and(|opening| opening.k == *k)
                }
            },
            ToHost::Halt { k } => record.halted.is_some_and(|halted| halted >= *k),
            ToHost::Open { epoch, release, .. } => {
                is_offered && record.epoch == *epoch && record.serving == Some(*release)
            }
            ToHost::Admit { epoch, release, .. } => {
                is_offered && record.epoch == *epoch && record.serving == Some(*release)
            }
            ToHost::Disarm { k } => {
                is_offered && record.phase.rollout().is_none_or(|rollout| rollout.k != *k)
            }
            ToHost::Refuse { .. } => true,
        };
        if !is_durable {
            self.violate(format!("P7: the coordinator said {message:?} to {host} before it was durable"));
        }
        let rolled_back =
            self.machines.iter().any(|it| it.name == *host && matches!(it.image, Image::RolledBack(_)));
        if rolled_back && matches!(message, ToHost::Joined { .. }) {
            self.violate(format!("{host} was let in with a disk that was rolled back"));
        }
    }

    /// P5: a grant rests on a read begun after the request: at some moment since, the rollout was in ARMING and its leader
    /// led.
    fn check_granted(&mut self, host: &HostName, message: &ToHost) {
        let ToHost::Grant { k, n } = message else { return };
        let heard = self.machines.iter().find(|machine| machine.name == *host).and_then(|it| it.heard);
        let Some((heard_k, heard_n, heard)) = heard else { return };
        let left = self.left_arming.get(k).copied();
        if (heard_k, heard_n) == (*k, *n) && left.is_some_and(|left| left < heard) {
            self.violate(format!(
                "P5: {host} is granted what it asked for after rollout {k} had left ARMING"
            ));
        }
    }

    /// A proposal is accepted only while every host of the roster is connected and trusted.
    pub(super) fn check_propose(&mut self) {
        let sessions = &self.coordinator.sessions;
        let absent = self.roster_in_force().hosts().iter().any(|member| {
            let duplicate =
                sessions.get(&member.name).is_some_and(|session| session.identity == Identity::Duplicate);
            let session = self.coordinator.fleet.as_ref().is_some_and(|fleet| {
                fleet.hosts().iter().any(|view| view.host == member.name && view.session.is_some())
            });
            duplicate || !session
        });
        if absent {
            self.violate("a rollout was accepted without every host");
        }
    }

    /// P10: one decision for each k.
    fn decide(&mut self, k: RolloutId, fate: Fate) {
        if self.fates.insert(k, fate).is_some_and(|before| before != fate) {
            self.violate(format!("P10: rollout {k} was both decided and aborted"));
        }
    }

    /// P3: DECIDED implies N identical attestations and N ARMED under one roster revision.
    fn check_decided(&mut self, armament: &Armament, record: &FleetRecord) {
        let k = armament.rollout.k;
        let roster = self.roster_in_force();
        if roster.revision() != record.roster.revision {
            self.violate("P3: the roster changed while a rollout was under way");
        }
        let by_name: BTreeMap<_, _> = self.machines.iter().map(|it| (&it.name, newest(it))).collect();
        let unarmed = roster
            .hosts()
            .iter()
            .find(|member| by_name.get(&member.name).is_none_or(|it| promised(it) != Some(k)))
            .map(|member| format!("P3: {} is not armed for rollout {k}, which was decided", member.name));
        let evidence = self.coordinator.documents.get(&armament.evidence).cloned().unwrap_or_default();
        let attestations = self.attestations_in(&evidence);
        let is_complete = attestations.len() == roster.hosts().len()
            && attestations.iter().zip(roster.hosts()).all(|(it, member)| {
                it.host == member.name
                    && it.matches()
                    && it.compared.manifest == armament.rollout.to
                    && it.compared == attestations[0].compared
                    && it.challenge == attestations[0].challenge
                    && matches!(it.purpose, Purpose::Rollout { k: attested, .. } if attested == k)
            });
        if !is_complete {
            self.violate(format!("P3: the evidence of rollout {k} is not N identical attestations"));
        }
        if let Some(unarmed) = unarmed {
            self.violate(unarmed);
        }
    }

    /// P4: OPENED implies that every host is dark, and closed durably but for as many as the order lets lapse.
    fn check_opened(&mut self, k: RolloutId, lapsed: &BTreeSet<HostName>) {
        if lapsed.len() > self.max_lapsed as usize {
            self.violate(format!("P4: rollout {k} was opened over {} hosts", lapsed.len()));
        }
        let roster = self.roster_in_force();
        let open =
            self.machines.iter().filter(|machine| roster.position(&machine.name).is_some()).find(|it| {
                let closed = matches!(&newest(it).mode, Mode::Closed { k: closed, .. } if *closed == k);
                it.guard.is_some() || !(closed || lapsed.contains(&it.name))
            });
        if let Some(machine) = open {
            let violation = format!("P4: rollout {k} was opened before {} was closed", machine.name);
            self.violate(violation);
        }
    }
}

/// What a host has promised. A disk that was rolled back does not undo it: such a host is not let in.
const fn newest(machine: &Machine) -> &HostRecord {
    match &machine.image {
        Image::Newest => &machine.record,
        Image::RolledBack(newest) => &newest.0,
    }
}

/// The rollout that a host is armed or closed for.
const fn promised(record: &HostRecord) -> Option<RolloutId> {
    match &record.mode {
        Mode::Armed { k, .. } | Mode::Closed { k, .. } => Some(*k),
        Mode::Serve(_) => None,
    }
}

/// The epoch that a host serves, or served last.
fn epoch_of(record: &HostRecord) -> Epoch {
    match &record.mode {
        Mode::Serve(serving) | Mode::Armed { serving, .. } => serving.epoch,
        Mode::Closed { next, fallback, .. } => Epoch(fallback.as_ref().unwrap_or(next).epoch.0 - 1),
    }
}
