//! Hosts that are parked, cut off on the way, asked back and retired, on real processes.

use std::path::Path;

use muster_proto::v1;
use muster_proto::v1::agent_frame::Body as FromAgent;
use muster_proto::v1::coordinator_frame::Body as ToAgent;
use serde_json::Value;

use crate::harness::impostor::Impostor;
use crate::harness::{Caller, Fleet, Operators, Output, artifact, run, until};

const REASON: &str = "a fan rattles";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn park(fleet: &Fleet, host: &str) -> Output {
    fleet.json(&["host", "park", host, "--reason", REASON, "--timeout", "30s"])
}

/// A fleet of three that serves release 1, as its digest.
fn serving() -> (Fleet, String) {
    let fleet = Fleet::up(3);
    let digest = fleet.release(&artifact(&[("lib/a", "a")]), "1");
    (fleet, digest)
}

/// What the status tells of the only host that is parked, once it is connected.
#[track_caller]
fn parked(fleet: &Fleet) -> Value {
    let mut found = Value::Null;
    until("the parked host is connected", || {
        let status = fleet.json(&["status"]);
        found = status.json()["parked"][0].clone();
        found["connected"] == true
    });
    found
}

#[test]
fn a_host_that_serves_is_parked_and_comes_back_with_what_the_others_serve_by_then() {
    let (fleet, one) = serving();
    let moved = park(&fleet, "host-3").expect_code(0);
    assert_eq!((moved.text_at("/outcome"), moved.json()["hosts"].as_u64()), ("parked".to_owned(), Some(2)));
    assert_eq!(fleet.host(3).serves(), None, "it has closed before N shrank");
    for number in [1, 2] {
        assert_eq!(fleet.host(number).serves().as_deref(), Some(one.as_str()));
    }
    let found = parked(&fleet);
    assert_eq!(
        (&found["host"], &found["reason"], &found["state"]),
        (&"host-3".into(), &REASON.into(), &"parked".into())
    );
    let shown = fleet.json(&["roster", "show"]).expect_code(0);
    assert_eq!(shown.json()["parked"][0]["since"], 2);
    assert!(fleet.muster(&["roster", "show"]).stdout.contains("its own word, of revision 2 or later"));
    // Two of two: it is not asked, and gets the bytes.
    let two = fleet.release(&artifact(&[("lib/a", "b")]), "2");
    let checked = fleet.json(&["check", "--release", "2"]).expect_code(0);
    assert_eq!(
        (checked.json()["hosts"].as_u64(), checked.text_at("/parked/0")),
        (Some(2), "host-3".to_owned())
    );
    assert_eq!(fleet.host(3).serves(), None);
    let receipt = fleet.scratch().join("receipt.json");
    fleet.json(&["receipt", "show", "--out", text(&receipt)]).expect_code(0);
    let verified = fleet.json(&["receipt", "verify", text(&receipt)]).expect_code(0);
    assert_eq!(verified.text_at("/parked/0"), "host-3");
    let kept: Value = serde_json::from_slice(&std::fs::read(&receipt).unwrap()).unwrap();
    assert_eq!(kept["withdrawals"].as_array().map(Vec::len), Some(1), "its own word is in the receipt");
    let back = fleet.json(&["host", "unpark", "host-3"]).expect_code(0);
    assert_eq!(back.text_at("/outcome"), "serving");
    fleet.assert_all_serve(&two);
    fleet.release(&artifact(&[("lib/a", "c")]), "3");
}

