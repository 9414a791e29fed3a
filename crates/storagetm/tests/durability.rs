//! Durability, checked against a trace of the disk: the log filter of nbdkit records each write and
//! flush of an exported FUSE file, hosts write to it by each protocol, and every reply to a flush
//! or a FUA write must follow a flush of the disk that covers it. Then the trace is replayed with a
//! volatile cache and power cuts at 10,000 points, which must lose no acknowledged data.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "nbd/foreign.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod foreign;
#[path = "cases/host.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod host;
#[path = "serve/nbd_client.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod nbd_client;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "cases/scene.rs"]
#[allow(dead_code, reason = "shared with other tests, which need all of it")]
mod scene;

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::thread;

use client::{Deadline, Driver};
use export::{Account, Pool};
use foreign::{Background, lacks, next, program, wait_for};
use host::{NvmeClient, connect};
use iscsi::host::{Command, Data, Initiator, Options, Step};
use nbd_client::NbdClient;
use scene::{Folder, LAPTOP, LONG, Running};
use serde_json::Value;

const BLOCK: usize = 4096;
/// Writes of one host. Each is to its own block, so that the trace identifies it.
const WRITES: usize = 1000;
const HOSTS: usize = 6;
/// Points of the trace at which the power is cut.
const POWER_CUTS: usize = 10_000;

/// A request of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write { offset: usize, fua: bool },
    Flush,
}

/// A completed request, with the length of the trace before it was sent and after its reply.
#[derive(Debug, Clone, Copy)]
struct Answered {
    kind: Kind,
    sent: usize,
    replied: usize,
}

/// A request to the disk, with its range of bytes in the trace.
#[derive(Debug, Clone, Copy)]
struct Done {
    begun: usize,
    ended: usize,
}

/// The requests to the disk.
#[derive(Debug, Default)]
struct Trace {
    writes: HashMap<usize, Done>,
    flushes: Vec<Done>,
}

impl Trace {
    /// Parses the log of nbdkit-log-filter(1).
    fn parse(log: &str) -> Self {
        let (mut trace, mut open) = (Self::default(), HashMap::new());
        let mut at = 0;
        for line in log.split_inclusive('\n') {
            let begun = at;
            at += line.len();
            let field = |name: &str| {
                let (_, rest) = line.split_once(&format!("{name}="))?;
                rest.split_whitespace().next()
            };
            let key = (field("connection"), field(" id"));
            if line.contains(" ...Write ") || line.contains(" ...Flush ") {
                assert_eq!(field("return"), Some("0"), "{line}");
                let (offset, begun) = open.remove(&key).unwrap();
                let done = Done { begun, ended: at };
                match offset {
                    Some(offset) => drop(trace.writes.insert(offset, done)),
                    None => trace.flushes.push(done),
                }
            } else if line.contains(" Write ") {
                let offset = field("offset").and_then(|it| it.strip_prefix("0x")).unwrap();
                assert_eq!(field("count"), Some("0x1000"), "{line}");
                open.insert(key, (Some(usize::from_str_radix(offset, 16).unwrap()), begun));
            } else if line.contains(" Flush ") {
                open.insert(key, (None, begun));
            }
        }
        trace
    }

    /// Returns whether a flush began and ended between these points.
    fn is_flushed(&self, after: usize, before: usize) -> bool {
        self.flushes.iter().any(|flush| flush.begun >= after && flush.ended <= before)
    }

    /// Checks one reply against the writes that were completed before its request.
    fn check(&self, reply: &Answered, all: &[Answered]) {
        match reply.kind {
            Kind::Write { offset, fua } => {
                let write = self.writes[&offset];
                assert!(write.begun >= reply.sent && write.ended <= reply.replied, "{reply:?}");
                let durable = self.is_flushed(write.ended, reply.replied);
                assert!(!fua || durable, "FUA is answered before the flush: {reply:?}");
            }
            Kind::Flush => {
                let covered = all.iter().filter_map(|other| match other.kind {
                    Kind::Write { offset, .. } if other.replied < reply.sent => {
                        Some(self.writes[&offset].ended)
                    }
                    _ => None,
                });
                // A flush without a completed write before it has nothing to guarantee.
                let Some(last) = covered.max() else { return };
                let durable = self.is_flushed(last, reply.replied);
                assert!(
                    durable,
                    "a flush is answered before an earlier write is stable: {reply:?}"
                );
            }
        }
    }
}

