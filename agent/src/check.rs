//! Checks, which measure a release on disk now and attest it; rehearsals, which run its self-test as well; and what a host that is to
//! be adopted runs before any release does. All are outside of any rollout, and change nothing that is served.

use std::sync::Arc;

use muster_guard::Guard;
use muster_model::{Code, Digest, FleetName, HostName, Purpose, Refusal};
use muster_proto::v1::agent_frame::Body;
use muster_proto::{convert, v1};
use muster_rollout::host::Measured;
use muster_trust::SigningKey;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::driver::Input;
use crate::manifests;
use crate::measure::{Lanes, Trees, in_lane, on_thread};
use crate::refusal;
use crate::uplink::Uplink;

/// How many checks may wait or run; a coordinator that asks for more has lost count.
const CHECKS_MAX: usize = 64;

/// Answers checks of one fleet. Clones share the work.
#[derive(Clone)]
pub(crate) struct Checker {
    shared: Arc<Shared>,
}

struct Shared {
    fleet: FleetName,
    host: HostName,
    trees: Arc<Trees>,
    lanes: Arc<Lanes>,
    key: Arc<SigningKey>,
    /// Runs self-tests, by root's own configuration.
    guard: Arc<dyn Guard>,
    /// The fleet's driver, which knows what the host serves.
    driver: mpsc::Sender<Input>,
    room: Arc<Semaphore>,
}

impl Checker {
    pub(crate) fn new(
        fleet: FleetName,
        trees: Arc<Trees>,
        (lanes, key, guard): (Arc<Lanes>, Arc<SigningKey>, Arc<dyn Guard>),
        driver: mpsc::Sender<Input>,
    ) -> Self {
        let host = trees.host.clone();
        let room = Arc::new(Semaphore::new(CHECKS_MAX));
        Self { shared: Arc::new(Shared { fleet, host, trees, lanes, key, guard, driver, room }) }
    }

    /// Begins a check; its end is told over `uplink`.
    pub(crate) fn begin(&self, check: v1::Check, uplink: Uplink) {
        let shared = Arc::clone(&self.shared);
        let Ok(room) = Arc::clone(&shared.room).try_acquire_owned() else {
            let busy = refusal::at(&shared.host, Code::Busy, format!("{CHECKS_MAX} checks are under way"));
            return shared.end(check.request, Err(busy), &uplink);
        };
        tokio::spawn(async move {
            let outcome = shared.attest(&check, &uplink).await;
            shared.end(check.request, outcome, &uplink);
            drop(room);
        });
    }
}

impl Shared {
    /// The envelope of the attestation, or why there is none. A tree that differs is not attested.
    async fn attest(&self, check: &v1::Check, uplink: &Uplink) -> Result<Vec<u8>, Refusal> {
        let unsupported =
            |error: convert::ConvertError| refusal::at(&self.host, Code::Unsupported, error.to_string());
        let challenge = convert::digest("challenge", &check.challenge).map_err(unsupported)?;
        let (purpose, measured) = if check.adopt {
            (Purpose::Adoption, self.measure_adopted().await?)
        } else {
            let release = convert::digest("manifest", &check.manifest).map_err(unsupported)?;
            manifests::obtain_for_tree(&self.trees, uplink.channel(), release).await;
            let measured = self.measure(release).await?;
            if check.rehearse {
                let took_ms = self.rehearse(release).await?;
                // A self-test may change what it runs in: what is attested is what it has left.
                (Purpose::Rehearsal { took_ms }, self.measure(release).await?)
            } else {
                (Purpose::Check, measured)
            }
        };
        let (reply, attestation) = oneshot::channel();
        let ending = || refusal::at(&self.host, Code::SessionLost, "the agent is ending");
        self.driver
            .send(Input::AttestCheck { purpose, challenge, measured, reply })
            .await
            .map_err(|_| ending())?;
        let attestation = attestation.await.map_err(|_| ending())?;
        let envelope = muster_trust::sign(&attestation, &[&*self.key])
            .map_err(|error| refusal::of_trust(&self.host, Code::BadAttestation, &error))?;
        Ok(envelope.raw().to_vec())
    }

    async fn measure(&self, release: Digest) -> Result<Measured, Refusal> {
        let trees = Arc::clone(&self.trees);
        let measuring = move || trees.measure_to_attest(release);
        in_lane(&self.lanes.checks, &self.trees.machine, &self.host, measuring).await
    }

    /// Measures what runs here before any release does.
    async fn measure_adopted(&self) -> Result<Measured, Refusal> {
        let trees = Arc::clone(&self.trees);
        let measuring = move || trees.measure_adopted();
        in_lane(&self.lanes.checks, &self.trees.machine, &self.host, measuring).await
    }

    /// Has the guard run the self-test of a release that was just measured, and tells how long that took, in milliseconds.
    async fn rehearse(&self, release: Digest) -> Result<u64, Refusal> {
        let (guard, fleet, host) = (Arc::clone(&self.guard), self.fleet.clone(), self.host.clone());
        let begun = self.trees.machine.boot_time();
        on_thread(&self.trees.machine, &self.host, move || {
            guard.rehearse(&fleet, release).map_err(|error| refusal::of_guard(&host, &error))
        })
        .await?;
        Ok(self.trees.machine.boot_time().0.saturating_sub(begun.0))
    }

    fn end(&self, request: u64, outcome: Result<Vec<u8>, Refusal>, uplink: &Uplink) {
        let (envelope, refusal) = match outcome {
            Ok(envelope) => (Some(envelope), None),
            Err(refusal) => (None, Some(refusal.into())),
        };
        uplink.send(&self.fleet, Body::CheckEnded(v1::CheckEnded { request, envelope, refusal }));
    }
}
