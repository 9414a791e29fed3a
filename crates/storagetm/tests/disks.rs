//! Images as disks, by each protocol: of any size, without a name, on a full file system, of processes that are killed
//! or that the kernel gives little to.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "disks/kills.rs"]
mod kills;
#[path = "disks/little.rs"]
mod little;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "disks/remote.rs"]
mod remote;
#[path = "disks/small.rs"]
mod small;

use std::fs::{self, File};
use std::path::PathBuf;

use copy::RequestError;
use testkit::Scratch;

use process::Running;
use remote::{LISTEN, Lent, WAYS};
use small::Small;

/// Starts `storagetm serve` with a listener of each protocol.
fn serve(args: &[&str]) -> Running {
    Running::serve(&[&["--json"], &LISTEN[..], args].concat())
}

fn path(folder: &Scratch, name: &str) -> String {
    folder.0.join(name).to_str().unwrap().to_owned()
}

/// Creates a sparse file.
fn image(path: &str, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// A folder in memory, where a file may have any size; removed when dropped.
struct Memory(PathBuf);

impl Memory {
    fn new() -> Option<Self> {
        let path = PathBuf::from(format!("/dev/shm/storagetm-disks-{}", std::process::id()));
        fs::create_dir(&path).ok().map(|()| Self(path))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn last_block_of_a_disk_of_any_size_is_used() {
    let Some(memory) = Memory::new() else {
        return println!("skip disks of any size: no folder in memory here");
    };
    // One block, odd ones, beyond 32 bits of blocks, 144 PB, and the most that a file may have.
    let sizes = [512, 4096 + 512, (1 << 41) + 512, 1 << 57, i64::MAX as u64 / 512 * 512];
    let images: Vec<String> = sizes
        .iter()
        .map(|bytes| {
            let path = memory.0.join(format!("of{bytes}")).to_str().unwrap().to_owned();
            image(&path, *bytes);
            path
        })
        .collect();
    let disks: Vec<&str> = images.iter().flat_map(|image| ["--writable", image]).collect();
    let running = serve(&disks);
    let lent = Lent::all(&running.until("ready"));
    for (lent, bytes) in lent.iter().zip(sizes) {
        for (at, way) in WAYS.into_iter().enumerate() {
            let mut disk = lent.open(way).unwrap();
            assert_eq!(disk.disk.bytes, bytes, "{way:?}");
            let (last, block) = (bytes - 512, [u8::try_from(at).unwrap() + 1; 512]);
            disk.write(last, &block).unwrap().unwrap();
            disk.flush().unwrap().unwrap();
            assert_eq!(disk.read(last, 512).unwrap().unwrap(), block, "{way:?} {bytes}");
            let beyond = disk.write(bytes, &block).unwrap();
            assert!(
                matches!(beyond, Err(RequestError::OutOfRange | RequestError::NoSpace)),
                "{way:?} {bytes}: {beyond:?}"
            );
        }
    }
}

#[test]
fn image_that_is_unlinked_while_it_is_lent_stays_lent() {
    for driver in ["uring", "blocking"] {
        let folder = Scratch::new();
        let disk = path(&folder, "disk.img");
        image(&disk, 1 << 20);
        let running = serve(&["--io", driver, "--writable", &disk]);
        let lent = Lent::all(&running.until("ready")).remove(0);
        fs::remove_file(&disk).unwrap();
        for (at, way) in WAYS.into_iter().enumerate() {
            let mut disk = lent.open(way).unwrap();
            let (offset, block) = (4096 * at as u64, [u8::try_from(at).unwrap() + 1; 4096]);
            disk.write(offset, &block).unwrap().unwrap();
            disk.flush().unwrap().unwrap();
            assert_eq!(disk.read(offset, 4096).unwrap().unwrap(), block, "{driver} {way:?}");
        }
        let first = lent.open(WAYS[0]).unwrap().read(4096, 4096).unwrap().unwrap();
        assert_eq!(first, [2; 4096], "{driver}: all of them use the same file");
    }
}

/// A write for which the file system has no room fails with a status for that; others do not.
#[test]
fn write_to_a_full_file_system_fails_alone() {
    for driver in ["uring", "blocking"] {
        let folder = Scratch::new();
        let Some(small) = Small::mount(folder.0.join("small"), c"size=256k,mode=700") else {
            return println!("skip a full file system: nothing can be mounted here");
        };
        let disk = small.path("disk.img");
        image(&disk, 1 << 20);
        fs::write(&disk, vec![5; 64 << 10]).unwrap();
        File::options().write(true).open(&disk).unwrap().set_len(1 << 20).unwrap();
        let running = serve(&["--io", driver, "--writable", &disk]);
        let lent = Lent::all(&running.until("ready")).remove(0);
        small.fill();
        for way in WAYS {
            let mut disk = lent.open(way).unwrap();
            let full = disk.write(512 << 10, &[7; 4096]).unwrap();
            assert_eq!(full, Err(RequestError::NoSpace), "{driver} {way:?}");
            disk.write(4096, &[6; 4096]).unwrap().unwrap();
            disk.flush().unwrap().unwrap();
            let read = disk.read(0, 8192).unwrap().unwrap();
            assert_eq!((&read[..4096], &read[4096..]), (&[5; 4096][..], &[6; 4096][..]));
            assert_eq!(disk.read(512 << 10, 4096).unwrap().unwrap(), [0; 4096]);
        }
    }
}
