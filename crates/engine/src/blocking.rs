//! The blocking driver: one thread per connection, which executes each disk request before it
//! continues. It is the fallback where io_uring is not permitted, and the reference for the
//! behaviour of a driver.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Admitted, Finished, Notice, Pool, Segment, Session, Step};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use crate::inbox::{Inbox, Message};
use crate::link::Link;
use crate::recv_buffer::{RecvBuffer, window};
use crate::topic::Topic;
use crate::{GRACE, LINGER, MAX_UNSENT, MEMORY_RETRY, MakeSession, Shared};

/// Stack size of a connection's thread in bytes. The deepest computations on it are those of
/// DH-HMAC-CHAP and of pairing.
pub(crate) const STACK: usize = 512 << 10;

/// After this idle time cached buffers are freed.
const IDLE: Duration = Duration::from_secs(1);

/// Most vectors of one send.
const MAX_VECTORS: usize = 256;

/// Drives a connection on a new thread, with a pool of `memory` bytes.
///
/// # Errors
/// Fails if no thread can be created; the connection is closed.
pub(crate) fn adopt(
    shared: &Arc<Shared>,
    memory: usize,
    link: Arc<Link>,
    open: MakeSession,
) -> io::Result<()> {
    let inbox = Inbox::new()?;
    let shared = shared.clone();
    let work = move || {
        inbox.add_session();
        shared.inboxes.register(&inbox);
        let _notify = NotifyOnExit { shared: &shared, inbox: &inbox, link: link.clone() };
        // Out of memory: the connection is closed, and the peer may retry.
        let Some(recv_buffer) = RecvBuffer::with_bytes(&link.take_early_data()) else { return };
        let pool = Pool::with_budget(memory, shared.budget.clone());
        let account = pool.open_for(link.peer().tenant());
        let session = open(link.peer(), account, Instant::now());
        Connection::new(&shared, link, session, inbox.clone(), recv_buffer, pool).run();
    };
    let thread = std::thread::Builder::new().name("connection".to_owned()).stack_size(STACK);
    thread.spawn(work).map(drop)
}

/// Dropped after the session, even if it panics: an association may have ended with it, so the
/// other sessions are notified.
struct NotifyOnExit<'a> {
    shared: &'a Shared,
    inbox: &'a Arc<Inbox>,
    link: Arc<Link>,
}

