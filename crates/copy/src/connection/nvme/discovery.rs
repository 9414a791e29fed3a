//! Finds the wanted disk of a target by its discovery log and, if necessary, by identifying each
//! controller (NVMe Base 2.0 §5.16.1.23).

use std::time::{Duration, Instant};

use client::Deadline;
use client::discovery::{self, Description, DiscoveryError, MAX_DISKS};
use nvme::host::Options;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, DISCOVERY_NQN};

use super::{CONNECT_TIMEOUT, NvmeEndpoint};
use crate::endpoint::EndpointError;

/// Maximum time to identify all disks.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum names in a message.
const MAX_NAMES: usize = 16;

/// A disk of a target: its NQN, and what its controller reports.
type Found = (String, Description);

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
        for nqn in nqns.iter().take(MAX_DISKS).take_while(|_| Instant::now() < end) {
            let Ok(attached) = self.attach(nqn) else { continue };
            let found = discovery::describe(&attached.controller);
            // Short names are unique.
            if found.short.as_ref() == Some(&self.wanted) {
                return Ok(nqn.clone());
            }
            asked.push((nqn.clone(), found));
        }
        let is_wanted = |text: &str| !text.is_empty() && text.eq_ignore_ascii_case(&self.wanted);
        let mut fitting =
            asked.iter().filter(|(_, disk)| is_wanted(&disk.serial) || is_wanted(&disk.model));
        match (fitting.next(), fitting.next()) {
            (Some((nqn, _)), None) => Ok(nqn.clone()),
            (None, _) => Err(self.refuse(&format!("name one of {}", name_list(&asked, nqns)))),
            (Some((one, _)), Some((other, _))) => {
                let sentence = format!("several disks match: name {one} or {other}");
                Err(self.refuse(&sentence))
            }
        }
    }

    /// The NQNs of the discovery log.
    fn exported_nqns(&self) -> Result<Vec<String>, EndpointError> {
        let (mut queue, cntlid) = self.connect(DISCOVERY_NQN, CNTLID_DYNAMIC, Options::admin())?;
        let log = discovery::read_log(&mut queue, cntlid, Deadline::after(CONNECT_TIMEOUT));
        let log = log.map_err(|error| match error {
            DiscoveryError::Queue(error) => self.failed(&error),
            DiscoveryError::Changing => EndpointError::Temporary(format!("{}: {error}", self.name)),
            DiscoveryError::Refused(_) | DiscoveryError::TooShort => self.refuse(&error),
        })?;
        let mut nqns: Vec<String> = Vec::new();
        for disk in log {
            if !nqns.contains(&disk.nqn) {
                nqns.push(disk.nqn);
            }
        }
        Ok(nqns)
    }
}

/// The names of the disks, for a message.
fn name_list(asked: &[Found], nqns: &[String]) -> String {
    let names: Vec<&str> = asked.iter().filter_map(|(_, disk)| disk.short.as_deref()).collect();
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
