use clap::Args;
use muster_model::HostName;
use muster_proto::v1;
use serde::Serialize;

use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};

/// Revoke every certificate of a host, cut its connections, and give it no other certificate until a new token is made for it.
///
/// For a machine that was stolen or taken over. What it serves it goes on serving: take it out of the roster as well. It stays
/// in `muster status` until somebody has looked at it (`muster audit reconcile`).
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster host evict host-5 --reason stolen")]
pub(crate) struct Evict {
    /// The host
    #[arg(value_name = "NAME")]
    name: HostName,
    /// Why, for whoever looks
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

impl Evict {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let request = v1::EvictHostRequest { host: self.name.to_string(), reason: self.reason };
        let mut client = session.operations();
        let evicted = answer(&format!("evict {}", self.name), client.evict_host(request)).await?;
        let v1::EvictHostResponse { certificates, connections } = evicted;
        env.ui.report(&Evicted { host: self.name, certificates, connections })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Evicted {
    host: HostName,
    certificates: u32,
    connections: u32,
}

impl Report for Evicted {
    const SCHEMA: &'static str = "muster.host-evict/1";

    fn print(&self, page: &mut Page) {
        let (certificates, connections) =
            (counted(self.certificates, "certificate"), counted(self.connections, "connection"));
        let host = &self.host;
        page.toned(Tone::Good, format_args!("evicted {host}: {certificates} revoked, {connections} cut"));
        page.line(
            "It may still serve what it has: take it out of the roster, and its machine off the network.",
        );
    }
}
