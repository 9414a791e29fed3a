//! Reads of a failing disk ([`RescuedDisk`]): a large piece first, then single blocks up to the first that cannot
//! be read. What was found out is recorded, so that no block is read from the disk twice.
//!
//! One thread at a time reads the disk, and none that serves several connections. A request has the disk
//! read one piece and one block that fail, at most; the block twice if the error is not the one for a bad sector.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use export::{
    Admitted, Base, BlockMap, Buffer, Export, Fault, Pool, RescueReader, RescueState,
    RescueTrouble, RescuedDisk, Source,
};
use rustix::io::Errno;

use super::overlay::{self, fill, store, stored_bytes};

/// Bytes of the disk that are read at once, aligned to their number.
const PIECE: u64 = 64 << 10;

/// Most blocks of the image that are compared with the disk before it is read.
const SAMPLES: u64 = 8;

/// How many of these the disk may fail to give before the comparison ends.
const MAX_UNREAD: usize = 2;

/// Parts of the disk at whose borders a block is looked for that can be read.
const PARTS: u64 = 4;

/// Reads the map of a failing disk of `blocks` blocks from its record.
///
/// # Errors
/// Fails if the record cannot be read.
pub(super) fn load(disk: &RescuedDisk, blocks: u64) -> Result<(), Fault> {
    disk.set_map(BlockMap::load(blocks, |at, into| fill(disk.record(), at, into))?);
    Ok(())
}

/// Returns what is known of the byte at `offset` of a failing disk, and for how many of the bytes up to
/// `end`. Returns `None` if it is not read from one.
pub(super) fn state(admitted: &Admitted, offset: u64, end: u64) -> Option<(RescueState, u64)> {
    let export = admitted.export();
    let Base::Rescued(disk) = export.backing().base() else { return None };
    let (source, len) = overlay::run(export, admitted.state(), offset, end);
    (source == Source::Base).then(|| find(export, disk, offset, offset.saturating_add(len)))
}

/// Returns what is known of the byte at `offset`, and for how many of the bytes up to `end`.
pub(super) fn find(
    export: &Export,
    disk: &RescuedDisk,
    offset: u64,
    end: u64,
) -> (RescueState, u64) {
    let shift = export.geometry.shift();
    let (state, blocks) = disk.find(offset >> shift, end.div_ceil(1 << shift));
    let before = offset & ((1 << shift) - 1);
    let len = (blocks << shift).saturating_sub(before);
    (state, len.min(end.saturating_sub(offset)))
}

/// Reads bytes from `start` on from a failing disk, at most up to `end`. Returns none if they are in the image by
/// now. Blocks as long as the disk does.
///
/// # Errors
/// [`Fault::Io`] if the first block cannot be read, which is recorded, or if the image is of another disk.
/// [`Fault::Gone`] if the disk gives no other block either, or none that it could be compared by.
pub(super) fn fetch(export: &Arc<Export>, start: u64, end: u64) -> Result<Vec<u8>, Fault> {
    let Base::Rescued(disk) = export.backing().base() else { return Err(Fault::Io) };
    let block = u64::from(export.geometry.block());
    let reader = &mut *disk.reader();
    let buffer = Pool::new(0).open().take(usize::try_from(PIECE.max(block)).unwrap_or(0));
    let buffer = buffer.ok_or(Fault::Io)?;
    Fetch { export, disk, block, reader, buffer }.run(start, end)
}

struct Fetch<'a> {
    export: &'a Arc<Export>,
    disk: &'a RescuedDisk,
    block: u64,
    reader: &'a mut RescueReader,
    buffer: Buffer,
}

