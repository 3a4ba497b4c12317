//! The accept loop: TCP connections in, verified peers out, bounded in number and in time.
//!
//! There are two of them: one for peers, who show a certificate, and one for strangers, who want one and show none.

use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::certificate::{self, Serial, Validity};
use crate::identity::{Identity, IdentityError, identity_of};
use crate::net::Listener;
use crate::open::Membership;
use crate::server::{ServerTls, legible};

/// The first pause after an error of `accept` that waiting can cure, such as too many open files; it doubles.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
/// The longest such pause.
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What an [`Acceptor`] takes on at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a handshake may take from the first byte to the last.
    pub handshake_timeout: Duration,
    /// How many handshakes may be under way; further connections wait in the kernel's queue.
    pub handshakes_max: usize,
    /// How many connections may be open, handshakes included.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(10), handshakes_max: 256, connections_max: 16_384 }
    }
}

/// What an [`Acceptor`] is doing and has done, for metrics. Shared, and still readable when the acceptor is gone.
#[derive(Debug, Default)]
pub struct Activity {
    handshakes: AtomicU64,
    connections: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
}

impl Activity {
    /// Handshakes under way.
    #[must_use]
    pub fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Connections that were handed out and are still open.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Handshakes that succeeded so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Handshakes that failed so far, those that took too long excluded.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Handshakes that took too long so far.
    #[must_use]
    pub fn timed_out(&self) -> u64 {
        self.timed_out.load(Ordering::Relaxed)
    }
}

/// Counts one up for as long as it lives, whatever ends it.
struct Counted {
    activity: Arc<Activity>,
    counter: fn(&Activity) -> &AtomicU64,
}

impl Counted {
    fn new(activity: &Arc<Activity>, counter: fn(&Activity) -> &AtomicU64) -> Self {
        counter(activity).fetch_add(1, Ordering::Relaxed);
        Self { activity: activity.clone(), counter }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.activity).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who is at the other end of a connection. tonic puts it into the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Whom the certificate speaks for; always of the server's own trust domain.
    pub identity: Identity,
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// The certificate's serial number.
    pub serial: Serial,
    /// The certificate's validity.
    pub validity: Validity,
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
}

/// Somebody who showed no certificate. tonic puts it into the extensions of every request.
#[derive(Debug, Clone)]
pub struct Stranger {
    /// Where the connection comes from.
    pub address: SocketAddr,
}

/// Who may be at the other end of a connection: a [`Peer`] or a [`Stranger`].
pub trait Caller: Clone + Send + Sync + Unpin + 'static + sealed::Sealed {
    #[doc(hidden)]
    fn config(tls: &ServerTls) -> Arc<ServerConfig>;

    #[doc(hidden)]
    fn of(session: &ServerConnection, address: SocketAddr) -> Result<Self, Refused>;

    #[doc(hidden)]
    fn enter(&self, tls: &ServerTls) -> Option<Membership>;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::Peer {}
    impl Sealed for super::Stranger {}
}

impl Caller for Peer {
    fn config(tls: &ServerTls) -> Arc<ServerConfig> {
        tls.config()
    }

    fn of(session: &ServerConnection, address: SocketAddr) -> Result<Self, Refused> {
        let chain: Arc<[CertificateDer<'static>]> =
            session.peer_certificates().ok_or(Refused::NoCertificate)?.into();
        let leaf = chain.first().ok_or(Refused::NoCertificate)?;
        let identity = identity_of(leaf).map_err(Refused::Identity)?;
        let (serial, validity) = {
            let cert = certificate::parse(leaf).map_err(Refused::Identity)?;
            (certificate::serial_of(&cert), certificate::validity_of(&cert))
        };
        Ok(Self { identity, address, serial, validity, chain })
    }

    fn enter(&self, tls: &ServerTls) -> Option<Membership> {
        Some(tls.open().enter(self.clone()))
    }
}

impl Caller for Stranger {
    fn config(tls: &ServerTls) -> Arc<ServerConfig> {
        tls.config_for_strangers()
    }

    fn of(_: &ServerConnection, address: SocketAddr) -> Result<Self, Refused> {
        Ok(Self { address })
    }

