//! Disk requests and the one gate that they pass: range, alignment and access are checked here and nowhere else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::fence::Hold;
use crate::{Access, Buffer, Exclusive, Export, Fault, Fence};

/// What is asked of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffer.
    Read,
    /// Write the buffer; if `durable`, end only when it is on stable storage.
    Write {
        /// Whether to wait for stable storage.
        durable: bool,
    },
    /// Put what was written before on stable storage.
    Flush,
    /// Have the blocks read as zeros.
    Zero {
        /// Whether the disk may drop them to get there.
        unmap: bool,
        /// Whether to wait for stable storage.
        durable: bool,
        /// Whether to fail with [`Fault::Unsupported`] where it would take as long as writing them.
        fast: bool,
    },
    /// The blocks are not needed: the disk may drop them.
    Discard,
    /// Fill the buffer, of any length, with the [extents](crate::Extent) of the blocks, from the first on, as many as fit.
    Extents,
    /// Have the blocks in memory, if that is of any use: they will be read soon.
    Prefetch,
}

impl Op {
    /// Whether it changes what is on the disk.
    pub fn mutates(self) -> bool {
        match self {
            Self::Read | Self::Flush | Self::Extents | Self::Prefetch => false,
            Self::Write { .. } | Self::Zero { .. } | Self::Discard => true,
        }
    }

    /// A word for people: `read`, `write`, `flush`, `zero`, `discard`, `extents` or `prefetch`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Zero { .. } => "zero",
            Self::Discard => "discard",
            Self::Extents => "extents",
            Self::Prefetch => "prefetch",
        }
    }
}

/// Names a request for the session that made it. It can neither be copied nor be made up by a driver: it leaves in
/// [`crate::Step::Submit`] and comes back in [`crate::Session::complete`], once.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(u32);

impl Ticket {
    /// A ticket of that number, which is the session's own affair.
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub fn number(&self) -> u32 {
        self.0
    }
}

/// A disk request, not yet checked.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub op: Op,
    /// The first block, from zero.
    pub lba: u64,
    /// How many blocks; zero for a flush.
    pub blocks: u64,
    /// For a read and a write: memory of exactly that many blocks. For extents: memory of any length.
    pub buffer: Option<Buffer>,
    /// Its name.
    pub ticket: Ticket,
}

/// A request that did not pass the gate: why, and the request itself.
#[derive(Debug)]
pub struct Denied {
    /// Why.
    pub fault: Fault,
    /// What was asked, with its buffer.
    pub request: Request,
}

/// What one connection may do with one export.
#[derive(Debug, Clone)]
pub struct Grant {
    export: Arc<Export>,
    access: Access,
    fence: Arc<Fence>,
}

impl Grant {
    /// All that the export itself allows.
    pub fn new(export: Arc<Export>) -> Self {
        let access = export.access;
        Self { access, fence: Fence::new(export.clone()), export }
    }