impl Fetch<'_> {
    fn run(&mut self, start: u64, end: u64) -> Result<Vec<u8>, Fault> {
        let at = start - start % self.block;
        match self.find(at, end).0 {
            // Another thread has read it.
            RescueState::Kept => return Ok(Vec::new()),
            RescueState::Bad => return Err(Fault::Io),
            RescueState::Unknown => {}
        }
        self.verify()?;
        let size = PIECE.max(self.block);
        let piece = at - at % size;
        let past = self.export.bytes().min(piece.saturating_add(size));
        let unknown_to = at + self.find(at, past).1;
        let wanted_to = unknown_to.min(end.next_multiple_of(self.block));
        let (mut from, mut to) = (at, wanted_to);
        if self.disk.image().is_some() && !self.reader.is_full {
            // What else of the piece is not known is read as well.
            let is_unknown = self.find(piece, at) == (RescueState::Unknown, at - piece);
            (from, to) = (if is_unknown { piece } else { at }, unknown_to);
        }
        let has_failed = self.reader.failed_piece == Some(piece) || self.has_bad(piece, past);
        let (from, mut bytes) = if has_failed {
            // It would fail as a whole.
            (at, self.read_blocks(at, wanted_to)?)
        } else {
            match self.read(from, to - from) {
                Ok(bytes) => (from, bytes),
                // Up to the end of the piece, so that a bad block is found, unless it is before.
                Err(errno) if is_of_medium(errno) => {
                    if from < at {
                        self.reader.failed_piece = Some(piece);
                    }
                    (at, self.read_blocks(at, to)?)
                }
                Err(errno) => return Err(Fault::from_errno(errno.raw_os_error())),
            }
        };
        if !bytes.is_empty() {
            self.reader.is_full = !self.keep(from, &bytes);
        }
        let skipped = usize::try_from(start - from).unwrap_or(0).min(bytes.len());
        bytes.drain(..skipped);
        // What follows may be in an overlay.
        bytes.truncate(usize::try_from(end - start).unwrap_or(usize::MAX));
        if bytes.is_empty() { Err(Fault::Io) } else { Ok(bytes) }
    }

    fn find(&self, at: u64, end: u64) -> (RescueState, u64) {
        find(self.export, self.disk, at, end)
    }

    fn has_bad(&self, mut at: u64, end: u64) -> bool {
        while at < end {
            let (state, len) = self.find(at, end);
            if state == RescueState::Bad || len == 0 {
                return true;
            }
            at += len;
        }
        false
    }

    /// Reads single blocks up to the first that cannot be read, which is recorded.
    fn read_blocks(&mut self, start: u64, end: u64) -> Result<Vec<u8>, Fault> {
        let (mut bytes, mut at) = (Vec::new(), start);
        while at < end {
            match self.read(at, self.block) {
                Ok(block) => bytes.extend(block),
                Err(errno) if is_of_medium(errno) => match self.read_again(at, errno) {
                    Ok(Some(block)) => bytes.extend(block),
                    Err(fault) if bytes.is_empty() => return Err(fault),
                    Ok(None) | Err(_) => break,
                },
                Err(errno) if bytes.is_empty() => {
                    return Err(Fault::from_errno(errno.raw_os_error()));
                }
                Err(_) => break,
            }
            at += self.block;
        }
        Ok(bytes)
    }

    /// Reads a block that has failed once more, unless the error was the one for a sector that cannot be read. Returns
    /// `None` if it is bad, which is recorded.
    ///
    /// # Errors
    /// Fails if the disk gives no other block either, or if the second error is not of the medium.
    fn read_again(&mut self, at: u64, errno: Errno) -> Result<Option<Vec<u8>>, Fault> {
        if !self.does_answer() {
            return Err(Fault::Gone);
        }
        if errno != Errno::NODATA {
            match self.read(at, self.block) {
                Ok(block) => return Ok(Some(block)),
                Err(errno) if is_of_medium(errno) => {}
                Err(errno) => return Err(Fault::from_errno(errno.raw_os_error())),
            }
        }
        self.reader.is_full |= !self.mark(at, self.block, RescueState::Bad);
        Ok(None)
    }

    /// Returns whether a block that was read before can be read, or one of a few others if there is none. Otherwise the
    /// disk is gone, or does not answer at all: then nothing is known of the block that has failed.
    fn does_answer(&mut self) -> bool {
        if let Some(good) = self.reader.good {
            let does_answer = self.read(good, self.block).is_ok();
            // Others are tried the next time.
            self.reader.good = does_answer.then_some(good);
            return does_answer;
        }
        let last = self.export.bytes().saturating_sub(self.block);
        (0..=PARTS).any(|part| {
            let at = last / PARTS * part;
            let at = at - at % self.block;
            let is_bad = self.find(at, at + self.block).0 == RescueState::Bad;
            !is_bad && self.read(at, self.block).is_ok()
        })
    }

    /// Reads from the disk, at most a piece.
    fn read(&mut self, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::INVAL)?;
        let into = self.buffer.bytes_mut().get_mut(..len).ok_or(Errno::INVAL)?;
        read_exact(self.disk.disk(), at, into)?;
        let bytes = into.to_vec();
        self.reader.good = Some(at);
        Ok(bytes)
    }

    /// Writes what was read to the image, if there is one, and records that it is there. Returns false if either was
    /// not possible.
    fn keep(&self, at: u64, bytes: &[u8]) -> bool {
        let Some(image) = self.disk.image() else { return true };
        match write_all(image, at, bytes) {
            Ok(()) => self.mark(at, bytes.len() as u64, RescueState::Kept),
            Err(errno) => {
                let image_error = Some(errno.raw_os_error());
                self.report(RescueTrouble { image_error, ..RescueTrouble::default() });
                false
            }
        }
    }

    /// Records the state of a range. Returns false if there is no room: then it is found out again.
    fn mark(&self, at: u64, len: u64, state: RescueState) -> bool {
        let shift = self.export.geometry.shift();
        let range = at >> shift..(at + len) >> shift;
        let Some(map) = self.disk.map() else { return false };
        let growth = map.growth(range.clone(), state.into());
        if growth > 0 {
            // In its file and in memory.
            let taken = stored_bytes(self.disk.record()).map_or(u64::MAX, |taken| 2 * taken);
            if taken.saturating_add(growth) > self.disk.layout().limit {
                return false;
            }
        }
        self.disk.set(range, state, |at, bytes| store(self.disk.record(), at, bytes)).is_ok()
    }

    fn report(&self, trouble: RescueTrouble) {
        let _ = store(self.disk.record(), 0, &trouble.emit());
    }

    /// Compares samples of the image with the disk before it is read for the first time, so that data of two disks
    /// is never mixed. Ends when the disk has not given two of them; the next call begins with the ones after these.
    ///
    /// # Errors
    /// [`Fault::Io`] if one differs, [`Fault::Gone`] if none could be compared.
    fn verify(&mut self) -> Result<(), Fault> {
        let Some(image) = self.disk.image().filter(|_| self.reader.is_verified != Some(true))
        else {
            return Ok(());
        };
        if self.reader.is_verified == Some(false) {
            return Err(Fault::Io);
        }
        let mut samples = self.samples();
        let first = self.reader.unread.checked_rem(samples.len()).unwrap_or(0);
        samples.rotate_left(first);
        let (mut compared, mut unread) = (samples.is_empty(), 0);
        for at in samples {
            // What cannot be read any more is no evidence.
            let Ok(there) = self.read(at, self.block) else {
                self.reader.unread = self.reader.unread.wrapping_add(1);
                unread += 1;
                if unread == MAX_UNREAD {
                    break;
                }
                continue;
            };
            let mut here = vec![0; there.len()];
            fill(image, at, &mut here)?;
            if here != there {
                self.reader.is_verified = Some(false);
                self.report(RescueTrouble { differs_at: Some(at), ..RescueTrouble::default() });
                return Err(Fault::Io);
            }
            compared = true;
        }
        if !compared {
            return Err(Fault::Gone);
        }
        self.reader.is_verified = Some(true);
        Ok(())
    }

    /// Returns the offsets of blocks that are in the image, distributed over it.
    fn samples(&self) -> Vec<u64> {
        let (mut runs, mut at, mut total) = (Vec::new(), 0, 0);
        while at < self.export.bytes() {
            let (state, len) = self.find(at, self.export.bytes());
            if state == RescueState::Kept {
                runs.push((at, len / self.block));
                total += len / self.block;
            }
            at += len.max(self.block);
        }
        let wanted =
            (0..SAMPLES.min(total)).map(|sample| total * sample / SAMPLES.min(total).max(1));
        let offset = |mut block: u64| {
            runs.iter().find_map(|(start, blocks)| {
                let found = (block < *blocks).then(|| start + block * self.block);
                block = block.saturating_sub(*blocks);
                found
            })
        };
        wanted.filter_map(offset).collect()
    }
}

