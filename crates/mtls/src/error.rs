//! What can go wrong before a byte is sent: files, certificates, configuration.

use std::io;
use std::path::PathBuf;

use crate::client::ConnectFailure;
use crate::identity::{Identity, IdentityError, TrustDomain};

/// Everything that this crate's functions fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any of its kind.
    #[error("{} has more than {max} bytes, which is too large for what it should be", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit in bytes.
        max: u64,
    },
    /// A private key that others can read is not private.
    #[error(
        "{} holds a private key and has mode {mode:04o}: run `chmod 0600` on it, and replace the key if others may have read it",
        path.display()
    )]
    KeyFileMode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is not PEM, or does not hold what it should.
    #[error("{} holds no {what} that can be read: {reason}", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// A certificate in a file does not name a valid identity.
    #[error("the certificate in {} cannot be used", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// Certificate and private key do not belong together, or the key is of a kind that is not supported.
    #[error("the key in {} does not fit the certificate in {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the provider said.
        #[source]
        source: rustls::Error,
    },
    /// A file that should hold a CA certificate holds another one.
    #[error("the certificate in {} is not that of a certificate authority", path.display())]
    NotAnAuthority {
        /// Which file.
        path: PathBuf,
    },
    /// TLS cannot be set up from these files.
    #[error("cannot set up TLS for {identity}: {reason}")]
    Setup {
        /// Whose credentials.
        identity: Identity,
        /// What the provider said.
        reason: String,
    },
    /// Only a coordinator's certificate may be used by a server.
    #[error("{identity} cannot be a server: that takes the certificate of a coordinator")]
    NotAServer {
        /// Whose credentials.
        identity: Identity,
    },
    /// The authority does not issue for other trust domains.
    #[error("{identity} is not of the trust domain `{trust_domain}` of this authority")]
    ForeignIdentity {
        /// For whom a certificate was wanted.
        identity: Identity,
        /// The authority's own.
        trust_domain: TrustDomain,
    },
    /// The usage does not go with the role: coordinators are servers and have names, nobody else is or has.
    #[error("cannot issue a certificate for {identity}: {reason}")]
    Usage {
        /// For whom.
        identity: Identity,
        /// What does not fit.
        reason: String,
    },
    /// The wanted validity is empty, or outside that of the authority.
    #[error("cannot sign with this validity: {reason}")]
    Validity {
        /// What is wrong.
        reason: &'static str,
    },
    /// A certificate signing request that proves nothing, or asks with a key of an unsupported kind.
    #[error("the certificate signing request is refused: {reason}")]
    Request {
        /// Why.
        reason: String,
    },
    /// The library that writes certificates refused.
    #[error("cannot make {what}")]
    Signing {
        /// What was to be made.
        what: &'static str,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
    /// The system's source of randomness failed.
    #[error("the secure random generator failed")]
    Random,
    /// A certificate that is of no use any more was given in place of one that is.
    #[error("the certificate that {identity} was given has ended already")]
    Ended {
        /// Whose it is.
        identity: Identity,
    },
    /// An open connection would not be accepted again.
    #[error("the certificate of {identity} is no longer accepted")]
    PeerLapsed {
        /// Whose.
        identity: Identity,
        /// Why: expired, revoked, or the revocation list is stale.
        #[source]
        source: rustls::Error,
    },
    /// The address of a coordinator is not one.
    #[error("`{text}` is not an address: write `host:port` or `https://host:port`")]
    Address {
        /// What was given.
        text: String,
    },
    /// No connection to the coordinator.
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
}
