//! Execution of requests to disks in memory.

use std::cell::Cell;
use std::ptr;
use std::rc::{self, Rc};
use std::sync::{Arc, Weak};

use export::{Export, Op, PAGE};
use rustix::process::{Resource, getrlimit};

use super::backing::{InMemory, Mappable, mappable};
use super::{Job, Mapping};

/// Whether requests to the disk that a connection used last complete immediately. Such requests are
/// executed inline: through io_uring a read of memory costs three times as much, because Linux
/// passes it to a kernel thread.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Identifies the disk, without keeping it open.
    export: Weak<Export>,
    in_memory: InMemory,
    /// The mappings of the disk, and of the data of an overlay, by the index of the file.
    mapped: [Option<(usize, Option<Rc<Mapping>>)>; 2],
}

impl Pace {
    /// Executes the request if it completes immediately. Operations that may cover the whole disk
    /// do not. `mappings` are those of this thread.
    pub(crate) fn run_at_once(&mut self, job: &mut Job, mappings: &mut Mappings) {
        let export = job.admitted().export();
        if !ptr::eq(self.export.as_ptr(), Arc::as_ptr(export)) {
            let (export, in_memory) = (Arc::downgrade(export), InMemory::of(export.backing()));
            *self = Self { export, in_memory, mapped: [None, None] };
        }
        let InMemory { all, written } = self.in_memory;
        let at_once = match job.admitted().op() {
            Op::Read => all || (written && !job.reads_base()),
            Op::Write { .. } | Op::Flush => written,
            Op::WriteAtomic { .. } | Op::Zero { .. } | Op::Discard | Op::Extents | Op::Prefetch => {
                false
            }
        };
        if !at_once || job.result().is_some() {
            return;
        }
        let mapping = job.single_file().and_then(|file| {
            let export = job.admitted().export();
            let is_base = file < export.backing().base().files().len();
            self.mapping((file, is_base), || mappings.get(export, file))
        });
        if !mapping.is_some_and(|mapping| job.run_mapped(&mapping)) {
            job.run();
        }
    }

    /// Returns the mapping of a file of the disk, which `get` makes when it is used first. The file is one
    /// of the base, or of the overlay.
    fn mapping(
        &mut self,
        (file, is_base): (usize, bool),
        get: impl FnOnce() -> Option<Rc<Mapping>>,
    ) -> Option<Rc<Mapping>> {
        let [disk, data] = &mut self.mapped;
        let slot = if is_base { disk } else { data };
        match slot {
            Some((known, mapping)) if *known == file => mapping.clone(),
            slot => slot.insert((file, get())).1.clone(),
        }
    }

    /// Releases a disk that is no longer exported.
    pub(crate) fn release_withdrawn(&mut self) {
        if self.export.upgrade().is_none_or(|export| export.is_gone()) {
            *self = Self::default();
        }
    }
}

/// The mapped disks of a thread.
#[derive(Debug)]
pub(crate) struct Mappings {
    /// Limit on the bytes of holes of all mapped files; `None` if no file is mapped. Reading a hole
    /// through a mapping allocates memory, which reading it by a system call does not.
    max_holes: Option<u64>,
    known: Vec<Known>,
}

/// An export that is, or was, mapped.
#[derive(Debug)]
struct Known {
    export: Weak<Export>,
    /// Index of the file in [`export::Backing::descriptors`].
    file: usize,
    mapping: rc::Weak<Mapping>,
    /// Bytes of holes when it was mapped.
    holes: u64,
    /// Whether a page has failed; then it is not mapped again.
    has_failed: Rc<Cell<bool>>,
}

impl Mappings {
    /// Returns an empty list. The mapped files have at most `max_holes` bytes of holes together. No
    /// file is mapped if the address space of the process is limited: buffers need it.
    pub(crate) fn new(max_holes: usize) -> Self {
        let is_limited = getrlimit(Resource::As).current.is_some();
        let max_holes = u64::try_from(max_holes).ok().filter(|_| !is_limited);
        Self { max_holes, known: Vec::new() }
    }

