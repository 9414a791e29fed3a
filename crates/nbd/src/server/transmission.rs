//! Requests: taken from the stream, checked, carried out in pieces, and answered (NBD, Transmission phase). What is
//! particular to reads, writes and block status is in files of their names.

use export::{
    Buffer, Denied, Event, Extent, Fault, Op, Outcome, PAGE, Pool, Request, Step, Ticket,
};

use super::answer::{Mode, To};
use super::command::{Command, Header};
use super::fault::errno;
use super::session::{Link, Phase, Session};
use super::slots::{Slot, Work, of_ticket, ticket};
use super::write::Incoming;
use super::{DRAIN, HELD, MAX_PAYLOAD, PIECE, Violation};
use crate::wire::errno::{EINVAL, EOVERFLOW, ESHUTDOWN};

impl Session {
    /// A request's header is to come.
    pub(super) fn request(&mut self, left: &[u8]) -> Result<usize, Violation> {
        let mode = self.mode();
        let Some((header, len)) = Header::parse(left, mode)? else { return Ok(0) };
        let payload = header.payload(mode);
        match self.check(&header) {
            Ok((Command::Disc, _)) => self.phase = Phase::Leaving,
            Ok((command, blocks)) => self.begin(&header, command, blocks),
            Err(_) if payload > DRAIN => return Err(Violation::PayloadTooLong),
            Err(error) => self.refuse(&header, payload, error),
        }
        Ok(len)
    }

    /// What a request asks for, and the blocks that it concerns, or the error that answers it.
    fn check(&self, header: &Header) -> Result<(Command, (u64, u64)), u32> {
        let link = self.link.as_ref().ok_or(EINVAL)?;
        let command = Command::parse(header, link.mode, link.flags, link.status)?;
        if self.phase == Phase::Stopping && command != Command::Disc {
            return Err(ESHUTDOWN);
        }
        let blocks = match command {
            Command::Disc => (0, 0),
            Command::Flush if (header.offset, header.len) != (0, 0) => return Err(EINVAL),
            _ => link.blocks(command.op(), header.offset, header.len)?,
        };
        if !command.is_offered(link.flags) {
            return Err(EINVAL);
        }
        link.shape(command, header, blocks).map(|blocks| (command, blocks))
    }

    /// Answers a request with an error, once its payload has come.
    fn refuse(&mut self, header: &Header, payload: u64, error: u32) {
        let to = To { cookie: header.cookie, offset: header.offset };
        if payload == 0 {
            self.answer(to, error, true);
        } else {
            self.incoming = Some(Incoming::Refused { left: payload, to, error });
        }
    }

    fn begin(&mut self, header: &Header, command: Command, (first, end): (u64, u64)) {
        let simple = self.mode() == Mode::Simple;
        let work = match command {
            Command::Read { .. } if simple && end - first > PIECE => Work::Long,
            command => Work::Command(command),
        };
        let asked = (header.offset, header.len);
        let slot = Slot::new(header.cookie, asked, work, (first, end));
        let Some(at) = self.slots.claim(slot) else { return };
        match work {
            Work::Long => self.queue_long(at),
            Work::Command(Command::Flush) => self.submit(at, Op::Flush, (0, 0), None),
            Work::Command(Command::Write { .. }) => self.expect_payload(at, header.len),
            _ => self.advance(at),
        }
    }

    /// Asks the disk for as many pieces as may be under way, and ends the request if there are no more.
    pub(super) fn advance(&mut self, at: u8) {
        while self.slots.get(at).is_some_and(|slot| slot.has_more()) {
            if !self.issue(at) {
                self.starve(at);
                break;
            }
        }
        self.settle(at);
    }

