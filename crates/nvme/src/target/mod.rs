//! The controller side of NVMe/TCP. It knows exports and peers; no socket, no disk, no clock.
//!
//! One [`Queue`] is one connection: the Admin queue or an I/O queue of a controller, or a discovery controller's queue.
//! What the queues of a controller share is in `controller`; all of it hangs on the [`Target`]. File names are those of
//! the command sets: `fabrics`, `admin` (with `identify`, `log`, `feature`, `event`), `discovery`, `io` (with `fused`,
//! `ranges`), `auth`. `standing` asks the policy. `transfer`, `answer` and `abort` serve them all.

mod abort;
mod admin;
mod answer;
mod auth;
mod controller;
mod discovery;
mod event;
mod fabrics;
mod feature;
mod fused;
mod generated;
mod identify;
mod io;
mod link;
mod log;
mod queue;
mod ranges;
mod ration;
mod slots;
mod standing;
mod transfer;

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use export::{Account, Catalogue, KeyId, Peer, Tenant};

use controller::{Controller, Kind};
use generated::Generated;
pub use queue::Queue;
use ration::Ration;

use crate::auth::Rules;
use crate::auth::psk::Psk;

/// What a port serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Discovery and disks.
    Any,
    /// Discovery only; its log names the port `disks_at`.
    Discovery {
        /// The TCP port, at the same address, that serves the disks.
        disks_at: u16,
    },
}

/// Bytes of data that a command capsule may carry.
pub const CAPSULE_DATA: u32 = 16384;

/// Entries of the largest queue.
pub const QUEUE_ENTRIES: u16 = 1024;

/// Bytes that one command may move: MDTS 8, in units of 4 KiB.
pub const TRANSFER: u64 = 1 << 20;

/// Binary logarithm of [`TRANSFER`] in units of 4 KiB.
const MDTS: u8 = 8;

/// Controllers that a host may have: one for each disk and path, and one for discovery.
const HOST_CONTROLLERS: usize = 128;

/// I/O queues that a controller may have.
const IO_QUEUES: u16 = 64;

/// A connection must have said who it is within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A discovery controller without a keep-alive time is kept this long without a word.
const DISCOVERY_IDLE: Duration = Duration::from_secs(120);

/// Beyond the keep-alive time, before a silent host is given up: KAS is one second.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(1);

/// What all connections of NVMe/TCP share.
#[derive(Debug)]
pub struct Target {
    catalogue: Arc<Catalogue>,
    start: Instant,
    rules: Rules,
    registry: Mutex<Registry>,
    generated: Mutex<Generated>,
    ration: Mutex<Ration>,
}

#[derive(Debug)]
struct Registry {
    /// Every controller that a session still refers to, ended or not.
    controllers: Vec<Weak<Controller>>,
    io_ids: Ids,
    discovery_ids: Ids,
}

/// Identifiers of controllers that are given out one after another, so that one that was just in use does not come back
/// soon.
#[derive(Debug, Clone, Copy)]
struct Ids {
    first: u16,
    count: u16,
    /// The next to be tried, counted from `first`.
    next: u16,
}

/// Controllers with a disk have identifiers below this, discovery controllers from this on.
const FIRST_DISCOVERY_CNTLID: u16 = 0xf000;

/// The largest controller identifier (NVMe Base 2.0 §3.1.1: FFF0h and above are reserved).
const LAST_CNTLID: u16 = 0xffef;

impl Target {
    /// A target that lends what is in `catalogue`. Tell the sessions [`export::Notice::StateChanged`] when that changes.
    pub fn new(catalogue: Arc<Catalogue>) -> Arc<Self> {
        Self::with(catalogue, Rules::default(), 0)
    }

    /// The same, with other rules of authentication and another start of controller identifiers.
    ///
    /// A host takes controllers of one subsystem for paths to one disk, and refuses two with the same identifier. So that
    /// targets on several machines do not give out the same ones, each starts elsewhere: any number will do for `start`.
    pub fn with(catalogue: Arc<Catalogue>, rules: Rules, start: u16) -> Arc<Self> {
        let (generated, ration) = Default::default();
        let registry = Mutex::new(Registry::starting_at(start));
        Arc::new(Self { catalogue, start: Instant::now(), rules, registry, generated, ration })
    }

