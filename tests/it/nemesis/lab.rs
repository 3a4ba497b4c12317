//! A fleet whose coordinator and hosts are machines of their own: network, disk and clock.

use std::sync::Arc;

use rustix::process::{Signal, kill_process};

use super::plan::Daemon as Which;
use crate::harness::{Clocks, Daemon, Disk, Fleet, Host, Network, Place, Service, run};

const COORDINATOR_PORT: u16 = 7000;
const SERVICE_PORT: u16 = 8000;

/// What there is to flip to; all of it is deployed on all hosts.
pub(super) const VERSIONS: [&str; 3] = ["1", "2", "3"];

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
    /// A fleet that serves the second version, and did the first; its clocks are off by so many millionths, the coordinator's first.
    pub(super) fn new(network: &Network, rates_ppm: &[i64]) -> Self {
        let service = Service::build();
        let mut fleet = Service::fleet(rates_ppm.len() - 1);
        let daemons = |fleet: &Fleet| -> Vec<Daemon> {
            let hosts = fleet.hosts().into_iter().flat_map(|host| [host.agent, host.guard]);
            hosts.chain([fleet.coordinator()]).collect()
        };
        daemons(&fleet).iter().for_each(Daemon::kill);

        let clocks = Clocks::build(fleet.scratch());
        let numbers = 0_u8..;
        let mut machines = Vec::new();
        for (number, ppm) in numbers.zip(rates_ppm) {
            let (folder, state) = match number {
                0 => (fleet.dir().join("coordinator"), "state"),
                host => (fleet.host(host.into()).folder().to_owned(), "fleets"),
            };
            // Numbers of machines begin at one.
            let machine = network.machine(number + 1);
            let disk = Disk::over(&folder.join(state), c"size=24m,mode=0700");
            let clock = clocks.clock(&format!("machine-{number}"), *ppm);
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
        for version in VERSIONS {
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

impl Drop for Lab {
    fn drop(&mut self) {
        // Whoever is suspended could not end when asked to. What runs must end before its disk goes.
        for (_, daemon) in self.daemons() {
            daemon.signal_if_running(Signal::CONT);
        }
        run(&["dev", "down", "--dir", self.fleet.dir().to_str().unwrap()], &[]);
    }
}