    /// The same, without writing.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { access: Access::ReadOnly, ..self }
    }

    /// The same for a connection that has had `before` so far: its writes in flight stay its own.
    #[must_use]
    pub fn with_fence_of(self, before: &Self) -> Self {
        let same = Arc::ptr_eq(&self.export, &before.export);
        if same { Self { fence: before.fence.clone(), ..self } } else { self }
    }

    /// What ends the connection's right to write.
    pub fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    /// The export.
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// What may be done with it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The gate: the only way to an [`Admitted`].
    ///
    /// # Errors
    /// The request comes back with the reason: not there any more, read-only, out of range, a buffer of the wrong
    /// length, a flush after a failed one, or [`Fault::Busy`] while another request has the export for itself, while there
    /// are orphaned writes, and once the [`Fence`] of the connection is closed.
    pub fn admit(&self, request: Request) -> Result<Admitted, Box<Denied>> {
        self.check_and_enter(request, None)
    }

    /// The same gate for the tenant of the [`Exclusive`] right to write this export.
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

    fn check_and_enter(
        &self,
        request: Request,
        right: Option<&Exclusive>,
    ) -> Result<Admitted, Box<Denied>> {
        let (offset, len, stored) = match self.check(&request) {
            Ok(range) => range,
            Err(fault) => return Err(Box::new(Denied { fault, request })),
        };
        let alone = right.is_some_and(|right| right.is_for(&self.export));
        let hold = if request.op.mutates() { self.fence.enter(alone) } else { None };
        if request.op.mutates() && hold.is_none() {
            return Err(Box::new(Denied { fault: Fault::Busy, request }));
        }
        let Request { op, buffer, ticket, .. } = request;
        let export = self.export.clone();
        Ok(Admitted { export, op, offset, len, stored, buffer, ticket, hold })
    }

    /// Gives the first byte, the number of bytes, and how many of them the disk has.
    fn check(&self, request: &Request) -> Result<(u64, u64, u64), Fault> {
        // Looked at once: the disk may be resized at any time.
        let bytes = self.export.bytes();
        let (offset, len) = self.range(request.op, request.lba, request.blocks, bytes)?;
        let carries = matches!(request.op, Op::Read | Op::Write { .. });
        let held = request.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        if carries && held != len {
            return Err(Fault::Misaligned);
        }
        let may_be_short = request.op == Op::Read && self.export.access == Access::ReadOnly;
        let stored = if may_be_short { len.min(bytes.saturating_sub(offset)) } else { len };
        Ok((offset, len, stored))
    }

    /// Whether a request would be admitted, apart from its buffer and from [`Fault::Busy`]: to refuse it before its data
    /// is asked for. Gives the first byte and the number of bytes.
    ///
    /// # Errors
    /// As [`Grant::admit`].
    pub fn permits(&self, op: Op, lba: u64, blocks: u64) -> Result<(u64, u64), Fault> {
        self.range(op, lba, blocks, self.export.bytes())
    }

    fn range(&self, op: Op, lba: u64, blocks: u64, bytes: u64) -> Result<(u64, u64), Fault> {
        let export = &self.export;
        if export.is_gone() {
            return Err(Fault::Gone);
        }
        if op.mutates() && (self.access == Access::ReadOnly || export.access == Access::ReadOnly) {
            return Err(Fault::ReadOnly);
        }
        if op == Op::Flush && export.has_failed_flush() {
            return Err(Fault::Io);
        }
        // Only a read-only export has a last block that is a part of one.
        export.geometry.bytes_of(lba, blocks, export.geometry.blocks_for(bytes))
    }
}

/// A request that passed the gate.
#[derive(Debug)]
pub struct Admitted {
    export: Arc<Export>,
    op: Op,
    offset: u64,
    len: u64,
    stored: u64,
    buffer: Option<Buffer>,
    ticket: Ticket,
    hold: Option<Hold>,
}

impl Admitted {
    /// The export that it is for.
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// What is asked.
    pub fn op(&self) -> Op {
        self.op
    }

    /// The first byte, from zero.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// How many of them the disk has: fewer for a read of a read-only export whose last block is only a part of one, which
    /// reads as zeros from there on.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Whether it concerns no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory to read into or to write from.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map(Buffer::bytes_mut).unwrap_or_default()
    }

    /// Ends the request: counts it, and makes what goes back to the session.
    pub fn finish(self, result: Result<(), Fault>) -> (Ticket, Outcome) {
        count(&self.export, self.op, self.len, result);
        drop(self.hold);
        (self.ticket, Outcome { result, buffer: self.buffer })
    }
}

fn count(export: &Export, op: Op, len: u64, result: Result<(), Fault>) {
    let usage = &export.usage;
    let add = |counter: &std::sync::atomic::AtomicU64, n| counter.fetch_add(n, Ordering::Relaxed);
    match (op, result) {
        (Op::Flush, Err(_)) => export.flush_failed(),
        (Op::Read, Ok(())) => {
            add(&usage.reads, 1);
            add(&usage.bytes_read, len);
        }
        (Op::Write { .. } | Op::Zero { .. }, Ok(())) => {
            add(&usage.writes, 1);
            add(&usage.bytes_written, len);
        }
        _ => {}
    }
    if result.is_err() {
        add(&usage.errors, 1);
    }
}

