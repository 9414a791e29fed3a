//! The session: one command at a time, from its wrapper to its status.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Account, Body, Buffer, Catalogue, Denied, DirectRecv, Event, Fault, Head, Notice, Op, Outcome,
    Peer, Purpose, Reason, Request, Segment, Step, Ticket,
};
use scsi::{Command as Decision, Response, Sense};
use zerocopy::IntoBytes;

use crate::command::{Command, Expects, PIECE, Work};
use crate::unit::{Slot, Unit};
use crate::wire::{Cbw, Status};

/// The device side of the bulk-only transport, from configuration to disconnection or reset.
#[derive(Debug)]
pub struct Session {
    catalogue: Arc<Catalogue>,
    peer: Peer,
    account: Account,
    /// For the second buffer of a command.
    second: Account,
    units: Vec<Slot>,
    command: Option<Command>,
    /// Disk requests of the command that wait until another one releases its exclusive access to
    /// the disk, with their units.
    blocked: Vec<(usize, Request)>,
    steps: VecDeque<Step>,
    is_closed: bool,
}

impl Session {
    pub(crate) fn new(
        catalogue: Arc<Catalogue>,
        peer: Peer,
        account: Account,
        units: Vec<Slot>,
    ) -> Self {
        let second = account.sibling(Purpose::SecondPhase);
        let (command, blocked, steps) = Default::default();
        Self { catalogue, peer, account, second, units, command, blocked, steps, is_closed: false }
    }

    /// Begins the command of a wrapper.
    fn begin(&mut self, bytes: &[u8]) {
        let cbw = match Cbw::parse(bytes, self.units.len()) {
            Ok(cbw) => cbw,
            Err(rule) => return self.violated(rule),
        };
        let Some(unit) = self.units.get_mut(usize::from(cbw.lun)) else { return };
        self.steps.extend(unit.update(&self.catalogue, &self.peer));
        let decided = unit.command(cbw.cdb());
        let (data_in, data_out, shift) = unit.lengths(&decided);
        let disagrees = Expects::of(&cbw).disagrees(data_in, data_out);
        let done = match &decided {
            Decision::Done(response) => Some(response.clone()),
            _ => None,
        };
        self.command = Some(Command::new(&cbw, decided, shift, disagrees));
        if let Some(response) = done {
            self.respond(&response, disagrees);
        }
        self.advance();
    }

    /// Both endpoints are halted until the host resets the device (BOT §6.6.1).
    fn violated(&mut self, rule: &'static str) {
        self.is_closed = true;
        let event = Event::Violation { peer: self.peer.clone(), rule };
        self.steps.push_back(Step::Report(Box::new(event)));
        self.detach(Reason::Violation);
        self.steps.push_front(Step::Close(Reason::Violation));
    }

    fn detach(&mut self, reason: Reason) {
        for unit in self.units.iter_mut().filter_map(|slot| slot.unit.as_mut()) {
            unit.grant.fence().close();
            self.steps.extend(unit.detached(&self.peer, reason));
        }
    }

    /// Sends the data of a response that fits, and ends the command.
    fn respond(&mut self, response: &Response, disagrees: bool) {
        let Some(command) = &mut self.command else { return };
        if let Some(unit) = unit(&mut self.units, command.unit) {
            unit.keep_sense(response);
        }
        let len = u32::try_from(response.data.len()).unwrap_or(u32::MAX);
        let len = len.min(command.left_in());
        if len > 0 {
            let data = &response.data[..usize::try_from(len).unwrap_or(0)];
            (command.moved, command.processed) = (len, len);
            self.steps.push_back(Step::Send(Segment::with_shared(Head::new(&[]), data.into())));
        }
        command.work = Work::Ended(match response.is_good() {
            _ if disagrees => Status::PhaseError,
            true => Status::Passed,
            false => Status::Failed,
        });
    }

    /// Does what can be done now.
    fn advance(&mut self) {
        let Some(command) = &self.command else { return };
        match &command.work {
            Work::Read(_) => self.advance_read(),
            Work::Write(_) => self.advance_write(),
            Work::Job { .. } => self.advance_job(),
            Work::Ended(_) => {}
        }
        self.end_if_over();
        self.provide();
    }

    fn advance_read(&mut self) {
        loop {
            let Some(Command { work: Work::Read(pieces), in_flight, .. }) = &mut self.command
            else {
                return;
            };
            if !pieces.has_next(*in_flight) {
                break;
            }
            let offset = pieces.next;
            let len = usize::try_from(pieces.len_at(offset)).unwrap_or(usize::MAX);
            let Some(buffer) = self.account.take(len) else { break };
            let (lba, blocks) = pieces.blocks_at(offset);
            pieces.begin_read();
            let (buffer, ticket) = (Some(buffer), Ticket::new(offset));
            self.admit(Request { op: Op::Read, lba, blocks, buffer, ticket });
        }
        self.send_ready();
    }

