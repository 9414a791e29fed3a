//! A toy protocol for tests of the drivers: a session and a client.
//!
//! A command is sixteen bytes: operation, flag, two unused, tag, first block, length in bytes
//! (little-endian, four bytes each); the data of a write follow. An answer is sixteen bytes: tag,
//! status, length, unused; the data of a read follow.

#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod tunnel;

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use engine::{Config, Driver, Engine, Limits, MakeSession, Security};
use export::{
    Access, Account, Admitted, Body, Buffer, DirectRecv, Event, Exclusive, Export, Extent, Extents,
    Fence, Geometry, Grant, Head, Identity, Notice, Op, Outcome, Reason, Request, Segment, Session,
    Step, Ticket,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

pub(crate) const BLOCK: usize = 512;
const HEADER: usize = 16;
/// Buffer size for the extents of an answer: sixteen of them.
const MAP: usize = 256;

/// What the sessions of a test did.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) opened: AtomicUsize,
    pub(crate) submitted: AtomicUsize,
    pub(crate) completed: AtomicUsize,
    pub(crate) landed: AtomicUsize,
    pub(crate) changed: AtomicUsize,
    pub(crate) stopping: AtomicUsize,
    pub(crate) disconnected: AtomicUsize,
    pub(crate) ticks: AtomicUsize,
    pub(crate) dropped: AtomicUsize,
    /// Threads that hang until they are released.
    pub(crate) hanging: AtomicUsize,
    pub(crate) released: AtomicBool,
    /// Sessions whose contract the driver has violated.
    pub(crate) violations: AtomicUsize,
}

impl Log {
    pub(crate) fn read(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::SeqCst)
    }

    fn add(counter: &AtomicUsize, n: usize) {
        counter.fetch_add(n, Ordering::SeqCst);
    }
}

struct Toy {
    log: Arc<Log>,
    grant: Grant,
    account: Account,
    steps: VecDeque<Step>,
    state: State,
    under_way: HashMap<u32, Entry>,
    next: u32,
    deadline: Option<(Instant, Duration)>,
    established: bool,
    landing_out: bool,
    closing: bool,
    stopping: bool,
    disconnected: bool,
}

enum State {
    Header,
    /// Waits for memory.
    WaitingForMemory(Command),
    Payload(Command, Buffer, usize),
    /// The payload is being received directly.
    ReceivingDirect(Command),
}

#[derive(Clone, Copy)]
struct Command {
    op: u8,
    flag: u8,
    tag: u32,
    lba: u32,
    len: u32,
}

struct Entry {
    tag: u32,
    alone: Option<Exclusive>,
}

