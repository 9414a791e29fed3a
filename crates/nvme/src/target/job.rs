//! Commands of several disk requests: Compare, Verify, Dataset Management, Copy. A [`Job`] yields
//! its requests one after the other; `io::job` submits them.

use export::{Buffer, Grant, Op};
use zerocopy::FromBytes;

use super::fault_status;
use crate::status::Status;
use crate::wire::dataset::{CopyRange0, CopyRange1, DsmRange};

/// A command of several disk requests.
#[derive(Debug)]
pub(super) enum Job {
    Compare(Compare),
    Verify(Verify),
    Dataset(Dataset),
    Copy(Copy),
}

/// The next step of a job.
#[derive(Debug)]
pub(super) enum JobStep {
    Read { lba: u64, blocks: u32 },
    Write { lba: u64, blocks: u32, durable: bool, buffer: Buffer },
    Discard { lba: u64, blocks: u32 },
    Done(Status),
}

/// Maximum bytes of one read of a job.
const CHUNK: u32 = 1 << 18;

/// Maximum Single Source Range Length (MSSRL) in blocks.
pub(super) const MSSRL: u16 = u16::MAX;

/// Maximum Copy Length (MCL) in blocks.
pub(super) const MCL: u32 = 1 << 20;

/// Maximum source ranges of one Copy.
pub(super) const COPY_RANGES: u16 = 128;

#[derive(Debug)]
pub(super) struct Compare {
    lba: u64,
    blocks: u32,
    data: Option<Buffer>,
    equal: Option<bool>,
}

#[derive(Debug)]
pub(super) struct Verify {
    lba: u64,
    left: u32,
    chunk: u32,
}

#[derive(Debug)]
pub(super) struct Dataset {
    deallocate: bool,
    /// Number of ranges in the command.
    count: u16,
    ranges: Vec<(u64, u32)>,
    index: usize,
}

#[derive(Debug)]
pub(super) struct Copy {
    to: u64,
    format: u8,
    /// Number of ranges in the command.
    count: u16,
    durable: bool,
    chunk: u32,
    /// Ranges still to copy: first block and length.
    sources: Vec<(u64, u32)>,
    index: usize,
    /// A chunk that was read and not yet written.
    chunk_data: Option<Buffer>,
    writing: bool,
}

impl Job {
    pub(super) fn compare(lba: u64, blocks: u32) -> Self {
        Self::Compare(Compare { lba, blocks, data: None, equal: None })
    }

    pub(super) fn verify(lba: u64, blocks: u32, shift: u8) -> Self {
        Self::Verify(Verify { lba, left: blocks, chunk: CHUNK >> shift })
    }

    pub(super) fn dataset(deallocate: bool, count: u16) -> Self {
        Self::Dataset(Dataset { deallocate, count, ranges: Vec::new(), index: 0 })
    }

    pub(super) fn copy(to: u64, format: u8, count: u16, shift: u8, durable: bool) -> Self {
        let chunk = CHUNK >> shift;
        Self::Copy(Copy {
            to,
            format,
            count,
            durable,
            chunk,
            sources: Vec::new(),
            index: 0,
            chunk_data: None,
            writing: false,
        })
    }

    /// Returns the length of a source range of Copy in bytes, or `None` for an unknown format.
    pub(super) fn copy_range_len(format: u8) -> Option<u64> {
        match format {
            0 => Some(32),
            1 => Some(40),
            _ => None,
        }
    }

    /// Takes the data of the command. Fails if a range is invalid or access is denied.
    pub(super) fn load(&mut self, buffer: Buffer, grant: &Grant) -> Result<(), Status> {
        match self {
            Self::Compare(compare) => compare.data = Some(buffer),
            Self::Dataset(dataset) => dataset.load(&buffer, grant)?,
            Self::Copy(copy) => copy.load(&buffer, grant)?,
            Self::Verify(_) => {}
        }
        Ok(())
    }

    /// Returns whether it holds a buffer while it waits for another.
    pub(super) fn holds_memory(&self) -> bool {
        matches!(self, Self::Compare(_))
    }

    /// Returns operation, first block and number of blocks of the current request.
    pub(super) fn current(&self) -> (Op, u64, u32) {
        match self {
            Self::Compare(compare) => (Op::Read, compare.lba, compare.blocks),
            Self::Verify(verify) => (Op::Read, verify.lba, verify.left.min(verify.chunk)),
            Self::Dataset(dataset) => {
                let (lba, blocks) = dataset.ranges.get(dataset.index).copied().unwrap_or_default();
                (Op::Discard, lba, blocks)
            }
            Self::Copy(copy) => copy.current(),
        }
    }

    /// Records the success of the current request.
    pub(super) fn advance(&mut self, buffer: Option<Buffer>) {
        match self {
            Self::Compare(compare) => {
                let read = buffer.as_ref().map(Buffer::bytes);
                compare.equal =
                    Some(read.is_some() && read == compare.data.as_ref().map(Buffer::bytes));
            }
            Self::Verify(verify) => {
                let blocks = verify.left.min(verify.chunk);
                verify.lba = verify.lba.saturating_add(blocks.into());
                verify.left -= blocks;
            }
            Self::Dataset(dataset) => dataset.index += 1,
            Self::Copy(copy) => copy.advance(buffer),
        }
    }

