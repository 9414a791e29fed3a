//! Copies from and to NBD servers that lose connections, change disks or report no identity.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use client::{Dial, Transport};
use copy::{
    CopyError, End, EndpointError, FileEndpoint, Job, NbdEndpoint, OpenMode, Outcome, Refusal,
    Report, Settings,
};
use nbd::wire::handshake::Hello;
use nbd::wire::option::{self, InfoExport, ReplyHeader};
use nbd::wire::reply::SimpleReply;
use nbd::wire::request::{self as command, Request, flags};
use zerocopy::{FromBytes, IntoBytes};

use crate::driver::pattern;

const BYTES: usize = 4 << 20;

/// The reaction to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Answer,
    /// Closes this connection and all others.
    Cut,
    /// Answers with the cookie of another request.
    WrongCookie,
    /// Neither answers nor closes the connection until the client does.
    Mute,
}

/// Chooses the reaction to a request.
type Policy = Box<dyn Fn(&Server, &Request) -> Act + Send + Sync>;

/// A server of one disk at a time, without an identity other than its name.
struct Server {
    disks: Mutex<Vec<Vec<u8>>>,
    /// The disk of new connections.
    served_disk: AtomicUsize,
    /// Whether each connection gets the next disk.
    alternates: AtomicBool,
    /// Connections of an earlier generation are closed.
    generation: AtomicUsize,
    connections: AtomicUsize,
    /// Maximum reads per connection.
    limit: AtomicUsize,
    reads: AtomicUsize,
    flushes: AtomicUsize,
    policy: Policy,
}

impl Server {
    fn new(policy: impl Fn(&Self, &Request) -> Act + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            disks: Mutex::new(vec![pattern(1, BYTES), pattern(2, BYTES)]),
            served_disk: AtomicUsize::new(0),
            alternates: AtomicBool::new(false),
            generation: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
            reads: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            policy: Box::new(policy),
        })
    }

    fn endpoint(self: &Arc<Self>) -> End {
        End::Disk(Box::new(self.nbd_endpoint()))
    }

    fn nbd_endpoint(self: &Arc<Self>) -> NbdEndpoint {
        let server = self.clone();
        let dial: Dial = Arc::new(move || {
            let (mine, theirs) = UnixStream::pair().unwrap();
            let count = server.connections.fetch_add(1, Ordering::SeqCst);
            let server = server.clone();
            let disk = match server.alternates.load(Ordering::SeqCst) {
                true => count % 2,
                false => server.served_disk.load(Ordering::SeqCst),
            };
            // Errors of a client that disconnects are ignored.
            thread::spawn(move || drop(server.serve(theirs, disk)));
            Ok(Box::new(mine) as Box<dyn Transport>)
        });
        NbdEndpoint::new("nbd://rude", "disk", dial)
    }

    /// Closes all connections, and serves this disk from now on.
    fn restart(&self, disk: usize) {
        self.served_disk.store(disk, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn serve(&self, mut stream: UnixStream, disk: usize) -> std::io::Result<()> {
        let generation = self.generation.load(Ordering::SeqCst);
        open(&mut stream)?;
        let mut left = self.limit.load(Ordering::SeqCst);
        loop {
            let mut header = [0; size_of::<Request>()];
            stream.read_exact(&mut header)?;
            let request = Request::read_from_bytes(&header).unwrap();
            let (kind, start) = (request.command.get(), request.offset.get());
            let len = usize::try_from(request.len.get()).unwrap();
            let start = usize::try_from(start).unwrap();
            let mut data = vec![0; if kind == command::WRITE { len } else { 0 }];
            stream.read_exact(&mut data)?;
            let count = match kind {
                command::READ => &self.reads,
                command::FLUSH => &self.flushes,
                command::DISC => return Ok(()),
                _ => &AtomicUsize::new(0),
            };
            count.fetch_add(1, Ordering::SeqCst);
            if kind == command::READ {
                left = left.checked_sub(1).ok_or(std::io::ErrorKind::ConnectionAborted)?;
            }
            let act = (self.policy)(self, &request);
            if act == Act::Cut || generation != self.generation.load(Ordering::SeqCst) {
                return Ok(());
            }
            if act == Act::Mute {
                return std::io::copy(&mut stream, &mut std::io::sink()).map(drop);
            }
            let odd = u64::from(act == Act::WrongCookie);
            stream.write_all(SimpleReply::new(0, request.cookie.get() ^ odd).as_bytes())?;
            let mut disks = self.disks.lock().unwrap();
            let bytes = &mut disks[disk][start..start + len];
            match kind {
                command::READ => stream.write_all(bytes)?,
                command::WRITE => bytes.copy_from_slice(&data),
                _ => {}
            }
        }
    }
}

/// Opens the export with `NBD_OPT_EXPORT_NAME`.
fn open(stream: &mut UnixStream) -> std::io::Result<()> {
    stream.write_all(Hello::new().as_bytes())?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        stream.read_exact(&mut vec![0; usize::try_from(number(12)).unwrap()])?;
        let reply = |kind, len| ReplyHeader::new(number(8), kind, len).as_bytes().to_vec();
        if number(8) != option::GO {
            stream.write_all(&reply(option::ERR_UNSUP, 0))?;
            continue;
        }
        let can = flags::HAS_FLAGS | flags::SEND_FLUSH | flags::CAN_MULTI_CONN;
        let info = InfoExport::new(BYTES as u64, can);
        let said = [reply(option::REP_INFO, 12), info.as_bytes().to_vec(), reply(option::ACK, 0)];
        return stream.write_all(&said.concat());
    }
}

