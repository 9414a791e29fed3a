//! A server in memory: the disk is a `Vec<u8>`, connections are byte strings, time is virtual.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{
    Access, Account, Admitted, Auth, Catalogue, Channel, Event, Export, Extent, Extents, Fault,
    Geometry, Identity, KeyId, Notice, Op, Peer, Pool, Reason, Session as _, Step,
};
use nbd::server::{Server, Session, Start};

/// The NQN of the disk; its short name is `sda`.
pub(crate) const DISK: &str = "nqn.2014-08.org.nvmexpress:uuid:disk";

/// Size of the disk in bytes.
pub(crate) const SIZE: usize = 2 << 20;

/// Fills unused memory; must never be sent.
pub(crate) const POISON: u8 = 0xee;

/// The server, its connections and its disk.
pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) disk: Vec<u8>,
    pub(crate) now: Instant,
    server: Arc<Server>,
    pool: Pool,
    pub(crate) conns: Vec<Conn>,
    /// Results of the next disk requests.
    pub(crate) faults: VecDeque<Result<(), Fault>>,
    /// Whether the disk reports extents: blocks of zeros are holes.
    pub(crate) reports_extents: bool,
}

/// One connection, as seen by the driver.
pub(crate) struct Conn {
    pub(crate) session: Session,
    pub(crate) account: Account,
    /// Bytes received and not consumed.
    pending: Vec<u8>,
    pub(crate) wire: Vec<u8>,
    /// Whether disk requests wait for [`World::finish`].
    pub(crate) hold: bool,
    /// Whether the peer does not receive: sent segments keep their memory.
    pub(crate) not_receiving: bool,
    unread: Vec<export::Segment>,
    pub(crate) jobs: VecDeque<Admitted>,
    pub(crate) closed: Option<Reason>,
    pub(crate) disconnected: bool,
    pub(crate) submitted: usize,
    completed: usize,
    pub(crate) events: Vec<Event>,
}

/// Index of a connection.
pub(crate) type Id = usize;

impl World {
    /// Creates a server with one writable disk of [`SIZE`] bytes. Block n of 512 bytes is filled
    /// with n mod 199.
    pub(crate) fn new() -> Self {
        Self::with_pool(64 << 20)
    }

    /// Like [`World::new`] with a pool of `limit` bytes. Its free memory is poisoned.
    pub(crate) fn with_pool(limit: usize) -> Self {
        let block = |at: usize| [u8::try_from(at % 199).unwrap(); 512];
        let bytes = (0..SIZE / 512).flat_map(block).collect();
        let world = Self::bare(limit, bytes);
        poison(&world.pool);
        world.catalogue.publish(disk(Access::Writable, 512, SIZE as u64));
        world
    }

    /// Like [`World::new`] with that pool.
    pub(crate) fn of(pool: Pool) -> Self {
        Self { pool, ..Self::new() }
    }

    /// Creates a server with a small disk of zeros without poison, which is fast to create.
    pub(crate) fn small(bytes: usize, block: u32) -> Self {
        let world = Self::bare(8 << 20, vec![0; bytes]);
        world.catalogue.publish(disk(Access::Writable, block, bytes as u64));
        world
    }

