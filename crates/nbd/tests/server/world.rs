//! An NBD server, driven in memory.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use export::{Access, Auth, Catalogue, Channel, Export, Identity, KeyId, Peer, Pool};
use nbd::server::{Server, Start};
use testkit::Driver;

pub(crate) use testkit::Id;

/// The NQN of the disk; its short name is `sda`.
pub(crate) const DISK: &str = "nqn.2014-08.org.nvmexpress:uuid:disk";

/// Size of the disk in bytes.
pub(crate) const SIZE: usize = 2 << 20;

/// The server, its connections and its disk.
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

impl World {
    /// Creates a server with one writable disk of [`SIZE`] bytes. Block n of 512 bytes is filled
    /// with n mod 199.
    pub(crate) fn new() -> Self {
        Self::with_pool(64 << 20)
    }

    /// Like [`World::new`] with a pool of `limit` bytes. Its free memory is poisoned.
    pub(crate) fn with_pool(limit: usize) -> Self {
        let pool = Pool::new(limit);
        testkit::poison(&pool);
        Self::of(pool)
    }

    /// Like [`World::new`] with that pool.
    pub(crate) fn of(pool: Pool) -> Self {
        let block = |at: usize| [u8::try_from(at % 199).unwrap(); 512];
        let world = Self::bare(pool, (0..SIZE / 512).flat_map(block).collect());
        world.catalogue.publish(disk(Access::Writable, 512, SIZE as u64));
        world
    }

    /// Creates a server with a small disk of zeros without poison, which is fast to create.
    pub(crate) fn small(bytes: usize, block: u32) -> Self {
        let world = Self::bare(Pool::new(8 << 20), vec![0; bytes]);
        world.catalogue.publish(disk(Access::Writable, block, bytes as u64));
        world
    }

    /// Creates a server without exports.
    fn bare(pool: Pool, disk: Vec<u8>) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        let server = Server::new(catalogue.clone());
        Self { server, catalogue, driver: Driver::new(pool, disk) }
    }

    /// Opens a connection without TLS.
    pub(crate) fn open(&mut self) -> Id {
        self.open_as(peer(Auth::None, None), Start::Hello)
    }

    /// Opens a connection of that peer.
    pub(crate) fn open_as(&mut self, peer: Peer, start: Start) -> Id {
        let account = self.pool.open();
        let session = self.server.session(peer, start, account.clone(), self.now);
        let id = self.add(session, account);
        self.run();
        id
    }

    /// Returns the export.
    pub(crate) fn export(&self) -> Arc<Export> {
        self.catalogue.find(&DISK.into()).unwrap()
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

/// Creates the export [`DISK`], `sda` for short.
pub(crate) fn disk(access: Access, block: u32, bytes: u64) -> Arc<Export> {
    named("/dev/sda", DISK, access, block, bytes)
}

/// Creates an export with that path and NQN.
pub(crate) fn named(path: &str, nqn: &str, access: Access, block: u32, bytes: u64) -> Arc<Export> {
    let identity = Identity { uuid: [7; 16], serial: "serial".into(), ..Identity::default() };
    let mut export = testkit::export(path, nqn, identity, (block, block), bytes);
    export.access = access;
    Arc::new(export)
}
