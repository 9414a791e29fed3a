//! The kernel modules of the hardware that is there: found by its names, loaded, and followed as hardware comes.
//!
//! Knows no disk and no network: what a module is for, only the folder of modules says. What assembles disks to
//! others ([`refused`]) is never loaded.

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
use crate::tree::Tree;
use hardware::hardware_of_event;
use load::Loader;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::netlink::KOBJECT_UEVENT;
use settings::Settings;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The multicast group in which the kernel itself speaks.
const FROM_KERNEL: u32 = 1;
/// A driver that waits for its disks to spin up keeps its thread, but no other driver.
const WORKERS: usize = 4;
/// What no hardware asks for, but the network does.
const ALWAYS: &[&str] = &["af_packet", "ipv6"];

/// What became of a module.
#[derive(Debug)]
pub enum Note {
    /// It is there now.
    Loaded(String),
    /// It is never loaded.
    Refused {
        /// Its name, with underscores.
        name: String,
        /// Why, as a clause: "it would assemble RAID arrays and write to their disks".
        reason: &'static str,
    },
    /// It could not be loaded.
    Failed {
        /// Its name, with underscores.
        name: String,
        /// What the kernel, or reading the file, said.
        error: io::Error,
    },
}

/// Loads one module, and what it needs, from a folder of modules, as the kernel command line says; what became of them
/// comes back. One that is there already is not loaded again.
///
/// Errors: `modules.dep` cannot be read.
pub fn load(
    tree: &Tree,
    folder: impl AsRef<Path>,
    cmdline: &str,
    name: &str,
) -> io::Result<Vec<Note>> {
    let index = Index::read(tree.path(folder))?;
    let mut notes = Vec::new();
    let loader = Loader::new(tree.clone(), index, Settings::parse(cmdline));
    loader.load(name, &mut |note| notes.push(note));
    Ok(notes)
}

/// Loads the modules of the hardware that is there, and that comes.
#[derive(Debug)]
pub struct Drivers {
    tree: Tree,
    socket: Socket,
    loader: Arc<Loader>,
    seen: HashSet<String>,
    asked: HashSet<String>,
}

impl Drivers {
    /// Starts listening for hardware, and reads the folder of modules and the kernel command line.
    ///
    /// Errors: `modules.dep` cannot be read; no such sockets here.
    pub fn open(tree: &Tree, folder: impl AsRef<Path>, cmdline: &str) -> io::Result<Self> {
        let index = Index::read(tree.path(folder))?;
        Ok(Self {
            socket: Socket::listening(Some(KOBJECT_UEVENT), FROM_KERNEL)?,
            loader: Arc::new(Loader::new(tree.clone(), index, Settings::parse(cmdline))),
            tree: tree.clone(),
            seen: HashSet::new(),
            asked: HashSet::new(),
        })
    }

    /// Loads what the hardware that is there needs, and that which appears by it, until nothing new does.
    ///
    /// Errors: the socket or the bell between the threads failed; what cannot be loaded is a note.
    pub fn coldplug(&mut self, note: &mut dyn FnMut(Note)) -> io::Result<()> {
        let mut first: Vec<String> = ALWAYS.iter().map(|name| (*name).to_owned()).collect();
        first.extend(self.scan());
        self.work(first, note)
    }

    /// Loads what the hardware needs of which the kernel has told since; returns when nothing waits.
    ///
    /// Errors: as those of [`Drivers::coldplug`].
    pub fn receive(&mut self, note: &mut dyn FnMut(Note)) -> io::Result<()> {
        let first = self.hear()?;
        self.work(first, note)
    }

    /// The modules for all hardware that is there, as far as they were not asked for before.
    fn scan(&mut self) -> Vec<String> {
        modaliases(&self.tree).into_iter().flat_map(|name| self.wanted(name)).collect()
    }

    /// The modules for the hardware of which the kernel has told.
    fn hear(&mut self) -> io::Result<Vec<String>> {
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

    /// The modules for hardware of that name, if it is the first of that name.
    fn wanted(&mut self, modalias: String) -> Vec<String> {
        if self.seen.contains(&modalias) {
            return Vec::new();
        }
        let found = self.loader.index.matching(&modalias);
        let fresh = found.into_iter().filter(|&name| self.asked.insert(name.to_owned()));
        let fresh = fresh.map(str::to_owned).collect();
        self.seen.insert(modalias);
        fresh
    }

    /// Loads modules on several threads, and all that is asked for meanwhile.
    fn work(&mut self, first: Vec<String>, note: &mut dyn FnMut(Note)) -> io::Result<()> {
        if first.is_empty() {
            return Ok(());
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (jobs, waiting) = channel();
        let (said, answers) = channel();
        let crew = Crew { loader: Arc::clone(&self.loader), waiting: Mutex::new(waiting), bell };
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                let said = said.clone();
                scope.spawn(|| crew.work(said));
            }
            self.direct(first, jobs, &answers, &crew.bell, note)
        })
    }

    /// Hands out the jobs until all are done and nothing new was asked for; the threads end with `jobs`.
    fn direct(
        &mut self,
        first: Vec<String>,
        jobs: Sender<String>,
        answers: &Receiver<Answer>,
        bell: &OwnedFd,
        note: &mut dyn FnMut(Note),
    ) -> io::Result<()> {
        let mut open = 0_usize;
        let mut fresh = first;
        loop {
            open =
                open.saturating_add(fresh.drain(..).filter_map(|job| jobs.send(job).ok()).count());
            if open == 0 {
                return Ok(());
            }
            wait(&self.socket, bell)?;
            for answer in answers.try_iter() {
                match answer {
                    Answer::Note(said) => note(said),
                    Answer::Done => open = open.saturating_sub(1),
                }
            }
            fresh = self.hear()?;
        }
    }
}

impl AsFd for Drivers {
    /// Readable when [`Drivers::receive`] may have something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a thread says.
#[derive(Debug)]
enum Answer {
    Note(Note),
    Done,
}

/// What the threads share: the jobs, and a bell to ring when one is done.
#[derive(Debug)]
struct Crew {
    loader: Arc<Loader>,
    waiting: Mutex<Receiver<String>>,
    bell: OwnedFd,
}

impl Crew {
    /// One thread's work, until there are no more jobs.
    fn work(&self, said: Sender<Answer>) {
        while let Some(name) = self.next() {
            self.loader.load(&name, &mut |note| drop(said.send(Answer::Note(note))));
            let _ = said.send(Answer::Done);
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    fn next(&self) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

/// Until the kernel tells of hardware, or a thread rings the bell, which is silent again then.
fn wait(socket: &Socket, bell: &OwnedFd) -> io::Result<()> {
    let mut both = [PollFd::new(socket, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
    match poll(&mut both, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let _ = rustix::io::read(bell, &mut [0_u8; 8]);
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
    fn the_modules_of_the_hardware_are_asked_for_once() {
        let fake = machine();
        let mut drivers = Drivers::open(&fake.tree(), "lib", "").unwrap();
        let mut said = Vec::new();
        drivers.coldplug(&mut |note| said.push(note)).unwrap();
        // There are no files: what would be loaded fails, each module once.
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
    fn a_folder_that_is_no_folder_of_modules_is_an_error() {
        assert!(Drivers::open(&Fake::new().tree(), "lib", "").is_err());
    }
}
