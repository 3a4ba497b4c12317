//! Seeing what a host serves by asking its service, and the service to be asked.

use std::env;
use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustix::process::Pid;
use tempfile::TempDir;

use super::{Outcome, Probe};
use crate::harness::{Artifact, Fleet, Host, artifact};

#[path = "../../fixtures/service.rs"]
#[expect(
    dead_code,
    reason = "it is a program of its own, and is here for the compiler's and clippy's eyes only"
)]
mod service;

/// Longer than a service that runs needs, on a machine that does much else.
const TIMEOUT: Duration = Duration::from_millis(100);

const REPLY_BYTES_MAX: usize = 4096;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/service.rs");

/// Where a service finds its address, as seen from its release's folder.
const ADDRESS_FILE: &str = "service.address";

/// Asks a service over a new connection each time, as its users do. Its run is the process.
pub(super) struct HttpProbe(SocketAddr);

/// The program `bin/service`, compiled from `fixtures/service.rs`.
pub(crate) struct Service {
    folder: TempDir,
}

impl HttpProbe {
    /// The service whose address is in this file.
    pub(super) fn of(file: &Path) -> Self {
        Self(fs::read_to_string(file).unwrap().trim().parse().unwrap())
    }

    fn ask(&self) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&self.0, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        // Closing resets the connection, so that thousands of questions do not use up the ports.
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n")?;
        let mut reply = Vec::new();
        let mut part = [0; 1024];
        while !is_complete(&reply) && reply.len() <= REPLY_BYTES_MAX {
            let read = stream.read(&mut part)?;
            if read == 0 {
                break;
            }
            reply.extend_from_slice(&part[..read]);
        }
        Ok(reply)
    }
}

impl Probe for HttpProbe {
    fn look(&mut self) -> Outcome {
        match self.ask() {
            Ok(reply) => understand(&reply).unwrap_or(Outcome::Unknown),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Nothing,
            Err(_) => Outcome::Unknown,
        }
    }
}

/// The body of a reply that is there as a whole.
fn body(reply: &[u8]) -> Option<&str> {
    let (head, body) = str::from_utf8(reply).ok()?.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok())?;
    (head.starts_with("HTTP/1.1 200 ") && body.len() == length).then_some(body)
}

fn is_complete(reply: &[u8]) -> bool {
    body(reply).is_some()
}

fn understand(reply: &[u8]) -> Option<Outcome> {
    let body = body(reply)?;
    let field = |name: &str| {
        let mut values = body.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.next().filter(|value| !value.trim().is_empty()).map(str::to_owned)
    };
    Some(Outcome::Serves { release: field("release")?, run: field("run")? })
}

impl Service {
    /// Compiles it. Cargo would build a program of this package only as one that users get as well, or, as an example, not
    /// whenever the tests are built; the compiler alone takes a second, and what it makes is never stale.
    pub(crate) fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let beside_cargo = || Path::new(env!("CARGO")).with_file_name("rustc");
        let rustc = env::var_os("RUSTC").map_or_else(beside_cargo, PathBuf::from);
        let mut command = Command::new(rustc);
        command.args(["--edition", "2024", "-C", "strip=symbols", "-o"]);
        let compiled = command.arg(folder.path().join("service")).arg(SOURCE).output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Self { folder }
    }

    /// Starts a fleet whose guards run this service from what is released.
    #[track_caller]
    pub(crate) fn fleet(hosts: usize) -> Fleet {
        let address = format!("../../{ADDRESS_FILE}");
        let fleet = Fleet::up_with(hosts, &["--driver", "supervise", "--command", "./bin/service", &address]);
        for host in fleet.hosts() {
            let file = Self::file(&host);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, free_address().to_string()).unwrap();
        }
        fleet
    }

    /// Gives a host's service another address, from its next start on.
    pub(crate) fn listen_on(host: &Host, address: SocketAddr) {
        fs::write(Self::file(host), address.to_string()).unwrap();
    }

    /// The processes that serve on a host now, whatever they say.
    pub(crate) fn processes(host: &Host) -> Vec<Pid> {
        let trees = host.link().with_file_name("releases");
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        let runs = |pid: &Pid| {
            let program = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
            program.is_ok_and(|program| program.starts_with(&trees))
        };
        pids.filter(runs).collect()
    }

    /// A release's tree that answers with this version.
    pub(crate) fn tree(&self, version: &str) -> Artifact {
        let tree = artifact(&[("VERSION", version), ("bin/service", "")]);
        let program = tree.path().join("bin/service");
        fs::remove_file(&program).unwrap();
        // A program that this process had written could not be run while another thread's child has it open.
        fs::hard_link(self.folder.path().join("service"), &program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        tree
    }

    /// The file with the address of a host's service.
    pub(super) fn file(host: &Host) -> PathBuf {
        host.link().with_file_name(ADDRESS_FILE)
    }

    /// Where a service says that it found its address taken.
    pub(super) fn conflicts(file: &Path) -> PathBuf {
        file.with_file_name(format!("{}.conflicts", file.file_name().unwrap().to_str().unwrap()))
    }
}

