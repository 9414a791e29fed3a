//! Disk requests, and their admission: range, alignment and access are checked here and nowhere
//! else.

use std::rc::Rc;
use std::sync::Arc;

use crate::connections::{Activity, Association, WriteGuard};
use crate::overlay::Claim;
use crate::{Access, Buffer, Exclusive, Export, Fault, Fence, InPlace, OverlayHost};

/// A disk operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads into the buffer.
    Read,
    /// Writes the buffer.
    Write {
        /// Whether to complete only when the data is on stable storage (FUA).
        durable: bool,
    },
    /// Writes the buffer so that the disk has all of it or none, whatever fails. Only lengths and offsets that
    /// [`AtomicWrites`](crate::AtomicWrites) of the disk cover.
    WriteAtomic {
        /// As for [`Op::Write`].
        durable: bool,
    },
    /// Commits all completed writes to stable storage.
    Flush,
    /// Sets the blocks to zeros.
    Zero {
        /// Whether the blocks may be deallocated.
        unmap: bool,
        /// Whether to complete only when the zeros are on stable storage (FUA).
        durable: bool,
        /// Whether to fail with [`Fault::Unsupported`] if this would take as long as writing zeros.
        fast: bool,
    },
    /// Permits the disk to deallocate the blocks.
    Discard,
    /// Fills the buffer, which may have any length, with the [extents](crate::Extents) of the
    /// range, from its start on, as many as fit.
    Extents,
    /// Advises that the blocks will be read soon.
    Prefetch,
}

impl Op {
    /// Returns whether the operation changes the contents of the disk.
    pub fn mutates(self) -> bool {
        match self {
            Self::Read | Self::Flush | Self::Extents | Self::Prefetch => false,
            Self::Write { .. } | Self::WriteAtomic { .. } | Self::Zero { .. } | Self::Discard => {
                true
            }
        }
    }

    /// Returns whether the operation transfers the blocks, in a buffer of their length.
    pub fn transfers(self) -> bool {
        matches!(self, Self::Read | Self::Write { .. } | Self::WriteAtomic { .. })
    }

    /// Returns the name for messages: `read`, `write`, `flush`, `zero`, `discard`, `extents` or
    /// `prefetch`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write { .. } | Self::WriteAtomic { .. } => "write",
            Self::Flush => "flush",
            Self::Zero { .. } => "zero",
            Self::Discard => "discard",
            Self::Extents => "extents",
            Self::Prefetch => "prefetch",
        }
    }
}

/// Identifies a request to the session that made it.
///
/// It leaves the session in [`Step::Submit`](crate::Step::Submit) and returns in
/// [`Session::complete`](crate::Session::complete). It cannot be copied, so a request completes at
/// most once.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(u32);

impl Ticket {
    /// Returns a ticket with this number, whose meaning is up to the session.
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub fn number(&self) -> u32 {
        self.0
    }
}

/// A disk request, not yet checked.
#[derive(Debug)]
pub struct Request {
    /// The operation.
    pub op: Op,
    /// The first block.
    pub lba: u64,
    /// The number of blocks; zero for a flush.
    pub blocks: u64,
    /// For a read or a write, a buffer of exactly `blocks` blocks; for extents, of any length.
    pub buffer: Option<Buffer>,
    /// Identifies the request.
    pub ticket: Ticket,
}

/// A request that was not admitted.
#[derive(Debug)]
pub struct Denied {
    /// Why.
    pub fault: Fault,
    /// The request, with its buffer.
    pub request: Request,
}

/// The access of one connection to one export: the result of an access check.
#[derive(Debug, Clone)]
pub struct Grant {
    activity: Rc<Activity>,
    access: Access,
    fence: Arc<Fence>,
    proven: bool,
}

impl Grant {
    /// Returns a grant of the access mode of `export`, with a new fence. For a host that is not known:
    /// an overlay in which each host has its own state can only be read.
    pub fn new(export: Arc<Export>) -> Self {
        let (access, claim) = claimed(&export, export.access, None);
        Self::of(Activity::unnamed(export, claim), access)
    }