    /// Asks the disk for the next piece. Tells whether there was memory for it.
    fn issue(&mut self, at: u8) -> bool {
        let Some(slot) = self.slots.get(at) else { return true };
        let start = slot.next;
        let len = slot.piece().min(slot.end - start);
        let (op, work, piece) = (slot.op(), slot.work, slot.piece_at(start));
        let buffer = match memory_for(work, len) {
            0 => None,
            want => match self.take(at, work, piece, want) {
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

    /// Memory for a piece; none while others wait for it, so that none waits for ever, nor while too much waits to be sent.
    fn take(&mut self, at: u8, work: Work, piece: u32, len: usize) -> Option<Buffer> {
        if work == Work::Long {
            return self.long.as_ref()?.take(piece, len);
        }
        let turn = self.starved.front().is_none_or(|&first| first == at);
        if turn && self.reads.held() < HELD { self.reads.take(len) } else { None }
    }

    fn starve(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at) else { return };
        if slot.work != Work::Long && !std::mem::replace(&mut slot.starving, true) {
            self.starved.push_back(at);
        }
    }

    /// Goes on with what had to wait for memory, a piece of each in turn.
    pub(super) fn feed(&mut self) {
        if let Some(at) = self.long.as_ref().map(|long| long.slot()) {
            self.advance(at);
        }
        if self.incoming.as_ref().is_some_and(Incoming::is_stalled) {
            self.prepare();
        }
        while let Some(&at) = self.starved.front() {
            if !self.issue(at) {
                return;
            }
            self.rotate(at);
        }
    }

    /// The first of those that wait for memory has got some: it is the last of them now, or none of them.
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

    /// Asks the disk for a piece: so many bytes from there on.
    pub(super) fn submit(
        &mut self,
        at: u8,
        op: Op,
        (start, len): (u64, u64),
        buffer: Option<Buffer>,
    ) {
        let shift = self.link.as_ref().map_or(0, |link| link.grant.export().geometry.shift());
        let Some(slot) = self.slots.get(at) else { return };
        slot.under_way += 1;
        let ticket = ticket(at, slot.piece_at(start));
        self.admit(Request { op, lba: start >> shift, blocks: len >> shift, buffer, ticket });
    }

    /// Through the gate, now or when no other request has the disk for itself.
    pub(super) fn admit(&mut self, request: Request) {
        let Some(link) = &self.link else { return };
        match link.grant.admit(request) {
            Ok(admitted) => {
                self.on_disk += 1;
                self.out.push_back(Step::Submit(admitted));
            }
            Err(denied) => {
                let Denied { fault, request } = *denied;
                if fault == Fault::Busy {
                    if link.grant.export().was_released() {
                        self.out.push_back(Step::Notify);
                    }
                    return self.contending.push_back(request);
                }
                let outcome = Outcome { result: Err(fault), buffer: request.buffer };
                self.ended(&request.ticket, outcome, false);
            }
        }
    }

    /// A piece has ended; `tried` tells whether the disk had it.
    pub(super) fn ended(&mut self, ticket: &Ticket, outcome: Outcome, tried: bool) {
        let (at, piece) = of_ticket(ticket);
        let Some(slot) = self.slots.get(at) else { return };
        slot.under_way = slot.under_way.saturating_sub(1);
        let work = slot.work;
        let result = outcome.result.or_else(|fault| harmless(work, fault));
        if let Err(fault) = result {
            self.failed(at, piece, fault, tried);
        }
        let buffer = outcome.buffer.filter(|_| result.is_ok());
        match work {
            Work::Command(Command::Read { .. }) => self.read_ended(at, piece, buffer),
            Work::Command(Command::Status { .. }) => {
                self.status_ended(at, buffer, outcome.result.is_ok());
            }
            Work::Long => self.long_ended(at, piece, buffer),
            _ => self.advance(at),
        }
    }

    /// Takes note that a piece failed.
    fn failed(&mut self, at: u8, piece: u32, fault: Fault, tried: bool) {
        let Some(slot) = self.slots.get(at) else { return };
        let op = slot.op();
        slot.error = if slot.error == 0 { errno(fault, op) } else { slot.error };
        let offset = slot.start_of(piece);
        let len = slot.piece().min(slot.end.saturating_sub(offset));
        let Some(link) = self.link.as_ref().filter(|_| tried && is_news(fault)) else { return };
        let (export, op) = (link.grant.export().clone(), op.name());
        self.out.push_back(Step::Report(Event::Fault { export, op, offset, len, fault }));
    }

    /// Ends a request of which nothing more is to come.
    pub(super) fn settle(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at).filter(|slot| slot.is_done()) else { return };
        match slot.work {
            Work::Free => {}
            Work::Long => self.end_long(at),
            Work::Command(Command::Trim { durable: true }) if slot.error == 0 => {
                slot.work = Work::Settle;
                self.submit(at, Op::Flush, (0, 0), None);
            }
            Work::Command(_) | Work::Settle => self.conclude(at),
        }
    }

    /// Sends the one reply to a request.
    fn conclude(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at) else { return };
        let (to, error, op, len) =
            (To { cookie: slot.cookie, offset: slot.offset }, slot.error, slot.op(), slot.len);
        let read = matches!(op, Op::Read | Op::Extents);
        if let (0, Op::Write { .. } | Op::Zero { .. }, Some(link)) = (error, op, &mut self.link) {
            link.written = link.written.saturating_add(len);
        }
        self.answer(to, error, read);
        self.release(at);
    }

