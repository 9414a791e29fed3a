//! Drives sessions: sockets, disks and time. It knows no protocol; a protocol is a [`Session`], which the engine feeds
//! with bytes and ended requests, and whose steps it carries out.
//!
//! There are two drivers of the same sessions. `uring` is the fast one: a few threads with a ring each, network and disk
//! in the same ring. `blocking` is the reference and the fallback: a thread a connection, plain system calls. One more
//! thread accepts connections and gives them away; a connection stays on its thread for life.
//!
//! Who comes with TLS ([`tls`]) shows its key on a thread for that, and then goes to a driver like everyone else: its
//! session is wrapped in one that opens and seals records, and neither side knows.

#![deny(unsafe_code)]

mod blocking;
mod blocking_op;
mod disk;
mod inbox;
mod link;
mod listen;
mod negotiation;
mod recv_buffer;
mod security;
pub mod tls;
mod uring;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use export::{Account, Budget, Event, Notice, Peer, Session};

pub use listen::bind;
pub use security::{MakeNegotiator, NegotiationStep, Negotiator, NextStep, Predicate, Security};
pub use tls::limit::Limits;

use inbox::Inboxes;
use link::{Bounds, ConnectionTable, Link};
use listen::Acceptor;

/// The least and the most connections, however much memory there is for them.
const CONNECTIONS: (usize, usize) = (64, 1024);

/// How many connections there may be at most of peers that have not yet been let in, and which part of all.
const NEWCOMERS: usize = 128;
const NEWCOMERS_PART: usize = 4;

/// When memory is asked for again that only other connections can give back.
const RETRY: Duration = Duration::from_millis(20);

/// Bytes that may wait for a peer to read them before no more is taken from it.
const UNSENT: usize = 4 << 20;

/// How long a connection that is to be closed may take to send what is still to be sent.
const GRACE: Duration = Duration::from_secs(2);

/// How long the peer may take to read that and close, in its turn.
const LINGER: Duration = Duration::from_millis(500);

/// The least memory for payloads of a connection that has a thread of its own: two payloads of the largest size.
const LEAST_MEMORY: usize = 2 << 20;

/// How a connection with a thread of its own shares in the memory of a thread with many.
const MEMORY_SHARE: usize = 8;

/// How long [`Engine::stop`] waits for its threads after all connections have been cut.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// Makes the session of a new connection. Called on the connection's own thread, as sessions stay on it.
pub type MakeSession = Arc<dyn Fn(Peer, Account, Instant) -> Box<dyn Session> + Send + Sync>;

/// Takes what sessions report. Called on their threads, so it should not wait for anything.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// Which driver is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// `Uring` if the kernel allows it, else `Blocking`.
    #[default]
    Auto,
    /// A ring a thread.
    Uring,
    /// A thread a connection.
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

/// The driver that runs, and why it is that one. Displayed as a piece of a sentence: `blocking, because …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// [`Driver::Uring`] or [`Driver::Blocking`].
    pub driver: Driver,
    /// Why, for people.
    pub why: String,
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, because {}", self.driver, self.why)
    }
}

/// How the engine is to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which driver.
    pub driver: Driver,
    /// Threads of the uring driver; at least one.
    pub threads: usize,
    /// Bytes of payload buffers that a thread's connections share.
    pub memory: usize,
    /// Bytes of payload buffers in all; half as much again may be kept for the next requests.
    pub budget: usize,
    /// Bytes of memory for connections, beside payloads: bounds their number.
    pub connections: usize,
    /// The longest moment for which a thread of the uring driver watches for the next event before it sleeps. It does so
    /// only while events follow each other that closely. Zero: it always sleeps.
    pub spin: Duration,
    /// How many TLS handshakes an address may have us do.
    pub limits: Limits,
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
        }
    }
}

/// What all threads share.
struct Shared {
    sink: Sink,
    inboxes: Inboxes,
    table: Arc<ConnectionTable>,
    budget: Arc<Budget>,
}

/// The running engine. Dropping it cuts all connections.
pub struct Engine {
    acceptor: Acceptor,
    driver_threads: Arc<ActiveDriver>,
    shared: Arc<Shared>,
    running: Running,
}

/// Those who take accepted connections over.
enum ActiveDriver {
    Uring(uring::Workers),
    Blocking { shared: Arc<Shared>, memory: usize },
}

