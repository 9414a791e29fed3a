//! The target and the disk that a user named, and how they are found.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use linux::host_port::HostPort;
use linux::net::addresses;
use linux::tree::Tree;
use nvme::auth::Credentials;

use crate::options::attach::Attach;
use failure::Failure;
use keys::record::check_nqn;
use keys::target::{Target, named};
use protocol::Protocol;
use remote::address::TargetAddr;
use remote::host_identity::HostIdentity;
use remote::key_selection;
use remote::machine::{Machine, machines};
use remote::query::{self, Disk, Initiator, QueryError};

/// How long multicast DNS is browsed for a machine.
const BROWSE_TIME: Duration = Duration::from_secs(3);
/// Maximum number of addresses that are tried for a machine whose known address is out of date.
const MAX_ADDRESSES: usize = 16;

/// A target and a disk, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetSpec {
    pub(super) machine: String,
    pub(super) disk: Option<String>,
}

/// A target that was reached, and the disks that it exports to this host.
#[derive(Debug)]
pub(super) struct FoundTarget<'a> {
    pub(super) place: TargetAddr,
    /// The stored record of the target, if this machine was paired with it.
    pub(super) target: Option<&'a Target>,
    /// This machine's NQN and host id.
    pub(super) identity: HostIdentity,
    pub(super) disks: Vec<Disk>,
}

impl TargetSpec {
    /// Parses `MACHINE`, `MACHINE/DISK` or `nvme://MACHINE/DISK`.
    ///
    /// # Errors
    /// Fails with a usage error.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let rest = text.strip_prefix("nvme://").unwrap_or(text);
        if rest.contains("://") {
            return Err(Failure::usage(format!(
                "{text}: only disks by NVMe/TCP can be attached (nvme://HOST/DISK); storagetm copy reads those by NBD, too"
            )));
        }
        let (machine, disk) = match rest.split_once('/') {
            Some((machine, disk)) => (machine, Some(disk).filter(|disk| !disk.is_empty())),
            None => (rest, None),
        };
        if machine.is_empty() {
            return Err(Failure::usage(format!(
                "{text}: name the machine, as in 192.168.1.5/DISK"
            )));
        }
        Ok(Self { machine: machine.to_owned(), disk: disk.map(str::to_owned) })
    }

    /// Returns the disk if it was given as an NQN.
    fn nqn(&self) -> Option<&str> {
        self.disk.as_deref().filter(|disk| check_nqn(disk).is_ok())
    }

    /// Returns the disks that were named.
    ///
    /// # Errors
    /// Fails if none matches, or if several do and `all` is not set.
    pub(super) fn choose(&self, there: &FoundTarget<'_>, all: bool) -> Result<Vec<Disk>, Failure> {
        let names = |disk: &Disk| is_called(disk, there.target, self.disk.as_deref().unwrap_or(""));
        let chosen: Vec<Disk> = match &self.disk {
            None => there.disks.clone(),
            Some(_) => there.disks.iter().filter(|disk| names(disk)).cloned().collect(),
        };
        match (chosen.len(), &self.disk) {
            (0, None) => Err(Failure::refused(format!(
                "{} lends no disk to this machine just now",
                self.machine
            ))),
            (0, Some(disk)) => Err(Failure::refused(format!(
                "{} lends no disk {disk} to this machine; it lends {}",
                self.machine,
                disk_names(there)
            ))),
            (1, _) => Ok(chosen),
            (_, None) if all => Ok(chosen),
            _ => Err(Failure::usage(format!(
                "{} lends several disks: say which, as in {}/DISK, or --all: {}",
                self.machine,
                self.machine,
                disk_names(there)
            ))),
        }
    }
}

/// Returns whether `name` names the disk: its NQN, the last part of the NQN, or its name on the
/// target.
fn is_called(disk: &Disk, target: Option<&Target>, name: &str) -> bool {
    let known = remote::machine::disk_name(disk, target).unwrap_or_default();
    let last = known.rsplit('/').next().unwrap_or(known);
    let stem = last.rsplit_once('.').map_or(last, |(stem, _)| stem);
    let part = disk.nqn.rsplit(':').next().unwrap_or_default();
    let based = part.rsplit_once('.').map_or(part, |(_, name)| name);
    !name.is_empty() && [disk.nqn.as_str(), part, based, known, last, stem].contains(&name)
}