impl Drop for NotifyOnExit<'_> {
    fn drop(&mut self) {
        self.shared.inboxes.unregister(self.inbox);
        self.shared.inboxes.changed(&self.link.topic(), None);
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    session: Box<dyn Session>,
    inbox: Arc<Inbox>,
    pool: Pool,
    /// When to poll the session again after it was refused memory.
    retry_at: Option<Instant>,
    recv_buffer: RecvBuffer,
    queue: VecDeque<Segment>,
    /// Bytes of the first segment that have been sent.
    sent: usize,
    /// Bytes of all segments that have not been sent.
    unsent: usize,
    /// Set when the peer has closed its sending side. Requests in flight are answered until this
    /// time, which moves on as long as the peer reads.
    half_closed: Option<Instant>,
    /// Set when the session has closed. Its output is sent until this time.
    closing: Option<Instant>,
    /// Whether the connection is lost.
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
            retry_at: None,
            recv_buffer,
            queue: VecDeque::new(),
            sent: 0,
            unsent: 0,
            half_closed: None,
            closing: None,
            broken: false,
            established: false,
            link,
        }
    }

    fn run(&mut self) {
        loop {
            self.settle();
            // Sending frees memory which the session may be waiting for.
            if self.send() {
                continue;
            }
            let ends = self.closing.is_some() || self.half_closed.is_some();
            if self.broken || (ends && self.unsent == 0) {
                break;
            }
            self.wait();
        }
        self.session.notify(Instant::now(), &Notice::Disconnected);
        self.drain();
        self.linger();
    }

    /// Processes steps of the session and received bytes, until there is nothing left to do.
    fn settle(&mut self) {
        self.drain();
        while self.can_receive() && !self.recv_buffer.is_empty() {
            let taken = self.session.receive(Instant::now(), self.recv_buffer.unread());
            self.recv_buffer.consume(taken);
            self.drain();
            if taken == 0 {
                break;
            }
        }
        self.retry_at = self.pool.was_short().then(|| Instant::now() + MEMORY_RETRY);
    }

    fn drain(&mut self) {
        self.establish();
        while let Some(step) = self.session.poll() {
            match step {
                Step::Report(event) => (self.shared.sink)(*event),
                Step::Notify => self.shared.inboxes.changed(&self.link.topic(), None),
                Step::Submit(admitted) => self.carry_out(admitted),
                Step::Send(segment) => {
                    self.unsent += segment.len();
                    self.queue.push_back(segment);
                }
                Step::Halt => self.broken = true,
                Step::Close(_) => self.closing = Some(Instant::now() + GRACE),
            }
        }
    }

    /// Marks the connection as established as soon as the session is, before the peer learns of it
    /// and before its first write begins.
    fn establish(&mut self) {
        if !self.established && self.session.is_established() {
            self.established = true;
            self.inbox.set_established(&self.link, self.session.fence());
        }
    }

    fn carry_out(&mut self, admitted: Admitted) {
        let Finished { ticket, outcome, contended } = crate::disk::carry_out(admitted);
        if let Some(export) = contended {
            self.shared.inboxes.changed(&Topic::of(&export), None);
        }
        self.session.complete(Instant::now(), ticket, outcome);
    }

    /// Returns whether the session accepts more, and the peer reads the answers (back-pressure).
    fn can_receive(&self) -> bool {
        self.closing.is_none() && self.unsent <= MAX_UNSENT && self.session.can_receive()
    }

    /// Sends what the socket takes without blocking. Returns whether that was anything.
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
            let vectors: Vec<_> = parts.take(MAX_VECTORS).collect();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let mut nothing = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&self.link, &vectors, &mut nothing, flags) {
                Ok(bytes) => self.mark_sent(bytes),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => self.broken = true,
            }
        }
        let any = self.unsent < before;
        self.half_closed =
            self.half_closed.map(|until| if any { Instant::now() + GRACE } else { until });
        any
    }

    /// Removes `bytes` sent bytes from the queue.
    fn mark_sent(&mut self, bytes: usize) {
        self.unsent -= bytes;
        self.sent += bytes;
        while let Some(len) = self.queue.front().map(Segment::len).filter(|&len| len <= self.sent) {
            self.queue.pop_front();
            self.sent -= len;
        }
    }

    /// Waits for an event or a deadline, and processes it.
    fn wait(&mut self) {
        let reads = self.half_closed.is_none() && self.can_receive();
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, reads);
        wanted.set(PollFlags::OUT, self.unsent > 0);
        let mut timeout = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        if self.pool.has_unused() {
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
        // Received bytes are processed before deadlines: a host that sent in time is not
        // disconnected because this thread is late.
        self.settle();
        self.tick();
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.session.deadline(), self.half_closed, self.closing, self.retry_at];
        deadlines.into_iter().flatten().min()
    }

    fn receive(&mut self) {
        let direct_recv =
            if self.recv_buffer.is_empty() { self.session.direct_recv() } else { None };
        let received = if let Some(mut direct_recv) = direct_recv {
            let received =
                rustix::net::recv(&self.link, window(&mut direct_recv), RecvFlags::DONTWAIT);
            let got = received.map_or(0, |(got, _)| got);
            self.session.direct_received(Instant::now(), direct_recv, got);
            received
        } else {
            let received =
                rustix::net::recv(&self.link, self.recv_buffer.spare(), RecvFlags::DONTWAIT);
            self.recv_buffer.fill(received.map_or(0, |(got, _)| got));
            received
        };
        match received {
            Ok((0, _)) => self.half_closed = Some(Instant::now() + GRACE),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.broken = true,
        }
    }

    fn read_inbox(&mut self) {
        self.inbox.clear_wake();
        for message in self.inbox.take() {
            match message {
                Message::Notice(notice) => self.notify(notice),
                Message::ExportChanged(_) => self.notify(Notice::StateChanged),
                Message::Quit => self.broken = true,
                Message::Adopt(..) | Message::BlockingOpDone(..) => {}
            }
        }
    }

    fn notify(&mut self, notice: Notice) {
        self.session.notify(Instant::now(), &notice);
        if self.established {
            self.inbox.set_established(&self.link, self.session.fence());
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.session.deadline().is_some_and(|deadline| deadline <= now) {
            self.session.tick(now);
        }
        let last = [self.half_closed, self.closing].into_iter().flatten().min();
        self.broken |= last.is_some_and(|until| until <= now);
    }

    /// Closes the sending side and gives the peer time to read: closing a socket with unread bytes
    /// would reset the connection and discard what was sent.
    fn linger(&mut self) {
        let how = if self.broken { Shutdown::Both } else { Shutdown::Write };
        self.link.shut(how);
        let until = Instant::now() + LINGER;
        while !self.broken && self.half_closed.is_none() && Instant::now() < until {
            let timeout = Some(until.saturating_duration_since(Instant::now()));
            poll(&self.inbox, &self.link, PollFlags::IN, timeout);
            self.recv_buffer.clear();
            self.discard_received();
        }
    }

    /// Receives and discards.
    fn discard_received(&mut self) {
        match rustix::net::recv(&self.link, self.recv_buffer.spare(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.half_closed = Some(Instant::now() + GRACE),
            Err(errno) if errno != Errno::AGAIN && errno != Errno::INTR => self.broken = true,
            _ if self.inbox.has_messages() => self.read_inbox(),
            _ => {}
        }
    }
}

/// Waits for the inbox, and for the events `wanted` on the socket. Returns the events on the
/// socket.
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