#[test]
fn a_parked_host_that_starts_anew_stays_dark_and_refuses_an_older_roster() {
    let (fleet, one) = serving();
    let older = Caller::operator(&fleet).roster();
    park(&fleet, "host-3").expect_code(0);
    let host = fleet.host(3);
    host.agent.kill();
    host.guard.kill();
    host.guard.start(&[]);
    host.agent.start(&[]);
    assert_eq!(parked(&fleet)["serving_epoch"], Value::Null);
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_answers();
    parked(&fleet);
    assert_eq!(host.serves(), None);
    // Whoever has the coordinator's certificate can show it only what the operators have signed, and nothing that is older.
    let impostor = Impostor::replace(&fleet);
    let joined = impostor.hear_from("host-3", "that it joins", |body| {
        if let FromAgent::Join(join) = body { Some(join) } else { None }
    });
    assert_eq!(joined.excluded_by, Some(2));
    impostor.say_to("host-3", ToAgent::Joined(v1::Joined { next_token: vec![9; 32] }));
    let roster = impostor.hold(&older).as_bytes().to_vec();
    impostor.say_to("host-3", ToAgent::RosterShown(v1::RosterShown { roster }));
    let refused = |body| {
        let FromAgent::Refused(refused) = body else { return None };
        Some(refused.refusal.unwrap().blockers[0].code.clone())
    };
    assert_eq!(impostor.hear_from("host-3", "that it refuses the roster", refused), "roster-changed");
    let release = one.parse::<muster_model::Digest>().unwrap().as_bytes().to_vec();
    let admit = v1::Admit { epoch: 1, release, nonce: joined.nonce };
    impostor.say_to("host-3", ToAgent::Admit(admit));
    assert_eq!(impostor.hear_from("host-3", "that it is not admitted", refused), "host-not-in-roster");
    assert_eq!(host.serves(), None);
}

#[test]
fn a_host_that_is_cut_off_while_it_is_asked_to_leave_counts_until_something_proves_that_it_is_dark() {
    let (fleet, one) = serving();
    fleet.push(&artifact(&[("lib/a", "b")]), "2");
    fleet.host(3).agent.kill();
    fleet.wait_connected(2);
    let asked = ["host", "park", "host-3", "--reason", REASON, "--timeout", "1s"];
    let silent = fleet.json(&asked).expect_code(12).expect_blocker("removal-needs-evidence", "host-3", "");
    assert!(silent.detail.contains("--fenced"), "{silent:?}");
    assert_eq!(fleet.host(3).serves().as_deref(), Some(one.as_str()), "its guard goes on");
    // Nothing is flipped in between, and nobody else has changed.
    fleet.json(&["flip", "2"]).expect_code(11);
    let status = fleet.json(&["status"]).expect_code(0);
    assert_eq!(status.text_at("/coming_roster/awaited/0"), "host-3");
    assert_eq!(
        (status.json()["hosts_total"].as_u64(), status.text_at("/hosts/2/state")),
        (Some(3), "leaving".to_owned())
    );
    // It is asked as soon as it is there again, by whichever coordinator.
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_answers();
    fleet.host(3).agent.start(&[]);
    park(&fleet, "host-3").expect_code(0);
    assert_eq!(fleet.host(3).serves(), None);

    // One that cannot answer leaves on the signed statement that it is off; if it was not, it learns that it has left.
    fleet.host(2).agent.kill();
    fleet.wait_connected(1);
    let stated = ["host", "park", "host-2", "--fenced", "--reason", "pulled out of rack 4"];
    assert_eq!(fleet.json(&stated).expect_code(0).json()["hosts"], 1);
    let open = fleet.json(&["status"]).text_at("/open_overrides/0/detail");
    assert!(open.contains("host-2: pulled out of rack 4"), "{open}");
    fleet.host(2).agent.start(&[]);
    until("the host that was said to be off has closed", || fleet.host(2).serves().is_none());
}

#[test]
fn a_parked_host_that_loses_its_journal_knows_from_what_it_has_kept_that_it_is_to_serve_nothing() {
    let (fleet, _) = serving();
    park(&fleet, "host-3").expect_code(0);
    let host = fleet.host(3);
    host.agent.kill();
    let impostor = Impostor::replace(&fleet);
    let journal = host.folder().join("fleets/demo/journal");
    std::fs::remove_dir_all(&journal).unwrap();
    host.agent.start(&[]);
    let joined = impostor.hear_from("host-3", "that it joins", |body| {
        if let FromAgent::Join(join) = body { Some(join) } else { None }
    });
    assert_eq!((joined.journal_seq, joined.excluded_by), (1, Some(2)));
    assert_eq!(host.serves(), None);
}

