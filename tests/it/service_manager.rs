//! What systemd is told by the daemons, as it is told: over a socket.

use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::harness::{Fleet, PATIENCE};

/// The manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path, _folder: folder }
    }

    fn environment(&self) -> [(&str, &str); 1] {
        [("NOTIFY_SOCKET", self.path.to_str().unwrap())]
    }

    /// Everything that is told until something with `word` in it, that included.
    #[track_caller]
    fn until(&self, word: &str) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            let length = self
                .socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{word}: {error} after {told:?}"));
            told.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
            if told.last().is_some_and(|last| last.contains(word)) {
                return told;
            }
        }
    }
}

#[test]
fn an_agent_is_ready_when_its_guard_has_answered_with_or_without_a_coordinator() {
    let fleet = Fleet::up(1);
    let host = fleet.host(1);
    host.agent.kill();
    host.guard.kill();
    fleet.coordinator().kill();

    let manager = Manager::new();
    host.agent.start(&manager.environment());
    let told = manager.until("waits for the guard");
    assert!(!told.iter().any(|line| line.contains("READY=1")), "{told:?}");
    host.guard.start(&manager.environment());
    let of_the_guard = manager.until("READY=1");
    assert!(
        of_the_guard.last().unwrap().contains("STATUS=answers on"),
        "the guard is first: {of_the_guard:?}"
    );
    let told = manager.until("READY=1");
    assert!(told.iter().any(|line| line.contains("demo: not connected")), "{told:?}");

    fleet.coordinator().start(&[]);
    fleet.wait_connected(1);
    kill_process(host.agent.pid(), Signal::TERM).unwrap();
    manager.until("STOPPING=1");
    kill_process(host.guard.pid(), Signal::TERM).unwrap();
    manager.until("STOPPING=1");
}

#[test]
fn a_coordinator_is_ready_when_it_listens() {
    let fleet = Fleet::up(1);
    fleet.coordinator().kill();
    let manager = Manager::new();
    fleet.coordinator().start(&manager.environment());
    let told = manager.until("READY=1");
    assert!(told.iter().any(|line| line.contains("leads demo")), "{told:?}");
    let address = (fleet.address().host(), fleet.address().port());
    TcpStream::connect((address.0.as_str(), address.1)).expect("it listens");
    kill_process(fleet.coordinator().pid(), Signal::TERM).unwrap();
    manager.until("STOPPING=1");
}
