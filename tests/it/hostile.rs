//! What a client with a valid certificate may try: manifests, uploads, documents and frames that lie. Each is refused
//! with its name, and the fleet goes on as it was.

use std::fs::{self, File};

use muster_model::{Code, Digest, OnFailure, Order, Refusal, Release, Roster, RosterRef, UnixTime};
use muster_mtls::Role;
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_proto::v1::coordinator_frame::Body as Told;
use muster_proto::v1::upload_request::Part;
use tonic::Status;

use crate::harness::forgery::{self, order, passed_off_as, release, strangers_key, unsigned};
use crate::harness::{
    Artifact, Attached, Caller, Fleet, PATIENCE, artifact, now, refusal_of, signed, wait_until,
};

/// More than any manifest may have: 257 MiB.
const TOO_LONG_BYTES: u64 = 257 << 20;

#[track_caller]
fn expect_refusal(answer: Result<(), Status>, code: Code, text: &str) {
    let Err(status) = answer else { panic!("it was not refused, though `{text}`") };
    let refusal = refusal_of(&status);
    assert_eq!(refusal.code(), Some(code), "{refusal}");
    assert!(refusal.to_string().contains(text), "no `{text}`: {refusal}");
}

/// A fleet that serves 1.0, with 2.0 deployed.
fn deployed(hosts: usize) -> (Fleet, Artifact, Digest, Digest) {
    let fleet = Fleet::up(hosts);
    let tree = artifact(&[("lib/a", "a")]);
    let one = fleet.release(&tree, "1.0");
    tree.write("lib/a", "b");
    let two = fleet.push(&tree, "2.0");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    (fleet, tree, one.parse().unwrap(), two.parse().unwrap())
}

#[test]
fn manifests_that_no_tree_has_become_no_release() {
    let fleet = Fleet::up(1);
    let (caller, key) = (Caller::operator(&fleet), fleet.release_key());
    caller.keep(b"a");
    let submit = |version: &str, manifest| caller.submit(signed(&release(version, manifest), &key));
    for (text, manifest) in forgery::hostile_manifests() {
        let manifest = caller.keep(&manifest);
        expect_refusal(submit("1.0", manifest), Code::SignatureInvalid, text);
    }
    expect_refusal(submit("1.0", Digest::of(b"never uploaded")), Code::BlobMissing, "sha256:");
    // One that lists a file which was not uploaded, or was with another size.
    for size in [1, 7] {
        let digest = Digest::of(if size == 7 { b"a" } else { b"b" });
        let manifest = caller.keep(&forgery::manifest_of("b", size, digest));
        expect_refusal(submit("1.0", manifest), Code::BlobMissing, "was not uploaded");
    }
    // One that is too long is not even read: its bytes are not what its name says.
    let long = Digest::of(b"a long manifest");
    let folder = fleet.dir().join("coordinator/state/blobs").join(&long.hex()[..2]);
    fs::create_dir_all(&folder).unwrap();
    File::create(folder.join(long.hex())).unwrap().set_len(TOO_LONG_BYTES).unwrap();
    expect_refusal(submit("1.0", long), Code::BlobDamaged, &TOO_LONG_BYTES.to_string());

    let listed = fleet.json(&["release", "list"]).expect_code(0);
    assert_eq!(listed.json()["releases"].as_array().map(Vec::len), Some(0), "{listed}");
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    fleet.assert_all_serve(&one);
}

