//! State of the exports: which disks are exported, and which hosts have attached them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use console::{Disk, Host, KeptChanges};
use export::{Event, Export, Policy, Transport};
use linux::net::{Scope, scope_of};
use protocol::endpoint::{Endpoint, NetAddr};

use crate::event::name_of;
use crate::overlay;

/// State of the exports.
#[derive(Debug, Default)]
pub struct Status {
    disks: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    export: Arc<Export>,
    hosts: Vec<Attachment>,
}

#[derive(Debug, PartialEq, Eq)]
struct Attachment {
    /// Name of the host in the access policy, if it used a key.
    known_as: Option<String>,
    host: String,
    transport: Transport,
}

impl Status {
    pub fn add_disk(&mut self, export: Arc<Export>) {
        self.disks.push(Entry { export, hosts: Vec::new() });
    }

    pub fn remove_disk(&mut self, export: &Arc<Export>) {
        self.disks.retain(|entry| !Arc::ptr_eq(&entry.export, export));
    }

    /// Records attachments; hosts with a key are named as in `policy`.
    pub fn record(&mut self, event: &Event, policy: &Policy) {
        match event {
            Event::Attached { export, peer, host, proven, .. } => {
                let known_as = name_of(peer, *proven, policy);
                if let Some(entry) = self.entry(export) {
                    let (host, transport) = (host.clone(), peer.transport);
                    entry.hosts.push(Attachment { known_as, host, transport });
                }
            }
            Event::Detached { export, peer, host, .. } => {
                if let Some(entry) = self.entry(export) {
                    entry.detach(host, peer.transport);
                }
            }
            Event::Refused { .. }
            | Event::PairingRequested { .. }
            | Event::Violation { .. }
            | Event::Fault { .. } => {}
        }
    }

    fn entry(&mut self, export: &Arc<Export>) -> Option<&mut Entry> {
        self.disks.iter_mut().find(|entry| Arc::ptr_eq(&entry.export, export))
    }

    /// The exports, in the order in which they were added.
    pub fn exports(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.disks.iter().map(|entry| &entry.export)
    }

    /// The exports for the screen, in the order in which they were added.
    pub fn disks(&self) -> Vec<Disk> {
        self.disks.iter().map(Entry::shown).collect()
    }

    /// Returns whether a host has attached the export.
    pub fn is_attached(&self, export: &Arc<Export>) -> bool {
        let this = |entry: &&Entry| Arc::ptr_eq(&entry.export, export);
        self.disks.iter().find(this).is_some_and(|entry| !entry.hosts.is_empty())
    }

    /// Returns whether a host has attached one of the exports.
    pub fn is_any_attached(&self) -> bool {
        self.disks.iter().any(|entry| !entry.hosts.is_empty())
    }

    /// One line for the service manager.
    pub fn summary(&self) -> String {
        let attached = self.disks.iter().filter(|entry| !entry.hosts.is_empty()).count();
        match self.disks.len() {
            1 => format!("Lending 1 disk, {attached} attached"),
            n => format!("Lending {n} disks, {attached} attached"),
        }
    }
}

/// Advice for the user if all network addresses are loopback addresses.
pub fn loopback_advice(endpoints: &[Endpoint]) -> Option<&'static str> {
    let near = |at: &NetAddr| scope_of(at.ip) == Scope::Loopback;
    let mut addresses = endpoints.iter().filter_map(Endpoint::net).peekable();
    (addresses.peek().is_some() && addresses.all(near)).then_some(
        "Only this machine itself reaches these addresses: plug in a cable to another machine, or \
         listen on an address of your network with --listen.",
    )
}

/// Returns the address to show for a peer; for a Unix socket that of this machine.
pub fn shown_address(transport: Transport) -> IpAddr {
    match transport {
        Transport::Ip { remote, .. } => remote.ip().to_canonical(),
        Transport::Unix | Transport::Usb => Ipv4Addr::LOCALHOST.into(),
    }
}

impl Entry {
    fn detach(&mut self, host: &str, transport: Transport) {
        let this = |known: &Attachment| known.host == host && known.transport == transport;
        if let Some(at) = self.hosts.iter().position(this) {
            self.hosts.remove(at);
        }
    }

    /// Returns the changes of an overlay; attached hosts by the names that the user knows them by.
    fn kept(&self) -> Option<KeptChanges> {
        let mut kept = overlay::kept(&self.export)?;
        for kept in kept.by_host.iter_mut().filter(|kept| kept.has_key) {
            let known = self.hosts.iter().filter(|known| known.host == kept.host);
            if let Some(known_as) = known.filter_map(|known| known.known_as.clone()).next() {
                kept.host = known_as;
            }
        }
        Some(kept)
    }

