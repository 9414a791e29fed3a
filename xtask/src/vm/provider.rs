//! Scenario: a machine lends disks, and another one with the systemd of the next release uses them as
//! volumes of the storage provider storagetm.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Bench;
use super::cache::{Kernel, NEXT_TOOLS};
use super::case::{Results, Scenario, script_folder};
use super::guest::{Guest, link};
use super::image::{self, MIB};
use super::initramfs::{self, Job};
use super::lender;

const PATIENCE: Duration = Duration::from_secs(900);

pub(super) fn scenario() -> Scenario {
    Scenario { name: "provider", kernels: &["6.12"], newest: &[], on_host: &[], run }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    if let Err(error) = bench.cache.fetch(&NEXT_TOOLS) {
        let reason = format!("{error:#}");
        results.names().split(' ').for_each(|name| results.skip(name, &reason));
        return Ok(());
    }
    let (ro, rw) = (folder.join("ro.img"), folder.join("rw.img"));
    image::filled(&ro, 12 * MIB)?;
    image::empty(&rw, 16 * MIB)?;
    let target = lender::boot(bench, kernel, folder, "attaching", [&ro, &rw])?;
    let job = Job {
        scenario: "provider",
        role: "client",
        variables: vec![
            ("wanted", results.names()),
            ("interface", "192.168.50.2/24".to_owned()),
            ("address", "192.168.50.1".to_owned()),
        ],
        files: vec![
            ("usr/bin/storagetm", bench.program.clone()),
            ("tests/cases/attaching-lib.sh", script_folder().join("attaching/lib.sh")),
        ],
        extra: Some(&initramfs::PROVIDER),
    };
    let devices = link(&folder.join("link"), 2);
    let mut client = Guest::boot(bench, &NEXT_TOOLS, folder, &job, &devices)?;
    results.follow(&client.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, which nobody knows")
    })?;
    client.wait(Duration::from_secs(90))?;
    drop(target);
    Ok(())
}
