//! Drivers for protocol sessions: sockets, disks, time, threads and TLS.
//!
//! A protocol is a [`Session`], a sans-I/O state machine. The engine feeds it with received bytes
//! and completed disk requests, and executes its steps.
//!
//! There are two drivers for the same sessions. `uring` is the fast one: a few worker threads, each
//! with one io_uring for network and disk. `blocking` is the reference and the fallback: one thread
//! per connection and plain system calls. One more thread accepts connections and assigns each to a
//! driver thread, where it stays.
//!
//! TLS handshakes ([`tls`]) run on a thread of their own. After the handshake a session is wrapped
//! in one that decrypts and encrypts records, so that drivers and protocols are unaware of TLS.

#![deny(unsafe_code)]

mod blocking;
mod disk;
mod endpoints;
mod handshaker;
mod inbox;
mod incoming;
mod link;
mod listen;
mod negotiation;
mod outgoing;
mod recv_buffer;
mod security;
pub mod tls;
mod topic;
mod uring;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use export::{Account, Budget, Event, Export, Notice, Peer, Session};

pub use disk::backing::prepare;
pub use disk::overlay::{persist as persist_overlay, stored_bytes};
use endpoints::EndpointThread;
pub use endpoints::{AnswerControl, ControlReply, Endpoints};
pub use handshaker::limit::Limits;
pub use listen::bind;
pub use security::{MakeNegotiator, NegotiationStep, Negotiator, NextStep, Predicate, Security};

use inbox::Inboxes;
use link::{Bounds, ConnectionTable, Link};
use listen::Acceptor;
use topic::Topic;

/// Smallest and largest limit on the number of connections, however much memory there is.
const CONNECTION_RANGE: (usize, usize) = (64, 1024);

/// Limit on connections that are not yet established: an absolute number, and a part of the limit
/// on all connections.
const MAX_UNESTABLISHED: usize = 128;
const UNESTABLISHED_PART: usize = 4;

/// Retry interval for memory that only other connections can free.
const MEMORY_RETRY: Duration = Duration::from_millis(20);

/// Limit on the send queue in bytes, above which nothing more is received (back-pressure).
const MAX_UNSENT: usize = 4 << 20;

/// How long a connection that is being closed may take to flush its send queue.
const GRACE: Duration = Duration::from_secs(2);

/// How long the peer may then take to read the rest and close its side.
const LINGER: Duration = Duration::from_millis(500);

/// Smallest pool of a connection with its own thread: two payloads of the largest size.
const MIN_MEMORY: usize = 2 << 20;

/// The pool of a USB function: for the requests of the session, and for those that sessions before it
/// have abandoned to disks that do not respond.
const ENDPOINT_MEMORY: usize = 4 << 20;

/// The pool of a connection with its own thread, as a fraction of the pool of a worker thread.
const MEMORY_SHARE: usize = 8;

/// How long [`Engine::stop`] waits for its threads after it has cut all connections.
const JOIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Makes the session of a new connection. Called on the thread that drives the connection.
pub type MakeSession = Arc<dyn Fn(Peer, Account, Instant) -> Box<dyn Session> + Send + Sync>;

/// Receives the events of sessions. Called on the driver threads, so it must not block.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// Passes a connection to a driver, which then makes its session.
type Adopt = Arc<dyn Fn(Arc<Link>, MakeSession) + Send + Sync>;

/// Selects the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Driver {
    /// `Uring` if the kernel supports and permits it, else `Blocking`.
    #[default]
    Auto,
    /// io_uring, on a fixed number of worker threads.
    Uring,
    /// System calls, on one thread per connection.
    Blocking,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Blocking => "blocking",
        })
    }
}

/// The driver in use, and why it was chosen. `Display` prints a phrase: `blocking, because …`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Running {
    /// [`Driver::Uring`] or [`Driver::Blocking`].
    pub driver: Driver,
    /// The reason, for people.
    pub reason: String,
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, because {}", self.driver, self.reason)
    }
}

