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
mod error;
mod fleet;
mod ledger;
mod operations;
mod receipt;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use muster_daemon::{Machine, Shutdown};
use muster_model::{Code, Refusal};
use muster_mtls::{Acceptor, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Limits, Listener};
use muster_proto::v1;
use tokio::net::TcpListener;
use tonic::transport::Server;

pub use access::{TABLE, is_allowed};
pub use backup::restore;
pub use cli::main;
pub use config::CoordinatorConfig;
pub use error::Error;

use coordinator::Shared;

/// How long streams may take to end when the coordinator shuts down.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Runs a coordinator until `shutdown`. `listening` is told the address once it accepts connections.
pub async fn run(
    config: CoordinatorConfig,
    shutdown: Shutdown,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let bind = TcpListener::bind(config.listen);
    serve(config, Machine::real(), bind, shutdown, listening).await
}

/// As [`run`], on a machine of the caller's and over connections that come from somewhere else than TCP.
pub async fn serve<L: Listener>(
    config: CoordinatorConfig,
    machine: Machine,
    bind: impl Future<Output = io::Result<L>>,
    shutdown: Shutdown,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let (shared, drivers) = Shared::open(&config, machine, shutdown.clone())?;
    let listen = |source| Error::Listen { address: config.listen, source };
    let listener = bind.await.map_err(listen)?;
    let acceptor = Acceptor::new(listener, shared.tls.clone(), Limits::default());
    let address = acceptor.local_addr().map_err(listen)?;

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<v1::control_server::ControlServer<control::Control>>().await;
    health.set_serving::<v1::operations_server::OperationsServer<operations::Operations>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(muster_proto::DESCRIPTORS)
        .build_v1()
        .expect("the descriptors are those that the services were generated from");
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
        .layer(access::AccessLayer { denied: shared.denied_calls() })
        .add_service(health_service)
        .add_service(reflection)
        .add_service(control::service(&shared))
        .add_service(v1::blobs_server::BlobsServer::new(blobs::Blobs::new(&shared)))
        .add_service(operations::service(&shared))
        .serve_with_incoming_shutdown(acceptor, shutdown.requested());
    listening(address);
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
        () = patience => Ok(()),
    };
    // Streams that have not ended hold on to it: whoever opens the database next must not wait for them.
    shared.ledger.close().await;
    shared.audit.close().await;
    ended
}

/// 32 bytes from the operating system.
fn random(machine: &Machine) -> Result<[u8; 32], Refusal> {
    let failed = |error| Refusal::of(Code::Unsupported, format!("the system gives no random bytes: {error}"));
    machine.random().map_err(failed)
}