/// A write, and from which points of the trace on it is on stable storage, and is promised to be.
struct Durability {
    begun: usize,
    stable: Option<usize>,
    promised: Option<usize>,
}

impl Trace {
    /// Returns when each write is stable and promised, with its offset.
    fn durability(&self, answered: &[Answered]) -> Vec<(usize, Durability)> {
        let flushes: Vec<&Answered> =
            answered.iter().filter(|reply| reply.kind == Kind::Flush).collect();
        let of = |reply: &Answered| {
            let Kind::Write { offset, fua } = reply.kind else { return None };
            let write = self.writes[&offset];
            let later = flushes.iter().filter(|flush| flush.sent > reply.replied);
            let flushed = later.map(|flush| flush.replied).min();
            let promised = flushed.into_iter().chain(fua.then_some(reply.replied)).min();
            let covering = self.flushes.iter().filter(|flush| flush.begun >= write.ended);
            let stable = covering.map(|flush| flush.ended).min();
            Some((offset, Durability { begun: write.begun, stable, promised }))
        };
        answered.iter().filter_map(of).collect()
    }

    /// Cuts the power at random points of a trace of this length. Of what is not stable then, any part is lost.
    /// Returns how many writes were lost in all.
    ///
    /// # Errors
    /// Fails if a promised write is lost, with its offset.
    fn cut_power(&self, answered: &[Answered], length: usize) -> Result<usize, usize> {
        let (writes, mut seed, mut lost) = (self.durability(answered), 0xc0_ffee, 0);
        let by = |point: Option<usize>, at: usize| point.is_some_and(|point| point <= at);
        for _ in 0..POWER_CUTS {
            let at = usize::try_from(next(&mut seed)).unwrap() % length;
            let mut luck = next(&mut seed);
            for (offset, write) in &writes {
                luck = luck.rotate_left(7);
                let survives = by(write.stable, at) || write.begun < at && luck.is_multiple_of(2);
                lost += usize::from(!survives && write.begun < at);
                if !survives && by(write.promised, at) {
                    return Err(*offset);
                }
            }
        }
        Ok(lost)
    }
}

/// Returns the block that a host writes at an offset.
fn stamp(offset: usize) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15 ^ offset as u64;
    (0..BLOCK / 8).flat_map(|_| next(&mut seed).to_le_bytes()).collect()
}

/// A host with the attached disk.
enum Attached {
    Nvme(Box<host::Attached<TcpStream>>),
    Nbd(NbdClient<TcpStream>),
    Iscsi(Box<IscsiDisk>),
}

/// A session with an iSCSI target.
struct IscsiDisk {
    driver: Driver<Initiator>,
    memory: Account,
}

impl IscsiDisk {
    fn log_in(address: SocketAddr, iqn: &str, number: u8) -> Self {
        let isid = [0x80, 0, 0, 0, 0, number];
        let options = Options::new("iqn.2026-01.org.example:host", Some(iqn), isid);
        let transport = Box::new(connect(address).unwrap());
        let mut driver = Driver::new(transport, Initiator::new(options)).unwrap();
        let step = driver.wait_for_step(Deadline::after(LONG)).unwrap();
        assert!(matches!(step, Step::LoggedIn), "{step:?}");
        let mut disk = Self { driver, memory: Pool::new(1 << 20).open() };
        // A new session may begin with a unit attention (SAM-5 §5.14).
        if disk.command(iscsi::host::disk::flush(), Data::None) != 0 {
            assert_eq!(disk.command(iscsi::host::disk::flush(), Data::None), 0);
        }
        disk
    }

    /// Returns the SCSI status.
    fn command(&mut self, cdb: [u8; 16], data: Data) -> u8 {
        let command = Command { cdb, lun: 0, data };
        self.driver.session_mut().submit(command, 0).unwrap();
        match self.driver.wait_for_step(Deadline::after(LONG)).unwrap() {
            Step::Done(done) => done.status,
            step => panic!("{step:?}"),
        }
    }

