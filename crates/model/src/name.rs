//! Names that people choose: fleets, hosts, versions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or more than the limit.
    #[error("a {what} has 1 to {max} characters, this has {len}")]
    Length {
        /// What kind of name.
        what: &'static str,
        /// The limit.
        max: usize,
        /// What was given.
        len: usize,
    },
    /// A character outside the allowed set, or a bad first or last one.
    #[error("`{text}` is not a {what}: {rule}")]
    Character {
        /// What kind of name.
        what: &'static str,
        /// The text, with anything unprintable escaped.
        text: String,
        /// What is allowed.
        rule: &'static str,
    },
}

const LABEL_RULE: &str =
    "use a-z, 0-9, `-`, `_` and `.`, beginning and ending with a letter or digit, without `..`";
const VERSION_RULE: &str = "use A-Z, a-z, 0-9, `-`, `_`, `+` and `.`, beginning with a letter or digit";

fn check_label(what: &'static str, text: &str) -> Result<(), NameError> {
    check_length(what, text, 63)?;
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    if !edge(text.bytes().next())
        || !edge(text.bytes().last())
        || !text.bytes().all(inner)
        || text.contains("..")
    {
        return Err(NameError::Character { what, text: text.escape_debug().to_string(), rule: LABEL_RULE });
    }
    Ok(())
}

fn check_version(what: &'static str, text: &str) -> Result<(), NameError> {
    check_length(what, text, 64)?;
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+');
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.bytes().all(inner) {
        return Err(NameError::Character { what, text: text.escape_debug().to_string(), rule: VERSION_RULE });
    }
    Ok(())
}

fn check_length(what: &'static str, text: &str, max: usize) -> Result<(), NameError> {
    if text.is_empty() || text.len() > max {
        return Err(NameError::Length { what, max, len: text.len() });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks `text` and wraps it.
            pub fn new(text: &str) -> Result<Self, NameError> {
                $check($what, text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of a fleet: one service with the exact set of hosts that must run it alike. Safe as a folder's name.
    FleetName, "fleet name", check_label
);
name!(
    /// The name of one enrolled machine identity. Safe as a folder's name and as a path segment of a SPIFFE ID.
    HostName, "host name", check_label
);
name!(
    /// The name in a certificate: a host's, an operator's, a pipeline's. The rule is that of host names.
    IdentityName, "name of an identity", check_label
);
name!(
    /// The version of a release, for people; identity is the manifest's digest.
    Version, "version", check_version
);

impl IdentityName {
    /// The host of this name: both kinds of name obey one rule.
    #[must_use]
    pub fn to_host(&self) -> HostName {
        HostName(self.0.clone())
    }
}

impl From<HostName> for IdentityName {
    fn from(host: HostName) -> Self {
        Self(host.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_safe_as_file_names() {
        for good in ["smars", "host-1", "a", "eu1.web_03", &"x".repeat(63)] {
            assert!(HostName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a..b", "-a", "a-", "A", "a/b", "a b", "a\n", "é", &"x".repeat(64)] {
            assert!(HostName::new(bad).is_err(), "{bad:?}");
            assert!(FleetName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn versions_allow_what_semver_writes() {
        for good in ["1.0.0", "2012.08.01+rlp", "v1", "1.0.0-rc.1_x"] {
            assert!(Version::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-1", "1 0", "1/0", &"1".repeat(65)] {
            assert!(Version::new(bad).is_err(), "{bad:?}");
        }
    }
}
