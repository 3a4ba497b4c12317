//! Keys as OpenSSH keeps them: key files, public keys, and the agent that signs with keys that no file holds.
//!
//! Everything is in the encoding of RFC 4251: integers of four bytes, and strings that such an integer goes before.

mod agent;
mod private;
mod public;
mod wire;

#[cfg(test)]
mod tests;

pub use agent::{AgentKey, AgentSigner, SshAgentError};
pub use public::{KeyText, public_key};

pub(crate) use private::{is_openssh, read_openssh};
