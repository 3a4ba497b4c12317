//! Who leaves a roster, and on whose word: a host that cannot answer leaves only by a signed statement that its machine is off.

use std::fs;
use std::path::{Path, PathBuf};

use muster_model::{Code, Document as _, Member, Roster};
use muster_trust::Envelope;

use crate::harness::{Caller, Fleet, Host, Operators, artifact, refusal_of, run, signed, until};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A fleet of three that serves a release, one host of which has died, and the roster without it.
fn bereaved() -> (Fleet, PathBuf) {
    let fleet = Fleet::up(3);
    fleet.release(&artifact(&[("lib/a", "a")]), "1");
    fleet.host(3).agent.kill();
    fleet.wait_connected(2);
    let draft = fleet.scratch().join("two-hosts.toml");
    fleet.json(&["roster", "draft", "host-1", "host-2", "--out", text(&draft)]).expect_code(0);
    (fleet, draft)
}

#[test]
fn a_host_that_cannot_answer_leaves_by_a_signed_statement_that_everybody_can_read() {
    let (fleet, draft) = bereaved();
    let apply = ["roster", "apply", text(&draft)];
    fleet.json(&apply).expect_code(12).expect_blocker("removal-needs-evidence", "host-3", "");
    // A statement without a reason is no statement.
    fleet.json(&[&apply[..], &["--fenced", "host-3"]].concat()).expect_code(2);
    let stated = [&apply[..], &["--fenced", "host-3", "--reason", "pulled out of rack 4"]].concat();
    let applied = fleet.json(&stated).expect_code(0);
    assert_eq!(applied.json()["solo"], true, "{applied}");

    let shown = fleet.json(&["roster", "show"]).expect_code(0);
    assert_eq!(shown.text_at("/fenced/0/host"), "host-3");
    assert_eq!(shown.text_at("/fenced/0/reason"), "pulled out of rack 4");
    let status = fleet.json(&["status"]).expect_code(0);
    let open = status.text_at("/open_overrides/0/detail");
    assert!(open.contains("host-3: pulled out of rack 4") && open.contains("solo mode"), "{status}");
    let (entry, reason) = (status.json()["open_overrides"][0]["entry"].to_string(), "seen by two of us");
    fleet.json(&["audit", "reconcile", &entry, "--reason", reason]).expect_code(0);
    assert_eq!(fleet.json(&["status"]).json()["open_overrides"].as_array().unwrap().len(), 0);
    // The hosts that stay have verified and kept what it says.
    for number in [1, 2] {
        let papers = fleet.host(number).folder().join("fleets/demo/papers");
        let index = papers.join("index.json");
        until("the host keeps the roster", || {
            fs::read_to_string(&index).is_ok_and(|index| index.contains(r#""roster":{"revision":2"#))
        });
    }
    fleet.release(&artifact(&[("lib/a", "b")]), "2");
    // It speaks of that one change, and the next roster says nothing of it.
    let again = fleet.scratch().join("again.toml");
    fleet.json(&["roster", "draft", "host-1", "host-2", "--out", text(&again)]).expect_code(0);
    fleet.json(&["roster", "apply", text(&again)]).expect_code(0);
    assert_eq!(fleet.json(&["roster", "show"]).json().get("fenced"), None);
}

#[test]
fn a_host_that_is_connected_is_not_believed_to_be_off() {
    let fleet = Fleet::up(3);
    fleet.release(&artifact(&[("lib/a", "a")]), "1");
    let draft = fleet.scratch().join("two-hosts.toml");
    fleet.json(&["roster", "draft", "host-1", "host-2", "--out", text(&draft)]).expect_code(0);
    let stated = ["roster", "apply", text(&draft), "--fenced", "host-3", "--reason", "it is off, surely"];
    let refused = fleet.json(&stated).expect_code(12).expect_blocker("removal-needs-evidence", "host-3", "");
    assert!(refused.detail.contains("connected"), "{refused:?}");
    // What was refused settles nothing, and is no override that somebody has to look at.
    assert_eq!(fleet.json(&["status"]).json()["open_overrides"].as_array().unwrap().len(), 0);
}

#[test]
fn a_statement_beside_the_roster_is_nobodys_word() {
    let (fleet, _) = bereaved();
    let operator = Caller::operator(&fleet);
    let envelope = Envelope::parse(&operator.roster()).unwrap();
    let present = Roster::parse(envelope.payload()).unwrap();
    let members: Vec<Member> = present.hosts().iter().take(2).cloned().collect();
    let next = Roster::new(present.fleet().clone(), present.revision().next(), present.policy(), members);
    let envelope = signed(&next.unwrap(), &fleet.operator_key());
    let refused = operator.apply_roster_stating(envelope, &["host-3"]).unwrap_err();
    let refusal = refusal_of(&refused);
    assert_eq!(refusal.code(), Some(Code::RemovalNeedsEvidence));
    assert!(refusal.to_string().contains("signed with it"), "{refusal}");
}

#[test]
fn where_two_must_sign_nobody_states_alone_that_a_host_is_off() {
    let fleet = Fleet::up(3);
    fleet.release(&artifact(&[("lib/a", "a")]), "1");
    let operators = Operators::demand_two(&fleet);
    fleet.host(3).agent.kill();
    fleet.wait_connected(2);
    let draft = fleet.scratch().join("two-hosts.toml");
    fleet.json(&["roster", "draft", "host-1", "host-2", "--out", text(&draft)]).expect_code(0);
    let statement = ["--fenced", "host-3", "--reason", "its power supply is on my desk"];
    fleet.json(&[&["roster", "apply", text(&draft)][..], &statement].concat()).expect_code(2);
    fleet.json(&[&["roster", "sign", text(&draft)][..], &statement].concat()).expect_code(0);
    let signed = draft.with_extension("json");
    let alone = fleet.json(&["roster", "apply", text(&signed)]);
    assert_eq!(alone.code, 12, "{alone}");
    // Whoever signs next is shown what it states, and nobody adds to it what the others have not seen.
    let bob = [("MUSTER_CONTEXT", text(&operators.bob))];
    let more = run(&[&["roster", "sign", text(&signed)][..], &statement].concat(), &bob);
    assert_eq!(more.code, 2, "{more}");
    let second = run(&["roster", "sign", text(&signed)], &bob).expect_code(0);
    assert!(second.stderr.contains("host-3 is off or wiped: its power supply"), "{second}");
    fleet.json(&["roster", "apply", text(&signed)]).expect_code(0);
    let status = fleet.json(&["status"]).expect_code(0);
    let open = status.text_at("/open_overrides/0/detail");
    assert!(open.matches("ed25519:").count() == 2 && !open.contains("solo"), "{status}");
}

/// A fleet of three that serves `1`, has `2`, and is about to be joined by a machine: its draft, and the machine.
fn about_to_be_joined() -> (Fleet, PathBuf, Host) {
    let fleet = Fleet::up(3);
    fleet.release(&artifact(&[("lib/a", "a")]), "1");
    fleet.push(&artifact(&[("lib/a", "b")]), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    let joining = fleet.enrol("host-4");
    until("it has enrolled and waits", || fleet.coordinator().log().contains("host-not-in-roster"));
    let draft = fleet.scratch().join("four-hosts.toml");
    fleet.json(&["roster", "propose", "--from-pending", "--out", text(&draft)]).expect_code(0);
    (fleet, draft, joining)
}

#[test]
fn who_joins_while_the_others_flip_is_kept_through_crashes_until_they_have() {
    for (point, is_taken) in [("coordinator.roster.said", false), ("coordinator.roster.taken", true)] {
        let (fleet, draft, joining) = about_to_be_joined();
        let silent = fleet.host(2);
        silent.agent.kill();
        silent.agent.start(&[("MUSTER_CRASH_AT", "agent.close.before-guard")]);
        fleet.wait_connected(3);
        // It is opened over, and the rollout is not over before it has opened as well.
        fleet.json(&["flip", "2", "--timeout", "30s"]).expect_code(18);
        let coordinator = fleet.coordinator();
        coordinator.kill();
        coordinator.start(&[("MUSTER_CRASH_AT", point)]);
        fleet.wait_connected(2);
        assert_ne!(fleet.json(&["roster", "apply", text(&draft)]).code, 0);
        coordinator.wait_until_gone();
        coordinator.start(&[]);
        fleet.wait_connected(2);
        let status = fleet.json(&["status"]).expect_code(0);
        let coming = status.json()["coming_roster"]["revision"].as_u64();
        assert_eq!(coming, is_taken.then_some(2), "{point}: {status}");
        assert_eq!(status.json()["roster_revision"], 1, "{point}: {status}");
        // The log says what was handed in, and what has come of it.
        let log = fleet.json(&["audit", "log"]).expect_code(0).json();
        let entries = log["results"].as_array().unwrap();
        let last = |kind: &str| entries.iter().rfind(|it| it["kind"] == kind).unwrap()["detail"].to_string();
        assert!(last("roster").contains("revision 2, 4 hosts"), "{log}");
        assert_eq!(last("lead").contains("revision 2 to come"), is_taken, "{log}");
        if !is_taken {
            let applied = fleet.json(&["roster", "apply", text(&draft)]).expect_code(0);
            assert_eq!(applied.json()["coming"], true, "{applied}");
        }
        silent.agent.start(&[]);
        until("the roster holds once the rollout is over", || {
            fleet.json(&["status"]).json()["roster_revision"] == 2
        });
        fleet.wait_connected(4);
        fleet.json(&["deploy", "2"]).expect_code(0);
        until("all serve the same", || {
            fleet
                .hosts()
                .iter()
                .chain([&joining])
                .all(|it| it.serves().is_some() && it.serves() == joining.serves())
        });
    }
}
