//! One connection: requests are received and answered one after the other.

mod browse;
mod respond;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Account, Auth, Body, Event, Fault, Grant, Head, Notice, Outcome, Peer, Reason, Segment, Step,
    Ticket,
};

use crate::files::Walk;
use crate::request::{self, Violation};
use crate::response;
use crate::transfer::Transfer;
use crate::{DETACH_TIMEOUT, HEAD_TIMEOUT, IDLE_TIMEOUT, Server};

/// Length of the buffers that texts are sent in, in bytes.
const TEXT_PIECE: usize = 64 << 10;

/// One connection.
#[derive(Debug)]
pub struct Session {
    server: Arc<Server>,
    peer: Peer,
    /// The peer as one that is admitted: requests without the code are answered before a disk is looked
    /// for.
    reader: Peer,
    /// That of the code when a request was last admitted.
    generation: u64,
    account: Account,
    phase: Phase,
    /// The disk that the peer has read last.
    disk: Option<Attachment>,
    /// Steps for the driver, in order.
    steps: VecDeque<Step>,
    /// Whether a request was admitted.
    established: bool,
    /// Number of requests at the disk.
    in_flight: u32,
    /// Number of the last disk request.
    last: u32,
    /// Since when nothing has moved; the start of a connection that must authenticate and has not.
    since: Instant,
    /// Whether something has moved since.
    moved: bool,
    /// Memory held at `since`.
    held: usize,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "each connection has one")]
enum Phase {
    /// Waits for a request. `begun`: a part of it has arrived.
    Waiting {
        begun: bool,
    },
    Responding(Response),
    /// Closes the connection once all bytes were sent: after [`Step::Close`] drivers go on sending for
    /// a short time only.
    Finishing(Reason),
    /// Closed, or about to be.
    Closed,
}

/// A response that is not complete.
#[derive(Debug)]
struct Response {
    /// The head of a transfer, until the first piece has been read; else head and content.
    text: Vec<u8>,
    /// How much of the text has been sent.
    sent: usize,
    transfer: Option<Transfer>,
    /// Looks for files, and for the parts of one that follow the transfer.
    walk: Option<Box<Walk>>,
    /// Whether the head of a transfer was sent.
    has_begun: bool,
    keep_alive: bool,
    is_head: bool,
}

/// How far a response is.
enum Progress {
    /// It waits for memory or for the disk.
    Waiting,
    /// There is more to do at once.
    More,
    Complete,
}

/// A disk that the peer reads.
#[derive(Debug)]
struct Attachment {
    grant: Grant,
    /// Bytes that were sent.
    read: u64,
}

impl Session {
    pub(crate) fn new(server: Arc<Server>, peer: Peer, account: Account, now: Instant) -> Self {
        let reader = Peer { auth: Auth::None, ..peer.clone() };
        Self {
            server,
            peer,
            reader,
            generation: 0,
            account,
            phase: Phase::Waiting { begun: false },
            disk: None,
            steps: VecDeque::new(),
            established: false,
            in_flight: 0,
            last: 0,
            since: now,
            moved: false,
            held: 0,
        }
    }

    // ---- requests

    /// Processes a request at the start of `left`. Returns its length; zero if it is incomplete.
    fn step(&mut self, now: Instant, left: &[u8]) -> usize {
        let local = self.peer.local().map(|local| local.ip());
        match request::parse(left, local) {
            Ok(Some((len, request))) => {
                self.respond_if_admitted(&request, now);
                self.restart_timer(now);
                self.advance();
                len
            }
            Ok(None) => {
                if matches!(self.phase, Phase::Waiting { begun: false }) && !left.is_empty() {
                    self.phase = Phase::Waiting { begun: true };
                    self.restart_timer(now);
                }
                0
            }
            Err(violation) => {
                self.violated(violation);
                left.len()
            }
        }
    }

    /// Answers a malformed request and closes the connection.
    fn violated(&mut self, violation: Violation) {
        let rule = violation.name();
        self.steps.push_back(report(Event::Violation { peer: self.peer.clone(), rule }));
        let text = response::of_code(violation.code(), false, false);
        let text: Arc<[u8]> = response::dated(text, (self.server.clock)()).into();
        self.steps.push_back(Step::Send(Segment::with_shared(Head::new(&[]), text)));
        self.finish(Reason::Violation);
    }

    // ---- responses

    /// Sends and reads as much as there is memory for. Closes a connection that is finished.
    fn advance(&mut self) {
        if let Phase::Finishing(reason) = self.phase {
            return self.finish(reason);
        }
        loop {
            let Phase::Responding(response) = &mut self.phase else { return };
            let keep_alive = response.keep_alive;
            let progress = match response.transfer.take() {
                Some(transfer) => self.send_disk(transfer),
                None if response.walk.is_some() => self.walk(),
                None => self.send_text(),
            };
            match progress {
                Progress::Waiting => return,
                Progress::More => {}
                Progress::Complete => {
                    self.moved = true;
                    match keep_alive {
                        true => self.phase = Phase::Waiting { begun: false },
                        false => self.finish(Reason::Peer),
                    }
                    return;
                }
            }
        }
    }

