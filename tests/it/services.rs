//! Real services under guards, asked by an observer that only knows how to ask.

use crate::harness::{Fleet, Observer, Service};

/// What was served, in order, each by one run on every host.
const SERVED: [&str; 4] = ["1", "2", "3", "2"];

fn deploy(fleet: &Fleet, service: &Service, version: &str) -> String {
    let digest = fleet.push(&service.tree(version), version);
    fleet.json(&["deploy", version]).expect_code(0);
    digest
}

#[test]
fn services_never_answer_with_two_releases_though_an_agent_dies_in_a_flip() {
    let service = Service::build();
    let fleet = Service::fleet(3);
    let observer = Observer::of_services(&fleet);
    for version in ["1", "2"] {
        deploy(&fleet, &service, version);
        fleet.json(&["flip", version]).expect_code(0);
        observer.wait_all_serve(version);
    }

    let third = deploy(&fleet, &service, "3");
    let victim = fleet.host(2);
    fleet.let_die_at(&victim, "agent.open.before-guard");
    let flip = fleet.flip_while("3", || {
        victim.agent.wait_until_gone();
        // The victim has closed and cannot open: whatever it still served would be seen beside the new release.
        observer.wait_serve(&[fleet.host(1), fleet.host(3)], "3");
        victim.agent.start(&[]);
    });
    // Whoever watches is told once that a host is dark, and need not wait for it.
    assert!([0, 18].contains(&flip.code), "{flip}");
    fleet.wait_settled(&third);
    observer.wait_all_serve("3");

    fleet.json(&["rollback"]).expect_code(0);
    observer.wait_all_serve("2");
    let seen = observer.expect_one_release_at_a_time();
    for host in fleet.hosts() {
        assert_eq!(seen.runs[host.name()], SERVED, "{}", host.name());
    }
}
