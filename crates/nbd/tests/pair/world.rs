//! Client and server in memory.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use export::{
    Access, Account, Auth, Catalogue, Channel, Export, Identity, KeyId, Notice, Peer, Pool, Reason,
};
use nbd::client::{Client, Done, End, ExportInfo, ListEntry, Options, Refusal, Request, Step};
use nbd::server::{Server, Start};
use testkit::{Chunks, Driver, Id, Stream, Xorshift64};

/// Size of the disk in bytes.
pub(crate) const SIZE: usize = 2 << 20;

/// Client, server, connection and disk.
pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    server: Arc<Server>,
    driver: Driver,
    /// The current connection.
    id: Id,
    pub(crate) client: Client,
    to_client: Stream,
    /// Disk requests do not complete while set.
    pub(crate) hold_disk: bool,
    pub(crate) memory: Account,
    pub(crate) events: Events,
}

impl Deref for World {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }
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
    let identity = Identity::default();
    let mut export = testkit::export("/dev/sda", "nqn.x:sda", identity, (512, 4096), SIZE as u64);
    export.access = access;
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
        let disk = (0..SIZE).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect();
        let mut driver = Driver::new(Pool::new(8 << 20), disk);
        driver.chunks = Chunks::UpTo(1 << 16);
        let mut world = Self {
            server: Server::new(catalogue.clone()),
            catalogue,
            driver,
            id: 0,
            client: Client::new(options),
            to_client: Stream::default(),
            hold_disk: false,
            memory: Pool::new(256 << 20).open(),
            events: Events::default(),
        };
        world.open(peer, start);
        world
    }

    fn open(&mut self, peer: Peer, start: Start) {
        let account = self.pool.open();
        let session = self.server.session(peer, start, account.clone(), self.now);
        self.id = self.driver.add(session, account);
        self.driver.conn(self.id).hold = true;
        self.run();
    }

    pub(crate) fn seed(&mut self, seed: u64) {
        self.random = Xorshift64::from_seed(seed);
    }

    /// Replaces the connection by a new one to the same server.
    pub(crate) fn reconnect(&mut self, options: Options) {
        self.driver.disconnect(self.id);
        self.run();
        (self.client, self.to_client) = (Client::new(options), Stream::default());
        self.events = Events::default();
        self.open(peer(), Start::Hello);
    }

    pub(crate) fn notify(&mut self, notice: Notice) {
        self.driver.notify(notice);
        self.run();
    }

    /// Runs until neither side makes progress.
    pub(crate) fn run(&mut self) {
        while self.drain_client()
            | self.driver.drain(self.id)
            | self.driver.deliver(self.id)
            | self.deliver_to_client()
            | (!self.hold_disk && self.driver.complete_any())
        {}
        self.events.closed = self.driver.conn(self.id).closed;
    }

    fn drain_client(&mut self) -> bool {
        let mut progress = false;
        while let Some(step) = self.client.poll() {
            progress = true;
            match step {
                Step::Send(segment) => self.driver.conn(self.id).incoming.push_segment(&segment),
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

    fn deliver_to_client(&mut self) -> bool {
        self.to_client.push(&self.driver.received(self.id));
        let fresh = self.to_client.arrive(self.driver.chunks, &mut self.driver.random);
        if self.driver.direct
            && !self.to_client.arrived().is_empty()
            && let Some(mut window) = self.client.direct_recv()
        {
            let got = self.to_client.fill(&mut window);
            self.client.direct_received(window, got);
            return true;
        }
        let taken = self.client.receive(self.to_client.arrived());
        self.to_client.consume(taken);
        fresh != 0 || taken != 0
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
