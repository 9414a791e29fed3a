//! The disks of a machine that is booted into target mode, whose contents must not change.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::vm::guest::virtio_disk;
use crate::vm::image::{self, MIB};

/// The second disk, at the NVMe controller, has the metadata of a RAID member, version 1.2.
const SUPERBLOCK_AT: u64 = 4096;
const SUPERBLOCK_MAGIC: u32 = 0xa92b_4efc;

/// Two disks of one machine.
#[derive(Debug)]
pub(super) struct Disks {
    virtio: PathBuf,
    nvme: PathBuf,
    sums: Vec<String>,
}

impl Disks {
    /// Serial numbers of the disks.
    pub(super) const VIRTIO: &str = "VIRTIO1";
    pub(super) const NVME: &str = "NVME1";
    /// Sizes of the disks in bytes.
    pub(super) const VIRTIO_SIZE: u64 = 24 * MIB;
    pub(super) const NVME_SIZE: u64 = 16 * MIB;

    /// Makes the images: one with a partition table, one that is the only member of a RAID 1.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let (virtio, nvme) = (folder.join("virtio.img"), folder.join("nvme.img"));
        image::filled(&virtio, Self::VIRTIO_SIZE)?;
        image::partition(&virtio, Self::VIRTIO_SIZE / 2)?;
        image::filled(&nvme, Self::NVME_SIZE)?;
        let mut file = File::options().write(true).open(&nvme)?;
        file.seek(SeekFrom::Start(SUPERBLOCK_AT))?;
        file.write_all(&superblock(Self::NVME_SIZE))?;
        let sums = sums(&virtio, &nvme)?;
        Ok(Self { virtio, nvme, sums })
    }

    /// Returns the checksums of the exports, sorted.
    pub(super) fn sums(&self) -> &[String] {
        &self.sums
    }

    /// Returns the checksums of the images now, sorted.
    pub(super) fn read(&self) -> Result<Vec<String>> {
        sums(&self.virtio, &self.nvme)
    }

    /// Checks that no byte has changed since the images were made.
    pub(super) fn unchanged(&self) -> Result<()> {
        ensure!(self.read()? == self.sums, "a disk has been changed");
        Ok(())
    }

    /// Returns the qemu arguments.
    pub(super) fn devices(&self) -> Vec<String> {
        let mut devices = virtio_disk(&self.virtio, Self::VIRTIO, false).to_vec();
        let (image, serial) = (self.nvme.display(), Self::NVME);
        devices.extend([
            "-drive".to_owned(),
            format!("file={image},format=raw,if=none,id={serial},cache=unsafe"),
            "-device".to_owned(),
            format!("nvme,drive={serial},serial={serial}"),
        ]);
        devices
    }
}

fn sums(virtio: &Path, nvme: &Path) -> Result<Vec<String>> {
    let mut sums = vec![image::sha256(virtio)?, image::sha256(nvme)?];
    sums.sort();
    Ok(sums)
}

/// Returns the superblock of a RAID 1 of one disk (`struct mdp_superblock_1` of Linux): anything
/// that assembles arrays would start this one, and write to it.
fn superblock(disk_bytes: u64) -> Vec<u8> {
    const DATA_AT: u64 = 2048;
    let sectors = disk_bytes / 512 - DATA_AT;
    let mut block = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = block.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &SUPERBLOCK_MAGIC.to_le_bytes());
    put(4, &1_u32.to_le_bytes()); // major version
    put(16, &[0x5a; 16]); // the array's identity
    put(32, b"tests:0"); // its name
    put(72, &1_u32.to_le_bytes()); // level
    put(80, &sectors.to_le_bytes()); // sectors used of each disk
    put(92, &1_u32.to_le_bytes()); // disks
    put(128, &DATA_AT.to_le_bytes());
    put(136, &sectors.to_le_bytes());
    put(144, &(SUPERBLOCK_AT / 512).to_le_bytes()); // where the superblock itself is
    put(168, &[0xa5; 16]); // the disk's identity
    put(200, &1_u64.to_le_bytes()); // events
    put(208, &u64::MAX.to_le_bytes()); // nothing to resynchronise
    put(220, &1_u32.to_le_bytes()); // roles that follow: this disk is number 0
    let sum = checksum(block.get(..258).unwrap_or_default());
    if let Some(field) = block.get_mut(216..220) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
    block
}

/// Returns the sum of the little-endian words, folded to 32 bits.
fn checksum(bytes: &[u8]) -> u32 {
    let word =
        |chunk: &[u8]| chunk.iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
    let sum: u64 = bytes.chunks(4).map(word).sum();
    u32::try_from((sum & 0xffff_ffff) + (sum >> 32)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn other_programs_see_a_partition_table_and_a_raid_member() {
        if programs::lacks("disks of test machines", &["blkid"]) {
            return;
        }
        let folder = std::env::temp_dir().join(format!("xtask-disks-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let disks = Disks::make(&folder).unwrap();
        for (path, wanted) in [(&disks.virtio, "gpt"), (&disks.nvme, "linux_raid_member")] {
            let told = programs::command("blkid").arg("-p").arg(path).output().unwrap().stdout;
            let told = String::from_utf8_lossy(&told);
            assert!(told.contains(wanted), "{told}");
        }
        disks.unchanged().unwrap();
        File::options().write(true).open(&disks.nvme).unwrap().write_all(b"x").unwrap();
        assert!(disks.unchanged().is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
