use std::path::{Path, PathBuf};

use clap::Args;
use muster_proto::v1;
use muster_trust::TrustRoot;
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
        let before = session.root().clone();
        let mut present = Box::pin(follow(&session, before.clone())).await?;
        let mut hosts = None;
        if let Some(path) = &self.file {
            let raw = read_bounded(path, FILE_BYTES_MAX)?;
            if *raw != **present.authentic().raw() {
                let doing = format!("put {} into force", path.display());
                let next = present.succeed(&raw).map_err(CliError::trust(doing.as_str()))?;
                let request = v1::ApplyRootRequest { envelope: raw };
                let mut client = session.operations();
                hosts = Some(Box::pin(answer(&doing, client.apply_root(request))).await?.hosts);
                present = next;
            }
        }
        let path = session.context().root_path();
        keep(&path, &before, &present)?;
        if let Some(folder) = session.context().fleet_folder() {
            // What `muster host issue` gives to new hosts.
            let provisioned = folder.join(ROOT_FILE);
            if read_root(&provisioned).is_ok_and(|root| root == before) {
                keep(&provisioned, &before, &present)?;
            }
        }
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

/// Goes on to the roots that the coordinator relays, as far as they verify.
async fn follow(session: &Session, mut root: TrustRoot) -> Result<TrustRoot, CliError> {
    const DOING: &str = "follow the root documents";
    for _ in 0..FOLLOWED_MAX {
        let request = v1::ShowRootsRequest { after_version: root.root().version };
        let mut client = session.operations();
        let shown = answer(DOING, client.show_roots(request)).await?;
        let Some(next) = shown.successors.first() else { return Ok(root) };
        root = root.succeed(&next.envelope).map_err(CliError::trust(DOING))?;
    }
    Ok(root)
}

/// Replaces the context's root, and keeps the one before beside it: receipts of its time verify with it.
fn keep(path: &Path, before: &TrustRoot, present: &TrustRoot) -> Result<(), CliError> {
    if before == present {
        return Ok(());
    }
    let beside = kept_beside(path, before.root().version);
    write(&beside, before.authentic().raw(), 0o644, Existing::Replace)?;
    write(path, present.authentic().raw(), 0o644, Existing::Replace)
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
