//! Why something is not believed.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

use muster_model::{
    AdditionError, DocumentError, DocumentKind, FleetName, HostName, PublicKey, RosterRevision, UnixTime,
    WithdrawalError,
};

use crate::dsse::EnvelopeError;
use crate::keys::SigningFailure;
use crate::receipt::ReceiptError;
use crate::ssh::{AgentKey, SshAgentError};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Which document an error is about; of an attestation or a withdrawal also whose it should be, where that is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DocumentName {
    kind: DocumentKind,
    host: Option<HostName>,
}

impl DocumentName {
    /// The attestation of this host.
    pub(crate) fn attestation_of(host: &HostName) -> Self {
        Self { kind: DocumentKind::Attestation, host: Some(host.clone()) }
    }

    /// The withdrawal of this host.
    pub(crate) fn withdrawal_of(host: &HostName) -> Self {
        Self { kind: DocumentKind::Withdrawal, host: Some(host.clone()) }
    }

    /// What kind of document it is.
    #[must_use]
    pub const fn kind(&self) -> DocumentKind {
        self.kind
    }

    /// The host whose attestation or withdrawal it should be.
    #[must_use]
    pub const fn host(&self) -> Option<&HostName> {
        self.host.as_ref()
    }
}

impl From<DocumentKind> for DocumentName {
    fn from(kind: DocumentKind) -> Self {
        Self { kind, host: None }
    }
}

impl fmt::Display for DocumentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match &self.host {
            Some(host) => write!(f, " of {host}"),
            None => Ok(()),
        }
    }
}

