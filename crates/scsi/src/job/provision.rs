//! WRITE SAME, UNMAP and GET LBA STATUS (SBC-3).

use export::{Buffer, Extent, Extents, Fault, Geometry, Grant, Op};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::work::{Action, DiskRequest, Work, length};
use crate::limits;
use crate::range::Blocks;
use crate::response::Response;
use crate::wire::provision::{
    DEALLOCATED, LbaStatusDescriptor, LbaStatusHeader, MAPPED, UnmapDescriptor, UnmapHeader,
};
use crate::wire::sense::Sense;

/// WRITE SAME: zeros by one disk request, anything else by writes.
#[derive(Debug)]
pub(super) struct WriteSame {
    unmap: bool,
    left: Blocks,
    /// One block, unless the initiator sends none.
    data_out: u64,
    /// The block of the initiator, unless it is of zeros.
    block: Option<Buffer>,
    zeros: bool,
    /// A piece full of the block.
    filled: Option<Buffer>,
}

impl WriteSame {
    pub(super) fn new(
        grant: &Grant,
        range: Blocks,
        unmap: bool,
        no_data: bool,
    ) -> Result<Self, Response> {
        let export = grant.export();
        let (op, limit) = (Op::Write { durable: false }, limits::write_same(export.geometry));
        range.check_up_to(grant, op, u32::MAX)?;
        // No blocks are all blocks to the end of the disk.
        let rest = u32::try_from(export.blocks().saturating_sub(range.lba)).unwrap_or(u32::MAX);
        if rest == 0 {
            return Err(Sense::OUT_OF_RANGE.into());
        }
        let range = Blocks { blocks: if range.blocks == 0 { rest } else { range.blocks }, ..range };
        range.check_up_to(grant, op, limit)?;
        if unmap && !export.discard {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let data_out = if no_data { 0 } else { export.geometry.block().into() };
        Ok(Self { unmap, left: range, data_out, block: None, zeros: no_data, filled: None })
    }
}

impl Work for WriteSame {
    fn data_out(&self) -> u64 {
        self.data_out
    }

    fn next(&mut self, grant: &Grant) -> Action {
        if self.left.blocks == 0 {
            return Action::End(Response::good());
        }
        if self.zeros {
            let op = Op::Zero { unmap: self.unmap, durable: false, fast: false };
            let request = DiskRequest::new(op, self.left);
            self.left.blocks = 0;
            return Action::Request(request);
        }
        if self.block.is_none() {
            return Action::Receive(usize::try_from(self.data_out).unwrap_or(usize::MAX));
        }
        let piece = self.left.split_piece(grant);
        let len = length(grant, piece);
        match self.filled.take().filter(|filled| filled.len() == len) {
            Some(filled) => Action::Request(DiskRequest::write(piece, false, filled)),
            None => {
                let request = DiskRequest::new(Op::Write { durable: false }, piece);
                Action::Allocate { len, holds_memory: true, request }
            }
        }
    }

    fn received(&mut self, buffer: Buffer) {
        self.zeros = buffer.bytes().iter().all(|&byte| byte == 0);
        self.block = Some(buffer);
    }

    fn fill(&mut self, buffer: &mut Buffer) {
        if let Some(block) = &self.block {
            let pieces = buffer.bytes_mut().chunks_exact_mut(block.len().max(1));
            pieces.for_each(|piece| piece.copy_from_slice(block.bytes()));
        }
    }

    fn completed(&mut self, buffer: Option<Buffer>) {
        self.filled = buffer;
    }
}

/// UNMAP: discards one range after the other.
#[derive(Debug)]
pub(super) struct Unmap {
    length: u32,
    list: Option<Buffer>,
    /// The ranges, last first.
    ranges: Option<Vec<Blocks>>,
}

impl Unmap {
    pub(super) fn new(grant: &Grant, length: u32) -> Result<Self, Response> {
        Blocks { lba: 0, blocks: 0 }.check(grant, Op::Discard)?;
        if !grant.export().discard {
            return Err(Sense::INVALID_OPCODE.into());
        }
        let header = size_of::<UnmapHeader>();
        if length != 0 && usize::try_from(length).is_ok_and(|length| length < header) {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        }
        Ok(Self { length, list: None, ranges: None })
    }

    /// Checks all ranges before the first discard.
    fn ranges(grant: &Grant, list: &[u8]) -> Result<Vec<Blocks>, Response> {
        let (header, rest) =
            UnmapHeader::ref_from_prefix(list).map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
        let size = size_of::<UnmapDescriptor>();
        let count = usize::from(header.descriptors.get()) / size;
        if count > usize::from(limits::UNMAP_DESCRIPTORS) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
        }
        let descriptors = <[UnmapDescriptor]>::ref_from_prefix_with_elems(rest, count);
        let (descriptors, _) = descriptors.map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
        let mut ranges = Vec::with_capacity(count);
        for descriptor in descriptors.iter().rev() {
            let range = Blocks { lba: descriptor.lba.get(), blocks: descriptor.blocks.get() };
            range.check_up_to(grant, Op::Discard, u32::MAX)?;
            ranges.push(range);
        }
        ranges.retain(|range| range.blocks != 0);
        Ok(ranges)
    }
}

