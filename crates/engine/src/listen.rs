//! Listening sockets, and the thread that accepts from all of them and waits for the first byte of
//! each connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use export::{Auth, Notice, Peer, TokenBucket};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::handshaker::{Handshaker, Incoming, REPORTS};
use crate::inbox::{Inbox, Message};
use crate::link::ConnectionTable;
use crate::security::{
    Detected, ListenerConfig, NOT_LOCAL, PLAIN_REFUSED, Security, TOO_MANY, refuse,
};
use crate::{Adopt, Limits, MakeSession, Shared};

/// Length of the listen backlog.
const BACKLOG: i32 = 128;

/// Connections accepted from one socket before the next one is served.
const ACCEPT_BATCH: usize = 64;

/// How long no connections are accepted after descriptors or memory ran out. They wait in the
/// backlog.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Congestion control for directly connected peers, where permitted. BBR, the default of some
/// systems, spends a tenth of the CPU on pacing timers, without benefit on a link that is not
/// shared.
const LOCAL_CONGESTION_CONTROL: &str = "cubic";

/// How long sent data may remain unacknowledged before the connection is considered broken
/// (`TCP_USER_TIMEOUT`).
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Idle time before the first keep-alive probe, and interval between probes.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Time limit for the handshake, including the wait for the first byte.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handle of the accept thread.
#[derive(Debug)]
pub(crate) struct Acceptor {
    queue: Arc<HandoverQueue>,
    table: Arc<ConnectionTable>,
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

/// What was handed to the thread and not yet fetched: listening sockets, and connections that were
/// not accepted here.
#[derive(Default)]
struct HandoverQueue(Mutex<Handover>);

#[derive(Default)]
struct Handover {
    listeners: Vec<Listener>,
    connections: Vec<Incoming>,
}

struct Listener {
    socket: OwnedFd,
    config: Arc<ListenerConfig>,
    /// Whether the address is a loopback address, which only this machine may connect to.
    is_loopback: bool,
}

impl std::fmt::Debug for HandoverQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandoverQueue")
    }
}

