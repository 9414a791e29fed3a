//! Requests: parsed, checked, executed in pieces and answered (NBD, Transmission phase). Reads,
//! writes and block status have their own modules.

use export::{
    Buffer, Denied, Event, Extent, Fault, Op, Outcome, PAGE, Pool, Request, Step, Ticket,
};

use super::command::{Command, Header};
use super::fault::errno;
use super::reply::{Mode, ReplyTo};
use super::session::{Attachment, Phase, Session};
use super::slots::{Slot, Task, split_ticket, ticket};
use super::write::Payload;
use super::{MAX_PAYLOAD, MAX_READ_MEMORY, MAX_SKIP, PIECE, Violation};
use crate::wire::errno::{EINVAL, EOVERFLOW, ESHUTDOWN};

impl Session {
    /// Processes the header of a request. Returns the number of bytes consumed; zero if it is
    /// incomplete.
    pub(super) fn request(&mut self, left: &[u8]) -> Result<usize, Violation> {
        let mode = self.mode();
        let Some((header, len)) = Header::parse(left, mode)? else { return Ok(0) };
        let payload = header.payload(mode);
        match self.check(&header) {
            Ok((Command::Disc, _)) => self.phase = Phase::Disconnecting,
            Ok((command, blocks)) => self.begin(&header, command, blocks),
            Err(_) if payload > MAX_SKIP => return Err(Violation::PayloadTooLong),
            Err(error) => self.refuse(&header, payload, error),
        }
        Ok(len)
    }

    /// Checks a request. Returns the command and the affected blocks in bytes, or the error value
    /// of its reply.
    fn check(&self, header: &Header) -> Result<(Command, (u64, u64)), u32> {
        let attachment = self.attachment.as_ref().ok_or(EINVAL)?;
        let command = Command::parse(header, attachment.mode, attachment.flags, attachment.status)?;
        if self.phase == Phase::Stopping && command != Command::Disc {
            return Err(ESHUTDOWN);
        }
        let blocks = match command {
            Command::Disc => (0, 0),
            Command::Flush if (header.offset, header.len) != (0, 0) => return Err(EINVAL),
            _ => attachment.blocks(command.op(), header.offset, header.len)?,
        };
        if !command.is_offered(attachment.flags) {
            return Err(EINVAL);
        }
        attachment.shape(command, header, blocks).map(|blocks| (command, blocks))
    }

    /// Answers a request with an error, after its payload has been received.
    fn refuse(&mut self, header: &Header, payload: u64, error: u32) {
        let to = ReplyTo { cookie: header.cookie, offset: header.offset };
        if payload == 0 {
            self.send_result(to, error, true);
        } else {
            self.payload = Some(Payload::Refused { left: payload, to, error });
        }
    }

    fn begin(&mut self, header: &Header, command: Command, (first, end): (u64, u64)) {
        let simple = self.mode() == Mode::Simple;
        let task = match command {
            Command::Read { .. } if simple && end - first > PIECE => Task::StreamedRead,
            command => Task::Command(command),
        };
        let asked = (header.offset, header.len);
        let slot = Slot::new(header.cookie, asked, task, (first, end));
        let Some(at) = self.slots.claim(slot) else { return };
        match task {
            Task::StreamedRead => self.queue_streamed_read(at),
            Task::Command(Command::Flush) => self.submit(at, Op::Flush, (0, 0), None),
            Task::Command(Command::Write { .. }) => self.expect_payload(at, header.len),
            _ => self.advance(at),
        }
    }

    /// Submits as many pieces as may be in flight, and completes the request if there are no more.
    pub(super) fn advance(&mut self, at: u8) {
        while self.slots.get(at).is_some_and(|slot| slot.has_more()) {
            if !self.issue(at) {
                self.mark_starved(at);
                break;
            }
        }
        self.finish_if_done(at);
    }

    /// Submits the next piece. Returns whether there was memory for it.
    fn issue(&mut self, at: u8) -> bool {
        let Some(slot) = self.slots.get(at) else { return true };
        let start = slot.next;
        let len = slot.piece().min(slot.end - start);
        let (op, task, piece) = (slot.op(), slot.task, slot.piece_at(start));
        let buffer = match memory_for(task, len) {
            0 => None,
            want => match self.take(at, task, piece, want) {
                Some(buffer) => Some(buffer),
                None => return false,
            },
        };
        if let Some(slot) = self.slots.get(at) {
            slot.next = start + len;
        }
        self.submit(at, op, (start, len), buffer);
        true
    }

