//! Test harness: host and target in memory. Connections are byte strings, disks are `Vec<u8>`, time
//! and randomness are controlled by the test.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{
    Account, Admitted, Auth, Catalogue, Channel, Event, Export, Fault, Finished, Identity, Notice,
    Op, Peer, Pool, Reason, Segment, Session, Step,
};
use nvme::auth::{AuthConfig, Credentials};
use nvme::host::{self, CloseReason, Completion, Options};
use nvme::status::Status;
use nvme::target::{Port, Target};
use nvme::wire::fabrics::{ConnectData, ConnectResponse};
use testkit::{Stream, Xorshift64};

pub(crate) use testkit::Chunks;

/// The subsystem of the first disk.
pub(crate) const DISK: &str = "nqn.2014-08.org.nvmexpress:uuid:disk";

/// Bytes of a disk: 4 MiB.
pub(crate) const BYTES: usize = 4 << 20;

/// Completion order of disk requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    First,
    Last,
    Random,
}

/// Fault injection: returns the fault of a request, if any.
pub(crate) type Faults = Box<dyn FnMut(Op, u64, u64) -> Option<Fault>>;

/// State of a test.
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) target: Arc<Target>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) events: Vec<Event>,
    pub(crate) chunks: Chunks,
    pub(crate) order: Order,
    /// Whether payloads are received directly into buffers.
    pub(crate) in_place: bool,
    pub(crate) port: Port,
    /// Peer address of new connections.
    pub(crate) remote: SocketAddr,
    /// Listener of new connections, and their channel.
    pub(crate) auth: Auth,
    pub(crate) channel: Option<Arc<Channel>>,
    /// Credentials of hosts for new connections.
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) random: Xorshift64,
    pool: Pool,
    memory: Account,
    notified: bool,
    /// Number of [`Step::Notify`].
    pub(crate) notifications: usize,
}

/// A disk with its pending requests.
pub(crate) struct Disk {
    pub(crate) export: Arc<Export>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) requests: VecDeque<(usize, Admitted)>,
    /// Whether requests wait until the test completes them.
    pub(crate) held: bool,
    pub(crate) faults: Faults,
    /// All completed requests: operation, first byte, number of bytes.
    pub(crate) log: Vec<(Op, u64, u64)>,
}

/// A connection with both ends.
pub(crate) struct Connection {
    pub(crate) host: host::Queue,
    session: Option<nvme::target::Connection>,
    to_target: Direction,
    to_host: Direction,
    pub(crate) done: Vec<Completion>,
    pub(crate) connected: Option<ConnectResponse>,
    pub(crate) refused: Option<(Status, u32)>,
    pub(crate) host_end: Option<CloseReason>,
    pub(crate) target_end: Option<Reason>,
    pub(crate) submitted: usize,
    pub(crate) completed: usize,
    notify_pending: bool,
}

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    stream: Stream,
    /// All bytes sent so far.
    all: Vec<u8>,
}

impl Direction {
    fn push(&mut self, segment: &Segment) {
        self.stream.push_segment(segment);
        segment.parts().iter().for_each(|part| self.all.extend_from_slice(part));
    }
}

/// Changes to a writable disk with 512-byte blocks and a volatile cache.
pub(crate) type Change = fn(&mut Export);

impl World {
    /// A target with one writable disk, and a host with ample memory.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Like [`World::new`], with a changed disk.
    pub(crate) fn with(change: Change) -> Self {
        Self::with_auth_config(change, AuthConfig::default())
    }

