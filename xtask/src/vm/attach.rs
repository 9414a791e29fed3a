//! Scenario: storagetm on this machine's loopback, a guest's kernel as its host.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::events::Lent;
use super::guest::Guest;
use super::image::{self, MIB};
use super::initramfs::Job;
use super::target::Target;

/// A run takes about two minutes on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(900);

pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "attach",
        kernels: &["6.1", "6.12"],
        newest: &[],
        on_host: &["sigterm", "events", "image-unchanged", "written-back"],
        run,
    }
}

/// The served images: one read-only with partitions, one for file systems, one for random writes.
#[derive(Debug)]
struct Images {
    ro: PathBuf,
    rw: PathBuf,
    io: PathBuf,
}

impl Images {
    fn make(folder: &Path) -> Result<Self> {
        let at = |name: &str| folder.join(name);
        let images = Self { ro: at("ro.img"), rw: at("rw.img"), io: at("io.img") };
        image::filled(&images.ro, 32 * MIB)?;
        image::partition(&images.ro, 16 * MIB)?;
        image::empty(&images.rw, 96 * MIB)?;
        image::empty(&images.io, 32 * MIB)?;
        Ok(images)
    }

    fn arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let writable = "--writable".to_owned();
        vec![writable.clone(), path(&self.rw), writable, path(&self.io), path(&self.ro)]
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let images = Images::make(folder)?;
    let hash = image::sha256(&images.ro)?;
    let mut target =
        Target::start(&bench.program, images.arguments(), folder.join("storagetm.log"))?;
    let job = Job {
        scenario: "attach",
        role: "client",
        variables: variables(&mut target, &images, &hash, results)?,
        files: Vec::new(),
        extra: None,
    };
    let mut guest = Guest::boot(bench, kernel, folder, &job, &network())?;
    let values = results.follow(&guest.console, PATIENCE, |results, what| match what {
        "crash" => target.crash_and_restart(Duration::from_secs(5)),
        "terminate" => terminate(&mut target, results),
        _ => bail!("the guest asks for {what}, which nobody knows"),
    })?;
    guest.wait(Duration::from_secs(90))?;
    drop(target);
    results.decide("image-unchanged", same(&hash, &image::sha256(&images.ro)?));
    let told = values.get("rw_sha256").context("the guest told no checksum");
    let outcome = told.and_then(|told| same(told, &image::sha256(&images.rw)?));
    results.decide("written-back", outcome);
    Ok(())
}

/// The guest's network card is an address of 127.0.0.0/8 too: the discovery log names the address
/// that the host has connected to, so the guest must reach this machine's loopback under the very
/// number that storagetm prints.
pub(super) fn network() -> Vec<String> {
    let words = [
        "-netdev",
        "user,id=net,ipv6=off,net=127.0.0.0/8,host=127.0.0.1,dns=127.0.0.3,dhcpstart=127.0.0.15",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ];
    words.map(str::to_owned).to_vec()
}

/// The variables of the guest's scripts.
fn variables(
    target: &mut Target,
    images: &Images,
    hash: &str,
    results: &Results<'_>,
) -> Result<Vec<(&'static str, String)>> {
    let lent = target.events()?.lent();
    let find = |path: &Path| find(&lent, path);
    let (ro, rw, io) = (find(&images.ro)?, find(&images.rw)?, find(&images.io)?);
    ensure!(ro.access == "read-only", "{} is lent {}", ro.disk, ro.access);
    ensure!(rw.access == "writable", "{} is lent {}", rw.disk, rw.access);
    let port = target.port()?;
    Ok(vec![
        // The host's own tests require the shutdown.
        ("wanted", format!("{} shutdown", results.names())),
        ("interface", "127.0.0.15/8".to_owned()),
        ("address", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("connect_all", connect_all(ro, port)),
        ("ro_nqn", ro.nqn.clone()),
        ("ro_line", line(ro)?),
        ("ro_model", ro.model.clone()),
        ("ro_serial", ro.serial.clone()),
        ("ro_bytes", image::size(&images.ro)?.to_string()),
        ("ro_sha256", hash.to_owned()),
        ("rw_nqn", rw.nqn.clone()),
        ("rw_line", line(rw)?),
        ("io_nqn", io.nqn.clone()),
        ("io_line", line(io)?),
    ])
}

fn find<'a>(lent: &'a [Lent], path: &Path) -> Result<&'a Lent> {
    let found = lent.iter().find(|lent| Path::new(&lent.disk) == path);
    found.with_context(|| format!("storagetm did not say that it lends {}", path.display()))
}

/// Returns the line that attaches one disk, as printed.
fn line(lent: &Lent) -> Result<String> {
    let line = lent.attach.iter().find(|line| line.starts_with("nvme connect "));
    Ok(line.with_context(|| format!("no line attaches {}", lent.disk))?.clone())
}

/// Returns the line that attaches all disks, if the events have it.
fn connect_all(lent: &Lent, port: u64) -> String {
    let printed = lent.attach.iter().find(|line| line.starts_with("nvme connect-all"));
    printed.cloned().unwrap_or_else(|| format!("nvme connect-all -t tcp -a 127.0.0.1 -s {port}"))
}

/// Stops storagetm while the guest is attached.
fn terminate(target: &mut Target, results: &mut Results<'_>) -> Result<()> {
    let ended = target.terminate(Duration::from_secs(30)).and_then(|status| {
        ensure!(status.success(), "storagetm ended with {status}");
        said(target, "stopped")
    });
    results.decide("sigterm", ended);
    results.decide("events", said(target, "attached").and_then(|()| said(target, "detached")));
    Ok(())
}

/// Returns whether an event was printed; waits a moment for pending output.
fn said(target: &mut Target, event: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !target.events()?.has(event) {
        ensure!(Instant::now() < deadline, "storagetm printed no event {event}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn same(expected: &str, found: &str) -> Result<()> {
    ensure!(expected == found, "expected SHA-256 {expected}, found {found}");
    Ok(())
}
