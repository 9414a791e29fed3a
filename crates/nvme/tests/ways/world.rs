//! Test harness: one disk and both protocols in memory. The test completes disk requests in any
//! order.

use std::sync::Arc;

use export::{Account, Auth, Catalogue, Export, Identity, Peer, Pool, Session};
use nbd::server::{Server, Start};
use nvme::command::{FabricsCommand, IoCommand, PropertySize};
use nvme::host::{Controller, Options, Payload};
use nvme::target::{Port, Target};
use nvme::wire::Sqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, Cc, ConnectData, Csts, property};
use testkit::{Driver, Xorshift64};

const DISK: &str = "nqn.2014-08.org.nvmexpress:uuid:disk";
const BLOCK: usize = 512;
const BLOCKS: usize = 16;

/// The attaching host.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Host {
    First,
    Second,
}

/// An attached disk, with the indexes of its connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conn {
    pub(crate) admin: Option<usize>,
    /// The first and the last connection for reads and writes.
    pub(crate) io: usize,
    pub(crate) last: usize,
    pub(crate) cntlid: u16,
}

enum Client {
    Nvme(Box<nvme::host::Queue>),
    Nbd(Box<nbd::client::Client>),
}

/// The host's end of a connection.
struct Connection {
    client: Client,
    open: bool,
    cntlid: u16,
    refused: bool,
    /// Status and result of the last request.
    done: Option<(bool, u64, Vec<u8>)>,
}

pub(crate) struct World {
    driver: Driver,
    export: Arc<Export>,
    target: Arc<Target>,
    server: Arc<Server>,
    connections: Vec<Connection>,
    memory: Account,
}

