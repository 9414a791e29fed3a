//! Execution of requests to an export with an [`Overlay`]: where its blocks are read, and the map
//! of what was written.
//!
//! The unit of the map is the logical block, so that no write needs data of the disk. A request is
//! executed as a sequence of calls, one for each run of blocks from the same source.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use export::{
    Admitted, BlockMap, Export, Fault, Op, Overlay, OverlayHost, PersistStep, Reserved, Source,
};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::lacks;

/// A state of an overlay, with its files.
struct State<'a> {
    export: &'a Arc<Export>,
    overlay: &'a Overlay,
    index: usize,
    state: &'a export::OverlayState,
    data: &'a OwnedFd,
    map_file: &'a OwnedFd,
    durable: Option<&'a OwnedFd>,
    blocks: u64,
}

impl<'a> State<'a> {
    /// Returns the state with this index, if the export has an overlay.
    fn of(export: &'a Arc<Export>, index: Option<usize>) -> Option<Self> {
        let (Some(overlay), Some(index)) = (export.backing().overlay(), index) else { return None };
        let (state, data, map_file) = overlay.state(index)?;
        let (durable, blocks) = (overlay.durable_map(index), export.blocks());
        Some(Self { export, overlay, index, state, data, map_file, durable, blocks })
    }

    fn map(&self) -> Result<&'a BlockMap, Fault> {
        self.state.map(|| {
            let map = BlockMap::load(self.blocks, |at, into| fill(self.map_file, at, into))?;
            if let Some(durable) = self.durable {
                map.compare(|at, into| fill(durable, at, into))?;
            }
            Ok(map)
        })
    }

    /// Returns how many bytes of the limit it takes: the data, and the map, which is in its file and
    /// in memory.
    fn used(&self) -> Result<u64, Fault> {
        let map =
            BlockMap::table_bytes(self.blocks).saturating_add(2 * stored_bytes(self.map_file)?);
        Ok(stored_bytes(self.data)?.saturating_add(self.cost(map)))
    }

    /// Returns how many bytes of the limit that much memory for the map takes.
    fn cost(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.overlay.layout().map_cost)
    }

    /// Makes all changes durable, so that they survive a restart. Blocks while another thread does.
    fn persist(&self) -> Result<(), Fault> {
        let Some(durable) = self.durable.filter(|_| self.state.is_changed()) else { return Ok(()) };
        let map = self.map()?;
        let host = self.overlay.host(self.index).ok_or(Fault::Io)?;
        let mut has_header = self.state.persisting();
        let header = (!*has_header).then(|| host.header());
        map.persist(header.as_deref(), |step| match step {
            PersistStep::SyncData => rustix::fs::fdatasync(self.data).map_err(fault),
            PersistStep::Store(at, bytes) => store(durable, at, bytes),
            PersistStep::SyncMap => rustix::fs::fdatasync(durable).map_err(fault),
        })?;
        *has_header = true;
        Ok(())
    }

    /// Reserves `growth` bytes. Fails with [`Fault::NoSpace`] if there is no room.
    fn reserve(&self, growth: u64) -> Result<Reserved, Fault> {
        Overlay::reserve(self.export, self.index, growth, || self.used())
    }

    /// Reserves room for a change of a range, and stores the host before the first change.
    fn prepare(&self, range: Range<u64>, source: Source, data: u64) -> Result<Room, Fault> {
        let is_changed = self.state.is_changed();
        // Before the map takes memory.
        let mut room = match is_changed {
            true => Room::default(),
            false => Room(Some(self.reserve(self.cost(2 * PAGE))?)),
        };
        let map = self.map()?;
        let growth = data.saturating_add(self.cost(map.growth(range.clone(), source)));
        if growth > 0 && !map.is_all(range, source) {
            room.add(self.reserve(growth)?);
        }
        if !is_changed {
            self.begin()?;
        }
        Ok(room)
    }

    /// Stores the host that the state belongs to, before the first change.
    fn begin(&self) -> Result<(), Fault> {
        let host = self.overlay.host(self.index).ok_or(Fault::Io)?;
        store(self.map_file, 0, &host.header())?;
        self.state.set_changed();
        Ok(())
    }
}