    fn write(&mut self, offset: usize, block: &[u8], fua: bool) {
        let mut buffer = self.memory.take(block.len()).unwrap();
        buffer.bytes_mut()[..block.len()].copy_from_slice(block);
        let blocks = u32::try_from(block.len() / 512).unwrap();
        let mut cdb = iscsi::host::disk::write((offset / 512) as u64, blocks);
        // SBC-4 §5.47: FUA.
        cdb[1] |= u8::from(fua) << 3;
        let data = Data::Out { buffer: Rc::new(buffer), start: 0, len: block.len() };
        assert_eq!(self.command(cdb, data), 0);
    }
}

impl Attached {
    fn write(&mut self, offset: usize, fua: bool) {
        let block = stamp(offset);
        match self {
            Self::Nvme(disk) => disk.write_blocks((offset / 512) as u64, &block, fua).unwrap(),
            Self::Nbd(client) => {
                assert_eq!(client.write_with(offset as u64, &block, fua).unwrap(), 0)
            }
            Self::Iscsi(disk) => disk.write(offset, &block, fua),
        }
    }

    fn flush(&mut self) {
        match self {
            Self::Nvme(disk) => disk.flush().unwrap(),
            Self::Nbd(client) => assert_eq!(client.flush().unwrap(), 0),
            Self::Iscsi(disk) => {
                assert_eq!(disk.command(iscsi::host::disk::flush(), Data::None), 0)
            }
        }
    }

    /// Sends the requests of this host, one at a time.
    fn run(mut self, host: usize, log: &Path) -> Vec<Answered> {
        let length = || usize::try_from(fs::metadata(log).unwrap().len()).unwrap();
        let mut seed = 0x5eed_0000 + host as u64;
        let mut answered = Vec::new();
        for offset in (host * WRITES..(host + 1) * WRITES).map(|block| block * BLOCK) {
            let fua = next(&mut seed).is_multiple_of(4);
            let sent = length();
            self.write(offset, fua);
            let kind = Kind::Write { offset, fua };
            answered.push(Answered { kind, sent, replied: length() });
            if next(&mut seed).is_multiple_of(8) {
                let sent = length();
                self.flush();
                answered.push(Answered { kind: Kind::Flush, sent, replied: length() });
            }
        }
        answered
    }
}

/// A file whose writes and flushes are logged.
struct Logged {
    file: String,
    log: String,
    programs: Vec<Background>,
}

impl Logged {
    fn new(folder: &Folder) -> Self {
        let (file, log, socket) = (folder.path("disk"), folder.path("log"), folder.path("socket"));
        let size = format!("{}M", (HOSTS * WRITES * BLOCK).div_ceil(1 << 20));
        let args = ["-f", "-U", &socket, "--filter=log", "memory", &size];
        let kit = Background::start(program("nbdkit").args(args).arg(format!("logfile={log}")));
        wait_for("a server", || UnixStream::connect(&socket).ok());
        File::create(&file).unwrap();
        let uri = format!("nbd+unix:///?socket={socket}");
        let fuse = Background::start(program("nbdfuse").args([&file, &uri]));
        wait_for("a mounted file", || fs::metadata(&file).ok().filter(|it| it.len() != 0));
        Self { file, log, programs: vec![fuse, kit] }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        // The first process holds the mount; the second serves it and is ended afterwards.
        self.programs.drain(..).for_each(Background::end);
    }
}

/// Addresses of the NVMe/TCP, the NBD and the iSCSI listener, and the NQN and the iSCSI name of the disk.
fn ready(running: &Running) -> ([SocketAddr; 3], String, String) {
    let events = running.until("ready");
    let port = |protocol: &str| {
        let is_it = |event: &&Value| event["protocol"] == protocol && event["event"] == "listening";
        let port = events.iter().find(is_it).unwrap()["port"].as_u64().unwrap();
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
    };
    let name = |field| events.iter().find_map(|event| event[field].as_str()).unwrap().to_owned();
    (["nvme-tcp", "nbd", "iscsi"].map(port), name("nqn"), name("iqn"))
}

