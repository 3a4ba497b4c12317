//! Mutual TLS: the provider, identities, the acceptor, the client and the certificate authority.
//!
//! The only crate that knows which TLS implementation is used. A connection that it hands out is TLS 1.3, was
//! never resumed, and has a [`Peer`] whose certificate was checked against the fleet's CA, its validity and the
//! revocation list, and which carries exactly one identity of the fleet's own trust domain.
//!
//! It never decides what an identity may do: the table of roles for each call is in the coordinator's gRPC edge,
//! and which hosts belong to a fleet is in the roster (`crates/trust`, `crates/rollout`). It reads no clock but
//! the one inside the TLS handshake: whoever issues certificates says what time it is.

mod acceptor;
mod address;
mod authority;
mod certificate;
mod certificate_files;
mod client;
mod credentials;
mod error;
mod file;
mod identity;
mod net;
mod open;
mod pinned;
mod request;
mod server;
#[cfg(test)]
mod tests;

pub use acceptor::{Acceptor, Activity, Caller, Limits, Peer, Stranger, TlsConn};
pub use address::Address;
pub use authority::{Authority, IssuedCertificate, IssuedIdentity, Revoked, Usage};
pub use certificate::{Serial, Validity};
pub use certificate_files::{CertificateFiles, FileMarks, Keeping};
pub use client::{ClientTls, ConnectFailure, ConnectOptions, Stage, Start, connect, connect_through};
pub use credentials::{CredentialPaths, Credentials, PemBundle};
pub use error::Error;
pub use file::{create_private_directory, read_private, write_private, write_public};
pub use identity::{Identity, IdentityError, Role, TrustDomain, identity_of};
pub use net::{Connection, Dial, Dialer, Dialing, Listener};
pub use pinned::{Anchor, Introduction, introduce};
pub use request::KeyRequest;
pub use server::{Exclusions, ServerTls};

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;

/// How long an HTTP/2 connection may be silent before a ping is sent; the same on both sides.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer to such a ping may take before the connection counts as lost; the same on both sides.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The one application protocol: gRPC is HTTP/2.
const ALPN_H2: &[u8] = b"h2";

/// The one protocol version. Said explicitly, so that another crate which turns on rustls's `tls12` changes nothing.
static PROTOCOL_VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The provider is always passed on: with two in the dependency graph, rustls's default would panic.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
