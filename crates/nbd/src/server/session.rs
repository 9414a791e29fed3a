//! One connection: its phases, and the dispatch of input in each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Account, DirectRecv, Event, Fence, Grant, Head, Notice, Outcome, Peer, Purpose, Reason,
    Request, Segment, Step, Ticket,
};
use zerocopy::{FromBytes, IntoBytes};

use super::greeter::check_flags;
use super::negotiation::Negotiation;
use super::reply::Mode;
use super::slots::Slots;
use super::streamed_read::StreamedRead;
use super::write::Payload;
use super::{MAX_SEND_BACKLOG, NEGOTIATION_TIMEOUT, Server, Start, Violation};
use crate::wire::handshake::{C_NO_ZEROES, ClientFlags, Hello};

/// The server side of one connection.
#[derive(Debug)]
pub struct Session {
    pub(super) server: Arc<Server>,
    pub(super) peer: Peer,
    pub(super) now: Instant,
    opened: Instant,
    pub(super) phase: Phase,
    pub(super) out: VecDeque<Step>,
    /// Bytes in `out` and `delayed` not handed to the driver yet.
    pub(super) send_backlog: usize,
    pub(super) negotiation: Negotiation,
    /// The export, once chosen.
    pub(super) attachment: Option<Attachment>,
    pub(super) slots: Slots,
    /// The payload being received.
    pub(super) payload: Option<Payload>,
    /// Memory for the data of reads.
    pub(super) read_memory: Account,
    /// Memory for the data of writes. A separate account: a write that waits for memory stops
    /// reception, and must not wait for read replies, which the peer may not receive before it has
    /// sent the whole write.
    pub(super) write_memory: Account,
    /// Memory for streamed reads, created with the first one. A separate account: the streamed read
    /// must not wait for replies that are delayed until it ends.
    pub(super) streamed_memory: Option<Account>,
    /// Slots waiting for memory of `read_memory`, in order.
    pub(super) starved: VecDeque<u8>,
    /// Writes waiting until another request releases its exclusive access to the disk.
    pub(super) blocked_writes: VecDeque<Request>,
    /// The active streamed read.
    pub(super) streamed: Option<Box<StreamedRead>>,
    /// Streamed reads waiting for the active one.
    pub(super) streamed_queue: VecDeque<u8>,
    /// Replies delayed until the active streamed read is sent.
    pub(super) delayed: VecDeque<Segment>,
    /// Number of requests submitted to the driver and not completed.
    pub(super) submitted: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for the client flags.
    Flags,
    /// Option negotiation.
    Options,
    /// Transmission.
    Transmission,
    /// The client sent DISC: requests in flight complete, then the connection is closed.
    Disconnecting,
    /// The server shuts down: submitted requests complete, all others are refused.
    Stopping,
    /// Closed, or about to be.
    Closed,
}

/// The chosen export.
#[derive(Debug)]
pub(super) struct Attachment {
    /// The client's access to it.
    pub(super) grant: Grant,
    /// The transmission flags sent to the client.
    pub(super) flags: u16,
    pub(super) mode: Mode,
    /// Whether `base:allocation` is selected.
    pub(super) status: bool,
    /// Name of the host for events; its TLS identity if it is not a configured host.
    pub(super) host: String,
    /// Attached was reported and Detached was not.
    pub(super) attached: bool,
    /// Generation of the catalogue at the last access check.
    pub(super) generation: u64,
    /// Bytes read.
    pub(super) read: u64,
    /// Bytes written.
    pub(super) written: u64,
}

impl Session {
    pub(super) fn new(
        server: Arc<Server>,
        peer: Peer,
        start: Start,
        account: Account,
        now: Instant,
    ) -> Self {
        let no_zeroes = matches!(start, Start::InTls { no_zeroes: true });
        let secured = matches!(start, Start::InTls { .. });
        let mut session = Self {
            server,
            peer,
            now,
            opened: now,
            phase: if secured { Phase::Options } else { Phase::Flags },
            out: VecDeque::new(),
            send_backlog: 0,
            negotiation: Negotiation::new(no_zeroes, secured),
            attachment: None,
            slots: Slots::new(),
            payload: None,
            write_memory: account.sibling(Purpose::Stream),
            read_memory: account,
            streamed_memory: None,
            starved: VecDeque::new(),
            blocked_writes: VecDeque::new(),
            streamed: None,
            streamed_queue: VecDeque::new(),
            delayed: VecDeque::new(),
            submitted: 0,
        };
        if start == Start::Hello {
            session.send(Segment::head(Head::new(Hello::new().as_bytes())));
        }
        session
    }

    /// Processes one message from the start of `left`. Returns the number of bytes consumed; zero
    /// if it is incomplete.
    fn step(&mut self, left: &[u8]) -> Result<usize, Violation> {
        match self.phase {
            Phase::Flags => self.client_flags(left),
            Phase::Options => self.option(left),
            Phase::Transmission | Phase::Stopping if self.payload.is_some() => {
                Ok(self.receive_payload(left))
            }
            Phase::Transmission | Phase::Stopping => self.request(left),
            Phase::Disconnecting | Phase::Closed => Ok(0),
        }
    }

