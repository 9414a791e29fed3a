//! Scenario: file systems that were not unmounted are lent with an overlay on this machine's loopback,
//! and two machines mount and write them at once.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::attach::network;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::guest::{Guest, virtio_disk};
use super::image::{self, MIB};
use super::initramfs::{self, Job};
use super::target::{LOOPBACK, Target};

/// A run takes about a minute on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// The file systems, which are also the serial numbers of the disks, and the sizes of the disks: the
/// least of mkfs.xfs is 300 MiB, that of mkfs.btrfs 109.
const DISKS: [(&str, u64); 3] = [("ext4", 64 * MIB), ("xfs", 320 * MIB), ("btrfs", 128 * MIB)];

/// The test of the second machine.
const SECOND: &str = "second-machine";

pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "overlay",
        kernels: &["6.12"],
        newest: &[],
        on_host: &[SECOND, "images-unchanged"],
        run,
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let mut devices = network();
    for (name, bytes) in DISKS {
        image::empty(&local(folder, name), bytes)?;
        devices.extend(virtio_disk(&local(folder, name), name, false));
    }
    let [port, ended_port] = [free_port()?, free_port()?];
    let variables = |wanted: String| {
        vec![
            ("wanted", wanted),
            ("interface", "127.0.0.15/8".to_owned()),
            ("address", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            ("ended_port", ended_port.to_string()),
        ]
    };
    let job = |scenario, wanted| Job {
        scenario,
        role: "client",
        variables: variables(wanted),
        files: Vec::new(),
        extra: Some(&initramfs::FILE_SYSTEMS),
    };
    let mut guest = Guest::boot(bench, kernel, folder, &job("overlay", results.names()), &devices)?;
    let (mut lent, mut ended) = (None, None);
    results.follow(&guest.console, PATIENCE, |results, what| {
        match what {
            "copy" => lent = Some(Lent::start(bench, folder, port)?),
            "second" => {
                let folder = folder.join("second");
                fs::create_dir_all(&folder)?;
                let job = job("overlay-second", SECOND.to_owned());
                let mut second = Guest::boot(bench, kernel, &folder, &job, &network())?;
                results.follow(&second.console, PATIENCE, |_, what| {
                    bail!("the second guest asks for {what}, an unknown request")
                })?;
                second.wait(Duration::from_secs(90))?;
                // From now on the first guest can connect to it.
                ended = Some(TcpListener::bind(("127.0.0.1", ended_port))?);
            }
            _ => bail!("the guest asks for {what}, an unknown request"),
        }
        Ok(())
    })?;
    guest.wait(Duration::from_secs(90))?;
    results.decide("images-unchanged", lent.context("nothing was lent")?.unchanged());
    Ok(())
}

/// The image that a guest has as its own disk.
fn local(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.img"))
}

/// The copies of the images, lent with an overlay.
struct Lent {
    target: Target,
    images: Vec<(PathBuf, String)>,
}

impl Lent {
    /// Copies the images as they are, while they are mounted, and lends the copies at a port.
    fn start(bench: &Bench, folder: &Path, port: u16) -> Result<Self> {
        let (mut images, mut arguments) = (Vec::new(), Vec::new());
        for (name, _) in DISKS {
            let image = folder.join(format!("dirty-{name}.img"));
            fs::copy(local(folder, name), &image)?;
            arguments.extend(["--overlay".to_owned(), image.display().to_string()]);
            images.push((image.clone(), image::sha256(&image)?));
        }
        let log = folder.join("storagetm.log");
        let target = Target::start_at(&bench.program, arguments, (LOOPBACK, port.into()), log)?;
        Ok(Self { target, images })
    }

    /// Ends storagetm, and compares the images with what they were.
    fn unchanged(mut self) -> Result<()> {
        let status = self.target.terminate(Duration::from_secs(30))?;
        ensure!(status.success(), "storagetm ended with {status}");
        for (image, before) in &self.images {
            let after = image::sha256(image)?;
            ensure!(*before == after, "{} had SHA-256 {before}, has {after}", image.display());
        }
        Ok(())
    }
}

/// Returns a port of the loopback that is free now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
