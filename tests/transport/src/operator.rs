//! The operator: applies a roster, submits two releases, flips to one after the other, and waits until all is well.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_model::{Digest, RolloutId, RosterRef, RosterRevision};
use muster_mtls::{ClientTls, ConnectOptions, Role, connect_through};
use muster_proto::v1::operations_client::OperationsClient;
use muster_proto::v1::{self, deploy_event, flip_event, rollout_end::Outcome};
use muster_trust::TrustRoot;
use tonic::transport::Channel;

use crate::machine::{DAWN, elapsed};
use crate::network::{PORT, dialer};
use crate::papers::{self, Release, fleet};
use crate::world::COORDINATOR;

/// Between two looks at the fleet.
const PAUSE: Duration = Duration::from_millis(250);

/// How long a deployment and a flip may take.
const TIMEOUT_MS: u64 = 20_000;

/// How far the operator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The first release is being brought into service.
    Founding,
    /// The flip to the second release was ordered.
    Flipping,
    /// The flip has ended in one way or another, as far as the operator was told.
    Watching,
    /// The trouble is over.
    Calm,
    /// Every host serves what the fleet serves.
    Settled,
}

/// How far the operator is, for whoever makes trouble. Clones share it.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<(Stage, Duration)>>);

impl Progress {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new((Stage::Founding, Duration::ZERO))))
    }

    /// The stage, and since when.
    pub(crate) fn now(&self) -> (Stage, Duration) {
        *self.0.lock().unwrap()
    }

    /// The next stage begins.
    pub(crate) fn reach(&self, stage: Stage, now: Duration) {
        *self.0.lock().unwrap() = (stage, now);
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcomes {
    /// What the flip's stream ended with; nothing if it broke off.
    pub(crate) told: Option<Outcome>,
    /// What the fleet serves in the end, as the coordinator says.
    pub(crate) serving: Option<Vec<u8>>,
    /// The last rollout.
    pub(crate) last_k: u64,
}

impl Outcomes {
    /// The digest of what is served, in hex.
    pub(crate) fn serving_hex(&self) -> Option<String> {
        let digest = self.serving.as_deref()?.try_into().expect("a digest has 32 bytes");
        Some(Digest::from_bytes(digest).hex())
    }
}

/// Does all of it. An error ends the simulation.
pub(crate) async fn run(
    hosts: usize,
    releases: &[Release; 2],
    progress: Progress,
) -> anyhow::Result<Outcomes> {
    let tls = ClientTls::new(&papers::credentials(Role::Operator, "olivia"))?;
    let mut client = connect(&tls).await;
    let envelope = papers::roster(hosts);
    client.apply_roster(v1::ApplyRosterRequest { envelope: envelope.clone(), fenced: Vec::new() }).await?;
    let root = TrustRoot::pin(&papers::root())?;
    let verified = root.verify_roster(&envelope, DAWN)?;
    let digest = verified.payload_digest();
    let roster = RosterRef { digest, revision: RosterRevision(1), hosts: u32::try_from(hosts)? };
    for release in releases {
        let envelope = release.envelope.clone();
        client.submit_release(v1::SubmitReleaseRequest { envelope }).await?;
        deploy(&mut client, release).await?;
    }
    let [first, second] = releases.each_ref().map(|release| release.manifest.digest());
    let told = flip(&mut client, roster, RolloutId(1), (None, first)).await;
    anyhow::ensure!(told == Some(Outcome::Flipped), "the first flip ended as {told:?}");
    progress.reach(Stage::Flipping, elapsed());
    let told = flip(&mut client, roster, RolloutId(2), (Some(first), second)).await;
    progress.reach(Stage::Watching, elapsed());
    while progress.now().0 < Stage::Calm {
        tokio::time::sleep(PAUSE).await;
    }
    let status = settled(client, &tls).await;
    progress.reach(Stage::Settled, elapsed());
    let serving = status.serving.map(|serving| serving.manifest);
    Ok(Outcomes { told, serving, last_k: status.last_k })
}

/// Tries until somebody answers.
async fn connect(tls: &ClientTls) -> OperationsClient<Channel> {
    let address = format!("{COORDINATOR}:{PORT}").parse().unwrap();
    loop {
        match connect_through(&dialer(), &address, tls, ConnectOptions::default()).await {
            Ok(channel) => return OperationsClient::new(channel),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn deploy(client: &mut OperationsClient<Channel>, release: &Release) -> anyhow::Result<()> {
    let request = v1::DeployRequest {
        fleet: fleet().as_str().to_owned(),
        manifest: release.manifest.digest().as_bytes().to_vec(),
        timeout_ms: TIMEOUT_MS,
    };
    let mut events = client.deploy(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if let Some(deploy_event::Event::Finished(finished)) = event.event {
            anyhow::ensure!(finished.deployed == finished.hosts, "not deployed: {:?}", finished.blockers);
            return Ok(());
        }
    }
    anyhow::bail!("the deployment broke off")
}

/// How a flip ended, if that was told.
async fn flip(
    client: &mut OperationsClient<Channel>,
    roster: RosterRef,
    k: RolloutId,
    way: (Option<Digest>, Digest),
) -> Option<Outcome> {
    let order_envelope = papers::order(k, roster, way, DAWN.after(elapsed()));
    let request = v1::FlipRequest { order_envelope, timeout_ms: TIMEOUT_MS, contingency_envelope: None };
    let mut events = client.flip(request).await.ok()?.into_inner();
    while let Ok(Some(event)) = events.message().await {
        if let Some(flip_event::Event::End(end)) = event.event {
            return Some(end.outcome());
        }
    }
    None
}

/// Waits until the fleet is settled and every host serves what it serves. How long that may take is the simulation's to say.
async fn settled(mut client: OperationsClient<Channel>, tls: &ClientTls) -> v1::FleetStatus {
    loop {
        let asked = v1::StatusRequest { fleet: fleet().as_str().to_owned() };
        match client.status(asked).await {
            Ok(status) => {
                let status = status.into_inner();
                let serves =
                    |host: &v1::HostStatus| host.connected && host.serving_epoch == Some(status.epoch);
                if status.phase() == v1::Phase::Settled && status.hosts.iter().all(serves) {
                    return status;
                }
            }
            Err(_) => client = connect(tls).await,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