    /// Returns a list that maps no file.
    pub(crate) fn none() -> Self {
        Self { max_holes: None, known: Vec::new() }
    }

    /// Returns the mapping of a file of a disk, if it is in memory, or `None` if it cannot or need not be
    /// mapped.
    fn get(&mut self, export: &Arc<Export>, file: usize) -> Option<Rc<Mapping>> {
        self.known.retain(|known| known.export.strong_count() > 0);
        let same = |known: &Known| {
            known.file == file && ptr::eq(known.export.as_ptr(), Arc::as_ptr(export))
        };
        if let Some(known) = self.known.iter().find(|known| same(known)) {
            if known.has_failed.get() {
                return None;
            }
            if let Some(mapping) = known.mapping.upgrade() {
                return Some(mapping);
            }
        }
        self.known.retain(|known| !same(known));
        let mapped = self.known.iter().filter(|known| known.mapping.strong_count() > 0);
        let held: u64 = mapped.map(|known| known.holes).sum();
        let mappable = mappable(export.backing(), file, export.bytes())?;
        let Mappable { holes, is_zero, .. } = mappable;
        // A block is sent as a whole only if it is not longer than a page.
        let is_long = export.geometry.block() as usize > PAGE;
        if is_long || self.max_holes?.saturating_sub(held) < holes {
            return None;
        }
        let has_failed = Rc::<Cell<bool>>::default();
        let mut mapping = Mapping::new(export, &mappable, has_failed.clone()).ok()?;
        mapping.set_zero(is_zero);
        let mapping = Rc::new(mapping);
        let (export, weak) = (Arc::downgrade(export), Rc::downgrade(&mapping));
        self.known.push(Known { export, file, mapping: weak, holes, has_failed });
        Some(mapping)
    }
}

#[cfg(test)]
mod test {
    use std::os::fd::{AsRawFd, OwnedFd};

    use export::{
        Access, Admitted, Backing, Geometry, Grant, Identity, OverlayLayout, Pool, Request, Ticket,
    };
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const BYTES: u64 = 1 << 16;

