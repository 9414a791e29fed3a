//! A connection of a worker thread: its session, its socket, and its operations in flight in the
//! ring.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use export::{Fault, Finished, Notice, Segment, Session, Step};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::failed_session::FailedSession;
use super::files::FixedFile;
use super::ring::{LARGE, Receiving, Ring, Sending};
use super::rx_coalescing::RxCoalescing;
use super::slots::Key;
use super::turn::{LastDisk, Turn};
use crate::disk::Job;
use crate::link::Link;
use crate::recv_buffer::{RecvBuffer, window};
use crate::topic::Topic;
use crate::{GRACE, LINGER, MAX_UNSENT};

/// Output above this size is sent before the turn ends, so that the peer processes the first
/// answers while the last are made.
const FLUSH_THRESHOLD: usize = 512 << 10;

/// Rounds of processing commands and sending answers in one turn.
const MAX_ROUNDS: usize = 8;

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The peer has closed its sending side. Requests in flight are answered until this time, which
    /// moves on as long as the peer reads.
    HalfClosed(Instant),
    /// The session has closed; its output is sent until this time.
    Flushing(Instant),
    /// Our sending side is closed. The peer may read the rest and close until this time.
    Lingering(Instant),
    /// The socket is shut down; operations in flight complete.
    Draining,
}

pub(crate) struct Connection {
    key: Key,
    link: Arc<Link>,
    session: Box<dyn Session>,
    /// `None` while a receive is in flight.
    receiving: Option<Box<Receiving>>,
    /// `None` while a send is in flight.
    sending: Option<Box<Sending>>,
    queue: Vec<Segment>,
    /// Bytes of segments that the kernel has not taken.
    unsent: usize,
    /// Bytes of segments added since the last send.
    unflushed: usize,
    /// Number of disk requests in flight.
    jobs: usize,
    last_disk: LastDisk,
    rx_coalescing: RxCoalescing,
    /// Whether the session has ever asked for a direct receive. One over TLS does not.
    receives_directly: bool,
    /// `SO_RCVLOWAT` of the socket.
    low_water_mark: usize,
    /// When the coalescing wait times out, if there is one.
    pub(crate) coalescing_until: Option<Instant>,
    /// Received bytes and sent segments since the last report to `rx_coalescing`.
    received_bytes: usize,
    answers: u32,
    phase: Phase,
    /// Whether the peer has closed its sending side.
    end_of_stream: bool,
    established: bool,
    /// Whether it is in the list of connections to be settled.
    pub(crate) is_dirty: bool,
    /// Whether it has more to do than fits into one turn.
    pub(crate) is_unfinished: bool,
}

impl Connection {
    /// Returns a connection that was just accepted. `file` is the index of its socket;
    /// `recv_buffer` contains what was received already.
    pub(crate) fn open(
        key: Key,
        link: Arc<Link>,
        file: Rc<FixedFile>,
        recv_buffer: RecvBuffer,
        session: Box<dyn Session>,
        now: Instant,
    ) -> Self {
        Self {
            key,
            receiving: Some(Receiving::new(key, link.clone(), file.clone(), recv_buffer)),
            sending: Some(Sending::new(key, link.clone(), file)),
            link,
            session,
            queue: Vec::new(),
            unsent: 0,
            unflushed: 0,
            jobs: 0,
            last_disk: LastDisk::default(),
            rx_coalescing: RxCoalescing::new(now),
            receives_directly: false,
            low_water_mark: 1,
            coalescing_until: None,
            received_bytes: 0,
            answers: 0,
            phase: Phase::Open,
            end_of_stream: false,
            established: false,
            is_dirty: false,
            is_unfinished: false,
        }
    }

    pub(crate) fn received(
        &mut self,
        turn: &mut Turn,
        mut receiving: Box<Receiving>,
        result: Result<usize, Errno>,
    ) {
        let received = result.unwrap_or(0);
        self.coalescing_until = None;
        self.received_bytes = self.received_bytes.saturating_add(received);
        let mut direct_recv = receiving.direct_recv.take();
        let direct_len =
            direct_recv.as_mut().map_or(0, |direct_recv| received.min(window(direct_recv).len()));
        receiving.recv_buffer.fill(received - direct_len);
        self.receiving = Some(receiving);
        if let Some(direct_recv) = direct_recv {
            self.session.direct_received(turn.now, direct_recv, direct_len);
        }
        match result {
            Ok(0) => self.end_of_stream(turn.now),
            Ok(_) => {}
            Err(_) => self.disconnect(turn),
        }
    }

    fn end_of_stream(&mut self, now: Instant) {
        self.end_of_stream = true;
        if self.phase == Phase::Open {
            self.phase = Phase::HalfClosed(now + GRACE);
        }
    }

    pub(crate) fn sent(
        &mut self,
        turn: &mut Turn,
        sending: Box<Sending>,
        result: Result<usize, Errno>,
    ) {
        self.sending = Some(sending);
        match result {
            Ok(bytes) => self.mark_sent(turn.now, bytes),
            Err(_) => self.disconnect(turn),
        }
    }

