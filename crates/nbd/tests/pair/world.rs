//! Client and server in memory: the connection is two byte strings, the disk a `Vec<u8>`,
//! randomness a seed.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Access, Account, Admitted, Auth, Catalogue, Channel, Export, Extent, Extents, Fault, Geometry,
    Identity, KeyId, Notice, Op, Peer, Pool, Reason, Session as _,
};
use nbd::client::{Client, Done, End, ExportInfo, ListEntry, Options, Refusal, Request, Step};
use nbd::server::{Server, Session, Start};

/// Size of the disk in bytes.
pub(crate) const SIZE: usize = 2 << 20;

/// Client, server, connection and disk.
pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    server: Arc<Server>,
    pub(crate) disk: Vec<u8>,
    /// Results of the next disk requests.
    pub(crate) faults: VecDeque<Result<(), Fault>>,
    pub(crate) client: Client,
    session: Option<Session>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    /// Bytes delivered but not consumed, by server and client.
    arrived: (usize, usize),
    jobs: Vec<Admitted>,
    /// Disk requests do not complete while set.
    pub(crate) hold_disk: bool,
    /// Maximum number of bytes delivered at once.
    pub(crate) piece: usize,
    pub(crate) direct: bool,
    seed: u64,
    pool: Pool,
    pub(crate) memory: Account,
    pub(crate) events: Events,
    now: Instant,
}

/// Events of client and server.
#[derive(Default)]
pub(crate) struct Events {
    pub(crate) opened: Option<ExportInfo>,
    pub(crate) listed: Option<Vec<ListEntry>>,
    pub(crate) refused: Option<Refusal>,
    pub(crate) done: Vec<Done>,
    pub(crate) end: Option<End>,
    pub(crate) secure: bool,
    pub(crate) closed: Option<Reason>,
}

fn peer() -> Peer {
    let address = |port| ([127, 0, 0, 1], port).into();
    Peer::ip(address(1024), address(10809), Auth::None)
}

/// Creates the export `sda`.
pub(crate) fn export(access: Access) -> Export {
    let file = std::fs::File::open("/dev/null").unwrap().into();
    let geometry = Geometry::new(512, 4096).unwrap();
    let identity = Identity::default();
    let mut export = Export::new("/dev/sda", "nqn.x:sda", identity, geometry, SIZE as u64, file);
    (export.access, export.discard) = (access, true);
    export
}

impl World {
    /// Connects a client with these options to a server with a writable disk.
    pub(crate) fn new(options: Options) -> Self {
        Self::with(options, [export(Access::Writable)], peer(), Start::Hello)
    }

    /// Connects a client to a server with a read-only disk.
    pub(crate) fn read_only() -> Self {
        Self::with(Options::new("sda"), [export(Access::ReadOnly)], peer(), Start::Hello)
    }