/// Why a document is not believed, or could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not an envelope.
    #[error("the {document} cannot be read; get it again from whoever signed it")]
    Envelope {
        /// Which document.
        document: DocumentName,
        /// What is wrong with it.
        #[source]
        source: EnvelopeError,
    },
    /// An envelope of something else.
    #[error("this is not a {document}: its payload type is `{}` instead of `{expected}`", .found.escape_debug())]
    PayloadType {
        /// Which document was expected.
        document: DocumentName,
        /// The payload type of such documents.
        expected: &'static str,
        /// What the envelope says.
        found: String,
    },
    /// The payload is not the document it should be.
    #[error("the content of the {document} is not acceptable")]
    Document {
        /// Which document.
        document: DocumentName,
        /// What is wrong with it.
        #[source]
        source: DocumentError,
    },
    /// Keys by which nothing can be verified.
    #[error(
        "nothing can be verified by {keys} {role} keys with a threshold of {threshold}; correct the root"
    )]
    Keys {
        /// Whose keys.
        role: &'static str,
        /// How many must sign.
        threshold: usize,
        /// How many unique keys there are.
        keys: usize,
    },
    /// An addition where the root names nobody who may add.
    #[error("this adds hosts to a roster, and the root lets nobody do that; have operators sign a roster")]
    NoJoiners,
    /// An addition that goes beyond what its signers may do.
    #[error("hosts cannot be added to the roster like this")]
    Addition {
        /// Why not.
        #[source]
        source: AdditionError,
    },
    /// Signatures of different documents.
    #[error("this is another {document} than the one whose signatures are collected")]
    OtherPayload {
        /// Which document was expected.
        document: DocumentName,
    },
    /// Too few unique keys have signed.
    #[error(
        "the {document} is signed by {signed} of {keys} {role} keys and needs {threshold}; \
         collect what is missing with `approve` or `sign`, or check that the root is the right one"
    )]
    Threshold {
        /// Which document.
        document: DocumentName,
        /// Whose keys must sign it.
        role: &'static str,
        /// How many of them did.
        signed: usize,
        /// How many must.
        threshold: usize,
        /// How many unique keys there are.
        keys: usize,
    },
    /// Verifying would take too long.
    #[error(
        "the {document} would need {checks} signature checks; remove the signatures that do not belong to it"
    )]
    TooMuchWork {
        /// Which document.
        document: DocumentName,
        /// Signatures times keys.
        checks: u64,
    },
    /// The root has expired.
    #[error(
        "root version {version} expired {} days ago by this machine's clock, so nothing verifies any more; make its \
         successor with `muster root edit`, have it signed with `muster root sign`, and give it to all with \
         `muster root apply`",
        (.now_unix_ms.0 - .expired_unix_ms.0) / DAY_MS
    )]
    RootExpired {
        /// Its version.
        version: u64,
        /// When it expired, in milliseconds since 1970.
        expired_unix_ms: UnixTime,
        /// The time now, in milliseconds since 1970; not before `expired_unix_ms`.
        now_unix_ms: UnixTime,
    },
    /// Not the next version.
    #[error("root version {found} does not follow version {present}; apply the versions one by one")]
    RootVersion {
        /// The version of the present root.
        present: u64,
        /// The version that was offered.
        found: u64,
    },
    /// A root that was kept does not follow the one before it.
    #[error(
        "the root that is kept in {} does not follow the one before it; take that file and later ones from a host of \
         this fleet that works, or remove them if this machine was provisioned for another fleet",
        .path.display()
    )]
    RootChain {
        /// The file.
        path: PathBuf,
        /// Why it does not follow.
        #[source]
        source: Box<TrustError>,
    },
    /// Roots were kept, but some between them and the pinned one are missing.
    #[error(
        "{} keeps a root of version {kept}, but none of version {missing}; was this machine provisioned with an older \
         root? Provision it with one of version {kept}",
        .folder.display()
    )]
    RootGap {
        /// The folder.
        folder: PathBuf,
        /// The latest version that is there.
        kept: u64,
        /// The first version that is not.
        missing: u64,
    },
    /// Another document of the same version than the one that is kept.
    #[error("this is another root of version {version} than the one in force")]
    RootFork {
        /// The version of both.
        version: u64,
    },
    /// A root could not be kept or read.
    #[error("cannot {action} {}", .path.display())]
    RootFile {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A document of another fleet.
    #[error("the {document} is for the fleet {found}, not for {expected}")]
    ForeignFleet {
        /// Which document.
        document: DocumentName,
        /// The fleet that it should be for.
        expected: FleetName,
        /// The fleet that it is for.
        found: FleetName,
    },
    /// An attestation of a host that is not on the roster.
    #[error(
        "{host} has attested, but roster revision {revision} of {fleet} does not list it; add it or stop its agent"
    )]
    NotInRoster {
        /// The host that the attestation names.
        host: HostName,
        /// The fleet.
        fleet: FleetName,
        /// The roster's revision.
        revision: RosterRevision,
    },
    /// An attestation by another key than its host's.
    #[error(
        "the attestation of {host} is not signed by the key that the roster has for it; \
         put its present key into the roster, or find out who speaks in its name"
    )]
    NotTheHostsKey {
        /// The host that the attestation names.
        host: HostName,
    },
    /// An attestation with more than one signature.
    #[error("the attestation of {host} carries {found} signatures; a host signs alone and once")]
    AttestationSignatures {
        /// The host that the attestation names.
        host: HostName,
        /// How many signatures it carries.
        found: usize,
    },
    /// An attestation that would break the lines of evidence.
    #[error("the attestation of {host} contains a line break and cannot be evidence; is its agent ours?")]
    AttestationLineBreak {
        /// The host that the attestation names.
        host: HostName,
    },
    /// Not one attestation for each host.
    #[error(
        "there are {found} attestations for {expected} hosts; every host of the roster attests exactly once"
    )]
    AttestationCount {
        /// The length of the roster.
        expected: usize,
        /// How many attestations there are.
        found: usize,
    },
    /// Another host's attestation in a host's place.
    #[error(
        "attestation {line} should be that of {expected} and is that of {found}; they come in the roster's order"
    )]
    AttestationOrder {
        /// Its place, from 1 on.
        line: usize,
        /// The host of that place in the roster.
        expected: HostName,
        /// The host that it names.
        found: HostName,
    },
    /// More evidence than is read.
    #[error("the evidence has {len} bytes; at most {max} are read")]
    EvidenceTooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Evidence without its last line break.
    #[error("the evidence does not end with a line break, so it was cut short; get it again")]
    EvidenceCutShort,
    /// A withdrawal by another key than its host's.
    #[error(
        "the withdrawal of {host} is not signed by the key that the roster has for it: nothing proves that it has closed; look at \
         the host itself, and find out who speaks in its name"
    )]
    NotWithdrawnByItsKey {
        /// The host that it should be of.
        host: HostName,
    },
    /// A withdrawal with more than one signature, or none.
    #[error("the withdrawal of {host} carries {found} signatures; a host signs alone and once")]
    WithdrawalSignatures {
        /// The host that it should be of.
        host: HostName,
        /// How many signatures it carries.
        found: usize,
    },
    /// A withdrawal that would break the lines of evidence.
    #[error("the withdrawal of {host} contains a line break and cannot be evidence; is its agent ours?")]
    WithdrawalLineBreak {
        /// The host that it should be of.
        host: HostName,
    },
    /// Another host's withdrawal.
    #[error("this should be the withdrawal of {host}, and is that of {found}")]
    WithdrawalOf {
        /// The host that it should be of.
        host: HostName,
        /// The host that it names.
        found: HostName,
    },
    /// A withdrawal that does not stand for the host that the roster sets aside, or none at all.
    #[error("nothing proves that all hosts have closed that the roster sets aside")]
    Withdrawal {
        /// Why not.
        #[source]
        source: WithdrawalError,
    },
    /// A receipt that proves no flip.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// A key file that others may touch.
    #[error("{} has mode {mode:04o}, so others can use the key in it; run `chmod 600` on it, or make a new key", .path.display())]
    KeyFileMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key file that does not hold a usable key.
    #[error("{} is not a key file that can be used: {reason}", .path.display())]
    KeyFileContent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: Cow<'static, str>,
    },
    /// A key file that could not be read or written.
    #[error("cannot {action} the key file {}", .path.display())]
    KeyFile {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key that the user's `ssh-agent` should have.
    #[error("cannot use the key {key} by way of ssh-agent")]
    SshAgent {
        /// Which key.
        key: AgentKey,
        /// What is wrong.
        #[source]
        source: SshAgentError,
    },
    /// No key could be made.
    #[error("no key could be made, because the system's source of randomness failed")]
    KeyGeneration,
    /// A key did not sign.
    #[error("cannot sign with the key {key}")]
    Signing {
        /// The public half.
        key: PublicKey,
        /// What the keeper of the key said.
        #[source]
        source: SigningFailure,
    },
}

impl TrustError {
    /// Whether it says that a host that is set aside has not proven by its own word that it has closed.
    #[must_use]
    pub fn is_about_withdrawal(&self) -> bool {
        if let Self::Envelope { document, .. }
        | Self::PayloadType { document, .. }
        | Self::Document { document, .. } = self
        {
            return document.kind() == DocumentKind::Withdrawal;
        }
        matches!(
            self,
            Self::NotWithdrawnByItsKey { .. }
                | Self::WithdrawalSignatures { .. }
                | Self::WithdrawalLineBreak { .. }
                | Self::WithdrawalOf { .. }
                | Self::Withdrawal { .. }
        )
    }
}
