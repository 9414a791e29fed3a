//! Scenario: storagetm on this machine's loopback as an iSCSI target, open-iscsi and a guest's kernel
//! as its initiator.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::attach::network;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::events::Lent;
use super::guest::Guest;
use super::image::{self, MIB};
use super::initramfs::{self, Job};
use super::ipxe;
use super::target::Target;

/// A run takes about a minute on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(900);

pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "iscsi",
        kernels: &["6.1", "6.12"],
        newest: &[],
        on_host: &["ipxe-bios", "image-unchanged", "written-back"],
        run,
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let at = |name: &str| folder.join(name);
    let (ro, rw, io) = (at("ro.img"), at("rw.img"), at("io.img"));
    image::filled(&ro, 32 * MIB)?;
    image::partition(&ro, 16 * MIB)?;
    image::empty(&rw, 48 * MIB)?;
    image::empty(&io, 32 * MIB)?;
    let hash = image::sha256(&ro)?;
    let mut target = start(bench, folder, [&rw, &io], &ro)?;
    let lent = target.events()?.lent();
    let other_port = target.events()?.ports().nth(1).context("storagetm has no second port")?;
    let iqn = |path: &PathBuf| iqn(&lent, path);
    let job = Job {
        scenario: "iscsi",
        role: "client",
        variables: vec![
            // The host's own test reads what was written.
            ("wanted", format!("{} filesystem", results.names())),
            ("interface", "127.0.0.15/8".to_owned()),
            ("portal", format!("127.0.0.1:{}", target.port()?)),
            ("other_port", other_port.to_string()),
            ("ro_iqn", iqn(&ro)?),
            ("ro_bytes", image::size(&ro)?.to_string()),
            ("ro_sha256", hash.clone()),
            ("rw_iqn", iqn(&rw)?),
            ("io_iqn", iqn(&io)?),
        ],
        files: Vec::new(),
        extra: Some(&initramfs::ISCSI),
    };
    let networks = [network(), second_network()].concat();
    let mut guest = Guest::boot(bench, kernel, folder, &job, &networks)?;
    let values = results.follow(&guest.console, PATIENCE, |_, what| match what {
        "crash" => target.crash_and_restart(Duration::from_secs(5)),
        _ => bail!("the guest asks for {what}, an unknown request"),
    })?;
    guest.wait(Duration::from_secs(90))?;
    File::options().write(true).open(&io)?.write_all_at(&ipxe::boot_sectors(), 0)?;
    results.decide("ipxe-bios", ipxe::boot(bench, folder, target.port()?, &iqn(&io)?));
    drop(target);
    results.decide("image-unchanged", same(Some(&hash), &ro));
    results.decide("written-back", same(values.get("rw_sha256"), &rw));
    Ok(())
}

/// Returns the arguments of a second network card, by which this machine's loopback is 10.0.2.2.
fn second_network() -> Vec<String> {
    let words = "-netdev user,id=second -device virtio-net-pci,netdev=second,romfile=";
    words.split(' ').map(str::to_owned).collect()
}

fn start(
    bench: &Bench,
    folder: &Path,
    writable: [&PathBuf; 2],
    read_only: &Path,
) -> Result<Target> {
    let path = |path: &Path| path.display().to_string();
    // A second portal, for multipath.
    let arguments = ["--protocol", "iscsi", "--listen", "127.0.0.1:0"];
    let mut arguments = arguments.map(str::to_owned).to_vec();
    arguments.extend(writable.into_iter().flat_map(|disk| ["--writable".to_owned(), path(disk)]));
    arguments.push(path(read_only));
    Target::start(&bench.program, arguments, folder.join("storagetm.log"))
}

/// Returns the target name of a disk.
pub(super) fn iqn(lent: &[Lent], path: &Path) -> Result<String> {
    let found = lent.iter().find(|lent| Path::new(&lent.disk) == path);
    let found = found.with_context(|| format!("storagetm did not print {}", path.display()))?;
    ensure!(!found.iqn.is_empty(), "no IQN of {}", path.display());
    Ok(found.iqn.clone())
}

fn same(told: Option<&String>, image: &Path) -> Result<()> {
    let found = image::sha256(image)?;
    ensure!(told == Some(&found), "expected SHA-256 {told:?}, found {found}");
    Ok(())
}
