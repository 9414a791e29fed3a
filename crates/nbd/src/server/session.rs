//! One connection, from the first byte to the last: its phases, and who is asked in each. It knows no socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Account, DirectRecv, Event, Fence, Grant, Head, Notice, Outcome, Peer, Purpose, Reason,
    Request, Segment, Step, Ticket,
};
use zerocopy::{FromBytes, IntoBytes};

use super::answer::Mode;
use super::greeter::check_flags;
use super::haggle::Haggle;
use super::long::Long;
use super::slots::Slots;
use super::write::Incoming;
use super::{HANDSHAKE, OWED, Server, Start, Violation};
use crate::wire::handshake::{C_NO_ZEROES, ClientFlags, Hello};

/// One connection, as the server sees it.
#[derive(Debug)]
pub struct Session {
    pub(super) server: Arc<Server>,
    pub(super) peer: Peer,
    pub(super) now: Instant,
    opened: Instant,
    pub(super) phase: Phase,
    pub(super) out: VecDeque<Step>,
    /// Bytes to be sent in `out` and `later`.
    pub(super) owed: usize,
    pub(super) haggle: Haggle,
    /// The export, once one is chosen.
    pub(super) link: Option<Link>,
    pub(super) slots: Slots,
    /// The payload that is coming.
    pub(super) incoming: Option<Incoming>,
    /// Memory for answers to reads.
    pub(super) reads: Account,
    /// Memory for writes. It has its own account: a write that waits for it stops the stream, so it must not wait for
    /// answers that the peer takes only when it has sent all of the write.
    pub(super) writes: Account,
    /// Memory for the read that sends its simple reply piece by piece, once there is such: it must not wait for replies
    /// that wait for its end.
    pub(super) long_reads: Option<Account>,
    /// Slots that wait for memory of `reads`, in order.
    pub(super) starved: VecDeque<u8>,
    /// Requests that wait for their turn to write, while another has the disk for itself.
    pub(super) contending: VecDeque<Request>,
    /// The read that may send its simple reply piece by piece.
    pub(super) long: Option<Box<Long>>,
    /// Those that wait for that.
    pub(super) longs: VecDeque<u8>,
    /// Replies that wait until such a reply is over.
    pub(super) later: VecDeque<Segment>,
    /// Requests that the driver has.
    pub(super) on_disk: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client's flags are to come.
    Flags,
    /// Options are to come.
    Options,
    /// Requests are to come.
    Live,
    /// The client has said that it is done: what it asked for is answered.
    Leaving,
    /// The program stops: what the disk has is finished, the rest is refused.
    Stopping,
    /// Closed, or about to be.
    Closed,
}

