//! The threat model, row by row, each played by a real process that speaks the real protocol; and the attacks on signed
//! documents. Those that are not below are where the table says.
//!
//! | row | test |
//! |---|---|
//! | network attacker | [`what_is_sent_can_be_neither_read_nor_changed_nor_said_again`]; to impersonate: `certificates`, `roles` |
//! | blob store | `usurper::a_blob_store_that_never_ends_…`, `impostor::nothing_is_installed_…`, `tamper::a_blob_that_is_damaged_in_the_coordinators_store_…` |
//! | pipeline identity | [`a_pipeline_submits_and_checks_and_changes_nothing_that_is_served`], `roles` |
//! | fewer than t release keys | [`fewer_release_keys_than_the_threshold_make_no_release`] |
//! | one operator of two | `approvals::one_operator_cannot_flip_and_two_can`, `impostor::a_host_counts_operators_…` |
//! | coordinator | `usurper::a_coordinator_that_was_taken_over_…`, `impostor`, `audit::a_log_that_was_cut_…` |
//! | issuing CA | `hostile`: all its callers have certificates that the test has issued itself |
//! | one host, root | [`a_host_attests_for_no_other_and_gives_nobody_bytes`], `hostile::late_messages_…`, `tamper` |
//! | local user on a host | `secrets::a_local_user_can_change_neither_…` |
//!
//! | attack | test |
//! |---|---|
//! | arbitrary software | `impostor::nothing_is_installed_that_is_not_what_the_release_key_signed` |
//! | rollback | `usurper` (an order of former times), `roots` (an older root) |
//! | freeze | `roots::an_expired_root_stops_flips_…`, `hostile::an_order_holds_once_…` |
//! | mix and match | `usurper`, `impostor::a_host_believes_no_papers_…` |
//! | fast forward | `hostile::an_order_holds_once_…` (a counter that leaps), `roots::a_root_needs_…` |
//! | endless data, slow retrieval | `usurper::a_blob_store_that_never_ends_…`, `uploads` |
//! | duplicate signatures | `impostor::a_host_counts_operators_and_not_signatures`, [`fewer_release_keys_than_the_threshold_make_no_release`] |
//! | replayed attestation | `usurper` |
//! | replayed approval | `approvals::an_order_for_a_roster_that_has_changed_…`, `hostile::an_order_holds_once_…` |
//! | wrong roster, empty roster | `hostile::an_order_holds_once_…`, `usurper`; [`a_roster_of_nobody_is_none`] |
//! | expired everything | `certificates`, `roots`, `hostile`, `approvals`; [`a_release_that_has_expired_is_not_flipped_to`] |

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_model::{Attestation, Code, Digest, Document as _, DocumentKind, Release};
use muster_mtls::Role;
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_proto::v1::coordinator_frame::Body as Told;
use muster_trust::{Envelope, Signer as _, SigningKey, pae, sign};
use serde_json::json;

use crate::harness::forgery::{self, release, strangers_key};
use crate::harness::{
    Caller, Fleet, PATIENCE, configure, issue, now, refusal_of, run, signed, today, versioned, wait_until,
};

/// Somebody on the way between an agent and its coordinator.
struct Eavesdropper {
    port: u16,
    /// What the agent has sent over each of its connections.
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    /// How many of the coordinator's next bytes are let through before one is changed; none is while it is the greatest.
    spoils: Arc<AtomicUsize>,
}

