//! A source as the destination is to hold it: with other bytes in places (a partition table for another disk), and filled
//! up with zeros to whole blocks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ::copy::{Disk, Ended, Lane, Lost, Place, PlaceError, Waits, Work};
use export::{Account, Buffer, Extent, Pool};
use linux::gpt::Patch;

/// Offsets that are asked of the source itself are multiples of this, the largest block of any disk.
const BLOCK: u64 = 4096;

/// A place, and what is different of its disk.
pub(super) struct View {
    inner: Box<dyn Place>,
    change: Arc<Change>,
    mark: String,
}

#[derive(Debug)]
struct Change {
    /// Bytes of the source itself, and those that it is shown with.
    own: u64,
    bytes: u64,
    patches: Vec<Patch>,
}

impl View {
    /// A disk of `own` bytes shown with `bytes`, at least as many, and with the patches, of which later ones hide earlier
    /// ones. `mark` is added to its identity: a map of this is none of the disk itself.
    pub(super) fn new(
        inner: Box<dyn Place>,
        own: u64,
        bytes: u64,
        patches: Vec<Patch>,
        mark: &str,
    ) -> Self {
        let change = Arc::new(Change { own, bytes, patches });
        Self { inner, change, mark: mark.to_owned() }
    }
}

impl Place for View {
    fn open(&self) -> Result<(Disk, Box<dyn Lane>), PlaceError> {
        let (disk, lane) = self.inner.open()?;
        if disk.bytes != self.change.own {
            let name = &disk.name;
            return Err(PlaceError::Refused(format!("{name} has changed its size meanwhile")));
        }
        let identity = match self.mark.as_str() {
            "" => disk.identity.clone(),
            mark => format!("{} {mark}", disk.identity),
        };
        let change = self.change.clone();
        let memory = Pool::new(Pool::MAX_BUFFER).open();
        let lane = Viewed { lane, change, memory, done: VecDeque::new(), reads: Vec::new() };
        Ok((Disk { bytes: self.change.bytes, identity, ..disk }, Box::new(lane)))
    }

    fn prepare(&self, bytes: u64) -> Result<(), PlaceError> {
        self.inner.prepare(bytes)
    }
}

struct Viewed {
    lane: Box<dyn Lane>,
    change: Arc<Change>,
    /// For reads across the end.
    memory: Account,
    done: VecDeque<Ended>,
    reads: Vec<Read>,
}

/// A read under way.
struct Read {
    tag: u32,
    offset: u64,
    /// The buffer that was submitted, where a shorter one is filled.
    whole: Option<Buffer>,
}

impl Change {
    /// From `offset` on, the bytes that are alike in being the source's own or not, at most `len`.
    fn run(&self, offset: u64, len: u64) -> (u64, bool) {
        let end = offset.saturating_add(len);
        let mut next = end;
        for place in self.places() {
            if place.contains(&offset) {
                return (place.end.min(end) - offset, false);
            }
            if place.start > offset {
                next = next.min(place.start);
            }
        }
        (next - offset, true)
    }

    /// What is not the source's own, in whole blocks.
    fn places(&self) -> impl Iterator<Item = Range<u64>> {
        let patched = self.patches.iter().map(|patch| {
            let end = patch.offset.saturating_add(patch.bytes.len() as u64);
            patch.offset - patch.offset % BLOCK..end.next_multiple_of(BLOCK)
        });
        patched.chain(std::iter::once(self.own - self.own % BLOCK..u64::MAX))
    }

