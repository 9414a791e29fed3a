//! Finds a disk in the discovery log of a target and, if necessary, by identifying each controller (NVMe Base 2.0 §5.16.1.23).

use std::time::{Duration, Instant};

use client::discovery::{self, Description, DiscoveryError, MAX_DISKS};
use nvme::host::Options;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, DISCOVERY_NQN};

use super::{NvmeEndpoint, strip_control};
use crate::endpoint::EndpointError;

/// After this time no further disk is identified.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of names in an error message.
const MAX_NAMES: usize = 16;

/// The NQN of a disk, and what its controller reports.
type IdentifiedDisk = (String, Description);

impl NvmeEndpoint {
    /// The NQN of the wanted disk.
    pub(super) fn resolve_nqn(&self) -> Result<String, EndpointError> {
        if self.wanted_name.starts_with("nqn.") {
            return Ok(self.wanted_name.clone());
        }
        let nqns = self.exported_nqns()?;
        let matching: Vec<&String> =
            nqns.iter().filter(|nqn| matches_nqn(nqn, &self.wanted_name)).collect();
        match (matching.as_slice(), nqns.as_slice()) {
            ([only], _) => Ok((*only).clone()),
            (_, []) => Err(self.permanent_error(&"the target exports no disk to this host")),
            _ => self.resolve_by_identify(&nqns),
        }
    }

    /// Finds the disk by its short name, serial number or model. If there is none, and a disk could
    /// not be identified, the error has the reason.
    fn resolve_by_identify(&self, nqns: &[String]) -> Result<String, EndpointError> {
        let deadline = Instant::now() + IDENTIFY_TIMEOUT;
        let (mut identified, mut failure) = (Vec::new(), None);
        for nqn in nqns.iter().take(MAX_DISKS).take_while(|_| Instant::now() < deadline) {
            let attached = match self.attach(nqn) {
                Ok(attached) => attached,
                Err(error) => {
                    failure = failure.or(Some(error));
                    continue;
                }
            };
            let description = discovery::describe(&attached.controller);
            // Short names are unique.
            if description.short.as_ref() == Some(&self.wanted_name) {
                return Ok(nqn.clone());
            }
            identified.push((nqn.clone(), description));
        }
        let is_wanted =
            |text: &str| !text.is_empty() && text.eq_ignore_ascii_case(&self.wanted_name);
        let mut matching =
            identified.iter().filter(|(_, disk)| is_wanted(&disk.serial) || is_wanted(&disk.model));
        match (matching.next(), matching.next()) {
            (Some((nqn, _)), None) => Ok(nqn.clone()),
            (None, _) => Err(self.no_match(failure, &identified, nqns)),
            (Some((one, _)), Some((other, _))) => {
                let rest: Vec<&str> = matching.map(|(nqn, _)| nqn.as_str()).collect();
                let names = [&[one.as_str(), other.as_str()][..], &rest].concat();
                let names = list(&names);
                Err(self.permanent_error(&format!("several disks match: {names}")))
            }
        }
    }

    /// Returns the error for a name that no disk has, or for no name and several disks. If a disk
    /// could not be identified, which may be the wanted one, that error with the names of the others.
    fn no_match(
        &self,
        failure: Option<EndpointError>,
        identified: &[IdentifiedDisk],
        nqns: &[String],
    ) -> EndpointError {
        let names = name_list(identified, nqns);
        let with_names = |reason: &str| format!("{reason}; its disks: {names}");
        match (failure, self.wanted_name.as_str()) {
            (Some(EndpointError::Temporary(reason)), _) => {
                EndpointError::Temporary(with_names(&reason))
            }
            (Some(EndpointError::Permanent(reason)), _) => {
                EndpointError::Permanent(with_names(&reason))
            }
            (Some(EndpointError::Violation(reason)), _) => {
                EndpointError::Violation(with_names(&reason))
            }
            (None, "") => self.permanent_error(&with_names(
                "the target exports several disks, and the address must name one",
            )),
            (None, wanted) => {
                let wanted = strip_control(wanted);
                let reason = format!("no disk of the target matches {wanted}");
                self.permanent_error(&with_names(&reason))
            }
        }
    }

    /// The NQNs of the discovery log.
    fn exported_nqns(&self) -> Result<Vec<String>, EndpointError> {
        let (mut queue, cntlid) = self.connect(DISCOVERY_NQN, CNTLID_DYNAMIC, Options::admin())?;
        let log = discovery::read_log(&mut queue, cntlid, self.connect_deadline());
        let log = log.map_err(|error| match error {
            DiscoveryError::Queue(error) => self.queue_error(&error),
            DiscoveryError::Changing => EndpointError::Temporary(format!("{}: {error}", self.name)),
            DiscoveryError::Refused(_) | DiscoveryError::TooShort => self.permanent_error(&error),
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
fn name_list(identified: &[IdentifiedDisk], nqns: &[String]) -> String {
    let names: Vec<&str> =
        identified.iter().filter_map(|(_, disk)| disk.short.as_deref()).collect();
    let all: Vec<&str> = match names.len() == nqns.len() {
        true => names,
        false => nqns.iter().map(String::as_str).collect(),
    };
    list(&all)
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(MAX_NAMES).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(MAX_NAMES) {
        Some(more @ 1..) => format!("{shown} and {more} others (storagetm find shows all)"),
        _ => shown,
    }
}

/// Returns whether `wanted` is the NQN or a suffix of it after `:` or `.`, ignoring case. An empty
/// name matches every disk.
fn matches_nqn(nqn: &str, wanted: &str) -> bool {
    let parts = nqn.len().checked_sub(wanted.len()).and_then(|at| nqn.split_at_checked(at));
    parts.is_some_and(|(prefix, suffix)| {
        suffix.eq_ignore_ascii_case(wanted)
            && (wanted.is_empty() || prefix.is_empty() || prefix.ends_with([':', '.']))
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
