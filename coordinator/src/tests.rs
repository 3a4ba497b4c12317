//! The coordinator without its network: what is durable when something is acknowledged.

use std::sync::Arc;

use muster_model::{Code, FleetName};

use crate::testing::Place;

fn smars() -> FleetName {
    FleetName::new("smars").unwrap()
}

#[tokio::test]
async fn a_first_roster_is_durable_once_it_is_acknowledged() {
    let place = Place::new();
    // Nobody runs the drivers, as if the coordinator died right after its answer.
    let (shared, drivers) = place.open();
    let (roster, digest, envelope) = place.first_roster(&shared, 3);
    shared.found(roster, digest, envelope).await.unwrap();
    shared.ledger.close().await;
    drop((shared, drivers));

    let (shared, _drivers) = place.open();
    let fleet = shared.fleet(&smars()).expect("the fleet was acknowledged");
    assert_eq!(fleet.roster().roster.hosts().len(), 3);
    assert_eq!(fleet.roster().envelope, envelope);
}

#[tokio::test]
async fn of_two_first_rosters_at_once_one_begins_the_fleet() {
    let place = Place::new();
    let (shared, _drivers) = place.open();
    let attempts = [1, 2].map(|hosts| {
        let (roster, digest, envelope) = place.first_roster(&shared, hosts);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { shared.found(roster, digest, envelope).await })
    });
    let mut refused = Vec::new();
    for attempt in attempts {
        refused.extend(attempt.await.unwrap().err());
    }
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].code(), Some(Code::RosterChanged));
}

#[tokio::test]
async fn what_was_written_is_read_by_whoever_waited_for_it_while_the_writer_is_busy() {
    let place = Place::new();
    let (shared, _drivers) = place.open();
    let (release, busy) = std::sync::mpsc::channel::<()>();
    let (began, has_begun) = tokio::sync::oneshot::channel();
    let writing = {
        let ledger = shared.ledger.clone();
        tokio::spawn(async move {
            ledger
                .run(move |_| {
                    began.send(()).unwrap();
                    busy.recv().unwrap();
                })
                .await;
        })
    };
    has_begun.await.unwrap();
    // The thread that writes is held up; readers of this runtime's one thread are not.
    assert!(shared.ledger.history(&smars()).releases.is_empty());
    release.send(()).unwrap();
    writing.await.unwrap();
}