    /// Returns a grant of `access` to `export` for a host, with a new fence. A host that gets no state
    /// of its own in an overlay can only read the disk under it. Returns `None` if the export is for one host
    /// at a time, and another one uses it.
    pub(crate) fn for_host(
        export: Arc<Export>,
        access: Access,
        host: &OverlayHost,
    ) -> Option<Self> {
        let (access, claim) = claimed(&export, access, Some(host));
        Activity::new(export, claim, host).map(|activity| Self::of(activity, access))
    }

    fn of(activity: Rc<Activity>, access: Access) -> Self {
        Self { access, fence: Fence::new(&activity), activity, proven: false }
    }

    /// Marks it as that of a host that has proven its name by all of its keys.
    #[must_use]
    pub(crate) fn proven(self) -> Self {
        Self { proven: true, ..self }
    }

    /// Returns the index of the state of the overlay that the host has; `None` for a disk without one,
    /// and for a host without a state.
    pub fn state(&self) -> Option<usize> {
        self.activity.claim.as_ref().and_then(Claim::state)
    }

    /// Returns whether the host can only read because the overlay has no free state for it.
    pub fn has_no_room(&self) -> bool {
        self.activity.claim.as_ref().is_some_and(Claim::has_no_room)
    }

    pub(crate) fn is_proven(&self) -> bool {
        self.proven
    }

    /// Restricts the grant to reads.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { access: Access::ReadOnly, ..self }
    }

    /// Keeps the fence of `before`, if that is a grant for the same export: for a connection whose
    /// access is checked again while it has writes in flight. It keeps its state of an overlay.
    #[must_use]
    pub fn with_fence_of(self, before: &Self) -> Self {
        let same = Arc::ptr_eq(self.export(), before.export());
        if same { Self { access: self.access, ..before.clone() } } else { self }
    }

    /// Makes the connection part of an association, with which it leaves.
    #[must_use]
    pub fn with_association(self, association: &Association) -> Self {
        self.export().connections().associate(self.activity.counters(), association);
        self
    }

    /// Records that the association of the connection is done with the export: its controller was shut down, or it has
    /// logged out. No writes of the association are in flight. An export for one host at a time is kept for a host that has
    /// changed it by an association that was lost without that.
    pub fn leave(&self) {
        self.export().connections().leave(self.activity.counters());
    }

    /// Returns the fence, by which the connection's right to write is revoked.
    pub fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    /// Returns the export.
    pub fn export(&self) -> &Arc<Export> {
        self.activity.export()
    }

    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Returns the granted access mode.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Checks a request. This is the only way to make an [`Admitted`].
    ///
    /// # Errors
    /// Returns the request with the reason: the export is gone, the access read-only, the range out
    /// of bounds, the length of the buffer wrong, a write not one that the disk does atomically, an earlier flush failed, or a reservation of
    /// another host refuses the operation. For a write,
    /// [`Fault::Gone`] once the [`Fence`] of the connection is closed, and [`Fault::Busy`] while
    /// another request has the [`Exclusive`] right and while there are orphaned writes.
    pub fn admit(&self, request: Request) -> Result<Admitted, Box<Denied>> {
        self.check_and_enter(request, None)
    }

    /// Checks a request of the holder of the [`Exclusive`] right to write this export.
    ///
    /// # Errors
    /// As [`Grant::admit`].
    pub fn admit_exclusive(
        &self,
        request: Request,
        right: &Exclusive,
    ) -> Result<Admitted, Box<Denied>> {
        self.check_and_enter(request, Some(right))
    }

    /// Checks a flush of the target itself, which no host requested. Reservations do not refuse it:
    /// it makes durable what they permitted.
    ///
    /// # Errors
    /// Returns [`Fault::Gone`] if the export is gone, and [`Fault::Io`] if an earlier flush failed.
    pub fn admit_own_flush(&self, ticket: Ticket) -> Result<Admitted, Fault> {
        if self.export().is_gone() {
            return Err(Fault::Gone);
        }
        if self.export().has_failed_flush() {
            return Err(Fault::Io);
        }
        Ok(Admitted {
            activity: self.activity.clone(),
            op: Op::Flush,
            offset: 0,
            len: 0,
            stored: 0,
            buffer: None,
            ticket,
            guard: None,
            in_place: false,
        })
    }

    fn check_and_enter(
        &self,
        request: Request,
        right: Option<&Exclusive>,
    ) -> Result<Admitted, Box<Denied>> {
        let (offset, len, stored) = match self.check(&request) {
            Ok(range) => range,
            Err(fault) => return Err(Box::new(Denied { fault, request })),
        };
        let exclusive = right.is_some_and(|right| right.is_for(self.export()));
        let writes = request.op.mutates();
        let guard = match writes.then(|| self.activity.begin_write(exclusive)).transpose() {
            Ok(guard) => guard,
            Err(fault) => return Err(Box::new(Denied { fault, request })),
        };
        let Request { op, buffer, ticket, .. } = request;
        let activity = self.activity.clone();
        Ok(Admitted { activity, op, offset, len, stored, buffer, ticket, guard, in_place: false })
    }

    /// Returns the offset, the length, and how many bytes of it the disk stores.
    fn check(&self, request: &Request) -> Result<(u64, u64, u64), Fault> {
        // Read once: the disk may be resized concurrently.
        let bytes = self.export().bytes();
        let (offset, len) = self.range(request.op, request.lba, request.blocks, bytes)?;
        let held = request.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        if request.op.transfers() && held != len {
            return Err(Fault::Misaligned);
        }
        let may_be_short = request.op == Op::Read && self.export().access == Access::ReadOnly;
        let stored = if may_be_short { len.min(bytes.saturating_sub(offset)) } else { len };
        Ok((offset, len, stored))
    }

    /// Checks a request apart from its buffer and from [`Fault::Busy`], to refuse it before its
    /// data is transferred. Returns the offset and the length in bytes.
    ///
    /// # Errors
    /// As [`Grant::admit`].
    pub fn permits(&self, op: Op, lba: u64, blocks: u64) -> Result<(u64, u64), Fault> {
        self.range(op, lba, blocks, self.export().bytes())
    }

    fn range(&self, op: Op, lba: u64, blocks: u64, bytes: u64) -> Result<(u64, u64), Fault> {
        let export = self.export();
        if export.is_gone() {
            return Err(Fault::Gone);
        }
        if op.mutates() && (self.access == Access::ReadOnly || export.access == Access::ReadOnly) {
            return Err(Fault::ReadOnly);
        }
        if self.activity.is_refused(op) {
            return Err(Fault::Reserved);
        }
        if op == Op::Flush && export.has_failed_flush() {
            return Err(Fault::Io);
        }
        // Only a read-only export has a partial last block.
        let (offset, len) =
            export.geometry.bytes_of(lba, blocks, export.geometry.blocks_for(bytes))?;
        match (op, export.geometry.atomic) {
            (Op::WriteAtomic { .. }, None) => Err(Fault::Unsupported),
            (Op::WriteAtomic { .. }, Some(writes)) if !writes.cover(offset, len) => {
                Err(Fault::Misaligned)
            }
            _ => Ok((offset, len)),
        }
    }
}

