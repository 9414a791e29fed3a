//! The commands of a session to its disk: begun, executed in steps and answered.

mod commands;
mod management;

use std::collections::VecDeque;
use std::sync::Arc;

use export::{Account, Denied, Fault, Op, Outcome, Request, Ticket};
use scsi::{Nexus, Port, Response, Sense, Step};

use management::Pending;

use super::attachment::Attachment;
use super::link::{Data, Link, Source};
use super::memory::Memory;
use super::negotiation::Parameters;
use super::outbox::Outbox;
use super::receiver::Receiver;
use super::registry::{Registration, Registry};
use super::slots::{Slot, Slots, Work};
use super::{PIECE, reply};
use crate::wire::bhs::{R2t, of_target};
use crate::wire::opcode;

/// What every operation on the disk needs of its connection.
#[derive(Debug)]
pub(super) struct Cx<'a> {
    pub(super) link: &'a mut Link,
    pub(super) parameters: &'a Parameters,
    pub(super) receiver: &'a mut Receiver,
    pub(super) out: &'a mut Outbox,
}

/// The disk of a session, and the commands to it.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) attachment: Attachment,
    nexus: Nexus,
    pub(super) slots: Slots,
    memory: Memory,
    /// The slot whose data is next in the stream and has no memory yet. Reception stops.
    stalled: Option<u8>,
    /// Writes and jobs that wait until another request releases its exclusive access to the disk.
    blocked: VecDeque<Blocked>,
    /// Number of requests submitted to the driver and not completed.
    pub(super) submitted: u32,
    /// Tags of aborted tasks, whose data may still come.
    aborted_tags: VecDeque<u32>,
    /// Task management functions that wait for their tasks.
    pending: Vec<Pending>,
    /// Whether the session is to end, after a cold reset.
    pub(super) is_over: bool,
    registry: Arc<Registry>,
    registration: Arc<Registration>,
}

/// What waits for exclusive access of another request to end.
#[derive(Debug)]
enum Blocked {
    Write(Request),
    Job(u8),
}

/// Maximum number of aborted tasks whose data is expected.
const MAX_ABORTED_TAGS: usize = 256;

impl Disk {
    /// Creates the state of a new session.
    pub(super) fn new(
        attachment: Attachment,
        port: Arc<Port>,
        account: &Account,
        registry: Arc<Registry>,
        registration: Arc<Registration>,
    ) -> Self {
        Self {
            registry,
            registration,
            nexus: Nexus::new(&attachment.grant, port),
            attachment,
            slots: Slots::new(),
            memory: Memory::new(account),
            stalled: None,
            blocked: VecDeque::new(),
            submitted: 0,
            aborted_tags: VecDeque::new(),
            pending: Vec::new(),
            is_over: false,
        }
    }

    /// Returns whether the session is to end, after a cold reset: no further commands are accepted.
    pub(super) fn is_ending(&self) -> bool {
        self.is_over || self.pending.iter().any(Pending::ends_session)
    }

    /// Returns whether the stream waits for memory.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    // ---- memory

    /// Resumes commands that waited for memory.
    pub(super) fn resume(&mut self, cx: &mut Cx<'_>) {
        if let Some(at) = self.stalled {
            let len = self.slots.get(at).and_then(|slot| slot.data_out.needs_memory());
            match len.map(|len| self.memory.take_for_stream(len)) {
                Some(None) => {}
                Some(Some(buffer)) => {
                    self.stalled = None;
                    self.provide_stream(at, buffer, cx);
                }
                None => self.stalled = None,
            }
        }
        let mut starved = self.memory.take_starved();
        while let Some(at) = starved.pop_front() {
            self.advance(at, cx);
            // Without memory for one, there is none for those behind it.
            if self.memory.is_short() {
                return self.memory.wait_behind(starved);
            }
        }
    }

    // ---- steps

