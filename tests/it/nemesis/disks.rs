//! What the nemesis has found that comes of a disk alone.

use crate::harness::{Disk, Fleet, Network, until};

#[test]
#[ignore = "needs root, ip and nft: cargo test --workspace -- --ignored"]
fn a_receipt_that_a_full_disk_kept_back_is_made_once_there_is_room() {
    Network::room(|_| {
        let (fleet, _) = Fleet::serving(3);
        let (victim, coordinator) = (fleet.host(2), fleet.coordinator());
        coordinator.kill();
        let disk = Disk::over(&fleet.dir().join("coordinator/state/blobs"), c"size=4m,mode=0700");
        coordinator.start(&[]);
        fleet.wait_connected(3);
        fleet.let_die_at(&victim, "agent.open.before-guard");
        let receipt = || fleet.json(&["receipt", "show", "--epoch", "2"]);
        fleet.flip_while("2", || {
            victim.agent.wait_until_gone();
            fleet.wait_phase("opened");
            disk.fill();
            victim.agent.start(&[]);
            fleet.wait_phase("settled");
        });
        until("the receipt cannot be written", || {
            coordinator.log().contains("the receipt cannot be written")
        });
        receipt().expect_code(11);
        disk.empty();
        until("the receipt is made", || receipt().code == 0);
        drop(fleet.down());
    });
}
