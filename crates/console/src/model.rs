//! The data shown on the screen: the machine, its disks and the attached hosts.

use std::fmt;
use std::net::IpAddr;

use export::{Access, ExportId};
use protocol::commands::ExportNames;
use protocol::endpoint::Endpoint;

/// Everything shown on the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The name of this machine.
    pub machine: String,
    /// The endpoints, in display order.
    pub endpoints: Vec<Endpoint>,
    /// Whether commands enable header and data digests.
    pub digests: bool,
    /// The served disks.
    pub disks: Vec<Disk>,
    /// The state of pairing, if keys are required.
    pub pairing: Option<Pairing>,
    /// How the disks are read in a browser with a code, if HTTPS is served.
    pub reading: Option<ReadingAccess>,
    /// A paired machine that waits for the decision on its request for write access.
    pub access_request: Option<AccessRequest>,
    /// Messages, one sentence each, the newest last.
    pub notes: Vec<String>,
    /// The state of the network while the machine has none.
    pub link: Link,
    /// Shown in target mode only.
    pub target_mode: Option<TargetMode>,
}

/// The state of the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Link {
    /// No network interface with a driver.
    NoCard,
    /// No carrier.
    #[default]
    Down,
    /// Carrier, but no address.
    Up,
}

impl Link {
    /// Returns the text shown without an address.
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
    /// Returns the endpoints that require a key.
    pub(crate) fn keyed_endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|at| at.keyed && !at.protocol.row().reading_code)
    }

    /// Returns whether any endpoint requires a key.
    pub(crate) fn requires_key(&self) -> bool {
        self.keyed_endpoints().next().is_some()
    }

    /// Returns whether any disk is attached.
    pub fn is_attached(&self) -> bool {
        self.disks.iter().any(|disk| !disk.attached.is_empty())
    }

    /// Returns whether all endpoints that require a key are of protocols without pairing.
    pub(crate) fn requires_key_without_pairing(&self) -> bool {
        self.requires_key() && !self.keyed_endpoints().any(|at| at.protocol.row().pairing)
    }
}

/// The state of pairing.
#[derive(Clone, PartialEq, Eq)]
pub enum Pairing {
    /// A code is shown.
    Code {
        /// The code to type.
        digits: String,
        /// The text of the QR code.
        link: String,
    },
    /// A wrong code was tried; the next one follows shortly.
    Delayed,
    /// Locked after too many wrong codes.
    LockedOut,
    /// Pairing by code is not possible.
    Unavailable(Unavailable),
}

/// Why no code is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// Standard output is not a terminal, and `--pair` was not given.
    NoTerminal,
    /// Pairing is disabled.
    Disabled,
    /// The keys of hosts cannot be stored.
    NoStore,
    /// The output goes to the journal, which must not contain the code.
    Hidden,
}

impl fmt::Debug for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Code { .. } => "Code",
            Self::Delayed => "Delayed",
            Self::LockedOut => "LockedOut",
            Self::Unavailable(_) => "Unavailable",
        })
    }
}

/// How the disks are read in a browser with a code.
#[derive(Clone, PartialEq, Eq)]
pub struct ReadingAccess {
    /// The code as it is shown; `None` where it must not be shown.
    pub code: Option<String>,
    /// Whether it is shown on a screen instead.
    pub is_on_screen: bool,
    /// SHA-256 of the certificate: pairs of hexadecimal digits with colons between them.
    pub fingerprint: String,
}

impl fmt::Debug for ReadingAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadingAccess({})", self.fingerprint)
    }
}

/// A machine that had the right code and requests write access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRequest {
    /// Its name, as received.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// A served disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The path.
    pub title: String,
    /// The identifier of the export.
    pub id: ExportId,
    /// The short name.
    pub short: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// The model; may be empty.
    pub model: String,
    /// The serial number; may be empty.
    pub serial: String,
    /// Short description of the contents; empty if unknown.
    pub contents: String,
    /// The access of hosts.
    pub access: Access,
    /// Changes that are kept in memory instead of on the disk; `None` without an overlay.
    pub kept: Option<KeptChanges>,
    /// The attached hosts.
    pub attached: Vec<Host>,
    /// Bytes read by hosts.
    pub read: u64,
    /// Bytes written by hosts.
    pub written: u64,
    /// Write requests since power-on as counted by the kernel, from any source; `None` if not
    /// counted.
    pub writes: Option<u64>,
}

impl Disk {
    /// Returns whether an overlay keeps changes.
    pub fn keeps_changes(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.bytes > 0)
    }

    /// Returns whether the disk would have an overlay if that was changed at the console; `None` for a
    /// disk that hosts can change.
    pub(crate) fn can_set_overlay(&self) -> Option<bool> {
        match (self.access, &self.kept) {
            (Access::Writable, None) => None,
            (_, kept) => Some(kept.is_none()),
        }
    }

    /// Returns the names from which protocols make their own.
    pub(crate) fn names(&self) -> ExportNames<'_> {
        ExportNames { id: &self.id, short: &self.short }
    }
}

/// Changes that an overlay keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptChanges {
    /// Whether they are in files, else in memory.
    pub in_files: bool,
    /// Bytes of all hosts.
    pub bytes: u64,
    /// Of each host; empty if all hosts share them.
    pub by_host: Vec<KeptByHost>,
}

/// Changes of one host that an overlay keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptByHost {
    /// Its name or address.
    pub host: String,
    /// Whether it has proven the name. A host without a key may have the same.
    pub has_key: bool,
    /// Bytes.
    pub bytes: u64,
}

/// An attached host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The configured name of the host; `None` without a key.
    pub known_as: Option<String>,
    /// The host NQN, as received; empty if there is none, as over NBD.
    pub nqn: String,
    /// Its address; `USB` at the other end of a cable.
    pub address: String,
}

/// Shown in target mode only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetMode {
    /// Product name and serial number of the machine; may be empty.
    pub hardware: String,
    /// Whether disks are served; false after all hosts were detached.
    pub serving: bool,
    /// Whether written data has not reached the disks yet.
    pub flushing: bool,
    /// The USB port for a cable to another computer.
    pub usb: UsbPort,
}

/// A USB port that can act as a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UsbPort {
    /// The machine has none.
    #[default]
    Absent,
    /// The disks are not served there.
    Idle,
    /// The disks are to be served there as soon as there is a disk and a port.
    Waiting,
    /// The disks are served there.
    Serving,
}
