//! A connection's socket, and all connections: the bounds on their number, and which of their peers are gone.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use export::{Channel, Fence, Network, Peer, Tenant};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::Shutdown;

/// A connection's socket. The last owner to let go closes it.
pub(crate) struct Link {
    socket: OwnedFd,
    peer: Peer,
    /// What protects the connection, once its handshake is over.
    channel: OnceLock<Arc<Channel>>,
    established: AtomicBool,
    /// Different from that of all other connections.
    number: u64,
    /// The session's right to write.
    right: Mutex<Right>,
    /// Whether it was cut for another one.
    is_cut: AtomicBool,
    /// Bytes that were received already, for the session.
    came: Mutex<Vec<u8>>,
    table: Arc<ConnectionTable>,
}

/// A session's right to write, which ends when its peer has closed its sending side.
#[derive(Debug, Default)]
struct Right {
    fence: Weak<Fence>,
    has_ended: bool,
}

impl Right {
    /// Closes the fence if the peer has closed its sending side.
    fn check(&self) {
        if let Some(fence) = self.fence.upgrade().filter(|_| self.has_ended) {
            fence.close();
        }
    }
}

impl Link {
    /// Who is at the other end, and what protects the connection.
    pub(crate) fn peer(&self) -> Peer {
        Peer { channel: self.channel.get().cloned(), ..self.peer.clone() }
    }

    /// Takes note of what protects the connection from now on.
    pub(crate) fn secure(&self, channel: Channel) {
        // Nobody makes a second handshake on a connection.
        let _ = self.channel.set(Arc::new(channel));
    }

    /// Leaves bytes that were received already for the session, which gets them before all others.
    pub(crate) fn leave(&self, came: Vec<u8>) {
        *self.came.lock().unwrap_or_else(PoisonError::into_inner) = came;
    }

    /// Those bytes, once.
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.came.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether its host has room for one more connection, now that is known who it is.
    pub(crate) fn has_room(&self) -> bool {
        let links = self.table.lock();
        self.table.has_room(&links, self.peer().tenant())
    }

    /// Takes note that the session let its peer in: it is no longer among those that may be cut for others, and `fence` is
    /// closed when the peer closes its sending side. To be called again when the session may have got another fence.
    pub(crate) fn establish(&self, fence: Option<&Arc<Fence>>) {
        let mut right = self.right();
        right.fence = fence.map(Arc::downgrade).unwrap_or_default();
        right.check();
        drop(right);
        if !self.established.swap(true, Ordering::AcqRel) {
            self.table.watch(self);
        }
    }

    /// Ends the session's right to write: the peer has closed its sending side.
    fn fence_off(&self) {
        let mut right = self.right();
        right.has_ended = true;
        right.check();
    }

    fn right(&self) -> MutexGuard<'_, Right> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends no more, receives no more, or both; what is under way on the socket ends.
    pub(crate) fn shut(&self, how: Shutdown) {
        // Fails only if the connection is gone already.
        let _ = rustix::net::shutdown(&self.socket, how);
    }

    fn is_established(&self) -> bool {
        self.established.load(Ordering::Acquire)
    }

    /// Whether it may be cut for another one.
    fn is_newcomer(&self) -> bool {
        !self.is_established() && !self.is_cut.load(Ordering::Acquire)
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.shut(Shutdown::Both);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.peer.remote)
    }
}

impl Drop for Link {
    /// Ends the connection, also where another process has kept its socket.
    fn drop(&mut self) {
        self.shut(Shutdown::Both);
        self.table.leave();
    }
}

/// How many connections there may be.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// In all.
    pub(crate) total: usize,
    /// Whose peers have not yet been let in.
    pub(crate) newcomers: usize,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct ConnectionTable {
    /// None before the drivers run.
    bounds: OnceLock<Bounds>,
    total: AtomicUsize,
    /// All of them, the oldest first; looked through only when another comes.
    links: Mutex<Vec<Weak<Link>>>,
    /// Rung when the last connection has gone.
    empty: Condvar,
    /// The number of the next connection.
    next: AtomicU64,
    /// Waits for the peers of established connections to close their sending sides.
    ends: OwnedFd,
}

/// Ends of connections that are fetched at once.
const ENDS: usize = 64;