    fn enter(&self, _: &ServerTls) -> Option<Membership> {
        None
    }
}

/// A stream of connections whose handshake has succeeded, for tonic's `serve_with_incoming_shutdown`.
///
/// Handshakes run concurrently, each with the settings that are current when it begins; a slow or hostile peer
/// holds up nobody else. What fails is logged here with its reason, because the peer sees only an alert, and never
/// reaches the stream: it yields no errors, and ends only when it is dropped, which ends handshakes under way.
///
/// The server must be HTTP/2 only (tonic's default): clients wait for its first frame to know that they were let in.
pub struct Acceptor<L: Listener = TcpListener, C: Caller = Peer> {
    listener: L,
    tls: ServerTls,
    limits: Limits,
    activity: Arc<Activity>,
    slots: Arc<Semaphore>,
    slot: Slot,
    handshakes: JoinSet<Option<TlsConn<L::Stream, C>>>,
    pause: Pause,
    callers: PhantomData<C>,
}

type AcquireSlot = Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>;

/// The right to one more connection, which is needed before one is accepted.
enum Slot {
    Wanted,
    Awaited(AcquireSlot),
    Held(OwnedSemaphorePermit),
}

impl<L: Listener> Acceptor<L> {
    /// Accepts peers from `listener`, which must be bound already.
    #[must_use]
    pub fn new(listener: L, tls: ServerTls, limits: Limits) -> Self {
        Self::of(listener, tls, limits)
    }
}

impl<L: Listener> Acceptor<L, Stranger> {
    /// Accepts strangers: the server proves who it is, with the authorities up to the anchor, and asks for no certificate.
    #[must_use]
    pub fn for_strangers(listener: L, tls: ServerTls, limits: Limits) -> Self {
        Self::of(listener, tls, limits)
    }
}

impl<L: Listener, C: Caller> Acceptor<L, C> {
    fn of(listener: L, tls: ServerTls, limits: Limits) -> Self {
        let slots = limits.connections_max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            listener,
            tls,
            limits,
            activity: Arc::new(Activity::default()),
            slots: Arc::new(Semaphore::new(slots)),
            slot: Slot::Wanted,
            handshakes: JoinSet::new(),
            pause: Pause::default(),
            callers: PhantomData,
        }
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Its counters.
    #[must_use]
    pub fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }

    /// Accepts one connection, when there is a slot and no pause, and starts its handshake.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.pause.poll(cx));
        ready!(self.poll_slot(cx));
        match ready!(self.listener.poll_accept(cx)) {
            Ok((stream, address)) => {
                self.pause.reset();
                if let Slot::Held(slot) = std::mem::replace(&mut self.slot, Slot::Wanted) {
                    self.start(stream, address, slot);
                }
            }
            Err(error) if concerns_one_connection(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                let pause = self.pause.begin();
                tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot accept connections");
            }
        }
        Poll::Ready(())
    }

    fn poll_slot(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.slot {
                Slot::Held(_) => return Poll::Ready(()),
                Slot::Awaited(acquire) => self.slot = Slot::Held(ready!(acquire.as_mut().poll(cx))),
                Slot::Wanted => {
                    if self.slots.available_permits() == 0 {
                        let connections_max = self.limits.connections_max;
                        tracing::warn!(
                            connections_max,
                            "as many connections as allowed are open; new ones wait"
                        );
                    }
                    let slots = self.slots.clone();
                    self.slot = Slot::Awaited(Box::pin(async move {
                        slots.acquire_owned().await.expect("this semaphore is never closed")
                    }));
                }
            }
        }
    }

    fn start(&mut self, stream: L::Stream, address: SocketAddr, slot: OwnedSemaphorePermit) {
        let (tls, limit, activity) = (self.tls.clone(), self.limits.handshake_timeout, self.activity.clone());
        let under_way = Counted::new(&activity, |activity| &activity.handshakes);
        self.handshakes.spawn(async move {
            let _under_way = under_way;
            match tokio::time::timeout(limit, handshake::<L, C>(stream, address, &tls)).await {
                Ok(Ok((stream, caller))) => {
                    activity.accepted.fetch_add(1, Ordering::Relaxed);
                    let open = Counted::new(&activity, |activity| &activity.connections);
                    let membership = caller.enter(&tls);
                    Some(TlsConn { stream, caller, membership, _open: open, _slot: slot })
                }
                Ok(Err(error)) => {
                    activity.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(peer = %address, reason = %with_causes(&error), "TLS handshake refused");
                    None
                }
                Err(_) => {
                    activity.timed_out.fetch_add(1, Ordering::Relaxed);
                    let limit_ms = limit.as_millis();
                    tracing::warn!(peer = %address, limit_ms, "TLS handshake given up: it took too long");
                    None
                }
            }
        });
    }
}

