//! Which machine and which of its disks were meant: as typed, and what that leads to. It knows no kernel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use linux::net::addresses;
use linux::tree::Tree;
use nvme::auth::Credentials;

use crate::options::attach::Attach;
use failure::Failure;
use keys::record::check_nqn;
use keys::target::Target;
use remote::address::TargetAddr;
use remote::host_identity::HostIdentity;
use remote::key_selection::{self, KeySelection};
use remote::machine::{Machine, machines};
use remote::query::{self, Disk, Initiator, QueryError};

/// How long machines may take to say that they are called so.
const BROWSE_TIME: Duration = Duration::from_secs(3);
/// Places at which a machine is looked for that is no longer where it was.
const MAX_ADDRESSES: usize = 16;

/// What was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetSpec {
    /// The machine.
    pub(super) machine: String,
    /// The disk.
    pub(super) disk: Option<String>,
}

/// A machine that was reached, and what it lends.
#[derive(Debug)]
pub(super) struct FoundTarget<'a> {
    /// Where.
    pub(super) place: TargetAddr,
    /// Which it is, if it has let this one in.
    pub(super) target: Option<&'a Target>,
    /// The identity of this machine for it.
    pub(super) identity: HostIdentity,
    /// Its disks.
    pub(super) disks: Vec<Disk>,
}

impl TargetSpec {
    /// The machine and the disk in `MACHINE`, `MACHINE/DISK` or `nvme://MACHINE/DISK`.
    ///
    /// # Errors
    /// A sentence.
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

    /// The disk, if it was given by its NQN.
    fn nqn(&self) -> Option<&str> {
        self.disk.as_deref().filter(|disk| check_nqn(disk).is_ok())
    }

    /// Those of the disks that were meant.
    ///
    /// # Errors
    /// None was, or it is not clear which.
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

/// Whether a disk is meant by that name: its NQN, the last part of that, or what it is called at its machine.
fn is_called(disk: &Disk, of: Option<&Target>, name: &str) -> bool {
    let known = remote::machine::disk_name(disk, of).unwrap_or_default();
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

/// What is needed to look for a machine.
pub(super) struct Resolver<'a> {
    pub(super) tree: &'a Tree,
    pub(super) options: &'a Attach,
    pub(super) known: &'a [Target],
    pub(super) chap: Option<Arc<Credentials>>,
}

impl<'a> Resolver<'a> {
    /// Reaches the machine, and asks which disks it lends: where it was when it let this one in, at its address, or
    /// wherever on the networks nearby it says to be.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn reach(&self, spec: &TargetSpec) -> Result<FoundTarget<'a>, Failure> {
        let place = TargetAddr::parse(&spec.machine, self.options.interface.as_deref());
        let called = place.as_ref().map_or_else(|_| spec.machine.clone(), TargetAddr::host);
        let named = |target: &&Target| target.name.eq_ignore_ascii_case(&called);
        let target = self.known.iter().find(named);
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
            Err(why) => Failure::usage(format!("{}: {why}", spec.machine)),
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
        // Only the disk itself says what it is called there.
        let looks = spec.disk.is_some() && spec.nqn().is_none();
        let initiator = Initiator { host: &identity, key, chap: self.chap.clone() };
        let disks = match (query::list_disks(place, &initiator, looks), spec.nqn()) {
            // Not every target tells at each of its ports what it has.
            (Err(QueryError::Protocol(why)), Some(nqn)) => {
                vec![assumed_disk(place, nqn).ok_or(QueryError::Protocol(why))?]
            }
            (disks, _) => disks?,
        };
        Ok(FoundTarget { place: place.clone(), target, identity, disks })
    }

    /// The machine at a place that nothing else is known of; nothing if it is to be asked in the clear.
    fn select_target(&self, place: &TargetAddr) -> Result<Option<&'a Target>, QueryError> {
        if self.chap.is_some() {
            // It proves itself in another way; what was met there wants its key as well.
            let (all, here) = key_selection::candidates(self.known, std::slice::from_ref(place));
            return Ok(all.into_iter().take(here.min(1)).next());
        }
        let host = self.options.hostnqn.as_deref();
        let accepts = |target: &Target| key_selection::check_key(self.tree, place, target, host);
        match key_selection::select_key(place, self.known, accepts) {
            KeySelection::Known(target) => Ok(Some(target)),
            KeySelection::Plaintext => Ok(None),
            KeySelection::NoKeyAccepted if self.options.insecure => Ok(None),
            KeySelection::NoKeyAccepted => Err(QueryError::NoKeyAccepted),
            KeySelection::Unreachable(why) => Err(QueryError::Unreachable(why)),
        }
    }

    /// Asks the networks nearby for a machine of that name, or for one that knows the key of `target`.
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
        let places =
            found.iter().filter(is_it).flat_map(|machine| &machine.nvme).take(MAX_ADDRESSES);
        let mut refused = None;
        for place in places {
            match self.query(place, target, spec) {
                Ok(there) => return Ok(Some(there)),
                Err(QueryError::KeyRequired) if target.is_some() => {}
                Err(refusal) => refused = Some(sentence(&spec.machine, refusal)),
            }
        }
        refused.map_or(Ok(None), Err)
    }
}

/// A disk that nobody has told of: at the first address of the machine.
fn assumed_disk(place: &TargetAddr, nqn: &str) -> Option<Disk> {
    let at = place.addresses().ok()?.into_iter().next()?;
    Some(Disk {
        nqn: nqn.to_owned(),
        at,
        name: None,
        model: String::new(),
        serial: String::new(),
        size: None,
    })
}

fn is_address(host: &str) -> bool {
    host.split('%').next().is_some_and(|ip| ip.parse::<std::net::IpAddr>().is_ok())
}

fn sentence(machine: &str, refusal: QueryError) -> Failure {
    match refusal {
        QueryError::Unreachable(why) => Failure::new(why),
        QueryError::KeyRequired => Failure::refused(format!(
            "{machine} does not accept the key that this machine has for it: storagetm pair {machine} makes a new one"
        )),
        QueryError::NoKeyAccepted => Failure::refused(key_selection::no_key_accepted(machine)),
        QueryError::Protocol(why) => Failure::refused(format!(
            "{machine} does not say which disks it has: {why}; if it wants a key: storagetm pair {machine}"
        )),
    }
}

/// The interface behind which an address is: as typed, or by the number in the address.
pub(super) fn interface(place: &TargetAddr, at: SocketAddr) -> Option<String> {
    if linux::net::scope_of(at.ip()) != linux::net::Scope::Link {
        return None;
    }
    if let Some((_, zone)) = place.host().split_once('%') {
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
    fn the_disk_that_is_meant_is_clear_or_it_is_asked_for() {
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
