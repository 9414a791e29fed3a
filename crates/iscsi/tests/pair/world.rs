//! Initiator and target in memory.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use export::{
    Access, Account, Auth, Catalogue, Credential, Export, Host, Identity, KeyId, Peer, Policy,
    Pool, Reason, Rule, Secret,
};
use iscsi::chap::Algorithm;
use iscsi::host::disk::{self, DiskInfo, Probe};
use iscsi::host::{
    Command, Credentials, Data, DiscoveredTarget, Done, End, Initiator, Options, Refusal, Step,
};
use iscsi::target::Server;
use testkit::{Chunks, Driver, Id, Stream};

/// The initiator.
pub(crate) const HOST: &str = "iqn.2026-01.org.example:host";

/// The name of the target.
pub(crate) const TARGET: &str = "iqn.2026-01.org.example:disk";

/// The identifier of the disk of this target.
const DISK: &str = "nqn.2026-01.org.example:disk";

/// Block size in bytes.
pub(crate) const BLOCK: usize = 512;

/// Size of the disk in bytes.
pub(crate) const SIZE: usize = 2 << 20;

/// Initiator, target, connection and disk.
pub(crate) struct World {
    server: Arc<Server>,
    driver: Driver,
    /// The current connection.
    id: Id,
    pub(crate) initiator: Initiator,
    to_initiator: Stream,
    /// Bytes that initiator and target may still receive before the connection is lost.
    pub(crate) quota: [usize; 2],
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

/// Events of initiator and target.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) logged_in: bool,
    pub(crate) targets: Option<Vec<DiscoveredTarget>>,
    pub(crate) refused: Option<Refusal>,
    pub(crate) done: Vec<Done>,
    pub(crate) end: Option<End>,
    pub(crate) closed: Option<Reason>,
}

/// Options for a session with the disk.
pub(crate) fn options() -> Options {
    Options::new(HOST, Some(TARGET), [0x80, 1, 2, 3, 4, 5])
}

/// Credentials with all algorithms but MD5.
pub(crate) fn credentials(secret: &[u8], target: Option<&[u8]>) -> Credentials {
    let secret_of = |bytes: &[u8]| Secret::new(bytes.to_vec());
    Credentials {
        name: HOST.to_owned(),
        secret: secret_of(secret),
        target: target.map(secret_of),
        algorithms: vec![Algorithm::Sha256, Algorithm::Sha3_256, Algorithm::Sha1],
    }
}

fn export() -> Export {
    let identity = Identity { uuid: [7; 16], serial: "serial".into(), ..Identity::default() };
    let mut export = testkit::export("/dev/sda", DISK, identity, (512, 512), SIZE as u64);
    (export.access, export.discard) = (Access::Writable, true);
    export
}

impl World {
    /// Connects an initiator with these options to a target without authentication.
    pub(crate) fn new(options: Options) -> Self {
        Self::with(options, Vec::new(), [usize::MAX; 2])
    }

