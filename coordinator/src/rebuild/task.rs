//! The task of one fleet that is not led yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{
    Blocker, Code, FleetName, HostName, HostPlace, JoinReport, Leadership, Refusal, SessionId, Term, ToHost,
    Token,
};
use muster_proto::convert::to_agent;
use muster_proto::v1;
use muster_proto::v1::coordinator_frame::Body;
use muster_rollout::fleet::{
    FleetRecord, Identity, Inheritance, PreviousToken, RECORD_FORMAT, SessionRecord, WithdrawalRecord,
    roster_ref,
};
use muster_rollout::rebuild::{Before, Mandated, Testimony, Verdict, judge};
use muster_store::StoreError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::gather::{Gathered, Sources};
use super::{INBOX_INPUTS, Input, RebuildHandle, Signed, Standing, Survey, Surveyed, held};
use crate::coordinator::Shared;
use crate::fleet::{Outbox, stamp};
use crate::ledger::{Entry, MandateEntry};

/// How soon hosts are asked again whose word did not fit yet.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How long one host may take to send the roster that it claims to keep.
const ROSTER_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of the fleet from the coordinator's own disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beginning {
    /// What the life before this one knew.
    pub(crate) former: Option<Box<FleetRecord>>,
    /// Its sessions.
    pub(crate) sessions: BTreeMap<HostName, SessionRecord>,
    /// The words of hosts that they have closed.
    pub(crate) withdrawals: Vec<WithdrawalRecord>,
    /// A mandate that was begun with, and the number of the leadership then.
    pub(crate) mandated: Option<(Signed, Term)>,
}

struct Rebuilder {
    shared: Arc<Shared>,
    handle: Arc<RebuildHandle>,
    fleet: FleetName,
    beginning: Beginning,
    leadership: Leadership,
    mandate: Option<Signed>,
    hosts: BTreeMap<HostName, Host>,
    blockers: Vec<Blocker>,
    stage: Stage,
    /// The rosters before the mandate's, and the claims by which they were looked for.
    before: Option<(held::Claims, held::Rosters)>,
    /// Those by which they are being looked for.
    reading: Option<held::Claims>,
    ask_again: Option<Instant>,
    post: mpsc::Sender<Input>,
}

/// A host that has come.
struct Host {
    outbox: Option<Outbox>,
    session: SessionRecord,
    /// The newest word of it, under whichever leadership.
    testimony: Option<Testimony>,
    /// Why it was refused.
    trouble: Option<Blocker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Hearing,
    Gathering,
}

/// Whether the task has come to its end.
enum Then {
    GoOn,
    /// Others need its place.
    End,
    Lead(Box<(FleetRecord, Inheritance)>),
}

/// Starts the task of a fleet.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    fleet: FleetName,
    beginning: Beginning,
) -> (Arc<RebuildHandle>, impl Future<Output = Result<(), StoreError>> + Send + use<>) {
    let (post, inbox) = mpsc::channel(INBOX_INPUTS);
    let is_known = beginning.former.is_some() || beginning.mandated.is_some();
    let standing = if is_known { Standing::Known } else { Standing::Claimed };
    let handle = Arc::new(RebuildHandle::new(post.clone(), standing));
    let (mandate, term) = match &beginning.mandated {
        Some((mandate, term)) => (Some(mandate.clone()), *term),
        None => (None, Term(0)),
    };
    let rebuilder = Rebuilder {
        leadership: Leadership { incarnation: shared.incarnation(), term },
        shared: Arc::clone(shared),
        handle: Arc::clone(&handle),
        fleet,
        beginning,
        mandate,
        hosts: BTreeMap::new(),
        blockers: Vec::new(),
        stage: Stage::Hearing,
        before: None,
        reading: None,
        ask_again: None,
        post,
    };
    (handle, rebuilder.run(inbox))
}

impl Rebuilder {
    async fn run(mut self, mut inbox: mpsc::Receiver<Input>) -> Result<(), StoreError> {
        loop {
            let again = async {
                match self.ask_again {
                    Some(again) => tokio::time::sleep_until(again).await,
                    None => std::future::pending().await,
                }
            };
            let input = tokio::select! {
                biased;
                () = again => {
                    self.ask_again = None;
                    self.recall_all();
                    continue;
                }
                input = inbox.recv() => input.expect("the task itself holds a sender of its inbox"),
            };
            match self.take(input).await? {
                Then::GoOn => {}
                Then::End => return Ok(()),
                Then::Lead(taken_over) => {
                    let (record, inheritance) = *taken_over;
                    self.shared.lead_rebuilt(record, inheritance);
                    self.send_all_home("the coordinator was rebuilt, and leads the fleet");
                    return Ok(());
                }
            }
        }
    }

