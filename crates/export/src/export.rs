//! A disk that is served to other machines.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use serde::{Deserialize, Serialize};

use crate::connections::{Connections, Keeper, Usage};
use crate::{Backing, Base, ExportId, Geometry, ReservationStore, Reservations, SavedReservations};

/// Access mode of an export, a rule or a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// Whether the disk has a volatile write cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cache {
    /// A completed write is on stable storage.
    WriteThrough,
    /// A completed write is on stable storage only after a flush, or if it was durable itself
    /// (FUA).
    Volatile,
}

/// Identifiers of a disk: stable across reboots and renames.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Identity {
    /// Always present, and unique.
    pub uuid: [u8; 16],
    /// The disk's own NGUID, if it has one.
    pub nguid: Option<[u8; 16]>,
    /// The disk's own EUI-64, if it has one.
    pub eui64: Option<[u8; 8]>,
    /// Serial number, printable ASCII.
    pub serial: String,
    /// The disk's own serial number, if hosts see another one in `serial`: access rules are about the disk, and match no
    /// serial number that somebody else has chosen.
    pub own_serial: Option<String>,
    /// Model, printable ASCII.
    pub model: String,
    /// Firmware revision, printable ASCII.
    pub firmware: String,
}

/// A home directory of systemd-homed. Only hosts with a key see and use such an export; one that hosts
/// can write to is used by one host at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The name of the user.
    pub user: String,
    /// The Ed25519 public key with which systemd-homed of this machine signs the records of its users, if
    /// it has one. A machine that trusts it accepts the record in the home.
    pub signing_key: Option<[u8; 32]>,
}

/// A disk that is served to other machines. Shared by all sessions that use it.
///
/// It also serializes writes across connections: an [`Exclusive`] right, and writes whose
/// connection has ended (see [`Fence`](crate::Fence)), keep other writes waiting.
#[derive(Debug)]
pub struct Export {
    /// The path that the user gave, for messages.
    pub name: String,
    /// Unique in a catalogue.
    pub id: ExportId,
    /// The NBD export name: `sda`, or the file name of an image without its extension. Unique in a
    /// catalogue.
    pub short: String,
    /// Identifiers of the disk.
    pub identity: Identity,
    /// Block sizes.
    pub geometry: Geometry,
    /// The most that any grant allows.
    pub access: Access,
    /// Whether it has a volatile write cache.
    pub cache: Cache,
    /// Whether it is a rotating disk.
    pub rotational: bool,
    /// Whether it is announced as a removable medium, which hosts can eject.
    pub removable: bool,
    /// Whether it supports discard.
    pub discard: bool,
    /// Whether discarded blocks read as zeros.
    pub discard_zeroes: bool,
    /// Set if it is a home directory of systemd-homed.
    pub home: Option<Home>,
    /// What is on it, for people: partition table, file systems, labels. Empty if unknown.
    pub contents: String,
    bytes: AtomicU64,
    /// How often the length was set to another one.
    resizes: AtomicU64,
    gone: AtomicBool,
    flush_failed: AtomicBool,
    connections: Connections,
    /// How many hosts prevent the removal of the medium.
    removal_locks: AtomicU32,
    /// The exports that this one replaced, if they were still in use.
    predecessors: OnceLock<Vec<Weak<Self>>>,
    /// Whether another export has replaced this one.
    replaced: AtomicBool,
    backing: Backing,
}

/// Returns the last component of a path, without its extension.
fn short(name: &str) -> String {
    let last = name.rsplit('/').find(|part| !part.is_empty()).unwrap_or(name);
    let stem = last.rsplit_once('.').map_or(last, |(stem, _)| stem);
    if stem.is_empty() { last } else { stem }.to_owned()
}

