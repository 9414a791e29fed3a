//! Test harness: a target in memory. The disk is a `Vec<u8>`, connections are byte strings, and the
//! test controls the time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{
    Access, Account, Admitted, Auth, Catalogue, Event, Export, Fault, Geometry, Host, Identity,
    Notice, Op, Peer, Policy, Pool, Reason, Session, Step,
};
use nvme::auth::AuthConfig;
use nvme::target::{Connection, Port, Target};
use nvme::tcp::{Deframer, Pdu, Piece, Side, pdu};
use nvme::wire::completion::Cqe;

/// The subsystem of the disk.
pub(crate) const DISK: &str = "nqn.2014-08.org.nvmexpress:uuid:disk";

/// Blocks of the disk, of 512 bytes: 2 MiB.
pub(crate) const BLOCKS: u64 = 4096;

/// Size of the disk of [`World::small`].
const SMALL: usize = 1 << 17;

/// Fill of uninitialized memory, which must never be sent.
pub(crate) const POISON: u8 = 0xee;

/// State of a test.
pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) disk: Vec<u8>,
    pub(crate) now: Instant,
    target: Arc<Target>,
    pool: Pool,
    conns: Vec<Conn>,
    /// Results of the next requests.
    pub(crate) faults: VecDeque<Result<(), Fault>>,
    pub(crate) port: Port,
    /// Listener of new connections.
    pub(crate) auth: Auth,
}

/// A connection on the driver's side.
pub(crate) struct Conn {
    session: Connection,
    account: Account,
    /// Received and not yet consumed.
    stage: Vec<u8>,
    wire: Vec<u8>,
    reader: Deframer,
    /// Whether requests wait until the test completes them.
    pub(crate) hold: bool,
    pub(crate) jobs: VecDeque<Admitted>,
    pub(crate) closed: Option<Reason>,
    disconnected: bool,
    pub(crate) submitted: usize,
    completed: usize,
    pub(crate) events: Vec<Event>,
    /// Maximum of queued output in bytes.
    pub(crate) burst: usize,
}

/// A PDU from the target.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "fields that no test looks at show in failures")]
pub(crate) enum Reply {
    Accepted(pdu::IcResp),
    Done(Cqe),
    Data { cid: u16, offset: u32, bytes: Vec<u8>, last: bool, success: bool },
    R2t { cid: u16, ttag: u16, offset: u32, len: u32 },
    Terminated { fes: u16, fei: u32, header: Vec<u8> },
}

/// Index of a connection.
pub(crate) type Id = usize;

impl World {
    /// One writable disk, whose block n is filled with the byte n mod 199.
    pub(crate) fn new() -> Self {
        Self::with_pool(64 << 20)
    }

    /// Like [`World::new`], with a pool of `limit` bytes whose free memory is poisoned.
    pub(crate) fn with_pool(limit: usize) -> Self {
        let pool = Pool::new(limit);
        poison(&pool);
        let catalogue = Arc::new(Catalogue::default());
        catalogue.publish(disk(Access::Writable, 512));
        let target = Target::new(catalogue.clone());
        let block = |at: u64| [u8::try_from(at % 199).unwrap(); 512];
        let disk = (0..BLOCKS).flat_map(block).collect();
        let (now, conns, faults) = (Instant::now(), Vec::new(), VecDeque::new());
        let (port, auth) = (Port::Any, Auth::None);
        Self { catalogue, disk, now, target, pool, conns, faults, port, auth }
    }

    /// Keys required, and only that host allowed.
    pub(crate) fn with_keys(host: Host, rules: AuthConfig) -> Self {
        let mut world = Self::with_pool(1 << 20);
        world.target = Target::with_config(world.catalogue.clone(), rules, 0);
        world.auth = Auth::Required;
        world.catalogue.set_policy(Policy { hosts: vec![Arc::new(host)] });
        world
    }