#[test]
fn an_upload_that_lies_is_not_kept() {
    let fleet = Fleet::up(1);
    let caller = Caller::operator(&fleet);
    let (good, name) = (b"the bytes".as_slice(), Digest::of(b"the bytes"));
    let size = good.len() as u64;
    for (stated, bytes) in [
        (size, b"the bytez".as_slice()),
        (size - 1, good),
        (size + 1, good),
        (u64::MAX, good),
        (0, good),
        (size, b""),
    ] {
        expect_refusal(caller.upload(name, stated, bytes), Code::BlobDamaged, &name.to_string());
        assert!(!caller.holds(name), "{stated} bytes were stated");
    }
    let header = || Part::Header(v1::BlobHeader { digest: name.as_bytes().to_vec(), size });
    let chunk = || Part::Chunk(good.to_vec());
    let short = Part::Header(v1::BlobHeader { digest: vec![7; 31], size });
    for (parts, text) in [
        (vec![], "begins with a header"),
        (vec![chunk(), header()], "begins with a header"),
        (vec![header(), header(), chunk()], "comes first and once"),
        (vec![short, chunk()], "digest"),
        (vec![header(), Part::Chunk(Vec::new()), chunk()], "a chunk with nothing in it"),
    ] {
        let status = caller.upload_parts(parts).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "no `{text}`: {status}");
        assert!(!caller.holds(name));
    }
    // A message that is larger than any is not read.
    let status = caller.upload_parts(vec![header(), Part::Chunk(vec![0; 5 << 20])]).unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    let incoming = fs::read_dir(fleet.dir().join("coordinator/state/blobs/incoming")).unwrap();
    assert_eq!(incoming.count(), 0, "nothing is left of them");
    assert_eq!(caller.keep(good), name);
    assert!(caller.holds(name));
}

#[test]
fn documents_that_the_right_keys_did_not_sign_are_not_believed() {
    let (fleet, tree, one, two) = deployed(2);
    let caller = Caller::operator(&fleet);
    let (stranger, operator, releaser) = (strangers_key(), fleet.operator_key(), fleet.release_key());
    let in_force = in_force(&fleet, &caller);
    let three: Release = release("3.0", two);
    let next: Roster = Roster::new(
        in_force.0.fleet().clone(),
        in_force.0.revision().next(),
        in_force.0.policy(),
        in_force.0.hosts()[..1].to_vec(),
    )
    .unwrap();
    let flip: Order = order(2, in_force.1, Some(one), two);

    let submitted = [
        unsigned(&signed(&three, &releaser)),
        signed(&three, &stranger),
        signed(&three, &operator),
        passed_off_as(&signed(&flip, &operator), "application/vnd.in-toto+json"),
        b"{}".to_vec(),
        Vec::new(),
    ];
    for envelope in submitted {
        expect_refusal(caller.submit(envelope), Code::SignatureInvalid, "release");
    }
    let rosters = [unsigned(&signed(&next, &operator)), signed(&next, &stranger), signed(&next, &releaser)];
    for envelope in rosters {
        expect_refusal(caller.apply_roster(envelope), Code::SignatureInvalid, "roster");
    }
    let orders = [unsigned(&signed(&flip, &operator)), signed(&flip, &stranger), signed(&flip, &releaser)];
    for envelope in orders {
        expect_refusal(caller.flip(envelope), Code::SignatureInvalid, "order");
    }
    assert_untouched(&fleet, &caller, one);

    // The same through the command line, whose context names another key.
    let key = fleet.scratch().join("stranger.key");
    stranger.write_new(&key).unwrap();
    let key = key.to_str().unwrap();
    let context = fleet.context_with("strange.toml", &[("operator_key", key), ("release_key", key)]);
    tree.write("lib/a", "c");
    let push = ["release", "push", tree.argument(), "--version", "9.0"];
    for arguments in [&["flip", "2.0"][..], &push] {
        let rest = ["--context", context.to_str().unwrap(), "--output", "json"];
        let refused = crate::harness::run(&[arguments, &rest].concat(), &[]).expect_code(12);
        refused.expect_blocker("signature-invalid", "", "");
    }
    assert_untouched(&fleet, &caller, one);
    fleet.json(&["flip", "2.0"]).expect_code(0);
}

