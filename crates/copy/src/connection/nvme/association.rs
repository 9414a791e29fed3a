//! One association with a target: requests become commands on its I/O queue, and its Admin queue
//! sends Keep Alive.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use client::{Driver, QueueError};
use export::{Account, Buffer, Pool};
use nvme::command::{AdminCommand, IoCommand};
use nvme::host::{self, CloseReason, Payload, Queue, Step, SubmitError};
use nvme::status::Status;

use crate::connection::retries::{Attempts, Cause, Retries};
use crate::connection::{Completion, Connection, ConnectionLost, Interest, Request, RequestError};

/// Number of Keep Alive commands sent per keep-alive timeout.
const KEEP_ALIVES_PER_TIMEOUT: u32 = 6;

/// Number of intervals after which an unanswered Keep Alive means that the connection is lost.
/// Independent of how slow the disk is.
const UNANSWERED_INTERVALS: u32 = 2;

/// Memory for parts of buffers that are written separately, in bytes.
const SPLIT_MEMORY: usize = 64 << 20;

pub(super) struct NvmeAssociation {
    admin: Driver<Queue>,
    io: Driver<Queue>,
    /// Maximum commands in flight.
    entries: u16,
    nsid: u32,
    shift: u8,
    memory: Account,
    in_flight: Vec<Entry>,
    /// Commands to be sent again, and the buffers of reads.
    retries: Retries<(Entry, Option<Buffer>)>,
    completions: VecDeque<Completion>,
    /// Time between two Keep Alive commands.
    keep_alive_interval: Duration,
    /// When the next Keep Alive is due.
    next_keep_alive: Instant,
    /// When the unanswered Keep Alive was sent.
    keep_alive_sent: Option<Instant>,
    /// When the I/O queue last became busy.
    busy_since: Instant,
    /// How long the target may leave all commands unanswered.
    timeout: Duration,
}

/// A request in flight.
struct Entry {
    tag: u32,
    kind: Kind,
    command: IoCommand,
    attempts: Attempts,
    /// The sent buffer; has further references until it is completely sent.
    sent: Option<Rc<Buffer>>,
    /// The caller's buffer, if a copy of a part of it is sent.
    whole: Option<Buffer>,
    /// The result of a write whose buffer is still needed for sending.
    result: Option<Result<(), RequestError>>,
}