    /// Like [`World::with`], with authentication settings.
    pub(crate) fn with_auth_config(change: Change, rules: AuthConfig) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        let target = Target::with_config(catalogue.clone(), rules, 0);
        let mut world = Self {
            now: Instant::now(),
            catalogue,
            target,
            disks: Vec::new(),
            connections: Vec::new(),
            events: Vec::new(),
            chunks: Chunks::Fixed(65_536),
            order: Order::First,
            in_place: false,
            port: Port::Any,
            remote: "192.0.2.9:50000".parse().unwrap(),
            auth: Auth::None,
            channel: None,
            credentials: None,
            random: Xorshift64::default(),
            pool: Pool::new(16 << 20),
            memory: Pool::new(1 << 30).open(),
            notified: false,
            notifications: 0,
        };
        world.publish(DISK, change);
        world
    }

    /// Like [`World::new`], with limited memory for the target.
    pub(crate) fn with_memory(bytes: usize) -> Self {
        Self { pool: Pool::new(bytes), ..Self::new() }
    }

    /// Like [`World::new`], with another pool.
    pub(crate) fn with_pool(pool: Pool) -> Self {
        Self { pool, ..Self::new() }
    }

    pub(crate) fn seed(&mut self, seed: u64) {
        self.random = Xorshift64::from_seed(seed);
    }

    /// Publishes another disk, filled with a pattern.
    pub(crate) fn publish(&mut self, nqn: &str, change: Change) -> Arc<Export> {
        let export = Arc::new(Self::export(nqn, change));
        let bytes = (0..BYTES).map(|index| (index / 512 % 251) as u8).collect();
        self.disks.push(Disk {
            export: export.clone(),
            bytes,
            requests: VecDeque::new(),
            held: false,
            faults: Box::new(|_, _, _| None),
            log: Vec::new(),
        });
        self.catalogue.publish(export.clone());
        self.notify(&Notice::StateChanged);
        export
    }

    fn export(nqn: &str, change: Change) -> Export {
        let identity = Identity {
            uuid: [7; 16],
            nguid: Some([9; 16]),
            serial: "SN1".into(),
            model: "A disk".into(),
            firmware: "1.0".into(),
            ..Identity::default()
        };
        let mut export = testkit::export("disk", nqn, identity, (512, 4096), BYTES as u64);
        change(&mut export);
        export
    }

    /// Returns the same disk as a new export.
    pub(crate) fn another(export: &Export) -> Arc<Export> {
        Arc::new(Self::export(&nvme::nqn::of(&export.id), |_| {}))
    }

    /// Returns whether no session is left.
    pub(crate) fn has_no_sessions(&self) -> bool {
        self.connections.iter().all(|conn| conn.session.is_none())
    }

    /// Opens a connection. Nothing has been sent yet.
    pub(crate) fn connect(&mut self, options: Options, data: ConnectData) -> usize {
        let peer = Peer {
            channel: self.channel.clone(),
            ..Peer::ip(self.remote, "192.0.2.1:4420".parse().unwrap(), self.auth)
        };
        let host = match &self.credentials {
            None => host::Queue::new(options, data),
            Some(own) => host::Queue::with_credentials(options, data, own.clone()),
        };
        let session = self.target.session(peer, self.port, self.pool.open(), self.now);
        self.connections.push(Connection {
            host,
            session: Some(session),
            to_target: Direction::default(),
            to_host: Direction::default(),
            done: Vec::new(),
            connected: None,
            refused: None,
            host_end: None,
            target_end: None,
            submitted: 0,
            completed: 0,
            notify_pending: false,
        });
        self.connections.len() - 1
    }

    /// A buffer of the host.
    pub(crate) fn buffer(&self, len: usize) -> export::Buffer {
        self.memory.take(len).unwrap()
    }

    pub(crate) fn disk(&mut self) -> &mut Disk {
        &mut self.disks[0]
    }

    /// Returns all bytes that the target sent on a connection.
    pub(crate) fn sent_by_target(&self, conn: usize) -> &[u8] {
        &self.connections[conn].to_host.all
    }

    /// Returns all bytes that the host sent on a connection.
    pub(crate) fn sent_by_host(&self, conn: usize) -> &[u8] {
        &self.connections[conn].to_target.all
    }

    /// Returns the number of bytes that the target has not consumed.
    pub(crate) fn unconsumed(&self, conn: usize) -> usize {
        self.connections[conn].to_target.stream.len()
    }

    // ---- events

    /// Runs until idle.
    pub(crate) fn run(&mut self) {
        let mut turns = 0;
        while self.run_once() {
            turns += 1;
            assert!(turns < 20_000_000, "the session does not become idle");
        }
    }

    /// Runs a limited number of turns.
    pub(crate) fn run_turns(&mut self, turns: usize) {
        for _ in 0..turns {
            self.run_once();
        }
    }

    /// Advances the time.
    pub(crate) fn advance(&mut self, time: Duration) {
        self.now += time;
        for index in 0..self.connections.len() {
            let now = self.now;
            if let Some(session) = &mut self.connections[index].session
                && session.deadline().is_some_and(|deadline| deadline <= now)
            {
                session.tick(now);
            }
            self.drain(index);
        }
        self.run();
    }

    /// Notifies all sessions.
    pub(crate) fn notify(&mut self, notice: &Notice) {
        for index in 0..self.connections.len() {
            self.notify_one(index, notice);
        }
    }

    /// Breaks a connection; bytes in transit are lost.
    pub(crate) fn cut(&mut self, index: usize) {
        let conn = &mut self.connections[index];
        conn.to_host.stream.clear();
        conn.to_target.stream.clear();
        conn.notify_pending = true;
        self.notify_one(index, &Notice::Disconnected);
    }

    fn notify_one(&mut self, index: usize, notice: &Notice) {
        let now = self.now;
        if let Some(session) = &mut self.connections[index].session {
            session.notify(now, notice);
        }
        self.drain(index);
    }

    fn run_once(&mut self) -> bool {
        let mut progressed = false;
        // As a driver does in each turn.
        self.pool.was_short();
        for index in 0..self.connections.len() {
            progressed |= self.drain_host(index);
            progressed |= self.deliver_to_target(index);
            progressed |= self.deliver_to_host(index);
            progressed |= self.drain(index);
            self.drop_if_finished(index);
        }
        for disk in 0..self.disks.len() {
            progressed |= !self.disks[disk].held && self.complete_one(disk);
        }
        if std::mem::take(&mut self.notified) {
            self.notify(&Notice::StateChanged);
            progressed = true;
        }
        progressed
    }

    fn drain_host(&mut self, index: usize) -> bool {
        let conn = &mut self.connections[index];
        let mut progressed = false;
        while let Some(step) = conn.host.poll() {
            progressed = true;
            match step {
                host::Step::Send(segment) => conn.to_target.push(&segment),
                host::Step::Completed(done) => conn.done.push(done),
                host::Step::Connected(response) => conn.connected = Some(response),
                host::Step::Refused(status, dw0) => conn.refused = Some((status, dw0)),
                host::Step::Close(end) => conn.host_end = Some(end),
            }
        }
        progressed
    }

    fn deliver_to_target(&mut self, index: usize) -> bool {
        let now = self.now;
        let conn = &mut self.connections[index];
        let stream = &mut conn.to_target.stream;
        let Some(session) = &mut conn.session else {
            stream.clear();
            return false;
        };
        if !session.can_receive() {
            return false;
        }
        let was_consumed = stream.arrived().is_empty();
        let fresh = stream.arrive(self.chunks, &mut self.random);
        if self.in_place
            && was_consumed
            && fresh != 0
            && let Some(mut recv) = session.direct_recv()
        {
            let got = stream.fill(&mut recv);
            session.direct_received(now, recv, got);
            return true;
        }
        if stream.arrived().is_empty() {
            return false;
        }
        let consumed = session.receive(now, stream.arrived());
        stream.consume(consumed);
        fresh != 0 || consumed != 0
    }

    fn deliver_to_host(&mut self, index: usize) -> bool {
        let conn = &mut self.connections[index];
        let stream = &mut conn.to_host.stream;
        let was_consumed = stream.arrived().is_empty();
        let fresh = stream.arrive(self.chunks, &mut self.random);
        if self.in_place
            && was_consumed
            && fresh != 0
            && let Some(mut recv) = conn.host.direct_recv()
        {
            let got = stream.fill(&mut recv);
            conn.host.direct_received(recv, got);
            return true;
        }
        let consumed = conn.host.receive(stream.arrived());
        stream.consume(consumed);
        fresh != 0 || consumed != 0
    }

    /// Executes the steps of a session.
    fn drain(&mut self, index: usize) -> bool {
        let mut progressed = false;
        let conn = &mut self.connections[index];
        let Some(session) = &mut conn.session else { return false };
        while let Some(step) = session.poll() {
            progressed = true;
            match step {
                Step::Send(segment) => conn.to_host.push(&segment),
                Step::Submit(admitted) => {
                    conn.submitted += 1;
                    let for_disk = |disk: &&mut Disk| Arc::ptr_eq(&disk.export, admitted.export());
                    let disk = self.disks.iter_mut().find(for_disk).unwrap();
                    disk.requests.push_back((index, admitted));
                }
                Step::Halt => panic!("a stream has no halt"),
                Step::Report(event) => self.events.push(*event),
                Step::Notify => {
                    self.notified = true;
                    self.notifications += 1;
                }
                Step::Close(reason) => {
                    assert_eq!(conn.target_end.replace(reason), None, "closed twice");
                }
            }
        }
        progressed
    }

    /// Drops a session whose connection is closed and whose requests are complete, as a driver
    /// does.
    fn drop_if_finished(&mut self, index: usize) {
        let conn = &mut self.connections[index];
        let over = conn.target_end.is_some() || conn.notify_pending;
        if conn.host_end.is_some() && conn.to_target.stream.is_empty() && !over {
            conn.notify_pending = true;
            return self.notify_one(index, &Notice::Disconnected);
        }
        if over && conn.submitted == conn.completed {
            conn.session = None;
        }
    }

    /// Completes one request of a disk. Returns whether there was one.
    pub(crate) fn complete_one(&mut self, disk: usize) -> bool {
        let len = self.disks[disk].requests.len();
        if len == 0 {
            return false;
        }
        let index = match self.order {
            Order::First => 0,
            Order::Last => len - 1,
            Order::Random => self.random.below(len),
        };
        let (conn, admitted) = self.disks[disk].requests.remove(index).unwrap();
        let Finished { ticket, outcome, contended } = self.disks[disk].complete(admitted);
        self.notified |= contended.is_some();
        let now = self.now;
        self.connections[conn].completed += 1;
        self.connections[conn].session.as_mut().unwrap().complete(now, ticket, outcome);
        self.drain(conn);
        true
    }
}

impl Disk {
    fn complete(&mut self, mut admitted: Admitted) -> Finished {
        let (op, offset, len) = (admitted.op(), admitted.offset(), admitted.len());
        if let Some(fault) = (self.faults)(op, offset, len) {
            return admitted.finish(Err(fault));
        }
        self.log.push((op, offset, len));
        testkit::execute(&mut self.bytes, &mut admitted);
        admitted.finish(Ok(()))
    }

    /// Returns the log without reads.
    pub(crate) fn changes(&self) -> Vec<(Op, u64, u64)> {
        self.log.iter().copied().filter(|&(op, _, _)| op != Op::Read).collect()
    }
}