    /// The keys for secured channels that came out of DH-HMAC-CHAP, and the key that their host had proven to know: a host
    /// may come with them, as with those that its owner gave it. They are few, and forgotten after an hour without use.
    pub fn generated_psks(&self, now: Instant) -> Vec<(KeyId, Psk)> {
        self.generated().all(now)
    }

    fn keep(&self, key: KeyId, psks: Vec<Psk>, now: Instant) {
        let mut generated = self.generated();
        psks.into_iter().for_each(|psk| generated.keep(key, psk, now));
    }

    fn ration(&self) -> MutexGuard<'_, Ration> {
        self.ration.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn generated(&self) -> MutexGuard<'_, Generated> {
        self.generated.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The session of a new connection that came to `port`. Its payloads are drawn from `account` and a sibling of it.
    pub fn session(
        self: &Arc<Self>,
        peer: Peer,
        port: Port,
        account: Account,
        now: Instant,
    ) -> Queue {
        Queue::new(self.clone(), peer, port, account, now)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Enters a controller that `make` makes for a free identifier. Nothing if all are taken, or its host has too many.
    fn enter(
        &self,
        kind: Kind,
        tenant: Tenant,
        make: impl FnOnce(u16) -> Controller,
    ) -> Option<Arc<Controller>> {
        let mut registry = self.registry();
        registry.controllers.retain(|controller| controller.strong_count() != 0);
        let live = registry.controllers.iter().filter_map(Weak::upgrade);
        if live.filter(|controller| controller.tenant == tenant).count() >= HOST_CONTROLLERS {
            return None;
        }
        let controller = Arc::new(make(registry.free_id(kind)?));
        registry.controllers.push(Arc::downgrade(&controller));
        Some(controller)
    }

    /// The controller of that identifier, if it has not ended.
    fn find(&self, id: u16) -> Option<Arc<Controller>> {
        let registry = self.registry();
        let mut live = registry.controllers.iter().filter_map(Weak::upgrade);
        live.find(|controller| controller.id == id && !controller.has_ended())
    }

    /// Identifiers of a subsystem's controllers, in rising order.
    fn ids(&self, subsystem: &str) -> Vec<u16> {
        let registry = self.registry();
        let live = registry.controllers.iter().filter_map(Weak::upgrade);
        let own =
            live.filter(|controller| controller.subsystem == subsystem && !controller.has_ended());
        let mut ids: Vec<u16> = own.map(|controller| controller.id).collect();
        ids.sort_unstable();
        ids
    }
}

impl Registry {
    fn starting_at(start: u16) -> Self {
        let discovery_count = LAST_CNTLID - FIRST_DISCOVERY_CNTLID + 1;
        Self {
            controllers: Vec::new(),
            io_ids: Ids::new(1, FIRST_DISCOVERY_CNTLID - 1, start),
            discovery_ids: Ids::new(FIRST_DISCOVERY_CNTLID, discovery_count, start),
        }
    }

    /// A free identifier for a controller of that kind. Linux compares identifiers within a subsystem; that those of
    /// discovery controllers are others keeps them from moving the disks' on.
    fn free_id(&mut self, kind: Kind) -> Option<u16> {
        let Self { controllers, io_ids, discovery_ids } = self;
        let taken = |id| controllers.iter().filter_map(Weak::upgrade).any(|other| other.id == id);
        match kind {
            Kind::Io => io_ids.take(taken),
            Kind::Discovery => discovery_ids.take(taken),
        }
    }
}

impl Ids {
    fn new(first: u16, count: u16, start: u16) -> Self {
        Self { first, count, next: start % count }
    }

    /// The next identifier that is not taken.
    fn take(&mut self, taken: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in 0..self.count {
            let id = self.first + self.next;
            self.next = (self.next + 1) % self.count;
            if !taken(id) {
                return Some(id);
            }
        }
        None
    }
}
