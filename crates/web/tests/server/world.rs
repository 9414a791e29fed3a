//! An HTTP server, driven in memory.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::SystemTime;

use export::{
    Access, Auth, Backing, Catalogue, Channel, Export, Geometry, Identity, Notice, OverlayLayout,
    Peer, Pool,
};
use testkit::Driver;
use web::{Code, Server};

pub(crate) use testkit::Id;

/// The identifier of the disk; its short name is `sda`.
pub(crate) const DISK: &str = "disk";

/// The code for reading.
pub(crate) const CODE: &str = "0123-4567-89AB";

/// The time of day.
const NOW: SystemTime = SystemTime::UNIX_EPOCH;

/// Size of the disk in bytes: no multiple of the block size.
pub(crate) const SIZE: usize = (2 << 20) + 100;

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
    /// Creates a server with one read-only disk of [`SIZE`] bytes. Block n of 512 bytes is filled with n
    /// mod 199.
    pub(crate) fn new() -> Self {
        let world = Self::bare();
        world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE as u64));
        world
    }

    /// Creates a server without exports.
    pub(crate) fn bare() -> Self {
        Self::with_pool(Pool::new(64 << 20))
    }

    /// Creates a server without exports that uses memory of `pool`.
    pub(crate) fn with_pool(pool: Pool) -> Self {
        testkit::poison(&pool);
        let block = |at: usize| [u8::try_from(at % 199).unwrap(); 512];
        // The rest of the last block reads as zeros.
        let mut bytes: Vec<u8> = (0..=SIZE / 512).flat_map(block).collect();
        bytes[SIZE..].fill(0);
        bytes.resize(4 << 20, 0);
        let catalogue = Arc::new(Catalogue::default());
        let random = |bytes: &mut [u8]| bytes.fill(7);
        let server = Server::new(catalogue.clone(), "desk", Box::new(random), || NOW);
        server.set_code(Code::parse(CODE).unwrap());
        Self { server, catalogue, driver: Driver::new(pool, bytes) }
    }

    /// Opens a connection at a loopback address.
    pub(crate) fn open(&mut self) -> Id {
        self.open_as(peer(Auth::None))
    }

    /// Returns the response to a request on a new connection by TLS, where the code is required.
    pub(crate) fn ask(&mut self, request: &str) -> Response {
        let id = self.open_as(secure("10.0.0.2:1024"));
        let bytes = self.exchange(id, request.as_bytes());
        let (response, rest) = Response::parse(&bytes, request.starts_with("HEAD"));
        assert!(rest.is_empty(), "bytes after the response");
        response
    }

    /// Replaces the code.
    pub(crate) fn set_code(&mut self, code: &str) {
        self.server.set_code(Code::parse(code).unwrap());
        self.driver.notify(Notice::StateChanged);
    }

    /// Opens a connection of that peer.
    pub(crate) fn open_as(&mut self, peer: Peer) -> Id {
        let account = self.pool.open();
        let session = self.server.session(peer, account.clone(), self.now);
        self.add(session, account)
    }

    /// Returns the response to GET on a new connection.
    pub(crate) fn get(&mut self, path: &str, fields: &str) -> Response {
        let id = self.open();
        let bytes = self.exchange(id, get(path, fields).as_bytes());
        let (response, rest) = Response::parse(&bytes, false);
        assert!(rest.is_empty(), "bytes after the response");
        response
    }
}

/// Returns a GET request.
pub(crate) fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost:8080\r\n{fields}\r\n")
}

/// Returns a peer at this address that has connected by TLS, where the code is required.
pub(crate) fn secure(from: &str) -> Peer {
    let channel = Channel {
        key: None,
        certified: false,
        identity: String::new(),
        cipher: String::new(),
        binding: [0; 32],
    };
    let local = ([10, 0, 0, 1], 8443).into();
    Peer {
        channel: Some(Arc::new(channel)),
        ..Peer::ip(from.parse().unwrap(), local, Auth::Required)
    }
}

pub(crate) fn peer(auth: Auth) -> Peer {
    let address = |port| ([127, 0, 0, 1], port).into();
    Peer::ip(address(1024), address(8080), auth)
}

/// Creates the export [`DISK`], `sda` for short.
pub(crate) fn disk(access: Access, block: u32, bytes: u64) -> Arc<Export> {
    named("/dev/sda", DISK, access, block, bytes)
}

/// Creates an export with that path and identifier.
pub(crate) fn named(path: &str, id: &str, access: Access, block: u32, bytes: u64) -> Arc<Export> {
    let model = "Model <1>".to_owned();
    let identity = Identity { uuid: [7; 16], model, ..Identity::default() };
    let mut export = testkit::export(path, id, identity, (block, block), bytes);
    export.access = access;
    Arc::new(export)
}

/// Creates a writable export with an overlay: one for each host if `is_private`, else one for all.
pub(crate) fn overlaid(is_private: bool) -> Arc<Export> {
    let layout = OverlayLayout { limit: 1 << 20, map_cost: 1, is_private, is_durable: false };
    let file = |_| std::fs::File::open("/dev/null").unwrap().into();
    let backing = Backing::new(layout.into(), (0..3).map(file).collect()).unwrap();
    let (identity, geometry) = (Identity::default(), Geometry::new(512, 512).unwrap());
    let mut export = Export::new("/dev/sda", DISK, identity, geometry, 1 << 20, backing);
    export.access = Access::Writable;
    Arc::new(export)
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) code: u16,
    head: String,
    pub(crate) content: Vec<u8>,
}

impl Response {
    /// Parses a response. Returns the bytes after it.
    ///
    /// # Panics
    /// Panics if it is malformed, or not complete.
    pub(crate) fn parse(bytes: &[u8], to_head: bool) -> (Self, &[u8]) {
        let end = bytes.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let code = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let mut response = Self { code, head, content: Vec::new() };
        let len = match response.field("Content-Length") {
            Some(len) if !to_head => len.parse().unwrap(),
            _ => 0,
        };
        response.content = bytes[end..end + len].to_vec();
        (response, &bytes[end + len..])
    }

    /// Returns the value of a field, which is there once at most.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(field, _)| *field == name).map(|(_, value)| value);
        let value = values.next();
        assert_eq!(values.next(), None, "{name}");
        value
    }
}