    /// Connects a client inside TLS.
    pub(crate) fn tls_established(options: Options) -> Self {
        let channel = Channel {
            key: Some(KeyId::new(1)),
            certified: false,
            identity: String::new(),
            cipher: String::new(),
            binding: [0; 32],
        };
        let peer = Peer { channel: Some(Arc::new(channel)), ..peer() };
        let start = Start::InTls { no_zeroes: true };
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
            hold_disk: false,
            piece: 1 << 16,
            direct: false,
            seed: 0x9e37_79b9_7f4a_7c15,
            pool,
            memory: Pool::new(256 << 20).open(),
            events: Events::default(),
            now,
        };
        world.run();
        world
    }

    pub(crate) fn seed(&mut self, seed: u64) {
        self.seed = seed | 1;
    }

    /// Returns a pseudo-random number below `below`.
    pub(crate) fn random(&mut self, below: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        usize::try_from(self.seed >> 11).unwrap() % below.max(1)
    }

    /// Replaces the connection by a new one to the same server.
    pub(crate) fn reconnect(&mut self, options: Options) {
        self.notify(&Notice::Disconnected);
        self.run();
        self.client = Client::new(options);
        let account = self.pool.open();
        self.session = Some(self.server.session(peer(), Start::Hello, account, self.now));
        (self.to_server, self.to_client, self.arrived) = (Vec::new(), Vec::new(), (0, 0));
        self.events = Events::default();
        self.run();
    }

    pub(crate) fn notify(&mut self, notice: &Notice) {
        if let Some(session) = &mut self.session {
            session.notify(self.now, notice);
        }
        self.run();
    }

    /// Runs until neither side makes progress.
    pub(crate) fn run(&mut self) {
        loop {
            let progress = self.drain_client() | self.drain_server();
            let progress = progress
                | self.deliver_to_server()
                | self.deliver_to_client()
                | self.complete_one();
            if !progress {
                return;
            }
        }
    }

    fn drain_client(&mut self) -> bool {
        let mut progress = false;
        while let Some(step) = self.client.poll() {
            progress = true;
            match step {
                Step::Send(segment) => self.to_server.extend(segment.parts().concat()),
                Step::StartTls => self.events.secure = true,
                Step::Opened(opened) => self.events.opened = Some(*opened),
                Step::Listed(listed) => self.events.listed = Some(listed),
                Step::Refused(refusal) => self.events.refused = Some(refusal),
                Step::Done(done) => self.events.done.push(done),
                Step::Close(end) => assert_eq!(self.events.end.replace(end), None),
            }
        }
        progress
    }

    fn drain_server(&mut self) -> bool {
        let mut progress = false;
        let Some(session) = &mut self.session else { return false };
        while let Some(step) = session.poll() {
            progress = true;
            match step {
                export::Step::Send(segment) => self.to_client.extend(segment.parts().concat()),
                export::Step::Submit(job) => self.jobs.push(job),
                export::Step::Close(reason) => self.events.closed = Some(reason),
                export::Step::Report(_) | export::Step::Notify => {}
            }
        }
        progress
    }

    /// Returns how many bytes to deliver now.
    fn next_len(&mut self, waiting: usize) -> usize {
        let most = self.piece.min(waiting);
        if most == 0 { 0 } else { self.random(most) + 1 }
    }

    fn deliver_to_server(&mut self) -> bool {
        let next_len = self.next_len(self.to_server.len() - self.arrived.0);
        let Some(session) = &mut self.session else { return false };
        if self.events.closed.is_some() || !session.can_receive() {
            return false;
        }
        self.arrived.0 += next_len;
        if self.direct
            && self.arrived.0 != 0
            && let Some(mut window) = session.direct_recv()
        {
            let got = self.arrived.0.min(window.end - window.start);
            let place = window.start..window.start + got;
            window.buffer.bytes_mut()[place].copy_from_slice(&self.to_server[..got]);
            self.to_server.drain(..got);
            self.arrived.0 -= got;
            session.direct_received(self.now, window, got);
            return true;
        }
        let taken = session.receive(self.now, &self.to_server[..self.arrived.0]);
        self.to_server.drain(..taken);
        self.arrived.0 -= taken;
        next_len != 0 || taken != 0
    }

    fn deliver_to_client(&mut self) -> bool {
        let next_len = self.next_len(self.to_client.len() - self.arrived.1);
        self.arrived.1 += next_len;
        if self.direct
            && self.arrived.1 != 0
            && let Some(mut window) = self.client.direct_recv()
        {
            let got = self.arrived.1.min(window.end - window.start);
            let place = window.start..window.start + got;
            window.buffer.bytes_mut()[place].copy_from_slice(&self.to_client[..got]);
            self.to_client.drain(..got);
            self.arrived.1 -= got;
            self.client.direct_received(window, got);
            return true;
        }
        let taken = self.client.receive(&self.to_client[..self.arrived.1]);
        self.to_client.drain(..taken);
        self.arrived.1 -= taken;
        next_len != 0 || taken != 0
    }

    /// Completes a random disk request.
    fn complete_one(&mut self) -> bool {
        if self.hold_disk || self.jobs.is_empty() {
            return false;
        }
        let at = self.random(self.jobs.len());
        let mut job = self.jobs.swap_remove(at);
        let result = self.faults.pop_front().unwrap_or(Ok(()));
        let result = result.map(|()| execute(&mut self.disk, &mut job));
        let (ticket, outcome) = job.finish(result);
        if let Some(session) = &mut self.session {
            session.complete(self.now, ticket, outcome);
        }
        true
    }

    // ---- requests

    pub(crate) fn submit(&mut self, request: Request, tag: u32) {
        self.client.submit(request, tag).expect("submitted");
    }

    /// Submits one request and returns its completion.
    pub(crate) fn complete(&mut self, request: Request) -> Done {
        self.submit(request, 1);
        self.run();
        assert_eq!(self.events.done.len(), 1, "{:?} {:?}", self.events.end, self.events.closed);
        self.events.done.remove(0)
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        let buffer = self.memory.take(len).unwrap();
        let Done { result, buffer, .. } = self.complete(Request::Read { offset, buffer });
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
        self.complete(request).result.map_err(|error| error.errno)
    }
}

/// Executes a disk request.
fn execute(disk: &mut [u8], job: &mut Admitted) {
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
