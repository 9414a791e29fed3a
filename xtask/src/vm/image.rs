//! Disk images for the tests, filled so that misplaced blocks are detected, with or without
//! partitions.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::Result;
use gpt::disk::LogicalBlockSize;
use sha2::{Digest, Sha256};

/// Bytes of a mebibyte.
pub(super) const MIB: u64 = 1 << 20;

/// Makes an image in which every eight bytes are a hash of their own position.
pub(super) fn filled(path: &Path, bytes: u64) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for position in 0..bytes / 8 {
        let mixed = (position + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        out.write_all(&mixed.to_le_bytes())?;
    }
    Ok(out.flush()?)
}

/// Writes a GPT with 512-byte blocks and one partition to an image.
pub(super) fn partition(path: &Path, partition_bytes: u64) -> Result<()> {
    let block = LogicalBlockSize::Lb512;
    let mut device = Box::new(File::options().read(true).write(true).open(path)?);
    // The kernel expects a protective MBR in block 0.
    let blocks = u32::try_from(size(path)? / 512 - 1)?;
    gpt::mbr::ProtectiveMBR::with_lb_size(blocks).overwrite_lba0(&mut device)?;
    let configuration = gpt::GptConfig::new().writable(true).logical_block_size(block);
    let mut disk = configuration.create_from_device(device, None)?;
    disk.add_partition("data", partition_bytes, gpt::partition_types::LINUX_FS, 0, None)?;
    disk.write()?;
    Ok(())
}

/// Makes a sparse image of zeros.
pub(super) fn empty(path: &Path, bytes: u64) -> Result<()> {
    Ok(File::create(path)?.set_len(bytes)?)
}

/// Returns the SHA-256 of a file, in hexadecimal.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the size of a file in bytes.
pub(super) fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_partitioned_and_hashed() {
        let path = std::env::temp_dir().join(format!("xtask-image-{}", std::process::id()));
        filled(&path, 4 * MIB).unwrap();
        partition(&path, MIB).unwrap();
        let bytes = fs::read(&path).unwrap();
        let sum = super::super::apt::succeed(std::process::Command::new("sha256sum").arg(&path));
        assert_eq!((bytes[450], &bytes[510..512]), (0xee, &[0x55, 0xaa][..]));
        assert_eq!(bytes[512..520], *b"EFI PART");
        assert_eq!(size(&path).unwrap(), 4 * MIB);
        assert!(sum.unwrap().starts_with(&sha256(&path).unwrap()));
        fs::remove_file(&path).unwrap();
    }
}
