//! Validates the worker's reports. The worker talks to untrusted peers and may be compromised:
//! texts, attachments and pairing requests are bounded, and reports may refer only to disks that it
//! was sent.

use std::sync::Arc;

use export::{Event, Export, MAX_TEXT, Peer, Reason};

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
        if texts(&event).iter().any(|text| text.len() > MAX_TEXT) {
            return Err(());
        }
        let export =
            |disk| shared.state().disk_by_number(disk).map(|assigned| assigned.export.clone());
        let event = event.map_export(export).ok_or(())?;
        match &event {
            Event::Attached { export, peer, host, .. } => self.attach(export, peer, host)?,
            Event::Detached { export, peer, host, .. } => self.detach(export, peer, host)?,
            Event::PairingRequested { request, .. } => {
                shared.state().pairing_requested(request.number)?;
            }
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

/// Returns the texts of an event that are chosen by a peer.
fn texts(event: &Event<u64>) -> [&str; 4] {
    let (peer, [one, other]) = match event {
        Event::Attached { peer, host, .. } | Event::Detached { peer, host, .. } => {
            (peer, [host.as_str(), ""])
        }
        Event::Refused { peer, host, wanted, .. } => (peer, [host.as_str(), wanted]),
        Event::PairingRequested { peer, request } => (peer, [request.host.as_str(), &request.name]),
        Event::Violation { peer, .. } => (peer, ["", ""]),
        Event::Fault { .. } => return [""; 4],
    };
    let channel = peer.channel.as_ref();
    let [identity, cipher] = channel.map_or(["", ""], |it| [&it.identity, &it.cipher]);
    [one, other, identity, cipher]
}

#[cfg(test)]
pub(super) mod test {
    use super::*;
    use crate::inbox::Inbox;
    use crate::worker::reservations::Stored;
    use crate::worker::{AssignedDisk, Config, MAX_UNANSWERED, State};
    use export::{Auth, Channel, Identity, PairingRequest, Secret, Usage};
    use std::sync::{Condvar, Mutex};

    /// A worker with disk number 1.
    pub(in crate::worker) fn shared() -> Shared {
        let config = Config {
            engine: engine::Config::default(),
            null_dh: false,
            certificates: None,
            web_certificate: None,
            first_controller: 0,
        };
        let mut state = State::new(config);
        let export = testkit::export("d", "n", Identity::default(), (512, 512), 512);
        state.lent.push(AssignedDisk {
            disk: 1,
            export: Arc::new(export),
            is_sent: false,
            is_published: false,
            withdrawn: false,
            before: Usage::default(),
            being_written: false,
            reservations: Stored::Known(None),
        });
        let inbox = Inbox::open().unwrap();
        Shared { inbox, state: Mutex::new(state), changed: Condvar::new(), reservations: None }
    }

    fn emitted(shared: &Shared) -> Vec<Event> {
        shared.inbox.receive().events.into_iter().map(|counted| counted.event).collect()
    }

    fn peer() -> Peer {
        let (remote, local) = ("10.0.0.2:1".parse().unwrap(), "10.0.0.1:4420".parse().unwrap());
        Peer::ip(remote, local, Auth::Required)
    }

    pub(in crate::worker) fn attached(export: u64) -> CountedEvent<u64> {
        Event::Attached { export, peer: peer(), host: "h".to_owned(), proven: None, no_room: false }
            .into()
    }

    pub(in crate::worker) fn detached() -> CountedEvent<u64> {
        let (host, reason) = ("h".to_owned(), Reason::Peer);
        Event::Detached { export: 1, peer: peer(), host, reason, read: 1, written: 2 }.into()
    }

    fn pairing(number: u64) -> CountedEvent<u64> {
        let (host, name, secret) = ("h".to_owned(), "n".to_owned(), Secret::new(vec![1; 32]));
        let request = Arc::new(PairingRequest { number, host, name, writable: false, secret });
        Event::PairingRequested { peer: peer(), request }.into()
    }

    #[test]
    fn reports_on_unknown_disks_and_hosts_are_refused() {
        let shared = shared();
        let mut validator = ReportValidator::default();
        assert!(validator.accept(&shared, detached()).is_err());
        assert!(validator.accept(&shared, attached(2)).is_err());
        assert!(validator.accept(&shared, attached(1)).is_ok());
        assert!(validator.accept(&shared, detached()).is_ok());
        assert!(validator.accept(&shared, detached()).is_err());
        assert_eq!(emitted(&shared).len(), 2);
        while validator.accept(&shared, attached(1)).is_ok() {}
        assert_eq!(validator.attached.len(), MAX_ATTACHMENTS);
    }

    #[test]
    fn event_with_a_long_text_is_refused() {
        let shared = shared();
        let accept = |event: Event<u64>| {
            ReportValidator::default().accept(&shared, CountedEvent::from(event)).is_ok()
        };
        let text = |length| "x".repeat(length);
        for (length, is_accepted) in [(MAX_TEXT, true), (MAX_TEXT + 1, false)] {
            let (host, wanted, reason) = (text(length), text(length), "why");
            let host_only =
                Event::Attached { export: 1, peer: peer(), host, proven: None, no_room: false };
            assert_eq!(accept(host_only), is_accepted);
            let host = String::new();
            assert_eq!(accept(Event::Refused { peer: peer(), host, wanted, reason }), is_accepted);
            let channel = Channel {
                key: None,
                certified: false,
                identity: text(length),
                cipher: String::new(),
                binding: [0; 32],
            };
            let peer = Peer { channel: Some(Arc::new(channel)), ..peer() };
            assert_eq!(accept(Event::Violation { peer, rule: "rule" }), is_accepted);
        }
    }

    /// X45: a compromised worker cannot cause pairing where it is disabled.
    #[test]
    fn x45_pairing_request_is_refused_if_pairing_is_disabled() {
        let shared = shared();
        assert!(ReportValidator::default().accept(&shared, pairing(1)).is_err());
        assert!(emitted(&shared).is_empty());
        shared.state().pairing = Some("machine".to_owned());
        assert!(ReportValidator::default().accept(&shared, pairing(1)).is_ok());
        assert_eq!(emitted(&shared).len(), 1);
    }

    #[test]
    fn unanswered_pairing_requests_are_bounded() {
        let shared = shared();
        shared.state().pairing = Some("machine".to_owned());
        let accept = |number| ReportValidator::default().accept(&shared, pairing(number)).is_ok();
        assert!(accept(1));
        assert!(!accept(1), "a number is used once");
        let accepted = (2..1000).take_while(|number| accept(*number)).count();
        assert_eq!(accepted + 1, MAX_UNANSWERED);
        shared.state().unanswered.clear();
        assert!(accept(1000));
    }

    #[test]
    fn hosts_of_a_dead_worker_are_detached() {
        let shared = shared();
        let mut validator = ReportValidator::default();
        validator.accept(&shared, attached(1)).unwrap();
        validator.detach_all(&shared);
        assert!(matches!(emitted(&shared).last(), Some(Event::Detached { .. })));
    }
}
