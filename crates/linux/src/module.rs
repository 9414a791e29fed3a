//! Loads kernel modules for the hardware of this machine: at the start (coldplug) and as hardware
//! is added (hot-plug).
//!
//! Modules that assemble disks ([`refused`]) are never loaded.

mod hardware;
mod index;
mod load;
mod pattern;
mod refused;
mod settings;

pub use hardware::modaliases;
pub use index::{Index, name_of};
pub use load::unpack;
pub use refused::refused;

use crate::netlink::{Received, Socket};
use crate::network::{NetworkParameters, Upper};
use crate::tree::Tree;
use hardware::{Urgency, hardware_of_event, urgency};
use load::Loader;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::netlink::KOBJECT_UEVENT;
use settings::Settings;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The multicast group of the kernel (udev has another).
const FROM_KERNEL: u32 = 1;
/// Several threads, so that a driver that waits for its disks to spin up does not delay the others.
const WORKERS: usize = 4;
/// Modules that the network needs and no modalias asks for.
const ALWAYS: &[&str] = &["af_packet", "ipv6"];

/// The result of loading a module.
#[derive(Debug)]
pub enum Note {
    /// Loaded.
    Loaded(String),
    /// Refused.
    Refused {
        /// Its name, with underscores.
        name: String,
        /// Why, as a clause: "it would assemble RAID arrays and write to their disks".
        reason: &'static str,
    },
    /// Failed.
    Failed {
        /// Its name, with underscores.
        name: String,
        /// The error of the kernel, or of reading the file.
        error: io::Error,
    },
}

/// Loads modules and their dependencies from a directory of modules, with the parameters of the
/// kernel command line, and returns the results. Does nothing for loaded modules, and for those that the directory lacks.
///
/// # Errors
/// Fails if `modules.dep` cannot be read.
pub fn load(
    tree: &Tree,
    folder: impl AsRef<Path>,
    cmdline: &str,
    names: &[&str],
) -> io::Result<Vec<Note>> {
    let index = Index::read(tree.path(folder))?;
    let mut notes = Vec::new();
    let loader = Loader::new(tree.clone(), index, Settings::parse(cmdline));
    let there = names.iter().filter(|name| loader.index.file(name).is_some());
    there.for_each(|name| loader.load(name, &mut |note| notes.push(note)));
    Ok(notes)
}

/// Loads the modules for all hardware, present and added later.
#[derive(Debug)]
pub struct Drivers {
    tree: Tree,
    socket: Socket,
    loader: Arc<Loader>,
    /// Modules of requested VLANs and bonds.
    requested: BTreeSet<&'static str>,
    seen: HashSet<String>,
    asked: HashSet<String>,
}

impl Drivers {
    /// Opens the uevent socket, and reads the directory of modules and the kernel command line.
    ///
    /// # Errors
    /// Fails if `modules.dep` cannot be read, or uevent sockets are not supported.
    pub fn open(tree: &Tree, folder: impl AsRef<Path>, cmdline: &str) -> io::Result<Self> {
        let index = Index::read(tree.path(folder))?;
        let (network, _) = NetworkParameters::parse(cmdline);
        Ok(Self {
            requested: network.uppers.iter().map(Upper::module).collect(),
            socket: Socket::listening(Some(KOBJECT_UEVENT), FROM_KERNEL)?,
            loader: Arc::new(Loader::new(tree.clone(), index, Settings::parse(cmdline))),
            tree: tree.clone(),
            seen: HashSet::new(),
            asked: HashSet::new(),
        })
    }

    /// Loads the modules for all present hardware, repeatedly, until no more hardware appears.
    ///
    /// # Errors
    /// Fails if the socket or the eventfd fails. A module that cannot be loaded is reported as a
    /// note.
    pub fn coldplug(&mut self, note: &mut dyn FnMut(Note)) -> io::Result<()> {
        let always = ALWAYS.iter().chain(&self.requested);
        let always = always.map(|name| (Urgency::Network, (*name).to_owned()));
        let mut first: Vec<Wanted> = always.collect();
        first.extend(self.scan());
        self.work(first, note)
    }