/// An export that was chosen.
#[derive(Debug)]
pub(super) struct Link {
    /// What the client may do with it.
    pub(super) grant: Grant,
    /// The transmission flags that were sent.
    pub(super) flags: u16,
    pub(super) mode: Mode,
    /// Whether `base:allocation` was chosen.
    pub(super) status: bool,
    /// What the owner calls the client, or it itself.
    pub(super) host: String,
    /// Whether it was reported as attached and not yet as detached.
    pub(super) attached: bool,
    /// What the catalogue's number was when it was last asked.
    pub(super) generation: u64,
    /// Bytes that it has read.
    pub(super) read: u64,
    /// Bytes that it has written.
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
            owed: 0,
            haggle: Haggle::new(no_zeroes, secured),
            link: None,
            slots: Slots::new(),
            incoming: None,
            writes: account.sibling(Purpose::Stream),
            reads: account,
            long_reads: None,
            starved: VecDeque::new(),
            contending: VecDeque::new(),
            long: None,
            longs: VecDeque::new(),
            later: VecDeque::new(),
            on_disk: 0,
        };
        if start == Start::Hello {
            session.say(Segment::head(Head::new(Hello::new().as_bytes())));
        }
        session
    }

    /// What the bytes begin with; gives how many of them that was, none if it has not come whole.
    fn step(&mut self, left: &[u8]) -> Result<usize, Violation> {
        match self.phase {
            Phase::Flags => self.client_flags(left),
            Phase::Options => self.option(left),
            Phase::Live | Phase::Stopping if self.incoming.is_some() => Ok(self.payload(left)),
            Phase::Live | Phase::Stopping => self.request(left),
            Phase::Leaving | Phase::Closed => Ok(0),
        }
    }

    /// NBD, Client flags.
    fn client_flags(&mut self, left: &[u8]) -> Result<usize, Violation> {
        let Ok((flags, _)) = ClientFlags::read_from_prefix(left) else { return Ok(0) };
        check_flags(flags.get(), false)?;
        self.haggle.no_zeroes = flags.get() & C_NO_ZEROES != 0;
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
            self.leave(reason);
            self.out.push_back(Step::Close(reason));
        }
    }

    /// The connection is over.
    fn leave(&mut self, reason: Reason) {
        self.phase = Phase::Closed;
        self.haggle.held = None;
        self.incoming = None;
        self.starved.clear();
        self.contending.clear();
        self.longs.clear();
        self.long = None;
        self.owed = self.owed.saturating_sub(self.later.iter().map(Segment::len).sum());
        self.later.clear();
        self.detach(reason);
        // Writes that the disk has count as orphaned from now on.
        self.link = None;
    }

    /// What the program's end, or the client's, still waits for.
    fn wind_up(&mut self) {
        match self.phase {
            Phase::Stopping if self.on_disk == 0 => self.close(Reason::Stopping),
            Phase::Leaving if self.slots.are_free() => self.close(Reason::Peer),
            _ => {}
        }
    }

    /// The program stops: requests that the disk does not have yet are refused, and those after them.
    fn stop(&mut self) {
        if self.link.is_none() {
            return self.close(Reason::Stopping);
        }
        self.phase = Phase::Stopping;
        self.cut_short();
    }

    /// When a client is given up that has not chosen an export.
    fn due(&self) -> Option<Instant> {
        let haggling = matches!(self.phase, Phase::Flags | Phase::Options);
        haggling.then(|| self.opened + HANDSHAKE)
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
        self.on_disk = self.on_disk.saturating_sub(1);
        if self.phase != Phase::Closed {
            self.ended(&ticket, outcome, true);
        }
    }

    fn notify(&mut self, now: Instant, news: &Notice) {
        self.now = now;
        match (self.phase, news) {
            (Phase::Closed, _) => {}
            (_, Notice::Disconnected) => self.leave(Reason::Peer),
            (_, Notice::Stopping) => self.stop(),
            (_, Notice::StateChanged) => self.changed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        if self.due().is_some_and(|due| due <= now) {
            self.report_waiting();
            self.close(Reason::Timeout);
        }
    }

    fn poll(&mut self) -> Option<Step> {
        if self.out.is_empty() {
            self.feed();
            if self.out.is_empty() {
                self.wind_up();
            }
        }
        let step = self.out.pop_front()?;
        if let Step::Send(segment) = &step {
            self.owed = self.owed.saturating_sub(segment.len());
        }
        Some(step)
    }

    fn deadline(&self) -> Option<Instant> {
        self.due()
    }

    fn can_receive(&self) -> bool {
        let may = match self.phase {
            Phase::Flags | Phase::Options => self.haggle.held.is_none(),
            Phase::Live | Phase::Stopping => match &self.incoming {
                Some(incoming) => !incoming.is_stalled(),
                None => self.slots.has_room(),
            },
            Phase::Leaving | Phase::Closed => false,
        };
        may && self.owed < OWED
    }

    fn is_established(&self) -> bool {
        self.link.is_some()
    }

    fn fence(&self) -> Option<&Arc<Fence>> {
        self.link.as_ref().map(|link| link.grant.fence())
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        if self.can_receive() { self.offer_landing() } else { None }
    }

    fn direct_received(&mut self, now: Instant, landing: DirectRecv, got: usize) {
        self.now = now;
        self.take_landing(landing, got);
    }
}
