//! The guard on its socket.

mod connections;
mod watchers;

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Guard;
use crate::asker;
use crate::config::Settings;
use crate::error::{GuardError, RefusalCode};
use crate::fleets::{Events, Fleets};
use crate::frame::{self, FrameError, Patience};
use crate::log::log;
use crate::manager::Manager;
use crate::process;
use crate::protocol::{FleetState, Hello, PROTOCOL, Reply, ReplyFrame, Request, RequestFrame};
use crate::shutdown::{Shutdown, ShutdownTrigger};
use crate::socket::{self, Access};
use connections::{Connection, Connections};
use watchers::Watchers;

/// Between two requests on one connection, and within one.
const PATIENCE: Patience = Patience { idle: Some(Duration::from_secs(30)), frame: Duration::from_secs(5) };
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// How long open connections may take to finish when the guard goes down.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(2);

/// After an `accept` that failed (no descriptors, no memory), so that the failure does not become a busy loop.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

const DETAIL_BYTES_MAX: usize = 8 * 1024;

/// Runs a guard until it is asked to stop. On return no supervised service is left; permits and links are as they were.
pub fn run(settings: &Settings, shutdown: &Shutdown) -> Result<(), GuardError> {
    Server::bind(settings)?.serve(shutdown, Manager::none())
}

/// As [`run`], and tells the service manager that started this process how it goes.
pub(crate) fn run_managed(settings: &Settings, shutdown: &Shutdown) -> Result<(), GuardError> {
    Server::bind(settings)?.serve(shutdown, Manager::of_this_process())
}

/// Runs a guard on a thread of this process; it answers from the moment this returns. Supervised services need an
/// `exec_shim` in the configuration, as this process is not the guard's program.
pub fn spawn(settings: &Settings) -> Result<RunningGuard, GuardError> {
    let server = Server::bind(settings)?;
    let socket = server.socket.clone();
    let (trigger, shutdown) = Shutdown::pair()?;
    let serve = move || server.serve(&shutdown, Manager::none());
    let thread = thread::Builder::new()
        .name("guard".to_owned())
        .spawn(serve)
        .map_err(GuardError::io("start a thread for", &socket))?;
    Ok(RunningGuard { trigger, thread })
}

/// A guard on a thread of this process. Dropping it asks the guard to stop, [`RunningGuard::stop`] also waits for it.
#[derive(Debug)]
pub struct RunningGuard {
    trigger: ShutdownTrigger,
    thread: JoinHandle<Result<(), GuardError>>,
}

impl RunningGuard {
    /// Stops the guard and waits until it has.
    pub fn stop(self) -> Result<(), GuardError> {
        drop(self.trigger);
        self.thread.join().expect("the guard's thread does not panic")
    }
}

struct Server {
    listener: UnixListener,
    socket: PathBuf,
    desk: Arc<Desk>,
    connections: Connections,
}

/// What a connection needs to answer.
struct Desk {
    fleets: Fleets,
    watchers: Arc<Watchers>,
    own_uid: u32,
    allowed_uids: Vec<u32>,
}

enum Woken {
    Connection,
    Shutdown,
}

impl Server {
    /// First the lock and the recovery, then the socket: whoever reaches the socket finds fleets in order.
    fn bind(settings: &Settings) -> Result<Self, GuardError> {
        let watchers = Arc::new(Watchers::default());
        let publisher = Arc::clone(&watchers);
        let events: Events = Arc::new(move |event| publisher.publish(&event));
        let fleets = Fleets::open(settings, process::boot_id()?, &events)?;
        let allowed_uids = settings.allowed_uids.clone();
        let access = if allowed_uids.is_empty() { Access::Owner } else { Access::ByPeer };
        let listener = socket::bind(&settings.socket, access)?;
        let own_uid = rustix::process::geteuid().as_raw();
        let desk = Arc::new(Desk { fleets, watchers, own_uid, allowed_uids });
        Ok(Self { listener, socket: settings.socket.clone(), desk, connections: Connections::default() })
    }