    /// Connects an initiator to a target that requires one of these credentials of it, if there are
    /// any. Initiator and target receive `quota` bytes at most.
    pub(crate) fn with(options: Options, credentials: Vec<Credential>, quota: [usize; 2]) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        catalogue.publish(Arc::new(export()));
        let auth = if credentials.is_empty() { Auth::None } else { Auth::Required };
        let rules = vec![Rule { disk: None, access: Access::Writable }];
        let (id, name, key) = (HOST.to_owned(), "laptop".to_owned(), KeyId::new(7));
        let host = Host { id, name, key, credentials, rules };
        catalogue.set_policy(Policy { hosts: vec![Arc::new(host)] });
        let disk = (0..SIZE / BLOCK).flat_map(|at| [u8::try_from(at % 251).unwrap(); BLOCK]);
        let disk = disk.collect();
        let mut driver = Driver::new(Pool::new(8 << 20), disk);
        driver.chunks = Chunks::UpTo(1 << 16);
        let mut world = Self {
            server: Server::new(catalogue),
            driver,
            id: 0,
            initiator: Initiator::new(options),
            to_initiator: Stream::default(),
            quota,
            memory: Pool::new(64 << 20).open(),
            events: Events::default(),
        };
        world.open(auth);
        if world.events.logged_in {
            world.probe();
        }
        world
    }

    /// Asks for the properties of the disk, as long as the connection lasts.
    pub(crate) fn probe(&mut self) -> Option<DiskInfo> {
        let mut probe = Probe::default();
        while let Some(cdb) = probe.next_command() {
            let data = self.data_in(disk::PROBE_LEN);
            self.submit(cdb, data, 0);
            self.run();
            probe.complete(&self.events.done.pop()?).unwrap();
        }
        Some(probe.finish())
    }

    fn open(&mut self, auth: Auth) {
        let account = self.pool.open();
        let address = |host, port| ([192, 0, 2, host], port).into();
        let peer = Peer::ip(address(9, 1024), address(1, 3260), auth);
        let session = self.server.session(peer, account.clone(), self.now);
        self.id = self.driver.add(session, account);
        self.driver.conn(self.id).hold = true;
        self.run();
    }

    /// Runs until neither side makes progress.
    pub(crate) fn run(&mut self) {
        while self.drain_initiator()
            | self.driver.drain(self.id)
            | self.driver.deliver(self.id)
            | self.deliver_to_initiator()
            | self.driver.complete_any()
        {}
        self.events.closed = self.driver.conn(self.id).closed;
    }

    fn drain_initiator(&mut self) -> bool {
        let mut progress = false;
        while let Some(step) = self.initiator.poll() {
            progress = true;
            match step {
                Step::Send(segment) => self.deliver_to_target(&segment.parts().concat()),
                Step::LoggedIn => self.events.logged_in = true,
                Step::Targets(targets) => self.events.targets = Some(targets),
                Step::Refused(refusal) => self.events.refused = Some(refusal),
                Step::Redirected(address) => panic!("redirected to {address}"),
                Step::Done(done) => self.events.done.push(done),
                Step::Close(end) => assert_eq!(self.events.end.replace(end), None),
            }
        }
        progress
    }

    fn deliver_to_target(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.quota[1])];
        self.quota[1] -= bytes.len();
        self.driver.conn(self.id).incoming.push(bytes);
    }

    /// Loses the connection, and connects again with the same options.
    pub(crate) fn reconnect(&mut self, options: Options) {
        self.driver.disconnect(self.id);
        self.initiator = Initiator::new(options);
        (self.to_initiator, self.events) = (Stream::default(), Events::default());
        self.quota = [usize::MAX; 2];
        self.open(Auth::None);
    }

    fn deliver_to_initiator(&mut self) -> bool {
        let mut bytes = self.driver.received(self.id);
        bytes.truncate(self.quota[0]);
        self.quota[0] -= bytes.len();
        self.to_initiator.push(&bytes);
        let fresh = self.to_initiator.arrive(self.driver.chunks, &mut self.driver.random);
        if self.driver.direct
            && !self.to_initiator.arrived().is_empty()
            && let Some(mut window) = self.initiator.direct_recv()
        {
            let got = self.to_initiator.fill(&mut window);
            self.initiator.direct_received(window, got);
            return true;
        }
        let taken = self.initiator.receive(self.to_initiator.arrived());
        self.to_initiator.consume(taken);
        fresh != 0 || taken != 0
    }

    // ---- commands

    pub(crate) fn submit(&mut self, cdb: [u8; 16], data: Data, tag: u32) {
        self.initiator.submit(Command { cdb, lun: 0, data }, tag).expect("submitted");
    }

    /// Returns whether the session takes the command.
    pub(crate) fn try_submit(&mut self, cdb: [u8; 16], data: Data, tag: u32) -> bool {
        self.initiator.submit(Command { cdb, lun: 0, data }, tag).is_ok()
    }

    /// Executes one command.
    pub(crate) fn complete(&mut self, cdb: [u8; 16], data: Data) -> Done {
        self.submit(cdb, data, 1);
        self.run();
        assert_eq!(self.events.done.len(), 1, "{:?}", self.events);
        self.events.done.remove(0)
    }

    pub(crate) fn data_in(&self, len: usize) -> Data {
        Data::In(Some(self.memory.take(len).unwrap()))
    }

    pub(crate) fn data_out(&self, bytes: &[u8]) -> Data {
        let mut buffer = self.memory.take(bytes.len()).unwrap();
        buffer.bytes_mut().copy_from_slice(bytes);
        Data::Out { buffer: Rc::new(buffer), start: 0, len: bytes.len() }
    }

    pub(crate) fn read(&mut self, lba: usize, blocks: usize) -> Vec<u8> {
        let data = self.data_in(blocks * BLOCK);
        let done = self.complete(disk::read(lba as u64, u32::try_from(blocks).unwrap()), data);
        assert_eq!((done.status, done.len), (0, blocks * BLOCK));
        done.buffer.unwrap().bytes().to_vec()
    }

    pub(crate) fn write(&mut self, lba: usize, bytes: &[u8]) -> Done {
        let blocks = u32::try_from(bytes.len() / BLOCK).unwrap();
        let data = self.data_out(bytes);
        self.complete(disk::write(lba as u64, blocks), data)
    }
}
