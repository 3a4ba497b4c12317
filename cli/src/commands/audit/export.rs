use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use muster_audit::{EXPORT_ROOTS_MAX, export_header, export_line, export_root_line};
use muster_proto::v1;
use muster_trust::TrustRoot;
use serde::Serialize;

use super::LogView;
use super::fetch::Fetch;
use crate::commands::Env;
use crate::commands::root::apply::Followed;
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, Unfinished};
use crate::output::{Page, Report, Tone, counted};

const DOING: &str = "export the audit log";

/// Save the whole audit log to a file that verifies offline, with the root documents that it speaks of.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster audit export 2026-11.audit")]
pub(crate) struct Export {
    /// The file to write; it must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Export {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let known = session.context().audit_key().cloned();
        let fetch = Fetch::begin(&session, known.as_ref(), DOING).await?;
        // After the checkpoint, so that no entry speaks of a root that is not among them.
        let roots = roots(&session).await?;
        let mut file = Unfinished::create(&self.file, 0o644, Existing::Keep)?;
        file.append(export_header(fetch.key(), fetch.checkpoint(), roots.len()).as_bytes())?;
        for root in roots.values() {
            file.append(&export_root_line(root.authentic().raw()))?;
        }
        let (log, known) = fetch.all(|bytes, _| file.append(&export_line(bytes))).await?;
        file.finish()?;
        env.ui.report(&Exported { file: self.file, roots: roots.len(), log: LogView::new(log, known) })?;
        Ok(Exit::Proven)
    }
}

/// All root documents that are known to the context or the coordinator, by version. Whoever verifies the export believes those
/// that follow from the one that they have pinned.
async fn roots(session: &Session) -> Result<BTreeMap<u64, TrustRoot>, CliError> {
    let followed = Followed::from_context(session).await?;
    let mut roots: BTreeMap<u64, TrustRoot> = BTreeMap::new();
    let mut client = session.operations();
    let mut after_version = 0;
    while roots.len() < EXPORT_ROOTS_MAX {
        let shown = answer(DOING, client.show_roots(v1::ShowRootsRequest { after_version })).await?;
        let Some(last) = shown.successors.last() else { break };
        if last.version <= after_version {
            break;
        }
        after_version = last.version;
        for shown in &shown.successors {
            let root = TrustRoot::pin(&shown.envelope).map_err(CliError::trust(DOING))?;
            roots.insert(root.root().version, root);
        }
    }
    // Of those that were verified here, these and no others.
    let earlier = session.context().earlier_roots(session.root().root().version);
    let known = earlier.into_iter().chain(followed.all().cloned());
    roots.extend(known.map(|root| (root.root().version, root)));
    while roots.len() > EXPORT_ROOTS_MAX {
        roots.pop_first();
    }
    Ok(roots)
}

#[derive(Debug, Serialize)]
struct Exported {
    file: PathBuf,
    roots: usize,
    #[serde(flatten)]
    log: LogView,
}

impl Report for Exported {
    const SCHEMA: &'static str = "muster.audit-exported/1";

    fn print(&self, page: &mut Page) {
        let (entries, file) = (counted(self.log.entries, "entry"), self.file.display());
        page.toned(Tone::Good, format_args!("saved {entries} of {} to {file}", self.log.origin));
        page.line(format_args!("with {}", counted(self.roots as u64, "root document")));
        page.line(format_args!("Next: muster audit verify {file} --key {}", self.log.key));
    }
}
