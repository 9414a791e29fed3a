//! A machine that serves disks on a private link to another one, and follows its requests.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Bench;
use super::cache::Kernel;
use super::guest::{Guest, link, virtio_disk};
use super::initramfs::Job;

/// The timeout for the emulator's end of the link.
const BOOT: Duration = Duration::from_secs(240);

/// What differs between such machines.
#[derive(Debug)]
pub(super) struct Lender {
    /// The folder of its scripts under `tests/vm`.
    pub(super) scenario: &'static str,
    /// Its address on the link, with the length of the prefix.
    pub(super) interface: String,
    /// The arguments of qemu for its disks.
    pub(super) disks: Vec<String>,
}

/// Boots one with a disk that is served read-only and a writable one. The other end of the link
/// must exist at `link` in the directory.
pub(super) fn boot(
    bench: &Bench,
    kernel: &Kernel,
    folder: &Path,
    scenario: &'static str,
    [ro, rw]: [&Path; 2],
) -> Result<Guest> {
    let disks = [virtio_disk(ro, "RO1", true), virtio_disk(rw, "RW1", false)].concat();
    let interface = "192.168.50.1/24".to_owned();
    start(bench, kernel, folder, Lender { scenario, interface, disks })
}

/// Boots one, and waits until its end of the link exists at `link` in the directory.
pub(super) fn start(
    bench: &Bench,
    kernel: &Kernel,
    folder: &Path,
    Lender { scenario, interface, disks }: Lender,
) -> Result<Guest> {
    let socket = folder.join("link");
    let mut devices = link(&socket, 1).to_vec();
    devices.extend(disks);
    let job = Job {
        scenario,
        role: "lender",
        variables: vec![("interface", interface)],
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
