//! The protocol over a real socket, with link fleets.

use std::fs::{DirBuilder, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use muster_model::{Digest, Epoch, FleetName, HostName};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::connections::CONNECTIONS_OF_ONE_MAX;
use super::*;
use crate::client::GuardClient;
use crate::config::{Driver, FleetConfig, GuardConfig, HooksConfig};
use crate::protocol::MAX_FRAME_BYTES;

struct Bench {
    folder: TempDir,
    guard: RunningGuard,
    fleet: FleetName,
}

fn settings(folder: &Path) -> Settings {
    let at = folder.join("fleets/smars");
    let config = GuardConfig {
        host: HostName::new("host-1").unwrap(),
        state_dir: folder.to_owned(),
        socket: folder.join("guard.sock"),
        exec_shim: None,
        allowed_uids: Vec::new(),
        fleets: vec![FleetConfig {
            name: FleetName::new("smars").unwrap(),
            link: at.join("current"),
            releases: at.join("releases"),
            driver: Driver::Link,
            hooks: HooksConfig::default(),
        }],
    };
    config.validate().unwrap()
}

impl Bench {
    fn new() -> Self {
        let private = Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let release = folder.path().join("fleets/smars/releases").join(digest().hex());
        DirBuilder::new().recursive(true).mode(0o700).create(release).unwrap();
        let guard = spawn(&settings(folder.path())).unwrap();
        Self { folder, guard, fleet: FleetName::new("smars").unwrap() }
    }

    fn client(&self) -> GuardClient {
        GuardClient::new(&self.folder.path().join("guard.sock"))
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("guard.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }
}

fn digest() -> Digest {
    Digest::of(b"tree")
}

fn send(mut stream: &UnixStream, body: &[u8]) {
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(body).unwrap();
}

fn receive(stream: &UnixStream) -> ReplyFrame {
    frame::read(stream, PATIENCE).unwrap().unwrap()
}

fn refusal(frame: ReplyFrame) -> (u64, RefusalCode, String) {
    let Reply::Refused { code, detail } = frame.reply else { panic!("not refused: {frame:?}") };
    (frame.id, code, detail)
}

#[test]
fn every_call_goes_over_the_socket() {
    let bench = Bench::new();
    let (client, hello) = GuardClient::connect(&bench.folder.path().join("guard.sock")).unwrap();
    assert_eq!((hello.protocol, hello.pid), (PROTOCOL, std::process::id()));
    let open = client.open(&bench.fleet, Epoch(1), digest()).unwrap();
    assert!(open.serves(Epoch(1), digest()));
    assert_eq!(client.status(&bench.fleet).unwrap(), open);
    let error = client.open(&bench.fleet, Epoch(2), digest()).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::NotClosed), "{error}");
    let error = client.status(&FleetName::new("other").unwrap()).unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::UnknownFleet), "{error}");
    assert!(client.close(&bench.fleet, None).unwrap().is_closed());

    let mut watch = client.watch().unwrap();
    bench.guard.stop().unwrap();
    assert!(matches!(watch.next(), Some(Err(GuardError::Unreachable { .. }))));
    assert!(matches!(client.status(&bench.fleet), Err(GuardError::Unreachable { .. })));
    assert!(!bench.folder.path().join("guard.sock").exists());
}

#[test]
fn a_watch_can_be_ended_from_another_thread() {
    let bench = Bench::new();
    let mut watch = bench.client().watch().unwrap();
    let closer = watch.closer().unwrap();
    let waiting = thread::spawn(move || watch.next());
    closer.close();
    assert!(waiting.join().unwrap().unwrap().is_err());
}

