use std::path::PathBuf;

use clap::Args;
use muster_model::{FleetName, IdentityName};
use muster_mtls::{Address, TrustDomain};
use serde::Serialize;

use super::Env;
use crate::clock::{date_text, unix_time};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::provision::{InitOptions, init};

/// Make the trust of a new fleet: root document, certificate authority, first operator and coordinator.
///
/// This is solo mode: one key for each role, so that one person alone can sign anything. Every status and every
/// receipt says so.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster init ./fleet
  muster init ./fleet --coordinator-address coordinator.example:7400 --coordinator-san 10.0.0.5")]
pub(crate) struct Init {
    /// The folder to make; it must be empty or not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = "muster.local")]
    trust_domain: TrustDomain,
    /// Where hosts and operators reach the coordinator
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7400")]
    coordinator_address: Address,
    /// A further DNS name or IP address of the coordinator, for its certificate; may be repeated
    #[arg(long, value_name = "NAME")]
    coordinator_san: Vec<String>,
    /// The coordinator's port for hosts that have no certificate yet [default: the one after its own]
    #[arg(long, value_name = "PORT")]
    enrolment_port: Option<u16>,
    /// The name of the first operator
    #[arg(long, value_name = "NAME", default_value = "operator")]
    operator: IdentityName,
    /// The fleet that is meant when none is named
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
}

impl Init {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let next_port = self.coordinator_address.port().checked_add(1);
        let enrolment_port = self.enrolment_port.or(next_port).ok_or_else(|| CliError::Usage {
            what: "there is no port after the coordinator's".to_owned(),
            next: "name one with --enrolment-port".to_owned(),
        })?;
        let options = InitOptions {
            enrolment_port,
            trust_domain: self.trust_domain,
            coordinator: self.coordinator_address,
            coordinator_names: self.coordinator_san,
            operator: self.operator,
            fleet: self.fleet,
            now: unix_time(),
        };
        let made = init(&self.dir, &options)?;
        env.ui.report(&Made {
            trust_domain: options.trust_domain.to_string(),
            coordinator_address: options.coordinator.to_string(),
            context: made.context,
            coordinator_config: made.coordinator,
            root_expires: date_text(made.root_expires),
            solo: true,
            dir: self.dir,
        })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Made {
    dir: PathBuf,
    context: PathBuf,
    coordinator_config: PathBuf,
    coordinator_address: String,
    trust_domain: String,
    root_expires: String,
    solo: bool,
}

impl Report for Made {
    const SCHEMA: &'static str = "muster.init/1";

    fn print(&self, page: &mut Page) {
        let dir = self.dir.display();
        page.toned(Tone::Good, format_args!("made {dir} for the trust domain {}", self.trust_domain));
        page.labelled(
            Tone::Warning,
            "solo mode",
            "every role has one key and a threshold of 1: whoever has this folder can sign anything",
        );
        page.line(format_args!("The root document holds until {}.", self.root_expires));
        page.gap();
        page.line("Next:");
        page.line(format_args!("  keep {dir}/keys/root.key and {dir}/ca/ca.key offline; hosts need neither"));
        page.line(format_args!("  export MUSTER_CONTEXT={}", self.context.display()));
        page.line(format_args!("  muster-coordinator run --config {}", self.coordinator_config.display()));
        page.line("  muster host token NAME --fleet FLEET   (for each host, which then enrols; or `host issue` by hand)");
        page.line(
            "  muster roster propose --from-pending --out roster.toml && muster roster apply roster.toml",
        );
    }
}
