//! Validates the worker's reports. The worker talks to untrusted peers and may be compromised:
//! reports are bounded in size and number, and may refer only to disks that it was sent.

use std::sync::Arc;

use export::{Event, Export, Peer, Reason};

use super::Shared;
use crate::inbox::WorkerEvent;
use crate::rate_limit::CountedEvent;

/// Most attachments at a time; above the engine's limit.
const MAX_ATTACHMENTS: usize = 4096;

/// Keeps the attachments that the worker has reported.
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
    /// Fails if an uncompromised worker would not report it.
    pub(super) fn accept(&mut self, shared: &Shared, counted: CountedEvent<u64>) -> Result<(), ()> {
        let CountedEvent { event, count } = counted;
        let export =
            |disk| shared.state().disk_by_number(disk).map(|assigned| assigned.export.clone());
        let event = event.map_export(export).ok_or(())?;
        match &event {
            Event::Attached { export, peer, host, .. } => self.attach(export, peer, host)?,
            Event::Detached { export, peer, host, .. } => self.detach(export, peer, host)?,
            // No pairing code is valid, so no host can know one.
            Event::PairingRequested { .. } if shared.state().pairing.is_none() => return Err(()),
            _ => {}
        }
        shared.emit(WorkerEvent::Event(CountedEvent { event, count: count.max(1) }));
        Ok(())
    }

    fn attach(&mut self, export: &Arc<Export>, peer: &Peer, host: &str) -> Result<(), ()> {
        if self.attached.len() >= MAX_ATTACHMENTS {
            return Err(());
        }
        let (export, peer, host) = (export.clone(), peer.clone(), host.to_owned());
        self.attached.push(Attachment { export, peer, host });
        Ok(())
    }

    fn detach(&mut self, export: &Arc<Export>, peer: &Peer, host: &str) -> Result<(), ()> {
        let is_same = |known: &Attachment| {
            Arc::ptr_eq(&known.export, export)
                && known.peer.transport == peer.transport
                && known.host == host
        };
        let at = self.attached.iter().position(is_same).ok_or(())?;
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

#[cfg(test)]
mod test {
    use super::*;
    use crate::worker::Config;
    use crate::worker::messages::Counts;
    use crate::worker::{AssignedDisk, State};
    use export::{Auth, Geometry, Identity, PairingRequest, Secret};
    use std::sync::{Condvar, Mutex};

    /// A worker with disk number 1.
    fn shared() -> (Shared, Arc<Mutex<Vec<WorkerEvent>>>) {
        let emitted = Arc::new(Mutex::new(Vec::new()));
        let config = Config {
            engine: engine::Config::default(),
            null_dh: false,
            certificates: None,
            first_controller: 0,
        };
        let mut state = State::new(config);
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

    fn peer() -> Peer {
        let (remote, local) = ("10.0.0.2:1".parse().unwrap(), "10.0.0.1:4420".parse().unwrap());
        Peer::ip(remote, local, Auth::Required)
    }

    fn attached(export: u64) -> CountedEvent<u64> {
        Event::Attached { export, peer: peer(), host: "h".to_owned(), proven: None }.into()
    }

    fn detached() -> CountedEvent<u64> {
        let (host, reason) = ("h".to_owned(), Reason::Peer);
        Event::Detached { export: 1, peer: peer(), host, reason, read: 1, written: 2 }.into()
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
        let request = Arc::new(PairingRequest {
            number: 1,
            host: "h".to_owned(),
            name: "n".to_owned(),
            writable: false,
            secret: Secret::new(vec![1; 32]),
        });
        let pairing = || Event::PairingRequested { peer: peer(), request: request.clone() }.into();
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
}
