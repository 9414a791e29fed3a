//! The requests of a copy as SCSI commands of one session.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ::iscsi::host::disk::{self, DiskInfo, PROBE_LEN};
use ::iscsi::host::{Command, Data, Disposition, Done, End, Step, Violation};
use export::{Account, Buffer};

use super::{ABORTED, OpenSession};
use crate::connection::retries::{Attempts, Cause, Retries};
use crate::connection::{Completion, Connection, ConnectionLost, Interest, Request, RequestError};

/// What a command in flight is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Length in bytes.
    Read(usize),
    /// The part of the buffer that is written.
    Write(Rc<Buffer>, Range<usize>),
    Zero,
    Flush,
    /// First block and number of blocks.
    Extents(u64, u64),
}

impl Purpose {
    /// Returns whether the copy does without.
    fn is_optional(&self) -> bool {
        matches!(self, Self::Zero | Self::Extents(..))
    }
}

/// A request as a command.
#[derive(Debug)]
pub(super) struct Task {
    tag: u32,
    cdb: [u8; 16],
    purpose: Purpose,
    attempts: Attempts,
}

/// A command to be sent again, and the buffer of its answer.
pub(super) type Postponed = (Task, Option<Buffer>);

/// Command descriptor block, purpose, and the buffer of the answer.
type Translated = ([u8; 16], Purpose, Option<Buffer>);

/// One session with a disk.
pub(super) struct IscsiConnection {
    pub(super) session: OpenSession,
    pub(super) info: DiskInfo,
    pub(super) lun: u64,
    pub(super) violation: Arc<OnceLock<Violation>>,
    pub(super) memory: Account,
    /// A block of zeros.
    pub(super) zeros: Rc<Buffer>,
    /// Commands in flight.
    pub(super) in_flight: Vec<Task>,
    pub(super) retries: Retries<Postponed>,
    /// How long a target may leave all commands unanswered, and is asked again while it is busy.
    pub(super) timeout: Duration,
    /// Answered writes that are not completely sent yet, by tag.
    pub(super) answered: Vec<(u32, Rc<Buffer>, Result<(), RequestError>)>,
    pub(super) completions: VecDeque<Completion>,
    /// When the connection last became busy, or received a part of an answer to a command.
    pub(super) progressed: Instant,
    /// Bytes of such answers received until then.
    pub(super) received: u64,
}

