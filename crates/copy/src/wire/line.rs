//! A connection that never blocks, between a [`Wire`] and the pure half of a protocol: what is to be sent waits here, what
//! comes goes straight to where it belongs. It knows no protocol.

use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use export::{DirectRecv, Segment};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::Wire;
use super::outbox::Outbox;

/// The half of a protocol that takes in what comes.
pub(crate) trait Talks {
    /// Bytes came. Tells how many it has taken; the rest is offered again with what comes after it.
    fn receive(&mut self, bytes: &[u8]) -> usize;

    /// Memory that the next bytes belong in.
    fn direct_recv(&mut self) -> Option<DirectRecv>;

    /// The memory comes back, with `got` bytes received into it.
    fn direct_received(&mut self, direct_recv: DirectRecv, got: usize);
}

/// A connection.
pub(crate) struct Line {
    wire: Box<dyn Wire>,
    outbox: Outbox,
    inbox: Box<[u8]>,
    /// Bytes at the start of `inbox` that were not taken yet.
    kept: usize,
    /// When something came last.
    heard: Instant,
}

/// Bytes that are not received in place, at once: a header and little of what follows, which is copied.
const HEADERS: usize = 8 << 10;

/// Bytes of headers that wait for their end: more than any protocol leaves.
const INBOX: usize = 64 << 10;

/// When a connection on which nothing moves is probed, and how often without an answer: 3 + 3 * 2 seconds. A connection that is
/// given up for a network that was only slow is made again, and costs what was in flight.
const IDLE: Duration = Duration::from_secs(3);
const PROBE: Duration = Duration::from_secs(2);
const PROBES: u32 = 3;

/// How long sent bytes may go without a sign that they arrived, in milliseconds.
const UNHEARD: u32 = 10_000;

impl Line {
    /// Takes a connection over.
    pub(crate) fn new(wire: Box<dyn Wire>) -> io::Result<Self> {
        wire.set_nonblocking(true)?;
        watch(wire.as_fd());
        let inbox = vec![0; INBOX].into_boxed_slice();
        Ok(Self { wire, outbox: Outbox::default(), inbox, kept: 0, heard: Instant::now() })
    }

    /// Takes a segment in; [`Line::flush`] sends it.
    pub(crate) fn push(&mut self, segment: Segment) {
        self.outbox.push(segment);
    }

    /// Sends what the connection takes now.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.outbox.flush(&mut self.wire)?;
        match self.wire.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Sends and receives what can be without waiting. Tells whether anything came.
    ///
    /// # Errors
    /// The connection is gone. What came before that is taken in first: it may tell why.
    pub(crate) fn exchange(&mut self, talks: &mut impl Talks) -> io::Result<bool> {
        let flushed = self.flush();
        match self.receive(talks)? {
            true => Ok(true),
            false => flushed.map(|()| false),
        }
    }

    /// Receives all that is there, and tells whether that is anything.
    fn receive(&mut self, talks: &mut impl Talks) -> io::Result<bool> {
        let mut came = false;
        loop {
            match self.receive_once(talks) {
                Ok(true) => came = true,
                Ok(false) => break,
                Err(_) if came => break,
                Err(error) => return Err(error),
            }
        }
        if came {
            self.heard = Instant::now();
        }
        Ok(came)
    }

    /// Receives once; tells whether there was anything.
    fn receive_once(&mut self, talks: &mut impl Talks) -> io::Result<bool> {
        match if self.kept == 0 { talks.direct_recv() } else { None } {
            Some(direct_recv) => self.receive_in_place(talks, direct_recv),
            None => self.receive_headers(talks),
        }
    }

    /// Receives into the direct_recv, and what comes behind it as headers.
    fn receive_in_place(
        &mut self,
        talks: &mut impl Talks,
        mut direct_recv: DirectRecv,
    ) -> io::Result<bool> {
        let (start, end) = (direct_recv.start, direct_recv.end);
        let place = direct_recv.buffer.bytes_mut().get_mut(start..end).unwrap_or_default();
        let len = place.len();
        let headers = self.inbox.get_mut(..HEADERS).unwrap_or_default();
        let mut slices = [IoSliceMut::new(place), IoSliceMut::new(headers)];
        let got = received(self.wire.read_vectored(&mut slices));
        let came = *got.as_ref().unwrap_or(&None);
        talks.direct_received(direct_recv, came.unwrap_or(0).min(len));
        let Some(came) = got? else { return Ok(false) };
        self.offer(talks, came.saturating_sub(len));
        Ok(true)
    }

    fn receive_headers(&mut self, talks: &mut impl Talks) -> io::Result<bool> {
        let room = (self.kept + HEADERS).min(self.inbox.len());
        let place = self.inbox.get_mut(self.kept..room).unwrap_or_default();
        let Some(came) = received(self.wire.read(place))? else { return Ok(false) };
        self.offer(talks, self.kept + came);
        Ok(true)
    }

    /// Offers the first `filled` bytes of the inbox.
    fn offer(&mut self, talks: &mut impl Talks, filled: usize) {
        let taken = talks.receive(self.inbox.get(..filled).unwrap_or_default()).min(filled);
        self.inbox.copy_within(taken..filled, 0);
        self.kept = filled - taken;
    }

    /// When something came last, or the connection was made.
    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }

    /// What to wait for on its descriptor.
    pub(crate) fn wants(&self) -> PollFlags {
        match self.outbox.is_empty() && !self.wire.has_unsent() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        }
    }

    /// Waits until something comes or can be sent, but not beyond `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<()> {
        if self.wire.has_unread() {
            return Ok(());
        }
        wait_for(self.as_fd(), self.wants(), deadline)
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({:?})", self.wire.as_fd())
    }
}

/// Waits until the descriptor is ready.
///
/// # Errors
/// Timed out: the deadline passed.
fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&left)) {
        Ok(0) => Err(io::Error::new(ErrorKind::TimedOut, "no answer in time")),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads some bytes from a connection that does not block, waiting for them until `deadline`.
///
/// # Errors
/// As for reading; the other end closed; or the deadline passed.
pub(crate) fn read_until(
    wire: &mut dyn Wire,
    into: &mut [u8],
    deadline: Instant,
) -> io::Result<usize> {
    loop {
        match received(wire.read(into))? {
            None | Some(0) => {}
            Some(came) => return Ok(came),
        }
        wait_for(wire.as_fd(), PollFlags::IN, deadline)?;
    }
}

/// What a read gave: nothing if it would have had to wait.
fn received(got: io::Result<usize>) -> io::Result<Option<usize>> {
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

/// Has the system find out when the other end is gone, and not wait before it sends. For what is no TCP it means nothing.
fn watch(socket: BorrowedFd<'_>) {
    let _ = sockopt::set_tcp_nodelay(socket, true)
        .and_then(|()| sockopt::set_socket_keepalive(socket, true))
        .and_then(|()| sockopt::set_tcp_keepidle(socket, IDLE))
        .and_then(|()| sockopt::set_tcp_keepintvl(socket, PROBE))
        .and_then(|()| sockopt::set_tcp_keepcnt(socket, PROBES))
        .and_then(|()| sockopt::set_tcp_user_timeout(socket, UNHEARD));
}