impl Work for Unmap {
    fn data_out(&self) -> u64 {
        self.length.into()
    }

    fn next(&mut self, grant: &Grant) -> Action {
        if self.length == 0 {
            return Action::End(Response::good());
        }
        if let Some(list) = self.list.take() {
            match Self::ranges(grant, list.bytes()) {
                Ok(ranges) => self.ranges = Some(ranges),
                Err(response) => return Action::End(response),
            }
        }
        match &mut self.ranges {
            None => Action::Receive(usize::try_from(self.length).unwrap_or(usize::MAX)),
            Some(ranges) => ranges.pop().map_or_else(
                || Action::End(Response::good()),
                |range| Action::Request(DiskRequest::new(Op::Discard, range)),
            ),
        }
    }

    fn received(&mut self, buffer: Buffer) {
        self.list = Some(buffer);
    }
}

/// GET LBA STATUS. A disk that does not report it is mapped.
#[derive(Debug)]
pub(super) struct LbaStatus {
    lba: u64,
    /// Number of blocks to the end of the disk.
    rest: u64,
    allocation: u32,
    state: Query,
}

#[derive(Debug)]
enum Query {
    Nothing,
    Sent,
    /// The records of the disk, unless it does not report them.
    Answered(Option<Buffer>),
}

/// Maximum number of LBA status descriptors.
const MAX_DESCRIPTORS: usize = 256;

impl LbaStatus {
    pub(super) fn new(grant: &Grant, lba: u64, allocation: u32) -> Result<Self, Response> {
        Blocks { lba, blocks: 1 }.check(grant, Op::Extents)?;
        let rest = grant.export().blocks().saturating_sub(lba);
        Ok(Self { lba, rest, allocation, state: Query::Nothing })
    }

    /// Returns how many descriptors are asked for, at least one.
    fn count(&self) -> usize {
        let descriptors = usize::try_from(self.allocation).unwrap_or(usize::MAX);
        let descriptors = descriptors.saturating_sub(size_of::<LbaStatusHeader>());
        (descriptors / size_of::<LbaStatusDescriptor>()).clamp(1, MAX_DESCRIPTORS)
    }
}

impl Work for LbaStatus {
    fn next(&mut self, grant: &Grant) -> Action {
        match &self.state {
            Query::Nothing | Query::Sent => {
                self.state = Query::Sent;
                let (op, lba, blocks) = (Op::Extents, self.lba, self.rest);
                let request = DiskRequest { op, lba, blocks, buffer: None, exclusive: false };
                let len = self.count() * Extent::LEN;
                Action::Allocate { len, holds_memory: false, request }
            }
            Query::Answered(records) => {
                let records = records.as_ref().map_or(&[][..], Buffer::bytes);
                let geometry = grant.export().geometry;
                let data = lba_status(records, (self.lba, self.rest), geometry);
                Action::End(Response::data(data, self.allocation))
            }
        }
    }

    fn completed(&mut self, buffer: Option<Buffer>) {
        self.state = Query::Answered(buffer);
    }

    fn tolerates(&mut self, fault: Fault) -> bool {
        self.state = Query::Answered(None);
        fault == Fault::Unsupported
    }
}

/// Returns the data of GET LBA STATUS for a range, of which there may be records. A block is
/// deallocated if it is a hole as a whole.
fn lba_status(records: &[u8], (start, blocks): (u64, u64), geometry: Geometry) -> Vec<u8> {
    let end = start.saturating_add(blocks);
    let mut list = Vec::new();
    let (mut lba, mut offset) = (start, 0_u64);
    for extent in Extents::parse(records) {
        offset = offset.saturating_add(extent.len);
        let whole =
            if extent.hole { geometry.blocks_in(offset) } else { geometry.blocks_for(offset) };
        let next = start.saturating_add(whole).min(end);
        let status = if extent.hole { DEALLOCATED } else { MAPPED };
        if !push(&mut list, lba, next.saturating_sub(lba), status) {
            break;
        }
        lba = next.max(lba);
    }
    if list.is_empty() {
        push(&mut list, start, blocks, MAPPED);
    }
    let length = U32::new(u32::try_from(list.len() + 4).unwrap_or(u32::MAX));
    [LbaStatusHeader { length, reserved: [0; 4] }.as_bytes(), &list].concat()
}

/// Appends a descriptor. Returns false if it does not have all of the blocks.
fn push(list: &mut Vec<u8>, lba: u64, blocks: u64, status: u8) -> bool {
    let (lba, short) = (U64::new(lba), u32::try_from(blocks).unwrap_or(u32::MAX));
    let descriptor = LbaStatusDescriptor { lba, blocks: U32::new(short), status, reserved: [0; 3] };
    if short != 0 {
        list.extend_from_slice(descriptor.as_bytes());
    }
    u64::from(short) == blocks
}
