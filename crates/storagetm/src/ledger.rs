//! What is lent and who has it, from which the screen is made. It knows no terminal and no socket.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use console::attach::{Endpoint, Nbd};
use console::{Disk, Host, Model};
use export::{Event, Export};
use linux::net::{Scope, scope_of};

/// Notes that the screen shows at most: the latest.
const NOTES: usize = 6;

/// What is lent and who has it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    disks: Vec<Entry>,
    notes: VecDeque<String>,
    /// How it stands with what others look after, by subject.
    subjects: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    export: Arc<Export>,
    hosts: Vec<Attachment>,
}

#[derive(Debug, PartialEq, Eq)]
struct Attachment {
    host: String,
    address: SocketAddr,
}

impl Ledger {
    /// A disk is lent.
    pub(crate) fn lend(&mut self, export: Arc<Export>) {
        self.disks.push(Entry { export, hosts: Vec::new() });
    }

    /// A disk is lent no longer.
    pub(crate) fn withdraw(&mut self, export: &Arc<Export>) {
        self.disks.retain(|entry| !Arc::ptr_eq(&entry.export, export));
    }

    /// Takes note of who attached what.
    pub(crate) fn record(&mut self, event: &Event) {
        match event {
            Event::Attached { export, peer, host, .. } => {
                if let Some(entry) = self.entry(export) {
                    entry.hosts.push(Attachment { host: host.clone(), address: peer.remote });
                }
            }
            Event::Detached { export, peer, host, .. } => {
                if let Some(entry) = self.entry(export) {
                    entry.detach(host, peer.remote);
                }
            }
            Event::Refused { .. }
            | Event::Knocked { .. }
            | Event::Violation { .. }
            | Event::Fault { .. } => {}
        }
    }

    fn entry(&mut self, export: &Arc<Export>) -> Option<&mut Entry> {
        self.disks.iter_mut().find(|entry| Arc::ptr_eq(&entry.export, export))
    }

    /// Takes note of a sentence for the screen; one that is there already moves to the end.
    pub(crate) fn note(&mut self, sentence: String) {
        self.notes.retain(|known| *known != sentence);
        self.notes.push_back(sentence);
        while self.notes.len() > NOTES {
            self.notes.pop_front();
        }
    }

    /// Takes note of how it stands with a subject; nothing if there is nothing to say of it any more.
    pub(crate) fn stand(&mut self, subject: String, sentence: Option<String>) {
        match sentence {
            Some(sentence) => drop(self.subjects.insert(subject, sentence)),
            None => drop(self.subjects.remove(&subject)),
        }
    }

    /// The exports, in the order in which they were lent.
    pub(crate) fn exports(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.disks.iter().map(|entry| &entry.export)
    }

    /// What the screen shows.
    pub(crate) fn model(
        &self,
        machine: &str,
        endpoints: Vec<Endpoint>,
        nbd: Vec<Nbd>,
        digests: bool,
    ) -> Model {
        let notes = self.subjects.values().chain(&self.notes).cloned().collect();
        let disks = self.disks.iter().map(Entry::shown).collect();
        let machine = machine.to_owned();
        Model { machine, endpoints, nbd, digests, disks, notes, pairing: None, asking: None }
    }

    /// Whether somebody has attached a disk.
    pub(crate) fn is_used(&self) -> bool {
        self.disks.iter().any(|entry| !entry.hosts.is_empty())
    }

    /// Whether somebody has attached this one.
    pub(crate) fn is_attached(&self, export: &Arc<Export>) -> bool {
        let this = |entry: &&Entry| Arc::ptr_eq(&entry.export, export);
        self.disks.iter().find(this).is_some_and(|entry| !entry.hosts.is_empty())
    }

    /// One line for the service manager.
    pub(crate) fn status(&self) -> String {
        let attached = self.disks.iter().filter(|entry| !entry.hosts.is_empty()).count();
        match self.disks.len() {
            1 => format!("Lending 1 disk, {attached} attached"),
            n => format!("Lending {n} disks, {attached} attached"),
        }
    }
}

