//! The machines behind what was announced, and the keys that this one has for them. It knows no connection.

use std::path::Path;

use super::ask::Disk;
use crate::place::Place;
use dnssd::{Found, Kind, Place as Spot};
use failure::Failure;
use keys::store::Store;
use keys::target::Target;
use nvme::{DISCOVERY_PORT, PORT as NVME_PORT};

/// A machine that announces disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The name under which it does.
    pub name: String,
    /// Its name in DNS.
    host: String,
    /// Whether it says that a key is needed.
    pub keyed: Option<bool>,
    /// Where its discovery service is, the nearest first.
    pub nvme: Vec<Place>,
    /// Where its NBD is.
    pub nbd: Vec<Place>,
    /// Its addresses, however they are announced.
    pub spots: Vec<Spot>,
}

/// The machines, each once, by their names.
pub fn machines(found: Vec<Found>) -> Vec<Machine> {
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
                    nvme: Vec::new(),
                    nbd: Vec::new(),
                    spots: Vec::new(),
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
    fn add(&mut self, found: Found) {
        let at = |spot: &Spot| Place::at(spot.address, spot.interface.as_deref(), found.port);
        let places = found.places.iter().map(at);
        match found.kind {
            Kind::Nvme => self.nvme.extend(places),
            Kind::Nbd => self.nbd.extend(places),
        }
        // One word that a key is needed is enough.
        self.keyed = match (self.keyed, found.keyed) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (known, None) => known,
            (_, said) => said,
        };
        for spot in found.places {
            if !self.spots.contains(&spot) {
                self.spots.push(spot);
            }
        }
    }

    /// Where disks are attached, and a key is had, at the first address: discovery has a port of its own where both have
    /// their usual ones.
    pub fn disks(&self) -> Option<Place> {
        let place = self.nvme.first()?;
        let usual = place.port() == DISCOVERY_PORT;
        Some(if usual { place.with_port(NVME_PORT) } else { place.clone() })
    }
}

/// The machines that have let this one in. No folder is made.
///
/// # Errors
/// A folder was named, and it is none; or what is kept of a machine cannot be read: it may be the one that is meant.
pub fn known(keys: Option<&Path>) -> Result<Vec<Target>, Failure> {
    let all = kept(keys)?.into_iter().collect::<Result<_, _>>();
    all.map_err(|failure| Failure::new(format!("{failure}; it may be the key for this machine")))
}

/// The same without those that cannot be read.
///
/// # Errors
/// A folder was named, and it is none.
pub fn readable(keys: Option<&Path>) -> Result<Vec<Target>, Failure> {
    Ok(kept(keys)?.into_iter().filter_map(Result::ok).collect())
}

fn kept(keys: Option<&Path>) -> Result<Vec<Result<Target, Failure>>, Failure> {
    let place = match Store::place(keys) {
        Ok(place) if place.is_dir() => place,
        Ok(place) if keys.is_some() => {
            return Err(Failure::usage(format!("{}: there is no such folder", place.display())));
        }
        _ => return Ok(Vec::new()),
    };
    let store = Store::open(&place)?;
    Ok(store.targets().into_iter().map(|(_, target)| target).collect())
}

/// What the disk is called at its own machine, if that says so, or has said so when it let this one in.
pub fn name_of<'a>(disk: &'a Disk, of: Option<&'a Target>) -> Option<&'a str> {
    let known = || of?.disks.iter().find(|known| known.nqn == disk.nqn);
    disk.name.as_deref().or_else(|| known().map(|known| known.name.as_str()))
}

#[cfg(test)]
mod test {
    use super::*;

    fn found(kind: Kind, name: &str, port: u16, spots: &[(&str, Option<&str>)]) -> Found {
        let place = |(address, interface): &(&str, Option<&str>)| Spot {
            address: address.parse().unwrap(),
            interface: interface.map(str::to_owned),
        };
        Found {
            kind,
            name: name.to_owned(),
            host: format!("{name}.local."),
            port,
            places: spots.iter().map(place).collect(),
            keyed: None,
        }
    }

    #[test]
    fn what_one_machine_announces_is_put_together() {
        let near = [("fe80::1", Some("eth0")), ("10.0.0.1", Some("eth0"))];
        let keyed = Found { keyed: Some(true), ..found(Kind::Nbd, "b", 10809, &near[..1]) };
        let all = machines(vec![
            found(Kind::Nvme, "b", 8009, &near),
            found(Kind::Nvme, "a", 5000, &near[1..]),
            keyed,
        ]);
        let names: Vec<&str> = all.iter().map(|machine| machine.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(all[1].keyed, Some(true));
        assert_eq!(all[1].disks().unwrap().to_string(), "fe80::1%eth0");
        assert_eq!(all[1].nbd[0].to_string(), "[fe80::1%eth0]:10809");
        assert_eq!(all[1].spots.len(), 2);
        assert_eq!(all[0].disks().unwrap().to_string(), "10.0.0.1:5000");
    }

    #[test]
    fn folder_that_was_named_must_be_there() {
        assert!(known(Some(Path::new("/nonexistent"))).is_err());
    }
}
