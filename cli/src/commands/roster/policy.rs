//! What a roster changes of its fleet's policy, key by key as people write it in the file.

use std::collections::BTreeMap;
use std::fmt;

use muster_model::Policy;
use serde::Serialize;

use super::file::PolicyFile;

/// One key of the policy that gets another value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct PolicyChange {
    /// As in the file, from its beginning on: `policy.timing.lease_ms`.
    key: String,
    /// Nothing where the key was not there.
    before: Option<String>,
    /// Nothing where it is not there any more.
    after: Option<String>,
}

impl PolicyChange {
    /// All keys that differ, in alphabetical order.
    pub(super) fn between(before: Policy, after: Policy) -> Vec<Self> {
        let (before, mut after) = (values(before), values(after));
        let mut changes = Vec::new();
        for (key, before) in before {
            let after = after.remove(&key);
            if after.as_ref() != Some(&before) {
                changes.push(Self { key, before: Some(before), after });
            }
        }
        changes.extend(after.into_iter().map(|(key, after)| Self { key, before: None, after: Some(after) }));
        changes.sort_by(|one, other| one.key.cmp(&other.key));
        changes
    }
}

impl fmt::Display for PolicyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{}: {} → {}", self.key, text(&self.before), text(&self.after))
    }
}

/// Every value of a policy by its key.
fn values(policy: Policy) -> BTreeMap<String, String> {
    let written =
        toml::Table::try_from(PolicyFile::from(policy)).expect("a policy has string keys and no dates");
    let mut values = BTreeMap::new();
    let mut tables = vec![("policy".to_owned(), written)];
    while let Some((path, table)) = tables.pop() {
        for (key, value) in table {
            let key = format!("{path}.{key}");
            if let toml::Value::Table(table) = value {
                tables.push((key, table));
            } else {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                values.insert(key, text);
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use muster_model::{BootGatePolicy, ClockPolicy, Timing};

    use super::*;

    #[test]
    fn each_key_that_changes_is_shown_as_it_is_written() {
        let before = Policy::default();
        let timing = Timing { clock_error_ms: 25, ..Timing::with_lease(2000, 500) };
        let after = Policy { clock: ClockPolicy::Any, boot_gate: BootGatePolicy::Optional, timing };
        let changes = PolicyChange::between(before, after);
        let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        policy.boot_gate: required → optional
        policy.clock: steady → any
        policy.timing.clock_error_ms: 10 → 25
        policy.timing.fence_ms: 5000 → 500
        policy.timing.lease_ms: 15000 → 2000
        policy.timing.wait_ms: 25000 → 3100
        ");
        assert_eq!(PolicyChange::between(after, after), []);
        let one = PolicyChange { key: "policy.new".to_owned(), before: None, after: Some("x".to_owned()) };
        assert_eq!(one.to_string(), "policy.new: nothing → x");
    }
}
