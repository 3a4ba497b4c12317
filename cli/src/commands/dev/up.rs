use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use muster_model::{FleetName, HostName};
use serde::Serialize;

use super::super::Env;
use super::super::host::DriverArgs;
use super::down::StoppedReport;
use super::fleet::{Daemon, LEASE_DEFAULT, LocalFleet, Program, Wanted, is_fleet};
use super::start::{self, Programs, Started, StartedView, started_lines};
use super::{DevError, Interrupts, stop};
use crate::args::duration;
use crate::clock::millis;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};
use crate::provision::Driver;

/// Hosts of a new fleet for which no number was given.
const HOSTS_DEFAULT: u16 = 3;

/// How often it is looked whether a daemon has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Start a fleet on this machine: a coordinator, and an agent and a guard for each host, with real mutual TLS.
///
/// A folder that holds nothing yet gets a new fleet with everything it needs; one that was made by this command is
/// started again with all it kept. Of a fleet that is up in part, what is down is started. Without `--detach` the fleet
/// runs until Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster dev up --dir ./fleet --hosts 8
  muster dev up --dir ./fleet --hosts 3 --detach
  muster dev up --dir ./fleet --lease 15s
  muster dev up --dir ./fleet --driver supervise --command ./bin/server --port 0")]
pub(crate) struct Up {
    /// The fleet's folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How many hosts a new fleet has [default: 3]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=250))]
    hosts: Option<u16>,
    /// The name of a new fleet [default: demo]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
    /// Leave the fleet running in the background
    #[arg(long)]
    detach: bool,
    /// How long an armed host of a new fleet serves on without being heard, from 300ms on [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = lease)]
    lease: Option<Duration>,
    #[command(flatten)]
    driver: DriverArgs,
}

impl Up {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let mut interrupts = Interrupts::listen()?;
        let detach = self.detach;
        let programs = Programs::beside_this()?;
        let lock = LocalFleet::lock(&self.dir)?;
        let fleet = self.prepare()?;
        let running: Vec<Daemon> = stop::running(&fleet)?.into_iter().map(|(daemon, _)| daemon).collect();
        let mut started = Vec::new();
        let up = tokio::select! {
            up = start::fleet(&fleet, &programs, &running, &mut started, &env.ui) => up.map(drop),
            () = interrupts.next() => Err(DevError::Interrupted.into()),
        };
        if let Err(error) = up {
            // What ran before goes on running.
            let daemons: Vec<Daemon> = started.into_iter().map(|started| started.daemon).collect();
            stop::these(&daemons)?;
            return Err(error);
        }
        drop(lock);
        let extent = if running.is_empty() { Extent::Whole } else { Extent::Rest };
        env.ui.report(&UpReport::new(&fleet, &started, extent)?)?;
        if !detach {
            stay(&fleet, started, interrupts, env).await?;
        }
        Ok(Exit::Proven)
    }

    /// Makes the fleet, or opens it if there is one of which something is down.
    fn prepare(self) -> Result<LocalFleet, CliError> {
        let driver = self.driver.driver()?;
        if !is_fleet(&self.dir) {
            let name =
                self.fleet.unwrap_or_else(|| FleetName::new("demo").expect("the word is a valid name"));
            let hosts = self.hosts.unwrap_or(HOSTS_DEFAULT);
            let lease = self.lease.unwrap_or(LEASE_DEFAULT);
            let wanted = Wanted { fleet: name, hosts, driver, lease };
            return LocalFleet::create(&self.dir, &wanted);
        }
        let fleet = LocalFleet::open(&self.dir)?;
        let processes = fleet.daemons().len();
        if stop::running(&fleet)?.len() >= processes {
            return Err(DevError::AlreadyRunning { dir: fleet.dir, processes }.into());
        }
        self.fleet.as_ref().map_or(Ok(()), |name| same(&self.dir, "the fleet", &fleet.name, name))?;
        let hosts = self.hosts.map(usize::from);
        hosts.map_or(Ok(()), |hosts| same(&self.dir, "a number of hosts of", &fleet.hosts.len(), &hosts))?;
        let ms = |lease| format!("{}ms", millis(lease));
        self.lease.map_or(Ok(()), |lease| same(&self.dir, "a lease of", &ms(fleet.lease), &ms(lease)))?;
        if driver != Driver::Link && driver != fleet.driver {
            return Err(different(&self.dir, "hosts with another driver or command", "this one"));
        }
        fleet.complete()?;
        Ok(fleet)
    }
}

