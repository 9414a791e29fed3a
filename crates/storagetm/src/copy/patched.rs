//! View of a source with patched bytes (a changed partition table), padded with zeros to whole
//! blocks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ::copy::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, Request,
};
use export::{Account, Buffer, Extent, Pool};
use linux::gpt::Patch;

/// Reads from the source are aligned to this, the largest logical block size.
const BLOCK: u64 = 4096;

/// A disk, and the changes to it.
pub(super) struct PatchedDisk {
    inner: Box<dyn Endpoint>,
    changes: Arc<Patches>,
    identity_suffix: String,
}

#[derive(Debug)]
struct Patches {
    /// Size of the source, and of the view.
    source_bytes: u64,
    bytes: u64,
    patches: Vec<Patch>,
}

impl PatchedDisk {
    /// Presents a disk of `source_bytes` as one of `bytes` (at least as many), with patches; later
    /// patches take precedence. `identity_suffix` is appended to its identity, so that a map of the
    /// unchanged disk does not apply.
    pub(super) fn new(
        inner: Box<dyn Endpoint>,
        source_bytes: u64,
        bytes: u64,
        patches: Vec<Patch>,
        identity_suffix: &str,
    ) -> Self {
        let changes = Arc::new(Patches { source_bytes, bytes, patches });
        Self { inner, changes, identity_suffix: identity_suffix.to_owned() }
    }
}

impl Endpoint for PatchedDisk {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let (disk, connection) = self.inner.open()?;
        if disk.bytes != self.changes.source_bytes {
            let name = &disk.name;
            return Err(EndpointError::Permanent(format!("{name} has changed its size meanwhile")));
        }
        let identity = match self.identity_suffix.as_str() {
            "" => disk.identity.clone(),
            identity_suffix => format!("{} {identity_suffix}", disk.identity),
        };
        let changes = self.changes.clone();
        let memory = Pool::new(Pool::MAX_BUFFER).open();
        let connection = PatchedConnection {
            connection,
            changes,
            memory,
            done: VecDeque::new(),
            reads: Vec::new(),
        };
        Ok((Disk { bytes: self.changes.bytes, identity, ..disk }, Box::new(connection)))
    }

    fn prepare(&self, bytes: u64) -> Result<(), EndpointError> {
        self.inner.prepare(bytes)
    }
}

struct PatchedConnection {
    connection: Box<dyn Connection>,
    changes: Arc<Patches>,
    /// Buffers for reads that cross the end of the source.
    memory: Account,
    done: VecDeque<Completion>,
    reads: Vec<Read>,
}

/// A read in flight.
struct Read {
    tag: u32,
    offset: u64,
    /// The submitted buffer, where a shorter one is being filled.
    whole: Option<Buffer>,
}

impl Patches {
    /// Returns the length of the run at `offset`, at most `len`, and whether it is unchanged.
    fn run(&self, offset: u64, len: u64) -> (u64, bool) {
        let end = offset.saturating_add(len);
        let mut next = end;
        for place in self.changed_ranges() {
            if place.contains(&offset) {
                return (place.end.min(end) - offset, false);
            }
            if place.start > offset {
                next = next.min(place.start);
            }
        }
        (next - offset, true)
    }

    /// Returns the changed ranges, in whole blocks.
    fn changed_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let patched = self.patches.iter().map(|patch| {
            let end = patch.offset.saturating_add(patch.bytes.len() as u64);
            patch.offset - patch.offset % BLOCK..end.next_multiple_of(BLOCK)
        });
        patched.chain(std::iter::once(self.source_bytes - self.source_bytes % BLOCK..u64::MAX))
    }

    /// Applies the patches to a buffer that was read at `offset`.
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

