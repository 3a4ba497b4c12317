use std::path::Path;

use clap::Args;
use muster_model::{Change, ChangeKind, Digest, FleetName, Manifest, diff};
use serde::Serialize;

use super::fetch_manifest;
use super::tree::TreeArgs;
use crate::args::FleetArg;
use crate::commands::Env;
use crate::connect::Session;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::resolve::ReleaseName;

/// Show what one release changes of another. Either may be a folder, which is packed for it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster release diff 1.3.0 1.4.0
  muster release diff 1.4.0 ./build")]
pub(crate) struct Diff {
    /// The old one: a folder, or the digest, prefix or version of a release
    #[arg(value_name = "A")]
    old: String,
    /// The new one
    #[arg(value_name = "B")]
    new: String,
    #[command(flatten)]
    fleet: FleetArg,
}

impl Diff {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let mut source = Source { env, fleet: self.fleet.fleet, connection: None };
        let old = Box::pin(source.manifest(&self.old)).await?;
        let new = Box::pin(source.manifest(&self.new)).await?;
        env.ui.report(&Differs {
            old: Side { name: self.old, digest: old.digest() },
            new: Side { name: self.new, digest: new.digest() },
            identical: old.digest() == new.digest(),
            changes: diff(&old, &new),
        })?;
        Ok(Exit::Proven)
    }
}

/// Where manifests come from. The coordinator is asked only if a release is named.
struct Source<'a> {
    env: &'a Env,
    fleet: Option<FleetName>,
    connection: Option<(Session, FleetName)>,
}

impl Source<'_> {
    async fn manifest(&mut self, name: &str) -> Result<Manifest, CliError> {
        if Path::new(name).is_dir() {
            let tree = TreeArgs::of_folder(name.into());
            return Ok(tree.pack(&self.env.ui)?.packed.manifest);
        }
        let release: ReleaseName = name.parse().map_err(|error| CliError::Usage {
            what: format!("`{name}` is neither a folder nor a release: {error}"),
            next: "look at `muster release list`".to_owned(),
        })?;
        if self.connection.is_none() {
            let session = self.env.session().await?;
            let fleet = session.fleet(self.fleet.clone()).await?;
            self.connection = Some((session, fleet));
        }
        let (session, fleet) = self.connection.as_ref().expect("it was just made");
        let known = session.release(fleet, &release).await?;
        fetch_manifest(session, &known).await
    }
}

#[derive(Debug, Serialize)]
struct Differs {
    old: Side,
    new: Side,
    identical: bool,
    changes: Vec<Change>,
}

#[derive(Debug, Serialize)]
struct Side {
    name: String,
    digest: Digest,
}

impl Report for Differs {
    const SCHEMA: &'static str = "muster.diff/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!("old {} ({})", self.old.name, self.old.digest));
        page.line(format_args!("new {} ({})", self.new.name, self.new.digest));
        if self.identical {
            page.toned(Tone::Good, "identical");
        }
        for change in &self.changes {
            let tone = match &change.kind {
                ChangeKind::Added { .. } | ChangeKind::RuleAdded { .. } => Tone::Good,
                ChangeKind::Removed { .. } | ChangeKind::RuleRemoved { .. } => Tone::Bad,
                ChangeKind::Modified { .. } => Tone::Warning,
            };
            page.toned(tone, change);
        }
    }
}