    /// Allocates memory for a piece. Returns `None` while other requests wait, to prevent
    /// starvation, and while too much read data waits to be sent.
    fn take(&mut self, at: u8, task: Task, piece: u32, len: usize) -> Option<Buffer> {
        if task == Task::StreamedRead {
            return self.streamed.as_ref()?.take(piece, len);
        }
        let turn = self.starved.front().is_none_or(|&first| first == at);
        if turn && self.read_memory.held() < MAX_READ_MEMORY {
            self.read_memory.take(len)
        } else {
            None
        }
    }

    fn mark_starved(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at) else { return };
        if slot.task != Task::StreamedRead && !std::mem::replace(&mut slot.starving, true) {
            self.starved.push_back(at);
        }
    }

    /// Resumes requests that waited for memory, one piece of each in turn.
    pub(super) fn resume_starved(&mut self) {
        if let Some(at) = self.streamed.as_ref().map(|long| long.slot()) {
            self.advance(at);
        }
        if self.payload.as_ref().is_some_and(Payload::is_stalled) {
            self.allocate_piece();
        }
        while let Some(&at) = self.starved.front() {
            if !self.issue(at) {
                return;
            }
            self.rotate(at);
        }
    }

    /// Moves the first starved slot to the end of the queue, or removes it if it has no more
    /// pieces.
    fn rotate(&mut self, at: u8) {
        if self.starved.front() != Some(&at) {
            return;
        }
        self.starved.pop_front();
        if let Some(slot) = self.slots.get(at) {
            slot.starving = slot.has_more();
            if slot.starving {
                self.starved.push_back(at);
            }
        }
    }

    /// Submits a piece of `len` bytes at `start`.
    pub(super) fn submit(
        &mut self,
        at: u8,
        op: Op,
        (start, len): (u64, u64),
        buffer: Option<Buffer>,
    ) {
        let shift = self
            .attachment
            .as_ref()
            .map_or(0, |attachment| attachment.grant.export().geometry.shift());
        let Some(slot) = self.slots.get(at) else { return };
        slot.in_flight += 1;
        let ticket = ticket(at, slot.piece_at(start));
        self.admit(Request { op, lba: start >> shift, blocks: len >> shift, buffer, ticket });
    }

    /// Passes a request through the gate; queues it while another request has exclusive access to
    /// the disk.
    pub(super) fn admit(&mut self, request: Request) {
        let Some(attachment) = &self.attachment else { return };
        match attachment.grant.admit(request) {
            Ok(admitted) => {
                self.submitted += 1;
                self.out.push_back(Step::Submit(admitted));
            }
            Err(denied) => {
                let Denied { fault, request } = *denied;
                if fault == Fault::Busy {
                    if attachment.grant.export().was_released() {
                        self.out.push_back(Step::Notify);
                    }
                    return self.blocked_writes.push_back(request);
                }
                let outcome = Outcome { result: Err(fault), buffer: request.buffer };
                self.ended(&request.ticket, outcome, false);
            }
        }
    }

    /// Completes a piece. `submitted` is set if it was submitted to the driver.
    pub(super) fn ended(&mut self, ticket: &Ticket, outcome: Outcome, submitted: bool) {
        let (at, piece) = split_ticket(ticket);
        let Some(slot) = self.slots.get(at) else { return };
        slot.in_flight = slot.in_flight.saturating_sub(1);
        let task = slot.task;
        let result = outcome.result.or_else(|fault| ignore_unsupported_hint(task, fault));
        if let Err(fault) = result {
            self.failed(at, piece, fault, submitted);
        }
        let buffer = outcome.buffer.filter(|_| result.is_ok());
        match task {
            Task::Command(Command::Read { .. }) => self.read_ended(at, piece, buffer),
            Task::Command(Command::Status { .. }) => {
                self.status_ended(at, buffer, outcome.result.is_ok());
            }
            Task::StreamedRead => self.streamed_read_ended(at, piece, buffer),
            _ => self.advance(at),
        }
    }

    /// Records and reports the failure of a piece.
    fn failed(&mut self, at: u8, piece: u32, fault: Fault, submitted: bool) {
        let Some(slot) = self.slots.get(at) else { return };
        let op = slot.op();
        slot.error = if slot.error == 0 { errno(fault, op) } else { slot.error };
        let offset = slot.start_of(piece);
        let len = slot.piece().min(slot.end.saturating_sub(offset));
        let Some(attachment) = self.attachment.as_ref().filter(|_| submitted && is_reported(fault))
        else {
            return;
        };
        let (export, op) = (attachment.grant.export().clone(), op.name());
        self.out.push_back(Step::Report(Event::Fault { export, op, offset, len, fault }));
    }

    /// Completes a request that has no more pieces.
    pub(super) fn finish_if_done(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.is_done()) else { return };
        match slot.task {
            Task::Free => {}
            Task::StreamedRead => self.end_streamed_read(at),
            Task::Command(Command::Trim { durable: true }) if slot.error == 0 => {
                slot.task = Task::FinalFlush;
                self.submit(at, Op::Flush, (0, 0), None);
            }
            Task::Command(_) | Task::FinalFlush => self.finish(at),
        }
    }

    /// Sends the single reply to a request.
    fn finish(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at) else { return };
        let (to, error, op, len) =
            (ReplyTo { cookie: slot.cookie, offset: slot.offset }, slot.error, slot.op(), slot.len);
        let read = matches!(op, Op::Read | Op::Extents);
        if let (0, Op::Write { .. } | Op::Zero { .. }, Some(attachment)) =
            (error, op, &mut self.attachment)
        {
            attachment.written = attachment.written.saturating_add(len);
        }
        self.send_result(to, error, read);
        self.release(at);
    }

    pub(super) fn release(&mut self, at: u8) {
        if self.slots.get(at).is_some_and(|slot| slot.starving) {
            self.starved.retain(|&other| other != at);
        }
        self.slots.release(at);
    }

    /// Refuses everything that is not submitted yet.
    pub(super) fn refuse_unsubmitted(&mut self) {
        for request in std::mem::take(&mut self.blocked_writes) {
            let outcome = Outcome { result: Err(Fault::Gone), buffer: None };
            self.ended(&request.ticket, outcome, false);
        }
        for at in self.slots.busy() {
            if let Some(slot) = self.slots.get(at) {
                let whole = slot.next >= slot.end && !slot.receiving;
                if slot.error == 0 && !whole {
                    (slot.error, slot.error_pending) = (ESHUTDOWN, true);
                }
            }
            self.finish_if_done(at);
        }
    }
}

