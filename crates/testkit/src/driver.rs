//! A driver of sessions in memory.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use export::{
    Account, Admitted, Event, Fault, Finished, Notice, Op, Pool, Reason, Segment, Session, Step,
};

use crate::{Chunks, Stream, Xorshift64, execute};

/// Index of a connection.
pub type Id = usize;

/// Drives sessions: connections are byte strings, the disk is a `Vec<u8>`, time is virtual.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are enough")]
pub struct Driver {
    pub now: Instant,
    pub pool: Pool,
    pub disk: Vec<u8>,
    /// Results of the next disk requests.
    pub faults: VecDeque<Result<(), Fault>>,
    /// Bytes of the disk that cannot be read.
    pub unreadable: Vec<Range<u64>>,
    /// Whether the disk reports extents: blocks of zeros are holes.
    pub reports_extents: bool,
    /// Disk requests that are held, in the order of their submission.
    pub jobs: VecDeque<(Id, Admitted)>,
    pub conns: Vec<Conn>,
    pub chunks: Chunks,
    /// Whether payloads are received directly into buffers.
    pub direct: bool,
    pub random: Xorshift64,
    /// Number of [`Step::Notify`].
    pub notifications: usize,
    /// Whether the sessions must be notified of a change.
    notified: bool,
}

/// One connection, as seen by the driver.
#[allow(missing_docs, reason = "the names are enough")]
pub struct Conn {
    /// `None` once it was dropped.
    session: Option<Box<dyn Session>>,
    pub account: Account,
    /// Bytes from the peer.
    pub incoming: Stream,
    /// Bytes to the peer.
    pub wire: Vec<u8>,
    /// Whether disk requests wait for [`Driver::finish`] or [`Driver::complete`].
    pub hold: bool,
    /// Whether its thread is busy: bytes and notifications wait.
    pub late: bool,
    /// Whether a notification waits.
    missed: bool,
    /// Whether the peer does not receive: sent segments keep their memory.
    pub not_receiving: bool,
    unread: Vec<Segment>,
    pub closed: Option<Reason>,
    pub disconnected: bool,
    pub submitted: usize,
    pub completed: usize,
    pub events: Vec<Event>,
    /// Maximum number of bytes sent at once.
    pub burst: usize,
    /// How often its deadline had passed while others were served.
    pub ticks: usize,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn").field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Conn {
    /// Returns whether the session is established.
    pub fn is_established(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_established())
    }

    /// Returns the reported events in short form.
    pub fn reported(&self) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::Attached { host, .. } => format!("attached {host}"),
            Event::Detached { reason, read, written, .. } => {
                format!("detached ({reason}) {read} {written}")
            }
            Event::Refused { wanted, .. } => format!("refused {wanted}"),
            Event::Violation { rule, .. } => format!("violation {rule}"),
            Event::Fault { op, offset, len, .. } => format!("fault {op} {offset} {len}"),
            Event::PairingRequested { .. } => "pairing requested".to_owned(),
        };
        self.events.iter().map(word).collect()
    }

    /// Returns whether the connection is neither closed nor lost.
    pub fn is_open(&self) -> bool {
        self.closed.is_none() && !self.disconnected
    }
}

impl Driver {
    /// Creates a driver of a disk with those bytes.
    pub fn new(pool: Pool, disk: Vec<u8>) -> Self {
        Self {
            now: Instant::now(),
            pool,
            disk,
            faults: VecDeque::new(),
            unreadable: Vec::new(),
            reports_extents: true,
            jobs: VecDeque::new(),
            conns: Vec::new(),
            chunks: Chunks::Fixed(usize::MAX),
            direct: false,
            random: Xorshift64::default(),
            notifications: 0,
            notified: false,
        }
    }

    /// Adds the connection of a session whose payloads use `account`.
    pub fn add(&mut self, session: impl Session + 'static, account: Account) -> Id {
        self.conns.push(Conn {
            session: Some(Box::new(session)),
            account,
            incoming: Stream::default(),
            wire: Vec::new(),
            hold: false,
            late: false,
            missed: false,
            not_receiving: false,
            unread: Vec::new(),
            closed: None,
            disconnected: false,
            submitted: 0,
            completed: 0,
            events: Vec::new(),
            burst: 0,
            ticks: 0,
        });
        self.conns.len() - 1
    }

    /// Returns a connection.
    pub fn conn(&mut self, id: Id) -> &mut Conn {
        &mut self.conns[id]
    }

    /// Returns the session of a connection.
    ///
    /// # Panics
    /// Panics if it was dropped.
    pub fn session(&mut self, id: Id) -> &mut dyn Session {
        &mut **self.conns[id].session.as_mut().unwrap()
    }

    /// Drops the session of a connection, as drivers do when it has ended or panicked, and notifies
    /// the others.
    pub fn drop_session(&mut self, id: Id) {
        let conn = &mut self.conns[id];
        (conn.session, conn.disconnected) = (None, true);
        self.notified = true;
    }

