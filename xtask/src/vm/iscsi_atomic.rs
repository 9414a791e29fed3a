//! Scenario: storagetm in a machine whose kernel has a disk that writes atomically (`scsi_debug`), as an
//! iSCSI target; the initiators are on the same machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Bench;
use super::cache::{Kernel, WHOLE};
use super::case::{Results, Scenario};
use super::guest::{Guest, link};
use super::initramfs::{self, Job};
use crate::architecture::Architecture;

/// A run takes about a minute on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) fn scenario() -> Scenario {
    Scenario { name: "iscsi-atomic", kernels: &["6.12"], newest: &[], on_host: &[], run }
}

/// The kernel is that of the same release with all drivers.
fn run(bench: &Bench, _: &'static Kernel, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    bench.cache.whole_kernel(Architecture::X86_64)?;
    let job = Job {
        scenario: "iscsi-atomic",
        role: "client",
        variables: vec![("wanted", results.names()), ("interface", "192.168.50.1/24".to_owned())],
        files: vec![("usr/bin/storagetm", bench.program.clone())],
        extra: Some(&initramfs::ISCSI_ATOMIC),
    };
    let devices = link(&folder.join("link"), 1).to_vec();
    let mut guest = Guest::boot(bench, &WHOLE, folder, &job, &devices)?;
    results.follow(&guest.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, an unknown request")
    })?;
    guest.wait(Duration::from_secs(90))
}
