//! Execution of one disk request as a sequence of system calls, independent of how the driver makes
//! them.

pub(crate) mod backing;
mod blocking_op;
mod mapping;
pub(crate) mod overlay;
mod pace;
mod read;
mod rescue;
mod virtual_disk;

use std::cell::RefCell;
use std::rc::Rc;

use export::{
    Access, Admitted, Backing, Buffer, Extent, Extents, Fault, Finished, InPlace, Op, Pool,
};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use backing::{
    Location, has_durable_map, has_overlay, is_cached, is_device, is_in_place, locate, perform,
};
pub(crate) use blocking_op::{Answer, Answered, BlockingOp};
pub(crate) use mapping::Mapping;
pub(crate) use pace::{Mappings, Pace};

/// Consecutive interrupted calls without progress after which a request fails.
const MAX_INTERRUPTIONS: u8 = 100;

/// `RWF_ATOMIC` (Linux 6.11).
const ATOMIC: ReadWriteFlags = ReadWriteFlags::from_bits_retain(libc::RWF_ATOMIC.cast_unsigned());

/// A request being executed.
#[derive(Debug)]
pub(crate) struct Job {
    admitted: Admitted,
    phase: Phase,
    /// Bytes read or written so far.
    done: u64,
    /// Interrupted calls since the last progress.
    interrupted: u8,
    zeros: Option<Rc<Buffer>>,
    /// Of an overlay.
    room: overlay::Room,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Reading or writing the buffer.
    Transfer,
    /// A [`BlockingOp`]: extents, a prefetch, or a discard or zeroes of an overlay.
    BlockingOp,
    /// Reading the next `len` bytes from a failing disk, by a [`BlockingOp`]. The length is that of when it was
    /// decided: another request may write these blocks to an overlay at any time.
    Fetch {
        len: u64,
    },
    /// Deallocating the blocks.
    Punch,
    /// Zeroing the blocks by `FALLOC_FL_ZERO_RANGE`.
    ZeroRange,
    /// Writing zeros, because the disk supports neither.
    Fill,
    /// Flushing.
    Sync,
    /// Making changes of an overlay durable, by a [`BlockingOp`].
    Persist,
    Over(Result<(), Fault>),
}

