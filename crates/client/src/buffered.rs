//! Non-blocking buffered I/O between a [`Transport`] and a client session. Sent data is queued,
//! received payload goes directly into its buffer.

use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use export::{DirectRecv, Segment};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use crate::send_queue::SendQueue;
use crate::session::ClientSession;
use crate::transport::Transport;

/// A non-blocking connection with its queues.
pub(crate) struct BufferedTransport {
    transport: Box<dyn Transport>,
    send_queue: SendQueue,
    recv_buf: Box<[u8]>,
    /// Bytes at the start of `recv_buf` that are not consumed yet.
    buffered: usize,
    /// When data was last received.
    last_received: Instant,
}

/// Bytes received at once that are not placed directly: a header and little of what follows, which
/// is copied.
const HEADER_READ: usize = 8 << 10;

/// Size of the receive buffer: more than any session leaves unconsumed.
const RECV_BUF: usize = 64 << 10;

/// Reads in a row: a server that sends without end does not keep its client from looking at the
/// time.
const MAX_READS: usize = 1024;

/// TCP keep-alive of an idle connection: given up after 3 + 3 * 2 seconds without an answer. Giving
/// up too early costs only a reconnect and the requests in flight.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;

/// `TCP_USER_TIMEOUT`: how long sent data may remain unacknowledged, in milliseconds.
const USER_TIMEOUT_MS: u32 = 10_000;

impl BufferedTransport {
    /// Takes over a connection and makes it non-blocking.
    pub(crate) fn new(transport: Box<dyn Transport>) -> io::Result<Self> {
        transport.set_nonblocking(true)?;
        set_socket_options(transport.as_fd());
        let recv_buf = vec![0; RECV_BUF].into_boxed_slice();
        Ok(Self {
            transport,
            send_queue: SendQueue::default(),
            recv_buf,
            buffered: 0,
            last_received: Instant::now(),
        })
    }

    /// Queues a segment; [`BufferedTransport::flush`] sends it.
    pub(crate) fn push(&mut self, segment: Segment) {
        self.send_queue.push(segment);
    }

    /// Sends as much as possible without blocking.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.send_queue.flush(&mut self.transport)?;
        match self.transport.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Sends and receives as much as possible without blocking. Returns whether anything was
    /// received.
    ///
    /// # Errors
    /// Fails if the connection is lost. Data received before the loss is processed first: it may
    /// contain the reason.
    pub(crate) fn exchange(&mut self, session: &mut impl ClientSession) -> io::Result<bool> {
        let flushed = self.flush();
        match self.receive(session)? {
            true => Ok(true),
            false => flushed.map(|()| false),
        }
    }

    /// Receives until it would block, or [`MAX_READS`] times. Returns whether anything was received.
    fn receive(&mut self, session: &mut impl ClientSession) -> io::Result<bool> {
        let (mut received, mut reads) = (false, 0);
        // Data that polling does not report must not be left.
        while reads < MAX_READS || self.transport.has_unread() {
            reads += 1;
            match self.receive_once(session) {
                Ok(true) => received = true,
                Ok(false) => break,
                Err(_) if received => break,
                Err(error) => return Err(error),
            }
        }
        if received {
            self.last_received = Instant::now();
        }
        Ok(received)
    }

    /// Receives once. Returns whether anything was received.
    fn receive_once(&mut self, session: &mut impl ClientSession) -> io::Result<bool> {
        match if self.buffered == 0 { session.direct_recv() } else { None } {
            Some(direct_recv) => self.receive_in_place(session, direct_recv),
            None => self.receive_headers(session),
        }
    }

