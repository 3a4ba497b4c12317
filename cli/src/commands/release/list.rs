use clap::Args;
use muster_model::{Digest, FleetName};
use serde::Serialize;

use crate::args::FleetArg;
use crate::clock::date_text;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, bytes_text};
use crate::view::ReleaseView;

/// List the fleet's releases, the newest first.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster release list --fleet demo")]
pub(crate) struct List {
    #[command(flatten)]
    fleet: FleetArg,
}

impl List {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let mut known = session.releases(&fleet).await?;
        known.sort_by_key(|known| std::cmp::Reverse(known.release.created_unix_ms));
        let releases = known.iter().map(|known| Row {
            release: ReleaseView::from(known),
            created: date_text(known.release.created_unix_ms),
            files: known.files,
            bytes: known.bytes,
            deployed: known.deployed.len(),
            serving: known.serving,
        });
        env.ui.report(&Listed { releases: releases.collect(), fleet })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    fleet: FleetName,
    releases: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    release: ReleaseView,
    created: String,
    files: u64,
    bytes: u64,
    deployed: usize,
    serving: bool,
}

impl Row {
    fn cells(&self, digest: String) -> [String; 6] {
        [
            self.release.version.clone(),
            digest,
            self.created.clone(),
            bytes_text(self.bytes),
            self.deployed.to_string(),
            if self.serving { "serving" } else { "" }.to_owned(),
        ]
    }
}

impl Report for Listed {
    const SCHEMA: &'static str = "muster.releases/1";

    fn print(&self, page: &mut Page) {
        if self.releases.is_empty() {
            page.line(format_args!("{} has no release yet; `muster release push` adds one", self.fleet));
            return;
        }
        let rows = |digest: fn(&Digest) -> String| {
            self.releases.iter().map(move |row| row.cells(digest(&row.release.digest))).collect()
        };
        let header = ["VERSION", "DIGEST", "SIGNED", "SIZE", "HOSTS", ""];
        // The first digits of a digest are enough for every command that asks for a release.
        page.fitting_table(header, rows(ToString::to_string), || rows(Digest::short));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    #[test]
    fn the_digest_is_always_shown_in_full() {
        let release = ReleaseView { version: "1.4.0".to_owned(), digest: Digest::from_bytes([7; 32]) };
        let listed = Listed {
            fleet: FleetName::new("demo").unwrap(),
            releases: vec![Row {
                release,
                created: "2026-11-23T00:00:00Z".to_owned(),
                files: 3,
                bytes: 2048,
                deployed: 8,
                serving: true,
            }],
        };
        let mut page = Page::new(false);
        listed.print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        VERSION  DIGEST                                                                   SIGNED                SIZE      HOSTS
        1.4.0    sha256:0707070707070707070707070707070707070707070707070707070707070707  2026-11-23T00:00:00Z  2.00 KiB  8      serving
        ");
        insta::assert_snapshot!(json(Listed::SCHEMA, &listed), @r#"
        {
          "schema": "muster.releases/1",
          "fleet": "demo",
          "releases": [
            {
              "version": "1.4.0",
              "digest": "sha256:0707070707070707070707070707070707070707070707070707070707070707",
              "created": "2026-11-23T00:00:00Z",
              "files": 3,
              "bytes": 2048,
              "deployed": 8,
              "serving": true
            }
          ]
        }
        "#);
    }
}