/// Reads from the files of an overlay which states belong to which host, and their maps. Blocks.
///
/// # Errors
/// Fails if a file cannot be read.
pub(super) fn restore(export: &Arc<Export>) -> Result<(), Fault> {
    let Some(overlay) = export.backing().overlay() else { return Ok(()) };
    for index in 0..overlay.states() {
        let Some(state) = State::of(export, Some(index)) else { continue };
        let mut header = [0; 1024];
        fill(state.map_file, 0, &mut header)?;
        if let Some(host) = OverlayHost::parse_header(&header) {
            overlay.restore(index, host, state.used()?);
            // Read here rather than by the first request, which others would wait for.
            state.map()?;
        }
    }
    Ok(())
}

/// Makes all changes of the overlay of an export durable, if it has one that survives a restart. Blocks.
/// For the opener, when no worker is left.
///
/// # Errors
/// Fails if a file cannot be read, written or synced.
pub fn persist(export: &Arc<Export>) -> Result<(), Fault> {
    let Some(overlay) = export.backing().overlay() else { return Ok(()) };
    restore(export)?;
    (0..overlay.states()).try_for_each(|index| persist_state(export, Some(index)))
}

/// As [`persist`], for the changes of one host.
pub(super) fn persist_state(export: &Arc<Export>, state: Option<usize>) -> Result<(), Fault> {
    State::of(export, state).map_or(Ok(()), |state| state.persist())
}

/// Returns the source of the byte at `offset` for the host with that state of the overlay, and for how
/// many of the bytes up to `end` it is the same. `end` is a multiple of the block size; a read that
/// goes on inside a block begins there.
pub(super) fn run(
    export: &Arc<Export>,
    state: Option<usize>,
    offset: u64,
    end: u64,
) -> (Source, u64) {
    let base = (Source::Base, end.saturating_sub(offset));
    if !is_changed(export, state) {
        return base;
    }
    let shift = export.geometry.shift();
    match State::of(export, state).map(|state| state.map()) {
        Some(Ok(map)) => {
            let (source, blocks) = map.run(offset >> shift, end >> shift);
            let before = offset & ((1 << shift) - 1);
            (source, (blocks << shift).saturating_sub(before))
        }
        Some(Err(_)) | None => base,
    }
}

/// Returns whether the host with that state has written anything.
fn is_changed(export: &Export, state: Option<usize>) -> bool {
    let (Some(overlay), Some(index)) = (export.backing().overlay(), state) else { return false };
    overlay.is_changed(index)
}

/// Bytes of a page of the memory of an overlay, at least.
const PAGE: u64 = 4096;

/// The room that a request in flight has reserved.
#[derive(Debug, Default)]
pub(super) struct Room(Option<Reserved>);

impl Room {
    fn add(&mut self, more: Reserved) {
        match &mut self.0 {
            Some(reserved) => reserved.join(more),
            none => *none = Some(more),
        }
    }

    /// Records that the request has stored its data.
    pub(super) fn commit(self) {
        self.0.into_iter().for_each(Reserved::commit);
    }
}

/// Checks a request before it starts. Reserves room for a write, and stores the host before its first
/// one. What a discard or zeroes need is checked by [`clear`].
///
/// # Errors
/// [`Fault::NoSpace`] for a write for which there is no room, [`Fault::ReadOnly`] for a change by a host
/// without a state, and the fault of reading the map.
pub(super) fn check(admitted: &Admitted) -> Result<Room, Fault> {
    let (export, op) = (admitted.export(), admitted.op());
    if op == Op::Read && !is_changed(export, admitted.state()) {
        return Ok(Room::default());
    }
    let Some(state) = State::of(export, admitted.state()) else {
        let is_refused = op.mutates() && export.backing().overlay().is_some();
        return if is_refused { Err(Fault::ReadOnly) } else { Ok(Room::default()) };
    };
    match op {
        Op::Write { .. } | Op::WriteAtomic { .. } => {
            // Memory is given out in pages.
            let data = admitted.len().next_multiple_of(PAGE);
            state.prepare(blocks(export, admitted.offset(), admitted.len()), Source::Overlay, data)
        }
        Op::Read => state.map().map(|_| Room::default()),
        _ => Ok(Room::default()),
    }
}