fn peer() -> Peer {
    let address = "192.0.2.9:50000".parse().unwrap();
    Peer::ip(address, address, Auth::None)
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let bytes = BLOCK * BLOCKS;
        let identity = Identity { uuid: [7; 16], serial: "SN1".into(), ..Identity::default() };
        let export = testkit::export("/dev/sda", DISK, identity, (512, 512), bytes as u64);
        let (export, catalogue) = (Arc::new(export), Arc::new(Catalogue::default()));
        catalogue.publish(export.clone());
        let mut driver = Driver::new(Pool::new(64 << 20), vec![0; bytes]);
        driver.random = Xorshift64::from_seed(seed);
        Self {
            driver,
            export,
            target: Target::new(catalogue.clone()),
            server: Server::new(catalogue),
            connections: Vec::new(),
            memory: Pool::new(1 << 30).open(),
        }
    }

    fn conn(&mut self, client: Client, session: impl Session + 'static, account: Account) -> usize {
        let connection = Connection { client, open: false, cntlid: 0, refused: false, done: None };
        self.connections.push(connection);
        let id = self.driver.add(session, account);
        self.driver.conn(id).hold = true;
        id
    }

    fn nvme_line(&mut self, options: Options, host: Host, cntlid: u16) -> usize {
        let host = match host {
            Host::First => "nqn.x:first",
            Host::Second => "nqn.x:second",
        };
        let data = ConnectData::emit([3; 16], cntlid, DISK, host).unwrap();
        let account = self.driver.pool.open();
        let session = self.target.session(peer(), Port::Any, account.clone(), self.driver.now);
        let client = Client::Nvme(Box::new(nvme::host::Queue::new(options, data)));
        self.conn(client, session, account)
    }

    // ---- connecting

    /// Sends Connect of an Admin queue.
    pub(crate) fn begin_association(&mut self, host: Host) -> usize {
        self.nvme_line(Options::admin(), host, CNTLID_DYNAMIC)
    }

    /// Selects the export by NBD.
    pub(crate) fn begin_nbd(&mut self) -> usize {
        let account = self.driver.pool.open();
        let session = self.server.session(peer(), Start::Hello, account.clone(), self.driver.now);
        let client = nbd::client::Client::new(nbd::client::Options::new("sda"));
        self.conn(Client::Nbd(Box::new(client)), session, account)
    }

    pub(crate) fn nbd(&mut self) -> Conn {
        let io = self.begin_nbd();
        self.wait_until_open(io);
        Conn { admin: None, io, last: io, cntlid: 0 }
    }

    /// Creates an association with `queues` I/O queues.
    pub(crate) fn attach(&mut self, host: Host, queues: u16) -> Conn {
        let admin = self.begin_association(host);
        self.wait_until_open(admin);
        let cntlid = self.connections[admin].cntlid;
        self.initialize(admin, cntlid);
        let all: Vec<usize> = (1..=queues).map(|qid| self.queue_of(host, cntlid, qid)).collect();
        Conn { admin: Some(admin), io: all[0], last: *all.last().unwrap(), cntlid }
    }

    /// Reconnects an I/O queue of the first host.
    pub(crate) fn queue(&mut self, _admin: usize, cntlid: u16, qid: u16) -> usize {
        self.queue_of(Host::First, cntlid, qid)
    }

    fn queue_of(&mut self, host: Host, cntlid: u16, qid: u16) -> usize {
        let io = self.nvme_line(Options::io(qid, 32, 0), host, cntlid);
        self.wait_until_open(io);
        io
    }

    fn wait_until_open(&mut self, conn: usize) {
        loop {
            self.run();
            assert!(!self.connections[conn].refused, "refused");
            if self.connections[conn].open {
                return;
            }
            assert!(self.complete_one(), "it waits for nothing");
        }
    }

    fn initialize(&mut self, admin: usize, cntlid: u16) {
        let mut controller = Controller::new(cntlid, 2);
        while let Some(ask) = controller.next_command() {
            let payload = match ask.len {
                0 => Payload::None,
                len => Payload::Receive(self.memory.take(len).unwrap()),
            };
            let (_, result, page) = self.command(admin, ask.sqe, payload);
            controller.complete(nvme::status::Status::SUCCESS, result, &page).unwrap();
            // CSTS.RDY waits for the disk.
            self.complete_one();
        }
    }

    fn command(&mut self, conn: usize, sqe: Sqe, payload: Payload) -> (bool, u64, Vec<u8>) {
        let Client::Nvme(queue) = &mut self.connections[conn].client else { panic!() };
        queue.submit(sqe, payload, 0).unwrap();
        self.run();
        self.connections[conn].done.take().expect("no answer")
    }

    fn configure(&mut self, admin: usize, enable: u32) {
        let cc = Cc::default().with_iosqes(6).with_iocqes(4).with_en(enable);
        let (attrib, offset) = (PropertySize::Four, property::CC);
        let set = FabricsCommand::PropertySet { attrib, offset, value: cc.0.into() };
        assert!(self.command(admin, set.emit(), Payload::None).0);
    }

    /// Clears CC.EN.
    pub(crate) fn reset(&mut self, conn: &Conn) {
        self.configure(conn.admin.unwrap(), 0);
    }

    /// Sets CC.EN, at once or after CSTS.RDY was cleared, and connects the first I/O queue.
    pub(crate) fn enable_again(&mut self, admin: usize, cntlid: u16) -> usize {
        let get =
            FabricsCommand::PropertyGet { attrib: PropertySize::Four, offset: property::CSTS };
        let mut waits = self.driver.random.below(2) == 0;
        while waits {
            let (_, csts, _) = self.command(admin, get.emit(), Payload::None);
            waits = Csts(u32::try_from(csts).unwrap()).rdy() == 1;
            assert!(!waits || self.complete_one(), "RDY stays for nothing");
        }
        self.initialize(admin, cntlid);
        self.queue_of(Host::First, cntlid, 1)
    }

    // ---- events

    /// Fills a block with a byte.
    pub(crate) fn write(&mut self, conn: usize, block: u64, version: u8) {
        let mut buffer = self.memory.take(BLOCK).unwrap();
        buffer.bytes_mut().fill(version);
        self.connections[conn].done = None;
        match &mut self.connections[conn].client {
            Client::Nvme(queue) => {
                let write = IoCommand::Write {
                    nsid: 1,
                    slba: block,
                    nlb: 1,
                    fua: false,
                    limited_retry: false,
                };
                queue.submit(write.emit(), Payload::Send(buffer.into()), 0).unwrap();
            }
            Client::Nbd(client) => {
                let (offset, len) = (block * BLOCK as u64, BLOCK);
                let buffer = buffer.into();
                let write =
                    nbd::client::Request::Write { offset, buffer, start: 0, len, durable: false };
                client.submit(write, 0).unwrap();
            }
        }
    }

    /// Returns whether the last request of a connection succeeded, if it has completed.
    pub(crate) fn done(&self, conn: usize) -> Option<bool> {
        self.connections[conn].done.as_ref().map(|done| done.0)
    }

    /// Returns the byte that a block is filled with.
    pub(crate) fn block(&self, block: u64) -> u8 {
        let start = usize::try_from(block).unwrap() * BLOCK;
        let bytes = &self.driver.disk[start..start + BLOCK];
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }

    pub(crate) fn is_open(&self, conn: usize) -> bool {
        self.connections[conn].open
    }

    /// Returns whether nothing is in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        self.driver.jobs.is_empty() && !self.export.has_orphans() && !self.export.is_being_written()
    }

    /// Sets the connections whose threads are busy: bytes and notifications are delayed.
    pub(crate) fn set_late(&mut self, late: &[usize]) {
        let conns = self.driver.conns.iter_mut().enumerate();
        conns.for_each(|(id, conn)| conn.late = late.contains(&id));
    }

    /// Breaks a connection, and notifies its session.
    pub(crate) fn cut(&mut self, conn: usize) {
        self.driver.disconnect(conn);
        self.driver.conn(conn).wire.clear();
        self.run();
    }

    /// Drops a session as after a panic; the driver notifies the others.
    pub(crate) fn drop_session(&mut self, conn: usize) {
        self.driver.drop_session(conn);
    }

    /// Breaks all connections.
    pub(crate) fn forget(&mut self) {
        (0..self.connections.len()).for_each(|conn| self.cut(conn));
        while self.complete_one() {
            self.run();
        }
        self.connections.clear();
        self.driver.conns.clear();
    }

    /// Completes a random disk request. Returns whether there was one.
    pub(crate) fn complete_one(&mut self) -> bool {
        self.driver.complete_any()
    }

    /// Runs until idle, without completing disk requests.
    pub(crate) fn run(&mut self) {
        let mut moved = true;
        while std::mem::take(&mut moved) {
            for (id, connection) in self.connections.iter_mut().enumerate() {
                let sent = connection.drain_client();
                self.driver.send(id, &sent);
                let wire = &mut self.driver.conn(id).wire;
                let taken = connection.receive(wire);
                wire.drain(..taken);
                moved |= taken != 0 || !sent.is_empty();
                if self.driver.is_finished(id) {
                    self.driver.drop_session(id);
                    moved = true;
                }
            }
        }
    }
}