    fn serve(self, shutdown: &Shutdown, mut manager: Manager) -> Result<(), GuardError> {
        log!("listening on {}", self.socket.display());
        manager.ready(&format!("answers on {} for {}", self.socket.display(), self.desk.fleets.names()));
        self.desk.fleets.is_ready();
        while let Woken::Connection = self.wait(shutdown, &mut manager)? {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log!("cannot accept: {error}");
                    let mut fds = [PollFd::new(shutdown.wake(), PollFlags::IN)];
                    let _ = poll(&mut fds, Some(&ACCEPT_PAUSE));
                }
            }
        }
        log!("shutting down");
        manager.stopping();
        drop(self.listener);
        let stopped = self.desk.fleets.shut_down();
        self.desk.watchers.dismiss();
        self.connections.finish(FAREWELL_PATIENCE);
        let _ = fs::remove_file(&self.socket);
        stopped
    }

    fn wait(&self, shutdown: &Shutdown, manager: &mut Manager) -> Result<Woken, GuardError> {
        let mut fds =
            [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(shutdown.wake(), PollFlags::IN)];
        loop {
            manager.beat(|| self.desk.fleets.pulse());
            match poll(&mut fds, manager.patience().as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(GuardError::io("wait for", &self.socket)(error.into())),
            }
        }
        Ok(if fds[1].revents().is_empty() { Woken::Connection } else { Woken::Shutdown })
    }

    /// Gives the connection a thread, or says why not.
    fn welcome(&self, stream: UnixStream) {
        if stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_write_timeout(Some(WRITE_PATIENCE)))
            .is_err()
        {
            return;
        }
        let peer = match check_peer(&stream, self.desk.own_uid, &self.desk.allowed_uids) {
            Ok(pid) => pid,
            Err(detail) => {
                log!("refused a connection: {detail}");
                refuse(&stream, 0, RefusalCode::ForeignPeer, detail);
                return;
            }
        };
        let Some(connection) = self.connections.admit(stream.try_clone().ok(), peer) else {
            refuse(&stream, 0, RefusalCode::Busy, "too many connections".to_owned());
            return;
        };
        let desk = Arc::clone(&self.desk);
        let converse = move || desk.converse(&stream, connection);
        if let Err(error) = thread::Builder::new().name("guard connection".to_owned()).spawn(converse) {
            log!("cannot start a thread: {error}");
        }
    }
}

impl Desk {
    /// Answers until the peer hangs up, stays silent, or breaks the protocol.
    fn converse(&self, stream: &UnixStream, connection: Connection) {
        loop {
            let frame = match frame::read::<RequestFrame>(stream, PATIENCE) {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(FrameError::Io(_)) => break,
                Err(error @ (FrameError::Length(_) | FrameError::Json(_))) => {
                    refuse(stream, 0, RefusalCode::BadRequest, error.to_string());
                    break;
                }
            };
            let id = frame.id;
            let reply = match parse(frame) {
                Ok(Request::Watch {}) => {
                    self.watch(stream, id);
                    break;
                }
                Ok(request) => asker::on_behalf_of(stream, || self.answer(&request)),
                Err((code, detail)) => Reply::Refused { code, detail },
            };
            if frame::write(stream, &ReplyFrame { id, reply }).is_err() {
                break;
            }
        }
        drop(connection);
    }

