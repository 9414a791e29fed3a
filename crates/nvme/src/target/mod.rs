//! The controller side of NVMe/TCP.
//!
//! One [`Connection`] is the session of one connection, in layers that call each other from top to
//! bottom only:
//!
//! | module | holds |
//! |---|---|
//! | `connection` | PDUs, states, timers: the [`export::Session`] |
//! | `fabrics` | what the connection is: dispatches commands to the queue that Connect made of it |
//! | `connect`, `auth`, `admin`, `io` | Connect, in-band authentication, and the command sets |
//! | `queue` | the commands in flight, what is sent for them, and their access to the disk |
//! | `capsule`, `transfers`, `outbox`, `binding` | a received command; slots and data, output, the queue's controller |
//!
//! Queues of one controller share its state (`controller`); controllers are registered in the
//! [`Target`]. `context` identifies the peer of a connection, `access` checks the
//! access of the peer. `work`, `job` and `compare_and_write` are the states of commands. To add a command, write a module of
//! `admin` or `io`, and call it from the dispatch of its `mod.rs`.

mod access;
mod admin;
mod auth;
mod binding;
mod capsule;
mod compare_and_write;
mod connect;
mod connection;
mod context;
mod controller;
mod counters;
mod fabrics;
mod generated;
mod io;
mod job;
mod outbox;
mod queue;
mod rate_limit;
mod receiving;
mod slots;
mod transfers;
mod work;

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use export::{Account, Catalogue, Fault, KeyId, Op, Peer, Tenant};

pub use connection::Connection;
use controller::{Controller, ControllerType};
use generated::GeneratedPsks;
use rate_limit::RateLimiter;

use crate::auth::AuthConfig;
use crate::auth::psk::Psk;
use crate::status::{Direction, Status};

/// What a port serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Discovery and disks.
    Any,
    /// Discovery only; the log refers to port `disks_at`.
    Discovery {
        /// TCP port for disks at the same address.
        disks_at: u16,
    },
}

/// Maximum in-capsule data in bytes.
pub const MAX_CAPSULE_DATA: u32 = 16384;

/// Maximum queue entries (MQES, as a count).
pub const QUEUE_ENTRIES: u16 = 1024;

/// Maximum data transfer of a command in bytes: MDTS 8, in units of 4 KiB.
pub const MAX_TRANSFER: u64 = 1 << 20;

/// Binary logarithm of [`MAX_TRANSFER`] in units of 4 KiB.
const MDTS: u8 = 8;

/// Maximum controllers of a host: one for each disk and path, and discovery.
const MAX_CONTROLLERS_PER_HOST: usize = 128;

/// Maximum I/O queues of a controller.
const MAX_IO_QUEUES: u16 = 64;

/// NSID of the only namespace of a subsystem.
const NSID: u32 = 1;

/// Broadcast NSID.
const NSID_ALL: u32 = 0xffff_ffff;

/// Timeout for ICReq, Connect and authentication.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle timeout of a discovery controller without a keep-alive time.
const DISCOVERY_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Added to the keep-alive time before expiry: KAS is one second.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(1);

/// State that all NVMe/TCP connections share.
#[derive(Debug)]
pub struct Target {
    catalogue: Arc<Catalogue>,
    start: Instant,
    config: AuthConfig,
    registry: Mutex<Registry>,
    generated: Mutex<GeneratedPsks>,
    rate_limit: Mutex<RateLimiter>,
}

#[derive(Debug)]
struct Registry {
    /// All controllers that a session refers to, including ended ones.
    controllers: Vec<Weak<Controller>>,
    io_ids: IdAllocator,
    discovery_ids: IdAllocator,
}

/// Allocator of controller identifiers. Allocates in sequence, to delay reuse.
#[derive(Debug, Clone, Copy)]
struct IdAllocator {
    first: u16,
    count: u16,
    /// Next candidate, relative to `first`.
    next: u16,
}

/// I/O controllers have identifiers below this, discovery controllers from this on.
const FIRST_DISCOVERY_CNTLID: u16 = 0xf000;

/// The largest controller identifier; FFF0h and above are reserved (NVMe Base 2.0 §3.1.1).
const LAST_CNTLID: u16 = 0xffef;

impl Target {
    /// Creates a target that serves the exports of `catalogue`. Its sessions need
    /// [`export::Notice::StateChanged`] whenever the catalogue changes.
    pub fn new(catalogue: Arc<Catalogue>) -> Arc<Self> {
        Self::with_config(catalogue, AuthConfig::default(), 0)
    }

