//! Disk images for the tests, filled so that misplaced blocks are detected, with or without
//! partitions.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ::image::disk::{Contents, Disk};
use ::image::files::Files;
use anyhow::{Context, Result};
use gpt::disk::LogicalBlockSize;
use gpt::partition_types::{EFI, LINUX_FS};
use sha2::{Digest, Sha256};

use super::apt::{program, succeed};

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
    disk.add_partition("data", partition_bytes, LINUX_FS, 0, None)?;
    disk.write()?;
    Ok(())
}

/// Writes an EFI system partition with these files, and behind it a partition with the contents of
/// `root`, with a GPT.
pub(super) fn bootable(files: Files, root: &Path, to: &Path) -> Result<()> {
    let contents = Contents { files, bios: None, iso: false };
    let disk = Disk::image(&contents)?.whole();
    let (start, end) = (usize::try_from(MIB)?, disk.len() - usize::try_from(MIB)?);
    let system = disk.get(start..end).context("a disk without a partition")?;
    let (system_bytes, root_bytes) = (system.len() as u64, size(root)?);
    empty(to, 2 * MIB + system_bytes + root_bytes)?;
    let mut device = Box::new(File::options().read(true).write(true).open(to)?);
    let blocks = u32::try_from(device.metadata()?.len() / 512 - 1)?;
    gpt::mbr::ProtectiveMBR::with_lb_size(blocks).overwrite_lba0(&mut device)?;
    let configuration = gpt::GptConfig::new().writable(true);
    let configuration = configuration.logical_block_size(LogicalBlockSize::Lb512);
    let mut disk = configuration.create_from_device(device, None)?;
    disk.add_partition_at("EFI", 1, MIB / 512, system_bytes / 512, EFI, 0)?;
    let root_at = MIB + system_bytes;
    disk.add_partition_at("root", 2, root_at / 512, root_bytes / 512, LINUX_FS, 0)?;
    let mut device = disk.write()?;
    device.write_all_at(system, MIB)?;
    device.seek(SeekFrom::Start(root_at))?;
    io::copy(&mut File::open(root)?, &mut device)?;
    Ok(())
}

/// Makes an ext4 file system of this size in bytes and with this UUID of a directory, by the mke2fs of
/// unpacked packages.
pub(super) fn ext4(tools: &Path, of: &Path, (bytes, uuid): (u64, &str), to: &Path) -> Result<()> {
    empty(to, bytes)?;
    let mut mke2fs = program(tools, "usr/sbin/mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-U", uuid, "-L", "root", "-d"]).arg(of).arg(to);
    succeed(&mut mke2fs).map(drop)
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
        let sum = succeed(std::process::Command::new("sha256sum").arg(&path));
        assert_eq!((bytes[450], &bytes[510..512]), (0xee, &[0x55, 0xaa][..]));
        assert_eq!(bytes[512..520], *b"EFI PART");
        assert_eq!(size(&path).unwrap(), 4 * MIB);
        assert!(sum.unwrap().starts_with(&sha256(&path).unwrap()));
        fs::remove_file(&path).unwrap();
    }
}