impl Eavesdropper {
    fn before(coordinator: (String, u16)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sent, spoils) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::new(AtomicUsize::new(usize::MAX)));
        let (sent_here, spoils_here) = (Arc::clone(&sent), Arc::clone(&spoils));
        std::thread::spawn(move || {
            for agent in listener.incoming() {
                let (Ok(agent), Ok(server)) = (agent, TcpStream::connect(&coordinator)) else { continue };
                let place = {
                    let mut sent = sent_here.lock().unwrap();
                    sent.push(Vec::new());
                    sent.len() - 1
                };
                let (sent, spoils) = (Arc::clone(&sent_here), Arc::clone(&spoils_here));
                let ways = (agent.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    pass(ways.0, ways.1, |bytes| sent.lock().unwrap()[place].extend_from_slice(bytes));
                });
                std::thread::spawn(move || {
                    pass(server, agent, |bytes| {
                        let left = spoils.load(Ordering::SeqCst);
                        match bytes.get_mut(left) {
                            Some(byte) => {
                                *byte ^= 1;
                                spoils.store(usize::MAX, Ordering::SeqCst);
                            }
                            None if left != usize::MAX => {
                                spoils.store(left - bytes.len(), Ordering::SeqCst);
                            }
                            None => {}
                        }
                    });
                });
            }
        });
        Self { port, sent, spoils }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut look: impl FnMut(&mut [u8])) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        look(&mut bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}

#[test]
fn what_is_sent_can_be_neither_read_nor_changed_nor_said_again() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&versioned("1"), "1");
    let host = fleet.host(1);
    let address = fleet.address();
    let coordinator = (address.host().to_string(), address.port());
    let eavesdropper = Eavesdropper::before(coordinator.clone());
    host.agent.kill();
    configure(&host.folder().join("agent.toml"), "coordinator", format!("127.0.0.1:{}", eavesdropper.port));
    host.agent.start(&[]);
    fleet.wait_connected(1);
    fleet.json(&["check", "--release", "1"]).expect_code(0);

    // Read: nothing of what the agent has said of itself is there in the clear.
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let recorded = eavesdropper.sent.lock().unwrap().last().unwrap().clone();
    assert!(recorded.len() > 1000, "{} bytes", recorded.len());
    for text in [boot_id.trim_end(), "application/grpc", "spiffe://", "host-1"] {
        let is_there = recorded.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        assert!(!is_there, "`{text}` can be read");
    }

    // Change: one bit of what the coordinator says. The connection is over, and another one is made.
    let connections = eavesdropper.sent.lock().unwrap().len();
    eavesdropper.spoils.store(20, Ordering::SeqCst);
    let check = fleet.json(&["check", "--release", "1", "--timeout", "20s"]);
    assert!([0, 11, 16].contains(&check.code), "{check}");
    wait_until("the agent has given up what was changed", PATIENCE, || {
        let is_spoilt = eavesdropper.spoils.load(Ordering::SeqCst) == usize::MAX;
        (is_spoilt && eavesdropper.sent.lock().unwrap().len() > connections).then_some(())
    });
    fleet.wait_connected(1);

    // Say again: everything that the agent has sent over its first connection, to the last byte.
    let before = Caller::operator(&fleet).status();
    let mut again = TcpStream::connect(coordinator).unwrap();
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = again.write_all(&recorded);
    let mut answer = Vec::new();
    let _ = again.read_to_end(&mut answer);
    wait_until("the coordinator refuses it", PATIENCE, || {
        fleet.coordinator().log().contains("TLS handshake refused").then_some(())
    });
    let after = Caller::operator(&fleet).status();
    assert_eq!((before.phase, before.epoch, before.last_k), (after.phase, after.epoch, after.last_k));
    let two = fleet.release(&versioned("2"), "2");
    assert_ne!(one, two);
    fleet.assert_all_serve(&two);
}

