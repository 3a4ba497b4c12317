use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use muster_model::{FleetName, HostName};
use muster_mtls::Address;
use serde::Serialize;

use super::{DriverArgs, fleet_folder};
use crate::args::duration;
use crate::clock::{date_text, unix_time};
use crate::commands::Env;
use crate::context::{CONTEXT_FILE, Context};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::provision::{HostOptions, issue_host};

/// Issue the identity of a host as an offline bundle: a folder to take to the host by hand.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster host issue host-1 --fleet demo
  muster host issue host-1 --fleet demo --state /var/lib/muster --link /run/muster/demo/current
  muster host issue host-1 --fleet demo --driver supervise --command ./bin/server --port 8080")]
pub(crate) struct Issue {
    /// The host
    #[arg(value_name = "NAME")]
    name: HostName,
    /// The folder that `muster init` made [default: the one that holds the context]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A fleet that the host belongs to; may be repeated [default: the context's]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Vec<FleetName>,
    /// Where agent and guard keep their state on the host [default: the bundle's own folder]
    #[arg(long, value_name = "PATH")]
    state: Option<PathBuf>,
    /// The link that services use, for a host of one fleet; below /run it vanishes at a reboot, as fleets ask for unless
    /// their policy says otherwise [default: fleets/FLEET/current in the state]
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
    /// How long the certificate holds
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "365d")]
    valid_for: Duration,
    #[command(flatten)]
    driver: DriverArgs,
}

impl Issue {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let usage = |what: &str, next: &str| CliError::Usage { what: what.to_owned(), next: next.to_owned() };
        let driver = self.driver.driver()?;
        let dir = fleet_folder(self.dir, env)?;
        let context = Context::read(&dir.join("operator").join(CONTEXT_FILE))?;
        let fleets =
            if self.fleet.is_empty() { context.fleet().cloned().into_iter().collect() } else { self.fleet };
        if fleets.is_empty() {
            return Err(usage("a host belongs to at least one fleet", "name it with --fleet"));
        }
        if self.link.is_some() && fleets.len() > 1 {
            return Err(usage(
                "several fleets cannot share one link",
                "leave --link out, or issue one fleet only",
            ));
        }
        for path in [&self.state, &self.link].into_iter().flatten() {
            if !path.is_absolute() {
                return Err(usage("--state and --link are paths on the host", "give them as absolute paths"));
            }
        }
        let coordinator: &Address = context.coordinator();
        let options = HostOptions {
            coordinator: coordinator.clone(),
            fleets,
            driver,
            state: self.state,
            link: self.link,
            // Only the host's time daemon can tell, and whoever runs it.
            clock_error_ms: None,
            valid_for: self.valid_for,
            now: unix_time(),
        };
        let bundle = issue_host(&dir, &self.name, &options)?;
        env.ui.report(&Issued {
            host: bundle.name.to_string(),
            folder: bundle.folder,
            fleets: bundle.fleets,
            attestation_key: bundle.attestation_key.to_string(),
            certificate_expires: bundle.certificate_expires.map(date_text),
        })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Issued {
    host: String,
    folder: PathBuf,
    fleets: Vec<FleetName>,
    attestation_key: String,
    certificate_expires: Option<String>,
}

impl Report for Issued {
    const SCHEMA: &'static str = "muster.host/1";

    fn print(&self, page: &mut Page) {
        page.toned(Tone::Good, format_args!("issued {} in {}", self.host, self.folder.display()));
        if let Some(expires) = &self.certificate_expires {
            page.line(format_args!("Its certificate holds until {expires}."));
        }
        page.gap();
        page.line("Next:");
        page.line(
            "  take the folder to the host, readable by the user of its agent only; it holds private keys",
        );
        page.line("  muster-guard run --config guard.toml, then muster-agent run --config agent.toml");
        page.line("  add the host to the roster: muster roster draft, then muster roster apply");
    }
}
