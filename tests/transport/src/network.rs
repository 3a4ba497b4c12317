//! TCP as turmoil has it, for both ends of TLS.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use muster_mtls::{Address, Connection, Dial, Dialer, Dialing, Listener};
use turmoil::net::{TcpListener, TcpStream};

/// Where the coordinator listens.
pub(crate) const PORT: u16 = 7443;

/// Connections to whatever turmoil knows by the address's name.
pub(crate) fn dialer() -> Dialer {
    Dialer::new(Arc::new(Simulated))
}

/// Listens on the host that this runs on.
pub(crate) async fn listen() -> io::Result<SimulatedListener> {
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?);
    Ok(SimulatedListener { listener, accepting: None })
}

struct Simulated;

impl Dial for Simulated {
    fn dial(&self, address: &Address) -> Dialing {
        let (host, port) = (address.host(), address.port());
        Box::pin(async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

type Accepting = Pin<Box<dyn Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send>>;

/// A listener that can be polled.
pub(crate) struct SimulatedListener {
    listener: Arc<TcpListener>,
    accepting: Option<Accepting>,
}

impl Listener for SimulatedListener {
    type Stream = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let accepting = self.accepting.get_or_insert_with(|| {
            let listener = Arc::clone(&self.listener);
            Box::pin(async move { listener.accept().await })
        });
        let accepted = ready!(accepting.as_mut().poll(cx));
        self.accepting = None;
        Poll::Ready(accepted)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn prepare(_: &TcpStream) -> io::Result<()> {
        Ok(())
    }
}
