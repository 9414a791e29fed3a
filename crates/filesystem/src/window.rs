//! Bounds-checked reads of bytes and numbers.

use std::io;

use linux::medium::ReadAt;

/// Maximum bytes per read.
const MAX_LEN: u64 = 16 << 20;

/// Reads `length` bytes at `offset`; `None` if they are not all there, or too many.
pub(crate) fn read<R: ReadAt + ?Sized>(
    disk: &R,
    offset: u64,
    length: u64,
) -> io::Result<Option<Vec<u8>>> {
    let Some(size) = usize::try_from(length).ok().filter(|_| length <= MAX_LEN) else {
        return Ok(None);
    };
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < bytes.len() {
        let Some(at) = offset.checked_add(filled as u64) else { return Ok(None) };
        match disk.read_at(bytes.get_mut(filled..).unwrap_or_default(), at) {
            Ok(0) => return Ok(None),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(bytes))
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// A 16-bit little-endian number.
pub(crate) fn le16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// A 32-bit little-endian number.
pub(crate) fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// A 64-bit little-endian number.
pub(crate) fn le64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// A 16-bit big-endian number.
pub(crate) fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_be_bytes)
}

/// A 32-bit big-endian number.
pub(crate) fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_be_bytes)
}

/// A 64-bit big-endian number.
pub(crate) fn be64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_be_bytes)
}

/// The runs of set bits among the first `count` bits, as ranges of bit numbers.
pub(crate) fn runs(bitmap: &[u8], count: u64) -> Vec<std::ops::Range<u64>> {
    let (mut runs, mut start) = (Vec::new(), None);
    for bit in 0..count {
        let byte = usize::try_from(bit / 8).ok().and_then(|at| bitmap.get(at)).copied();
        let set = byte.unwrap_or(0xff) >> (bit % 8) & 1 == 1;
        match (set, start) {
            (true, None) => start = Some(bit),
            (false, Some(from)) => {
                runs.push(from..bit);
                start = None;
            }
            _ => {}
        }
    }
    runs.extend(start.map(|from| from..count));
    runs
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one run is what is expected")]
    fn missing_bits_count_as_set() {
        assert_eq!(runs(&[0b0110_0001, 0b1], 12), [0..1, 5..7, 8..9]);
        assert_eq!(runs(&[0], 12), [8..12]);
        assert_eq!(runs(&[0xff], 6), [0..6]);
        assert_eq!(runs(&[], 0), []);
    }

    #[test]
    fn short_reads_return_none() {
        let disk: &[u8] = &[1, 2, 3];
        assert_eq!(read(disk, 1, 2).unwrap(), Some(vec![2, 3]));
        assert_eq!(read(disk, 2, 2).unwrap(), None);
        assert_eq!(read(disk, u64::MAX, 2).unwrap(), None);
        assert_eq!(read(disk, 0, u64::MAX).unwrap(), None);
        assert_eq!((le16(&[1, 2], 0), le32(&[1, 2], 0), le64(&[0; 8], 1)), (Some(513), None, None));
    }
}