    async fn take(&mut self, input: Input) -> Result<Then, StoreError> {
        match input {
            Input::Joining { host, report, outbox, next } => self.joining(host, &report, outbox, next),
            Input::Left { host, session } => {
                if let Some(known) = self.at(&host, session) {
                    known.outbox = None;
                }
                self.handle.is_deserted_now(self.hosts.values().all(|host| host.outbox.is_none()));
            }
            Input::End => return Ok(Then::End),
            Input::Confirmed { host, session } => {
                if let Some(known) = self.at(&host, session) {
                    known.session.previous = PreviousToken::Spent;
                }
            }
            Input::Told { host, session, testimony } => {
                if let Some(known) = self.at(&host, session) {
                    known.testimony = Some(*testimony);
                    self.conclude();
                }
            }
            Input::Refused { host, session, refusal } => {
                if let Some(known) = self.at(&host, session) {
                    known.trouble = refusal.blockers.into_iter().next();
                }
            }
            Input::Begin { mandate, reply } => {
                self.begin(*mandate).await?;
                // Whoever asked may be gone.
                let _ = reply.send(Ok(()));
            }
            Input::Survey(reply) => {
                let survey = self.survey().await;
                let _ = reply.send(survey);
            }
            Input::Rosters { claims, found } => {
                self.reading = None;
                match found {
                    Ok(found) => {
                        self.before = Some((claims, found));
                        self.conclude();
                    }
                    Err(blocker) => {
                        self.blockers = vec![blocker];
                        self.ask_again = Some(Instant::now() + ASK_AGAIN);
                    }
                }
            }
            // What was found for an earlier mandate was judged by that one.
            Input::Gathered { term, .. } if term != self.leadership.term => {}
            Input::Gathered { found, .. } => return self.gathered(*found).await,
        }
        Ok(Then::GoOn)
    }

    /// Step 2, read-only: a host is asked what it has promised, and obeys this coordinator if there is a mandate.
    fn joining(&mut self, host: HostName, report: &JoinReport, outbox: Outbox, next: Token) {
        if !self.hosts.contains_key(&host) && self.hosts.len() >= muster_model::Roster::HOSTS_MAX {
            return;
        }
        let refusal = self.admissible(&host, report).err();
        let session = SessionRecord {
            format: RECORD_FORMAT,
            host: host.clone(),
            next,
            previous: PreviousToken::Valid(report.token),
            journal: report.journal,
            boot_id: report.boot_id.clone(),
            identity: Identity::Single,
            readmitted: false,
        };
        let body = match (&refusal, &self.mandate) {
            (None, Some(mandate)) => {
                let envelope = mandate.envelope.clone().into_bytes();
                self.send(&outbox, Leadership::default(), Body::Mandate(v1::Mandate { envelope }));
                // Whom the roster leaves out closes. Others see it once the fleet is led, and it holds: it may have to wait for a rollout
                // that goes forward, under which they take part, also who has closed for a roster that this one takes back.
                if mandate.roster.place(&host) != Some(HostPlace::Serving) {
                    let roster = mandate.roster_envelope.as_bytes().to_vec();
                    self.send(&outbox, Leadership::default(), Body::RosterShown(v1::RosterShown { roster }));
                }
                to_agent(ToHost::Joined { next })
            }
            (Some(blocker), _) => to_agent(ToHost::Refuse { refusal: Refusal::because(blocker.clone()) }),
            (None, None) => to_agent(ToHost::Refuse { refusal: not_yet(&self.fleet) }),
        };
        // Also a refusal is said in the name of this life, which is later than what the host obeys.
        self.send(&outbox, self.leadership, body);
        self.send(&outbox, Leadership::default(), Body::Recall(v1::Recall {}));
        let before = self.hosts.remove(&host).and_then(|known| known.testimony);
        let known = Host { outbox: Some(outbox), session, testimony: before, trouble: refusal };
        self.hosts.insert(host, known);
        self.handle.is_deserted_now(false);
    }