fn disk_names(there: &FoundTarget<'_>) -> String {
    let name = |disk: &Disk| match remote::machine::disk_name(disk, there.target) {
        Some(name) => format!("{} ({name})", disk.nqn),
        None => disk.nqn.clone(),
    };
    let names: Vec<String> = there.disks.iter().map(name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// What is needed to find a target.
pub(super) struct Resolver<'a> {
    pub(super) tree: &'a Tree,
    pub(super) options: &'a Attach,
    pub(super) known: &'a [Target],
    pub(super) chap: Option<Arc<Credentials>>,
    /// Whether each disk is asked for its name and size, although its name is not needed to find it.
    pub(super) identify: bool,
}

impl<'a> Resolver<'a> {
    /// Connects to the target and lists its disks. Tries the address stored at pairing, the address
    /// that was typed, and then multicast DNS.
    ///
    /// # Errors
    /// Fails with a sentence.
    pub(super) fn reach(&self, spec: &TargetSpec) -> Result<FoundTarget<'a>, Failure> {
        let place = TargetAddr::parse(&spec.machine, self.options.interface.as_deref());
        let called = place.as_ref().map_or_else(|_| spec.machine.clone(), TargetAddr::host);
        let target = named(self.known, &called)?;
        let first = match (target, place) {
            (Some(target), _) => {
                TargetAddr::parse(&target.address, None).map(|place| place.with_port(target.port))
            }
            (None, place) => place,
        };
        let failed = match first {
            Ok(place) => match self.query(&place, target, spec) {
                Ok(there) => return Ok(there),
                Err(refusal @ QueryError::Unreachable(_)) => sentence(&spec.machine, refusal),
                Err(refusal) => return Err(sentence(&spec.machine, refusal)),
            },
            Err(reason) => Failure::usage(format!("{}: {reason}", spec.machine)),
        };
        if is_address(&called) {
            return Err(failed);
        }
        self.browse(spec, target)?.ok_or(failed)
    }

    fn query(
        &self,
        place: &TargetAddr,
        target: Option<&'a Target>,
        spec: &TargetSpec,
    ) -> Result<FoundTarget<'a>, QueryError> {
        let target = if target.is_some() { target } else { self.select_target(place)? };
        let asked = self.options.hostnqn.as_deref().or_else(|| Some(target?.host.as_str()));
        let identity = HostIdentity::find(self.tree, asked);
        let key = target.map(|target| &target.tls);
        // The disk's name on the target is only known by asking each disk.
        let looks = self.identify || (spec.disk.is_some() && spec.nqn().is_none());
        let initiator = Initiator { host: &identity, key, chap: self.chap.clone() };
        let disks = match (query::list_disks(place, &initiator, looks), spec.nqn()) {
            // Some targets offer discovery at one of their ports only.
            (Err(QueryError::Protocol(reason)), Some(nqn)) => {
                vec![assumed_disk(place, nqn).ok_or(QueryError::Protocol(reason))?]
            }
            (disks, _) => disks?,
        };
        Ok(FoundTarget { place: place.clone(), target, identity, disks })
    }

    /// Returns the stored target at an address of unknown identity, or `None` if it is to be
    /// queried in the clear.
    fn select_target(&self, place: &TargetAddr) -> Result<Option<&'a Target>, QueryError> {
        // DH-HMAC-CHAP authenticates this host; a stored target at that address requires its PSK
        // as well.
        let another_key = self.chap.is_some();
        let host = self.options.hostnqn.as_deref();
        let accepts = |target: &Target| key_selection::check_key(self.tree, place, target, host);
        key_selection::target_at(place, self.known, another_key, self.options.insecure, accepts)
    }

    /// Browses multicast DNS for a machine of that name, or for one that accepts the key of
    /// `target`.
    fn browse(
        &self,
        spec: &TargetSpec,
        target: Option<&'a Target>,
    ) -> Result<Option<FoundTarget<'a>>, Failure> {
        let found = machines(dnssd::browse(self.options.mdns_port, BROWSE_TIME)?);
        let is_it = |machine: &&Machine| match target {
            Some(_) => machine.keyed == Some(true),
            None => machine.name.eq_ignore_ascii_case(&spec.machine),
        };
        let places = found
            .iter()
            .filter(is_it)
            .flat_map(|machine| machine.services(Protocol::Nvme))
            .take(MAX_ADDRESSES);
        let mut refused = None;
        for place in places {
            match self.query(place, target, spec) {
                Ok(there) => return Ok(Some(there)),
                // Another machine: what it says is not about the one that is wanted.
                Err(_) if target.is_some() => {}
                Err(refusal) => refused = Some(sentence(&spec.machine, refusal)),
            }
        }
        refused.map_or(Ok(None), Err)
    }
}

/// Returns a disk that no discovery log lists, at the first address of the target.
fn assumed_disk(place: &TargetAddr, nqn: &str) -> Option<Disk> {
    let at = place.addresses().ok()?.into_iter().next()?;
    Some(Disk {
        nqn: nqn.to_owned(),
        at,
        name: None,
        signing_key: None,
        model: String::new(),
        serial: String::new(),
        size: None,
    })
}

fn is_address(host: &str) -> bool {
    HostPort::parse(host).is_ok_and(|at| at.host.parse::<IpAddr>().is_ok())
}

