//! Scenario: storagetm on both sides: one machine serves, the other discovers it, has its kernel
//! attach the disks, and detaches them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::guest::{Guest, link};
use super::image::{self, MIB};
use super::initramfs::{self, Job};
use super::lender;

const PATIENCE: Duration = Duration::from_secs(900);
/// The first kernel that supports TLS.
const KEYS: &str = "6.12";

pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "attaching",
        kernels: &["6.1", KEYS],
        newest: &["paired", "without-tlshd"],
        on_host: &["image-unchanged"],
        run,
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let (ro, rw) = (folder.join("ro.img"), folder.join("rw.img"));
    image::filled(&ro, 12 * MIB)?;
    image::empty(&rw, 16 * MIB)?;
    let hash = image::sha256(&ro)?;
    let target = lender::boot(bench, kernel, folder, "attaching", [&ro, &rw])?;
    let mut client = boot_client(bench, kernel, folder, &hash, results)?;
    results.follow(&client.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, which nobody knows")
    })?;
    client.wait(Duration::from_secs(90))?;
    drop(target);
    results.decide("image-unchanged", same(&hash, &ro));
    Ok(())
}

fn boot_client(
    bench: &Bench,
    kernel: &Kernel,
    folder: &Path,
    hash: &str,
    results: &Results<'_>,
) -> Result<Guest> {
    let job = Job {
        scenario: "attaching",
        role: "client",
        variables: vec![
            ("wanted", results.names()),
            ("interface", "192.168.50.2/24".to_owned()),
            ("address", "192.168.50.1".to_owned()),
            ("ro_sha256", hash.to_owned()),
        ],
        files: vec![("usr/bin/storagetm", bench.program.clone())],
        extra: (kernel.name == KEYS).then_some(&initramfs::KEYS),
    };
    Guest::boot(bench, kernel, folder, &job, &link(&folder.join("link"), 2))
}

fn same(told: &str, image: &Path) -> Result<()> {
    let found = image::sha256(image)?;
    ensure!(told == found, "expected SHA-256 {told}, found {found}");
    Ok(())
}
