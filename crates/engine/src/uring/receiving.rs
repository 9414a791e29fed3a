//! What a connection receives into, and the ring entry that names it. It knows no session.

use std::fmt;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use export::DirectRecv;
use io_uring::types::Fixed;
use io_uring::{opcode, squeue};
use libc::{iovec, msghdr};

use super::files::FixedFile;
use super::ring::{header, length};
use super::slots::Key;
use crate::link::Link;
use crate::recv_buffer::{RECV_BUFFER, RecvBuffer, window};

/// A direct_recv from this size on is large, and so is a request.
pub(super) const LARGE: usize = 16 << 10;

/// Bytes that the recv_buffer takes behind a large direct_recv, and while requests are large: where one large payload came, the
/// header of the next is close, and what is received behind that would have to be copied.
const MIN_RECV: usize = 4 << 10;

/// `IORING_RECVSEND_POLL_FIRST`, since Linux 5.19: without it the first try takes whatever has come.
const POLL_FIRST: u16 = 1;

const NOTHING: iovec = iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// What a connection receives into. With the connection while nothing is under way, with the ring while it is.
pub(crate) struct Receiving {
    /// The connection that it is of.
    pub(crate) owner: Key,
    /// Bytes that wait for the session, and room for more.
    pub(crate) recv_buffer: RecvBuffer,
    /// Where the session wants the next bytes.
    pub(crate) direct_recv: Option<DirectRecv>,
    /// The socket is open as long as this is.
    _link: Arc<Link>,
    file: Rc<FixedFile>,
    /// Whether to take nothing before as much has come as the socket was told to wait for.
    pub(crate) coalesces: bool,
    /// Whether the requests that came last were large.
    pub(crate) is_large: bool,
    header: msghdr,
    vectors: [iovec; 2],
}

impl Receiving {
    /// For the recv_buffer.
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

    /// Names the direct_recv, if there is one, and the recv_buffer's room. To be asked by the ring only, which then owns this.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let fd = Fixed(self.file.index());
        let lands =
            self.direct_recv.as_mut().is_some_and(|direct_recv| window(direct_recv).len() >= LARGE);
        let spare = self.recv_buffer.spare();
        let len = spare.len().min(if lands || self.is_large { MIN_RECV } else { RECV_BUFFER });
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

/// The vector that names `bytes`.
pub(super) fn vector(bytes: &mut [u8]) -> iovec {
    iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}