/// Returns what a host may do of `access`, and its use of the overlay.
fn claimed(
    export: &Arc<Export>,
    access: Access,
    host: Option<&OverlayHost>,
) -> (Access, Option<Claim>) {
    let access = if export.access == Access::ReadOnly { Access::ReadOnly } else { access };
    let claim = Claim::new(export, host, access == Access::Writable);
    let has_state = claim.as_ref().is_some_and(|claim| claim.state().is_some());
    let is_refused = !has_state && export.backing().overlay().is_some();
    (if is_refused { Access::ReadOnly } else { access }, claim)
}

/// A request that was admitted. Drivers execute nothing else.
#[derive(Debug)]
pub struct Admitted {
    activity: Rc<Activity>,
    op: Op,
    offset: u64,
    len: u64,
    stored: u64,
    buffer: Option<Buffer>,
    ticket: Ticket,
    guard: Option<WriteGuard>,
    in_place: bool,
}

impl Admitted {
    /// Returns the export.
    pub fn export(&self) -> &Arc<Export> {
        self.activity.export()
    }

    /// Returns the operation.
    pub fn op(&self) -> Op {
        self.op
    }

    /// Returns the index of the state of the [`Overlay`](crate::Overlay) that the request reads or
    /// changes; `None` for a disk without one, and for a host without a state, which reads the disk
    /// under the overlay.
    pub fn state(&self) -> Option<usize> {
        self.activity.claim.as_ref().and_then(Claim::state)
    }

