//! What a coordinator keeps durably of one fleet.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_model::{
    BootId, Digest, Epoch, FleetName, FlipMode, HostMode, HostName, Incarnation, JournalHead, Leadership,
    Membership, Order, PublicKey, RolloutId, Roster, RosterRef, RosterRevision, Standing, Term, Token,
    UnixTime,
};
use serde::{Deserialize, Serialize};

/// The version of these records' format.
pub const RECORD_FORMAT: u32 = 1;

/// One durable record. The newest of each kind (and host) counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Record {
    /// A document, kept as a blob under its digest. It must be durable before the records that follow it.
    Document(Digest, Arc<[u8]>),
    /// The fleet's state.
    Fleet(Box<FleetRecord>),
    /// A host's session.
    Session(SessionRecord),
    /// A host's own word that it has closed.
    Withdrawal(WithdrawalRecord),
}

/// A host's own word that it has closed because a roster leaves it out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithdrawalRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The host.
    pub host: HostName,
    /// The key that has signed it.
    pub attestation_key: PublicKey,
    /// The roster that left it out.
    pub roster_revision: RosterRevision,
    /// The envelope: JSON in one line.
    pub envelope: String,
}

/// The durable state of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The fleet.
    pub fleet: FleetName,
    /// Whose word this is: the life of the database and the number of the leadership.
    pub leadership: Leadership,
    /// Rises with every write of this record.
    pub revision: u64,
    /// The roster in force.
    pub roster: RosterRef,
    /// The roster's envelope, a document.
    pub roster_envelope: Digest,
    /// The number of the last rollout, whatever became of it.
    pub last_k: RolloutId,
    /// What the fleet serves: 0 before the first flip.
    pub epoch: Epoch,
    /// The manifest of that epoch.
    pub serving: Option<Digest>,
    /// The manifest of the epoch before: what a rollback goes back to.
    pub previous: Option<Digest>,
    /// Where the fleet stands.
    pub phase: Phase,
    /// To whom unleased service was offered since it last closed.
    pub offers: Offers,
    /// The last rollout when the fleet was halted, if it is: hosts serve nothing until a later one is opened.
    pub halted: Option<RolloutId>,
    /// The last rollout that was settled: what its receipt is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<Opening>,
    /// The roster that was handed in and does not hold yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coming: Option<ComingRoster>,
    /// Hosts that the roster has gained, and that have not served since.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub joining: BTreeSet<HostName>,
    /// Rosters that leave out hosts of the one in force, which may have missed them. Each host is in one of them at most, and nothing is
    /// offered to it before it has seen that: the record of a large fleet stays within its bounds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<MissedRoster>,
}

/// A roster that is kept until it can take the place of the one in force: until hosts that it parks have closed, or the
/// rollout is over that began before.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComingRoster {
    /// The roster.
    pub roster: RosterRef,
    /// Its envelope, a document.
    pub envelope: Digest,
    /// The hosts of the roster in force that operators state to be off, in this roster or in one that it took the place of before that
    /// held. None of them has connected since.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fenced: BTreeSet<HostName>,
}

/// A roster that leaves hosts out which a later one has again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MissedRoster {
    /// Its revision.
    pub revision: RosterRevision,
    /// Its envelope, a document.
    pub envelope: Digest,
    /// The hosts that have not said since that they have seen it, or one like it.
    pub hosts: BTreeSet<HostName>,
}

/// Where a fleet stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Phase {
    /// Every host serves the epoch and has measured it.
    Settled,
    /// A rollout gathers attestations; service is not touched.
    Preparing(Rollout),
    /// Hosts promise to stop serving.
    Arming(Armament),
    /// The rollout will be completed; hosts close.
    Decided(Armament),
    /// All hosts were closed; hosts open.
    Opened(Opening),
}

/// A rollout that can still be given up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Its number.
    pub k: RolloutId,
    /// The manifest to serve.
    pub to: Digest,
    /// What was ordered, by whom: documents.
    pub papers: Papers,
    /// How the fleet flips.
    pub mode: FlipMode,
    /// Of how many hosts the order accepts a lapsed lease for the closing secret.
    pub max_lapsed: u32,
    /// The signed order to roll back, if too many hosts do not start.
    pub contingency: Option<Papers>,
    /// Where an abort goes back to.
    pub base: Base,
}

