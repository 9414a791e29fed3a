//! Scenario: storagetm as a USB device, by a controller that the kernel emulates (`dummy_hcd`) and
//! whose host is the same machine: its mass storage driver attaches the disks.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Bench;
use super::cache::{Kernel, WHOLE};
use super::case::{Results, Scenario};
use super::guest::{Guest, link, virtio_disk};
use super::image::{self, MIB};
use super::initramfs::{self, Job};
use crate::architecture::Architecture;

/// A run takes about two minutes on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(900);

pub(super) fn scenario() -> Scenario {
    Scenario { name: "usb", kernels: &["6.12"], newest: &[], on_host: &[], run }
}

/// The kernel is that of the same release with the drivers of real machines.
fn run(bench: &Bench, _: &'static Kernel, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    bench.cache.whole_kernel(Architecture::X86_64)?;
    let job = Job {
        scenario: "usb",
        role: "client",
        variables: vec![("wanted", results.names()), ("interface", "192.168.50.1/24".to_owned())],
        files: vec![("usr/bin/storagetm", bench.program.clone())],
        extra: Some(&initramfs::USB),
    };
    // One with large blocks, and one that is removed while it is served.
    let (large, removed) = (folder.join("large.img"), folder.join("removed.img"));
    image::filled(&large, 8 * MIB)?;
    image::empty(&removed, 8 * MIB)?;
    let mut devices = link(&folder.join("link"), 1).to_vec();
    devices.extend(virtio_disk(&large, "large", false));
    devices
        .last_mut()
        .unwrap_or(&mut String::new())
        .push_str(",logical_block_size=4096,physical_block_size=4096");
    devices.extend(virtio_disk(&removed, "removed", false));
    let mut guest = Guest::boot(bench, &WHOLE, folder, &job, &devices)?;
    results.follow(&guest.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, an unknown request")
    })?;
    guest.wait(Duration::from_secs(90))
}
