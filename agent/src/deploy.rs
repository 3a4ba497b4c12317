//! Deployments: putting a release's verified bytes on this host. Outside of any rollout, any number at once, and
//! nothing of it has an effect on what is served.

mod fetch;
mod running;

use std::sync::Arc;
use std::time::Duration;

use muster_artifact::{ArtifactError, InstallOptions, Installed, Progress};
use muster_daemon::{crash_point, fault_point};
use muster_model::{Code, Digest, FleetName, HostName, MAX_MANIFEST_BYTES, Manifest, Refusal};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_trust::RootChain;
use tokio::sync::Semaphore;

use crate::Enforce;
use crate::manifests;
use crate::measure::{Trees, on_thread};
use crate::refusal;
use crate::renewal::CertificateState;
use crate::uplink::Uplink;
use fetch::{Counts, fetch};
use running::{Entered, Running, Waiter};

/// How many deployments of one host are carried out at the same time; others wait.
const DEPLOYING_MAX: usize = 4;

/// How many requests of one fleet may be under way. The coordinator names a release once for each operator who asks.
const REQUESTS_MAX: usize = 64;

/// How often a deployment begins again: each time a stored blob was found damaged, or its stream was lost while another
/// one asks for the same release.
const ATTEMPTS_MAX: usize = 16;

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What the deployments of all fleets of a host share.
#[derive(Debug)]
pub(crate) struct Slots {
    deployments: Semaphore,
    downloads: Semaphore,
}

impl Slots {
    pub(crate) const fn new() -> Self {
        Self {
            deployments: Semaphore::const_new(DEPLOYING_MAX),
            downloads: Semaphore::const_new(fetch::DOWNLOADS_MAX),
        }
    }
}

/// Carries out the deployments of one fleet. Clones share the work.
#[derive(Clone)]
pub(crate) struct Deployer {
    shared: Arc<Shared>,
}

struct Shared {
    fleet: FleetName,
    host: HostName,
    root: Arc<RootChain>,
    trees: Arc<Trees>,
    slots: Arc<Slots>,
    certificate: CertificateState,
    enforce: Enforce,
    running: Running,
    room: Arc<Semaphore>,
}

/// What is told of a deployment that succeeded.
#[derive(Debug, Clone, Copy)]
struct Deployed {
    files: u64,
    bytes: u64,
    fetched_bytes: u64,
}

impl Deployer {
    pub(crate) fn new(
        fleet: FleetName,
        root: Arc<RootChain>,
        trees: Arc<Trees>,
        (slots, certificate, enforce): (Arc<Slots>, CertificateState, Enforce),
    ) -> Self {
        let host = trees.host.clone();
        let room = Arc::new(Semaphore::new(REQUESTS_MAX));
        let running = Running::default();
        Self {
            shared: Arc::new(Shared { fleet, host, root, trees, slots, certificate, enforce, running, room }),
        }
    }

    /// Begins a deployment, or joins the one of the same release that runs. Its end is told over `uplink`.
    pub(crate) fn begin(&self, deploy: v1::Deploy, uplink: Uplink) {
        let shared = Arc::clone(&self.shared);
        let waiter = Waiter { request: deploy.request, uplink };
        let Ok(room) = Arc::clone(&shared.room).try_acquire_owned() else {
            let detail = format!("{REQUESTS_MAX} deployments are under way");
            return shared.end(&waiter, None, &Err(refusal::at(&shared.host, Code::Busy, detail)));
        };
        tokio::spawn(async move {
            shared.serve(deploy, waiter).await;
            drop(room);
        });
    }

    /// Tells which releases are on disk.
    pub(crate) fn tell_inventory(&self, uplink: &Uplink) {
        let (shared, uplink) = (Arc::clone(&self.shared), uplink.clone());
        tokio::spawn(async move { shared.tell_inventory(&uplink).await });
    }
}

