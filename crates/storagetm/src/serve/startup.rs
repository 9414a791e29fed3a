//! Startup of `storagetm serve`: opens the disks, starts the worker, opens the listeners.

use std::time::Instant;

use daemon::inbox::Inbox;
use daemon::worker::Worker;
use engine::Driver;
use failure::Failure;
use linux::inhibit::Inhibitor;
use linux::tree::Tree;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::ServeConfig;
use super::events::Events;
use super::exports::Exports;
use super::hosts::Hosts;
use super::network::Network;
use super::socket_activation::InheritedSockets;
use super::ui::Ui;
use super::{Context, Server};
use crate::console_ui::ConsoleUi;
use crate::output::Output;

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

impl Server {
    /// Opens the disks, then the listeners. Leaves nothing behind on failure.
    pub(super) fn open(
        config: ServeConfig,
        output: Output,
        inbox: Inbox,
        inherited: Option<InheritedSockets>,
        console_ui: Option<ConsoleUi>,
    ) -> Result<Self, Failure> {
        let network = Network::open(&config, inherited.as_ref(), &inbox)?;
        let (exports, disk_notes) = Exports::open(&config, &inbox)?;
        let (hosts, host_note) = Hosts::open(&config, network.may_require_key());
        let ui = Ui::open(output, console_ui);
        let certificates = config.worker.certificates.as_ref();
        let warning = certificates.and_then(|certificates| certificates.warning.clone());
        let own_notes = host_note.into_iter().chain(warning).collect();
        let (driver, is_all) = (config.worker.engine.driver, config.filter.is_some());
        let worker = Worker::start(config.worker, inbox.clone())?;
        let sleep_inhibitor =
            Inhibitor::new(&Tree::machine(), "disks of this machine are attached by others");
        let events = Events::default();
        let mut server =
            Self { worker, network, exports, hosts, events, ui, sleep_inhibitor, inbox };
        let Self { worker, network, exports, hosts, ui, .. } = &mut server;
        let cx = &mut Context { worker, ui, now: Instant::now() };
        // Access rules come before disks, and both before listeners.
        hosts.apply_changes(cx);
        exports.start(cx)?;
        let notes = [config.notes, disk_notes, own_notes].concat();
        let restrictions = restrictions(exports, is_all, worker, driver);
        notes.into_iter().chain(restrictions).for_each(|note| cx.ui.note(note));
        hosts.start_pairing(config.pairing, network, cx);
        network.listen(inherited, cx)?;
        Ok(server)
    }
}

/// Returns notes about what this system does not support. `is_all`: whether disks that appear later
/// are to be served; `driver`: the one that was requested.
fn restrictions(
    exports: &Exports,
    is_all: bool,
    worker: &Worker,
    driver: Driver,
) -> impl Iterator<Item = String> {
    let unseen = (is_all && exports.is_hotplug_unavailable()).then(|| {
        "The kernel does not tell here which disks come and go: only those that are there now are \
         lent."
            .to_owned()
    });
    let running = worker.driver();
    let is_slow = driver == Driver::Auto && running.driver == Driver::Blocking;
    let slow = is_slow.then(|| format!("The driver is {running}; this is slower."));
    unseen.into_iter().chain(worker.note()).chain(slow)
}
