//! What carries TLS: TCP, unless somebody says otherwise.
//!
//! Whatever it is, the handshake over it, its time limits and what is checked are the same.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::address::Address;

/// A connection before TLS.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Takes connections in, for an [`Acceptor`](crate::Acceptor).
pub trait Listener: Send + Unpin + 'static {
    /// What a connection is.
    type Stream: Connection + 'static;

    /// The next connection, and where it comes from.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Stream, SocketAddr)>>;

    /// The address that it listens on.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Prepares a connection for its handshake.
    fn prepare(stream: &Self::Stream) -> io::Result<()>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        Self::poll_accept(self, cx)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    fn prepare(stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)
    }
}

/// A connection that is being made.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// Makes connections.
pub trait Dial: Send + Sync {
    /// Connects to an address.
    fn dial(&self, address: &Address) -> Dialing;
}

/// How a client makes connections: over TCP by default. Clones do it the same way.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Dial>);

impl Dialer {
    /// Makes connections as `dial` does.
    #[must_use]
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self(dial)
    }

    pub(crate) fn dial(&self, address: &Address) -> Dialing {
        self.0.dial(address)
    }
}

impl Default for Dialer {
    fn default() -> Self {
        Self(Arc::new(Tcp))
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

struct Tcp;

impl Dial for Tcp {
    fn dial(&self, address: &Address) -> Dialing {
        let (host, port) = (address.host(), address.port());
        Box::pin(async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}