    /// Sends the text of a response, in memory of the account.
    fn send_text(&mut self) -> Progress {
        let Phase::Responding(response) = &mut self.phase else { return Progress::Waiting };
        while let Some(rest) = response.text.get(response.sent..).filter(|rest| !rest.is_empty()) {
            let len = rest.len().min(TEXT_PIECE);
            let Some(mut buffer) = self.account.take(len) else { return Progress::Waiting };
            buffer.bytes_mut().copy_from_slice(rest.get(..len).unwrap_or_default());
            let segment = Segment::with_body(Head::new(&[]), Body::Whole(buffer), 0, len);
            self.steps.push_back(Step::Send(segment));
            response.sent += len;
            self.moved = true;
        }
        Progress::Complete
    }

    /// Sends what has been read of a disk, and submits more reads.
    fn send_disk(&mut self, mut transfer: Transfer) -> Progress {
        let Some(disk) = &mut self.disk else { return Progress::Waiting };
        loop {
            while let Some((segment, len)) = transfer.next() {
                // The head waits for the first piece, as its status depends on it.
                send_head(&mut self.phase, &mut self.steps);
                disk.read = disk.read.saturating_add(len as u64);
                self.steps.push_back(Step::Send(segment));
                self.moved = true;
            }
            loop {
                let number = self.last.wrapping_add(1);
                let Some(admitted) = transfer.submit(&disk.grant, &self.account, number) else {
                    break;
                };
                (self.last, self.moved) = (number, true);
                self.in_flight += 1;
                self.steps.push_back(Step::Submit(admitted));
            }
            // Parts that are not on the disk need no read.
            if !transfer.is_ready() {
                break;
            }
        }
        let trailer = match (transfer.fault(), transfer.is_done()) {
            (Some(fault), _) => Err(fault),
            (None, false) => {
                if let Phase::Responding(response) = &mut self.phase {
                    response.transfer = Some(transfer);
                }
                return Progress::Waiting;
            }
            (None, true) => transfer.trailer(),
        };
        match trailer {
            Ok(trailer) => {
                send_head(&mut self.phase, &mut self.steps);
                self.steps.extend(trailer.map(Step::Send));
                let has_more =
                    matches!(&self.phase, Phase::Responding(response) if response.walk.is_some());
                if has_more { Progress::More } else { Progress::Complete }
            }
            Err(fault) => {
                self.failed(fault);
                Progress::More
            }
        }
    }

    /// Ends a response that cannot be completed: by a status if nothing was sent, else by closing the
    /// connection, from which the peer learns that bytes are missing.
    fn failed(&mut self, fault: Fault) {
        let Phase::Responding(response) = &mut self.phase else { return };
        if response.has_begun {
            return self.finish(Reason::Ended);
        }
        let code = response::code_of(fault);
        let text = response::of_code(code, false, response.is_head);
        response.text = response::dated(text, (self.server.clock)());
        (response.transfer, response.walk, response.keep_alive) = (None, None, false);
    }

    /// Reports a disk request that failed to the administrator.
    fn report_fault(&mut self, fault: Fault, (offset, len): (u64, u64)) {
        if let Some(disk) = self.disk.as_ref().filter(|_| is_reported(fault)) {
            let (export, op) = (disk.grant.export().clone(), export::Op::Read.name());
            self.steps.push_back(report(Event::Fault { export, op, offset, len, fault }));
        }
    }

    // ---- the end

    /// Closes the connection as soon as all bytes were sent.
    fn finish(&mut self, reason: Reason) {
        match self.account.held() {
            0 => self.close(reason),
            _ => self.phase = Phase::Finishing(reason),
        }
    }

    /// Closes the connection now.
    fn close(&mut self, reason: Reason) {
        if !matches!(self.phase, Phase::Closed) {
            self.tear_down(reason);
            self.steps.push_back(Step::Close(reason));
        }
    }

    fn tear_down(&mut self, reason: Reason) {
        self.phase = Phase::Closed;
        self.detach(reason);
    }

    /// Reports that the peer no longer reads its disk.
    fn detach(&mut self, reason: Reason) {
        if let Some(Attachment { grant, read }) = self.disk.take() {
            let (export, peer) = (grant.export().clone(), self.peer.clone());
            let (host, written) = (String::new(), 0);
            self.steps.push_back(report(Event::Detached {
                export,
                peer,
                host,
                reason,
                read,
                written,
            }));
        }
    }

    /// Handles a change of the exports or of the access rules.
    fn changed(&mut self) {
        let Some(disk) = &self.disk else { return };
        let export = disk.grant.export();
        let has_access =
            self.peer.auth == Auth::None || self.generation == self.server.access.generation();
        if has_access && self.visible().iter().any(|visible| Arc::ptr_eq(visible, export)) {
            return;
        }
        let is_reading = matches!(
            &self.phase,
            Phase::Responding(response) if response.transfer.is_some() || response.walk.is_some()
        );
        if is_reading { self.close(Reason::Ended) } else { self.detach(Reason::Ended) }
    }

