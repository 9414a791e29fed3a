//! Validates the worker's reports. The worker talks to untrusted peers and may be compromised:
//! reports are bounded in size and number, and may refer only to disks that it was sent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use export::{Event, Export, KeyId, PairingRequest, Peer, Reason};

use super::Shared;
use super::messages::{EventWire, PeerWire};
use crate::inbox::WorkerEvent;
use crate::rate_limit::CountedEvent;

/// Most attachments at a time; above the engine's limit.
const MAX_ATTACHMENTS: usize = 4096;

/// Most distinct names of rules and reasons.
const MAX_NAMES: usize = 512;

/// Replaces names beyond that.
const OTHER: &str = "another";

/// Tracks the attachments that the worker reported.
#[derive(Debug, Default)]
pub(super) struct ReportValidator {
    attached: Vec<Attachment>,
}

#[derive(Debug)]
struct Attachment {
    export: Arc<Export>,
    peer: Peer,
    host: String,
}

impl ReportValidator {
    /// Checks a reported event and emits it.
    ///
    /// # Errors
    /// Fails if a correct worker could not have reported it.
    pub(super) fn accept(&mut self, shared: &Shared, event: EventWire) -> Result<(), ()> {
        let export = |disk: u64| {
            shared.state().disk_by_number(disk).map(|assigned| assigned.export.clone()).ok_or(())
        };
        let count = event.count();
        let event = match event {
            EventWire::Attached { disk, peer, host, proven } => {
                self.attach(export(disk)?, peer, host, proven)?
            }
            EventWire::Detached { disk, peer, host, reason, read, written } => {
                let (export, peer) = (export(disk)?, Peer::from(peer));
                self.detach(&export, &peer, &host)?;
                Event::Detached { export, peer, host, reason, read, written }
            }
            EventWire::Fault { disk, op, offset, len, fault, .. } => {
                Event::Fault { export: export(disk)?, op: interned(&op), offset, len, fault }
            }
            EventWire::Refused { peer, host, wanted, why, .. } => {
                Event::Refused { peer: peer.into(), host, wanted, why: interned(&why) }
            }
            EventWire::Violation { peer, rule, .. } => {
                Event::Violation { peer: peer.into(), rule: interned(&rule) }
            }
            // Not valid while pairing is disabled.
            EventWire::PairingRequested { .. } if shared.state().pairing.is_none() => {
                return Err(());
            }
            EventWire::PairingRequested { peer, number, host, name, writable, secret } => {
                let request = PairingRequest { number, host, name, writable, secret: secret.0 };
                Event::PairingRequested { peer: peer.into(), request: Arc::new(request) }
            }
        };
        shared.emit(WorkerEvent::Event(CountedEvent { event, count }));
        Ok(())
    }

    fn attach(
        &mut self,
        export: Arc<Export>,
        peer: PeerWire,
        host: String,
        proven: Option<u64>,
    ) -> Result<Event, ()> {
        if self.attached.len() >= MAX_ATTACHMENTS {
            return Err(());
        }
        let peer = Peer::from(peer);
        let attachment = Attachment { export, peer, host };
        let Attachment { export, peer, host } = &attachment;
        let event = Event::Attached {
            export: export.clone(),
            peer: peer.clone(),
            host: host.clone(),
            proven: proven.map(KeyId::new),
        };
        self.attached.push(attachment);
        Ok(event)
    }

    fn detach(&mut self, export: &Arc<Export>, peer: &Peer, host: &str) -> Result<(), ()> {
        let is_it = |known: &Attachment| {
            Arc::ptr_eq(&known.export, export)
                && known.peer.remote == peer.remote
                && known.host == host
        };
        let at = self.attached.iter().position(is_it).ok_or(())?;
        self.attached.swap_remove(at);
        Ok(())
    }

    /// Reports all attachments as detached when the worker is gone.
    pub(super) fn detach_all(self, shared: &Shared) {
        for Attachment { export, peer, host } in self.attached {
            let reason = Reason::Ended;
            // The byte counts were lost with the worker.
            let event = Event::Detached { export, peer, host, reason, read: 0, written: 0 };
            shared.emit(WorkerEvent::Event(event.into()));
        }
    }
}

