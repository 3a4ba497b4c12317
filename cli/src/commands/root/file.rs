//! A root as people write it, before it is signed.

use std::collections::BTreeMap;

use muster_model::{DocumentError, KEY_NAME_BYTES_MAX, PublicKey, RoleKeys, Root, SigningRole, UnixTime};
use serde::{Deserialize, Serialize};

use super::ROLES;
use super::joiner::JoinerFile;

/// The TOML file that `root edit` writes and `root sign` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootFile {
    /// The version: the present one and one.
    pub(super) version: u64,
    /// Until when it holds.
    pub(super) expires: jiff::Timestamp,
    /// How many keys of each role must sign.
    pub(super) threshold: BTreeMap<SigningRole, u32>,
    /// The keys.
    #[serde(default, rename = "key")]
    pub(super) keys: Vec<KeyFile>,
    /// Who may add hosts without operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) joiner: Option<JoinerFile>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyFile {
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// The key.
    pub(super) public: PublicKey,
    /// What it may sign.
    pub(super) roles: Vec<SigningRole>,
}

impl RootFile {
    /// The file that says the same as `root`.
    pub(super) fn of(root: &Root, version: u64, expires: UnixTime) -> Self {
        let mut keys: Vec<KeyFile> = Vec::new();
        for role in ROLES {
            for public in &root.role(role).keys {
                if let Some(known) = keys.iter_mut().find(|known| known.public == *public) {
                    known.roles.push(role);
                } else {
                    let name = root.name_of(public).map(str::to_owned);
                    keys.push(KeyFile { name, public: public.clone(), roles: vec![role] });
                }
            }
        }
        let seconds = i64::try_from(expires.0 / 1000).ok();
        let expires = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        Self {
            version,
            expires: expires.unwrap_or(jiff::Timestamp::MAX),
            threshold: ROLES.iter().map(|role| (*role, root.role(*role).threshold)).collect(),
            keys,
            joiner: JoinerFile::of(root),
        }
    }

    /// The document.
    pub(super) fn to_root(&self) -> Result<Root, DocumentError> {
        let role_keys = |role: &SigningRole| RoleKeys {
            threshold: self.threshold.get(role).copied().unwrap_or(0),
            keys: self
                .keys
                .iter()
                .filter(|key| key.roles.contains(role))
                .map(|key| key.public.clone())
                .collect(),
        };
        let roles = ROLES.iter().map(|role| (*role, role_keys(role))).collect();
        let names = self.keys.iter().filter_map(|key| Some((key.public.clone(), key.name.clone()?)));
        let names = names.chain(self.joiner.iter().flat_map(JoinerFile::names));
        let expires = UnixTime(u64::try_from(self.expires.as_millisecond()).unwrap_or(0));
        let root = Root::new(self.version, expires, roles)?;
        let root = match &self.joiner {
            Some(joiner) => root.with_joiners(joiner.to_joiners()?)?,
            None => root,
        };
        root.with_names(names.collect())
    }

    /// Gives a key a role. Whether that changed anything. A name that another key has, or that is none, is left out.
    pub(super) fn add(&mut self, role: SigningRole, public: &PublicKey, name: Option<&str>) -> bool {
        let is_taken = |name: &str| {
            self.keys.iter().any(|known| known.public != *public && known.name.as_deref() == Some(name))
        };
        let name = name.filter(|name| {
            name.len() <= KEY_NAME_BYTES_MAX && !name.contains(char::is_control) && !is_taken(name)
        });
        let Some(known) = self.keys.iter_mut().find(|known| known.public == *public) else {
            let (name, public) = (name.map(str::to_owned), public.clone());
            self.keys.push(KeyFile { name, public, roles: vec![role] });
            return true;
        };
        let is_new = !known.roles.contains(&role);
        if is_new {
            known.roles.push(role);
        }
        known.name = known.name.take().or_else(|| name.map(str::to_owned));
        is_new
    }