    /// Like [`Target::new`], with authentication settings and an offset for controller identifiers.
    ///
    /// A host treats controllers of one subsystem as paths to one disk, and refuses two with the
    /// same identifier. Targets on several machines should use different values of `start`; any
    /// number is valid.
    pub fn with_config(catalogue: Arc<Catalogue>, config: AuthConfig, start: u16) -> Arc<Self> {
        let (start, registry) = (Instant::now(), Mutex::new(Registry::starting_at(start)));
        let (generated, rate_limit) = (Mutex::default(), Mutex::new(RateLimiter::new(start)));
        Arc::new(Self { catalogue, start, config, registry, generated, rate_limit })
    }

    /// Returns the TLS PSKs that DH-HMAC-CHAP generated, each with the key that the host
    /// authenticated with. The host may use them like configured PSKs. They are bounded in number,
    /// and expire after one hour without use.
    pub fn generated_psks(&self, now: Instant) -> Vec<(KeyId, Psk)> {
        self.generated().all(now)
    }

    fn store_generated(&self, key: KeyId, psks: Vec<Psk>, now: Instant) {
        let mut generated = self.generated();
        psks.into_iter().for_each(|psk| generated.insert(key, psk, now));
    }

    fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    fn config(&self) -> &AuthConfig {
        &self.config
    }

    /// Returns how long it has existed.
    fn uptime(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// Extends the lifetime of the generated PSK that a host has connected with.
    fn renew_generated(&self, identity: &str, now: Instant) {
        self.generated().renew(identity, now);
    }

    fn rate_limiter(&self) -> MutexGuard<'_, RateLimiter> {
        self.rate_limit.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn generated(&self) -> MutexGuard<'_, GeneratedPsks> {
        self.generated.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Creates the session of a new connection to `port`. Buffers come from `account` and siblings
    /// of it.
    pub fn session(
        self: &Arc<Self>,
        peer: Peer,
        port: Port,
        account: Account,
        now: Instant,
    ) -> Connection {
        Connection::new(self.clone(), peer, port, account, now)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Registers the controller that `make` returns for a free identifier. Returns `None` if none
    /// is free, or the tenant has reached its limit.
    fn register(
        &self,
        kind: ControllerType,
        tenant: Tenant,
        make: impl FnOnce(u16) -> Controller,
    ) -> Option<Arc<Controller>> {
        let mut registry = self.registry();
        registry.controllers.retain(|controller| controller.strong_count() != 0);
        let live = registry.controllers.iter().filter_map(Weak::upgrade);
        if live.filter(|controller| controller.tenant() == tenant).count()
            >= MAX_CONTROLLERS_PER_HOST
        {
            return None;
        }
        let controller = Arc::new(make(registry.free_id(kind)?));
        registry.controllers.push(Arc::downgrade(&controller));
        Some(controller)
    }

    /// Returns the controller with that identifier unless it has ended.
    fn find(&self, id: u16) -> Option<Arc<Controller>> {
        let registry = self.registry();
        let mut live = registry.controllers.iter().filter_map(Weak::upgrade);
        live.find(|controller| controller.id() == id && !controller.has_ended())
    }

    /// Returns the controller identifiers of a subsystem in ascending order.
    fn ids(&self, subsystem: &str) -> Vec<u16> {
        let registry = self.registry();
        let live = registry.controllers.iter().filter_map(Weak::upgrade);
        let own = live
            .filter(|controller| controller.subsystem() == subsystem && !controller.has_ended());
        let mut ids: Vec<u16> = own.map(|controller| controller.id()).collect();
        ids.sort_unstable();
        ids
    }
}

impl Registry {
    fn starting_at(start: u16) -> Self {
        let discovery_count = LAST_CNTLID - FIRST_DISCOVERY_CNTLID + 1;
        Self {
            controllers: Vec::new(),
            io_ids: IdAllocator::new(1, FIRST_DISCOVERY_CNTLID - 1, start),
            discovery_ids: IdAllocator::new(FIRST_DISCOVERY_CNTLID, discovery_count, start),
        }
    }

    /// Returns a free identifier. Discovery controllers use a range of their own, so that they do
    /// not advance the sequence of I/O controllers.
    fn free_id(&mut self, kind: ControllerType) -> Option<u16> {
        let Self { controllers, io_ids, discovery_ids } = self;
        let taken = |id| controllers.iter().filter_map(Weak::upgrade).any(|other| other.id() == id);
        match kind {
            ControllerType::Io => io_ids.allocate(taken),
            ControllerType::Discovery => discovery_ids.allocate(taken),
        }
    }
}

impl IdAllocator {
    fn new(first: u16, count: u16, start: u16) -> Self {
        Self { first, count, next: start % count }
    }

    /// Returns the next identifier that is not taken.
    fn allocate(&mut self, taken: impl Fn(u16) -> bool) -> Option<u16> {
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

/// Returns the status of a command whose disk request failed. A failed flush counts as a failed
/// write.
fn fault_status(fault: Fault, op: Op) -> Status {
    let direction = if op == Op::Read { Direction::Read } else { Direction::Write };
    Status::from_fault(fault, direction)
}