    /// Returns whether a disk is attached that is not being read, and of which all bytes were sent.
    fn is_idle(&self) -> bool {
        let is_waiting = matches!(self.phase, Phase::Waiting { begun: false });
        is_waiting && self.disk.is_some() && self.account.held() == 0
    }

    /// Returns whether a response waits for memory that other connections hold, not for the peer.
    fn is_out_of_memory(&self) -> bool {
        matches!(self.phase, Phase::Responding(_)) && self.account.held() == 0
    }

    /// Returns whether no request of this peer was admitted, where authentication is required.
    fn must_authenticate(&self) -> bool {
        self.peer.auth == Auth::Required && !self.established
    }

    fn restart_timer(&mut self, now: Instant) {
        if self.must_authenticate() {
            return;
        }
        (self.since, self.moved, self.held) = (now, false, self.account.held());
    }
}

/// Returns whether a fault is reported to the administrator.
fn is_reported(fault: Fault) -> bool {
    !matches!(fault, Fault::Gone | Fault::Busy | Fault::Reserved)
}

/// Sends the head of a transfer, if it was not sent.
fn send_head(phase: &mut Phase, steps: &mut VecDeque<Step>) {
    let Phase::Responding(response) = phase else { return };
    response.has_begun = true;
    if !response.text.is_empty() {
        let head: Arc<[u8]> = std::mem::take(&mut response.text).into();
        steps.push_back(Step::Send(Segment::with_shared(Head::new(&[]), head)));
    }
}

fn report(event: Event) -> Step {
    Step::Report(Box::new(event))
}

impl export::Session for Session {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.can_receive() {
            match self.step(now, bytes.get(taken..).unwrap_or_default()) {
                0 => break,
                len => taken += len,
            }
        }
        if matches!(self.phase, Phase::Closed) { bytes.len() } else { taken }
    }

    fn complete(&mut self, now: Instant, ticket: Ticket, outcome: Outcome) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let number = ticket.number();
        if self.complete_read(number, outcome.result, outcome.buffer.as_ref()) {
            drop(outcome.buffer);
            self.restart_timer(now);
            return self.advance();
        }
        let Phase::Responding(Response { transfer: Some(transfer), .. }) = &mut self.phase else {
            return;
        };
        let block = self.disk.as_ref().map_or(0, |disk| disk.grant.export().geometry.block());
        let ended = transfer.complete(number, outcome.result, outcome.buffer, block.into());
        if let Some((fault, range)) = ended {
            self.report_fault(fault, range);
        }
        self.restart_timer(now);
        self.advance();
    }

    fn notify(&mut self, _now: Instant, notice: &Notice) {
        match notice {
            Notice::Disconnected => self.tear_down(Reason::Peer),
            Notice::Stopping => self.close(Reason::Stopping),
            Notice::StateChanged => self.changed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        if let Phase::Responding(Response { walk: Some(walk), .. }) = &mut self.phase
            && walk.is_pausing()
        {
            walk.begin_turn();
            self.restart_timer(now);
            return self.advance();
        }
        // A request must arrive in time, whatever else the peer does.
        let is_late =
            matches!(self.phase, Phase::Waiting { begun: true }) || self.must_authenticate();
        let has_moved = self.moved || self.account.held() != self.held;
        if !is_late && (has_moved || self.is_out_of_memory()) {
            self.restart_timer(now);
        } else if self.is_idle() && now < self.since + IDLE_TIMEOUT {
            self.detach(Reason::Ended);
        } else {
            self.close(Reason::Timeout);
        }
    }

    fn poll(&mut self) -> Option<Step> {
        if self.steps.is_empty() {
            self.advance();
        }
        self.steps.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Closed => None,
            _ if self.must_authenticate() => Some(self.since + HEAD_TIMEOUT),
            // At once: drivers serve others between two ticks.
            Phase::Responding(Response { walk: Some(walk), .. }) if walk.is_pausing() => {
                Some(self.since)
            }
            // A disk that does not respond is not the peer's fault.
            Phase::Responding(_) if self.in_flight > 0 => None,
            Phase::Waiting { begun } if *begun || !self.established => {
                Some(self.since + HEAD_TIMEOUT)
            }
            Phase::Waiting { .. } if self.is_idle() => Some(self.since + DETACH_TIMEOUT),
            Phase::Waiting { .. } | Phase::Responding(_) | Phase::Finishing(_) => {
                Some(self.since + IDLE_TIMEOUT)
            }
        }
    }

    fn can_receive(&self) -> bool {
        matches!(self.phase, Phase::Waiting { .. })
    }

    fn is_established(&self) -> bool {
        self.established
    }
}