    /// Takes back a request that is not in flight any more.
    pub(crate) fn completed(&mut self, turn: &mut Turn, job: Job) {
        if let Some(job) = turn.resume(self.key, &mut self.last_disk, job) {
            self.jobs -= 1;
            self.complete(turn, job);
        }
    }

    fn complete(&mut self, turn: &mut Turn, job: Job) {
        let Finished { ticket, outcome, contended } = job.finish();
        contended.iter().for_each(|export| turn.changes.add(Topic::of(export)));
        self.session.complete(turn.now, ticket, outcome);
    }

    pub(crate) fn notify(&mut self, turn: &Turn, notice: Notice) {
        self.last_disk.release_withdrawn();
        if self.is_open() {
            self.session.notify(turn.now, &notice);
            if self.established {
                turn.inbox.set_established(&self.link, self.session.fence());
            }
        }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Processes expired deadlines.
    pub(crate) fn tick(&mut self, turn: &mut Turn) {
        let now = turn.now;
        match self.phase {
            Phase::HalfClosed(until) | Phase::Flushing(until) if until <= now => {
                self.disconnect(turn);
            }
            Phase::Lingering(until) if until <= now => self.shut(),
            Phase::Open | Phase::HalfClosed(_) if self.is_past_deadline(now) => {
                // Received bytes are processed first: a host that sent in time is not disconnected
                // because this thread is late.
                while self.feed(now) {
                    self.drain(turn);
                }
                if self.is_past_deadline(now) {
                    self.session.tick(now);
                }
            }
            _ => {}
        }
    }

    fn is_past_deadline(&self, now: Instant) -> bool {
        self.session.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Returns when to call [`Connection::tick`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open => self.session.deadline(),
            Phase::HalfClosed(until) => {
                Some(self.session.deadline().map_or(until, |deadline| deadline.min(until)))
            }
            Phase::Flushing(until) | Phase::Lingering(until) => Some(until),
            Phase::Draining => None,
        }
    }

    /// Does everything that is possible without waiting. Returns whether the connection has ended
    /// and can be dropped.
    pub(crate) fn settle(&mut self, turn: &mut Turn) -> bool {
        self.is_dirty = false;
        self.drain(turn);
        // Sending frees memory which the session may be waiting for. The number of rounds is
        // limited, so that other connections are not starved.
        self.is_unfinished = true;
        for _ in 0..MAX_ROUNDS {
            if !(self.feed(turn.now) || self.send(turn)) {
                self.is_unfinished = false;
                break;
            }
            self.drain(turn);
        }
        if self.is_unfinished {
            return false;
        }
        self.close_when_done(turn);
        self.report_answers(turn.now);
        self.receive(turn);
        self.is_over()
    }

    /// Returns whether the socket is shut down and nothing is in flight.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Draining
            && self.jobs == 0
            && self.receiving.is_some()
            && self.sending.is_some()
    }

    pub(crate) fn disconnect(&mut self, turn: &mut Turn) {
        let known = matches!(self.phase, Phase::Lingering(_) | Phase::Draining);
        self.shut();
        if !known {
            self.session.notify(turn.now, &Notice::Disconnected);
            self.drain(turn);
        }
    }

    /// Cuts the connection of a session that panicked, without affecting other connections.
    pub(crate) fn fail(&mut self, turn: &mut Turn) {
        turn.changes.add(self.link.topic());
        self.session = Box::new(FailedSession);
        self.shut();
    }

    /// Shuts the socket down. Does not inform the session.
    pub(crate) fn shut(&mut self) {
        if self.phase != Phase::Draining {
            self.phase = Phase::Draining;
            self.link.shut(Shutdown::Both);
            self.queue.clear();
        }
    }

