//! What operators and pipelines ask.

mod adopt;
mod audit;
mod certificates;
mod check;
mod deploy;
mod find;
mod flip;
mod glass;
mod orders;
mod rebuild;
mod release;
mod roster;
mod view;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use muster_audit::Kind;
use muster_daemon::Machine;
use muster_model::{Blocker, Code, FleetName, Refusal, RolloutId};
use muster_mtls::Peer;
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::operations_server::{Operations as Service, OperationsServer};
use muster_trust::Succession;
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::coordinator::{ROOTS_IN_MESSAGE_MAX, Shared};
use crate::fleet::FleetHandle;
use crate::rebuild::Standing;
use crate::status::{malformed, refused};

/// Events that wait for a slow operator.
const EVENTS_AHEAD: usize = 1024;
/// The longest that an operation is waited for.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// The largest request: a roster of 20,000 hosts has about 4 MiB.
const REQUEST_BYTES_MAX: usize = 12 << 20;

/// The longest reason for a halt.
const HALT_REASON_BYTES_MAX: usize = 400;

/// The operations service.
pub(crate) struct Operations {
    shared: Arc<Shared>,
}

/// A stream of events to an operator.
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// Where the events come from.
type Sender<T> = mpsc::Sender<Result<T, Status>>;

/// The service, ready to be added to a server.
pub(crate) fn service(shared: &Arc<Shared>) -> OperationsServer<Operations> {
    OperationsServer::new(Operations { shared: Arc::clone(shared) })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
}

impl Operations {
    fn fleet(&self, name: &str) -> Result<Arc<FleetHandle>, Status> {
        let name = convert::fleet(name).map_err(malformed)?;
        self.shared.fleet(&name).ok_or_else(|| refused(not_led(&self.shared, &name)))
    }
}

#[tonic::async_trait]
impl Service for Operations {
    type DeployStream = Events<v1::DeployEvent>;
    type CheckStream = Events<v1::CheckEvent>;
    type RehearseStream = Events<v1::CheckEvent>;
    type AdoptStream = Events<v1::AdoptEvent>;
    type FlipStream = Events<v1::FlipEvent>;
    type ReadAuditStream = Events<v1::ReadAuditResponse>;
    type BackupStream = Events<v1::BackupResponse>;