#[test]
fn a_pipeline_submits_and_checks_and_changes_nothing_that_is_served() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&versioned("1"), "1");
    let tree = versioned("2");
    // All keys as well: what the certificate may not do is refused before anybody looks at a signature.
    let issued = issue(&fleet.authority(), Role::Pipeline, "ci", today());
    let context = fleet.context_of("pipeline.toml", &issued);
    let context = [("MUSTER_CONTEXT", context.to_str().unwrap())];
    let pipeline = |arguments: &[&str]| run(&[arguments, &["--output", "json"]].concat(), &context);
    pipeline(&["release", "push", tree.argument(), "--version", "2"]).expect_code(0);
    pipeline(&["deploy", "2"]).expect_code(0);
    pipeline(&["check", "--release", "2"]).expect_code(0);
    let draft = fleet.scratch().join("roster.toml");
    fleet.json(&["roster", "draft", "--out", draft.to_str().unwrap()]).expect_code(0);
    for verb in [
        &["flip", "2"][..],
        &["roster", "apply", draft.to_str().unwrap()],
        &["halt", "demo", "--reason", "mischief", "--yes"],
        &["host", "readmit", "host-1"],
    ] {
        let refused = pipeline(verb);
        assert_ne!(refused.code, 0, "{refused}");
        assert!(refused.to_string().contains("not-allowed"), "{refused}");
        fleet.assert_all_serve(&one);
    }
}

#[test]
fn fewer_release_keys_than_the_threshold_make_no_release() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&versioned("1"), "1");
    let (ours, second) = (fleet.release_key(), strangers_key());
    let public = fleet.scratch().join("second.pub");
    fs::write(&public, second.public().to_string()).unwrap();
    let (draft, next) = (fleet.scratch().join("next.toml"), fleet.scratch().join("next.json"));
    let add = format!("release={}", public.display());
    let edit = ["root", "edit", "--out", draft.to_str().unwrap(), "--threshold", "release=2", "--add", &add];
    fleet.json(&edit).expect_code(0);
    let root_key = fleet.dir().join("keys/root.key");
    let sign_root = ["root", "sign", draft.to_str().unwrap(), "--key", root_key.to_str().unwrap()];
    fleet.json(&sign_root).expect_code(0);
    fleet.json(&["root", "apply", next.to_str().unwrap()]).expect_code(0);
    wait_until("the host follows the root", PATIENCE, || {
        fleet.host(1).folder().join("roots/2.json").exists().then_some(())
    });

    let caller = Caller::operator(&fleet);
    let blob = caller.keep(b"new");
    let manifest = caller.keep(&forgery::manifest_of("a", 3, blob));
    let document = release("2", manifest);
    let alone = signed(&document, &ours);
    for few in [alone.clone(), forgery::signed_twice(&alone), by(&document, &[&ours, &strangers_key()])] {
        let refused = refusal_of(&caller.submit(few).unwrap_err());
        assert_eq!(refused.code(), Some(Code::SignatureInvalid), "{refused}");
        assert!(refused.to_string().contains("signed by 1 of 2 release keys and needs 2"), "{refused}");
    }
    fleet.assert_all_serve(&one);
    caller.submit(by(&document, &[&ours, &second])).unwrap();
    fleet.json(&["deploy", "2"]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&manifest.to_string());
}

fn by(document: &Release, keys: &[&SigningKey]) -> Vec<u8> {
    let keys: Vec<&dyn muster_trust::Signer> = keys.iter().map(|key| *key as _).collect();
    sign(document, &keys).unwrap().raw().to_vec()
}

