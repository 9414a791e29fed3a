//! One connection on a ring's thread: its session, its socket, and what of it is under way in the ring.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Instant;

use export::{Export, Fault, Notice, Segment, Session, Step};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::blocking_pool::BlockingPool;
use super::broken::Broken;
use super::files::FixedFile;
use super::receiving::{LARGE, Receiving};
use super::ring::Ring;
use super::rx_coalescing::RxCoalescing;
use super::sending::Sending;
use super::slots::Key;
use crate::blocking_op::BlockingOp;
use crate::disk::{Job, Pace};
use crate::link::Link;
use crate::recv_buffer::{RecvBuffer, window};
use crate::{GRACE, LINGER, Sink, UNSENT};

/// What all connections of a thread share during a turn.
pub(crate) struct Turn {
    /// The ring.
    pub(crate) ring: Ring,
    /// Those who do what the ring cannot.
    pub(crate) blocking_pool: BlockingPool,
    /// The time at which the turn began.
    pub(crate) now: Instant,
    /// Whether all sessions are to be told that something changed.
    pub(crate) notify_all: bool,
    /// Where reports go.
    pub(crate) sink: Sink,
}

/// With this many bytes to be sent a connection sends before its turn ends: the peer then works on the first answers
/// while the last are made.
const EARLY: usize = 512 << 10;

/// How often in one turn a connection takes commands and sends answers.
const ROUNDS: usize = 8;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The peer sends no more; what it asked for is answered, as long as it reads some until then.
    HalfOpen(Instant),
    /// The session wants to close; what it said before is sent until then.
    Flushing(Instant),
    /// Nothing more is sent; the peer may read the rest and close until then.
    Lingering(Instant),
    /// The socket is shut; what is under way ends.
    Draining,
}

/// One connection.
pub(crate) struct Connection {
    key: Key,
    link: Arc<Link>,
    session: Box<dyn Session>,
    /// Here while no receive is under way.
    receiving: Option<Box<Receiving>>,
    /// Here while no send is under way.
    sending: Option<Box<Sending>>,
    queue: Vec<Segment>,
    /// Bytes of segments that the kernel has not taken.
    unsent: usize,
    /// Bytes of segments since the last send.
    unflushed: usize,
    /// Disk requests under way.
    jobs: usize,
    /// Whether its disk answers at once.
    pace: Pace,
    /// The disk that it used last, and its place in the ring's table. That keeps it open, but not after it is gone.
    disk: Option<(Weak<Export>, Rc<FixedFile>)>,
    /// How many requests to wait for.
    rx_coalescing: RxCoalescing,
    /// Bytes that the socket waits for.
    wanted: usize,
    /// When it has waited long enough for so many, if it waits.
    pub(crate) until: Option<Instant>,
    /// Bytes that came, and segments that are to be sent, since such were counted last.
    came: usize,
    answers: u32,
    phase: Phase,
    /// Whether the peer's end of stream was seen.
    ended: bool,
    established: bool,
    /// Whether it is to be settled this turn.
    pub(crate) is_dirty: bool,
    /// Whether it had more to do than one turn is for.
    pub(crate) is_unfinished: bool,
}

