//! Wire format of iSCSI (RFC 7143 §11): headers, text keys, digests and status codes, byte for byte.
//! All numbers are big-endian.

pub mod bhs;
pub mod digest;
pub mod login;
pub mod opcode;
pub mod text;

/// The TCP port that IANA assigned to iSCSI targets.
pub const PORT: u16 = 3260;

/// A tag that stands for none (RFC 7143 §11.2.1.8, §11.7.4).
pub const NO_TAG: u32 = 0xffff_ffff;

/// Returns the number of bytes that pad `len` bytes to whole words (RFC 7143 §11.1).
#[must_use]
pub fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn data_segments_are_padded_to_words() {
        assert_eq!([0, 1, 2, 3, 4, 36].map(padding), [0, 3, 2, 1, 0, 0]);
        assert!(padding(usize::MAX) < 4);
    }
}
