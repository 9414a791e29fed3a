//! Asks a machine which disks it lends to this one: its discovery service, then each disk's controller. What it says is a
//! stranger's word, bounded in number and in time. It knows no screen.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::tls::{self, Psk};
use nvme::command::AdminCommand;
use nvme::host::{Controller, Credentials, Namespace};
use nvme::wire::fabrics::DISCOVERY_NQN;
use nvme::wire::identify::NSATTR_WRITE_PROTECTED;
use nvme::wire::log::{DiscoveryEntry, DiscoveryHeader, lid, sectype, subtype};
use nvme::wire::text::{parse_ascii, parse_nqn};
use zerocopy::FromBytes;

use super::line::{Line, Talk};
use super::who::Who;
use crate::place::Place;
use keys::key::Key;
use keys::record::{Allowed, check_nqn};

/// How long one answer, and all of them, may take.
const ANSWER: Duration = Duration::from_secs(3);
const ALL: Duration = Duration::from_secs(15);
/// Disks of one machine that are looked at.
const DISKS: usize = 64;
/// Entries of a discovery log that are fetched at once.
const AT_ONCE: usize = 16;
const ENTRY: usize = size_of::<DiscoveryEntry>();

/// A disk that another machine lends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its NQN.
    pub nqn: String,
    /// Where it is attached.
    pub at: SocketAddr,
    /// What it is called there, if it was asked and said so.
    pub name: Option<String>,
    /// Its model and its serial number; empty if it was not asked, or did not say.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its size and what may be done with it, if it said so.
    pub size: Option<(u64, Allowed)>,
}

/// Why a machine does not say which disks it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It cannot be reached.
    Unreachable(String),
    /// It does not know the key, or there is none for it.
    Key,
    /// It accepts no key of this machine, and is not asked in the clear.
    Stranger,
    /// It broke off, as a clause.
    Broken(String),
}

/// Who asks, and the key for the machine that is asked, if there is one.
#[derive(Debug, Clone)]
pub struct Asking<'a> {
    /// Who asks.
    pub who: &'a Who,
    /// The key for secured channels.
    pub key: Option<&'a Key>,
    /// By what it proves itself within NVMe.
    pub proof: Option<Arc<Credentials>>,
}

/// The disks that the machine at that place lends to who asks. With `looks`, each is looked at.
///
/// # Errors
/// It does not say.
pub fn disks(place: &Place, asking: &Asking<'_>, looks: bool) -> Result<Vec<Disk>, Refusal> {
    let end = Instant::now() + ALL;
    let (stream, reached) = asking.connect(place, DISCOVERY_NQN)?;
    let entries = discover(stream, asking, end).map_err(Refusal::Broken)?;
    let mut disks: Vec<Disk> = Vec::new();
    for entry in entries.iter().filter_map(|entry| disk(entry, reached)) {
        if disks.iter().all(|known| known.nqn != entry.nqn) {
            disks.push(entry);
        }
    }
    if looks {
        disks.iter_mut().for_each(|disk| look(place, asking, disk, end));
    }
    Ok(disks)
}

impl Asking<'_> {
    /// Sees whether the machine has the same key.
    pub(super) fn try_key(&self, place: &Place) -> Result<(), Refusal> {
        self.connect(place, DISCOVERY_NQN).map(drop)
    }

    /// A connection to that subsystem, as secure as the key makes it, and where it has led.
    fn connect(&self, place: &Place, nqn: &str) -> Result<(Box<dyn Talk>, SocketAddr), Refusal> {
        let unreachable = |error: &dyn std::fmt::Display| Refusal::Unreachable(error.to_string());
        let socket = place.connect().map_err(|error| unreachable(&error))?;
        let reached = socket.peer_addr().map_err(|error| unreachable(&error))?;
        bound(&socket).map_err(|error| unreachable(&error))?;
        let Some(key) = self.key else { return Ok((Box::new(socket), reached)) };
        let psk = psk(key, &self.who.nqn, nqn).ok_or(Refusal::Key)?;
        match tls::connect(socket, psk, Instant::now() + ANSWER) {
            Ok(channel) => Ok((Box::new(channel), reached)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(Refusal::Key),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                Err(Refusal::Unreachable(format!("{place}: {error}")))
            }
            Err(error) => Err(Refusal::Broken(error.to_string())),
        }
    }
}

fn bound(socket: &TcpStream) -> std::io::Result<()> {
    socket.set_read_timeout(Some(ANSWER))?;
    socket.set_write_timeout(Some(ANSWER))
}

