//! Scenario: storagetm in a machine that serves all disks; another machine attaches them while
//! disks are added and removed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Bench;
use super::cache::Kernel;
use super::case::{Results, Scenario};
use super::console::Message;
use super::events::Events;
use super::guest::{Guest, link, virtio_disk};
use super::image::{self, MIB};
use super::initramfs::Job;
use super::qmp::Qmp;

const BOOT: Duration = Duration::from_secs(240);
const PATIENCE: Duration = Duration::from_secs(480);
const PLUGGED: &str = "PLUGGED1";

pub(super) fn scenario() -> Scenario {
    Scenario {
        name: "hotplug",
        kernels: &["6.1", "6.12"],
        newest: &[],
        on_host: &["runs-alone", "withdrawn-event"],
        run,
    }
}

fn run(
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    results: &mut Results<'_>,
) -> Result<()> {
    let hot = folder.join("hot.img");
    image::filled(&hot, 16 * MIB)?;
    let server = boot_server(bench, kernel, folder)?;
    let mut events = Events::default();
    until_ready(&server, &mut events, results)?;
    let mut qmp = Qmp::connect(&folder.join("qmp"))?;
    let job = Job {
        scenario: "hotplug",
        role: "client",
        variables: client_variables(&events)?,
        files: Vec::new(),
        extra: None,
    };
    let mut client = Guest::boot(bench, kernel, folder, &job, &link(&folder.join("link"), 2))?;
    results.follow(&client.console, PATIENCE, |_, what| match what {
        "plug" => qmp.plug(&hot, PLUGGED),
        "unplug" => qmp.unplug(PLUGGED),
        _ => bail!("the guest requests {what}, which is unknown"),
    })?;
    client.wait(Duration::from_secs(90))?;
    receive(&server, &mut events)?;
    results.decide("withdrawn-event", withdrawn(&events));
    Ok(())
}

/// Boots a machine with two disks, one of them write-protected.
fn boot_server(bench: &Bench, kernel: &Kernel, folder: &Path) -> Result<Guest> {
    let image = |name: &str| -> Result<PathBuf> {
        let path = folder.join(format!("{name}.img"));
        image::filled(&path, 16 * MIB)?;
        Ok(path)
    };
    let control = format!("unix:{},server=on,wait=off", folder.join("qmp").display());
    let mut devices = link(&folder.join("link"), 1).to_vec();
    devices.extend(virtio_disk(&image("fixed")?, "FIXED1", false));
    devices.extend(virtio_disk(&image("protected")?, "PROTECTED1", true));
    devices.extend(["-device".to_owned(), "virtio-scsi-pci".to_owned()]);
    devices.extend(["-qmp".to_owned(), control]);
    let job = Job {
        scenario: "hotplug",
        role: "server",
        variables: vec![("interface", "192.168.50.1/24".to_owned())],
        files: vec![("tests/storagetm", bench.program.clone())],
        extra: None,
    };
    Guest::boot(bench, kernel, folder, &job, &devices)
}

fn until_ready(server: &Guest, events: &mut Events, results: &mut Results<'_>) -> Result<()> {
    let deadline = Instant::now() + BOOT;
    while !events.has("ready") {
        match server.console.next(deadline).context("storagetm in the guest")? {
            Message::Event(line) => events.receive(&line)?,
            Message::Passed(name) => results.decide(&name, Ok(())),
            Message::Failed(name) => results.decide(&name, Err(anyhow::anyhow!("failed"))),
            Message::Note(line) => results.note(&line),
            Message::End => bail!("storagetm ended in the guest before it was ready"),
            Message::Ask(_) | Message::Value(..) => {}
        }
    }
    Ok(())
}

fn client_variables(events: &Events) -> Result<Vec<(&'static str, String)>> {
    let port = events.port().context("storagetm reported no port")?;
    let lent = events.lent();
    let nqns: Vec<&str> = lent.iter().map(|lent| lent.nqn.as_str()).collect();
    Ok(vec![
        // Each of these tests depends on the previous one: all are run, always.
        ("wanted", "all-devices hot-add hot-remove".to_owned()),
        ("interface", "192.168.50.2/24".to_owned()),
        ("address", "192.168.50.1".to_owned()),
        ("port", port.to_string()),
        ("nqns", nqns.join(" ")),
        ("plugged", PLUGGED.to_owned()),
    ])
}

/// Processes pending events of the server.
fn receive(server: &Guest, events: &mut Events) -> Result<()> {
    for message in server.console.pending() {
        if let Message::Event(line) = message {
            events.receive(&line)?;
        }
    }
    Ok(())
}

fn withdrawn(events: &Events) -> Result<()> {
    let lent = events.lent();
    let plugged = lent.iter().find(|lent| lent.serial.contains(PLUGGED));
    let plugged = plugged.context("storagetm printed no event lent for the plugged disk")?;
    anyhow::ensure!(
        events.has_of("withdrawn", &plugged.nqn),
        "storagetm printed no event withdrawn for the pulled disk"
    );
    Ok(())
}
