//! What `storagetm serve` does once, before it waits: opens the disks, starts the engine, opens the sockets. It knows no
//! event.

use std::path::Path;
use std::sync::Arc;

use engine::{Config, Driver, Engine};
use export::{Catalogue, Event};
use linux::identity::machine_id;
use linux::net::{Address, Changes, addresses, hostname};
use linux::tree::Tree;
use nvme::target::Target;

use super::{Alerts, Server, bind};
use crate::boot::desk::Desk;
use crate::failure::Failure;
use crate::follow::{Change, Follow};
use crate::ledger::Ledger;
use crate::lend::{Loan, Terms, block_device, check_unlike};
use crate::listen::{Plan, plan};
use crate::listeners::Listeners;
use crate::mailbox::Mailbox;
use crate::options::{Io, Serve};
use crate::output::Output;
use crate::settings::Settings;

/// Bytes of memory for payloads that all threads share: enough for a fast disk, and little enough for an initrd.
const PAYLOADS: usize = 32 << 20;

/// What a thread has of that at least, however many there are.
const LEAST_PAYLOADS: usize = 4 << 20;

/// The disks that are lent from the start.
struct Disks {
    follow: Follow,
    loans: Vec<Loan>,
    notes: Vec<String>,
}

/// The machine's addresses, and where of them to listen.
struct Network {
    addresses: Vec<Address>,
    changes: Option<Changes>,
    plan: Plan,
}

impl Server {
    /// Opens the disks, then the sockets. On an error nothing is left behind.
    pub(super) fn open(
        options: &Serve,
        settings: Settings,
        output: Output,
        mailbox: Mailbox,
        desk: Option<Desk>,
    ) -> Result<Self, Failure> {
        let network = Network::look(options, &settings)?;
        let disks = Disks::open(options, &settings)?;
        let mut server =
            Self::start(options, network, disks.follow, &disks.loans, output, mailbox, desk)?;
        server.remember(options, [settings.notes, disks.notes].concat());
        disks.loans.into_iter().for_each(|loan| server.keep(loan));
        Ok(server)
    }

    fn start(
        options: &Serve,
        network: Network,
        follow: Follow,
        loans: &[Loan],
        output: Output,
        mailbox: Mailbox,
        desk: Option<Desk>,
    ) -> Result<Self, Failure> {
        let Network { addresses, changes: address_changes, plan } = network;
        let catalogue = Arc::new(Catalogue::default());
        for loan in loans {
            catalogue.lend(loan.export.clone());
        }
        let target = Target::new(catalogue.clone());
        let engine = start(options, &mailbox)?;
        let mut bind = |listener: &_| bind(&engine, &target, listener);
        let listeners = Listeners::open(plan, &addresses, &mut bind)?;
        Ok(Self {
            engine,
            target,
            catalogue,
            listeners,
            loans: Vec::new(),
            ledger: Ledger::default(),
            follow,
            mailbox,
            output,
            machine: hostname(),
            addresses,
            address_changes,
            digests: options.digests,
            remote_only: options.boot_settings,
            alerts: Alerts::default(),
            desk,
            flushing: Arc::default(),
        })
    }
}

impl Network {
    fn look(options: &Serve, settings: &Settings) -> Result<Self, Failure> {
        let changes = Changes::open().ok();
        let addresses = addresses().unwrap_or_else(|_| vec![loopback()]);
        let listen = [&options.listen[..], &settings.listen[..]].concat();
        let plan = plan(&listen, options.open || settings.open, options.boot_settings, &addresses)?;
        Ok(Self { addresses, changes, plan })
    }
}

impl Disks {
    fn open(options: &Serve, settings: &Settings) -> Result<Self, Failure> {
        let tree = Tree::machine();
        let terms = Terms {
            base: options.nqn.clone(),
            allow_in_use: options.allow_in_use,
            machine: settings.machine.unwrap_or_else(|| machine_id(&tree)),
            tree,
            at_rest: options.boot_settings,
        };
        let choice = options.all.then(|| settings.choice.clone());
        let mut follow = Follow::open(terms.clone(), choice);
        let mut loans = asked_for(options, &terms)?;
        let mut notes = Vec::new();
        if options.all {
            come(follow.begin(&loans)?, &mut loans, &mut notes);
        }
        Ok(Self { follow, loans, notes })
    }
}

/// The address to fall back to where the kernel does not tell its addresses.
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

/// Opens the disks that were asked for one by one, and the demo disk.
fn asked_for(options: &Serve, terms: &Terms) -> Result<Vec<Loan>, Failure> {
    let mut loans: Vec<Loan> = Vec::new();
    for wanted in options.wanted() {
        check_new(&loans, &wanted.path)?;
        add(&mut loans, terms.lend(&wanted)?)?;
    }
    if let Some(size) = options.demo {
        add(&mut loans, terms.lend_demo(size, options.demo_writable())?)?;
    }
    Ok(loans)
}

/// Refuses a second path to a disk that is lent already: we hold it ourselves, and it would seem to be in use.
fn check_new(loans: &[Loan], path: &Path) -> Result<(), Failure> {
    let Some(number) = block_device(path) else { return Ok(()) };
    let is_it = |loan: &&Loan| loan.device.as_ref().is_some_and(|device| device.is(number));
    loans.iter().find(is_it).map_or(Ok(()), |loan| {
        let (first, second) = (&loan.export.name, path.display());
        Err(Failure::new(format!("{first} and {second} are the same disk; name it once")))
    })
}

fn add(loans: &mut Vec<Loan>, loan: Loan) -> Result<(), Failure> {
    loans.iter().try_for_each(|known| check_unlike(&known.export, &loan.export))?;
    loans.push(loan);
    Ok(())
}

/// Takes the disks that are there at the start; those that cannot be told apart are said and left out.
fn come(changes: Vec<Change>, loans: &mut Vec<Loan>, notes: &mut Vec<String>) {
    for change in changes {
        match change {
            Change::Came(loan) => {
                if let Err(failure) = add(loans, *loan) {
                    notes.push(failure.to_string());
                }
            }
            Change::Note(note) => notes.push(note),
            Change::Went(_) | Change::Resized(..) => {}
        }
    }
}

fn start(options: &Serve, mailbox: &Mailbox) -> Result<Engine, Failure> {
    let driver = match options.io {
        Io::Auto => Driver::Auto,
        Io::Uring => Driver::Uring,
        Io::Blocking => Driver::Blocking,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.map_or(processors, usize::from);
    let mailbox = mailbox.clone();
    let sink = Arc::new(move |event: Event| mailbox.put(event));
    let memory = (PAYLOADS / threads.max(1)).max(LEAST_PAYLOADS);
    Engine::start(Config { driver, threads, memory, ..Config::default() }, sink)
        .map_err(|error| Failure::new(format!("cannot start to serve: {error}")))
}
