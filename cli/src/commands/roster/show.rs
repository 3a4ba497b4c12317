use std::path::PathBuf;

use clap::Args;
use muster_model::{BootGatePolicy, Digest, FleetName, HostName, PublicKey};
use serde::Serialize;

use crate::args::FleetArg;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};
use crate::output::{Page, Report, Tone, counted};

/// Show the fleet's roster, after verifying it with the pinned root.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster roster show --fleet demo")]
pub(crate) struct Show {
    #[command(flatten)]
    fleet: FleetArg,
    /// Write the signed roster to this file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Show {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let roster = session.roster(&fleet).await?;
        if let Some(path) = &self.out {
            write(path, roster.raw(), 0o644, Existing::Keep)?;
        }
        let document = roster.document();
        env.ui.report(&Shown {
            fleet,
            revision: document.revision().0,
            digest: roster.payload_digest(),
            boot_gate: document.policy().boot_gate,
            signers: roster.signers().to_vec(),
            solo: session.root().root().is_solo(),
            hosts: document
                .hosts()
                .iter()
                .map(|host| Row { host: host.name.clone(), attestation_key: host.attestation_key.clone() })
                .collect(),
        })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    fleet: FleetName,
    revision: u64,
    digest: Digest,
    boot_gate: BootGatePolicy,
    signers: Vec<PublicKey>,
    solo: bool,
    hosts: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    host: HostName,
    attestation_key: PublicKey,
}

impl Report for Shown {
    const SCHEMA: &'static str = "muster.roster/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!("fleet     {}", self.fleet));
        page.line(format_args!("revision  {} with {}", self.revision, counted(self.hosts.len(), "host")));
        page.line(format_args!("digest    {}", self.digest));
        for signer in &self.signers {
            page.line(format_args!("signed by {signer}"));
        }
        if self.solo {
            page.labelled(Tone::Warning, "solo mode", "one operator alone may change it");
        }
        page.gap();
        let rows = self.hosts.iter().map(|row| [row.host.to_string(), row.attestation_key.to_string()]);
        page.table(["HOST", "ATTESTATION KEY"], rows.collect());
    }
}
