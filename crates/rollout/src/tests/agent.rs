//! The agents of the simulated world: what they hear, write and do.

use muster_guard::{Armed, FlipTime};
use muster_model::{
    Assurance, Code, Comparable, Digest, Documents, FromHost, JournalHead, Nonce, Refusal, ToHost, Verified,
};

use super::disk::Death;
use super::link::{Link, Origin, Up};
use super::machine::{GuardWork, Pace, Pending, Run, Work};
use super::papers::policy;
use super::random::SplitMix64;
use super::world::{Mistake, World};
use crate::Step;
use crate::host::{Effect, Event, Evidence, HostRecord, Measured, Now};

impl World {
    /// Does one thing that is under way.
    pub(super) fn advance(&mut self, index: usize, pending: Pending) {
        match pending {
            Pending::Down => self.deliver_down(index),
            Pending::Up => {
                let link = self.machines[index].link.as_mut();
                let up = link.and_then(|link| link.up.pop().map(|up| (link.session, link.leadership, up)));
                if let Some((session, leadership, up)) = up {
                    self.deliver_up(index, (session, leadership), up);
                }
            }
            Pending::OldUp(at) => {
                let link = &mut self.machines[index].old_links[at];
                match link.up.pop().filter(|_| link.server_open) {
                    Some(up) => {
                        let stream = (link.session, link.leadership);
                        self.deliver_up(index, stream, up);
                    }
                    None => {
                        let link = self.machines[index].old_links.remove(at);
                        self.stream_left(index, &link);
                    }
                }
            }
            Pending::Work(at, _) => {
                let (work, _) = self.machines[index].work.swap_remove(at);
                let event = self.finish(index, work);
                self.host_event(index, event);
            }
            Pending::Guard => {
                let Some(asked) = self.machines[index].guard_work.pop_front() else { return };
                if let Some(event) = self.ask_guard(index, &asked) {
                    self.host_event(index, event);
                }
                // What the coordinator was told may no longer be so: a new session tells what is served now.
                if matches!(asked, GuardWork::Found) && self.machines[index].link.is_some() {
                    self.hang_up(index);
                    self.host_event(index, Event::Disconnected);
                }
            }
            Pending::Inbox => {
                if let Some(event) = self.machines[index].inbox.pop_front() {
                    self.hear(index, event);
                }
            }
            Pending::Due => self.host_event(index, Event::DeadlineReached),
            Pending::Shown(at) => {
                let envelope = self.machines[index].shown.swap_remove(at);
                self.show(index, envelope);
            }
        }
    }

    /// Hands an event to the agent, unless it is stopped: then it hears it, and all that follows, when it goes on.
    pub(super) fn host_event(&mut self, index: usize, event: Event) {
        let machine = &mut self.machines[index];
        if machine.run == Run::Stopped || !machine.inbox.is_empty() {
            machine.inbox.push_back(event);
        } else {
            self.hear(index, event);
        }
    }

    /// Hands an event to the agent, writes what it says and then does what it says, or dies on the way.
    fn hear(&mut self, index: usize, event: Event) {
        let entropy = self.random.bytes();
        note!(self, "  {} <- {event:?}", self.machines[index].name);
        let machine = &self.machines[index];
        let now = Now { boot: machine.clock.at(self.now), unix: machine.unix(self.unix_now()) };
        let Some(agent) = &mut self.machines[index].agent else { return };
        let step = agent.handle(event, now, entropy);
        let records = step.records().to_vec();
        let effects = match step {
            Step::Act(effects) => effects,
            Step::Write(write) => write.into_effects(muster_model::Durable::assert(0)),
        };
        let writes = records.len() + usize::from(!records.is_empty());
        let mut crash = self.crash_point(writes + effects.len());
        let speaks_first = self.mistake == Some(Mistake::HostSpeaksBeforeWriting);
        if self.mistake == Some(Mistake::DurableBeforeSync) {
            // What was claimed to be durable before is so by now.
            self.sync_host(index);
        }
        if !speaks_first && !self.write_host(index, &records, &mut crash) {
            return;
        }
        for effect in effects {
            if self.host_dies(index, &mut crash) {
                return;
            }
            self.host_effect(index, effect);
        }
        if speaks_first {
            self.write_host(index, &records, &mut None);
        }
    }

    /// Writes and syncs records, unless the host dies on the way.
    fn write_host(&mut self, index: usize, records: &[HostRecord], crash: &mut Option<usize>) -> bool {
        for record in records {
            if self.host_dies(index, crash) {
                return false;
            }
            let head = next_head(self.machines[index].journal, &mut self.random);
            self.machines[index].append(head, record);
        }
        if records.is_empty() || self.mistake == Some(Mistake::DurableBeforeSync) {
            return true;
        }
        if self.host_dies(index, crash) {
            return false;
        }
        self.sync_host(index);
        true
    }

    fn sync_host(&mut self, index: usize) {
        if let Some((head, record)) = self.machines[index].sync() {
            self.check_host_record(index, &record);
            self.machines[index].remember(head, record);
        }
    }

