//! Scenario: the state machine of `usb` behind a USB/IP server on this machine's loopback, attached
//! by a guest's kernel (`vhci-hcd`). It needs neither a device controller nor the kernel's gadgets.
//!
//! A transfer on a socket ends at a length or at a message, and on an endpoint at both; nor can a
//! socket be halted. So the server drives the session itself instead of the engine's driver, which
//! the scenario `usb` tests.

mod descriptors;
mod device;
mod wire;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use export::{Access, Event, Reason};

use super::Bench;
use super::attach::network;
use super::cache::{Kernel, WHOLE};
use super::case::{Results, Scenario};
use super::guest::Guest;
use super::image::{self, MIB};
use super::initramfs::{self, Job};
use crate::architecture::Architecture;
use descriptors::Speed;
use device::{Device, Disks};
use wire::Command;

/// A run takes about a minute on two cores; limits a guest that hangs.
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) fn scenario() -> Scenario {
    let on_host = &["ejected", "image-unchanged", "written-back"];
    Scenario { name: "usbip", kernels: &["6.12"], newest: &[], on_host, run }
}

/// The kernel is that of the same release with the drivers of real machines.
fn run(bench: &Bench, _: &'static Kernel, folder: &Path, results: &mut Results<'_>) -> Result<()> {
    bench.cache.whole_kernel(Architecture::X86_64)?;
    let (ro, rw) = (folder.join("ro.img"), folder.join("rw.img"));
    image::filled(&ro, 32 * MIB)?;
    image::partition(&ro, 16 * MIB)?;
    let hash = image::sha256(&ro)?;
    let disks = Disks::new(vec![
        ("ro", Access::ReadOnly, fs::read(&ro)?),
        ("rw", Access::Writable, vec![0; 64 << 20]),
    ]);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let served = disks.clone();
    std::thread::spawn(move || serve(&listener, &served));
    let job = Job {
        scenario: "usbip",
        role: "client",
        variables: vec![
            // The host's own test reads what was written.
            ("wanted", format!("{} filesystem", results.names())),
            ("interface", "127.0.0.15/8".to_owned()),
            ("port", port.to_string()),
            ("ro_sha256", hash.clone()),
        ],
        files: Vec::new(),
        extra: Some(&initramfs::USB),
    };
    let mut guest = Guest::boot(bench, &WHOLE, folder, &job, &network())?;
    let values = results.follow(&guest.console, PATIENCE, |_, what| {
        bail!("the guest asks for {what}, an unknown request")
    })?;
    guest.wait(Duration::from_secs(90))?;
    let is_ejected =
        |event: &Event| matches!(event, Event::Detached { reason: Reason::Ejected, .. });
    let ejected = disks.reported(is_ejected).then_some(()).context("it was not reported");
    results.decide("ejected", ejected);
    for (path, bytes) in [&ro, &rw].into_iter().zip(disks.take()) {
        fs::write(path, bytes)?;
    }
    let same = |told: Option<&String>, image: &Path| {
        let found = image::sha256(image)?;
        ensure!(told == Some(&found), "expected SHA-256 {told:?}, found {found}");
        Ok(())
    };
    results.decide("image-unchanged", same(Some(&hash), &ro));
    results.decide("written-back", same(values.get("rw_sha256"), &rw));
    Ok(())
}

/// Serves each connection on a thread, until the process ends.
fn serve(listener: &TcpListener, disks: &Arc<Disks>) {
    for host in listener.incoming().flatten() {
        let disks = disks.clone();
        // It ends with an error when the host detaches.
        std::thread::spawn(move || converse(host, disks));
    }
}

/// Serves one host: the import of a device, then its transfers. The name of the device's bus is its
/// speed.
fn converse(mut host: TcpStream, disks: Arc<Disks>) -> Result<()> {
    host.set_nodelay(true)?;
    let name = wire::receive_import(&mut host)?;
    let speed = match name.as_str() {
        "high" => Some(Speed::High),
        "super" => Some(Speed::Super),
        _ => None,
    };
    wire::send_import(&mut host, &name, speed.map(|speed| (speed.number(), speed.device())))?;
    let Some(speed) = speed else { return Ok(()) };
    let mut device = Device::new(disks, speed);
    let ended = transfer(&mut host, &mut device);
    device.end_session();
    ended
}

fn transfer(host: &mut TcpStream, device: &mut Device) -> Result<()> {
    loop {
        match wire::receive(host)? {
            Command::Submit(urb) => {
                for completion in device.submit(urb) {
                    wire::send_completion(host, &completion)?;
                }
            }
            Command::Unlink { number, urb } => {
                wire::send_unlinked(host, number, device.cancel(urb))?;
            }
        }
    }
}
