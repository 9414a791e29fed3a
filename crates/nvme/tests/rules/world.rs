//! Test harness: an NVMe/TCP target, driven in memory.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use export::{Access, Auth, Catalogue, Export, Host, Identity, Peer, Policy, Pool};
use nvme::auth::AuthConfig;
use nvme::target::{Port, Target};
use nvme::tcp::{Deframer, Pdu, Piece, Side, pdu};
use nvme::wire::completion::Cqe;
use testkit::Driver;

pub(crate) use testkit::Id;

/// The subsystem of the disk.
pub(crate) const DISK: &str = "nqn.2014-08.org.nvmexpress:uuid:disk";

/// Blocks of the disk, of 512 bytes: 2 MiB.
pub(crate) const BLOCKS: u64 = 4096;

/// Size of the disk of [`World::small`].
const SMALL: usize = 1 << 17;

/// State of a test.
pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    target: Arc<Target>,
    driver: Driver,
    /// Of each connection.
    readers: Vec<Deframer>,
    pub(crate) port: Port,
    /// Listener of new connections.
    pub(crate) auth: Auth,
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

impl World {
    /// One writable disk, whose block n is filled with the byte n mod 199.
    pub(crate) fn new() -> Self {
        Self::with_pool(64 << 20)
    }

    /// Like [`World::new`], with a pool of `limit` bytes whose free memory is poisoned.
    pub(crate) fn with_pool(limit: usize) -> Self {
        let pool = Pool::new(limit);
        testkit::poison(&pool);
        let block = |at: u64| [u8::try_from(at % 199).unwrap(); 512];
        let world = Self::bare(pool, (0..BLOCKS).flat_map(block).collect());
        world.catalogue.publish(disk(Access::Writable, 512));
        world
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
        let world = Self::bare(Pool::new(limit), vec![0; SMALL]);
        world.publish_small(disk(Access::Writable, 512));
        world
    }

    /// A target without exports.
    fn bare(pool: Pool, disk: Vec<u8>) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        let target = Target::new(catalogue.clone());
        let driver = Driver::new(pool, disk);
        Self { catalogue, target, driver, readers: Vec::new(), port: Port::Any, auth: Auth::None }
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
        self.readers.push(Deframer::new(Side::Host, 0));
        self.add(session, account)
    }

    /// Returns the buffer memory held by all connections in bytes.
    pub(crate) fn held(&self) -> usize {
        self.conns.iter().map(|conn| conn.account.held()).sum()
    }

    /// Drops the newest connection, which is closed and holds nothing.
    pub(crate) fn forget(&mut self, id: Id) {
        let conn = self.conns.pop().unwrap();
        self.readers.pop();
        assert_eq!((id, conn.disconnected), (self.conns.len(), true));
        assert_eq!((conn.submitted, conn.account.held()), (conn.completed, 0));
    }

    /// Returns the replies on a connection since the last call.
    pub(crate) fn replies(&mut self, id: Id) -> Vec<Reply> {
        let bytes = self.received(id);
        parse(&mut self.readers[id], &bytes)
    }
}

/// Returns the export [`DISK`]: [`BLOCKS`] times 512 bytes, with blocks of `block` bytes.
pub(crate) fn disk(access: Access, block: u32) -> Arc<Export> {
    let identity = Identity { uuid: [7; 16], serial: "serial".into(), ..Identity::default() };
    let mut export = testkit::export("disk", DISK, identity, (block, block), BLOCKS * 512);
    (export.access, export.discard_zeroes) = (access, true);
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
