//! Finds the wanted disk of a target by its discovery log and, if necessary, by identifying each
//! controller (NVMe Base 2.0 §5.16.1.23).

use std::time::{Duration, Instant};

use export::{Account, Buffer, Pool};
use nvme::command::AdminCommand;
use nvme::host::{Controller, Options};
use nvme::wire::fabrics::{CNTLID_DYNAMIC, DISCOVERY_NQN};
use nvme::wire::log::{DiscoveryEntry, DiscoveryHeader, lid, subtype};
use nvme::wire::text::parse_nqn;
use zerocopy::FromBytes;

use super::queue_io::QueueIo;
use super::{CONNECT_TIMEOUT, NvmeEndpoint, printable};
use crate::endpoint::EndpointError;

/// Maximum entries of a discovery log: what fits in a buffer.
const ENTRIES: u64 = 1023;

/// Maximum number of disks to identify, and the maximum time for it.
const MAX_IDENTIFIED: usize = 256;
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum names in a message.
const MAX_NAMES: usize = 16;

/// Attempts to read a log that changes meanwhile.
const TRIES: usize = 4;

/// A disk of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredDisk {
    /// NQN of its subsystem.
    pub nqn: String,
    /// Short name at a storagetm target, such as `sda`; else empty.
    pub short: String,
    /// Serial number; may be empty.
    pub serial: String,
    /// Model; may be empty.
    pub model: String,
    /// Bytes of its first namespace; 0 if there is none.
    pub bytes: u64,
}

impl DiscoveredDisk {
    fn is_called(&self, name: &str) -> bool {
        !name.is_empty() && self.short == name
    }
}

impl NvmeEndpoint {
    /// The NQN of the wanted disk.
    pub(super) fn resolve_nqn(&self) -> Result<String, EndpointError> {
        if self.wanted.starts_with("nqn.") {
            return Ok(self.wanted.clone());
        }
        let nqns = self.exported_nqns()?;
        let fitting: Vec<&String> =
            nqns.iter().filter(|nqn| matches_nqn(nqn, &self.wanted)).collect();
        match (fitting.as_slice(), nqns.as_slice()) {
            ([only], _) => Ok((*only).clone()),
            (_, []) => Err(self.refuse(&"the target exports no disk to this host")),
            _ => self.resolve_by_identify(&nqns),
        }
    }

    /// Finds the disk by its short name, serial number or model.
    fn resolve_by_identify(&self, nqns: &[String]) -> Result<String, EndpointError> {
        let end = Instant::now() + IDENTIFY_TIMEOUT;
        let mut asked = Vec::new();
        for nqn in nqns.iter().take(MAX_IDENTIFIED).take_while(|_| Instant::now() < end) {
            let Ok(found) = self.describe(nqn) else { continue };
            // Short names are unique.
            if found.is_called(&self.wanted) {
                return Ok(found.nqn);
            }
            asked.push(found);
        }
        let is_wanted = |text: &str| !text.is_empty() && text.eq_ignore_ascii_case(&self.wanted);
        let mut fitting =
            asked.iter().filter(|disk| is_wanted(&disk.serial) || is_wanted(&disk.model));
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => Ok(only.nqn.clone()),
            (None, _) => Err(self.refuse(&format!("name one of {}", name_list(&asked, nqns)))),
            (Some(one), Some(other)) => {
                let sentence = format!("several disks match: name {} or {}", one.nqn, other.nqn);
                Err(self.refuse(&sentence))
            }
        }
    }

    /// Identifies all disks of the target.
    ///
    /// # Errors
    /// Fails if the target cannot be reached or refuses this host.
    pub fn disks(&self) -> Result<Vec<DiscoveredDisk>, EndpointError> {
        let nqns = self.exported_nqns()?;
        Ok(nqns.iter().take(MAX_IDENTIFIED).filter_map(|nqn| self.describe(nqn).ok()).collect())
    }

    fn describe(&self, nqn: &str) -> Result<DiscoveredDisk, EndpointError> {
        let attached = self.attach(nqn)?;
        let field = |field: Option<&[u8]>| field.map(printable).unwrap_or_default();
        let identify = attached.controller.identify();
        let first = attached.controller.namespaces().first();
        Ok(DiscoveredDisk {
            nqn: nqn.to_owned(),
            short: identify.and_then(|figure| figure.short_name()).unwrap_or_default(),
            serial: field(identify.map(|figure| &figure.sn[..])),
            model: field(identify.map(|figure| &figure.mn[..])),
            bytes: first.map_or(0, |namespace| {
                let bytes = namespace.identify.nsze.get().checked_mul(1 << namespace.shift());
                bytes.unwrap_or(0)
            }),
        })
    }

    /// The NQNs of the discovery log.
    fn exported_nqns(&self) -> Result<Vec<String>, EndpointError> {
        let (mut io, cntlid) = self.connect(DISCOVERY_NQN, CNTLID_DYNAMIC, Options::admin())?;
        let memory = Pool::new(4 << 20).open();
        self.initialize(&mut io, &mut Controller::new(cntlid, 1), &memory)?;
        for _ in 0..TRIES {
            let head = self.log(&mut io, &memory, 1)?;
            let before = header(&head)?;
            let count = before.numrec.get().min(ENTRIES);
            let whole = self.log(&mut io, &memory, count + 1)?;
            if header(&whole)?.genctr == before.genctr {
                return Ok(names(&whole, count));
            }
        }
        Err(EndpointError::Unreachable(format!("{}: the discovery log keeps changing", self.name)))
    }

    /// Reads the first `records` KiB of the discovery log.
    fn log(
        &self,
        io: &mut QueueIo,
        memory: &Account,
        records: u64,
    ) -> Result<Buffer, EndpointError> {
        let len = records.saturating_mul(1024);
        let command = AdminCommand::log_page(lid::DISCOVERY, 0, len).emit();
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let done = io.execute(command, len, memory, Instant::now() + CONNECT_TIMEOUT);
        let done = done.map_err(|error| self.failed(&error))?;
        if !done.status.is_success() {
            return Err(
                self.refuse(&format!("the target refused the discovery log: {}", done.status))
            );
        }
        done.buffer.ok_or_else(|| self.refuse(&"the target returned no discovery log"))
    }
}

