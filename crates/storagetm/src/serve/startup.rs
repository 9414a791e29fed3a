//! Startup of `storagetm serve`: opens the disks, starts the worker, opens the listeners.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use console::{State, Unavailable};
use export::Auth;
use linux::inhibit::Inhibitor;
use linux::net::{Address, Changes, addresses, hostname};
use linux::tree::Tree;
use protocol::commands::quoted;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Server;
use super::config::{PairingMode, ServeConfig};
use super::endpoints::bind;
use super::event_limit::EventLimit;
use super::faults::Faults;
use super::flushes::Flushes;
use super::socket_activation::InheritedSockets;
use super::timers::Timers;
use crate::console_ui::ConsoleUi;
use crate::output::Output;
use crate::terminal_keys::TerminalKeys;
use crate::unpack;
use daemon::access_control::AccessControl;
use daemon::hotplug::{Change, Hotplug};
use daemon::inbox::Inbox;
use daemon::lend::{LendRequest, LentDisk, block_device, check_distinct, named};
use daemon::listen::{DefaultScope, Listener, Plan, Protocols, plan};
use daemon::listeners::Listeners;
use daemon::status::Status;
use daemon::worker::Worker;
use dnssd::Announcer;
use failure::Failure;

/// The disks that are exported at startup.
struct Disks {
    hotplug: Hotplug,
    lent_disks: Vec<LentDisk>,
    notes: Vec<String>,
    /// Whether disks that appear later are exported.
    is_all: bool,
}

/// The machine's addresses, and where to listen.
struct Network {
    addresses: Vec<Address>,
    changes: Option<Changes>,
    plan: Plan,
    /// Whether keys are required nowhere (`--open`).
    open: bool,
    /// Whether an inherited socket requires a key.
    keyed: bool,
}

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
        mut config: ServeConfig,
        output: Output,
        inbox: Inbox,
        inherited: Option<InheritedSockets>,
        console_ui: Option<ConsoleUi>,
    ) -> Result<Self, Failure> {
        let network = Network::look(&config, inherited.as_ref())?;
        let disks = Disks::open(&mut config)?;
        let (access_control, note) = access_control(&config, &network);
        let (may_require_key, is_target) = (network.may_require_key(), config.is_target());
        let terminal_keys =
            if console_ui.is_none() && output.is_screen() { TerminalKeys::open() } else { None };
        let driver = config.worker.engine.driver;
        let certificates = config.worker.certificates.as_ref();
        let warning = certificates.and_then(|certificates| certificates.warning.clone());
        let worker = Worker::start(config.worker, inbox.clone())?;
        let mut server = Self {
            listeners: Listeners::closed(network.plan, network.open),
            worker,
            access_control,
            announcer: config.announce.then(|| announcer(config.mdns_port, &inbox)),
            terminal_keys,
            screen: State::default(),
            pairing_unavailable: None,
            reports_codes: config.pairing == PairingMode::Reported && console_ui.is_none(),
            failure_reason: None,
            lent_disks: Vec::new(),
            status: Status::default(),
            faults: Faults::default(),
            sleep_inhibitor: Inhibitor::new(
                &Tree::machine(),
                "disks of this machine are attached by others",
            ),
            hotplug: disks.hotplug,
            inbox,
            output,
            machine: hostname(),
            addresses: network.addresses,
            address_changes: network.changes,
            digests: config.digests,
            remote_only: is_target,
            timers: Timers::default(),
            console_ui,
            only_peer: None,
            flushes: Flushes::default(),
            event_limit: EventLimit::default(),
        };
        server.add_disks(disks.lent_disks)?;
        let own = note.into_iter().chain(warning).collect();
        let notes = [config.notes, disks.notes, own].concat();
        server.add_startup_notes(notes, disks.is_all, driver);
        server.start_pairing(if may_require_key { config.pairing } else { PairingMode::Disabled });
        server.listen()?;
        inherited.map_or(Ok(()), |inherited| server.receive(inherited))?;
        Ok(server)
    }

    /// Sends the access rules and the disks to the worker.
    fn add_disks(&mut self, lent_disks: Vec<LentDisk>) -> Result<(), Failure> {
        self.apply_host_changes(Instant::now());
        for lent in lent_disks {
            self.worker.lend(&lent.export)?;
            self.add_lent_disk(lent);
        }
        Ok(())
    }

    /// Opens the listeners, after the disks and the access rules.
    fn listen(&mut self) -> Result<(), Failure> {
        let Self { listeners, worker, addresses, status, .. } = self;
        let left_out = listeners.open(addresses, &mut |listener| bind(worker, listener))?;
        left_out.into_iter().for_each(|sentence| status.note(sentence));
        Ok(())
    }

    /// Starts pairing if the code can be shown and hosts can be stored.
    fn start_pairing(&mut self, mode: PairingMode) {
        let has_screen = self.console_ui.is_some() || self.terminal_keys.is_some();
        self.pairing_unavailable = match mode {
            _ if !self.access_control.can_pair() => Some(Unavailable::NoStore),
            PairingMode::Disabled => Some(Unavailable::Disabled),
            PairingMode::OnScreen if !has_screen => Some(Unavailable::NoTerminal),
            PairingMode::OnScreen | PairingMode::Reported => None,
        };
        if self.pairing_unavailable.is_none() {
            self.worker.enable_pairing(&self.machine);
        }
    }
}

