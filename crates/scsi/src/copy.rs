//! EXTENDED COPY (LID1) within the disk, and RECEIVE COPY RESULTS (SPC-4).

use export::{Export, Grant, Op};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::inquiry::naa;
use crate::range::Blocks;
use crate::response::Response;
use crate::settings::LastCopy;
use crate::wire::copy::{
    BLOCKS, COMPLETED, CopyStatus, Disk, FAILED, Header, IDENTIFICATION, IN_PROGRESS,
    OperatingParameters, SNLID, Segment,
};
use crate::wire::inquiry::{association, code_set, designator};
use crate::wire::sense::Sense;

/// Maximum number of CSCD descriptors.
const MAX_DISKS: u16 = 8;
/// Maximum number of segment descriptors.
const MAX_SEGMENTS: u16 = 64;
/// Maximum length of all descriptors in bytes.
const MAX_LENGTH: u16 = 4096;
/// Maximum number of copies of all initiators; not checked, as the memory of each is bounded.
const MAX_COPIES: u8 = 255;

/// A part of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) source: Blocks,
    pub(crate) destination: u64,
}

/// Returns the data of RECEIVE COPY OPERATING PARAMETERS.
pub(crate) fn operating_parameters(export: &Export) -> Vec<u8> {
    let mut data = OperatingParameters::new_zeroed();
    data.available = U32::new(42);
    data.flags = SNLID;
    data.max_disks = U16::new(MAX_DISKS);
    data.max_segments = U16::new(MAX_SEGMENTS);
    data.max_length = U32::new(MAX_LENGTH.into());
    let max_segment = u64::from(u16::MAX) << export.geometry.shift();
    data.max_segment = U32::new(u32::try_from(max_segment).unwrap_or(u32::MAX));
    data.total_concurrent = U16::new(MAX_COPIES.into());
    data.concurrent = MAX_COPIES;
    data.granularity = export.geometry.shift();
    data.types_length = 2;
    data.types = [BLOCKS, IDENTIFICATION];
    data.as_bytes().to_vec()
}

/// Returns the data of RECEIVE COPY STATUS for `list_id`.
pub(crate) fn status(last: Option<LastCopy>, list_id: u8) -> Result<Vec<u8>, Sense> {
    let last = last.filter(|last| last.list_id == list_id).ok_or(Sense::INVALID_FIELD_IN_CDB)?;
    let mut data = CopyStatus::new_zeroed();
    data.available = U32::new(8);
    data.status = match last.succeeded {
        None => IN_PROGRESS,
        Some(true) => COMPLETED,
        Some(false) => FAILED,
    };
    data.segments = U16::new(last.segments);
    data.unit = 1;
    data.count = U32::new(u32::try_from(last.bytes >> 10).unwrap_or(u32::MAX));
    Ok(data.as_bytes().to_vec())
}

/// Checks the length of the parameter list, before it is received.
pub(crate) fn check_length(length: u32) -> Result<(), Sense> {
    let max = size_of::<Header>() + usize::from(MAX_LENGTH);
    let is_short = usize::try_from(length).is_ok_and(|length| length <= max);
    if is_short { Ok(()) } else { Err(Sense::PARAMETER_LIST_LENGTH) }
}

/// Decodes the parameter list. Returns the list identifier and the parts, all of them checked.
pub(crate) fn parse(grant: &Grant, list: &[u8]) -> Result<(u8, Vec<Part>), Response> {
    let (header, rest) = Header::ref_from_prefix(list).map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
    let disks = usize::from(header.disks.get());
    let segments = usize::try_from(header.segments.get()).unwrap_or(usize::MAX);
    let total = disks.checked_add(segments).filter(|&total| total <= usize::from(MAX_LENGTH));
    let total = total.filter(|&total| total <= rest.len()).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    if header.inline.get() != 0 {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
    }
    let (disks, segments) = rest[..total].split_at(disks);
    let disks = parse_disks(grant, disks)?;
    let parts = parse_segments(grant, segments, &disks)?;
    Ok((header.list_id, parts))
}

/// Returns for each CSCD descriptor whether it is this disk.
fn parse_disks(grant: &Grant, mut bytes: &[u8]) -> Result<Vec<bool>, Sense> {
    let mut disks = Vec::new();
    while let Some(&kind) = bytes.first() {
        if kind != IDENTIFICATION {
            return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
        }
        let (disk, rest) =
            Disk::ref_from_prefix(bytes).map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
        if disks.len() >= MAX_DISKS.into() {
            return Err(Sense::TOO_MANY_TARGETS);
        }
        let own = naa(&grant.export().identity);
        let is_naa = disk.code_set & 0x0f == code_set::BINARY
            && disk.designator & 0x3f == association::UNIT | designator::NAA;
        let name = disk.name.get(..disk.length.into());
        disks.push(is_naa && name == Some(&own[..]));
        bytes = rest;
    }
    Ok(disks)
}

fn parse_segments(grant: &Grant, mut bytes: &[u8], disks: &[bool]) -> Result<Vec<Part>, Response> {
    let mut parts = Vec::new();
    while let Some(&kind) = bytes.first() {
        if kind != BLOCKS {
            return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR.into());
        }
        let (segment, rest) =
            Segment::ref_from_prefix(bytes).map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
        if parts.len() >= MAX_SEGMENTS.into() {
            return Err(Sense::TOO_MANY_SEGMENTS.into());
        }
        parts.push(part(grant, segment, disks)?);
        bytes = rest;
    }
    Ok(parts)
}

/// Checks a segment: both ends must be this disk.
fn part(grant: &Grant, segment: &Segment, disks: &[bool]) -> Result<Part, Response> {
    let ends = [segment.source, segment.destination];
    if !ends.iter().all(|index| disks.get(usize::from(index.get())) == Some(&true)) {
        return Err(Sense::UNREACHABLE_COPY_TARGET.into());
    }
    let blocks = segment.blocks.get().into();
    let source = Blocks { lba: segment.source_lba.get(), blocks };
    let destination = Blocks { lba: segment.destination_lba.get(), blocks };
    for (range, op) in [(source, Op::Read), (destination, Op::Write { durable: false })] {
        range.check_up_to(grant, op, u32::MAX).map_err(|response| match response.sense {
            Some(sense) if sense == Sense::OUT_OF_RANGE => Sense::COPY_ABORTED.into(),
            _ => response,
        })?;
    }
    Ok(Part { source, destination: destination.lba })
}
