//! The other job of the child of PID 1: attaches a disk that another machine lends, and starts the system on it.
//!
//! | file | content |
//! |---|---|
//! | `parameters` | the kernel parameters |
//! | `dialogue` | what the console asks |
//! | `terminal` | the consoles |
//! | `search` | machines nearby |
//! | `disk` | attaching the disk |
//! | `system` | the systems on it |
//! | `prepare`, `fstab` | a root that does not write to the disk |
//! | `hand_over` | the change to its init |
//!
//! The process stays when the system runs: it holds the addresses of the network, and does the TLS handshakes when the
//! kernel connects again.

mod dialogue;
mod disk;
mod fstab;
mod hand_over;
mod parameters;
mod prepare;
mod search;
mod system;
mod terminal;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use daemon::inbox::Inbox;
use failure::Failure;
use linux::network::Network;
use linux::tree::Tree;

use crate::attach::{LentDisk, lent_disks};
use crate::pair::PairRequest;
use dialogue::{Answer, Dialogue, Kind, busy};
use disk::{
    KEYS, attach, choose, detach, interfaces, keep_connection, lender_at, load_modules, options,
};
pub(super) use hand_over::SWITCH;
use hand_over::{hand_over, lock};
use parameters::Parameters;
pub(super) use parameters::is_wanted;
pub(super) use prepare::ROOT;
use prepare::Start;
use search::{Lender, Search, Unencrypted};
use system::{Choice, Volume, Wanted};
use terminal::{Stop, Terminal};

/// The subject of notes about the search for machines.
const SEARCH: &str = "search";
/// How often the list of machines is renewed.
const RENEWAL: Duration = Duration::from_secs(1);
/// The pause before the kernel parameters are tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// The console, and what was found out so far.
struct Session {
    tree: Tree,
    parameters: Parameters,
    terminal: Terminal,
    /// Only until the system is started.
    search: Option<Search>,
    /// Which system is started.
    wanted: Wanted,
    /// Why the last attempt failed.
    message: String,
    /// Whether questions are answered by the kernel parameters.
    by_parameters: bool,
    /// Whether the kernel parameters have a code: the machine that they mean is not asked without a key.
    has_code: bool,
}

/// A system that is ready to be started.
struct Prepared {
    init: String,
    /// The NQN of its disk.
    disk: String,
}

/// Starts a system from a lent disk; until then, asks which, again and again. The lock is held from then on: drivers are
/// loaded by the system.
pub(super) fn run(
    tree: &Tree,
    inbox: Inbox,
    _network: io::Result<Network>,
    loading: &Mutex<()>,
) -> Result<Infallible, Failure> {
    let parameters = Parameters::read(tree).unwrap_or_default();
    for note in &parameters.notes {
        inbox.note(note.clone());
    }
    load_modules(tree);
    let mut session = Session {
        tree: tree.clone(),
        by_parameters: parameters.machine.is_some(),
        has_code: parameters.code.is_some(),
        wanted: Wanted::of(parameters.root.clone()),
        parameters,
        terminal: Terminal::open(tree, inbox),
        search: Some(Search::start()),
        message: String::new(),
    };
    fs::create_dir_all(KEYS).map_err(|error| Failure::new(format!("{KEYS}: {error}")))?;
    if let Err(error) = remote::handshake::serve(tree, KEYS.into()) {
        session.message = format!(
            "Connections cannot be encrypted with this kernel ({error}): Linux 6.7 or newer can."
        );
    }
    loop {
        match session.attempt() {
            Ok(prepared) => session.switch(&prepared, loading),
            Err(Stop::Exit(status)) => std::process::exit(status),
            Err(Stop::Back) => {
                session.message.clear();
                session.choose_here();
            }
            Err(Stop::Failed(failure)) => session.failed(&failure),
        }
        session.pause();
    }
}

impl Session {
    /// Starts the system. Returns only if PID 1 could not do it; the disk is detached then.
    fn switch(&mut self, prepared: &Prepared, loading: &Mutex<()>) {
        // What the system does itself from now on; the terminals are its, too.
        self.search = None;
        let held = lock(loading);
        self.terminal.close();
        let failure = match keep_connection(&self.tree, &prepared.disk) {
            Ok(()) => hand_over(&self.terminal.inbox, &prepared.init),
            Err(failure) => failure,
        };
        drop(held);
        self.terminal.reopen(&self.tree);
        self.search = Some(Search::start());
        prepare::undo();
        detach(&self.tree, &prepared.disk);
        self.failed(&failure);
    }

    /// A person chooses from now on, not the kernel parameters.
    fn choose_here(&mut self) {
        self.by_parameters = false;
        self.wanted.forget();
    }

    /// Finds a disk and prepares the system on it.
    fn attempt(&mut self) -> Result<Prepared, Stop> {
        let lender = self.lender()?;
        let disks = self.disks(&lender)?;
        let disk = self.disk(&lender, disks)?;
        self.terminal.show(&busy(&format!("Attaching {} of {} ...", disk.name, lender.name)));
        let result = self.start(&lender, &disk);
        if result.is_err() {
            prepare::undo();
            detach(&self.tree, &disk.nqn);
        }
        Ok(Prepared { init: result?, disk: disk.nqn })
    }