    /// Returns whether a connection has ended, has no disk request, and its session was not dropped.
    pub fn is_finished(&self, id: Id) -> bool {
        let conn = &self.conns[id];
        conn.session.is_some() && !conn.is_open() && conn.submitted == conn.completed
    }

    /// Returns the held disk requests of a connection.
    pub fn jobs(&self, id: Id) -> Vec<&Admitted> {
        self.jobs.iter().filter(|(other, _)| *other == id).map(|(_, job)| job).collect()
    }

    // ---- the peer

    /// Delivers bytes from the peer.
    pub fn send(&mut self, id: Id, bytes: &[u8]) {
        if self.conns[id].is_open() {
            self.conns[id].incoming.push(bytes);
        }
        self.run();
    }

    /// Delivers bytes from the peer and returns the reply.
    pub fn exchange(&mut self, id: Id, bytes: &[u8]) -> Vec<u8> {
        self.send(id, bytes);
        self.received(id)
    }

    /// Returns what was sent since the last call.
    pub fn received(&mut self, id: Id) -> Vec<u8> {
        std::mem::take(&mut self.conns[id].wire)
    }

    /// Returns the number of bytes from the peer that were not consumed.
    pub fn waiting(&self, id: Id) -> usize {
        self.conns[id].incoming.len()
    }

    /// Receives at most `size` bytes of payload, all `byte`, directly. Returns how many.
    pub fn receive_directly(&mut self, id: Id, byte: u8, size: usize) -> Option<usize> {
        let now = self.now;
        if !self.conns[id].is_open() || !self.conns[id].incoming.is_empty() {
            return None;
        }
        let mut window = self.session(id).direct_recv()?;
        let end = window.end.min(window.start.saturating_add(size));
        window.buffer.bytes_mut()[window.start..end].fill(byte);
        let got = end - window.start;
        self.session(id).direct_received(now, window, got);
        self.run();
        Some(got)
    }

    /// Makes the peer receive everything.
    pub fn receive_all(&mut self, id: Id) {
        self.conns[id].not_receiving = false;
        self.conns[id].unread.clear();
        self.run();
    }

    /// Makes the peer receive what was sent until now, and nothing that follows.
    pub fn receive_sent(&mut self, id: Id) {
        self.conns[id].not_receiving = true;
        self.conns[id].unread.clear();
        self.run();
    }

    /// Disconnects the peer. Bytes from it that were not consumed are lost.
    pub fn disconnect(&mut self, id: Id) {
        let (now, conn) = (self.now, &mut self.conns[id]);
        if !std::mem::replace(&mut conn.disconnected, true)
            && let Some(session) = &mut conn.session
        {
            session.notify(now, &Notice::Disconnected);
        }
        conn.incoming.clear();
        conn.unread.clear();
        self.run();
    }

    // ---- time, notices, disk requests

    /// Advances the time and handles deadlines.
    pub fn advance(&mut self, time: Duration) {
        self.now += time;
        for session in self.conns.iter_mut().filter_map(|conn| conn.session.as_mut()) {
            if session.deadline().is_some_and(|deadline| deadline <= self.now) {
                session.tick(self.now);
            }
        }
        self.run();
    }

    /// Notifies every session.
    pub fn notify(&mut self, notice: Notice) {
        self.notify_all(notice);
        self.run();
    }

    fn notify_all(&mut self, notice: Notice) {
        for conn in self.conns.iter_mut().filter(|conn| !conn.disconnected) {
            match &mut conn.session {
                Some(session) if !conn.late => session.notify(self.now, &notice),
                _ => conn.missed = true,
            }
        }
    }

    /// Completes a held disk request of a connection.
    ///
    /// # Panics
    /// Panics if fewer are held.
    pub fn finish(&mut self, id: Id, which: usize, result: Result<(), Fault>) {
        self.complete_unsent(id, which, result);
        if std::mem::take(&mut self.notified) {
            self.notify_all(Notice::StateChanged);
        }
        self.run();
    }

    /// Completes all held disk requests, and those that follow.
    pub fn finish_all(&mut self, id: Id) {
        while !self.jobs(id).is_empty() {
            self.finish(id, 0, Ok(()));
        }
    }

    /// Completes a held disk request without executing the steps that follow.
    ///
    /// # Panics
    /// Panics if fewer are held.
    pub fn complete_unsent(&mut self, id: Id, which: usize, result: Result<(), Fault>) {
        let mut of_conn = self.jobs.iter().enumerate().filter(|(_, (of, _))| *of == id);
        let (at, _) = of_conn.nth(which).expect("held request");
        let (id, job) = self.jobs.remove(at).unwrap();
        self.end(id, job, result);
    }

    /// Completes any held disk request. Returns whether there was one.
    pub fn complete_any(&mut self) -> bool {
        let at = self.random.below(self.jobs.len());
        let Some((id, job)) = self.jobs.remove(at) else { return false };
        self.execute(id, job);
        true
    }

    fn execute(&mut self, id: Id, job: Admitted) {
        let result = self.faults.pop_front().unwrap_or(Ok(()));
        self.end(id, job, result);
    }