#[test]
fn r05_r09_r11_replies_follow_the_flushes_they_promise() {
    let test = "replies follow the flushes they promise";
    if lacks(test, &["nbdkit", "nbdfuse"]) {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        return println!("skip {test}: no /dev/fuse here");
    }
    for io in ["uring", "blocking"] {
        let folder = Folder::new();
        let disk = Logged::new(&folder);
        let line = ["--no-announce", "--io", io, "--writable", &disk.file];
        let listen = ["nvme:127.0.0.1:0", "nbd:127.0.0.1:0", "iscsi:127.0.0.1:0"];
        let listen: Vec<&str> = listen.iter().flat_map(|it| ["--listen", it]).collect();
        let protocols = ["--protocol", "nvme,nbd,iscsi"];
        let running = Running::serve(&[&line[..], &protocols, &listen].concat());
        let ([nvme, nbd, iscsi], nqn, iqn) = ready(&running);
        let attach = |host: usize| match host % 3 {
            0 => {
                Attached::Nvme(Box::new(NvmeClient::new(LAPTOP, &nqn).attach_plain(nvme).unwrap()))
            }
            1 => {
                let number = u8::try_from(host).unwrap();
                Attached::Iscsi(Box::new(IscsiDisk::log_in(iscsi, &iqn, number)))
            }
            _ => {
                let mut client = NbdClient::connected(connect(nbd).unwrap()).unwrap();
                client.go("").unwrap().unwrap();
                Attached::Nbd(client)
            }
        };
        let log = Path::new(&disk.log);
        // A client is not `Send`: each thread makes its own.
        let answered: Vec<Answered> = thread::scope(|scope| {
            let attach = &attach;
            let hosts: Vec<_> =
                (0..HOSTS).map(|host| scope.spawn(move || attach(host).run(host, log))).collect();
            hosts.into_iter().flat_map(|host| host.join().unwrap()).collect()
        });
        let text = fs::read_to_string(log).unwrap();
        let trace = Trace::parse(&text);
        assert_eq!(trace.writes.len(), HOSTS * WRITES);
        answered.iter().for_each(|reply| trace.check(reply, &answered));
        let lost = trace.cut_power(&answered, text.len()).unwrap();
        println!("{io}: {POWER_CUTS} power cuts lost {lost} writes, none that was promised");
        assert!(lost > POWER_CUTS / 10, "most cuts lose what is in the cache");
        let file = File::open(&disk.file).unwrap();
        let mut block = vec![0; BLOCK];
        for offset in (0..HOSTS * WRITES).map(|block| block * BLOCK) {
            file.read_exact_at(&mut block, offset as u64).unwrap();
            assert!(block == stamp(offset), "another block at {offset}");
        }
        drop(running);
    }
}

#[test]
fn trace_without_flush_is_found() {
    let line = |text: &str| format!("2026-11-29 12:48:39.594205 connection=1 {text}\n");
    let written =
        line("Write id=1 offset=0x2000 count=0x1000 fua=0 ...") + &line("...Write id=1 return=0");
    let flushed = written.clone() + &line("Flush id=2 ...") + &line("...Flush id=2 return=0");
    let check = |log: &str, kind| {
        let trace = Trace::parse(log);
        let volatile = Kind::Write { offset: 0x2000, fua: false };
        let all = [Answered { kind: volatile, sent: 0, replied: written.len() }];
        let reply = Answered { kind, sent: written.len() + 1, replied: log.len() + 1 };
        let sent = if kind == Kind::Flush { reply.sent } else { 0 };
        let reply = Answered { sent, ..reply };
        let follows = std::panic::catch_unwind(|| trace.check(&reply, &all)).is_ok();
        let answered = if kind == Kind::Flush { vec![all[0], reply] } else { vec![reply] };
        let survives = trace.cut_power(&answered, log.len() + 100).is_ok();
        assert_eq!(follows, survives, "{kind:?}");
        follows
    };
    let durable = Kind::Write { offset: 0x2000, fua: true };
    for kind in [Kind::Flush, durable] {
        assert!(!check(&written, kind), "{kind:?}");
        assert!(check(&flushed, kind), "{kind:?}");
    }
}