    /// Sends the pieces of a read that are next in order.
    fn send_ready(&mut self) {
        let Some(command) = &mut self.command else { return };
        let Work::Read(pieces) = &mut command.work else { return };
        while let Some(buffer) = pieces.take_read().filter(|_| pieces.failed.is_none()) {
            let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
            (command.moved, command.processed) = (command.moved + len, command.processed + len);
            let whole = buffer.len();
            let segment = Segment::with_body(Head::new(&[]), Body::Whole(buffer), 0, whole);
            self.steps.push_back(Step::Send(segment));
            if let Some(unit) = unit(&mut self.units, command.unit) {
                unit.read = unit.read.saturating_add(len.into());
            }
        }
        if pieces.is_over(command.in_flight) {
            let response = pieces.failed.take().unwrap_or_else(Response::good);
            self.finish(&response);
        }
    }

    fn advance_write(&mut self) {
        let Some(command) = &mut self.command else { return };
        let Work::Write(pieces) = &mut command.work else { return };
        if command.incoming.is_none() && pieces.has_next(command.in_flight) {
            let len = pieces.len_at(pieces.next);
            command.expect(len);
        } else if command.incoming.is_none() && pieces.is_over(command.in_flight) {
            let response = pieces.failed.take().unwrap_or_else(Response::good);
            self.finish(&response);
        }
    }

    /// Ends the work of a read, a write or a job.
    fn finish(&mut self, response: &Response) {
        let Some(command) = &mut self.command else { return };
        let asked = u32::try_from(response.data.len()).unwrap_or(u32::MAX);
        let disagrees = asked > command.left_in();
        if matches!(&command.work, Work::Job { .. }) && response.is_good() {
            command.processed = command.moved;
        }
        self.respond(response, disagrees);
    }

    fn advance_job(&mut self) {
        loop {
            let Some(command) = &mut self.command else { return };
            let Some(unit) = unit(&mut self.units, command.unit) else { return };
            let left = command.left_out();
            let Work::Job { job, memory } = &mut command.work else { return };
            if let Some((len, holds_memory)) = *memory {
                let account = if holds_memory { &self.second } else { &self.account };
                let Some(buffer) = account.take(len) else { return };
                *memory = None;
                job.provide(buffer);
            }
            match job.poll(&unit.grant, 0) {
                None | Some(scsi::Step::Wait) => return,
                Some(scsi::Step::Receive { len }) => match u32::try_from(len) {
                    Ok(len) if len <= left => return command.expect(len),
                    _ => return self.finish(&Sense::INVALID_FIELD_IN_CDB.into()),
                },
                Some(scsi::Step::Allocate { len, holds_memory }) => {
                    *memory = Some((len, holds_memory));
                }
                Some(scsi::Step::Submit(admitted)) => {
                    command.in_flight += 1;
                    return self.steps.push_back(Step::Submit(admitted));
                }
                Some(scsi::Step::Notify) => self.steps.push_back(Step::Notify),
                Some(scsi::Step::Done(response)) => return self.finish(&response),
            }
        }
    }

    /// Discards the rest of the data, then sends the status of a command that has ended.
    fn end_if_over(&mut self) {
        let Some(command) = &mut self.command else { return };
        let Work::Ended(status) = command.work else { return };
        if command.incoming.is_some() || command.in_flight > 0 {
            return;
        }
        if command.left_out() > 0 {
            let len = command.left_out().min(PIECE);
            return command.expect(len);
        }
        if command.needs_halt() {
            self.steps.push_back(Step::Halt);
        }
        let csw = command.status(status);
        self.steps.push_back(Step::Send(Segment::head(Head::new(csw.as_bytes()))));
        if let Some(unit) = unit(&mut self.units, command.unit) {
            self.steps.extend(unit.report_use(&self.peer));
        }
        self.command = None;
    }

    /// Allocates the buffer for the data that is expected.
    fn provide(&mut self) {
        let incoming = self.command.as_mut().and_then(|command| command.incoming.as_mut());
        if let Some(incoming) = incoming.filter(|it| it.buffer.is_none() && !it.is_lent) {
            incoming.buffer = self.account.take(incoming.len);
        }
    }

    /// Processes data from the host: a whole window of [`Command::expect`].
    fn arrived(&mut self, buffer: Buffer) {
        let Some(command) = &mut self.command else { return };
        command.incoming = None;
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        command.moved = command.moved.saturating_add(len);
        match &mut command.work {
            Work::Write(pieces) => {
                let offset = pieces.next;
                let (lba, blocks) = pieces.blocks_at(offset);
                let op = Op::Write { durable: pieces.durable };
                pieces.begin();
                let (buffer, ticket) = (Some(buffer), Ticket::new(offset));
                self.admit(Request { op, lba, blocks, buffer, ticket });
            }
            Work::Job { job, .. } => job.received(buffer),
            Work::Read(_) | Work::Ended(_) => {}
        }
        self.advance();
    }