/// The next system call.
#[derive(Debug)]
pub(crate) enum Call<'a> {
    /// `preadv`.
    Read { offset: u64, into: &'a mut [u8] },
    /// `pwritev2`.
    Write { offset: u64, from: &'a [u8], flags: ReadWriteFlags },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate { mode: FallocateFlags, offset: u64, len: u64 },
}

impl Job {
    /// Returns a request that has not started.
    pub(crate) fn new(admitted: Admitted) -> Self {
        let phase = match admitted.op() {
            // Nothing to flush. A disk in use elsewhere must not count a flush as a write.
            Op::Flush if admitted.export().access == Access::ReadOnly => Phase::Over(Ok(())),
            Op::Flush if has_overlay(admitted.export().backing()) && admitted.state().is_none() => {
                Phase::Over(Ok(()))
            }
            Op::Flush if has_durable_map(admitted.export().backing()) => Phase::Persist,
            Op::Flush => Phase::Sync,
            _ if admitted.is_empty() => Phase::Over(Ok(())),
            Op::Read | Op::Write { .. } | Op::WriteAtomic { .. } => Phase::Transfer,
            Op::Extents | Op::Prefetch => Phase::BlockingOp,
            Op::Zero { unmap: false, fast: true, .. } if is_device(admitted.export().backing()) => {
                Phase::Over(Err(Fault::Unsupported))
            }
            // As long as the range is.
            Op::Zero { .. } | Op::Discard if has_overlay(admitted.export().backing()) => {
                Phase::BlockingOp
            }
            Op::Zero { unmap: false, .. } => Phase::ZeroRange,
            Op::Zero { unmap: true, .. } | Op::Discard if admitted.export().discard => Phase::Punch,
            // The disk keeps its blocks.
            Op::Zero { unmap: true, .. } => Phase::ZeroRange,
            Op::Discard => Phase::Over(Ok(())),
        };
        let mut job = Self {
            admitted,
            phase,
            done: 0,
            interrupted: 0,
            zeros: None,
            room: overlay::Room::default(),
        };
        if job.result().is_none() {
            match overlay::check(&job.admitted) {
                Ok(room) => {
                    job.room = room;
                    job.prepare_read();
                }
                Err(fault) => job.refuse(fault),
            }
        }
        job
    }

    /// Returns the request.
    pub(crate) fn admitted(&self) -> &Admitted {
        &self.admitted
    }

    /// Returns the result, once the request is complete.
    pub(crate) fn result(&self) -> Option<Result<(), Fault>> {
        match self.phase {
            Phase::Over(result) => Some(result),
            _ => None,
        }
    }

    /// Returns whether the next step is a [`Job::blocking_op`].
    pub(crate) fn needs_blocking_op(&self) -> bool {
        matches!(self.phase, Phase::BlockingOp | Phase::Persist | Phase::Fetch { .. })
    }

    /// Returns the operation to run instead of a [`Job::call`], for requests that need one. It may
    /// block.
    pub(crate) fn blocking_op(&mut self) -> Option<BlockingOp> {
        match self.phase {
            Phase::BlockingOp => {
                let room = self.admitted.bytes_mut().len() / Extent::LEN;
                Some(BlockingOp::new(&self.admitted, room))
            }
            Phase::Persist => Some(BlockingOp::flush(&self.admitted)),
            Phase::Fetch { len } => {
                let (start, _) = self.left();
                Some(BlockingOp::fetch(&self.admitted, start, start.saturating_add(len)))
            }
            _ => None,
        }
    }

    /// Continues or completes the request with the result of its [`Job::blocking_op`].
    pub(crate) fn answer(&mut self, answer: Answer) {
        if matches!(self.phase, Phase::Fetch { .. }) {
            return self.fetched(answer);
        }
        if self.phase == Phase::Persist {
            if answer.is_err() {
                // Errors of earlier writes are reported once.
                self.admitted.export().flush_failed();
            }
            self.phase = Phase::Over(answer.map(drop));
            return;
        }
        if self.admitted.op().mutates() {
            self.end(answer.map(drop));
            return;
        }
        let mut extents = Extents::emit(self.admitted.bytes_mut());
        if let Ok(Answered::Extents(found)) = answer {
            found.into_iter().all(|extent| extents.push(extent));
        }
        self.end(Ok(()));
    }

    /// Returns the next system call, after the backing and the index of its file in
    /// [`Backing::descriptors`]. Only for a request without a [`Job::result`] and without a
    /// [`Job::blocking_op`].
    pub(crate) fn call(&mut self) -> (&Backing, usize, Call<'_>) {
        let (offset, left) =
            (self.admitted.offset() + self.done, self.admitted.len().saturating_sub(self.done));
        let (op, flags) = (self.admitted.op(), self.write_flags());
        let Location { file, offset, len: run } = locate(&self.admitted, offset, left);
        let (export, bytes) = self.admitted.export_and_bytes();
        let backing = export.backing();
        let call = match self.phase {
            Phase::Transfer => {
                let done = usize::try_from(self.done).unwrap_or(usize::MAX);
                let bytes = bytes.get_mut(done..).unwrap_or_default();
                let len = usize::try_from(run).map_or(bytes.len(), |run| run.min(bytes.len()));
                let bytes = bytes.get_mut(..len).unwrap_or_default();
                match op {
                    Op::Read => Call::Read { offset, into: bytes },
                    _ => Call::Write { offset, from: bytes, flags },
                }
            }
            Phase::Fill => {
                let whole = self.zeros.as_ref().map(|zeros| zeros.bytes()).unwrap_or_default();
                let len = usize::try_from(left).map_or(whole.len(), |left| left.min(whole.len()));
                Call::Write { offset, from: whole.get(..len).unwrap_or_default(), flags }
            }
            Phase::Punch => Self::allocate(FallocateFlags::PUNCH_HOLE, offset, left),
            Phase::ZeroRange => Self::allocate(FallocateFlags::ZERO_RANGE, offset, left),
            Phase::Sync
            | Phase::Persist
            | Phase::BlockingOp
            | Phase::Fetch { .. }
            | Phase::Over(_) => Call::Sync,
        };
        (backing, file, call)
    }

    fn allocate(mode: FallocateFlags, offset: u64, len: u64) -> Call<'static> {
        Call::Allocate { mode: mode | FallocateFlags::KEEP_SIZE, offset, len }
    }

    fn is_fast(&self) -> bool {
        matches!(self.admitted.op(), Op::Zero { fast: true, .. })
    }

    fn is_durable(&self) -> bool {
        matches!(
            self.admitted.op(),
            Op::Write { durable: true }
                | Op::WriteAtomic { durable: true }
                | Op::Zero { durable: true, .. }
        )
    }

    fn write_flags(&self) -> ReadWriteFlags {
        let mut flags = ReadWriteFlags::empty();
        flags.set(ReadWriteFlags::DSYNC, self.is_durable() && !self.is_persisted());
        flags.set(ATOMIC, matches!(self.admitted.op(), Op::WriteAtomic { .. }));
        flags
    }

    /// Returns the buffer of the request, if it has one.
    pub(crate) fn buffer_mut(&mut self) -> Option<&mut Buffer> {
        self.admitted.buffer_mut()
    }

    /// Processes the result of the [`Job::call`].
    pub(crate) fn advance(&mut self, result: Result<usize, Errno>) {
        match result {
            Ok(moved) => self.succeed(moved),
            Err(Errno::INTR | Errno::AGAIN) if self.interrupted < MAX_INTERRUPTIONS => {
                self.interrupted += 1
            }
            Err(errno) => self.fail(errno),
        }
    }

    fn succeed(&mut self, moved: usize) {
        self.interrupted = 0;
        match self.phase {
            Phase::Transfer | Phase::Fill => {
                self.progress(moved as u64);
                self.prepare_read();
            }
            Phase::Punch | Phase::ZeroRange if self.is_durable() && !self.is_persisted() => {
                self.phase = Phase::Sync;
            }
            // No system call reads these bytes, and the buffer has old contents.
            Phase::Fetch { .. } => self.end(Err(Fault::Io)),
            _ => self.end(Ok(())),
        }
    }

    fn progress(&mut self, moved: u64) {
        self.done = self.done.saturating_add(moved);
        // A partial last block has no more bytes.
        if self.done >= self.admitted.stored() {
            self.end(Ok(()));
        } else if matches!(self.admitted.op(), Op::WriteAtomic { .. }) {
            // The rest would be another write.
            self.end(Err(Fault::Io));
        } else if moved == 0 {
            // The disk is shorter than it was when it was opened.
            let reads = self.admitted.op() == Op::Read;
            self.end(Err(if reads { Fault::Io } else { Fault::NoSpace }));
        }
    }

    fn fail(&mut self, errno: Errno) {
        match self.phase {
            // A discard is advisory (NVM Command Set 1.0 §3.2.3, deallocate): it succeeds on a disk
            // that does not support it.
            Phase::Punch if lacks(errno) && self.admitted.op() == Op::Discard => self.end(Ok(())),
            Phase::Punch
                if lacks(errno)
                    && self.is_fast()
                    && is_device(self.admitted.export().backing()) =>
            {
                self.end(Err(Fault::Unsupported));
            }
            Phase::Punch if lacks(errno) => self.phase = Phase::ZeroRange,
            Phase::ZeroRange if lacks(errno) && self.is_fast() => {
                self.end(Err(Fault::Unsupported));
            }
            Phase::ZeroRange if lacks(errno) => self.fill(),
            _ => {
                if self.has_consumed_writeback_error(errno) {
                    self.admitted.export().flush_failed();
                }
                self.end(Err(Fault::from_errno(errno.raw_os_error())));
            }
        }
    }

    /// Returns whether this call has consumed the error of an earlier cached write: the kernel
    /// reports a writeback error once per descriptor, to the first sync. Direct I/O fails on its
    /// own account only.
    fn has_consumed_writeback_error(&self, errno: Errno) -> bool {
        let is_cached = || is_cached(self.admitted.export().backing());
        match self.phase {
            Phase::Sync => true,
            Phase::Transfer | Phase::Fill => self.is_durable() && errno == Errno::IO && is_cached(),
            _ => false,
        }
    }

    fn fill(&mut self) {
        self.zeros = buffer_of_zeros();
        match self.zeros {
            Some(_) => self.phase = Phase::Fill,
            None => self.end(Err(Fault::Io)),
        }
    }

    fn end(&mut self, result: Result<(), Fault>) {
        let result = result.and_then(|()| overlay::record(&self.admitted));
        let room = std::mem::take(&mut self.room);
        if result.is_ok() {
            room.commit();
        }
        if self.admitted.op() == Op::Read {
            // Old contents of the buffer must not be sent, neither after a failure nor beyond the
            // end of the disk.
            let read = if result.is_ok() { self.admitted.stored() } else { self.done };
            let read = usize::try_from(read).unwrap_or(0);
            self.admitted.bytes_mut().get_mut(read..).unwrap_or_default().fill(0);
        }
        self.zeros = None;
        self.phase = match result {
            Ok(()) if self.is_durable() && self.is_persisted() => Phase::Persist,
            result => Phase::Over(result),
        };
    }

    /// Returns whether a durable request has to store the map of an overlay.
    fn is_persisted(&self) -> bool {
        has_durable_map(self.admitted.export().backing())
    }

    /// Fails the request before it has started.
    pub(crate) fn refuse(&mut self, fault: Fault) {
        self.end(Err(fault));
    }

    /// Returns the index of the file in [`Backing::descriptors`] that has all bytes of the request at their
    /// own offsets, if it has not begun.
    pub(crate) fn single_file(&self) -> Option<usize> {
        let (start, len) = (self.admitted.offset(), self.admitted.len());
        let Location { file, len: run, .. } = locate(&self.admitted, start, len);
        let is_in_place = is_in_place(self.admitted.export().backing(), file);
        (self.done == 0 && run >= len && is_in_place).then_some(file)
    }

    /// Executes a read, or a write that need not be durable, on the mapping of its
    /// [`single_file`](Self::single_file). Returns false if it must be executed by system calls.
    pub(crate) fn run_mapped(&mut self, mapping: &Rc<Mapping>) -> bool {
        let admitted = &mut self.admitted;
        // A partial last block is padded with zeros, which are not in the file.
        let is_whole = admitted.stored() == admitted.len();
        let Some(start) = mapping.index(admitted.offset(), admitted.len()).filter(|_| is_whole)
        else {
            return false;
        };
        let done = match admitted.op() {
            Op::Read if admitted.is_in_place_allowed() => {
                admitted.set_in_place(InPlace { memory: mapping.clone(), start });
                true
            }
            Op::Read => mapping.read(start, admitted.bytes_mut()),
            Op::Write { durable: false } => mapping.write(start, admitted.bytes_mut()),
            _ => false,
        };
        match (done, self.admitted.op()) {
            // The map of an overlay.
            (true, Op::Write { .. }) => self.end(Ok(())),
            (true, _) => self.phase = Phase::Over(Ok(())),
            (false, _) => {}
        }
        done
    }

    /// Executes the request, blocking.
    pub(crate) fn run(&mut self) {
        while self.result().is_none() {
            if let Some(blocking_op) = self.blocking_op() {
                self.answer(blocking_op.run());
                continue;
            }
            let (backing, file, call) = self.call();
            let result = perform(backing, file, call);
            self.advance(result);
        }
    }

    /// Returns what to pass to the session. A request that is not complete fails.
    pub(crate) fn finish(self) -> Finished {
        let result = self.result().unwrap_or(Err(Fault::Io));
        self.admitted.finish(result)
    }
}

