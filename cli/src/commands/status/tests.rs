use muster_model::{Code, HostName};

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
            Blocker::host(Code::HostMissing, &HostName::new("host-2").unwrap(), "its connection ended").into(),
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

fn view(verbose: bool) -> View {
    View::new(FleetName::new("demo").unwrap(), status(), verbose).unwrap()
}

fn text(view: &View) -> String {
    let mut page = Page::new(false);
    view.print(&mut page);
    page.into_text()
}

#[test]
fn the_table_names_hosts_ages_and_what_each_serves() {
    insta::assert_snapshot!(text(&view(false)), @"");
}

#[test]
fn verbose_adds_counters_versions_and_certificates() {
    insta::assert_snapshot!(text(&view(true)), @"");
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
    let view = View::new(FleetName::new("demo").unwrap(), status, false).unwrap();
    assert!(text(&view).contains("rollout: 6 to 1.3.0 (sha256:0303"), "{}", text(&view));
}

#[test]
fn blockers_become_the_exit_code_only_where_asked() {
    assert_eq!(view(false).exit_code(), Exit::Missing);
    let well = v1::FleetStatus { hosts: vec![host("host-1", v1::host_mode::Kind::Serve)], ..status() };
    let well = View::new(FleetName::new("demo").unwrap(), well, false).unwrap();
    assert_eq!(well.exit_code(), Exit::Proven);
    let empty = v1::FleetStatus { hosts: vec![], ..status() };
    let empty = View::new(FleetName::new("demo").unwrap(), empty, false).unwrap();
    assert_eq!(empty.exit_code(), Exit::RosterChanged);
}

#[test]
fn the_json_has_a_schema_and_stable_names() {
    insta::assert_snapshot!(json(View::SCHEMA, &view(false)), @"");
}

#[test]
fn an_answer_that_makes_no_sense_is_refused_with_the_field() {
    let broken = v1::FleetStatus { roster_digest: vec![1], ..status() };
    let error = View::new(FleetName::new("demo").unwrap(), broken, false).unwrap_err();
    assert!(error.to_string().contains("roster_digest"));
}