impl IscsiConnection {
    /// Returns a range in blocks, if it is aligned and on the disk.
    fn blocks(&self, offset: u64, len: u64) -> Option<(u64, u32)> {
        let block = u64::from(self.info.block);
        let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block) && len != 0;
        let on_disk = offset.checked_add(len).is_some_and(|end| end <= self.info.bytes);
        (aligned && on_disk).then_some(())?;
        Some((offset / block, u32::try_from(len / block).ok()?))
    }

    /// Translates a request. Returns its buffer if it is invalid.
    fn translate(&self, request: Request) -> Result<Translated, (Option<Buffer>, RequestError)> {
        let out = RequestError::OutOfRange;
        match request {
            Request::Read { offset, buffer } => {
                let len = buffer.len();
                match self.blocks(offset, len as u64) {
                    Some((lba, blocks)) => {
                        Ok((self.info.read(lba, blocks), Purpose::Read(len), Some(buffer)))
                    }
                    None => Err((Some(buffer), out)),
                }
            }
            Request::Write { buffer, .. } if self.info.write_protected => {
                Err((Some(buffer), RequestError::ReadOnly))
            }
            Request::Write { offset, buffer, part } => {
                let blocks = self.blocks(offset, part.len() as u64);
                match blocks.filter(|_| part.end <= buffer.len()) {
                    Some((lba, blocks)) => {
                        let purpose = Purpose::Write(Rc::new(buffer), part);
                        Ok((self.info.write(lba, blocks), purpose, None))
                    }
                    None => Err((Some(buffer), out)),
                }
            }
            Request::Zero { offset, len } => {
                let (lba, blocks) = self.blocks(offset, len).ok_or((None, out))?;
                Ok((disk::zero(lba, blocks), Purpose::Zero, None))
            }
            Request::Flush => Ok((disk::flush(), Purpose::Flush, None)),
            Request::Extents { offset, len } => {
                let block = u64::from(self.info.block);
                let (lba, blocks) = (offset / block, len / block);
                let unsupported = (None, RequestError::Unsupported);
                let buffer = self.memory.take(PROBE_LEN).ok_or(unsupported)?;
                Ok((disk::extents(lba), Purpose::Extents(lba, blocks), Some(buffer)))
            }
        }
    }

    fn process_steps(&mut self) -> Result<(), ConnectionLost> {
        while let Some(step) = self.session.driver.poll() {
            match step {
                Step::Done(done) => self.handle_done(done)?,
                Step::Close(End::Violation(violation)) => {
                    let violation = *self.violation.get_or_init(|| violation);
                    return Err(ConnectionLost::violation(violation));
                }
                Step::Close(end) => return Err(ConnectionLost::new(end)),
                _ => return Err(ConnectionLost::new("the connection was closed")),
            }
        }
        Ok(())
    }

    /// Returns the data of a command, whose answer goes to `buffer`.
    fn data(&self, purpose: &Purpose, buffer: Option<Buffer>) -> Data {
        match purpose {
            Purpose::Read(_) | Purpose::Extents(..) => Data::In(buffer),
            Purpose::Write(buffer, part) => {
                Data::Out { buffer: buffer.clone(), start: part.start, len: part.len() }
            }
            Purpose::Zero => {
                Data::Out { buffer: self.zeros.clone(), start: 0, len: self.zeros.len() }
            }
            Purpose::Flush => Data::None,
        }
    }

    fn send(&mut self, task: Task, buffer: Option<Buffer>) {
        let command =
            Command { cdb: task.cdb, lun: self.lun, data: self.data(&task.purpose, buffer) };
        match self.session.driver.session_mut().submit(command, task.tag) {
            Ok(()) => self.in_flight.push(task),
            Err(Command { data, .. }) => {
                let buffer = if let Data::In(buffer) = data { buffer } else { None };
                self.complete(task, Err(RequestError::Refused), buffer);
            }
        }
    }

    /// Sends the commands whose pause is over.
    fn resend(&mut self) {
        while self.session.driver.session().free_slots() != 0
            && let Some((task, buffer)) = self.retries.next(self.in_flight.len())
        {
            if self.answer_deadline().is_none() {
                self.progressed = Instant::now();
            }
            self.send(task, buffer);
        }
    }

    fn handle_done(&mut self, done: Done) -> Result<(), ConnectionLost> {
        let index = self.in_flight.iter().position(|task| task.tag == done.tag);
        let Some(index) = index else { return Ok(()) };
        let mut task = self.in_flight.swap_remove(index);
        match done.disposition() {
            // It may have lost its cache, or be another one: a new session compares it, and writes
            // again what was not flushed.
            Disposition::Changed => {
                return Err(ConnectionLost::new("the disk was reset, removed or changed"));
            }
            Disposition::Good => self.retries.succeeded(),
            Disposition::Busy | Disposition::Aborted | Disposition::Failed => {}
        }
        let cause = Cause::of(&done);
        if done.is_task_set_full() {
            self.retries.target_full(self.in_flight.len());
        }
        if cause.is_some_and(|cause| task.attempts.again(cause, self.timeout)) {
            self.retries.postpone((task, done.buffer));
            return Ok(());
        }
        let result = match cause {
            Some(Cause::Busy) => Err(RequestError::Busy),
            Some(Cause::Aborted) if task.purpose.is_optional() => Err(RequestError::Unsupported),
            // Nothing is known of the blocks: it is sent again on a new session.
            Some(Cause::Aborted) => return Err(ConnectionLost::new(ABORTED)),
            None => request_result(done.status, done.sense, &task.purpose),
        };
        match (result, &task.purpose) {
            (Ok(()), &Purpose::Extents(lba, blocks)) => {
                self.complete_extents(&task, lba, blocks, &done)
            }
            // A command that moved less than it was to must not count as done.
            (Ok(()), Purpose::Read(len)) => {
                let result = whole(done.len, *len);
                self.complete(task, result, done.buffer);
            }
            (Ok(()), Purpose::Write(_, part)) => {
                let result = whole(done.len, part.len());
                self.complete(task, result, None);
            }
            (Ok(()), Purpose::Zero) => {
                let result = whole(done.len, self.zeros.len());
                self.complete(task, result, None);
            }
            (result, _) => self.complete(task, result, done.buffer),
        }
        Ok(())
    }

    /// Completes a request; a write when its buffer has been sent.
    fn complete(&mut self, task: Task, result: Result<(), RequestError>, buffer: Option<Buffer>) {
        match task.purpose {
            Purpose::Write(write, _) => self.answered.push((task.tag, write, result)),
            Purpose::Read(_) => {
                self.completions.push_back(Completion::new(task.tag, result, buffer));
            }
            Purpose::Zero | Purpose::Flush | Purpose::Extents(..) => {
                self.completions.push_back(Completion::new(task.tag, result, None));
            }
        }
    }

    fn complete_extents(&mut self, task: &Task, lba: u64, blocks: u64, done: &Done) {
        let data = done.buffer.as_ref().map_or(&[][..], Buffer::bytes);
        let mut extents =
            disk::parse_extents(lba, blocks, data.get(..done.len).unwrap_or_default());
        let block = u64::from(self.info.block);
        extents.iter_mut().for_each(|extent| extent.len *= block);
        let missing = extents.is_empty();
        let result = if missing { Err(RequestError::Unsupported) } else { Ok(()) };
        self.completions.push_back(Completion { tag: task.tag, result, buffer: None, extents });
    }

    /// Completes answered writes whose buffers have been sent.
    fn complete_answered_writes(&mut self) {
        for (tag, buffer, result) in std::mem::take(&mut self.answered) {
            match Rc::try_unwrap(buffer) {
                Ok(buffer) => {
                    self.completions.push_back(Completion::new(tag, result, Some(buffer)));
                }
                Err(buffer) => self.answered.push((tag, buffer, result)),
            }
        }
    }

    /// When the target must have answered a command in flight; `None` if there is none.
    fn answer_deadline(&self) -> Option<Instant> {
        let awaits = self.session.driver.session().in_flight() != 0 || !self.answered.is_empty();
        awaits.then(|| self.progressed + self.timeout)
    }

    fn is_busy(&self) -> bool {
        self.session.driver.session().in_flight() != 0
            || !self.answered.is_empty()
            || !self.retries.is_empty()
    }
}

