//! Arbitrary bytes as a compressed stream of each format: no panic, bounded output and memory.

use filesystem::{Container, unpack};

/// Limit of the output in bytes.
const MAX_OUTPUT: usize = 1 << 20;

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut output = vec![0; MAX_OUTPUT];
    for format in [Container::Gzip, Container::Xz, Container::Zstd] {
        // A writer that fails when it is full.
        let unpacked = unpack(format, data, &mut &mut output[..]).is_ok();
        // A zstd stream may begin with a frame to be skipped (RFC 8878 §3.1.2).
        let is_one = format == Container::Zstd || Container::detect(data, &[]) == Some(format);
        assert!(!unpacked || is_one || data.is_empty(), "{format} of something else");
    }
}