    fn end(&mut self, id: Id, mut job: Admitted, result: Result<(), Fault>) {
        let blocks = job.offset()..job.offset() + job.len();
        let overlaps = |bad: &Range<u64>| bad.start < blocks.end && blocks.start < bad.end;
        let is_bad = job.op() == Op::Read && self.unreadable.iter().any(overlaps);
        let result = result.and_then(|()| match job.op() {
            _ if is_bad => Err(Fault::Io),
            Op::Extents if !self.reports_extents => Err(Fault::Unsupported),
            _ => {
                execute(&mut self.disk, &mut job);
                Ok(())
            }
        });
        self.complete(id, job, result);
    }

    /// Completes a disk request that was executed.
    pub fn complete(&mut self, id: Id, job: Admitted, result: Result<(), Fault>) {
        let Finished { ticket, outcome, contended } = job.finish(result);
        let conn = &mut self.conns[id];
        conn.completed += 1;
        if let Some(session) = &mut conn.session {
            session.complete(self.now, ticket, outcome);
        }
        self.notified |= contended.is_some();
    }

    // ---- the sessions

    /// Runs until no session makes progress.
    pub fn run(&mut self) {
        loop {
            let mut busy = false;
            for id in 0..self.conns.len() {
                self.drain(id);
                let conn = &self.conns[id];
                assert!(conn.account.held() <= conn.account.share(), "memory is bounded");
                busy |= self.deliver(id) || self.tick_if_due(id);
            }
            if !self.notify_if_due() && !busy {
                return;
            }
        }
    }

    /// Ticks a session whose deadline has passed, as drivers do between two turns. Returns whether it had.
    fn tick_if_due(&mut self, id: Id) -> bool {
        let (now, conn) = (self.now, &mut self.conns[id]);
        let Some(session) = conn.session.as_mut().filter(|_| !conn.late) else { return false };
        let is_due = session.deadline().is_some_and(|deadline| deadline <= now);
        if is_due {
            session.tick(now);
            conn.ticks += 1;
        }
        is_due
    }

    /// Notifies the sessions of a change, if one asked for it or a disk request was awaited.
    /// Returns whether they were.
    fn notify_if_due(&mut self) -> bool {
        let due = std::mem::take(&mut self.notified);
        if due {
            self.notify_all(Notice::StateChanged);
        }
        due
    }

    /// Executes all steps of a session. Returns whether there were any.
    pub fn drain(&mut self, id: Id) -> bool {
        let (mut busy, mut burst) = (false, 0);
        while let Some(step) = self.conns[id].session.as_mut().and_then(|session| session.poll()) {
            busy = true;
            let conn = &mut self.conns[id];
            match step {
                Step::Send(segment) => {
                    assert!(conn.closed.is_none(), "nothing is sent after the close");
                    burst += segment.len();
                    segment.parts().iter().for_each(|part| conn.wire.extend_from_slice(part));
                    if conn.not_receiving {
                        conn.unread.push(segment);
                    }
                }
                Step::Halt => panic!("a stream has no halt"),
                Step::Submit(job) => {
                    assert!(conn.closed.is_none(), "no disk request after the close");
                    conn.submitted += 1;
                    match conn.hold {
                        true => self.jobs.push_back((id, job)),
                        false => self.execute(id, job),
                    }
                }
                Step::Report(event) => conn.events.push(*event),
                Step::Notify => {
                    self.notifications += 1;
                    self.notified = true;
                }
                Step::Close(reason) => {
                    assert_eq!(conn.closed.replace(reason), None, "closed once");
                    conn.incoming.clear();
                }
            }
        }
        let conn = &mut self.conns[id];
        conn.burst = conn.burst.max(burst);
        busy
    }

    /// Passes the next chunk of bytes to a session. Returns whether it made progress.
    pub fn deliver(&mut self, id: Id) -> bool {
        let (now, conn) = (self.now, &mut self.conns[id]);
        let Some(session) = conn.session.as_mut().filter(|_| !conn.disconnected && !conn.late)
        else {
            return false;
        };
        if std::mem::take(&mut conn.missed) {
            session.notify(now, &Notice::StateChanged);
            return true;
        }
        if conn.incoming.is_empty() || !session.can_receive() {
            return false;
        }
        let fresh = conn.incoming.arrive(self.chunks, &mut self.random);
        if self.direct
            && let Some(mut window) = session.direct_recv()
        {
            let got = conn.incoming.fill(&mut window);
            session.direct_received(now, window, got);
            return true;
        }
        let taken = session.receive(now, conn.incoming.arrived());
        conn.incoming.consume(taken);
        fresh != 0 || taken != 0
    }

    /// Ends every connection and disk request, and checks for leaks.
    ///
    /// # Panics
    /// Panics if a session leaks memory or a disk request.
    pub fn end_all(&mut self) {
        for id in 0..self.conns.len() {
            self.disconnect(id);
        }
        for id in 0..self.conns.len() {
            self.finish_all(id);
            let conn = &self.conns[id];
            assert_eq!(conn.submitted, conn.completed, "every request completed once");
            assert_eq!(conn.account.held(), 0, "no leaked memory");
        }
    }
}