    /// Returns the offset of the first byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns how many of these bytes the disk stores: fewer than [`Admitted::len`] for a read
    /// beyond the end of a read-only export with a partial last block. The rest reads as zeros.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Returns whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Allows a read to leave the data in memory of the driver, if the disk is in memory. The
    /// session then only sends the [`Buffer`] as it is, and does not look at its bytes.
    #[must_use]
    pub fn allow_in_place(self, allowed: bool) -> Self {
        Self { in_place: allowed && self.op == Op::Read, ..self }
    }

    /// Returns whether the data of a read may be left in memory of the driver.
    pub fn is_in_place_allowed(&self) -> bool {
        self.in_place
    }

    /// Sets where the data of a read is.
    pub fn set_in_place(&mut self, in_place: InPlace) {
        self.buffer.iter_mut().for_each(|buffer| buffer.set_in_place(in_place.clone()));
    }

    /// Returns the buffer to read into or to write from; empty if there is none.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map(Buffer::bytes_mut).unwrap_or_default()
    }

    /// Returns the buffer, if there is one.
    pub fn buffer_mut(&mut self) -> Option<&mut Buffer> {
        self.buffer.as_mut()
    }

    /// Returns the export, and the buffer as [`Admitted::bytes_mut`].
    pub fn export_and_bytes(&mut self) -> (&Export, &mut [u8]) {
        let bytes = self.buffer.as_mut().map(Buffer::bytes_mut).unwrap_or_default();
        (self.activity.export(), bytes)
    }

    /// Completes the request: updates the statistics, and counts a write as ended.
    pub fn finish(self, result: Result<(), Fault>) -> Finished {
        let export = self.activity.export();
        self.activity.count(self.op, self.len, result.is_ok());
        if self.op == Op::Flush && result.is_err() {
            export.flush_failed();
        }
        let is_write = self.guard.is_some();
        drop(self.guard);
        // Checked after the write is no longer counted, or the session that waits for it would not be
        // notified.
        let contended = (is_write && export.is_contended()).then(|| export.clone());
        let outcome = Outcome { result, buffer: self.buffer };
        Finished { ticket: self.ticket, outcome, contended }
    }
}

/// A completed request.
#[derive(Debug)]
pub struct Finished {
    /// For [`Session::complete`](crate::Session::complete), as is the outcome.
    pub ticket: Ticket,
    /// The result.
    pub outcome: Outcome,
    /// Set if sessions may be waiting for the end of this write: the export whose sessions the driver
    /// must notify, as for [`Step::Notify`](crate::Step::Notify).
    pub contended: Option<Arc<Export>>,
}

/// The result of a disk request.
#[derive(Debug)]
pub struct Outcome {
    /// Success, or how it failed.
    pub result: Result<(), Fault>,
    /// The buffer of the request; after a successful read, completely filled.
    pub buffer: Option<Buffer>,
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{AtomicWrites, Geometry, Identity, Pool};

    fn export(access: Access) -> Export {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let mut export =
            Export::new("disk", "nqn.test", Identity::default(), geometry, 8 * 512, disk);
        export.access = access;
        export
    }

    fn grant(access: Access) -> Grant {
        Grant::new(Arc::new(export(access)))
    }

    fn request(op: Op, lba: u64, blocks: u64) -> Request {
        let buffer = op.transfers().then(|| {
            Pool::new(1 << 20).open().take(usize::try_from(blocks).unwrap() * 512).unwrap()
        });
        Request { op, lba, blocks, buffer, ticket: Ticket::new(7) }
    }

    const WRITE: Op = Op::Write { durable: false };

    #[test]
    fn mutating_requests_to_a_read_only_export_are_refused() {
        let grant = grant(Access::ReadOnly);
        for op in [WRITE, Op::Zero { unmap: true, durable: false, fast: false }, Op::Discard] {
            assert_eq!(grant.admit(request(op, 0, 1)).unwrap_err().fault, Fault::ReadOnly);
        }
        assert!(grant.admit(request(Op::Read, 0, 1)).is_ok());
        assert!(grant.admit(request(Op::Flush, 0, 0)).is_ok());
    }