    fn shown(&self) -> Disk {
        let export = &self.export;
        let host = |known: &Attachment| Host {
            known_as: known.known_as.clone(),
            nqn: known.host.clone(),
            address: match known.transport {
                Transport::Usb => "USB".to_owned(),
                other => shown_address(other).to_string(),
            },
        };
        // Shows a host once, whatever the number of its connections.
        let mut attached: Vec<Host> = Vec::new();
        for host in self.hosts.iter().map(host) {
            if !attached.contains(&host) {
                attached.push(host);
            }
        }
        Disk {
            title: export.name.clone(),
            id: export.id.clone(),
            short: export.short.clone(),
            size: export.bytes(),
            block_size: export.geometry.block(),
            model: export.identity.model.clone(),
            serial: export.identity.serial.clone(),
            contents: export.contents.clone(),
            access: export.access,
            kept: self.kept(),
            attached,
            read: export.usage().bytes_read,
            written: export.usage().bytes_written,
            writes: None,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Geometry, Identity, Peer, Reason};
    use protocol::Protocol;
    use protocol::endpoint::EndpointAddr;

    fn export(name: &str) -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        Arc::new(Export::new(name, name, Identity::default(), geometry, 1 << 20, disk))
    }

    fn peer(remote: &str) -> Peer {
        Peer::ip(remote.parse().unwrap(), "10.0.0.1:4420".parse().unwrap(), export::Auth::None)
    }

    fn attached(export: &Arc<Export>, remote: &str) -> Event {
        Event::Attached {
            export: export.clone(),
            peer: peer(remote),
            host: "h".to_owned(),
            proven: None,
            no_room: false,
        }
    }

    #[test]
    fn attachments_are_counted() {
        let mut status = Status::default();
        let disk = export("a");
        status.add_disk(disk.clone());
        status.add_disk(export("b"));
        let nobody = Policy::default();
        status.record(&attached(&disk, "10.0.0.2:1"), &nobody);
        status.record(&attached(&disk, "10.0.0.2:2"), &nobody);
        assert_eq!(status.summary(), "Lending 2 disks, 1 attached");
        let detached = Event::Detached {
            export: disk.clone(),
            peer: peer("10.0.0.2:1"),
            host: "h".to_owned(),
            reason: Reason::Peer,
            read: 0,
            written: 0,
        };
        status.record(&detached, &nobody);
        let disks = status.disks();
        assert_eq!((disks[0].attached.len(), disks[1].attached.len()), (1, 0));
        status.record(&attached(&disk, "10.0.0.2:3"), &nobody);
        assert_eq!(status.disks()[0].attached.len(), 1, "one host by two connections");
        status.remove_disk(&disk);
        assert_eq!(status.summary(), "Lending 1 disk, 0 attached");
    }

    #[test]
    fn host_at_a_cable_has_no_network_address() {
        let (mut status, disk) = (Status::default(), export("a"));
        status.add_disk(disk.clone());
        let (export, host) = (disk, String::new());
        let event =
            Event::Attached { export, peer: Peer::usb(), host, proven: None, no_room: false };
        status.record(&event, &Policy::default());
        assert_eq!(status.disks()[0].attached[0].address, "USB");
    }

    #[test]
    fn host_with_key_is_named_as_in_the_policy() {
        let (disk, key) = (export("a"), export::KeyId::new(7));
        let known = export::Host {
            id: "h".to_owned(),
            name: "vm".to_owned(),
            key,
            credentials: Vec::new(),
            rules: Vec::new(),
        };
        let policy = Policy { hosts: vec![Arc::new(known)] };
        let mut status = Status::default();
        status.add_disk(disk.clone());
        for (proven, name) in [(None, None), (Some(key), Some("vm"))] {
            let host = "h".to_owned();
            let peer = peer("10.0.0.2:1");
            let event =
                Event::Attached { export: disk.clone(), peer, host, proven, no_room: false };
            status.record(&event, &policy);
            let disks = status.disks();
            let last = disks[0].attached.last().unwrap();
            assert_eq!(last.known_as.as_deref(), name);
        }
    }

    #[test]
    fn loopback_only_endpoints_get_advice() {
        let at = |ip: &str| {
            let net = NetAddr { ip: ip.parse().unwrap(), interface: None, port: 4420 };
            let addr = EndpointAddr::Net(net);
            Endpoint { protocol: Protocol::Nvme, addr, keyed: false, pin: None }
        };
        assert!(loopback_advice(&[at("127.0.0.1"), at("::1")]).is_some());
        assert!(loopback_advice(&[at("127.0.0.1"), at("169.254.1.1")]).is_none());
        assert!(loopback_advice(&[]).is_none());
    }
}