#[test]
fn a_host_attests_for_no_other_and_gives_nobody_bytes() {
    let (fleet, [one, _]) = Fleet::serving(2);
    let bad = fleet.host(2);
    let key = SigningKey::read(&bad.folder().join("attestation.key")).unwrap();
    bad.agent.kill();
    fleet.wait_connected(1);
    fleet.json(&["host", "readmit", "host-2"]).expect_code(0);
    let caller = Caller::connect(&fleet, &fleet.credentials(Role::Agent, "host-2")).unwrap();
    // Its certificate uploads nothing.
    let denied = caller.upload(Digest::of(b"evil"), 4, b"evil").unwrap_err();
    assert_eq!(refusal_of(&denied).code(), Some(Code::NotAllowed), "{denied}");

    let mut attached = caller.attach();
    attached.say(Body::Join(crate::hostile::join()));
    assert!(matches!(attached.hear(), Ok(Some(Told::Joined(_)))));
    attached.say(Body::Confirmed(v1::Confirmed {}));
    fleet.wait_connected(2);
    let earlier = fleet.scratch().join("earlier.json");
    fleet.json(&["receipt", "show", "--out", earlier.to_str().unwrap()]).expect_code(0);
    let earlier: serde_json::Value = serde_json::from_slice(&fs::read(earlier).unwrap()).unwrap();
    let of_host_1 = serde_json::to_vec(&earlier["attestations"][0]).unwrap();
    let flip = std::thread::scope(|scope| {
        let flip = scope.spawn(|| fleet.json(&["flip", "2"]));
        let k = loop {
            match attached.hear() {
                Ok(Some(Told::Propose(proposed))) => {
                    attached.say(Body::Fresh(v1::Fresh { k: proposed.k, nonce: vec![5; 32] }));
                }
                Ok(Some(Told::Attest(asked))) => break asked.k,
                Ok(Some(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        // What host-1 has attested, signed by a key that is in the roster: its own.
        let claimed = Attestation::parse(Envelope::parse(&of_host_1).unwrap().payload()).unwrap();
        attached.say(Body::Attested(v1::Attested { k, envelope: signed(&claimed, &key) }));
        flip.join().unwrap()
    });
    assert_ne!(flip.code, 0, "{flip}");
    let blamed = flip.blockers();
    let its_own = |it: &muster_model::Blocker| it.host.as_ref().is_some_and(|host| host.as_str() == "host-2");
    assert!(blamed.iter().any(|it| it.code == Code::BadAttestation && its_own(it)), "{flip}");
    fleet.assert_all_serve(&one);
}

#[test]
fn a_roster_of_nobody_is_none() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&versioned("1"), "1");
    let caller = Caller::operator(&fleet);
    let in_force = Envelope::parse(&caller.roster()).unwrap();
    let mut roster: serde_json::Value = serde_json::from_slice(in_force.payload()).unwrap();
    roster["hosts"] = json!([]);
    roster["revision"] = json!(roster["revision"].as_u64().unwrap() + 1);
    // No tool of ours signs this; whoever has the key can.
    let (payload, kind) = (serde_json::to_vec(&roster).unwrap(), DocumentKind::Roster.payload_type());
    let signature = fleet.operator_key().sign(&pae(kind, &payload)).unwrap();
    let envelope = json!({
        "payload": STANDARD.encode(&payload),
        "payloadType": kind,
        "signatures": [{ "sig": STANDARD.encode(&signature) }],
    });
    let refused = refusal_of(&caller.apply_roster(serde_json::to_vec(&envelope).unwrap()).unwrap_err());
    assert_eq!(refused.code(), Some(Code::SignatureInvalid), "{refused}");
    assert!(refused.to_string().contains("it lists no hosts"), "{refused}");
    fleet.json(&["status"]).expect_code(0);
    fleet.assert_all_serve(&one);
    let two = fleet.release(&versioned("2"), "2");
    fleet.assert_all_serve(&two);
}

#[test]
fn a_release_that_has_expired_is_not_flipped_to() {
    let fleet = Fleet::up(1);
    let one = fleet.release(&versioned("1"), "1");
    let caller = Caller::operator(&fleet);
    let blob = caller.keep(b"new");
    let manifest = caller.keep(&forgery::manifest_of("a", 3, blob));
    let until = muster_model::UnixTime(now().0 + 4_000);
    let expiring = Release { expires_unix_ms: Some(until), ..release("2", manifest) };
    caller.submit(signed(&expiring, &fleet.release_key())).unwrap();
    fleet.json(&["deploy", "2"]).expect_code(0);
    wait_until("it has expired", PATIENCE, || (now() >= until).then_some(()));
    fleet.json(&["flip", "2"]).expect_code(13).expect_blocker("release-expired", "", "");
    fleet.assert_all_serve(&one);
}