    /// Loads the modules for hardware added since the last call.
    ///
    /// # Errors
    /// As [`Drivers::coldplug`].
    pub fn receive(&mut self, note: &mut dyn FnMut(Note)) -> io::Result<()> {
        let first = self.receive_uevents()?;
        self.work(first, note)
    }

    /// Returns the modules for all present hardware that were not returned before.
    fn scan(&mut self) -> Vec<Wanted> {
        modaliases(&self.tree).into_iter().flat_map(|name| self.wanted(name)).collect()
    }

    /// Returns the modules for the hardware of pending uevents.
    fn receive_uevents(&mut self) -> io::Result<Vec<Wanted>> {
        let mut wanted = Vec::new();
        loop {
            let name = match self.socket.receive()? {
                Received::Nothing => return Ok(wanted),
                Received::Lost => None,
                Received::Datagram(datagram) => match hardware_of_event(datagram) {
                    Some(name) => Some(name),
                    None => continue,
                },
            };
            wanted.extend(match name {
                Some(name) => self.wanted(name),
                None => self.scan(),
            });
        }
    }

    /// Returns the modules for a modalias that was not seen before.
    fn wanted(&mut self, modalias: String) -> Vec<Wanted> {
        if self.seen.contains(&modalias) {
            return Vec::new();
        }
        let found = self.loader.index.matching(&modalias);
        let fresh = found.into_iter().filter(|&name| self.asked.insert(name.to_owned()));
        let urgency = urgency(&modalias);
        let fresh = fresh.map(|name| (urgency, name.to_owned())).collect();
        self.seen.insert(modalias);
        fresh
    }

    /// Loads modules on several threads, and those for hardware that is added meanwhile.
    fn work(&mut self, first: Vec<Wanted>, note: &mut dyn FnMut(Note)) -> io::Result<()> {
        if first.is_empty() {
            return Ok(());
        }
        let wake_fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (sender, answers) = channel();
        let pool = Pool { loader: Arc::clone(&self.loader), jobs: Jobs::default(), wake_fd };
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                let sender = sender.clone();
                scope.spawn(|| pool.work(sender));
            }
            let result = self.direct(first, &pool, &answers, note);
            pool.jobs.close();
            result
        })
    }

    /// Queues modules until all are loaded and no new ones are needed.
    fn direct(
        &mut self,
        first: Vec<Wanted>,
        pool: &Pool,
        answers: &Receiver<Answer>,
        note: &mut dyn FnMut(Note),
    ) -> io::Result<()> {
        let mut open = 0_usize;
        let mut fresh = first;
        loop {
            open = open.saturating_add(fresh.len());
            pool.jobs.add(fresh);
            if open == 0 {
                return Ok(());
            }
            wait(&self.socket, &pool.wake_fd)?;
            for answer in answers.try_iter() {
                match answer {
                    Answer::Note(result) => note(result),
                    Answer::Done => open = open.saturating_sub(1),
                }
            }
            fresh = self.receive_uevents()?;
        }
    }
}

impl AsFd for Drivers {
    /// Becomes readable when [`Drivers::receive`] may have something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A message from a thread.
#[derive(Debug)]
enum Answer {
    Note(Note),
    Done,
}

/// A module, and how urgently it is needed.
type Wanted = (Urgency, String);

/// State shared by the threads: the job queue, and an eventfd that is signalled after each job.
#[derive(Debug)]
struct Pool {
    loader: Arc<Loader>,
    jobs: Jobs,
    wake_fd: OwnedFd,
}

impl Pool {
    /// The main function of a thread. Returns when the job queue is closed.
    fn work(&self, sender: Sender<Answer>) {
        while let Some(name) = self.jobs.next() {
            self.loader.load(&name, &mut |note| drop(sender.send(Answer::Note(note))));
            let _ = sender.send(Answer::Done);
            let _ = rustix::io::write(&self.wake_fd, &1_u64.to_ne_bytes());
        }
    }
}

/// The queue of modules: the most urgent ones first, then those that were added first.
#[derive(Debug, Default)]
struct Jobs {
    queue: Mutex<Queue>,
    added: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeSet<(Urgency, usize, String)>,
    added: usize,
    closed: bool,
}

impl Jobs {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, wanted: Vec<Wanted>) {
        let mut queue = self.queue();
        for (urgency, name) in wanted {
            queue.added = queue.added.saturating_add(1);
            let job = (urgency, queue.added, name);
            queue.waiting.insert(job);
        }
        self.added.notify_all();
    }

