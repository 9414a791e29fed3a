//! The child of PID 1: loads drivers for the hardware, configures the network, and exports the disks, or
//! starts a system from a lent disk ([`lent`]).

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use linux::boot::command_line;
use linux::module::{Drivers, Note};
use linux::network::{self, Network, NetworkParameters};
use linux::shortfall::{FirmwareLog, Shortfall, survey};
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, poll};

use super::lent;
use super::status::{POWER_OFF, RESTART};
use crate::console_ui::ConsoleUi;
use crate::serve::{self, ServeConfig, StopReason};
use daemon::inbox::Inbox;
use daemon::settings::Settings;
use failure::Failure;

/// Set in the environment of the child of PID 1.
pub(super) const TARGET_MODE: &str = "STORAGETM_TARGET_MODE";

/// Kernel parameters that request kernel messages on the console.
const VERBOSE_PARAMETERS: [&str; 3] = ["debug", "ignore_loglevel", "loglevel"];

/// Returns whether this process is the child of a PID 1 that is storagetm.
pub(super) fn is_target_mode() -> bool {
    let parent = rustix::process::getppid();
    std::env::var_os(TARGET_MODE).is_some() && parent.is_some_and(|parent| parent.is_init())
}

/// Runs until a power-off or restart is requested.
pub(super) fn run() -> Result<Infallible, Failure> {
    let tree = Tree::machine();
    let parameters = command_line(&tree);
    if !parameters.iter().any(|it| VERBOSE_PARAMETERS.contains(&it.name.as_str())) {
        // If this fails, kernel messages appear on the screen until the next redraw.
        let _ = linux::pid1::quiet_kernel();
    }
    let inbox = serve::open_inbox()?;
    let loading = Arc::new(Mutex::new(()));
    start_driver_loading(tree.clone(), inbox.clone(), Arc::clone(&loading));
    let network = start_network(&tree, &inbox);
    if let Err(error) = &network {
        inbox.note(format!("The network cannot be brought up: {error}."));
    }
    if lent::is_wanted(&tree) {
        return lent::run(&tree, inbox, network, &loading);
    }
    let settings = Settings::read(&tree);
    let console_ui = ConsoleUi::open(&tree);
    let reason = serve::target_mode(ServeConfig::of_settings(settings, true), inbox, console_ui)?;
    std::process::exit(match reason {
        StopReason::Restart => RESTART,
        StopReason::PowerOff | StopReason::Signalled | StopReason::Failed(_) => POWER_OFF,
    })
}

/// Configures the network as the kernel command line requests, and keeps it configured.
fn start_network(tree: &Tree, inbox: &Inbox) -> io::Result<Network> {
    let line = tree.text("proc/cmdline").unwrap_or_default();
    let (parameters, ignored) = NetworkParameters::parse(&line);
    ignored.iter().for_each(|parameter| inbox.note(parameter.to_string()));
    let inbox = inbox.clone();
    Network::start(parameters, move |note| post_note(&inbox, &note))
}

/// Passes on network notes: failures as messages, everything else as the current state of its
/// interface, which the next note about the interface replaces.
fn post_note(inbox: &Inbox, note: &network::Note) {
    use network::Note as N;
    match note {
        N::Failed { .. } => inbox.note(format!("{note}.")),
        N::Address { interface, address } if is_link_local(*address) => {
            inbox.set_subject(&link_local_subject(interface), None);
        }
        N::Conflict { interface, .. } => {
            inbox.set_subject(&link_local_subject(interface), Some(format!("{note}.")));
        }
        N::Gone { interface } => {
            inbox.set_subject(&link_local_subject(interface), None);
            inbox.set_subject(interface, None);
        }
        note => {
            if let Some((interface, sentence)) = interface_state(note) {
                inbox.set_subject(interface, sentence);
            }
        }
    }
}

/// The status subject of an interface's link-local address.
fn link_local_subject(interface: &str) -> String {
    format!("{interface} 169.254.0.0/16")
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_link_local())
}

/// Returns an interface and its new state (`None` in the pair: nothing to report), or `None` if the
/// note changes nothing. Addresses are not included: the screen shows them.
fn interface_state(note: &network::Note) -> Option<(&str, Option<String>)> {
    use network::Note as N;
    match note {
        N::LinkUp { interface } | N::Lease { interface, .. } => Some((interface, None)),
        N::LinkDown { interface }
        | N::LeaseLost { interface, .. }
        | N::NoAnswer { interface }
        | N::Unasked { interface, .. }
        | N::Missing { interface } => Some((interface, Some(format!("{note}.")))),
        _ => None,
    }
}

/// Loads drivers for present and hot-plugged hardware, on a thread: a driver that waits for its
/// disks must not block the screen. Those of what is hot-plugged are loaded only while the lock is free.
fn start_driver_loading(tree: Tree, inbox: Inbox, lock: Arc<Mutex<()>>) {
    std::thread::spawn(move || {
        if let Err(error) = load_drivers(&tree, &inbox, &lock) {
            inbox.note(format!("Drivers are not loaded any more: {error}."));
        }
    });
}

