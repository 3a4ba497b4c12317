//! Who may call what: one table, deny by default.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures_util::future::Either;
use muster_model::{Code, Refusal};
use muster_mtls::{Peer, Role};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use crate::audit::Throttle;
use crate::status::refused;

use Role::{Agent, Operator, Pipeline, Viewer};

/// For each call the roles that may make it. A call that is not here is refused for everyone.
pub const TABLE: &[(&str, &[Role])] = &[
    ("/fleet.v1.Control/Attach", &[Agent]),
    ("/fleet.v1.Blobs/FindMissing", &[Operator, Pipeline]),
    ("/fleet.v1.Blobs/Upload", &[Operator, Pipeline]),
    ("/fleet.v1.Blobs/Download", &[Agent, Operator, Pipeline, Viewer]),
    ("/fleet.v1.Certificates/Renew", &[Agent, Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/ListFleets", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/Status", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/ApplyRoster", &[Operator]),
    // What it takes is signed by a joiner's key: with the machine that makes hosts, not with operators.
    ("/fleet.v1.Operations/AddHosts", &[Operator, Pipeline]),
    ("/fleet.v1.Operations/ShowRoster", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/ReadmitHost", &[Operator]),
    ("/fleet.v1.Operations/ApplyRoot", &[Operator]),
    ("/fleet.v1.Operations/ShowRoots", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/SubmitRelease", &[Operator, Pipeline]),
    ("/fleet.v1.Operations/ListReleases", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/Deploy", &[Operator, Pipeline]),
    ("/fleet.v1.Operations/Check", &[Operator, Pipeline]),
    ("/fleet.v1.Operations/Rehearse", &[Operator, Pipeline]),
    ("/fleet.v1.Operations/Adopt", &[Operator, Pipeline]),
    ("/fleet.v1.Operations/Flip", &[Operator]),
    ("/fleet.v1.Operations/ProposeOrder", &[Operator]),
    ("/fleet.v1.Operations/ApproveOrder", &[Operator]),
    ("/fleet.v1.Operations/CancelOrder", &[Operator]),
    ("/fleet.v1.Operations/ListOrders", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/Abort", &[Operator]),
    ("/fleet.v1.Operations/Halt", &[Operator]),
    ("/fleet.v1.Operations/Find", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/Backup", &[Operator]),
    ("/fleet.v1.Operations/ReadAudit", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/ReconcileAudit", &[Operator]),
    ("/fleet.v1.Operations/IssueToken", &[Operator]),
    ("/fleet.v1.Operations/ListEnrolled", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/EvictHost", &[Operator]),
    ("/fleet.v1.Operations/RevokeCertificate", &[Operator]),
    ("/fleet.v1.Operations/SurveyFleet", &[Operator, Pipeline, Viewer]),
    ("/fleet.v1.Operations/RebuildFleet", &[Operator]),
    ("/fleet.v1.Operations/SettleGlass", &[Operator]),
    ("/fleet.v1.Operations/ShowReceipt", &[Operator, Pipeline, Viewer]),
    ("/grpc.health.v1.Health/Check", &[Agent, Operator, Pipeline, Viewer]),
    ("/grpc.health.v1.Health/List", &[Agent, Operator, Pipeline, Viewer]),
    ("/grpc.health.v1.Health/Watch", &[Agent, Operator, Pipeline, Viewer]),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &[Operator, Pipeline, Viewer]),
];

/// The calls of the door for strangers, which is a server of its own: whoever has a certificate makes them nowhere.
pub const FOR_STRANGERS: &[&str] = &["/fleet.v1.Enrolment/Enrol", "/fleet.v1.Enrolment/Recover"];

/// Whether `role` may call `path`.
#[must_use]
pub fn is_allowed(path: &str, role: Role) -> bool {
    TABLE.iter().any(|(call, roles)| *call == path && roles.contains(&role))
}

/// Checks every call before its service sees it.
#[derive(Clone)]
pub(crate) struct AccessLayer {
    /// Where it is written down that a call was denied.
    pub(crate) denied: Throttle,
}

/// A service behind the table.
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    service: S,
    denied: Throttle,
}

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, service: S) -> Self::Service {
        Guarded { service, denied: self.denied.clone() }
    }
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let who = match request.extensions().get::<Peer>() {
            Some(peer) if is_allowed(path, peer.identity.role) => {
                return Either::Left(self.service.call(request));
            }
            Some(peer) => peer.identity.to_string(),
            None => "a caller without an identity".to_owned(),
        };
        self.denied.denied(&who, path);
        let refusal = format!("{who} may not call {path}");
        tracing::warn!(%refusal, "call refused");
        let status = refused(Refusal::of(Code::NotAllowed, refusal));
        Either::Right(ready(Ok(status.into_http())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The calls of all services, read from the descriptors that the reflection service serves.
    fn calls() -> Vec<String> {
        use prost::Message as _;
        let files = prost_types::FileDescriptorSet::decode(muster_proto::DESCRIPTORS).expect("descriptors");
        let mut calls = Vec::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    calls.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        calls
    }

    #[test]
    fn every_call_of_every_service_has_a_row_and_no_row_is_without_a_call() {
        let calls = calls();
        for call in &calls {
            let is_in_table = TABLE.iter().any(|(row, _)| row == call);
            let is_for_strangers = FOR_STRANGERS.contains(&call.as_str());
            assert!(is_in_table != is_for_strangers, "{call} has no row, or two");
        }
        for (row, roles) in TABLE {
            assert!(row.starts_with("/grpc.") || calls.iter().any(|call| call == row), "{row} is no call");
            assert!(!roles.is_empty(), "{row}");
        }
    }

    #[test]
    fn what_only_some_may_do_is_refused_for_all_others() {
        let roles_of = |path: &str| -> Vec<Role> {
            Role::ALL.into_iter().filter(|role| is_allowed(path, *role)).collect()
        };
        assert_eq!(roles_of("/fleet.v1.Control/Attach"), [Agent]);
        for call in
            ["Flip", "Abort", "Halt", "ApplyRoster", "ApplyRoot", "Backup", "ReadmitHost", "ReconcileAudit"]
                .into_iter()
                .chain(["IssueToken", "EvictHost", "RevokeCertificate", "SettleGlass"])
        {
            assert_eq!(roles_of(&format!("/fleet.v1.Operations/{call}")), [Operator], "{call}");
        }
        assert_eq!(roles_of("/fleet.v1.Operations/AddHosts"), [Operator, Pipeline]);
        assert_eq!(roles_of("/fleet.v1.Operations/Unheard"), []);
        for (row, _) in TABLE {
            assert!(!is_allowed(row, Role::Coordinator), "{row}");
        }
    }
}
