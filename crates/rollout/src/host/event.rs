//! What goes into a host's state machine, and what comes out of it.

use muster_model::{
    Assurance, Attestation, BootId, BootTime, Comparable, Digest, Documents, Epoch, FromHost,
    GlassSettlement, HaltId, HostFacts, Leadership, Mandate, Nonce, Order, PublicKey, Refusal, Release,
    RolloutId, Roster, RosterRevision, ToHost, UnixTime, Verified, Withdrawal,
};

/// Something that happened to the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// The stream to the coordinator is up. Its answers are recognised by `nonce`.
    Connected {
        /// A fresh nonce.
        nonce: Nonce,
        /// Where the journal stands.
        journal: muster_model::JournalHead,
    },
    /// The stream is down.
    Disconnected,
    /// The coordinator said something over the current stream.
    Message {
        /// Whose word it is.
        leadership: Leadership,
        /// What it said.
        message: ToHost,
    },
    /// The operators have signed that a coordinator of a new incarnation leads the fleet.
    Mandated(Box<Verified<Mandate>>),
    /// The operators have signed that what was started here without a coordinator is settled.
    GlassSettled(Box<Verified<GlassSettlement>>),
    /// The coordinator showed a roster of the fleet, and it verifies.
    RosterShown(Box<Verified<Roster>>),
    /// A measurement that [`Effect::Measure`] asked for.
    Measured {
        /// Why it was made.
        purpose: Purpose,
        /// What was found, or why it could not be.
        outcome: Result<Measured, Refusal>,
    },
    /// The documents that [`Effect::Verify`] asked for.
    Verified {
        /// The rollout.
        k: RolloutId,
        /// The documents, or why they do not verify.
        outcome: Result<Box<Evidence>, Refusal>,
    },
    /// The tree that [`Effect::Seal`] asked for.
    Sealed {
        /// The rollout.
        k: RolloutId,
        /// Whether it is the release's tree.
        outcome: Result<(), Refusal>,
    },
    /// The seal that [`Effect::CheckSeal`] asked for.
    SealChecked {
        /// Why it was checked.
        purpose: SealPurpose,
        /// Whether the tree is still the one that was sealed.
        outcome: Result<(), Refusal>,
    },
    /// The hook that [`Effect::Quiesce`] asked for has run.
    Quiesced {
        /// The rollout.
        k: RolloutId,
        /// Whether it succeeded.
        outcome: Result<(), Refusal>,
    },
    /// The guard holds the deadline that [`Effect::Lease`] asked for, or serves nothing that it could be held for.
    Leased {
        /// The rollout.
        k: RolloutId,
        /// Whether it does.
        outcome: Result<(), Refusal>,
    },
    /// The guard will flip at the instant that [`Effect::Switch`] named.
    SwitchSet {
        /// The rollout.
        k: RolloutId,
        /// Whether it will.
        outcome: Result<(), Refusal>,
    },
    /// The time of [`super::Host::next_deadline`] has come.
    DeadlineReached,
    /// The guard closed, as [`Effect::Close`] asked for.
    Closed {
        /// What it was asked for.
        cause: CloseCause,
        /// Since when nothing is served, or why something still is.
        outcome: Result<BootTime, Refusal>,
    },
    /// The guard opened, as [`Effect::Open`] asked for.
    Opened {
        /// The epoch.
        epoch: Epoch,
        /// Since when it is served, or why it is not.
        outcome: Result<BootTime, Refusal>,
    },
    /// What the guard serves, as it says by itself: at the start, after something ended, after a fence or a flip at an
    /// instant.
    Guard {
        /// What it serves.
        state: GuardState,
        /// Since when, if it is known.
        since: Option<BootTime>,
        /// Whether it was halted.
        halt: Halt,
        /// Why nothing is served, for people.
        refusal: Option<Refusal>,
    },
}

/// What the guard serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuardState {
    /// The guard has not answered yet.
    Unknown,
    /// Nothing.
    Dark,
    /// An epoch of a release.
    Open(Epoch, Digest),
}

/// Whether a guard was halted on its own host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Halt {
    /// It was not.
    Running,
    /// It was, this time, and opens nothing until it is told that an order resumes the fleet.
    Halted(HaltId),
}

/// Now, on the host's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Now {
    /// For deadlines.
    pub boot: BootTime,
    /// For the instant of a flip in fast mode only.
    pub unix: UnixTime,
}

/// Why a tree is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Step 5: to attest.
    Attest(RolloutId),
    /// Step 3: to be admitted.
    Admit(Epoch),
    /// Step 13: to settle.
    Settle(Epoch),
}

/// Why a seal is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealPurpose {
    /// Step 7: to arm.
    Arm(RolloutId),
    /// Step 12: to open.
    Open(Epoch),
}

/// What a full measurement found, when it is the release's tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Measured {
    /// What is compared between hosts.
    pub compared: Comparable,
    /// Milliseconds since 1970 when it ended.
    pub at: UnixTime,
    /// How long it took.
    pub elapsed_ms: u64,
    /// How far the host's time of day may be off by then, in milliseconds, if its time daemon says.
    pub clock_error_ms: Option<u64>,
    /// What it is worth.
    pub assurance: Assurance,
}