/// Returns whether the errno of `fallocate` means that the operation is not supported. Character
/// devices return `ENODEV`, and file systems return `EINVAL` for ranges that they do not support.
fn lacks(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::NODEV | Errno::INVAL)
}

/// Returns 1 MiB of zeros, shared by all requests of a thread that are writing zeros.
fn buffer_of_zeros() -> Option<Rc<Buffer>> {
    thread_local! {
        static ZEROS: RefCell<std::rc::Weak<Buffer>> =
            const { RefCell::new(std::rc::Weak::new()) };
    }
    ZEROS.with_borrow_mut(|kept| {
        if let Some(zeros) = kept.upgrade() {
            return Some(zeros);
        }
        let mut buffer = Pool::new(0).open().take(Pool::MAX_BUFFER)?;
        buffer.bytes_mut().fill(0);
        let zeros = Rc::new(buffer);
        *kept = Rc::downgrade(&zeros);
        Some(zeros)
    })
}

/// Executes a request by system calls, blocking.
pub(crate) fn carry_out(admitted: Admitted) -> Finished {
    let mut job = Job::new(admitted);
    job.run();
    job.finish()
}

#[cfg(test)]
mod test {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use export::{
        Access, AtomicWrites, Export, Geometry, Grant, Identity, Outcome, Request, Ticket,
    };
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const BLOCK: usize = 512;
    const WRITE: Op = Op::Write { durable: false };

