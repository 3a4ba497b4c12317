//! What keeps a daemon from starting.

use std::io;
use std::path::PathBuf;

/// Everything that this crate's functions fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A credential's name that is none.
    #[error("`credential:{name}` names no credential: a name is not empty and has no `/` in it")]
    CredentialName {
        /// What stands there.
        name: String,
    },
    /// A credential, where systemd has passed none.
    #[error(
        "`credential:{name}` is not there, as CREDENTIALS_DIRECTORY is not set; pass it with `LoadCredential={name}:PATH` \
         in the unit"
    )]
    NoCredentials {
        /// Its name.
        name: String,
    },
    /// `RUST_LOG` is not a filter.
    #[error("RUST_LOG is not a filter such as `info,muster_mtls=debug`: {reason}")]
    LogFilter {
        /// What is wrong with it.
        reason: String,
    },
    /// Logging was set up before.
    #[error("logging is set up already")]
    LoggingInstalled,
    /// The signals could not be caught.
    #[error("cannot handle SIGTERM and SIGINT")]
    Signals {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel gave a boot id that is none.
    #[error("{} holds no boot id: {reason}", path.display())]
    BootId {
        /// Where it was read.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}