impl Connection {
    /// A connection that has just been accepted; `file` is the place of its socket, `recv_buffer` has what came already.
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
            pace: Pace::default(),
            disk: None,
            rx_coalescing: RxCoalescing::new(now),
            wanted: 1,
            until: None,
            came: 0,
            answers: 0,
            phase: Phase::Open,
            ended: false,
            established: false,
            is_dirty: false,
            is_unfinished: false,
        }
    }

    /// A receive ended.
    pub(crate) fn received(
        &mut self,
        turn: &mut Turn,
        mut receiving: Box<Receiving>,
        result: Result<usize, Errno>,
    ) {
        let came = result.unwrap_or(0);
        self.until = None;
        self.came = self.came.saturating_add(came);
        let mut direct_recv = receiving.direct_recv.take();
        let landed =
            direct_recv.as_mut().map_or(0, |direct_recv| came.min(window(direct_recv).len()));
        receiving.recv_buffer.fill(came - landed);
        self.receiving = Some(receiving);
        if let Some(direct_recv) = direct_recv {
            self.session.direct_received(turn.now, direct_recv, landed);
        }
        match result {
            Ok(0) => self.end(turn.now),
            Ok(_) => {}
            Err(_) => self.disconnect(turn),
        }
    }

    /// The peer sends no more.
    fn end(&mut self, now: Instant) {
        self.ended = true;
        if self.phase == Phase::Open {
            self.phase = Phase::HalfOpen(now + GRACE);
        }
    }

    /// A send ended.
    pub(crate) fn sent(
        &mut self,
        turn: &mut Turn,
        sending: Box<Sending>,
        result: Result<usize, Errno>,
    ) {
        self.sending = Some(sending);
        match result {
            Ok(bytes) => self.account(turn.now, bytes),
            Err(_) => self.disconnect(turn),
        }
    }

    /// A disk request ended.
    pub(crate) fn completed(&mut self, turn: &mut Turn, job: Job) {
        self.jobs -= 1;
        self.complete(turn, job);
    }

    fn complete(&mut self, turn: &mut Turn, job: Job) {
        let admitted = job.admitted();
        let written = admitted.op().mutates().then(|| admitted.export().clone());
        let (ticket, outcome) = job.finish();
        // After the request was counted out, or the one that waits for it would not be told.
        turn.notify_all |= written.is_some_and(|export| export.is_contended());
        self.session.complete(turn.now, ticket, outcome);
    }

    /// Something happened outside.
    pub(crate) fn notify(&mut self, now: Instant, notice: Notice) {
        self.disk = self.disk.take().filter(|(disk, _)| disk.strong_count() > 0);
        if self.is_open() {
            self.session.notify(now, &notice);
            if self.established {
                self.link.establish(self.session.fence());
            }
        }
    }

    /// Time passed: does what was due.
    pub(crate) fn tick(&mut self, turn: &mut Turn) {
        let now = turn.now;
        match self.phase {
            Phase::HalfOpen(until) | Phase::Flushing(until) if until <= now => {
                self.disconnect(turn);
            }
            Phase::Lingering(until) if until <= now => self.shut(),
            Phase::Open | Phase::HalfOpen(_) if self.is_late(now) => {
                // What the peer said meanwhile counts: a host that spoke in time is not given up.
                while self.feed(now) {
                    self.drain(turn);
                }
                if self.is_late(now) {
                    self.session.tick(now);
                }
            }
            _ => {}
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.session.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// When to be ticked next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open => self.session.deadline(),
            Phase::HalfOpen(until) => {
                Some(self.session.deadline().map_or(until, |deadline| deadline.min(until)))
            }
            Phase::Flushing(until) | Phase::Lingering(until) => Some(until),
            Phase::Draining => None,
        }
    }

    /// Does all that can be done now. Tells whether the connection has come to its end and may be dropped.
    pub(crate) fn settle(&mut self, turn: &mut Turn) -> bool {
        self.is_dirty = false;
        self.drain(turn);
        // What was sent is free memory, with which the session may go on. Not without end: others have their turn, too.
        self.is_unfinished = true;
        for _ in 0..ROUNDS {
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
        self.count(turn.now);
        self.receive(turn);
        self.is_over()
    }

    /// Whether the socket is shut and nothing is under way.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Draining
            && self.jobs == 0
            && self.receiving.is_some()
            && self.sending.is_some()
    }

    /// Cuts the connection now.
    pub(crate) fn disconnect(&mut self, turn: &mut Turn) {
        let known = matches!(self.phase, Phase::Lingering(_) | Phase::Draining);
        self.shut();
        if !known {
            self.session.notify(turn.now, &Notice::Disconnected);
            self.drain(turn);
        }
    }

    /// Cuts the connection of a session that panicked: a mistake in one must not cost the others their disks.
    pub(crate) fn give_up(&mut self, turn: &mut Turn) {
        turn.notify_all = true;
        self.session = Box::new(Broken);
        self.shut();
    }

    /// Lets the peer see that the connection is over: for a thread that breaks.
    pub(crate) fn shut(&mut self) {
        if self.phase != Phase::Draining {
            self.phase = Phase::Draining;
            self.link.shut(Shutdown::Both);
            self.queue.clear();
        }
    }

    /// Whether the session may still say things to the peer.
    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::HalfOpen(_))
    }

    fn drain(&mut self, turn: &mut Turn) {
        self.establish();
        while let Some(step) = self.session.poll() {
            match step {
                Step::Report(event) => (turn.sink)(event),
                Step::Notify => turn.notify_all = true,
                Step::Submit(admitted) => self.submit(turn, Job::new(admitted)),
                Step::Send(_) | Step::Close(_) if !self.is_open() => {}
                Step::Send(segment) => {
                    self.unsent += segment.len();
                    self.unflushed += segment.len();
                    self.queue.push(segment);
                    self.answers += 1;
                    if self.unflushed >= EARLY {
                        self.send(turn);
                    }
                }
                Step::Close(_) => self.phase = Phase::Flushing(turn.now + GRACE),
            }
        }
    }

    fn submit(&mut self, turn: &mut Turn, mut job: Job) {
        if !self.is_open() {
            job.refuse(Fault::Gone);
        } else if self.pace.is_at_once(job.admitted()) {
            job.run();
        }
        if job.result().is_some() {
            return self.complete(turn, job);
        }
        if let Some(blocking_op) = job.blocking_op() {
            self.jobs += 1;
            return self.send_out(turn, job, blocking_op);
        }
        match self.disk_file(turn, &job) {
            Ok(file) => {
                self.jobs += 1;
                turn.ring.carry_out(self.key, job, file);
            }
            // The ring's table is full.
            Err(_) => {
                job.refuse(Fault::Io);
                self.complete(turn, job);
            }
        }
    }

    /// Has a request carried out that the ring cannot.
    fn send_out(&mut self, turn: &mut Turn, job: Job, blocking_op: BlockingOp) {
        if let Err(mut job) = turn.blocking_pool.send(self.key, job, blocking_op) {
            job.refuse(Fault::Io);
            self.completed(turn, job);
        }
    }

    /// The place of the request's disk in the ring's table.
    fn disk_file(&mut self, turn: &mut Turn, job: &Job) -> io::Result<Rc<FixedFile>> {
        let export = job.admitted().export();
        if let Some((known, file)) = &self.disk
            && known.as_ptr() == Arc::as_ptr(export)
        {
            return Ok(file.clone());
        }
        let file = turn.ring.put_disk(export)?;
        self.disk = Some((Arc::downgrade(export), file.clone()));
        Ok(file)
    }

    /// Offers the session what waits. Tells whether it took any.
    fn feed(&mut self, now: Instant) -> bool {
        if !self.takes_more() {
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

    /// Whether the peer may ask for more: not while it does not read the answers.
    fn takes_more(&self) -> bool {
        self.is_open() && self.unsent <= UNSENT && self.session.can_receive()
    }

    fn close_when_done(&mut self, turn: &mut Turn) {
        let is_sent = self.unsent == 0;
        match self.phase {
            Phase::HalfOpen(_) if is_sent && self.jobs == 0 => self.disconnect(turn),
            Phase::Flushing(_) if is_sent && self.ended => self.disconnect(turn),
            Phase::Flushing(_) if is_sent => {
                self.phase = Phase::Lingering(turn.now + LINGER);
                self.link.shut(Shutdown::Write);
                self.session.notify(turn.now, &Notice::Disconnected);
                self.drain(turn);
            }
            Phase::Lingering(_) if self.ended => self.shut(),
            _ => {}
        }
    }

    /// Sends what is to be sent: as much as the socket takes at once now, the rest by the ring. Tells whether any was
    /// sent now.
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
                Ok(bytes) => self.account(turn.now, bytes),
                // Whatever else is wrong, the ring will tell.
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

    /// Takes note that the peer was let in, before it can know of it and before its first write begins.
    fn establish(&mut self) {
        if !self.established && self.session.is_established() {
            self.established = true;
            self.link.establish(self.session.fence());
        }
    }

    /// The kernel took `bytes` of what was to be sent.
    fn account(&mut self, now: Instant, bytes: usize) {
        self.unsent = self.unsent.saturating_sub(bytes);
        if let Phase::HalfOpen(until) = &mut self.phase {
            *until = now + GRACE;
        }
    }

    /// Receives more, if the session would take it. While bytes wait that it would not take now, they must not be away
    /// in the ring when it would.
    fn receive(&mut self, turn: &mut Turn) {
        let closing = matches!(self.phase, Phase::Flushing(_) | Phase::Lingering(_));
        if self.ended || !(closing || self.takes_more()) {
            return;
        }
        let Some(receiving) = &mut self.receiving else { return };
        receiving.is_large = self.rx_coalescing.latest() >= LARGE;
        if closing {
            receiving.recv_buffer.clear();
        } else if receiving.recv_buffer.is_empty() {
            receiving.direct_recv = self.session.direct_recv();
        }
        if !receiving.recv_buffer.spare().is_empty() {
            self.expect(turn);
            self.receiving.take().into_iter().for_each(|receiving| turn.ring.receive(receiving));
        }
    }

    /// Counts what was answered.
    fn count(&mut self, now: Instant) {
        if self.answers > 0 {
            let came = std::mem::take(&mut self.came);
            self.rx_coalescing.answered(now, std::mem::take(&mut self.answers), came);
        }
    }

    /// Has the next receive wait for as many requests as it should.
    fn expect(&mut self, turn: &Turn) {
        let wanted =
            self.rx_coalescing.wanted().filter(|_| self.is_open() && turn.ring.can_coalesce());
        self.want(wanted.map_or(1, |(bytes, _)| bytes));
        self.until = wanted.map(|(_, patience)| turn.now + patience);
        if let Some(receiving) = &mut self.receiving {
            receiving.coalesces = wanted.is_some();
        }
    }

    fn want(&mut self, bytes: usize) {
        if self.wanted != bytes {
            self.wanted = bytes;
            Ring::set_low_water_mark(self.link.as_fd(), bytes);
        }
    }

    /// Takes what has come, if it has waited long enough for more.
    pub(crate) fn flush_coalesced(&mut self, now: Instant) {
        if self.until.take_if(|until| *until <= now).is_some() {
            self.rx_coalescing.timed_out(now);
            self.want(1);
        }
    }
}
