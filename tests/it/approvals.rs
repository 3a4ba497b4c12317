//! Two persons: what one operator has signed waits for another, and nothing else moves the fleet.

use muster_audit::Kind;
use muster_model::{Code, Digest, RosterRef, UnixTime};
use muster_proto::v1;
use muster_trust::SigningKey;

use crate::harness::audit::Log;
use crate::harness::forgery::{order, strangers_key};
use crate::harness::{
    Caller, FLEET, Fleet, Operators, Output, PATIENCE, now, refusal_of, signed, wait_until,
};

/// What is said where somebody has yet to sign: nothing has changed, and how to go on.
#[track_caller]
fn expect_waiting(said: Output) -> String {
    let said = said.expect_code(12);
    said.expect_blocker("approval-missing", "", "");
    let json = said.json();
    assert_eq!((&json["schema"], &json["outcome"]), (&"muster.flip/1".into(), &"unchanged".into()), "{said}");
    assert_eq!((&json["solo"], &json["exit_code"]), (&false.into(), &12.into()), "{said}");
    let approvals = &json["order"]["approvals"];
    assert_eq!((&approvals["threshold"], &approvals["missing"]), (&2.into(), &1.into()), "{said}");
    assert_eq!(approvals["unsigned"].as_array().map(Vec::len), Some(2), "{said}");
    said.text_at("/order/id")
}

/// The envelope of an order that is kept, with all its signatures.
fn envelope_of(caller: &Caller, order: &str) -> Vec<u8> {
    let mut client = caller.operations();
    let request = v1::ListOrdersRequest { fleet: FLEET.to_owned() };
    let listed = caller.wait(client.list_orders(request)).unwrap().into_inner().orders;
    let order: Digest = order.parse().unwrap();
    listed.into_iter().find(|it| it.id == order.as_bytes()).unwrap().order_envelope
}

#[test]
fn one_operator_cannot_flip_and_two_can() {
    let (fleet, [one, two]) = Fleet::serving(2);
    let operators = Operators::demand_two(&fleet);
    let id = expect_waiting(fleet.json(&["flip", "2"]));
    let text = fleet.muster(&["flip", "2"]).expect_code(12);
    let short = &id["sha256:".len()..][..12];
    assert!(
        text.stdout.contains("1 of 2") && text.stdout.contains(&format!("muster approve {short}")),
        "{text}"
    );
    fleet.assert_all_serve(&one);
    let status = fleet.json(&["status"]).expect_code(0).json();
    assert_eq!(status["waiting_orders"][0]["order"], id.as_str(), "{status}");
    assert_eq!(status["waiting_orders"][0]["approvals"], 1, "{status}");

    // The same person counts once, however often and by whatever command.
    assert_eq!(expect_waiting(fleet.json(&["flip", "2"])), id, "asking again makes no other order");
    let again = fleet.json(&["approve", short, "--yes"]).expect_code(12);
    assert!(
        again.expect_blocker("approval-missing", "", "").detail.contains("nobody counts twice"),
        "{again}"
    );
    let caller = Caller::operator(&fleet);
    let refused = refusal_of(&caller.flip(envelope_of(&caller, &id)).unwrap_err());
    assert_eq!(refused.code(), Some(Code::SignatureInvalid), "{refused}");
    fleet.assert_all_serve(&one);

    // The second person sees everything first, and signs nothing unasked.
    assert_eq!(operators.only_order(), id);
    let shown = operators.bob(&["order", "show", short]).expect_code(0).json();
    assert_eq!(
        (&shown["from"]["digest"], &shown["to"]["digest"]),
        (&one.as_str().into(), &two.as_str().into())
    );
    assert_eq!((&shown["hosts"], &shown["state"]), (&2.into(), &"waiting".into()), "{shown}");
    assert_eq!(
        (&shown["changes"]["added"], &shown["changes"]["modified"]),
        (&0.into(), &2.into()),
        "{shown}"
    );
    operators.bob(&["approve", &id]).expect_code(2);
    expect_waiting(fleet.json(&["flip", "2"]));
    let approved = operators.bob(&["approve", &id, "--yes"]).expect_code(0);
    assert_eq!(approved.text_at("/schema"), "muster.approve/1");
    assert_eq!(approved.text_at("/order/state"), "approved");
    fleet.assert_all_serve(&one);
    let flipped = fleet.json(&["flip", "2"]).expect_code(0);
    assert_eq!(flipped.json()["solo"], false, "{flipped}");
    fleet.assert_all_serve(&two);
    let listed = fleet.json(&["order", "list"]).expect_code(0);
    assert_eq!(listed.json()["orders"].as_array().map(Vec::len), Some(0), "{listed}");
    fleet.json(&["receipt", "show"]).expect_code(0);

    // Back it goes by two as well; a halt needs nobody, and its end needs two.
    let id = expect_waiting(fleet.json(&["rollback"]));
    operators.bob(&["approve", &id, "--yes"]).expect_code(0);
    fleet.json(&["rollback"]).expect_code(0);
    fleet.assert_all_serve(&one);
    fleet.json(&["halt", FLEET, "--reason", "test", "--yes"]).expect_code(0);
    let id = expect_waiting(fleet.json(&["resume"]));
    operators.bob(&["approve", &id, "--yes"]).expect_code(0);
    fleet.json(&["resume"]).expect_code(0);
    fleet.assert_all_serve(&one);

    let logged = fleet.json(&["audit", "log"]).expect_code(0).stdout;
    for kind in ["propose", "approval"] {
        assert!(logged.contains(&format!("\"kind\": \"{kind}\"")), "no {kind}: {logged}");
    }
    let verified = fleet.json(&["audit", "verify", "--live"]).expect_code(0).json();
    assert!(verified["approvals_verified"].as_u64() >= Some(6), "{verified}");
}