impl Entry {
    /// Whether it is complete and its buffer free.
    fn can_complete(&self) -> bool {
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

impl NvmeAssociation {
    /// A connection from connected Admin and I/O queues. The I/O queue has `entries` entries.
    pub(super) fn new(
        [admin, io]: [Driver<Queue>; 2],
        entries: u16,
        nsid: u32,
        shift: u8,
        keep_alive: Duration,
        timeout: Duration,
    ) -> Self {
        let keep_alive_interval = keep_alive / KEEP_ALIVES_PER_TIMEOUT;
        Self {
            admin,
            io,
            entries: entries.saturating_sub(1),
            nsid,
            shift,
            memory: Pool::new(SPLIT_MEMORY).open(),
            in_flight: Vec::new(),
            retries: Retries::new(entries.into()),
            completions: VecDeque::new(),
            keep_alive_interval,
            next_keep_alive: Instant::now() + keep_alive_interval,
            keep_alive_sent: None,
            busy_since: Instant::now(),
            timeout,
        }
    }

    /// First block and number of blocks; `None` if the range is not aligned, or too long for one
    /// command.
    fn blocks(&self, offset: u64, len: u64) -> Option<(u64, u32)> {
        let mask = (1_u64 << self.shift) - 1;
        let nlb = u32::try_from(len >> self.shift).ok()?;
        let fits = (offset | len) & mask == 0 && (1..=1 << 16).contains(&nlb);
        fits.then_some((offset >> self.shift, nlb))
    }

    fn complete_with_error(&mut self, tag: u32, error: RequestError, buffer: Option<Buffer>) {
        self.completions.push_back(Completion::new(tag, Err(error), buffer));
    }

    fn read(&mut self, tag: u32, offset: u64, buffer: Buffer) {
        let Some((slba, nlb)) = self.blocks(offset, buffer.len() as u64) else {
            return self.complete_with_error(tag, RequestError::OutOfRange, Some(buffer));
        };
        let (nsid, limited_retry) = (self.nsid, false);
        let command = IoCommand::Read { nsid, slba, nlb, fua: false, limited_retry };
        self.send_command(tag, Kind::Read, command, Payload::Receive(buffer), None);
    }

    fn write(&mut self, tag: u32, offset: u64, buffer: Buffer, part: std::ops::Range<usize>) {
        let Some((slba, nlb)) = self.blocks(offset, part.len() as u64) else {
            return self.complete_with_error(tag, RequestError::OutOfRange, Some(buffer));
        };
        let (sent, whole) = match part == (0..buffer.len()) {
            true => (buffer, None),
            false => match self.copy(&buffer, part) {
                Some(copy) => (copy, Some(buffer)),
                None => return self.complete_with_error(tag, RequestError::Refused, Some(buffer)),
            },
        };
        let (nsid, limited_retry) = (self.nsid, false);
        let command = IoCommand::Write { nsid, slba, nlb, fua: false, limited_retry };
        self.send_command(tag, Kind::Write, command, Payload::Send(Rc::new(sent)), whole);
    }

    /// A copy of a part of a buffer.
    fn copy(&self, from: &Buffer, part: std::ops::Range<usize>) -> Option<Buffer> {
        let bytes = from.bytes().get(part)?;
        let mut copy = self.memory.take(bytes.len())?;
        copy.bytes_mut().copy_from_slice(bytes);
        Some(copy)
    }

    fn zero(&mut self, tag: u32, offset: u64, len: u64) {
        let Some((slba, nlb)) = self.blocks(offset, len) else {
            return self.complete_with_error(tag, RequestError::Unsupported, None);
        };
        let (nsid, fua, deallocate) = (self.nsid, false, true);
        let command = IoCommand::WriteZeroes { nsid, slba, nlb, fua, deallocate };
        self.send_command(tag, Kind::Zero, command, Payload::None, None);
    }

    fn send_command(
        &mut self,
        tag: u32,
        kind: Kind,
        command: IoCommand,
        payload: Payload,
        whole: Option<Buffer>,
    ) {
        let (sent, buffer) = match payload {
            Payload::Send(buffer) => (Some(buffer), None),
            Payload::Receive(buffer) => (None, Some(buffer)),
            Payload::None | Payload::SendByR2t(_) => (None, None),
        };
        let attempts = Attempts::begin();
        let entry = Entry { tag, kind, command, attempts, sent, whole, result: None };
        self.send(entry, buffer);
    }

    /// Sends a command; what a read receives goes to `buffer`.
    fn send(&mut self, entry: Entry, buffer: Option<Buffer>) {
        let payload = match (buffer, &entry.sent) {
            (Some(buffer), _) => Payload::Receive(buffer),
            (None, Some(sent)) => Payload::Send(sent.clone()),
            (None, None) => Payload::None,
        };
        match self.io.session_mut().submit(entry.command.emit(), payload, entry.tag) {
            Ok(_) => self.in_flight.push(entry),
            Err(SubmitError::Full(payload) | SubmitError::NotConnected(payload)) => {
                let Entry { tag, sent, whole, .. } = entry;
                drop(sent);
                let buffer = match payload {
                    Payload::Receive(buffer) => Some(buffer),
                    Payload::Send(buffer) => whole.or_else(|| Rc::try_unwrap(buffer).ok()),
                    _ => None,
                };
                self.complete_with_error(tag, RequestError::Refused, buffer);
            }
        }
    }

    /// Sends the commands whose pause is over.
    fn resend(&mut self) {
        while let Some((entry, buffer)) = self.retries.next(self.in_flight.len()) {
            if self.in_flight.is_empty() {
                self.busy_since = Instant::now();
            }
            self.send(entry, buffer);
        }
    }

    fn process_steps(&mut self) -> Result<(), ConnectionLost> {
        while let Some(step) = self.io.poll() {
            match step {
                Step::Completed(done) => self.handle_completed(done)?,
                Step::Close(end) => return Err(lost(end)),
                _ => {}
            }
        }
        Ok(())
    }

    fn handle_completed(&mut self, done: host::Completion) -> Result<(), ConnectionLost> {
        let host::Completion { tag, status, buffer, .. } = done;
        let Some(at) = self.in_flight.iter().position(|entry| entry.tag == tag) else {
            return Ok(());
        };
        let mut entry = self.in_flight.swap_remove(at);
        let cause = cause_of(status);
        if cause.is_some_and(|cause| entry.attempts.again(cause, self.timeout)) {
            self.retries.postpone((entry, buffer));
            return Ok(());
        }
        let result = match cause {
            Some(Cause::Busy) => Err(RequestError::Busy),
            _ => result_of(status, entry.kind)?,
        };
        if result.is_ok() {
            self.retries.succeeded();
        }
        match entry.kind {
            Kind::Write => {
                entry.result = Some(result);
                self.complete_write(entry);
            }
            _ => {
                self.completions.push_back(Completion { tag, result, buffer, extents: Vec::new() })
            }
        }
        Ok(())
    }

    /// Completes a write, unless its buffer is still needed for sending.
    fn complete_write(&mut self, mut entry: Entry) {
        let (Some(sent), Some(result)) = (entry.sent.take(), entry.result) else { return };
        match Rc::try_unwrap(sent) {
            Ok(sent) => {
                let buffer = Some(entry.whole.unwrap_or(sent));
                self.completions.push_back(Completion {
                    tag: entry.tag,
                    result,
                    buffer,
                    extents: Vec::new(),
                });
            }
            Err(sent) => self.in_flight.push(Entry { sent: Some(sent), ..entry }),
        }
    }

    fn complete_answered_writes(&mut self) {
        while let Some(at) = self.in_flight.iter().position(Entry::can_complete) {
            let entry = self.in_flight.swap_remove(at);
            self.complete_write(entry);
        }
    }

    /// When the target must have answered one of the commands in flight; `None` if there are none.
    fn response_deadline(&self) -> Option<Instant> {
        (!self.in_flight.is_empty())
            .then(|| self.io.last_received().max(self.busy_since) + self.timeout)
    }

    /// Sends Keep Alive when it is due, and checks that the target answers it.
    fn keep_alive(&mut self, now: Instant) -> Result<(), ConnectionLost> {
        self.admin.exchange().map_err(ConnectionLost::new)?;
        while let Some(step) = self.admin.poll() {
            match step {
                Step::Completed(done) if done.status.is_success() => self.keep_alive_sent = None,
                Step::Completed(done) => return Err(ConnectionLost::new(done.status)),
                Step::Close(end) => return Err(lost(end)),
                _ => {}
            }
        }
        if self.keep_alive_sent.is_some_and(|sent| {
            now.saturating_duration_since(sent) >= self.keep_alive_interval * UNANSWERED_INTERVALS
        }) {
            let seconds = (self.keep_alive_interval * UNANSWERED_INTERVALS).as_secs();
            return Err(ConnectionLost::new(format!(
                "the target does not answer for {seconds} seconds"
            )));
        }
        self.next_keep_alive = now + self.keep_alive_interval;
        if self.keep_alive_sent.is_none() {
            let command = AdminCommand::KeepAlive.emit();
            let sent = self.admin.session_mut().submit(command, Payload::None, 0);
            sent.map_err(|_| ConnectionLost::new("the Admin queue is full"))?;
            self.keep_alive_sent = Some(now);
            while self.admin.poll().is_some() {}
            self.admin.flush().map_err(ConnectionLost::new)?;
        }
        Ok(())
    }
}

/// The loss of the association when a queue is closed.
fn lost(end: CloseReason) -> ConnectionLost {
    let error = QueueError::Closed(end);
    match error.is_violation() {
        true => ConnectionLost::violation(error),
        false => ConnectionLost::new(error),
    }
}

/// Returns why to send a command again on this association, if there is a reason: the status says
/// that it may succeed (NVMe Base 2.0 §4.2.3, Do Not Retry). A namespace that is not ready may be
/// another one when it is: a new association compares it.
fn cause_of(status: Status) -> Option<Cause> {
    match status.code() {
        _ if status.is_dnr() => None,
        Status::COMMAND_INTERRUPTED | Status::TRANSIENT_TRANSPORT_ERROR => Some(Cause::Busy),
        Status::INTERNAL_ERROR | Status::DATA_TRANSFER_ERROR => Some(Cause::Aborted),
        _ => None,
    }
}

/// Maps a status to the result of a request, or to the loss of the association.
fn result_of(status: Status, kind: Kind) -> Result<Result<(), RequestError>, ConnectionLost> {
    if status.is_success() {
        return Ok(Ok(()));
    }
    let failed = match status.code() {
        // Transient: the command can be sent again on a new association.
        Status::NAMESPACE_NOT_READY
        | Status::COMMAND_INTERRUPTED
        | Status::TRANSIENT_TRANSPORT_ERROR
        | Status::ABORTED_SQ_DELETION
        | Status::ABORTED_POWER_LOSS => return Err(ConnectionLost::new(status)),
        Status::CAPACITY_EXCEEDED => RequestError::NoSpace,
        Status::NAMESPACE_WRITE_PROTECTED
        | Status::WRITE_TO_READ_ONLY_RANGE
        | Status::ACCESS_DENIED
        | Status::OPERATION_DENIED => RequestError::ReadOnly,
        Status::LBA_OUT_OF_RANGE => RequestError::OutOfRange,
        code if code.sct() == 2 => RequestError::Media,
        code if code.sct() == 3 => return Err(ConnectionLost::new(status)),
        _ if kind == Kind::Zero => RequestError::Unsupported,
        Status::INVALID_OPCODE => RequestError::Unsupported,
        _ => RequestError::Refused,
    };
    Ok(Err(failed))
}

impl Connection for NvmeAssociation {
    fn submit(&mut self, tag: u32, request: Request) {
        if self.in_flight.is_empty() {
            self.busy_since = Instant::now();
        }
        match request {
            Request::Read { offset, buffer } => self.read(tag, offset, buffer),
            Request::Write { offset, buffer, part } => self.write(tag, offset, buffer, part),
            Request::Zero { offset, len } => self.zero(tag, offset, len),
            Request::Flush => {
                let command = IoCommand::Flush { nsid: self.nsid };
                self.send_command(tag, Kind::Flush, command, Payload::None, None);
            }
            Request::Extents { .. } => {
                self.complete_with_error(tag, RequestError::Unsupported, None)
            }
        }
    }

    fn free_slots(&self) -> usize {
        let submitted = self.io.session().in_flight().into();
        let free = usize::from(self.entries).saturating_sub(self.in_flight.len().max(submitted));
        free.min(self.retries.room(self.in_flight.len()))
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        self.process_steps()?;
        self.io.exchange().map_err(ConnectionLost::new)?;
        self.process_steps()?;
        self.resend();
        self.process_steps()?;
        // Data for an R2T that was just received.
        self.io.flush().map_err(ConnectionLost::new)?;
        self.complete_answered_writes();
        let now = Instant::now();
        if self.response_deadline().is_some_and(|end| now >= end) {
            return Err(ConnectionLost::silent(self.timeout));
        }
        if now >= self.next_keep_alive { self.keep_alive(now) } else { Ok(()) }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    fn interest(&self) -> Interest<'_> {
        match self.in_flight.is_empty() && self.retries.is_empty() {
            true => Interest::None,
            false => Interest::Fd(self.io.as_fd(), self.io.poll_flags()),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let others = self.response_deadline().into_iter().chain(self.retries.resume_at());
        others.chain([self.next_keep_alive]).min()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_statuses_that_may_be_retried_are() {
        for (status, cause) in [
            (Status::COMMAND_INTERRUPTED, Some(Cause::Busy)),
            (Status::TRANSIENT_TRANSPORT_ERROR, Some(Cause::Busy)),
            (Status::INTERNAL_ERROR, Some(Cause::Aborted)),
            (Status::INTERNAL_ERROR.dnr(), None),
            (Status::COMMAND_INTERRUPTED.dnr(), None),
            (Status::NAMESPACE_NOT_READY, None),
            (Status::INVALID_FIELD, None),
            (Status::WRITE_FAULT, None),
        ] {
            assert_eq!(cause_of(status), cause, "{status}");
        }
    }
}