impl ConnectionTable {
    /// No connection yet.
    ///
    /// # Errors
    /// There is no descriptor to be had.
    pub(crate) fn open() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            bounds: OnceLock::new(),
            total: AtomicUsize::new(0),
            links: Mutex::default(),
            empty: Condvar::new(),
            next: AtomicU64::new(0),
            ends: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        }))
    }

    /// No connection yet, and so many as there may be.
    #[cfg(test)]
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        let table = Self::open().unwrap();
        table.limit(bounds);
        table
    }

    /// Sets the limit, once.
    pub(crate) fn limit(&self, bounds: Bounds) {
        let _ = self.bounds.set(bounds);
    }

    fn bounds(&self) -> Bounds {
        self.bounds.get().copied().unwrap_or_default()
    }

    /// How many connections there are.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Acquire)
    }

    /// Counts a connection in, if its host has room for it, and there is room or an older one can be cut that has not said
    /// who it is: a peer that opens connections and says nothing cannot keep others out, nor can one that says something.
    pub(crate) fn enter(self: &Arc<Self>, socket: OwnedFd, peer: Peer) -> Option<Arc<Link>> {
        let mut links = self.lock();
        links.retain(|link| link.strong_count() > 0);
        if !self.has_room(&links, peer.tenant()) {
            return None;
        }
        let (bounds, total) = (self.bounds(), self.total());
        let newcomers: Vec<_> = newcomers(&links).collect();
        if newcomers.len() >= bounds.newcomers || total >= bounds.total {
            // Those that were cut count until their owners have let go of them.
            let has_room = total < bounds.total + bounds.newcomers;
            let least = has_room.then(|| least(&newcomers))??;
            least.cut();
        }
        self.total.fetch_add(1, Ordering::AcqRel);
        let (established, right, is_cut) = Default::default();
        let (channel, came, table) = (OnceLock::new(), Mutex::default(), self.clone());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let link = Link { socket, peer, channel, established, number, right, is_cut, came, table };
        let link = Arc::new(link);
        links.push(Arc::downgrade(&link));
        Some(link)
    }

    /// Whether a host may have one more connection: as many as there are still free. One host alone gets a half, two get a
    /// third each, and there is always room for another.
    fn has_room(&self, links: &[Weak<Link>], tenant: Tenant) -> bool {
        let established: Vec<_> = links.iter().filter_map(Weak::upgrade).collect();
        let established = established.iter().filter(|link| link.is_established());
        let (mut all, mut own) = (0, 0);
        for link in established {
            all += 1;
            own += usize::from(link.peer().tenant() == tenant);
        }
        own == 0 || own < self.bounds().total.saturating_sub(all)
    }

    /// Has [`ConnectionTable::fence_off`] notice when the peer closes its sending side, once. Nothing has to be undone when the
    /// connection ends: the kernel forgets the socket when it is closed.
    fn watch(&self, link: &Link) {
        let (number, what) = (epoll::EventData::new_u64(link.number), epoll::EventFlags::RDHUP);
        // Without memory for it the end is noticed when the session has read all that came before.
        let _ = epoll::add(&self.ends, link, number, what | epoll::EventFlags::ONESHOT);
    }

    /// Ends the right to write of the sessions whose peers have closed their sending sides, whatever their threads are at.
    /// Returns whether there were such; then all sessions are to be told that something changed.
    pub(crate) fn fence_off(&self) -> bool {
        let mut any = false;
        let mut ended = Vec::with_capacity(ENDS);
        while let Ok(1..) =
            epoll::wait(&self.ends, spare_capacity(&mut ended), Some(&Timespec::default()))
        {
            any = true;
            let links: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
            for event in ended.drain(..) {
                let number = event.data.u64();
                links.iter().filter(|link| link.number == number).for_each(|link| link.fence_off());
            }
        }
        any
    }

    fn leave(&self) {
        if self.total.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Without the lock: `enter` holds it and may be the one that drops the last owner.
            self.empty.notify_all();
        }
    }

    /// Waits until no connection is left, at most `patience`. Tells whether none is.
    pub(crate) fn wait_until_empty(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut guard = self.lock();
        while self.total() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // A ring between the look and the wait is missed, so the wait is short.
            let nap = left.min(Duration::from_millis(10));
            guard = self.empty.wait_timeout(guard, nap).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for ConnectionTable {
    /// Readable when [`ConnectionTable::fence_off`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }
}

/// Those not yet established, the oldest first.
fn newcomers(links: &[Weak<Link>]) -> impl Iterator<Item = Arc<Link>> {
    links.iter().filter_map(Weak::upgrade).filter(|link| link.is_newcomer())
}

/// Which incoming goes for the next: the oldest of the address that has the most, so that who opens many pays for it, and
/// not who comes from elsewhere.
fn least(newcomers: &[Arc<Link>]) -> Option<&Arc<Link>> {
    let network = |link: &Arc<Link>| Network::of(link.peer.remote);
    let mut counts = HashMap::new();
    newcomers.iter().for_each(|link| *counts.entry(network(link)).or_insert(0) += 1);
    let most = counts.values().copied().max()?;
    newcomers.iter().find(|link| counts.get(&network(link)) == Some(&most))
}

#[cfg(test)]
mod test {
    use std::net::{Ipv4Addr, SocketAddr};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use export::Auth;

    const BOUNDS: Bounds = Bounds { total: 3, newcomers: 2 };

    fn enter(table: &Arc<ConnectionTable>) -> (Option<Arc<Link>>, OwnedFd) {
        enter_from(table, Ipv4Addr::LOCALHOST)
    }

    fn enter_from(table: &Arc<ConnectionTable>, from: Ipv4Addr) -> (Option<Arc<Link>>, OwnedFd) {
        let nowhere = SocketAddr::from((from, 0));
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        let peer = Peer { remote: nowhere, local: nowhere, auth: Auth::None, channel: None };
        (table.enter(ours, peer), theirs)
    }

    fn is_cut(peer: &OwnedFd) -> bool {
        let flags = rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recv(peer, &mut [0u8; 1], flags).is_ok_and(|(n, _)| n == 0)
    }

    #[test]
    fn a_socket_that_somebody_has_kept_ends_with_its_link() {
        let table = ConnectionTable::new(BOUNDS);
        let (link, peer) = enter(&table);
        let link = link.unwrap();
        let kept = link.as_fd().try_clone_to_owned().unwrap();
        assert!(!is_cut(&peer));
        drop(link);
        assert!(is_cut(&peer));
        drop(kept);
    }

    #[test]
    fn the_oldest_newcomer_is_cut_for_the_next() {
        let table = ConnectionTable::new(BOUNDS);
        let (_a, peer_a) = enter(&table);
        let (_b, peer_b) = enter(&table);
        assert!(!is_cut(&peer_a));
        let (_c, _peer_c) = enter(&table);
        assert!(is_cut(&peer_a));
        assert!(!is_cut(&peer_b));
    }

    /// X54: who opens many connections cuts its own.
    #[test]
    fn x54_a_neighbour_is_not_cut_for_a_flood() {
        let table = ConnectionTable::new(Bounds { total: 6, newcomers: 4 });
        let (_a, neighbour) = enter(&table);
        let flood: Vec<_> =
            (0..6).map(|_| enter_from(&table, Ipv4Addr::new(10, 0, 0, 1))).collect();
        assert!(!is_cut(&neighbour));
        assert_eq!(flood.iter().filter(|(_, peer)| is_cut(peer)).count(), 3);
        // However slowly those that were cut go, there are never more than both bounds together.
        let more: Vec<_> = (0..10).map(|_| enter(&table).0).collect();
        assert_eq!((table.total(), more.iter().flatten().count()), (10, 3));
    }

    /// X61: one host's connections, however many and for however long, leave room for others.
    #[test]
    fn x61_a_host_has_at_most_half_of_all_connections() {
        let table = ConnectionTable::new(Bounds { total: 16, newcomers: 4 });
        let mut held = Vec::new();
        let mut fill = |host| {
            let from = Ipv4Addr::new(10, 0, 0, host);
            let more = std::iter::from_fn(|| {
                let (link, peer) = enter_from(&table, from);
                let link = link?;
                link.establish(None);
                Some((link, peer))
            });
            let more: Vec<_> = more.collect();
            let count = more.len();
            held.extend(more);
            count
        };
        assert_eq!((fill(1), fill(2), fill(3)), (8, 4, 2));
        assert_eq!((fill(1), fill(4)), (0, 1));
    }

    #[test]
    fn established_connections_are_never_cut_and_fill_the_house() {
        let table = ConnectionTable::new(BOUNDS);
        let held: Vec<_> = (0..3).map(|_| enter(&table)).collect();
        held.iter().for_each(|(link, _)| link.as_ref().unwrap().establish(None));
        assert!(enter(&table).0.is_none());
        assert_eq!(table.total(), 3);
        assert!(!table.wait_until_empty(Duration::from_millis(1)));
        drop(held);
        assert!(table.wait_until_empty(Duration::from_millis(1)));
    }
}
