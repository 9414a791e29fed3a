//! Allocated-only view of a disk: reports everything outside the given ranges as holes, so that it
//! becomes zeros at the destination without being read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use ::copy::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, Request,
};
use export::Extent;
use filesystem::Ranges;
use sha2::{Digest, Sha256};

/// Suffix of the identity of an allocated-only view.
pub(super) const ALLOCATED: &str = "allocated";

/// A disk, and its allocated ranges.
pub(super) struct AllocatedDisk {
    inner: Arc<dyn Endpoint>,
    used: Arc<Ranges>,
    /// A hash of the ranges.
    fingerprint: String,
}

impl AllocatedDisk {
    pub(super) fn new(inner: Arc<dyn Endpoint>, used: Arc<Ranges>) -> Self {
        let mut hash = Sha256::new();
        for range in used.iter() {
            hash.update(range.start.to_le_bytes());
            hash.update(range.end.to_le_bytes());
        }
        let hash = hash.finalize();
        let fingerprint = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { inner, used, fingerprint }
    }
}

impl Endpoint for AllocatedDisk {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let (disk, connection) = self.inner.open()?;
        let reports_extents = disk.reports_extents;
        // A map of the whole disk does not apply to this view, nor one of other ranges.
        let identity = format!("{} {ALLOCATED} {}", disk.identity, self.fingerprint);
        let (used, done, reads) = (self.used.clone(), VecDeque::new(), Vec::new());
        let masked = AllocatedConnection { connection, used, reports_extents, done, reads };
        Ok((Disk { reports_extents: true, identity, ..disk }, Box::new(masked)))
    }

    fn prepare(&self, bytes: u64) -> Result<(), EndpointError> {
        self.inner.prepare(bytes)
    }
}

struct AllocatedConnection {
    connection: Box<dyn Connection>,
    used: Arc<Ranges>,
    /// Whether the connection itself reports holes.
    reports_extents: bool,
    done: VecDeque<Completion>,
    /// Reads in flight: tag and offset.
    reads: Vec<(u32, u64)>,
}

impl AllocatedConnection {
    /// Zeroes unallocated bytes of a completed read, which may span both kinds.
    fn blanked_completion(&mut self, mut completion: Completion) -> Completion {
        let at = self.reads.iter().position(|(tag, _)| *tag == completion.tag);
        if let (Some(at), Some(buffer)) = (at, &mut completion.buffer) {
            let (_, offset) = self.reads.swap_remove(at);
            blank(&self.used, offset, buffer.bytes_mut());
        }
        completion
    }
}

/// Zeroes the unallocated bytes of a buffer that was read at `offset`.
fn blank(used: &Ranges, mut offset: u64, mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        let (len, is_used) = run(used, offset, bytes.len() as u64);
        let len = usize::try_from(len).unwrap_or(usize::MAX).clamp(1, bytes.len());
        let (head, tail) = bytes.split_at_mut(len);
        if !is_used {
            head.fill(0);
        }
        offset = offset.saturating_add(len as u64);
        bytes = tail;
    }
}

/// Returns the length of the run at `offset`, at most `len`, and whether it is allocated.
fn run(used: &Ranges, offset: u64, len: u64) -> (u64, bool) {
    let end = offset.saturating_add(len);
    match used.within(offset..end).iter().next() {
        None => (len, false),
        Some(range) if range.start > offset => (range.start - offset, false),
        Some(range) => (range.end - offset, true),
    }
}

impl Connection for AllocatedConnection {
    fn submit(&mut self, tag: u32, request: Request) {
        if let Request::Read { offset, .. } = request {
            self.reads.push((tag, offset));
        }
        let Request::Extents { offset, len } = request else {
            return self.connection.submit(tag, request);
        };
        match run(&self.used, offset, len) {
            (len, true) if self.reports_extents => {
                self.connection.submit(tag, Request::Extents { offset, len })
            }
            (len, is_used) => {
                let extent = if is_used { Extent::data(len) } else { Extent::hole(len) };
                let extents = vec![extent];
                self.done.push_back(Completion { tag, result: Ok(()), buffer: None, extents });
            }
        }
    }

    fn free_slots(&self) -> usize {
        self.connection.free_slots()
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        self.connection.advance()
    }

    fn next_completion(&mut self) -> Option<Completion> {
        let completion = self.done.pop_front().or_else(|| self.connection.next_completion())?;
        Some(self.blanked_completion(completion))
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

    #[test]
    fn unallocated_ranges_are_holes() {
        let used: Ranges = [0..10, 20..30].into_iter().collect();
        assert_eq!(run(&used, 0, 100), (10, true));
        assert_eq!(run(&used, 5, 2), (2, true));
        assert_eq!(run(&used, 10, 100), (10, false));
        assert_eq!(run(&used, 12, 3), (3, false));
        assert_eq!(run(&used, 25, 100), (5, true));
        assert_eq!(run(&used, 30, 70), (70, false));
    }

    #[test]
    fn unallocated_ranges_read_as_zeros() {
        let used: Ranges = [0..10, 20..30].into_iter().collect();
        let mut bytes = [1; 40];
        blank(&used, 5, &mut bytes);
        let is_used = |at: usize| matches!(at + 5, 0..10 | 20..30);
        assert!((0..40).all(|at| bytes[at] == u8::from(is_used(at))), "{bytes:?}");
    }
}
