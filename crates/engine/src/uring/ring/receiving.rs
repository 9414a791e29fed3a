//! Receive buffers of a connection, and the ring entry that refers to them.

use std::fmt;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use export::DirectRecv;
use io_uring::types::Fixed;
use io_uring::{opcode, squeue};
use libc::{iovec, msghdr};

use super::super::files::FixedFile;
use super::super::slots::Key;
use super::{header, length};
use crate::link::Link;
use crate::recv_buffer::{RECV_BUFFER, RecvBuffer, window};

/// From this size on a direct receive, or a request, counts as large.
pub(crate) const LARGE: usize = 16 << 10;

/// Most bytes that a receive waits for: the session notices traffic only when it completes.
const MAX_WHOLE: usize = 256 << 10;

/// `MSG_WAITALL`.
#[allow(clippy::cast_sign_loss, reason = "bits, not a number")]
const WAIT_ALL: u32 = libc::MSG_WAITALL as u32;

/// Bytes received into the receive buffer while requests are large: the header of the next request
/// is expected there, and anything beyond it would have to be copied.
const MIN_RECV: usize = 4 << 10;

/// `IORING_RECVSEND_POLL_FIRST`, since Linux 5.19. Without it the first attempt takes whatever has
/// arrived, regardless of `SO_RCVLOWAT`.
const POLL_FIRST: u16 = 1;

const NOTHING: iovec = iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// Receive buffers of a connection. Owned by the connection while no receive is in flight, and by
/// the ring while one is.
pub(crate) struct Receiving {
    /// The connection.
    pub(crate) owner: Key,
    /// Unread bytes, and free space.
    pub(crate) recv_buffer: RecvBuffer,
    /// Memory of the session for the next bytes.
    pub(crate) direct_recv: Option<DirectRecv>,
    /// Keeps the socket open.
    _link: Arc<Link>,
    file: Rc<FixedFile>,
    /// Whether to wait for `SO_RCVLOWAT` bytes.
    pub(crate) coalesces: bool,
    /// Whether the latest requests were large.
    pub(crate) is_large: bool,
    header: msghdr,
    vectors: [iovec; 2],
}

impl Receiving {
    /// Returns buffers without a direct receive.
    pub(crate) fn new(
        owner: Key,
        link: Arc<Link>,
        file: Rc<FixedFile>,
        recv_buffer: RecvBuffer,
    ) -> Box<Self> {
        let (header, vectors) = (header(&mut []), [NOTHING; 2]);
        Box::new(Self {
            owner,
            recv_buffer,
            direct_recv: None,
            _link: link,
            file,
            coalesces: false,
            is_large: false,
            header,
            vectors,
        })
    }

    /// Builds an entry that receives into the direct receive, if there is one, and the receive
    /// buffer. Called by the ring only, which owns `self` until completion.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let fd = Fixed(self.file.index());
        if let Some(direct_recv) = &mut self.direct_recv
            && window(direct_recv).len() >= LARGE
        {
            // All of it in one completion. If the peer stops in the middle, the receive waits, as one
            // for the next byte would.
            let whole = window(direct_recv);
            let len = whole.len().min(MAX_WHOLE);
            self.vectors = [vector(whole.get_mut(..len).unwrap_or_default()), NOTHING];
            self.header = header(&mut self.vectors[..1]);
            let receive = opcode::RecvMsg::new(fd, &raw mut self.header);
            return receive.flags(WAIT_ALL).build();
        }
        let spare = self.recv_buffer.spare();
        let len = spare.len().min(if self.is_large { MIN_RECV } else { RECV_BUFFER });
        let spare = spare.get_mut(..len).unwrap_or_default();
        let when = if self.coalesces { POLL_FIRST } else { 0 };
        let Some(direct_recv) = &mut self.direct_recv else {
            let receive = opcode::Recv::new(fd, spare.as_mut_ptr(), length(spare));
            return receive.ioprio(when).build();
        };
        self.vectors = [vector(window(direct_recv)), vector(spare)];
        self.header = header(&mut self.vectors);
        opcode::RecvMsg::new(fd, &raw mut self.header).ioprio(when).build()
    }
}

impl fmt::Debug for Receiving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiving({} bytes wait)", self.recv_buffer.unread().len())
    }
}

/// Returns a vector for `bytes`.
pub(super) fn vector(bytes: &mut [u8]) -> iovec {
    iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}