/// The names of the disks, for a message.
fn name_list(asked: &[DiscoveredDisk], nqns: &[String]) -> String {
    let names: Vec<&str> =
        asked.iter().map(|disk| disk.short.as_str()).filter(|name| !name.is_empty()).collect();
    let all: Vec<&str> = match names.len() == nqns.len() {
        true => names,
        false => nqns.iter().map(String::as_str).collect(),
    };
    let some = all.iter().take(MAX_NAMES).copied().collect::<Vec<_>>().join(", ");
    match all.len().checked_sub(MAX_NAMES) {
        Some(more @ 1..) => format!("{some} and {more} others (storagetm find shows all)"),
        _ => some,
    }
}

fn header(log: &Buffer) -> Result<DiscoveryHeader, EndpointError> {
    let header = DiscoveryHeader::read_from_prefix(log.bytes());
    let short = |_| EndpointError::Refused("the target's discovery log is too short".to_owned());
    header.map(|(header, _)| header).map_err(short)
}

/// The NQNs of the disks in a log, without duplicates.
fn names(log: &Buffer, count: u64) -> Vec<String> {
    let entries = log.bytes().chunks_exact(size_of::<DiscoveryEntry>()).skip(1);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut names = Vec::new();
    for entry in entries.take(count).filter_map(|bytes| DiscoveryEntry::ref_from_bytes(bytes).ok())
    {
        let disk = entry.subtype == subtype::NVM && entry.trtype == DiscoveryEntry::TRTYPE_TCP;
        match parse_nqn(&entry.subnqn) {
            Ok(nqn) if disk && !names.iter().any(|known| known == nqn) => {
                names.push(nqn.to_owned())
            }
            _ => {}
        }
    }
    names
}

/// Whether `wanted` names this disk. An empty name matches every disk.
fn matches_nqn(nqn: &str, wanted: &str) -> bool {
    let end = nqn.len().checked_sub(wanted.len()).and_then(|at| nqn.split_at_checked(at));
    end.is_some_and(|(before, end)| {
        end.eq_ignore_ascii_case(wanted)
            && (wanted.is_empty() || before.is_empty() || before.ends_with([':', '.']))
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn disk_is_named_by_its_nqn_or_its_suffix() {
        let nqn = "nqn.2014-08.org.nvmexpress:uuid:6d1c3b02-0f3a-4b53-9d9e-0d8a2f6f7a11";
        for wanted in [
            "",
            nqn,
            "6d1c3b02-0f3a-4b53-9d9e-0d8a2f6f7a11",
            "6D1C3B02-0F3A-4B53-9D9E-0D8A2F6F7A11",
        ] {
            assert!(matches_nqn(nqn, wanted), "{wanted}");
        }
        for wanted in ["7a11", "0d8a2f6f7a11", "x", &format!("x{nqn}")] {
            assert!(!matches_nqn(nqn, wanted), "{wanted}");
        }
        assert!(matches_nqn("nqn.2026-01.org.example:target.sda", "sda"));
    }
}
