//! A coordinator and eight hosts, from packages to a first roster.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use crate::harness::{Network, Output, PATIENCE, wait_until};

use super::document::Document;
use super::server::{Ground, Server, remove_cgroup};

/// The operator's context, on the coordinator's machine.
pub(super) const CONTEXT: &str = "/srv/muster/operator/context.toml";

/// Served by nginx, on all hosts.
pub(super) const WEB: &str = "web";
pub(super) const WEB_PORT: u16 = 80;

/// Served by a program of the release, as a unit of systemd's; on all hosts.
pub(super) const APP: &str = "app";
pub(super) const APP_PORT: u16 = 8080;

/// The same program, which the guard runs; on the last two hosts.
pub(super) const TOOL: &str = "tool";
pub(super) const TOOL_PORT: u16 = 8081;

/// Nothing has it started but the guard, which is asked before each start.
const APP_UNIT: &str = "[Service]
ExecStart=/run/muster/fleets/app/current/server 8080
User=www-data
Restart=on-failure
RestartSec=200ms
";

const HOSTS: u8 = 8;
/// Those from this one on are in the fleet [`TOOL`] as well.
const TOOL_FROM: u8 = 7;
const COORDINATOR: u8 = 100;
/// For the machines that scenarios add: the clone, the new one of docs/install.md, and where the coordinator moves to.
pub(super) const CLONE: u8 = 9;
pub(super) const NEW: u8 = 10;
pub(super) const NEW_COORDINATOR: u8 = 101;

/// Everything.
pub(super) struct Site<'a> {
    pub(super) ground: Ground,
    pub(super) network: &'a Network,
    pub(super) coordinator: Server,
    pub(super) hosts: Vec<Server>,
}

/// What an operator takes to a host.
struct Invitation {
    token: String,
    coordinator: String,
    ca_pin: String,
    root: String,
}

impl Ground {
    /// As `tests/hosts/run` has prepared it. The disks are in memory, and go with the test's mounts.
    fn found() -> Self {
        let folder = |variable: &str| {
            let value = env::var_os(variable);
            PathBuf::from(value.unwrap_or_else(|| panic!("{variable} is not set; run tests/hosts/run")))
        };
        let room = PathBuf::from("/run/systemd/nspawn");
        fs::create_dir_all(&room).unwrap();
        // nspawn keeps its own there, which nobody else has to see either.
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", "mode=0755", "tmpfs"]).arg(&room).status();
        assert!(done.unwrap().success());
        Self {
            base: folder("MUSTER_HOSTS_BASE"),
            packages: folder("MUSTER_HOSTS_PACKAGES"),
            cgroup: folder("MUSTER_HOSTS_CGROUP"),
            room: room.join("disks"),
        }
    }
}

impl<'a> Site<'a> {
    /// Installs and enrols everything. Nothing is served yet.
    pub(super) fn build(network: &'a Network) -> Self {
        let ground = Ground::found();
        let coordinator = machine(&ground, network, COORDINATOR, "coordinator");
        let hosts = (1..=HOSTS).map(|number| machine(&ground, network, number, &format!("host-{number}")));
        let site = Self { coordinator, hosts: hosts.collect(), ground, network };
        site.each([&site.coordinator].into_iter().chain(&site.hosts), Server::boot);
        site.begin();
        site.each(&site.hosts, |host| site.enrol(host));
        site.apply_roster(WEB);
        site.apply_roster(APP);
        site.apply_roster(TOOL);
        site.wait_connected();
        site
    }

    pub(super) fn host(&self, number: usize) -> &Server {
        &self.hosts[number - 1]
    }

    /// The hosts that are in [`TOOL`].
    pub(super) fn tool_hosts(&self) -> &[Server] {
        &self.hosts[usize::from(TOOL_FROM) - 1..]
    }

    /// One more host, which is off and has nothing on it.
    pub(super) fn spare(&self, number: u8, name: &str) -> Server {
        machine(&self.ground, self.network, number, name)
    }

    /// A command of the operator; answers JSON.
    pub(super) fn muster(&self, line: &str) -> Output {
        self.coordinator.run(&format!("muster {line} --output json"))
    }

    /// Makes a release of what a line of shell puts into a new folder, and answers its digest.
    #[track_caller]
    pub(super) fn release(&self, fleet: &str, version: &str, fill: &str) -> String {
        let folder = format!("/srv/trees/{fleet}-{version}");
        self.coordinator.must(&format!("mkdir -p {folder} && cd {folder} && {fill}"));
        let pushed = self.muster(&format!("release push {folder} --fleet {fleet} --version {version}"));
        pushed.expect_code(0).text_at("/digest")
    }

    /// Deploys and flips.
    #[track_caller]
    pub(super) fn flip(&self, fleet: &str, version: &str) {
        self.muster(&format!("deploy {version} --fleet {fleet}")).expect_code(0);
        self.muster(&format!("flip {version} --fleet {fleet}")).expect_code(0);
    }

    #[track_caller]
    pub(super) fn assert_all_serve(&self, port: u16, release: &str) {
        for host in &self.hosts {
            assert_eq!(host.serves(port).as_deref(), Some(release), "{}", host.name());
        }
    }

    /// Waits until every host serves this.
    #[track_caller]
    pub(super) fn wait_all_serve(&self, port: u16, release: &str) {
        wait_until(&format!("all serve {release}"), 3 * PATIENCE, || {
            self.hosts.iter().all(|host| host.serves(port).as_deref() == Some(release)).then_some(())
        });
    }