impl Connection {
    /// Executes the steps of the client. Returns what it sends.
    fn drain_client(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        match &mut self.client {
            Client::Nvme(queue) => {
                while let Some(step) = queue.poll() {
                    match step {
                        nvme::host::Step::Send(part) => sent.extend(part.parts().concat()),
                        nvme::host::Step::Connected(response) => {
                            (self.open, self.cntlid) = (true, response.cntlid);
                        }
                        nvme::host::Step::Refused(..) => self.refused = true,
                        nvme::host::Step::Completed(done) => {
                            let page = done.buffer.map(|buffer| buffer.bytes().to_vec());
                            let well = done.status.is_success();
                            self.done = Some((well, done.result, page.unwrap_or_default()));
                        }
                        nvme::host::Step::Close(_) => {}
                    }
                }
            }
            Client::Nbd(client) => {
                while let Some(step) = client.poll() {
                    match step {
                        nbd::client::Step::Send(part) => sent.extend(part.parts().concat()),
                        nbd::client::Step::Opened(_) => self.open = true,
                        nbd::client::Step::Done(done) => {
                            self.done = Some((done.result.is_ok(), 0, Vec::new()));
                        }
                        nbd::client::Step::Refused(_) => self.refused = true,
                        _ => {}
                    }
                }
            }
        }
        sent
    }

    /// Passes bytes to the client. Returns how many it has consumed.
    fn receive(&mut self, bytes: &[u8]) -> usize {
        match &mut self.client {
            Client::Nvme(queue) => queue.receive(bytes),
            Client::Nbd(client) => client.receive(bytes),
        }
    }
}
