//! Where a key that signs is to be found.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{AgentKey, AgentSigner, Signer, SigningKey, TrustError};

const AGENT_PREFIX: &str = "ssh-agent:";
const FINGERPRINT_PREFIX: &str = "SHA256:";

/// A key as a configuration or a command line names it: the path of a key file, or `ssh-agent:` and the key's SHA-256
/// fingerprint or public key file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(from = "String", into = "String")]
pub enum KeySource {
    /// A private key in a file.
    File(PathBuf),
    /// A private key that the user's `ssh-agent` has.
    SshAgent(AgentKey),
}

impl KeySource {
    /// The same, with relative paths taken from `folder`.
    #[must_use]
    pub fn relative_to(&self, folder: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(folder.join(path)),
            Self::SshAgent(AgentKey::PublicKeyFile(path)) => {
                Self::SshAgent(AgentKey::PublicKeyFile(folder.join(path)))
            }
            Self::SshAgent(AgentKey::Fingerprint(_)) => self.clone(),
        }
    }

    /// Reads the file, or asks the agent for the key.
    pub fn open(&self) -> Result<Box<dyn Signer>, TrustError> {
        Ok(match self {
            Self::File(path) => Box::new(SigningKey::read(path)?),
            Self::SshAgent(key) => Box::new(AgentSigner::find(key)?),
        })
    }
}

impl From<String> for KeySource {
    fn from(text: String) -> Self {
        match text.strip_prefix(AGENT_PREFIX) {
            None => Self::File(text.into()),
            Some(key) if key.starts_with(FINGERPRINT_PREFIX) => {
                Self::SshAgent(AgentKey::Fingerprint(key.to_owned()))
            }
            Some(path) => Self::SshAgent(AgentKey::PublicKeyFile(path.into())),
        }
    }
}

impl FromStr for KeySource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::from(text.to_owned()))
    }
}

impl From<&str> for KeySource {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<KeySource> for String {
    fn from(source: KeySource) -> Self {
        source.to_string()
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::SshAgent(key) => write!(f, "{AGENT_PREFIX}{key}"),
        }
    }
}