    /// Waits for a module. Returns `None` once the queue is closed and empty.
    fn next(&self) -> Option<String> {
        let is_idle = |queue: &mut Queue| queue.waiting.is_empty() && !queue.closed;
        let waited = self.added.wait_while(self.queue(), is_idle);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        queue.waiting.pop_first().map(|(_, _, name)| name)
    }

    fn close(&self) {
        self.queue().closed = true;
        self.added.notify_all();
    }
}

/// Waits for a uevent or the eventfd, and clears the eventfd.
fn wait(socket: &Socket, wake_fd: &OwnedFd) -> io::Result<()> {
    let mut both = [PollFd::new(socket, PollFlags::IN), PollFd::new(wake_fd, PollFlags::IN)];
    match poll(&mut both, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let _ = rustix::io::read(wake_fd, &mut [0_u8; 8]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn machine() -> Fake {
        let fake = Fake::new();
        fake.file("lib/modules.dep", "nvme.ko: core.ko\ncore.ko:\nmd-mod.ko:\nsd_mod.ko:\n")
            .file(
                "lib/modules.alias",
                "alias pci:n* nvme\nalias pci:r* md-mod\nalias pci:n* sd_mod\n",
            )
            .file("sys/devices/a/modalias", "pci:n1\n")
            .file("sys/devices/b/modalias", "pci:r1\n")
            .link("sys/bus/pci/devices/a", "sys/devices/a")
            .link("sys/bus/pci/devices/b", "sys/devices/b");
        fake
    }

    #[test]
    fn modules_for_hardware_are_loaded_once() {
        let fake = machine();
        let mut drivers = Drivers::open(&fake.tree(), "lib", "").unwrap();
        let mut said = Vec::new();
        drivers.coldplug(&mut |note| said.push(note)).unwrap();
        // There are no files: loading fails, once for each module.
        let mut names: Vec<String> = said
            .into_iter()
            .map(|note| match note {
                Note::Loaded(name) => format!("loaded {name}"),
                Note::Refused { name, .. } => format!("refused {name}"),
                Note::Failed { name, error } => format!("{name}: {:?}", error.kind()),
            })
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["core: NotFound", "nvme: NotFound", "refused md_mod", "sd_mod: NotFound"]
        );
        assert!(drivers.scan().is_empty());
        drivers.coldplug(&mut |note| panic!("{note:?}")).unwrap();
        drivers.receive(&mut |note| panic!("{note:?}")).unwrap();
    }

    #[test]
    fn urgent_modules_are_loaded_first() {
        let jobs = Jobs::default();
        let wanted = |urgency, name: &str| (urgency, name.to_owned());
        jobs.add(vec![
            wanted(Urgency::Other, "button"),
            wanted(Urgency::Controller, "ahci"),
            wanted(Urgency::Nvme, "nvme"),
            wanted(Urgency::Controller, "a"),
        ]);
        jobs.add(vec![wanted(Urgency::Network, "virtio_net"), wanted(Urgency::Other, "ac")]);
        jobs.close();
        let order: Vec<String> = std::iter::from_fn(|| jobs.next()).collect();
        assert_eq!(order, ["virtio_net", "nvme", "ahci", "a", "button", "ac"]);
    }

    #[test]
    fn directory_without_modules_dep_is_an_error() {
        assert!(Drivers::open(&Fake::new().tree(), "lib", "").is_err());
    }
}
