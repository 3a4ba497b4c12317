//! What the next root changes: whoever signs it sees this first.

use muster_model::{Root, SigningRole};
use serde::Serialize;

use super::joiner::JoinersDifference;
use super::{ROLES, role_name};
use crate::clock::date_text;
use crate::output::{Page, Tone};
use crate::view::KeyView;

/// The changes between two roots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct RootDifference {
    pub(super) version: u64,
    expires: String,
    roles: Vec<RoleDifference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joiners: Option<JoinersDifference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RoleDifference {
    role: SigningRole,
    threshold_before: u32,
    threshold: u32,
    keys: usize,
    added: Vec<KeyView>,
    removed: Vec<KeyView>,
}

impl RootDifference {
    pub(super) fn of(present: &Root, next: &Root) -> Self {
        let missing_in = |root: &Root, other: &Root, role| {
            let others = &other.role(role).keys;
            let missing = root.role(role).keys.iter().filter(|key| !others.contains(key));
            missing.map(|key| KeyView::of(root, key)).collect()
        };
        let roles = ROLES.map(|role| RoleDifference {
            role,
            threshold_before: present.role(role).threshold,
            threshold: next.role(role).threshold,
            keys: next.role(role).keys.len(),
            added: missing_in(next, present, role),
            removed: missing_in(present, next, role),
        });
        Self {
            version: next.version,
            expires: date_text(next.expires_unix_ms),
            roles: roles.into(),
            joiners: JoinersDifference::of(present, next),
        }
    }

    pub(super) fn print(&self, page: &mut Page) {
        page.line(format_args!("root version {}, until {}", self.version, self.expires));
        for role in &self.roles {
            let threshold = if role.threshold == role.threshold_before {
                String::new()
            } else {
                format!(" (was {})", role.threshold_before)
            };
            let name = role_name(role.role);
            page.line(format_args!("{name:<9} {} of {} keys{threshold}", role.threshold, role.keys));
            for key in &role.added {
                page.toned(Tone::Good, format_args!("  + {key}"));
            }
            for key in &role.removed {
                page.toned(Tone::Bad, format_args!("  - {key}"));
            }
        }
        if let Some(joiners) = &self.joiners {
            joiners.print(page);
        }
    }
}
