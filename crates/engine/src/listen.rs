//! Listening sockets, and the one thread that accepts from all of them and waits for each peer's first byte. It knows no
//! driver but by the one call that gives a connection away.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use export::{Auth, Notice, Peer};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::inbox::{Inbox, Message};
use crate::link::{ConnectionTable, Link};
use crate::security::{
    Detected, ListenerConfig, NOT_LOCAL, PLAIN_REFUSED, Security, TOO_MANY, refuse,
};
use crate::tls::{Handshaker, Incoming, ReportLimit};
use crate::{Limits, MakeSession, Shared};

/// Connections that the kernel holds for us while we accept others.
const BACKLOG: i32 = 128;

/// Connections accepted of one socket before the next has its turn.
const ROUND: usize = 64;

/// How long nothing is accepted when there is no descriptor left for it: the connection waits in the backlog meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// How a connection to the next machine finds its pace, where the system allows it: by loss, not by a timer. BBR, which
/// some systems prefer, spends a tenth of the processor on timers for a link that nobody else is on.
const UNPACED: &str = "cubic";

/// How long sent bytes may stay unacknowledged before the connection counts as broken.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// After how much silence the kernel asks whether the peer is still there, and how long it waits between asking again.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// How long a peer may take until it has shown its key; the first byte is part of that.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes an accepted connection over.
pub(crate) type Adopt = Arc<dyn Fn(Arc<Link>, MakeSession) + Send + Sync>;

/// The thread, and the one for handshakes.
#[derive(Debug)]
pub(crate) struct Acceptor {
    fresh: Arc<Fresh>,
    table: Arc<ConnectionTable>,
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread has not seen: listening sockets, and peers that came in another way.
#[derive(Default)]
struct Fresh(Mutex<Arrivals>);

#[derive(Default)]
struct Arrivals {
    listeners: Vec<Listener>,
    newcomers: Vec<Incoming>,
}

struct Listener {
    socket: OwnedFd,
    config: Arc<ListenerConfig>,
    /// Whether it is at a loopback address, where only this machine itself may connect.
    is_loopback: bool,
}

impl std::fmt::Debug for Fresh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fresh")
    }
}

