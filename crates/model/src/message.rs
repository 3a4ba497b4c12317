//! What coordinator and agent say to each other about one fleet.
//!
//! These are the messages of the flip; `proto` turns them into frames and back. Documents and other bytes never
//! travel in them: a message names their digest, and the agent pulls.

use crate::{
    BootId, BootTime, BrokenGlass, Digest, Epoch, Incarnation, Membership, MerkleProof, Nonce, Refusal,
    RolloutId, RosterRevision, Secret, Secrets, Term, Token, UnixTime,
};

/// What every message to a host carries beside its body.
///
/// Leaderships are ordered: first by the life of the database, then by the number within it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Leadership {
    /// The life of the coordinator's database.
    pub incarnation: Incarnation,
    /// The number of its leadership.
    pub term: Term,
}

/// From an agent to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "a join begins a session, and nobody keeps many messages")]
pub enum FromHost {
    /// Step 2: begin a session for this fleet.
    Join(JoinReport),
    /// Step 2: the next token is durable.
    Confirmed,
    /// Step 4: a fresh nonce for rollout `k`.
    Fresh {
        /// The rollout.
        k: RolloutId,
        /// The host's nonce.
        nonce: Nonce,
    },
    /// Step 5: the host cannot attest what it was asked to.
    CannotAttest {
        /// The rollout.
        k: RolloutId,
        /// Why.
        refusal: Refusal,
    },
    /// Step 7: everything is verified and the tree is sealed.
    Prepared {
        /// The rollout.
        k: RolloutId,
    },
    /// Step 7: the answer to [`ToHost::Probe`].
    Probed {
        /// The rollout.
        k: RolloutId,
    },
    /// Step 7: the host has armed.
    Armed {
        /// The rollout.
        k: RolloutId,
    },
    /// Step 8: the host asks for its lease to be renewed.
    Renew {
        /// The rollout.
        k: RolloutId,
        /// Counts this host's requests for the rollout.
        n: u64,
    },
    /// Step 14: the guard will flip at the instant that was fixed, whatever happens to the agent.
    Set {
        /// The rollout.
        k: RolloutId,
    },
    /// Step 10: the host has stopped serving, durably.
    Closed {
        /// The rollout.
        k: RolloutId,
        /// The closing secret that its attestation committed to.
        secret: Secret,
        /// When the old release stopped being served, on the host's clock.
        at: BootTime,
    },
    /// Step 9: the host is back where it was before it armed.
    Disarmed {
        /// The rollout.
        k: RolloutId,
    },
    /// Steps 3 and 12: the host serves.
    Serving {
        /// What it serves.
        epoch: Epoch,
        /// Since when, on the host's clock.
        at: BootTime,
    },
    /// Step 12: the host measured what it serves, in full, after it began to.
    Measured {
        /// What it serves.
        epoch: Epoch,
    },
    /// The host serves nothing although it could: after its guard or service ended by itself.
    Dark {
        /// Why.
        refusal: Refusal,
        /// A fresh nonce for the admission that it asks for, if it can be admitted.
        nonce: Option<Nonce>,
        /// Whether a later roster has it serve again after one that had it leave, and nobody has admitted it since: what it was armed or
        /// closed for before is over.
        returned: bool,
    },
    /// The host has verified a roster that does not have it serve. It has stopped, durably: it serves nothing until a later
    /// roster has it serve, whatever it is told.
    Withdrawn {
        /// The roster's revision.
        roster: RosterRevision,
        /// Since when it serves nothing, on the host's clock.
        at: BootTime,
    },
    /// The host does not do what it was told.
    Refused {
        /// The rollout it was about, if any.
        k: Option<RolloutId>,
        /// Why.
        refusal: Refusal,
    },
}

impl FromHost {
    /// The host serves nothing, and asks for nothing.
    #[must_use]
    pub const fn dark(refusal: Refusal) -> Self {
        Self::Dark { refusal, nonce: None, returned: false }
    }
}

