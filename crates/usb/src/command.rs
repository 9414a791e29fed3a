//! The command in progress: its work, and the data that its host and it have announced.

use std::collections::VecDeque;

use export::{Buffer, DirectRecv};
use scsi::{Command as Decision, Job, Response, Transfer};

use crate::wire::{Cbw, Csw, Status, TO_HOST};

/// Length of the pieces of a transfer in bytes.
pub(crate) const PIECE: u32 = 256 << 10;

/// Pieces of a transfer that are read or written at a time.
const MAX_IN_FLIGHT: usize = 3;

/// Smallest packet of a bulk endpoint at any speed in bytes. Larger ones are multiples.
const SMALLEST_PACKET: u32 = 64;

/// What a host has announced for a command (BOT §6.7): `Hn`, `Hi` or `Ho`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expects {
    Nothing,
    DataIn(u32),
    DataOut(u32),
}

impl Expects {
    pub(crate) fn of(cbw: &Cbw) -> Self {
        match (cbw.length.get(), cbw.flags & TO_HOST) {
            (0, _) => Self::Nothing,
            (length, 0) => Self::DataOut(length),
            (length, _) => Self::DataIn(length),
        }
    }

    /// Returns whether the host and a command that transfers these lengths disagree, so that the
    /// host must reset the device: cases 2, 3, 7, 8, 10 and 13 of the standard.
    pub(crate) fn disagrees(self, data_in: u64, data_out: u64) -> bool {
        let (max_in, max_out) = match self {
            Self::Nothing => (0, 0),
            Self::DataIn(length) => (length, 0),
            Self::DataOut(length) => (0, length),
        };
        data_in > max_in.into() || data_out > max_out.into()
    }
}

/// A command in progress.
#[derive(Debug)]
pub(crate) struct Command {
    tag: u32,
    /// Length that the host has announced.
    length: u32,
    to_host: bool,
    pub(crate) unit: usize,
    pub(crate) work: Work,
    /// Bytes received from the host or sent to it.
    pub(crate) moved: u32,
    /// Bytes that the command has processed.
    pub(crate) processed: u32,
    /// The data that is expected from the host next.
    pub(crate) incoming: Option<Incoming>,
    /// Number of disk requests of the command, with those that are blocked.
    pub(crate) in_flight: usize,
}

/// What a command does.
#[derive(Debug)]
pub(crate) enum Work {
    Read(Pieces),
    Write(Pieces),
    /// `memory` is the length of a buffer that it waits for, and whether it holds one already.
    Job {
        job: Box<Job>,
        memory: Option<(usize, bool)>,
    },
    /// It has ended. Data from the host that is left is discarded.
    Ended(Status),
}

/// Data expected from the host.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) len: usize,
    /// Without a buffer it waits for memory, unless the driver has the buffer.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) is_lent: bool,
}

/// A read or write in pieces.
#[derive(Debug)]
pub(crate) struct Pieces {
    lba: u64,
    shift: u8,
    pub(crate) durable: bool,
    pub(crate) len: u32,
    /// Offset of the next piece.
    pub(crate) next: u32,
    /// Pieces of a read that were begun and not sent, in order: offset, and data once it was read.
    unsent: VecDeque<(u32, Option<Buffer>)>,
    pub(crate) failed: Option<Response>,
}

impl Pieces {
    fn new(transfer: Transfer, shift: u8) -> Self {
        let Transfer { lba, blocks, durable } = transfer;
        // The host has announced at least that many bytes.
        let len = u32::try_from(u64::from(blocks) << shift).unwrap_or(u32::MAX);
        Self { lba, shift, durable, len, next: 0, unsent: VecDeque::new(), failed: None }
    }

    /// Returns the length of the piece at an offset.
    pub(crate) fn len_at(&self, offset: u32) -> u32 {
        self.len.saturating_sub(offset).min(PIECE)
    }

    /// Returns first block and number of blocks of the piece at an offset.
    pub(crate) fn blocks_at(&self, offset: u32) -> (u64, u64) {
        let blocks = u64::from(self.len_at(offset) >> self.shift);
        (self.lba.saturating_add(u64::from(offset >> self.shift)), blocks)
    }