/// Renewals come every third of a lease, and take their time.
fn lease(text: &str) -> Result<Duration, String> {
    const LEASE_MIN: Duration = Duration::from_millis(300);
    const LEASE_MAX: Duration = Duration::from_secs(3600);
    let lease = duration(text)?;
    if !(LEASE_MIN..=LEASE_MAX).contains(&lease) {
        return Err("a lease lasts from 300ms to 1h".to_owned());
    }
    Ok(lease)
}

fn same<T: PartialEq + std::fmt::Display>(
    dir: &Path,
    what: &str,
    found: &T,
    wanted: &T,
) -> Result<(), CliError> {
    if found == wanted {
        return Ok(());
    }
    Err(different(dir, &format!("{what} {found}"), &wanted.to_string()))
}

fn different(dir: &Path, found: &str, wanted: &str) -> CliError {
    DevError::Different { dir: dir.to_owned(), found: found.to_owned(), wanted: wanted.to_owned() }.into()
}

/// Stays until a signal comes or nothing runs any more, and says who ends in between.
async fn stay(
    fleet: &LocalFleet,
    mut started: Vec<Started>,
    mut interrupts: Interrupts,
    env: &Env,
) -> Result<(), CliError> {
    env.ui.say("the fleet runs until Ctrl-C");
    loop {
        tokio::select! {
            () = interrupts.next() => {
                env.ui.say("stopping the fleet");
                let stopped = StoppedReport::new(fleet.dir.clone(), stop::all(fleet)?);
                env.ui.say(stopped.summary());
                return Ok(());
            }
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let mut left = Vec::new();
        for mut one in started {
            match one.ended()? {
                Some(status) => env.ui.warn(format_args!("{} ended: {status}", one.daemon)),
                None => left.push(one),
            }
        }
        started = left;
        // Somebody may have started again by hand what had ended.
        if started.is_empty() && stop::running(fleet)?.is_empty() {
            env.ui.say("nothing of the fleet runs any more");
            return Ok(());
        }
    }
}

#[derive(Debug, Serialize)]
struct UpReport {
    context: PathBuf,
    dir: PathBuf,
    fleet: FleetName,
    coordinator: String,
    coordinator_pid: i32,
    hosts: Vec<HostRow>,
    started: Vec<StartedView>,
    #[serde(skip)]
    extent: Extent,
}

/// How much of a fleet was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All of it.
    Whole,
    /// What was down of it.
    Rest,
}

#[derive(Debug, Serialize)]
struct HostRow {
    name: String,
    agent_pid: i32,
    guard_pid: i32,
    state: PathBuf,
}

impl UpReport {
    fn new(fleet: &LocalFleet, started: &[Started], extent: Extent) -> Result<Self, CliError> {
        let running = stop::running(fleet)?;
        let pid = |program, host: Option<&HostName>| {
            let is_it = |daemon: &Daemon| daemon.program == program && daemon.host.as_ref() == host;
            running.iter().find(|(daemon, _)| is_it(daemon)).map_or(0, |(_, process)| process.pid())
        };
        let row = |host: &HostName| HostRow {
            name: host.to_string(),
            agent_pid: pid(Program::Agent, Some(host)),
            guard_pid: pid(Program::Guard, Some(host)),
            state: fleet.host_folder(host),
        };
        Ok(Self {
            context: fleet.context(),
            dir: fleet.dir.clone(),
            fleet: fleet.name.clone(),
            coordinator: fleet.coordinator.to_string(),
            coordinator_pid: pid(Program::Coordinator, None),
            hosts: fleet.hosts.iter().map(row).collect(),
            started: started.iter().map(StartedView::from).collect(),
            extent,
        })
    }
}

impl Report for UpReport {
    const SCHEMA: &'static str = "muster.dev/1";

    fn print(&self, page: &mut Page) {
        let (count, dir) = (counted(self.hosts.len(), "host"), self.dir.display());
        if self.extent == Extent::Rest {
            started_lines(&self.started).iter().for_each(|line| page.line(line));
        }
        page.toned(
            Tone::Good,
            format_args!("{} is up with {count}, coordinator {}", self.fleet, self.coordinator),
        );
        let row = |host: &HostRow| {
            let HostRow { name, agent_pid, guard_pid, state } = host;
            [name.clone(), agent_pid.to_string(), guard_pid.to_string(), state.display().to_string()]
        };
        page.table(["HOST", "AGENT", "GUARD", "STATE"], self.hosts.iter().map(row).collect());
        page.gap();
        page.line("Next:");
        page.line(format_args!("  export MUSTER_CONTEXT={}", self.context.display()));
        page.line("  muster status");
        page.line("  muster release push FOLDER --version 1.0");
        page.line("  muster deploy 1.0 && muster flip 1.0");
        page.line(format_args!("  muster dev down --dir {dir}"));
    }
}