#[test]
fn operators_go_on_from_no_older_roster_than_the_last_that_they_have_seen() {
    let (fleet, one) = serving();
    fleet.json(&["roster", "draft"]).expect_code(0);
    let context = fleet.context();
    let seen = context.parent().unwrap().join("rosters-seen.json");
    let text = std::fs::read_to_string(&seen).unwrap();
    assert!(text.contains("\"revision\":1"), "{text}");
    std::fs::write(&seen, text.replace("\"revision\":1", "\"revision\":2")).unwrap();
    for asked in [
        &["host", "park", "host-3", "--reason", REASON][..],
        &["host", "retire", "host-3", "--reason", REASON],
    ] {
        let refused = fleet.json(asked).expect_code(15);
        let said = &refused.blockers()[0].detail;
        assert!(said.contains("shows revision 1 of the roster, and revision 2 was seen here"), "{said}");
    }
    fleet.assert_all_serve(&one);
    std::fs::write(&seen, text).unwrap();
    park(&fleet, "host-3").expect_code(0);
}

#[test]
fn a_host_that_has_retired_is_let_in_no_more_and_its_name_is_kept() {
    let (fleet, _) = serving();
    let moved = fleet.json(&["host", "retire", "host-3", "--reason", "sold"]).expect_code(0);
    assert_eq!(moved.text_at("/outcome"), "retired");
    assert!(moved.json()["certificates_revoked"].is_u64(), "{moved}");
    assert_eq!(fleet.host(3).serves(), None);
    until("its agent is sent away", || fleet.host(3).agent.log().contains("evicted"));
    let shown = fleet.json(&["roster", "show"]).expect_code(0);
    assert_eq!(
        (shown.text_at("/retired/0/name"), shown.json()["hosts"].as_array().unwrap().len()),
        ("host-3".to_owned(), 2)
    );
    // A draft keeps it, and naming it is not enough: its key has retired as well.
    let draft = fleet.scratch().join("draft.toml");
    fleet.json(&["roster", "draft", "--out", text(&draft)]).expect_code(0);
    fleet.json(&["roster", "apply", text(&draft)]).expect_code(0);
    assert_eq!(fleet.json(&["roster", "show"]).text_at("/retired/0/name"), "host-3");
    let named = fleet.scratch().join("named.toml");
    fleet.json(&["roster", "draft", "host-1", "host-2", "host-3", "--out", text(&named)]).expect_code(0);
    fleet.json(&["roster", "apply", text(&named)]).expect_code(15).expect_blocker(
        "roster-changed",
        "host-3",
        "",
    );
    fleet.json(&["host", "unpark", "host-3"]).expect_code(11);
    fleet.release(&artifact(&[("lib/a", "b")]), "2");
}

#[test]
fn where_two_must_sign_nobody_parks_a_host_alone() {
    let (fleet, one) = serving();
    let operators = Operators::demand_two(&fleet);
    let file = fleet.scratch().join("park.json");
    let asked = ["host", "park", "host-3", "--reason", REASON, "--out", text(&file)];
    assert_eq!(fleet.json(&asked).expect_code(0).text_at("/outcome"), "drafted");
    assert_eq!(fleet.host(3).serves().as_deref(), Some(one.as_str()));
    fleet.json(&["roster", "apply", text(&file)]).expect_code(12);
    let bob = [("MUSTER_CONTEXT", text(&operators.bob))];
    let signed = run(&["roster", "sign", text(&file)], &bob).expect_code(0);
    assert!(signed.stderr.contains("host-3 is parked: a fan rattles"), "{signed}");
    fleet.json(&["roster", "apply", text(&file)]).expect_code(0);
    park(&fleet, "host-3").expect_code(0);
    assert_eq!(fleet.host(3).serves(), None);
}
