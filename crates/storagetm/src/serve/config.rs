//! Configuration of the serve loop: made once, from the command line or for target mode.

use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use daemon::certificates;
use daemon::disk_filter::DiskFilter;
use daemon::lend::{LendOptions, LendRequest, Opener, Writes};
use daemon::listen::ListenOption;
use daemon::overlay::OverlayOptions;
use daemon::reported::ReportedIdentity;
use daemon::settings::Settings;
use daemon::size::Size;
use daemon::worker;
use engine::Driver;
use failure::Failure;
use linux::identity::{first_controller, machine_id};
use linux::tree::Tree;
use nvme::nqn;
use protocol::Protocol;

use super::nvmet;
use super::rescue::RescueOptions;
use crate::options::{Io, Serve};

/// Payload memory shared by the connections of all threads: enough for a fast disk, and small
/// enough for an initrd.
const PAYLOAD_MEMORY: usize = 32 << 20;

/// Share of available memory for payloads, and for connections (divisors).
const PAYLOAD_SHARE: u64 = 16;
const CONNECTION_SHARE: u64 = 8;

/// Minimum payload memory per thread.
const MIN_PAYLOAD_MEMORY: usize = 4 << 20;

/// Configuration of the serve loop.
#[derive(Debug)]
pub(crate) struct ServeConfig {
    /// Disks and files to serve, by path.
    pub(super) disks: Vec<LendRequest>,
    /// The map and the image of the only disk, if that is lent by them.
    pub(super) rescue: Option<RescueOptions>,
    /// Size of the demo disk if it is served, and where what is written to it goes.
    pub(super) demo: Option<(Size, Writes)>,
    /// The users whose home directories are served, all if it is empty; `None` for none.
    pub(super) homes: Option<Vec<String>>,
    /// The names of the home directories that get an overlay.
    pub(super) overlaid_homes: Vec<PathBuf>,
    /// Which other disks of the machine are served, with hot-plug; `None` for none.
    pub(super) filter: Option<DiskFilter>,
    /// Whether compressed and packaged files are served as they are.
    pub(super) any_format: bool,
    /// How disks are opened and identified.
    pub(super) lend: LendOptions,
    /// Protocols to serve; all if empty.
    pub(super) protocols: Vec<Protocol>,
    /// Addresses to listen on.
    pub(super) listen: Vec<ListenOption>,
    /// Whether the disks are also served at a USB port.
    pub(super) usb: bool,
    /// Whether all present addresses are listened on if none is given.
    pub(super) routable: bool,
    /// Whether hosts need no key.
    pub(super) open: bool,
    /// Directory of keys and hosts; `None` for the default.
    pub(super) keys: Option<PathBuf>,
    pub(super) pairing: PairingMode,
    /// Time without an attached host after which the machine restarts, in target mode.
    pub(super) return_after: Option<Duration>,
    /// Whether the disks are announced by multicast DNS.
    pub(super) announce: bool,
    /// UDP port of multicast DNS instead of 5353.
    pub(super) mdns_port: Option<u16>,
    /// Whether attach commands enable digests.
    pub(super) digests: bool,
    pub(super) worker: worker::Config,
    /// Whether there is a control socket, and its path; the user's own by default.
    pub(super) control: Option<Option<PathBuf>>,
    /// Messages for the user.
    pub(super) notes: Vec<String>,
}

/// Whether pairing codes are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PairingMode {
    Disabled,
    /// On a screen, if there is one.
    OnScreen,
    /// Also as text or events.
    Reported,
}

