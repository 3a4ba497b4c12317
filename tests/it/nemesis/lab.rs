//! A fleet whose coordinator and hosts are machines of their own: network, disk and clock.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use muster_model::Timing;
use rustix::process::{Signal, kill_process};

use super::plan::Daemon as Which;
use crate::harness::{
    ClockOff, Clocks, Daemon, Disk, FLEET, Fleet, Host, Network, Place, Service, configure, run,
};

/// The times of the fleet's roster: those of `muster dev up`, but that a time of day may be further off.
pub(super) const TIMING: Timing =
    Timing { lease_ms: 2_000, fence_ms: 2_000, rate_error_ppm: 100_000, wait_ms: 4_900, clock_error_ms: 400 };

/// How long before its instant the hosts of a flip in fast mode are armed.
pub(super) const FAST_LEAD: Duration = Duration::from_secs(2);

/// P13: for so long two releases may be served beside each other in a flip in fast mode, and never longer: two clocks that are as far off as
/// their hosts state, and the time that it takes to stop what was served.
pub(super) const SKEW_MAX: Duration = Duration::from_millis(2 * TIMING.clock_error_ms + TIMING.fence_ms);

const COORDINATOR_PORT: u16 = 7000;
const SERVICE_PORT: u16 = 8000;

/// What there is to flip to; all of it is deployed on all hosts.
pub(super) const VERSIONS: [&str; 3] = ["1", "2", "3"];

/// What there is to flip to in fast mode, and in no other.
pub(super) const FAST_VERSIONS: [&str; 2] = ["4", "5"];

/// A fleet of machines. Its services are observed over a network that is never cut.
pub(super) struct Lab {
    /// The first is the coordinator's.
    machines: Vec<LabMachine>,
    /// Last, as its folder is removed with it.
    pub(super) fleet: Fleet,
}

struct LabMachine {
    place: Arc<Place>,
    disk: Disk,
}

impl Lab {
    /// A fleet that serves the second version, and did the first; its clocks are so far off, the coordinator's first.
    pub(super) fn new(network: &Network, clocks_off: &[ClockOff]) -> Self {
        let service = Service::build();
        let mut fleet = Service::fleet(clocks_off.len() - 1);
        set_times(&fleet);
        let daemons = |fleet: &Fleet| -> Vec<Daemon> {
            let hosts = fleet.hosts().into_iter().flat_map(|host| [host.agent, host.guard]);
            hosts.chain([fleet.coordinator()]).collect()
        };
        daemons(&fleet).iter().for_each(Daemon::kill);

        let clocks = Clocks::build(fleet.scratch());
        let numbers = 0_u8..;
        let mut machines = Vec::new();
        for (number, off) in numbers.zip(clocks_off) {
            let (folder, state) = match number {
                0 => (fleet.dir().join("coordinator"), "state"),
                host => (fleet.host(host.into()).folder().to_owned(), "fleets"),
            };
            // Numbers of machines begin at one.
            let machine = network.machine(number + 1);
            let disk = Disk::over(&folder.join(state), c"size=24m,mode=0700");
            let clock = clocks.clock(&format!("machine-{number}"), *off);
            if number > 0 {
                let address = (machine.observed_address(), SERVICE_PORT).into();
                Service::listen_on(&fleet.host(number.into()), address);
            }
            let place = Arc::new(Place { machine, clock });
            fleet.place(folder, Arc::clone(&place));
            machines.push(LabMachine { place, disk });
        }
        let coordinator = &machines[0].place.machine;
        let addresses = [coordinator.address(), coordinator.observed_address()].map(|it| it.to_string());
        fleet.move_coordinator(COORDINATOR_PORT, &addresses[0], &addresses[1]);
        for daemon in daemons(&fleet).iter().rev() {
            daemon.start(&[]);
        }
        fleet.wait_connected(fleet.hosts().len());
        for version in VERSIONS.into_iter().chain(FAST_VERSIONS) {
            fleet.push(&service.tree(version), version);
            fleet.json(&["deploy", version]).expect_code(0);
        }
        // Two, so that there is something to roll back to.
        for version in &VERSIONS[..2] {
            fleet.json(&["flip", version]).expect_code(0);
        }
        Self { machines, fleet }
    }

    /// Where a machine is, and what clock it has.
    pub(super) fn place(&self, machine: usize) -> &Place {
        &self.machines[machine].place
    }

    /// The disk of a machine's state.
    pub(super) fn disk(&self, machine: usize) -> &Disk {
        &self.machines[machine].disk
    }

    /// How many machines there are, the coordinator's being one.
    pub(super) fn machines(&self) -> usize {
        self.machines.len()
    }

    /// A daemon.
    pub(super) fn daemon(&self, which: Which) -> Daemon {
        match which {
            Which::Coordinator => self.fleet.coordinator(),
            Which::Agent(host) => self.fleet.host(host).agent,
            Which::Guard(host) => self.fleet.host(host).guard,
        }
    }

    /// All daemons, in the order in which they are started.
    pub(super) fn daemons(&self) -> Vec<(String, Daemon)> {
        let of_host = |host: Host| {
            let name = host.name().to_owned();
            [(format!("guard of {name}"), host.guard), (format!("agent of {name}"), host.agent)]
        };
        let hosts = self.fleet.hosts().into_iter().flat_map(of_host);
        std::iter::once(("coordinator".to_owned(), self.fleet.coordinator())).chain(hosts).collect()
    }

    /// Kills what a host serves.
    pub(super) fn kill_service(&self, host: usize) {
        for pid in Service::processes(&self.fleet.host(host)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Has the fleet go by [`TIMING`] and [`FAST_LEAD`], and its hosts state how far their time of day may be off: from the
/// daemons' next start on.
fn set_times(fleet: &Fleet) {
    let path = fleet.scratch().join("roster.toml");
    let file = path.to_str().unwrap();
    fleet.muster(&["roster", "draft", "--fleet", FLEET, "--out", file]).expect_code(0);
    let mut roster: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    let timing = toml::Value::try_from(TIMING).unwrap();
    roster["policy"].as_table_mut().unwrap().insert("timing".to_owned(), timing);
    fs::write(&path, toml::to_string(&roster).unwrap()).unwrap();
    fleet.json(&["roster", "apply", file]).expect_code(0);
    let of_millis = |millis: u128| i64::try_from(millis).unwrap();
    let coordinator = fleet.dir().join("coordinator/coordinator.toml");
    configure(&coordinator, "fast_lead_ms", of_millis(FAST_LEAD.as_millis()));
    for host in fleet.hosts() {
        let error_ms = of_millis(TIMING.clock_error_ms.into());
        configure(&host.folder().join("agent.toml"), "clock_error_ms", error_ms);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Whoever is suspended could not end when asked to. What runs must end before its disk goes.
        for (_, daemon) in self.daemons() {
            daemon.signal_if_running(Signal::CONT);
        }
        run(&["dev", "down", "--dir", self.fleet.dir().to_str().unwrap()], &[]);
    }
}