/// From the coordinator to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ToHost {
    /// Step 2: the session is durable.
    Joined {
        /// The token for the session after this one.
        next: Token,
    },
    /// Step 4: a rollout is proposed.
    Propose {
        /// The rollout.
        k: RolloutId,
        /// The manifest to serve.
        to: Digest,
    },
    /// Step 5: measure and attest.
    Attest {
        /// The rollout.
        k: RolloutId,
        /// The manifest to measure against.
        to: Digest,
        /// The root over all hosts' nonces, in the order of the roster.
        nonce_root: Digest,
        /// That the host's own nonce is in it.
        proof: MerkleProof,
    },
    /// Step 7: verify everything and seal the tree.
    Prepare {
        /// The rollout.
        k: RolloutId,
        /// The epoch that it will begin.
        epoch: Epoch,
        /// What to verify.
        documents: Documents,
    },
    /// Step 7: answer at once, so that it shows how long renewals would take.
    Probe {
        /// The rollout.
        k: RolloutId,
    },
    /// Step 7: promise to stop serving.
    Arm {
        /// The rollout.
        k: RolloutId,
        /// Step 14: when to flip, in fast mode.
        instant: Option<UnixTime>,
    },
    /// Step 8: the lease is renewed, from when the request was sent.
    Grant {
        /// The rollout.
        k: RolloutId,
        /// Which request this answers.
        n: u64,
    },
    /// Step 14: flip at the instant that ARM fixed.
    Set {
        /// The rollout.
        k: RolloutId,
    },
    /// Stop serving at once, until an order with a higher number resumes the fleet.
    Halt {
        /// The fleet's last rollout when it was halted.
        k: RolloutId,
    },
    /// Step 10: stop serving.
    Close {
        /// The rollout.
        k: RolloutId,
    },
    /// Step 12: begin to serve.
    Open {
        /// The host's last rollout.
        k: RolloutId,
        /// The epoch that begins.
        epoch: Epoch,
        /// The manifest to serve.
        release: Digest,
        /// Why all N hosts count as closed, in the order of the roster. Empty in fast mode.
        secrets: Secrets,
    },
    /// Step 9: the rollout was given up.
    Disarm {
        /// The rollout.
        k: RolloutId,
    },
    /// Step 3: serve again what the fleet serves.
    Admit {
        /// The epoch.
        epoch: Epoch,
        /// The manifest.
        release: Digest,
        /// The nonce of the host's join.
        nonce: Nonce,
    },
    /// The session is over.
    Refuse {
        /// Why.
        refusal: Refusal,
    },
}

/// The documents that a host verifies by itself in PREPARE, by digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Documents {
    /// The order's envelope.
    pub order: Digest,
    /// The release's envelope.
    pub release: Digest,
    /// The roster's envelope.
    pub roster: Digest,
    /// The envelopes of all N attestations, one in each line, in the order of the roster.
    pub evidence: Digest,
}

/// What an agent tells of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JoinReport {
    /// The token that the host was given last, unless it never joined.
    pub token: Option<Token>,
    /// The host's boot.
    pub boot_id: BootId,
    /// The agent's version, for people.
    pub agent_version: String,
    /// The newest protocol the agent speaks.
    pub protocol: u32,
    /// For the admission that may follow.
    pub nonce: Nonce,
    /// Where the host's journal stands.
    pub journal: JournalHead,
    /// The host's promises.
    pub standing: Standing,
    /// What it serves at this moment, as its guard sees it.
    pub serving: ServingReport,
}

/// Where a journal stands: a position and the hash of the chain there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalHead {
    /// The last record's number.
    pub seq: u64,
    /// The hash of the chain there.
    pub hash: Digest,
}

/// What a host has promised, as its journal says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Its mode.
    pub mode: HostMode,
    /// The last rollout it armed for.
    pub last_k: RolloutId,
    /// The newest leadership it has obeyed.
    pub leadership: Leadership,
    /// The newest roster it has seen.
    pub roster_revision: RosterRevision,
    /// Whether the journal was lost and taken from its anchor.
    pub history_lost: bool,
    /// The last rollout when the host was halted, if it is.
    pub halted: Option<RolloutId>,
    /// Whether it serves with the others, by the rosters that it has seen.
    pub membership: Membership,
    /// The break-glass tokens that were used on it, oldest first.
    pub glass: Vec<BrokenGlass>,
}

impl Standing {
    /// Whether something was started on it without a coordinator, and operators have not settled that.
    #[must_use]
    pub fn is_glass_broken(&self) -> bool {
        self.glass.iter().any(|used| !used.settled)
    }
}

/// A host's mode, without what only the host needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostMode {
    /// Settled on an epoch.
    Serve(Epoch),
    /// Armed for a rollout, serving the epoch meanwhile.
    Armed(RolloutId, Epoch),
    /// Closed for a rollout, until it is told to open.
    Closed(RolloutId),
}

/// What a host serves at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServingReport {
    /// Nothing.
    Dark,
    /// An epoch's release.
    Open(Epoch),
}