    /// Creates a server without exports.
    fn bare(limit: usize, disk: Vec<u8>) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        Self {
            server: Server::new(catalogue.clone()),
            catalogue,
            disk,
            now: Instant::now(),
            pool: Pool::new(limit),
            conns: Vec::new(),
            faults: VecDeque::new(),
            reports_extents: true,
        }
    }

    /// Opens a connection without TLS.
    pub(crate) fn open(&mut self) -> Id {
        self.open_as(peer(Auth::None, None), Start::Hello)
    }

    /// Opens a connection of that peer.
    pub(crate) fn open_as(&mut self, peer: Peer, start: Start) -> Id {
        let account = self.pool.open();
        let session = self.server.session(peer, start, account.clone(), self.now);
        self.conns.push(Conn {
            session,
            account,
            pending: Vec::new(),
            wire: Vec::new(),
            hold: false,
            not_receiving: false,
            unread: Vec::new(),
            jobs: VecDeque::new(),
            closed: None,
            disconnected: false,
            submitted: 0,
            completed: 0,
            events: Vec::new(),
        });
        self.run();
        self.conns.len() - 1
    }

    pub(crate) fn conn(&mut self, id: Id) -> &mut Conn {
        &mut self.conns[id]
    }

    /// Returns the export.
    pub(crate) fn export(&self) -> Arc<Export> {
        self.catalogue.find(&DISK.into()).unwrap()
    }

    /// Delivers bytes from the client.
    pub(crate) fn send(&mut self, id: Id, bytes: &[u8]) {
        let conn = &mut self.conns[id];
        if conn.closed.is_none() && !conn.disconnected {
            conn.pending.extend_from_slice(bytes);
        }
        self.run();
    }

    /// Delivers bytes from the client and returns the reply.
    pub(crate) fn exchange(&mut self, id: Id, bytes: &[u8]) -> Vec<u8> {
        self.send(id, bytes);
        self.received(id)
    }

    /// Returns what was sent since the last call.
    pub(crate) fn received(&mut self, id: Id) -> Vec<u8> {
        std::mem::take(&mut self.conns[id].wire)
    }

    /// Returns the number of bytes received and not consumed.
    pub(crate) fn waiting(&self, id: Id) -> usize {
        self.conns[id].pending.len()
    }

    /// Receives at most `size` bytes of payload, all `byte`, directly. Returns how many.
    pub(crate) fn receive_directly(&mut self, id: Id, byte: u8, size: usize) -> Option<usize> {
        let conn = &mut self.conns[id];
        if !conn.pending.is_empty() || conn.closed.is_some() || conn.disconnected {
            return None;
        }
        let mut window = conn.session.direct_recv()?;
        let end = window.end.min(window.start.saturating_add(size));
        window.buffer.bytes_mut()[window.start..end].fill(byte);
        let got = end - window.start;
        conn.session.direct_received(self.now, window, got);
        self.run();
        Some(got)
    }

    /// Advances the time and handles deadlines.
    pub(crate) fn advance(&mut self, time: Duration) {
        self.now += time;
        for conn in &mut self.conns {
            if conn.session.deadline().is_some_and(|deadline| deadline <= self.now) {
                conn.session.tick(self.now);
            }
        }
        self.run();
    }

    /// Completes a held disk request by its index.
    pub(crate) fn finish(&mut self, id: Id, which: usize, result: Result<(), Fault>) {
        let job = self.conns[id].jobs.remove(which).expect("held request");
        let contended = self.end(id, job, result);
        if contended {
            self.notify_all(Notice::StateChanged);
        }
        self.run();
    }

    /// Completes all held disk requests, and those that follow.
    pub(crate) fn finish_all(&mut self, id: Id) {
        while !self.conns[id].jobs.is_empty() {
            self.finish(id, 0, Ok(()));
        }
    }

    /// Makes the peer receive everything.
    pub(crate) fn receive_all(&mut self, id: Id) {
        self.conns[id].not_receiving = false;
        self.conns[id].unread.clear();
        self.run();
    }

    /// Notifies every session.
    pub(crate) fn notify(&mut self, notice: Notice) {
        self.notify_all(notice);
        self.run();
    }

    /// Disconnects the client.
    pub(crate) fn disconnect(&mut self, id: Id) {
        let conn = &mut self.conns[id];
        if !std::mem::replace(&mut conn.disconnected, true) {
            conn.session.notify(self.now, &Notice::Disconnected);
        }
        conn.unread.clear();
        self.run();
    }

    fn notify_all(&mut self, notice: Notice) {
        for conn in self.conns.iter_mut().filter(|conn| !conn.disconnected) {
            conn.session.notify(self.now, &notice);
        }
    }

    /// Runs until no session makes progress.
    pub(crate) fn run(&mut self) {
        loop {
            let (mut changed, mut busy) = (false, false);
            for id in 0..self.conns.len() {
                changed |= self.drain(id);
                busy |= self.offer(id);
            }
            if changed {
                self.notify_all(Notice::StateChanged);
            } else if !busy {
                return;
            }
        }
    }

    /// Executes all steps of a session. Returns whether the sessions must be notified.
    fn drain(&mut self, id: Id) -> bool {
        let mut changed = false;
        while let Some(step) = self.conns[id].session.poll() {
            let conn = &mut self.conns[id];
            match step {
                Step::Send(segment) => {
                    assert!(conn.closed.is_none(), "nothing is sent after the close");
                    segment.parts().iter().for_each(|part| conn.wire.extend_from_slice(part));
                    if conn.not_receiving {
                        conn.unread.push(segment);
                    }
                }
                Step::Submit(job) => {
                    assert!(conn.closed.is_none(), "no disk request after the close");
                    conn.submitted += 1;
                    match conn.hold {
                        true => conn.jobs.push_back(job),
                        false => changed |= self.execute(id, job),
                    }
                }
                Step::Report(event) => conn.events.push(event),
                Step::Notify => changed = true,
                Step::Close(reason) => {
                    assert_eq!(conn.closed.replace(reason), None, "closed once");
                    conn.pending.clear();
                }
            }
        }
        let conn = &self.conns[id];
        assert!(conn.account.held() <= conn.account.share(), "memory is bounded");
        changed
    }

    /// Passes received bytes to a session. Returns whether it consumed any.
    fn offer(&mut self, id: Id) -> bool {
        let conn = &mut self.conns[id];
        if conn.pending.is_empty() || conn.disconnected || !conn.session.can_receive() {
            return false;
        }
        let taken = conn.session.receive(self.now, &conn.pending);
        assert!(taken <= conn.pending.len());
        conn.pending.drain(..taken);
        taken > 0
    }

    fn execute(&mut self, id: Id, job: Admitted) -> bool {
        let result = self.faults.pop_front().unwrap_or(Ok(()));
        self.end(id, job, result)
    }

    fn end(&mut self, id: Id, mut job: Admitted, result: Result<(), Fault>) -> bool {
        let result = result.and_then(|()| apply(&mut self.disk, &mut job, self.reports_extents));
        let export = job.export().clone();
        let (ticket, outcome) = job.finish(result);
        self.conns[id].completed += 1;
        self.conns[id].session.complete(self.now, ticket, outcome);
        export.is_contended()
    }

    /// Ends every connection and disk request, and checks for leaks.
    pub(crate) fn end_all(mut self) {
        for id in 0..self.conns.len() {
            self.disconnect(id);
        }
        for id in 0..self.conns.len() {
            self.finish_all(id);
            let conn = &self.conns[id];
            assert_eq!(conn.submitted, conn.completed, "every request completed once");
            assert_eq!(conn.account.held(), 0, "no leaked memory");
        }
    }
}