    #[track_caller]
    pub(super) fn wait_connected(&self) {
        for (fleet, count) in
            [(WEB, self.hosts.len()), (APP, self.hosts.len()), (TOOL, self.tool_hosts().len())]
        {
            wait_until(&format!("all of {fleet} are connected"), 3 * PATIENCE, || {
                (self.connected(fleet) == count).then_some(())
            });
        }
    }

    /// How many hosts of a fleet are connected.
    pub(super) fn connected(&self, fleet: &str) -> usize {
        let status = self.muster(&format!("status --fleet {fleet}")).json();
        let count = status.get("hosts_connected").and_then(serde_json::Value::as_u64).unwrap_or_default();
        usize::try_from(count).unwrap()
    }

    /// Installs the agent and enrols it, as docs/install.md tells.
    #[track_caller]
    pub(super) fn enrol(&self, host: &Server) {
        install(host, &["muster-agent"]);
        assert!(
            !host.run("systemctl is-active muster-agent").stdout.starts_with("active"),
            "it has no configuration"
        );
        let number: u8 = host.name().trim_start_matches("host-").parse().unwrap();
        let fleets: &[&str] = if number >= TOOL_FROM { &[WEB, APP, TOOL] } else { &[WEB, APP] };
        let invitation = self.invite(host.name(), fleets);
        host.write("/root/root.json", &invitation.root);
        host.write("/root/token", &invitation.token);
        let Invitation { coordinator, ca_pin, .. } = invitation;
        host.must(&format!(
            "muster-agent enrol --system --coordinator {coordinator} --ca-pin {ca_pin} --root /root/root.json \
             --token-file /root/token && rm /root/token"
        ));
        say_what_is_run(host);
        serve_web(host);
        host.must("systemctl start muster-guard muster-agent");
    }

    fn invite(&self, host: &str, fleets: &[&str]) -> Invitation {
        let fleets: String = fleets.iter().map(|fleet| format!(" --fleet {fleet}")).collect();
        let made = self.muster(&format!("host token {host}{fleets}")).expect_code(0);
        Invitation {
            token: made.text_at("/token"),
            coordinator: made.text_at("/coordinator"),
            ca_pin: made.text_at("/ca_pin"),
            root: self.coordinator.must("cat /srv/muster/root.json"),
        }
    }

    /// Installs and starts the coordinator with the commands of docs/install.md.
    fn begin(&self) {
        link_packages(&self.coordinator, "one");
        for block in Document::read().section(Document::COORDINATOR) {
            block.run(&self.coordinator, &[("shop", WEB)], "");
        }
    }

    fn apply_roster(&self, fleet: &str) {
        let file = format!("/srv/{fleet}.toml");
        self.muster(&format!("roster propose --fleet {fleet} --from-pending --out {file}")).expect_code(0);
        // The clocks of containers on a virtual machine may stand still with it.
        self.coordinator.must(&format!("sed -i 's/^clock = .*/clock = \"any\"/' {file}"));
        self.muster(&format!("roster apply {file}")).expect_code(0);
    }

    /// Does something on several hosts at the same time.
    pub(super) fn each<'s>(&self, hosts: impl IntoIterator<Item = &'s Server>, act: impl Fn(&Server) + Sync) {
        let act = &act;
        thread::scope(|scope| {
            let acting: Vec<_> = hosts.into_iter().map(|host| scope.spawn(move || act(host))).collect();
            acting.into_iter().for_each(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        });
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        self.coordinator.power_off();
        self.hosts.iter().for_each(Server::power_off);
        remove_cgroup(&self.ground.cgroup);
    }
}

/// A machine that knows the coordinator by its name. It is off.
fn machine(ground: &Ground, network: &Network, number: u8, name: &str) -> Server {
    let server = Server::make(ground, network, number, name);
    let [a, b, c, _] = server.address().octets();
    let known = format!("127.0.0.1 localhost\n{a}.{b}.{c}.{COORDINATOR} muster.example\n");
    fs::write(server.disk().join("etc/hosts"), known).unwrap();
    server
}

/// Puts the packages of this build beside whoever installs them, in the place of those that were there.
#[track_caller]
pub(super) fn link_packages(host: &Server, build: &str) {
    host.must(&format!("rm -f /root/*.deb && ln -s /packages/{build}/*.deb /root/"));
}

/// Installs packages by apt, from their files.
#[track_caller]
pub(super) fn install(host: &Server, packages: &[&str]) {
    let files: String = packages.iter().map(|package| format!(" /packages/one/{package}_*.deb")).collect();
    host.must(&format!("apt-get install --yes --no-install-recommends{files}"));
}

/// nginx follows the link.
fn serve_web(host: &Server) {
    let site = format!("server {{ listen {WEB_PORT}; root /run/muster/fleets/{WEB}/current; }}\n");
    host.write("/etc/nginx/sites-available/default", &site);
    host.must("systemctl enable --quiet --now nginx");
}

/// Root says on the host what is run.
fn say_what_is_run(host: &Server) {
    host.write("/etc/systemd/system/app.service", APP_UNIT);
    let mut config: toml::Table = host.must("cat /etc/muster/guard.toml").parse().unwrap();
    for fleet in config["fleets"].as_array_mut().unwrap() {
        let service = match fleet["name"].as_str().unwrap() {
            APP => "systemd = { units = [\"app.service\"], stop_timeout_ms = 2000 }".to_owned(),
            TOOL => format!("supervise = {{ command = [\"./server\", \"{TOOL_PORT}\"] }}"),
            _ => continue,
        };
        fleet.as_table_mut().unwrap()["driver"] = toml::Value::Table(service.parse().unwrap());
    }
    host.write("/etc/muster/guard.toml", &toml::to_string(&config).unwrap());
}
