use clap::Args;
use muster_model::{FleetName, HostName};
use muster_proto::v1;
use serde::Serialize;

use crate::args::FleetArg;
use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// State that a host's identity belongs to one machine again, after you have made sure of it.
///
/// For a host that is refused with duplicate-host, rolled-back-disk or history-lost: its next join counts, whatever token it
/// shows and wherever its journal stands. First stop the machine that is not the right one.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster host readmit host-5")]
pub(crate) struct Readmit {
    /// The host
    #[arg(value_name = "NAME")]
    name: HostName,
    #[command(flatten)]
    fleet: FleetArg,
}

impl Readmit {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let request = v1::ReadmitHostRequest { fleet: fleet.to_string(), host: self.name.to_string() };
        let mut client = session.operations();
        answer(&format!("readmit {} to {fleet}", self.name), client.readmit_host(request)).await?;
        env.ui.report(&Readmitted { fleet, host: self.name })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Readmitted {
    fleet: FleetName,
    host: HostName,
}

impl Report for Readmitted {
    const SCHEMA: &'static str = "muster.host-readmit/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, host } = self;
        page.toned(Tone::Good, format_args!("{host} may join {fleet} again; its next join counts"));
    }
}