    /// Whether the host dies before what it would do next.
    fn host_dies(&mut self, index: usize, crash: &mut Option<usize>) -> bool {
        if *crash == Some(0) {
            match self.death() {
                Death::Kill => self.crash_agent(index),
                Death::PowerOff => self.reboot(index),
            }
            return true;
        }
        *crash = crash.map(|left| left - 1);
        false
    }

    fn host_effect(&mut self, index: usize, effect: Effect) {
        note!(self, "    {} -> {effect:?}", self.machines[index].name);
        match effect {
            Effect::Send(message) => self.host_says(index, message),
            Effect::SignAndSend(k, attestation) => {
                self.check_attested(index, k);
                self.send_up(index, Up::Attested(k, attestation));
            }
            Effect::SignWithdrawal { withdrawal, at } => {
                let roster = withdrawal.roster_revision;
                self.check_from_host(index, &FromHost::Withdrawn { roster, at });
                self.send_up(index, Up::Withdrawn(withdrawal));
            }
            Effect::Measure { purpose, release } => self.start(index, Work::Measure { purpose, release }),
            Effect::Verify { k, documents } => self.start(index, Work::Verify { k, documents }),
            Effect::Seal { k, release } => self.start(index, Work::Seal { k, release }),
            Effect::CheckSeal { purpose, release } => self.start(index, Work::CheckSeal { purpose, release }),
            Effect::Quiesce { k } => self.ask_later(index, GuardWork::Quiesce { k }),
            Effect::Unquiesce => {}
            Effect::Lease { k, deadline, serving, instant } => {
                let flip = instant
                    .map(|instant| FlipTime { at_boot_ms: instant.at, epsilon_ms: instant.clock_error_ms });
                let armed = Armed { k, epoch: serving, deadline_boot_ms: deadline, flip };
                self.ask_later(index, GuardWork::Lease(armed));
            }
            Effect::Extend { k, deadline } => {
                let from_receipt = self.machines[index].clock.at(self.now).after(policy().timing.lease());
                let is_mistaken = self.mistake == Some(Mistake::LeaseFromReceipt);
                let deadline = if is_mistaken { from_receipt } else { deadline };
                self.ask_later(index, GuardWork::Extend { k, deadline });
            }
            Effect::Lift { k } => self.ask_later(index, GuardWork::Lift { k }),
            Effect::Switch { k, at, epoch, release } => {
                self.ask_later(index, GuardWork::Switch { k, at, epoch, release });
            }
            Effect::Halt => self.ask_later(index, GuardWork::Halt),
            Effect::Close { cause, .. } => self.ask_later(index, GuardWork::Close { cause }),
            Effect::Open { epoch, release, resume } => {
                self.check_permit(index, epoch, release);
                self.ask_later(index, GuardWork::Open { epoch, release, resume });
            }
            Effect::Hang(refusal) => {
                self.machines[index].refusals.push(refusal);
                self.hang_up(index);
            }
        }
    }

    /// What a host says goes up its stream.
    fn host_says(&mut self, index: usize, message: FromHost) {
        self.check_from_host(index, &message);
        let machine = &mut self.machines[index];
        if let FromHost::Dark { nonce: Some(nonce), .. } = &message {
            machine.nonce = Some(*nonce);
        }
        if let FromHost::Renew { .. } = &message {
            machine.asked_at = Some(machine.clock.at(self.now));
        }
        if let FromHost::Refused { refusal, .. } = &message {
            machine.refusals.push(refusal.clone());
        }
        let up = match message {
            FromHost::Join(report) => Up::Join(Box::new(report)),
            message @ (FromHost::Confirmed
            | FromHost::Fresh { .. }
            | FromHost::CannotAttest { .. }
            | FromHost::Prepared { .. }
            | FromHost::Probed { .. }
            | FromHost::Armed { .. }
            | FromHost::Renew { .. }
            | FromHost::Set { .. }
            | FromHost::Closed { .. }
            | FromHost::Disarmed { .. }
            | FromHost::Serving { .. }
            | FromHost::Measured { .. }
            | FromHost::Dark { .. }
            | FromHost::Withdrawn { .. }
            | FromHost::Refused { .. }) => Up::Message(Box::new(message)),
        };
        self.send_up(index, up);
    }

    fn ask_later(&mut self, index: usize, work: GuardWork) {
        self.machines[index].guard_work.push_back(work);
    }

    fn start(&mut self, index: usize, work: Work) {
        let pace = if self.random.chance(self.slow_per_mille) { Pace::Slow } else { Pace::Usual };
        self.machines[index].work.push((work, pace));
    }

    fn send_up(&mut self, index: usize, up: Up) {
        let due = self.now + self.machines[index].route.up.draw(&mut self.random);
        if let Some(link) = &mut self.machines[index].link {
            link.up.push(due, up);
        }
    }

