//! Requests: parsed, checked, executed in pieces and answered (NBD, Transmission phase).

use std::collections::VecDeque;
use std::sync::Arc;

use export::{
    Account, Buffer, Denied, DirectRecv, Fault, Fence, Head, Op, Outcome, Peer, Purpose, Reason,
    Request, Ticket,
};

use super::attachment::Attachment;
use super::authorizer::Authorizer;
use super::command::{Command, Header};
use super::fault::{error_value, is_reported};
use super::outbox::Outbox;
use super::payload::{PayloadReceiver, Received};
use super::read_memory::ReadMemory;
use super::reply::{self, BufferPart, Mode};
use super::slots::{Slot, Slots, Task, split_ticket, ticket};
use super::streamed_reads::StreamedReads;
use super::{MAX_SKIP, PIECE, Violation, status};
use crate::wire::errno::{EIO, ESHUTDOWN};

/// A connection in the transmission phase: its export and its requests.
#[derive(Debug)]
pub(super) struct Transmission {
    attachment: Attachment,
    state: State,
    slots: Slots,
    payload: PayloadReceiver,
    read_memory: ReadMemory,
    streamed: StreamedReads,
    /// Writes waiting until another request releases its exclusive access to the disk.
    blocked_writes: VecDeque<Request>,
    /// Number of requests submitted to the driver and not completed.
    submitted: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The client sent DISC: requests in flight complete, then the connection is closed.
    Disconnecting,
    /// The server shuts down: submitted requests complete, all others are refused.
    Stopping,
    /// The rest of a reply that has begun cannot be sent.
    Aborted,
}

impl Transmission {
    /// Starts the transmission phase. Payloads use memory of `account` and its siblings.
    pub(super) fn new(attachment: Attachment, account: &Account) -> Self {
        Self {
            attachment,
            state: State::Running,
            slots: Slots::new(),
            payload: PayloadReceiver::new(account.sibling(Purpose::Stream)),
            read_memory: ReadMemory::new(account.clone()),
            streamed: StreamedReads::new(account.clone()),
            blocked_writes: VecDeque::new(),
            submitted: 0,
        }
    }

    pub(super) fn fence(&self) -> &Arc<Fence> {
        self.attachment.fence()
    }

    fn mode(&self) -> Mode {
        self.attachment.mode()
    }

    pub(super) fn can_receive(&self) -> bool {
        match self.state {
            State::Disconnecting | State::Aborted => false,
            _ if self.payload.is_receiving() => !self.payload.is_stalled(),
            _ => self.slots.has_room(),
        }
    }

    /// Processes one message from the start of `left`. Returns the number of bytes consumed; zero
    /// if it is incomplete.
    pub(super) fn receive(&mut self, left: &[u8], out: &mut Outbox) -> Result<usize, Violation> {
        if !self.payload.is_receiving() {
            return self.request(left, out);
        }
        let (n, received) = self.payload.receive(left);
        self.received(received, out);
        Ok(n)
    }

