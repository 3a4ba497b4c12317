use muster_model::HostName;

use super::*;
use crate::output::json;

fn release(byte: u8) -> v1::ReleaseRef {
    v1::ReleaseRef { version: format!("1.{byte}.0"), manifest: vec![byte; 32] }
}

fn host(name: &str, kind: v1::host_mode::Kind) -> v1::HostStatus {
    v1::HostStatus {
        host: name.to_owned(),
        connected: true,
        age_ms: Some(125_000),
        mode: Some(v1::HostMode { kind: kind.into(), epoch: 3, k: 5 }),
        serving_epoch: Some(3),
        deployed: vec![release(1), release(2)],
        agent_version: Some("0.1.0".to_owned()),
        certificate_expires_unix_ms: Some(1_800_000_000_000),
        ..v1::HostStatus::default()
    }
}

fn status() -> v1::FleetStatus {
    let lost = v1::HostStatus {
        connected: false,
        serving_epoch: None,
        mode: None,
        deployed: vec![],
        blockers: vec![
            Blocker::host(Code::HostMissing, &HostName::new("host-2").unwrap(), "its connection ended")
                .into(),
        ],
        ..host("host-2", v1::host_mode::Kind::Serve)
    };
    v1::FleetStatus {
        fleet: "demo".to_owned(),
        incarnation: 1,
        term: 4,
        epoch: 3,
        serving: Some(release(2)),
        previous: Some(release(1)),
        phase: v1::Phase::Settled.into(),
        last_k: 5,
        roster_revision: 2,
        roster_digest: vec![9; 32],
        hosts: vec![host("host-1", v1::host_mode::Kind::Serve), lost],
        solo: true,
        coordinator_version: "0.1.0".to_owned(),
        ..v1::FleetStatus::default()
    }
}

fn view(detail: Detail) -> View {
    View::new(FleetName::new("demo").unwrap(), status(), detail).unwrap()
}

fn text(view: &View) -> String {
    let mut page = Page::new(false);
    view.print(&mut page);
    page.into_text()
}