    fn memory(bytes: u64) -> OwnedFd {
        let disk = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&disk, bytes).unwrap();
        disk
    }

    fn grant(disk: OwnedFd, bytes: u64) -> Grant {
        let mut export = export(disk, bytes);
        (export.access, export.discard) = (Access::Writable, true);
        Grant::new(Arc::new(export))
    }

    fn export(disk: OwnedFd, bytes: u64) -> Export {
        let geometry = Geometry::new(512, 512).unwrap();
        Export::new("disk", "nqn", Identity::default(), geometry, bytes, disk.into())
    }

    fn admit(grant: &Grant, op: Op, lba: u64, blocks: u64, fill: u8) -> Admitted {
        let buffer = op.transfers().then(|| {
            let len = usize::try_from(blocks).unwrap() * BLOCK;
            let mut buffer = Pool::new(1 << 20).open().take(len).unwrap();
            buffer.bytes_mut().fill(fill);
            buffer
        });
        grant.admit(Request { op, lba, blocks, buffer, ticket: Ticket::new(1) }).unwrap()
    }

    fn read(grant: &Grant, lba: u64, blocks: u64) -> Outcome {
        carry_out(admit(grant, Op::Read, lba, blocks, 0xee)).outcome
    }

    #[test]
    fn written_data_is_read_back() {
        let grant = grant(memory(1 << 16), 1 << 16);
        for op in [WRITE, Op::Write { durable: true }] {
            assert_eq!(carry_out(admit(&grant, op, 2, 3, 7)).outcome.result, Ok(()));
        }
        assert_eq!(carry_out(admit(&grant, Op::Flush, 0, 0, 0)).outcome.result, Ok(()));
        let outcome = read(&grant, 1, 5);
        let buffer = outcome.buffer.unwrap();
        assert_eq!(buffer.bytes()[..BLOCK], [0; BLOCK]);
        assert!(buffer.bytes()[BLOCK..4 * BLOCK].iter().all(|&b| b == 7));
        assert_eq!(buffer.bytes()[4 * BLOCK..], [0; BLOCK]);
    }

    #[test]
    fn atomic_write_is_one_call_or_fails() {
        let mut export = export(memory(1 << 16), 1 << 16);
        export.access = Access::Writable;
        export.geometry.atomic = AtomicWrites::new(512, 4096);
        let grant = Grant::new(Arc::new(export));
        for durable in [false, true] {
            let mut job = Job::new(admit(&grant, Op::WriteAtomic { durable }, 0, 4, 7));
            let (_, _, Call::Write { offset: 0, from, flags }) = job.call() else {
                panic!("no write");
            };
            let expected = if durable { libc::RWF_DSYNC } else { 0 } | libc::RWF_ATOMIC;
            assert_eq!((from.len(), flags.bits()), (4 * BLOCK, expected.cast_unsigned()));
            // A part of it is not what was promised.
            job.advance(Ok(2 * BLOCK));
            assert_eq!(job.result(), Some(Err(Fault::Io)));
        }
        // This file system does not support it, which must not be ignored.
        let outcome = carry_out(admit(&grant, Op::WriteAtomic { durable: false }, 0, 4, 7)).outcome;
        assert_eq!(outcome.result, Err(Fault::Unsupported));
    }

    #[test]
    fn r21_read_beyond_the_end_shows_no_stale_bytes() {
        let grant = grant(memory(3 * BLOCK as u64), 1 << 16);
        let outcome = read(&grant, 2, 4);
        assert_eq!(outcome.result, Err(Fault::Io));
        assert_eq!(outcome.buffer.unwrap().bytes(), [0; 4 * BLOCK]);
    }

    #[test]
    fn partial_last_block_is_padded_with_zeros() {
        // The file may have grown since it was opened.
        for more in [0_usize, 100] {
            let bytes = 4 * BLOCK as u64 + 65;
            let disk = memory(bytes + u64::try_from(more).unwrap());
            rustix::io::pwrite(&disk, &[7; 5 * BLOCK][..4 * BLOCK + 65 + more], 0).unwrap();
            let grant = Grant::new(Arc::new(export(disk, bytes)));
            for (lba, blocks) in [(4, 1), (0, 5), (3, 2)] {
                let outcome = read(&grant, lba, blocks);
                assert_eq!(outcome.result, Ok(()));
                let buffer = outcome.buffer.unwrap();
                let part = buffer.bytes().len() - BLOCK + 65;
                assert!(buffer.bytes()[..part].iter().all(|&b| b == 7));
                assert!(buffer.bytes()[part..].iter().all(|&b| b == 0), "{lba} {blocks}");
            }
        }
    }

    #[test]
    fn read_of_a_truncated_partial_block_fails() {
        let grant = Grant::new(Arc::new(export(memory(4 * BLOCK as u64), 4 * BLOCK as u64 + 65)));
        let outcome = read(&grant, 3, 2);
        assert_eq!(outcome.result, Err(Fault::Io));
        assert_eq!(outcome.buffer.unwrap().bytes(), [0; 2 * BLOCK]);
    }

    #[test]
    fn zeroing_falls_back_to_writing_zeros() {
        let len = 3 << 20;
        let grant = grant(memory(len), len);
        for unmap in [false, true] {
            for lba in [0, 4000] {
                assert_eq!(carry_out(admit(&grant, WRITE, lba, 2, 9)).outcome.result, Ok(()));
            }
            // A memfd supports punching holes but no zero ranges: both paths are covered.
            let op = Op::Zero { unmap, durable: true, fast: false };
            assert_eq!(carry_out(admit(&grant, op, 1, 4000, 0)).outcome.result, Ok(()));
            assert_eq!(read(&grant, 0, 1).buffer.unwrap().bytes(), [9; BLOCK]);
            assert_eq!(read(&grant, 1, 1).buffer.unwrap().bytes(), [0; BLOCK]);
            assert_eq!(read(&grant, 4000, 1).buffer.unwrap().bytes(), [0; BLOCK]);
            assert_eq!(read(&grant, 4001, 1).buffer.unwrap().bytes(), [9; BLOCK]);
        }
    }

    #[test]
    fn disk_that_offers_no_discard_keeps_its_blocks() {
        let len = 1 << 20;
        let mut export = export(memory(len), len);
        export.access = Access::Writable;
        let grant = Grant::new(Arc::new(export));
        let blocks = || rustix::fs::fstat(grant.export().backing().written()).unwrap().st_blocks;
        assert_eq!(carry_out(admit(&grant, WRITE, 0, 2048, 9)).outcome.result, Ok(()));
        let before = blocks();
        assert_eq!(carry_out(admit(&grant, Op::Discard, 0, 1024, 0)).outcome.result, Ok(()));
        assert_eq!(read(&grant, 0, 1).buffer.unwrap().bytes(), [9; BLOCK]);
        let op = Op::Zero { unmap: true, durable: false, fast: false };
        assert_eq!(carry_out(admit(&grant, op, 1024, 1024, 0)).outcome.result, Ok(()));
        assert_eq!(read(&grant, 1024, 1).buffer.unwrap().bytes(), [0; BLOCK]);
        assert!(before > 0 && blocks() == before);
    }

    #[test]
    fn unsupported_discard_succeeds() {
        let null = OwnedFd::from(std::fs::File::options().write(true).open("/dev/null").unwrap());
        let grant = grant(null, 1 << 16);
        assert_eq!(carry_out(admit(&grant, Op::Discard, 0, 8, 0)).outcome.result, Ok(()));
    }

    #[test]
    fn full_disk_and_read_only_descriptor_are_reported() {
        let full = OwnedFd::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let outcome = carry_out(admit(&grant(full, 1 << 16), WRITE, 0, 1, 0)).outcome;
        assert_eq!(outcome.result, Err(Fault::NoSpace));
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let outcome = carry_out(admit(&grant(null, 1 << 16), WRITE, 0, 1, 0)).outcome;
        assert_eq!(outcome.result, Err(Fault::ReadOnly));
    }

    #[test]
    fn r21_short_transfers_continue_and_interruptions_are_bounded() {
        let grant = grant(memory(1 << 16), 1 << 16);
        let mut job = Job::new(admit(&grant, WRITE, 4, 2, 1));
        job.advance(Err(Errno::INTR));
        job.advance(Ok(100));
        let (_, 0, Call::Write { offset, from, .. }) = job.call() else { panic!("a write") };
        assert_eq!((offset, from.len()), (4 * 512 + 100, 924));
        for _ in 0..=MAX_INTERRUPTIONS {
            assert_eq!(job.result(), None);
            job.advance(Err(Errno::AGAIN));
        }
        assert_eq!(job.result(), Some(Err(Fault::Io)));
    }

    #[test]
    fn transfer_without_progress_fails_by_its_direction() {
        let grant = grant(memory(1 << 16), 1 << 16);
        for (op, fault) in [(Op::Read, Fault::Io), (WRITE, Fault::NoSpace)] {
            let mut job = Job::new(admit(&grant, op, 4, 2, 1));
            job.advance(Ok(512));
            job.advance(Ok(0));
            assert_eq!(job.result(), Some(Err(fault)), "{op:?}");
        }
    }

    #[test]
    fn failed_durable_write_makes_later_flushes_fail() {
        let durable =
            [Op::Write { durable: true }, Op::Zero { unmap: true, durable: true, fast: false }];
        for op in durable {
            let grant = grant(memory(1 << 16), 1 << 16);
            let mut job = Job::new(admit(&grant, op, 0, 1, 1));
            if op != durable[0] {
                job.advance(Ok(0));
                assert_eq!(job.phase, Phase::Sync);
            }
            job.advance(Err(Errno::IO));
            assert_eq!(job.finish().outcome.result, Err(Fault::Io));
            assert!(grant.export().has_failed_flush(), "{op:?}");
        }
        let grant = grant(memory(1 << 16), 1 << 16);
        let mut job = Job::new(admit(&grant, WRITE, 0, 1, 1));
        job.advance(Err(Errno::IO));
        assert_eq!(job.finish().outcome.result, Err(Fault::Io));
        assert!(!grant.export().has_failed_flush());
    }

    #[test]
    fn empty_requests_complete_immediately() {
        let grant = grant(memory(1 << 16), 1 << 16);
        for op in
            [Op::Read, WRITE, Op::Discard, Op::Zero { unmap: true, durable: false, fast: false }]
        {
            assert_eq!(Job::new(admit(&grant, op, 0, 0, 0)).result(), Some(Ok(())));
        }
    }
}
