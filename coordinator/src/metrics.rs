//! What monitoring reads: `GET /metrics` on a loopback address of its own, as OpenMetrics text.
//!
//! It has neither TLS nor roles, and so is for programs of this machine. What is counted is counted since this coordinator began;
//! everything else is looked up when it is asked for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use muster_daemon::Shutdown;
use muster_model::FleetName;
use muster_rollout::fleet::{HostView, Outcome, State};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::Error;
use crate::coordinator::Shared;
use crate::fleet::View;

/// Monitoring asks once in a while.
const CONNECTIONS_MAX: usize = 8;
const PATIENCE: Duration = Duration::from_secs(10);
/// After an `accept` that failed, so that the failure does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

type Labels<const N: usize> = [(&'static str, String); N];

/// What is counted as it happens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    drifts: Family<Labels<1>, Counter>,
    rollouts: Family<Labels<2>, Counter>,
}

impl Counts {
    /// A host told that what it serves has changed.
    pub(crate) fn drifted(&self, fleet: &FleetName) {
        self.drifts.get_or_create(&[("fleet", fleet.to_string())]).inc();
    }

    /// A rollout has ended.
    pub(crate) fn ended(&self, fleet: &FleetName, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Flipped => "flipped",
            Outcome::Unchanged => "unchanged",
            Outcome::Dark => "dark",
        };
        let labels = [("fleet", fleet.to_string()), ("outcome", outcome.to_owned())];
        self.rollouts.get_or_create(&labels).inc();
    }
}

/// Takes the address, so that a coordinator that cannot have it does not start.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let failed = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    tracing::info!(address = %listener.local_addr().map_err(failed)?, "metrics are at /metrics");
    Ok(listener)
}

/// Answers until the coordinator ends.
pub(crate) async fn serve(listener: TcpListener, shared: Weak<Shared>, stopping: Shutdown) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stopping.requested() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // One connection more than there is room for is closed at once.
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
        let shared = Weak::clone(&shared);
        tokio::spawn(async move {
            // Whoever asked may be gone, or slow.
            let _ = tokio::time::timeout(PATIENCE, converse(stream, shared)).await;
            drop(place);
        });
    }
}

async fn converse(stream: TcpStream, shared: Weak<Shared>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let shared = Weak::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&request, &shared).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(request: &Request<Incoming>, shared: &Weak<Shared>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match shared.upgrade() {
            Some(shared) => (StatusCode::OK, told(&shared).await),
            None => (StatusCode::SERVICE_UNAVAILABLE, String::new()),
        },
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

/// All of it at this moment.
async fn told(shared: &Shared) -> String {
    let now = Now::default();
    for fleet in shared.fleets() {
        // A fleet that does not answer is one of a coordinator that ends.
        let Ok(view) = fleet.view().await else { continue };
        now.take(&view);
        for host in view.hosts.iter().chain(&view.parked) {
            if let Some(validity) = shared.certificate_of(&host.host) {
                now.expires(format!("host/{}", host.host), validity.not_after.0);
            }
        }
    }
    if let Some(own) = shared.enrolments.standing().certificate {
        now.expires("coordinator".to_owned(), own.not_after.0);
    }
    now.text(&shared.counts)
}

/// What is so at one moment.
#[derive(Default)]
struct Now {
    hosts: Family<Labels<2>, Gauge>,
    blockers: Family<Labels<2>, Gauge>,
    epochs: Family<Labels<1>, Gauge>,
    last_contact: Family<Labels<2>, Gauge>,
    certificates: Family<Labels<1>, Gauge>,
}

impl Now {
    fn take(&self, view: &View) {
        let fleet = || ("fleet", view.record.fleet.to_string());
        self.epochs.get_or_create(&[fleet()]).set(signed(view.record.epoch.0));
        let mut states: BTreeMap<_, i64> = STATES.iter().map(|state| (*state, 0)).collect();
        for host in view.hosts.iter().chain(&view.parked) {
            *states.entry(state(host)).or_default() += 1;
            for blocker in &host.blockers {
                self.blockers.get_or_create(&[fleet(), ("code", blocker.code.to_string())]).inc();
            }
            let silent = match (host.session, host.since) {
                (Some(_), _) => 0,
                (None, Some(since)) => view.now.since(since).as_secs(),
                // It was not seen by this coordinator: nothing is known, which is not zero.
                (None, None) => continue,
            };
            let labels = [fleet(), ("host", host.host.to_string())];
            self.last_contact.get_or_create(&labels).set(signed(silent));
        }
        for (state, count) in states {
            self.hosts.get_or_create(&[fleet(), ("state", state.to_owned())]).set(count);
        }
    }

    fn expires(&self, of: String, at_ms: u64) {
        self.certificates.get_or_create(&[("of", of)]).set(signed(at_ms / 1000));
    }

    fn text(self, counts: &Counts) -> String {
        let mut all = Registry::with_prefix("muster");
        all.register("hosts", "Hosts of a fleet by what they do", self.hosts);
        all.register("blockers", "What is wrong with hosts, by its code", self.blockers);
        all.register("epoch", "The epoch that a fleet is at", self.epochs);
        all.register(
            "host_last_contact_seconds",
            "How long a host was not heard; 0 while it is connected",
            self.last_contact,
        );
        all.register(
            "certificate_expiry_timestamp_seconds",
            "When a certificate ends, in seconds since 1970",
            self.certificates,
        );
        all.register("drifts", "Changes of what hosts serve", counts.drifts.clone());
        all.register("rollouts", "Rollouts that have ended, by their outcome", counts.rollouts.clone());
        let mut text = String::new();
        encode(&mut text, &all).expect("a string takes whatever is written");
        text
    }
}

const STATES: &[&str] = &["serving", "dark", "silent", "parked"];

const fn state(host: &HostView) -> &'static str {
    match (host.state, host.session, host.serving) {
        (State::Parked, _, _) => "parked",
        (State::Joining | State::Serving | State::Leaving, None, _) => "silent",
        (State::Joining | State::Serving | State::Leaving, Some(_), None) => "dark",
        (State::Joining | State::Serving | State::Leaving, Some(_), Some(_)) => "serving",
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