/// The key of a channel to that subsystem, in the form that the specification has first.
fn psk(key: &Key, host: &str, subsystem: &str) -> Option<Psk> {
    let psk = nvme::auth::psk::derive_psks(key.text(), false, host, subsystem)
        .ok()?
        .into_iter()
        .next()?;
    let hash = match psk.hash {
        nvme::auth::Hash::Sha384 => tls::Hash::Sha384,
        _ => tls::Hash::Sha256,
    };
    Some(Psk { identity: psk.identity, secret: psk.secret, hash, key: None })
}

/// The discovery log (NVMe Base 2.0 §5.16.1.23), as far as it is looked at.
fn discover(
    stream: Box<dyn Talk>,
    asking: &Asking<'_>,
    end: Instant,
) -> Result<Vec<DiscoveryEntry>, String> {
    let (mut line, _) = Line::open(stream, asking.who, asking.proof.as_ref(), DISCOVERY_NQN, end)?;
    let head = page(&mut line, 0, size_of::<DiscoveryHeader>())?;
    let head = DiscoveryHeader::read_from_prefix(&head).map_err(|_| "its log is cut off")?.0;
    let count = usize::try_from(head.numrec.get()).unwrap_or(DISKS).min(DISKS);
    let mut entries = Vec::new();
    let mut offset = size_of::<DiscoveryHeader>();
    while entries.len() < count {
        let some = AT_ONCE.min(count - entries.len());
        let bytes = page(&mut line, offset, some * ENTRY)?;
        let before = entries.len();
        let read = bytes.chunks_exact(ENTRY).map(DiscoveryEntry::read_from_bytes);
        entries.extend(read.filter_map(Result::ok));
        if entries.len() == before {
            return Err("its log is cut off".to_owned());
        }
        offset += some * ENTRY;
    }
    Ok(entries)
}

fn page(line: &mut Line, offset: usize, len: usize) -> Result<Vec<u8>, String> {
    let ask = AdminCommand::log_page(lid::DISCOVERY, offset as u64, len as u64).emit();
    let done = line.command(ask, len)?;
    match done.buffer.filter(|_| done.status.is_success()) {
        Some(buffer) => Ok(buffer.bytes().to_vec()),
        None => Err(format!("it does not say which disks it has: {}", done.status)),
    }
}

/// The disk of an entry, if it is one that is had at the same machine: where others are is not for this one to say.
fn disk(entry: &DiscoveryEntry, reached: SocketAddr) -> Option<Disk> {
    let nqn = parse_nqn(&entry.subnqn).ok()?;
    check_nqn(nqn).ok()?;
    let address: IpAddr = parse_ascii(text(&entry.traddr)).split('%').next()?.parse().ok()?;
    let port: u16 = parse_ascii(text(&entry.trsvcid)).parse().ok()?;
    let here = address.to_canonical() == reached.ip().to_canonical() || address.is_unspecified();
    let is_disk = entry.trtype == DiscoveryEntry::TRTYPE_TCP && entry.subtype == subtype::NVM;
    let mut at = reached;
    at.set_port(port);
    let disk = || Disk {
        nqn: nqn.to_owned(),
        at,
        name: None,
        model: String::new(),
        serial: String::new(),
        size: None,
    };
    (is_disk && here && port != 0 && entry.sectype <= sectype::TLS_1_3).then(disk)
}

/// Some end these fields with NUL rather than with blanks.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Asks the disk's own controller. One that does not answer is left as it is.
fn look(place: &Place, asking: &Asking<'_>, disk: &mut Disk, end: Instant) {
    let there = place.with_port(disk.at.port());
    let Ok((stream, _)) = asking.connect(&there, &disk.nqn) else { return };
    let Ok((_, controller)) = Line::open(stream, asking.who, asking.proof.as_ref(), &disk.nqn, end)
    else {
        return;
    };
    if let Some(figure) = controller.identify() {
        disk.name = figure.short_name();
        disk.model = parse_ascii(text(&figure.mn));
        disk.serial = parse_ascii(text(&figure.sn));
    }
    disk.size = size(&controller);
}

/// The size of all that is behind the controller, and what may be done with it.
fn size(controller: &Controller) -> Option<(u64, Allowed)> {
    let bytes = |namespace: &Namespace| {
        namespace.identify.nsze.get().checked_shl(namespace.shift().into()).unwrap_or(u64::MAX)
    };
    let locked = |it: &Namespace| it.identify.nsattr & NSATTR_WRITE_PROTECTED != 0;
    let first = controller.namespaces().first()?;
    let sum = controller.namespaces().iter().map(bytes).fold(0, u64::saturating_add);
    Some((sum, if locked(first) { Allowed::ReadOnly } else { Allowed::Writable }))
}
