//! What goes into a fleet's state machine, and what comes out of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use muster_model::{
    Attestation, Blocker, Digest, Epoch, FromHost, HostName, JoinReport, Order, PublicKey, Refusal, Release,
    RolloutId, Roster, SessionId, ToHost, Token, UnixTime, Verified, Withdrawal,
};
use serde::{Deserialize, Serialize};

use super::record::Papers;

/// Something that happened to the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A host's agent asks for a session (step 2).
    Joining {
        /// The host, by its certificate.
        host: HostName,
        /// The session that would begin. Within a term, a later stream has a greater number.
        session: SessionId,
        /// What the agent tells.
        report: JoinReport,
        /// 32 fresh random bytes.
        next: Token,
    },
    /// A host's stream ended.
    Left {
        /// The host.
        host: HostName,
        /// The session that ended.
        session: SessionId,
    },
    /// A host said something.
    Message {
        /// The host.
        host: HostName,
        /// The session it came over.
        session: SessionId,
        /// What it said; a join arrives as [`Event::Joining`] instead.
        message: FromHost,
    },
    /// A host attested, and its signature verifies with its key in the roster.
    Attested {
        /// The host.
        host: HostName,
        /// The session it came over.
        session: SessionId,
        /// The rollout.
        k: RolloutId,
        /// What it states.
        attestation: Verified<Attestation>,
        /// The envelope, for the evidence.
        envelope: Arc<[u8]>,
    },
    /// A host has closed because a roster leaves it out, and its own word of that verifies with its key.
    Withdrew {
        /// The host.
        host: HostName,
        /// The session it came over.
        session: SessionId,
        /// What it states.
        withdrawal: Verified<Withdrawal>,
        /// The key that has signed it.
        attestation_key: PublicKey,
        /// The envelope, for the evidence: JSON in one line.
        envelope: Arc<str>,
    },
    /// A release was deployed on a host: one that is dark may be able to serve now.
    Deployed {
        /// The host.
        host: HostName,
        /// The session it came over.
        session: SessionId,
        /// The manifest.
        manifest: Digest,
    },
    /// The store confirms that this leader still leads: the read that [`Effect::ConfirmLead`] asked for, begun after it
    /// was asked for.
    LeadConfirmed {
        /// Which read.
        read: u64,
    },
    /// The decision is durable: the wait for silent hosts begins now, as [`Effect::BeginWait`] asked for.
    WaitBegun,
    /// The order to roll back, which [`Effect::RollBack`] had proposed, was not taken.
    RollBackRefused(Refusal),
    /// The deadline of [`super::Fleet::next_deadline`] has passed.
    DeadlineReached,
}

/// What an operator proposes: documents that were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The order.
    pub order: Verified<Order>,
    /// The release that it names.
    pub release: Verified<Release>,
    /// The envelopes' digests.
    pub papers: Papers,
    /// The order to roll back, which was verified as well, where the order has the fleet roll back by itself.
    pub contingency: Option<Papers>,
    /// Now, for the validity of both.
    pub now: UnixTime,
}

/// A roster that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextRoster {
    /// The roster.
    pub roster: Verified<Roster>,
    /// The digest of its payload.
    pub digest: Digest,
    /// The digest of its envelope.
    pub envelope: Digest,
    /// Hosts of which an operator states that they serve nothing any more: their machines are off, or wiped.
    pub fenced: BTreeSet<HostName>,
}

/// Something for the driver to do, without a choice of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a message over a session.
    Send {
        /// The host.
        host: HostName,
        /// The session.
        session: SessionId,
        /// What to say.
        message: ToHost,
    },
    /// End a session, telling the host why.
    EndSession {
        /// The host.
        host: HostName,
        /// The session.
        session: SessionId,
        /// Why.
        refusal: Refusal,
    },
    /// Ask the store, with a read that begins now, whether this leader still leads. A leader that does not must stop.
    ConfirmLead {
        /// Which read.
        read: u64,
    },
    /// Answer at once with [`Event::WaitBegun`]: what was written before is durable by now.
    BeginWait,
    /// Step 15: propose the order to roll back.
    RollBack(Papers),
    /// Tell whoever watches.
    Report(Report),
}

/// What those who watch a fleet are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A host or the whole fleet reached a stage of a rollout.
    Reached {
        /// The rollout.
        k: RolloutId,
        /// The stage.
        stage: Stage,
        /// The host, or nothing for the whole fleet.
        host: Option<HostName>,
        /// How many hosts have reached it.
        done: usize,
    },
    /// Something is in the way of a rollout that was decided.
    Trouble {
        /// The rollout.
        k: RolloutId,
        /// What.
        blockers: Vec<Blocker>,
    },
    /// A rollout came to an end, or to a point from which only hosts can go on.
    Ended(End),
}

/// The stages of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Proposed, durably.
    Proposed,
    /// Attested; of the fleet: the gate is open.
    Attested,
    /// Verified and sealed.
    Prepared,
    /// Answers fast enough to be armed.
    Probed,
    /// Armed.
    Armed,
    /// Decided, durably.
    Decided,
    /// Closed.
    Closed,
    /// Opened, durably.
    Opened,
    /// Serving.
    Serving,
    /// Measured while serving; of the fleet: settled.
    Measured,
}

/// How a rollout ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The rollout.
    pub k: RolloutId,
    /// The manifest it was to serve.
    pub to: Digest,
    /// What became of it.
    pub outcome: Outcome,
    /// What the fleet serves now.
    pub epoch: Epoch,
    /// Why it did not succeed.
    pub blockers: Vec<Blocker>,
    /// How long nobody served.
    pub dark_window: Option<DarkWindow>,
}

/// What became of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All N hosts serve the release and have measured it.
    Flipped,
    /// Nothing has changed.
    Unchanged,
    /// Some hosts serve the release, some serve nothing.
    Dark,
}

/// How long nobody served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DarkWindow {
    /// From the first CLOSE sent to the last host known to serve, on the coordinator's clock: an upper bound. 0 in fast
    /// mode, where hosts do not wait for each other.
    pub bound_ms: u64,
    /// From the first host that closed to the last that opened, if all share one clock.
    pub measured_ms: Option<u64>,
    /// From the first host that served to the last, on the same clocks as above: in fast mode, the skew.
    pub spread_ms: u64,
}

/// How long the steps of a rollout may take before it is given up. None of them limits anything after DECIDED; what does
/// is the signed roster's [`muster_model::Timing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Steps 4 to 6: nonces and attestations.
    pub attest: Duration,
    /// Step 7: verifying and sealing.
    pub prepare: Duration,
    /// Step 7: arming.
    pub arm: Duration,
    /// Step 14: how long before the instant the hosts of a flip in fast mode are armed.
    pub fast_lead: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attest: Duration::from_secs(600),
            prepare: Duration::from_secs(600),
            arm: Duration::from_secs(3),
            fast_lead: Duration::from_secs(2),
        }
    }
}
