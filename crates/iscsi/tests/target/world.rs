//! An iSCSI target, driven in memory.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use export::{
    Access, Auth, Backing, Catalogue, Export, Geometry, Identity, OverlayLayout, Peer, Pool,
};
use iscsi::target::Server;
use testkit::Driver;

pub(crate) use testkit::Id;

/// The identifier of the disk.
pub(crate) const DISK: &str = "nqn.2026-01.org.example:disk";

/// The name of its target.
pub(crate) const TARGET: &str = "iqn.2026-01.org.example:disk";

/// Size of the disk in bytes.
pub(crate) const SIZE: usize = 2 << 20;

/// The target, its connections and its disk.
pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    server: Arc<Server>,
    driver: Driver,
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

/// Fills the challenges of CHAP.
#[allow(clippy::unnecessary_wraps, reason = "a source of random bytes")]
fn random(bytes: &mut [u8]) -> bool {
    bytes.fill(0x5a);
    true
}

impl World {
    /// Creates a target with one writable disk of [`SIZE`] bytes. Block n of 512 bytes is filled
    /// with n mod 199.
    pub(crate) fn new() -> Self {
        Self::with_pool(64 << 20)
    }

    /// Like [`World::new`] with a pool of `limit` bytes. Its free memory is poisoned.
    pub(crate) fn with_pool(limit: usize) -> Self {
        let pool = Pool::new(limit);
        testkit::poison(&pool);
        let block = |at: usize| [u8::try_from(at % 199).unwrap(); 512];
        let world = Self::bare(pool, (0..SIZE / 512).flat_map(block).collect());
        world.catalogue.publish(disk(DISK, Access::Writable, 512, SIZE as u64));
        world
    }

    /// Creates a target with one disk, to which each host has an overlay of its own.
    pub(crate) fn with_private_overlay() -> Self {
        let world = Self::bare(Pool::new(64 << 20), vec![0; SIZE]);
        let files = [(); 9].map(|()| std::fs::File::open("/dev/null").unwrap().into());
        let layout =
            OverlayLayout { limit: 1 << 20, map_cost: 1, is_private: true, is_durable: false };
        let backing = Backing::new(layout.into(), files.into()).unwrap();
        let (identity, geometry) = (Identity::default(), Geometry::new(512, 512).unwrap());
        let mut export = Export::new("overlay", DISK, identity, geometry, SIZE as u64, backing);
        export.access = Access::Writable;
        world.catalogue.publish(Arc::new(export));
        world
    }

    /// Creates a target with a small disk of zeros without poison, which is fast to create.
    pub(crate) fn small(bytes: usize, block: u32) -> Self {
        let world = Self::bare(Pool::new(64 << 20), vec![0; bytes]);
        world.catalogue.publish(disk(DISK, Access::Writable, block, bytes as u64));
        world
    }

    fn bare(pool: Pool, disk: Vec<u8>) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        let server = Server::with_random(catalogue.clone(), random);
        Self { server, catalogue, driver: Driver::new(pool, disk) }
    }

    /// Opens a connection to a listener without authentication.
    pub(crate) fn open(&mut self) -> Id {
        self.open_as(peer(Auth::None))
    }

    /// Opens a connection of that peer.
    pub(crate) fn open_as(&mut self, peer: Peer) -> Id {
        let account = self.pool.open();
        let session = self.server.session(peer, account.clone(), self.now);
        let id = self.add(session, account);
        self.run();
        id
    }
}

/// Creates a peer in clear text.
pub(crate) fn peer(auth: Auth) -> Peer {
    let address = |host, port| ([192, 0, 2, host], port).into();
    Peer::ip(address(9, 1024), address(1, 3260), auth)
}

/// Creates an export.
pub(crate) fn disk(id: &str, access: Access, block: u32, bytes: u64) -> Arc<Export> {
    let identity = Identity { uuid: [7; 16], serial: "serial".into(), ..Identity::default() };
    let mut export = testkit::export("/dev/sda", id, identity, (block, block), bytes);
    export.access = access;
    Arc::new(export)
}
