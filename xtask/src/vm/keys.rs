//! Scenario: storagetm in a machine, listening at an address that requires a key; another machine
//! connects with keys, with wrong ones, and without.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::console::Message;
use super::guest::{Guest, link};
use super::image::{self, MIB};
use super::initramfs::{self, Job};
use super::lender;

/// A refused host may take 90 seconds until it gives up.
const PATIENCE: Duration = Duration::from_secs(1200);

pub(super) fn scenario() -> Scenario {
    // Older kernels support neither TLS nor authentication. TLS handshakes with SHA-384 are too new
    // for the programs of 6.12, and TLS with a key from DH-HMAC-CHAP is too new for that kernel.
    Scenario {
        name: "keys",
        kernels: &["6.12", "next"],
        newest: &["tls-aes-256", "concatenation"],
        on_host: &["image-unchanged", "written-back"],
        run,
    }
}

/// The served images: one read-only, one writable for hosts with write access.
#[derive(Debug)]
struct Images {
    ro: PathBuf,
    rw: PathBuf,
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let images = Images { ro: folder.join("ro.img"), rw: folder.join("rw.img") };
    image::filled(&images.ro, 12 * MIB)?;
    image::filled(&images.rw, 16 * MIB)?;
    let hash = image::sha256(&images.ro)?;
    let target = lender::boot(bench, kernel, folder, "keys", [&images.ro, &images.rw])?;
    let mut client = boot_client(bench, kernel, folder, &hash, results)?;
    let values = results.follow(&client.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, which nobody knows")
    })?;
    client.wait(Duration::from_secs(90))?;
    for message in target.console.pending() {
        if let Message::Note(line) = message {
            results.note(&line);
        }
    }
    drop(target);
    results.decide("image-unchanged", same(Some(&hash), &images.ro));
    results.decide("written-back", same(values.get("rw_sha256"), &images.rw));
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
        scenario: "keys",
        role: "client",
        variables: vec![
            // The host's own test reads what was written.
            ("wanted", format!("{} write", results.names())),
            ("interface", "192.168.50.2/24".to_owned()),
            ("address", "192.168.50.1".to_owned()),
            ("port", "4420".to_owned()),
            ("ro_sha256", hash.to_owned()),
        ],
        files: vec![("usr/bin/xtask", std::env::current_exe()?)],
        extra: Some(&initramfs::KEYS),
    };
    Guest::boot(bench, kernel, folder, &job, &link(&folder.join("link"), 2))
}

fn same(told: Option<&String>, image: &Path) -> Result<()> {
    let found = image::sha256(image)?;
    ensure!(told == Some(&found), "expected SHA-256 {told:?}, found {found}");
    Ok(())
}
