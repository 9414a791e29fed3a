//! A server in memory: a disk that is a `Vec<u8>`, connections that are byte strings, and time that only the test moves.
//! It knows the seam and the server's public face, and nothing of what is inside.

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

/// Bytes of the disk.
pub(crate) const SIZE: usize = 2 << 20;

/// What fills memory that nobody has written to; it must never be seen on the wire.
pub(crate) const POISON: u8 = 0xee;

/// Everything that a test plays with.
pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) disk: Vec<u8>,
    pub(crate) now: Instant,
    server: Arc<Server>,
    pool: Pool,
    pub(crate) conns: Vec<Conn>,
    /// How the next requests end.
    pub(crate) faults: VecDeque<Result<(), Fault>>,
    /// Whether the disk knows its extents: blocks of zeros are holes.
    pub(crate) knows_extents: bool,
}

/// One connection, from the driver's side.
pub(crate) struct Conn {
    pub(crate) session: Session,
    pub(crate) account: Account,
    /// Came and was not taken yet.
    stage: Vec<u8>,
    pub(crate) wire: Vec<u8>,
    /// Whether requests wait until the test ends them.
    pub(crate) hold: bool,
    /// Whether nothing is read from the wire: what was sent keeps its memory.
    pub(crate) deaf: bool,
    unread: Vec<export::Segment>,
    pub(crate) jobs: VecDeque<Admitted>,
    pub(crate) closed: Option<Reason>,
    pub(crate) disconnected: bool,
    pub(crate) submitted: usize,
    completed: usize,
    pub(crate) events: Vec<Event>,
}

/// Number of a connection in its world.
pub(crate) type Id = usize;

impl World {
    /// A world with one writable disk of [`SIZE`] bytes, whose block n of 512 bytes is filled with the byte n mod 199.
    pub(crate) fn new() -> Self {
        Self::with_pool(64 << 20)
    }

    /// The same with a pool of `limit` bytes. Its free memory is poisoned.
    pub(crate) fn with_pool(limit: usize) -> Self {
        let block = |at: usize| [u8::try_from(at % 199).unwrap(); 512];
        let bytes = (0..SIZE / 512).flat_map(block).collect();
        let world = Self::bare(limit, bytes);
        poison(&world.pool);
        world.catalogue.publish(disk(Access::Writable, 512, SIZE as u64));
        world
    }

    /// The same with that pool.
    pub(crate) fn of(pool: Pool) -> Self {
        Self { pool, ..Self::new() }
    }

    /// A world with a small disk of zeros and no poison: for tests that need many.
    pub(crate) fn small(bytes: usize, block: u32) -> Self {
        let world = Self::bare(8 << 20, vec![0; bytes]);
        world.catalogue.publish(disk(Access::Writable, block, bytes as u64));
        world
    }