impl Fresh {
    fn with<T>(&self, act: impl FnOnce(&mut Arrivals) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Acceptor {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is no thread or no descriptor to be had.
    pub(crate) fn start(shared: Arc<Shared>, adopt: Adopt, limits: Limits) -> io::Result<Self> {
        let (fresh, inbox) = (Arc::new(Fresh::default()), Inbox::new()?);
        let table = shared.table.clone();
        let mut loop_of = Loop {
            fresh: fresh.clone(),
            inbox: inbox.clone(),
            handshaker: Handshaker::start(limits, shared.sink.clone(), adopt.clone())?,
            shared,
            adopt,
            listeners: Vec::new(),
            silent: Vec::new(),
            refused: ReportLimit::default(),
        };
        let thread = std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || loop_of.run())
            .map(Some)?;
        Ok(Self { fresh, table, inbox, thread })
    }

    /// Accepts from `socket` from now on. Returns the address with the port that it has; [`Peer::LOCAL`] for a Unix socket.
    ///
    /// # Errors
    /// It is no such socket.
    pub(crate) fn accept(
        &self,
        socket: OwnedFd,
        security: Security,
        open: MakeSession,
    ) -> io::Result<SocketAddr> {
        let bound = match Kind::of(&socket)? {
            Kind::Tcp => rustix::net::getsockname(&socket)?.try_into()?,
            Kind::Unix => Peer::LOCAL,
        };
        if !sockopt::socket_acceptconn(&socket)? {
            return Err(Errno::INVAL.into());
        }
        // One that was made by somebody else may block, and this thread has others to listen to.
        rustix::io::ioctl_fionbio(&socket, true)?;
        let config = Arc::new(ListenerConfig { security, open });
        let is_loopback = bound.ip().to_canonical().is_loopback();
        self.notify(|fresh| fresh.listeners.push(Listener { socket, config, is_loopback }));
        Ok(bound)
    }

    /// Takes in a connection that is there already.
    ///
    /// # Errors
    /// It is none, or there is no room for it.
    pub(crate) fn adopt(
        &self,
        socket: OwnedFd,
        security: Security,
        open: MakeSession,
    ) -> io::Result<()> {
        let peer = peer_of(&socket, security.auth)?;
        if peer.local.ip().to_canonical().is_loopback() && !is_local(&socket, &peer) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, NOT_LOCAL));
        }
        // One that was made by somebody else may not block, and then could not be waited for in a ring.
        rustix::io::ioctl_fionbio(&socket, false)?;
        tune(&socket, &peer);
        let link = self.table.enter(socket, peer).ok_or_else(full)?;
        let config = Arc::new(ListenerConfig { security, open });
        let incoming = Incoming { link, config, until: Instant::now() + PATIENCE };
        self.notify(|fresh| fresh.newcomers.push(incoming));
        Ok(())
    }

    /// Tells the thread of something new.
    fn notify(&self, add: impl FnOnce(&mut Arrivals)) {
        self.fresh.with(add);
        // Wakes the thread; what it is told is in the list.
        self.inbox.push(Message::Notice(Notice::StateChanged));
    }

    /// Closes the listening sockets and ends the thread.
    pub(crate) fn stop(&mut self) {
        self.inbox.push(Message::Quit);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A socket that listens on `address`, for [`Engine::accept`](crate::Engine::accept). An IPv6 address is never also an
/// IPv4 one. With an `interface`, only what comes in there is accepted: Linux takes a packet for any of its addresses on
/// every interface, also for a link-local IPv4 one. A loopback address is bound to the loopback interface, as far as the
/// system allows it; [`Engine::accept`](crate::Engine::accept) checks each connection besides.
///
/// # Errors
/// The address is taken, not one of this machine, or not allowed.
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
        // Before Linux 5.7 this takes a capability.
        let _ = socket2::SockRef::from(&socket).bind_device(Some(LOOPBACK.as_bytes()));
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// What the thread knows.
struct Loop {
    fresh: Arc<Fresh>,
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    adopt: Adopt,
    handshaker: Handshaker,
    listeners: Vec<Listener>,
    /// Peers that have said nothing yet, the oldest first.
    silent: Vec<Incoming>,
    /// How often it was reported lately that somebody was refused.
    refused: ReportLimit,
}

/// What there is to look at.
#[derive(Default)]
struct Ready {
    listeners: Vec<usize>,
    spoke: Vec<bool>,
}

impl Loop {
    fn run(&mut self) {
        let mut paused = false;
        loop {
            let ready = self.wait(paused);
            self.fence_off();
            if self.inbox.has_messages() && self.read_inbox() {
                return;
            }
            self.hear(&ready.spoke);
            paused = ready.listeners.into_iter().any(|at| self.accept_round(at).is_err());
        }
    }

    /// Waits until there is something to accept or to read. Returns which listeners have a connection, and which silent
    /// peers something to say; a paused wait looks at no listener.
    fn wait(&self, paused: bool) -> Ready {
        let heard = if paused { &[] } else { &self.listeners[..] };
        let others = [self.inbox.as_fd(), self.shared.table.as_fd()];
        let mut fds: Vec<_> = others.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).into();
        fds.extend(heard.iter().map(|listener| PollFd::new(&listener.socket, PollFlags::IN)));
        let silent = self.silent.iter().map(|incoming| incoming.link.as_fd());
        fds.extend(silent.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if rustix::event::poll(&mut fds, self.timeout(paused).as_ref()).is_err() {
            return Ready::default();
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let (before, spoke) = fds.split_at(others.len() + heard.len());
        let listeners = before.iter().skip(others.len()).enumerate().filter(|(_, fd)| is_ready(fd));
        Ready {
            listeners: listeners.map(|(at, _)| at).collect(),
            spoke: spoke.iter().map(is_ready).collect(),
        }
    }

    /// Ends the right to write of the sessions whose peers have closed their sending sides.
    fn fence_off(&self) {
        if self.shared.table.fence_off() {
            self.shared.inboxes.notify(Notice::StateChanged, None);
        }
    }

    fn timeout(&self, paused: bool) -> Option<Timespec> {
        let oldest = self.silent.first().map(|incoming| incoming.until);
        let left = oldest.map(|until| until.saturating_duration_since(Instant::now()));
        let pause = paused.then_some(PAUSE);
        left.into_iter().chain(pause).min().and_then(|timeout| Timespec::try_from(timeout).ok())
    }

    /// Tells whether to end.
    fn read_inbox(&mut self) -> bool {
        self.inbox.clear_wake();
        let quit = self.inbox.take().iter().any(|message| matches!(message, Message::Quit));
        let Arrivals { mut listeners, newcomers } = self.fresh.with(std::mem::take);
        self.listeners.append(&mut listeners);
        newcomers.into_iter().for_each(|incoming| self.greet(incoming));
        quit
    }

    /// Lets in who has spoken now, and gives up who has taken too long.
    fn hear(&mut self, spoke: &[bool]) {
        if self.silent.is_empty() {
            return;
        }
        let now = Instant::now();
        let all = std::mem::take(&mut self.silent);
        for (incoming, spoke) in all.into_iter().zip(spoke.iter().chain(std::iter::repeat(&false)))
        {
            match spoke {
                true => self.greet(incoming),
                false if incoming.until > now => self.silent.push(incoming),
                false => {}
            }
        }
    }

    /// Accepts what there is.
    ///
    /// # Errors
    /// There is nothing left to accept it with.
    fn accept_round(&mut self, at: usize) -> Result<(), Errno> {
        for _ in 0..ROUND {
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
                // The peer has gone meanwhile, or the network said something about it.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes a connection in, if there is room and the peer is still there.
    fn admit(&mut self, socket: OwnedFd, config: Arc<ListenerConfig>, is_loopback: bool) {
        let Ok(peer) = peer_of(&socket, config.security.auth) else { return };
        if is_loopback && !is_local(&socket, &peer) {
            if self.refused.allows(Instant::now()) {
                refuse(&self.shared.sink, peer, NOT_LOCAL);
            }
            return;
        }
        tune(&socket, &peer);
        match self.shared.table.enter(socket, peer.clone()) {
            Some(link) => self.greet(Incoming { link, config, until: Instant::now() + PATIENCE }),
            None if self.refused.allows(Instant::now()) => {
                refuse(&self.shared.sink, peer, TOO_MANY)
            }
            None => {}
        }
    }

    /// Shows a peer the way that its first byte asks for, or has it wait until it says one.
    fn greet(&mut self, incoming: Incoming) {
        // Its host may have closed another connection before this one, which then must not write any more.
        self.fence_off();
        match incoming.config.detect(&incoming.link) {
            Detected::Unknown => self.silent.push(incoming),
            Detected::Plain => (self.adopt)(incoming.link, incoming.config.open.clone()),
            Detected::ServerFirst | Detected::Tls => self.handshaker.admit(incoming),
            Detected::Refused if self.refused.allows(Instant::now()) => {
                refuse(&self.shared.sink, incoming.link.peer(), PLAIN_REFUSED);
            }
            Detected::Refused | Detected::Closed => {}
        }
    }
}

/// Whether nothing lies between the peer and us but a cable, or not even that.
fn is_near(peer: IpAddr) -> bool {
    match peer.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

/// The loopback interface.
const LOOPBACK: &str = "lo";

/// Whether a connection to a loopback address was made on this machine. With `net.ipv4.conf.IF.route_localnet` Linux takes
/// packets for 127.0.0.0/8 from other interfaces, too. Such a connection has neither the loopback interface's socket nor
/// a loopback address at its other end: to one of those nothing is ever sent but by the loopback interface.
fn is_local(socket: &OwnedFd, peer: &Peer) -> bool {
    peer.remote.ip().to_canonical().is_loopback() || is_bound_to_loopback(socket)
}

fn is_bound_to_loopback(socket: &OwnedFd) -> bool {
    let device = socket2::SockRef::from(socket).device();
    device.is_ok_and(|device| device.is_some_and(|name| name == LOOPBACK.as_bytes()))
}

/// What a connection goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
}

impl Kind {
    fn of(socket: &OwnedFd) -> Result<Self, Errno> {
        if sockopt::socket_type(socket)? != SocketType::STREAM {
            return Err(Errno::PROTOTYPE);
        }
        match sockopt::socket_domain(socket)? {
            AddressFamily::INET | AddressFamily::INET6 => Ok(Self::Tcp),
            AddressFamily::UNIX => Ok(Self::Unix),
            _ => Err(Errno::AFNOSUPPORT),
        }
    }
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "too many connections")
}

fn peer_of(socket: &OwnedFd, auth: Auth) -> Result<Peer, Errno> {
    let kind = Kind::of(socket)?;
    let remote = rustix::net::getpeername(socket)?;
    if kind == Kind::Unix {
        return Ok(Peer { remote: Peer::LOCAL, local: Peer::LOCAL, auth, channel: None });
    }
    let local = rustix::net::getsockname(socket)?;
    let remote = remote.ok_or(Errno::NOTCONN)?;
    Ok(Peer { remote: remote.try_into()?, local: local.try_into()?, auth, channel: None })
}

/// Has the kernel treat the connection as it is best for disks. Without that it works, if less well.
fn tune(socket: &OwnedFd, peer: &Peer) {
    if Kind::of(socket) != Ok(Kind::Tcp) {
        return;
    }
    let _ = tune_tcp(socket);
    if is_near(peer.remote.ip()) {
        let _ = sockopt::set_tcp_congestion(socket, UNPACED);
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
    fn a_taken_port_says_so_and_both_families_share_one() {
        let one = bind((Ipv4Addr::UNSPECIFIED, 0).into(), None).unwrap();
        let bound: SocketAddr = rustix::net::getsockname(&one).unwrap().try_into().unwrap();
        let error = bind(bound, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        bind((Ipv6Addr::UNSPECIFIED, bound.port()).into(), None).unwrap();
    }
}