    /// A small disk of zeros without poisoned memory, for tests with many worlds.
    pub(crate) fn small(limit: usize) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        let target = Target::new(catalogue.clone());
        let disk = vec![0; SMALL];
        let (now, conns, faults, pool) =
            (Instant::now(), Vec::new(), VecDeque::new(), Pool::new(limit));
        let (port, auth) = (Port::Any, Auth::None);
        let world = Self { catalogue, disk, now, target, pool, conns, faults, port, auth };
        world.publish_small(self::disk(Access::Writable, 512));
        world
    }

    /// Publishes a disk with the size of [`World::small`].
    pub(crate) fn publish_small(&self, export: Arc<Export>) {
        export.resize(SMALL as u64);
        self.catalogue.publish(export);
    }

    /// Opens a connection.
    pub(crate) fn open(&mut self) -> Id {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (remote, local) = (address(1024), address(4420));
        let peer = Peer::ip(remote, local, self.auth);
        let account = self.pool.open();
        let session = self.target.session(peer, self.port, account.clone(), self.now);
        self.conns.push(Conn {
            session,
            account,
            stage: Vec::new(),
            wire: Vec::new(),
            reader: Deframer::new(Side::Host, 0),
            hold: false,
            jobs: VecDeque::new(),
            closed: None,
            disconnected: false,
            submitted: 0,
            completed: 0,
            events: Vec::new(),
            burst: 0,
        });
        self.conns.len() - 1
    }

    pub(crate) fn conn(&mut self, id: Id) -> &mut Conn {
        &mut self.conns[id]
    }

    /// Returns the buffer memory held by all connections in bytes.
    pub(crate) fn held(&self) -> usize {
        self.conns.iter().map(|conn| conn.account.held()).sum()
    }

    /// Disconnects the host unless it is disconnected.
    pub(crate) fn disconnect_once(&mut self, id: Id) {
        if !self.conns[id].disconnected {
            self.disconnect(id);
        }
    }

    /// Returns whether the session accepts bytes now.
    pub(crate) fn can_receive(&self, id: Id) -> bool {
        let conn = &self.conns[id];
        conn.stage.is_empty() && conn.closed.is_none() && !conn.disconnected
    }

    /// Executes the steps of all sessions.
    pub(crate) fn settle(&mut self) {
        self.run();
    }

    /// Returns the session of a connection.
    pub(crate) fn session(&mut self, id: Id) -> &mut Connection {
        &mut self.conns[id].session
    }

    /// Receives at most `size` bytes of payload with value `byte` directly.
    pub(crate) fn receive_direct(&mut self, id: Id, byte: u8, size: usize) {
        let session = &mut self.conns[id].session;
        let mut landing = session.direct_recv().expect("payload is due");
        let end = landing.end.min(landing.start.saturating_add(size));
        landing.buffer.bytes_mut()[landing.start..end].fill(byte);
        let got = end - landing.start;
        session.direct_received(self.now, landing, got);
        self.run();
    }

    /// Receives bytes from the host.
    pub(crate) fn send(&mut self, id: Id, bytes: &[u8]) {
        if self.conns[id].closed.is_none() && !self.conns[id].disconnected {
            self.conns[id].stage.extend_from_slice(bytes);
        }
        self.run();
    }

    /// Advances the time, and runs expired timers.
    pub(crate) fn advance(&mut self, time: Duration) {
        self.now += time;
        for conn in &mut self.conns {
            if conn.session.deadline().is_some_and(|deadline| deadline <= self.now) {
                conn.session.tick(self.now);
            }
        }
        self.run();
    }

    /// Completes the oldest pending request of a connection.
    pub(crate) fn finish(&mut self, id: Id, result: Result<(), Fault>) {
        let job = self.conns[id].jobs.pop_front().expect("a request is held");
        if self.end(id, job, result) {
            self.notify_all(Notice::StateChanged);
        }
        self.run();
    }

    /// Completes the oldest pending request of a connection without executing further steps.
    pub(crate) fn complete_unsent(&mut self, id: Id) {
        let job = self.conns[id].jobs.pop_front().expect("a request is held");
        self.end(id, job, Ok(()));
    }

    /// Notifies all connections of a change.
    pub(crate) fn changed(&mut self) {
        self.notify_all(Notice::StateChanged);
        self.run();
    }

    /// Notifies all connections that the program stops.
    pub(crate) fn stop(&mut self) {
        self.notify_all(Notice::Stopping);
        self.run();
    }

    /// Disconnects the host.
    pub(crate) fn disconnect(&mut self, id: Id) {
        self.conns[id].session.notify(self.now, &Notice::Disconnected);
        self.conns[id].disconnected = true;
        self.run();
    }

    /// Drops the newest connection, which is closed and holds nothing.
    pub(crate) fn forget(&mut self, id: Id) {
        let conn = self.conns.pop().unwrap();
        assert_eq!((id, conn.disconnected), (self.conns.len(), true));
        assert_eq!((conn.submitted, conn.account.held()), (conn.completed, 0));
    }

    fn notify_all(&mut self, notice: Notice) {
        for conn in self.conns.iter_mut().filter(|conn| !conn.disconnected) {
            conn.session.notify(self.now, &notice);
        }
    }

    /// Executes the steps of all sessions until idle.
    fn run(&mut self) {
        loop {
            let mut roused = false;
            let mut busy = false;
            for id in 0..self.conns.len() {
                roused |= self.drain(id);
                busy |= self.offer(id);
            }
            if roused {
                self.notify_all(Notice::StateChanged);
            } else if !busy {
                return;
            }
        }
    }

    /// Executes the steps of a session. Returns whether others must be notified.
    fn drain(&mut self, id: Id) -> bool {
        let mut roused = false;
        let mut burst = 0;
        while let Some(step) = self.conns[id].session.poll() {
            let conn = &mut self.conns[id];
            match step {
                Step::Send(segment) => {
                    assert!(conn.closed.is_none(), "nothing is sent after the close");
                    burst += segment.len();
                    segment.parts().iter().for_each(|part| conn.wire.extend_from_slice(part));
                }
                Step::Submit(job) => {
                    assert!(conn.closed.is_none(), "nothing is asked of the disk after the close");
                    conn.submitted += 1;
                    match conn.hold {
                        true => conn.jobs.push_back(job),
                        false => roused |= self.execute(id, job),
                    }
                }
                Step::Report(event) => conn.events.push(event),
                Step::Notify => roused = true,
                Step::Close(reason) => {
                    assert_eq!(conn.closed.replace(reason), None, "closed once");
                    conn.stage.clear();
                }
            }
        }
        let conn = &mut self.conns[id];
        conn.burst = conn.burst.max(burst);
        assert!(conn.account.held() <= conn.account.share(), "memory is bounded");
        roused
    }

    /// Passes received bytes to a session. Returns whether it consumed any.
    fn offer(&mut self, id: Id) -> bool {
        let conn = &mut self.conns[id];
        if conn.stage.is_empty() || conn.disconnected || !conn.session.can_receive() {
            return false;
        }
        let taken = conn.session.receive(self.now, &conn.stage);
        assert!(taken <= conn.stage.len());
        conn.stage.drain(..taken);
        taken > 0
    }

    fn execute(&mut self, id: Id, job: Admitted) -> bool {
        let result = self.faults.pop_front().unwrap_or(Ok(()));
        self.end(id, job, result)
    }

    fn end(&mut self, id: Id, mut job: Admitted, result: Result<(), Fault>) -> bool {
        if result.is_ok() {
            execute_on(&mut self.disk, &mut job);
        }
        let export = job.export().clone();
        let (ticket, outcome) = job.finish(result);
        self.conns[id].completed += 1;
        self.conns[id].session.complete(self.now, ticket, outcome);
        export.is_contended()
    }

    /// Returns the replies on a connection since the last call.
    pub(crate) fn replies(&mut self, id: Id) -> Vec<Reply> {
        let conn = &mut self.conns[id];
        let bytes = std::mem::take(&mut conn.wire);
        parse(&mut conn.reader, &bytes)
    }

    /// Returns the bytes sent on a connection since the last call.
    pub(crate) fn raw(&mut self, id: Id) -> Vec<u8> {
        std::mem::take(&mut self.conns[id].wire)
    }

    /// Closes all connections, completes all requests, and checks that nothing leaks.
    pub(crate) fn end_all(mut self) {
        for id in 0..self.conns.len() {
            if !self.conns[id].disconnected {
                self.disconnect(id);
            }
        }
        for id in 0..self.conns.len() {
            while !self.conns[id].jobs.is_empty() {
                self.finish(id, Ok(()));
            }
            let conn = &self.conns[id];
            assert_eq!(conn.submitted, conn.completed, "every request ended once");
            assert_eq!(conn.account.held(), 0, "all memory came back");
        }
    }
}