/// Interns a name; leaked, since the number of names is bounded.
fn interned(text: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = known.get(text) {
        return name;
    }
    if known.len() >= MAX_NAMES || text.len() > 200 {
        return OTHER;
    }
    let name: &'static str = Box::leak(text.into());
    known.insert(name);
    name
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::worker::Config;
    use crate::worker::messages::Counts;
    use crate::worker::messages::SecretWire;
    use crate::worker::{AssignedDisk, State};
    use engine::Driver;
    use export::{Auth, Fault, Geometry, Identity, Secret};
    use std::sync::Condvar;

    /// A worker with disk number 1.
    fn shared() -> (Shared, Arc<Mutex<Vec<WorkerEvent>>>) {
        let emitted = Arc::new(Mutex::new(Vec::new()));
        let config = Config {
            driver: Driver::Auto,
            threads: 1,
            memory: 1,
            budget: 1,
            connections: 1,
            null_dh: false,
            certificates: None,
            first_controller: 0,
        };
        let mut state = State::new(&config);
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let export = Export::new("d", "n", Identity::default(), geometry, 512, disk);
        state.lent.push(AssignedDisk {
            disk: 1,
            export: Arc::new(export),
            withdrawn: false,
            before: Counts::default(),
            being_written: false,
        });
        let sink = emitted.clone();
        let shared = Shared {
            sink: Arc::new(move |event| sink.lock().unwrap().push(event)),
            state: Mutex::new(state),
            stopped: Condvar::new(),
        };
        (shared, emitted)
    }

    fn peer() -> PeerWire {
        let (remote, local) = ("10.0.0.2:1".parse().unwrap(), "10.0.0.1:4420".parse().unwrap());
        PeerWire::from(&Peer { remote, local, auth: Auth::Required, channel: None })
    }

    fn attached(disk: u64) -> EventWire {
        EventWire::Attached { disk, peer: peer(), host: "h".to_owned(), proven: None }
    }

    fn detached() -> EventWire {
        let (host, reason) = ("h".to_owned(), Reason::Peer);
        EventWire::Detached { disk: 1, peer: peer(), host, reason, read: 1, written: 2 }
    }

    #[test]
    fn reports_on_unknown_disks_and_hosts_are_refused() {
        let (shared, emitted) = shared();
        let mut validator = ReportValidator::default();
        assert!(validator.accept(&shared, detached()).is_err());
        assert!(validator.accept(&shared, attached(2)).is_err());
        assert!(validator.accept(&shared, attached(1)).is_ok());
        assert!(validator.accept(&shared, detached()).is_ok());
        assert!(validator.accept(&shared, detached()).is_err());
        assert_eq!(emitted.lock().unwrap().len(), 2);
        while validator.accept(&shared, attached(1)).is_ok() {}
        assert_eq!(validator.attached.len(), MAX_ATTACHMENTS);
    }

    /// X45: a compromised worker cannot cause pairing where it is disabled.
    #[test]
    fn x45_pairing_request_is_refused_if_pairing_is_disabled() {
        let (shared, emitted) = shared();
        let pairing = || EventWire::PairingRequested {
            peer: peer(),
            number: 1,
            host: "h".to_owned(),
            name: "n".to_owned(),
            writable: false,
            secret: SecretWire(Secret::new(vec![1; 32])),
        };
        assert!(ReportValidator::default().accept(&shared, pairing()).is_err());
        assert!(emitted.lock().unwrap().is_empty());
        shared.state().pairing = Some("machine".to_owned());
        assert!(ReportValidator::default().accept(&shared, pairing()).is_ok());
        assert_eq!(emitted.lock().unwrap().len(), 1);
    }

    #[test]
    fn hosts_of_a_dead_worker_are_detached() {
        let (shared, emitted) = shared();
        let mut validator = ReportValidator::default();
        validator.accept(&shared, attached(1)).unwrap();
        validator.detach_all(&shared);
        let emitted = emitted.lock().unwrap();
        assert!(matches!(
            emitted.last(),
            Some(WorkerEvent::Event(CountedEvent { event: Event::Detached { .. }, .. }))
        ));
    }

    #[test]
    fn number_of_names_from_a_worker_is_bounded() {
        let (shared, emitted) = shared();
        let fault = |op: String| EventWire::Fault {
            disk: 1,
            op,
            offset: 0,
            len: 1,
            count: 1,
            fault: Fault::Io,
        };
        for n in 0..2 * MAX_NAMES {
            ReportValidator::default().accept(&shared, fault(format!("coined {n}"))).unwrap();
        }
        let emitted = emitted.lock().unwrap();
        let last = emitted.last();
        let Some(WorkerEvent::Event(CountedEvent { event: Event::Fault { op, .. }, .. })) = last
        else {
            panic!("{last:?}")
        };
        assert_eq!(*op, OTHER);
    }
}