/// An address that stays free while nobody listens: no other process of this machine has this one's number, which is at
/// most 2^22, and the port is below those of outgoing connections.
fn free_address() -> SocketAddr {
    const PORT_FIRST: u16 = 20_000;
    static PORTS: AtomicU16 = AtomicU16::new(PORT_FIRST);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 64 + (high & 0x3f), middle, low);
    SocketAddrV4::new(address, PORTS.fetch_add(1, Ordering::Relaxed)).into()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};

    use rustix::process::{Signal, kill_process};

    use super::*;
    use crate::harness::observer::{HTTP_PAUSE, Observer};
    use crate::harness::until;

    /// A service that nobody supervises.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(tree: &Artifact, file: &Path) -> Running {
        let mut command = Command::new(tree.path().join("bin/service"));
        Running(command.arg(file).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn address(folder: &Path, host: &str) -> PathBuf {
        let file = folder.join(host);
        fs::write(&file, free_address().to_string()).unwrap();
        file
    }

    fn watch(files: &[(&str, &Path)]) -> Observer {
        let probes = files.iter().map(|(host, file)| ((*host).to_owned(), HttpProbe::of(file)));
        Observer::watch(probes.collect(), HTTP_PAUSE)
    }

    #[test]
    fn a_service_says_what_it_was_started_from_until_it_ends() {
        let (service, folder) = (Service::build(), tempfile::tempdir().unwrap());
        let file = address(folder.path(), "host-1");
        let mut probe = HttpProbe::of(&file);
        assert_eq!(probe.look(), Outcome::Nothing);
        let tree = service.tree("1");
        let mut running = start(&tree, &file);
        let first = crate::harness::wait_until("it answers", crate::harness::PATIENCE, || {
            Some(probe.look()).filter(|outcome| matches!(outcome, Outcome::Serves { .. }))
        });
        let Outcome::Serves { release, run } = &first else { panic!("{first:?}") };
        assert_eq!(release, "1");
        assert!(run.starts_with(&format!("{}-", running.0.id())), "{run}");
        tree.write("VERSION", "2");
        assert_eq!(probe.look(), first, "the tree is read at the start");

        // Who is halted may go on at any instant: that it is silent proves nothing.
        let pid = Pid::from_child(&running.0);
        kill_process(pid, Signal::STOP).unwrap();
        until("it is halted", || probe.look() == Outcome::Unknown);
        kill_process(pid, Signal::CONT).unwrap();
        until("it answers again", || probe.look() == first);
        running.0.kill().unwrap();
        running.0.wait().unwrap();
        assert_eq!(probe.look(), Outcome::Nothing);
    }

    #[test]
    fn services_of_different_releases_are_found() {
        let (service, folder) = (Service::build(), tempfile::tempdir().unwrap());
        let files = ["host-1", "host-2"].map(|host| address(folder.path(), host));
        let observer = watch(&[("host-1", &files[0]), ("host-2", &files[1])]);
        let (one, two) = (service.tree("1"), service.tree("2"));
        let _first = start(&one, &files[0]);
        let second = start(&one, &files[1]);
        observer.wait_all_serve("1");
        assert_eq!(observer.record().violation(), None);
        drop(second);
        let _second = start(&two, &files[1]);
        until("the observer sees both", || observer.record().violation().is_some());
        let seen = observer.finish();
        assert_eq!(seen.runs["host-1"], ["1"]);
        assert_eq!(seen.runs["host-2"], ["1", "2"]);
    }

    #[test]
    fn a_service_that_is_started_beside_another_one_says_so_and_ends() {
        let (service, folder) = (Service::build(), tempfile::tempdir().unwrap());
        let file = address(folder.path(), "host-1");
        let (one, two) = (service.tree("1"), service.tree("2"));
        let mut observer = watch(&[("host-1", &file)]);
        observer.conflicts = vec![Service::conflicts(&file)];
        let _old = start(&one, &file);
        observer.wait_all_serve("1");
        let mut new = start(&two, &file);
        assert!(!new.0.wait().unwrap().success());
        let seen = observer.finish();
        let line = format!("release 2 (process {}) found the address taken", new.0.id());
        assert_eq!(seen.conflicts, [line]);
        assert_eq!(seen.runs["host-1"], ["1"]);
    }

    #[test]
    fn what_is_no_whole_answer_tells_nothing() {
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\nrelease 1\nrun 7-1\n";
        let serves = Outcome::Serves { release: "1".to_owned(), run: "7-1".to_owned() };
        assert_eq!(understand(good.as_bytes()), Some(serves));
        for bad in [
            &good[..good.len() - 1],
            &good.replace("200", "404"),
            &good.replace("release 1", "release  "),
            &good.replace("run", "ran"),
            &good.replace("Content-Length", "Length"),
            "",
        ] {
            assert_eq!(understand(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