/// Executes a request on the bytes of the disk.
fn execute_on(disk: &mut [u8], job: &mut Admitted) {
    let start = usize::try_from(job.offset()).unwrap();
    let place = &mut disk[start..start + usize::try_from(job.len()).unwrap()];
    match job.op() {
        Op::Read => job.bytes_mut().copy_from_slice(place),
        Op::Write { .. } => place.copy_from_slice(job.bytes_mut()),
        Op::Zero { .. } | Op::Discard => place.fill(0),
        Op::Flush | Op::Extents | Op::Prefetch => {}
    }
}

/// Fills the free buffers of a pool, up to 128 KiB each, with [`POISON`].
fn poison(pool: &Pool) {
    let accounts: Vec<Account> = (0..2).map(|_| pool.open()).collect();
    for class in 0..6 {
        let held: Vec<_> =
            accounts.iter().filter_map(|account| account.take(export::PAGE << class)).collect();
        for mut buffer in held {
            buffer.bytes_mut().fill(POISON);
        }
    }
}

/// Returns the export [`DISK`]: [`BLOCKS`] times 512 bytes, with blocks of `block` bytes.
pub(crate) fn disk(access: Access, block: u32) -> Arc<Export> {
    let geometry = Geometry::new(block, block).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap().into();
    let identity = Identity { uuid: [7; 16], serial: "serial".into(), ..Identity::default() };
    let mut export = Export::new("disk", DISK, identity, geometry, BLOCKS * 512, file);
    (export.access, export.discard, export.discard_zeroes) = (access, true, true);
    Arc::new(export)
}

