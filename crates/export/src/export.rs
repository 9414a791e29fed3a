//! A disk as it is lent. It knows a descriptor, and no protocol.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::Geometry;

/// What may be done with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    Writable,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "read-only",
            Self::Writable => "writable",
        })
    }
}

/// Whether a finished write may still be lost with the power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// A write is on stable storage when it ends.
    WriteThrough,
    /// A write is on stable storage after a flush, or if it was durable itself.
    Volatile,
}

/// Who a disk is: stable over reboots and renames.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Always there, and unique.
    pub uuid: [u8; 16],
    /// The disk's own 128-bit identifier, if it has one.
    pub nguid: Option<[u8; 16]>,
    /// The disk's own 64-bit identifier, if it has one.
    pub eui64: Option<[u8; 8]>,
    /// Serial number, printable ASCII.
    pub serial: String,
    /// Model, printable ASCII.
    pub model: String,
    /// Firmware revision, printable ASCII.
    pub firmware: String,
}

/// What has been done with an export since it was lent.
#[derive(Debug, Default)]
pub struct Usage {
    /// Read requests that ended well.
    pub reads: AtomicU64,
    /// Bytes that they read.
    pub bytes_read: AtomicU64,
    /// Write requests that ended well.
    pub writes: AtomicU64,
    /// Bytes that they wrote.
    pub bytes_written: AtomicU64,
    /// Requests that the disk failed.
    pub errors: AtomicU64,
}

/// A disk as it is lent. Shared by all sessions that use it.
#[derive(Debug)]
pub struct Export {
    /// What people call it: the path that it was given by.
    pub name: String,
    /// The NVMe Qualified Name of its subsystem; unique among what is lent.
    pub nqn: String,
    /// The name by which people ask for it where no NQN is spoken (NBD): `sda`, or an image's name without its ending.
    /// Unique among what is lent.
    pub short: String,
    /// Who the disk is.
    pub identity: Identity,
    /// Block size.
    pub geometry: Geometry,
    /// What may be done with it.
    pub access: Access,
    /// Whether a finished write may still be lost.
    pub cache: Cache,
    /// Whether it is a rotating disk.
    pub rotational: bool,
    /// Whether discarding blocks is of any use to it.
    pub discard: bool,
    /// Whether discarded blocks read as zeros.
    pub discard_zeroes: bool,
    /// What has been done with it.
    pub usage: Usage,
    bytes: AtomicU64,
    gone: AtomicBool,
    flush_failed: AtomicBool,
    /// Writes in flight, and [`EXCLUSIVE`].
    writers: AtomicU32,
    /// Connections that have ended and have writes in flight.
    orphans: AtomicU32,
    /// Whether the last such write has ended, or a write was counted and then refused, since it was last asked.
    released: AtomicBool,
    /// The exports in whose place this one was lent, if they were still in use.
    predecessors: OnceLock<Vec<Weak<Self>>>,
    /// Whether another export was lent in place of this one.
    succeeded: AtomicBool,
    disk: OwnedFd,
}

/// The last part of a path, without an ending.
fn short(name: &str) -> String {
    let last = name.rsplit('/').find(|part| !part.is_empty()).unwrap_or(name);
    let stem = last.rsplit_once('.').map_or(last, |(stem, _)| stem);
    if stem.is_empty() { last } else { stem }.to_owned()
}

/// Set in `writers` while one request has the export for itself.
const EXCLUSIVE: u32 = 1 << 31;

impl Export {
    /// A disk to lend: read and written through `disk`, `bytes` long.
    ///
    /// The other fields are public: set what differs from a read-only disk with a volatile cache. The short name is the
    /// last part of `name`, without an ending.
    pub fn new(
        name: &str,
        nqn: &str,
        identity: Identity,
        geometry: Geometry,
        bytes: u64,
        disk: OwnedFd,
    ) -> Self {
        Self {
            name: name.to_owned(),
            nqn: nqn.to_owned(),
            short: short(name),
            identity,
            geometry,
            access: Access::ReadOnly,
            cache: Cache::Volatile,
            rotational: false,
            discard: false,
            discard_zeroes: false,
            usage: Usage::default(),
            bytes: AtomicU64::new(bytes),
            gone: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
            writers: AtomicU32::new(0),
            orphans: AtomicU32::new(0),
            released: AtomicBool::new(false),
            predecessors: OnceLock::new(),
            succeeded: AtomicBool::new(false),
            disk,
        }
    }

    /// Capacity in blocks. The last block of a read-only export may be a part of one, which is read filled up with zeros;
    /// that of a writable export is a whole one, as a write to a part of a block would lose its rest.
    pub fn blocks(&self) -> u64 {
        let bytes = self.bytes.load(Ordering::Acquire);
        match self.access {
            Access::ReadOnly => self.geometry.blocks_for(bytes),
            Access::Writable => self.geometry.blocks_in(bytes),
        }
    }

