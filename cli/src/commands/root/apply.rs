use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use muster_proto::v1;
use muster_trust::{TrustError, TrustRoot};
use serde::Serialize;

use super::FILE_BYTES_MAX;
use super::difference::RootDifference;
use crate::commands::Env;
use crate::connect::{Session, answer};
use crate::context::{kept_beside, read_root};
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, read_bounded, write};
use crate::output::{Page, Report, Tone, counted};
use crate::provision::ROOT_FILE;

/// The most root documents that are followed at once.
const FOLLOWED_MAX: usize = 1024;

/// Put the next root document into force on all hosts, and in this context. Without a file, follow what others have put
/// into force.
///
/// Hosts take it because the present root's keys signed it, not because the coordinator relays it. One that is away gets it when it joins.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster root apply next.json
  muster root apply   # bring this context up to date")]
pub(crate) struct Apply {
    /// The signed root document
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Apply {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let mut roots = Followed::from_context(&session).await?;
        let mut hosts = None;
        if let Some(path) = &self.file {
            let raw = read_bounded(path, FILE_BYTES_MAX)?;
            let doing = format!("put {} into force", path.display());
            // A coordinator that was restored may lack what this context has followed long ago.
            let earlier = session.context().earlier_roots(roots.before.root().version);
            let is_followed = |root: &TrustRoot| *raw == **root.authentic().raw();
            if !roots.all().chain(&earlier).any(is_followed) {
                roots.succeed(&raw).map_err(CliError::trust(doing.as_str()))?;
            }
            let request = v1::ApplyRootRequest { envelope: raw };
            let mut client = session.operations();
            hosts = Some(Box::pin(answer(&doing, client.apply_root(request))).await?.hosts);
        }
        let path = session.context().root_path();
        roots.keep(&path)?;
        if let Some(folder) = session.context().fleet_folder() {
            // What `muster host issue` gives to new hosts.
            let provisioned = folder.join(ROOT_FILE);
            if read_root(&provisioned).is_ok_and(|root| root == roots.before) {
                roots.keep(&provisioned)?;
            }
        }
        let (before, present) = (&roots.before, roots.present());
        env.ui.report(&Applied {
            difference: RootDifference::of(before.root(), present.root()),
            version_before: before.root().version,
            context_root: path,
            hosts,
            solo: present.root().is_solo(),
        })?;
        Ok(Exit::Proven)
    }
}

/// The root that the context had, and those that follow it.
pub(in crate::commands) struct Followed {
    before: TrustRoot,
    after: Vec<TrustRoot>,
}

impl Followed {
    /// The context's root, and those after it that the coordinator relays.
    pub(in crate::commands) async fn from_context(session: &Session) -> Result<Self, CliError> {
        let mut roots = Self { before: session.root().clone(), after: Vec::new() };
        Box::pin(roots.follow(session)).await?;
        Ok(roots)
    }

    /// All of them, the context's first.
    pub(in crate::commands) fn all(&self) -> impl Iterator<Item = &TrustRoot> {
        std::iter::once(&self.before).chain(&self.after)
    }

    fn present(&self) -> &TrustRoot {
        self.after.last().unwrap_or(&self.before)
    }

    fn succeed(&mut self, raw: &[u8]) -> Result<(), TrustError> {
        let next = self.present().succeed(raw)?;
        self.after.push(next);
        Ok(())
    }

    /// Goes on to the roots that the coordinator relays, which verify themselves.
    async fn follow(&mut self, session: &Session) -> Result<(), CliError> {
        const DOING: &str = "follow the root documents";
        while self.after.len() < FOLLOWED_MAX {
            let request = v1::ShowRootsRequest { after_version: self.present().root().version };
            let mut client = session.operations();
            let shown = answer(DOING, client.show_roots(request)).await?;
            if shown.successors.is_empty() {
                break;
            }
            for next in shown.successors {
                self.succeed(&next.envelope).map_err(CliError::trust(DOING))?;
            }
        }
        Ok(())
    }

    /// Replaces the root in `path`, and keeps those before it beside it: receipts of their time verify with them.
    fn keep(&self, path: &Path) -> Result<(), CliError> {
        if self.after.is_empty() {
            return Ok(());
        }
        let raw = |root: &TrustRoot| Arc::clone(root.authentic().raw());
        for earlier in self.all().take(self.after.len()) {
            let beside = kept_beside(path, earlier.root().version);
            write(&beside, &raw(earlier), 0o644, Existing::Replace)?;
        }
        write(path, &raw(self.present()), 0o644, Existing::Replace)
    }
}

#[derive(Debug, Serialize)]
struct Applied {
    #[serde(flatten)]
    difference: RootDifference,
    version_before: u64,
    context_root: PathBuf,
    /// The connected hosts that it was handed to, if it was put into force by this command.
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts: Option<u32>,
    solo: bool,
}

impl Report for Applied {
    const SCHEMA: &'static str = "muster.root-apply/1";

    fn print(&self, page: &mut Page) {
        if self.version_before == self.difference.version {
            page.toned(Tone::Good, format_args!("root version {} is in force already", self.version_before));
            return;
        }
        page.toned(Tone::Good, format_args!("{} is up to date", self.context_root.display()));
        self.difference.print(page);
        if let Some(hosts) = self.hosts {
            page.line(format_args!(
                "It was handed to {}; others get it when they join.",
                counted(hosts, "host")
            ));
        }
        if self.solo {
            page.labelled(Tone::Warning, "solo mode", "for some role one key alone can sign anything");
        }
        page.gap();
        page.line(
            "Next: sign anew what removed keys have signed (`muster roster apply`, `muster release push`);",
        );
        page.line("      other operators: `muster root apply`; new hosts: give them this root");
    }
}