fn whole(moved: usize, wanted: usize) -> Result<(), RequestError> {
    if moved == wanted { Ok(()) } else { Err(RequestError::Media) }
}

/// Maps status and sense data (SAM-5 §5.3, SPC-4 §4.5).
fn request_result(
    status: u8,
    sense: ::iscsi::host::Sense,
    purpose: &Purpose,
) -> Result<(), RequestError> {
    Err(match (status, sense.key, sense.code) {
        // An earlier command has failed, and which one is not known.
        (2, ..) if sense.deferred => RequestError::Refused,
        // Recovered errors included.
        (0, ..) | (2, 1, _) => return Ok(()),
        // A target without this command has no volatile cache.
        (2, 5, (0x20, _)) if matches!(purpose, Purpose::Flush) => return Ok(()),
        (2, 3 | 4, _) => RequestError::Media,
        (2, 5, (0x21, _)) => RequestError::OutOfRange,
        (2, 5, (0x20 | 0x24 | 0x26, _)) if purpose.is_optional() => RequestError::Unsupported,
        (2, 5, (0x20, _)) => RequestError::Unsupported,
        (2, 7, (0x27, 7)) => RequestError::NoSpace,
        (2, 7, _) => RequestError::ReadOnly,
        _ => RequestError::Refused,
    })
}

impl Connection for IscsiConnection {
    fn submit(&mut self, tag: u32, request: Request) {
        if !self.is_busy() {
            self.progressed = Instant::now();
        }
        match self.translate(request) {
            Ok((cdb, purpose, buffer)) => {
                self.send(Task { tag, cdb, purpose, attempts: Attempts::begin() }, buffer);
            }
            Err((buffer, error)) => {
                self.completions.push_back(Completion::new(tag, Err(error), buffer));
            }
        }
    }

    fn free_slots(&self) -> usize {
        let free = self.session.driver.session().free_slots().saturating_sub(self.answered.len());
        free.min(self.retries.room(self.in_flight.len()))
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        self.process_steps()?;
        self.session.driver.exchange().map_err(ConnectionLost::new)?;
        self.process_steps()?;
        self.resend();
        self.process_steps()?;
        // Answers to pings.
        self.session.driver.flush().map_err(ConnectionLost::new)?;
        self.complete_answered_writes();
        let received = self.session.driver.session().received();
        if std::mem::replace(&mut self.received, received) != received {
            self.progressed = Instant::now();
        }
        match self.answer_deadline() {
            Some(deadline) if deadline <= Instant::now() => {
                Err(ConnectionLost::silent(self.timeout))
            }
            _ => Ok(()),
        }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// Also while idle: the target may send pings.
    fn interest(&self) -> Interest<'_> {
        Interest::Fd(self.session.driver.as_fd(), self.session.driver.poll_flags())
    }

    fn deadline(&self) -> Option<Instant> {
        self.answer_deadline().into_iter().chain(self.retries.resume_at()).min()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn deferred_error_is_no_success_of_this_command() {
        let recovered = ::iscsi::host::Sense { key: 1, code: (0x17, 0), deferred: false };
        let deferred = ::iscsi::host::Sense { deferred: true, ..recovered };
        assert_eq!(request_result(2, recovered, &Purpose::Flush), Ok(()));
        assert_eq!(request_result(2, deferred, &Purpose::Flush), Err(RequestError::Refused));
    }
}
