//! Scenario: two machines lend clones of one disk, and one of them two disks with one serial number; a third machine
//! attaches them all, with the kernel's multipathing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::guest::{Guest, link, virtio_disk};
use super::image::{self, MIB};
use super::initramfs::Job;
use super::lender::{self, Lender};

/// A run takes about a minute on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(600);
/// The disks: a clone on each machine, and two with one serial number on the first.
const DISKS: [&str; 4] = ["first", "second", "twin-1", "twin-2"];
/// The serial number of both.
const TWIN: &str = "TWIN";

pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "clones",
        kernels: &["6.12"],
        newest: &[],
        on_host: &["each-has-its-writes"],
        run,
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let original = image(folder, "first");
    image::filled(&original, 16 * MIB)?;
    image::partition(&original, 8 * MIB)?;
    for name in &DISKS[1..] {
        fs::copy(&original, image(folder, name))?;
    }
    let before = image::sha256(&original)?;
    let mut first = without_serial(&image(folder, "first"));
    first.extend(twin(&image(folder, "twin-1"), 1));
    first.extend(twin(&image(folder, "twin-2"), 2));
    let lenders = [(1, first), (2, without_serial(&image(folder, "second")))];
    let mut machines = Vec::new();
    for (number, disks) in lenders {
        let folder = lender_folder(folder, number);
        fs::create_dir_all(&folder)?;
        let interface = format!("192.168.5{number}.1/24");
        let lender = Lender { scenario: "clones", interface, disks };
        machines.push(lender::start(bench, kernel, &folder, lender)?);
    }
    let mut client = boot_client(bench, kernel, folder, &before, results)?;
    let values = results.follow(&client.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, an unknown request")
    })?;
    client.wait(Duration::from_secs(90))?;
    drop(machines);
    results.decide("each-has-its-writes", each_has_its_writes(folder, &before, &values));
    Ok(())
}

fn image(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.img"))
}

fn lender_folder(folder: &Path, number: u8) -> PathBuf {
    folder.join(format!("lender-{number}"))
}

/// Returns the arguments for an image as a virtio disk that only its contents identify.
fn without_serial(image: &Path) -> Vec<String> {
    let mut arguments = virtio_disk(image, "clone", false);
    if let Some(device) = arguments.last_mut() {
        *device = "virtio-blk-pci,drive=clone".to_owned();
    }
    arguments.to_vec()
}

/// Returns the arguments for an image as one of the virtio disks with the same serial number.
fn twin(image: &Path, number: u8) -> [String; 4] {
    let id = format!("twin{number}");
    let mut arguments = virtio_disk(image, &id, false);
    if let Some(device) = arguments.last_mut() {
        *device = format!("virtio-blk-pci,drive={id},serial={TWIN}");
    }
    arguments
}

/// Boots the machine that attaches, with a network card for each of the others.
fn boot_client(
    bench: &Bench,
    kernel: &Kernel,
    folder: &Path,
    before: &str,
    results: &Results<'_>,
) -> Result<Guest> {
    let job = Job {
        scenario: "clones",
        role: "client",
        variables: vec![
            // The host's own test reads what was written.
            ("wanted", format!("{} two-machines one-serial", results.names())),
            ("interface", "192.168.51.2/24".to_owned()),
            ("before", before.to_owned()),
        ],
        files: Vec::new(),
        extra: None,
    };
    let mut devices = link(&lender_folder(folder, 1).join("link"), 2).to_vec();
    let second = link(&lender_folder(folder, 2).join("link"), 3);
    devices.extend(second.map(|word| word.replace("=net,", "=net2,")));
    Guest::boot(bench, kernel, folder, &job, &devices)
}

/// Compares each image with what the guest has read from its disk last: no two are the same, and none is as it was.
fn each_has_its_writes(
    folder: &Path,
    before: &str,
    values: &BTreeMap<String, String>,
) -> Result<()> {
    let mut seen = vec![before.to_owned()];
    for name in DISKS {
        let found = image::sha256(&image(folder, name))?;
        let key = name.replace('-', "_");
        let told = values.get(&key).with_context(|| format!("the guest told nothing of {name}"))?;
        ensure!(*told == found, "{name}: the guest has read {told}, the image has {found}");
        ensure!(!seen.contains(&found), "{name} is as before, or the same as another one");
        seen.push(found);
    }
    Ok(())
}
