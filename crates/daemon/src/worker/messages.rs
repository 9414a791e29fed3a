//! IPC messages between opener and worker: requests and reports. Each export that is sent gets a new
//! disk number.

mod pairing;

use std::os::fd::OwnedFd;

use engine::Running;
use export::{
    Access, AtomicWrites, Auth, Backing, Cache, Export, ExportId, Geometry, Home, Identity, Keeper,
    Layout, Policy, SavedReservations, Secret, Usage,
};
use pair::Verdict;
use serde::{Deserialize, Serialize};

use super::Config;
use crate::listen::Service;
use crate::rate_limit::CountedEvent;
pub(super) use pairing::{TriesWire, ViewWire};

/// Longest request in bytes: a policy with thousands of hosts.
pub(super) const MAX_REQUEST: usize = 8 << 20;

/// Longest report in bytes.
pub(super) const MAX_REPORT: usize = 1 << 20;

/// A request from the opener.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Configuration; always the first request.
    Start(Box<Config>),
    /// Accept connections on the listening socket that is attached.
    Accept { auth: Auth, serves: Service },
    /// Serve the connection that is attached.
    Adopt { auth: Auth, serves: Service },
    /// Serve the host at a USB cable. The endpoints are attached: control, in, out.
    Plug,
    /// Export the disk whose descriptor is attached.
    Lend(Box<ExportWire>),
    /// Withdraw an export.
    Withdraw { disk: u64 },
    /// The disk has a new size.
    Resize { disk: u64, bytes: u64 },
    /// Whether the reservations that were reported with this number are on stable storage.
    ReservationsSaved { disk: u64, sequence: u64, is_stored: bool },
    /// A flush failed in another process: all later ones must fail.
    FailFlush { disk: u64 },
    /// Replace the access policy.
    SetPolicy { policy: Policy },
    /// Enable pairing under this machine name, with the failed attempts so far.
    EnablePairing { name: String, tries: TriesWire },
    /// Replace the code for reading by HTTPS.
    SetReadingCode { code: Secret },
    /// Generate a new code and reset failed attempts.
    Unlock,
    /// The user's answer to a pairing request.
    Answer { number: u64, verdict: Verdict },
    /// Disconnect hosts and exit.
    Stop { milliseconds: u64 },
}

/// A report from the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// Started; always the first report.
    Running { running: Running, unconfined: Vec<String> },
    /// Could not start.
    Failed { sentence: String },
    /// An event.
    Event(CountedEvent<u64>),
    /// A message for the user.
    Note { sentence: String },
    /// A disk is exported: hosts that connect from now on find it.
    Published { disk: u64 },
    /// Counters of a disk.
    Used { disk: u64, counts: Counts },
    /// The pairing code or its state changed.
    Pairing(ViewWire),
    /// Reservations of a disk to be stored; `None` to remove them.
    Reservations { disk: u64, sequence: u64, state: Option<SavedReservations> },
    /// A withdrawn disk is not used any more.
    Released { disk: u64 },
    /// All hosts disconnected, or were disconnected after the timeout.
    Stopped { in_time: bool },
}

/// An export without its descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExportWire {
    pub(super) disk: u64,
    name: String,
    id: ExportId,
    short: String,
    identity: Identity,
    block: u32,
    physical: u32,
    /// The smallest and the largest length of an atomic write in bytes.
    atomic: Option<(u32, u32)>,
    bytes: u64,
    access: Access,
    volatile: bool,
    rotational: bool,
    removable: bool,
    discard: bool,
    discard_zeroes: bool,
    home: Option<Home>,
    contents: String,
    /// The host that it is kept for.
    keeper: Option<Keeper>,
    flush_failed: bool,
    layout: Layout,
    /// `None` if reservations cannot be stored.
    pub(super) reservations: Option<ReservationsWire>,
}

/// The reservations of a disk that were stored, if any.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ReservationsWire {
    pub(super) saved: Option<SavedReservations>,
}

impl ExportWire {
    pub(super) fn new(disk: u64, export: &Export) -> Self {
        Self {
            disk,
            name: export.name.clone(),
            id: export.id.clone(),
            short: export.short.clone(),
            identity: export.identity.clone(),
            block: export.geometry.block(),
            physical: export.geometry.physical,
            atomic: export.geometry.atomic.map(|writes| (writes.min(), writes.max())),
            bytes: export.bytes(),
            access: export.access,
            volatile: export.cache == Cache::Volatile,
            rotational: export.rotational,
            removable: export.removable,
            discard: export.discard,
            discard_zeroes: export.discard_zeroes,
            home: export.home.clone(),
            contents: export.contents.clone(),
            keeper: export.keeper(),
            flush_failed: export.has_failed_flush(),
            layout: export.backing().layout(),
            reservations: None,
        }
    }