/// A file that is removed at the end of the test.
struct Image(std::path::PathBuf);

impl Image {
    fn new(test: &str) -> Self {
        Self(std::env::temp_dir().join(format!("copy-rude-{}-{test}", std::process::id())))
    }

    fn end(&self) -> End {
        End::Disk(Box::new(FileEndpoint::destination(&self.0, OpenMode::Replace, "")))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn settings() -> Settings {
    Settings {
        connections: 2,
        chunk: 64 << 10,
        reconnect_timeout: Duration::from_secs(5),
        ..Settings::default()
    }
}

fn run(source: End, destination: End, settings: Settings) -> Report {
    Job { source, destination, settings, check: None }.run(&AtomicBool::new(false), &mut |_| {})
}

fn copy_from(server: &Arc<Server>, test: &str) -> Report {
    run(server.endpoint(), Image::new(test).end(), settings())
}

fn is_read(request: &Request) -> bool {
    request.command.get() == command::READ
}

#[track_caller]
fn assert_different_disk(report: &Report) {
    let Outcome::Failed(CopyError::DifferentDisk { reason, .. }) = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(reason.contains("has changed"), "{reason}");
}

#[test]
fn r56_different_source_after_reconnect_fails_copy() {
    let server = Server::new(|server, request| {
        if is_read(request) && server.reads.load(Ordering::SeqCst) == 20 {
            server.restart(1);
        }
        Act::Answer
    });
    assert_different_disk(&copy_from(&server, "source"));
}

#[test]
fn r56_different_destination_after_reconnect_fails_copy() {
    let image = Image::new("destination");
    std::fs::write(&image.0, pattern(9, BYTES)).unwrap();
    let server = Server::new(|server, request| {
        let writes = request.command.get() == command::WRITE;
        if writes && server.flushes.load(Ordering::SeqCst) >= 2 {
            server.restart(1);
        }
        Act::Answer
    });
    let source = End::Disk(Box::new(FileEndpoint::source(&image.0, "")));
    let slow = Settings { rate: Some(1 << 20), connections: 1, ..settings() };
    assert_different_disk(&run(source, server.endpoint(), slow));
}

#[test]
fn r56_connections_to_different_disks_fail_copy() {
    let server = Server::new(|_, _| Act::Answer);
    server.alternates.store(true, Ordering::SeqCst);
    assert_different_disk(&copy_from(&server, "two"));
}

#[test]
fn r56_copy_continues_after_server_restart() {
    let server = Server::new(|server, request| {
        if is_read(request) && server.reads.load(Ordering::SeqCst).is_multiple_of(20) {
            server.restart(0);
        }
        Act::Answer
    });
    let report = copy_from(&server, "same");
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!(report.hash, Some(*blake3::hash(&pattern(1, BYTES)).as_bytes()));
}

#[test]
fn server_that_drops_after_two_reads_is_copied() {
    let server = Server::new(|_, _| Act::Answer);
    server.limit.store(2, Ordering::SeqCst);
    let large = Settings { chunk: 1 << 20, connections: 1, ..settings() };
    let report = run(server.endpoint(), Image::new("two-reads").end(), large);
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!(report.hash, Some(*blake3::hash(&pattern(1, BYTES)).as_bytes()));
}

#[test]
fn x41_protocol_violation_fails_copy_at_once() {
    let server = Server::new(|server, request| {
        let later = is_read(request) && server.reads.load(Ordering::SeqCst) > 20;
        if later { Act::WrongCookie } else { Act::Answer }
    });
    let report = copy_from(&server, "violation");
    let Outcome::Failed(CopyError::Violation { reason, .. }) = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(reason.contains("(CookieUnknown)"), "{reason}");
    assert!(report.bad.is_empty());
    assert!(server.connections.load(Ordering::SeqCst) <= 4, "it was not connected to again");
}

#[test]
fn server_that_drops_every_read_is_refused() {
    let server = Server::new(|_, request| if is_read(request) { Act::Cut } else { Act::Answer });
    let report = copy_from(&server, "drops");
    match &report.outcome {
        Outcome::Refused(Refusal::Source(EndpointError::Temporary(reason))) => {
            assert!(reason.contains("each connection is lost at the first read"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn server_that_later_drops_every_read_is_not_bad() {
    let server = Server::new(|server, request| {
        let later = is_read(request) && server.reads.load(Ordering::SeqCst) > 20;
        if later { Act::Cut } else { Act::Answer }
    });
    let begun = Instant::now();
    let report = copy_from(&server, "lost");
    assert!(matches!(report.outcome, Outcome::Failed(CopyError::Lost { .. })), "{report:?}");
    assert!(report.bad.is_empty(), "{:?}", report.bad);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
}

#[test]
fn server_that_drops_every_write_times_out() {
    let image = Image::new("writes");
    std::fs::write(&image.0, pattern(9, BYTES)).unwrap();
    let server =
        Server::new(
            |_, request| {
                if request.command.get() == command::WRITE { Act::Cut } else { Act::Answer }
            },
        );
    let source = End::Disk(Box::new(FileEndpoint::source(&image.0, "")));
    let report = run(source, server.endpoint(), settings());
    assert!(matches!(report.outcome, Outcome::Failed(CopyError::Lost { .. })), "{report:?}");
    assert!(server.connections.load(Ordering::SeqCst) < 60, "it is not tried all the time");
}

#[test]
fn sector_that_crashes_the_server_is_bad_alone() {
    const KILLS: u64 = (1 << 20) + 5 * 512;
    let server = Server::new(|server, request| {
        let (start, len) = (request.offset.get(), u64::from(request.len.get()));
        if is_read(request) && (start..start + len).contains(&KILLS) {
            server.restart(0);
            return Act::Cut;
        }
        Act::Answer
    });
    let report = copy_from(&server, "kills");
    assert!(matches!(report.outcome, Outcome::BadSectors), "{report:?}");
    let bad: Vec<(u64, u64)> = report.bad.iter().map(|range| (range.start, range.end)).collect();
    assert_eq!(bad, [(KILLS, KILLS + 512)]);
}

/// Copies from a server that answers this number of reads, and gives up after one second.
fn copy_from_mute_server(reads: usize, test: &str) -> Report {
    let server = Server::new(move |server, request| {
        let mute = is_read(request) && server.reads.load(Ordering::SeqCst) > reads;
        if mute { Act::Mute } else { Act::Answer }
    });
    let second = Duration::from_secs(1);
    let source = End::Disk(Box::new(server.nbd_endpoint().with_timeout(second)));
    let settings = Settings { reconnect_timeout: second, ..settings() };
    let begun = Instant::now();
    let report = run(source, Image::new(test).end(), settings);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    report
}

#[test]
fn connected_server_that_never_answers_is_refused_in_time() {
    match copy_from_mute_server(0, "mute").outcome {
        Outcome::Refused(Refusal::Source(EndpointError::Temporary(reason))) => {
            assert!(reason.contains("no answer in 1 seconds"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn connected_server_that_falls_silent_is_given_up_in_time() {
    let report = copy_from_mute_server(20, "silent");
    match &report.outcome {
        Outcome::Failed(CopyError::Lost { reason, .. }) => {
            assert!(reason.contains("no answer in 1 seconds"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(report.bad.is_empty(), "{:?}", report.bad);
}
