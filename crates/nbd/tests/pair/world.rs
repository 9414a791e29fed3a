//! Our client and our server face to face in memory: the connection is byte strings, the disk a `Vec<u8>`, chance a seed. It
//! knows the public faces of both sides and nothing of what is inside.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Access, Account, Admitted, Auth, Catalogue, Channel, Export, Extent, Extents, Fault, Geometry,
    Identity, KeyId, Notice, Op, Peer, Pool, Reason, Session as _,
};
use nbd::client::{Client, Done, End, Listing, Opened, Options, Refusal, Request, Step};
use nbd::server::{Server, Session, Start};

/// Bytes of a disk.
pub(crate) const SIZE: usize = 2 << 20;

/// Everything that a test plays with.
pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    server: Arc<Server>,
    pub(crate) disk: Vec<u8>,
    /// How the next requests of the disk end.
    pub(crate) faults: VecDeque<Result<(), Fault>>,
    pub(crate) client: Client,
    session: Option<Session>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    /// What has arrived and was not taken, of each.
    arrived: (usize, usize),
    jobs: Vec<Admitted>,
    /// Requests of the disk stay there.
    pub(crate) held: bool,
    /// Bytes arrive in pieces of at most this many.
    pub(crate) piece: usize,
    pub(crate) in_place: bool,
    seed: u64,
    pool: Pool,
    pub(crate) memory: Account,
    pub(crate) heard: Heard,
    now: Instant,
}

/// What the client told.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) opened: Option<Opened>,
    pub(crate) listed: Option<Vec<Listing>>,
    pub(crate) refused: Option<Refusal>,
    pub(crate) done: Vec<Done>,
    pub(crate) end: Option<End>,
    pub(crate) secure: bool,
    pub(crate) closed: Option<Reason>,
}

fn peer() -> Peer {
    let address = |port| ([127, 0, 0, 1], port).into();
    Peer { remote: address(1024), local: address(10809), auth: Auth::None, channel: None }
}

/// An export that is called `sda`.
pub(crate) fn export(access: Access) -> Export {
    let file = std::fs::File::open("/dev/null").unwrap().into();
    let geometry = Geometry::new(512, 4096).unwrap();
    let identity = Identity::default();
    let mut export = Export::new("/dev/sda", "nqn.x:sda", identity, geometry, SIZE as u64, file);
    (export.access, export.discard) = (access, true);
    export
}

impl World {
    /// A writable disk, and a client that opens itself like this.
    pub(crate) fn new(options: Options) -> Self {
        Self::with(options, [export(Access::Writable)], peer(), Start::Greet)
    }

    /// The same of a disk that may only be read.
    pub(crate) fn read_only() -> Self {
        Self::with(Options::new("sda"), [export(Access::ReadOnly)], peer(), Start::Greet)
    }

    /// A client that has come to a secured channel.
    pub(crate) fn secured(options: Options) -> Self {
        let channel = Channel {
            key: Some(KeyId::new(1)),
            certified: false,
            identity: String::new(),
            cipher: String::new(),
            binding: [0; 32],
        };
        let peer = Peer { channel: Some(Arc::new(channel)), ..peer() };
        let start = Start::Secured { no_zeroes: true };
        Self::with(options, [export(Access::Writable)], peer, start)
    }