#[test]
fn what_cannot_be_parsed_is_refused_and_the_guard_goes_on() {
    let bench = Bench::new();
    let ask = |request: Value| json!({ "protocol": PROTOCOL, "id": 7, "request": request }).to_string();
    for (body, id, code, word) in [
        ("{".to_owned(), 0, RefusalCode::BadRequest, "JSON"),
        ("[]".to_owned(), 0, RefusalCode::BadRequest, "JSON"),
        ("\u{0}\u{1}".to_owned(), 0, RefusalCode::BadRequest, "JSON"),
        (ask(json!({ "verb": "exec", "command": ["sh"] })), 7, RefusalCode::BadRequest, "unknown variant"),
        (ask(json!({ "verb": "status" })), 7, RefusalCode::BadRequest, "fleet"),
        (ask(json!({ "verb": "status", "fleet": "../smars" })), 7, RefusalCode::BadRequest, "fleet name"),
        (ask(json!({ "verb": "status", "fleet": "smars", "path": "/" })), 7, RefusalCode::BadRequest, "path"),
        (
            ask(json!({ "verb": "open", "fleet": "smars", "epoch": 1, "digest": "sha256:../.." })),
            7,
            RefusalCode::BadRequest,
            "digest",
        ),
        (
            json!({ "protocol": 99, "id": 7, "request": {} }).to_string(),
            7,
            RefusalCode::UnsupportedProtocol,
            "99",
        ),
    ] {
        let stream = bench.raw();
        send(&stream, body.as_bytes());
        let (answered, refused, detail) = refusal(receive(&stream));
        assert_eq!((answered, refused), (id, code), "{body}: {detail}");
        assert!(detail.contains(word), "{body}: {detail}");
    }
    assert!(bench.client().status(&bench.fleet).unwrap().is_closed());
}

#[test]
fn frames_out_of_bounds_end_the_connection() {
    let bench = Bench::new();
    for length in [0, u32::try_from(MAX_FRAME_BYTES).unwrap() + 1, u32::MAX] {
        let mut stream = bench.raw();
        stream.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(refusal(receive(&stream)).1, RefusalCode::BadRequest);
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    }
    let mut half = bench.raw();
    half.write_all(&[0, 0, 0, 9, b'{']).unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(half.read(&mut [0; 8]).unwrap(), 0);
    assert!(bench.client().hello().is_ok());
}

#[test]
fn several_requests_on_one_connection_are_answered_in_order() {
    let bench = Bench::new();
    let stream = bench.raw();
    for id in 1..=3 {
        let body = json!({ "protocol": PROTOCOL, "id": id, "request": { "verb": "hello" } }).to_string();
        send(&stream, body.as_bytes());
    }
    let ids: Vec<u64> = (1..=3).map(|_| receive(&stream).id).collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn one_connection_too_many_is_told_so_and_places_come_back() {
    let bench = Bench::new();
    let watches: Vec<_> = (0..CONNECTIONS_OF_ONE_MAX).map(|_| bench.client().watch().unwrap()).collect();
    assert_eq!(bench.client().hello().unwrap_err().code(), Some(RefusalCode::Busy));
    drop(watches);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while bench.client().hello().is_err() {
        assert!(std::time::Instant::now() < deadline, "places do not come back");
    }
}

#[test]
fn a_second_guard_is_refused_and_a_dead_socket_is_replaced() {
    let bench = Bench::new();
    assert!(matches!(spawn(&settings(bench.folder.path())), Err(GuardError::AlreadyRunning { .. })));
    bench.guard.stop().unwrap();
    // What a killed guard leaves behind: a socket on which nobody listens.
    drop(UnixListener::bind(bench.folder.path().join("guard.sock")).unwrap());
    let guard = spawn(&settings(bench.folder.path())).unwrap();
    assert!(GuardClient::connect(&bench.folder.path().join("guard.sock")).is_ok());
    guard.stop().unwrap();
}

#[test]
fn only_the_own_user_and_root_may_ask() {
    for (peer, own, may) in
        [(1000, 1000, true), (0, 1000, true), (1001, 1000, false), (1000, 0, false), (0, 0, true)]
    {
        assert_eq!(may_ask(peer, own, &[]), may, "{peer} asks {own}");
    }
    assert!(may_ask(1001, 1000, &[7, 1001]) && !may_ask(1002, 1000, &[7, 1001]));
}

#[test]
fn long_reasons_are_cut_at_a_character() {
    let cut = bounded("é".repeat(DETAIL_BYTES_MAX));
    assert!(cut.len() <= DETAIL_BYTES_MAX + '…'.len_utf8() && cut.ends_with("é…"));
}