    /// What was read from `offset` on, as it is to be.
    fn apply(&self, offset: u64, bytes: &mut [u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        for patch in &self.patches {
            let patched = patch.offset..patch.offset.saturating_add(patch.bytes.len() as u64);
            let both = patched.start.max(offset)..patched.end.min(end);
            if both.is_empty() {
                continue;
            }
            let index = |at: u64, from: u64| usize::try_from(at - from).unwrap_or(usize::MAX);
            let to = bytes.get_mut(index(both.start, offset)..index(both.end, offset));
            let from =
                patch.bytes.get(index(both.start, patch.offset)..index(both.end, patch.offset));
            if let (Some(to), Some(from)) = (to, from) {
                to.copy_from_slice(from);
            }
        }
    }
}

impl Viewed {
    /// Reads what the source itself has of it; the rest is zeros.
    fn read(&mut self, tag: u32, offset: u64, mut buffer: Buffer) {
        let own = self.change.own.saturating_sub(offset).min(buffer.len() as u64);
        let own = usize::try_from(own).unwrap_or(usize::MAX);
        if own == buffer.len() {
            self.reads.push(Read { tag, offset, whole: None });
            return self.lane.submit(tag, Work::Read { offset, buffer });
        }
        if own == 0 {
            buffer.bytes_mut().fill(0);
            let ended = Ended { tag, result: Ok(()), buffer: Some(buffer), extents: Vec::new() };
            return self.done.push_back(self.shown(offset, ended));
        }
        match self.memory.take(own) {
            Some(short) => {
                self.reads.push(Read { tag, offset, whole: Some(buffer) });
                self.lane.submit(tag, Work::Read { offset, buffer: short });
            }
            None => {
                let result = Err(::copy::Failed::Refused);
                let buffer = Some(buffer);
                self.done.push_back(Ended { tag, result, buffer, extents: Vec::new() });
            }
        }
    }

    fn shown(&self, offset: u64, mut ended: Ended) -> Ended {
        if let (Ok(()), Some(buffer)) = (&ended.result, &mut ended.buffer) {
            self.change.apply(offset, buffer.bytes_mut());
        }
        ended
    }

    fn finished(&mut self, mut ended: Ended) -> Ended {
        let Some(at) = self.reads.iter().position(|read| read.tag == ended.tag) else {
            return ended;
        };
        let read = self.reads.swap_remove(at);
        if let Some(mut whole) = read.whole {
            let short = ended.buffer.take();
            let short = short.as_ref().map(Buffer::bytes).unwrap_or_default();
            let (head, tail) = whole.bytes_mut().split_at_mut(short.len());
            head.copy_from_slice(short);
            tail.fill(0);
            ended.buffer = Some(whole);
        }
        self.shown(read.offset, ended)
    }
}

impl Lane for Viewed {
    fn submit(&mut self, tag: u32, work: Work) {
        match work {
            Work::Read { offset, buffer } => self.read(tag, offset, buffer),
            Work::Extents { offset, len } => match self.change.run(offset, len) {
                (len, true) => self.lane.submit(tag, Work::Extents { offset, len }),
                (len, false) => {
                    let extents = vec![Extent::data(len)];
                    self.done.push_back(Ended { tag, result: Ok(()), buffer: None, extents });
                }
            },
            other => self.lane.submit(tag, other),
        }
    }

    fn room(&self) -> usize {
        self.lane.room()
    }

    fn advance(&mut self) -> Result<(), Lost> {
        self.lane.advance()
    }

    fn ended(&mut self) -> Option<Ended> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        let ended = self.lane.ended()?;
        Some(self.finished(ended))
    }

    fn waits(&self) -> Waits<'_> {
        self.lane.waits()
    }

    fn deadline(&self) -> Option<Instant> {
        self.lane.deadline()
    }

    fn distrust(&mut self) {
        self.lane.distrust();
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn change() -> Change {
        let patch = |offset, byte| Patch { offset, bytes: vec![byte; 100] };
        Change { own: 100_001, bytes: 102_400, patches: vec![patch(4000, 1), patch(4050, 2)] }
    }

    #[test]
    fn patched_blocks_and_the_end_are_told_as_data() {
        let change = change();
        assert_eq!(change.run(0, 102_400), (8192, false));
        assert_eq!(change.run(8192, 94_208), (98_304 - 8192, true));
        assert_eq!(change.run(98_304, 4096), (4096, false));
    }

    #[test]
    fn later_patches_hide_earlier_ones_wherever_the_read_is_cut() {
        let change = change();
        let mut whole = vec![0; 8192];
        change.apply(0, &mut whole);
        let wanted = |at: usize| match at {
            4000..4050 => 1,
            4050..4150 => 2,
            _ => 0,
        };
        assert!((0..8192).all(|at| whole[at] == wanted(at)));
        for cut in [1, 3999, 4001, 4060, 4149, 4150, 8191] {
            let (mut head, mut tail) = (vec![0; cut], vec![0; 8192 - cut]);
            change.apply(0, &mut head);
            change.apply(cut as u64, &mut tail);
            assert!([head, tail].concat() == whole, "{cut}");
        }
    }
}