    pub(crate) fn with(
        options: Options,
        exports: impl IntoIterator<Item = Export>,
        peer: Peer,
        start: Start,
    ) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        exports.into_iter().for_each(|export| catalogue.publish(Arc::new(export)));
        let (server, pool, now) =
            (Server::new(catalogue.clone()), Pool::new(8 << 20), Instant::now());
        let session = Some(server.session(peer, start, pool.open(), now));
        let mut world = Self {
            catalogue,
            server,
            disk: (0..SIZE).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect(),
            faults: VecDeque::new(),
            client: Client::new(options),
            session,
            to_server: Vec::new(),
            to_client: Vec::new(),
            arrived: (0, 0),
            jobs: Vec::new(),
            held: false,
            piece: 1 << 16,
            in_place: false,
            seed: 0x9e37_79b9_7f4a_7c15,
            pool,
            memory: Pool::new(256 << 20).open(),
            heard: Heard::default(),
            now,
        };
        world.run();
        world
    }

    pub(crate) fn seed(&mut self, seed: u64) {
        self.seed = seed | 1;
    }

    /// A number below `below`.
    pub(crate) fn random(&mut self, below: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        usize::try_from(self.seed >> 11).unwrap() % below.max(1)
    }

    /// Another client to the same server; nothing of the first is left.
    pub(crate) fn reconnect(&mut self, options: Options) {
        self.notify(&Notice::Disconnected);
        self.run();
        self.client = Client::new(options);
        let account = self.pool.open();
        self.session = Some(self.server.session(peer(), Start::Greet, account, self.now));
        (self.to_server, self.to_client, self.arrived) = (Vec::new(), Vec::new(), (0, 0));
        self.heard = Heard::default();
        self.run();
    }

    pub(crate) fn notify(&mut self, news: &Notice) {
        if let Some(session) = &mut self.session {
            session.notify(self.now, news);
        }
        self.run();
    }

    /// Runs until nothing moves any more.
    pub(crate) fn run(&mut self) {
        loop {
            let moved = self.drain_client() | self.drain_server();
            let moved = moved | self.deliver_to_server() | self.deliver_to_client() | self.work();
            if !moved {
                return;
            }
        }
    }

    fn drain_client(&mut self) -> bool {
        let mut moved = false;
        while let Some(step) = self.client.poll() {
            moved = true;
            match step {
                Step::Send(segment) => self.to_server.extend(segment.parts().concat()),
                Step::Secure => self.heard.secure = true,
                Step::Opened(opened) => self.heard.opened = Some(*opened),
                Step::Listed(listed) => self.heard.listed = Some(listed),
                Step::Refused(refusal) => self.heard.refused = Some(refusal),
                Step::Done(done) => self.heard.done.push(done),
                Step::Close(end) => assert_eq!(self.heard.end.replace(end), None),
            }
        }
        moved
    }

    fn drain_server(&mut self) -> bool {
        let mut moved = false;
        let Some(session) = &mut self.session else { return false };
        while let Some(step) = session.poll() {
            moved = true;
            match step {
                export::Step::Send(segment) => self.to_client.extend(segment.parts().concat()),
                export::Step::Submit(job) => self.jobs.push(job),
                export::Step::Close(reason) => self.heard.closed = Some(reason),
                export::Step::Report(_) | export::Step::Notify => {}
            }
        }
        moved
    }

    /// How many bytes arrive now.
    fn fresh(&mut self, waiting: usize) -> usize {
        let most = self.piece.min(waiting);
        if most == 0 { 0 } else { self.random(most) + 1 }
    }

    fn deliver_to_server(&mut self) -> bool {
        let fresh = self.fresh(self.to_server.len() - self.arrived.0);
        let Some(session) = &mut self.session else { return false };
        if self.heard.closed.is_some() || !session.can_receive() {
            return false;
        }
        self.arrived.0 += fresh;
        if self.in_place
            && self.arrived.0 != 0
            && let Some(mut landing) = session.direct_recv()
        {
            let got = self.arrived.0.min(landing.end - landing.start);
            let place = landing.start..landing.start + got;
            landing.buffer.bytes_mut()[place].copy_from_slice(&self.to_server[..got]);
            self.to_server.drain(..got);
            self.arrived.0 -= got;
            session.direct_received(self.now, landing, got);
            return true;
        }
        let taken = session.receive(self.now, &self.to_server[..self.arrived.0]);
        self.to_server.drain(..taken);
        self.arrived.0 -= taken;
        fresh != 0 || taken != 0
    }

    fn deliver_to_client(&mut self) -> bool {
        let fresh = self.fresh(self.to_client.len() - self.arrived.1);
        self.arrived.1 += fresh;
        if self.in_place
            && self.arrived.1 != 0
            && let Some(mut landing) = self.client.direct_recv()
        {
            let got = self.arrived.1.min(landing.end - landing.start);
            let place = landing.start..landing.start + got;
            landing.buffer.bytes_mut()[place].copy_from_slice(&self.to_client[..got]);
            self.to_client.drain(..got);
            self.arrived.1 -= got;
            self.client.direct_received(landing, got);
            return true;
        }
        let taken = self.client.receive(&self.to_client[..self.arrived.1]);
        self.to_client.drain(..taken);
        self.arrived.1 -= taken;
        fresh != 0 || taken != 0
    }

    /// Some request of the disk ends.
    fn work(&mut self) -> bool {
        if self.held || self.jobs.is_empty() {
            return false;
        }
        let at = self.random(self.jobs.len());
        let mut job = self.jobs.swap_remove(at);
        let result = self.faults.pop_front().unwrap_or(Ok(()));
        let result = result.map(|()| touch(&mut self.disk, &mut job));
        let (ticket, outcome) = job.finish(result);
        if let Some(session) = &mut self.session {
            session.complete(self.now, ticket, outcome);
        }
        true
    }

    // ---- requests

    pub(crate) fn submit(&mut self, request: Request, tag: u32) {
        self.client.submit(request, tag).expect("it can be asked");
    }

    /// One request, to its end.
    pub(crate) fn one(&mut self, request: Request) -> Done {
        self.submit(request, 1);
        self.run();
        assert_eq!(self.heard.done.len(), 1, "{:?} {:?}", self.heard.end, self.heard.closed);
        self.heard.done.remove(0)
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        let buffer = self.memory.take(len).unwrap();
        let Done { result, buffer, .. } = self.one(Request::Read { offset, buffer });
        result.map(|()| buffer.unwrap().bytes().to_vec()).map_err(|error| error.errno)
    }

    pub(crate) fn write_request(&self, offset: u64, bytes: &[u8]) -> Request {
        let mut buffer = self.memory.take(bytes.len()).unwrap();
        buffer.bytes_mut().copy_from_slice(bytes);
        let (start, len) = (0, bytes.len());
        Request::Write { offset, buffer: Rc::new(buffer), start, len, durable: false }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), u32> {
        let request = self.write_request(offset, bytes);
        self.one(request).result.map_err(|error| error.errno)
    }
}

/// Does to the bytes of the disk what a request asks for.
fn touch(disk: &mut [u8], job: &mut Admitted) {
    let start = usize::try_from(job.offset()).unwrap();
    let place = &mut disk[start..start + usize::try_from(job.len()).unwrap()];
    match job.op() {
        Op::Read => job.bytes_mut().copy_from_slice(place),
        Op::Write { .. } => place.copy_from_slice(job.bytes_mut()),
        Op::Zero { .. } | Op::Discard => place.fill(0),
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
}
