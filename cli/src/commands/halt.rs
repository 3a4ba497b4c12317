use std::time::Duration;

use clap::Args;
use muster_model::{Blocker, Code, FleetName, HostName};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use serde::Serialize;
use tokio::time::Instant;

use crate::args::duration;
use crate::commands::Env;
use crate::confirm::{Question, confirm};
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};

/// As much as a host's guard keeps.
const REASON_BYTES_MAX: usize = muster_guard::REASON_BYTES_MAX;

/// How often it is looked whether the hosts have stopped.
const INTERVAL: Duration = Duration::from_millis(50);

/// Stop a fleet at once: the kill switch. All its hosts stop serving, and start nothing until an order resumes them.
///
/// No diagnosis and no second person is asked for. A rollout that is not decided is given up. It ends with 0 once every
/// host of the roster has said that it serves nothing; a host that is not connected is told when it returns, and may
/// serve until then: halt it on the spot with `muster-agent halt`. `muster resume` serves again what was served.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster halt demo --reason 'duplicate-orders'
  muster halt demo --reason INC-2012 --yes --output json")]
pub(crate) struct Halt {
    /// The fleet; never taken from the context, so that no other is stopped by mistake
    #[arg(value_name = "FLEET")]
    fleet: FleetName,
    /// Why, for those who find the fleet halted
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How long to wait until every host has said that it serves nothing
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "15s")]
    timeout: Duration,
}

impl Halt {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = &self.fleet;
        if !self.yes {
            let hosts = session.status(fleet).await?.hosts.len();
            ask(env, fleet, hosts)?;
        }
        let doing = format!("halt {fleet}");
        let request = v1::HaltRequest { fleet: fleet.to_string(), reason: self.reason.clone() };
        let mut client = session.operations();
        let k = Box::pin(answer(&doing, client.halt(request))).await?.k;
        env.ui.say(format_args!("{fleet} is halted since rollout {k}; waiting for its hosts to stop"));
        let hosts = stopped(&session, fleet, self.timeout).await?;
        if let Some(warning) = kept_from_resuming(&hosts) {
            env.ui.warn(warning);
        }
        let report = Halted::new(self.fleet, self.reason, k, hosts);
        env.ui.report(&report)?;
        Ok(report.exit_code)
    }
}

fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.len() > REASON_BYTES_MAX {
        return Err(format!("say why in 1 to {REASON_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

fn ask(env: &Env, fleet: &FleetName, hosts: usize) -> Result<(), CliError> {
    let hosts = counted(hosts, "host");
    let question = Question {
        text: format!("{fleet}: {hosts} will stop serving at once. Type the fleet's name to halt it:"),
        expected: fleet.as_str(),
        otherwise: "nothing was halted",
        next: "add --yes to halt it without being asked",
    };
    confirm(env, &question)
}

/// What each host says, once all that are connected have stopped or time is up.
async fn stopped(session: &Session, fleet: &FleetName, timeout: Duration) -> Result<Vec<Host>, CliError> {
    let deadline = Instant::now() + timeout;
    loop {
        let status = session.status(fleet).await?;
        let hosts = status.hosts.iter().map(Host::new).collect::<Result<Vec<_>, _>>();
        let hosts = hosts.map_err(CliError::answer(format!("see whether {fleet} has stopped")))?;
        if !hosts.iter().any(|host| host.state == State::NotYet) || Instant::now() >= deadline {
            return Ok(hosts);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Which hosts take part in no flip, and so not in the one that resumes what was served either.
fn kept_from_resuming(hosts: &[Host]) -> Option<String> {
    let refuse: Vec<_> =
        hosts.iter().filter(|host| host.refuses_flips).map(|host| host.name.as_str()).collect();
    (!refuse.is_empty()).then(|| {
        format!(
            "`muster resume` is refused while `enforce` in their agent.toml is not \"full\": {}",
            refuse.join(", ")
        )
    })
}

struct Host {
    name: HostName,
    state: State,
    refuses_flips: bool,
}

/// What is known of a host after a halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It says that it was halted and serves nothing.
    Dark,
    /// It is connected and has not said so.
    NotYet,
    /// Nothing is known.
    Missing,
}

impl Host {
    fn new(wire: &v1::HostStatus) -> Result<Self, ConvertError> {
        let state = match (wire.connected, wire.halted_k, wire.serving_epoch) {
            (false, _, _) => State::Missing,
            (true, Some(_), None) => State::Dark,
            (true, Some(_), Some(_)) | (true, None, _) => State::NotYet,
        };
        // What is not said is `full`.
        Ok(Self { name: convert::host(&wire.host)?, state, refuses_flips: wire.enforce.is_some() })
    }

    fn blocker(&self) -> Option<Blocker> {
        match self.state {
            State::Dark => None,
            State::NotYet => {
                let detail = "it was told to halt and has not said that it serves nothing";
                Some(Blocker::host(Code::HostSilent, &self.name, detail))
            }
            State::Missing => {
                let detail = "it is not connected, so it may go on serving until it hears of the halt";
                Some(Blocker::host(Code::HostMissing, &self.name, detail))
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Halted {
    fleet: FleetName,
    rollout: u64,
    reason: String,
    hosts: usize,
    dark: Vec<HostName>,
    blockers: Vec<Blocker>,
    exit_code: Exit,
}

impl Halted {
    fn new(fleet: FleetName, reason: String, rollout: u64, hosts: Vec<Host>) -> Self {
        let blockers: Vec<Blocker> = hosts.iter().filter_map(Host::blocker).collect();
        let count = hosts.len();
        // Of no hosts nothing is proven.
        let is_proven = blockers.is_empty() && count > 0;
        let exit_code = if is_proven { Exit::Proven } else { Exit::of_blockers(&blockers) };
        let dark = hosts.into_iter().filter(|host| host.state == State::Dark).map(|host| host.name);
        Self { fleet, rollout, reason, hosts: count, dark: dark.collect(), blockers, exit_code }
    }
}

impl Report for Halted {
    const SCHEMA: &'static str = "muster.halt/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, rollout, hosts, dark, .. } = self;
        let tone = if self.exit_code == Exit::Proven { Tone::Good } else { Tone::Bad };
        let text = format!(
            "{fleet} is halted since rollout {rollout}: {} of {hosts} hosts say that they serve nothing",
            dark.len()
        );
        page.toned(tone, text);
        page.reasons(&self.blockers);
        if !self.blockers.is_empty() {
            page.line(format_args!(
                "  next: on each of these hosts run `muster-agent halt {fleet}`, or switch it off; one that connects is \
                 told by itself"
            ));
        }
        page.line(format_args!("Next: muster resume --fleet {fleet}, once it may serve again"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halted(hosts: &[(bool, Option<u64>, Option<u64>)]) -> Halted {
        let host = |(index, (connected, halted_k, serving_epoch)): (usize, &(bool, _, _))| {
            Host::new(&v1::HostStatus {
                host: format!("host-{}", index + 1),
                connected: *connected,
                halted_k: *halted_k,
                serving_epoch: *serving_epoch,
                ..v1::HostStatus::default()
            })
            .unwrap()
        };
        let hosts = hosts.iter().enumerate().map(host).collect();
        Halted::new(FleetName::new("demo").unwrap(), "why".to_owned(), 7, hosts)
    }

    #[test]
    fn only_n_of_n_dark_hosts_are_a_success() {
        let dark = (true, Some(7), None);
        assert_eq!(halted(&[dark, dark]).exit_code, Exit::Proven);
        assert_eq!(halted(&[]).exit_code, Exit::Internal);
        for (other, code) in [
            ((false, Some(7), None), Code::HostMissing),
            ((true, None, None), Code::HostSilent),
            ((true, Some(7), Some(3)), Code::HostSilent),
        ] {
            let halted = halted(&[dark, other]);
            assert_eq!(halted.exit_code, Exit::Missing);
            assert_eq!((halted.blockers.len(), halted.blockers[0].code), (1, code));
        }
    }

    #[test]
    fn a_host_that_may_serve_on_is_named_with_what_to_do() {
        let mut page = Page::new(false);
        halted(&[(true, Some(7), None), (false, None, None)]).print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        demo is halted since rollout 7: 1 of 2 hosts say that they serve nothing
          host-missing at host-2: it is not connected, so it may go on serving until it hears of the halt
          next: on each of these hosts run `muster-agent halt demo`, or switch it off; one that connects is told by itself
        Next: muster resume --fleet demo, once it may serve again
        ");
    }

    #[test]
    fn hosts_that_keep_the_fleet_from_being_resumed_are_named() {
        let host = |name: &str, enforce: Option<&str>| {
            let (host, enforce) = (name.to_owned(), enforce.map(str::to_owned));
            Host::new(&v1::HostStatus { host, enforce, ..v1::HostStatus::default() }).unwrap()
        };
        assert_eq!(kept_from_resuming(&[host("host-1", None)]), None);
        let hosts = [host("host-1", None), host("host-2", Some("gate")), host("host-3", Some("observe"))];
        assert!(kept_from_resuming(&hosts).unwrap().ends_with("host-2, host-3"));
    }

    #[test]
    fn a_reason_is_short_and_not_empty() {
        assert_eq!(reason(" twice "), Ok("twice".to_owned()));
        assert!(reason(" ").is_err() && reason(&"x".repeat(REASON_BYTES_MAX + 1)).is_err());
    }
}
