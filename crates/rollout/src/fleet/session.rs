//! Steps 2 and 3: sessions, and what a host is told when it appears.

use muster_model::{
    Blocker, BootTime, Code, Epoch, FlipMode, FromHost, HostMode, HostName, JoinReport, Membership, Nonce,
    Refusal, RolloutId, ServingReport, SessionId, ToHost, Token,
};

use super::record::{Identity, Phase, PreviousToken, RECORD_FORMAT, Record, SessionRecord};
use super::rollout::Progress;
use super::{Effect, Fleet, Host, Known, Out, PROTOCOL_MIN, Session};

impl Fleet {
    /// Step 2. "Refused: a host not in the roster; a head older than the coordinator remembers; a spent token."
    pub(super) fn join(
        &mut self,
        host: &HostName,
        session: SessionId,
        report: JoinReport,
        next: Token,
        now: BootTime,
        out: &mut Out,
    ) {
        if let Some(index) = self.parked_position(host) {
            return self.join_parked(index, session, report, next, now, out);
        }
        let Some(index) = self.roster.position(host) else {
            let (revision, fleet) = (self.roster.revision(), &self.record.fleet);
            let detail = match self.roster.retired_host(host) {
                Some(_) => format!("revision {revision} of the roster of {fleet} has it retired"),
                None => format!("it is not in revision {revision} of the roster of {fleet}"),
            };
            let refusal = Refusal::because(Blocker::host(Code::HostNotInRoster, host, detail));
            out.refuse_session(host, session, refusal);
            return;
        };
        if let Err(blocker) = self.admissible(&self.hosts[index], session, &report) {
            // Whoever shows a token was in a session of this fleet: it is that machine, or an image of it, and it is on.
            if blocker.code != Code::StaleSession && report.token.is_some() {
                self.is_not_off(host, out);
            }
            self.hosts[index].turned_away(session, blocker, out);
            return;
        }
        self.is_not_off(host, out);
        // "A join with the current token simply ends the old session (an ordinary reboot outruns keepalive)."
        if self.hosts[index].replaces_session(out) {
            self.session_ended(index, now, out);
        }
        let standing = report.standing.clone();
        self.hosts[index].begin_session(session, report, next, now, out);
        self.look_for_missed(index, &standing, out);
        self.send(index, ToHost::Joined { next }, out);
        self.reconcile_joined(index, now, out);
    }

    /// Ends the session of a host whose stream is gone.
    pub(super) fn leave(&mut self, host: &HostName, session: SessionId, now: BootTime, out: &mut Out) {
        if let Some(index) = self.current(host, session) {
            self.hosts[index].session = None;
            self.session_ended(index, now, out);
        } else {
            self.parked_left(host, session, now);
        }
    }

    /// Takes note of a host's message.
    pub(super) fn message(&mut self, index: usize, message: FromHost, now: BootTime, out: &mut Out) {
        match message {
            FromHost::Join(_) => {
                let refusal = Refusal::of(Code::WrongState, "a session begins once");
                self.refuse_current(index, refusal, now, out);
            }
            FromHost::Confirmed => self.hosts[index].confirmed(out),
            FromHost::Fresh { k, nonce } => self.fresh(index, k, nonce, now, out),
            FromHost::CannotAttest { k, refusal } => self.cannot_attest(index, k, refusal, now, out),
            FromHost::Prepared { k } => self.prepared(index, k, now, out),
            FromHost::Probed { k } => self.probed(index, k, now, out),
            FromHost::Armed { k } => self.armed(index, k, now, out),
            FromHost::Renew { k, n } => self.renew(index, k, n, out),
            // The guard will flip: there is nothing to do before it has.
            FromHost::Set { .. } => {}
            FromHost::Closed { k, secret, at } => self.closed(index, k, secret, at, now, out),
            FromHost::Disarmed { k } => self.disarmed(index, k, out),
            FromHost::Serving { epoch, at } => self.serving(index, epoch, at, now, out),
            FromHost::Measured { epoch } => self.measured(index, epoch, out),
            FromHost::Dark { refusal, nonce, returned } => {
                if returned {
                    self.has_returned(index, out);
                }
                self.dark(index, refusal, nonce, now, out);
            }
            FromHost::Withdrawn { roster, at: _ } => self.withdrawn(index, roster, out),
            FromHost::Refused { k, refusal } => self.refused(index, k, refusal, now, out),
        }
    }