impl Shared {
    async fn serve(&self, deploy: v1::Deploy, waiter: Waiter) {
        let release = match self.verify(deploy.release_envelope).await {
            Ok(release) => release,
            Err(refusal) => return self.end(&waiter, None, &Err(refusal)),
        };
        match self.running.enter(release, waiter) {
            // Whoever carries it out tells all who wait.
            Entered::Joined => return,
            Entered::First => {}
        }
        let outcome = {
            let _slot = self.slots.deployments.acquire().await.expect("slots are never closed");
            let counts = Counts::default();
            tokio::select! {
                biased;
                outcome = self.deploy(release, deploy.manifest_size, &counts) => outcome,
                never = self.tell_progress(release, &counts) => match never {},
            }
        };
        match &outcome {
            Ok(deployed) => {
                let (files, fetched) = (deployed.files, deployed.fetched_bytes);
                tracing::info!(fleet = %self.fleet, %release, files, fetched, "deployed");
            }
            Err(refusal) => tracing::warn!(fleet = %self.fleet, %release, %refusal, "not deployed"),
        }
        let waiting = self.running.leave(release);
        // The tree may have come or been repaired even where something outside of it is in the way.
        if let Some(waiter) = waiting.last() {
            self.tell_inventory(&waiter.uplink).await;
        }
        for waiter in waiting {
            self.end(&waiter, Some(release), &outcome);
        }
    }

    /// The manifest of a release that this fleet's release keys have signed.
    async fn verify(&self, envelope: Vec<u8>) -> Result<Digest, Refusal> {
        let (root, fleet, host) = (Arc::clone(&self.root), self.fleet.clone(), self.host.clone());
        let now = self.trees.machine.unix_time();
        on_thread(&self.trees.machine, &self.host, move || {
            root.in_force()
                .verify_release(&envelope, &fleet, now)
                .map(|release| release.document().manifest)
                .map_err(|error| refusal::of_trust(&host, Code::SignatureInvalid, &error))
        })
        .await
    }

    async fn deploy(
        &self,
        release: Digest,
        manifest_size: u64,
        counts: &Counts,
    ) -> Result<Deployed, Refusal> {
        let mut last = None;
        for _ in 0..ATTEMPTS_MAX {
            let Some(uplink) = self.running.newest_uplink(release) else { break };
            match self.attempt(release, manifest_size, &uplink, counts).await {
                Ok(deployed) => return Ok(deployed),
                Err(Setback::Damaged(refusal)) => last = Some(refusal),
                Err(Setback::Final(refusal)) => {
                    let newest = self.running.newest_uplink(release);
                    if newest.is_none_or(|newest| newest.is(&uplink)) {
                        return Err(refusal);
                    }
                    // It was asked for again over another stream, which may be the one that works.
                    last = Some(refusal);
                }
            }
        }
        Err(last.unwrap_or_else(|| refusal::at(&self.host, Code::SessionLost, "nobody waits for it")))
    }

    async fn attempt(
        &self,
        release: Digest,
        manifest_size: u64,
        uplink: &Uplink,
        counts: &Counts,
    ) -> Result<Deployed, Setback> {
        let manifest = self.manifest(release, manifest_size, uplink).await?;
        fetch(&self.trees, &self.slots.downloads, uplink, &manifest, counts).await?;
        let installed = self.install(Arc::clone(&manifest)).await?;
        crash_point("agent.deploy.installed");
        if let Some(refusal) = refusal::of_measurement(&self.host, &installed.measurement) {
            return Err(Setback::Final(refusal));
        }
        let assured = &installed.measurement.assured;
        self.trees.assurances.note(release, assured);
        self.trees.assurances.require(&self.host, release, assured)?;
        Ok(Deployed {
            files: installed.measurement.files,
            bytes: installed.measurement.bytes,
            fetched_bytes: counts.fetched_bytes(),
        })
    }

    /// The manifest, from the store or from the coordinator.
    async fn manifest(
        &self,
        release: Digest,
        stated_bytes: u64,
        uplink: &Uplink,
    ) -> Result<Arc<Manifest>, Refusal> {
        let bytes_max = usize::try_from(stated_bytes).ok().filter(|bytes| *bytes <= MAX_MANIFEST_BYTES);
        let bytes_max = bytes_max.ok_or_else(|| {
            let detail = format!("a manifest of {stated_bytes} bytes; at most {MAX_MANIFEST_BYTES} are read");
            refusal::at(&self.host, Code::Unsupported, detail)
        })?;
        manifests::obtain(&self.trees, uplink.channel(), release, bytes_max).await
    }