/// Opens the access rules. Without a state directory no host is authorized by key.
fn access_control(config: &ServeConfig, network: &Network) -> (AccessControl, Option<String>) {
    let boot = config.is_target().then(Tree::machine);
    let keys = config.keys.as_deref();
    let opened = match network.may_require_key() || config.is_target() {
        true => AccessControl::open(keys, boot.as_ref()),
        false => AccessControl::open_existing(keys),
    };
    match opened {
        Ok(access_control) => (access_control, None),
        Err(failure) => {
            (AccessControl::none(), Some(format!("No host can be authorized by a key: {failure}.")))
        }
    }
}

impl Network {
    fn look(config: &ServeConfig, inherited: Option<&InheritedSockets>) -> Result<Self, Failure> {
        let changes = Changes::open().ok();
        let addresses = addresses().unwrap_or_else(|_| vec![loopback()]);
        let (listen, open) = (&config.listen, config.open);
        let protocols = Protocols::of(&config.protocols);
        let reach = match (open, config.routable) {
            (true, _) => DefaultScope::Everywhere,
            (false, true) => DefaultScope::Present,
            (false, false) => DefaultScope::Nearby,
        };
        let plan = match inherited {
            Some(_) if listen.is_empty() => Plan::Fixed(Vec::new()),
            _ => plan(listen, protocols, reach, config.is_target(), &addresses)?,
        };
        let keyed = inherited.is_some_and(InheritedSockets::is_keyed);
        Ok(Self { addresses, changes, plan, open, keyed })
    }

    /// Returns whether a listener requires a key, now or later.
    fn may_require_key(&self) -> bool {
        let keyed = |listener: &Listener| listener.auth == Auth::Required;
        let fixed = matches!(self.plan, Plan::Fixed(_));
        !self.open
            && (self.keyed || !fixed || self.plan.listeners(&self.addresses).iter().any(keyed))
    }
}

impl Disks {
    fn open(config: &mut ServeConfig) -> Result<Self, Failure> {
        let filter = config.filter.take();
        let is_all = filter.is_some();
        let mut hotplug = Hotplug::open(config.lend.clone(), filter);
        let mut lent_disks = open_requested(config)?;
        let mut notes = Vec::new();
        if is_all {
            add_present_disks(hotplug.initial_scan(&lent_disks)?, &mut lent_disks, &mut notes);
        }
        Ok(Self { hotplug, lent_disks, notes, is_all })
    }
}

/// Fallback if the kernel's addresses cannot be read.
fn loopback() -> Address {
    Address {
        ip: std::net::Ipv4Addr::LOCALHOST.into(),
        interface: "lo".to_owned(),
        scope_id: 1,
        scope: linux::net::Scope::Loopback,
        tentative: false,
        deprecated: false,
        running: true,
    }
}

/// Opens the named disks, and the demo disk.
fn open_requested(config: &ServeConfig) -> Result<Vec<LentDisk>, Failure> {
    let lend = &config.lend;
    let mut lent_disks: Vec<LentDisk> = Vec::new();
    for wanted in &config.disks {
        let wanted = LendRequest { path: named(&lend.tree, &wanted.path), ..*wanted };
        check_new(&lent_disks, &wanted.path)?;
        if !config.any_format {
            check_raw(&wanted.path)?;
        }
        add(&mut lent_disks, lend.lend(&wanted)?)?;
    }
    if let Some((size, writable)) = config.demo {
        add(&mut lent_disks, lend.lend_demo(size, writable)?)?;
    }
    Ok(lent_disks)
}

/// Rejects a compressed or packaged file, which hosts could not use. Read errors are reported when
/// it is opened.
fn check_raw(path: &Path) -> Result<(), Failure> {
    if !path.is_file() {
        return Ok(());
    }
    let container = File::open(path).and_then(|file| unpack::detect(&file));
    let Ok(Some(container)) = container else { return Ok(()) };
    let name = path.display();
    let quoted = quoted(&name.to_string());
    let way = match container.is_stream() {
        true => format!("{} > disk.img", container.unpack_command(&quoted)),
        false => container.unpack_command(&quoted),
    };
    Err(Failure::new(format!(
        "{name} is {container}, and hosts would get its bytes as they are: unpack it first ({way}), or lend it as it is with \
         --format raw"
    )))
}

/// Rejects a second path to the same disk, which would appear to be in use by this process.
fn check_new(lent_disks: &[LentDisk], path: &Path) -> Result<(), Failure> {
    let Some(number) = block_device(path) else { return Ok(()) };
    let is_it = |lent: &&LentDisk| lent.device.as_ref().is_some_and(|device| device.is(number));
    lent_disks.iter().find(is_it).map_or(Ok(()), |lent| {
        let (first, second) = (&lent.export.name, path.display());
        Err(Failure::new(format!("{first} and {second} are the same disk; name it once")))
    })
}

fn add(lent_disks: &mut Vec<LentDisk>, lent: LentDisk) -> Result<(), Failure> {
    lent_disks.iter().try_for_each(|known| check_distinct(&known.export, &lent.export))?;
    let lent = lent.with_unique_name(lent_disks);
    lent_disks.push(lent);
    Ok(())
}

/// Adds the disks present at startup; leaves out disks with the same identity, with a note.
fn add_present_disks(
    changes: Vec<Change>,
    lent_disks: &mut Vec<LentDisk>,
    notes: &mut Vec<String>,
) {
    for change in changes {
        match change {
            Change::Added(lent) => {
                if let Err(failure) = add(lent_disks, *lent) {
                    notes.push(failure.to_string());
                }
            }
            Change::Note(note) => notes.push(note),
            Change::Removed(_) | Change::Resized(..) => {}
        }
    }
}

fn announcer(port: Option<u16>, inbox: &Inbox) -> Announcer {
    let inbox = inbox.clone();
    Announcer::new(port, Arc::new(move |sentence| inbox.note(sentence)))
}
