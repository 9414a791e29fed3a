//! Groups announced services by machine, and loads the targets that this host is paired with.

use std::collections::BTreeMap;
use std::path::Path;

use super::query::Disk;
use crate::address::TargetAddr;
use dnssd::{FoundService, ScopedAddr};
use failure::Failure;
use keys::store::Store;
use keys::target::Target;
use nvme::{DISCOVERY_PORT, PORT as NVME_PORT};
use protocol::Protocol;

/// A machine that announces disks by DNS-SD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its service instance name.
    pub name: String,
    host: String,
    /// Whether it requires a key, if it announced that.
    pub keyed: Option<bool>,
    /// The addresses of each service, the nearest first.
    services: BTreeMap<Protocol, Vec<TargetAddr>>,
    /// Its addresses, of all services.
    pub addresses: Vec<ScopedAddr>,
}

/// Groups the services by machine, sorted by name.
pub fn machines(found: Vec<FoundService>) -> Vec<Machine> {
    let mut machines: Vec<Machine> = Vec::new();
    for one in found {
        let is_it = |it: &&mut Machine| it.host == one.host && it.name == one.name;
        match machines.iter_mut().find(is_it) {
            Some(machine) => machine.add(one),
            None => {
                let mut machine = Machine {
                    name: one.name.clone(),
                    host: one.host.clone(),
                    keyed: None,
                    services: BTreeMap::new(),
                    addresses: Vec::new(),
                };
                machine.add(one);
                machines.push(machine);
            }
        }
    }
    machines.sort_by(|a, b| (&a.name, &a.host).cmp(&(&b.name, &b.host)));
    machines
}

impl Machine {
    fn add(&mut self, found: FoundService) {
        let at = |address: &ScopedAddr| {
            TargetAddr::at(address.address, address.interface.as_deref(), found.port)
        };
        let addresses = found.addresses.iter().map(at);
        self.services.entry(found.kind).or_default().extend(addresses);
        // A key is required if any of the services requires one.
        self.keyed = match (self.keyed, found.keyed) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (known, None) => known,
            (_, said) => said,
        };
        for address in found.addresses {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
    }

    /// The addresses at which a protocol is served.
    pub fn services(&self, protocol: Protocol) -> &[TargetAddr] {
        self.services.get(&protocol).map_or(&[], Vec::as_slice)
    }

    /// The addresses for attaching disks and for pairing, the nearest first: with the I/O port in
    /// place of the standard discovery port.
    pub fn disks(&self) -> Vec<TargetAddr> {
        let at = |place: &TargetAddr| match place.port() {
            DISCOVERY_PORT => place.with_port(NVME_PORT),
            _ => place.clone(),
        };
        self.services(Protocol::Nvme).iter().map(at).collect()
    }
}

/// Loads the targets that this host is paired with. Does not create the folder.
///
/// # Errors
/// Fails if a folder was given that does not exist, or if a target's file cannot be read: it may be
/// the one that the user means.
pub fn targets(keys: Option<&Path>) -> Result<Vec<Target>, Failure> {
    let all = load_targets(keys)?.into_iter().collect::<Result<_, _>>();
    all.map_err(|failure| Failure::new(format!("{failure}; it may be the key for this machine")))
}

/// Like [`targets`], but skips files that cannot be read.
///
/// # Errors
/// Fails if a folder was given that does not exist.
pub fn readable_targets(keys: Option<&Path>) -> Result<Vec<Target>, Failure> {
    Ok(load_targets(keys)?.into_iter().filter_map(Result::ok).collect())
}

fn load_targets(keys: Option<&Path>) -> Result<Vec<Result<Target, Failure>>, Failure> {
    let place = match Store::locate(keys) {
        Ok(place) if place.is_dir() => place,
        Ok(place) if keys.is_some() => {
            return Err(Failure::usage(format!("{}: there is no such folder", place.display())));
        }
        _ => return Ok(Vec::new()),
    };
    let store = Store::open(&place)?;
    Ok(store.targets().into_iter().map(|(_, target)| target).collect())
}

/// The disk's name on its target: as reported now, else as recorded when pairing.
pub fn disk_name<'a>(disk: &'a Disk, target: Option<&'a Target>) -> Option<&'a str> {
    let known = || target?.disks.iter().find(|known| known.nqn == disk.nqn);
    disk.name.as_deref().or_else(|| known().map(|known| known.name.as_str()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn services_are_grouped_by_machine() {
        let near = [("fe80::1", Some("eth0")), ("10.0.0.1", Some("eth0"))];
        let keyed = FoundService {
            keyed: Some(true),
            ..FoundService::sample(Protocol::Nbd, "b", 10809, &near[..1])
        };
        let all = machines(vec![
            FoundService::sample(Protocol::Nvme, "b", 8009, &near),
            FoundService::sample(Protocol::Nvme, "a", 5000, &near[1..]),
            keyed,
        ]);
        let names: Vec<&str> = all.iter().map(|machine| machine.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(all[1].keyed, Some(true));
        assert_eq!(all[1].disks()[0].to_string(), "fe80::1%eth0");
        assert_eq!(all[1].services(Protocol::Nbd)[0].to_string(), "[fe80::1%eth0]:10809");
        assert_eq!(all[1].addresses.len(), 2);
        assert_eq!(all[0].disks()[0].to_string(), "10.0.0.1:5000");
    }

    #[test]
    fn given_folder_must_exist() {
        assert!(targets(Some(Path::new("/nonexistent"))).is_err());
    }
}
