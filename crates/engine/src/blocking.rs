//! The plain driver: a thread a connection, which carries out each disk request before it does anything else. It is the
//! fallback where io_uring is forbidden, and the reference for what a driver does. It knows no protocol.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Admitted, Notice, Pool, Segment, Session, Step};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use crate::inbox::{Inbox, Message};
use crate::link::Link;
use crate::recv_buffer::{RecvBuffer, window};
use crate::{GRACE, LINGER, MakeSession, RETRY, Shared, UNSENT};

/// Bytes of a connection's stack. Calculations for DH-HMAC-CHAP and for pairing are the deepest that is done on it.
pub(crate) const STACK: usize = 512 << 10;

/// After so long without a word, free buffers go back to the system.
const IDLE: Duration = Duration::from_secs(1);

/// The most pieces of one send.
const PIECES: usize = 256;

/// Gives a connection a thread of its own, with a pool of `memory` bytes.
///
/// # Errors
/// There is no thread to be had; the connection is closed.
pub(crate) fn adopt(
    shared: &Arc<Shared>,
    memory: usize,
    link: Arc<Link>,
    open: MakeSession,
) -> io::Result<()> {
    let inbox = Inbox::new()?;
    let shared = shared.clone();
    let work = move || {
        shared.inboxes.register(&inbox);
        let _farewell = Farewell { shared: &shared, inbox: &inbox };
        // Without memory for it the connection is closed: its peer may try again.
        let Some(recv_buffer) = RecvBuffer::with_bytes(&link.take()) else { return };
        let pool = Pool::with_budget(memory, shared.budget.clone());
        let account = pool.open_for(link.peer().tenant());
        let session = open(link.peer(), account, Instant::now());
        Connection::new(&shared, link, session, inbox.clone(), recv_buffer, pool).run();
    };
    let thread = std::thread::Builder::new().name("connection".to_owned()).stack_size(STACK);
    thread.spawn(work).map(drop)
}

/// Dropped after the session: an association may have ended with it, and the others are to see that.
struct Farewell<'a> {
    shared: &'a Shared,
    inbox: &'a Arc<Inbox>,
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        self.shared.inboxes.unregister(self.inbox);
        self.shared.inboxes.notify(Notice::StateChanged, None);
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    session: Box<dyn Session>,
    inbox: Arc<Inbox>,
    pool: Pool,
    /// When memory that was refused is to be asked for again.
    retry: Option<Instant>,
    recv_buffer: RecvBuffer,
    queue: VecDeque<Segment>,
    /// Bytes of the first segment that are sent.
    sent: usize,
    /// Bytes of all segments that are not.
    unsent: usize,
    /// Set when the peer sends no more: what it asked for is answered, as long as it reads some until then.
    ended: Option<Instant>,
    /// Set when the session wants to close: what it said before is sent until then.
    closing: Option<Instant>,
    /// Whether nothing can be sent any more.
    broken: bool,
    established: bool,
    link: Arc<Link>,
}

impl<'a> Connection<'a> {
    fn new(
        shared: &'a Shared,
        link: Arc<Link>,
        session: Box<dyn Session>,
        inbox: Arc<Inbox>,
        recv_buffer: RecvBuffer,
        pool: Pool,
    ) -> Self {
        Self {
            shared,
            session,
            inbox,
            pool,
            retry: None,
            recv_buffer,
            queue: VecDeque::new(),
            sent: 0,
            unsent: 0,
            ended: None,
            closing: None,
            broken: false,
            established: false,
            link,
        }
    }

    fn run(&mut self) {
        loop {
            self.settle();
            // What was sent gives memory back, and the session may go on.
            if self.send() {
                continue;
            }
            let ends = self.closing.is_some() || self.ended.is_some();
            if self.broken || (ends && self.unsent == 0) {
                break;
            }
            self.wait();
        }
        self.session.notify(Instant::now(), &Notice::Disconnected);
        self.drain();
        self.linger();
    }

    /// Has the session say all that it has to say, and take all that it can take.
    fn settle(&mut self) {
        self.drain();
        while self.takes_more() && !self.recv_buffer.is_empty() {
            let taken = self.session.receive(Instant::now(), self.recv_buffer.unread());
            self.recv_buffer.consume(taken);
            self.drain();
            if taken == 0 {
                break;
            }
        }
        self.retry = self.pool.was_short().then(|| Instant::now() + RETRY);
    }

    fn drain(&mut self) {
        self.establish();
        while let Some(step) = self.session.poll() {
            match step {
                Step::Report(event) => (self.shared.sink)(event),
                Step::Notify => self.shared.inboxes.notify(Notice::StateChanged, None),
                Step::Submit(admitted) => self.carry_out(admitted),
                Step::Send(segment) => {
                    self.unsent += segment.len();
                    self.queue.push_back(segment);
                }
                Step::Close(_) => self.closing = Some(Instant::now() + GRACE),
            }
        }
    }

    /// Takes note that the peer was let in, before it can know of it and before its first write begins.
    fn establish(&mut self) {
        if !self.established && self.session.is_established() {
            self.established = true;
            self.link.establish(self.session.fence());
        }
    }

    fn carry_out(&mut self, admitted: Admitted) {
        let written = admitted.op().mutates().then(|| admitted.export().clone());
        let (ticket, outcome) = crate::disk::carry_out(admitted);
        if written.is_some_and(|export| export.is_contended()) {
            self.shared.inboxes.notify(Notice::StateChanged, None);
        }
        self.session.complete(Instant::now(), ticket, outcome);
    }