    /// Does what can be done for a command now.
    fn advance(&mut self, at: u8, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get(at) else { return };
        if slot.receiving {
            return;
        }
        if slot.aborted {
            return self.end_if_aborted(at, cx);
        }
        match &slot.work {
            Work::Free => {}
            Work::Read(_) => self.advance_read(at, cx),
            Work::Write(_) => self.advance_write(at, cx),
            Work::Job(..) => self.advance_job(at, cx),
            Work::Ended(_) if slot.data_out.expects() => {}
            Work::Ended(_) => self.respond(at, cx),
        }
    }

    fn advance_read(&mut self, at: u8, cx: &mut Cx<'_>) {
        loop {
            let Some(Slot { work: Work::Read(reading), .. }) = self.slots.get(at) else { return };
            let Some(piece) = reading.next() else { break };
            let Some(buffer) = self.memory.take(at, piece.len) else { break };
            reading.advance();
            let ticket = ticket(at, piece.number);
            let (lba, blocks, buffer) = (piece.lba, piece.blocks, Some(buffer));
            self.admit(at, Request { op: Op::Read, lba, blocks, buffer, ticket }, cx);
        }
        let Some(slot) = self.slots.get(at) else { return };
        let Work::Read(reading) = &mut slot.work else { return };
        let response = match &reading.failed {
            Some(failed) if slot.in_flight == 0 => (**failed).clone(),
            None if reading.len == 0 => Response::good(),
            _ => return,
        };
        slot.work = Work::Ended(response);
        self.advance(at, cx);
    }

    fn advance_write(&mut self, at: u8, cx: &mut Cx<'_>) {
        loop {
            let Some(slot) = self.slots.get(at) else { return };
            let Work::Write(writing) = &slot.work else { return };
            let Some((offset, buffer)) = slot.data_out.take_complete() else { break };
            let ((lba, blocks), durable) = (writing.blocks(offset, buffer.len()), writing.durable);
            let (op, ticket) = (Op::Write { durable }, ticket(at, offset / PIECE));
            self.admit(at, Request { op, lba, blocks, buffer: Some(buffer), ticket }, cx);
            self.next_piece(at);
        }
        self.next_piece(at);
        self.receive_piece(at, cx);
        let Some(slot) = self.slots.get(at) else { return };
        let Work::Write(writing) = &mut slot.work else { return };
        if slot.in_flight != 0 || slot.data_out.has_piece() || !writing.is_received() {
            return;
        }
        let failed = writing.failed.take();
        if failed.is_none() {
            self.attachment.written = self.attachment.written.saturating_add(writing.len.into());
        }
        slot.work = Work::Ended(failed.unwrap_or_else(Response::good));
        self.advance(at, cx);
    }

