use clap::Args;
use muster_model::{Digest, FleetName};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use muster_proto::v1::find_request::What;
use serde::Serialize;

use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::view::ReleaseView;

/// Find the hosts that hold certain bytes: which of them still have the vulnerable library?
///
/// It ends with 0 only if something was found and nothing is unknown of any host.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster find --path '**/libssl.so*'
  muster find --digest sha256:… --fleet demo")]
pub(crate) struct Find {
    #[command(flatten)]
    what: WhatArgs,
    /// Look in this fleet only [default: in all]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
}

/// What is looked for.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct WhatArgs {
    /// Files with this content
    #[arg(long, value_name = "DIGEST")]
    digest: Option<Digest>,
    /// Files at paths in release trees that match this glob
    #[arg(long, value_name = "GLOB")]
    path: Option<String>,
}

impl Find {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        const DOING: &str = "find the files";
        let session = env.session().await?;
        let what = match (self.what.digest, self.what.path) {
            (Some(digest), _) => Some(What::Digest(digest.as_bytes().to_vec())),
            (None, path) => path.map(What::Path),
        };
        let fleet = self.fleet.as_ref().map_or_else(String::new, ToString::to_string);
        let mut client = session.operations();
        let answer = answer(DOING, client.find(v1::FindRequest { fleet, what })).await?;
        let report = FoundReport::new(answer).map_err(CliError::answer(DOING))?;
        env.ui.report(&report)?;
        Ok(report.exit_code)
    }
}

#[derive(Debug, Serialize)]
struct FoundReport {
    found: Vec<Row>,
    unknown_hosts: Vec<String>,
    truncated: bool,
    exit_code: Exit,
}

#[derive(Debug, Serialize)]
struct Row {
    fleet: String,
    release: ReleaseView,
    path: String,
    digest: Digest,
    hosts: Vec<String>,
    serving_hosts: Vec<String>,
}

impl FoundReport {
    fn new(answer: v1::FindResponse) -> Result<Self, ConvertError> {
        let found = answer.found.into_iter().map(Row::new).collect::<Result<Vec<_>, _>>()?;
        let exit_code = if !answer.unknown_hosts.is_empty() {
            Exit::Missing
        } else if found.is_empty() || answer.truncated {
            Exit::Internal
        } else {
            Exit::Proven
        };
        Ok(Self { found, unknown_hosts: answer.unknown_hosts, truncated: answer.truncated, exit_code })
    }
}

impl Row {
    fn new(wire: v1::Found) -> Result<Self, ConvertError> {
        let release = wire.release.as_ref().ok_or(ConvertError::Missing("release"))?;
        Ok(Self {
            fleet: wire.fleet,
            release: ReleaseView::try_from(release)?,
            path: wire.path,
            digest: convert::digest("digest", &wire.digest)?,
            hosts: wire.hosts,
            serving_hosts: wire.serving_hosts,
        })
    }
}

impl Report for FoundReport {
    const SCHEMA: &'static str = "muster.find/1";

    fn print(&self, page: &mut Page) {
        let rows = self.found.iter().map(|row| {
            let serving = |host: &String| if row.serving_hosts.contains(host) { "*" } else { "" };
            let hosts: Vec<String> =
                row.hosts.iter().map(|host| format!("{host}{}", serving(host))).collect();
            let hosts = if hosts.is_empty() { "none".to_owned() } else { hosts.join(" ") };
            [row.fleet.clone(), row.release.short(), row.path.clone(), row.digest.short(), hosts]
        });
        page.table(["FLEET", "RELEASE", "PATH", "CONTENT", "HOSTS (* serving)"], rows.collect());
        if self.found.is_empty() {
            page.toned(Tone::Warning, "nothing was found in any release");
        }
        if self.truncated {
            page.toned(Tone::Warning, "there is more: narrow the question with --fleet or a longer path");
        }
        if !self.unknown_hosts.is_empty() {
            let hosts = self.unknown_hosts.join(", ");
            page.toned(Tone::Bad, format_args!("nothing is known now of {hosts}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> v1::Found {
        v1::Found {
            fleet: "demo".to_owned(),
            release: Some(v1::ReleaseRef { version: "1.4.0".to_owned(), manifest: vec![7; 32] }),
            path: "lib/libssl.so.3".to_owned(),
            digest: vec![9; 32],
            hosts: vec!["host-1".to_owned(), "host-2".to_owned()],
            serving_hosts: vec!["host-2".to_owned()],
        }
    }

    #[test]
    fn an_incomplete_answer_is_no_success() {
        let exit = |found, unknown_hosts, truncated| {
            FoundReport::new(v1::FindResponse { found, unknown_hosts, truncated }).unwrap().exit_code
        };
        assert_eq!(exit(vec![found()], vec![], false), Exit::Proven);
        assert_eq!(exit(vec![], vec![], false), Exit::Internal);
        assert_eq!(exit(vec![found()], vec![], true), Exit::Internal);
        assert_eq!(exit(vec![found()], vec!["host-3".to_owned()], false), Exit::Missing);
    }

    #[test]
    fn serving_hosts_are_marked() {
        let answer = v1::FindResponse {
            found: vec![found()],
            unknown_hosts: vec!["host-3".to_owned()],
            truncated: false,
        };
        let mut page = Page::new(false);
        FoundReport::new(answer).unwrap().print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        FLEET  RELEASE             PATH             CONTENT       HOSTS (* serving)
        demo   1.4.0 070707070707  lib/libssl.so.3  090909090909  host-1 host-2*
        nothing is known now of host-3
        ");
    }
}