impl Conn {
    /// Returns the reported events in short form.
    pub(crate) fn reported(&self) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::Attached { host, .. } => format!("attached {host}"),
            Event::Detached { reason, read, written, .. } => {
                format!("detached ({reason}) {read} {written}")
            }
            Event::Refused { wanted, .. } => format!("refused {wanted}"),
            Event::Violation { rule, .. } => format!("violation {rule}"),
            Event::Fault { op, offset, len, .. } => format!("fault {op} {offset} {len}"),
            Event::PairingRequested { .. } => "pairing requested".to_owned(),
        };
        self.events.iter().map(word).collect()
    }
}

/// Creates a peer, authenticated by that key if there is one.
pub(crate) fn peer(auth: Auth, key: Option<u64>) -> Peer {
    let channel = key.map(|key| {
        Arc::new(Channel {
            key: Some(KeyId::new(key)),
            certified: false,
            identity: String::new(),
            cipher: String::new(),
            binding: [0; 32],
        })
    });
    let address = |port| ([127, 0, 0, 1], port).into();
    Peer { channel, ..Peer::ip(address(1024), address(10809), auth) }
}

/// Creates a peer authenticated by a certificate with that name.
pub(crate) fn certified(name: &str) -> Peer {
    let channel = Channel {
        key: None,
        certified: true,
        identity: name.to_owned(),
        cipher: String::new(),
        binding: [0; 32],
    };
    Peer { channel: Some(Arc::new(channel)), ..peer(Auth::Required, None) }
}

/// Executes a disk request.
fn apply(disk: &mut [u8], job: &mut Admitted, reports_extents: bool) -> Result<(), Fault> {
    let start = usize::try_from(job.offset()).unwrap();
    let place = &mut disk[start..start + usize::try_from(job.len()).unwrap()];
    match job.op() {
        Op::Read => job.bytes_mut().copy_from_slice(place),
        Op::Write { .. } => place.copy_from_slice(job.bytes_mut()),
        Op::Zero { .. } | Op::Discard => place.fill(0),
        Op::Extents if !reports_extents => return Err(Fault::Unsupported),
        Op::Extents => {
            let mut extents = Extents::emit(job.bytes_mut());
            for block in place.chunks(512) {
                let hole = block.iter().all(|&byte| byte == 0);
                let extent = if hole { Extent::hole(512) } else { Extent::data(512) };
                if !extents.push(extent) {
                    break;
                }
            }
        }
        Op::Flush | Op::Prefetch => {}
    }
    Ok(())
}

/// Fills the free buffers of a pool with [`POISON`].
fn poison(pool: &Pool) {
    let accounts: Vec<Account> = (0..4).map(|_| pool.open()).collect();
    for class in 0..7 {
        let held: Vec<_> =
            accounts.iter().filter_map(|account| account.take(export::PAGE << class)).collect();
        for mut buffer in held {
            buffer.bytes_mut().fill(POISON);
        }
    }
}

/// Creates the export [`DISK`], `sda` for short.
pub(crate) fn disk(access: Access, block: u32, bytes: u64) -> Arc<Export> {
    named("/dev/sda", DISK, access, block, bytes)
}

/// Creates an export with that path and NQN.
pub(crate) fn named(path: &str, nqn: &str, access: Access, block: u32, bytes: u64) -> Arc<Export> {
    let geometry = Geometry::new(block, block).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap().into();
    let identity = Identity { uuid: [7; 16], serial: "serial".into(), ..Identity::default() };
    let mut export = Export::new(path, nqn, identity, geometry, bytes, file);
    (export.access, export.discard) = (access, true);
    Arc::new(export)
}

impl Conn {
    /// Returns whether the session is established.
    pub(crate) fn session_is_established(&self) -> bool {
        self.session.is_established()
    }
}
