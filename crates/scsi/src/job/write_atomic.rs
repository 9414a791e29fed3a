//! WRITE ATOMIC (SBC-4): a write of which the disk has all or nothing after a failure.
//!
//! Linux writes atomically only lengths that are powers of two, at multiples of them. A range in between is
//! completed with the blocks around it, which are read with exclusive access to the disk.

use export::{AtomicWrites, Buffer, Fault, Grant, Op};

use super::atomic::read_exclusively;
use super::work::{Action, DiskRequest, Work};
use crate::limits;
use crate::range::Blocks;
use crate::response::Response;
use crate::wire::sense::Sense;

/// The field of the CDB with the first block.
const LBA: u8 = 2;
/// The field of the CDB with the number of blocks.
const TRANSFER_LENGTH: u8 = 12;

#[derive(Debug)]
pub(super) struct WriteAtomic {
    range: Blocks,
    /// What is written: the smallest range with `range` in it that the disk writes atomically.
    whole: Blocks,
    /// Offset of the data in it, in bytes.
    start: usize,
    data_out: u64,
    durable: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Nothing,
    Received(Buffer),
    Reading(Buffer),
    /// The whole range.
    Ready(Buffer),
    Written,
}

impl WriteAtomic {
    /// Creates the work of a command. Fails if the range does not consist of the smallest ranges that the disk
    /// writes atomically, is too long, or if the range that completes it is.
    pub(super) fn new(grant: &Grant, range: Blocks, durable: bool) -> Result<Self, Response> {
        let geometry = grant.export().geometry;
        let writes = limits::atomic_writes(geometry).ok_or(Sense::INVALID_OPCODE)?;
        range.check(grant, Op::Write { durable })?;
        let data_out = range.bytes(grant);
        let (min, max) = (writes.min() >> geometry.shift(), writes.max() >> geometry.shift());
        if range.blocks > max || !range.blocks.is_multiple_of(min.max(1)) {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(TRANSFER_LENGTH).into());
        }
        if !range.lba.is_multiple_of(min.max(1).into()) {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(LBA).into());
        }
        if range.blocks == 0 {
            let state = State::Written;
            return Ok(Self { range, whole: range, start: 0, data_out, durable, state });
        }
        let whole = enclosing(grant, range, writes);
        let whole = whole.ok_or_else(|| Sense::INVALID_FIELD_IN_CDB.with_field(LBA))?;
        let start = (range.lba - whole.lba) << geometry.shift();
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        Ok(Self { range, whole, start, data_out, durable, state: State::Nothing })
    }

    fn write(&self, data: Buffer) -> DiskRequest {
        let op = Op::WriteAtomic { durable: self.durable };
        DiskRequest { buffer: Some(data), ..DiskRequest::new(op, self.whole) }
    }
}

impl Work for WriteAtomic {
    fn data_out(&self) -> u64 {
        self.data_out
    }

    fn next(&mut self, grant: &Grant) -> Action {
        match std::mem::replace(&mut self.state, State::Written) {
            State::Nothing | State::Reading(_) => {
                self.state = State::Nothing;
                Action::receive(grant, self.range)
            }
            State::Received(data) if self.whole == self.range => Action::Request(self.write(data)),
            State::Received(data) => {
                self.state = State::Reading(data);
                read_exclusively(grant, self.whole)
            }
            State::Ready(whole) => Action::Request(self.write(whole).exclusive()),
            State::Written => Action::End(Response::good()),
        }
    }

    fn received(&mut self, buffer: Buffer) {
        self.state = State::Received(buffer);
    }

    /// The initiator knows of its own blocks only.
    fn failed(&self, fault: Fault, _: Op, _: u64) -> Response {
        Response::fault(fault, Op::WriteAtomic { durable: self.durable }, self.range.lba)
    }

    fn completed(&mut self, buffer: Option<Buffer>) {
        let state = std::mem::replace(&mut self.state, State::Written);
        let (State::Reading(data), Some(mut whole)) = (state, buffer) else { return };
        let place = whole.bytes_mut().get_mut(self.start..).unwrap_or_default();
        place.iter_mut().zip(data.bytes()).for_each(|(to, byte)| *to = *byte);
        self.state = State::Ready(whole);
    }
}

/// Returns the smallest range that contains `range` and that the disk writes atomically, if there is one.
fn enclosing(grant: &Grant, range: Blocks, writes: AtomicWrites) -> Option<Blocks> {
    let shift = grant.export().geometry.shift();
    let end = range.lba.checked_add(range.blocks.into())?;
    let mut blocks = (writes.min() >> shift).max(range.blocks.checked_next_power_of_two()?);
    loop {
        let lba = range.lba - range.lba % u64::from(blocks);
        if lba.checked_add(blocks.into())? >= end {
            let whole = Blocks { lba, blocks };
            let permitted = grant.permits(Op::WriteAtomic { durable: false }, lba, blocks.into());
            return permitted.is_ok().then_some(whole);
        }
        blocks = blocks.checked_mul(2).filter(|blocks| *blocks <= writes.max() >> shift)?;
    }
}