impl Export {
    /// Returns an export of `bytes` bytes in the files of `backing`.
    ///
    /// It is read-only, with a volatile write cache and without discard; the fields are public, set
    /// what differs. The short name is the last component of `name`, without its extension.
    pub fn new(
        name: &str,
        id: impl Into<ExportId>,
        identity: Identity,
        geometry: Geometry,
        bytes: u64,
        backing: Backing,
    ) -> Self {
        Self {
            name: name.to_owned(),
            id: id.into(),
            short: short(name),
            identity,
            geometry,
            access: Access::ReadOnly,
            cache: Cache::Volatile,
            rotational: false,
            removable: false,
            discard: false,
            discard_zeroes: false,
            home: None,
            contents: String::new(),
            bytes: AtomicU64::new(bytes),
            resizes: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
            connections: Connections::default(),
            removal_locks: AtomicU32::new(0),
            predecessors: OnceLock::new(),
            replaced: AtomicBool::new(false),
            backing,
        }
    }

    /// Returns the files that hold its data.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Returns whether hosts can reserve the disk: not if each has contents of its own.
    pub fn supports_reservations(&self) -> bool {
        !self.is_private()
    }

    /// Returns whether each host has contents of its own, in an overlay, so that hosts do not share the
    /// disk.
    pub fn is_private(&self) -> bool {
        self.backing.overlay().is_some_and(|overlay| overlay.layout().is_private)
    }

    /// Returns whether only one host at a time may use it: a home directory that hosts write to, unless
    /// each has contents of its own.
    pub fn is_for_one_host(&self) -> bool {
        self.home.is_some() && self.access == Access::Writable && !self.is_private()
    }

    /// Returns the capacity in blocks. For a read-only export a partial last block counts: it reads
    /// padded with zeros. For a writable export it does not, because the end of a block written to
    /// it would be lost.
    pub fn blocks(&self) -> u64 {
        let bytes = self.bytes.load(Ordering::Acquire);
        match self.access {
            Access::ReadOnly => self.geometry.blocks_for(bytes),
            Access::Writable => self.geometry.blocks_in(bytes),
        }
    }

    /// Returns the capacity in bytes. For a read-only export it need not be a multiple of the block
    /// size.
    pub fn bytes(&self) -> u64 {
        let bytes = self.bytes.load(Ordering::Acquire);
        match self.access {
            Access::ReadOnly => bytes,
            Access::Writable => self.geometry.blocks_in(bytes) << self.geometry.shift(),
        }
    }

    /// Sets the length of the disk in bytes. Returns whether this changes the capacity: that of an
    /// export with an overlay, and of a failing disk, stays, as its map was made for it.
    pub fn resize(&self, bytes: u64) -> bool {
        if self.backing.overlay().is_some() || matches!(self.backing.base(), Base::Rescued(_)) {
            return false;
        }
        let before = self.bytes();
        if self.bytes.swap(bytes, Ordering::AcqRel) != bytes {
            self.resizes.fetch_add(1, Ordering::AcqRel);
        }
        self.bytes() != before
    }

    /// Returns a number that differs after each change of the length.
    pub fn resizes(&self) -> u64 {
        self.resizes.load(Ordering::Acquire)
    }