    fn admissible(&self, host: &HostName, report: &JoinReport) -> Result<(), Blocker> {
        let refuse = |code, detail: String| Err(Blocker::host(code, host, detail));
        // Whoever served before is heard as well.
        let served = self.before.as_ref().is_some_and(|(_, rosters)| rosters.list(host));
        if let Some(mandate) = &self.mandate
            && !matches!(mandate.roster.place(host), Some(HostPlace::Serving | HostPlace::Parked))
            && !served
        {
            let detail = format!("it is not in revision {} of the roster", mandate.roster.revision());
            return refuse(Code::HostNotInRoster, detail);
        }
        let obeyed = report.standing.leadership;
        if obeyed.incarnation > self.leadership.incarnation
            || (obeyed.incarnation == self.leadership.incarnation && obeyed.term > self.leadership.term)
        {
            let detail = format!(
                "it obeys the incarnation {}, and this coordinator is {}",
                obeyed.incarnation, self.leadership.incarnation
            );
            return refuse(Code::RolledBackCoordinator, detail);
        }
        let before = self.beginning.sessions.get(host);
        if let Some(before) = before.filter(|before| report.journal.seq < before.journal.seq) {
            let detail = format!(
                "its journal stands at {}, and stood at {} before",
                report.journal.seq, before.journal.seq
            );
            return refuse(Code::RolledBackDisk, detail);
        }
        Ok(())
    }

    /// The mandate is durable before any host hears of it. Hosts that were refused come back by themselves.
    async fn begin(&mut self, mandate: Signed) -> Result<(), StoreError> {
        let term = self.leadership.term.next();
        let entry = MandateEntry {
            fleet: self.fleet.clone(),
            envelope: mandate.envelope.clone(),
            roster: mandate.roster_envelope,
            term,
        };
        self.shared.ledger.run(move |ledger| ledger.append(vec![Entry::Mandate(Box::new(entry))])).await?;
        tracing::warn!(
            fleet = %self.fleet, incarnation = %self.leadership.incarnation, %term, reason = mandate.mandate.reason,
            "the operators have mandated this coordinator"
        );
        self.handle.is_known_now();
        self.leadership.term = term;
        self.mandate = Some(mandate);
        self.stage = Stage::Hearing;
        self.blockers.clear();
        self.send_all_home("the operators have mandated this coordinator");
        Ok(())
    }

    /// "Read-only until all N have joined": once they have, what they told comes to one state of the fleet, or to reasons.
    fn conclude(&mut self) {
        let Some(mandate) = &self.mandate else { return };
        if self.stage == Stage::Gathering {
            return;
        }
        if let Some(blocker) = self.newer_roster(mandate) {
            self.ask_again = Some(Instant::now() + ASK_AGAIN);
            self.blockers = vec![blocker];
            return;
        }
        let told = self.told();
        let claims = held::claims(&told);
        if self.before.as_ref().is_none_or(|(known, _)| *known != claims) {
            return self.look_for(claims);
        }
        match self.judge(mandate, &told) {
            Ok(verdict) => {
                tracing::info!(fleet = %self.fleet, ?verdict, "all hosts were heard");
                self.stage = Stage::Gathering;
                let sources = self.sources(told);
                let (post, term) = (self.post.clone(), self.leadership.term);
                tokio::spawn(async move {
                    let found = Box::new(sources.gather(verdict).await);
                    // The coordinator is ending if nobody listens.
                    let _ = post.send(Input::Gathered { term, found }).await;
                });
            }
            Err(blockers) => {
                if blockers.iter().any(|blocker| blocker.code != Code::HostMissing) {
                    self.ask_again = Some(Instant::now() + ASK_AGAIN);
                }
                self.blockers = blockers;
            }
        }
    }

    /// Has the rosters before the mandate's be read from those who keep them.
    fn look_for(&mut self, claims: held::Claims) {
        if self.reading.is_some() {
            return;
        }
        self.reading = Some(claims.clone());
        let former = self.beginning.former.as_ref();
        let former = former.map(|former| (former.roster.revision, former.roster_envelope));
        let (sources, post) = (self.sources(self.told()), self.post.clone());
        tokio::spawn(async move {
            let found = sources.rosters(claims.clone(), former).await;
            // The coordinator is ending if nobody listens.
            let _ = post.send(Input::Rosters { claims, found }).await;
        });
    }

    fn judge(&self, mandate: &Signed, told: &BTreeMap<HostName, Testimony>) -> Result<Verdict, Vec<Blocker>> {
        let judged = |before: Before<'_>| judge(&mandate.roster, &mandate.mandate, before, told);
        match &self.before {
            Some((_, rosters)) => rosters.before(&mandate.roster, judged),
            None => judged(Before::only(&mandate.roster)),
        }
    }