    /// The agent connects, if it can. While a leader that was deposed still runs, it may find that one.
    pub(super) fn connect(&mut self, index: usize) -> bool {
        let machine = &self.machines[index];
        let is_possible = machine.agent.is_some()
            && machine.link.is_none()
            && machine.run == Run::Running
            && machine.inbox.is_empty();
        if !is_possible {
            return false;
        }
        let Some(leadership) = self.reachable_leader() else { return false };
        let session = self.next_session();
        let nonce = Nonce::from_bytes(self.random.bytes());
        let machine = &mut self.machines[index];
        machine.nonce = Some(nonce);
        machine.link = Some(Link::new(session, leadership));
        let journal = machine.journal;
        self.host_event(index, Event::Connected { nonce, journal });
        true
    }

    fn deliver_down(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let Some(link) = &mut machine.link else { return };
        let Some((leadership, message, origin)) = link.down.pop() else {
            if !link.server_open {
                machine.link = None;
                self.host_event(index, Event::Disconnected);
            }
            return;
        };
        match &message {
            ToHost::Admit { epoch, release, .. } | ToHost::Open { epoch, release, .. } => {
                machine.permitted |= origin == Origin::Coordinator;
                machine.offered = Some((*epoch, *release));
            }
            ToHost::Joined { .. }
            | ToHost::Propose { .. }
            | ToHost::Attest { .. }
            | ToHost::Prepare { .. }
            | ToHost::Probe { .. }
            | ToHost::Arm { .. }
            | ToHost::Grant { .. }
            | ToHost::Set { .. }
            | ToHost::Halt { .. }
            | ToHost::Close { .. }
            | ToHost::Disarm { .. }
            | ToHost::Refuse { .. } => {}
        }
        self.host_event(index, Event::Message { leadership, message });
    }

    /// The outcome of finished work, from the tree as it is now.
    pub(super) fn finish(&mut self, index: usize, work: Work) -> Event {
        match work {
            Work::Measure { purpose, release } => {
                let measured = |at| Measured {
                    compared: Comparable {
                        manifest: release,
                        measured: release,
                        files: 3,
                        bytes: 100,
                        uniform: None,
                    },
                    at,
                    elapsed_ms: 5,
                    clock_error_ms: Some(policy().timing.clock_error_ms),
                    assurance: Assurance::Sha256,
                };
                let at = self.unix_now();
                let outcome = self.examine(index, release).map(|()| measured(at));
                Event::Measured { purpose, outcome }
            }
            Work::Verify { k, documents } => Event::Verified { k, outcome: self.verify(index, &documents) },
            Work::Seal { k, release } => Event::Sealed { k, outcome: self.examine(index, release) },
            Work::CheckSeal { purpose, release } => Event::SealChecked {
                purpose,
                outcome: self.examine(index, release).map_err(|mut refusal| {
                    refusal.blockers.iter_mut().for_each(|blocker| blocker.code = Code::SealBroken);
                    refusal
                }),
            },
        }
    }

    /// Looks at a release's tree. P8 rests on it.
    fn examine(&mut self, index: usize, release: Digest) -> Result<(), Refusal> {
        if self.mistake == Some(Mistake::TreesNotLookedAt) {
            return Ok(());
        }
        let at = self.position_of(release);
        let outcome = self.machines[index].examine(at);
        self.machines[index].examined[at] = outcome.is_ok();
        outcome
    }

    /// The host sees a roster that operators have signed.
    pub(super) fn show(&mut self, index: usize, envelope: Digest) {
        let signed = self.rosters.iter().find(|it| it.envelope == envelope).expect("a roster of this world");
        let roster = Box::new(Verified::clone(&signed.roster));
        let (record, in_force) = (&self.machines[index].record, self.roster_in_force());
        let is_back = roster.member(&record.host).is_none() && in_force.member(&record.host).is_some();
        let is_told = is_back && record.membership.is_member() && roster.revision() < in_force.revision();
        self.seen.told += u64::from(is_told);
        self.host_event(index, Event::RosterShown(roster));
    }

    fn verify(&self, index: usize, documents: &Documents) -> Result<Box<Evidence>, Refusal> {
        let unknown = || Refusal::of(Code::BlobMissing, "the coordinator has no such document");
        let order = self.orders.get(&documents.order).ok_or_else(unknown)?;
        let at = self.release_papers.iter().position(|papers| *papers == documents.release);
        let roster = self.rosters.iter().find(|it| it.envelope == documents.roster).ok_or_else(unknown)?;
        let evidence = self.coordinator.documents.get(&documents.evidence).ok_or_else(unknown)?;
        Ok(Box::new(Evidence {
            order: order.clone(),
            release: self.releases[at.ok_or_else(unknown)?].clone(),
            roster: Verified::clone(&roster.roster),
            roster_digest: roster.digest,
            attestations: self.attestations_in(evidence).into_iter().cloned().collect(),
            withdrawals: self.withdrawals_in(evidence).map_err(|line| {
                Refusal::of(Code::NotWithdrawn, format!("{line} is not signed by its host's key"))
            })?,
            now: self.machines[index].unix(self.unix_now()),
        }))
    }
}

pub(super) fn next_head(head: JournalHead, random: &mut SplitMix64) -> JournalHead {
    JournalHead { seq: head.seq + 1, hash: Digest::from_bytes(random.bytes()) }
}