    /// Capacity in bytes; of a read-only export not always a multiple of the block size.
    pub fn bytes(&self) -> u64 {
        let bytes = self.bytes.load(Ordering::Acquire);
        match self.access {
            Access::ReadOnly => bytes,
            Access::Writable => self.geometry.blocks_in(bytes) << self.geometry.shift(),
        }
    }

    /// Sets the length of the disk in bytes. Returns whether the capacity has changed.
    pub fn resize(&self, bytes: u64) -> bool {
        let before = self.bytes();
        self.bytes.store(bytes, Ordering::Release);
        self.bytes() != before
    }

    /// Has every request from now on fail with [`crate::Fault::Gone`].
    pub fn withdraw(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Whether it was withdrawn.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Takes note that a flush failed: what was written before it may be lost, so no later flush may report success.
    pub fn flush_failed(&self) {
        self.flush_failed.store(true, Ordering::Release);
    }

    /// Whether a flush failed since the export was opened.
    pub fn has_failed_flush(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    /// Whether requests may wait that must be told that a write ended: while one has, or wants, the export for itself, and
    /// once when the last orphaned write has ended. To be asked after each write.
    pub fn is_contended(&self) -> bool {
        let writers = self.writers.load(Ordering::Acquire);
        let awaited = self.succeeded.load(Ordering::Acquire) && writers == 0;
        self.was_released() || awaited || writers & EXCLUSIVE != 0
    }

    /// Whether requests may wait that must be told, once, that the last orphaned write has ended or that a write that they
    /// saw was refused. To be asked after a write was refused with [`crate::Fault::Busy`].
    pub fn was_released(&self) -> bool {
        self.released.load(Ordering::Acquire) && self.released.swap(false, Ordering::AcqRel)
    }

    /// Whether writes are on their way to the disk, whoever asked for them and whether or not anybody still wants to know.
    pub fn is_being_written(&self) -> bool {
        self.writers.load(Ordering::Acquire) != 0
    }

    /// Whether writes are in flight whose connection has ended: until they have, no other write begins, and no new
    /// connection, queue or controller gets the export. See [`crate::Fence`].
    pub fn has_orphans(&self) -> bool {
        let is_written =
            |before: &Weak<Self>| before.upgrade().is_some_and(|before| before.is_being_written());
        self.orphans.load(Ordering::Acquire) != 0
            || self.predecessors.get().is_some_and(|all| all.iter().any(is_written))
    }

    /// Has writes in flight to those, in whose place this export is lent, count as orphaned.
    pub(crate) fn succeed(&self, predecessors: Vec<Weak<Self>>) {
        let all = predecessors.iter().filter_map(Weak::upgrade);
        all.for_each(|before| before.succeeded.store(true, Ordering::Release));
        let _ = self.predecessors.set(predecessors);
    }

    /// A connection has ended with writes in flight.
    pub(crate) fn orphan(&self) {
        self.orphans.fetch_add(1, Ordering::AcqRel);
    }

    /// The last write of such a connection has ended.
    pub(crate) fn orphan_ended(&self) {
        if self.orphans.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.released.store(true, Ordering::Release);
        }
    }

    /// Counts a write in, unless there are orphaned writes or one request has the export for itself: that one's own write
    /// is to come in `alone`. A write that is refused here is not counted even for a moment: the request that waits to be
    /// alone might look just then, and would not be told to look again.
    pub(crate) fn enter(&self, alone: bool) -> bool {
        let more = |writers: u32| (alone || writers & EXCLUSIVE == 0).then_some(writers + 1);
        (alone || !self.has_orphans())
            && self.writers.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Counts a write out.
    pub(crate) fn leave(&self) {
        self.writers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Counts out a write that was refused after all. Others may have seen it, and wait for its end.
    pub(crate) fn leave_refused(&self) {
        self.leave();
        self.released.store(true, Ordering::Release);
    }
}

impl AsFd for Export {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.disk.as_fd()
    }
}

/// The right to write an export alone, for a read and a write that must be one step (fused Compare and Write).
///
/// From [`Exclusive::claim`] on no other write begins; the tenant waits until those under way have ended. Dropping it
/// lets the others in, and the session that drops it must then rouse them.
#[derive(Debug)]
pub struct Exclusive(Arc<Export>);

impl Exclusive {
    /// Claims the export; nothing if another request has done so.
    pub fn claim(export: &Arc<Export>) -> Option<Self> {
        let before = export.writers.fetch_or(EXCLUSIVE, Ordering::AcqRel);
        (before & EXCLUSIVE == 0).then(|| Self(export.clone()))
    }

    /// Whether the writes that were under way have ended, to this export and to those in whose place it was lent.
    pub fn is_drained(&self) -> bool {
        self.0.writers.load(Ordering::Acquire) == EXCLUSIVE && !self.0.has_orphans()
    }

    /// Whether this is the right to write `export`.
    pub fn is_for(&self, export: &Arc<Export>) -> bool {
        Arc::ptr_eq(&self.0, export)
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.0.writers.fetch_and(!EXCLUSIVE, Ordering::AcqRel);
    }
}