#[test]
fn an_order_holds_once_for_its_fleet_its_roster_and_its_time() {
    let (fleet, _tree, one, two) = deployed(2);
    let (caller, key) = (Caller::operator(&fleet), fleet.operator_key());
    let roster = in_force(&fleet, &caller).1;
    let good = || order(2, roster, Some(one), two);
    let hour_ms = 3_600_000;
    let changed = |change: fn(&mut Order)| {
        let mut order = good();
        change(&mut order);
        order
    };
    let at = |from: u64, to: u64| {
        let mut order = good();
        (order.not_before_unix_ms, order.expires_unix_ms) = (UnixTime(from), UnixTime(to));
        order
    };
    let now = now().0;
    let cases = [
        (at(now - 2 * hour_ms, now - hour_ms), Code::OrderExpired),
        (at(now + hour_ms, now + 2 * hour_ms), Code::OrderExpired),
        (
            order(2, RosterRef { digest: Digest::of(b"another"), ..roster }, Some(one), two),
            Code::RosterChanged,
        ),
        (order(2, RosterRef { hosts: 1, ..roster }, Some(one), two), Code::RosterChanged),
        (order(1, roster, Some(one), two), Code::Superseded),
        (order(3, roster, Some(one), two), Code::Superseded),
        (order(2, roster, None, two), Code::OrderStale),
        (order(2, roster, Some(Digest::of(b"else")), two), Code::OrderStale),
        (order(2, roster, Some(two), one), Code::AlreadyServing),
        (order(2, roster, Some(one), Digest::of(b"unheard")), Code::ReleaseUnknown),
        (changed(|order| order.fleet = "other".parse().unwrap()), Code::FleetUnknown),
        // One that rolls back by itself comes with the signed order to do so.
        (changed(|order| order.on_failure = OnFailure::Rollback), Code::OrderInvalid),
    ];
    for (order, code) in cases {
        let envelope = signed(&order, &key);
        let name = Digest::of(&envelope);
        expect_refusal(caller.flip(envelope), code, "");
        assert!(!caller.holds(name), "an order that was refused with {code} is kept");
        assert_untouched(&fleet, &caller, one);
    }
    let envelope = signed(&good(), &key);
    caller.flip(envelope.clone()).unwrap();
    assert!(caller.holds(Digest::of(&envelope)), "an order that was taken is kept");
    wait_until("it is carried out although nobody watches", PATIENCE, || {
        fleet.hosts().iter().all(|host| host.serves() == Some(two.to_string())).then_some(())
    });
    wait_until("it is settled", PATIENCE, || (caller.status().phase() == v1::Phase::Settled).then_some(()));
    // Replayed, when the fleet is back where the order begins.
    fleet.json(&["rollback"]).expect_code(0);
    expect_refusal(caller.flip(envelope), Code::Superseded, "rollout 2");
    fleet.assert_all_serve(&one.to_string());
}

/// Takes the place of host-2, whose agent goes.
#[track_caller]
fn in_place_of_host_2(fleet: &Fleet) -> Caller {
    fleet.host(2).agent.kill();
    fleet.wait_connected(1);
    fleet.json(&["host", "readmit", "host-2"]).expect_code(0);
    Caller::connect(fleet, &fleet.credentials(Role::Agent, "host-2")).unwrap()
}

/// A stream in the name of host-2, whose agent has gone.
fn as_host_2<'a>(caller: &'a Caller, bodies: Vec<Body>) -> Attached<'a> {
    let attached = caller.attach();
    bodies.into_iter().for_each(|body| attached.say(body));
    attached
}

pub(crate) fn join() -> v1::Join {
    v1::Join {
        token: None,
        boot_id: "00000000-0000-4000-8000-000000000000".to_owned(),
        agent_version: "0.0.1".to_owned(),
        protocol: muster_proto::PROTOCOL,
        nonce: vec![1; 32],
        journal_seq: 1000,
        journal_hash: vec![2; 32],
        mode: Some(v1::HostMode { kind: v1::host_mode::Kind::Serve.into(), epoch: 1, k: 0 }),
        last_k: 1,
        incarnation: 0,
        term: 0,
        roster_revision: 1,
        history_lost: false,
        halted_k: None,
        serving_epoch: Some(1),
        audit: None,
        excluded_by: None,
        returned: false,
        glass: Vec::new(),
    }
}