/// Records a completed write in the map, so that its blocks are read from the overlay from now on.
///
/// # Errors
/// Fails if the map cannot be stored.
pub(super) fn record(admitted: &Admitted) -> Result<(), Fault> {
    let is_write = matches!(admitted.op(), Op::Write { .. } | Op::WriteAtomic { .. });
    let Some(state) = State::of(admitted.export(), admitted.state()).filter(|_| is_write) else {
        return Ok(());
    };
    let range = blocks(admitted.export(), admitted.offset(), admitted.len());
    state.map()?.set(range, Source::Overlay, |at, bytes| store(state.map_file, at, bytes))
}

/// Executes a discard, or zeroes: deallocates a range of bytes of the data, and records its blocks as
/// zeros. Blocks: the range may be all of the disk.
///
/// No protocol demands that a discard is carried out. So without room for the map it leaves the blocks of
/// a leaf that the map does not have yet: nothing of them is stored, and discards go on to make room.
///
/// # Errors
/// [`Fault::NoSpace`] for zeroes, if there is no room for the map. Fails if a file cannot be changed.
pub(super) fn clear(
    export: &Arc<Export>,
    state: Option<usize>,
    op: Op,
    (start, end): (u64, u64),
) -> Result<(), Fault> {
    let Some(state) = State::of(export, state) else { return Err(Fault::ReadOnly) };
    let mut range = blocks(export, start, end.saturating_sub(start));
    let room = match state.prepare(range.clone(), Source::Zeros, 0) {
        // The map would take memory.
        Err(Fault::NoSpace) if op == Op::Discard && !state.state.is_changed() => return Ok(()),
        Err(Fault::NoSpace) if op == Op::Discard => {
            range = state.map()?.part_without_growth(range, Source::Zeros);
            Room::default()
        }
        room => room?,
    };
    if range.is_empty() {
        return Ok(());
    }
    let shift = export.geometry.shift();
    let (start, len) = (range.start << shift, (range.end - range.start) << shift);
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(state.data, mode, start, len)) {
        // What cannot be deallocated is hidden by the map.
        Ok(()) => {}
        Err(errno) if lacks(errno) => {}
        Err(errno) => return Err(fault(errno)),
    }
    state.map()?.set(range, Source::Zeros, |at, bytes| store(state.map_file, at, bytes))?;
    room.commit();
    // Other hosts may have the room.
    Overlay::measure(export, state.index, || state.used())
}

fn blocks(export: &Export, offset: u64, len: u64) -> Range<u64> {
    let (start, count) = (offset >> export.geometry.shift(), len >> export.geometry.shift());
    start..start + count
}

/// Returns how many bytes the file occupies.
///
/// # Errors
/// Fails if its state cannot be read.
pub fn stored_bytes(file: &OwnedFd) -> Result<u64, Fault> {
    let stat = rustix::fs::fstat(file).map_err(fault)?;
    Ok(u64::try_from(stat.st_blocks).unwrap_or(u64::MAX).saturating_mul(512))
}

/// Reads from a file, with zeros beyond its end.
pub(super) fn fill(file: &OwnedFd, mut at: u64, mut into: &mut [u8]) -> Result<(), Fault> {
    while !into.is_empty() {
        match rustix::io::pread(file, &mut *into, at) {
            Ok(0) => break,
            Ok(read) => {
                at += read as u64;
                into = into.get_mut(read..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fault(errno)),
        }
    }
    into.fill(0);
    Ok(())
}

pub(super) fn store(file: &OwnedFd, mut at: u64, mut bytes: &[u8]) -> Result<(), Fault> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Fault::NoSpace),
            Ok(written) => {
                at += written as u64;
                bytes = bytes.get(written..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fault(errno)),
        }
    }
    Ok(())
}

fn fault(errno: Errno) -> Fault {
    Fault::from_errno(errno.raw_os_error())
}

#[cfg(test)]
mod test {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use export::{
        Access, Auth, Backing, Caller, Catalogue, Extents, Geometry, Grant, Identity, Outcome,
        OverlayLayout, Peer, Pool, Request, Ticket,
    };
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::disk::{Call, Job, carry_out};

    const BLOCK: usize = 512;
    const BLOCKS: usize = 300;
    const WRITE: Op = Op::Write { durable: false };