    async fn list_fleets(
        &self,
        _: Request<v1::ListFleetsRequest>,
    ) -> Result<Response<v1::ListFleetsResponse>, Status> {
        let mut fleets = Vec::new();
        for fleet in self.shared.fleets() {
            fleets.push(view::summary(&self.shared, &fleet).await.map_err(refused)?);
        }
        Ok(Response::new(v1::ListFleetsResponse { fleets }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::FleetStatus>, Status> {
        let fleet = self.fleet(&request.into_inner().fleet)?;
        view::status(&self.shared, &fleet).await.map(Response::new).map_err(refused)
    }

    async fn apply_roster(
        &self,
        request: Request<v1::ApplyRosterRequest>,
    ) -> Result<Response<v1::ApplyRosterResponse>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        if !request.fenced.is_empty() {
            let detail = "that a machine is off is stated in the roster, and signed with it";
            return Err(refused(Refusal::of(Code::RemovalNeedsEvidence, detail)));
        }
        let applied = roster::apply(&self.shared, request.envelope, &operator).await;
        applied.map(Response::new).map_err(refused)
    }

    async fn add_hosts(
        &self,
        request: Request<v1::AddHostsRequest>,
    ) -> Result<Response<v1::AddHostsResponse>, Status> {
        let joiner = caller(&request);
        let added = roster::add(&self.shared, request.into_inner().envelope, &joiner).await;
        added.map(Response::new).map_err(refused)
    }

    async fn apply_root(
        &self,
        request: Request<v1::ApplyRootRequest>,
    ) -> Result<Response<v1::ApplyRootResponse>, Status> {
        let operator = caller(&request);
        let (shared, envelope, who) =
            (Arc::clone(&self.shared), request.into_inner().envelope, operator.clone());
        // To its end, even if whoever asked goes away: what is in the log is done, or the log says that it is not.
        let applied = tokio::spawn(async move {
            let applied = shared.apply_root(envelope, &who).await;
            audit::settled(&shared, &who, "apply a root document", None, applied).await
        });
        let (taken, hosts) =
            applied.await.map_err(|error| refused(ended_inside(&error)))?.map_err(refused)?;
        let version = self.shared.root().root().version;
        if let Succession::Taken(_) = taken {
            tracing::warn!(%operator, version, "a new root document is in force");
        }
        Ok(Response::new(v1::ApplyRootResponse {
            version,
            existed: taken == Succession::Known,
            hosts: u32::try_from(hosts).unwrap_or(u32::MAX),
        }))
    }

    async fn show_roots(
        &self,
        request: Request<v1::ShowRootsRequest>,
    ) -> Result<Response<v1::ShowRootsResponse>, Status> {
        let mut successors = self.shared.roots_after(request.into_inner().after_version);
        // Whoever is further behind asks again.
        successors.truncate(ROOTS_IN_MESSAGE_MAX);
        Ok(Response::new(v1::ShowRootsResponse { successors }))
    }

    async fn show_roster(
        &self,
        request: Request<v1::ShowRosterRequest>,
    ) -> Result<Response<v1::ShowRosterResponse>, Status> {
        let fleet = self.fleet(&request.into_inner().fleet)?;
        roster::show(&self.shared, &fleet).await.map(Response::new).map_err(refused)
    }

    async fn readmit_host(
        &self,
        request: Request<v1::ReadmitHostRequest>,
    ) -> Result<Response<v1::ReadmitHostResponse>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        let host = convert::host(&request.host).map_err(malformed)?;
        tracing::warn!(fleet = %fleet.name, %host, %operator, "host readmitted");
        let entry = self.shared.audit.entry(Kind::Readmit, &operator).of_fleet(&fleet.name).of_hosts([&host]);
        let place = self.shared.audit(vec![entry]).await.map_err(refused)?;
        let done = fleet.readmit(host).await;
        let done = audit::settled(&self.shared, &operator, "readmit a host", Some(place), done).await;
        done.map_err(refused)?;
        Ok(Response::new(v1::ReadmitHostResponse {}))
    }

    async fn submit_release(
        &self,
        request: Request<v1::SubmitReleaseRequest>,
    ) -> Result<Response<v1::SubmitReleaseResponse>, Status> {
        let who = caller(&request);
        let submitted = release::submit(&self.shared, request.into_inner().envelope, &who).await;
        if let Err(refusal) = &submitted {
            let written = self.shared.refused_releases.refused(&who, "submit a release", refusal).await;
            written.map_err(|error| refused(self.shared.store_failed(error)))?;
        }
        submitted.map(Response::new).map_err(refused)
    }

    async fn list_releases(
        &self,
        request: Request<v1::ListReleasesRequest>,
    ) -> Result<Response<v1::ListReleasesResponse>, Status> {
        let fleet = self.fleet(&request.into_inner().fleet)?;
        release::list(&self.shared, &fleet).await.map(Response::new).map_err(refused)
    }

    async fn deploy(
        &self,
        request: Request<v1::DeployRequest>,
    ) -> Result<Response<Self::DeployStream>, Status> {
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        let manifest = convert::digest("manifest", &request.manifest).map_err(malformed)?;
        let deployment =
            deploy::Deployment::begin(&self.shared, fleet, manifest, timeout(request.timeout_ms));
        let deployment = deployment.await.map_err(refused)?;
        Ok(stream(|events| deployment.run(events)))
    }

    async fn check(&self, request: Request<v1::CheckRequest>) -> Result<Response<Self::CheckStream>, Status> {
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        let manifest = convert::digest("manifest", &request.manifest).map_err(malformed)?;
        let max_age = Duration::from_millis(request.max_age_ms);
        let asking = check::Asking::Measurement(max_age);
        let check = check::Check::begin(&self.shared, fleet, manifest, timeout(request.timeout_ms), asking);
        let check = check.map_err(refused)?;
        Ok(stream(|events| check.run(events)))
    }

    async fn rehearse(
        &self,
        request: Request<v1::RehearseRequest>,
    ) -> Result<Response<Self::RehearseStream>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        let manifest = convert::digest("manifest", &request.manifest).map_err(malformed)?;
        tracing::info!(fleet = %fleet.name, %manifest, %operator, "rehearsal");
        let (timeout, asking) = (timeout(request.timeout_ms), check::Asking::Rehearsal);
        let rehearsal = check::Check::begin(&self.shared, fleet, manifest, timeout, asking);
        let rehearsal = rehearsal.map_err(refused)?;
        Ok(stream(|events| rehearsal.run(events)))
    }

    async fn adopt(&self, request: Request<v1::AdoptRequest>) -> Result<Response<Self::AdoptStream>, Status> {
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        let survey =
            adopt::Survey::begin(&self.shared, fleet, timeout(request.timeout_ms)).map_err(refused)?;
        Ok(stream(|events| survey.run(events)))
    }