#[test]
fn frames_that_no_agent_sends_end_their_stream_and_nothing_else() {
    let (fleet, _tree, one, two) = deployed(2);
    fleet.host(2).agent.kill();
    let caller = Caller::connect(&fleet, &fleet.credentials(Role::Agent, "host-2")).unwrap();
    let huge = v1::Attested { k: 1, envelope: vec![b'x'; 2 << 20] };
    let cases = [
        // Something before a session has begun.
        Body::Confirmed(v1::Confirmed {}),
        Body::Armed(v1::Armed { k: 2 }),
        // Fields that are not what they should be.
        Body::Join(v1::Join { nonce: vec![1; 3], ..join() }),
        Body::Join(v1::Join { boot_id: "../../etc".to_owned(), ..join() }),
        Body::Join(v1::Join { token: Some(vec![0; 33]), ..join() }),
        Body::Join(v1::Join { mode: None, ..join() }),
        // More than any frame has.
        Body::Attested(huge),
    ];
    for body in cases {
        let what = format!("{body:?}").chars().take(60).collect::<String>();
        let mut attached = as_host_2(&caller, vec![body]);
        assert!(matches!(attached.hear(), Ok(None)), "{what}: the stream goes on");
    }
    // The next join is a second machine, for all that the coordinator knows: it has no token.
    let mut attached = as_host_2(&caller, vec![Body::Join(join())]);
    let refused = match attached.hear() {
        Ok(Some(Told::Refuse(refused))) => refused.refusal.unwrap().blockers,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused[0].code, "duplicate-host", "{refused:?}");
    fleet.json(&["flip", "2.0"]).expect_code(11).expect_blocker("duplicate-host", "host-2", "");
    fleet.assert_all_serve(&one.to_string());
    drop(attached);

    fleet.host(2).agent.start(&[]);
    fleet.json(&["host", "readmit", "host-2"]).expect_code(0);
    fleet.wait_connected(2);
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two.to_string());
}