    /// Returns the next step.
    pub(super) fn next(&mut self) -> JobStep {
        match self {
            Self::Compare(Compare { equal: None, lba, blocks, .. }) => {
                JobStep::Read { lba: *lba, blocks: *blocks }
            }
            Self::Compare(Compare { equal: Some(true), .. }) => JobStep::Done(Status::SUCCESS),
            Self::Compare(_) => JobStep::Done(Status::COMPARE_FAILURE.dnr()),
            Self::Verify(Verify { left: 0, .. }) => JobStep::Done(Status::SUCCESS),
            Self::Verify(Verify { lba, left, chunk }) => {
                JobStep::Read { lba: *lba, blocks: (*left).min(*chunk) }
            }
            Self::Dataset(dataset) => dataset.next(),
            Self::Copy(copy) => copy.next(),
        }
    }
}

impl Dataset {
    /// Checks all ranges before the first discard (NVM 1.0 §3.2.3).
    fn load(&mut self, buffer: &Buffer, grant: &Grant) -> Result<(), Status> {
        let ranges = <[DsmRange]>::ref_from_prefix_with_elems(buffer.bytes(), self.count.into());
        let (ranges, _) = ranges.map_err(|_| Status::INVALID_FIELD.dnr())?;
        for range in ranges {
            let (lba, blocks) = (range.slba.get(), range.nlb.get());
            let op = if self.deallocate { Op::Discard } else { Op::Read };
            grant.permits(op, lba, blocks.into()).map_err(|fault| fault_status(fault, op))?;
            self.ranges.push((lba, blocks));
        }
        Ok(())
    }

    fn next(&mut self) -> JobStep {
        if !self.deallocate {
            return JobStep::Done(Status::SUCCESS);
        }
        while let Some(&(lba, blocks)) = self.ranges.get(self.index) {
            if blocks != 0 {
                return JobStep::Discard { lba, blocks };
            }
            self.index += 1;
        }
        JobStep::Done(Status::SUCCESS)
    }
}

impl Copy {
    /// Checks all ranges before the first write (NVM 1.0 §3.2.2).
    fn load(&mut self, buffer: &Buffer, grant: &Grant) -> Result<(), Status> {
        self.sources = source_ranges(self.format, self.count, buffer.bytes())?;
        let mut total = 0_u64;
        for &(lba, blocks) in &self.sources {
            grant
                .permits(Op::Read, lba, blocks.into())
                .map_err(|fault| fault_status(fault, Op::Read))?;
            if blocks > MSSRL.into() {
                return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr());
            }
            total += u64::from(blocks);
        }
        if total > MCL.into() || self.sources.len() > COPY_RANGES.into() {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr());
        }
        let write = Op::Write { durable: self.durable };
        grant.permits(write, self.to, total).map(|_| ()).map_err(|fault| fault_status(fault, write))
    }

    fn chunk(&self) -> Option<(u64, u32)> {
        let &(lba, left) = self.sources.get(self.index)?;
        Some((lba, left.min(self.chunk)))
    }

    fn current(&self) -> (Op, u64, u32) {
        let (lba, blocks) = self.chunk().unwrap_or_default();
        if self.writing {
            (Op::Write { durable: self.durable }, self.to, blocks)
        } else {
            (Op::Read, lba, blocks)
        }
    }

    fn advance(&mut self, buffer: Option<Buffer>) {
        if !self.writing {
            self.chunk_data = buffer;
            return;
        }
        self.writing = false;
        let Some((lba, blocks)) = self.chunk() else { return };
        self.to = self.to.saturating_add(blocks.into());
        if let Some((first, left)) = self.sources.get_mut(self.index) {
            (*first, *left) = (lba.saturating_add(blocks.into()), *left - blocks);
            if *left == 0 {
                self.index += 1;
            }
        }
    }

    fn next(&mut self) -> JobStep {
        let Some((lba, blocks)) = self.chunk() else { return JobStep::Done(Status::SUCCESS) };
        match self.chunk_data.take() {
            None => JobStep::Read { lba, blocks },
            Some(buffer) => {
                self.writing = true;
                JobStep::Write { lba: self.to, blocks, durable: self.durable, buffer }
            }
        }
    }
}

fn source_ranges(format: u8, count: u16, bytes: &[u8]) -> Result<Vec<(u64, u32)>, Status> {
    let invalid = Status::INVALID_FIELD.dnr();
    match format {
        0 => {
            let ranges = <[CopyRange0]>::ref_from_prefix_with_elems(bytes, count.into());
            let (ranges, _) = ranges.map_err(|_| invalid)?;
            Ok(ranges.iter().map(|range| (range.slba.get(), range.blocks())).collect())
        }
        1 => {
            let ranges = <[CopyRange1]>::ref_from_prefix_with_elems(bytes, count.into());
            let (ranges, _) = ranges.map_err(|_| invalid)?;
            Ok(ranges.iter().map(|range| (range.slba.get(), range.blocks())).collect())
        }
        _ => Err(invalid),
    }
}