    fn memory(bytes: usize) -> OwnedFd {
        let disk = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&disk, bytes as u64).unwrap();
        disk
    }

    /// A disk of random bytes that can only be read, and its contents.
    fn base() -> (OwnedFd, Vec<u8>) {
        let mut random = Random(7);
        let bytes: Vec<u8> = (0..BLOCKS * BLOCK).map(|_| random.byte()).collect();
        let disk = std::fs::File::from(memory(0));
        disk.write_all_at(&bytes, 0).unwrap();
        let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
        (std::fs::File::open(path).unwrap().into(), bytes)
    }

    fn layout(limit: u64, is_private: bool) -> OverlayLayout {
        OverlayLayout { limit, map_cost: 1, is_private, is_durable: false }
    }

    fn grant(files: [OwnedFd; 3], limit: u64) -> Grant {
        grant_of(files, limit, (BLOCK, BLOCKS))
    }

    fn grant_of(files: [OwnedFd; 3], limit: u64, (block, blocks): (usize, usize)) -> Grant {
        let backing = Backing::new(layout(limit, false).into(), files.into()).unwrap();
        Grant::new(export_of(backing, (block, blocks)))
    }

    fn export_of(backing: Backing, (block, blocks): (usize, usize)) -> Arc<Export> {
        let size = u32::try_from(block).unwrap();
        let geometry = Geometry::new(size, size).unwrap();
        let bytes = (blocks * block) as u64;
        let mut export = Export::new("disk", "nqn", Identity::default(), geometry, bytes, backing);
        export.access = Access::Writable;
        let export = Arc::new(export);
        restore(&export).unwrap();
        export
    }

    fn request(op: Op, lba: usize, blocks: usize, block: usize, fill: u8) -> Request {
        let len = match op {
            Op::Read | Op::Write { .. } => blocks * block,
            Op::Extents => 64 * export::Extent::LEN,
            _ => 0,
        };
        let buffer = (len > 0).then(|| {
            let mut buffer = Pool::new(1 << 20).open().take(len).unwrap();
            buffer.bytes_mut().fill(fill);
            buffer
        });
        let (lba, blocks) = (lba as u64, blocks as u64);
        Request { op, lba, blocks, buffer, ticket: Ticket::new(1) }
    }

    fn run_op(grant: &Grant, op: Op, lba: usize, blocks: usize, fill: u8) -> Outcome {
        let block = usize::try_from(grant.export().geometry.block()).unwrap();
        carry_out(grant.admit(request(op, lba, blocks, block, fill)).unwrap()).outcome
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(self.0 >> 33).unwrap() % end
        }

        fn byte(&mut self) -> u8 {
            u8::try_from(self.below(256)).unwrap()
        }
    }

    fn contents(file: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; BLOCKS * BLOCK];
        let file = std::fs::File::from(file.try_clone().unwrap());
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn random_operations_never_change_the_base() {
        let (disk, original) = base();
        let (data, map) = (memory(BLOCKS * BLOCK), memory(0));
        let clones = || [&disk, &data, &map].map(|file| file.try_clone().unwrap());
        let mut grant = grant(clones(), 1 << 30);
        let (mut model, mut random) = (original.clone(), Random(1));
        for round in 0..3000 {
            let lba = random.below(BLOCKS);
            let blocks = 1 + random.below((BLOCKS - lba).min(40));
            let fill = random.byte();
            let range = lba * BLOCK..(lba + blocks) * BLOCK;
            let zero = |unmap, fast| Op::Zero { unmap, fast, durable: fast };
            match random.below(8) {
                0..3 => {
                    let op = Op::Write { durable: round % 2 == 0 };
                    assert_eq!(run_op(&grant, op, lba, blocks, fill).result, Ok(()));
                    model[range].fill(fill);
                }
                3 => {
                    let op = [Op::Discard, zero(true, true), zero(false, false), zero(false, true)];
                    let op = op[random.below(4)];
                    assert_eq!(run_op(&grant, op, lba, blocks, 0).result, Ok(()), "{op:?}");
                    model[range].fill(0);
                }
                // The worker was replaced: only the files remain.
                4 if round % 100 == 0 => grant = self::grant(clones(), 1 << 30),
                4 => assert_eq!(run_op(&grant, Op::Flush, 0, 0, 0).result, Ok(())),
                _ => {
                    let outcome = run_op(&grant, Op::Read, lba, blocks, 0xee);
                    assert_eq!(outcome.result, Ok(()));
                    assert!(outcome.buffer.unwrap().bytes() == &model[range], "{lba} {blocks}");
                }
            }
        }
        assert!(contents(&disk) == original);
        assert!(run_op(&grant, Op::Read, 0, BLOCKS, 0).buffer.unwrap().bytes() == model);
    }

    /// Returns the access of hosts without a key to a private overlay in these files, by their names.
    fn grants_of<const N: usize>(files: &[OwnedFd], hosts: [&str; N]) -> [Grant; N] {
        let clones = files.iter().map(|file| file.try_clone().unwrap());
        let backing = Backing::new(layout(1 << 30, true).into(), clones.collect()).unwrap();
        let catalogue = Catalogue::default();
        catalogue.publish(export_of(backing, (BLOCK, BLOCKS)));
        let peer = Peer::unix(Auth::None);
        let caller = |host| Caller { peer: &peer, host, proven: None };
        hosts.map(|host| catalogue.grant(&caller(host), &"nqn".into()).unwrap())
    }

    #[test]
    fn hosts_see_their_own_writes_over_one_base() {
        let (disk, original) = base();
        let mut files = vec![disk];
        (0..2).for_each(|_| files.extend([memory(BLOCKS * BLOCK), memory(0)]));
        let mut random = Random(2);
        let mut models = [original.clone(), original.clone(), original.clone()];
        let mut grants = grants_of(&files, ["a", "b", "c"]);
        for round in 0..2000 {
            if round % 200 == 199 {
                // The worker was replaced. The states are found by their hosts, in any order.
                let [b, c, a] = grants_of(&files, ["b", "c", "a"]);
                grants = [a, b, c];
            }
            let host = random.below(3);
            let (grant, model) = (&grants[host], &mut models[host]);
            let lba = random.below(BLOCKS);
            let blocks = 1 + random.below((BLOCKS - lba).min(40));
            let (range, fill) = (lba * BLOCK..(lba + blocks) * BLOCK, random.byte());
            let op = [WRITE, Op::Discard, Op::Flush, Op::Read, Op::Read][random.below(5)];
            if host == 2 && op != Op::Read {
                // There is no state for the third: it reads the disk.
                let refused = grant.admit(request(op, lba, blocks, BLOCK, 1));
                assert_eq!(
                    refused.err().map(|it| it.fault),
                    op.mutates().then_some(Fault::ReadOnly)
                );
                continue;
            }
            let outcome = match op {
                Op::Flush => run_op(grant, op, 0, 0, 0),
                op => run_op(grant, op, lba, blocks, fill),
            };
            assert_eq!(outcome.result, Ok(()));
            match op {
                Op::Read => assert!(outcome.buffer.unwrap().bytes() == &model[range]),
                Op::Discard => model[range].fill(0),
                Op::Write { .. } => model[range].fill(fill),
                _ => {}
            }
        }
        assert!(contents(&files[0]) == original && models[0] != models[1] && models[2] == original);
    }

    #[test]
    fn full_overlay_refuses_new_blocks_only() {
        let (disk, original) = base();
        let files = [disk.try_clone().unwrap(), memory(BLOCKS * BLOCK), memory(0)];
        // Two pages of data, and the map: a page for its header, one for its table, and one for its leaf,
        // twice; and the table.
        let grant = grant(files, 8 * 4096 + BlockMap::table_bytes(BLOCKS as u64));
        let write = |lba| run_op(&grant, WRITE, lba, 8, 9).result;
        assert_eq!((write(0), write(8)), (Ok(()), Ok(())));
        assert_eq!(write(16), Err(Fault::NoSpace));
        assert_eq!(write(4), Ok(()), "these blocks have room");
        let read = |lba| run_op(&grant, Op::Read, lba, 8, 0).buffer.unwrap().bytes().to_vec();
        assert!(read(16) == original[16 * BLOCK..24 * BLOCK]);
        assert_eq!(run_op(&grant, Op::Discard, 0, 8, 0).result, Ok(()));
        assert_eq!(write(16), Ok(()), "a discard makes room");
        assert!(contents(&disk) == original);
    }

    #[test]
    fn discards_and_zeroes_do_not_exceed_the_limit() {
        const LEAVES: usize = 20;
        let size = (LEAVES << 14) * BLOCK;
        let (disk, map) = (memory(size), memory(0));
        let files = [disk, memory(size), map.try_clone().unwrap()];
        let grant = grant_of(files, 10 * 4096, (BLOCK, LEAVES << 14));
        let zero = Op::Zero { unmap: false, fast: false, durable: false };
        let clear = |(leaf, op): (usize, Op)| run_op(&grant, op, (leaf << 14) + 5, 1, 0).result;
        let ops = [Op::Discard, zero].into_iter().cycle();
        let results: Vec<_> = (0..LEAVES).zip(ops.clone()).map(clear).collect();
        let full = results.iter().position(Result::is_err).unwrap();
        let wanted = ops.skip(full).map(|op| if op == zero { Err(Fault::NoSpace) } else { Ok(()) });
        assert!(full > 0 && results[full..].iter().copied().eq(wanted.take(LEAVES - full)));
        assert!(2 * stored_bytes(&map).unwrap() <= 10 * 4096);
        assert_eq!(clear((0, Op::Discard)), Ok(()), "its leaf exists");
        assert_eq!(run_op(&grant, Op::Discard, 0, LEAVES << 14, 0).result, Ok(()));
    }

    #[test]
    fn full_overlay_discards_what_needs_no_room() {
        const LEAF: usize = 1 << 14;
        let disk = std::fs::File::from(memory(3 * LEAF * BLOCK));
        for at in [LEAF - 8, 2 * LEAF] {
            disk.write_all_at(&[7; 8 * BLOCK], (at * BLOCK) as u64).unwrap();
        }
        let disk = OwnedFd::from(disk);
        let grant = |limit| {
            let files = [disk.try_clone().unwrap(), memory(3 * LEAF * BLOCK), memory(0)];
            grant_of(files, limit, (BLOCK, 3 * LEAF))
        };
        let full = grant(12 * 4096);
        let write = |lba| run_op(&full, WRITE, lba, 8, 9).result;
        let written = (0..12).take_while(|page| write(LEAF + 8 * page).is_ok()).count();
        assert!((1..12).contains(&written));
        let around = (LEAF - 8, LEAF + 16);
        let zero = Op::Zero { unmap: true, fast: false, durable: false };
        assert_eq!(run_op(&full, zero, around.0, around.1, 0).result, Err(Fault::NoSpace));
        // It begins and ends in leaves of which nothing is written.
        assert_eq!(run_op(&full, Op::Discard, around.0, around.1, 0).result, Ok(()));
        let read = |grant: &Grant, lba| {
            let buffer = run_op(grant, Op::Read, lba, 8, 0).buffer.unwrap();
            assert!(buffer.bytes().iter().all(|byte| *byte == buffer.bytes()[0]));
            buffer.bytes()[0]
        };
        assert_eq!([LEAF - 8, LEAF, 2 * LEAF].map(|lba| read(&full, lba)), [7, 0, 7]);
        assert_eq!(write(LEAF + 8 * written), Ok(()), "the discard makes room");
        // There is not even room for the map.
        let none = grant(4096);
        assert_eq!(run_op(&none, Op::Discard, around.0, around.1, 0).result, Ok(()));
        assert_eq!(read(&none, LEAF - 8), 7);
    }

    #[test]
    fn discard_and_zeroes_run_on_the_thread_for_blocking_operations() {
        let (disk, _) = base();
        let grant = grant([disk, memory(BLOCKS * BLOCK), memory(0)], 1 << 30);
        for op in [Op::Discard, Op::Zero { unmap: false, fast: false, durable: true }] {
            let admitted = grant.admit(request(op, 0, BLOCKS, BLOCK, 0)).unwrap();
            let mut job = Job::new(admitted);
            let blocking_op = job.blocking_op().unwrap();
            // Nothing is changed before, and no thread that serves connections changes the map.
            assert!(run_op(&grant, Op::Read, 7, 1, 0).buffer.unwrap().bytes() != [0; BLOCK]);
            let answer = std::thread::spawn(move || blocking_op.run()).join().unwrap();
            job.answer(answer);
            assert_eq!(job.result(), Some(Ok(())));
            assert!(run_op(&grant, Op::Read, 7, 1, 0).buffer.unwrap().bytes() == [0; BLOCK]);
            assert_eq!(run_op(&grant, WRITE, 7, 1, 5).result, Ok(()));
        }
    }

    #[test]
    fn fault_of_the_base_fails_only_reads_of_it() {
        let files = [memory(BLOCK), memory(BLOCKS * BLOCK), memory(0)];
        let grant = grant(files, 1 << 30);
        assert_eq!(run_op(&grant, WRITE, 10, 2, 5).result, Ok(()));
        assert_eq!(run_op(&grant, Op::Discard, 12, 2, 0).result, Ok(()));
        assert_eq!(run_op(&grant, Op::Read, 10, 4, 0).result, Ok(()));
        let outcome = run_op(&grant, Op::Read, 8, 4, 0xee);
        assert_eq!(outcome.result, Err(Fault::Io));
        assert!(outcome.buffer.unwrap().bytes().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn fault_of_the_overlay_fails_the_request() {
        // Reads as a map of untouched blocks, and cannot be written.
        let broken = || OwnedFd::from(std::fs::File::open("/dev/zero").unwrap());
        let (disk, original) = base();
        for (data, map) in [(broken(), memory(0)), (memory(BLOCKS * BLOCK), broken())] {
            let grant = grant([disk.try_clone().unwrap(), data, map], 1 << 30);
            assert!(run_op(&grant, WRITE, 3, 2, 5).result.is_err());
            let read = run_op(&grant, Op::Read, 0, 8, 0);
            assert!(read.buffer.unwrap().bytes() == &original[..8 * BLOCK]);
        }
    }

    #[test]
    fn extents_show_zeros_of_the_overlay_as_holes() {
        let (disk, _) = base();
        let grant = grant([disk, memory(BLOCKS * BLOCK), memory(0)], 1 << 30);
        assert_eq!(run_op(&grant, WRITE, 10, 2, 5).result, Ok(()));
        assert_eq!(run_op(&grant, Op::Discard, 20, 4, 0).result, Ok(()));
        let buffer = run_op(&grant, Op::Extents, 0, 30, 0).buffer.unwrap();
        let extents: Vec<_> = Extents::parse(buffer.bytes()).collect();
        let holes = extents.iter().filter(|extent| extent.hole).map(|extent| extent.len);
        let all = extents.iter().map(|extent| extent.len);
        assert_eq!((holes.sum::<u64>(), all.sum::<u64>()), (4 * 512, 30 * 512));
    }

    /// Executes a read, whose calls transfer a part of what they could.
    fn read_in_parts(job: &mut Job, random: &mut Random) {
        while job.result().is_none() {
            let (backing, file, call) = job.call();
            let Call::Read { offset, into } = call else { panic!("{call:?}") };
            let len = 1 + random.below(into.len());
            let file = backing.descriptor(file).unwrap().try_clone().unwrap();
            std::fs::File::from(file).read_exact_at(&mut into[..len], offset).unwrap();
            job.advance(Ok(len));
        }
    }

    #[test]
    fn read_resumed_inside_a_block_has_the_right_sources() {
        const LEAF: usize = 1 << 14;
        for block in [512, 4096] {
            let [disk, data, map] = [(); 3].map(|()| memory((LEAF + 100) * block));
            let mut random = Random(3);
            let area: Vec<u8> = (0..200 * block).map(|_| random.byte()).collect();
            let start = (LEAF - 100) as u64;
            std::fs::File::from(disk.try_clone().unwrap())
                .write_all_at(&area, start * block as u64)
                .unwrap();
            let grant = grant_of([disk, data, map], 1 << 30, (block, LEAF + 100));
            let mut model = area;
            for _ in 0..60 {
                let (lba, fill) = (random.below(190), random.byte());
                let blocks = 1 + random.below(4);
                let op = [WRITE, Op::Discard][random.below(2)];
                let at = LEAF - 100 + lba;
                assert_eq!(run_op(&grant, op, at, blocks, fill).result, Ok(()));
                let fill = if op == WRITE { fill } else { 0 };
                model[lba * block..(lba + blocks) * block].fill(fill);
            }
            for _ in 0..100 {
                let lba = random.below(190);
                let blocks = 1 + random.below(200 - lba).min(30);
                let request = request(Op::Read, LEAF - 100 + lba, blocks, block, 0xee);
                let mut job = Job::new(grant.admit(request).unwrap());
                read_in_parts(&mut job, &mut random);
                let outcome = job.finish().outcome;
                let wanted = &model[lba * block..(lba + blocks) * block];
                assert!(outcome.buffer.unwrap().bytes() == wanted, "{block} {lba} {blocks}");
            }
        }
    }
}
