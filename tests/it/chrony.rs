//! A real time daemon, which an agent asks how far its clock may be off.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::{Fleet, PATIENCE, versioned, wait_until};

/// A chronyd that reads the time and does not set it.
struct Chronyd {
    process: Child,
    socket: PathBuf,
}

impl Chronyd {
    #[track_caller]
    fn start(folder: &Path, directives: &str) -> Self {
        use std::os::unix::fs::DirBuilderExt as _;
        // It insists that nobody else can enter the folder of its socket.
        fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
        let (socket, pid) = (folder.join("chronyd.sock"), folder.join("chronyd.pid"));
        let own = format!("cmdport 0\nbindcmdaddress {}\npidfile {}\n", socket.display(), pid.display());
        let config = folder.join("chrony.conf");
        fs::write(&config, own + directives).unwrap();
        let process = Command::new("/usr/sbin/chronyd")
            .args(["-d", "-x", "-u", "root", "-f", config.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .expect("chronyd is needed: it is in Debian's package chrony");
        Self { process, socket }
    }

    /// What an agent is configured with to ask it.
    fn question(&self) -> [&str; 3] {
        ["chronyc", "-h", self.socket.to_str().unwrap()]
    }
}

impl Drop for Chronyd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
#[ignore = "needs chronyd, of Debian's package chrony: cargo test --workspace -- --ignored"]
fn a_fast_flip_rests_on_what_the_time_daemon_of_each_host_says() {
    let fleet = Fleet::up(2);
    fleet.release(&versioned("1"), "1");
    let second = fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);

    let at = |name: &str| fleet.scratch().join(name);
    let port = free_port();
    let server = Chronyd::start(&at("server"), &format!("local stratum 8\nport {port}\nallow 127.0.0.1\n"));
    let source = format!("server 127.0.0.1 port {port} iburst minpoll 0 maxpoll 0\nport 0\n");
    let client = Chronyd::start(&at("client"), &source);
    let host = fleet.host(2);
    let ask_of = |daemon: &Chronyd| {
        host.agent.kill();
        let config = host.folder().join("agent.toml");
        let text = fs::read_to_string(&config).unwrap();
        let kept =
            text.lines().filter(|line| !line.starts_with("clock_error_ms") && !line.starts_with("chronyc"));
        let kept: Vec<&str> = kept.collect();
        fs::write(&config, format!("chronyc = {:?}\n{}\n", daemon.question(), kept.join("\n"))).unwrap();
        host.agent.start(&[]);
        fleet.wait_connected(2);
    };
    let fast = ["flip", "2", "--mode", "fast"];

    // A clock that follows only itself tells nothing of the others.
    ask_of(&server);
    fleet.json(&fast).expect_code(12).expect_blocker("clock-uncertain", host.name(), "");
    // One that follows a server does, as soon as it is synchronised.
    ask_of(&client);
    wait_until("the clock is synchronised", PATIENCE, || (fleet.json(&fast).code == 0).then_some(()));
    fleet.assert_all_serve(&second);
    // A daemon that is gone tells nothing any more.
    drop(client);
    let back = fleet.json(&["rollback", "--mode", "fast"]);
    back.expect_blocker("clock-uncertain", host.name(), "");
    fleet.json(&["rollback"]).expect_code(0);
}
