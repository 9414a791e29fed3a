//! The socket of a connection, and the table of all connections with its limits. The table also
//! detects when peers close their sending side.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use export::{Channel, ExportId, Fence, Peer, Tenant};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::Shutdown;

use crate::topic::{Changes, Topic};

/// The socket of a connection. Closed when the last reference is dropped.
pub(crate) struct Link {
    socket: OwnedFd,
    peer: Peer,
    /// The TLS channel, once its handshake is complete.
    channel: OnceLock<Arc<Channel>>,
    established: AtomicBool,
    /// Unique identifier of the connection.
    id: u64,
    /// The session's right to write.
    right: Mutex<WriteRight>,
    /// The export that the session uses, once it is established.
    export: OnceLock<ExportId>,
    /// Whether the connection was closed to make room for another.
    is_evicted: AtomicBool,
    /// Bytes received before the session existed.
    early_data: Mutex<Vec<u8>>,
    table: Arc<ConnectionTable>,
}

/// A session's right to write. Revoked when the peer has closed its sending side.
#[derive(Debug, Default)]
struct WriteRight {
    fence: Weak<Fence>,
    is_revoked: bool,
}

impl WriteRight {
    /// Closes the fence if the peer has closed its sending side.
    fn check(&self) {
        if let Some(fence) = self.fence.upgrade().filter(|_| self.is_revoked) {
            fence.close();
        }
    }
}

impl Link {
    /// Returns the peer, with its TLS channel if the handshake is complete.
    pub(crate) fn peer(&self) -> Peer {
        Peer { channel: self.channel.get().cloned(), ..self.peer.clone() }
    }

    /// Sets the TLS channel.
    pub(crate) fn set_channel(&self, channel: Channel) {
        // There is at most one handshake on a connection.
        let _ = self.channel.set(Arc::new(channel));
    }

    /// Stores bytes that were received before the session exists. The session gets them first.
    pub(crate) fn set_early_data(&self, early_data: Vec<u8>) {
        *self.early_data.lock().unwrap_or_else(PoisonError::into_inner) = early_data;
    }

