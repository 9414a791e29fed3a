//! VERIFY and WRITE AND VERIFY (SBC-3): piece after piece.

use export::{Buffer, Grant, Op};

use super::work::{Action, DiskRequest, Work};
use crate::cdb::ByteCheck;
use crate::range::Blocks;
use crate::response::Response;
use crate::wire::sense::Sense;

/// VERIFY: reads, and compares with data of the initiator if that is asked for.
#[derive(Debug)]
pub(super) struct Verify {
    check: ByteCheck,
    data_out: u64,
    left: Blocks,
    /// The piece whose data is received.
    piece: Option<Blocks>,
    /// The data of that piece, or the block with which all are compared.
    data: Option<Buffer>,
    differs: bool,
}

impl Verify {
    pub(super) fn new(grant: &Grant, range: Blocks, check: ByteCheck) -> Result<Self, Response> {
        range.check(grant, Op::Read)?;
        let data_out = match check {
            ByteCheck::Nothing => 0,
            ByteCheck::Blocks => range.bytes(grant),
            ByteCheck::OneBlock => Blocks { blocks: range.blocks.min(1), ..range }.bytes(grant),
        };
        Ok(Self { check, data_out, left: range, piece: None, data: None, differs: false })
    }
}

impl Work for Verify {
    fn data_out(&self) -> u64 {
        self.data_out
    }

    fn next(&mut self, grant: &Grant) -> Action {
        if self.differs {
            return Action::End(Sense::MISCOMPARE.into());
        }
        if let Some(piece) = self.piece.take() {
            return Action::read(grant, piece, true);
        }
        if self.left.blocks == 0 {
            return Action::End(Response::good());
        }
        if self.check == ByteCheck::OneBlock && self.data.is_none() {
            return Action::receive(grant, Blocks { blocks: 1, ..self.left });
        }
        let piece = self.left.split_piece(grant);
        if self.check == ByteCheck::Blocks {
            self.piece = Some(piece);
            return Action::receive(grant, piece);
        }
        Action::read(grant, piece, self.data.is_some())
    }

    fn received(&mut self, buffer: Buffer) {
        self.data = Some(buffer);
    }

    fn completed(&mut self, buffer: Option<Buffer>) {
        let read = buffer.as_ref().map_or(&[][..], Buffer::bytes);
        let given = self.data.as_ref().map_or(&[][..], Buffer::bytes);
        self.differs = match self.check {
            ByteCheck::Nothing => false,
            ByteCheck::Blocks => read != given,
            ByteCheck::OneBlock => read.chunks(given.len().max(1)).any(|block| block != given),
        };
        if self.check == ByteCheck::Blocks {
            self.data = None;
        }
    }
}

/// WRITE AND VERIFY: writes to stable storage, reads back, and compares if that is asked for.
#[derive(Debug)]
pub(super) struct WriteAndVerify {
    compare: bool,
    data_out: u64,
    left: Blocks,
    piece: Option<Blocks>,
    state: Progress,
    differs: bool,
}

/// How far a piece has come.
#[derive(Debug)]
enum Progress {
    Nothing,
    Received(Buffer),
    Writing,
    Written(Buffer),
    Reading(Buffer),
}

impl WriteAndVerify {
    pub(super) fn new(grant: &Grant, range: Blocks, compare: bool) -> Result<Self, Response> {
        range.check(grant, Op::Write { durable: true })?;
        let (data_out, state) = (range.bytes(grant), Progress::Nothing);
        Ok(Self { compare, data_out, left: range, piece: None, state, differs: false })
    }
}

impl Work for WriteAndVerify {
    fn data_out(&self) -> u64 {
        self.data_out
    }

    fn next(&mut self, grant: &Grant) -> Action {
        if self.differs {
            return Action::End(Sense::MISCOMPARE.into());
        }
        match (std::mem::replace(&mut self.state, Progress::Nothing), self.piece) {
            (Progress::Received(data), Some(piece)) => {
                self.state = Progress::Writing;
                Action::Request(DiskRequest::write(piece, true, data))
            }
            (Progress::Written(data), Some(piece)) => {
                self.state = Progress::Reading(data);
                Action::read(grant, piece, true)
            }
            _ if self.left.blocks == 0 => Action::End(Response::good()),
            _ => {
                let piece = self.left.split_piece(grant);
                self.piece = Some(piece);
                Action::receive(grant, piece)
            }
        }
    }

    fn received(&mut self, buffer: Buffer) {
        self.state = Progress::Received(buffer);
    }

    fn completed(&mut self, buffer: Option<Buffer>) {
        self.state = match (std::mem::replace(&mut self.state, Progress::Nothing), buffer) {
            (Progress::Writing, Some(data)) => Progress::Written(data),
            (Progress::Reading(data), Some(read)) => {
                self.differs = self.compare && data.bytes() != read.bytes();
                Progress::Nothing
            }
            _ => Progress::Nothing,
        };
    }
}
