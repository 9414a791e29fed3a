//! What the screen is about: the machine, its disks and the hosts that have attached them.

use std::fmt;
use std::net::IpAddr;

use export::Access;

use crate::attach::{Endpoint, Nbd};

/// All that one screen shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// What this machine calls itself.
    pub machine: String,
    /// Where hosts reach the disks by NVMe/TCP, in the order in which they are to be shown.
    pub endpoints: Vec<Endpoint>,
    /// Where they reach them by NBD, likewise.
    pub nbd: Vec<Nbd>,
    /// Whether the lines to be typed ask for header and data digests.
    pub digests: bool,
    /// The disks that are lent.
    pub disks: Vec<Disk>,
    /// How a machine that has no key yet is let in, if it can be.
    pub pairing: Option<Pairing>,
    /// A machine that knew the code and waits for a yes or a no.
    pub asking: Option<Asking>,
    /// What else is worth knowing, a sentence each, the newest last.
    pub notes: Vec<String>,
    /// Why there is no address, if there is none.
    pub link: Link,
    /// What a machine in target mode shows besides.
    pub target_mode: Option<TargetMode>,
}

/// How far this machine is connected to a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Link {
    /// It has no network card with a driver.
    NoCard,
    /// No cable is connected at both ends.
    #[default]
    Down,
    /// A cable is connected.
    Up,
}

impl Link {
    /// What to show while there is no address.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::NoCard => {
                "No network address to be reached at: there is no network card that works here."
            }
            Self::Down => "No network address to be reached at yet: plug in a cable.",
            Self::Up => {
                "No network address to be reached at yet: the cable is connected, and the \
                 interface has no address."
            }
        }
    }
}

impl Model {
    /// All addresses where hosts reach the disks, by whatever protocol.
    pub(crate) fn reached(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().chain(self.nbd.iter().filter_map(Nbd::endpoint))
    }

    /// Whether a key is needed anywhere.
    pub(crate) fn is_keyed(&self) -> bool {
        self.reached().any(|at| at.keyed)
    }

    /// Whether nothing is listened on yet.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.endpoints.is_empty() && self.nbd.is_empty()
    }

    /// Whether a host has attached a disk.
    pub fn is_attached(&self) -> bool {
        self.disks.iter().any(|disk| !disk.attached.is_empty())
    }

    /// Whether a key is needed somewhere, and only NBD is served there: pairing takes NVMe/TCP.
    pub(crate) fn is_keyed_by_nbd_alone(&self) -> bool {
        self.is_keyed() && !self.endpoints.iter().any(|at| at.keyed)
    }
}

/// How a machine that has no key yet is let in.
#[derive(Clone, PartialEq, Eq)]
pub enum Pairing {
    /// By the code on this screen.
    Code {
        /// To be typed.
        digits: String,
        /// The same for a camera, with where to go.
        link: String,
    },
    /// By the next code, in a moment: a wrong one was tried.
    Later,
    /// Not before a key is pressed at this machine: too many wrong codes.
    Stopped,
    /// Not by a code.
    Unavailable(Unavailable),
}

/// Why there is no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// Standard output is no terminal, and `--pair` was not given.
    NoTerminal,
    /// Pairing was turned off.
    Disabled,
    /// The keys of hosts cannot be stored here.
    NoStore,
    /// The code is not for this reader: the journal keeps what it is given.
    Hidden,
}

impl fmt::Debug for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Code { .. } => "Code",
            Self::Later => "Later",
            Self::Stopped => "Stopped",
            Self::Unavailable(_) => "Unavailable",
        })
    }
}

/// A machine that typed the right code and asks for write access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// What it calls itself, as received.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
}

/// A disk that is lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What its owner calls it: a path.
    pub title: String,
    /// The name under which hosts attach it by NVMe/TCP.
    pub nqn: String,
    /// The name under which they attach it by NBD.
    pub short: String,
    /// Bytes that it holds.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Model, or empty.
    pub model: String,
    /// Serial number, or empty.
    pub serial: String,
    /// What is on it, in few words; empty if that is not known.
    pub contents: String,
    /// What hosts may do with it.
    pub access: Access,
    /// Who has attached it.
    pub attached: Vec<Host>,
    /// Bytes that hosts have read of it.
    pub read: u64,
    /// Bytes that hosts have written to it.
    pub written: u64,
    /// Write requests that the kernel has sent to it since power-on, whoever asked; nothing if it does not count.
    pub writes: Option<u64>,
}

/// A host that has attached a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The owner's name for the host whose key it has shown; nothing without a key.
    pub known_as: Option<String>,
    /// The NVMe Qualified Name that it gives itself, as received; empty for one that gives none, as over NBD.
    pub nqn: String,
    /// Where it is.
    pub address: IpAddr,
}

/// What a machine in target mode shows besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetMode {
    /// What the machine is: its maker's name for it, and its serial number. May be empty.
    pub hardware: String,
    /// Whether disks are lent; not after all hosts were detached.
    pub lending: bool,
    /// Whether something that hosts have written is not on the disks yet.
    pub flushing: bool,
}