impl ServeConfig {
    /// Returns the configuration that the command line requests.
    ///
    /// # Errors
    /// Fails if the base of NQNs is invalid, or if a certificate cannot be read.
    pub(super) fn of_options(options: Serve) -> Result<Self, Failure> {
        if let Some(base) = &options.nqn {
            nqn::check_base(base).map_err(Failure::usage)?;
        }
        let is_target = options.boot_settings;
        let settings =
            if is_target { Settings::read(&Tree::machine()) } else { Settings::default() };
        let mut config = Self::of_settings(settings, is_target);
        config.disks = options.lend_requests();
        let (listen, notes) = nvmet::import(&options, &config.lend, &mut config.disks)?;
        config.listen.extend(listen);
        config.notes.extend(notes);
        config.rescue = RescueOptions::of(&options.rescue, &config.disks)?;
        config.demo = options.demo.map(|size| (size, options.demo_writes()));
        config.overlaid_homes = options.overlaid_homes();
        config.homes = options.homes.users();
        config.lend.overlay = OverlayOptions {
            limit: daemon::overlay::limit(&config.lend.tree, options.access.overlay.len()),
            is_shared: options.access.overlay_shared,
            dir: options.access.overlay_dir,
        };
        config.filter = config.filter.filter(|_| options.all);
        config.any_format = options.format.is_some();
        config.lend.base = options.nqn;
        config.lend.removable = options.removable;
        config.lend.allow_in_use = options.allow_in_use;
        config.lend.force |= options.force;
        config.lend.reported = options.reported;
        config.notes.extend(options.notes);
        config.protocols.extend(options.protocol);
        config.listen.splice(0..0, options.listen);
        config.usb = options.usb;
        config.open |= options.open;
        config.keys = options.keys;
        if options.pair && config.pairing == PairingMode::OnScreen {
            config.pairing = PairingMode::Reported;
        }
        config.announce = !options.no_announce;
        config.mdns_port = options.mdns_port;
        config.digests = options.digests;
        // A program that is started for one client is not asked by others.
        let has_control = !is_target && !options.stdin;
        config.control = has_control.then_some(options.control);
        config.worker.engine = engine_config(options.io.driver(), options.threads);
        config.worker.engine.endpoints = options.usb || is_target;
        config.worker.null_dh = options.allow_null_dh;
        config.worker.certificates =
            options.tls_certificates.as_deref().map(certificates::read).transpose()?;
        Ok(config)
    }

    /// Returns the configuration that serves every disk that the settings select, with hot-plug.
    /// `is_target` as in [`Self::is_target`].
    pub(crate) fn of_settings(settings: Settings, is_target: bool) -> Self {
        let tree = Tree::machine();
        let machine = settings.machine.unwrap_or_else(|| machine_id(&tree));
        Self {
            disks: Vec::new(),
            rescue: None,
            demo: None,
            homes: None,
            overlaid_homes: Vec::new(),
            filter: Some(settings.filter),
            any_format: false,
            lend: LendOptions {
                base: None,
                allow_in_use: false,
                // In target mode a disk is only named writable to repair it.
                force: is_target,
                removable: false,
                overlay: OverlayOptions { limit: 0, is_shared: false, dir: None },
                machine,
                tree,
                at_rest: is_target,
                reported: ReportedIdentity::default(),
                opener: Opener::default(),
            },
            protocols: settings.protocol,
            listen: settings.listen,
            usb: false,
            routable: settings.routable,
            open: settings.open,
            keys: None,
            pairing: match settings.no_pairing {
                true => PairingMode::Disabled,
                false => PairingMode::OnScreen,
            },
            return_after: settings.return_after,
            announce: true,
            mdns_port: None,
            digests: false,
            worker: worker::Config {
                engine: engine::Config {
                    // The key `u` of target mode.
                    endpoints: is_target,
                    ..engine_config(Driver::Auto, None)
                },
                null_dh: false,
                certificates: None,
                web_certificate: None,
                first_controller: first_controller(machine, std::process::id()),
            },
            control: None,
            notes: settings.notes,
        }
    }

    /// Returns whether the machine was booted to serve its disks. Addresses may then appear later,
    /// boot credentials contain hosts, and loopback addresses are not shown.
    pub(super) fn is_target(&self) -> bool {
        self.lend.at_rest
    }
}

/// Returns the engine's configuration for the memory that is available on this machine. One thread
/// per processor by default.
fn engine_config(driver: Driver, threads: Option<u16>) -> engine::Config {
    let processors = || available_parallelism().map_or(1, usize::from);
    let threads = threads.map_or_else(processors, usize::from);
    let available = linux::memory::available(&Tree::machine());
    let part = |part| usize::try_from(available / part).unwrap_or(usize::MAX);
    engine::Config {
        driver,
        threads,
        memory: (PAYLOAD_MEMORY / threads.max(1)).max(MIN_PAYLOAD_MEMORY),
        budget: part(PAYLOAD_SHARE),
        connections: part(CONNECTION_SHARE),
        ..engine::Config::default()
    }
}

impl Io {
    fn driver(self) -> Driver {
        match self {
            Self::Auto => Driver::Auto,
            Self::Uring => Driver::Uring,
            Self::Blocking => Driver::Blocking,
        }
    }
}