    fn lender(&mut self) -> Result<Lender, Stop> {
        if let Some(machine) = self.parameters.machine.clone().filter(|_| self.by_parameters) {
            return lender_at(&machine).map_err(Stop::Failed);
        }
        let mut dialogue = Dialogue::new(Kind::Choice, "Which machine lends the disk? Run `storagetm serve` there, or boot it into target mode.")
            .or_else("      No machine has been found yet; the search goes on.")
            .after(&self.message);
        let mut shown: Vec<Lender> = Vec::new();
        loop {
            match self.search.as_ref().map_or_else(|| Ok(Vec::new()), Search::found) {
                Ok(found) => {
                    self.terminal.note(SEARCH, None);
                    let has_default = found.iter().all(Lender::may_be_default);
                    if dialogue.update(found.iter().map(Lender::shown).collect(), has_default) {
                        shown = found;
                    }
                }
                Err(reason) => self.terminal.note(SEARCH, Some(reason)),
            }
            match self.terminal.answer_within(&mut dialogue, RENEWAL)? {
                Some(Answer::Row(row)) => {
                    if let Some(lender) = shown.get(row) {
                        return Ok(lender.clone().reached());
                    }
                }
                Some(Answer::Address) => {
                    let question = "The address of the machine: 192.168.1.5 or fe80::1%eth0, or its name in the list";
                    let Answer::Text(text) =
                        self.terminal.ask(Dialogue::new(Kind::Text, question))?
                    else {
                        return Err(Stop::Back);
                    };
                    return match search::named(&shown, &text) {
                        Some(lender) => Ok(lender.clone().reached()),
                        None => lender_at(&text).map_err(Stop::Failed),
                    };
                }
                _ => {}
            }
        }
    }

    /// Returns the disks that a machine lends to this one; pairs with it first, if it wants that. Without encryption only
    /// after the user has agreed.
    fn disks(&mut self, lender: &Lender) -> Result<Vec<LentDisk>, Stop> {
        self.terminal.show(&busy(&format!("Asking {} for its disks ...", lender.name)));
        let unencrypted = self.unencrypted(lender);
        let options = options(lender, None, unencrypted.may_be_asked());
        let is_paired = !remote::machine::readable_targets(Some(Path::new(KEYS)))?.is_empty();
        if is_paired || unencrypted != Unencrypted::Never {
            match lent_disks(&options) {
                Err(failure) if failure.status() == 3 => {}
                disks => {
                    let disks = disks?;
                    self.agree(lender, &disks, unencrypted)?;
                    return Ok(disks);
                }
            }
        }
        self.pair(lender)?;
        Ok(lent_disks(&options)?)
    }

    /// Whether the kernel parameters mean the machine that is asked.
    fn is_meant(&self) -> bool {
        self.parameters.are_for(self.by_parameters)
    }

    /// Whether the system writes to the disk.
    fn writes(&self) -> bool {
        self.parameters.writes(self.by_parameters)
    }

    fn unencrypted(&self, lender: &Lender) -> Unencrypted {
        let allowed = self.by_parameters.then_some(self.parameters.unencrypted);
        Unencrypted::of(lender.keyed == Some(true) || (self.has_code && self.is_meant()), allowed)
    }

    /// Asks whether disks that come without encryption are wanted.
    fn agree(&mut self, lender: &Lender, disks: &[LentDisk], may: Unencrypted) -> Result<(), Stop> {
        if disks.iter().all(|disk| disk.encrypted) || may == Unencrypted::Allowed {
            return Ok(());
        }
        if may != Unencrypted::Asked {
            return Err(Failure::refused(format!(
                "{} lends without a key, NOT ENCRYPTED: only storagetm.boot.unencrypted allows that, or a person here",
                lender.name
            ))
            .into());
        }
        let question = format!(
            "NOT ENCRYPTED: {} lends without a key. Whoever is on the network can read what is transferred, change the system that starts, \
             or be another machine than you mean. Go on?",
            lender.name
        );
        match self.terminal.ask(Dialogue::new(Kind::Consent, &question))? {
            Answer::Yes => Ok(()),
            _ => Err(Stop::Back),
        }
    }