#[test]
fn late_messages_and_made_up_ones_change_nothing() {
    let (fleet, _tree, one, two) = deployed(2);
    let caller = in_place_of_host_2(&fleet);
    let operator = Caller::operator(&fleet);
    let mut attached = as_host_2(&caller, vec![Body::Join(join())]);
    assert!(matches!(attached.hear(), Ok(Some(Told::Joined(_)))));
    attached.say(Body::Confirmed(v1::Confirmed {}));
    fleet.wait_connected(2);
    let before = operator.status();
    for late in [
        Body::Fresh(v1::Fresh { k: 1, nonce: vec![3; 32] }),
        Body::Prepared(v1::Prepared { k: 1 }),
        Body::Armed(v1::Armed { k: 1 }),
        Body::Closed(v1::Closed { k: 1, secret: vec![4; 32], at_boot_ms: 5 }),
        Body::Disarmed(v1::Disarmed { k: 1 }),
        Body::Serving(v1::Serving { epoch: 99, at_boot_ms: 5 }),
        Body::Measured(v1::Measured { epoch: 99 }),
        Body::Armed(v1::Armed { k: u64::MAX }),
    ] {
        attached.say(late);
    }
    // The last word is answered by what it changes: the blocker says that all before it were read.
    wait_until("the made-up epoch is reported", PATIENCE, || {
        let blockers = operator.status().blockers;
        blockers.iter().any(|blocker| blocker.code == "stale-epoch").then_some(())
    });
    let after = operator.status();
    assert_eq!((before.phase, before.epoch, before.last_k), (after.phase, after.epoch, after.last_k));
    fleet.assert_all_serve(&one.to_string());

    // In a rollout: an attestation that the host's key did not sign.
    let flip = std::thread::scope(|scope| {
        let flip = scope.spawn(|| fleet.json(&["flip", "2.0"]));
        let k = loop {
            match attached.hear() {
                Ok(Some(Told::Propose(proposed))) => {
                    attached.say(Body::Fresh(v1::Fresh { k: proposed.k, nonce: vec![6; 32] }));
                }
                Ok(Some(Told::Attest(asked))) => break asked.k,
                Ok(Some(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        let envelope = signed(&release("2.0", two), &strangers_key());
        attached.say(Body::Attested(v1::Attested { k, envelope }));
        flip.join().unwrap()
    });
    flip.expect_code(12).expect_blocker("bad-attestation", "host-2", "");
    fleet.assert_all_serve(&one.to_string());

    drop(attached);
    fleet.wait_connected(1);
    fleet.host(2).agent.start(&[]);
    wait_until("the real host-2 is recognised as a second machine", PATIENCE, || {
        let blockers = operator.status().blockers;
        blockers.iter().any(|blocker| blocker.code == "duplicate-host").then_some(())
    });
    fleet.json(&["host", "readmit", "host-2"]).expect_code(0);
    fleet.wait_connected(2);
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two.to_string());
}

/// Listens until the coordinator says what is waited for.
#[track_caller]
fn heard<T>(attached: &mut Attached<'_>, wanted: impl Fn(&Told) -> Option<T>) -> T {
    loop {
        match attached.hear() {
            Ok(Some(told)) => {
                if let Some(found) = wanted(&told) {
                    return found;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// With which code the coordinator refuses something.
#[track_caller]
fn refused_with(attached: &mut Attached<'_>) -> String {
    heard(attached, |told| {
        let Told::Refuse(refused) = told else { return None };
        Some(refused.refusal.as_ref().unwrap().blockers[0].code.clone())
    })
}

#[test]
fn a_session_that_was_refused_over_a_good_stream_leaves_no_ghost_and_changes_nothing() {
    let (fleet, _tree, one, two) = deployed(2);
    let caller = in_place_of_host_2(&fleet);
    let operator = Caller::operator(&fleet);
    let mut attached = as_host_2(&caller, vec![Body::Join(join())]);
    assert!(matches!(attached.hear(), Ok(Some(Told::Joined(_)))));
    attached.say(Body::Confirmed(v1::Confirmed {}));
    attached.say(Body::Inventory(v1::Inventory {
        manifests: vec![one.as_bytes().to_vec()],
        ..v1::Inventory::default()
    }));
    fleet.wait_connected(2);
    let held = |fleet: &Fleet| fleet.json(&["status"]).json()["hosts"][1]["deployed"].clone();
    wait_until("what it holds is shown", PATIENCE, || (held(&fleet).as_array()?.len() == 1).then_some(()));

    // The second has no token: it is refused, and the first is over all the same.
    attached.say(Body::Join(join()));
    assert_eq!(refused_with(&mut attached), "duplicate-host");
    fleet.wait_connected(1);
    for ghost in [
        Body::Serving(v1::Serving { epoch: 99, at_boot_ms: 5 }),
        Body::Inventory(v1::Inventory {
            manifests: vec![two.as_bytes().to_vec(), one.as_bytes().to_vec()],
            ..v1::Inventory::default()
        }),
        Body::DeployEnded(v1::DeployEnded {
            manifest: two.as_bytes().to_vec(),
            ..v1::DeployEnded::default()
        }),
        // Its answer says that all before it were read.
        Body::Join(join()),
    ] {
        attached.say(ghost);
    }
    assert_eq!(refused_with(&mut attached), "duplicate-host");
    let blockers = operator.status().blockers;
    assert!(blockers.iter().all(|it| it.code != "stale-epoch"), "{blockers:?}");
    assert_eq!(held(&fleet).as_array().map(Vec::len), Some(1));
    drop(attached);
    fleet.wait_connected(1);
    fleet.json(&["flip", "2.0"]).expect_code(11).expect_blocker("duplicate-host", "host-2", "");
    fleet.assert_all_serve(&one.to_string());

    fleet.json(&["host", "readmit", "host-2"]).expect_code(0);
    fleet.host(2).agent.start(&[]);
    fleet.wait_connected(2);
    fleet.json(&["flip", "2.0"]).expect_code(0);
    fleet.assert_all_serve(&two.to_string());
}

/// With which number the coordinator asks for a check.
#[track_caller]
fn asked_to_check(attached: &mut Attached<'_>) -> u64 {
    heard(attached, |told| if let Told::Check(check) = told { Some(check.request) } else { None })
}

#[test]
fn a_host_that_comes_back_over_another_stream_during_a_check_is_asked_again() {
    let (fleet, _tree, one, _two) = deployed(2);
    let caller = in_place_of_host_2(&fleet);
    let mut before = as_host_2(&caller, vec![Body::Join(join())]);
    let token = match before.hear() {
        Ok(Some(Told::Joined(joined))) => joined.next_token,
        other => panic!("{other:?}"),
    };
    before.say(Body::Confirmed(v1::Confirmed {}));
    fleet.wait_connected(2);
    let check = std::thread::scope(|scope| {
        let check = scope.spawn(|| fleet.json(&["check", "--release", "1.0", "--timeout", "20s"]));
        let request = asked_to_check(&mut before);
        // A reboot that outruns keepalive: nobody has noticed that the first stream is dead.
        let again = v1::Join { token: Some(token), ..join() };
        let mut after = as_host_2(&caller, vec![Body::Join(again)]);
        assert_eq!(asked_to_check(&mut after), request);
        let refusal = Some(v1::Refusal::from(Refusal::of(Code::Unmeasurable, "the disk hangs")));
        after.say(Body::CheckEnded(v1::CheckEnded { request, refusal, ..v1::CheckEnded::default() }));
        check.join().unwrap()
    });
    check.expect_code(10).expect_blocker("unmeasurable", "host-2", "");
    fleet.assert_all_serve(&one.to_string());
}

/// How many fleets that are not led a coordinator hears of at a time.
const CLAIMS_MAX: usize = 64;

#[test]
fn fleets_that_are_none_take_no_place_once_whoever_named_them_has_gone() {
    let fleet = Fleet::up(2);
    fleet.host(2).agent.kill();
    fleet.wait_connected(1);
    let caller = Caller::connect(&fleet, &fleet.credentials(Role::Agent, "host-2")).unwrap();
    for number in 0..CLAIMS_MAX + 2 {
        wait_until("a claim is heard", PATIENCE, || {
            let mut attached = caller.attach();
            attached.say_of(&format!("ghost-{number}"), Body::Join(join()));
            match attached.hear() {
                Ok(Some(Told::Refuse(refuse))) => {
                    // There is no place for others: of them nothing is heard.
                    refuse.refusal?.blockers[0].detail.contains("that is led").then_some(())
                }
                other => panic!("{other:?}"),
            }
        });
    }
}

/// The roster in force, and how orders refer to it.
fn in_force(fleet: &Fleet, caller: &Caller) -> (Roster, RosterRef) {
    let roster = fleet.trust_root().verify_roster(&caller.roster(), now()).unwrap();
    let digest = roster.payload_digest();
    let roster = roster.into_document().into_inner();
    let hosts = u32::try_from(roster.hosts().len()).unwrap();
    let reference = RosterRef { digest, revision: roster.revision(), hosts };
    (roster, reference)
}

/// No rollout has begun, no roster was applied, and the same is served.
#[track_caller]
fn assert_untouched(fleet: &Fleet, caller: &Caller, serving: Digest) {
    let status = caller.status();
    assert_eq!(status.phase(), v1::Phase::Settled);
    assert_eq!((status.last_k, status.roster_revision, status.hosts.len()), (1, 1, fleet.hosts().len()));
    fleet.assert_all_serve(&serving.to_string());
}