    /// Returns these bytes, once.
    pub(crate) fn take_early_data(&self) -> Vec<u8> {
        std::mem::take(&mut self.early_data.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether the tenant may have this connection. To be called when the peer has
    /// authenticated, which changes its tenant.
    pub(crate) fn has_room(&self) -> bool {
        let links = self.table.lock();
        self.table.has_room(&links, self.peer().tenant())
    }

    /// Marks the connection as established, so that it is not closed to make room for others.
    /// `fence` is closed when the peer closes its sending side. To be called again when the session
    /// may have another fence.
    pub(crate) fn set_established(&self, fence: Option<&Arc<Fence>>) {
        if let Some(fence) = fence {
            self.export.get_or_init(|| fence.export_id().clone());
        }
        let mut right = self.right();
        right.fence = fence.map(Arc::downgrade).unwrap_or_default();
        right.check();
        drop(right);
        if !self.established.swap(true, Ordering::AcqRel) {
            self.table.watch(self);
        }
    }

    /// Returns the export that the session uses, once it is established.
    pub(crate) fn export(&self) -> Option<&ExportId> {
        self.export.get()
    }

    /// Returns the topic of the changes that the session makes.
    pub(crate) fn topic(&self) -> Topic {
        Topic::from_session(self.export())
    }

    /// Revokes the session's right to write: the peer has closed its sending side.
    fn fence_off(&self) {
        let mut right = self.right();
        right.is_revoked = true;
        right.check();
    }

    fn right(&self) -> MutexGuard<'_, WriteRight> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shuts down one or both directions of the socket. Operations in flight on it complete.
    pub(crate) fn shut(&self, how: Shutdown) {
        // Fails only if the connection is already lost.
        let _ = rustix::net::shutdown(&self.socket, how);
    }

    fn is_established(&self) -> bool {
        self.established.load(Ordering::Acquire)
    }

    /// Returns whether the connection may be closed to make room for another.
    fn may_be_evicted(&self) -> bool {
        !self.is_established() && !self.is_evicted.load(Ordering::Acquire)
    }

    fn evict(&self) {
        self.is_evicted.store(true, Ordering::Release);
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
        write!(f, "Link({})", self.peer.transport)
    }
}

impl Drop for Link {
    /// Shuts the connection down, even if another process holds a copy of the socket.
    fn drop(&mut self) {
        self.shut(Shutdown::Both);
        self.table.remove();
    }
}

/// Limits on the number of connections.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// In total.
    pub(crate) total: usize,
    /// Not yet established.
    pub(crate) unestablished: usize,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct ConnectionTable {
    /// Empty until the drivers run.
    bounds: OnceLock<Bounds>,
    total: AtomicUsize,
    /// In order of age, the oldest first. Scanned only when a connection is added.
    links: Mutex<Vec<Weak<Link>>>,
    /// Notified when the last connection has ended.
    empty: Condvar,
    /// Identifier of the next connection.
    next_id: AtomicU64,
    /// epoll instance that detects when peers of established connections close their sending side.
    epoll: OwnedFd,
}

/// Number of events fetched in one call.
const MAX_EVENTS: usize = 64;

impl ConnectionTable {
    /// Returns an empty table.
    ///
    /// # Errors
    /// Fails if no descriptor is available.
    pub(crate) fn open() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            bounds: OnceLock::new(),
            total: AtomicUsize::new(0),
            links: Mutex::default(),
            empty: Condvar::new(),
            next_id: AtomicU64::new(0),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        }))
    }

    /// Returns an empty table with limits.
    #[cfg(test)]
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        let table = Self::open().unwrap();
        table.set_bounds(bounds);
        table
    }

    /// Sets the limits, once.
    pub(crate) fn set_bounds(&self, bounds: Bounds) {
        let _ = self.bounds.set(bounds);
    }

    fn bounds(&self) -> Bounds {
        self.bounds.get().copied().unwrap_or_default()
    }

    /// Returns the number of connections.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Acquire)
    }

    /// Adds a connection. Returns `None` if its tenant is at its limit, or if the table is full and
    /// no unestablished connection can be closed to make room. Peers that open connections without
    /// authenticating therefore cannot keep others out.
    pub(crate) fn insert(self: &Arc<Self>, socket: OwnedFd, peer: Peer) -> Option<Arc<Link>> {
        let mut links = self.lock();
        links.retain(|link| link.strong_count() > 0);
        if !self.has_room(&links, peer.tenant()) {
            return None;
        }
        let (bounds, total) = (self.bounds(), self.total());
        let unestablished: Vec<_> = unestablished(&links).collect();
        if unestablished.len() >= bounds.unestablished || total >= bounds.total {
            // Connections that were cut count until their threads have dropped them.
            let has_room = total < bounds.total + bounds.unestablished;
            let eviction_candidate = has_room.then(|| eviction_candidate(&unestablished))??;
            eviction_candidate.evict();
        }
        self.total.fetch_add(1, Ordering::AcqRel);
        let (established, right, is_evicted) = Default::default();
        let (channel, early_data, table) = (OnceLock::new(), Mutex::default(), self.clone());
        let export = OnceLock::new();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let link = Link {
            socket,
            peer,
            channel,
            established,
            id,
            right,
            export,
            is_evicted,
            early_data,
            table,
        };
        let link = Arc::new(link);
        links.push(Arc::downgrade(&link));
        Some(link)
    }

    /// Returns whether `tenant` may have one more connection: as many as are still free. One tenant
    /// alone gets a half, two get a third each, and a newcomer always gets one.
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

    /// Registers the connection for [`ConnectionTable::fence_off`], for one event. The kernel
    /// removes the registration when the socket is closed.
    fn watch(&self, link: &Link) {
        let (id, what) = (epoll::EventData::new_u64(link.id), epoll::EventFlags::RDHUP);
        // If this fails for want of memory, the end is detected when the session has read all data
        // before it.
        let _ = epoll::add(&self.epoll, link, id, what | epoll::EventFlags::ONESHOT);
    }

    /// Revokes the right to write of sessions whose peers have closed their sending side, whatever
    /// their threads are doing. Returns what has changed by that, which sessions must be notified of.
    pub(crate) fn fence_off(&self) -> Changes {
        let mut changes = Changes::default();
        let mut ended = Vec::with_capacity(MAX_EVENTS);
        while let Ok(1..) =
            epoll::wait(&self.epoll, spare_capacity(&mut ended), Some(&Timespec::default()))
        {
            let links: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
            for event in ended.drain(..) {
                let id = event.data.u64();
                for link in links.iter().filter(|link| link.id == id) {
                    link.fence_off();
                    changes.add(link.topic());
                }
            }
        }
        changes
    }

    fn remove(&self) {
        if self.total.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Without the lock: `insert` holds it, and may be what drops the last reference.
            self.empty.notify_all();
        }
    }

    /// Waits until no connection is left, at most `patience`. Returns whether none is left.
    pub(crate) fn wait_until_empty(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut guard = self.lock();
        while self.total() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // A notification between the check and the wait is lost, so the wait is short.
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
        self.epoll.as_fd()
    }
}

