//! Additions on their way into force: orders that wait, a coordinator that dies, hosts that are away, and what is refused.

use muster_model::{Code, Member, UnixTime, Withdrawn};
use muster_mtls::Role;

use super::{Scaled, made_up, refused, text};
use crate::harness::{Caller, Fleet, Operators, Output, now, until, versioned};

/// For so long after operators have signed a roster hosts are added to it here.
const AGE_MAX_MS: u64 = 30 * 24 * 3600 * 1000;

/// The details of all entries of the audit log of one kind.
fn said(fleet: &Fleet, kind: &str) -> Vec<String> {
    let log = fleet.json(&["audit", "log", "--kind", kind]).expect_code(0);
    let entries = log.json()["results"].as_array().unwrap().clone();
    entries.iter().map(|it| it["detail"].as_str().unwrap_or_default().to_owned()).collect()
}

/// `muster roster add` of a host of which there is a key and no machine.
fn add(scaled: &Scaled, host: &Member, more: &[&str]) -> Output {
    let host = format!("{}={}", host.name, host.attestation_key);
    let at = ["roster", "add", &host, "--key", text(&scaled.path)];
    scaled.fleet.json(&[&at[..], more].concat())
}

#[test]
fn an_order_that_waits_ends_with_an_addition_and_everybody_is_told_so() {
    let scaled = Scaled::up(1);
    let fleet = &scaled.fleet;
    fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "2"]).expect_code(0);
    let operators = Operators::demand_two(fleet);
    fleet.json(&["flip", "2"]).expect_code(12);
    let order = operators.only_order();
    let (second, _) = made_up(2);

    // Whoever adds is told before, and nothing is added unasked.
    let asked = add(&scaled, &second, &[]).expect_code(2);
    assert!(asked.stderr.contains("rollout 2 (1 of 2 approvals)"), "{asked}");
    assert_eq!(scaled.present().document().hosts().len(), 1);
    add(&scaled, &second, &["--yes"]).expect_code(0);
    assert_eq!(scaled.present().document().hosts().len(), 2);

    let entries = said(fleet, "roster");
    let ends =
        |entry: &String| entry.contains("wait for rollout 2 are for revision 3, and end once it holds");
    assert!(entries.iter().any(ends), "{entries:?}");
    let status = fleet.json(&["status"]).expect_code(0).json();
    assert_eq!(status["waiting_orders"][0]["outdated_roster_revision"], 3, "{status}");
    let page = fleet.muster(&["status"]).stdout;
    assert!(page.contains("for revision 3 of the roster") && page.contains("muster flip 2 anew"), "{page}");
    let approved = operators.bob(&["approve", &order, "--yes"]).expect_code(15);
    let why = approved.expect_blocker("roster-changed", "", "").detail;
    assert!(why.contains("in force is revision 4") && why.contains("proposes it anew"), "{why}");
    // It is in nobody's way any more.
    add(&scaled, &made_up(3).0, &[]).expect_code(0);
}

#[test]
fn a_coordinator_that_dies_while_hosts_are_added_has_added_them_or_not() {
    for (point, is_taken) in [("coordinator.roster.said", false), ("coordinator.roster.taken", true)] {
        let scaled = Scaled::up(1);
        let (fleet, host) = (&scaled.fleet, made_up(2).0);
        let coordinator = fleet.coordinator();
        coordinator.kill();
        coordinator.start(&[("MUSTER_CRASH_AT", point)]);
        fleet.wait_connected(1);
        assert_ne!(add(&scaled, &host, &[]).code, 0);
        coordinator.wait_until_gone();
        coordinator.start(&[]);
        fleet.wait_connected(1);
        let revision = if is_taken { 3 } else { 2 };
        assert_eq!(scaled.present().document().revision().0, revision, "{point}");
        // What was handed in is in the log before it is taken, and what is in force after it.
        assert!(said(fleet, "roster").iter().any(|entry| entry.contains("have added host-2")));
        let leads = said(fleet, "lead").pop().unwrap();
        assert!(leads.ends_with(&format!("roster revision {revision}")), "{leads}");
        // Asking again does what is left to do.
        let again = add(&scaled, &host, &[]).expect_code(0).json();
        assert_eq!(again["revision"], 3, "{point}: {again}");
        assert_eq!(again["existing"].as_array().map(Vec::len), Some(usize::from(is_taken)), "{again}");
    }
}