    fn pair(&mut self, lender: &Lender) -> Result<(), Stop> {
        let code = match self.parameters.code.clone().filter(|_| self.is_meant()) {
            Some(code) => code,
            None => {
                let question = format!("The code on the screen of {}:", lender.name);
                let dialogue = Dialogue::new(Kind::Code, &question).after(&self.message);
                let Answer::Text(code) = self.terminal.ask(dialogue)? else {
                    return Err(Stop::Back);
                };
                code
            }
        };
        self.message.clear();
        self.terminal.show(&busy(&format!("Pairing with {} ...", lender.name)));
        let name = linux::machine::describe(&self.tree);
        let writable = self.writes();
        let terminal = std::cell::RefCell::new(&mut self.terminal);
        let confirmed = |_: &str| {
            let text = format!(
                "The code is right. If {} shows a question about this machine, it has to be answered there.",
                lender.name
            );
            terminal.borrow_mut().show(&busy(&text));
        };
        let request = PairRequest {
            at: &lender.at,
            code: &code,
            name: if name.is_empty() { "a machine without a system" } else { &name },
            writable,
            keys: Path::new(KEYS),
            confirmed: &confirmed,
        };
        // Until the machine takes it, the code is not used up.
        let paired = request.open()?.run();
        if !matches!(&paired, Err(failure) if failure.status() != 3) {
            // A code is valid once.
            self.parameters.code = None;
        }
        Ok(paired?)
    }

    fn disk(&mut self, lender: &Lender, disks: Vec<LentDisk>) -> Result<LentDisk, Stop> {
        if let Some(wanted) = self.parameters.disk.clone().filter(|_| self.by_parameters) {
            return Ok(choose(&lender.name, disks, &wanted)?);
        }
        if disks.len() < 2 {
            let none = || {
                Failure::refused(format!("{} lends no disk to this machine just now", lender.name))
            };
            return disks.into_iter().next().ok_or_else(|| none().into());
        }
        let row = |disk: &LentDisk| {
            let size = disk.size.map(|(bytes, _)| console::decimal(bytes)).unwrap_or_default();
            format!("{:<20} {size:>9}  {}", disk.name, disk.nqn)
        };
        let question = format!("Which disk of {}?", lender.name);
        let rows = disks.iter().map(row).collect();
        let answer = self.terminal.ask(Dialogue::new(Kind::Choice, &question).with(rows))?;
        let Answer::Row(at) = answer else { return Err(Stop::Back) };
        disks.into_iter().nth(at).ok_or(Stop::Back)
    }

    /// Attaches the disk, and prepares the system on it.
    fn start(&mut self, lender: &Lender, disk: &LentDisk) -> Result<String, Stop> {
        let write = self.writes();
        let (device, writable) = attach(lender, disk)?;
        if write && !writable {
            return Err(Failure::refused(format!(
                "{} lends {} read-only, and storagetm.boot.write asks to write to it: lend it with --writable there, or leave that out",
                lender.name, disk.name
            ))
            .into());
        }
        self.terminal
            .show(&busy(&format!("Looking for a system on {} of {} ...", disk.name, lender.name)));
        let volumes = system::survey(&self.tree, Path::new(&device))?;
        let hibernated = system::check_hibernation(&volumes, write)?;
        let at = self.volume(&volumes)?;
        let Some(root) = volumes.get(at) else { return Err(Stop::Back) };
        let Some(found) = &root.system else { return Err(Stop::Back) };
        let changes = if write {
            "It writes to the disk."
        } else {
            "Nothing is written to the disk: changes are in memory, and are lost when the machine ends."
        };
        self.terminal.show(&busy(&format!("Starting {} ... {changes}", found.name)));
        let start = Start {
            disk: Path::new(&device),
            volumes: &volumes,
            root,
            write,
            interfaces: interfaces(&self.tree, &disk.nqn),
        };
        let mut notes = start.prepare()?;
        notes.extend(hibernated);
        if !notes.is_empty() {
            self.terminal.show(&busy(&format!(
                "Starting {} ... {changes} {}",
                found.name,
                notes.join(" ")
            )));
            std::thread::sleep(Duration::from_secs(3));
        }
        Ok(found.init.clone())
    }

    /// Returns the index of the volume with the system that is started.
    fn volume(&mut self, volumes: &[Volume]) -> Result<usize, Stop> {
        match self.wanted.choose(volumes) {
            Choice::One(at) => Ok(at),
            Choice::None(reason) => {
                if !self.by_parameters {
                    // The next disk may have another one.
                    self.wanted.forget();
                }
                Err(Failure::new(reason.trim_end_matches('.')).into())
            }
            Choice::Ask(all) => {
                let rows = all.iter().filter_map(|at| Some(volumes.get(*at)?.shown())).collect();
                let dialogue = Dialogue::new(Kind::Choice, "Which system?").with(rows);
                let Answer::Row(row) = self.terminal.ask(dialogue)? else { return Err(Stop::Back) };
                all.get(row).copied().ok_or(Stop::Back)
            }
        }
    }

    fn failed(&mut self, failure: &Failure) {
        let text = failure.to_string();
        self.message = format!("{}.", text.trim_end_matches('.'));
    }

    /// After a failed attempt by kernel parameters: shows why, and waits. A key leads to the list.
    fn pause(&mut self) {
        if !self.by_parameters {
            return;
        }
        let text = format!(
            "{} Trying again in {} seconds; press a key to choose here.",
            self.message,
            PAUSE.as_secs()
        );
        self.terminal.show(&busy(&text));
        if self.terminal.is_key_pressed_within(PAUSE) {
            self.choose_here();
        }
    }
}
