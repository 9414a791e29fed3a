//! CRC32C, the digest of headers and data (NVMe/TCP 1.0 §3.3.1.1).

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// Returns the CRC32C of `bytes`.
#[allow(clippy::cast_possible_truncation, reason = "a 32-bit checksum in a 64-bit value")]
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// An incremental CRC32C.
pub struct Crc32c(Digest);

impl Crc32c {
    /// Creates a digest.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the checksum of the bytes added.
    #[allow(clippy::cast_possible_truncation, reason = "a 32-bit checksum in a 64-bit value")]
    pub fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crc32c")
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// RFC 3720 §B.4.
    #[test]
    fn crc32c_matches_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
    }

    #[test]
    fn incremental_crc_equals_crc_at_once() {
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for cut in [0, 1, 7, 64, 4096, 5000] {
            let mut crc = Crc32c::new();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            assert_eq!(crc.value(), crc32c(&bytes));
        }
    }
}
