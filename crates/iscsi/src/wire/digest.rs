//! CRC32C, the digest of headers and data (RFC 7143 §13.1). It is sent with its least significant
//! byte first.

use crc_fast::{CrcAlgorithm, Digest};

/// Returns the digest of the concatenated `parts`.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> [u8; 4] {
    let mut crc = Crc32c::default();
    parts.iter().for_each(|part| crc.update(part));
    crc.finish()
}

/// The digest of bytes as they come.
#[derive(Debug)]
pub struct Crc32c(Digest);

impl Default for Crc32c {
    fn default() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }
}

impl Crc32c {
    /// Appends bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a 32-bit checksum in a 64-bit value")]
    pub fn finish(self) -> [u8; 4] {
        (self.0.finalize() as u32).to_le_bytes()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// RFC 7143 Appendix A.4, with the byte order of the wire.
    #[test]
    fn golden_digests() {
        assert_eq!(crc32c(&[&[0; 32]]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[&[0xff; 32]]), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[&rising[..7], &rising[7..]]), [0x4e, 0x79, 0xdd, 0x46]);
        let falling: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[&falling]), [0x5c, 0xdb, 0x3f, 0x11]);
        // A SCSI Read (10) command.
        #[rustfmt::skip]
        let read = [
            0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0,
            0, 0, 0, 0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(crc32c(&[&read]), [0x56, 0x3a, 0x96, 0xd9]);
    }
}