    /// Returns offset and length on the disk in bytes of the piece at an offset.
    pub(crate) fn range_at(&self, offset: u32) -> (u64, u64) {
        ((self.lba << self.shift).saturating_add(offset.into()), self.len_at(offset).into())
    }

    /// Returns whether another piece may be begun.
    pub(crate) fn has_next(&self, in_flight: usize) -> bool {
        let begun = in_flight.max(self.unsent.len());
        self.failed.is_none() && self.next < self.len && begun < MAX_IN_FLIGHT
    }

    /// Counts the next piece as begun.
    pub(crate) fn begin(&mut self) {
        self.next = self.next.saturating_add(self.len_at(self.next));
    }

    /// Adds a piece that is being read.
    pub(crate) fn begin_read(&mut self) {
        self.unsent.push_back((self.next, None));
        self.begin();
    }

    /// Keeps a piece that was read.
    pub(crate) fn store(&mut self, offset: u32, buffer: Buffer) {
        if let Some(piece) = self.unsent.iter_mut().find(|(at, _)| *at == offset) {
            piece.1 = Some(buffer);
        }
    }

    /// Takes the next piece in order if it was read.
    pub(crate) fn take_read(&mut self) -> Option<Buffer> {
        self.unsent.front()?.1.as_ref()?;
        self.unsent.pop_front()?.1
    }

    /// Returns whether all pieces have ended.
    pub(crate) fn is_over(&self, in_flight: usize) -> bool {
        let is_failed = self.failed.is_some();
        in_flight == 0 && (is_failed || (self.next >= self.len && self.unsent.is_empty()))
    }
}

impl Command {
    /// Returns the command of a wrapper whose CDB does what was `decided`. A disagreement on data
    /// ends it with [`Status::PhaseError`]; it may not change the disk.
    pub(crate) fn new(cbw: &Cbw, decided: Decision, shift: u8, disagrees: bool) -> Self {
        let work = match decided {
            _ if disagrees => Work::Ended(Status::PhaseError),
            Decision::Read(transfer) => Work::Read(Pieces::new(transfer, shift)),
            Decision::Write(transfer) => Work::Write(Pieces::new(transfer, shift)),
            Decision::Job(job) => Work::Job { job, memory: None },
            Decision::Done(_) => Work::Ended(Status::Passed),
        };
        Self {
            tag: cbw.tag.get(),
            length: cbw.length.get(),
            to_host: cbw.flags & TO_HOST != 0,
            unit: cbw.lun.into(),
            work,
            moved: 0,
            processed: 0,
            incoming: None,
            in_flight: 0,
        }
    }

    /// Returns how many bytes the host still sends.
    pub(crate) fn left_out(&self) -> u32 {
        if self.to_host { 0 } else { self.length.saturating_sub(self.moved) }
    }

    /// Returns how many bytes may still be sent to the host.
    pub(crate) fn left_in(&self) -> u32 {
        if self.to_host { self.length.saturating_sub(self.moved) } else { 0 }
    }

    /// Returns whether the pipe to the host is halted before the status: data is missing, and no
    /// short packet has ended it.
    pub(crate) fn needs_halt(&self) -> bool {
        self.left_in() > 0 && self.moved.is_multiple_of(SMALLEST_PACKET)
    }

    /// Expects `len` bytes from the host.
    pub(crate) fn expect(&mut self, len: u32) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.incoming = Some(Incoming { len, buffer: None, is_lent: false });
    }

    /// Lends the buffer for the data that is expected.
    pub(crate) fn window(&mut self) -> Option<DirectRecv> {
        let incoming = self.incoming.as_mut()?;
        let buffer = incoming.buffer.take()?;
        incoming.is_lent = true;
        let end = buffer.len();
        Some(DirectRecv { buffer, start: 0, end, token: self.tag })
    }

    /// Returns whether data is expected, with a buffer for it.
    pub(crate) fn can_receive(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| incoming.buffer.is_some())
    }

    /// Returns the status wrapper.
    pub(crate) fn status(&self, status: Status) -> Csw {
        Csw::new(self.tag.into(), self.length.saturating_sub(self.processed), status)
    }
}
