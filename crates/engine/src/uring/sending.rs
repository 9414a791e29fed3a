//! What a connection sends, and the ring entry that names it. It knows no session.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use export::Segment;
use io_uring::types::Fixed;
use io_uring::{opcode, squeue};
use libc::{iovec, msghdr};

use super::files::FixedFile;
use super::receiving::vector;
use super::ring::header;
use super::slots::Key;
use crate::link::Link;

/// The most vectors of one send; the kernel takes 1024.
const VECTORS: usize = 256;

/// The most bytes of one send.
const WINDOW: usize = 1 << 20;

/// Parts of a segment up to this many bytes are copied together rather than named one by one: a vector of its own costs
/// about as much as copying so few bytes.
const SMALL: usize = 256;

/// Room for small parts; a segment brings at most three.
const SCRATCH: usize = 16 << 10;

/// A batch of segments that a connection sends. With the connection while nothing is under way, with the ring while it
/// is. It is sent in windows of [`WINDOW`] bytes and [`VECTORS`] vectors.
pub(crate) struct Sending {
    /// The connection that it is of.
    pub(crate) owner: Key,
    link: Arc<Link>,
    file: Rc<FixedFile>,
    segments: Vec<Segment>,
    /// How many segments are in the window.
    in_window: usize,
    /// The window; the vectors before `sent_vectors` have been sent.
    vectors: Vec<iovec>,
    sent_vectors: usize,
    scratch: Box<[u8]>,
    scratch_used: usize,
    header: msghdr,
}

impl Sending {
    /// With nothing to send.
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
            header: header(&mut []),
        })
    }

    /// Whether all is sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Takes all of `queue`, if all that it had is sent. The queue gets the emptied list for its next segments.
    pub(crate) fn load(&mut self, queue: &mut Vec<Segment>) {
        if self.segments.is_empty() {
            std::mem::swap(&mut self.segments, queue);
        }
    }

    /// Names the rest of the window, or the next one, for the ring, which then owns this.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let (_, header) = self.message();
        #[allow(clippy::cast_sign_loss, reason = "bits, not a number")]
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        opcode::SendMsg::new(Fixed(self.file.index()), header).flags(flags).build()
    }

    /// The socket, and a header that names the rest of the window, or the next one. For the ring only: what it names is
    /// there as long as this is, and is not changed otherwise.
    pub(super) fn message(&mut self) -> (RawFd, *const msghdr) {
        if self.sent_vectors == self.vectors.len() {
            self.fill_window();
        }
        self.header = header(self.vectors.get_mut(self.sent_vectors..).unwrap_or_default());
        (self.link.as_fd().as_raw_fd(), &raw const self.header)
    }

    /// Names the next window.
    fn fill_window(&mut self) {
        (self.in_window, self.sent_vectors, self.scratch_used) = (0, 0, 0);
        self.vectors.clear();
        let mut bytes = 0;
        let mut at = 0;
        while at < self.segments.len() && self.has_room(bytes) {
            bytes += self.add_segment(at);
            at += 1;
        }
        self.in_window = at;
    }

    fn has_room(&self, bytes: usize) -> bool {
        bytes < WINDOW
            && self.vectors.len() + 3 <= VECTORS
            && self.scratch_used + 3 * SMALL <= self.scratch.len()
    }

    fn add_segment(&mut self, at: usize) -> usize {
        let Some(segment) = self.segments.get(at) else { return 0 };
        for part in segment.parts() {
            let next = if part.len() > SMALL {
                iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }
            } else {
                let end = self.scratch_used + part.len();
                let Some(copy) = self.scratch.get_mut(self.scratch_used..end) else { continue };
                copy.copy_from_slice(part);
                self.scratch_used = end;
                vector(copy)
            };
            append(&mut self.vectors, next);
        }
        segment.len()
    }

    /// The kernel took that many bytes of the window.
    pub(super) fn sent(&mut self, mut bytes: usize) {
        while let Some(vector) = self.vectors.get_mut(self.sent_vectors) {
            let part = bytes.min(vector.iov_len);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part);
            vector.iov_len -= part;
            bytes -= part;
            if vector.iov_len > 0 {
                return;
            }
            self.sent_vectors += 1;
        }
        self.segments.drain(..self.in_window);
        self.in_window = 0;
    }
}

/// Adds a vector, or makes the last longer if it goes on where that ends.
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