    /// Forgets what is remembered of a host's identity: an operator has settled that it is one machine.
    ///
    /// The host may then join without a token and with a journal that was lost.
    pub fn readmit(&mut self, host: &HostName) -> Result<super::Step, Refusal> {
        let known = match (self.roster.position(host), self.parked_position(host)) {
            (Some(index), _) => &mut self.hosts[index],
            (None, Some(index)) => &mut self.parked[index],
            (None, None) => {
                let blocker = Blocker::host(Code::HostNotInRoster, host, "it is not in the roster");
                return Err(Refusal::because(blocker));
            }
        };
        let mut out = Out::default();
        let host = known;
        host.trouble.clear();
        if let Some(identity) = &mut host.identity {
            identity.identity = Identity::Single;
            identity.readmitted = true;
            out.sessions.push(Record::Session(identity.clone()));
        }
        Ok(self.step(out))
    }

    /// "At join, and whenever a phase ends": tells a host what brings it in line with the fleet, if anything does.
    ///
    /// Step 3 (ADMIT), step 9 (DISARM), step 10 (CLOSE) and step 12 (OPEN) for hosts that missed theirs.
    pub(super) fn reconcile(&mut self, index: usize, out: &mut Out) {
        let Some(known) = self.hosts[index].known.clone() else { return };
        let is_halted = self.tell_halt(index, out);
        // It is not to serve any more, or does not know yet that it is to serve again: it asks once it does.
        let host = &self.hosts[index].name;
        let is_told = !self.is_leaving(host) && self.record.missed_by(host).is_none();
        let takes_offers = is_told && !matches!(known.membership, Membership::Excluded(_));
        if !takes_offers && !matches!(self.record.phase, Phase::Arming(_) | Phase::Decided(_)) {
            return;
        }
        match (&self.record.phase, known.mode) {
            (Phase::Decided(armament), HostMode::Armed(k, _) | HostMode::Closed(k))
                if k == armament.rollout.k =>
            {
                let message = match armament.rollout.mode {
                    FlipMode::Strict => ToHost::Close { k },
                    FlipMode::Fast => ToHost::Set { k },
                };
                self.send(index, message, out);
            }
            // Step 14: it has flipped at the instant; OPENED follows when all have, or must have fenced.
            (Phase::Decided(armament), HostMode::Serve(epoch))
                if armament.rollout.mode == FlipMode::Fast && epoch == self.epoch_to_come() => {}
            (Phase::Decided(_), HostMode::Serve(_) | HostMode::Armed(..) | HostMode::Closed(_)) => {
                let detail = "it does not remember the rollout that it armed for";
                self.trouble(index, Code::RolledBackDisk, detail);
            }
            // A session that changes while hosts arm gives the rollout up before this is reached.
            (Phase::Arming(_), _) => {}
            (Phase::Settled | Phase::Preparing(_) | Phase::Opened(_), HostMode::Armed(k, epoch)) => {
                self.release_armed(index, k, epoch, out);
            }
            (Phase::Settled | Phase::Preparing(_) | Phase::Opened(_), HostMode::Closed(k)) => {
                if !is_halted {
                    self.open_closed(index, k, out);
                }
            }
            (Phase::Settled | Phase::Preparing(_) | Phase::Opened(_), HostMode::Serve(epoch)) => {
                // Also while the fleet is halted a host that is new learns the epoch, without opening.
                if !is_halted || known.is_new() {
                    self.admit(index, epoch, &known, out);
                }
            }
        }
    }