impl<L: Listener, C: Caller> Stream for Acceptor<L, C> {
    type Item = io::Result<TlsConn<L::Stream, C>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            // Finished handshakes first: they make room for the next.
            while let Poll::Ready(Some(finished)) = this.handshakes.poll_join_next(cx) {
                match finished {
                    Ok(Some(conn)) => return Poll::Ready(Some(Ok(conn))),
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "a TLS handshake did not end"),
                }
            }
            if this.handshakes.len() >= this.limits.handshakes_max.max(1) {
                return Poll::Pending;
            }
            ready!(this.poll_accept(cx));
        }
    }
}

impl<L: Listener, C: Caller> fmt::Debug for Acceptor<L, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("limits", &self.limits)
            .field("activity", &self.activity)
            .finish_non_exhaustive()
    }
}

/// A connection with a verified peer, or with a stranger.
pub struct TlsConn<S = TcpStream, C = Peer> {
    stream: TlsStream<S>,
    caller: C,
    membership: Option<Membership>,
    _open: Counted,
    _slot: OwnedSemaphorePermit,
}

impl<S> TlsConn<S> {
    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> &Peer {
        &self.caller
    }
}

impl<S, C: fmt::Debug> fmt::Debug for TlsConn<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConn").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl<S, C: Caller> Connected for TlsConn<S, C> {
    type ConnectInfo = C;

    fn connect_info(&self) -> C {
        self.caller.clone()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, C: Caller> AsyncRead for TlsConn<S, C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 reads for as long as the connection is open, so that an end is noticed here at once.
        if self.membership.as_mut().is_some_and(|membership| membership.has_ended(cx)) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, C: Caller> AsyncWrite for TlsConn<S, C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Why a handshake was refused.
#[derive(Debug, thiserror::Error)]
#[doc(hidden)]
pub enum Refused {
    /// TLS itself.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// An earlier session would stand in for a check.
    #[error("the session was resumed, and resumption is off")]
    Resumed,
    /// Another protocol.
    #[error("the peer does not speak HTTP/2")]
    NoHttp2,
    /// No certificate where one is needed.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// A certificate without an identity.
    #[error("the peer's certificate names nobody")]
    Identity(#[source] IdentityError),
}

async fn handshake<L: Listener, C: Caller>(
    stream: L::Stream,
    address: SocketAddr,
    tls: &ServerTls,
) -> Result<(TlsStream<L::Stream>, C), Refused> {
    L::prepare(&stream).map_err(Refused::Tls)?;
    let stream =
        TlsAcceptor::from(C::config(tls)).accept(stream).await.map_err(legible).map_err(Refused::Tls)?;
    let (_, session) = stream.get_ref();
    if session.handshake_kind() == Some(HandshakeKind::Resumed) {
        return Err(Refused::Resumed);
    }
    if session.alpn_protocol() != Some(crate::ALPN_H2) {
        return Err(Refused::NoHttp2);
    }
    let caller = C::of(session, address)?;
    Ok((stream, caller))
}

/// Waits between attempts to accept, so that a lack of file descriptors does not spin.
#[derive(Default)]
struct Pause {
    last: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pause {
    fn begin(&mut self) -> Duration {
        let pause = next_pause(self.last);
        self.last = Some(pause);
        self.sleep = Some(Box::pin(tokio::time::sleep_until(Instant::now() + pause)));
        pause
    }

    fn reset(&mut self) {
        self.last = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
        Poll::Ready(())
    }
}

fn next_pause(last: Option<Duration>) -> Duration {
    last.map_or(ACCEPT_PAUSE_MIN, |last| (last * 2).min(ACCEPT_PAUSE_MAX))
}

/// Errors of `accept` that belong to the connection which would have been next, and not to the listener.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// An error and what it stems from, on one line.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Wrappers such as `io::Error` show what they wrap.
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pauses.push(next_pause(pauses.last().copied()));
        }
        assert_eq!(pauses[0], ACCEPT_PAUSE_MIN);
        assert_eq!(pauses[1], 2 * ACCEPT_PAUSE_MIN);
        assert_eq!(pauses[11], ACCEPT_PAUSE_MAX);
        assert!(pauses.is_sorted());
    }

    #[test]
    fn only_errors_of_one_connection_are_passed_over_without_a_pause() {
        assert!(concerns_one_connection(&io::ErrorKind::ConnectionAborted.into()));
        let too_many_open_files = io::Error::from_raw_os_error(24);
        assert!(!concerns_one_connection(&too_many_open_files));
    }
}