impl HandoverQueue {
    fn with<T>(&self, act: impl FnOnce(&mut Handover) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Acceptor {
    /// Starts the thread.
    ///
    /// # Errors
    /// Fails if a thread or descriptor cannot be created.
    pub(crate) fn start(shared: Arc<Shared>, adopt: Adopt, limits: Limits) -> io::Result<Self> {
        let (queue, inbox) = (Arc::new(HandoverQueue::default()), Inbox::new()?);
        let table = shared.table.clone();
        let mut state = AcceptThread {
            queue: queue.clone(),
            inbox: inbox.clone(),
            handshaker: Handshaker::start(limits, shared.sink.clone(), adopt.clone())?,
            shared,
            adopt,
            listeners: Vec::new(),
            waiting: Vec::new(),
            refused: TokenBucket::full(REPORTS, Instant::now()),
        };
        let thread = std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || state.run())
            .map(Some)?;
        Ok(Self { queue, table, inbox, thread })
    }

    /// Accepts from `socket` from now on. Returns the bound address, or `None` for a Unix
    /// socket.
    ///
    /// # Errors
    /// Fails if it is not a listening TCP or Unix socket.
    pub(crate) fn accept(
        &self,
        socket: OwnedFd,
        security: Security,
        open: MakeSession,
    ) -> io::Result<Option<SocketAddr>> {
        let bound: Option<SocketAddr> = match is_tcp(&socket)? {
            true => Some(rustix::net::getsockname(&socket)?.try_into()?),
            false => None,
        };
        if !sockopt::socket_acceptconn(&socket)? {
            return Err(Errno::INVAL.into());
        }
        // An inherited socket may be blocking, and would stall this thread.
        rustix::io::ioctl_fionbio(&socket, true)?;
        let config = Arc::new(ListenerConfig { security, open });
        let is_loopback = bound.is_some_and(|at| at.ip().to_canonical().is_loopback());
        self.notify(|queue| queue.listeners.push(Listener { socket, config, is_loopback }));
        Ok(bound)
    }

    /// Adds an existing connection.
    ///
    /// # Errors
    /// Fails if it is not a connected TCP or Unix stream, or if there are too many connections.
    pub(crate) fn adopt(
        &self,
        socket: OwnedFd,
        security: Security,
        open: MakeSession,
    ) -> io::Result<()> {
        let peer = peer_of(&socket, security.auth)?;
        let is_loopback = |local: SocketAddr| local.ip().to_canonical().is_loopback();
        if peer.local().is_some_and(is_loopback) && !is_local(&socket, &peer) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, NOT_LOCAL));
        }
        // An inherited socket may be non-blocking, and then io_uring would not wait for it.
        rustix::io::ioctl_fionbio(&socket, false)?;
        tune(&socket, &peer);
        let link = self.table.insert(socket, peer).ok_or_else(too_many)?;
        let config = Arc::new(ListenerConfig { security, open });
        let incoming = Incoming { link, config, until: Instant::now() + HANDSHAKE_TIMEOUT };
        self.notify(|queue| queue.connections.push(incoming));
        Ok(())
    }

    /// Hands something to the thread.
    fn notify(&self, add: impl FnOnce(&mut Handover)) {
        self.queue.with(add);
        // Only wakes the thread; what is handed over is in the list.
        self.inbox.push(Message::Notice(Notice::StateChanged));
    }

    /// Closes the listening sockets and ends the thread.
    pub(crate) fn stop(&mut self) {
        self.inbox.push(Message::Quit);
        if let Some(thread) = self.thread.take() {
            // The panic of a thread has already been printed.
            drop(thread.join());
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns a socket that listens on `address`, for [`Engine::accept`](crate::Engine::accept).
///
/// An IPv6 socket does not accept IPv4. With an `interface`, only connections over that interface
/// are accepted: otherwise Linux accepts packets for any local address on every interface, even for
/// a link-local IPv4 address. A socket at a loopback address is bound to the loopback interface, if
/// the system permits it; [`Engine::accept`](crate::Engine::accept) checks each connection as well.
///
/// # Errors
/// Fails if the address is in use, does not belong to this machine, or is not permitted.
pub fn bind(address: SocketAddr, interface: Option<&str>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if let Some(interface) = interface {
        socket2::SockRef::from(&socket).bind_device(Some(interface.as_bytes()))?;
    } else if address.ip().to_canonical().is_loopback() {
        // Requires a capability before Linux 5.7.
        let _ = socket2::SockRef::from(&socket).bind_device(Some(LOOPBACK.as_bytes()));
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// State of the thread.
struct AcceptThread {
    queue: Arc<HandoverQueue>,
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    adopt: Adopt,
    handshaker: Handshaker,
    listeners: Vec<Listener>,
    /// Connections without a first byte yet, the oldest first.
    waiting: Vec<Incoming>,
    /// Rate limit on reports of refused connections.
    refused: TokenBucket,
}

/// What is ready after a wait.
#[derive(Default)]
struct Ready {
    listeners: Vec<usize>,
    readable: Vec<bool>,
}

impl AcceptThread {
    fn run(&mut self) {
        let mut paused = false;
        loop {
            let ready = self.wait(paused);
            self.fence_off();
            if self.inbox.has_messages() && self.read_inbox() {
                return;
            }
            self.dispatch_waiting(&ready.readable);
            paused = ready.listeners.into_iter().any(|at| self.accept_round(at).is_err());
        }
    }

    /// Waits for something to accept or to read. Returns which listeners have a connection and
    /// which waiting connections are readable. With `paused`, listeners are not polled.
    fn wait(&self, paused: bool) -> Ready {
        let polled = if paused { &[] } else { &self.listeners[..] };
        let others = [self.inbox.as_fd(), self.shared.table.as_fd()];
        let mut fds: Vec<_> = others.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).into();
        fds.extend(polled.iter().map(|listener| PollFd::new(&listener.socket, PollFlags::IN)));
        let waiting = self.waiting.iter().map(|incoming| incoming.link.as_fd());
        fds.extend(waiting.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if rustix::event::poll(&mut fds, self.timeout(paused).as_ref()).is_err() {
            return Ready::default();
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let (before, readable) = fds.split_at(others.len() + polled.len());
        let listeners = before.iter().skip(others.len()).enumerate().filter(|(_, fd)| is_ready(fd));
        Ready {
            listeners: listeners.map(|(at, _)| at).collect(),
            readable: readable.iter().map(is_ready).collect(),
        }
    }

    /// Revokes the right to write of sessions whose peers have closed their sending side.
    fn fence_off(&self) {
        for topic in self.shared.table.fence_off() {
            self.shared.inboxes.changed(&topic, None);
        }
    }

    fn timeout(&self, paused: bool) -> Option<Timespec> {
        let oldest = self.waiting.first().map(|incoming| incoming.until);
        let left = oldest.map(|until| until.saturating_duration_since(Instant::now()));
        let pause = paused.then_some(ACCEPT_BACKOFF);
        left.into_iter().chain(pause).min().and_then(|timeout| Timespec::try_from(timeout).ok())
    }

    /// Returns whether to end the thread.
    fn read_inbox(&mut self) -> bool {
        self.inbox.clear_wake();
        let quit = self.inbox.take().iter().any(|message| matches!(message, Message::Quit));
        let Handover { mut listeners, connections } = self.queue.with(std::mem::take);
        self.listeners.append(&mut listeners);
        connections.into_iter().for_each(|incoming| self.dispatch(incoming));
        quit
    }

    /// Dispatches the connections that are readable, and drops those that have timed out.
    fn dispatch_waiting(&mut self, readable: &[bool]) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        let all = std::mem::take(&mut self.waiting);
        for (incoming, readable) in
            all.into_iter().zip(readable.iter().chain(std::iter::repeat(&false)))
        {
            match readable {
                true => self.dispatch(incoming),
                false if incoming.until > now => self.waiting.push(incoming),
                false => {}
            }
        }
    }

    /// Accepts what is in the backlog.
    ///
    /// # Errors
    /// Fails if descriptors or memory have run out.
    fn accept_round(&mut self, at: usize) -> Result<(), Errno> {
        for _ in 0..ACCEPT_BATCH {
            let Some(listener) = self.listeners.get(at) else { break };
            match rustix::net::accept_with(&listener.socket, SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let is_loopback = listener.is_loopback;
                    self.admit(socket, listener.config.clone(), is_loopback);
                }
                Err(Errno::AGAIN) => break,
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    return Err(errno);
                }
                // The peer has already closed the connection, or a network error is pending on it.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Adds a connection to the table, if the limits permit it.
    fn admit(&mut self, socket: OwnedFd, config: Arc<ListenerConfig>, is_loopback: bool) {
        let Ok(peer) = peer_of(&socket, config.security.auth) else { return };
        if is_loopback && !is_local(&socket, &peer) {
            if self.refused.take(1, Instant::now()) {
                refuse(&self.shared.sink, peer, NOT_LOCAL);
            }
            return;
        }
        tune(&socket, &peer);
        match self.shared.table.insert(socket, peer.clone()) {
            Some(link) => {
                self.dispatch(Incoming { link, config, until: Instant::now() + HANDSHAKE_TIMEOUT })
            }
            None if self.refused.take(1, Instant::now()) => {
                refuse(&self.shared.sink, peer, TOO_MANY)
            }
            None => {}
        }
    }

    /// Dispatches a connection by its first byte, or keeps it until there is one.
    fn dispatch(&mut self, incoming: Incoming) {
        // The host may have closed an earlier connection before this one. That one must not write
        // any more.
        self.fence_off();
        match incoming.config.detect(&incoming.link) {
            Detected::Unknown => self.waiting.push(incoming),
            Detected::Plain => (self.adopt)(incoming.link, incoming.config.open.clone()),
            Detected::ServerFirst | Detected::Tls => self.handshaker.admit(incoming),
            Detected::Refused if self.refused.take(1, Instant::now()) => {
                refuse(&self.shared.sink, incoming.link.peer(), PLAIN_REFUSED);
            }
            Detected::Refused | Detected::Closed => {}
        }
    }
}

/// Returns whether the peer is on this machine or on the same link.
fn is_on_link(peer: IpAddr) -> bool {
    match peer.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

/// Name of the loopback interface.
const LOOPBACK: &str = "lo";

/// Returns whether a connection to a loopback address comes from this machine. With
/// `net.ipv4.conf.IF.route_localnet` Linux accepts packets for 127.0.0.0/8 from other interfaces as
/// well. Such a connection has neither a socket bound to the loopback interface nor a loopback
/// address at the other end, to which packets are sent over the loopback interface only.
fn is_local(socket: &OwnedFd, peer: &Peer) -> bool {
    let is_loopback = |remote: SocketAddr| remote.ip().to_canonical().is_loopback();
    peer.remote().is_none_or(is_loopback) || is_bound_to_loopback(socket)
}

fn is_bound_to_loopback(socket: &OwnedFd) -> bool {
    let device = socket2::SockRef::from(socket).device();
    device.is_ok_and(|device| device.is_some_and(|name| name == LOOPBACK.as_bytes()))
}

/// Returns whether it is a TCP socket, and not a Unix stream socket.
///
/// # Errors
/// Fails if it is neither.
fn is_tcp(socket: &OwnedFd) -> Result<bool, Errno> {
    if sockopt::socket_type(socket)? != SocketType::STREAM {
        return Err(Errno::PROTOTYPE);
    }
    match sockopt::socket_domain(socket)? {
        AddressFamily::INET | AddressFamily::INET6 => Ok(true),
        AddressFamily::UNIX => Ok(false),
        _ => Err(Errno::AFNOSUPPORT),
    }
}

fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "too many connections")
}

fn peer_of(socket: &OwnedFd, auth: Auth) -> Result<Peer, Errno> {
    let is_tcp = is_tcp(socket)?;
    let remote = rustix::net::getpeername(socket)?;
    if !is_tcp {
        return Ok(Peer::unix(auth));
    }
    let local = rustix::net::getsockname(socket)?;
    let remote = remote.ok_or(Errno::NOTCONN)?;
    Ok(Peer::ip(remote.try_into()?, local.try_into()?, auth))
}

/// Sets socket options for storage traffic. Failures are ignored: they only cost performance.
fn tune(socket: &OwnedFd, peer: &Peer) {
    let Some(remote) = peer.remote() else { return };
    let _ = tune_tcp(socket);
    if is_on_link(remote.ip()) {
        let _ = sockopt::set_tcp_congestion(socket, LOCAL_CONGESTION_CONTROL);
    }
}

fn tune_tcp(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE.0)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE.1)?;
    let millis = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, millis)
}

#[cfg(test)]
mod test {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn bind_fails_on_a_used_port_and_families_are_separate() {
        let one = bind((Ipv4Addr::UNSPECIFIED, 0).into(), None).unwrap();
        let bound: SocketAddr = rustix::net::getsockname(&one).unwrap().try_into().unwrap();
        let error = bind(bound, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        bind((Ipv6Addr::UNSPECIFIED, bound.port()).into(), None).unwrap();
    }
}
