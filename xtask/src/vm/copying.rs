//! Scenario: a machine serves its disk, and storagetm on this one copies all of it into a file,
//! without a kernel driver in between.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Bench;
use super::apt::succeed;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::console::Message;
use super::events::Events;
use super::guest::{Guest, virtio_disk};
use super::image::{self, MIB};
use super::initramfs::Job;

const BOOT: Duration = Duration::from_secs(240);
/// It takes some minutes if other tests run at the same time.
const PATIENCE: Duration = Duration::from_secs(900);
/// Size of the disk in bytes; size and distance of the non-zero ranges.
const SIZE: u64 = 4 << 30;
const FILLED: u64 = 3 * MIB + 4096;
const STEP: u64 = 40 * MIB;

pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "copying",
        kernels: &["6.12"],
        newest: &[],
        on_host: &["whole-disk", "equal", "holes-kept"],
        run,
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let (disk, copied) = (folder.join("disk.img"), folder.join("copied.img"));
    fill(&disk)?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let guest = boot(bench, kernel, folder, &disk, port)?;
    let nqn = lent(&guest)?;
    results.decide("whole-disk", copy(bench, &format!("nvme://127.0.0.1:{port}/{nqn}"), &copied));
    drop(guest);
    let paths = [&disk, &copied];
    results.decide("equal", succeed(Command::new("cmp").args(paths)).map(drop));
    results.decide("holes-kept", thin(&copied));
    // Removes eight gigabytes.
    paths.into_iter().try_for_each(fs::remove_file)?;
    Ok(())
}

/// A sparse disk, as one that was never full.
fn fill(path: &Path) -> Result<()> {
    image::empty(path, SIZE)?;
    let file = File::options().write(true).open(path)?;
    let mut bytes = Vec::new();
    for (piece, at) in (0..SIZE).step_by(usize::try_from(STEP)?).enumerate() {
        bytes.clear();
        for word in 0..FILLED.min(SIZE - at) / 8 {
            let mixed = (word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * piece as u64);
            bytes.extend_from_slice(&mixed.to_le_bytes());
        }
        file.write_all_at(&bytes, at)?;
    }
    // Also at the end of the disk, where bugs of copies are likely.
    Ok(file.write_all_at(b"the last block", SIZE - 512)?)
}

/// Boots the machine that serves the disk, with a port forwarded from the loopback.
fn boot(bench: &Bench, kernel: &Kernel, folder: &Path, disk: &Path, port: u16) -> Result<Guest> {
    let mut devices = vec![
        "-netdev".to_owned(),
        format!("user,id=net,net=192.168.50.0/24,hostfwd=tcp:127.0.0.1:{port}-192.168.50.1:4420"),
        "-device".to_owned(),
        "virtio-net-pci,netdev=net,romfile=".to_owned(),
    ];
    devices.extend(virtio_disk(disk, "WHOLE", true));
    let job = Job {
        scenario: "copying",
        role: "server",
        variables: vec![("interface", "192.168.50.1/24".to_owned())],
        files: vec![("tests/storagetm", bench.program.clone())],
        extra: None,
    };
    Guest::boot(bench, kernel, folder, &job, &devices)
}

/// Waits until the disk is served; returns its name.
fn lent(guest: &Guest) -> Result<String> {
    let (deadline, mut events) = (Instant::now() + BOOT, Events::default());
    while !events.has("ready") || events.lent().is_empty() {
        match guest.console.next(deadline)? {
            Message::Event(line) => events.receive(&line)?,
            Message::Note(line) => bail!("{line}"),
            Message::End => bail!("the machine ended"),
            _ => {}
        }
    }
    Ok(events.lent().first().context("no disk is lent")?.nqn.clone())
}

/// Copies it, with verification, which is the default.
fn copy(bench: &Bench, from: &str, to: &PathBuf) -> Result<()> {
    let mut child = Command::new(&bench.program)
        .args(["copy", "--json", from])
        .arg(to)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + PATIENCE;
    let out = child.stdout.take().context("the copy says nothing")?;
    let said = thread::spawn(move || std::io::read_to_string(out));
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let ended = child.wait_with_output()?;
    let said = said.join().ok().context("what the copy says cannot be read")??;
    let last = said.lines().last().unwrap_or_default();
    let error = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.success(), "{}: {last}\n{error}", ended.status);
    finished(&serde_json::from_str(last)?)
}

fn finished(event: &Value) -> Result<()> {
    println!("# {event}");
    ensure!(event["outcome"] == "success", "{event}");
    let all = event["bytes"].as_u64() == Some(SIZE) && event["hash"].is_string();
    ensure!(all && event["bad"] == 0, "{event}");
    // Zero ranges are not read back where nothing was written.
    ensure!(event["verified"].as_u64().is_some_and(|bytes| bytes > 0), "{event}");
    Ok(())
}

/// Checks that zero ranges take no space.
fn thin(copied: &Path) -> Result<()> {
    let found = fs::metadata(copied)?.blocks() * 512;
    let max = 2 * (SIZE / STEP + 1) * FILLED;
    ensure!(found <= max, "the copy takes {found} bytes, {max} would be enough");
    Ok(())
}
