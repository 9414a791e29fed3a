//! One association with a target: works become commands of its I/O queue, and its Admin queue keeps it alive. It knows not
//! how it came about.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use export::{Account, Buffer, Pool};
use nvme::command::{AdminCommand, IoCommand};
use nvme::host::{Done, NotNow, Payload, Step};
use nvme::status::Status;

use super::talk::{self, Talk};
use crate::lane::{Ended, Failed, Lane, Lost, SILENCE, Waits, Work};

/// The target is told that this host is there so many times in the time in which it must be.
const BEATS: u32 = 6;

/// It may take so many beats to answer a Keep Alive; a disk that takes long does not matter.
const BEATS_UNANSWERED: u32 = 2;

/// Memory for parts of buffers that are written by themselves, in bytes.
const PARTS: usize = 64 << 20;

/// One association.
pub(super) struct NvmeLane {
    admin: Talk,
    io: Talk,
    /// Commands that can be under way.
    entries: u16,
    nsid: u32,
    shift: u8,
    memory: Account,
    under_way: Vec<Entry>,
    ended: VecDeque<Ended>,
    /// Time between two Keep Alives.
    beat: Duration,
    /// When the next one is due.
    due: Instant,
    /// When the last one was sent, if it was not answered.
    unanswered: Option<Instant>,
    /// When the first of the commands in flight was submitted.
    since: Instant,
}

/// A work under way.
struct Entry {
    tag: u32,
    kind: Kind,
    /// What is sent; more than one as long as it is not all sent.
    sent: Option<Rc<Buffer>>,
    /// The caller's buffer, if what is sent is a copy of a part of it.
    whole: Option<Buffer>,
    /// How it ended, if it could not be told because its memory was still needed.
    result: Option<Result<(), Failed>>,
}

impl Entry {
    /// Whether it was answered, and its memory is needed no longer.
    fn is_late_no_more(&self) -> bool {
        let free = self.sent.as_ref().is_some_and(|sent| Rc::strong_count(sent) == 1);
        self.result.is_some() && free
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zero,
    Flush,
}

impl NvmeLane {
    /// The lane of a connected Admin queue and an I/O queue of `entries` entries.
    pub(super) fn new(
        [admin, io]: [Talk; 2],
        entries: u16,
        nsid: u32,
        shift: u8,
        keep_alive: Duration,
    ) -> Self {
        let beat = keep_alive / BEATS;
        Self {
            admin,
            io,
            entries: entries.saturating_sub(1),
            nsid,
            shift,
            memory: Pool::new(PARTS).open(),
            under_way: Vec::new(),
            ended: VecDeque::new(),
            beat,
            due: Instant::now() + beat,
            unanswered: None,
            since: Instant::now(),
        }
    }

    /// First block and number of blocks, if it is whole blocks and not too many.
    fn blocks(&self, offset: u64, len: u64) -> Option<(u64, u32)> {
        let mask = (1_u64 << self.shift) - 1;
        let nlb = u32::try_from(len >> self.shift).ok()?;
        let fits = (offset | len) & mask == 0 && (1..=1 << 16).contains(&nlb);
        fits.then_some((offset >> self.shift, nlb))
    }

    fn refuse(&mut self, tag: u32, failed: Failed, buffer: Option<Buffer>) {
        self.ended.push_back(Ended { tag, result: Err(failed), buffer, extents: Vec::new() });
    }

    fn read(&mut self, tag: u32, offset: u64, buffer: Buffer) {
        let Some((slba, nlb)) = self.blocks(offset, buffer.len() as u64) else {
            return self.refuse(tag, Failed::OutOfRange, Some(buffer));
        };
        let (nsid, limited_retry) = (self.nsid, false);
        let command = IoCommand::Read { nsid, slba, nlb, fua: false, limited_retry };
        self.enter(tag, Kind::Read, command, Payload::Receive(buffer), None);
    }