    fn answer(&self, request: &Request) -> Reply {
        let fleets = &self.fleets;
        let (what, state) = match request {
            Request::Hello {} => return Reply::Hello(self.hello()),
            Request::Watch {} => return Reply::Watching,
            Request::Status { fleet } => return reply_of(fleets.status(fleet)),
            // Asked every few seconds while armed: only a refusal is worth a line.
            Request::Renew { fleet, k, deadline_boot_ms } => {
                let renewed = fleets.renew(fleet, *k, *deadline_boot_ms);
                if let Err(error) = &renewed {
                    log!("renew {fleet}, rollout {k}: {}", error.chain());
                }
                return reply_of(renewed);
            }
            Request::Drill { fleet, runs } => {
                return match fleets.drill(fleet, *runs) {
                    Ok(drill) => Reply::Drilled(drill),
                    Err(error) => refusal_of(&error),
                };
            }
            Request::Doubt { fleet, epoch, reason } => {
                (format!("doubt {fleet}, epoch {epoch}, {reason}"), fleets.doubt(fleet, *epoch, reason))
            }
            Request::Fence { fleet, epoch, reason } => {
                (format!("fence {fleet}, epoch {epoch}, {reason}"), fleets.fence(fleet, *epoch, reason))
            }
            Request::Trust { fleet, epoch } => {
                (format!("trust {fleet}, epoch {epoch}"), fleets.trust(fleet, *epoch))
            }
            Request::Running { fleet } => {
                return match fleets.running(fleet) {
                    Ok(running) => Reply::Running(running.map(Box::new)),
                    Err(error) => refusal_of(&error),
                };
            }
            Request::Close { fleet, drain_ms } => {
                (format!("close {fleet}"), fleets.close(fleet, drain_ms.map(Duration::from_millis)))
            }
            Request::Open { fleet, epoch, digest } => {
                (format!("open {fleet}, epoch {epoch}, {digest}"), fleets.open(fleet, *epoch, *digest))
            }
            Request::Arm { fleet, arm } => {
                (format!("arm {fleet}, rollout {}", arm.k), fleets.arm(fleet, *arm))
            }
            Request::Disarm { fleet, k } => {
                (format!("disarm {fleet}, rollout {k}"), fleets.disarm(fleet, *k))
            }
            Request::Decide { fleet, k, at_boot_ms, to } => {
                let decided = fleets.decide(fleet, *k, *at_boot_ms, *to);
                (format!("decide {fleet}, rollout {k}, {}", to.digest), decided)
            }
            Request::Quiesce { fleet } => (format!("quiesce {fleet}"), fleets.quiesce(fleet)),
            Request::Unquiesce { fleet } => (format!("unquiesce {fleet}"), fleets.unquiesce(fleet)),
            Request::Rehearse { fleet, digest } => {
                (format!("rehearse {fleet}, {digest}"), fleets.rehearse(fleet, *digest))
            }
            Request::Halt { fleet, reason } => {
                (format!("halt {fleet} ({reason})"), fleets.halt(fleet, reason))
            }
            Request::Resume { fleet, halt } => {
                (format!("resume {fleet} after halt {halt}"), fleets.resume(fleet, *halt))
            }
        };
        // Every change that was asked for leaves a line in the log.
        match &state {
            Ok(_) => log!("{what}: done"),
            Err(error) => log!("{what}: {}", error.chain()),
        }
        reply_of(state)
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            pid: std::process::id(),
            boot_id: self.fleets.boot_id().clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Passes events on until either side ends it. A watcher asks nothing more: anything it sends ends the watch too.
    fn watch(&self, stream: &UnixStream, id: u64) {
        let (subscription, events) = self.watchers.subscribe();
        if frame::write(stream, &ReplyFrame { id, reply: Reply::Watching }).is_err() {
            self.watchers.unsubscribe(subscription);
            return;
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                for event in events {
                    if frame::write(stream, &ReplyFrame { id, reply: Reply::Event(event) }).is_err() {
                        break;
                    }
                }
                // Ends the reading below, where it has not ended already.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            });
            let patience = Patience { idle: None, ..PATIENCE };
            let _ = frame::read::<serde::de::IgnoredAny>(stream, patience);
            self.watchers.unsubscribe(subscription);
        });
    }
}

fn parse(frame: RequestFrame) -> Result<Request, (RefusalCode, String)> {
    if frame.protocol != PROTOCOL {
        let detail = format!("this guard speaks protocol {PROTOCOL}, not {}", frame.protocol);
        return Err((RefusalCode::UnsupportedProtocol, detail));
    }
    serde_json::from_value(frame.request).map_err(|e| (RefusalCode::BadRequest, bounded(e.to_string())))
}

fn reply_of(state: Result<FleetState, GuardError>) -> Reply {
    match state {
        Ok(state) => Reply::State(Box::new(state)),
        Err(error) => refusal_of(&error),
    }
}

fn refusal_of(error: &GuardError) -> Reply {
    let code = error.code().unwrap_or(RefusalCode::Setup);
    Reply::Refused { code, detail: bounded(error.chain()) }
}

fn refuse(stream: &UnixStream, id: u64, code: RefusalCode, detail: String) {
    // The connection ends in any case; the reason is a courtesy.
    let _ = frame::write(stream, &ReplyFrame { id, reply: Reply::Refused { code, detail: bounded(detail) } });
}

/// Cut at a character; control characters take up to six bytes in JSON, which a frame has room for.
fn bounded(mut detail: String) -> String {
    if detail.len() > DETAIL_BYTES_MAX {
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        detail.push('…');
    }
    detail
}

/// The kernel says who connected; answers its process.
fn check_peer(stream: &UnixStream, own_uid: u32, allowed_uids: &[u32]) -> Result<i32, String> {
    let peer = rustix::net::sockopt::socket_peercred(stream).map_err(|e| format!("unknown peer: {e}"))?;
    let uid = peer.uid.as_raw();
    if may_ask(uid, own_uid, allowed_uids) {
        Ok(peer.pid.as_raw_pid())
    } else {
        Err(format!("user {uid} may not ask this guard"))
    }
}

/// The guard's own user, root, who could do all of it without asking, and whom the configuration names.
fn may_ask(peer_uid: u32, own_uid: u32, allowed_uids: &[u32]) -> bool {
    peer_uid == own_uid || peer_uid == 0 || allowed_uids.contains(&peer_uid)
}

#[cfg(test)]
mod tests;