    /// Receives into the buffer of the session, and what follows into `recv_buf`.
    fn receive_in_place(
        &mut self,
        session: &mut impl ClientSession,
        mut direct_recv: DirectRecv,
    ) -> io::Result<bool> {
        let (start, end) = (direct_recv.start, direct_recv.end);
        let target = direct_recv.buffer.bytes_mut().get_mut(start..end).unwrap_or_default();
        let len = target.len();
        let headers = self.recv_buf.get_mut(..HEADER_READ).unwrap_or_default();
        let mut slices = [IoSliceMut::new(target), IoSliceMut::new(headers)];
        let got = io_result(self.transport.read_vectored(&mut slices));
        let count = *got.as_ref().unwrap_or(&None);
        session.direct_received(direct_recv, count.unwrap_or(0).min(len));
        let Some(count) = got? else { return Ok(false) };
        self.deliver(session, count.saturating_sub(len));
        Ok(true)
    }

    fn receive_headers(&mut self, session: &mut impl ClientSession) -> io::Result<bool> {
        let room = (self.buffered + HEADER_READ).min(self.recv_buf.len());
        let target = self.recv_buf.get_mut(self.buffered..room).unwrap_or_default();
        let Some(count) = io_result(self.transport.read(target))? else { return Ok(false) };
        self.deliver(session, self.buffered + count);
        Ok(true)
    }

    /// Passes the first `filled` bytes of `recv_buf` to the session.
    fn deliver(&mut self, session: &mut impl ClientSession, filled: usize) {
        let taken = session.receive(self.recv_buf.get(..filled).unwrap_or_default()).min(filled);
        self.recv_buf.copy_within(taken..filled, 0);
        self.buffered = filled - taken;
    }

    /// When data was last received, or the connection was opened.
    pub(crate) fn last_received(&self) -> Instant {
        self.last_received
    }

    /// The poll flags for its descriptor.
    pub(crate) fn poll_flags(&self) -> PollFlags {
        match self.send_queue.is_empty() && !self.transport.has_unsent() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        }
    }

    /// Waits until it can receive or send, at most until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<()> {
        if self.transport.has_unread() {
            return Ok(());
        }
        wait_for(self.as_fd(), self.poll_flags(), deadline)
    }
}

impl AsFd for BufferedTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

impl std::fmt::Debug for BufferedTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BufferedTransport({:?})", self.transport.as_fd())
    }
}

/// Waits until the descriptor is ready.
///
/// # Errors
/// Fails with `TimedOut` if the deadline has passed, even if the descriptor is ready.
fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = check(deadline)?;
    let left = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&left)) {
        Ok(0) => Err(timed_out()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the time until the deadline.
///
/// # Errors
/// Fails with `TimedOut` if it has passed.
pub(crate) fn check(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(timed_out()) } else { Ok(left) }
}

fn timed_out() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "no answer in time")
}

/// Reads some bytes from a non-blocking connection, waiting until `deadline`.
///
/// # Errors
/// Fails if reading fails, the peer closes the connection, or the deadline passes.
pub(crate) fn read_before(
    transport: &mut dyn Transport,
    into: &mut [u8],
    deadline: Instant,
) -> io::Result<usize> {
    loop {
        check(deadline)?;
        match io_result(transport.read(into))? {
            None | Some(0) => {}
            Some(count) => return Ok(count),
        }
        wait_for(transport.as_fd(), PollFlags::IN, deadline)?;
    }
}

/// Maps the result of a read: `None` if it would block.
fn io_result(got: io::Result<usize>) -> io::Result<Option<usize>> {
    match got {
        Ok(0) => {
            Err(io::Error::new(ErrorKind::UnexpectedEof, "the other end closed the connection"))
        }
        Ok(got) => Ok(Some(got)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Some(0)),
        Err(error) => Err(error),
    }
}

/// Enables keep-alive and disables Nagle's algorithm. Errors are ignored: the socket may not be
/// TCP.
fn set_socket_options(socket: BorrowedFd<'_>) {
    let _ = sockopt::set_tcp_nodelay(socket, true)
        .and_then(|()| sockopt::set_socket_keepalive(socket, true))
        .and_then(|()| sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE))
        .and_then(|()| sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL))
        .and_then(|()| sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES))
        .and_then(|()| sockopt::set_tcp_user_timeout(socket, USER_TIMEOUT_MS));
}