/// How a disk request ended.
#[derive(Debug)]
pub struct Outcome {
    /// Well, or how it failed.
    pub result: Result<(), Fault>,
    /// The buffer of the request; after a good read, filled in all its length.
    pub buffer: Option<Buffer>,
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Geometry, Identity, Pool};

    fn grant(access: Access) -> Grant {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let mut export =
            Export::new("disk", "nqn.test", Identity::default(), geometry, 8 * 512, disk);
        export.access = access;
        Grant::new(Arc::new(export))
    }

    fn request(op: Op, lba: u64, blocks: u64) -> Request {
        let carries = matches!(op, Op::Read | Op::Write { .. });
        let buffer = carries.then(|| {
            Pool::new(1 << 20).open().take(usize::try_from(blocks).unwrap() * 512).unwrap()
        });
        Request { op, lba, blocks, buffer, ticket: Ticket::new(7) }
    }

    const WRITE: Op = Op::Write { durable: false };

    #[test]
    fn nothing_that_changes_the_disk_is_admitted_to_a_read_only_export() {
        let grant = grant(Access::ReadOnly);
        for op in [WRITE, Op::Zero { unmap: true, durable: false, fast: false }, Op::Discard] {
            assert_eq!(grant.admit(request(op, 0, 1)).unwrap_err().fault, Fault::ReadOnly);
        }
        assert!(grant.admit(request(Op::Read, 0, 1)).is_ok());
        assert!(grant.admit(request(Op::Flush, 0, 0)).is_ok());
    }

    #[test]
    fn a_grant_can_be_narrower_than_the_export() {
        let grant = grant(Access::Writable).read_only();
        assert_eq!(grant.admit(request(WRITE, 0, 1)).unwrap_err().fault, Fault::ReadOnly);
    }

    #[test]
    fn the_range_and_the_buffer_are_checked() {
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
    fn after_a_failed_flush_no_later_one_is_admitted() {
        let grant = grant(Access::Writable);
        let (ticket, outcome) =
            grant.admit(request(Op::Flush, 0, 0)).unwrap().finish(Err(Fault::Io));
        assert_eq!((ticket, outcome.result), (Ticket::new(7), Err(Fault::Io)));
        assert_eq!(grant.admit(request(Op::Flush, 0, 0)).unwrap_err().fault, Fault::Io);
        assert_eq!(grant.export().usage.errors.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_withdrawn_export_admits_nothing() {
        let grant = grant(Access::Writable);
        grant.export().withdraw();
        assert_eq!(grant.admit(request(Op::Read, 0, 1)).unwrap_err().fault, Fault::Gone);
    }

    #[test]
    fn an_exclusive_claim_waits_for_writes_under_way_and_keeps_others_out() {
        let grant = grant(Access::Writable);
        let under_way = grant.admit(request(WRITE, 0, 1)).unwrap();
        let right = Exclusive::claim(grant.export()).unwrap();
        assert!(!right.is_drained());
        assert!(Exclusive::claim(grant.export()).is_none());
        assert_eq!(grant.admit(request(WRITE, 1, 1)).unwrap_err().fault, Fault::Busy);
        assert!(grant.admit(request(Op::Read, 1, 1)).is_ok());
        let _ = under_way.finish(Ok(()));
        assert!(right.is_drained());
        assert!(grant.admit_exclusive(request(WRITE, 1, 1), &right).is_ok());
        drop(right);
        assert!(grant.admit(request(WRITE, 1, 1)).is_ok());
    }

    #[test]
    fn a_refused_write_is_never_seen_by_the_holder_of_the_right() {
        let grant = grant(Access::Writable);
        let right = Exclusive::claim(grant.export()).unwrap();
        std::thread::scope(|scope| {
            let intruder = scope
                .spawn(|| (0..20_000).all(|_| grant.admit(request(Op::Discard, 0, 1)).is_err()));
            while !intruder.is_finished() {
                assert!(right.is_drained());
            }
            assert!(intruder.join().unwrap());
        });
    }
}