impl Attachment {
    /// Returns the affected blocks of a range in bytes, if the gate would admit the request.
    fn blocks(&self, op: Op, offset: u64, len: u64) -> Result<(u64, u64), u32> {
        let shift = self.grant.export().geometry.shift();
        // A saturated sum is beyond the end of every disk.
        let past = offset.saturating_add(len);
        let (lba, rest) = (offset >> shift, past & self.mask());
        let end = (past >> shift) + u64::from(rest != 0);
        let count = if len == 0 { 0 } else { end - lba };
        let (first, bytes) =
            self.grant.permits(op, lba, count).map_err(|fault| errno(fault, op))?;
        // The last block may be incomplete.
        if past > self.grant.export().bytes() {
            return Err(errno(Fault::OutOfRange, op));
        }
        Ok((first, first.saturating_add(bytes)))
    }

    fn mask(&self) -> u64 {
        u64::from(self.grant.export().geometry.block()) - 1
    }

    /// Checks length and alignment for each command. Shrinks a trim to whole blocks.
    fn shape(
        &self,
        command: Command,
        header: &Header,
        (first, end): (u64, u64),
    ) -> Result<(u64, u64), u32> {
        let long = header.len > MAX_PAYLOAD.into();
        let whole = (header.offset | header.len) & self.mask() == 0;
        match command {
            Command::Read { whole: true } if long || end - first > Pool::MAX_BUFFER as u64 => {
                Err(EOVERFLOW)
            }
            Command::Read { .. } if long => Err(EINVAL),
            Command::Write { .. } if long || !whole => Err(EINVAL),
            Command::Zero { .. } if !whole => Err(EINVAL),
            Command::Status { .. } if header.len == 0 => Err(EINVAL),
            Command::Trim { .. } => Ok(self.shrink(header.offset, header.len)),
            _ => Ok((first, end)),
        }
    }

    /// Returns the blocks that lie completely inside a range.
    fn shrink(&self, offset: u64, len: u64) -> (u64, u64) {
        let mask = self.mask();
        let first = offset.saturating_add(mask) & !mask;
        let end = offset.saturating_add(len) & !mask;
        (first, end.max(first))
    }
}

/// Returns how much memory a piece of `len` bytes needs.
fn memory_for(task: Task, len: u64) -> usize {
    match task {
        Task::StreamedRead | Task::Command(Command::Read { .. }) => {
            usize::try_from(len).unwrap_or(usize::MAX)
        }
        Task::Command(Command::Status { one: true }) => Extent::LEN,
        Task::Command(Command::Status { .. }) => PAGE,
        _ => 0,
    }
}

/// Ignores that a disk does not support a hint: trim, cache, block status.
fn ignore_unsupported_hint(task: Task, fault: Fault) -> Result<(), Fault> {
    let hint = matches!(
        task,
        Task::Command(Command::Trim { .. } | Command::Cache | Command::Status { .. })
    );
    if hint && fault == Fault::Unsupported { Ok(()) } else { Err(fault) }
}

/// Returns whether a fault is reported to the administrator.
fn is_reported(fault: Fault) -> bool {
    !matches!(fault, Fault::Gone | Fault::Unsupported | Fault::Busy)
}