    /// Processes the client flags (NBD, Client flags).
    fn client_flags(&mut self, left: &[u8]) -> Result<usize, Violation> {
        let Ok((flags, _)) = ClientFlags::read_from_prefix(left) else { return Ok(0) };
        check_flags(flags.get(), false)?;
        self.negotiation.no_zeroes = flags.get() & C_NO_ZEROES != 0;
        self.phase = Phase::Options;
        Ok(size_of::<ClientFlags>())
    }

    fn violated(&mut self, violation: Violation) {
        let (peer, rule) = (self.peer.clone(), violation.name());
        self.out.push_back(Step::Report(Event::Violation { peer, rule }));
        self.close(Reason::Violation);
    }

    pub(super) fn close(&mut self, reason: Reason) {
        if self.phase != Phase::Closed {
            self.tear_down(reason);
            self.out.push_back(Step::Close(reason));
        }
    }

    /// Drops all state of the connection and reports the detachment.
    fn tear_down(&mut self, reason: Reason) {
        self.phase = Phase::Closed;
        self.negotiation.pending_choice = None;
        self.payload = None;
        self.starved.clear();
        self.blocked_writes.clear();
        self.streamed_queue.clear();
        self.streamed = None;
        self.send_backlog =
            self.send_backlog.saturating_sub(self.delayed.iter().map(Segment::len).sum());
        self.delayed.clear();
        self.detach(reason);
        // From now on, writes in flight count as orphaned.
        self.attachment = None;
    }

    /// Closes the connection once the last request has completed after DISC or at shutdown.
    fn close_if_idle(&mut self) {
        match self.phase {
            Phase::Stopping if self.submitted == 0 => self.close(Reason::Stopping),
            Phase::Disconnecting if self.slots.is_idle() => self.close(Reason::Peer),
            _ => {}
        }
    }

    /// Starts the shutdown: refuses all requests that are not submitted yet, and later ones.
    fn stop(&mut self) {
        if self.attachment.is_none() {
            return self.close(Reason::Stopping);
        }
        self.phase = Phase::Stopping;
        self.refuse_unsubmitted();
    }

    /// Returns the deadline of the negotiation.
    fn negotiation_deadline(&self) -> Option<Instant> {
        let negotiating = matches!(self.phase, Phase::Flags | Phase::Options);
        negotiating.then(|| self.opened + NEGOTIATION_TIMEOUT)
    }
}

impl export::Session for Session {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.now = now;
        let mut taken = 0;
        while self.can_receive() {
            let left = bytes.get(taken..).unwrap_or_default();
            match self.step(left) {
                Ok(0) => break,
                Ok(n) => taken += n,
                Err(violation) => {
                    self.violated(violation);
                    break;
                }
            }
        }
        if self.phase == Phase::Closed { bytes.len() } else { taken }
    }

    fn complete(&mut self, now: Instant, ticket: Ticket, outcome: Outcome) {
        self.now = now;
        self.submitted = self.submitted.saturating_sub(1);
        if self.phase != Phase::Closed {
            self.ended(&ticket, outcome, true);
        }
    }

    fn notify(&mut self, now: Instant, notice: &Notice) {
        self.now = now;
        match (self.phase, notice) {
            (Phase::Closed, _) => {}
            (_, Notice::Disconnected) => self.tear_down(Reason::Peer),
            (_, Notice::Stopping) => self.stop(),
            (_, Notice::StateChanged) => self.changed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        if self
            .negotiation_deadline()
            .is_some_and(|negotiation_deadline| negotiation_deadline <= now)
        {
            self.report_choice_timeout();
            self.close(Reason::Timeout);
        }
    }

    fn poll(&mut self) -> Option<Step> {
        if self.out.is_empty() {
            self.resume_starved();
            if self.out.is_empty() {
                self.close_if_idle();
            }
        }
        let step = self.out.pop_front()?;
        if let Step::Send(segment) = &step {
            self.send_backlog = self.send_backlog.saturating_sub(segment.len());
        }
        Some(step)
    }

    fn deadline(&self) -> Option<Instant> {
        self.negotiation_deadline()
    }

    fn can_receive(&self) -> bool {
        let may = match self.phase {
            Phase::Flags | Phase::Options => self.negotiation.pending_choice.is_none(),
            Phase::Transmission | Phase::Stopping => match &self.payload {
                Some(payload) => !payload.is_stalled(),
                None => self.slots.has_room(),
            },
            Phase::Disconnecting | Phase::Closed => false,
        };
        may && self.send_backlog < MAX_SEND_BACKLOG
    }

    fn is_established(&self) -> bool {
        self.attachment.is_some()
    }

    fn fence(&self) -> Option<&Arc<Fence>> {
        self.attachment.as_ref().map(|attachment| attachment.grant.fence())
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        if self.can_receive() { self.offer_direct_recv() } else { None }
    }

    fn direct_received(&mut self, now: Instant, window: DirectRecv, got: usize) {
        self.now = now;
        self.end_direct_recv(window, got);
    }
}
