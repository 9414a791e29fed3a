//! Block status: encodes the extents of `base:allocation` in place, over the records returned by
//! the driver (NBD, Metadata querying).

use export::{Buffer, Extent, Extents, Head, Segment};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::U32;

use super::reply::{BufferPart, Mode, ReplyTo, chunk};
use crate::wire::meta::{Descriptor, ExtendedDescriptor, STATE_HOLE, STATE_ZERO};
use crate::wire::reply::{BLOCK_STATUS, BLOCK_STATUS_EXT, BlockStatusExt};

/// The metadata context id of `base:allocation`.
pub(super) const CONTEXT: u32 = 1;

/// Encodes the reply to a block status request for `len` bytes after the first `skip` bytes of the
/// extents in `buffer`; with `one`, for their first extent. With `known` unset the disk cannot
/// report extents, and the range is reported as data.
pub(super) fn reply(
    mode: Mode,
    to: ReplyTo,
    range: (u64, u64),
    one: bool,
    mut buffer: Buffer,
    known: bool,
) -> Segment {
    if !known {
        buffer.bytes_mut().fill(0);
    }
    let max = if one { 1 } else { usize::MAX };
    let (count, len) = describe(buffer.bytes_mut(), range, mode, max);
    let head = status_head(mode, to, count, len);
    BufferPart::new(buffer, 0, len).with_head(head)
}

/// Encodes the chunk header and the fixed part before the descriptors.
fn status_head(mode: Mode, to: ReplyTo, count: u32, len: usize) -> Head {
    if mode == Mode::Extended {
        let status = BlockStatusExt { context: CONTEXT.into(), count: count.into() };
        let whole = size_of::<BlockStatusExt>() + len;
        let mut head = chunk(mode, to, BLOCK_STATUS_EXT, true, whole as u64);
        head.push(status.as_bytes());
        return head;
    }
    let mut head = chunk(mode, to, BLOCK_STATUS, true, 4 + len as u64);
    head.push(U32::new(CONTEXT).as_bytes());
    head
}

/// Replaces the records in `bytes` by descriptors of at most `max` extents of the range: `len`
/// bytes after the first `skip`. Returns the number of descriptors and their length in bytes.
/// Returns one data extent if the range has no record.
fn describe(bytes: &mut [u8], (skip, len): (u64, u64), mode: Mode, max: usize) -> (u32, usize) {
    let (mut skip, mut left) = (skip, len);
    let (mut count, mut used) = (0, 0);
    for at in (0..bytes.len()).step_by(Extent::LEN) {
        let record = bytes.get(at..at + Extent::LEN).unwrap_or_default();
        let Some(extent) = Extents::parse(record).next() else { break };
        let n = extent.len.saturating_sub(skip).min(left);
        skip = skip.saturating_sub(extent.len);
        if n != 0 {
            used += put(bytes, used, Extent { len: n, ..extent }, mode);
            (count, left) = (count + 1, left - n);
        }
        if left == 0 || count as usize >= max {
            break;
        }
    }
    if count == 0 { (1, put(bytes, 0, Extent::data(len), mode)) } else { (count, used) }
}

/// Writes a descriptor at an offset whose record has been read: it is at most as long as a record.
/// Returns its length.
fn put(bytes: &mut [u8], at: usize, extent: Extent, mode: Mode) -> usize {
    let hole = if extent.hole { STATE_HOLE } else { 0 };
    let flags = if extent.zero { hole | STATE_ZERO } else { hole };
    let place = bytes.get_mut(at..).unwrap_or_default();
    if mode == Mode::Extended {
        let long = ExtendedDescriptor { len: extent.len.into(), flags: u64::from(flags).into() };
        return long.write_to_prefix(place).map_or(0, |()| size_of::<ExtendedDescriptor>());
    }
    let len = u32::try_from(extent.len).unwrap_or(u32::MAX);
    let short = Descriptor { len: len.into(), flags: flags.into() };
    short.write_to_prefix(place).map_or(0, |()| size_of::<Descriptor>())
}

#[cfg(test)]
mod test {
    use super::*;

    fn records(extents: &[Extent]) -> [u8; 64] {
        let mut bytes = [0xee; 64];
        let mut records = Extents::emit(&mut bytes);
        assert!(extents.iter().all(|extent| records.push(*extent)));
        bytes
    }

    #[test]
    fn extents_are_clipped_to_the_range() {
        let mut bytes = records(&[Extent::data(512), Extent::hole(1024), Extent::data(512)]);
        let (count, len) = describe(&mut bytes, (100, 1500), Mode::Structured, usize::MAX);
        assert_eq!((count, len), (3, 24));
        #[rustfmt::skip]
        assert_eq!(bytes[..24], [
            0, 0, 0x01, 0x9c, 0, 0, 0, 0, // 412 bytes of data
            0, 0, 0x04, 0x00, 0, 0, 0, 3, // 1024 of hole and zero
            0, 0, 0x00, 0x40, 0, 0, 0, 0, // 64 of data
        ]);
    }

    #[test]
    fn req_one_returns_the_first_extent_in_the_range() {
        let mut bytes = records(&[Extent::data(512), Extent::hole(1 << 40), Extent::data(512)]);
        let (count, len) = describe(&mut bytes, (512, 1 << 39), Mode::Extended, 1);
        assert_eq!((count, len), (1, 16));
        assert_eq!(bytes[..16], [0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn unknown_extents_are_reported_as_data() {
        let mut bytes = [0; 16];
        assert_eq!(describe(&mut bytes, (0, 4096), Mode::Structured, 1), (1, 8));
        assert_eq!(bytes[..8], [0, 0, 0x10, 0, 0, 0, 0, 0]);
    }
}
