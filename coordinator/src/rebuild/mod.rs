//! A fleet that this coordinator does not lead yet: it is new, or was restored, and the hosts know more than it does.
//!
//! Hosts that come are asked what they have promised. Once the operators have signed a mandate for this life of the database, hosts
//! obey it, and nothing else: read-only. When all of the roster were heard under it, the fleet's record is made of what they told,
//! and the fleet is led. What follows from their word is worked out in `muster-rollout`.

mod gather;
mod held;
mod parts;
mod task;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use muster_model::{
    Blocker, Code, Digest, HostName, Mandate, Refusal, Roster, SessionId, Term, Token, Verified,
};
use muster_proto::v1;
use muster_rollout::rebuild::Testimony;
use tokio::sync::{mpsc, oneshot};

pub(crate) use parts::Parts;
pub(crate) use task::{Beginning, spawn};

use crate::fleet::Outbox;

/// Inputs that wait; senders wait when it is full.
const INBOX_INPUTS: usize = 1024;

/// Rollouts of which a host may keep the documents.
const KEPT_MAX: usize = 16;

/// Fleets that are not led and of which hosts have asked. Whoever has an agent's certificate can name fleets that there are not.
pub(crate) const REBUILDS_MAX: usize = 64;

/// The way to the task of one fleet.
#[derive(Debug)]
pub(crate) struct RebuildHandle {
    inbox: mpsc::Sender<Input>,
    /// Parts of documents go straight to whoever waits for them.
    pub(crate) parts: Arc<Parts>,
    standing: Mutex<Standing>,
    /// Whether no host is connected that has asked for the fleet.
    is_deserted: AtomicBool,
}

/// Whether there is a fleet to be rebuilt, or only hosts that say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No mandate was shown, and no life before this one knew the fleet.
    Claimed,
    /// The fleet is known, and must not be begun anew.
    Known,
}

/// Something for the task.
#[derive(Debug)]
pub(crate) enum Input {
    /// A host asks for a session.
    Joining { host: HostName, report: Box<muster_model::JoinReport>, outbox: Outbox, next: Token },
    /// A host's stream ended.
    Left { host: HostName, session: SessionId },
    /// Others need the place of this fleet, of which nothing is known but what hosts said that have gone.
    End,
    /// A host has taken its token.
    Confirmed { host: HostName, session: SessionId },
    /// A host told what it has promised.
    Told { host: HostName, session: SessionId, testimony: Box<Testimony> },
    /// A host refused something.
    Refused { host: HostName, session: SessionId, refusal: Refusal },
    /// The operators have mandated this coordinator.
    Begin { mandate: Box<Signed>, reply: oneshot::Sender<Result<(), Refusal>> },
    /// What is known so far?
    Survey(oneshot::Sender<Survey>),
    /// The rosters before the mandate's, of those that hosts claim to keep.
    Rosters { claims: held::Claims, found: Result<held::Rosters, Blocker> },
    /// The documents that were looked for in this term.
    Gathered { term: Term, found: Box<Result<gather::Gathered, Vec<Blocker>>> },
}

/// A mandate and its roster, verified.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    pub(crate) mandate: Verified<Mandate>,
    pub(crate) envelope: String,
    pub(crate) roster: Arc<Verified<Roster>>,
    pub(crate) roster_digest: Digest,
    pub(crate) roster_envelope: Digest,
}

/// What is known of a fleet that is not led.
#[derive(Debug, Clone)]
pub(crate) struct Survey {
    pub(crate) mandated: bool,
    /// The newest roster that was found, signed.
    pub(crate) roster: Option<Vec<u8>>,
    pub(crate) hosts: Vec<Surveyed>,
    pub(crate) blockers: Vec<Blocker>,
}

/// One host.
#[derive(Debug, Clone)]
pub(crate) struct Surveyed {
    pub(crate) host: HostName,
    pub(crate) connected: bool,
    /// Whether it was heard under the mandate.
    pub(crate) heard: bool,
    pub(crate) testimony: Option<Testimony>,
}

impl RebuildHandle {
    fn new(inbox: mpsc::Sender<Input>, standing: Standing) -> Self {
        Self {
            inbox,
            parts: Arc::default(),
            standing: Mutex::new(standing),
            is_deserted: AtomicBool::new(false),
        }
    }

    /// Hands an input to the task. Fails once the fleet is led, or the coordinator ends.
    pub(crate) async fn tell(&self, input: Input) -> Result<(), Refusal> {
        let led = |_| Refusal::of(Code::StaleSession, "the fleet is led by now; ask again");
        self.inbox.send(input).await.map_err(led)
    }

    /// Whether there is a fleet to be rebuilt.
    pub(crate) fn standing(&self) -> Standing {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_deserted_now(&self, is_deserted: bool) {
        self.is_deserted.store(is_deserted, Ordering::Relaxed);
    }

    /// Ends the task if nobody needs it: whoever asks again is heard from the beginning.
    pub(crate) fn gives_way(&self) -> bool {
        let is_needless = self.standing() == Standing::Claimed && self.is_deserted.load(Ordering::Relaxed);
        is_needless && self.inbox.try_send(Input::End).is_ok()
    }

    pub(crate) fn is_known_now(&self) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Standing::Known;
    }

    /// What is known so far.
    pub(crate) async fn survey(&self) -> Result<Survey, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Survey(reply)).await?;
        answer.await.map_err(|_| Refusal::of(Code::StaleSession, "the fleet is led by now; ask again"))
    }

    /// Begins to hear the hosts under a mandate.
    pub(crate) async fn begin(&self, mandate: Signed) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Begin { mandate: Box::new(mandate), reply }).await?;
        answer.await.map_err(|_| Refusal::of(Code::StaleSession, "the fleet is led by now; ask again"))?
    }
}

/// Reads what a host tells.
pub(crate) fn testimony(host: &HostName, told: &v1::Testimony) -> Result<Testimony, Refusal> {
    let strange = |detail: String| Refusal::because(Blocker::host(Code::Unsupported, host, detail));
    let testimony: Testimony = serde_json::from_slice(&told.body)
        .map_err(|error| strange(format!("what it tells cannot be read: {error}")))?;
    if testimony.kept.len() > KEPT_MAX {
        return Err(strange(format!("it keeps the documents of more than {KEPT_MAX} rollouts")));
    }
    if testimony.format != muster_rollout::rebuild::TESTIMONY_FORMAT || testimony.host != *host {
        return Err(strange("it tells of another host, or in another format".to_owned()));
    }
    Ok(testimony)
}