    /// Makes every request from now on fail with [`crate::Fault::Gone`].
    pub fn withdraw(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Returns whether the export was withdrawn.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Records that a flush failed: writes before it may be lost, so no later flush may succeed.
    pub fn flush_failed(&self) {
        self.flush_failed.store(true, Ordering::Release);
    }

    /// Returns whether a flush has failed since the export was created.
    pub fn has_failed_flush(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    /// Returns the host that an export for one host at a time must be kept for if this process ends now.
    pub fn keeper(&self) -> Option<Keeper> {
        self.connections.keeper()
    }

    /// Keeps the export for a host that another process has reported; for nobody if it is `None`.
    pub fn set_keeper(&self, keeper: Option<Keeper>) {
        self.connections.set_keeper(keeper);
    }

    /// Returns its statistics.
    pub fn usage(&self) -> Usage {
        self.connections.usage()
    }

    /// Replaces its statistics. For an export that another process serves.
    pub fn set_usage(&self, usage: Usage) {
        self.connections.set_ended_usage(usage);
    }

    /// Returns whether sessions may be waiting for the end of a write and must be notified: while
    /// an [`Exclusive`] right or a [`Settling`](crate::Settling) exists, and once after the last orphaned write has ended. Checked after
    /// each write.
    pub fn is_contended(&self) -> bool {
        let is_drained = || self.replaced.load(Ordering::Acquire) && !self.is_being_written();
        self.connections.was_released() || self.connections.is_watched() || is_drained()
    }

    /// Returns whether writes of any connection, orphaned ones included, are in flight or an
    /// [`Exclusive`] right exists.
    pub fn is_being_written(&self) -> bool {
        self.connections.is_exclusive() || self.connections.is_being_written()
    }

    /// Returns whether orphaned writes are in flight, that is, writes whose connection has ended.
    /// Until they have completed, no other write begins, and no new connection, queue or controller
    /// gets the export. See [`crate::Fence`].
    pub fn has_orphans(&self) -> bool {
        self.connections.has_orphans() || self.waits_for_predecessors()
    }

    /// Returns whether writes to an export that this one replaces are in flight.
    pub(crate) fn waits_for_predecessors(&self) -> bool {
        let is_written = |old: &Weak<Self>| old.upgrade().is_some_and(|old| old.is_being_written());
        self.predecessors.get().is_some_and(|all| all.iter().any(is_written))
    }

    /// Sets the exports that this one replaces. Their writes in flight count as orphaned.
    pub(crate) fn set_predecessors(&self, predecessors: Vec<Weak<Self>>) {
        let all = predecessors.iter().filter_map(Weak::upgrade);
        all.for_each(|old| old.replaced.store(true, Ordering::Release));
        let _ = self.predecessors.set(predecessors);
    }

    /// Returns the registrations and the reservation.
    pub fn reservations(&self) -> Reservations {
        self.connections.reservations()
    }

    /// Stores reservations in `store` from now on, if a host demands that they persist. `saved` is
    /// what was stored before the restart.
    pub fn set_reservation_store(
        &self,
        store: Arc<dyn ReservationStore>,
        saved: Option<SavedReservations>,
    ) {
        self.connections.set_store(store, saved.map(Reservations::restored).unwrap_or_default());
    }

    /// Returns whether reservations can be stored.
    pub fn stores_reservations(&self) -> bool {
        self.connections.has_store()
    }

    /// Takes the result of [`ReservationStore::save`]. The sessions must then be notified
    /// ([`Notice::StateChanged`](crate::Notice::StateChanged)).
    pub fn reservations_saved(&self, sequence: u64, is_stored: bool) {
        self.connections.set_stored(sequence, is_stored);
    }

    /// Returns whether a host prevents the removal of the medium.
    pub fn is_removal_prevented(&self) -> bool {
        self.removal_locks.load(Ordering::Acquire) != 0
    }

    /// Returns the connections that use it.
    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }
}

/// Prevents the removal of the medium until it is dropped.
#[derive(Debug)]
pub struct RemovalLock(Weak<Export>);

impl RemovalLock {
    /// Prevents the removal.
    pub fn new(export: &Arc<Export>) -> Self {
        export.removal_locks.fetch_add(1, Ordering::AcqRel);
        Self(Arc::downgrade(export))
    }
}

impl Drop for RemovalLock {
    fn drop(&mut self) {
        if let Some(export) = self.0.upgrade() {
            export.removal_locks.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The exclusive right to write an export, for a read and a write that must be atomic (fused
/// Compare and Write).
///
/// From [`Exclusive::claim`] on no other write begins. The holder waits until
/// [`Exclusive::is_drained`] and then uses
/// [`Grant::admit_exclusive`](crate::Grant::admit_exclusive). The session that drops the right must
/// return [`Step::Notify`](crate::Step::Notify), because others may be waiting.
#[derive(Debug)]
pub struct Exclusive(Arc<Export>);

impl Exclusive {
    /// Claims the right. Returns `None` if another request holds it.
    pub fn claim(export: &Arc<Export>) -> Option<Self> {
        export.connections.claim().then(|| Self(export.clone()))
    }

    /// Returns whether the earlier writes have completed, to this export and to those it replaced.
    pub fn is_drained(&self) -> bool {
        !self.0.connections.is_being_written() && !self.0.has_orphans()
    }

    /// Returns whether this is the right to write `export`.
    pub fn is_for(&self, export: &Arc<Export>) -> bool {
        Arc::ptr_eq(&self.0, export)
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.0.connections.unclaim();
    }
}
