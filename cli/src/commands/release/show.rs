use std::collections::BTreeMap;

use clap::Args;
use muster_model::{Entry, FlagDeclaration, FleetName, TreeRules};
use serde::Serialize;

use super::fetch_manifest;
use crate::args::FleetArg;
use crate::clock::date_text;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, bytes_text, counted};
use crate::resolve::ReleaseName;
use crate::view::ReleaseView;

/// Show what is known of a release; with `--files` every entry of its tree.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster release show 1.4.0
  muster release show 1.4.0 --files")]
pub(crate) struct Show {
    /// The release: its digest, at least 8 hex digits of it, or its version
    #[arg(value_name = "RELEASE")]
    release: ReleaseName,
    #[command(flatten)]
    fleet: FleetArg,
    /// List every entry of its tree
    #[arg(long)]
    files: bool,
}

impl Show {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let known = session.release(&fleet, &self.release).await?;
        let manifest = if self.files { Some(fetch_manifest(&session, &known).await?) } else { None };
        env.ui.report(&Shown {
            release: ReleaseView::from(&known),
            created: date_text(known.release.created_unix_ms),
            expires: known.release.expires_unix_ms.map(date_text),
            builder: known.release.builder.clone(),
            source_revision: known.release.source_revision.clone(),
            flags: known.release.flags.clone(),
            files: known.files,
            bytes: known.bytes,
            deployed: known.deployed.clone(),
            serving: known.serving,
            rules: manifest.as_ref().map(|manifest| manifest.rules().clone()),
            entries: manifest.map(|manifest| manifest.entries().to_vec()),
            fleet,
        })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    fleet: FleetName,
    #[serde(flatten)]
    release: ReleaseView,
    created: String,
    expires: Option<String>,
    builder: Option<String>,
    source_revision: Option<String>,
    flags: BTreeMap<String, FlagDeclaration>,
    files: u64,
    bytes: u64,
    deployed: Vec<String>,
    serving: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<TreeRules>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<Entry>>,
}

impl Report for Shown {
    const SCHEMA: &'static str = "muster.release/1";

    fn print(&self, page: &mut Page) {
        let mut field = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                page.line(format_args!("{name:10}{value}"));
            }
        };
        field("fleet", Some(self.fleet.as_str()));
        field("version", Some(&self.release.version));
        field("digest", Some(&self.release.digest.to_string()));
        field("signed", Some(&self.created));
        field("expires", self.expires.as_deref());
        field("builder", self.builder.as_deref());
        field("source", self.source_revision.as_deref());
        field("tree", Some(&format!("{}, {}", counted(self.files, "file"), bytes_text(self.bytes))));
        let hosts = if self.deployed.is_empty() { "none".to_owned() } else { self.deployed.join(", ") };
        field("on disk", Some(&hosts));
        field("serving", Some(if self.serving { "yes" } else { "no" }));
        for (key, flag) in &self.flags {
            let what = flag.semantics.as_deref().unwrap_or("no longer read");
            field("flag", Some(&format!("{key}: {what}")));
        }
        if let Some(entries) = &self.entries {
            page.gap();
            for entry in entries {
                page.line(format_args!("{}: {}", entry.path, entry.kind));
            }
        }
    }
}
