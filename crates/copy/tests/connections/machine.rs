//! A target machine in this process: NVMe/TCP, NBD and iSCSI targets on the loopback device, with files as
//! disks.

use std::fs::File;
use std::io::{Read, Seek};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Dial, Transport};
use copy::EndpointError;
use engine::{Config, Engine, NegotiationStep, Negotiator, NextStep, Security};
use export::{Access, Auth, Catalogue, Export, Geometry, Identity, Peer, Session};
use nbd::server::{Next, Server, Start};
use nvme::target::{Port, Target};
use rustix::fs::{MemfdFlags, memfd_create};

/// Bytes of a disk.
pub(crate) const BYTES: usize = 8 << 20;

/// A machine with exports.
pub(crate) struct Machine {
    engine: Option<Engine>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) address: SocketAddr,
    /// The NBD address.
    pub(crate) nbd: SocketAddr,
    /// The iSCSI address.
    pub(crate) iscsi: SocketAddr,
    pub(crate) files: Vec<File>,
    /// Whether hosts must authenticate.
    pub(crate) keyed: bool,
    /// The access to exports.
    pub(crate) access: Access,
}

impl Machine {
    /// A machine without exports.
    pub(crate) fn new() -> Self {
        let catalogue = Arc::new(Catalogue::default());
        let any = ([127, 0, 0, 1], 0).into();
        let mut machine = Self {
            engine: None,
            catalogue,
            address: any,
            nbd: any,
            iscsi: any,
            files: Vec::new(),
            keyed: false,
            access: Access::Writable,
        };
        machine.start();
        machine
    }

    /// Exports one more disk; `number` is part of its names, and the seed of its contents.
    pub(crate) fn export_disk(&mut self, number: u8) -> Vec<u8> {
        let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("memory"));
        let bytes = crate::driver::pattern(number.into(), BYTES);
        file.write_all_at(&bytes, 0).expect("memory");
        self.export_file(number, &file);
        self.files.push(file);
        bytes
    }

    /// Exports a file as one more disk.
    pub(crate) fn export_file(&self, number: u8, file: &File) {
        let disk: OwnedFd = file.try_clone().expect("a descriptor").into();
        let identity = Identity {
            uuid: [number; 16],
            serial: format!("SN{number}"),
            model: format!("Model {number}"),
            ..Identity::default()
        };
        let geometry = Geometry::new(512, 4096).expect("a geometry");
        let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{number}");
        let path = format!("/images/disk{number}.img");
        let mut export = Export::new(&path, &nqn, identity, geometry, BYTES as u64, disk.into());
        export.access = self.access;
        export.discard = true;
        self.catalogue.publish(Arc::new(export));
    }

    /// The contents of a disk.
    pub(crate) fn bytes(&self, at: usize) -> Vec<u8> {
        let mut file = self.files[at].try_clone().expect("a descriptor");
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("memory");
        bytes
    }

    /// Starts to serve, at the same addresses as before.
    pub(crate) fn start(&mut self) {
        let target = Target::new(self.catalogue.clone());
        let open = Arc::new(move |peer, account, now| {
            Box::new(target.session(peer, Port::Any, account, now)) as Box<dyn Session>
        });
        let engine = Engine::start(Config::default(), Arc::new(|_| {})).expect("an engine");
        let auth = if self.keyed { Auth::Required } else { Auth::None };
        let security = Security { auth, plain: Arc::new(|| true), ..Security::open() };
        self.address = engine.listen(self.address, None, security, open).expect("a port");
        let server = Server::new(self.catalogue.clone());
        let open = Arc::new(move |peer, account, now| {
            Box::new(server.session(peer, Start::HelloSent, account, now)) as Box<dyn Session>
        });
        self.nbd = engine.listen(self.nbd, None, negotiation(), open).expect("a port");
        let server = iscsi::target::Server::new(self.catalogue.clone());
        let open = Arc::new(move |peer, account, now| {
            Box::new(server.session(peer, account, now)) as Box<dyn Session>
        });
        let security = Security::open();
        self.iscsi = engine.listen(self.iscsi, None, security, open).expect("a port");
        self.engine = Some(engine);
    }

    /// Stops serving.
    pub(crate) fn stop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop(Duration::from_millis(200));
        }
    }

    pub(crate) fn dial(&self) -> Dial {
        dial(self.address)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// NBD without TLS.
fn negotiation() -> Security {
    let greet = |_: &Peer| {
        let mut greeter = nbd::server::greet(false, false);
        Box::new(move |bytes: &[u8]| {
            let reaction = greeter.receive(bytes);
            assert_eq!(reaction.next, Next::Plain);
            NegotiationStep {
                consumed: reaction.consumed,
                reply: reaction.reply,
                next: NextStep::Plain,
            }
        }) as Negotiator
    };
    Security { negotiation: Some(Arc::new(greet)), ..Security::open() }
}

/// Connects to this address.
pub(crate) fn dial(address: SocketAddr) -> Dial {
    Arc::new(move || {
        let socket = TcpStream::connect(address);
        let socket = socket.map_err(|error| EndpointError::Temporary(error.to_string()))?;
        Ok(Box::new(socket) as Box<dyn Transport>)
    })
}

/// Retries until `attempt` succeeds or a timeout passes.
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + crate::driver::PATIENCE;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < until, "it never came to be");
        std::thread::sleep(Duration::from_millis(20));
    }
}