    pub(super) fn release(&mut self, at: u8) {
        if self.slots.get(at).is_some_and(|slot| slot.starving) {
            self.starved.retain(|&other| other != at);
        }
        self.slots.release(at);
    }

    /// Refuses what the disk was not asked for yet.
    pub(super) fn cut_short(&mut self) {
        for request in std::mem::take(&mut self.contending) {
            let outcome = Outcome { result: Err(Fault::Gone), buffer: None };
            self.ended(&request.ticket, outcome, false);
        }
        for at in self.slots.busy() {
            if let Some(slot) = self.slots.get(at) {
                let whole = slot.next >= slot.end && !slot.filling;
                if slot.error == 0 && !whole {
                    (slot.error, slot.unsaid) = (ESHUTDOWN, true);
                }
            }
            self.settle(at);
        }
    }
}

impl Link {
    /// The bytes of the blocks that a range concerns, if the gate lets it through.
    fn blocks(&self, op: Op, offset: u64, len: u64) -> Result<(u64, u64), u32> {
        let shift = self.grant.export().geometry.shift();
        // A sum that does not fit is beyond every disk's end.
        let past = offset.saturating_add(len);
        let (lba, rest) = (offset >> shift, past & self.mask());
        let end = (past >> shift) + u64::from(rest != 0);
        let count = if len == 0 { 0 } else { end - lba };
        let (first, bytes) =
            self.grant.permits(op, lba, count).map_err(|fault| errno(fault, op))?;
        // The last block may be only a part of one.
        if past > self.grant.export().bytes() {
            return Err(errno(Fault::OutOfRange, op));
        }
        Ok((first, first.saturating_add(bytes)))
    }

    fn mask(&self) -> u64 {
        u64::from(self.grant.export().geometry.block()) - 1
    }

    /// The rules for the length and the alignment of each command; a trim is shrunk to whole blocks.
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

    /// The blocks that lie wholly within a range.
    fn shrink(&self, offset: u64, len: u64) -> (u64, u64) {
        let mask = self.mask();
        let first = offset.saturating_add(mask) & !mask;
        let end = offset.saturating_add(len) & !mask;
        (first, end.max(first))
    }
}

/// Bytes of memory that a piece of `len` bytes needs.
fn memory_for(work: Work, len: u64) -> usize {
    match work {
        Work::Long | Work::Command(Command::Read { .. }) => {
            usize::try_from(len).unwrap_or(usize::MAX)
        }
        Work::Command(Command::Status { one: true }) => Extent::LEN,
        Work::Command(Command::Status { .. }) => PAGE,
        _ => 0,
    }
}

/// That a disk cannot drop blocks, or does not know what it stores, is no error.
fn harmless(work: Work, fault: Fault) -> Result<(), Fault> {
    let hint = matches!(
        work,
        Work::Command(Command::Trim { .. } | Command::Cache | Command::Status { .. })
    );
    if hint && fault == Fault::Unsupported { Ok(()) } else { Err(fault) }
}

/// Whether the disk's owner should hear of it.
fn is_news(fault: Fault) -> bool {
    !matches!(fault, Fault::Gone | Fault::Unsupported | Fault::Busy)
}