/// Configuration of an [`Engine`].
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Config {
    /// The driver.
    pub driver: Driver,
    /// Number of worker threads of the uring driver; at least one.
    pub threads: usize,
    /// Payload memory that the connections of one thread share, in bytes.
    pub memory: usize,
    /// Limit on payload memory of all connections, in bytes. Up to half as much again may be
    /// cached.
    pub budget: usize,
    /// Memory for connections apart from payloads, in bytes. Limits their number.
    pub connections: usize,
    /// How long a worker thread polls for the next event before it sleeps. It polls only while the
    /// usual interval between events is shorter than this. Zero disables polling.
    pub spin: Duration,
    /// Rate limits on TLS handshakes, per address.
    pub limits: Limits,
    /// Whether endpoints of a USB function may be served: the ring for their disk requests is opened at
    /// the start.
    pub endpoints: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: Driver::Auto,
            threads: 1,
            memory: 32 << 20,
            budget: 256 << 20,
            connections: 1 << 30,
            spin: Duration::from_micros(50),
            limits: Limits::default(),
            endpoints: false,
        }
    }
}

/// State shared by all threads.
struct Shared {
    sink: Sink,
    inboxes: Inboxes,
    table: Arc<ConnectionTable>,
    budget: Arc<Budget>,
}

/// A running engine. Dropping it cuts all connections.
pub struct Engine {
    acceptor: Acceptor,
    driver_threads: Arc<ActiveDriver>,
    shared: Arc<Shared>,
    running: Running,
    /// The thread of a USB function's endpoints, if it was started before them.
    endpoints: Option<EndpointThread>,
}

/// The driver threads.
enum ActiveDriver {
    Uring(uring::Workers),
    Blocking { shared: Arc<Shared>, memory: usize },
}

impl ActiveDriver {
    fn start(config: &Config, shared: &Arc<Shared>) -> io::Result<(Self, Running)> {
        let chosen = |driver, reason: &str| Running { driver, reason: reason.to_owned() };
        let memory = (config.memory / MEMORY_SHARE).max(MIN_MEMORY);
        let blocking = Self::Blocking { shared: shared.clone(), memory };
        if config.driver == Driver::Blocking {
            return Ok((blocking, chosen(Driver::Blocking, "it was asked for")));
        }
        match uring::spawn(config, shared) {
            Ok(workers) if config.driver == Driver::Auto => {
                Ok((Self::Uring(workers), chosen(Driver::Uring, "the kernel has io_uring")))
            }
            Ok(workers) => Ok((Self::Uring(workers), chosen(Driver::Uring, "it was asked for"))),
            Err(error) if config.driver == Driver::Auto => {
                let reason = format!("io_uring cannot be used here: {error}");
                Ok((blocking, chosen(Driver::Blocking, &reason)))
            }
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!("io_uring cannot be used here: {error}; the blocking driver can"),
            )),
        }
    }

    fn adopt(&self, link: Arc<Link>, open: MakeSession) {
        match self {
            Self::Uring(workers) => workers.adopt(link, open),
            // If no thread can be created, the connection is closed and the peer may retry.
            Self::Blocking { shared, memory } => drop(blocking::adopt(shared, *memory, link, open)),
        }
    }
}

/// Returns the limits on connections for `bytes` of memory.
fn bounds(bytes: usize, driver: Driver) -> Bounds {
    let stack = if driver == Driver::Blocking { blocking::STACK } else { 0 };
    let (min, max) = CONNECTION_RANGE;
    let total = (bytes / (recv_buffer::RECV_BUFFER + stack)).clamp(min, max);
    Bounds { total, unestablished: MAX_UNESTABLISHED.min(total / UNESTABLISHED_PART) }
}

impl Engine {
    /// Starts the threads. Events of sessions are passed to `sink`.
    ///
    /// # Errors
    /// Fails if a thread or descriptor cannot be created, or if [`Driver::Uring`] was requested and
    /// is not available.
    pub fn start(config: Config, sink: Sink) -> io::Result<Self> {
        let table = ConnectionTable::open()?;
        let (budget, inboxes) = (Budget::new(config.budget), Inboxes::default());
        let shared = Arc::new(Shared { sink, inboxes, table: table.clone(), budget });
        let (driver_threads, running) = ActiveDriver::start(&config, &shared)?;
        table.set_bounds(bounds(config.connections, running.driver));
        let driver_threads = Arc::new(driver_threads);
        let adopters = driver_threads.clone();
        let adopt = Arc::new(move |link, open| adopters.adopt(link, open));
        let acceptor = Acceptor::start(shared.clone(), adopt, config.limits)?;
        let has_ring = config.endpoints && running.driver == Driver::Uring;
        let endpoints = has_ring.then(|| EndpointThread::start(&shared, ENDPOINT_MEMORY, true));
        let endpoints = endpoints.transpose()?;
        Ok(Self { acceptor, driver_threads, shared, running, endpoints })
    }