    /// Takes a role from a key; a key without a role goes. Whether that changed anything.
    pub(super) fn remove(&mut self, role: SigningRole, public: &PublicKey) -> bool {
        let Some(known) = self.keys.iter_mut().find(|known| known.public == *public) else { return false };
        let before = known.roles.len();
        known.roles.retain(|known| *known != role);
        let is_changed = known.roles.len() < before;
        self.keys.retain(|key| !key.roles.is_empty());
        is_changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"version = 2
expires = "2028-11-22T09:00:00Z"

[threshold]
root = 1
release = 1
operator = 2

[[key]]
name = "alice"
public = "ed25519:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
roles = ["root", "operator"]

[[key]]
public = "ed25519:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
roles = ["release", "operator"]
"#;

    #[test]
    fn a_draft_says_the_same_as_its_document() {
        let file: RootFile = toml::from_str(TEXT).unwrap();
        let root = file.to_root().unwrap();
        assert_eq!(toml::to_string(&RootFile::of(&root, 2, root.expires_unix_ms)).unwrap(), TEXT);
        for (field, wrong) in
            [("roles = [\"root\"", "roles = [\"admin\""), ("version", "verzion"), ("2028", "20x8")]
        {
            assert!(toml::from_str::<RootFile>(&TEXT.replace(field, wrong)).is_err(), "{wrong}");
        }
        let unreachable: RootFile = toml::from_str(&TEXT.replace("operator = 2", "operator = 3")).unwrap();
        assert!(unreachable.to_root().is_err());
        let forgotten: RootFile = toml::from_str(&TEXT.replace("operator = 2\n", "")).unwrap();
        assert!(forgotten.to_root().is_err(), "no threshold is no threshold of nothing");
    }

    #[test]
    fn who_may_add_hosts_is_said_with_every_limit() {
        let joiner = r#"
[joiner]
threshold = 1
hosts_max = 40
base_age_ms_max = 2592000000
fleets = ["demo"]

[[joiner.key]]
name = "autoscaler"
public = "ed25519:BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ="
"#;
        let text = format!("{TEXT}{joiner}");
        let root = toml::from_str::<RootFile>(&text).unwrap().to_root().unwrap();
        assert_eq!(root.name_of(&PublicKey::Ed25519([4; 32])), Some("autoscaler"));
        assert_eq!(toml::to_string(&RootFile::of(&root, 2, root.expires_unix_ms)).unwrap(), text);
        let to_root = |text: &str| toml::from_str::<RootFile>(text).map(|file| file.to_root());
        for left_out in ["threshold = 1\nhosts_max", "hosts_max = 40\n", "base_age_ms_max = 2592000000\n"] {
            assert!(to_root(&text.replace(left_out, "")).is_err(), "{left_out}");
        }
        let [of_joiner, of_alice] = [4, 1].map(|byte| PublicKey::Ed25519([byte; 32]).to_string());
        for (right, wrong) in [
            ("fleets = [\"demo\"]", ""),
            ("fleets = [\"demo\"]", "all_fleets = true\nfleets = [\"demo\"]"),
            ("hosts_max = 40", "hosts_max = 0"),
            (&of_joiner, &of_alice),
        ] {
            let changed = to_root(&text.replace(right, wrong));
            assert!(!matches!(changed, Ok(Ok(_))), "{wrong}: {changed:?}");
        }
    }

    #[test]
    fn roles_are_given_and_taken() {
        let mut file: RootFile = toml::from_str(TEXT).unwrap();
        let (alice, bob) = (file.keys[0].public.clone(), PublicKey::Ed25519([3; 32]));
        assert!(file.add(SigningRole::Release, &alice, Some("another name")));
        assert!(!file.add(SigningRole::Release, &alice, None), "it has the role");
        assert_eq!(file.keys[0].name.as_deref(), Some("alice"), "a name is kept");
        assert!(file.add(SigningRole::Root, &bob, Some("alice")));
        assert_eq!(file.keys[2].name, None, "a name is that of one key");
        assert!(!file.remove(SigningRole::Operator, &bob), "it never had the role");
        assert!(file.remove(SigningRole::Root, &bob));
        assert_eq!(file.keys.len(), 2, "a key without a role goes");
    }
}
