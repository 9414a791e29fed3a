//! A block device over NBD: nbdfuse and a loop device, with a file system on it, and with random
//! requests compared with a copy in memory.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::foreign::{
    Background, Folder, MIB, lacks, next, program, random_bytes, run, stdout_of, wait_for,
};
use crate::server::{DRIVERS, Server};

/// An export as a block device.
struct Device {
    path: String,
    fuse: Option<Background>,
    _server: Server,
}

impl Device {
    /// Returns `None` if this machine has no free loop device.
    fn new(folder: &Folder, io: &str, image: &str) -> Option<Self> {
        let server = Server::unix(folder, &["--io", io, "--writable", image]);
        let file = folder.path("device");
        File::create(&file).unwrap();
        let fuse = Background::start(program("nbdfuse").args([&file, &server.uri("")]));
        wait_for("a mounted disk", || fs::metadata(&file).ok().filter(|it| it.len() != 0));
        let output = run(program("losetup").args(["--find", "--show", "--direct-io=on", &file]));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        if message.contains("unused loop device") || message.contains("not permitted") {
            return None;
        }
        assert!(output.status.success(), "{message}");
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Some(Self { path, fuse: Some(fuse), _server: server })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        run(program("losetup").args(["-d", &self.path]));
        // nbdfuse ends when its file system is unmounted, which its end does, too.
        let _ = self.fuse.take().map(Background::end);
    }
}

/// Returns whether loop devices cannot be made here, and prints the reason.
fn skip_without_loop_devices(test: &str, more: &[&str]) -> bool {
    if lacks(test, &["nbdfuse", "fusermount3", "losetup"]) || lacks(test, more) {
        return true;
    }
    let reason = match () {
        () if !rustix::process::geteuid().is_root() => "only root can make loop devices",
        () if !Path::new("/dev/fuse").exists() => "no /dev/fuse here",
        () if !Path::new("/dev/loop-control").exists() => "no loop devices here",
        () => return false,
    };
    println!("skip {test}: {reason}");
    true
}

fn on_devices(test: &str, bytes: usize, check: impl Fn(&Folder, &str)) {
    for io in DRIVERS {
        let folder = Folder::new();
        let image = folder.hole("disk.img", bytes);
        match Device::new(&folder, io, &image) {
            Some(device) => check(&folder, &device.path),
            None => println!("skip {test}: no loop devices here"),
        }
    }
}

#[test]
fn r03_interop_file_system_lives_on_a_lent_disk() {
    let test = "a file system lives on a lent disk";
    if skip_without_loop_devices(test, &["mkfs.ext4", "e2fsck", "mount"]) {
        return;
    }
    on_devices(test, 64 * MIB, |folder, device| {
        stdout_of("mkfs.ext4", &["-q", "-F", device]);
        let place = folder.path("mounted");
        fs::create_dir(&place).unwrap();
        stdout_of("mount", &[device, &place]);
        let file = |n: u64| format!("{place}/{n}");
        (0..40u64).for_each(|n| fs::write(file(n), random_bytes(200_000)).unwrap());
        (0..40u64).step_by(3).for_each(|n| fs::remove_file(file(n)).unwrap());
        if programs::find("fstrim").is_some() {
            stdout_of("fstrim", &[&place]);
        }
        stdout_of("umount", &[&place]);
        stdout_of("e2fsck", &["-f", "-n", device]);
        stdout_of("mount", &[device, &place]);
        assert!(
            (0..40u64)
                .filter(|n| n % 3 != 0)
                .all(|n| fs::read(file(n)).unwrap() == random_bytes(200_000))
        );
        stdout_of("umount", &[&place]);
    });
}

/// As fsx, for a block device: random reads, writes and discards, compared with a copy in memory.
#[test]
fn r04_interop_random_requests_leave_what_they_should() {
    let test = "random requests leave what they should";
    if skip_without_loop_devices(test, &["blkdiscard"]) {
        return;
    }
    on_devices(test, 8 * MIB, |_, device| {
        let at_once = OFlags::DSYNC.bits().cast_signed();
        let mut options = File::options();
        options.read(true).write(true).custom_flags(at_once);
        let file = options.open(device).unwrap();
        let (mut copy, mut seed) = (vec![0; 8 * MIB], 0x5eed_0001);
        for step in 0..3000u32 {
            let any = |seed: &mut u64, below: usize| usize::try_from(next(seed)).unwrap() % below;
            let len = 512 * (1 + any(&mut seed, 128));
            let at = 512 * any(&mut seed, (copy.len() - len) / 512 + 1);
            let place = &mut copy[at..at + len];
            match any(&mut seed, 20) {
                0 => {
                    let (offset, length) = (at.to_string(), len.to_string());
                    stdout_of("blkdiscard", &["--zeroout", "-o", &offset, "-l", &length, device]);
                    place.fill(0);
                }
                1..=9 => {
                    place.fill(u8::try_from(step % 251).unwrap());
                    file.write_all_at(place, at as u64).unwrap();
                }
                _ => {
                    let mut read = vec![0xee; len];
                    file.read_exact_at(&mut read, at as u64).unwrap();
                    assert!(read == place, "step {step}: {len} bytes at {at}");
                }
            }
        }
        drop(file);
        // Bypasses the page cache.
        stdout_of("blockdev", &["--flushbufs", device]);
        assert!(fs::read(device).unwrap() == copy);
    });
}