#[test]
fn an_order_that_lacks_an_approval_is_found_in_a_log_that_was_rewritten_with_its_key() {
    let (fleet, _) = Fleet::serving(2);
    let operators = Operators::demand_two(&fleet);
    let id = expect_waiting(fleet.json(&["flip", "2"]));
    operators.bob(&["approve", &id, "--yes"]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    let verified = fleet.json(&["audit", "verify", "--live"]).expect_code(0).json();
    assert_eq!(verified["orders_unverified"], 0, "{verified}");
    let coordinator = fleet.coordinator();
    coordinator.kill();
    let mut log = Log::of(&fleet);
    let parsed = log.parsed();
    let order = parsed.iter().rposition(|entry| entry.kind == Kind::Order).unwrap();
    let alice = fleet.operator_key().public().to_string();
    let hers = (order..parsed.len()).find(|place| parsed[*place].who == alice).unwrap();
    log.entries.remove(hers);
    log.renumber();
    log.write();
    coordinator.start(&[]);
    fleet.wait_answers();
    let refused = fleet.json(&["audit", "verify", "--live"]).expect_code(12);
    let named = format!("entry {order}: the order has 1 of the 2 approvals that root version 2 demands");
    assert!(refused.to_string().contains(&named), "{refused}");
}

#[test]
fn a_flip_that_waits_goes_on_by_itself_even_if_the_coordinator_starts_again() {
    let (fleet, [one, two]) = Fleet::serving(2);
    let operators = Operators::demand_two(&fleet);
    let waits = ["2", "--wait-for-approval", "--on-failure", "rollback"];
    let flipped = fleet.flip_so_while(&waits, || {
        wait_until("the order waits", PATIENCE, || {
            let listed = operators.bob(&["order", "list"]).json();
            (listed["orders"].as_array().map(Vec::len) == Some(1)).then_some(())
        });
        let id = operators.only_order();
        let coordinator = fleet.coordinator();
        coordinator.kill();
        coordinator.start(&[]);
        fleet.wait_connected(2);
        assert_eq!(operators.only_order(), id, "it is durable");
        fleet.assert_all_serve(&one);
        let shown = operators.bob(&["order", "show", &id]).expect_code(0).json();
        assert_eq!(shown["contingency"]["to"], one.as_str(), "{shown}");
        operators.bob(&["approve", &id, "--yes"]).expect_code(0);
    });
    // That the order to roll back is signed by both is what the coordinator demands before it begins.
    flipped.expect_code(0);
    fleet.assert_all_serve(&two);
    fleet.json(&["flip", "1", "--wait-for-approval=1s"]).expect_code(16).expect_blocker("timed-out", "", "");
    fleet.assert_all_serve(&two);
}

#[test]
fn an_order_for_a_roster_that_has_changed_is_neither_approved_nor_begun() {
    let (fleet, [one, _]) = Fleet::serving(2);
    let operators = Operators::demand_two(&fleet);
    let id = expect_waiting(fleet.json(&["flip", "2"]));
    operators.renew_roster();
    let refused = operators.bob(&["approve", &id, "--yes"]).expect_code(15);
    assert!(refused.expect_blocker("roster-changed", "", "").detail.contains("revision"), "{refused}");
    assert_eq!(operators.bob(&["order", "show", &id]).expect_code(0).text_at("/state"), "blocked");

    // One that two had signed before.
    let id = expect_waiting(fleet.json(&["flip", "2"]));
    operators.bob(&["approve", &id, "--yes"]).expect_code(0);
    let caller = Caller::operator(&fleet);
    let complete = envelope_of(&caller, &id);
    operators.renew_roster();
    let refused = refusal_of(&caller.flip(complete).unwrap_err());
    assert_eq!(refused.code(), Some(Code::RosterChanged), "{refused}");
    assert_ne!(
        expect_waiting(fleet.json(&["flip", "2"])),
        id,
        "the old approvals are not for the new roster"
    );
    fleet.assert_all_serve(&one);
}

#[test]
fn an_order_that_expired_or_was_taken_back_is_of_no_use_whoever_has_signed_it() {
    let (fleet, [one, _]) = Fleet::serving(1);
    let operators = Operators::demand_two(&fleet);
    fleet.json(&["flip", "2", "--valid-for", "1s", "--wait-for-approval"]).expect_code(13).expect_blocker(
        "order-expired",
        "",
        "",
    );
    let expired = operators.only_order();
    let refused = operators.bob(&["approve", &expired, "--yes"]).expect_code(13);
    refused.expect_blocker("order-expired", "", "");

    let id = expect_waiting(fleet.json(&["flip", "2"]));
    operators.bob(&["approve", &id, "--yes"]).expect_code(0);
    let caller = Caller::operator(&fleet);
    let complete = envelope_of(&caller, &id);
    let cancelled = operators.bob(&["order", "cancel", &id]).expect_code(0);
    assert_eq!(cancelled.text_at("/schema"), "muster.order-cancelled/1");
    operators.bob(&["order", "cancel", &id]).expect_code(17).expect_blocker("order-cancelled", "", "");
    fleet.json(&["approve", &id, "--yes"]).expect_code(17).expect_blocker("order-cancelled", "", "");
    let refused = refusal_of(&caller.flip(complete).unwrap_err());
    assert_eq!(refused.code(), Some(Code::OrderCancelled), "{refused}");
    let unknown = Digest::of(b"unheard").to_string();
    for verb in [&["approve"][..], &["order", "show"], &["order", "cancel"]] {
        let refused = fleet.json(&[verb, &[&unknown]].concat()).expect_code(11);
        refused.expect_blocker("order-unknown", "", "");
    }
    let status = fleet.json(&["status"]).expect_code(0).json();
    assert_eq!(status["waiting_orders"].as_array().map(Vec::len), Some(0), "{status}");
    fleet.assert_all_serve(&one);
    let logged = fleet.json(&["audit", "log"]).expect_code(0).stdout;
    assert!(logged.contains("\"kind\": \"cancel\""), "{logged}");
}

#[test]
fn no_one_person_can_fill_the_coordinator_with_orders() {
    const ORDERS_MAX: u64 = 32;
    let (fleet, [one, two]) = Fleet::serving(1);
    let operators = Operators::demand_two(&fleet);
    let caller = Caller::operator(&fleet);
    let roster = fleet.trust_root().verify_roster(&caller.roster(), now()).unwrap();
    let revision = roster.document().revision();
    let roster = RosterRef { digest: roster.payload_digest(), revision, hosts: 1 };
    let (one, two): (Digest, Digest) = (one.parse().unwrap(), two.parse().unwrap());
    let propose = |number: u64, key: &SigningKey| {
        let mut order = order(2, roster, Some(one), two);
        order.not_before_unix_ms = UnixTime(order.not_before_unix_ms.0 - number);
        let (order_envelope, contingency_envelope) = (signed(&order, key), None);
        let mut client = caller.operations();
        let request = v1::ProposeOrderRequest { order_envelope, contingency_envelope };
        caller.wait(client.propose_order(request)).map(drop).map_err(|status| refusal_of(&status))
    };
    let stranger = propose(0, &strangers_key()).unwrap_err();
    assert_eq!(stranger.code(), Some(Code::SignatureInvalid), "{stranger}");
    for number in 0..ORDERS_MAX {
        propose(number, &fleet.operator_key()).unwrap();
    }
    let refused = propose(ORDERS_MAX, &fleet.operator_key()).unwrap_err();
    assert_eq!(refused.code(), Some(Code::TooManyOrders), "{refused}");
    let listed = operators.bob(&["order", "list"]).expect_code(0).json();
    assert_eq!(listed["orders"].as_array().map(Vec::len), usize::try_from(ORDERS_MAX).ok());
}
