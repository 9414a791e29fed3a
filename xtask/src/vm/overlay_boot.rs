//! Scenario: a machine without a disk boots a system from an image that is lent with an overlay, which
//! writes to its root; the image is not changed. By iSCSI, as [`super::iscsi_boot`].

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::image;
use super::iscsi_boot::{boot, system};

pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "overlay-boot",
        kernels: &["6.12"],
        newest: &[],
        on_host: &["root-written", "image-unchanged"],
        run,
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let disk = folder.join("system.img");
    system(bench, kernel, folder, &disk, "ibft root".to_owned())?;
    let before = image::sha256(&disk)?;
    let (values, _) = boot(bench, folder, "--overlay", &disk, results)?;
    let written = values.get("root").context("the system did not write to its root");
    results.decide("root-written", written.map(drop));
    let after = image::sha256(&disk)?;
    let is_same = || {
        ensure!(before == after, "the image had SHA-256 {before}, has {after}");
        Ok(())
    };
    results.decide("image-unchanged", is_same());
    Ok(())
}
