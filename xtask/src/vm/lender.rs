//! A machine that serves two disks on a private link to another one, and follows its requests.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Bench;
use super::cache::Kernel;
use super::guest::{Guest, link, virtio_disk};
use super::initramfs::Job;

/// The timeout for the emulator's end of the link.
const BOOT: Duration = Duration::from_secs(240);

/// Boots it, with a disk that is served read-only and a writable one. The other end of the link
/// must exist at `link` in the directory.
pub(super) fn boot(
    bench: &Bench,
    kernel: &Kernel,
    folder: &Path,
    scenario: &'static str,
    [ro, rw]: [&Path; 2],
) -> Result<Guest> {
    let socket = folder.join("link");
    let mut devices = link(&socket, 1).to_vec();
    devices.extend(virtio_disk(ro, "RO1", true));
    devices.extend(virtio_disk(rw, "RW1", false));
    let job = Job {
        scenario,
        role: "lender",
        variables: vec![("interface", "192.168.50.1/24".to_owned())],
        files: vec![("usr/bin/storagetm", bench.program.clone())],
        extra: None,
    };
    let guest = Guest::boot(bench, kernel, folder, &job, &devices)?;
    let deadline = Instant::now() + BOOT;
    while !socket.exists() {
        ensure!(Instant::now() < deadline, "qemu made no link");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(guest)
}
