//! Startup of `storagetm serve`: opens the disks, starts the worker, opens the listeners.

use std::time::Instant;

use daemon::inbox::Inbox;
use daemon::listen::Protocols;
use daemon::worker::Worker;
use failure::Failure;
use keys::reservations::ReservationFiles;
use keys::store::Store;
use linux::inhibit::Inhibitor;
use linux::tree::Tree;
use protocol::{PROTOCOLS, Row};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::{PairingMode, ServeConfig};
use super::control::Control;
use super::events::Events;
use super::exports::Exports;
use super::hosts::Hosts;
use super::idle::IdleLimit;
use super::network::Network;
use super::reading::{self, Reading};
use super::socket_activation::InheritedSockets;
use super::ui::Ui;
use super::usb::Usb;
use super::{Context, Server};
use crate::console_ui::ConsoleUi;
use crate::output::Output;

/// Shown where disks that are added later are not seen.
const UNSEEN: &str = "The kernel does not tell here which disks come and go: only those that are there now are lent.";

/// Raises the limits of open files (one descriptor per connection, two per disk) and of locked
/// memory, which io_uring rings count as before Linux 5.12; the unprivileged worker inherits them.
pub(super) fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        let _ = setrlimit(resource, limit);
    }
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

/// Returns where reservations are stored. Not in target mode, which writes to no disk, nor if no
/// state directory is known.
fn reservation_files(config: &ServeConfig) -> Option<ReservationFiles> {
    let folder = Store::locate(config.keys.as_deref()).ok().filter(|_| !config.is_target())?;
    Some(ReservationFiles::new(&folder))
}

/// Opens the control socket, if there is to be one. Returns a note if it cannot be used.
fn open_control(config: &ServeConfig) -> Result<(Control, Option<String>), Failure> {
    let path = config.control.as_ref();
    path.map_or_else(|| Ok((Control::default(), None)), |path| Control::open(path.as_deref()))
}

/// Returns how pairing codes are shown: not at all if no protocol that is served has pairing.
fn pairing_mode(config: &ServeConfig) -> PairingMode {
    let protocols = Protocols::of(&config.protocols);
    let pairs = |row: &Row| row.pairing && protocols.has(row.protocol);
    if PROTOCOLS.iter().any(pairs) { config.pairing } else { PairingMode::Disabled }
}

impl Server {
    /// Opens the disks, then the listeners. Leaves nothing behind on failure.
    pub(super) fn open(
        mut config: ServeConfig,
        output: Output,
        inbox: Inbox,
        inherited: Option<InheritedSockets>,
        console_ui: Option<ConsoleUi>,
    ) -> Result<Self, Failure> {
        let (certificate, certificate_note) = reading::prepare(&mut config, inherited.is_some())?;
        // The process starts while the disks are examined.
        let worker =
            Worker::start(config.worker.clone(), reservation_files(&config), inbox.clone())?;
        let network = Network::open(&config, certificate.clone(), inherited.as_ref(), &inbox)?;
        let (exports, disk_notes) = Exports::open(&config, &inbox)?;
        let (hosts, host_note) = Hosts::open(&config, network.may_require_key());
        let ui = Ui::open(output, console_ui);
        let warning = config.worker.certificates.as_ref().and_then(|own| own.warning.clone());
        let sleep_inhibitor =
            Inhibitor::new(&Tree::machine(), "disks of this machine are attached by others");
        let events = Events::default();
        let usb = Usb::new(&config, network.machine());
        let limit = config.return_after.filter(|_| ui.is_target_mode());
        let idle_limit = IdleLimit::new(limit, Instant::now());
        let (control, control_note) = open_control(&config)?;
        let own_notes = [host_note, warning, certificate_note, control_note];
        let own_notes = own_notes.into_iter().flatten().collect();
        let mut server = Self {
            worker,
            network,
            exports,
            usb,
            hosts,
            reading: Reading::default(),
            events,
            ui,
            sleep_inhibitor,
            idle_limit,
            control,
            inbox,
        };
        let unseen = config.filter.is_some() && server.exports.is_hotplug_unavailable();
        let unseen = unseen.then(|| UNSEEN.to_owned());
        // In target mode the screen comes first: connections wait at the listening sockets.
        if !config.is_target() || inherited.is_some() {
            server.worker.wait_until_running()?;
        }
        let restrictions = server.worker.take_restrictions();
        let Self { worker, network, exports, usb, hosts, reading, ui, .. } = &mut server;
        let cx = &mut Context { worker, ui, now: Instant::now() };
        // Access rules come before disks, and both before listeners.
        hosts.apply_changes(cx);
        exports.start(cx)?;
        let notes = [std::mem::take(&mut config.notes), disk_notes, own_notes].concat();
        let notes = notes.into_iter().chain(unseen).chain(restrictions);
        notes.for_each(|note| cx.ui.note(note));
        hosts.start_pairing(pairing_mode(&config), network, cx);
        *reading = Reading::start(certificate, config.pairing, cx)?;
        network.listen(inherited, cx)?;
        usb.start(cx)?;
        Ok(server)
    }
}