    fn write(&mut self, tag: u32, offset: u64, buffer: Buffer, part: std::ops::Range<usize>) {
        let Some((slba, nlb)) = self.blocks(offset, part.len() as u64) else {
            return self.refuse(tag, Failed::OutOfRange, Some(buffer));
        };
        let (sent, whole) = match part == (0..buffer.len()) {
            true => (buffer, None),
            false => match self.copy(&buffer, part) {
                Some(copy) => (copy, Some(buffer)),
                None => return self.refuse(tag, Failed::Refused, Some(buffer)),
            },
        };
        let (nsid, limited_retry) = (self.nsid, false);
        let command = IoCommand::Write { nsid, slba, nlb, fua: false, limited_retry };
        self.enter(tag, Kind::Write, command, Payload::Send(Rc::new(sent)), whole);
    }

    /// A buffer with that part of another.
    fn copy(&self, from: &Buffer, part: std::ops::Range<usize>) -> Option<Buffer> {
        let bytes = from.bytes().get(part)?;
        let mut copy = self.memory.take(bytes.len())?;
        copy.bytes_mut().copy_from_slice(bytes);
        Some(copy)
    }

    fn zero(&mut self, tag: u32, offset: u64, len: u64) {
        let Some((slba, nlb)) = self.blocks(offset, len) else {
            return self.refuse(tag, Failed::Unsupported, None);
        };
        let (nsid, fua, deallocate) = (self.nsid, false, true);
        let command = IoCommand::WriteZeroes { nsid, slba, nlb, fua, deallocate };
        self.enter(tag, Kind::Zero, command, Payload::None, None);
    }

    fn enter(
        &mut self,
        tag: u32,
        kind: Kind,
        command: IoCommand,
        payload: Payload,
        whole: Option<Buffer>,
    ) {
        let sent = match &payload {
            Payload::Send(buffer) => Some(buffer.clone()),
            _ => None,
        };
        match self.io.queue.submit(command.emit(), payload, tag) {
            Ok(_) => self.under_way.push(Entry { tag, kind, sent, whole, result: None }),
            Err(NotNow::Full(payload) | NotNow::NotConnected(payload)) => {
                drop(sent);
                let buffer = match payload {
                    Payload::Receive(buffer) => Some(buffer),
                    Payload::Send(buffer) => whole.or_else(|| Rc::try_unwrap(buffer).ok()),
                    _ => None,
                };
                self.refuse(tag, Failed::Refused, buffer);
            }
        }
    }

    fn take_steps(&mut self) -> Result<(), Lost> {
        while let Some(step) = self.io.poll() {
            match step {
                Step::Done(done) => self.done(done)?,
                Step::Close(end) => return Err(talk::lost(end)),
                _ => {}
            }
        }
        Ok(())
    }

    fn done(&mut self, done: Done) -> Result<(), Lost> {
        let Done { tag, status, buffer, .. } = done;
        let Some(at) = self.under_way.iter().position(|entry| entry.tag == tag) else {
            return Ok(());
        };
        let mut entry = self.under_way.swap_remove(at);
        let result = judge(status, entry.kind)?;
        match entry.kind {
            Kind::Write => {
                entry.result = Some(result);
                self.end_write(entry);
            }
            _ => self.ended.push_back(Ended { tag, result, buffer, extents: Vec::new() }),
        }
        Ok(())
    }

    /// Ends a write, unless its memory is still needed for sending.
    fn end_write(&mut self, mut entry: Entry) {
        let (Some(sent), Some(result)) = (entry.sent.take(), entry.result) else { return };
        match Rc::try_unwrap(sent) {
            Ok(sent) => {
                let buffer = Some(entry.whole.unwrap_or(sent));
                self.ended.push_back(Ended { tag: entry.tag, result, buffer, extents: Vec::new() });
            }
            Err(sent) => self.under_way.push(Entry { sent: Some(sent), ..entry }),
        }
    }

    fn end_late_writes(&mut self) {
        while let Some(at) = self.under_way.iter().position(Entry::is_late_no_more) {
            let entry = self.under_way.swap_remove(at);
            self.end_write(entry);
        }
    }

    /// When the target has answered none of the commands in flight for too long; nothing without any.
    fn overdue(&self) -> Option<Instant> {
        (!self.under_way.is_empty()).then(|| self.io.line.heard().max(self.since) + SILENCE)
    }