    /// The same for a host that has just joined: it may have flipped at an instant while nobody heard it.
    fn reconcile_joined(&mut self, index: usize, now: BootTime, out: &mut Out) {
        let serving = self.hosts[index].serving();
        if matches!(self.progress, Progress::Switching(_)) && serving == Some(self.epoch_to_come()) {
            self.had_switched(index, now, out);
        }
        self.reconcile(index, out);
    }

    /// A host that is still armed for a rollout that is over.
    fn release_armed(&mut self, index: usize, k: RolloutId, epoch: Epoch, out: &mut Out) {
        if self.record.phase.opening().is_some_and(|opening| opening.k == k) {
            // It was silent until the others had opened. It proves that it is closed before it is offered anything.
            self.send(index, ToHost::Close { k }, out);
        } else if epoch == self.record.epoch {
            // Step 9: the rollout was given up.
            self.offer(index, ToHost::Disarm { k }, out);
        } else {
            let detail = format!(
                "it is armed for rollout {k} and serves epoch {epoch} until its lease ends; the fleet is at {}",
                self.record.epoch
            );
            self.trouble(index, Code::StaleRollout, detail);
        }
    }

    /// Tells a host something that lets it serve without a lease; the offer is recorded before it is sent.
    pub(super) fn offer(&mut self, index: usize, message: ToHost, out: &mut Out) {
        if self.record.offers.add(&self.hosts[index].name) {
            out.record_changed = true;
        }
        self.send(index, message, out);
    }

    /// Takes note of what is wrong with a host.
    pub(super) fn trouble(&mut self, index: usize, code: Code, detail: impl Into<String>) {
        let host = &mut self.hosts[index];
        let blocker = Blocker::host(code, &host.name, detail);
        host.trouble.retain(|known| known.code != code);
        host.trouble.push(blocker);
    }

    /// Step 3. "In SETTLED or PREPARING the coordinator offers ADMIT{e, nonce}."
    fn admit(&mut self, index: usize, epoch: Epoch, known: &Known, out: &mut Out) {
        let Some(release) = self.record.serving else { return };
        let is_current = epoch == self.record.epoch;
        // It serves that on a token, and stops once it hears of what the fleet serves.
        let must_hear = known.glass.iter().any(|used| !used.settled);
        if !is_current && !known.is_new() && !must_hear {
            let detail = format!("it is settled on epoch {epoch}, the fleet on {}", self.record.epoch);
            self.trouble(index, Code::StaleEpoch, detail);
            return;
        }
        if is_current && self.record.phase.opening().is_some() && known.membership.is_member() {
            // OPEN again: it is acknowledged again, without a second effect.
            if self.hosts[index].measured != Some(epoch) {
                self.open(index, known.last_k, out);
            }
            return;
        }
        // OPENED is durable, so every host has closed: one without a history may be admitted as in SETTLED, and has to
        // be, or the fleet could never settle.
        if is_current && known.serving == Some(epoch) {
            return;
        }
        // The nonce stays: an admission that fails, or that a rollout overtakes, is offered again when there is reason to.
        if let Some(nonce) = self.hosts[index].session.as_ref().map(|session| session.nonce) {
            let epoch = self.record.epoch;
            self.offer(index, ToHost::Admit { epoch, release, nonce }, out);
        }
    }