/// The documents of a rollout, each verified with the keys that may sign it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Evidence {
    /// The order.
    pub order: Verified<Order>,
    /// The release it names.
    pub release: Verified<Release>,
    /// The roster it is bound to.
    pub roster: Verified<Roster>,
    /// The digest of the roster's payload.
    pub roster_digest: Digest,
    /// The N attestations, in the order of the roster.
    pub attestations: Vec<Verified<Attestation>>,
    /// The word of each host that the roster sets aside and that has to give it, by the key of its entry, in the order of
    /// [`Roster::must_have_withdrawn`].
    pub withdrawals: Vec<Verified<Withdrawal>>,
    /// Now, for the validity of the order.
    pub now: UnixTime,
}

/// Something for the driver to do, without a choice of its own. Each that has an answer is answered by one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a message to the coordinator.
    Send(FromHost),
    /// Sign this attestation and send it.
    SignAndSend(RolloutId, Box<Attestation>),
    /// Sign this host's word that it has closed because a roster leaves it out, and send it.
    SignWithdrawal {
        /// What it states.
        withdrawal: Box<Withdrawal>,
        /// Since when nothing is served, on the host's clock.
        at: BootTime,
    },
    /// Measure a release's tree in full.
    Measure {
        /// Why.
        purpose: Purpose,
        /// The manifest.
        release: Digest,
    },
    /// Fetch documents and verify their signatures.
    Verify {
        /// The rollout.
        k: RolloutId,
        /// Which.
        documents: Documents,
    },
    /// Measure a release's tree in full and keep its seal.
    Seal {
        /// The rollout.
        k: RolloutId,
        /// The manifest.
        release: Digest,
    },
    /// Compare a release's tree with its seal.
    CheckSeal {
        /// Why.
        purpose: SealPurpose,
        /// The manifest.
        release: Digest,
    },
    /// Have the guard run the hook that prepares the service for being stopped.
    Quiesce {
        /// The rollout.
        k: RolloutId,
    },
    /// Have the guard undo the hook, if it has run. Not answered.
    Unquiesce,
    /// Have the guard stop what is served at `deadline`, unless it is extended.
    Lease {
        /// The rollout.
        k: RolloutId,
        /// On the host's clock.
        deadline: BootTime,
        /// What is served until then.
        serving: Epoch,
        /// Step 14: when it would flip instead, in fast mode.
        instant: Option<Instant>,
    },
    /// Have the guard hold a later deadline, if it has not fenced. Not answered: a guard that did not hear it fences.
    Extend {
        /// The rollout.
        k: RolloutId,
        /// On the host's clock.
        deadline: BootTime,
    },
    /// Have the guard forget the deadline. What it has fenced stays dark. Answered by what is served.
    Lift {
        /// The rollout.
        k: RolloutId,
    },
    /// Have the guard serve another release from an instant on, whatever happens to the agent.
    Switch {
        /// The rollout.
        k: RolloutId,
        /// On the host's clock.
        at: BootTime,
        /// The epoch.
        epoch: Epoch,
        /// The manifest.
        release: Digest,
    },
    /// Have the guard stop what is served and open nothing more. Answered by what is served.
    Halt,
    /// Have the guard stop whatever is served.
    Close {
        /// Why.
        cause: CloseCause,
        /// How often this was tried before: wait longer each time.
        attempt: u32,
    },
    /// Have the guard serve a release.
    Open {
        /// The epoch.
        epoch: Epoch,
        /// The manifest.
        release: Digest,
        /// Whether a halt ends with it.
        resume: Resume,
    },
    /// End the stream: the coordinator refused the session.
    Hang(Refusal),
}

/// Why the guard is told to stop what is served. Its answer speaks for what it was asked before, and for nothing that was asked of
/// it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCause {
    /// Step 10, for this rollout.
    Rollout(RolloutId),
    /// What it serves is not what the record lets the host serve.
    NotAllowed,
    /// P14: this revision of the roster does not have the host serve.
    LeftOut(RosterRevision),
}

/// The instant of a flip in fast mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instant {
    /// On the host's clock.
    pub at: BootTime,
    /// `ε`, in milliseconds: from so long before the instant on, nothing replaces the deadline.
    pub clock_error_ms: u64,
}

/// Whether an opening ends a halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resume {
    /// There was none, or it goes on.
    No,
    /// It does: the order is newer than the halt. Without a number it is the one that this host's agent asked for last,
    /// of which the guard has not told yet. No other halt is lifted.
    Yes(Option<HaltId>),
}

/// What belongs to this host and does not change while its agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Profile {
    /// The facts of every attestation; epoch, release and times are filled in.
    pub facts: HostFacts,
    /// The newest protocol this agent speaks.
    pub protocol: u32,
    /// The key that its attestations are signed with: a roster that has another for this host is about another machine.
    pub attestation_key: PublicKey,
}

impl Profile {
    /// The host's boot.
    #[must_use]
    pub const fn boot_id(&self) -> &BootId {
        &self.facts.boot_id
    }
}