/// Returns whether an error is about the sectors that were read. Any other one, as a lack of memory, says nothing about
/// them.
fn is_of_medium(errno: Errno) -> bool {
    Fault::of_errno(errno.raw_os_error()) == Some(Fault::Io)
}

/// Reads from the disk. One that has become shorter is gone: no sector of it is bad for that.
fn read_exact(disk: &OwnedFd, mut at: u64, mut into: &mut [u8]) -> Result<(), Errno> {
    #[cfg(test)]
    test::fail(at, into.len())?;
    while !into.is_empty() {
        match rustix::io::pread(disk, &mut *into, at) {
            Ok(0) => return Err(Errno::NODEV),
            Ok(read) => {
                at += read as u64;
                into = into.get_mut(read..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn write_all(file: &OwnedFd, mut at: u64, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(written) => {
                at += written as u64;
                bytes = bytes.get(written..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use std::cell::RefCell;
    use std::fs::File;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;

    use export::{
        Access, Backing, BaseLayout, Geometry, Grant, Identity, Layout, Op, OverlayLayout, Request,
        RescueLayout, Ticket,
    };
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::disk::{Job, carry_out};

    const BLOCK: usize = 512;
    const BYTES: usize = 256 << 10;
    /// From here on the disk cannot be read: in the middle of a piece.
    const END: usize = (128 << 10) + 9 * BLOCK;

    fn file(contents: &[u8]) -> OwnedFd {
        let file = File::from(memfd_create("file", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(contents, 0).unwrap();
        file.into()
    }

    fn disk() -> Vec<u8> {
        (0..BYTES).map(|at| u8::try_from(at / BLOCK % 251).unwrap()).collect()
    }

    /// Reads of a range of the disk that fail, and how many.
    type ReadFault = (Range<usize>, Errno, usize);

    const ALL: usize = usize::MAX;

    thread_local! {
        static FAULTS: RefCell<Vec<ReadFault>> = const { RefCell::new(Vec::new()) };
        /// Offsets and lengths of all reads of the disk.
        static READS: RefCell<Vec<(usize, usize)>> = const { RefCell::new(Vec::new()) };
    }

    fn set_faults(faults: &[ReadFault]) {
        FAULTS.set(faults.to_vec());
    }

    /// Fails as a read of the disk does.
    pub(super) fn fail(at: u64, len: usize) -> Result<(), Errno> {
        let at = usize::try_from(at).unwrap();
        READS.with_borrow_mut(|reads| reads.push((at, len)));
        FAULTS.with_borrow_mut(|faults| {
            let fails = |(range, _, left): &&mut ReadFault| {
                *left > 0 && range.start < at + len && at < range.end
            };
            faults.iter_mut().find(fails).map_or(Ok(()), |(_, errno, left)| {
                *left -= 1;
                Err(*errno)
            })
        })
    }

    /// The files of a disk that cannot be read from [`END`] on.
    struct Scene {
        disk: OwnedFd,
        record: OwnedFd,
        image: Option<OwnedFd>,
        limit: u64,
    }

    impl Scene {
        fn new(has_image: bool) -> Self {
            set_faults(&[(END..BYTES, Errno::NODATA, ALL)]);
            let (disk, record) = (file(&disk()), file(&[]));
            Self { disk, record, image: has_image.then(|| file(&[])), limit: 1 << 20 }
        }

        /// Returns access to an export of these files, as a new process has it.
        fn grant(&self, overlay: bool) -> Grant {
            let files = [Some(&self.disk), Some(&self.record), self.image.as_ref()];
            let files = files.into_iter().flatten().map(|file| file.try_clone().unwrap());
            let states = if overlay { vec![file(&[0; BYTES]), file(&[])] } else { Vec::new() };
            let layout = RescueLayout { has_image: self.image.is_some(), limit: self.limit };
            let limit = 1 << 20;
            let overlay =
                OverlayLayout { limit, map_cost: 1, is_private: false, is_durable: false };
            let overlay = (!states.is_empty()).then_some(overlay);
            let layout = Layout { base: BaseLayout::Rescued(layout), overlay };
            let backing = Backing::new(layout, files.chain(states).collect()).unwrap();
            let geometry = Geometry::new(512, 512).unwrap();
            let identity = Identity::default();
            let mut export = Export::new("disk", "nqn", identity, geometry, BYTES as u64, backing);
            export.access = if overlay.is_some() { Access::Writable } else { Access::ReadOnly };
            let export = Arc::new(export);
            super::super::backing::prepare(&export).unwrap();
            Grant::new(export)
        }
    }

    fn run(grant: &Grant, op: Op, at: usize, len: usize) -> Result<Vec<u8>, Fault> {
        let mut buffer = Pool::new(1 << 20).open().take(len).unwrap();
        buffer.bytes_mut().fill(0xee);
        let (lba, blocks) = ((at / BLOCK) as u64, (len / BLOCK) as u64);
        let request = Request { op, lba, blocks, buffer: Some(buffer), ticket: Ticket::new(1) };
        let outcome = carry_out(grant.admit(request).unwrap()).outcome;
        outcome.result.map(|()| outcome.buffer.unwrap().bytes().to_vec())
    }

    fn read(grant: &Grant, at: usize, len: usize) -> Result<Vec<u8>, Fault> {
        run(grant, Op::Read, at, len)
    }

    fn states(grant: &Grant) -> Vec<(RescueState, u64)> {
        let Base::Rescued(disk) = grant.export().backing().base() else { panic!("no disk") };
        let (mut states, mut at) = (Vec::new(), 0);
        while at < BYTES as u64 {
            let (state, len) = find(grant.export(), disk, at, BYTES as u64);
            states.push((state, len));
            at += len;
        }
        states
    }

    #[test]
    fn what_is_read_is_kept_and_bad_blocks_are_recorded() {
        let scene = Scene::new(true);
        let grant = scene.grant(false);
        let wanted = disk();
        assert!(read(&grant, 5 * BLOCK, BLOCK).unwrap() == wanted[5 * BLOCK..6 * BLOCK]);
        // A whole piece of 64 KiB.
        let kept = |len| (RescueState::Kept, len);
        let unknown = |len| (RescueState::Unknown, len);
        assert_eq!(states(&grant), [kept(65536), unknown(3 * 65536)]);
        // Over the border of two pieces, of which one is known.
        assert!(
            read(&grant, 65536 - BLOCK, 3 * BLOCK).unwrap() == wanted[65536 - BLOCK..][..3 * BLOCK]
        );
        // The piece fails, then single blocks up to the one that is bad.
        assert!(read(&grant, 131_072, 4 * BLOCK).unwrap() == wanted[131_072..][..4 * BLOCK]);
        let bad = (RescueState::Bad, BLOCK as u64);
        let rest = (BYTES - END - BLOCK) as u64;
        assert_eq!(states(&grant), [kept(END as u64), bad, unknown(rest)]);
        assert_eq!(read(&grant, END - BLOCK, 2 * BLOCK), Err(Fault::Io));
        // Beside a bad block only what is asked for is read.
        assert_eq!(read(&grant, END + 3 * BLOCK, 2 * BLOCK), Err(Fault::Io));
        assert_eq!(states(&grant)[2..4], [unknown(2 * 512), bad]);
        let image = File::from(scene.image.as_ref().unwrap().try_clone().unwrap());
        let mut there = vec![0; END];
        image.read_exact_at(&mut there, 0).unwrap();
        assert!(there == wanted[..END]);
        // The next worker knows it, and needs no disk for it.
        let lost = Scene { disk: file(&[]), ..scene };
        let grant = lost.grant(false);
        assert!(read(&grant, 0, END).unwrap() == wanted[..END]);
        assert_eq!(read(&grant, END, BLOCK), Err(Fault::Io));
    }

    #[test]
    fn without_an_image_only_bad_blocks_are_recorded() {
        let grant = Scene::new(false).grant(false);
        let wanted = disk();
        assert!(read(&grant, 3 * BLOCK, END - 3 * BLOCK).unwrap() == wanted[3 * BLOCK..END]);
        assert_eq!(states(&grant), [(RescueState::Unknown, BYTES as u64)]);
        assert_eq!(read(&grant, END - BLOCK, 4 * BLOCK), Err(Fault::Io));
        assert_eq!(states(&grant)[1], (RescueState::Bad, BLOCK as u64));
        assert!(read(&grant, END - BLOCK, BLOCK).unwrap() == wanted[END - BLOCK..END]);
    }

    #[test]
    fn disk_that_does_not_answer_has_no_bad_blocks() {
        let scene = Scene::new(true);
        let grant = scene.grant(false);
        read(&grant, 0, BLOCK).unwrap();
        rustix::fs::ftruncate(&scene.disk, 0).unwrap();
        assert_eq!(read(&grant, 131_072, BLOCK), Err(Fault::Gone));
        assert_eq!(states(&grant)[1], (RescueState::Unknown, 3 * 65536));
        assert!(read(&grant, 0, 65536).unwrap() == disk()[..65536], "it is in the image");
    }

    #[test]
    fn image_of_another_disk_is_not_written() {
        let scene = Scene::new(true);
        read(&scene.grant(false), 0, BLOCK).unwrap();
        let mut other = disk();
        other[..65536].fill(9);
        let scene = Scene { disk: file(&other), ..scene };
        let grant = scene.grant(false);
        for _ in 0..2 {
            assert_eq!(read(&grant, 65536, BLOCK), Err(Fault::Io));
        }
        assert_eq!(states(&grant).len(), 2, "no block was recorded");
        let mut trouble = [0; RescueTrouble::BYTES];
        fill(&scene.record, 0, &mut trouble).unwrap();
        assert_eq!(RescueTrouble::parse(trouble).differs_at, Some(0));
    }

    #[test]
    fn image_that_cannot_be_written_does_not_prevent_reads() {
        let full = File::options().write(true).read(true).open("/dev/full").unwrap();
        let scene = Scene { image: Some(full.into()), ..Scene::new(true) };
        let grant = scene.grant(false);
        for _ in 0..2 {
            assert!(read(&grant, BLOCK, BLOCK).unwrap() == disk()[BLOCK..2 * BLOCK]);
        }
        // What cannot be kept is not read.
        assert_eq!(READS.take(), [(0, 65536), (BLOCK, BLOCK)]);
        assert_eq!(states(&grant), [(RescueState::Unknown, BYTES as u64)]);
        let mut trouble = [0; RescueTrouble::BYTES];
        fill(&scene.record, 0, &mut trouble).unwrap();
        assert_eq!(RescueTrouble::parse(trouble).image_error, Some(Errno::NOSPC.raw_os_error()));
    }

    #[test]
    fn without_room_for_the_map_nothing_is_recorded() {
        let scene = Scene { limit: 0, ..Scene::new(true) };
        let grant = scene.grant(false);
        assert!(read(&grant, 0, 65536 * 2).unwrap() == disk()[..65536 * 2]);
        assert_eq!(read(&grant, END, BLOCK), Err(Fault::Io));
        assert_eq!(states(&grant), [(RescueState::Unknown, BYTES as u64)]);
    }

    #[test]
    fn writes_to_an_overlay_hide_bad_blocks() {
        let scene = Scene::new(true);
        let grant = scene.grant(true);
        let wanted = disk();
        run(&grant, Op::Write { durable: false }, END - BLOCK, 2 * BLOCK).unwrap();
        let found = read(&grant, END - 2 * BLOCK, 3 * BLOCK).unwrap();
        assert!(found[..BLOCK] == wanted[END - 2 * BLOCK..][..BLOCK]);
        assert!(found[BLOCK..] == [0xee; 2 * BLOCK]);
        assert_eq!(read(&grant, END, 2 * BLOCK), Err(Fault::Io));
    }

    /// Another host writes a block after it was decided to read it from the disk.
    #[test]
    fn overlaid_block_leaves_no_old_bytes_in_a_read() {
        let grant = Scene::new(true).grant(true);
        let mut buffer = Pool::new(1 << 20).open().take(BLOCK).unwrap();
        buffer.bytes_mut().fill(0x55);
        let ticket = Ticket::new(1);
        let request = Request { op: Op::Read, lba: 3, blocks: 1, buffer: Some(buffer), ticket };
        let mut job = Job::new(grant.admit(request).unwrap());
        assert!(job.needs_blocking_op());
        run(&grant, Op::Write { durable: false }, 3 * BLOCK, BLOCK).unwrap();
        assert!(job.blocking_op().is_some(), "it is read from the disk all the same");
        job.run();
        let outcome = job.finish().outcome;
        assert_eq!(outcome.result, Ok(()));
        assert!(outcome.buffer.unwrap().bytes() == &disk()[3 * BLOCK..4 * BLOCK]);
        assert!(read(&grant, 3 * BLOCK, BLOCK).unwrap() == [0xee; BLOCK]);
    }

    #[test]
    fn error_that_is_over_at_once_marks_no_block() {
        let grant = Scene::new(true).grant(false);
        read(&grant, 65536, BLOCK).unwrap();
        // The piece, and its first block.
        set_faults(&[(0..BLOCK, Errno::IO, 2)]);
        assert!(read(&grant, 0, 2 * BLOCK).unwrap() == disk()[..2 * BLOCK]);
        assert!(states(&grant).iter().all(|(state, _)| *state != RescueState::Bad));
        set_faults(&[(131_072..131_072 + BLOCK, Errno::IO, 3)]);
        assert_eq!(read(&grant, 131_072, BLOCK), Err(Fault::Io));
        assert_eq!(states(&grant)[1], (RescueState::Bad, BLOCK as u64));
    }

    #[test]
    fn disk_that_never_answered_has_no_bad_blocks() {
        let scene = Scene::new(true);
        set_faults(&[(0..BYTES, Errno::IO, ALL)]);
        let grant = scene.grant(false);
        for at in [0, 65536, END] {
            assert_eq!(read(&grant, at, BLOCK), Err(Fault::Gone));
        }
        assert_eq!(states(&grant), [(RescueState::Unknown, BYTES as u64)]);
        // It answers elsewhere.
        set_faults(&[(0..65536, Errno::IO, ALL)]);
        assert_eq!(read(&grant, 0, BLOCK), Err(Fault::Io));
        assert_eq!(states(&grant)[0], (RescueState::Bad, BLOCK as u64));
    }

    #[test]
    fn disk_is_not_read_until_it_was_compared() {
        let scene = Scene::new(true);
        read(&scene.grant(false), 0, BLOCK).unwrap();
        let mut other = disk();
        other[..65536].fill(9);
        let scene = Scene { disk: file(&other), ..scene };
        let grant = scene.grant(false);
        set_faults(&[(0..65536, Errno::NODATA, ALL)]);
        READS.take();
        assert_eq!(read(&grant, 65536, BLOCK), Err(Fault::Gone));
        assert_eq!(READS.take().len(), MAX_UNREAD);
        set_faults(&[]);
        assert_eq!(read(&grant, 65536, BLOCK), Err(Fault::Io), "it is another disk");
        assert_eq!(states(&grant).len(), 2, "no block was recorded");
    }

    #[test]
    fn bad_block_before_a_request_is_read_once() {
        let grant = Scene::new(true).grant(false);
        set_faults(&[(0..BLOCK, Errno::NODATA, ALL)]);
        assert!(read(&grant, 3 * BLOCK, BLOCK).unwrap() == disk()[3 * BLOCK..4 * BLOCK]);
        READS.take();
        // All that follows in the piece was read, except the two blocks before.
        assert!(read(&grant, 2 * BLOCK, BLOCK).unwrap() == disk()[2 * BLOCK..3 * BLOCK]);
        assert_eq!(READS.take(), [(2 * BLOCK, BLOCK)]);
    }
}