#[test]
fn what_is_refused_is_not_said_to_have_been_taken() {
    let scaled = Scaled::up(1);
    let fleet = &scaled.fleet;
    let [second, third] = [2, 3].map(|number| made_up(number).0);
    let stale = scaled.adding(vec![third]);
    let caller = Caller::connect(fleet, &fleet.credentials(Role::Pipeline, "ci")).unwrap();
    caller.add_hosts(scaled.adding(vec![second])).unwrap();
    let entries = said(fleet, "roster").len();
    let name = muster_model::Digest::of(&stale);
    refused(&scaled, stale, Code::RosterChanged, "the next one is 4");
    assert_eq!(said(fleet, "roster").len(), entries, "no entry tells of a roster that was not taken");
    assert!(said(fleet, "refusal").pop().unwrap().contains("add hosts: "));
    let mut kept = walk(&fleet.dir().join("coordinator/state/blobs"));
    assert!(!kept.any(|path| path.contains(&name.hex()[..16])), "its envelope is not kept");
}

fn walk(folder: &std::path::Path) -> Box<dyn Iterator<Item = String>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    Box::new(entries.flat_map(|path| {
        if path.is_dir() { walk(&path) } else { Box::new(std::iter::once(path.display().to_string())) }
    }))
}

#[test]
fn nobody_adds_a_host_that_operators_have_parked_or_retired() {
    let scaled = Scaled::up(3);
    let fleet = &scaled.fleet;
    fleet.json(&["host", "park", "host-2", "--reason", "rattling"]).expect_code(0);
    fleet.json(&["host", "retire", "host-3", "--reason", "sold"]).expect_code(0);
    let present = scaled.present();
    let [parked] = present.document().parked() else { panic!("one is parked") };
    let [retired] = present.document().retired() else { panic!("one has retired") };
    let again = |host: &Withdrawn| scaled.adding(vec![host.member()]);
    let invalid = Code::SignatureInvalid;
    refused(&scaled, again(parked), invalid, "host-2 is parked, and only the operators take it back");
    refused(&scaled, again(retired), invalid, "host-3 has retired, and only the operators take it back");
    let another = Member { name: parked.name.clone(), ..made_up(9).0 };
    refused(&scaled, scaled.adding(vec![another]), invalid, "host-2 is parked");
    let renamed = Member { name: made_up(9).0.name, ..retired.member() };
    refused(&scaled, scaled.adding(vec![renamed]), invalid, "share an attestation key");
}

/// Who was away when hosts were added, and comes back when operators' signature is too old to be added to.
#[test]
fn a_host_that_was_away_for_longer_than_hosts_may_be_added_comes_back_and_flips() {
    let scaled = Scaled::up(3);
    let fleet = &scaled.fleet;
    fleet.json(&["host", "park", "host-3", "--reason", "rattling"]).expect_code(0);
    let late = fleet.host(3);
    late.agent.kill();
    // Operators take it back with a signature that is nearly too old, and a machine is added in the last moment.
    let back = scaled.present();
    let [parked] = back.document().parked() else { panic!("one is parked") };
    let hosts = [back.document().hosts(), &[parked.member()]].concat();
    let machine = scaled.enrol("host-4");
    until("it has enrolled and waits", || fleet.coordinator().log().contains("host-not-in-roster"));
    let ends = now().0 + 20_000;
    scaled.apply(hosts, Some(UnixTime(ends - AGE_MAX_MS))).unwrap();
    scaled.add(&scaled.pipeline(), &["host-4", "--yes"]).expect_code(0);
    until("nobody can be added any more", || now().0 > ends);
    refused(&scaled, scaled.adding(vec![made_up(5).0]), Code::SignatureInvalid, "720 hours ago");

    let two = fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "1", "--timeout", "2s"]).expect_code(11);
    until("the machine is let in", || machine.serves() == fleet.host(1).serves());
    assert_eq!(late.serves(), None);
    // The addition is too old for it, and what operators have signed is not.
    late.agent.start(&[]);
    until("it is back", || late.serves() == fleet.host(1).serves());
    // It learns of the host that was added with the order, in which operators name that roster.
    fleet.json(&["deploy", "2"]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&two);
    assert_eq!(machine.serves().as_deref(), Some(two.as_str()));
    let index = late.folder().join("fleets/demo/papers/index.json");
    let kept = std::fs::read_to_string(index).unwrap();
    let revision = scaled.present().document().revision();
    assert!(kept.contains(&format!(r#""roster":{{"revision":{revision}"#)), "{kept}");
    // And keeps it: from now on it takes part in nothing without that host.
    late.agent.kill();
    late.agent.start(&[]);
    fleet.wait_connected(4);
    fleet.release(&versioned("3"), "3");
}