    #[test]
    fn grant_can_be_narrower_than_the_export() {
        let grant = grant(Access::Writable).read_only();
        assert_eq!(grant.admit(request(WRITE, 0, 1)).unwrap_err().fault, Fault::ReadOnly);
    }

    #[test]
    fn range_and_buffer_are_checked() {
        let grant = grant(Access::Writable);
        assert!(grant.admit(request(Op::Read, 7, 1)).is_ok());
        assert_eq!(grant.admit(request(Op::Read, 8, 1)).unwrap_err().fault, Fault::OutOfRange);
        assert_eq!(
            grant.admit(request(Op::Discard, 1, u64::MAX)).unwrap_err().fault,
            Fault::OutOfRange
        );
        let short = Request { blocks: 2, ..request(WRITE, 0, 1) };
        assert_eq!(grant.admit(short).unwrap_err().fault, Fault::Misaligned);
    }

    #[test]
    fn only_atomic_writes_of_the_disk_are_admitted() {
        let atomic = Op::WriteAtomic { durable: false };
        let mut export = export(Access::Writable);
        let fault = |grant: &Grant, lba, blocks| {
            grant.admit(request(atomic, lba, blocks)).err().map(|denied| denied.fault)
        };
        let without = grant(Access::Writable);
        assert_eq!(fault(&without, 0, 1), Some(Fault::Unsupported));
        export.geometry.atomic = AtomicWrites::new(512, 1024);
        let grant = Grant::new(Arc::new(export));
        for (lba, blocks) in [(0, 1), (1, 1), (2, 2)] {
            assert_eq!(fault(&grant, lba, blocks), None);
        }
        for (lba, blocks) in [(1, 2), (0, 3), (0, 4)] {
            assert_eq!(fault(&grant, lba, blocks), Some(Fault::Misaligned));
        }
        let reading = grant.read_only();
        assert_eq!(fault(&reading, 0, 1), Some(Fault::ReadOnly));
    }

    #[test]
    fn after_a_failed_flush_no_later_one_is_admitted() {
        let grant = grant(Access::Writable);
        let Finished { ticket, outcome, .. } =
            grant.admit(request(Op::Flush, 0, 0)).unwrap().finish(Err(Fault::Io));
        assert_eq!((ticket, outcome.result), (Ticket::new(7), Err(Fault::Io)));
        assert_eq!(grant.admit(request(Op::Flush, 0, 0)).unwrap_err().fault, Fault::Io);
        assert_eq!(grant.export().usage().errors, 1);
    }

    #[test]
    fn withdrawn_export_admits_nothing() {
        let grant = grant(Access::Writable);
        grant.export().withdraw();
        assert_eq!(grant.admit(request(Op::Read, 0, 1)).unwrap_err().fault, Fault::Gone);
    }

    #[test]
    fn exclusive_right_waits_for_writes_and_blocks_new_ones() {
        let grant = grant(Access::Writable);
        let in_flight = grant.admit(request(WRITE, 0, 1)).unwrap();
        let right = Exclusive::claim(grant.export()).unwrap();
        assert!(!right.is_drained());
        assert!(Exclusive::claim(grant.export()).is_none());
        assert_eq!(grant.admit(request(WRITE, 1, 1)).unwrap_err().fault, Fault::Busy);
        assert!(grant.admit(request(Op::Read, 1, 1)).is_ok());
        let _ = in_flight.finish(Ok(()));
        assert!(right.is_drained());
        assert!(grant.admit_exclusive(request(WRITE, 1, 1), &right).is_ok());
        drop(right);
        assert!(grant.admit(request(WRITE, 1, 1)).is_ok());
    }

    #[test]
    fn refused_write_is_never_counted() {
        let export = grant(Access::Writable).export().clone();
        let right = Exclusive::claim(&export).unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let grant = Grant::new(export.clone());
                (0..20_000).all(|_| grant.admit(request(Op::Discard, 0, 1)).is_err())
            });
            while !other.is_finished() {
                assert!(right.is_drained());
            }
            assert!(other.join().unwrap());
        });
    }
}
