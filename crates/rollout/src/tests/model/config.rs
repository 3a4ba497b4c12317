//! What a run of the checker explores: every space is finite, because time, faults and rollouts are counted.

/// What is explored in one run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub(super) name: &'static str,
    pub(super) hosts: usize,
    /// Faults strike the first hosts of the roster only. The protocol treats all alike, so where all faults of a run
    /// strike one host it may as well be the first.
    pub(super) victims: usize,
    /// How often the clock may tick.
    pub(super) ticks: u8,
    pub(super) clock: Clock,
    /// How many faults may happen, of any of `kinds`.
    pub(super) faults: u8,
    pub(super) kinds: &'static [Fault],
    /// How often an armed host may ask for its lease to be renewed; one that does not is only slow.
    pub(super) renewals: u8,
    /// How many rollouts may be proposed.
    pub(super) rollouts: u8,
    /// How many hosts may be removed from the roster.
    pub(super) removals: u8,
    /// When measuring, checking a seal before opening, and hearing of a fence are done.
    pub(super) work: Pace,
    /// When a service that is told to stop has stopped.
    pub(super) drain: Pace,
    pub(super) schedule: Schedule,
    pub(super) mistake: Option<Mistake>,
    /// What the space must contain.
    pub(super) sights: &'static [Sight],
}

/// When the clock may tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    Always,
    /// Only while a rollout is decided, which is when others wait for a lease to end.
    WhileDecided,
}

/// Whether something takes time, in which anything else can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    AtOnce,
    Later,
}

/// Which orders of deliveries are explored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schedule {
    /// Every one.
    Every,
    /// Messages that change no permit, deadline or promise are delivered as soon as they can be. Deliveries at different
    /// hosts commute, and so do such answers at a leader; what does not commute with them, every fault, remains possible
    /// in between.
    QuietFirst,
}

/// Something that goes wrong, or that an operator does at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A host's connection ends; what it had sent may still arrive, in its order, at any time.
    Cut,
    /// The leader gives a connection up; what it had sent may still arrive.
    GiveUp,
    /// A message is lost, and those behind it are not.
    Lose,
    /// A copy of a message to a host is kept, and delivered again at any time, over whatever stream is current then.
    Copy,
    /// A message to a leader is delivered twice.
    Twice,
    /// An agent is killed and started. Its guard goes on.
    Restart,
    /// An agent dies after it has written and before it has done anything else.
    DieAfterWriting,
    /// A machine is switched off and on.
    Reboot,
    /// The leader is killed.
    Stop,
    /// The leader dies after it has written and before it has sent anything.
    StopAfterWriting,
    /// Another leader takes over while the one before goes on.
    TakeOver,
    /// An operator gives the rollout up.
    Abort,
}

/// A mistake that is planted in the model around the core, never in the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    /// The coordinator waits one tick less than `W` for silent hosts.
    WOneTickShort,
    /// A grant is worth a whole lease from when it is received.
    LeaseCountedFromReceipt,
    /// The store is not asked whether a leader still leads.
    DeposedLeaderGrantsWithoutReading,
    /// A new leader takes the time before it for the wait.
    NewLeaderSkipsTheWait,
    /// What was served before a reboot is served after it.
    ServiceStartsAtBoot,
    /// The guard says that it has closed when it begins to.
    ClosedAcknowledgedBeforeDown,
    /// A copy of an admission is obeyed whenever it comes.
    StaleAdmitAccepted,
    /// A copy of a DISARM is taken for the rollout that the host is armed for.
    StaleDisarmAccepted,
    /// An armed agent that is started again knows of no rollout and has its guard forget the deadline.
    ArmedNotDurable,
    /// The guard forgets the deadline when it begins to close.
    CloseCancelsTheDeadlineBeforeTheDrainIsDone,
    /// A host that had closed is removed although it was offered to open since.
    RemovedAsClosedAfterAnOpenWasOffered,
    /// A host that was armed is removed although it was offered to disarm since.
    RemovedAsLapsedAfterADisarmWasOffered,
}

/// Something that a space must contain, so that what is said of it is worth something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    TwoFlipsCompleted,
    AbortThenFlip,
    LapseThenOpen,
    LapsedHostServesAgain,
    RebootedHostServesAgain,
    RemovalInOpened,
    RemovalThenFlip,
    TakeOverInSettled,
    TakeOverInPreparing,
    TakeOverInArming,
    TakeOverInDecided,
    TakeOverInOpened,
    RolloutFromOpened,
    LeaseExtended,
    TwoLeaders,
}

/// A fleet of two hosts in which everything goes well, and once.
pub(super) const CALM: Config = Config {
    name: "calm",
    hosts: 2,
    victims: 1,
    ticks: 0,
    clock: Clock::Always,
    faults: 0,
    kinds: &[],
    renewals: 0,
    rollouts: 1,
    removals: 0,
    work: Pace::AtOnce,
    drain: Pace::AtOnce,
    schedule: Schedule::QuietFirst,
    mistake: None,
    sights: &[],
};