#[test]
fn the_table_names_hosts_ages_and_what_each_serves() {
    insta::assert_snapshot!(text(&view(Detail::Brief)), @"
    fleet    demo, epoch 3, settled
    serving  1.2.0 (sha256:0202020202020202020202020202020202020202020202020202020202020202)
    before   1.1.0 (sha256:0101010101010101010101010101010101010101010101010101010101010101)
    hosts    1 of 2 connected, roster revision 2
    solo mode: one person alone can sign orders, rosters or releases

    HOST    CONNECTED       MODE     SERVES                       ON DISK
    host-1  for 2m 5s       serve 3  epoch 3, 1.2.0 020202020202  1.1.0, 1.2.0
    host-2  lost 2m 5s ago  unknown  unknown

    blockers:
      host-missing at host-2: its connection ended
      next (host-missing): start muster-agent and muster-guard on the host, look into the agent's log, and check the network between the two
    ");
}

#[test]
fn a_host_that_goes_by_another_root_is_named_in_table_and_json() {
    let behind = v1::HostStatus { root_version: Some(1), ..host("host-1", v1::host_mode::Kind::Serve) };
    let even = v1::HostStatus { root_version: Some(2), ..host("host-2", v1::host_mode::Kind::Serve) };
    let status = v1::FleetStatus { hosts: vec![behind, even], root_version: 2, ..status() };
    let view = View::new(FleetName::new("demo").unwrap(), status, Detail::Brief).unwrap();
    let shown = text(&view);
    assert!(shown.contains("root: version 2; another one at 1 host\n"), "{shown}");
    assert!(shown.contains("serve 3, root 1 ") && !shown.contains("root 2 "), "{shown}");
    assert!(!view.hosts[0].is_ordinary(3) && view.hosts[1].is_ordinary(3));
    let json: serde_json::Value = serde_json::from_str(&json(View::SCHEMA, &view)).unwrap();
    assert_eq!((&json["root_version"], &json["hosts"][0]["root_version"]), (&2.into(), &1.into()), "{json}");
}

#[test]
fn verbose_adds_counters_versions_and_certificates() {
    insta::assert_snapshot!(text(&view(Detail::Full)), @"
    fleet    demo, epoch 3, settled
    serving  1.2.0 (sha256:0202020202020202020202020202020202020202020202020202020202020202)
    before   1.1.0 (sha256:0101010101010101010101010101010101010101010101010101010101010101)
    hosts    1 of 2 connected, roster revision 2
    roster   sha256:0909090909090909090909090909090909090909090909090909090909090909
    numbers  last rollout 5, term 4, incarnation 1
    version  coordinator 0.1.0
    solo mode: one person alone can sign orders, rosters or releases

    HOST    CONNECTED       MODE     SERVES                       ON DISK
    host-1  for 2m 5s       serve 3  epoch 3, 1.2.0 020202020202  1.1.0, 1.2.0
    host-2  lost 2m 5s ago  unknown  unknown

    HOST    AGENT  CERTIFICATE UNTIL     RENEWED  ASSURANCE
    host-1  0.1.0  2027-01-15T08:00:00Z  unknown  unknown
    host-2  0.1.0  2027-01-15T08:00:00Z  unknown  unknown

    blockers:
      host-missing at host-2: its connection ended
      next (host-missing): start muster-agent and muster-guard on the host, look into the agent's log, and check the network between the two
    ");
}

#[test]
fn a_rollout_under_way_is_shown() {
    let rollout = v1::RolloutStatus {
        k: 6,
        from: Some(release(2)),
        to: Some(release(3)),
        age_ms: 2_400,
        acknowledged: 1,
        outstanding: 1,
    };
    let status = v1::FleetStatus { rollout: Some(rollout), phase: v1::Phase::Decided.into(), ..status() };
    let view = View::new(FleetName::new("demo").unwrap(), status, Detail::Brief).unwrap();
    assert!(text(&view).contains("rollout: 6 to 1.3.0 (sha256:0303"), "{}", text(&view));
}

#[test]
fn blockers_become_the_exit_code_only_where_asked() {
    assert_eq!(view(Detail::Brief).exit_code(), Exit::Missing);
    let well = v1::FleetStatus { hosts: vec![host("host-1", v1::host_mode::Kind::Serve)], ..status() };
    let well = View::new(FleetName::new("demo").unwrap(), well, Detail::Brief).unwrap();
    assert_eq!(well.exit_code(), Exit::Proven);
    let empty = v1::FleetStatus { hosts: vec![], ..status() };
    let empty = View::new(FleetName::new("demo").unwrap(), empty, Detail::Brief).unwrap();
    assert_eq!(empty.exit_code(), Exit::RosterChanged);
}

#[test]
fn the_json_has_a_schema_and_stable_names() {
    let one = v1::FleetStatus { hosts: status().hosts.split_off(1), previous: None, ..status() };
    let view = View::new(FleetName::new("demo").unwrap(), one, Detail::Brief).unwrap();
    insta::assert_snapshot!(json(View::SCHEMA, &view), @r#"
    {
      "schema": "muster.status/1",
      "fleet": "demo",
      "epoch": 3,
      "serving": {
        "version": "1.2.0",
        "digest": "sha256:0202020202020202020202020202020202020202020202020202020202020202"
      },
      "previous": null,
      "phase": "settled",
      "halted_since_rollout": null,
      "solo": true,
      "roster_revision": 2,
      "roster_digest": "sha256:0909090909090909090909090909090909090909090909090909090909090909",
      "root_version": null,
      "hosts_total": 1,
      "hosts_connected": 0,
      "rollout": null,
      "last_rollout": 5,
      "last_end": null,
      "incarnation": 1,
      "term": 4,
      "coordinator_version": "0.1.0",
      "hosts": [
        {
          "host": "host-2",
          "state": "serving",
          "connected": false,
          "age_ms": 125000,
          "mode": null,
          "serving_epoch": null,
          "serving": null,
          "lease_left_ms": null,
          "fenced": false,
          "overdue": false,
          "lapsed": false,
          "halted_since_rollout": null,
          "deployed": [],
          "agent_version": "0.1.0",
          "root_version": null,
          "certificate_expires": "2027-01-15T08:00:00Z",
          "certificate": null,
          "blockers": [
            {
              "code": "host-missing",
              "host": "host-2",
              "detail": "its connection ended"
            }
          ]
        }
      ],
      "open_overrides": [],
      "waiting_orders": [],
      "blockers": [
        {
          "code": "host-missing",
          "host": "host-2",
          "detail": "its connection ended"
        }
      ],
      "warnings": [],
      "coordinator_certificate": null
    }
    "#);
}

/// Coordinators and agents from before say nothing of it.
#[test]
fn what_measurements_are_worth_is_told_where_the_host_says_it() {
    let assurance =
        |level: &str, reason: &str| v1::Assurance { level: level.to_owned(), reason: reason.to_owned() };
    let mut status = status();
    status.hosts[0].assurance = Some(assurance("sha256", "this filesystem has no fs-verity"));
    status.hosts[1].assurance = Some(assurance("verity", ""));
    status.hosts.push(host("host-3", v1::host_mode::Kind::Serve));
    let view = View::new(FleetName::new("demo").unwrap(), status, Detail::Full).unwrap();
    let text = text(&view);
    for (host, said) in
        [("host-1", "sha256 (this filesystem has no fs-verity)"), ("host-2", "verity"), ("host-3", "unknown")]
    {
        let told = text.lines().any(|line| line.starts_with(host) && line.trim_end().ends_with(said));
        assert!(told, "{host}: {said}: {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&json(View::SCHEMA, &view)).unwrap();
    assert_eq!(json["hosts"][0]["assurance"]["reason"], "this filesystem has no fs-verity");
    assert_eq!(json["hosts"][1]["assurance"], serde_json::json!({ "level": "verity" }));
    assert!(json["hosts"][2].get("assurance").is_none());
}

#[test]
fn an_answer_that_makes_no_sense_is_refused_with_the_field() {
    let broken = v1::FleetStatus { roster_digest: vec![1], ..status() };
    let error = View::new(FleetName::new("demo").unwrap(), broken, Detail::Brief).unwrap_err();
    assert!(error.to_string().contains("roster_digest"));
}

#[test]
fn how_the_last_rollout_ended_is_shown_with_its_reasons() {
    let restarted = Blocker::fleet(Code::CoordinatorRestarted, "it was not decided");
    let end = v1::RolloutEnd {
        k: 5,
        outcome: v1::rollout_end::Outcome::Unchanged.into(),
        epoch: 3,
        blockers: vec![restarted.into()],
        release: Some(release(1)),
        ..v1::RolloutEnd::default()
    };
    let status = v1::FleetStatus { last_end: Some(end), ..status() };
    let view = View::new(FleetName::new("demo").unwrap(), status, Detail::Brief).unwrap();
    let text = text(&view);
    let digest = "01".repeat(32);
    let told = format!("last     rollout 5 to 1.1.0 (sha256:{digest}): unchanged\n");
    assert!(text.contains(&told), "{text}");
    assert!(text.contains("\n         coordinator-restarted: it was not decided\n"), "{text}");
}

fn fleet_of(hosts: usize, lost: &[usize]) -> View {
    let host = |number: usize| {
        let name = format!("host-{number}");
        let connected = host(&name, v1::host_mode::Kind::Serve);
        if !lost.contains(&number) {
            return connected;
        }
        let missing =
            Blocker::host(Code::HostMissing, &HostName::new(&name).unwrap(), "its connection ended");
        v1::HostStatus { connected: false, serving_epoch: None, blockers: vec![missing.into()], ..connected }
    };
    let status = v1::FleetStatus { hosts: (1..=hosts).map(host).collect(), ..status() };
    View::new(FleetName::new("demo").unwrap(), status, Detail::Brief).unwrap()
}

#[test]
fn of_a_hundred_hosts_those_are_listed_that_need_a_look() {
    insta::assert_snapshot!(text(&fleet_of(100, &[7, 42])), @"
    fleet    demo, epoch 3, settled
    serving  1.2.0 (sha256:0202020202020202020202020202020202020202020202020202020202020202)
    before   1.1.0 (sha256:0101010101010101010101010101010101010101010101010101010101010101)
    hosts    98 of 100 connected, roster revision 2
    solo mode: one person alone can sign orders, rosters or releases

    HOST     CONNECTED       MODE     SERVES   ON DISK
    host-7   lost 2m 5s ago  serve 3  unknown  1.1.0, 1.2.0
    host-42  lost 2m 5s ago  serve 3  unknown  1.1.0, 1.2.0
    98 of 100 hosts: connected, no blockers, serving what the fleet serves (-v lists all)

    blockers:
      host-missing at host-42, host-7: its connection ended
      next (host-missing): start muster-agent and muster-guard on the host, look into the agent's log, and check the network between the two
    ");
    let all_well = text(&fleet_of(100, &[]));
    assert!(all_well.contains("100 of 100 hosts: connected"), "{all_well}");
    assert!(!all_well.contains("host-1 "), "{all_well}");
    let half_lost = text(&fleet_of(100, &(1..=50).collect::<Vec<_>>()));
    assert!(half_lost.contains("… and 26 hosts like these\n50 of 100 hosts: connected"), "{half_lost}");
    assert!(half_lost.lines().count() < 45, "{half_lost}");
    let all = View { detail: Detail::Full, ..fleet_of(100, &[]) };
    assert!((1..=100).all(|number| text(&all).contains(&format!("host-{number} "))));
}

#[test]
fn a_terminal_of_80_columns_shows_each_host_in_one_line() {
    let many = (1..=9).map(release).collect();
    let busy = v1::HostStatus { deployed: many, ..host("host-1.example", v1::host_mode::Kind::Armed) };
    let status = v1::FleetStatus { hosts: vec![busy], ..status() };
    let view = View::new(FleetName::new("demo").unwrap(), status, Detail::Brief).unwrap();
    let mut page = Page::with_width(false, Some(80));
    view.print(&mut page);
    let written = page.into_text();
    let row = written.lines().find(|line| line.starts_with("host-1.example")).unwrap();
    assert!(row.chars().count() <= 80 && row.ends_with("8 more, 1.9.0"), "{written}");
    let piped = text(&view);
    assert!(piped.contains("epoch 3, 1.2.0 020202020202  6 more, 1.7.0, 1.8.0, 1.9.0"), "{piped}");
}

#[test]
fn the_reasons_of_the_last_end_do_not_push_the_hosts_off_the_screen() {
    let reasons = (0..9).map(|number| Blocker::fleet(Code::Busy, format!("rollout {number}")).into());
    let end =
        v1::RolloutEnd { k: 5, blockers: reasons.collect(), release: Some(release(1)), ..Default::default() };
    let status = v1::FleetStatus { last_end: Some(end), ..status() };
    let text = text(&View::new(FleetName::new("demo").unwrap(), status, Detail::Brief).unwrap());
    assert!(text.contains("\n         … and 5 more (all of them with --output json)\n"), "{text}");
}

fn row_of(host: v1::HostStatus, phase: v1::Phase) -> (View, String) {
    let name = host.host.clone();
    let status = v1::FleetStatus { hosts: vec![host], phase: phase.into(), ..status() };
    let view = View::new(FleetName::new("demo").unwrap(), status, Detail::Brief).unwrap();
    let text = text(&view);
    let row = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap().to_owned();
    (view, row)
}

#[test]
fn an_armed_host_shows_how_long_it_may_still_serve() {
    let armed = v1::HostStatus { lease_left_ms: Some(1_400), ..host("host-1", v1::host_mode::Kind::Armed) };
    let (view, row) = row_of(armed, v1::Phase::Arming);
    assert!(row.contains("ARMED 5 over 3, 1s left  epoch 3, 1.2.0"), "{row}");
    assert_eq!(view.exit_code(), Exit::Proven, "being armed is nothing wrong");
    let line = "\nARMED: 1 host; unless heard, the first fences itself in 1s\n";
    assert!(text(&view).contains(line), "{}", text(&view));
    assert_eq!(view.hosts[0].lease_left_ms, Some(1_400));
}

#[test]
fn a_host_that_fenced_itself_is_shown_and_counts() {
    let fenced = v1::HostStatus {
        serving_epoch: None,
        lease_left_ms: Some(0),
        ..host("host-1", v1::host_mode::Kind::Armed)
    };
    let (view, row) = row_of(fenced, v1::Phase::Arming);
    assert!(row.contains("FENCED 5  nothing"), "{row}");
    assert!(view.hosts[0].fenced && !view.hosts[0].lapsed);
    assert_eq!((view.blockers[0].code, view.exit_code()), (Code::LeaseExpired, Exit::Dark));
}

#[test]
fn an_armed_host_that_was_not_heard_in_time_is_not_shown_as_serving() {
    let silent = v1::HostStatus { lease_left_ms: Some(0), ..host("host-1", v1::host_mode::Kind::Armed) };
    let (view, row) = row_of(silent, v1::Phase::Settled);
    assert!(row.contains("OVERDUE 5  unknown"), "{row}");
    assert!(view.hosts[0].overdue && !view.hosts[0].fenced);
    assert_eq!((view.blockers[0].code, view.exit_code()), (Code::HostSilent, Exit::Missing));
}

#[test]
fn a_lapsed_host_is_dark_and_waits_to_be_opened_whether_connected_or_not() {
    for connected in [true, false] {
        let silent = v1::HostStatus {
            connected,
            mode: Some(v1::HostMode { kind: v1::host_mode::Kind::Armed.into(), epoch: 2, k: 5 }),
            // Its last word, from before the others opened.
            serving_epoch: Some(2),
            ..host("host-1", v1::host_mode::Kind::Armed)
        };
        let (view, row) = row_of(silent, v1::Phase::Opened);
        assert!(row.contains("lapsed 5  nothing"), "{row}");
        assert!(view.hosts[0].lapsed && !view.hosts[0].fenced);
        assert_eq!((view.hosts[0].blockers[0].code, view.exit_code()), (Code::HostDark, Exit::Dark));
    }
}

#[test]
fn a_halted_fleet_and_a_halted_host_cannot_be_missed() {
    let stopped = v1::HostStatus {
        halted_k: Some(5),
        serving_epoch: None,
        ..host("host-1", v1::host_mode::Kind::Serve)
    };
    let status =
        v1::FleetStatus { halted_k: Some(5), hosts: vec![stopped.clone()], previous: None, ..status() };
    let view = View::new(FleetName::new("demo").unwrap(), status, Detail::Brief).unwrap();
    assert_eq!((view.halted_since_rollout, view.exit_code()), (Some(5), Exit::Dark));
    insta::assert_snapshot!(text(&view), @"
    fleet    demo, epoch 3, settled
    HALTED: since rollout 5; nothing is served until `muster resume` or a flip elsewhere
    served   1.2.0 (sha256:0202020202020202020202020202020202020202020202020202020202020202)
    hosts    1 of 1 connected, roster revision 2
    solo mode: one person alone can sign orders, rosters or releases

    HOST    CONNECTED  MODE    SERVES   ON DISK
    host-1  for 2m 5s  HALTED  nothing  1.1.0, 1.2.0

    blockers:
      halted: the fleet was halted after rollout 5; only an order resumes it
      halted at host-1: it was halted, and serves nothing until an order resumes it
      next (halted): find out why it was halted; then `muster resume`, or `muster flip` to another release
    ");
    // Somebody stood at the host itself.
    let (view, row) = row_of(stopped, v1::Phase::Settled);
    assert!(row.contains("HALTED") && row.contains("nothing"), "{row}");
    assert_eq!((view.halted_since_rollout, view.exit_code()), (None, Exit::Dark));
    // A halt that the coordinator explains is not explained twice.
    let explained = Blocker::host(Code::Halted, &HostName::new("host-1").unwrap(), "by alice");
    let told = v1::HostStatus {
        halted_k: Some(5),
        blockers: vec![explained.into()],
        ..host("host-1", v1::host_mode::Kind::Serve)
    };
    assert_eq!(row_of(told, v1::Phase::Settled).0.blockers.len(), 1);
}
