//! The root of trust: which keys may sign what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::{Document, DocumentError, DocumentKind, PublicKey, UnixTime};

const FORMAT: &str = "muster.root/1";

/// A role of the root document: what a key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SigningRole {
    /// The root document itself.
    Root,
    /// Releases.
    Release,
    /// Orders and rosters.
    Operator,
}

/// The keys of one role and how many different ones must sign.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleKeys {
    /// How many unique keys must sign; at least 1, at most the number of keys.
    pub threshold: u32,
    /// The keys, each once.
    pub keys: Vec<PublicKey>,
}

/// The root document. Hosts pin the first when they are provisioned; it never comes from the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    format: String,
    /// Rises by one with each successor.
    pub version: u64,
    /// Milliseconds since 1970; afterwards nothing verifies.
    pub expires_unix_ms: UnixTime,
    /// All three roles.
    pub roles: BTreeMap<SigningRole, RoleKeys>,
}

impl Root {
    /// Makes a root document and checks it.
    pub fn new(
        version: u64,
        expires_unix_ms: UnixTime,
        roles: BTreeMap<SigningRole, RoleKeys>,
    ) -> Result<Self, DocumentError> {
        let root = Self { format: FORMAT.to_owned(), version, expires_unix_ms, roles };
        root.check()?;
        Ok(root)
    }

    /// The keys and threshold of `role`.
    ///
    /// # Panics
    /// Never: construction demands all roles.
    #[must_use]
    pub fn role(&self, role: SigningRole) -> &RoleKeys {
        self.roles.get(&role).expect("a checked root has all roles")
    }

    /// Whether one person alone can sign for some role, which every status and receipt says openly.
    #[must_use]
    pub fn is_solo(&self) -> bool {
        self.roles.values().any(|role| role.threshold < 2)
    }

    fn check(&self) -> Result<(), DocumentError> {
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "root", reason });
        if self.version == 0 {
            return invalid("versions begin at 1".to_owned());
        }
        for role in [SigningRole::Root, SigningRole::Release, SigningRole::Operator] {
            let Some(keys) = self.roles.get(&role) else {
                return invalid(format!("the role {role:?} is missing"));
            };
            let mut unique = keys.keys.clone();
            unique.sort();
            unique.dedup();
            if unique.len() != keys.keys.len() {
                return invalid(format!("the role {role:?} lists a key twice"));
            }
            if keys.threshold == 0 || keys.threshold as usize > unique.len() {
                return invalid(format!(
                    "the role {role:?} has {} keys and a threshold of {}",
                    unique.len(),
                    keys.threshold
                ));
            }
        }
        Ok(())
    }
}

impl Document for Root {
    const KIND: DocumentKind = DocumentKind::Root;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let root: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &root.format, FORMAT)?;
        root.check()?;
        Ok(root)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(threshold: u32, keys: &[u8]) -> RoleKeys {
        RoleKeys { threshold, keys: keys.iter().map(|b| PublicKey::Ed25519([*b; 32])).collect() }
    }

    fn roles(operator: RoleKeys) -> BTreeMap<SigningRole, RoleKeys> {
        BTreeMap::from([
            (SigningRole::Root, role(1, &[1])),
            (SigningRole::Release, role(1, &[2])),
            (SigningRole::Operator, operator),
        ])
    }

    #[test]
    fn thresholds_must_be_reachable_by_unique_keys() {
        let root = |operator| Root::new(1, UnixTime(1), roles(operator));
        assert!(root(role(2, &[3, 4])).is_ok_and(|root| root.is_solo()));
        assert!(root(role(0, &[3])).is_err());
        assert!(root(role(2, &[3])).is_err());
        assert!(root(role(2, &[3, 3])).is_err());
        assert!(Root::new(0, UnixTime(1), roles(role(1, &[3]))).is_err());
        let mut two = roles(role(1, &[3]));
        two.remove(&SigningRole::Release);
        assert!(Root::new(1, UnixTime(1), two).is_err());
    }

    #[test]
    fn parsing_is_strict() {
        let root = Root::new(1, UnixTime(5), roles(role(1, &[3]))).expect("valid");
        assert_eq!(Root::parse(&root.to_bytes()), Ok(root.clone()));
        let text = String::from_utf8(root.to_bytes()).expect("JSON");
        let unknown = text.replacen('{', "{\"extra\":1,", 1);
        assert!(matches!(Root::parse(unknown.as_bytes()), Err(DocumentError::Syntax { .. })));
        let newer = text.replace("root/1", "root/2");
        assert!(matches!(Root::parse(newer.as_bytes()), Err(DocumentError::Format { .. })));
    }
}