/// A rollout whose gate was open, with the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Armament {
    /// The rollout.
    pub rollout: Rollout,
    /// The N attestations, a document.
    pub evidence: Digest,
    /// Step 14: when hosts flip, in fast mode.
    pub instant: Option<UnixTime>,
}

/// A rollout that was completed except for hosts that have not opened or measured yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// The rollout.
    pub k: RolloutId,
    /// What was ordered.
    pub papers: Papers,
    /// The N attestations, a document.
    pub evidence: Digest,
    /// Why each of the N hosts counted as closed, a document.
    pub secrets: Digest,
    /// How the fleet flipped.
    pub mode: FlipMode,
    /// The hosts that counted as closed only because their lease had lapsed. They close and open when they return.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lapsed: BTreeSet<HostName>,
    /// The signed order to roll back, if too many hosts do not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contingency: Option<Papers>,
}

/// The envelopes that a rollout rests on, each a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Papers {
    /// The signed order.
    pub order: Digest,
    /// The signed release.
    pub release: Digest,
    /// The signed roster.
    pub roster: Digest,
}

/// Where an abort goes back to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Base {
    /// [`Phase::Settled`].
    Settled,
    /// [`Phase::Opened`].
    Opened(Box<Opening>),
}

/// To whom ADMIT, OPEN or DISARM was offered: each lets a host serve without a lease, so an offer spoils older evidence
/// that the host is closed. Recorded before it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Offers {
    /// To every host of the roster.
    All,
    /// To these only.
    Only(BTreeSet<HostName>),
}

/// The durable state of the session between one host and the coordinator, for one fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// The host.
    pub host: HostName,
    /// The token that the host was given for its next session.
    pub next: Token,
    /// The token of the session before, valid only until the host has confirmed the next.
    pub previous: PreviousToken,
    /// Where the host's journal stood when it joined.
    pub journal: JournalHead,
    /// The boot in which it joined.
    pub boot_id: BootId,
    /// How the identity stands.
    pub identity: Identity,
    /// Whether an operator has settled that the next join is by the right machine, whatever token it shows.
    pub readmitted: bool,
}

/// What a host showed when it joined last, and may show again if it never got the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreviousToken {
    /// The host has confirmed the next token: no other is valid.
    Spent,
    /// The next token is unconfirmed. A host that joined for the first time showed none.
    Valid(Option<Token>),
}

/// Whether a host's identity is trusted to be one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// One machine, as far as is known.
    Single,
    /// Seen twice: quarantined until an operator settles it.
    Duplicate,
}

impl FleetRecord {
    /// The state of a fleet whose first roster was just applied.
    #[must_use]
    pub fn first(roster: &Roster, digest: Digest, envelope: Digest, incarnation: Incarnation) -> Self {
        Self {
            format: RECORD_FORMAT,
            fleet: roster.fleet().clone(),
            leadership: Leadership { incarnation, term: Term(0) },
            revision: 0,
            roster: roster_ref(roster, digest),
            roster_envelope: envelope,
            last_k: RolloutId(0),
            epoch: Epoch(0),
            serving: None,
            previous: None,
            phase: Phase::Settled,
            offers: Offers::Only(BTreeSet::new()),
            halted: None,
            completed: None,
            coming: None,
            joining: BTreeSet::new(),
            missed: Vec::new(),
        }
    }

    /// The roster that `host` must see before the one in force, as far as is known: it leaves the host out.
    #[must_use]
    pub fn missed_by(&self, host: &HostName) -> Option<&MissedRoster> {
        self.missed.iter().find(|missed| missed.hosts.contains(host))
    }

    /// Takes note that `host` has missed nothing, or is to be told nothing any more; says whether that was new.
    pub(crate) fn has_missed_nothing(&mut self, host: &HostName) -> bool {
        let was_listed = self.missed.iter_mut().any(|missed| missed.hosts.remove(host));
        self.missed.retain(|missed| !missed.hosts.is_empty());
        was_listed
    }
}

