//! COMPARE AND WRITE and ORWRITE (SBC-3): a read and a write that are one operation, with
//! exclusive access to the disk in between. Memory is allocated before the access is claimed: no
//! claim is held while waiting for memory.

use export::{Buffer, Grant, Op};

use super::work::{Action, DiskRequest, Work};
use crate::limits;
use crate::range::Blocks;
use crate::response::Response;
use crate::wire::sense::Sense;

/// COMPARE AND WRITE: the data of the initiator is what is expected, followed by what is written.
#[derive(Debug)]
pub(super) struct CompareAndWrite {
    range: Blocks,
    durable: bool,
    data_out: u64,
    state: Compared,
}

#[derive(Debug)]
enum Compared {
    Nothing,
    Received(Buffer),
    Reading(Buffer),
    /// The buffer that was read has the data to write.
    Equal(Buffer),
    /// Offset of the first byte that differs.
    Different(u64),
    Written,
}

impl CompareAndWrite {
    pub(super) fn new(grant: &Grant, range: Blocks, durable: bool) -> Result<Self, Response> {
        let limit = limits::compare_and_write(grant.export().geometry);
        range.check_up_to(grant, Op::Write { durable }, limit.into())?;
        let state = if range.blocks == 0 { Compared::Written } else { Compared::Nothing };
        Ok(Self { range, durable, data_out: 2 * range.bytes(grant), state })
    }
}

impl Work for CompareAndWrite {
    fn data_out(&self) -> u64 {
        self.data_out
    }

    fn next(&mut self, grant: &Grant) -> Action {
        match std::mem::replace(&mut self.state, Compared::Written) {
            Compared::Nothing | Compared::Reading(_) => {
                self.state = Compared::Nothing;
                Action::Receive(usize::try_from(self.data_out).unwrap_or(usize::MAX))
            }
            Compared::Received(data) => {
                self.state = Compared::Reading(data);
                read_exclusively(grant, self.range)
            }
            Compared::Equal(data) => {
                Action::Request(DiskRequest::write(self.range, self.durable, data).exclusive())
            }
            Compared::Different(offset) => {
                Action::End(Sense::MISCOMPARE.with_information(offset).into())
            }
            Compared::Written => Action::End(Response::good()),
        }
    }

    fn received(&mut self, buffer: Buffer) {
        self.state = Compared::Received(buffer);
    }

    fn completed(&mut self, buffer: Option<Buffer>) {
        let state = std::mem::replace(&mut self.state, Compared::Written);
        let (Compared::Reading(data), Some(mut read)) = (state, buffer) else { return };
        let (expected, replacement) = data.bytes().split_at(data.bytes().len() / 2);
        let differs = |(read, expected)| read != expected;
        self.state = match read.bytes().iter().zip(expected).position(differs) {
            Some(offset) => Compared::Different(offset as u64),
            None => {
                read.bytes_mut().copy_from_slice(replacement);
                Compared::Equal(read)
            }
        };
    }
}

/// Reads a piece for which a buffer is held, with exclusive access.
pub(super) fn read_exclusively(grant: &Grant, range: Blocks) -> Action {
    match Action::read(grant, range, true) {
        Action::Allocate { len, holds_memory, request } => {
            Action::Allocate { len, holds_memory, request: request.exclusive() }
        }
        action => action,
    }
}

/// ORWRITE: writes the bitwise OR of the blocks and of the data of the initiator. Each piece is one
/// operation.
#[derive(Debug)]
pub(super) struct OrWrite {
    durable: bool,
    data_out: u64,
    left: Blocks,
    piece: Option<Blocks>,
    state: Merge,
}

#[derive(Debug)]
enum Merge {
    Nothing,
    Received(Buffer),
    Reading(Buffer),
    Ready(Buffer),
    Writing,
    Written,
}

impl OrWrite {
    pub(super) fn new(grant: &Grant, range: Blocks, durable: bool) -> Result<Self, Response> {
        range.check(grant, Op::Write { durable })?;
        let (data_out, state) = (range.bytes(grant), Merge::Nothing);
        Ok(Self { durable, data_out, left: range, piece: None, state })
    }
}

impl Work for OrWrite {
    fn data_out(&self) -> u64 {
        self.data_out
    }

    fn next(&mut self, grant: &Grant) -> Action {
        match (std::mem::replace(&mut self.state, Merge::Nothing), self.piece) {
            (Merge::Received(data), Some(piece)) => {
                self.state = Merge::Reading(data);
                read_exclusively(grant, piece)
            }
            (Merge::Ready(data), Some(piece)) => {
                self.state = Merge::Writing;
                Action::Request(DiskRequest::write(piece, self.durable, data).exclusive())
            }
            (Merge::Written, _) => Action::Notify,
            _ if self.left.blocks == 0 => Action::End(Response::good()),
            _ => {
                let piece = self.left.split_piece(grant);
                self.piece = Some(piece);
                Action::receive(grant, piece)
            }
        }
    }

    fn received(&mut self, buffer: Buffer) {
        self.state = Merge::Received(buffer);
    }

    fn completed(&mut self, buffer: Option<Buffer>) {
        self.state = match (std::mem::replace(&mut self.state, Merge::Nothing), buffer) {
            (Merge::Reading(data), Some(mut read)) => {
                read.bytes_mut().iter_mut().zip(data.bytes()).for_each(|(to, byte)| *to |= byte);
                Merge::Ready(read)
            }
            _ => Merge::Written,
        };
    }
}
