use std::path::PathBuf;

use clap::Args;
use muster_model::FleetName;
use serde::Serialize;

use super::fleet_folder;
use crate::clock::date_text;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report};
use crate::provision::hosts;

/// How much of a key is shown where there is no room for all of it: its kind and enough to tell it from others.
const KEY_SHOWN: usize = "ed25519:".len() + 12;

/// List the hosts that were issued, from the local folder; `muster status` says which of them are there.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster host list")]
pub(crate) struct List {
    /// The folder that `muster init` made [default: the one that holds the context]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl List {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
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