impl MissedRoster {
    /// Whether a host that stands there goes by a time before this roster: it was a member, and does not know that it has left.
    ///
    /// One without a history is admitted as it is. One that was left out by whichever roster comes back with the one in force; and so
    /// does one that had returned, unless it has promised something since, as it may where it was never opened.
    #[must_use]
    pub fn is_news_to(&self, standing: &Standing) -> bool {
        let has_history = standing.mode != HostMode::Serve(Epoch(0)) || standing.last_k != RolloutId(0);
        let has_promised = !matches!(standing.mode, HostMode::Serve(_));
        let is_unaware = match standing.membership {
            Membership::Member => has_history,
            Membership::Returned => has_promised,
            Membership::Excluded(_) => false,
        };
        is_unaware && standing.roster_revision < self.revision
    }
}

impl SessionRecord {
    /// Whether a join may show `token`: the next one, or the one before while the next is unconfirmed.
    pub(crate) fn accepts(&self, token: Option<Token>) -> bool {
        token == Some(self.next) || self.previous == PreviousToken::Valid(token)
    }
}

impl Phase {
    /// The rollout that is under way, if any.
    #[must_use]
    pub const fn rollout(&self) -> Option<&Rollout> {
        match self {
            Self::Preparing(rollout) => Some(rollout),
            Self::Arming(armament) | Self::Decided(armament) => Some(&armament.rollout),
            Self::Settled | Self::Opened(_) => None,
        }
    }

    /// The documents that this phase rests on.
    #[must_use]
    pub fn documents(&self) -> Vec<Digest> {
        let mut named = Vec::new();
        if let Some(rollout) = self.rollout() {
            named.extend(rollout.papers.all());
            named.extend(rollout.contingency.iter().flat_map(Papers::all));
        }
        if let Self::Arming(armament) | Self::Decided(armament) = self {
            named.push(armament.evidence);
        }
        named.extend(self.opening().iter().flat_map(|opening| opening.documents()));
        named
    }

    /// The completed rollout whose hosts are still to open, whether or not a new one is being prepared.
    #[must_use]
    pub fn opening(&self) -> Option<&Opening> {
        match self {
            Self::Opened(opening) => Some(opening),
            Self::Preparing(Rollout { base: Base::Opened(opening), .. }) => Some(opening),
            Self::Arming(armament) | Self::Decided(armament) => match &armament.rollout.base {
                Base::Opened(opening) => Some(opening),
                Base::Settled => None,
            },
            Self::Settled | Self::Preparing(Rollout { base: Base::Settled, .. }) => None,
        }
    }
}

impl Opening {
    /// The documents that its receipt is made of, and the order to roll back.
    #[must_use]
    pub fn documents(&self) -> Vec<Digest> {
        let contingency = self.contingency.iter().flat_map(Papers::all);
        self.papers.all().into_iter().chain([self.evidence, self.secrets]).chain(contingency).collect()
    }
}

impl Papers {
    fn all(&self) -> [Digest; 3] {
        [self.order, self.release, self.roster]
    }
}

impl From<Base> for Phase {
    fn from(base: Base) -> Self {
        match base {
            Base::Settled => Self::Settled,
            Base::Opened(opening) => Self::Opened(*opening),
        }
    }
}

impl Offers {
    /// Whether `host` was offered service.
    #[must_use]
    pub fn include(&self, host: &HostName) -> bool {
        match self {
            Self::All => true,
            Self::Only(hosts) => hosts.contains(host),
        }
    }

    /// Adds `host`; says whether it was new.
    pub(crate) fn add(&mut self, host: &HostName) -> bool {
        match self {
            Self::All => false,
            Self::Only(hosts) => hosts.insert(host.clone()),
        }
    }

    /// Takes `host` out, which has proven that it serves nothing; says whether it was in.
    pub(crate) fn remove(&mut self, host: &HostName, roster: &Roster) -> bool {
        if *self == Self::All {
            *self = Self::Only(roster.hosts().iter().map(|member| member.name.clone()).collect());
        }
        match self {
            Self::All => false,
            Self::Only(hosts) => hosts.remove(host),
        }
    }
}

/// How documents refer to this roster.
#[must_use]
pub fn roster_ref(roster: &Roster, digest: Digest) -> RosterRef {
    let hosts = u32::try_from(roster.hosts().len()).expect("a roster has at most 20,000 hosts");
    RosterRef { digest, revision: roster.revision(), hosts }
}

/// Whether an order is bound to this roster.
#[must_use]
pub fn is_bound_to(order: &Order, roster: &RosterRef) -> bool {
    order.roster == roster.digest && order.roster_revision == roster.revision && order.hosts == roster.hosts
}