    pub(super) fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.payload.direct_recv()
    }

    pub(super) fn direct_received(&mut self, window: DirectRecv, got: usize, out: &mut Outbox) {
        let received = self.payload.direct_received(window, got);
        self.received(received, out);
    }

    /// Processes a completed disk request.
    pub(super) fn complete(&mut self, ticket: &Ticket, outcome: Outcome, out: &mut Outbox) {
        self.submitted = self.submitted.saturating_sub(1);
        self.ended(ticket, outcome, true, out);
    }

    /// Handles a change of shared state. Returns the reason to close the connection, if there is
    /// one.
    pub(super) fn changed(
        &mut self,
        authorizer: &mut Authorizer,
        out: &mut Outbox,
    ) -> Option<Reason> {
        let reason = self.attachment.recheck(authorizer, out);
        if reason.is_none() {
            for _ in 0..self.blocked_writes.len() {
                if let Some(request) = self.blocked_writes.pop_front() {
                    self.admit(request, out);
                }
            }
        }
        reason
    }

    /// Starts the shutdown: refuses all requests that are not submitted yet, and later ones.
    pub(super) fn stop(&mut self, out: &mut Outbox) {
        self.state = State::Stopping;
        for request in std::mem::take(&mut self.blocked_writes) {
            let outcome = Outcome { result: Err(Fault::Gone), buffer: None };
            self.ended(&request.ticket, outcome, false, out);
        }
        for at in self.slots.busy() {
            if let Some(slot) = self.slots.get(at) {
                slot.refuse_rest(ESHUTDOWN);
            }
            self.finish_if_done(at, out);
        }
    }

    /// Resumes requests that waited for memory, one piece of each in turn.
    pub(super) fn resume(&mut self, out: &mut Outbox) {
        if let Some(at) = self.streamed.active() {
            self.advance(at, out);
        }
        if self.payload.is_stalled() {
            self.payload.allocate(&self.slots);
        }
        while let Some(at) = self.read_memory.first() {
            // A request that waits may have got memory since, when one of its pieces completed.
            if self.slots.has_more(at) && (self.is_aborted() || !self.issue(at, out)) {
                return;
            }
            let more = self.slots.has_more(at);
            self.read_memory.rotate(at, more);
        }
    }

    /// Returns whether the connection must be closed at once.
    pub(super) fn is_aborted(&self) -> bool {
        self.state == State::Aborted
    }

    /// Returns the reason to close the connection once the last request has completed after DISC or
    /// at shutdown.
    pub(super) fn end(&self) -> Option<Reason> {
        match self.state {
            State::Stopping if self.submitted == 0 => Some(Reason::Stopping),
            State::Disconnecting if self.slots.is_idle() => {
                self.attachment.leave();
                Some(Reason::Peer)
            }
            _ => None,
        }
    }

    /// Reports that the client no longer uses the export.
    pub(super) fn report_detached(&mut self, peer: &Peer, reason: Reason, out: &mut Outbox) {
        self.attachment.report_detached(peer, reason, out);
    }

    // ---- requests

    /// Processes the header of a request. Returns the number of bytes consumed; zero if it is
    /// incomplete.
    fn request(&mut self, left: &[u8], out: &mut Outbox) -> Result<usize, Violation> {
        let mode = self.mode();
        let Some((header, len)) = Header::parse(left, mode)? else { return Ok(0) };
        let payload = header.payload(mode);
        match self.attachment.check(&header, self.state == State::Stopping) {
            Ok((Command::Disc, _)) => self.state = State::Disconnecting,
            Ok((command, blocks)) => self.begin(&header, command, blocks, out),
            Err(_) if payload > MAX_SKIP => return Err(Violation::PayloadTooLong),
            Err(error) if payload == 0 => {
                out.send(reply::result(mode, header.reply_to(), error, true));
            }
            Err(error) => self.payload.expect_refused(payload, header.reply_to(), error),
        }
        Ok(len)
    }

    fn begin(
        &mut self,
        header: &Header,
        command: Command,
        (first, end): (u64, u64),
        out: &mut Outbox,
    ) {
        let simple = self.mode() == Mode::Simple;
        let task = match command {
            Command::Read { .. } if simple && end - first > PIECE => Task::StreamedRead,
            command => Task::Command(command),
        };
        let (_, len) = header.range();
        let slot = Slot::new(header.reply_to(), len, task, (first, end));
        let Some(at) = self.slots.claim(slot) else { return };
        match task {
            Task::StreamedRead => {
                self.streamed.push(at);
                self.next_streamed_read(out);
            }
            Task::Command(Command::Flush) => self.submit(at, Op::Flush, (0, 0), None, out),
            Task::Command(Command::Write { .. }) if len != 0 => self.expect_payload(at, len),
            _ => self.advance(at, out),
        }
    }

    /// Submits as many pieces as may be in flight, and completes the request after the last one.
    fn advance(&mut self, at: u8, out: &mut Outbox) {
        while self.slots.has_more(at) {
            if !self.issue(at, out) {
                if self.streamed.active() != Some(at) {
                    self.read_memory.wait(at);
                }
                break;
            }
        }
        self.finish_if_done(at, out);
    }

    /// Submits the next piece. Returns whether there was memory for it.
    fn issue(&mut self, at: u8, out: &mut Outbox) -> bool {
        let Some(slot) = self.slots.get(at) else { return true };
        let ((start, len, piece), op, task) = (slot.next_piece(), slot.op(), slot.task());
        let memory = task.memory_for(len);
        let buffer = match task {
            _ if memory == 0 => None,
            Task::StreamedRead => self.streamed.take(piece, memory),
            _ => self.read_memory.take(at, memory),
        };
        if memory != 0 && buffer.is_none() {
            return false;
        }
        if let Some(slot) = self.slots.get(at) {
            slot.skip(len);
        }
        self.submit(at, op, (start, len), buffer, out);
        true
    }

    /// Submits a piece of `len` bytes at `start`.
    fn submit(
        &mut self,
        at: u8,
        op: Op,
        (start, len): (u64, u64),
        buffer: Option<Buffer>,
        out: &mut Outbox,
    ) {
        let shift = self.attachment.shift();
        let Some(slot) = self.slots.get(at) else { return };
        let ticket = ticket(at, slot.submitted(start));
        self.admit(Request { op, lba: start >> shift, blocks: len >> shift, buffer, ticket }, out);
    }

    /// Passes a request through the gate; queues it while another request has exclusive access to
    /// the disk.
    fn admit(&mut self, request: Request, out: &mut Outbox) {
        match self.attachment.admit(request) {
            Ok(admitted) => {
                self.submitted += 1;
                // The data of a read is only sent.
                out.submit(admitted.allow_in_place(true));
            }
            Err(denied) => {
                let Denied { fault, request } = *denied;
                if fault == Fault::Busy {
                    return self.blocked_writes.push_back(request);
                }
                let outcome = Outcome { result: Err(fault), buffer: request.buffer };
                self.ended(&request.ticket, outcome, false, out);
            }
        }
    }

    // ---- completions

    /// Completes a piece. `submitted` is set if it was submitted to the driver.
    fn ended(&mut self, ticket: &Ticket, outcome: Outcome, submitted: bool, out: &mut Outbox) {
        let (at, piece) = split_ticket(ticket);
        let Some(slot) = self.slots.get(at) else { return };
        slot.completed();
        let task = slot.task();
        let result = outcome.result.or_else(|fault| task.ignore(fault));
        if let Err(fault) = result {
            self.failed(at, piece, fault, submitted, out);
        }
        let buffer = outcome.buffer.filter(|_| result.is_ok());
        match task {
            Task::Command(Command::Read { .. }) => self.read_ended(at, piece, buffer, out),
            Task::Command(Command::Status { one }) => {
                self.status_ended(at, one, buffer, outcome.result.is_ok(), out);
            }
            Task::StreamedRead => self.streamed_read_ended(at, piece, buffer, out),
            _ => self.advance(at, out),
        }
    }

    /// Records and reports the failure of a piece.
    fn failed(&mut self, at: u8, piece: u32, fault: Fault, submitted: bool, out: &mut Outbox) {
        let Some(slot) = self.slots.get(at) else { return };
        let op = slot.op();
        slot.fail(error_value(fault, op));
        if submitted && is_reported(fault) {
            out.report(self.attachment.fault(op, slot.range_of(piece), fault));
        }
    }

    /// Completes a request that has no more pieces.
    fn finish_if_done(&mut self, at: u8, out: &mut Outbox) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.is_done()) else { return };
        match slot.task() {
            Task::Free => {}
            Task::StreamedRead => self.end_streamed_read(at, out),
            Task::Command(Command::Trim { durable: true }) if slot.error() == 0 => {
                slot.flush_next();
                self.submit(at, Op::Flush, (0, 0), None, out);
            }
            Task::Command(_) | Task::FinalFlush => self.finish(at, out),
        }
    }

    /// Sends the single reply to a request.
    fn finish(&mut self, at: u8, out: &mut Outbox) {
        let mode = self.mode();
        let Some(slot) = self.slots.get(at) else { return };
        let (error, op) = (slot.error(), slot.op());
        let read = matches!(op, Op::Read | Op::Extents);
        if error == 0 && matches!(op, Op::Write { .. } | Op::Zero { .. }) {
            self.attachment.count_written(slot.len());
        }
        out.send(reply::result(mode, slot.reply_to(), error, read));
        self.release(at);
    }

    fn release(&mut self, at: u8) {
        self.read_memory.forget(at);
        self.slots.release(at);
    }

    // ---- reads and block status

    /// Completes a piece of a read; `buffer` is `None` if it failed. Each piece is answered as it
    /// completes, clipped to the requested bytes.
    fn read_ended(&mut self, at: u8, piece: u32, buffer: Option<Buffer>, out: &mut Outbox) {
        let mode = self.mode();
        let Some(slot) = self.slots.get(at) else { return };
        let (to, done, error) = (slot.reply_to(), slot.is_done(), slot.pending_error());
        match buffer {
            Some(buffer) => {
                let (offset, start, len) = slot.clip(piece, buffer.len());
                let part = BufferPart::new(buffer, start, len);
                self.attachment.count_read(len);
                out.send(reply::data(mode, to, offset, part, done && error.is_none()));
                if let Some(error) = error.filter(|_| done) {
                    out.send(reply::result(mode, to, error, true));
                }
            }
            None => {
                let (offset, ..) = slot.clip(piece, 0);
                out.send(reply::piece_error(mode, to, offset, slot.error(), done));
            }
        }
        if done { self.release(at) } else { self.advance(at, out) }
    }

    /// Completes a block status request.
    fn status_ended(
        &mut self,
        at: u8,
        one: bool,
        buffer: Option<Buffer>,
        known: bool,
        out: &mut Outbox,
    ) {
        let mode = self.mode();
        let Some(slot) = self.slots.get(at) else { return };
        let to = slot.reply_to();
        out.send(match buffer {
            Some(buffer) => status::reply(mode, to, slot.range_in_blocks(), one, buffer, known),
            None if slot.error() == 0 => reply::result(mode, to, EIO, true),
            None => reply::result(mode, to, slot.error(), true),
        });
        self.release(at);
    }

    fn next_streamed_read(&mut self, out: &mut Outbox) {
        if let Some(at) = self.streamed.activate() {
            self.advance(at, out);
        }
    }

    /// Completes a piece of the active streamed read; `buffer` is `None` if it failed.
    fn streamed_read_ended(
        &mut self,
        at: u8,
        piece: u32,
        buffer: Option<Buffer>,
        out: &mut Outbox,
    ) {
        match buffer {
            Some(buffer) => {
                self.streamed.store(piece, buffer);
                self.send_ready_pieces(at, out);
            }
            // The reply has begun, so the error cannot be sent.
            None if self.streamed.has_begun() => return self.state = State::Aborted,
            None => {}
        }
        self.advance(at, out);
    }

    /// Sends the pieces that are next in order.
    fn send_ready_pieces(&mut self, at: u8, out: &mut Outbox) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.error() == 0) else { return };
        while let Some((piece, buffer)) = self.streamed.next_piece() {
            let head = if piece == 0 { reply::simple(slot.reply_to(), 0) } else { Head::new(&[]) };
            let (_, start, len) = slot.clip(piece, buffer.len());
            self.attachment.count_read(len);
            out.stream(BufferPart::new(buffer, start, len).with_head(head));
        }
    }

    /// Ends the active or a queued streamed read, which has been sent or has failed.
    fn end_streamed_read(&mut self, at: u8, out: &mut Outbox) {
        let mode = self.mode();
        let Some(slot) = self.slots.get(at) else { return };
        let (to, error) = (slot.reply_to(), slot.error());
        let begun = self.streamed.end(at);
        if begun && error != 0 {
            return self.state = State::Aborted;
        }
        if !begun {
            out.send(reply::result(mode, to, error, true));
        }
        self.release(at);
        if self.streamed.active().is_none() {
            out.end_stream();
        }
        self.next_streamed_read(out);
    }

    // ---- writes

    fn expect_payload(&mut self, at: u8, len: u64) {
        if let Some(slot) = self.slots.get(at) {
            slot.expect_payload();
        }
        self.payload.expect_write(at, len, &self.slots);
    }

    /// Submits the piece of a write that has been received, or answers a refused request.
    fn received(&mut self, received: Received, out: &mut Outbox) {
        match received {
            Received::Skipped => {}
            Received::Refused { to, error } => {
                out.send(reply::result(self.mode(), to, error, true));
            }
            Received::Write { slot: at, piece, last } => {
                if let Some(buffer) = piece {
                    self.write_piece(at, buffer, out);
                }
                if !last {
                    return self.payload.allocate(&self.slots);
                }
                if let Some(slot) = self.slots.get(at) {
                    slot.payload_received();
                }
                self.finish_if_done(at, out);
            }
        }
    }

    fn write_piece(&mut self, at: u8, buffer: Buffer, out: &mut Outbox) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.error() == 0) else { return };
        let ((start, ..), op, len) = (slot.next_piece(), slot.op(), buffer.len() as u64);
        slot.skip(len);
        self.submit(at, op, (start, len), Some(buffer), out);
    }
}
