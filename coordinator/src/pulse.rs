//! What the service manager hears of a coordinator: that it listens and has the lead, what it leads, and that it lives.
//!
//! A sign of life has been through the threads that write the database and the audit log, and through the driver of every fleet: a
//! timer of its own would go on while they hang.

use std::sync::Weak;

use muster_daemon::{ServiceManager, Shutdown};
use muster_rollout::fleet::Phase;

use crate::coordinator::Shared;

/// Tells the service manager until the coordinator ends. The database must be open, and connections taken.
pub(crate) async fn run(shared: Weak<Shared>, manager: ServiceManager, shutdown: Shutdown) {
    if !manager.is_there() {
        return;
    }
    manager.ready(&beat(&shared).await);
    manager.watch(&shutdown, || beat(&shared)).await;
}

/// Goes through everything that must come round, and tells which fleets are led. It does not come back from what hangs.
async fn beat(shared: &Weak<Shared>) -> String {
    // One that ends says nothing more.
    let Some(shared) = shared.upgrade() else { return std::future::pending().await };
    shared.ledger.run(|_| ()).await;
    shared.audit.beat().await;
    let fleets = shared.fleets();
    let mut in_rollout = Vec::new();
    for fleet in &fleets {
        match fleet.view().await {
            Ok(view) if view.record.phase == Phase::Settled => {}
            Ok(_) => in_rollout.push(fleet.name.to_string()),
            // It ends, and the coordinator with it.
            Err(_) => return std::future::pending().await,
        }
    }
    let names: Vec<&str> = fleets.iter().map(|fleet| fleet.name.as_str()).collect();
    match (names.as_slice(), in_rollout.as_slice()) {
        ([], _) => "listens; there is no fleet yet".to_owned(),
        (_, []) => format!("leads {}", names.join(", ")),
        (_, rollouts) => format!("leads {}; in a rollout: {}", names.join(", "), rollouts.join(", ")),
    }
}