    /// Returns whether the session may still send.
    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::HalfClosed(_))
    }

    fn drain(&mut self, turn: &mut Turn) {
        self.establish(turn);
        while let Some(step) = self.session.poll() {
            match step {
                Step::Report(event) => (turn.sink)(*event),
                Step::Notify => turn.changes.add(self.link.topic()),
                Step::Submit(admitted) => self.submit(turn, Job::new(admitted)),
                Step::Send(_) | Step::Close(_) if !self.is_open() => {}
                Step::Send(segment) => {
                    self.unsent += segment.len();
                    self.unflushed += segment.len();
                    self.queue.push(segment);
                    self.answers += 1;
                    if self.unflushed >= FLUSH_THRESHOLD {
                        self.send(turn);
                    }
                }
                Step::Halt => self.shut(),
                Step::Close(_) => self.phase = Phase::Flushing(turn.now + GRACE),
            }
        }
    }

    fn submit(&mut self, turn: &mut Turn, mut job: Job) {
        if !self.is_open() {
            job.refuse(Fault::Gone);
        }
        match turn.submit(self.key, &mut self.last_disk, job) {
            Some(job) => self.complete(turn, job),
            None => self.jobs += 1,
        }
    }

    /// Passes unread bytes to the session. Returns whether it has consumed any.
    fn feed(&mut self, now: Instant) -> bool {
        if !self.can_receive() {
            return false;
        }
        let Some(receiving) = &mut self.receiving else { return false };
        if receiving.recv_buffer.is_empty() {
            return false;
        }
        let taken = self.session.receive(now, receiving.recv_buffer.unread());
        receiving.recv_buffer.consume(taken);
        taken > 0
    }

    /// Returns whether the session accepts more, and the peer reads the answers (back-pressure).
    fn can_receive(&self) -> bool {
        self.is_open() && self.unsent <= MAX_UNSENT && self.session.can_receive()
    }

    fn close_when_done(&mut self, turn: &mut Turn) {
        let is_sent = self.unsent == 0;
        match self.phase {
            Phase::HalfClosed(_) if is_sent && self.jobs == 0 => self.disconnect(turn),
            Phase::Flushing(_) if is_sent && self.end_of_stream => self.disconnect(turn),
            Phase::Flushing(_) if is_sent => {
                self.phase = Phase::Lingering(turn.now + LINGER);
                self.link.shut(Shutdown::Write);
                self.session.notify(turn.now, &Notice::Disconnected);
                self.drain(turn);
            }
            Phase::Lingering(_) if self.end_of_stream => self.shut(),
            _ => {}
        }
    }

    /// Sends what the socket takes immediately, and the rest through the ring. Returns whether
    /// anything was sent immediately.
    fn send(&mut self, turn: &mut Turn) -> bool {
        if self.phase == Phase::Draining {
            return false;
        }
        let Some(mut sending) = self.sending.take() else { return false };
        self.unflushed = 0;
        sending.load(&mut self.queue);
        let mut any = false;
        while !sending.is_empty() {
            match Ring::send_now(&mut sending) {
                Ok(bytes) => self.mark_sent(turn.now, bytes),
                // Any other error will be reported by the ring.
                Err(_) => {
                    turn.ring.send(sending);
                    return any;
                }
            }
            any = true;
        }
        self.sending = Some(sending);
        any
    }

    /// Marks the connection as established as soon as the session is, before the peer learns of it
    /// and before its first write begins.
    fn establish(&mut self, turn: &Turn) {
        if !self.established && self.session.is_established() {
            self.established = true;
            turn.inbox.set_established(&self.link, self.session.fence());
        }
    }

    fn mark_sent(&mut self, now: Instant, bytes: usize) {
        self.unsent = self.unsent.saturating_sub(bytes);
        if let Phase::HalfClosed(until) = &mut self.phase {
            *until = now + GRACE;
        }
    }

    /// Starts a receive, if the session accepts more. Not while it has unread bytes but does not
    /// accept them: the buffer must be here when it does.
    fn receive(&mut self, turn: &mut Turn) {
        let closing = matches!(self.phase, Phase::Flushing(_) | Phase::Lingering(_));
        if self.end_of_stream || !(closing || self.can_receive()) {
            return;
        }
        let Some(receiving) = &mut self.receiving else { return };
        if closing {
            receiving.recv_buffer.clear();
        } else if receiving.recv_buffer.is_empty() {
            receiving.direct_recv = self.session.direct_recv();
            self.receives_directly |= receiving.direct_recv.is_some();
        }
        receiving.is_large = self.receives_directly && self.rx_coalescing.latest() >= LARGE;
        if !receiving.recv_buffer.spare().is_empty() {
            self.set_coalescing(turn);
            self.receiving.take().into_iter().for_each(|receiving| turn.ring.receive(receiving));
        }
    }

    fn report_answers(&mut self, now: Instant) {
        if self.answers > 0 {
            let received = std::mem::take(&mut self.received_bytes);
            self.rx_coalescing.answered(now, std::mem::take(&mut self.answers), received);
        }
    }

    /// Sets how many bytes the next receive waits for.
    fn set_coalescing(&mut self, turn: &Turn) {
        let wanted =
            self.rx_coalescing.wanted().filter(|_| self.is_open() && turn.ring.can_coalesce());
        self.set_low_water_mark(wanted.map_or(1, |(bytes, _)| bytes));
        self.coalescing_until = wanted.map(|(_, patience)| turn.now + patience);
        if let Some(receiving) = &mut self.receiving {
            receiving.coalesces = wanted.is_some();
        }
    }

    fn set_low_water_mark(&mut self, bytes: usize) {
        if self.low_water_mark != bytes {
            self.low_water_mark = bytes;
            Ring::set_low_water_mark(self.link.as_fd(), bytes);
        }
    }

    /// Ends the coalescing wait if it has timed out.
    pub(crate) fn flush_coalesced(&mut self, now: Instant) {
        if self.coalescing_until.take_if(|until| *until <= now).is_some() {
            self.rx_coalescing.timed_out(now);
            self.set_low_water_mark(1);
        }
    }
}