    /// Accepts connections from `listener`, a socket of [`bind`] or any other listening TCP or Unix
    /// socket. `open` makes the session of each connection that `security` admits. Returns the
    /// bound address, or `None` for a Unix socket.
    ///
    /// # Errors
    /// Fails if it is not such a socket.
    pub fn accept(
        &self,
        listener: OwnedFd,
        security: Security,
        open: MakeSession,
    ) -> io::Result<Option<SocketAddr>> {
        self.acceptor.accept(listener, security, open)
    }

    /// Adds an existing connection as if it had just been accepted; `security` and `open` as for
    /// [`Engine::accept`].
    ///
    /// # Errors
    /// Fails if it is not a connected TCP or Unix stream, or if there are too many connections.
    pub fn adopt(&self, socket: OwnedFd, security: Security, open: MakeSession) -> io::Result<()> {
        self.acceptor.adopt(socket, security, open)
    }

    /// Serves the host at the other end of a USB cable, on two threads. The endpoints are used by system
    /// calls; the disks too, unless the driver is [`Driver::Uring`] and the configuration has
    /// [`endpoints`](Config::endpoints). `open` makes the session of each time that a host configures or resets
    /// the device; `answer` answers its requests on endpoint 0.
    ///
    /// # Errors
    /// Fails if a thread or descriptor cannot be created.
    pub fn serve_endpoints(
        &self,
        endpoints: Endpoints,
        open: MakeSession,
        answer: AnswerControl,
    ) -> io::Result<()> {
        match &self.endpoints {
            Some(thread) => thread.serve(endpoints, open, answer),
            None => EndpointThread::start(&self.shared, ENDPOINT_MEMORY, false)?
                .serve(endpoints, open, answer),
        }
    }

    /// [Binds](bind) `address` and [accepts](Engine::accept) connections.
    ///
    /// # Errors
    /// Fails if the address is in use, does not belong to this machine, or is not permitted.
    pub fn listen(
        &self,
        address: SocketAddr,
        interface: Option<&str>,
        security: Security,
        open: MakeSession,
    ) -> io::Result<SocketAddr> {
        let bound = self.accept(bind(address, interface)?, security, open)?;
        bound.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Passes `notice` to every session.
    pub fn notify(&self, notice: Notice) {
        self.shared.inboxes.notify(notice, None);
    }

    /// Passes [`Notice::StateChanged`] to the sessions that a change of `export` concerns: those
    /// that use it, and those that use none yet.
    pub fn export_changed(&self, export: &Export) {
        self.shared.inboxes.changed(&Topic::of(export), None);
    }

    /// Returns the number of connections.
    pub fn connections(&self) -> usize {
        self.shared.table.total()
    }

    /// Returns the driver in use, and why it was chosen.
    pub fn driver(&self) -> &Running {
        &self.running
    }

    /// Stops the engine: accepts no more connections, passes [`Notice::Stopping`] to all sessions
    /// and waits for them to close. After `patience` the remaining connections are cut. Returns
    /// whether there were none.
    pub fn stop(mut self, patience: Duration) -> bool {
        self.acceptor.stop();
        self.shared.inboxes.notify(Notice::Stopping, None);
        let in_time = self.shared.table.wait_until_empty(patience);
        self.shared.inboxes.quit();
        let gone = self.shared.table.wait_until_empty(JOIN_TIMEOUT);
        if gone {
            self.join();
        }
        in_time
    }

    /// Waits for the threads, which have no connections left.
    fn join(self) {
        let driver_threads = self.driver_threads.clone();
        drop(self);
        if let Some(ActiveDriver::Uring(workers)) = Arc::into_inner(driver_threads) {
            workers.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.acceptor.stop();
        self.shared.inboxes.quit();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({}, {} connections)", self.running.driver, self.connections())
    }
}