    /// Whether the peer may ask for more: not while it does not read the answers.
    fn takes_more(&self) -> bool {
        self.closing.is_none() && self.unsent <= UNSENT && self.session.can_receive()
    }

    /// Sends what the socket takes now. Tells whether that was any.
    fn send(&mut self) -> bool {
        let before = self.unsent;
        while self.unsent > 0 && !self.broken {
            let mut skip = self.sent;
            let parts = self.queue.iter().flat_map(Segment::parts).filter_map(|part| {
                let part = part.get(skip..).unwrap_or_else(|| {
                    skip -= part.len();
                    &[]
                });
                skip = if part.is_empty() { skip } else { 0 };
                (!part.is_empty()).then(|| IoSlice::new(part))
            });
            let pieces: Vec<_> = parts.take(PIECES).collect();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let mut nothing = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&self.link, &pieces, &mut nothing, flags) {
                Ok(bytes) => self.forget(bytes),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => self.broken = true,
            }
        }
        let any = self.unsent < before;
        self.ended = self.ended.map(|until| if any { Instant::now() + GRACE } else { until });
        any
    }

    /// That many bytes more are sent.
    fn forget(&mut self, bytes: usize) {
        self.unsent -= bytes;
        self.sent += bytes;
        while let Some(len) = self.queue.front().map(Segment::len).filter(|&len| len <= self.sent) {
            self.queue.pop_front();
            self.sent -= len;
        }
    }

    /// Waits until something happens, and takes note of it.
    fn wait(&mut self) {
        let reads = self.ended.is_none() && self.takes_more();
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, reads);
        wanted.set(PollFlags::OUT, self.unsent > 0);
        let mut timeout = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        if self.pool.cached() > 0 {
            timeout = Some(timeout.map_or(IDLE, |timeout| timeout.min(IDLE)));
        }
        let began = Instant::now();
        let seen = poll(&self.inbox, &self.link, wanted, timeout);
        if began.elapsed() >= IDLE {
            self.pool.trim();
        }
        if reads && !seen.is_empty() {
            self.receive();
        }
        self.broken |= !reads && seen.intersects(PollFlags::HUP | PollFlags::ERR);
        if self.inbox.has_messages() {
            self.read_inbox();
        }
        // What the peer said meanwhile counts, however late this thread is: a host that spoke in time is not given up.
        self.settle();
        self.tick();
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.session.deadline(), self.ended, self.closing, self.retry];
        deadlines.into_iter().flatten().min()
    }

    fn receive(&mut self) {
        let direct_recv =
            if self.recv_buffer.is_empty() { self.session.direct_recv() } else { None };
        let came = if let Some(mut direct_recv) = direct_recv {
            let came = rustix::net::recv(&self.link, window(&mut direct_recv), RecvFlags::DONTWAIT);
            let got = came.map_or(0, |(got, _)| got);
            self.session.direct_received(Instant::now(), direct_recv, got);
            came
        } else {
            let came = rustix::net::recv(&self.link, self.recv_buffer.spare(), RecvFlags::DONTWAIT);
            self.recv_buffer.fill(came.map_or(0, |(got, _)| got));
            came
        };
        match came {
            Ok((0, _)) => self.ended = Some(Instant::now() + GRACE),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.broken = true,
        }
    }

    fn read_inbox(&mut self) {
        self.inbox.clear_wake();
        for message in self.inbox.take() {
            match message {
                Message::Notice(notice) => {
                    self.session.notify(Instant::now(), &notice);
                    if self.established {
                        self.link.establish(self.session.fence());
                    }
                }
                Message::Quit => self.broken = true,
                Message::Adopt(..) | Message::BlockingOpDone(..) => {}
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.session.deadline().is_some_and(|deadline| deadline <= now) {
            self.session.tick(now);
        }
        let last = [self.ended, self.closing].into_iter().flatten().min();
        self.broken |= last.is_some_and(|until| until <= now);
    }

    /// Gives the peer a moment to read what was sent: closing a socket that holds unread bytes would destroy that.
    fn linger(&mut self) {
        let how = if self.broken { Shutdown::Both } else { Shutdown::Write };
        self.link.shut(how);
        let until = Instant::now() + LINGER;
        while !self.broken && self.ended.is_none() && Instant::now() < until {
            let timeout = Some(until.saturating_duration_since(Instant::now()));
            poll(&self.inbox, &self.link, PollFlags::IN, timeout);
            self.recv_buffer.clear();
            self.receive_nothing();
        }
    }

    /// Receives and drops.
    fn receive_nothing(&mut self) {
        match rustix::net::recv(&self.link, self.recv_buffer.spare(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.ended = Some(Instant::now() + GRACE),
            Err(errno) if errno != Errno::AGAIN && errno != Errno::INTR => self.broken = true,
            _ if self.inbox.has_messages() => self.read_inbox(),
            _ => {}
        }
    }
}

/// Waits for the inbox, and for what is `wanted` of the link. Returns what the link has.
fn poll(inbox: &Inbox, link: &Link, wanted: PollFlags, timeout: Option<Duration>) -> PollFlags {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut fds = [
        PollFd::from_borrowed_fd(inbox.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(link.as_fd(), wanted),
    ];
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) => fds.map(|fd| fd.revents())[1],
        Err(_) => PollFlags::empty(),
    }
}
