//! Values of the fleet protocol, valid by construction.
//!
//! Everything that crosses a crate boundary is a type of this crate: once a value exists, it keeps its
//! invariants, so no later code checks them again. The crate never does I/O, reads no clock and draws no
//! randomness; it knows nothing of the wire (`proto`), of signatures (`crates/trust`) or of where state is
//! kept (`crates/store`).

mod addition;
mod attestation;
mod blocker;
mod digest;
mod document;
mod evidence;
mod glass;
mod ids;
mod joiners;
mod key;
mod mandate;
mod manifest;
mod membership;
mod merkle;
mod message;
mod name;
mod order;
mod path;
mod proof;
mod release;
mod root;
mod roster;
mod time;
mod timing;
mod withdrawal;

pub use addition::{Addition, AdditionError, Additions, FollowError};
pub use attestation::{Assurance, Attestation, BootGate, ClockState, Comparable, HostFacts, Purpose, Scope};
pub use blocker::{Blocker, Code, Refusal, UnknownCode};
pub use digest::{Digest, DigestError};
pub use document::{Document, DocumentError, DocumentKind, MAX_DOCUMENT_BYTES};
pub use evidence::{Closing, Closure, Commitment, Secret, Secrets};
pub use glass::{BrokenGlass, GlassLeave, GlassSettlement, GlassToken};
pub use ids::{BootId, Epoch, HaltId, Incarnation, Nonce, RolloutId, RosterRevision, SessionId, Term, Token};
pub use joiners::{FleetScope, Joiners};
pub use key::{KeyId, PublicKey, PublicKeyError};
pub use mandate::Mandate;
pub use manifest::{
    Change, ChangeKind, Difference, DifferenceKind, Entry, EntryKind, External, ExternalCheck, MAX_ENTRIES,
    MAX_FILE_BYTES, MAX_LINKS, MAX_MANIFEST_BYTES, MAX_RULES, MAX_TREE_BYTES, Manifest, ManifestError, Mode,
    ModeError, Place, Rule, RuleList, TreeRules, diff,
};
pub use membership::{HostPlace, Membership, Withdrawn};
pub use merkle::{MerkleProof, MerkleTree};
pub use message::{
    Documents, FromHost, HostMode, JoinReport, JournalHead, Leadership, ServingReport, Standing, ToHost,
};
pub use name::{FleetName, HostName, IdentityName, NameError, Version};
pub use order::{Flip, FlipMode, OnFailure, Order, OrderKind, RosterRef};
pub use path::{
    EntryPath, HostPath, LinkTarget, MAX_COMPONENT_BYTES, MAX_DEPTH, MAX_PATH_BYTES, PathError, escape,
};
pub use proof::{Durable, Verified};
pub use release::{FlagDeclaration, FlagKind, Release};
pub use root::{KEY_NAME_BYTES_MAX, RoleKeys, Root, SigningRole};
pub use roster::{BootGatePolicy, ClockPolicy, Fence, Member, Policy, Roster};
pub use time::{BootTime, UnixTime};
pub use timing::Timing;
pub use withdrawal::{Withdrawal, WithdrawalError};
