use std::path::PathBuf;

use clap::Args;
use muster_model::{Root, SigningRole};
use muster_trust::TrustRoot;
use serde::Serialize;

use super::joiner::JoinersView;
use super::{ROLES, role_name};
use crate::clock::{date_text, span_text, unix_time};
use crate::commands::Env;
use crate::context::read_root;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::view::KeyView;

/// A root that ends within this is said to, in milliseconds.
const SOON_MS: u64 = 90 * 24 * 3600 * 1000;

/// Show which keys may sign what, and until when.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster root show
  muster root show root.json")]
pub(crate) struct Show {
    /// A root document [default: the context's]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Show {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let root = match &self.file {
            Some(path) => read_root(path)?,
            None => env.context()?.trust_root()?,
        };
        env.ui.report(&Shown::of(&root))?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    version: u64,
    expires: String,
    #[serde(skip)]
    expires_in_ms: Option<u64>,
    expired: bool,
    solo: bool,
    roles: Vec<RoleView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joiners: Option<JoinersView>,
}

#[derive(Debug, Serialize)]
struct RoleView {
    role: SigningRole,
    threshold: u32,
    keys: Vec<KeyView>,
}

impl Shown {
    fn of(root: &TrustRoot) -> Self {
        let root: &Root = root.root();
        let expires_in_ms = root.expires_unix_ms.0.checked_sub(unix_time().0).filter(|left| *left > 0);
        let roles = ROLES.map(|role| RoleView {
            role,
            threshold: root.role(role).threshold,
            keys: root.role(role).keys.iter().map(|key| KeyView::of(root, key)).collect(),
        });
        Self {
            version: root.version,
            expires: date_text(root.expires_unix_ms),
            expires_in_ms,
            expired: expires_in_ms.is_none(),
            solo: root.is_solo(),
            roles: roles.into(),
            joiners: JoinersView::of(root),
        }
    }
}

impl Report for Shown {
    const SCHEMA: &'static str = "muster.root/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!("version   {}", self.version));
        page.line(format_args!("until     {}", self.expires));
        for role in &self.roles {
            let name = role_name(role.role);
            page.line(format_args!("{name:<9} {} of {} must sign", role.threshold, role.keys.len()));
            for key in &role.keys {
                page.line(format_args!("          {key}"));
            }
        }
        if let Some(joiners) = &self.joiners {
            joiners.print(page);
        }
        if self.solo {
            page.labelled(Tone::Warning, "solo mode", "for some role one key alone can sign anything");
        }
        let renew = "make its successor: `muster root edit --out next.toml`";
        match self.expires_in_ms {
            None => page.labelled(Tone::Bad, "expired", format_args!("nothing verifies any more; {renew}")),
            Some(left) if left < SOON_MS => {
                page.labelled(Tone::Warning, "expires soon", format_args!("in {}; {renew}", span_text(left)));
            }
            Some(_) => {}
        }
    }
}