/// Returns the unestablished connections, the oldest first.
fn unestablished(links: &[Weak<Link>]) -> impl Iterator<Item = Arc<Link>> {
    links.iter().filter_map(Weak::upgrade).filter(|link| link.may_be_evicted())
}

/// Selects the connection to close for a new one: the oldest of the network that has the most, so
/// that a flood from one network closes its own connections.
fn eviction_candidate(unestablished: &[Arc<Link>]) -> Option<&Arc<Link>> {
    let network = |link: &Arc<Link>| link.peer.network();
    let mut counts = HashMap::new();
    unestablished.iter().for_each(|link| *counts.entry(network(link)).or_insert(0) += 1);
    let max = counts.values().copied().max()?;
    unestablished.iter().find(|link| counts.get(&network(link)) == Some(&max))
}

#[cfg(test)]
mod test {
    use std::net::{Ipv4Addr, SocketAddr};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use export::Auth;

    const BOUNDS: Bounds = Bounds { total: 3, unestablished: 2 };

    fn connect(table: &Arc<ConnectionTable>) -> (Option<Arc<Link>>, OwnedFd) {
        connect_from(table, Ipv4Addr::LOCALHOST)
    }

    fn connect_from(table: &Arc<ConnectionTable>, from: Ipv4Addr) -> (Option<Arc<Link>>, OwnedFd) {
        let nowhere = SocketAddr::from((from, 0));
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        let peer = Peer::ip(nowhere, nowhere, Auth::None);
        (table.insert(ours, peer), theirs)
    }

    fn is_cut(peer: &OwnedFd) -> bool {
        let flags = rustix::net::RecvFlags::DONTWAIT;
        rustix::net::recv(peer, &mut [0u8; 1], flags).is_ok_and(|(n, _)| n == 0)
    }

    #[test]
    fn duplicated_socket_is_shut_down_with_its_link() {
        let table = ConnectionTable::new(BOUNDS);
        let (link, peer) = connect(&table);
        let link = link.unwrap();
        let kept = link.as_fd().try_clone_to_owned().unwrap();
        assert!(!is_cut(&peer));
        drop(link);
        assert!(is_cut(&peer));
        drop(kept);
    }

    #[test]
    fn oldest_unestablished_connection_is_evicted() {
        let table = ConnectionTable::new(BOUNDS);
        let (_a, peer_a) = connect(&table);
        let (_b, peer_b) = connect(&table);
        assert!(!is_cut(&peer_a));
        let (_c, _peer_c) = connect(&table);
        assert!(is_cut(&peer_a));
        assert!(!is_cut(&peer_b));
    }

    /// X54: a flood closes only its own connections.
    #[test]
    fn x54_flood_evicts_only_its_own_connections() {
        let table = ConnectionTable::new(Bounds { total: 6, unestablished: 4 });
        let (_a, neighbour) = connect(&table);
        let flood: Vec<_> =
            (0..6).map(|_| connect_from(&table, Ipv4Addr::new(10, 0, 0, 1))).collect();
        assert!(!is_cut(&neighbour));
        assert_eq!(flood.iter().filter(|(_, peer)| is_cut(peer)).count(), 3);
        // However slowly the cut connections end, the number never exceeds both limits together.
        let more: Vec<_> = (0..10).map(|_| connect(&table).0).collect();
        assert_eq!((table.total(), more.iter().flatten().count()), (10, 3));
    }

    /// X61: one host cannot use up all connections.
    #[test]
    fn x61_a_host_has_at_most_half_of_all_connections() {
        let table = ConnectionTable::new(Bounds { total: 16, unestablished: 4 });
        let mut held = Vec::new();
        let mut fill = |host| {
            let from = Ipv4Addr::new(10, 0, 0, host);
            let more = std::iter::from_fn(|| {
                let (link, peer) = connect_from(&table, from);
                let link = link?;
                link.set_established(None);
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
        let held: Vec<_> = (0..3).map(|_| connect(&table)).collect();
        held.iter().for_each(|(link, _)| link.as_ref().unwrap().set_established(None));
        assert!(connect(&table).0.is_none());
        assert_eq!(table.total(), 3);
        assert!(!table.wait_until_empty(Duration::from_millis(1)));
        drop(held);
        assert!(table.wait_until_empty(Duration::from_millis(1)));
    }
}