    pub(super) fn admissible(
        &self,
        host: &Host,
        session: SessionId,
        report: &JoinReport,
    ) -> Result<(), Blocker> {
        let refuse = |code, detail: String| Err(Blocker::host(code, &host.name, detail));
        // What was sent over a stream that the host has left can still arrive. It is late; it is no second machine.
        if host.session.as_ref().is_some_and(|current| session < current.id) {
            return refuse(Code::StaleSession, "a newer session has begun".to_owned());
        }
        if report.protocol < PROTOCOL_MIN {
            let detail = format!("its agent {} speaks protocol {}", report.agent_version, report.protocol);
            return refuse(Code::AgentTooOld, detail);
        }
        let standing = &report.standing;
        // "A leader that is told of τ, k or e above its own stops."
        let (leadership, ours) = (standing.leadership, self.record.leadership);
        let ahead = match (&self.record.phase, standing.mode) {
            (Phase::Decided(armament), HostMode::Serve(epoch)) if armament.rollout.mode == FlipMode::Fast => {
                epoch > self.epoch_to_come()
            }
            // A settled fleet has left no host closed for a rollout that it does not remember as completed. Of one that was
            // offered nothing since it was put into the roster that says nothing: it may have been away before.
            (Phase::Settled, HostMode::Closed(k)) => {
                self.record.offers.include(&host.name)
                    && self.record.completed.as_ref().is_none_or(|completed| k > completed.k)
            }
            (_, HostMode::Serve(epoch) | HostMode::Armed(_, epoch)) => epoch > self.record.epoch,
            (_, HostMode::Closed(_)) => false,
        };
        if leadership > ours || standing.last_k > self.record.last_k || ahead {
            let detail = format!(
                "the host remembers term {} and rollout {}; this coordinator is at term {} and rollout {}",
                leadership.term, standing.last_k, ours.term, self.record.last_k
            );
            return refuse(Code::RolledBackCoordinator, detail);
        }
        let Some(identity) = &host.identity else { return Ok(()) };
        if identity.readmitted {
            return Ok(());
        }
        if identity.identity == Identity::Duplicate || !identity.accepts(report.token) {
            let detail =
                "it joined with a token that was used before: two machines may have the same identity";
            return refuse(Code::DuplicateHost, detail.to_owned());
        }
        if report.journal.seq < identity.journal.seq
            || (report.journal.seq == identity.journal.seq && report.journal.hash != identity.journal.hash)
        {
            let detail = format!(
                "its journal stands at {}, and stood at {} when it joined last",
                report.journal.seq, identity.journal.seq
            );
            return refuse(Code::RolledBackDisk, detail);
        }
        if standing.history_lost {
            return refuse(Code::HistoryLost, "its journal was damaged and taken from its anchor".to_owned());
        }
        Ok(())
    }

    fn session_ended(&mut self, index: usize, now: BootTime, out: &mut Out) {
        self.hosts[index].since = Some(now);
        self.hosts[index].measured = None;
        self.lost(index, now, out);
    }

    fn refuse_current(&mut self, index: usize, refusal: Refusal, now: BootTime, out: &mut Out) {
        let host = &mut self.hosts[index];
        if let Some(session) = host.session.take() {
            out.refuse_session(&host.name.clone(), session.id, refusal);
            self.session_ended(index, now, out);
        }
    }

    /// The host has seen the roster that has it serve again, perhaps before it could say that it had closed for the one before. It has
    /// left behind what it was armed or closed for.
    fn has_returned(&mut self, index: usize, out: &mut Out) {
        let epoch = self.record.epoch;
        let host = &mut self.hosts[index];
        host.has_membership(Membership::Returned);
        host.set_mode(HostMode::Serve(epoch));
        let name = host.name.clone();
        self.has_caught_up(&name, out);
    }

    /// A host stopped serving by itself, or could not begin to.
    fn dark(&mut self, index: usize, refusal: Refusal, nonce: Option<Nonce>, now: BootTime, out: &mut Out) {
        let halted = self.record.halted;
        let host = &mut self.hosts[index];
        host.serves(None);
        if refusal.code() == Some(Code::Halted) {
            host.was_halted(halted);
        }
        host.trouble =
            refusal.blockers.iter().map(|blocker| crate::gate::at_host(blocker, &host.name)).collect();
        if matches!(self.progress, Progress::Probing(_) | Progress::Arming(_)) {
            // The sooner the rollout is given up, the sooner the host is admitted again.
            let blockers = self.hosts[index].trouble.clone();
            self.abort_with(blockers, out);
        }
        self.will_not_switch(index, now, out);
        let host = &mut self.hosts[index];
        let may_ask = nonce.is_some();
        if let (Some(session), Some(nonce)) = (&mut host.session, nonce) {
            session.nonce = nonce;
        }
        if may_ask && self.catches_up(index) {
            // It fenced itself while the others opened over it. It is told to close and to open now, and how that ends
            // is what there is to tell.
            self.hosts[index].trouble.clear();
        } else {
            self.trouble_while_opening(index, out);
        }
        if may_ask {
            self.reconcile(index, out);
        }
    }

