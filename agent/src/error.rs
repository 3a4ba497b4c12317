//! The crate's errors.

use std::io;
use std::path::PathBuf;

use muster_artifact::ArtifactError;
use muster_model::{FleetName, HostName};
use muster_store::StoreError;
use muster_trust::TrustError;

/// What keeps an agent from running, or ends it. Whatever can be put right while it runs is a refusal instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration cannot be read, or does not hold together.
    #[error("the configuration cannot be used")]
    Config {
        /// What is wrong with it.
        #[source]
        source: muster_config::Error,
    },
    /// No such fleet on this host.
    #[error("the fleet {fleet} is not on this host; its configuration names {}", known.join(", "))]
    FleetUnknown {
        /// What was asked for.
        fleet: FleetName,
        /// What there is.
        known: Vec<String>,
    },
    /// What was seen of the coordinator's audit log could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Witness {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The guard did not do what an operator asked of it.
    #[error("the guard of {fleet} did not obey")]
    Guard {
        /// The fleet.
        fleet: FleetName,
        /// Why.
        #[source]
        source: muster_guard::GuardError,
    },
    /// The agent runs, and only one process may write what this host promises.
    #[error(
        "the agent of this host runs and keeps the journal: stop it (`systemctl stop muster-agent`), break the glass, and \
         start it again"
    )]
    AgentRuns,
    /// The command was given by somebody else than the agent's user, whose files it writes.
    #[error(
        "this writes what the agent keeps: run it as the user {owner}, as with `runuser -u NAME -- muster-agent …`"
    )]
    OtherUser {
        /// The user's number.
        owner: u32,
    },
    /// The file with the token cannot be read.
    #[error("cannot read the token {}", path.display())]
    ReadToken {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The host keeps no roster, so it cannot know that it is to serve.
    #[error("this host keeps no roster of {fleet}, so no token can be checked against it")]
    NoRoster {
        /// The fleet.
        fleet: FleetName,
    },
    /// A token lets this host start nothing now. Nothing has changed.
    #[error("nothing was started: {refusal}")]
    GlassRefused {
        /// Why not.
        refusal: muster_model::Refusal,
    },
    /// The token counts as used, and the guard did not open.
    #[error(
        "the token counts as used, and {fleet} was not started; use another token once the reason is gone"
    )]
    GlassUnopened {
        /// The fleet.
        fleet: FleetName,
        /// Why.
        #[source]
        source: muster_guard::GuardError,
    },
    /// Credentials, logging or signals could not be set up.
    #[error("the daemon cannot be set up")]
    Daemon {
        /// What failed.
        #[source]
        source: muster_daemon::Error,
    },
    /// The runtime could not be started.
    #[error("the runtime cannot be started")]
    Runtime {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Certificate, key or authorities could not be used.
    #[error("the agent's credentials cannot be used")]
    Credentials {
        /// Which of them and why.
        #[source]
        source: muster_mtls::Error,
    },
    /// The certificate is not an agent's.
    #[error("the certificate is that of {identity}; an agent needs one of the role `agent`")]
    NotAnAgent {
        /// Whose it is.
        identity: String,
    },
    /// The pinned root document could not be read.
    #[error("cannot read the root document {}", path.display())]
    ReadRoot {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The pinned root document does not verify, or the attestation key cannot be used.
    #[error("{} cannot be used", path.display())]
    Trust {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TrustError,
    },
    /// A folder of the state could not be made ready.
    #[error("the state folder of the agent of {host} cannot be used")]
    State {
        /// The host.
        host: HostName,
        /// Why.
        #[source]
        source: ArtifactError,
    },
    /// A folder of the state could not be created.
    #[error("cannot create the folder {}", path.display())]
    Folder {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The journal of a fleet could not be opened or written.
    #[error("the journal of fleet {fleet} on {host} failed")]
    Journal {
        /// The host.
        host: HostName,
        /// The fleet.
        fleet: FleetName,
        /// Why.
        #[source]
        source: Box<JournalError>,
    },
    /// The host could not enrol.
    #[error("cannot {doing}")]
    Enrolment {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The coordinator did not let the host enrol.
    #[error("the coordinator refused: {refusal}")]
    EnrolmentRefused {
        /// Its reasons.
        refusal: muster_model::Refusal,
    },
    /// The system's source of randomness failed.
    #[error("the secure random generator failed")]
    Random {
        /// What the system said.
        #[source]
        source: getrandom::Error,
    },
    /// A task of the agent ended in a panic.
    #[error("a task of the agent failed")]
    Task {
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

impl AgentError {
    /// Whether the process has to end with [`muster_store::EXIT_STORAGE`], on which it is not restarted: what the disk
    /// holds is unknown, or is not what was promised.
    #[must_use]
    pub const fn is_storage(&self) -> bool {
        match self {
            Self::Journal { source, .. } => source.is_storage(),
            Self::AgentRuns
            | Self::OtherUser { .. }
            | Self::ReadToken { .. }
            | Self::NoRoster { .. }
            | Self::GlassRefused { .. }
            | Self::GlassUnopened { .. }
            | Self::FleetUnknown { .. }
            | Self::Witness { .. }
            | Self::Guard { .. }
            | Self::Config { .. }
            | Self::Daemon { .. }
            | Self::Runtime { .. }
            | Self::Credentials { .. }
            | Self::NotAnAgent { .. }
            | Self::ReadRoot { .. }
            | Self::Trust { .. }
            | Self::State { .. }
            | Self::Folder { .. }
            | Self::Enrolment { .. }
            | Self::EnrolmentRefused { .. }
            | Self::Random { .. }
            | Self::Task { .. } => false,
        }
    }
}

/// Why a fleet's journal says nothing, or takes nothing.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store failed or refused.
    #[error("the store failed")]
    Store {
        /// Why.
        #[from]
        source: StoreError,
    },
    /// What was stored is not a record.
    #[error("record {seq} is not a host's record (was it written by a newer agent?)")]
    Record {
        /// The record's number.
        seq: u64,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// The record's format is another one.
    #[error("the record has format {found}; this agent reads {supported}")]
    Format {
        /// What the record says.
        found: u32,
        /// What is read.
        supported: u32,
    },
    /// The journal is that of another host or fleet.
    #[error("it is the journal of fleet {fleet} on {host}; was the state folder copied?")]
    Foreign {
        /// The host that it belongs to.
        host: HostName,
        /// The fleet that it belongs to.
        fleet: FleetName,
    },
    /// The history was lost, and the anchor does not hold the newest record.
    #[error(
        "the journal lost its history, and its anchor does not hold what this host promised last (record {seq}); \
         have the host readmitted"
    )]
    NothingAnchored {
        /// The last acknowledged record.
        seq: u64,
    },
}

impl JournalError {
    /// Whether starting again would build on a disk that is not to be trusted.
    #[must_use]
    pub const fn is_storage(&self) -> bool {
        match self {
            Self::Store { source } => source.is_fatal(),
            Self::Record { .. } | Self::NothingAnchored { .. } => true,
            Self::Format { .. } | Self::Foreign { .. } => false,
        }
    }
}