    /// The export with its descriptors. Returns `None` if the geometry is invalid, or if the layout
    /// has another number of descriptors.
    pub(super) fn export(self, descriptors: Vec<OwnedFd>) -> Option<Export> {
        let mut geometry = Geometry::new(self.block, self.physical)?;
        geometry.atomic = self.atomic.and_then(|(min, max)| AtomicWrites::new(min, max));
        let backing = Backing::new(self.layout, descriptors)?;
        let (name, id) = (&self.name, self.id);
        let mut export = Export::new(name, id, self.identity, geometry, self.bytes, backing);
        export.short = self.short;
        export.access = self.access;
        export.cache = if self.volatile { Cache::Volatile } else { Cache::WriteThrough };
        export.rotational = self.rotational;
        export.removable = self.removable;
        export.discard = self.discard;
        export.discard_zeroes = self.discard_zeroes;
        export.home = self.home;
        export.contents = self.contents;
        export.set_keeper(self.keeper);
        if self.flush_failed {
            export.flush_failed();
        }
        Some(export)
    }
}

/// I/O counters and state of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) usage: Usage,
    pub(super) being_written: bool,
    pub(super) flush_failed: bool,
    /// The host that the export must be kept for if the worker ends now.
    pub(super) keeper: Option<Keeper>,
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Host, KeyId, OverlayHost, Rule};
    use nvme::auth::credential;
    use pair::{Code, Codes, ServerStatus};
    use serde::de::DeserializeOwned;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn travel<T: Serialize + DeserializeOwned>(wire: &T) -> T {
        serde_json::from_str(&serde_json::to_string(wire).unwrap()).unwrap()
    }

    #[test]
    fn policy_survives_the_wire_format_without_debug_keys() {
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
        let host = Host {
            id: "nqn.2026-01.com.example:laptop".to_owned(),
            name: "laptop".to_owned(),
            key: KeyId::new(u64::MAX),
            credentials: vec![
                credential::tls_psk(secret("open sesame"), true),
                credential::chap_controller(secret("\u{0}\"\\")),
            ],
            rules: vec![
                Rule { disk: None, access: Access::ReadOnly },
                Rule { disk: Some("a".to_owned()), access: Access::Writable },
            ],
        };
        let before = Policy { hosts: vec![Arc::new(host)] };
        let request = Request::SetPolicy { policy: before.clone() };
        assert!(!format!("{request:?}").contains("sesame"));
        let Request::SetPolicy { policy } = travel(&request) else { panic!("another request") };
        assert_eq!(policy, before);
    }

    #[test]
    fn malformed_secret_is_refused() {
        for text in ["\"0\"", "\"0g\"", "\"é\"", "7"] {
            assert!(serde_json::from_str::<Secret>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn export_survives_the_wire_format() {
        let disk = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut geometry = Geometry::new(4096, 16384).unwrap();
        geometry.atomic = AtomicWrites::new(4096, 65536);
        let identity = Identity {
            uuid: [1; 16],
            eui64: Some([2; 8]),
            serial: "serial".to_owned(),
            ..Identity::default()
        };
        let mut export = Export::new("disk", "nqn", identity, geometry, 1 << 20, disk().into());
        export.access = Access::Writable;
        export.cache = Cache::WriteThrough;
        (export.discard, export.removable) = (true, true);
        export.contents = "GPT: ext4".to_owned();
        export.home = Some(Home { user: "alice".to_owned(), signing_key: None });
        let host = OverlayHost::Keyed("nqn.2026-01.com.example:laptop".to_owned());
        let keeper = Some(Keeper { host, lost: 2 });
        export.set_keeper(keeper.clone());
        export.flush_failed();
        let arrived = travel(&ExportWire::new(9, &export)).export(vec![disk()]).unwrap();
        assert_eq!((&arrived.name, &arrived.id), (&export.name, &export.id));
        assert_eq!((&arrived.identity, arrived.geometry), (&export.identity, geometry));
        assert_eq!((arrived.bytes(), arrived.access), (1 << 20, Access::Writable));
        assert_eq!((arrived.cache, arrived.discard), (Cache::WriteThrough, true));
        assert!(arrived.has_failed_flush() && arrived.removable && !arrived.rotational);
        assert_eq!(arrived.contents, export.contents);
        assert_eq!((&arrived.home, arrived.keeper()), (&export.home, keeper));
        assert_eq!(arrived.backing().descriptors().count(), 1);
        for descriptors in [vec![], vec![disk(), disk()]] {
            assert!(travel(&ExportWire::new(9, &export)).export(descriptors).is_none());
        }
    }

    #[test]
    fn pairing_code_keeps_its_remaining_time() {
        let now = Instant::now();
        let later = now + Duration::from_secs(600);
        let (digits, long) = (Code::digits([7; 8]), Code::long([9; 16]));
        let shown = Codes { digits: digits.clone(), long, expires: later };
        let view = ServerStatus {
            codes: Some(shown),
            wait_until: None,
            locked: false,
            failures: 2,
            lockouts: 3,
            waiting: vec![4],
        };
        let arrived = travel(&ViewWire::new(&view, now)).view(now).unwrap();
        let shown = arrived.codes.unwrap();
        assert_eq!((shown.digits, shown.expires), (digits, later));
        assert_eq!((arrived.failures, arrived.waiting), (2, vec![4]));
    }
}