fn sentence(machine: &str, refusal: QueryError) -> Failure {
    match refusal {
        QueryError::Unreachable(reason) => Failure::new(reason),
        QueryError::KeyRequired => Failure::refused(format!(
            "{machine} does not accept the key that this machine has for it: storagetm pair {machine} makes a new one"
        )),
        QueryError::NoKeyAccepted => Failure::refused(key_selection::no_key_accepted(machine)),
        QueryError::Protocol(reason) => Failure::refused(format!(
            "{machine} does not say which disks it has: {reason}; if it wants a key: storagetm pair {machine}"
        )),
    }
}

/// Returns the interface of a link-local address: from the typed zone, or from the scope id.
pub(super) fn interface(place: &TargetAddr, at: SocketAddr) -> Option<String> {
    if linux::net::scope_of(at.ip()) != linux::net::Scope::Link {
        return None;
    }
    if let Some(zone) = place.interface() {
        return Some(zone.to_owned());
    }
    let SocketAddr::V6(at) = at else { return None };
    let own = addresses().ok()?.into_iter().find(|own| own.scope_id == at.scope_id());
    own.map(|own| own.interface)
}

#[cfg(test)]
mod test {
    use super::*;
    use keys::record::Allowed;
    use keys::target::Disk as Kept;

    fn disk(nqn: &str) -> Disk {
        let at = "10.0.0.1:4420".parse().unwrap();
        Disk {
            nqn: nqn.to_owned(),
            at,
            name: None,
            signing_key: None,
            model: String::new(),
            serial: String::new(),
            size: None,
        }
    }

    fn wanted(text: &str) -> TargetSpec {
        TargetSpec::parse(text).unwrap()
    }

    #[test]
    fn a_machine_and_a_disk_are_typed_in_several_ways() {
        for (text, machine, disk) in [
            ("10.0.0.1", "10.0.0.1", None),
            ("10.0.0.1:4421/sda", "10.0.0.1:4421", Some("sda")),
            ("[fe80::1%eth0]:4420/nqn.a:b", "[fe80::1%eth0]:4420", Some("nqn.a:b")),
            ("nvme://desk/nqn.a:b", "desk", Some("nqn.a:b")),
            ("nvme://desk/", "desk", None),
            ("desk//dev/sda", "desk", Some("/dev/sda")),
        ] {
            let expected =
                TargetSpec { machine: machine.to_owned(), disk: disk.map(str::to_owned) };
            assert_eq!(wanted(text), expected, "{text}");
        }
        for wrong in ["", "/sda", "nbd://desk/sda", "nvme:///sda"] {
            assert_eq!(TargetSpec::parse(wrong).unwrap_err().status(), 2, "{wrong}");
        }
    }

    #[test]
    fn ambiguous_disk_is_refused() {
        let mut known = Target::sample("desk", "10.0.0.1");
        known.disks.push(Kept {
            nqn: "nqn.a:uuid:1".to_owned(),
            name: "/dev/sda".to_owned(),
            bytes: 1,
            access: Allowed::ReadOnly,
        });
        let there = |disks: &[&str]| FoundTarget {
            place: TargetAddr::parse("10.0.0.1", None).unwrap(),
            target: Some(&known),
            identity: HostIdentity { nqn: "nqn.h".to_owned(), id: [0; 16] },
            disks: disks.iter().map(|nqn| disk(nqn)).collect(),
        };
        let two = there(&["nqn.a:uuid:1", "nqn.b:base.image"]);
        let chosen = |text: &str, all| {
            let chosen = wanted(text).choose(&two, all)?;
            Ok::<_, Failure>(chosen.into_iter().map(|disk| disk.nqn).collect::<Vec<_>>())
        };
        for name in ["nqn.a:uuid:1", "1", "/dev/sda", "sda"] {
            assert_eq!(chosen(&format!("desk/{name}"), false).unwrap(), ["nqn.a:uuid:1"], "{name}");
        }
        assert_eq!(chosen("desk/image", false).unwrap(), ["nqn.b:base.image"]);
        assert_eq!(chosen("desk", true).unwrap().len(), 2);
        assert_eq!(chosen("desk", false).unwrap_err().status(), 2);
        let failure = chosen("desk/sdb", false).unwrap_err();
        assert!(failure.status() == 3 && failure.to_string().contains("(/dev/sda)"), "{failure}");
        assert_eq!(wanted("desk").choose(&there(&["nqn.b:c"]), false).unwrap().len(), 1);
        assert_eq!(wanted("desk").choose(&there(&[]), true).unwrap_err().status(), 3);
    }

    #[test]
    fn a_link_local_address_has_its_interface() {
        let at = |text: &str| text.parse().unwrap();
        let place = TargetAddr::parse("fe80::1%eth7", None).unwrap();
        assert_eq!(interface(&place, at("[fe80::1%3]:4420")).as_deref(), Some("eth7"));
        assert_eq!(interface(&place, at("10.0.0.1:4420")), None);
    }
}