    /// Builds the tree, or repairs it by an exchange, and measures it by reading it again.
    async fn install(&self, manifest: Arc<Manifest>) -> Result<Installed, Setback> {
        let (trees, host) = (Arc::clone(&self.trees), self.host.clone());
        let machine = trees.machine.clone();
        let installing = machine.run_blocking(move || {
            crash_point("agent.deploy.before-install");
            fault_point("agent.install")
                .map_err(|error| Setback::Final(refusal::of_io(&host, "install a release", &error)))?;
            let options = InstallOptions { jobs: trees.jobs, owner: None, verity: trees.assurances.verity() };
            let progress = Progress::default();
            let installed =
                muster_artifact::install(&trees.blobs, &manifest, &trees.releases, &options, &progress);
            installed.map_err(|error| setback(&trees, &error))
        });
        installing.await.unwrap_or_else(|error| {
            let detail = format!("the installation failed: {error}");
            Err(Setback::Final(refusal::at(&self.host, Code::Unmeasurable, detail)))
        })
    }

    async fn tell_progress(&self, release: Digest, counts: &Counts) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            for Waiter { request, uplink } in self.running.waiting(release) {
                uplink.offer(&self.fleet, Body::DeployProgress(counts.to_wire(request)));
            }
        }
    }

    async fn tell_inventory(&self, uplink: &Uplink) {
        let trees = Arc::clone(&self.trees);
        let look = move || {
            let releases = trees.inventory();
            let verity = trees.least_assurance(&releases);
            Ok((releases, verity))
        };
        let Ok((releases, verity)) = on_thread(&self.trees.machine, &self.host, look).await else {
            return;
        };
        let manifests = releases.iter().map(|release| release.as_bytes().to_vec()).collect();
        let root_version = Some(self.root.in_force().root().version);
        let certificate = self.certificate.report();
        let enforce = (!self.enforce.is_full()).then(|| self.enforce.as_str().to_owned());
        let inventory = v1::Inventory { manifests, root_version, certificate, enforce, verity };
        uplink.send(&self.fleet, Body::Inventory(inventory));
    }

    fn end(&self, waiter: &Waiter, release: Option<Digest>, outcome: &Result<Deployed, Refusal>) {
        let ended = v1::DeployEnded {
            request: waiter.request,
            manifest: release.map(|release| release.as_bytes().to_vec()).unwrap_or_default(),
            ..match outcome {
                Ok(deployed) => v1::DeployEnded {
                    files: deployed.files,
                    bytes: deployed.bytes,
                    fetched_bytes: deployed.fetched_bytes,
                    ..v1::DeployEnded::default()
                },
                Err(refusal) => {
                    v1::DeployEnded { refusal: Some(refusal.clone().into()), ..v1::DeployEnded::default() }
                }
            }
        };
        waiter.uplink.send(&self.fleet, Body::DeployEnded(ended));
    }
}

/// Why an attempt did not succeed.
#[derive(Debug)]
enum Setback {
    /// A stored blob was damaged. It is removed, and the next attempt fetches it again.
    Damaged(Refusal),
    /// Another attempt over the same stream would end the same way.
    Final(Refusal),
}

impl From<Refusal> for Setback {
    fn from(refusal: Refusal) -> Self {
        Self::Final(refusal)
    }
}

/// Why an installation failed. A blob that does not hold what its name says is removed here, where a thread may block.
fn setback(trees: &Trees, error: &ArtifactError) -> Setback {
    let refusal = refusal::of_artifact(&trees.host, error);
    let Some(damaged) = refusal::damaged_blob(error) else { return Setback::Final(refusal) };
    match trees.blobs.remove(damaged) {
        Ok(()) => Setback::Damaged(refusal),
        Err(error) => Setback::Final(refusal::of_artifact(&trees.host, &error)),
    }
}