fn load_drivers(tree: &Tree, inbox: &Inbox, lock: &Mutex<()>) -> io::Result<()> {
    let uname = rustix::system::uname();
    let folder = Path::new("lib/modules").join(uname.release().to_string_lossy().as_ref());
    if !tree.path(&folder).exists() {
        // The kernel has its drivers built in, or they are loaded already.
        Shortfalls::open(tree).report(inbox);
        return Ok(());
    }
    let line = tree.text("proc/cmdline").unwrap_or_default();
    let mut drivers = Drivers::open(tree, &folder, &line)?;
    let mut report = |note| driver_note(note).into_iter().for_each(|sentence| inbox.note(sentence));
    drivers.coldplug(&mut report)?;
    let mut shortfalls = Shortfalls::open(tree);
    loop {
        shortfalls.report(inbox);
        let _ = poll(&mut [PollFd::new(&drivers, PollFlags::IN)], None);
        let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        drivers.receive(&mut report)?;
    }
}

/// Hardware that cannot be used, as the screen shows it now.
struct Shortfalls {
    tree: Tree,
    firmware: Option<FirmwareLog>,
    shown: BTreeSet<Shortfall>,
}

impl Shortfalls {
    fn open(tree: &Tree) -> Self {
        let firmware = FirmwareLog::open(tree).ok();
        Self { tree: tree.clone(), firmware, shown: BTreeSet::new() }
    }

    /// Reports new entries, and clears those that are resolved.
    fn report(&mut self, inbox: &Inbox) {
        let mut now = survey(&self.tree);
        now.extend(self.firmware.iter_mut().flat_map(FirmwareLog::look).cloned());
        for resolved in self.shown.difference(&now) {
            inbox.set_subject(&resolved.to_string(), None);
        }
        for new in now.difference(&self.shown) {
            inbox.set_subject(&new.to_string(), Some(new.to_string()));
        }
        self.shown = now;
    }
}

/// Returns the message about a driver for the screen, if there is one.
fn driver_note(note: Note) -> Option<String> {
    match note {
        Note::Loaded(_) => None,
        // The hardware is not present after all.
        Note::Failed { error, .. } if error.raw_os_error() == Some(NO_DEVICE) => None,
        Note::Failed { name, error } => {
            Some(format!("The driver {name} could not be loaded: {error}."))
        }
        Note::Refused { name, reason } => Some(format!("{name} was not loaded: {reason}.")),
    }
}

const NO_DEVICE: i32 = rustix::io::Errno::NODEV.raw_os_error();

#[cfg(test)]
mod test {
    use super::*;
    use linux::network::{Mac, Note as N};
    use std::collections::BTreeMap;
    use testkit::Scratch;

    fn eth0() -> String {
        "eth0".to_owned()
    }

    #[test]
    fn failure_is_not_cleared_by_the_next_note() {
        let inbox = Inbox::open().unwrap();
        let error = io::ErrorKind::NotFound.into();
        post_note(&inbox, &N::Failed { interface: eth0(), what: "brought up".to_owned(), error });
        post_note(&inbox, &N::LinkUp { interface: eth0() });
        assert_eq!(inbox.receive().notes, ["eth0: could not be brought up: entity not found."]);
    }

    #[test]
    fn shortfall_is_shown_until_it_is_over() {
        let folder = Scratch::new();
        let device = folder.0.join("sys/bus/pci/devices/0000:00:02.0");
        std::fs::create_dir_all(&device).unwrap();
        for (name, text) in [("class", "0x020000"), ("vendor", "0x8086"), ("device", "0x15f3")] {
            std::fs::write(device.join(name), text).unwrap();
        }
        let inbox = Inbox::open().unwrap();
        let mut shortfalls = Shortfalls::open(&Tree::at(&folder.0));
        shortfalls.report(&inbox);
        let shown = inbox.receive().subjects;
        assert_eq!(shown.len(), 2, "no driver, no card: {shown:?}");
        assert!(shown.values().all(Option::is_some));
        std::fs::create_dir_all(folder.0.join("sys/class/net/eth0/device")).unwrap();
        std::fs::create_dir(device.join("driver")).unwrap();
        shortfalls.report(&inbox);
        let over = inbox.receive().subjects;
        assert_eq!(over.len(), 2);
        assert!(over.values().all(Option::is_none), "{over:?}");
    }

    #[test]
    fn address_clears_the_conflict_but_not_no_answer() {
        let inbox = Inbox::open().unwrap();
        let address = [169, 254, 7, 9].into();
        post_note(&inbox, &N::NoAnswer { interface: eth0() });
        post_note(&inbox, &N::Conflict { interface: eth0(), address, other: Mac([2; 6]) });
        let subjects = inbox.receive().subjects;
        assert_eq!(subjects.values().filter(|sentence| sentence.is_some()).count(), 2);
        post_note(&inbox, &N::Address { interface: eth0(), address: address.into() });
        assert_eq!(inbox.receive().subjects, BTreeMap::from([(link_local_subject("eth0"), None)]));
    }
}
