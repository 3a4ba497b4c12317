//! Machines with networks of their own: network namespaces, joined by two bridges.
//!
//! Each machine has two interfaces. `eth0` is on the fleet's network, over which agents and coordinator talk, and which can
//! be cut. `eth1` is on the observer's, which is never cut: over it the services are asked what they serve, and operators
//! reach the coordinator. Linux sends what is for one of these networks through its own interface or not at all.
//!
//! The namespaces have no names: the kernel takes them away, with all that is in them, once nobody holds or lives in them,
//! however the test ended. The same goes for what is mounted within [`Network::room`].

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

/// The interface on the fleet's network.
const FLEET: &str = "eth0";
/// The interface on the observer's network.
const OBSERVER: &str = "eth1";

/// Two bridges in a namespace, in which the test is.
#[derive(Debug)]
pub(crate) struct Network(());

/// A machine: its namespace, and its number in both networks.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    namespace: Arc<File>,
    number: u8,
}

/// How a machine is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its interface is down: it knows.
    Down,
    /// What it sends is lost.
    Outwards,
    /// What is sent to it is lost.
    Inwards,
    /// Either.
    Both,
}

impl Network {
    /// Does all this in a thread that is in a namespace of its own, with a network and mounts that nobody else sees.
    pub(crate) fn room<T: Send>(test: impl FnOnce(&Self) -> T + Send) -> T {
        let within = || {
            let made = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS);
            made.unwrap_or_else(|error| {
                panic!(
                    "this test makes network namespaces and mounts, and needs CAP_NET_ADMIN and CAP_SYS_ADMIN for them \
                     ({error}): run it as root, as with `sudo -E cargo test --test it nemesis`; it also needs the \
                     programs `ip` (iproute2) and `nft` (nftables)"
                )
            });
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            ip("link set lo up");
            for (bridge, third) in [(FLEET, 66), (OBSERVER, 77)] {
                ip(&format!("link add {bridge} type bridge"));
                ip(&format!("address add 10.{third}.0.254/24 dev {bridge}"));
                ip(&format!("link set {bridge} up"));
            }
            test(&Self(()))
        };
        thread::scope(|scope| match scope.spawn(within).join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// One more machine on both networks. Each has another number, from 1 to 253.
    pub(crate) fn machine(&self, number: u8) -> Machine {
        let within = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            Machine::here(number)
        };
        let machine = thread::scope(|scope| scope.spawn(within).join().unwrap());
        let namespace = machine.namespace();
        for interface in [FLEET, OBSERVER] {
            let port = format!("{interface}-{number}");
            ip(&format!("link add {port} type veth peer name {interface} netns {namespace}"));
            ip(&format!("link set {port} master {interface} up"));
        }
        machine.within(|| {
            for (interface, address) in [(FLEET, machine.address()), (OBSERVER, machine.observed_address())] {
                ip(&format!("address add {address}/24 dev {interface}"));
                ip(&format!("link set {interface} up"));
            }
            nft("add table ip cut; add chain ip cut in { type filter hook input priority 0; }; \
                 add chain ip cut out { type filter hook output priority 0; }");
        });
        machine
    }
}

impl Machine {
    fn here(number: u8) -> Self {
        // The kernel keeps the namespace of a thread that is gone for as long as this is open.
        let namespace = File::open("/proc/thread-self/ns/net").unwrap();
        Self { namespace: Arc::new(namespace), number }
    }

    /// Where the kernel shows its namespace, for a program that is started in it.
    pub(crate) fn namespace(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// Its address on the fleet's network.
    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 66, 0, self.number)
    }

    /// Its address on the network that is never cut.
    pub(crate) fn observed_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Does something on this machine: what is started there stays there.
    pub(crate) fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&*self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        };
        thread::scope(|scope| scope.spawn(enter).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Cuts it off from the fleet's network.
    pub(crate) fn cut(&self, cut: Cut) {
        let (inwards, outwards) = (
            format!("add rule ip cut in iifname {FLEET} drop;"),
            format!("add rule ip cut out oifname {FLEET} drop;"),
        );
        self.within(|| match cut {
            Cut::Down => ip(&format!("link set {FLEET} down")),
            Cut::Outwards => nft(&outwards),
            Cut::Inwards => nft(&inwards),
            Cut::Both => nft(&format!("{inwards}{outwards}")),
        });
    }

    /// Joins it to the fleet's network again, however it was cut off.
    pub(crate) fn join(&self) {
        self.within(|| {
            nft("flush table ip cut");
            ip(&format!("link set {FLEET} up"));
        });
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "link down",
            Self::Outwards => "outwards",
            Self::Inwards => "inwards",
            Self::Both => "both ways",
        })
    }
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("`ip` of iproute2 is needed: {error}"));
    assert!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr));
}

fn nft(rules: &str) {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("`nft` of nftables is needed: {error}"));
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&done.stderr));
}
