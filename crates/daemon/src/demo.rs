//! The demo disk: an in-memory disk with a partition table and a file system with a README.

mod fat;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux::gpt::{Gpt, Partition as Entry};
use linux::partition::swap_guid;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// The block size of the demo disk, in bytes.
pub(crate) const BLOCK: u32 = 512;

/// Blocks before the partition: 1 MiB, as partitioning tools leave.
const FIRST: u64 = 2048;

const README: &str = "\
This disk is not in your computer.\r\n\
\r\n\
It is a piece of memory of another machine. There, storagetm lends it over\r\n\
the network by NVMe/TCP; here, the kernel attached it and shows it as a disk\r\n\
like any other: /dev/nvme1n1 or so, with this file system on its partition.\r\n\
\r\n\
What you can do with it:\r\n\
\r\n\
  nvme list                  shows it among the disks of this computer\r\n\
  nvme disconnect-all        gives it back (unmount it first)\r\n\
\r\n\
It is read-only, unless storagetm was told on the other machine\r\n\
  storagetm serve --demo --writable demo\r\n\
and all that is written to it is gone when storagetm ends there.\r\n\
\r\n\
To lend a real disk, type on the other machine\r\n\
  storagetm list             which disks there are\r\n\
  storagetm serve /dev/sdX   lends one, read-only\r\n";

/// Makes a demo disk of `bytes` bytes with the disk GUID `uuid`. Unless `writable`, seals the
/// memory against writes.
///
/// # Errors
/// Fails if memory is exhausted, or if the kernel has no `memfd_create`.
pub(crate) fn open(bytes: u64, uuid: [u8; 16], writable: bool) -> io::Result<File> {
    let memory = memfd_create("storagetm-demo", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let disk = File::from(memory);
    disk.set_len(bytes)?;
    fill(&disk, bytes, uuid)?;
    let mut seals = SealFlags::SHRINK | SealFlags::GROW;
    if !writable {
        seals |= SealFlags::WRITE;
    }
    fcntl_add_seals(&disk, seals | SealFlags::SEAL)?;
    Ok(disk)
}

fn fill(disk: &File, bytes: u64, uuid: [u8; 16]) -> io::Result<()> {
    let partition = partition(bytes / u64::from(BLOCK));
    let table = table(bytes / u64::from(BLOCK), partition, uuid);
    disk.write_all_at(&table.start(), 0)?;
    let backup = table.end();
    disk.write_all_at(&backup, bytes - backup.len() as u64)?;
    let serial = u32::from_be_bytes([uuid[0], uuid[1], uuid[2], uuid[3]]);
    for (block, content) in fat::emit(partition, serial, README.as_bytes()) {
        disk.write_all_at(&content, (partition.first + block) * u64::from(BLOCK))?;
    }
    Ok(())
}

/// Type GUID of a basic data partition, in on-disk byte order.
const BASIC_DATA: [u8; 16] = [
    0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7,
];

fn table(blocks: u64, partition: Partition, uuid: [u8; 16]) -> Gpt {
    let mut own = uuid;
    own[15] ^= 1; // The partition's own identity, beside the disk's.
    let entry = Entry {
        kind: BASIC_DATA,
        guid: swap_guid(own),
        first: partition.first,
        last: partition.first + partition.blocks - 1,
        name: "storagetm demo",
    };
    Gpt::new(BLOCK, blocks, swap_guid(uuid), &[entry])
}

/// Location of the partition in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Partition {
    first: u64,
    blocks: u64,
}

/// As large as the disk and FAT16 allow.
fn partition(blocks: u64) -> Partition {
    let end = blocks - Gpt::tail_blocks(BLOCK);
    Partition { first: FIRST, blocks: (end - FIRST).min(fat::MAX_BLOCKS) }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::Stdio;

    const UUID: [u8; 16] = [0x2f, 0x6d, 0x1c, 0x52, 0, 1, 0x40, 2, 0x80, 3, 4, 5, 6, 7, 8, 9];
    const SIZES: [u64; 5] = [4 << 20, 64 << 20, 256 << 20, 2 << 30, 8 << 30];

    /// Runs a tool. Returns `None` if it is not installed.
    fn run(tool: &str, arguments: &[&str]) -> Option<(bool, String)> {
        if programs::lacks("the demo disk", &[tool]) {
            return None;
        }
        let mut command = programs::command(tool);
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// Writes the partition of a demo disk to a sparse file.
    fn partition_file(bytes: u64) -> std::path::PathBuf {
        let path =
            std::env::temp_dir().join(format!("storagetm-fat-{}-{bytes}", std::process::id()));
        let file = File::create(&path).unwrap();
        let partition = partition(bytes / 512);
        file.set_len(partition.blocks * 512).unwrap();
        for (block, content) in fat::emit(partition, 0x2f6d_1c52, README.as_bytes()) {
            file.write_all_at(&content, block * 512).unwrap();
        }
        path
    }

    #[test]
    fn file_system_passes_fsck() {
        for bytes in SIZES {
            let path = partition_file(bytes);
            let checked = run("fsck.vfat", &["-n", "-v", path.to_str().unwrap()]);
            let read = run("mtype", &["-i", path.to_str().unwrap(), "::README.TXT"]);
            std::fs::remove_file(&path).unwrap();
            if let Some((sound, said)) = checked {
                assert!(sound && said.contains("16 bit entries"), "{bytes}: {said}");
            }
            if let Some((_, text)) = read {
                assert_eq!(text, README);
            }
        }
    }

    #[test]
    fn partition_table_passes_sfdisk() {
        for bytes in SIZES {
            let disk = open(bytes, UUID, true).unwrap();
            assert_eq!(disk.metadata().unwrap().len(), bytes);
            let table = linux::partition::read(&disk).unwrap().unwrap();
            assert_eq!((table.block_size, table.guid, table.entries.len()), (BLOCK, Some(UUID), 1));
            let path =
                std::env::temp_dir().join(format!("storagetm-gpt-{}-{bytes}", std::process::id()));
            let copy = File::create(&path).unwrap();
            copy.set_len(bytes).unwrap();
            let table = super::table(bytes / 512, partition(bytes / 512), UUID);
            let end = table.end();
            copy.write_all_at(&table.start(), 0).unwrap();
            copy.write_all_at(&end, bytes - end.len() as u64).unwrap();
            let verified = run("sfdisk", &["--verify", path.to_str().unwrap()]);
            std::fs::remove_file(&path).unwrap();
            if let Some((sound, said)) = verified {
                assert!(sound && !said.contains("corrupt"), "{bytes}: {said}");
            }
        }
    }

    #[test]
    fn read_only_demo_disk_is_sealed() {
        let disk = open(4 << 20, UUID, false).unwrap();
        assert!(disk.write_all_at(b"x", 0).is_err());
        let disk = open(4 << 20, UUID, true).unwrap();
        assert!(disk.write_all_at(b"x", 0).is_ok());
        assert!(disk.set_len(1).is_err());
    }

    #[test]
    fn readme_explains_how_to_disconnect() {
        assert!(README.contains("nvme disconnect-all"));
        assert!(README.lines().all(|line| line.len() <= 80));
    }
}