    fn memory() -> OwnedFd {
        let disk = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&disk, BYTES).unwrap();
        disk
    }

    fn grant(disk: impl Into<OwnedFd>) -> Grant {
        let geometry = Geometry::new(512, 512).unwrap();
        let identity = Identity::default();
        let mut export = Export::new("disk", "nqn", identity, geometry, BYTES, disk.into().into());
        (export.access, export.discard) = (Access::Writable, true);
        Grant::new(Arc::new(export))
    }

    fn admit(grant: &Grant, op: Op, lba: u64, fill: u8) -> Admitted {
        let mut buffer = Pool::new(1 << 20).open().take(512);
        buffer.iter_mut().for_each(|buffer| buffer.bytes_mut().fill(fill));
        let buffer = buffer.filter(|_| op != Op::Discard);
        grant.admit(Request { op, lba, blocks: 1, buffer, ticket: Ticket::new(0) }).unwrap()
    }

    const WRITE: Op = Op::Write { durable: false };

    #[test]
    fn only_requests_to_memory_are_executed_at_once() {
        let (mut pace, mut mappings) = (Pace::default(), Mappings::new(0));
        let mut is_at_once = |grant: &Grant, op| {
            let mut job = Job::new(admit(grant, op, 0, 0));
            pace.run_at_once(&mut job, &mut mappings);
            job.result().is_some()
        };
        let file = grant(std::fs::File::open("/proc/version").unwrap());
        let memory = grant(memory());
        for _ in 0..2 {
            assert!(is_at_once(&memory, Op::Read) && !is_at_once(&memory, Op::Discard));
            assert!(!is_at_once(&file, Op::Read));
        }
        assert!(is_at_once(&grant(std::fs::File::open("/dev/zero").unwrap()), Op::Read));
    }

    /// Writes and reads a block. Returns the result of the read.
    fn write_and_read(pace: &mut Pace, mappings: &mut Mappings, grant: &Grant, lba: u64) -> Job {
        let mut write = Job::new(admit(grant, WRITE, lba, 5));
        pace.run_at_once(&mut write, mappings);
        assert_eq!(write.result(), Some(Ok(())));
        let mut read = Job::new(admit(grant, Op::Read, lba, 0).allow_in_place(true));
        pace.run_at_once(&mut read, mappings);
        read
    }

    #[test]
    fn data_stays_in_place_where_that_is_allowed() {
        let (mut pace, mut mappings) = (Pace::default(), Mappings::new(1 << 16));
        let grant = grant(memory());
        let read = write_and_read(&mut pace, &mut mappings, &grant, 3);
        let buffer = read.finish().outcome.buffer.unwrap();
        assert_eq!((buffer.len(), buffer.bytes().len()), (512, 0));
        assert_eq!(buffer.in_place().unwrap().start, 3 * 512);
        let mut copied = Job::new(admit(&grant, Op::Read, 3, 0));
        pace.run_at_once(&mut copied, &mut mappings);
        assert_eq!(copied.finish().outcome.buffer.unwrap().bytes(), [5; 512]);
    }

    /// A disk of fives in memory with an overlay in memory, of 16 blocks.
    fn overlaid() -> (Grant, OwnedFd) {
        let (base, len) = (memory(), usize::try_from(BYTES).unwrap());
        rustix::io::pwrite(&base, &vec![5; len], 0).unwrap();
        let read_only = std::fs::File::open(format!("/proc/self/fd/{}", base.as_raw_fd())).unwrap();
        let map = memfd_create("map", MemfdFlags::CLOEXEC).unwrap();
        let layout =
            OverlayLayout { limit: 1 << 30, map_cost: 1, is_private: false, is_durable: false };
        let files = vec![read_only.into(), memory(), map];
        let geometry = Geometry::new(512, 512).unwrap();
        let backing = Backing::new(layout.into(), files).unwrap();
        let mut export = Export::new("disk", "nqn", Identity::default(), geometry, BYTES, backing);
        export.access = Access::Writable;
        (Grant::new(Arc::new(export)), base)
    }

    #[test]
    fn overlay_in_memory_is_written_and_read_in_place() {
        let (mut pace, mut mappings) = (Pace::default(), Mappings::new(0));
        let (grant, base) = overlaid();
        let in_place = |job: Job| {
            let buffer = job.finish().outcome.buffer.unwrap();
            let shown = buffer.in_place().expect("in place");
            (shown.memory.clone(), shown.start)
        };
        let mut read = |pace: &mut Pace, lba| {
            let mut job = Job::new(admit(&grant, Op::Read, lba, 0).allow_in_place(true));
            pace.run_at_once(&mut job, &mut mappings);
            assert_eq!(job.result(), Some(Ok(())));
            in_place(job)
        };
        let (disk, at) = read(&mut pace, 3);
        assert_eq!(at, 3 * 512);
        let mut other = Mappings::new(0);
        let mut write = Job::new(admit(&grant, WRITE, 3, 7));
        pace.run_at_once(&mut write, &mut other);
        assert_eq!(write.result(), Some(Ok(())));
        let (data, at) = read(&mut pace, 3);
        assert!(at == 3 * 512 && !Rc::ptr_eq(&disk, &data));
        assert!(Rc::ptr_eq(&disk, &read(&mut pace, 4).0), "this block is still on the disk");
        let mut block = [0; 512];
        rustix::io::pread(&base, &mut block, 3 * 512).unwrap();
        assert_eq!(block, [5; 512]);
    }

    #[test]
    fn random_requests_to_a_mapped_overlay_have_the_right_contents() {
        let (mut pace, mut mappings) = (Pace::default(), Mappings::new(0));
        let (grant, base) = overlaid();
        let (blocks, mut state) = (usize::try_from(BYTES / 512).unwrap(), 1u64);
        let mut random = |end: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % end
        };
        let mut model = vec![5; blocks * 512];
        for _ in 0..2000 {
            let lba = random(blocks);
            let count = 1 + random((blocks - lba).min(9));
            let (op, fill) = (random(3), u8::try_from(random(256)).unwrap());
            let (range, pool) = (lba * 512..(lba + count) * 512, Pool::new(1 << 20).open());
            let op = [Op::Read, WRITE, Op::Discard][op];
            let buffer = (op != Op::Discard).then(|| {
                let mut buffer = pool.take(range.len()).unwrap();
                buffer.bytes_mut().fill(fill);
                buffer
            });
            let (lba, blocks, ticket) = (lba as u64, count as u64, Ticket::new(0));
            let mut job =
                Job::new(grant.admit(Request { op, lba, blocks, buffer, ticket }).unwrap());
            pace.run_at_once(&mut job, &mut mappings);
            job.run();
            let outcome = job.finish().outcome;
            assert_eq!(outcome.result, Ok(()));
            match op {
                Op::Read => assert!(outcome.buffer.unwrap().bytes() == &model[range]),
                Op::Discard => model[range].fill(0),
                _ => model[range].fill(fill),
            }
        }
        let mut disk = vec![0; model.len()];
        rustix::io::pread(&base, &mut disk, 0).unwrap();
        assert!(disk.iter().all(|byte| *byte == 5));
    }

    #[test]
    fn disk_of_zeros_discards_writes_without_a_system_call() {
        let (mut pace, mut mappings) = (Pace::default(), Mappings::new(0));
        let zero = std::fs::File::options().read(true).write(true).open("/dev/zero").unwrap();
        let grant = grant(zero);
        let read = write_and_read(&mut pace, &mut mappings, &grant, 100);
        assert_eq!(read.finish().outcome.buffer.unwrap().in_place().unwrap().start, 0);
        let mut copied = Job::new(admit(&grant, Op::Read, 100, 7));
        pace.run_at_once(&mut copied, &mut mappings);
        assert_eq!(copied.finish().outcome.buffer.unwrap().bytes(), [0; 512]);
    }

    #[test]
    fn files_with_too_many_holes_are_not_mapped() {
        let (mut pace, mut mappings) = (Pace::default(), Mappings::new((1 << 16) - 1));
        let read = write_and_read(&mut pace, &mut mappings, &grant(memory()), 0);
        assert_eq!(read.finish().outcome.buffer.unwrap().bytes(), [5; 512]);
        // The holes of all files count together.
        let (mut mappings, grants) = (Mappings::new(1 << 16), [grant(memory()), grant(memory())]);
        let mapped = grants.each_ref().map(|grant| mappings.get(grant.export(), 0));
        assert!(mapped[0].is_some() && mapped[1].is_none());
    }

    #[test]
    fn truncated_file_fails_as_without_a_mapping() {
        let (mut pace, mut mappings) = (Pace::default(), Mappings::new(1 << 16));
        let disk = memory();
        let grant = grant(disk.try_clone().unwrap());
        write_and_read(&mut pace, &mut mappings, &grant, 0);
        ftruncate(&disk, 4096).unwrap();
        let mut read = Job::new(admit(&grant, Op::Read, 64, 0));
        pace.run_at_once(&mut read, &mut mappings);
        assert_eq!(read.result(), Some(Err(export::Fault::Io)));
        // The file ends here, and the mapping is not used any more, nor by connections to come.
        for pace in [&mut pace, &mut Pace::default()] {
            let read = write_and_read(pace, &mut mappings, &grant, 7);
            assert_eq!(read.finish().outcome.buffer.unwrap().bytes(), [5; 512]);
        }
        drop(pace);
        assert!(mappings.get(grant.export(), 0).is_none());
    }

    #[test]
    fn withdrawn_disk_is_released() {
        let (mut pace, mut mappings) = (Pace::default(), Mappings::new(1 << 16));
        let grant = grant(memory());
        write_and_read(&mut pace, &mut mappings, &grant, 0);
        let mapping = Rc::downgrade(&pace.mapping((0, true), || None).unwrap());
        pace.release_withdrawn();
        assert_eq!(mapping.strong_count(), 1);
        grant.export().withdraw();
        pace.release_withdrawn();
        assert_eq!(mapping.strong_count(), 0);
    }
}
