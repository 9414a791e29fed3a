//! The requests of a copy as SCSI commands of one session.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ::iscsi::host::disk::{self, DiskInfo, PROBE_LEN};
use ::iscsi::host::{Command, Data, Done, End, Initiator, Step, Violation};
use client::Driver;
use export::{Account, Buffer};

use crate::connection::{
    Completion, Connection, ConnectionLost, Interest, RESPONSE_TIMEOUT, Request, RequestError,
};

/// What a command in flight is for.
#[derive(Debug)]
pub(super) enum Purpose {
    Read(usize),
    Write(Rc<Buffer>, usize),
    Zero,
    Flush,
    /// First block and number of blocks.
    Extents(u64, u64),
}

/// Command descriptor block, data and purpose of a request.
type Translated = ([u8; 16], Data, Purpose);

/// One session with a disk.
pub(super) struct IscsiConnection {
    pub(super) driver: Driver<Initiator>,
    pub(super) info: DiskInfo,
    pub(super) lun: u64,
    pub(super) violation: Arc<OnceLock<Violation>>,
    pub(super) memory: Account,
    /// A block of zeros.
    pub(super) zeros: Rc<Buffer>,
    /// Commands in flight, by tag.
    pub(super) in_flight: Vec<(u32, Purpose)>,
    /// Answered writes that are not completely sent yet, by tag.
    pub(super) answered: Vec<(u32, Rc<Buffer>, Result<(), RequestError>)>,
    pub(super) completions: VecDeque<Completion>,
    /// When the connection last became busy, or received anything but a ping.
    pub(super) progressed: Instant,
    /// Bytes received until then, without those of pings.
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
                        let data = Data::In(Some(buffer));
                        Ok((disk::read(lba, blocks), data, Purpose::Read(len)))
                    }
                    None => Err((Some(buffer), out)),
                }
            }
            Request::Write { buffer, .. } if self.info.write_protected => {
                Err((Some(buffer), RequestError::ReadOnly))
            }
            Request::Write { offset, buffer, part } => {
                let (start, len) = (part.start, part.len());
                match self.blocks(offset, len as u64).filter(|_| part.end <= buffer.len()) {
                    Some((lba, blocks)) => {
                        let buffer = Rc::new(buffer);
                        let data = Data::Out { buffer: buffer.clone(), start, len };
                        Ok((disk::write(lba, blocks), data, Purpose::Write(buffer, len)))
                    }
                    None => Err((Some(buffer), out)),
                }
            }
            Request::Zero { offset, len } => {
                let (lba, blocks) = self.blocks(offset, len).ok_or((None, out))?;
                let (buffer, len) = (self.zeros.clone(), self.zeros.len());
                let data = Data::Out { buffer, start: 0, len };
                Ok((disk::zero(lba, blocks), data, Purpose::Zero))
            }
            Request::Flush => Ok((disk::flush(), Data::None, Purpose::Flush)),
            Request::Extents { offset, len } => {
                let block = u64::from(self.info.block);
                let (lba, blocks) = (offset / block, len / block);
                let unsupported = (None, RequestError::Unsupported);
                let buffer = self.memory.take(PROBE_LEN).ok_or(unsupported)?;
                let data = Data::In(Some(buffer));
                Ok((disk::extents(lba), data, Purpose::Extents(lba, blocks)))
            }
        }
    }

    fn process_steps(&mut self) -> Result<(), ConnectionLost> {
        while let Some(step) = self.driver.poll() {
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

    fn handle_done(&mut self, done: Done) -> Result<(), ConnectionLost> {
        let index = self.in_flight.iter().position(|(tag, _)| *tag == done.tag);
        let Some(index) = index else { return Ok(()) };
        let (tag, purpose) = self.in_flight.swap_remove(index);
        let result = match done.status {
            // BUSY and TASK SET FULL: another connection is tried later.
            0x08 | 0x28 => return Err(ConnectionLost::new("the target is busy")),
            // It may have lost its cache, or be another one: a new session compares it, and writes
            // again what was not flushed.
            _ if done.is_unit_attention() => {
                return Err(ConnectionLost::new("the disk was reset or has changed"));
            }
            status => request_result(status, done.sense, &purpose),
        };
        match purpose {
            // A command that moved less than it was to must not count as done.
            Purpose::Read(len) => {
                let result = result.and_then(|()| whole(done.len, len));
                self.completions.push_back(Completion::new(tag, result, done.buffer));
            }
            Purpose::Write(buffer, len) => {
                let result = result.and_then(|()| whole(done.len, len));
                self.answered.push((tag, buffer, result));
            }
            Purpose::Zero => {
                let result = result.and_then(|()| whole(done.len, self.zeros.len()));
                self.completions.push_back(Completion::new(tag, result, None));
            }
            Purpose::Flush => self.completions.push_back(Completion::new(tag, result, None)),
            Purpose::Extents(lba, blocks) => {
                let data = done.buffer.as_ref().map_or(&[][..], Buffer::bytes);
                let data = data.get(..done.len).unwrap_or_default();
                let mut extents = disk::parse_extents(lba, blocks, data);
                let block = u64::from(self.info.block);
                extents.iter_mut().for_each(|extent| extent.len *= block);
                let missing = result.is_ok() && extents.is_empty();
                let result = if missing { Err(RequestError::Unsupported) } else { result };
                let extents = if result.is_ok() { extents } else { Vec::new() };
                self.completions.push_back(Completion { tag, result, buffer: None, extents });
            }
        }
        Ok(())
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

    fn is_busy(&self) -> bool {
        self.driver.session().in_flight() != 0 || !self.answered.is_empty()
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
    let optional = matches!(purpose, Purpose::Zero | Purpose::Extents(..));
    Err(match (status, sense.key, sense.code) {
        // An earlier command has failed, and which one is not known.
        (2, ..) if sense.deferred => RequestError::Refused,
        // Recovered errors included.
        (0, ..) | (2, 1, _) => return Ok(()),
        // A target without this command has no volatile cache.
        (2, 5, (0x20, _)) if matches!(purpose, Purpose::Flush) => return Ok(()),
        (2, 3 | 4 | 0xb, _) => RequestError::Media,
        (2, 5, (0x21, _)) => RequestError::OutOfRange,
        (2, 5, (0x20 | 0x24 | 0x26, _)) if optional => RequestError::Unsupported,
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
        let (cdb, data, purpose) = match self.translate(request) {
            Ok(translated) => translated,
            Err((buffer, error)) => {
                return self.completions.push_back(Completion::new(tag, Err(error), buffer));
            }
        };
        let command = Command { cdb, lun: self.lun, data };
        match self.driver.session_mut().submit(command, tag) {
            Ok(()) => self.in_flight.push((tag, purpose)),
            Err(Command { data, .. }) => {
                let buffer = if let Data::In(buffer) = data { buffer } else { None };
                let refused = Err(RequestError::Refused);
                match purpose {
                    Purpose::Write(write, _) => self.answered.push((tag, write, refused)),
                    _ => self.completions.push_back(Completion::new(tag, refused, buffer)),
                }
            }
        }
    }

    fn free_slots(&self) -> usize {
        self.driver.session().free_slots().saturating_sub(self.answered.len())
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        self.process_steps()?;
        self.driver.exchange().map_err(ConnectionLost::new)?;
        self.process_steps()?;
        // Answers to pings.
        self.driver.flush().map_err(ConnectionLost::new)?;
        self.complete_answered_writes();
        let received = self.driver.session().received();
        if std::mem::replace(&mut self.received, received) != received {
            self.progressed = Instant::now();
        }
        match self.deadline() {
            Some(deadline) if deadline <= Instant::now() => Err(ConnectionLost::new(format!(
                "no answer in {} seconds",
                RESPONSE_TIMEOUT.as_secs()
            ))),
            _ => Ok(()),
        }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// Also while idle: the target may send pings.
    fn interest(&self) -> Interest<'_> {
        Interest::Fd(self.driver.as_fd(), self.driver.poll_flags())
    }

    fn deadline(&self) -> Option<Instant> {
        self.is_busy().then(|| self.progressed + RESPONSE_TIMEOUT)
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