/// What to say if no other machine reaches any of these.
pub(crate) fn advice<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Option<&'static str> {
    let near = |at: &Endpoint| scope_of(at.address) == Scope::Loopback;
    let mut endpoints = endpoints.peekable();
    (endpoints.peek().is_some() && endpoints.all(near)).then_some(
        "Only this machine itself reaches these addresses: plug in a cable to another machine, or \
         listen on an address of your network with --listen.",
    )
}

impl Entry {
    fn detach(&mut self, host: &str, address: SocketAddr) {
        let this = |known: &Attachment| known.host == host && known.address == address;
        if let Some(at) = self.hosts.iter().position(this) {
            self.hosts.remove(at);
        }
    }

    fn shown(&self) -> Disk {
        let export = &self.export;
        let host = |known: &Attachment| Host {
            name: known.host.clone(),
            address: known.address.ip().to_canonical(),
        };
        // A host may have many connections, and is one host.
        let mut attached: Vec<Host> = Vec::new();
        for host in self.hosts.iter().map(host) {
            if !attached.contains(&host) {
                attached.push(host);
            }
        }
        Disk {
            title: export.name.clone(),
            nqn: export.nqn.clone(),
            short: export.short.clone(),
            size: export.bytes(),
            block_size: export.geometry.block(),
            model: export.identity.model.clone(),
            serial: export.identity.serial.clone(),
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

    fn export(name: &str) -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        Arc::new(Export::new(name, name, Identity::default(), geometry, 1 << 20, disk))
    }

    fn peer(remote: &str) -> Peer {
        Peer {
            remote: remote.parse().unwrap(),
            local: "10.0.0.1:4420".parse().unwrap(),
            door: export::Door::Open,
            channel: None,
        }
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
    fn attachments_are_counted_in_and_out_one_by_one() {
        let mut ledger = Ledger::default();
        let disk = export("a");
        ledger.lend(disk.clone());
        ledger.lend(export("b"));
        ledger.record(&attached(&disk, "10.0.0.2:1"));
        ledger.record(&attached(&disk, "10.0.0.2:2"));
        assert_eq!(ledger.status(), "Lending 2 disks, 1 attached");
        ledger.record(&Event::Detached {
            export: disk.clone(),
            peer: peer("10.0.0.2:1"),
            host: "h".to_owned(),
            reason: Reason::Peer,
            read: 0,
            written: 0,
        });
        let model = ledger.model("m", Vec::new(), Vec::new(), false);
        assert_eq!((model.disks[0].attached.len(), model.disks[1].attached.len()), (1, 0));
        ledger.record(&attached(&disk, "10.0.0.2:3"));
        let model = ledger.model("m", Vec::new(), Vec::new(), false);
        assert_eq!(model.disks[0].attached.len(), 1, "one host by two connections");
        ledger.withdraw(&disk);
        assert_eq!(ledger.status(), "Lending 1 disk, 0 attached");
    }

    #[test]
    fn notes_are_few_and_each_is_there_once() {
        let mut ledger = Ledger::default();
        for n in 0..20 {
            ledger.note(format!("note {}", n % 9));
        }
        let notes = ledger.model("m", Vec::new(), Vec::new(), false).notes;
        assert_eq!(notes, ["note 5", "note 6", "note 7", "note 8", "note 0", "note 1"]);
    }

    #[test]
    fn addresses_that_only_this_machine_reaches_are_said_to_be_so() {
        let at = |address: &str| Endpoint {
            address: address.parse().unwrap(),
            interface: None,
            port: 4420,
            keyed: false,
        };
        assert!(advice([at("127.0.0.1"), at("::1")].iter()).is_some());
        assert!(advice([at("127.0.0.1"), at("169.254.1.1")].iter()).is_none());
        assert!(advice([].iter()).is_none());
    }
}
