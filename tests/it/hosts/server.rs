//! One real host: its disk, its processes, its network.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::harness::{Machine, Network, Output, wait_until};

/// Nine systems start on two cores.
const BOOT_PATIENCE: Duration = Duration::from_secs(120);

const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Where the built packages are on every host.
const PACKAGES: &str = "/packages";

/// What all hosts are made of.
#[derive(Debug)]
pub(super) struct Ground {
    /// A system that nobody writes to.
    pub(super) base: PathBuf,
    /// The packages, and whatever else the hosts are to see.
    pub(super) packages: PathBuf,
    /// Disks.
    pub(super) room: PathBuf,
    /// The control group that all hosts are in.
    pub(super) cgroup: PathBuf,
}

/// One host.
#[derive(Debug)]
pub(super) struct Server {
    name: String,
    machine: Machine,
    packages: PathBuf,
    folder: PathBuf,
    cgroup: PathBuf,
    boots: AtomicU32,
    nspawn: Mutex<Option<Child>>,
}

impl Server {
    /// A host with a new disk. It is off.
    pub(super) fn make(ground: &Ground, network: &Network, number: u8, name: &str) -> Self {
        let folder = ground.room.join(name);
        let [upper, work, root] = ["upper", "work", "root"].map(|part| folder.join(part));
        [&upper, &work, &root].iter().for_each(|part| fs::create_dir_all(part).unwrap());
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            ground.base.display(),
            upper.display(),
            work.display()
        );
        let done =
            Command::new("mount").args(["-t", "overlay", "-o", &layers, "overlay"]).arg(&root).status();
        assert!(done.unwrap().success(), "no overlay on {}", ground.base.display());
        fs::write(root.join("etc/hostname"), format!("{name}\n")).unwrap();
        Self {
            name: name.to_owned(),
            machine: network.machine(number),
            packages: ground.packages.clone(),
            cgroup: ground.cgroup.join(name),
            folder,
            boots: AtomicU32::new(0),
            nspawn: Mutex::new(None),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn address(&self) -> std::net::Ipv4Addr {
        self.machine.address()
    }

    /// Its disk, for what happens to it while it is off.
    pub(super) fn disk(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Switches it on, and waits until all that is to start has started.
    #[track_caller]
    pub(super) fn boot(&self) {
        let cgroup = self.cgroup.join(self.boots.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(&cgroup).unwrap();
        let log = fs::File::create(self.folder.join("console.log")).unwrap();
        let mut command = Command::new("sh");
        // The group is joined first: nspawn makes those of the host below the one that it is in.
        command.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec systemd-nspawn "$@""#]).arg(&cgroup);
        command.args([
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--resolv-conf=off",
            "--timezone=off",
        ]);
        // As on a machine: nspawn keeps it from containers, and the kernel asks for no privilege.
        command.arg("--system-call-filter=fanotify_init fanotify_mark");
        command.arg(format!("--directory={}", self.folder.join("root").display()));
        command.arg(format!("--machine={}", self.name));
        command.arg(format!("--network-namespace-path={}", self.machine.namespace()));
        command.arg(format!("--bind-ro={}:{PACKAGES}", self.packages.display()));
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.nspawn.lock().unwrap() = Some(command.spawn().unwrap());
        wait_until(&format!("{} is up", self.name), BOOT_PATIENCE, || {
            let state = self.try_run("systemctl is-system-running")?;
            ["running\n", "degraded\n"].contains(&state.stdout.as_str()).then_some(())
        });
    }

    /// Takes its power away: every process dies at once.
    pub(super) fn power_off(&self) {
        let Some(mut nspawn) = self.nspawn.lock().unwrap().take() else { return };
        fs::write(self.cgroup.join("cgroup.kill"), "1").unwrap();
        nspawn.wait().unwrap();
        let is_empty = || {
            let events = fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap();
            events.contains("populated 0").then_some(())
        };
        wait_until(&format!("nothing runs on {}", self.name), BOOT_PATIENCE, is_empty);
    }

    /// Shuts it down in good order.
    #[track_caller]
    pub(super) fn shut_down(&self) {
        self.try_run("systemctl poweroff");
        wait_until(&format!("{} is off", self.name), BOOT_PATIENCE, || {
            self.nspawn.lock().unwrap().as_mut()?.try_wait().unwrap().map(|_| ())
        });
        self.power_off();
    }

    /// Runs a line of shell as root.
    #[track_caller]
    pub(super) fn run(&self, line: &str) -> Output {
        self.try_run(line).unwrap_or_else(|| panic!("{} is off: {line}", self.name))
    }

    /// The same, which must end well; answers what it wrote.
    #[track_caller]
    pub(super) fn must(&self, line: &str) -> String {
        self.run(line).expect_code(0).stdout.trim_end().to_owned()
    }

    /// Writes a file.
    #[track_caller]
    pub(super) fn write(&self, path: &str, text: &str) {
        let leader = self.leader().unwrap_or_else(|| panic!("{} is off", self.name));
        fs::write(format!("/proc/{leader}/root{path}"), text).unwrap();
    }

    /// One property of a unit.
    #[track_caller]
    pub(super) fn property(&self, unit: &str, property: &str) -> String {
        self.must(&format!("systemctl show --property={property} --value {unit}"))
    }

    /// What the host answers for `/release.txt`, if it serves something.
    pub(super) fn serves(&self, port: u16) -> Option<String> {
        let address = SocketAddr::from((self.address(), port));
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_PATIENCE).ok()?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE)).ok()?;
        stream.write_all(b"GET /release.txt HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.trim_end().to_owned())
    }

    fn try_run(&self, line: &str) -> Option<Output> {
        let leader = self.leader()?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &leader.to_string(), "--all", "--", "sh", "-c", line]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LANG", "C.UTF-8").env("SYSTEMD_PAGER", "cat");
        command.env("MUSTER_CONTEXT", super::site::CONTEXT).stdin(Stdio::null());
        Some(Output::of(format!("[{}] {line}", self.name), command.output().unwrap()))
    }

    /// The first process of the host. While it starts, nspawn has another child that is not in the host yet.
    fn leader(&self) -> Option<u32> {
        let nspawn = self.nspawn.lock().unwrap().as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
        children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
            let root = PathBuf::from(format!("/proc/{child}/root"));
            let is_host =
                fs::read_to_string(root.join("etc/hostname")).is_ok_and(|name| name.trim() == self.name);
            is_host && root.join("run/systemd/container").exists()
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// Removes a control group and all below it, which nothing runs in any more.
pub(super) fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    // It may be that the kernel has not taken leave of the last process yet; the next run removes it.
    let _ = fs::remove_dir(path);
}
