use std::path::PathBuf;

use clap::Args;
use muster_model::{FleetName, UnixTime};
use muster_proto::v1;
use serde::Serialize;

use super::fleet_folder;
use crate::clock::date_text;
use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report};
use crate::provision::hosts;

/// How much of a key is shown where there is no room for all of it: its kind and enough to tell it from others.
const KEY_SHOWN: usize = "ed25519:".len() + 12;

/// List the hosts that were issued, from the local folder; `muster status` says which of them are there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster host list
  muster host list --enrolled
  muster host list --pending")]
pub(crate) struct List {
    /// The folder that `muster init` made [default: the one that holds the context]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// List those that have enrolled with a token instead, as the coordinator knows them
    #[arg(long, conflicts_with = "dir")]
    enrolled: bool,
    /// Of those, only the ones that wait for a roster
    #[arg(long, conflicts_with = "dir")]
    pending: bool,
}

impl List {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        if self.enrolled || self.pending {
            return Box::pin(list_enrolled(env, self.pending)).await;
        }
        let dir = fleet_folder(self.dir, env)?;
        let hosts = hosts(&dir)?.into_iter().map(|bundle| Row {
            host: bundle.name.to_string(),
            fleets: bundle.fleets,
            attestation_key: bundle.attestation_key.to_string(),
            certificate_expires: bundle.certificate_expires.map(date_text),
            folder: bundle.folder,
        });
        env.ui.report(&Listed { hosts: hosts.collect() })?;
        Ok(Exit::Proven)
    }
}

async fn list_enrolled(env: &Env, pending_only: bool) -> Result<Exit, CliError> {
    let session = env.session().await?;
    let mut client = session.operations();
    let doing = "list the hosts that have enrolled";
    let listed = answer(doing, client.list_enrolled(v1::ListEnrolledRequest {})).await?;
    let hosts = listed.hosts.into_iter().filter(|host| !pending_only || !host.pending.is_empty());
    let rows = hosts.map(|host| EnrolledRow {
        host: host.host,
        fleets: host.fleets,
        pending: host.pending,
        attestation_key: host.attestation_key,
        enrolled: date_text(UnixTime(host.enrolled_unix_ms)),
        certificate_expires: date_text(UnixTime(host.certificate_expires_unix_ms)),
    });
    env.ui.report(&Enrolled { hosts: rows.collect() })?;
    Ok(Exit::Proven)
}

#[derive(Debug, Serialize)]
struct Enrolled {
    hosts: Vec<EnrolledRow>,
}

#[derive(Debug, Serialize)]
struct EnrolledRow {
    host: String,
    fleets: Vec<String>,
    /// Those of its fleets whose rosters do not list it with this key.
    pending: Vec<String>,
    attestation_key: String,
    enrolled: String,
    certificate_expires: String,
}

impl Report for Enrolled {
    const SCHEMA: &'static str = "muster.hosts-enrolled/1";

    fn print(&self, page: &mut Page) {
        if self.hosts.is_empty() {
            page.line("none; `muster host token NAME` lets one enrol");
            return;
        }
        let rows = |key_len: usize| {
            let row = |row: &EnrolledRow| {
                let key = match row.attestation_key.get(..key_len) {
                    Some(beginning) => format!("{beginning}…"),
                    None => row.attestation_key.clone(),
                };
                [
                    row.host.clone(),
                    row.fleets.join(","),
                    row.pending.join(","),
                    row.certificate_expires.clone(),
                    key,
                ]
            };
            self.hosts.iter().map(row).collect()
        };
        let header = ["HOST", "FLEETS", "WAITS FOR", "CERTIFICATE UNTIL", "ATTESTATION KEY"];
        page.fitting_table(header, rows(usize::MAX), || rows(KEY_SHOWN));
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    hosts: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    host: String,
    fleets: Vec<FleetName>,
    attestation_key: String,
    certificate_expires: Option<String>,
    folder: PathBuf,
}

impl Report for Listed {
    const SCHEMA: &'static str = "muster.hosts/1";

    fn print(&self, page: &mut Page) {
        if self.hosts.is_empty() {
            page.line("no host was issued yet; `muster host issue NAME` issues one");
            return;
        }
        let rows = |key_len: usize| {
            let row = |row: &Row| {
                let fleets: Vec<&str> = row.fleets.iter().map(FleetName::as_str).collect();
                let expires = row.certificate_expires.clone().unwrap_or_else(|| "unknown".to_owned());
                let key = match row.attestation_key.get(..key_len) {
                    Some(beginning) => format!("{beginning}…"),
                    None => row.attestation_key.clone(),
                };
                [row.host.clone(), fleets.join(","), expires, key]
            };
            self.hosts.iter().map(row).collect()
        };
        let header = ["HOST", "FLEETS", "CERTIFICATE UNTIL", "ATTESTATION KEY"];
        page.fitting_table(header, rows(usize::MAX), || rows(KEY_SHOWN));
    }
}