    /// Tells the target that this host is there, and sees that the target is.
    fn keep_alive(&mut self, now: Instant) -> Result<(), Lost> {
        self.admin.advance().map_err(Lost::new)?;
        while let Some(step) = self.admin.poll() {
            match step {
                Step::Done(done) if done.status.is_success() => self.unanswered = None,
                Step::Done(done) => return Err(Lost::new(done.status)),
                Step::Close(end) => return Err(talk::lost(end)),
                _ => {}
            }
        }
        if self
            .unanswered
            .is_some_and(|sent| now.saturating_duration_since(sent) >= self.beat * BEATS_UNANSWERED)
        {
            let seconds = (self.beat * BEATS_UNANSWERED).as_secs();
            return Err(Lost::new(format!("the target does not answer for {seconds} seconds")));
        }
        self.due = now + self.beat;
        if self.unanswered.is_none() {
            let command = AdminCommand::KeepAlive.emit();
            let sent = self.admin.queue.submit(command, Payload::None, 0);
            sent.map_err(|_| Lost::new("the Admin queue takes no command"))?;
            self.unanswered = Some(now);
            while self.admin.poll().is_some() {}
            self.admin.line.flush().map_err(Lost::new)?;
        }
        Ok(())
    }
}

/// What a status means for a work, or for the whole association.
fn judge(status: Status, kind: Kind) -> Result<Result<(), Failed>, Lost> {
    if status.is_success() {
        return Ok(Ok(()));
    }
    let failed = match status.code() {
        // The command can be sent again, with a new association as well as with this one.
        Status::NAMESPACE_NOT_READY
        | Status::COMMAND_INTERRUPTED
        | Status::TRANSIENT_TRANSPORT_ERROR
        | Status::ABORTED_SQ_DELETION
        | Status::ABORTED_POWER_LOSS => return Err(Lost::new(status)),
        Status::CAPACITY_EXCEEDED => Failed::NoSpace,
        Status::NAMESPACE_WRITE_PROTECTED
        | Status::WRITE_TO_READ_ONLY_RANGE
        | Status::ACCESS_DENIED
        | Status::OPERATION_DENIED => Failed::ReadOnly,
        Status::LBA_OUT_OF_RANGE => Failed::OutOfRange,
        code if code.sct() == 2 => Failed::Media,
        code if code.sct() == 3 => return Err(Lost::new(status)),
        _ if kind == Kind::Zero => Failed::Unsupported,
        Status::INVALID_OPCODE => Failed::Unsupported,
        _ => Failed::Refused,
    };
    Ok(Err(failed))
}

impl Lane for NvmeLane {
    fn submit(&mut self, tag: u32, work: Work) {
        if self.under_way.is_empty() {
            self.since = Instant::now();
        }
        match work {
            Work::Read { offset, buffer } => self.read(tag, offset, buffer),
            Work::Write { offset, buffer, part } => self.write(tag, offset, buffer, part),
            Work::Zero { offset, len } => self.zero(tag, offset, len),
            Work::Flush => {
                let command = IoCommand::Flush { nsid: self.nsid };
                self.enter(tag, Kind::Flush, command, Payload::None, None);
            }
            Work::Extents { .. } => self.refuse(tag, Failed::Unsupported, None),
        }
    }

    fn room(&self) -> usize {
        let under_way = self.io.queue.under_way().into();
        usize::from(self.entries).saturating_sub(self.under_way.len().max(under_way))
    }

    fn advance(&mut self) -> Result<(), Lost> {
        self.take_steps()?;
        self.io.advance().map_err(Lost::new)?;
        self.take_steps()?;
        // Data that the target has just asked for.
        self.io.line.flush().map_err(Lost::new)?;
        self.end_late_writes();
        let now = Instant::now();
        if self.overdue().is_some_and(|end| now >= end) {
            return Err(Lost::new(format!("no answer in {} seconds", SILENCE.as_secs())));
        }
        if now >= self.due { self.keep_alive(now) } else { Ok(()) }
    }

    fn ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    fn waits(&self) -> Waits<'_> {
        match self.under_way.is_empty() {
            true => Waits::Nothing,
            false => Waits::For(self.io.line.as_fd(), self.io.line.wants()),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.overdue().map_or(self.due, |end| self.due.min(end)))
    }
}
