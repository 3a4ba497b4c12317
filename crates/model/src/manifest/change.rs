//! What one release changes of another.

use std::cmp::Ordering;
use std::fmt;

use serde::Serialize;

use super::{Entry, EntryKind, ExternalCheck, Manifest, Place, TreeRules};

/// One change from an old manifest to a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where.
    pub path: Place,
    /// What.
    #[serde(flatten)]
    pub kind: ChangeKind,
}

/// What a change is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum ChangeKind {
    /// An entry that the old manifest does not have.
    Added {
        /// What it is.
        new: EntryKind,
    },
    /// An entry that the new manifest no longer has.
    Removed {
        /// What it was.
        old: EntryKind,
    },
    /// An entry of both that is not the same.
    Modified {
        /// What differs: `type`, `mode`, `content`, `target`.
        what: Vec<&'static str>,
        /// What it was.
        old: EntryKind,
        /// What it is.
        new: EntryKind,
    },
    /// A rule that the old manifest does not have.
    RuleAdded {
        /// The rule.
        rule: Rule,
    },
    /// A rule that the new manifest no longer has.
    RuleRemoved {
        /// The rule.
        rule: Rule,
    },
}

/// One rule of [`TreeRules`] about one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The path must be absent.
    Absent,
    /// The path is external.
    External(ExternalCheck),
    /// The path is mutable.
    Mutable,
}

/// All changes from `old` to `new`: rules first, then entries in the order of their paths.
#[must_use]
pub fn diff(old: &Manifest, new: &Manifest) -> Vec<Change> {
    let (old_rules, new_rules) = (rules(old.rules()), rules(new.rules()));
    let removed = old_rules.iter().filter(|rule| !new_rules.contains(rule));
    let added = new_rules.iter().filter(|rule| !old_rules.contains(rule));
    let mut changes: Vec<Change> =
        removed
            .map(|(path, rule)| Change { path: path.clone(), kind: ChangeKind::RuleRemoved { rule: *rule } })
            .chain(added.map(|(path, rule)| Change {
                path: path.clone(),
                kind: ChangeKind::RuleAdded { rule: *rule },
            }))
            .collect();
    diff_entries(old.entries(), new.entries(), &mut changes);
    changes
}

fn rules(rules: &TreeRules) -> Vec<(Place, Rule)> {
    let absent = rules.absent.iter().map(|path| (Place::Host(path.clone()), Rule::Absent));
    let external =
        rules.external.iter().map(|item| (Place::Host(item.path.clone()), Rule::External(item.check)));
    let mutable = rules.mutable.iter().map(|path| (Place::Tree(path.clone()), Rule::Mutable));
    absent.chain(external).chain(mutable).collect()
}

fn diff_entries(mut old: &[Entry], mut new: &[Entry], changes: &mut Vec<Change>) {
    loop {
        let order = match (old.first(), new.first()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.path.cmp(&b.path),
        };
        let (path, kind) = match order {
            Ordering::Less => (&old[0].path, Some(ChangeKind::Removed { old: old[0].kind.clone() })),
            Ordering::Greater => (&new[0].path, Some(ChangeKind::Added { new: new[0].kind.clone() })),
            Ordering::Equal => (&new[0].path, modified(&old[0].kind, &new[0].kind)),
        };
        changes.extend(kind.map(|kind| Change { path: Place::Tree(path.clone()), kind }));
        if order != Ordering::Greater {
            old = &old[1..];
        }
        if order != Ordering::Less {
            new = &new[1..];
        }
    }
}

fn modified(old: &EntryKind, new: &EntryKind) -> Option<ChangeKind> {
    let mut what = Vec::new();
    match (old, new) {
        (EntryKind::Dir { mode: a }, EntryKind::Dir { mode: b }) => {
            what.extend((a != b).then_some("mode"));
        }
        (EntryKind::Symlink { target: a }, EntryKind::Symlink { target: b }) => {
            what.extend((a != b).then_some("target"));
        }
        (
            EntryKind::File { mode: mode_a, size: size_a, digest: a },
            EntryKind::File { mode: mode_b, size: size_b, digest: b },
        ) => {
            what.extend((mode_a != mode_b).then_some("mode"));
            what.extend(((size_a, a) != (size_b, b)).then_some("content"));
        }
        (EntryKind::Dir { .. } | EntryKind::File { .. } | EntryKind::Symlink { .. }, _) => what.push("type"),
    }
    (!what.is_empty()).then(|| ChangeKind::Modified { what, old: old.clone(), new: new.clone() })
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.kind {
            ChangeKind::Added { new } => write!(f, "+ {path} ({new})"),
            ChangeKind::Removed { old } => write!(f, "- {path} ({old})"),
            ChangeKind::Modified { what, old, new } => {
                write!(f, "~ {path}: {} ({old} -> {new})", what.join(", "))
            }
            ChangeKind::RuleAdded { rule } => write!(f, "+ {path} is now {rule}"),
            ChangeKind::RuleRemoved { rule } => write!(f, "- {path} is no longer {rule}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::External(ExternalCheck::Digest { digest }) => write!(f, "external with {digest}"),
            Self::External(ExternalCheck::Uniform) => f.write_str("external, uniform"),
            Self::External(ExternalCheck::Present) => f.write_str("external, present"),
            Self::Mutable => f.write_str("mutable"),
        }
    }
}
