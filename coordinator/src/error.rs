//! Why the coordinator cannot run.

use std::path::PathBuf;

use muster_model::{Digest, FleetName};

/// Why the coordinator cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error("the configuration cannot be used")]
    Config(#[from] muster_config::Error),
    /// Credentials that systemd passes, logging or signals.
    #[error("the daemon cannot be set up")]
    Daemon(#[from] muster_daemon::Error),
    /// Certificates or the TLS set-up.
    #[error("the TLS credentials are not usable")]
    Tls(#[from] muster_mtls::Error),
    /// The database.
    #[error("the database in {dir} cannot be used")]
    Store {
        /// Its folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: muster_store::StoreError,
    },
    /// The database failed while the coordinator ran: it ends, because a restart would trust the page cache.
    #[error("the database could not be written; nothing that depends on it was said")]
    StoreFailed(#[source] muster_store::StoreError),
    /// The authority that issues certificates.
    #[error("the issuing authority cannot be used: {reason}")]
    Issuer {
        /// Why.
        reason: String,
    },
    /// The key that signs the audit log's checkpoints.
    #[error("the key of the audit log cannot be used")]
    AuditKey {
        /// Why.
        #[source]
        source: muster_trust::TrustError,
    },
    /// An audit log that is not the one that was written. It is never repaired: hosts remember what it was.
    #[error(
        "the audit log is damaged; put back the one that was there, or restore the coordinator, which begins a new log"
    )]
    AuditLog {
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The blobs.
    #[error("the blob store cannot be used")]
    Blobs(#[from] muster_artifact::ArtifactError),
    /// A record that this version does not read.
    #[error("record {seq} of the database is not one that this version reads")]
    Record {
        /// Its number.
        seq: u64,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A document that the database names.
    #[error("{what} of the fleet {fleet} ({digest}) cannot be used; restore it from a backup")]
    Document {
        /// Which.
        what: &'static str,
        /// The fleet.
        fleet: FleetName,
        /// Its name.
        digest: Digest,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pinned root document.
    #[error("the root document {path} cannot be used")]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Listening.
    #[error("cannot listen on {address}; is another coordinator running?")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server ended.
    #[error("the server ended")]
    Serve(#[from] tonic::transport::Error),
    /// A file of a backup.
    #[error("cannot {action} {path}")]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The name of the coordinator's own certificate.
    #[error("the certificate is one for {found}, not for a coordinator")]
    Identity {
        /// Its identity.
        found: String,
    },
}