impl PatchedConnection {
    /// Reads the part within the source; the rest is zeros.
    fn read(&mut self, tag: u32, offset: u64, mut buffer: Buffer) {
        let source_bytes =
            self.changes.source_bytes.saturating_sub(offset).min(buffer.len() as u64);
        let source_bytes = usize::try_from(source_bytes).unwrap_or(usize::MAX);
        if source_bytes == buffer.len() {
            self.reads.push(Read { tag, offset, whole: None });
            return self.connection.submit(tag, Request::Read { offset, buffer });
        }
        if source_bytes == 0 {
            buffer.bytes_mut().fill(0);
            let completion =
                Completion { tag, result: Ok(()), buffer: Some(buffer), extents: Vec::new() };
            return self.done.push_back(self.shown(offset, completion));
        }
        match self.memory.take(source_bytes) {
            Some(short) => {
                self.reads.push(Read { tag, offset, whole: Some(buffer) });
                self.connection.submit(tag, Request::Read { offset, buffer: short });
            }
            None => {
                let result = Err(::copy::RequestError::Refused);
                let buffer = Some(buffer);
                self.done.push_back(Completion { tag, result, buffer, extents: Vec::new() });
            }
        }
    }

    fn shown(&self, offset: u64, mut completion: Completion) -> Completion {
        if let (Ok(()), Some(buffer)) = (&completion.result, &mut completion.buffer) {
            self.changes.apply(offset, buffer.bytes_mut());
        }
        completion
    }

    fn finished(&mut self, mut completion: Completion) -> Completion {
        let Some(at) = self.reads.iter().position(|read| read.tag == completion.tag) else {
            return completion;
        };
        let read = self.reads.swap_remove(at);
        if let Some(mut whole) = read.whole {
            let short = completion.buffer.take();
            let short = short.as_ref().map(Buffer::bytes).unwrap_or_default();
            let (head, tail) = whole.bytes_mut().split_at_mut(short.len());
            head.copy_from_slice(short);
            tail.fill(0);
            completion.buffer = Some(whole);
        }
        self.shown(read.offset, completion)
    }
}

impl Connection for PatchedConnection {
    fn submit(&mut self, tag: u32, request: Request) {
        match request {
            Request::Read { offset, buffer } => self.read(tag, offset, buffer),
            Request::Extents { offset, len } => match self.changes.run(offset, len) {
                (len, true) => self.connection.submit(tag, Request::Extents { offset, len }),
                (len, false) => {
                    let extents = vec![Extent::data(len)];
                    self.done.push_back(Completion { tag, result: Ok(()), buffer: None, extents });
                }
            },
            other => self.connection.submit(tag, other),
        }
    }

    fn free_slots(&self) -> usize {
        self.connection.free_slots()
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        self.connection.advance()
    }

    fn next_completion(&mut self) -> Option<Completion> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        let completion = self.connection.next_completion()?;
        Some(self.finished(completion))
    }

    fn interest(&self) -> Interest<'_> {
        self.connection.interest()
    }

    fn deadline(&self) -> Option<Instant> {
        self.connection.deadline()
    }

    fn drop_caches(&mut self) {
        self.connection.drop_caches();
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn changes() -> Patches {
        let patch = |offset, byte| Patch { offset, bytes: vec![byte; 100] };
        Patches {
            source_bytes: 100_001,
            bytes: 102_400,
            patches: vec![patch(4000, 1), patch(4050, 2)],
        }
    }

    #[test]
    fn patched_blocks_and_padding_are_reported_as_data() {
        let changes = changes();
        assert_eq!(changes.run(0, 102_400), (8192, false));
        assert_eq!(changes.run(8192, 94_208), (98_304 - 8192, true));
        assert_eq!(changes.run(98_304, 4096), (4096, false));
    }

    #[test]
    fn later_patches_take_precedence_in_split_reads() {
        let changes = changes();
        let mut whole = vec![0; 8192];
        changes.apply(0, &mut whole);
        let wanted = |at: usize| match at {
            4000..4050 => 1,
            4050..4150 => 2,
            _ => 0,
        };
        assert!((0..8192).all(|at| whole[at] == wanted(at)));
        for cut in [1, 3999, 4001, 4060, 4149, 4150, 8191] {
            let (mut head, mut tail) = (vec![0; cut], vec![0; 8192 - cut]);
            changes.apply(0, &mut head);
            changes.apply(cut as u64, &mut tail);
            assert!([head, tail].concat() == whole, "{cut}");
        }
    }
}