fn parse(reader: &mut Deframer, bytes: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    let mut at = 0;
    let mut payload = Vec::new();
    let mut open = None;
    while at < bytes.len() || reader.at_end() {
        match reader.next(&bytes[at..]).expect("what the target sends keeps the rules") {
            Piece::Incomplete => panic!("the target sent a part of a PDU: {:02x?}", &bytes[at..]),
            Piece::Header(n, pdu) => {
                at += n;
                match reply_of(pdu) {
                    Reply::Accepted(response) => {
                        reader.set_digests(response.dgst & 1 != 0, response.dgst & 2 != 0);
                        replies.push(Reply::Accepted(response));
                    }
                    reply @ Reply::Data { .. } => open = Some(reply),
                    reply @ Reply::Terminated { .. } if reader.payload_left() > 0 => {
                        open = Some(reply)
                    }
                    reply => replies.push(reply),
                }
            }
            Piece::Padding(n) => at += n,
            Piece::Payload(data) => {
                payload.extend_from_slice(data);
                at += data.len();
            }
            Piece::PayloadEnd(n, right) => {
                assert!(right, "data digests of the target are right");
                at += n;
                replies.push(with_payload(open.take().unwrap(), std::mem::take(&mut payload)));
            }
        }
    }
    assert!(open.is_none());
    replies
}

fn reply_of(pdu: Pdu) -> Reply {
    match pdu {
        Pdu::IcResp(response) => Reply::Accepted(response),
        Pdu::Response(cqe) => Reply::Done(cqe),
        Pdu::Term { fes, fei } => Reply::Terminated { fes, fei, header: Vec::new() },
        Pdu::R2t { cccid: cid, ttag, offset, len } => Reply::R2t { cid, ttag, offset, len },
        Pdu::Data { cccid: cid, offset, last, success, .. } => {
            Reply::Data { cid, offset, bytes: Vec::new(), last, success }
        }
        Pdu::IcReq(_) | Pdu::Command { .. } => panic!("a controller does not send that"),
    }
}

fn with_payload(reply: Reply, payload: Vec<u8>) -> Reply {
    match reply {
        Reply::Data { cid, offset, last, success, .. } => {
            Reply::Data { cid, offset, bytes: payload, last, success }
        }
        Reply::Terminated { fes, fei, .. } => Reply::Terminated { fes, fei, header: payload },
        other => other,
    }
}