    /// Passes a request through the gate. It waits while another has exclusive access to the disk.
    fn admit(&mut self, request: Request) {
        let Some(command) = &mut self.command else { return };
        command.in_flight += 1;
        let at = command.unit;
        self.readmit(at, request);
    }

    fn readmit(&mut self, at: usize, request: Request) {
        let Some(command) = &mut self.command else { return };
        let Some(unit) = unit(&mut self.units, at) else { return };
        match unit.grant.admit(request) {
            Ok(admitted) => self.steps.push_back(Step::Submit(admitted)),
            Err(denied) => {
                let Denied { fault, request } = *denied;
                if fault == Fault::Busy {
                    return self.blocked.push((at, request));
                }
                command.in_flight = command.in_flight.saturating_sub(1);
                let outcome = Outcome { result: Err(fault), buffer: request.buffer };
                self.ended(&request.ticket, outcome);
            }
        }
    }

    fn ended(&mut self, ticket: &Ticket, outcome: Outcome) {
        let offset = ticket.number();
        let Some(command) = &mut self.command else { return };
        let Some(unit) = unit(&mut self.units, command.unit) else { return };
        let (op, pieces) = match &mut command.work {
            Work::Job { job, .. } => return job.complete(outcome),
            Work::Read(pieces) => (Op::Read, pieces),
            Work::Write(pieces) => (Op::Write { durable: pieces.durable }, pieces),
            Work::Ended(_) => return,
        };
        if let Err(fault) = outcome.result {
            self.steps.extend(unit.fault(op, pieces.range_at(offset), fault));
            let (lba, _) = pieces.blocks_at(offset);
            pieces.failed.get_or_insert_with(|| Response::fault(fault, op, lba));
        } else if op == Op::Read {
            if let Some(buffer) = outcome.buffer {
                pieces.store(offset, buffer);
            }
        } else {
            let len = pieces.len_at(offset);
            command.processed = command.processed.saturating_add(len);
            unit.written = unit.written.saturating_add(len.into());
        }
    }
}

fn unit(units: &mut [Slot], at: usize) -> Option<&mut Unit> {
    units.get_mut(at)?.unit.as_mut()
}

impl export::Session for Session {
    fn receive(&mut self, _now: Instant, bytes: &[u8]) -> usize {
        if self.is_closed {
            return bytes.len();
        }
        if self.command.is_none() {
            self.begin(bytes);
        }
        bytes.len()
    }

    fn complete(&mut self, _now: Instant, ticket: Ticket, outcome: Outcome) {
        if let Some(command) = &mut self.command {
            command.in_flight = command.in_flight.saturating_sub(1);
        }
        self.ended(&ticket, outcome);
        self.advance();
    }

    fn notify(&mut self, _now: Instant, notice: &Notice) {
        if self.is_closed {
            return;
        }
        match notice {
            Notice::Disconnected => {
                self.is_closed = true;
                self.blocked.clear();
                self.command = None;
                self.detach(Reason::Peer);
            }
            Notice::Stopping => {}
            Notice::StateChanged => {
                let busy = self.command.as_ref().map(|command| command.unit);
                for (at, unit) in self.units.iter_mut().enumerate() {
                    if Some(at) != busy {
                        self.steps.extend(unit.update(&self.catalogue, &self.peer));
                    }
                }
                for (at, request) in std::mem::take(&mut self.blocked) {
                    self.readmit(at, request);
                }
                self.advance();
            }
        }
    }

    fn tick(&mut self, _now: Instant) {}

    fn poll(&mut self) -> Option<Step> {
        if self.steps.is_empty() && !self.is_closed {
            // Memory may have been freed.
            self.advance();
        }
        self.steps.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn can_receive(&self) -> bool {
        !self.is_closed && self.command.as_ref().is_none_or(Command::can_receive)
    }

    fn is_established(&self) -> bool {
        true
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.command.as_mut()?.window()
    }

    fn direct_received(&mut self, _now: Instant, window: DirectRecv, len: usize) {
        let DirectRecv { buffer, start, end, .. } = window;
        if start.saturating_add(len) == end {
            return self.arrived(buffer);
        }
        // A short packet: the host has sent less than it has announced.
        let Some(command) = &mut self.command else { return };
        command.incoming = None;
        command.in_flight = command.in_flight.saturating_sub(self.blocked.len());
        self.blocked.clear();
        command.moved = command.moved.saturating_add(command.left_out());
        command.work = Work::Ended(Status::PhaseError);
        self.advance();
    }
}