    /// A world with no disk lent, but with these bytes for one.
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
            knows_extents: true,
        }
    }

    /// A new connection to an open auth, which the server greets.
    pub(crate) fn open(&mut self) -> Id {
        self.open_as(peer(Auth::None, None), Start::Hello)
    }

    /// A new connection of that peer.
    pub(crate) fn open_as(&mut self, peer: Peer, start: Start) -> Id {
        let account = self.pool.open();
        let session = self.server.session(peer, start, account.clone(), self.now);
        self.conns.push(Conn {
            session,
            account,
            stage: Vec::new(),
            wire: Vec::new(),
            hold: false,
            deaf: false,
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

    /// The export that is lent.
    pub(crate) fn export(&self) -> Arc<Export> {
        self.catalogue.find(DISK).unwrap()
    }

    /// Bytes come from the client.
    pub(crate) fn send(&mut self, id: Id, bytes: &[u8]) {
        let conn = &mut self.conns[id];
        if conn.closed.is_none() && !conn.disconnected {
            conn.stage.extend_from_slice(bytes);
        }
        self.run();
    }

    /// Bytes come, and everything that comes back of it is taken.
    pub(crate) fn ask(&mut self, id: Id, bytes: &[u8]) -> Vec<u8> {
        self.send(id, bytes);
        self.heard(id)
    }

    /// What came back since the last look.
    pub(crate) fn heard(&mut self, id: Id) -> Vec<u8> {
        std::mem::take(&mut self.conns[id].wire)
    }

    /// Bytes that came and were not taken.
    pub(crate) fn waiting(&self, id: Id) -> usize {
        self.conns[id].stage.len()
    }

    /// At most `size` bytes of payload, all `byte`, are received where they belong. Tells how many.
    pub(crate) fn land(&mut self, id: Id, byte: u8, size: usize) -> Option<usize> {
        let conn = &mut self.conns[id];
        if !conn.stage.is_empty() || conn.closed.is_some() || conn.disconnected {
            return None;
        }
        let mut landing = conn.session.direct_recv()?;
        let end = landing.end.min(landing.start.saturating_add(size));
        landing.buffer.bytes_mut()[landing.start..end].fill(byte);
        let got = end - landing.start;
        conn.session.direct_received(self.now, landing, got);
        self.run();
        Some(got)
    }

    /// Time passes, and deadlines with it.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        for conn in &mut self.conns {
            if conn.session.deadline().is_some_and(|deadline| deadline <= self.now) {
                conn.session.tick(self.now);
            }
        }
        self.run();
    }

    /// Ends a request that a connection holds, by its number in the order of asking.
    pub(crate) fn finish(&mut self, id: Id, which: usize, result: Result<(), Fault>) {
        let job = self.conns[id].jobs.remove(which).expect("a request is held");
        let contended = self.end(id, job, result);
        if contended {
            self.tell_all(Notice::StateChanged);
        }
        self.run();
    }

    /// Ends all requests that a connection holds, and those that it asks for then.
    pub(crate) fn finish_all(&mut self, id: Id) {
        while !self.conns[id].jobs.is_empty() {
            self.finish(id, 0, Ok(()));
        }
    }

    /// The client reads what was sent.
    pub(crate) fn listen(&mut self, id: Id) {
        self.conns[id].deaf = false;
        self.conns[id].unread.clear();
        self.run();
    }

    /// Tells every connection that something happened.
    pub(crate) fn notify(&mut self, news: Notice) {
        self.tell_all(news);
        self.run();
    }

    /// The client is gone.
    pub(crate) fn disconnect(&mut self, id: Id) {
        let conn = &mut self.conns[id];
        if !std::mem::replace(&mut conn.disconnected, true) {
            conn.session.notify(self.now, &Notice::Disconnected);
        }
        conn.unread.clear();
        self.run();
    }

    fn tell_all(&mut self, news: Notice) {
        for conn in self.conns.iter_mut().filter(|conn| !conn.disconnected) {
            conn.session.notify(self.now, &news);
        }
    }

    /// Carries out what the sessions ask for until all are content.
    pub(crate) fn run(&mut self) {
        loop {
            let (mut roused, mut busy) = (false, false);
            for id in 0..self.conns.len() {
                roused |= self.drain(id);
                busy |= self.offer(id);
            }
            if roused {
                self.tell_all(Notice::StateChanged);
            } else if !busy {
                return;
            }
        }
    }

    /// Takes every step of a session. Tells whether the others must be told.
    fn drain(&mut self, id: Id) -> bool {
        let mut roused = false;
        while let Some(step) = self.conns[id].session.poll() {
            let conn = &mut self.conns[id];
            match step {
                Step::Send(segment) => {
                    assert!(conn.closed.is_none(), "nothing is sent after the close");
                    segment.parts().iter().for_each(|part| conn.wire.extend_from_slice(part));
                    if conn.deaf {
                        conn.unread.push(segment);
                    }
                }
                Step::Submit(job) => {
                    assert!(conn.closed.is_none(), "nothing is asked of the disk after the close");
                    conn.submitted += 1;
                    match conn.hold {
                        true => conn.jobs.push_back(job),
                        false => roused |= self.carry_out(id, job),
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
        let conn = &self.conns[id];
        assert!(conn.account.held() <= conn.account.share(), "memory is bounded");
        roused
    }

    /// Offers a session what waits for it. Tells whether it took any.
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

    fn carry_out(&mut self, id: Id, job: Admitted) -> bool {
        let result = self.faults.pop_front().unwrap_or(Ok(()));
        self.end(id, job, result)
    }

    fn end(&mut self, id: Id, mut job: Admitted, result: Result<(), Fault>) -> bool {
        let result = result.and_then(|()| touch(&mut self.disk, &mut job, self.knows_extents));
        let export = job.export().clone();
        let (ticket, outcome) = job.finish(result);
        self.conns[id].completed += 1;
        self.conns[id].session.complete(self.now, ticket, outcome);
        export.is_contended()
    }

    /// Ends every connection and every request, and checks that nothing is left.
    pub(crate) fn end_all(mut self) {
        for id in 0..self.conns.len() {
            self.disconnect(id);
        }
        for id in 0..self.conns.len() {
            self.finish_all(id);
            let conn = &self.conns[id];
            assert_eq!(conn.submitted, conn.completed, "every request ended once");
            assert_eq!(conn.account.held(), 0, "all memory came back");
        }
    }
}

impl Conn {
    /// The names of what was reported, shortly.
    pub(crate) fn told(&self) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::Attached { host, .. } => format!("attached {host}"),
            Event::Detached { reason, read, written, .. } => {
                format!("detached ({reason}) {read} {written}")
            }
            Event::Refused { wanted, .. } => format!("refused {wanted}"),
            Event::Violation { rule, .. } => format!("violation {rule}"),
            Event::Fault { op, offset, len, .. } => format!("fault {op} {offset} {len}"),
            Event::PairingRequested { .. } => "knocked".to_owned(),
        };
        self.events.iter().map(word).collect()
    }
}

/// A peer, with a channel of that key if there is one.
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
    Peer { remote: address(1024), local: address(10809), auth, channel }
}

/// A peer that has shown a certificate with that name, where a key is needed.
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

/// Does to the bytes of the disk what a request asks for.
fn touch(disk: &mut [u8], job: &mut Admitted, knows_extents: bool) -> Result<(), Fault> {
    let start = usize::try_from(job.offset()).unwrap();
    let place = &mut disk[start..start + usize::try_from(job.len()).unwrap()];
    match job.op() {
        Op::Read => job.bytes_mut().copy_from_slice(place),
        Op::Write { .. } => place.copy_from_slice(job.bytes_mut()),
        Op::Zero { .. } | Op::Discard => place.fill(0),
        Op::Extents if !knows_extents => return Err(Fault::Unsupported),
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

/// Has the free buffers of a pool hold what was never meant for a client.
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

/// A disk, lent under the name [`DISK`], and `sda` for short.
pub(crate) fn disk(access: Access, block: u32, bytes: u64) -> Arc<Export> {
    named("/dev/sda", DISK, access, block, bytes)
}

/// A disk of that path and NQN.
pub(crate) fn named(path: &str, nqn: &str, access: Access, block: u32, bytes: u64) -> Arc<Export> {
    let geometry = Geometry::new(block, block).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap().into();
    let identity = Identity { uuid: [7; 16], serial: "serial".into(), ..Identity::default() };
    let mut export = Export::new(path, nqn, identity, geometry, bytes, file);
    (export.access, export.discard) = (access, true);
    Arc::new(export)
}

impl Conn {
    /// Whether the peer has been let in.
    pub(crate) fn session_is_established(&self) -> bool {
        self.session.is_established()
    }
}