impl Command {
    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Self { op: bytes[0], flag: bytes[1], tag: word(4), lba: word(8), len: word(12) }
    }

    fn emit(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        (bytes[0], bytes[1]) = (self.op, self.flag);
        bytes[4..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.lba.to_le_bytes());
        bytes[12..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    fn disk_op(self) -> Op {
        let durable = self.flag != 0;
        match self.op {
            b'R' => Op::Read,
            b'F' => Op::Flush,
            b'Z' => Op::Zero { unmap: true, durable, fast: false },
            b'D' => Op::Discard,
            b'Q' => Op::Zero { unmap: durable, durable: false, fast: true },
            b'M' => Op::Extents,
            b'G' => Op::Prefetch,
            _ => Op::Write { durable },
        }
    }
}

impl Toy {
    fn answer(&mut self, tag: u32, status: u32, body: Option<Buffer>) {
        let len = body.as_ref().map_or(0, Buffer::len);
        let mut head = Head::new(&tag.to_le_bytes());
        head.push(&status.to_le_bytes());
        head.push(&u32::try_from(len).unwrap().to_le_bytes());
        head.push(&[0; 4]);
        self.steps.push_back(Step::Send(match body {
            Some(body) => Segment::with_body(head, Body::Whole(body), 0, len),
            None => Segment::head(head),
        }));
    }

    fn begin(&mut self, command: Command) {
        match command.op {
            b'R' | b'W' | b'A' | b'M' => self.state = State::WaitingForMemory(command),
            b'F' | b'Z' | b'D' | b'Q' | b'G' => self.submit(command, None),
            b'N' => {
                self.steps.push_back(Step::Notify);
                self.answer(command.tag, 0, None);
            }
            b'P' => panic!("as the test wants it"),
            b'H' => {
                self.submit(Command { op: b'D', ..command }, None);
                Log::add(&self.log.hanging, 1);
                while !self.log.released.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            b'C' => {
                self.answer(command.tag, 0, None);
                self.close(Reason::Ended);
            }
            _ => {
                self.established |= command.op == b'X';
                self.answer(command.tag, 0, None);
            }
        }
        self.feed();
    }

    /// Allocates the buffer of a command that waits for memory.
    fn feed(&mut self) {
        let State::WaitingForMemory(command) = self.state else { return };
        let len = if command.op == b'M' { MAP } else { command.len as usize };
        let Some(buffer) = self.account.take(len) else { return };
        self.state = State::Header;
        if command.op == b'R' || command.op == b'M' {
            self.submit(command, Some(buffer));
        } else {
            self.state = State::Payload(command, buffer, 0);
        }
    }

    fn submit(&mut self, command: Command, buffer: Option<Buffer>) {
        let ticket = Ticket::new(self.next);
        let alone = (command.op == b'A').then(|| Exclusive::claim(self.grant.export()).unwrap());
        let blocks = u64::from(command.len) / BLOCK as u64;
        let op = command.disk_op();
        let request = Request { op, lba: u64::from(command.lba), blocks, buffer, ticket };
        let admitted = match &alone {
            Some(right) => self.grant.admit_exclusive(request, right),
            None => self.grant.admit(request),
        };
        match admitted {
            Ok(admitted) => self.go(command.tag, alone, admitted),
            Err(denied) => self.answer(command.tag, 100 + denied.fault as u32, None),
        }
    }

    fn go(&mut self, tag: u32, alone: Option<Exclusive>, admitted: Admitted) {
        Log::add(&self.log.submitted, 1);
        self.under_way.insert(self.next, Entry { tag, alone });
        self.next += 1;
        self.steps.push_back(Step::Submit(admitted.allow_in_place(true)));
    }

    fn close(&mut self, reason: Reason) {
        if !std::mem::replace(&mut self.closing, true) {
            self.steps.push_back(Step::Close(reason));
        }
    }

    fn payload_came(&mut self, command: Command, buffer: Buffer, filled: usize) {
        if filled == buffer.len() {
            self.state = State::Header;
            self.submit(command, Some(buffer));
        } else {
            self.state = State::Payload(command, buffer, filled);
        }
    }

    fn check(&self, rule: bool) {
        if !rule {
            Log::add(&self.log.violations, 1);
        }
    }
}

impl Session for Toy {
    fn receive(&mut self, _: Instant, bytes: &[u8]) -> usize {
        self.check(!self.landing_out && !self.disconnected && !bytes.is_empty());
        match std::mem::replace(&mut self.state, State::Header) {
            State::Header if bytes.len() < HEADER => 0,
            State::Header => {
                self.begin(Command::parse(bytes));
                HEADER
            }
            State::Payload(command, mut buffer, filled) => {
                let n = bytes.len().min(buffer.len() - filled);
                buffer.bytes_mut()[filled..filled + n].copy_from_slice(&bytes[..n]);
                self.payload_came(command, buffer, filled + n);
                n
            }
            state @ (State::WaitingForMemory(_) | State::ReceivingDirect(_)) => {
                self.state = state;
                self.check(false);
                0
            }
        }
    }

    fn complete(&mut self, _: Instant, ticket: Ticket, outcome: Outcome) {
        Log::add(&self.log.completed, 1);
        let Some(entry) = self.under_way.remove(&ticket.number()) else {
            return self.check(false);
        };
        if self.disconnected {
            return;
        }
        if entry.alone.is_some() {
            self.steps.push_back(Step::Notify);
        }
        match outcome.result {
            Ok(()) => self.answer(entry.tag, 0, outcome.buffer.filter(|_| is_read(entry.tag))),
            Err(fault) => self.answer(entry.tag, 100 + fault as u32, None),
        }
    }

    fn notify(&mut self, _: Instant, notice: &Notice) {
        match notice {
            Notice::StateChanged => Log::add(&self.log.changed, 1),
            Notice::Stopping => {
                Log::add(&self.log.stopping, 1);
                self.stopping = true;
            }
            Notice::Disconnected => {
                self.check(!self.disconnected);
                Log::add(&self.log.disconnected, 1);
                self.disconnected = true;
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        let Some((at, every)) = self.deadline else { return self.check(false) };
        self.check(at <= now);
        Log::add(&self.log.ticks, 1);
        self.deadline = Some((now + every, every));
    }

    fn poll(&mut self) -> Option<Step> {
        self.feed();
        if self.stopping && self.under_way.is_empty() {
            self.close(Reason::Stopping);
        }
        self.steps.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline.map(|(at, _)| at)
    }

    fn can_receive(&self) -> bool {
        !self.closing && !self.stopping && !matches!(self.state, State::WaitingForMemory(_))
    }

    fn is_established(&self) -> bool {
        self.established
    }

    fn fence(&self) -> Option<&Arc<Fence>> {
        Some(self.grant.fence())
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Payload(command, buffer, start) => {
                self.state = State::ReceivingDirect(command);
                self.landing_out = true;
                let end = buffer.len();
                Some(DirectRecv { buffer, start, end, token: command.tag })
            }
            state => {
                self.state = state;
                None
            }
        }
    }

    fn direct_received(&mut self, _: Instant, direct_recv: DirectRecv, got: usize) {
        self.landing_out = false;
        Log::add(&self.log.landed, got);
        let State::ReceivingDirect(command) = std::mem::replace(&mut self.state, State::Header)
        else {
            return self.check(false);
        };
        self.check(direct_recv.token == command.tag);
        self.payload_came(command, direct_recv.buffer, direct_recv.start + got);
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.check(self.under_way.is_empty() && self.disconnected);
        Log::add(&self.log.dropped, 1);
    }
}

/// Tags of reads have this bit.
const READ: u32 = 1 << 31;

fn is_read(tag: u32) -> bool {
    tag & READ != 0
}

/// Returns a writable export in memory.
pub(crate) fn memory_export(bytes: u64) -> Arc<Export> {
    let disk = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&disk, bytes).unwrap();
    lend_fd(disk, bytes)
}

/// Returns a writable export in an unlinked file: its requests go through the ring.
pub(crate) fn file_export(bytes: u64) -> Arc<Export> {
    lend_fd(file(bytes), bytes)
}

/// Returns an unlinked file of zeros.
pub(crate) fn file(bytes: u64) -> OwnedFd {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("disk-{}-{number}", std::process::id());
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let disk = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let disk = disk.unwrap();
    std::fs::remove_file(path).unwrap();
    disk.set_len(bytes).unwrap();
    disk.into()
}

pub(crate) fn lend_fd(disk: OwnedFd, bytes: u64) -> Arc<Export> {
    lend_for(Access::Writable, disk, bytes)
}

pub(crate) fn lend_for(access: Access, disk: OwnedFd, bytes: u64) -> Arc<Export> {
    let geometry = Geometry::new(512, 512).unwrap();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let id = format!("nqn-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let mut export = Export::new("disk", &id, Identity::default(), geometry, bytes, disk.into());
    (export.access, export.discard) = (access, true);
    Arc::new(export)
}

/// Behaviour of the sessions of a test.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SessionOptions {
    /// They set a deadline at this interval.
    pub(crate) tick_interval: Option<Duration>,
    /// They are established only by the command X.
    pub(crate) needs_hello: bool,
    /// The listener requires TLS.
    pub(crate) secured: bool,
}

/// A driver, and whether TLS is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) driver: Driver,
    pub(crate) secured: bool,
}

impl Setup {
    pub(crate) fn options(self) -> SessionOptions {
        SessionOptions { secured: self.secured, ..SessionOptions::default() }
    }
}

/// No limits: all clients of the tests have one address.
pub(crate) const UNLIMITED: Limits = Limits { at_once: 1000, each_second: 10_000, burst: 10_000 };

/// An engine that serves the toy protocol.
pub(crate) struct Served {
    pub(crate) engine: Engine,
    pub(crate) address: SocketAddr,
    pub(crate) log: Arc<Log>,
    pub(crate) export: Arc<Export>,
}

/// The toy protocol reports nothing; the listener may report connections that a test has refused.
fn report(event: Event) {
    assert!(matches!(event, Event::Refused { .. }), "{event:?}");
}

/// Serves `export`, or prints why the driver cannot run here.
pub(crate) fn serve(
    config: Config,
    export: Arc<Export>,
    options: SessionOptions,
) -> Option<Served> {
    let asked = config.driver;
    let engine = match Engine::start(config, Arc::new(report)) {
        Ok(engine) => engine,
        Err(error) if asked == Driver::Uring => {
            println!("skip a driver with io_uring: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let log = Arc::new(Log::default());
    let open = session_maker(&log, &export, options);
    let security = if options.secured { tunnel::security() } else { Security::open() };
    let address = engine.listen((Ipv4Addr::LOCALHOST, 0).into(), None, security, open).unwrap();
    tunnel::expect(address, options.secured);
    Some(Served { engine, address, log, export })
}

impl Served {
    /// Serves another disk as well. Returns its address and the log of its sessions.
    pub(crate) fn serve_another(&self, export: &Arc<Export>) -> (SocketAddr, Arc<Log>) {
        let log = Arc::new(Log::default());
        let open = session_maker(&log, export, SessionOptions::default());
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        let address = self.engine.listen(anywhere, None, Security::open(), open).unwrap();
        tunnel::expect(address, false);
        (address, log)
    }
}

/// Returns a maker of sessions that write to `log`.
pub(crate) fn session_maker(
    log: &Arc<Log>,
    export: &Arc<Export>,
    options: SessionOptions,
) -> MakeSession {
    let (log, export) = (log.clone(), export.clone());
    Arc::new(move |_, account, now| {
        Log::add(&log.opened, 1);
        Box::new(Toy {
            log: log.clone(),
            grant: Grant::new(export.clone()),
            account,
            steps: VecDeque::new(),
            state: State::Header,
            under_way: HashMap::new(),
            next: 0,
            deadline: options.tick_interval.map(|every| (now + every, every)),
            established: !options.needs_hello,
            landing_out: false,
            closing: false,
            stopping: false,
            disconnected: false,
        })
    })
}

/// Repeats `measure` a few times until `wanted` is satisfied, and returns the last result. For
/// figures that other load on the machine can only make worse.
pub(crate) fn at_best<T>(measure: impl Fn() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let mut found = measure();
    for _ in 0..9 {
        if wanted(&found) {
            break;
        }
        found = measure();
    }
    found
}

/// Waits until `condition` is true, a minute at most.
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A client of the toy protocol.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = tunnel::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream)
    }

    /// Returns the bytes of a command.
    pub(crate) fn command(op: u8, tag: u32, lba: u32, len: usize) -> [u8; HEADER] {
        let tag = if op == b'R' || op == b'M' { tag | READ } else { tag };
        let len = u32::try_from(len).unwrap();
        Command { op, flag: u8::from(tag % 2 == 1), tag, lba, len }.emit()
    }

    pub(crate) fn send(&mut self, op: u8, tag: u32, lba: u32, len: usize) {
        self.0.write_all(&Self::command(op, tag, lba, len)).unwrap();
    }

    pub(crate) fn say_write(&mut self, tag: u32, lba: u32, data: &[u8]) {
        self.send(b'W', tag, lba, data.len());
        self.0.write_all(data).unwrap();
    }

    /// Receives an answer: tag, status, data.
    pub(crate) fn receive(&mut self) -> std::io::Result<(u32, u32, Vec<u8>)> {
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; word(8) as usize];
        self.0.read_exact(&mut data)?;
        Ok((word(0) & !READ, word(4), data))
    }

    /// Sends a command without data and returns the status of its answer.
    pub(crate) fn ask(&mut self, op: u8, tag: u32) -> u32 {
        self.send(op, tag, 0, 0);
        let (received, status, _) = self.receive().unwrap();
        assert_eq!(received, tag);
        status
    }

    pub(crate) fn read(&mut self, lba: u32, len: usize) -> Result<Vec<u8>, u32> {
        self.send(b'R', 7, lba, len);
        let (tag, status, data) = self.receive().unwrap();
        assert_eq!(tag, 7);
        if status == 0 { Ok(data) } else { Err(status) }
    }

    /// Returns the extents of a range.
    pub(crate) fn map(&mut self, lba: u32, len: usize) -> Vec<Extent> {
        self.send(b'M', 9, lba, len);
        let (tag, status, data) = self.receive().unwrap();
        assert_eq!((tag, status), (9, 0));
        Extents::parse(&data).collect()
    }

    pub(crate) fn write(&mut self, lba: u32, data: &[u8]) -> u32 {
        self.say_write(8, lba, data);
        self.receive().unwrap().1
    }

    /// Returns whether the server closes the connection, waiting for it.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0; 1]) {
            Ok(n) => n == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// Returns bytes that depend on their position.
pub(crate) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((seed * 31 + at * 7 + at / 251) % 256).unwrap()).collect()
}
