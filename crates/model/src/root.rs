//! The root of trust: which keys may sign what.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::{Document, DocumentError, DocumentKind, Joiners, PublicKey, UnixTime};

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

impl RoleKeys {
    /// What is wrong with them, if anything.
    pub(crate) fn check(&self, role: &str) -> Result<(), String> {
        let unique: BTreeSet<&PublicKey> = self.keys.iter().collect();
        if unique.len() != self.keys.len() {
            return Err(format!("the role {role} lists a key twice"));
        }
        if self.threshold == 0 || self.threshold as usize > unique.len() {
            let (keys, threshold) = (unique.len(), self.threshold);
            return Err(format!("the role {role} has {keys} keys and a threshold of {threshold}"));
        }
        Ok(())
    }
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
    /// Who may add hosts without operators; nobody unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joiners: Option<Joiners>,
    /// What people call the keys, as far as they have names. It decides nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<PublicKey, String>,
}

/// The longest name of a key, in bytes.
pub const KEY_NAME_BYTES_MAX: usize = 64;

impl Root {
    /// Makes a root document and checks it.
    pub fn new(
        version: u64,
        expires_unix_ms: UnixTime,
        roles: BTreeMap<SigningRole, RoleKeys>,
    ) -> Result<Self, DocumentError> {
        let root = Self {
            format: FORMAT.to_owned(),
            version,
            expires_unix_ms,
            roles,
            joiners: None,
            names: BTreeMap::new(),
        };
        root.check()?;
        Ok(root)
    }

    /// The same with keys that may add hosts.
    pub fn with_joiners(self, joiners: Joiners) -> Result<Self, DocumentError> {
        let root = Self { joiners: Some(joiners), ..self };
        root.check()?;
        Ok(root)
    }

    /// The same with names for its keys, each another one.
    pub fn with_names(self, names: BTreeMap<PublicKey, String>) -> Result<Self, DocumentError> {
        let root = Self { names, ..self };
        root.check()?;
        Ok(root)
    }

    /// What people call a key, if it has a name.
    #[must_use]
    pub fn name_of(&self, key: &PublicKey) -> Option<&str> {
        self.names.get(key).map(String::as_str)
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
            keys.check(&format!("{role:?}")).or_else(invalid)?;
        }
        if let Some(joiners) = &self.joiners {
            joiners.check().or_else(invalid)?;
            // It lies on a machine that makes hosts, so it must be worth no more than that.
            let has_role = |key: &&PublicKey| self.roles.values().any(|role| role.keys.contains(key));
            if let Some(key) = joiners.role.keys.iter().find(has_role) {
                return invalid(format!("the joiner key {key} has another role as well"));
            }
        }
        self.check_names()
    }

    fn has_key(&self, key: &PublicKey) -> bool {
        let joiners = self.joiners.iter().map(|joiners| &joiners.role);
        self.roles.values().chain(joiners).any(|role| role.keys.contains(key))
    }

    /// A name is shown to whoever signs, so none may pass for another or for more than a name.
    fn check_names(&self) -> Result<(), DocumentError> {
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "root", reason });
        let mut taken = BTreeSet::new();
        for (key, name) in &self.names {
            if !self.has_key(key) {
                return invalid(format!("it names the key {key}, which has no role"));
            }
            let is_plain = !name.is_empty()
                && name.len() <= KEY_NAME_BYTES_MAX
                && name.trim() == name
                && !name.contains(char::is_control);
            if !is_plain {
                return invalid(format!(
                    "the name of the key {key} is not one line of 1 to {KEY_NAME_BYTES_MAX} bytes"
                ));
            }
            if !taken.insert(name) {
                return invalid(format!("two keys are called {name}"));
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
    fn names_are_plain_and_belong_to_one_key_each() {
        let key = |byte| PublicKey::Ed25519([byte; 32]);
        let named = |names: &[(u8, &str)]| {
            let names = names.iter().map(|(byte, name)| (key(*byte), (*name).to_owned())).collect();
            Root::new(1, UnixTime(1), roles(role(1, &[3]))).expect("valid").with_names(names)
        };
        let root = named(&[(1, "alice"), (3, "bob")]).expect("valid");
        assert_eq!((root.name_of(&key(3)), root.name_of(&key(2))), (Some("bob"), None));
        assert_eq!(Root::parse(&root.to_bytes()), Ok(root));
        let long = "a".repeat(KEY_NAME_BYTES_MAX + 1);
        for wrong in [
            &[(1, "alice"), (3, "alice")][..],
            &[(4, "nobody")],
            &[(1, "")],
            &[(1, " alice")],
            &[(1, "alice\u{1b}[2K")],
            &[(1, &long)],
        ] {
            assert!(named(wrong).is_err(), "{wrong:?}");
        }
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
