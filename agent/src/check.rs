//! Checks: measure a release on disk now, and attest it. Outside of any rollout, and nothing changes.

use std::sync::Arc;

use muster_model::{Code, Digest, FleetName, HostName, Refusal};
use muster_proto::v1::agent_frame::Body;
use muster_proto::{convert, v1};
use muster_trust::SigningKey;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::driver::Input;
use crate::manifests;
use crate::measure::{Lanes, Trees, in_lane};
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
    /// The fleet's driver, which knows what the host serves.
    driver: mpsc::Sender<Input>,
    room: Arc<Semaphore>,
}

impl Checker {
    pub(crate) fn new(
        fleet: FleetName,
        trees: Arc<Trees>,
        lanes: Arc<Lanes>,
        key: Arc<SigningKey>,
        driver: mpsc::Sender<Input>,
    ) -> Self {
        let host = trees.host.clone();
        let room = Arc::new(Semaphore::new(CHECKS_MAX));
        Self { shared: Arc::new(Shared { fleet, host, trees, lanes, key, driver, room }) }
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
        let (release, challenge) = self.parse(check)?;
        manifests::obtain_for_tree(&self.trees, uplink.channel(), release).await;
        let trees = Arc::clone(&self.trees);
        let measured = in_lane(&self.lanes.checks, &self.trees.machine, &self.host, move || {
            trees.measure_to_attest(release)
        })
        .await?;
        let (reply, attestation) = oneshot::channel();
        let ending = || refusal::at(&self.host, Code::SessionLost, "the agent is ending");
        self.driver.send(Input::AttestCheck { challenge, measured, reply }).await.map_err(|_| ending())?;
        let attestation = attestation.await.map_err(|_| ending())?;
        let envelope = muster_trust::sign(&attestation, &[&*self.key])
            .map_err(|error| refusal::of_trust(&self.host, Code::BadAttestation, &error))?;
        Ok(envelope.raw().to_vec())
    }

    fn parse(&self, check: &v1::Check) -> Result<(Digest, Digest), Refusal> {
        let unsupported =
            |error: convert::ConvertError| refusal::at(&self.host, Code::Unsupported, error.to_string());
        let release = convert::digest("manifest", &check.manifest).map_err(unsupported)?;
        let challenge = convert::digest("challenge", &check.challenge).map_err(unsupported)?;
        Ok((release, challenge))
    }

    fn end(&self, request: u64, outcome: Result<Vec<u8>, Refusal>, uplink: &Uplink) {
        let (envelope, refusal) = match outcome {
            Ok(envelope) => (Some(envelope), None),
            Err(refusal) => (None, Some(refusal.into())),
        };
        uplink.send(&self.fleet, Body::CheckEnded(v1::CheckEnded { request, envelope, refusal }));
    }
}