    fn sources(&self, told: BTreeMap<HostName, Testimony>) -> Sources {
        let outboxes = self.hosts.iter().filter_map(|(host, it)| Some((host.clone(), it.outbox.clone()?)));
        Sources {
            machine: self.shared.machine.clone(),
            fleet: self.fleet.clone(),
            told,
            outboxes: outboxes.collect(),
            parts: Arc::clone(&self.handle.parts),
            documents: self.shared.documents.clone(),
            roots: self.shared.roots(),
        }
    }

    /// Somebody has seen a later roster than the mandate's, whomever they obey: hosts of it may serve, and are not waited for.
    fn newer_roster(&self, mandate: &Signed) -> Option<Blocker> {
        let told = self.hosts.iter().filter_map(|(host, it)| Some((host, it.testimony.as_ref()?)));
        let newer =
            told.filter(|(_, it)| it.fleet == self.fleet).map(|(host, it)| (host, it.roster_revision));
        let (host, revision) = newer.max_by_key(|(_, revision)| *revision)?;
        (revision > mandate.roster.revision()).then(|| {
            let detail = format!(
                "it has seen revision {revision} of the roster, and the mandate is for revision {}; have the newest one \
                 mandated, or evict the host if it is none of this fleet",
                mandate.roster.revision()
            );
            Blocker::host(Code::RosterChanged, host, detail)
        })
    }

    /// What hosts told after they had durably obeyed this very leadership.
    fn told(&self) -> BTreeMap<HostName, Testimony> {
        let counts = |it: &&Testimony| it.leadership == self.leadership && it.fleet == self.fleet;
        let told = self.hosts.iter().filter_map(|(host, it)| {
            it.testimony.as_ref().filter(counts).map(|testimony| (host.clone(), testimony.clone()))
        });
        told.collect()
    }

    async fn gathered(&mut self, gathered: Result<Gathered, Vec<Blocker>>) -> Result<Then, StoreError> {
        let Some(mandate) = self.mandate.clone().filter(|_| self.stage == Stage::Gathering) else {
            return Ok(Then::GoOn);
        };
        self.stage = Stage::Hearing;
        let sessions: Vec<SessionRecord> =
            self.told().keys().map(|host| self.hosts[host].session.clone()).collect();
        let newer = self.newer_roster(&mandate).map_or(Ok(()), |blocker| Err(vec![blocker]));
        let made = newer.and(gathered).and_then(|found| {
            let Gathered { verdict, opened, decided, releases, withdrawals } = found;
            let reference = roster_ref(&mandate.roster, mandate.roster_digest);
            let envelope = mandate.roster_envelope;
            let mandated =
                Mandated { roster: &mandate.roster, reference, envelope, mandate: &mandate.mandate };
            let record = verdict.record(
                self.leadership,
                mandated,
                sessions.clone(),
                opened.as_ref(),
                decided.as_ref(),
            );
            let words = newest_words(self.beginning.withdrawals.iter().cloned().chain(withdrawals));
            let made = record.map(|(record, inheritance)| {
                (record, Inheritance { withdrawals: words.into_values().collect(), ..inheritance })
            });
            made.map(|made| (made, releases)).map_err(|blocker| vec![blocker])
        });
        match made {
            Err(blockers) => {
                self.blockers = blockers;
                self.ask_again = Some(Instant::now() + ASK_AGAIN);
                Ok(Then::GoOn)
            }
            Ok(((record, inheritance), releases)) => {
                let mut entries = Vec::new();
                let fleet = || self.fleet.clone();
                entries.extend(
                    sessions.into_iter().map(|it| Entry::Session { fleet: fleet(), session: Box::new(it) }),
                );
                entries.extend(
                    inheritance
                        .withdrawals
                        .iter()
                        .map(|it| Entry::Withdrawal { fleet: fleet(), withdrawal: Box::new(it.clone()) }),
                );
                entries.push(Entry::Fleet(Box::new(record.clone())));
                let documents = self.shared.documents.clone();
                let write = self.shared.ledger.run(move |ledger| {
                    // Of a flip in fast mode there are no closing secrets.
                    let none = documents.put(muster_model::Digest::of(b""), b"");
                    none.map_err(|error| crate::ledger::document_failed("write a document to", error))?;
                    for release in releases {
                        ledger.add_release(release, None)?;
                    }
                    ledger.append(entries)
                });
                write.await?;
                Ok(Then::Lead(Box::new((record, inheritance))))
            }
        }
    }

