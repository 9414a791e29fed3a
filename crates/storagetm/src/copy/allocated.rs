//! A disk of which only a part counts: the rest is said to be holes, and so becomes zeros at the destination without
//! being read. It knows not why.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use ::copy::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, Request,
};
use export::Extent;
use filesystem::Ranges;

/// What ends the identity of a disk of which only a part counts.
pub(super) const ALLOCATED: &str = "allocated";

/// A place, and the bytes that count of its disk.
pub(super) struct AllocatedDisk {
    inner: Box<dyn Endpoint>,
    used: Arc<Ranges>,
}

impl AllocatedDisk {
    /// Of that place.
    pub(super) fn new(inner: Box<dyn Endpoint>, used: Ranges) -> Self {
        Self { inner, used: Arc::new(used) }
    }
}

impl Endpoint for AllocatedDisk {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let (disk, connection) = self.inner.open()?;
        let reports_extents = disk.reports_extents;
        // A map of the whole disk is not one of this.
        let identity = format!("{} {ALLOCATED}", disk.identity);
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
    /// Whether the connection itself tells what is hole.
    reports_extents: bool,
    done: VecDeque<Completion>,
    /// The reads under way: their tags, and where they begin.
    reads: Vec<(u32, u64)>,
}

impl AllocatedConnection {
    /// What does not count is zeros, also where it was read with what does, or is read again.
    fn blanked_completion(&mut self, mut completion: Completion) -> Completion {
        let at = self.reads.iter().position(|(tag, _)| *tag == completion.tag);
        if let (Some(at), Some(buffer)) = (at, &mut completion.buffer) {
            let (_, offset) = self.reads.swap_remove(at);
            blank(&self.used, offset, buffer.bytes_mut());
        }
        completion
    }
}

/// Makes zeros of all that does not count of what was read from `offset` on.
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

/// From `offset` on, the bytes up to the next change, at most `len`, and whether they count.
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
    fn what_does_not_count_is_a_hole_up_to_the_next_that_does() {
        let used: Ranges = [0..10, 20..30].into_iter().collect();
        assert_eq!(run(&used, 0, 100), (10, true));
        assert_eq!(run(&used, 5, 2), (2, true));
        assert_eq!(run(&used, 10, 100), (10, false));
        assert_eq!(run(&used, 12, 3), (3, false));
        assert_eq!(run(&used, 25, 100), (5, true));
        assert_eq!(run(&used, 30, 70), (70, false));
    }

    #[test]
    fn what_does_not_count_reads_as_zeros() {
        let used: Ranges = [0..10, 20..30].into_iter().collect();
        let mut bytes = [1; 40];
        blank(&used, 5, &mut bytes);
        let is_used = |at: usize| matches!(at + 5, 0..10 | 20..30);
        assert!((0..40).all(|at| bytes[at] == u8::from(is_used(at))), "{bytes:?}");
    }
}