    /// Expects the next piece of a write.
    fn next_piece(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at).filter(|slot| !slot.data_out.has_piece()) else {
            return;
        };
        if let Work::Write(writing) = &mut slot.work
            && let Some((start, len)) = writing.next(slot.in_flight, slot.data_out.unsolicited())
        {
            slot.data_out.expect_piece(start, len);
        }
    }

    /// Allocates memory for the current piece, and requests its data.
    fn receive_piece(&mut self, at: u8, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get(at).filter(|_| self.stalled != Some(at)) else { return };
        if let Some(len) = slot.data_out.needs_memory() {
            let Some(buffer) = self.memory.take(at, len) else { return };
            slot.data_out.provide(buffer);
        }
        let tag = u32::from(at);
        let Some(solicited) = slot.data_out.solicit(tag, cx.parameters.max_burst) else { return };
        let mut r2t = R2t::of(&of_target(opcode::R2T));
        (r2t.itt, r2t.ttt, r2t.r2t_sn) = (slot.itt.into(), tag.into(), solicited.r2t_sn.into());
        (r2t.offset, r2t.len) = (solicited.offset.into(), solicited.len.into());
        cx.link.window = self.slots.window();
        r2t.numbers = cx.link.numbers();
        cx.link.send(&r2t, Data::NONE, cx.out);
    }

    fn advance_job(&mut self, at: u8, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get(at) else { return };
        let complete = slot.data_out.take_complete();
        if let (Some((_, buffer)), Work::Job(job, _)) = (complete, &mut slot.work) {
            job.received(buffer);
        }
        if let Work::Job(job, request) = &mut slot.work
            && let Some((len, holds)) = request.memory
        {
            let buffer = match holds {
                true => self.memory.take_second(at, len),
                false => self.memory.take(at, len),
            };
            let Some(buffer) = buffer else { return };
            request.memory = None;
            job.provide(buffer);
        }
        self.poll_job(at, cx);
        self.receive_piece(at, cx);
        if self.slots.get(at).is_some_and(|slot| matches!(slot.work, Work::Ended(_))) {
            self.advance(at, cx);
        }
    }

    /// Executes the steps of a job.
    fn poll_job(&mut self, at: u8, cx: &mut Cx<'_>) {
        loop {
            let Some(slot) = self.slots.get(at) else { return };
            let Work::Job(job, request) = &mut slot.work else { return };
            match job.poll(&self.attachment.grant, at.into()) {
                None => return,
                Some(Step::Receive { len }) => {
                    if !slot.data_out.expect_next_piece(u32::try_from(len).unwrap_or(u32::MAX)) {
                        slot.work = Work::Ended(Sense::INVALID_FIELD_IN_CDB.into());
                    }
                    return;
                }
                Some(Step::Allocate { len, holds_memory }) => {
                    let buffer = match holds_memory {
                        true => self.memory.take_second(at, len),
                        false => self.memory.take(at, len),
                    };
                    match buffer {
                        Some(buffer) => job.provide(buffer),
                        None => return request.memory = Some((len, holds_memory)),
                    }
                }
                Some(Step::Submit(admitted)) => {
                    (request.op, request.range) =
                        (admitted.op(), (admitted.offset(), admitted.len()));
                    slot.in_flight += 1;
                    self.submitted += 1;
                    return cx.out.submit(admitted);
                }
                Some(Step::Wait) => return self.blocked.push_back(Blocked::Job(at)),
                Some(Step::Notify) => cx.out.notify(),
                Some(Step::Done(response)) => return slot.work = Work::Ended(response),
            }
        }
    }

    /// Passes a request through the gate; queues it while another request has exclusive access to
    /// the disk.
    fn admit(&mut self, at: u8, request: Request, cx: &mut Cx<'_>) {
        if let Some(slot) = self.slots.get(at) {
            slot.in_flight += 1;
        }
        self.readmit(request, cx);
    }

    fn readmit(&mut self, request: Request, cx: &mut Cx<'_>) {
        match self.attachment.grant.admit(request) {
            Ok(admitted) => {
                self.submitted += 1;
                // The data of a read is only sent, unless there is a digest of it.
                cx.out.submit(admitted.allow_in_place(!cx.parameters.data_digest));
            }
            Err(denied) => {
                let Denied { fault, request } = *denied;
                if fault == Fault::Busy {
                    return self.blocked.push_back(Blocked::Write(request));
                }
                let outcome = Outcome { result: Err(fault), buffer: request.buffer };
                self.ended(&request.ticket, outcome, false, cx);
            }
        }
    }

    // ---- changes

    /// Handles a change of shared state.
    pub(super) fn changed(&mut self, cx: &mut Cx<'_>) {
        self.nexus.changed(&self.attachment.grant);
        self.take_reset(cx);
        for blocked in std::mem::take(&mut self.blocked) {
            match blocked {
                Blocked::Write(request) => self.readmit(request, cx),
                Blocked::Job(at) => self.advance(at, cx),
            }
        }
    }

    /// Removes the requests of a task that are blocked. Returns how many disk requests there were.
    fn unblock(&mut self, at: u8) -> u16 {
        let mut removed = 0;
        self.blocked.retain(|blocked| match blocked {
            Blocked::Job(other) => *other != at,
            Blocked::Write(request) => {
                let other = split_ticket(&request.ticket).0 != at;
                removed += u16::from(!other);
                other
            }
        });
        removed
    }

    /// Expects data of a task that was aborted, to skip it.
    fn forget_data(&mut self, itt: u32) {
        if self.aborted_tags.len() >= MAX_ABORTED_TAGS {
            self.aborted_tags.pop_front();
        }
        self.aborted_tags.push_back(itt);
    }

    // ---- completions

    /// Processes a completed disk request.
    pub(super) fn complete(&mut self, ticket: &Ticket, outcome: Outcome, cx: &mut Cx<'_>) {
        self.submitted = self.submitted.saturating_sub(1);
        self.ended(ticket, outcome, true, cx);
    }

    fn ended(&mut self, ticket: &Ticket, outcome: Outcome, submitted: bool, cx: &mut Cx<'_>) {
        let (at, number) = split_ticket(ticket);
        let Some(slot) = self.slots.get(at) else { return };
        slot.in_flight = slot.in_flight.saturating_sub(1);
        let (op, range, lba) = match &slot.work {
            Work::Read(reading) => {
                let piece = reading.piece(number);
                let shift = self.attachment.grant.export().geometry.shift();
                (Op::Read, (piece.lba << shift, piece.len as u64), piece.lba)
            }
            Work::Write(writing) => {
                let offset = number.saturating_mul(PIECE);
                let op = Op::Write { durable: writing.durable };
                (op, writing.range(offset), writing.blocks(offset, 0).0)
            }
            Work::Job(_, request) => (request.op, request.range, 0),
            Work::Free | Work::Ended(_) => return self.advance(at, cx),
        };
        if let Err(fault) = outcome.result
            && submitted
        {
            self.attachment.report_fault(op, range, fault, cx.out);
        }
        let Some(slot) = self.slots.get(at) else { return };
        match (&mut slot.work, outcome.result) {
            (Work::Job(job, _), _) => job.complete(outcome),
            (Work::Read(reading), Ok(())) => {
                if let Some(buffer) = outcome.buffer.filter(|_| !slot.aborted) {
                    reading.store(number, buffer);
                    return self.send_ready(at, cx);
                }
            }
            (Work::Read(reading), Err(fault)) => reading.fail(Response::fault(fault, op, lba)),
            (Work::Write(writing), Err(fault)) => {
                writing.failed.get_or_insert_with(|| Response::fault(fault, op, lba));
                slot.data_out.drop_piece();
            }
            _ => {}
        }
        self.advance(at, cx);
    }

    /// Sends the pieces of a read that are next in order. The last one has the status.
    fn send_ready(&mut self, at: u8, cx: &mut Cx<'_>) {
        loop {
            let Some(slot) = self.slots.get(at) else { return };
            let Work::Read(reading) = &mut slot.work else { return };
            if reading.failed.is_some() {
                break;
            }
            let Some((buffer, len, last)) = reading.take_ready() else { break };
            self.attachment.read = self.attachment.read.saturating_add(len as u64);
            if last {
                let slot = self.release(at);
                cx.link.window = self.slots.window();
                return reply::last_data(&slot, buffer, len, cx.link, cx.out);
            }
            cx.link.window = self.slots.window();
            if let Some(slot) = self.slots.get(at) {
                let source = Source::Whole(Some(buffer));
                cx.link.send_data(&mut slot.data_in, source, len, None, cx.out);
            }
        }
        self.advance(at, cx);
    }

    /// Answers a command that has ended.
    fn respond(&mut self, at: u8, cx: &mut Cx<'_>) {
        let slot = self.release(at);
        cx.link.window = self.slots.window();
        reply::end(slot, cx.link, cx.out);
    }

    fn release(&mut self, at: u8) -> Slot {
        self.memory.forget(at);
        self.pending.iter_mut().for_each(|pending| pending.freed(at));
        if self.stalled == Some(at) {
            self.stalled = None;
        }
        self.slots.release(at)
    }
}

/// Creates the ticket of a piece of the command in slot `at`.
fn ticket(at: u8, piece: u32) -> Ticket {
    Ticket::new(u32::from(at) | piece << u8::BITS)
}

/// Returns slot and piece of a ticket.
fn split_ticket(ticket: &Ticket) -> (u8, u32) {
    let [at, ..] = ticket.number().to_le_bytes();
    (at, ticket.number() >> u8::BITS)
}