    async fn survey(&mut self) -> Survey {
        let heard = self.told();
        let hosts = self.hosts.iter().map(|(host, it)| Surveyed {
            host: host.clone(),
            connected: it.outbox.is_some(),
            heard: heard.contains_key(host),
            testimony: it.testimony.clone(),
        });
        let hosts = hosts.collect();
        let mut blockers = match &self.mandate {
            Some(mandate) => match self.judge(mandate, &heard) {
                Ok(_) => self.blockers.clone(),
                Err(blockers) => blockers,
            },
            None => Vec::new(),
        };
        blockers.extend(self.hosts.values().filter_map(|it| it.trouble.clone()));
        let roster = if self.mandate.is_some() { None } else { self.newest_roster().await };
        Survey { mandated: self.mandate.is_some(), roster, hosts, blockers }
    }

    /// The newest roster that some host keeps, or that the life before this one knew.
    async fn newest_roster(&self) -> Option<Vec<u8>> {
        let mut kept: Vec<(&HostName, &Host, &Testimony)> = self
            .hosts
            .iter()
            .filter_map(|(host, it)| it.testimony.as_ref().map(|testimony| (host, it, testimony)))
            .filter(|(_, it, testimony)| it.outbox.is_some() && testimony.roster.is_some())
            .collect();
        kept.sort_by_key(|(_, _, testimony)| std::cmp::Reverse(testimony.roster_revision));
        let former = self.beginning.former.as_ref();
        let newest = kept.first().map(|(_, _, testimony)| testimony.roster_revision);
        if former.is_some_and(|former| newest.is_none_or(|newest| newest <= former.roster.revision)) {
            let (documents, digest) = (self.shared.documents.clone(), former?.roster_envelope);
            return crate::fleet::blocking(&self.shared.machine, move || documents.read(digest)).await.ok();
        }
        for (host, it, testimony) in kept {
            let (Some(outbox), Some(digest)) = (&it.outbox, testimony.roster) else { continue };
            let max = muster_trust::ENVELOPE_BYTES_MAX as u64;
            // Whoever asks waits here: a host that drips is passed over.
            let read = self.handle.parts.read(&self.fleet, (host, outbox), digest, max);
            let read = tokio::time::timeout(ROSTER_TIMEOUT, read).await;
            match read.unwrap_or_else(|_| Err(muster_rollout::gate::missing(host))) {
                // A host that claims the highest revision and has nothing to show for it is passed over.
                Ok(bytes)
                    if self
                        .shared
                        .root()
                        .verify_held_roster(&bytes, self.shared.machine.unix_time())
                        .is_ok() =>
                {
                    return Some(bytes);
                }
                Ok(_) => {
                    tracing::warn!(fleet = %self.fleet, %host, "the roster that it keeps does not verify")
                }
                Err(blocker) => {
                    tracing::warn!(fleet = %self.fleet, %blocker, "a roster is not to be had there")
                }
            }
        }
        None
    }

    fn recall_all(&self) {
        for outbox in self.hosts.values().filter_map(|it| it.outbox.as_ref()) {
            self.send(outbox, Leadership::default(), Body::Recall(v1::Recall {}));
        }
    }

    /// Has all hosts begin their sessions anew.
    fn send_all_home(&self, why: &str) {
        for outbox in self.hosts.values().filter_map(|it| it.outbox.as_ref()) {
            let refusal = Refusal::of(Code::StaleSession, why);
            self.send(outbox, self.leadership, to_agent(ToHost::Refuse { refusal }));
        }
    }

    fn send(&self, outbox: &Outbox, leadership: Leadership, body: Body) {
        if outbox.frames.try_send(stamp(&self.fleet, leadership, body)).is_err() {
            // Its reader tells that the host has left.
            outbox.hang_up.notify_one();
        }
    }

    fn at(&mut self, host: &HostName, session: SessionId) -> Option<&mut Host> {
        let known = self.hosts.get_mut(host)?;
        known.outbox.as_ref().is_some_and(|outbox| outbox.session == session).then_some(known)
    }
}

/// Of each host its newest word that it has closed.
fn newest_words(words: impl Iterator<Item = WithdrawalRecord>) -> BTreeMap<HostName, WithdrawalRecord> {
    let mut newest: BTreeMap<HostName, WithdrawalRecord> = BTreeMap::new();
    for word in words {
        if newest.get(&word.host).is_none_or(|known| known.roster_revision <= word.roster_revision) {
            newest.insert(word.host.clone(), word);
        }
    }
    newest
}

/// What a host is told that comes before there is a mandate.
fn not_yet(fleet: &FleetName) -> Refusal {
    Refusal::of(Code::FleetUnknown, format!("there is no fleet {fleet} here that is led"))
}
