//! Send buffers of a connection, and the ring entry that refers to them.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use export::{InPlace, PAGE, Segment};
use io_uring::types::Fixed;
use io_uring::{opcode, squeue};
use libc::{iovec, msghdr};
use rustix::io::Errno;

use super::super::files::FixedFile;
use super::super::slots::Key;
use super::header;
use super::receiving::vector;
use crate::disk::Mapping;
use crate::link::Link;

/// Most vectors of one send; the kernel accepts 1024.
const VECTORS: usize = 256;

/// Most bytes of one send.
const WINDOW: usize = 1 << 20;

/// Parts of a segment up to this size are copied into a common buffer: a vector of its own costs
/// about as much as copying that many bytes.
const SMALL: usize = 256;

/// Size of that buffer; a segment has at most three parts.
const SCRATCH: usize = 16 << 10;

/// Index of the body among the parts of a segment.
const BODY: usize = 1;

/// A batch of segments being sent. Owned by the connection while no send is in flight, and by the
/// ring while one is. Sent in windows of [`WINDOW`] bytes and [`VECTORS`] vectors.
pub(crate) struct Sending {
    /// The connection.
    pub(crate) owner: Key,
    link: Arc<Link>,
    file: Rc<FixedFile>,
    segments: Vec<Segment>,
    /// Number of segments in the window.
    in_window: usize,
    /// The window. The vectors before `sent_vectors` have been sent.
    vectors: Vec<iovec>,
    sent_vectors: usize,
    scratch: Box<[u8]>,
    scratch_used: usize,
    /// The mapping that vectors of the window refer to, if any do.
    mapping: Option<Rc<Mapping>>,
    /// A copy of the end of a block of the mapping whose start has been sent.
    torn: Box<[u8; PAGE]>,
    header: msghdr,
}

impl Sending {
    /// Returns an empty batch.
    pub(crate) fn new(owner: Key, link: Arc<Link>, file: Rc<FixedFile>) -> Box<Self> {
        Box::new(Self {
            owner,
            link,
            file,
            segments: Vec::new(),
            in_window: 0,
            vectors: Vec::new(),
            sent_vectors: 0,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            scratch_used: 0,
            mapping: None,
            torn: Box::new([0; PAGE]),
            header: header(&mut []),
        })
    }

    /// Returns whether everything has been sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Takes all segments of `queue`, if the previous batch is sent. The queue gets the empty list
    /// in exchange, to reuse its memory.
    pub(crate) fn load(&mut self, queue: &mut Vec<Segment>) {
        if self.segments.is_empty() {
            std::mem::swap(&mut self.segments, queue);
        }
    }

    /// Builds an entry that sends the rest of the window, or the next one. Called by the ring only,
    /// which owns `self` until completion.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let (_, header) = self.message();
        // Memory of a mapping may change while the kernel waits for room: see `keep_torn_block`.
        let wait = if self.mapping.is_some() { 0 } else { libc::MSG_WAITALL };
        #[allow(clippy::cast_sign_loss, reason = "bits, not a number")]
        let flags = (libc::MSG_NOSIGNAL | wait) as u32;
        opcode::SendMsg::new(Fixed(self.file.index()), header).flags(flags).build()
    }

    /// Returns the socket, and a header for the rest of the window or the next one. For the ring
    /// only: the header is valid while `self` exists and is not modified.
    pub(super) fn message(&mut self) -> (RawFd, *const msghdr) {
        if self.sent_vectors == self.vectors.len() {
            self.fill_window();
        }
        self.header = header(self.vectors.get_mut(self.sent_vectors..).unwrap_or_default());
        (self.link.as_fd().as_raw_fd(), &raw const self.header)
    }

    /// Builds the next window.
    fn fill_window(&mut self) {
        (self.in_window, self.sent_vectors, self.scratch_used) = (0, 0, 0);
        self.vectors.clear();
        self.mapping = None;
        let mut bytes = 0;
        let mut at = 0;
        while at < self.segments.len() && self.has_room(bytes) {
            let Some(len) = self.add_segment(at) else { break };
            bytes += len;
            at += 1;
        }
        self.in_window = at;
    }

    fn has_room(&self, bytes: usize) -> bool {
        bytes < WINDOW
            && self.vectors.len() + 3 <= VECTORS
            && self.scratch_used + 3 * SMALL <= self.scratch.len()
    }

    /// Adds a segment to the window. Returns its length, or `None` if it is in another mapping than
    /// the segments before it.
    fn add_segment(&mut self, at: usize) -> Option<usize> {
        let segment = self.segments.get(at)?;
        let mapped = match segment.in_place() {
            Some((InPlace { memory, start }, len)) => {
                let mapping = Rc::downcast::<Mapping>(memory).ok()?;
                let vector = mapping.iovec(start, len)?;
                let other = self.mapping.get_or_insert_with(|| mapping.clone());
                if !Rc::ptr_eq(other, &mapping) {
                    return None;
                }
                Some(vector)
            }
            None => None,
        };
        for (index, part) in segment.parts().into_iter().enumerate() {
            let next = if part.len() > SMALL {
                iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }
            } else {
                let end = self.scratch_used + part.len();
                let Some(copy) = self.scratch.get_mut(self.scratch_used..end) else { continue };
                copy.copy_from_slice(part);
                self.scratch_used = end;
                vector(copy)
            };
            append(&mut self.vectors, mapped.filter(|_| index == BODY).unwrap_or(next));
        }
        Some(segment.len())
    }

    /// Processes the result of a send.
    pub(super) fn ended(&mut self, result: Result<usize, Errno>) {
        match result {
            Ok(bytes) => self.sent(bytes),
            // A page of the mapping is gone. The connection is cut, because the data was announced.
            Err(Errno::FAULT) => self.mapping.iter().for_each(|mapping| mapping.set_failed()),
            Err(_) => {}
        }
    }

    /// Removes `bytes` sent bytes from the window.
    fn sent(&mut self, mut bytes: usize) {
        while let Some(vector) = self.vectors.get_mut(self.sent_vectors) {
            let part = bytes.min(vector.iov_len);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part);
            vector.iov_len -= part;
            bytes -= part;
            if vector.iov_len > 0 {
                return if part > 0 {
                    self.keep_torn_block()
                };
            }
            self.sent_vectors += 1;
        }
        self.segments.drain(..self.in_window);
        (self.in_window, self.mapping) = (0, None);
    }

    /// Copies the rest of a block of the mapping of which only the start has been sent: a later write
    /// must not change it, because a host expects that a block is read as a whole.
    fn keep_torn_block(&mut self) {
        let (Some(mapping), Some(rest)) = (&self.mapping, self.vectors.get_mut(self.sent_vectors))
        else {
            return;
        };
        let Some(start) = mapping.index_of(rest.iov_base.cast()) else { return };
        let len = (start.next_multiple_of(PAGE) - start).min(rest.iov_len);
        let Some(torn) = self.torn.get_mut(..len).filter(|torn| !torn.is_empty()) else { return };
        if mapping.read(start, torn) {
            rest.iov_base = rest.iov_base.wrapping_byte_add(len);
            rest.iov_len -= len;
            let copy = vector(torn);
            self.vectors.insert(self.sent_vectors, copy);
        }
    }
}

/// Appends a vector, or extends the last one if it is contiguous.
fn append(vectors: &mut Vec<iovec>, next: iovec) {
    match vectors.last_mut() {
        _ if next.iov_len == 0 => {}
        Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == next.iov_base => {
            last.iov_len += next.iov_len;
        }
        _ => vectors.push(next),
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sending({} segments)", self.segments.len())
    }
}