impl ActiveDriver {
    fn start(config: &Config, shared: &Arc<Shared>) -> io::Result<(Self, Running)> {
        let chosen = |driver, why: &str| Running { driver, why: why.to_owned() };
        let memory = (config.memory / MEMORY_SHARE).max(LEAST_MEMORY);
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
                let why = format!("io_uring cannot be used here: {error}");
                Ok((blocking, chosen(Driver::Blocking, &why)))
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
            // Without a thread for it, the connection is closed: its peer may try again.
            Self::Blocking { shared, memory } => drop(blocking::adopt(shared, *memory, link, open)),
        }
    }
}

/// How many connections there may be with so many bytes of memory.
fn bounds(bytes: usize, driver: Driver) -> Bounds {
    let stack = if driver == Driver::Blocking { blocking::STACK } else { 0 };
    let (least, most) = CONNECTIONS;
    let total = (bytes / (recv_buffer::RECV_BUFFER + stack)).clamp(least, most);
    Bounds { total, newcomers: NEWCOMERS.min(total / NEWCOMERS_PART) }
}

impl Engine {
    /// Starts the threads. What sessions report goes to `sink`.
    ///
    /// # Errors
    /// No thread or descriptor is to be had, or io_uring was asked for and cannot be used.
    pub fn start(config: Config, sink: Sink) -> io::Result<Self> {
        let table = ConnectionTable::open()?;
        let (budget, inboxes) = (Budget::new(config.budget), Inboxes::default());
        let shared = Arc::new(Shared { sink, inboxes, table: table.clone(), budget });
        let (driver_threads, running) = ActiveDriver::start(&config, &shared)?;
        table.limit(bounds(config.connections, running.driver));
        let driver_threads = Arc::new(driver_threads);
        let adopters = driver_threads.clone();
        let adopt = Arc::new(move |link, open| adopters.adopt(link, open));
        let acceptor = Acceptor::start(shared.clone(), adopt, config.limits)?;
        Ok(Self { acceptor, driver_threads, shared, running })
    }

    /// Accepts connections at `listener`, a socket of [`bind`] or any other that listens on TCP or a Unix address, and has
    /// `open` make a session for each that `security` lets in. Returns the address at which it listens, and
    /// [`Peer::LOCAL`] for one that is no network's.
    ///
    /// # Errors
    /// It is not such a socket.
    pub fn accept(
        &self,
        listener: OwnedFd,
        security: Security,
        open: MakeSession,
    ) -> io::Result<SocketAddr> {
        self.acceptor.accept(listener, security, open)
    }

    /// Takes in a connection that is there already, as if it had been accepted just now: `security` and `open` as for
    /// [`Engine::accept`].
    ///
    /// # Errors
    /// It is not a connected TCP or Unix stream, or there is no room for it.
    pub fn adopt(&self, socket: OwnedFd, security: Security, open: MakeSession) -> io::Result<()> {
        self.acceptor.adopt(socket, security, open)
    }

    /// [Binds](bind) `address` and [accepts](Engine::accept) there.
    ///
    /// # Errors
    /// The address is taken, not one of this machine, or not allowed.
    pub fn listen(
        &self,
        address: SocketAddr,
        interface: Option<&str>,
        security: Security,
        open: MakeSession,
    ) -> io::Result<SocketAddr> {
        self.accept(bind(address, interface)?, security, open)
    }

    /// Tells every session on every thread.
    pub fn notify(&self, notice: Notice) {
        self.shared.inboxes.notify(notice, None);
    }

    /// Connections there are now.
    pub fn connections(&self) -> usize {
        self.shared.table.total()
    }

    /// The driver that runs, and why.
    pub fn driver(&self) -> &Running {
        &self.running
    }

    /// Stops: accepts nothing any more, tells all sessions that the program stops, and waits for their connections to
    /// close. Those that are left after `patience` are cut. Tells whether there were none.
    pub fn stop(mut self, patience: Duration) -> bool {
        self.acceptor.stop();
        self.shared.inboxes.notify(Notice::Stopping, None);
        let in_time = self.shared.table.wait_until_empty(patience);
        self.shared.inboxes.quit();
        let gone = self.shared.table.wait_until_empty(LAST_WAIT);
        if gone {
            self.join();
        }
        in_time
    }

    /// Waits for the threads, all of whose connections have gone.
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