    async fn flip(&self, request: Request<v1::FlipRequest>) -> Result<Response<Self::FlipStream>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        let signed =
            flip::Signed { order: request.order_envelope, contingency: request.contingency_envelope };
        let flip = flip::Flip::begin(&self.shared, signed, timeout(request.timeout_ms), &operator);
        let flip =
            audit::settled(&self.shared, &operator, "flip", None, flip.await).await.map_err(refused)?;
        Ok(stream(|events| flip.run(events)))
    }

    async fn propose_order(
        &self,
        request: Request<v1::ProposeOrderRequest>,
    ) -> Result<Response<v1::ProposeOrderResponse>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        let signed =
            flip::Signed { order: request.order_envelope, contingency: request.contingency_envelope };
        let proposed = orders::propose(&self.shared, signed, &operator).await;
        let proposed = audit::settled(&self.shared, &operator, "propose an order", None, proposed).await;
        let order = Some(proposed.map_err(refused)?);
        Ok(Response::new(v1::ProposeOrderResponse { order }))
    }

    async fn approve_order(
        &self,
        request: Request<v1::ApproveOrderRequest>,
    ) -> Result<Response<v1::ApproveOrderResponse>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        let signed =
            flip::Signed { order: request.order_envelope, contingency: request.contingency_envelope };
        let approved = orders::approve(&self.shared, signed, &operator).await;
        let approved = audit::settled(&self.shared, &operator, "approve an order", None, approved).await;
        let order = Some(approved.map_err(refused)?);
        Ok(Response::new(v1::ApproveOrderResponse { order }))
    }

    async fn cancel_order(
        &self,
        request: Request<v1::CancelOrderRequest>,
    ) -> Result<Response<v1::CancelOrderResponse>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        let id = convert::digest("id", &request.id).map_err(malformed)?;
        let cancelled = orders::cancel(&self.shared, &fleet.name, id, &operator).await;
        let cancelled = audit::settled(&self.shared, &operator, "cancel an order", None, cancelled).await;
        cancelled.map_err(refused)?;
        Ok(Response::new(v1::CancelOrderResponse {}))
    }

    async fn list_orders(
        &self,
        request: Request<v1::ListOrdersRequest>,
    ) -> Result<Response<v1::ListOrdersResponse>, Status> {
        let fleet = self.fleet(&request.into_inner().fleet)?;
        let orders = orders::list(&self.shared, &fleet.name).await.map_err(refused)?;
        Ok(Response::new(v1::ListOrdersResponse { orders }))
    }

    async fn abort(&self, request: Request<v1::AbortRequest>) -> Result<Response<v1::AbortResponse>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        let k = (request.k != 0).then_some(RolloutId(request.k));
        let reason = Blocker::fleet(Code::AbortedByOperator, format!("given up by {operator}"));
        let entry = self.shared.audit.entry(Kind::Abort, &operator).of_fleet(&fleet.name);
        let entry = k.into_iter().fold(entry, muster_audit::Entry::of_rollout);
        let place = self.shared.audit(vec![entry]).await.map_err(refused)?;
        let done = fleet.abort(k, reason).await;
        let k = audit::settled(&self.shared, &operator, "abort", Some(place), done).await.map_err(refused)?;
        Ok(Response::new(v1::AbortResponse { k: k.0 }))
    }

    async fn halt(&self, request: Request<v1::HaltRequest>) -> Result<Response<v1::HaltResponse>, Status> {
        let operator = caller(&request);
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        if request.reason.len() > HALT_REASON_BYTES_MAX {
            let detail = format!("a reason of at most {HALT_REASON_BYTES_MAX} bytes is needed");
            return Err(refused(Refusal::of(Code::Unsupported, detail)));
        }
        tracing::warn!(fleet = %fleet.name, %operator, reason = request.reason, "fleet halted");
        let reason = Blocker::fleet(Code::Halted, format!("halted by {operator}: {}", request.reason));
        let entry =
            self.shared.audit.entry(Kind::Halt, &operator).of_fleet(&fleet.name).saying(request.reason);
        let place = self.shared.audit(vec![entry]).await.map_err(refused)?;
        let done = fleet.halt(reason).await;
        let k = audit::settled(&self.shared, &operator, "halt", Some(place), done).await.map_err(refused)?;
        Ok(Response::new(v1::HaltResponse { k: k.0 }))
    }

    async fn find(&self, request: Request<v1::FindRequest>) -> Result<Response<v1::FindResponse>, Status> {
        find::find(&self.shared, request.into_inner()).await.map(Response::new)
    }

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let shared = Arc::clone(&self.shared);
        Ok(stream(|events| crate::backup::send(shared, events)))
    }

    async fn read_audit(
        &self,
        _: Request<v1::ReadAuditRequest>,
    ) -> Result<Response<Self::ReadAuditStream>, Status> {
        let shared = Arc::clone(&self.shared);
        Ok(stream(|parts| audit::send(shared, parts)))
    }

    async fn reconcile_audit(
        &self,
        request: Request<v1::ReconcileAuditRequest>,
    ) -> Result<Response<v1::ReconcileAuditResponse>, Status> {
        let operator = caller(&request);
        let reconciled = audit::reconcile(&self.shared, &operator, request.into_inner()).await;
        reconciled.map(Response::new).map_err(refused)
    }

    async fn issue_token(
        &self,
        request: Request<v1::IssueTokenRequest>,
    ) -> Result<Response<v1::IssueTokenResponse>, Status> {
        let operator = caller(&request);
        certificates::issue_token(&self.shared, request.into_inner(), &operator).await.map(Response::new)
    }

    async fn list_enrolled(
        &self,
        _: Request<v1::ListEnrolledRequest>,
    ) -> Result<Response<v1::ListEnrolledResponse>, Status> {
        Ok(Response::new(certificates::list_enrolled(&self.shared)))
    }

    async fn evict_host(
        &self,
        request: Request<v1::EvictHostRequest>,
    ) -> Result<Response<v1::EvictHostResponse>, Status> {
        let operator = caller(&request);
        certificates::evict(&self.shared, request.into_inner(), &operator).await.map(Response::new)
    }

    async fn revoke_certificate(
        &self,
        request: Request<v1::RevokeCertificateRequest>,
    ) -> Result<Response<v1::RevokeCertificateResponse>, Status> {
        let operator = caller(&request);
        let own = request.extensions().get::<muster_mtls::Peer>().map(|peer| peer.serial.to_string());
        let own = own.unwrap_or_default();
        certificates::revoke(&self.shared, request.into_inner(), (&operator, &own)).await.map(Response::new)
    }

    async fn survey_fleet(
        &self,
        request: Request<v1::SurveyFleetRequest>,
    ) -> Result<Response<v1::SurveyFleetResponse>, Status> {
        let fleet = convert::fleet(&request.into_inner().fleet).map_err(malformed)?;
        rebuild::survey(&self.shared, &fleet).await.map(Response::new).map_err(refused)
    }

    async fn rebuild_fleet(
        &self,
        request: Request<v1::RebuildFleetRequest>,
    ) -> Result<Response<v1::RebuildFleetResponse>, Status> {
        let operator = caller(&request);
        let begun = rebuild::begin(&self.shared, request.into_inner(), &operator).await;
        let begun = audit::settled(&self.shared, &operator, "rebuild a fleet", None, begun).await;
        begun.map(Response::new).map_err(refused)
    }

    async fn settle_glass(
        &self,
        request: Request<v1::SettleGlassRequest>,
    ) -> Result<Response<v1::SettleGlassResponse>, Status> {
        let operator = caller(&request);
        let settled = glass::settle(&self.shared, request.into_inner().envelope, &operator).await;
        let settled = audit::settled(&self.shared, &operator, "settle broken glass", None, settled).await;
        settled.map(Response::new).map_err(refused)
    }

    async fn show_receipt(
        &self,
        request: Request<v1::ShowReceiptRequest>,
    ) -> Result<Response<v1::ShowReceiptResponse>, Status> {
        let request = request.into_inner();
        let fleet = self.fleet(&request.fleet)?;
        let receipt = release::receipt(&self.shared, &fleet, muster_model::Epoch(request.epoch)).await;
        Ok(Response::new(v1::ShowReceiptResponse { receipt: receipt.map_err(refused)? }))
    }
}