    /// Whether the host is still armed for the rollout that the others have opened.
    fn catches_up(&self, index: usize) -> bool {
        let armed = match self.hosts[index].mode() {
            Some(HostMode::Armed(k, _)) => Some(k),
            Some(HostMode::Serve(_) | HostMode::Closed(_)) | None => None,
        };
        armed.is_some() && armed == self.record.phase.opening().map(|opening| opening.k)
    }
}

impl Known {
    /// A host that never served is new in the roster, or a machine that was made anew and readmitted. One that was left out and
    /// taken back learns what the fleet serves as if it were.
    fn is_new(&self) -> bool {
        let has_no_history = self.mode == HostMode::Serve(Epoch(0)) && self.last_k == RolloutId(0);
        has_no_history || self.membership == Membership::Returned
    }
}

impl Host {
    /// A session that is refused, with what that says of the host.
    pub(super) fn turned_away(&mut self, session: SessionId, blocker: Blocker, out: &mut Out) {
        let code = blocker.code;
        if code == Code::DuplicateHost {
            self.quarantine(out);
        }
        if code == Code::RolledBackCoordinator {
            self.ahead = Some(blocker.clone());
        }
        if code != Code::StaleSession {
            self.trouble.retain(|known| known.code != code);
            self.trouble.push(blocker.clone());
        }
        out.refuse_session(&self.name, session, Refusal::because(blocker));
    }

    /// Ends the session that a new one takes the place of, if there is one.
    pub(super) fn replaces_session(&mut self, out: &mut Out) -> bool {
        let Some(old) = self.session.take() else { return false };
        let blocker = Blocker::host(Code::StaleSession, &self.name, "a newer session has begun");
        out.refuse_session(&self.name, old.id, Refusal::because(blocker));
        true
    }

    /// The session that begins, and what is known with it.
    pub(super) fn begin_session(
        &mut self,
        session: SessionId,
        report: JoinReport,
        next: Token,
        now: BootTime,
        out: &mut Out,
    ) {
        let record = SessionRecord {
            format: RECORD_FORMAT,
            host: self.name.clone(),
            next,
            previous: PreviousToken::Valid(report.token),
            journal: report.journal,
            boot_id: report.boot_id.clone(),
            identity: Identity::Single,
            readmitted: false,
        };
        out.sessions.push(Record::Session(record.clone()));
        let epoch = match report.serving {
            ServingReport::Dark => None,
            ServingReport::Open(epoch) => Some(epoch),
        };
        self.identity = Some(record);
        self.session = Some(Session { id: session, boot_id: report.boot_id, nonce: report.nonce });
        self.since = Some(now);
        self.trouble.clear();
        self.ahead = None;
        self.leased_until = None;
        self.known = Some(Known {
            mode: report.standing.mode,
            last_k: report.standing.last_k,
            serving: epoch,
            halted: report.standing.halted,
            agent_version: report.agent_version,
            protocol: report.protocol,
            membership: report.standing.membership,
            glass: report.standing.glass,
        });
        self.serves(epoch);
    }

    pub(super) fn confirmed(&mut self, out: &mut Out) {
        if let Some(identity) = &mut self.identity
            && identity.previous != PreviousToken::Spent
        {
            identity.previous = PreviousToken::Spent;
            out.sessions.push(Record::Session(identity.clone()));
        }
    }

    fn quarantine(&mut self, out: &mut Out) {
        if let Some(identity) = &mut self.identity
            && identity.identity == Identity::Single
        {
            identity.identity = Identity::Duplicate;
            out.sessions.push(Record::Session(identity.clone()));
        }
    }
}

impl Out {
    pub(super) fn refuse_session(&mut self, host: &HostName, session: SessionId, refusal: Refusal) {
        self.effects.push(Effect::EndSession { host: host.clone(), session, refusal });
    }
}
