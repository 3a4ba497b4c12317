//! The coordinator: relays, keeps count and decides when a release may flip.
//!
//! Decisions are made in `muster-rollout`, verification in `muster-trust`; this crate is the edge between them and the
//! network, the disk and the operators. It never measures anything: what it knows of a host is what the host has signed.
//! The other ends of its wire are `agent` and `cli`.

mod access;
mod audit;
mod backup;
mod blobs;
mod cli;
mod config;
mod control;
mod coordinator;
mod enrolment;
mod error;
mod fleet;
mod ledger;
mod metrics;
mod notify;
mod operations;
mod pulse;
mod rebuild;
mod receipt;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use muster_daemon::{Machine, ServiceManager, Shutdown};
use muster_model::{Code, Refusal};
use muster_mtls::{Acceptor, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Limits, Listener};
use muster_proto::v1;
use tokio::net::TcpListener;
use tonic::transport::Server;

pub use access::{FOR_STRANGERS, TABLE, is_allowed};
pub use backup::restore;
pub use cli::main;
pub use config::CoordinatorConfig;
pub use error::Error;
pub use notify::NotifyConfig;

use coordinator::Shared;
use enrolment::Keeper;

/// How long streams may take to end when the coordinator shuts down.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Runs a coordinator until `shutdown`. `listening` is told the address once it accepts connections.
pub async fn run(
    config: CoordinatorConfig,
    shutdown: Shutdown,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    run_under(ServiceManager::none(), config, shutdown, listening).await
}

/// As [`run`], and tells the service manager how it goes.
pub async fn run_under(
    manager: ServiceManager,
    config: CoordinatorConfig,
    shutdown: Shutdown,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let bind = TcpListener::bind(config.listen);
    let started = |address, shared: &Arc<Shared>| {
        listening(address);
        tokio::spawn(pulse::run(Arc::downgrade(shared), manager, shared.stopping.clone()));
    };
    Box::pin(serve_started(config, Machine::real(), bind, shutdown, started)).await
}

/// As [`run`], on a machine of the caller's and over connections that come from somewhere else than TCP.
pub async fn serve<L: Listener>(
    config: CoordinatorConfig,
    machine: Machine,
    bind: impl Future<Output = io::Result<L>>,
    shutdown: Shutdown,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    serve_started(config, machine, bind, shutdown, |address, _| listening(address)).await
}

async fn serve_started<L: Listener>(
    config: CoordinatorConfig,
    machine: Machine,
    bind: impl Future<Output = io::Result<L>>,
    shutdown: Shutdown,
    started: impl FnOnce(SocketAddr, &Arc<Shared>),
) -> Result<(), Error> {
    let (shared, drivers) = Shared::open(&config, machine, shutdown.clone())?;
    let listen = |source| Error::Listen { address: config.listen, source };
    let listener = bind.await.map_err(listen)?;
    let mut keeper = Keeper::open(&config, &shared)?;
    let acceptor = Acceptor::new(listener, shared.tls.clone(), Limits::default());
    let address = acceptor.local_addr().map_err(listen)?;
    let door = Box::pin(open_door(&config, &shared)).await?;
    if let Some(address) = config.metrics_listen {
        let listener = metrics::listen(address).await?;
        tokio::spawn(metrics::serve(listener, Arc::downgrade(&shared), shutdown.clone()));
    }

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<v1::control_server::ControlServer<control::Control>>().await;
    health.set_serving::<v1::operations_server::OperationsServer<operations::Operations>>().await;
    keeper.tell(&shared, &health).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(muster_proto::DESCRIPTORS)
        .build_v1()
        .expect("the descriptors are those that the services were generated from");
    shared.enrolments.listening(address);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
        .layer(access::AccessLayer { denied: shared.denied_calls() })
        .add_service(health_service)
        .add_service(reflection)
        .add_service(control::service(&shared))
        .add_service(v1::blobs_server::BlobsServer::new(blobs::Blobs::new(&shared)))
        .add_service(enrolment::renewal_service(&shared))
        .add_service(operations::service(&shared))
        .serve_with_incoming_shutdown(acceptor, shutdown.requested());
    started(address, &shared);
    tracing::info!(%address, "listening");
    let patience = async {
        shutdown.requested().await;
        // "Graceful shutdown waits for open streams": they are told to end, and are not waited for without end.
        tokio::time::sleep(SHUTDOWN_PATIENCE).await;
    };
    let ended = tokio::select! {
        biased;
        served = server => served.map_err(Error::Serve),
        failed = drivers.run() => Err(Error::StoreFailed(failed)),
        served = door => served,
        () = Box::pin(keeper.run(Arc::clone(&shared), health)) => Ok(()),
        () = patience => Ok(()),
    };
    // Streams that have not ended hold on to it: whoever opens the database next must not wait for them.
    shared.ledger.close().await;
    shared.audit.close().await;
    ended
}

/// The server for hosts that have no certificate yet, where there is to be one.
async fn open_door(
    config: &CoordinatorConfig,
    shared: &Arc<Shared>,
) -> Result<Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>, Error> {
    let mut serving = None;
    if let Some(address) = config.enrol_listen {
        let listen = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let acceptor = Acceptor::for_strangers(listener, shared.tls.clone(), enrolment::DOOR_LIMITS);
        let bound = acceptor.local_addr().map_err(listen)?;
        tracing::info!(address = %bound, "listening for hosts without a certificate");
        shared.enrolments.open_door(bound);
        let server = Server::builder()
            .timeout(enrolment::DOOR_TIMEOUT)
            .max_connection_age(enrolment::DOOR_TIMEOUT)
            .max_concurrent_streams(enrolment::STREAMS_MAX)
            .tcp_nodelay(true)
            .add_service(enrolment::door_service(shared))
            .serve_with_incoming_shutdown(acceptor, shared.stopping.requested());
        serving = Some(server);
    }
    let stopping = shared.stopping.clone();
    Ok(Box::pin(async move {
        if let Some(server) = serving {
            server.await.map_err(Error::Serve)?;
        }
        // It ends with the rest.
        stopping.requested().await;
        std::future::pending().await
    }))
}

/// 32 bytes from the operating system.
fn random(machine: &Machine) -> Result<[u8; 32], Refusal> {
    let failed = |error| Refusal::of(Code::Unsupported, format!("the system gives no random bytes: {error}"));
    machine.random().map_err(failed)
}
