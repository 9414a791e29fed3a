//! State of the exports: which disks are exported, which hosts have attached them, and messages for
//! the screen.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use console::{Disk, Host, Link, Model};
use export::{Event, Export, Policy, Transport};
use linux::net::{Scope, scope_of};
use protocol::endpoint::{Endpoint, NetAddr};

use crate::event::name_of;

/// Most messages since start-up that are kept.
const NOTES: usize = 100;

/// State of the exports.
#[derive(Debug, Default)]
pub struct Status {
    disks: Vec<Entry>,
    /// Messages of start-up. All are kept, since their number is bounded.
    startup: Vec<String>,
    is_started: bool,
    /// Messages since then.
    notes: VecDeque<String>,
    /// Number of messages that were dropped.
    forgotten: usize,
    /// Messages by subject.
    subjects: BTreeMap<String, String>,
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
            Event::Attached { export, peer, host, proven } => {
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

    /// Adds a message; one that is already present moves to the end.
    pub fn note(&mut self, sentence: String) {
        self.notes.retain(|known| *known != sentence);
        self.notes.push_back(sentence);
        while self.is_started && self.notes.len() > NOTES {
            self.notes.pop_front();
            self.forgotten += 1;
        }
    }

    /// Ends start-up: the messages so far are kept beside later ones.
    pub fn end_startup(&mut self) {
        self.startup.extend(self.notes.drain(..));
        self.is_started = true;
    }

    /// Replaces or removes the message of a subject.
    pub fn set_subject(&mut self, subject: String, sentence: Option<String>) {
        match sentence {
            Some(sentence) => drop(self.subjects.insert(subject, sentence)),
            None => drop(self.subjects.remove(&subject)),
        }
    }

    /// The exports, in the order in which they were added.
    pub fn exports(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.disks.iter().map(|entry| &entry.export)
    }

    /// The model of the screen.
    pub fn model(&self, machine: &str, endpoints: Vec<Endpoint>, digests: bool) -> Model {
        let forgotten = (self.forgotten > 0)
            .then(|| format!("{} older messages are not kept any more.", self.forgotten));
        let standing = self.subjects.values().cloned();
        let startup = self.startup.iter().filter(|note| !self.notes.contains(note)).cloned();
        let notes = standing.chain(startup).chain(forgotten);
        let notes = notes.chain(self.notes.iter().cloned()).collect();
        let disks = self.disks.iter().map(Entry::shown).collect();
        let machine = machine.to_owned();
        let (pairing, access_request, target_mode) = (None, None, None);
        let link = Link::default();
        Model {
            machine,
            endpoints,
            digests,
            disks,
            notes,
            pairing,
            access_request,
            link,
            target_mode,
        }
    }

    /// Returns whether a host has attached the export.
    pub fn is_attached(&self, export: &Arc<Export>) -> bool {
        let this = |entry: &&Entry| Arc::ptr_eq(&entry.export, export);
        self.disks.iter().find(this).is_some_and(|entry| !entry.hosts.is_empty())
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
        Transport::Unix => Ipv4Addr::LOCALHOST.into(),
    }
}

impl Entry {
    fn detach(&mut self, host: &str, transport: Transport) {
        let this = |known: &Attachment| known.host == host && known.transport == transport;
        if let Some(at) = self.hosts.iter().position(this) {
            self.hosts.remove(at);
        }
    }

    fn shown(&self) -> Disk {
        let export = &self.export;
        let host = |known: &Attachment| Host {
            known_as: known.known_as.clone(),
            nqn: known.host.clone(),
            address: shown_address(known.transport),
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
            contents: String::new(),
            access: export.access,
            attached,
            read: export.usage.bytes_read.load(Ordering::Relaxed),
            written: export.usage.bytes_written.load(Ordering::Relaxed),
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
        let model = status.model("m", Vec::new(), false);
        assert_eq!((model.disks[0].attached.len(), model.disks[1].attached.len()), (1, 0));
        status.record(&attached(&disk, "10.0.0.2:3"), &nobody);
        let model = status.model("m", Vec::new(), false);
        assert_eq!(model.disks[0].attached.len(), 1, "one host by two connections");
        status.remove_disk(&disk);
        assert_eq!(status.summary(), "Lending 1 disk, 0 attached");
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
            let event = Event::Attached { export: disk.clone(), peer, host, proven };
            status.record(&event, &policy);
            let model = status.model("m", Vec::new(), false);
            let last = model.disks[0].attached.last().unwrap();
            assert_eq!(last.known_as.as_deref(), name);
        }
    }

    #[test]
    fn messages_are_unique_and_dropped_ones_counted() {
        let mut status = Status::default();
        status.end_startup();
        (0..20).for_each(|n| status.note(format!("note {}", n % 9)));
        let notes = |status: &Status| status.model("m", Vec::new(), false).notes;
        assert_eq!(notes(&status).len(), 9);
        assert_eq!(notes(&status).last().unwrap(), "note 1");
        (0..NOTES).for_each(|n| status.note(format!("new {n}")));
        assert_eq!(notes(&status).len(), NOTES + 1);
        assert_eq!(notes(&status)[0], "9 older messages are not kept any more.");
    }

    #[test]
    fn startup_messages_are_kept_beside_later_ones() {
        let mut status = Status::default();
        let first = NOTES + 20;
        (0..first).for_each(|n| status.note(format!("first {n}")));
        status.end_startup();
        (0..NOTES).for_each(|n| status.note(format!("later {n}")));
        let notes = |status: &Status| status.model("m", Vec::new(), false).notes;
        assert_eq!(notes(&status).len(), first + NOTES);
        status.note("first 7".to_owned());
        let shown = notes(&status);
        assert_eq!(shown.len(), first + NOTES, "one goes, its count comes");
        assert!(shown[0] == "first 0" && shown[first - 1].starts_with("1 older"), "{shown:?}");
        assert_eq!(shown.last().unwrap(), "first 7");
    }

    #[test]
    fn loopback_only_endpoints_get_advice() {
        let at = |ip: &str| {
            let net = NetAddr { ip: ip.parse().unwrap(), interface: None, port: 4420 };
            let addr = EndpointAddr::Net(net);
            Endpoint { protocol: Protocol::Nvme, addr, keyed: false }
        };
        assert!(loopback_advice(&[at("127.0.0.1"), at("::1")]).is_some());
        assert!(loopback_advice(&[at("127.0.0.1"), at("169.254.1.1")]).is_none());
        assert!(loopback_advice(&[]).is_none());
    }
}