fn stream<T, F>(run: impl FnOnce(Sender<T>) -> F) -> Response<Events<T>>
where
    T: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
    tokio::spawn(run(sender));
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

fn timeout(ms: u64) -> Duration {
    Duration::from_millis(ms).min(TIMEOUT_MAX)
}

fn caller<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map_or_else(|| "nobody".to_owned(), |peer| peer.identity.to_string())
}

/// Why a fleet cannot be asked for anything.
fn not_led(shared: &Shared, name: &FleetName) -> Refusal {
    let is_known = shared.rebuilding(name).is_some_and(|it| it.standing() == Standing::Known);
    if !is_known {
        return fleet_unknown(name);
    }
    let detail = format!(
        "{name} is not led before the operators have mandated this coordinator and all hosts were heard"
    );
    Refusal::of(Code::Rebuilding, detail)
}

fn fleet_unknown(name: &FleetName) -> Refusal {
    Refusal::of(Code::FleetUnknown, format!("there is no fleet {name}; a roster makes one"))
}

/// Runs a blocking call; a panic in it becomes a refusal of this one request.
async fn blocking<T: Send + 'static>(
    machine: &Machine,
    call: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    machine.run_blocking(call).await.map_err(|error| ended_inside(&error))?
}

fn ended_inside(error: &JoinError) -> Refusal {
    Refusal::of(Code::Unsupported, format!("the request failed inside the coordinator: {error}"))
}
