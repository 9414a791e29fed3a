//! A minimal target: engine and NVMe or iSCSI target with one disk, in a process of its own.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::socket;
use anyhow::{Context, Result};
use engine::{Config, Driver, Engine, MakeSession};
use export::{
    Access, Backing, Base, Catalogue, Export, Geometry, Identity, Overlay, OverlayLayout, Session,
};
use nvme::target::{Port, Target};
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, open};

/// NQN of the one subsystem.
pub(crate) const NQN: &str = "nqn.2026-01.com.example:bench";

/// The disk.
#[derive(Debug, Clone)]
pub(crate) enum Disk {
    /// Reads zeros and discards writes.
    Null,
    /// In memory.
    Memory,
    /// A file with direct I/O.
    File(PathBuf),
    /// One of these with an overlay in memory, which all hosts share.
    Overlay(Box<Self>),
}

impl Disk {
    fn parse(text: &str) -> Self {
        match text {
            "null" => Self::Null,
            "memory" => Self::Memory,
            path => match path.strip_prefix(OVER) {
                Some(base) => Self::Overlay(Box::new(Self::parse(base))),
                None => Self::File(path.into()),
            },
        }
    }
}

/// Before the name of a disk: that disk with an overlay.
pub(crate) const OVER: &str = "over:";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Serve {
    /// `null`, `memory`, or the path of a file, which is made if it is not there and overwritten; with
    /// `over:` before it, an overlay in memory over that disk.
    pub(crate) disk: String,
    /// Which driver: auto, uring or blocking.
    #[arg(long, default_value = "auto")]
    pub(crate) io: String,
    /// The longest moment, in microseconds, for which a thread watches before it sleeps.
    #[arg(long, default_value_t = 50)]
    pub(crate) spin: u64,
    /// Serve it by iSCSI instead of NVMe/TCP.
    #[arg(long)]
    pub(crate) iscsi: bool,
    /// Processor that all threads are kept on.
    #[arg(long, default_value_t = 0)]
    pub(crate) processor: usize,
}

/// Bytes of the disk.
pub(crate) const SIZE: u64 = 1 << 28;

/// Returns IQN and LUN of the disk.
pub(crate) fn iscsi_name() -> String {
    format!("{}/0", iscsi::iqn::of(&NQN.into()))
}

/// Serves until end of file on standard input. Prints the port on standard output.
pub(crate) fn serve(options: &Serve) -> Result<()> {
    crate::processor::pin(options.processor)?;
    let disk = Disk::parse(&options.disk);
    let catalogue = Arc::new(Catalogue::default());
    catalogue.publish(Arc::new(lend(&disk)?));
    let driver = match options.io.as_str() {
        "uring" => Driver::Uring,
        "blocking" => Driver::Blocking,
        _ => Driver::Auto,
    };
    let spin = Duration::from_micros(options.spin);
    let engine = Engine::start(Config { driver, spin, ..Config::default() }, Arc::new(|_| {}))?;
    engine::tls::prepare()?;
    let sessions = sessions(catalogue, options.iscsi);
    let address = engine.listen(([127, 0, 0, 1], 0).into(), None, socket::security(), sessions)?;
    println!("{}", address.port());
    if options.iscsi {
        println!("iscsi://{address}/{}", iscsi_name());
    }
    std::io::stdout().flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    engine.stop(Duration::from_secs(5));
    Ok(())
}

fn sessions(catalogue: Arc<Catalogue>, iscsi: bool) -> MakeSession {
    if iscsi {
        let server = iscsi::target::Server::new(catalogue);
        return Arc::new(move |peer, account, now| Box::new(server.session(peer, account, now)));
    }
    let target = Target::new(catalogue);
    Arc::new(move |peer, account, now| {
        Box::new(target.session(peer, Port::Any, account, now)) as Box<dyn Session>
    })
}

pub(crate) fn lend(disk: &Disk) -> Result<Export> {
    let geometry = Geometry::new(512, 4096).context("no such block size")?;
    let identity = Identity { uuid: [0xbe; 16], ..Identity::default() };
    let mut export = Export::new("bench", NQN, identity, geometry, SIZE, backing(disk)?);
    export.access = Access::Writable;
    Ok(export)
}

fn backing(disk: &Disk) -> Result<Backing> {
    let Disk::Overlay(base) = disk else { return Ok(descriptor(disk)?.into()) };
    let data = memfd_create("data", MemfdFlags::CLOEXEC)?;
    ftruncate(&data, SIZE)?;
    let files = vec![data, memfd_create("map", MemfdFlags::CLOEXEC)?];
    let (is_private, is_durable) = (false, false);
    let layout = OverlayLayout { limit: 4 * SIZE, map_cost: 1, is_private, is_durable };
    let overlay = Overlay::new(files, layout).context("no overlay")?;
    Ok(Backing::over(Base::Raw(descriptor(base)?), overlay))
}

fn descriptor(disk: &Disk) -> Result<OwnedFd> {
    match disk {
        Disk::Overlay(base) => descriptor(base),
        Disk::Null => Ok(File::options().read(true).write(true).open("/dev/zero")?.into()),
        Disk::Memory => {
            let memory = File::from(memfd_create("bench", MemfdFlags::CLOEXEC)?);
            fill(&memory)?;
            Ok(memory.into())
        }
        Disk::File(path) => {
            let said = || format!("cannot open {}", path.display());
            fill(&File::create(path).with_context(said)?)?;
            let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
            open(path, flags, Mode::empty()).with_context(said)
        }
    }
}

/// Fills the file, so that it has no holes.
pub(crate) fn fill(file: &File) -> Result<()> {
    fill_to(file, SIZE)
}

pub(crate) fn fill_to(mut file: &File, size: u64) -> Result<()> {
    let chunk = vec![0xa5; 1 << 20];
    for _ in 0..size / chunk.len() as u64 {
        file.write_all(&chunk)?;
    }
    Ok(file.sync_data()?)
}
