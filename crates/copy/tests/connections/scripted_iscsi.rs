//! iSCSI targets that are busy, not ready, redirect, or lack what newer ones have.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ::iscsi::wire::bhs::{
    AsyncMessage, Bhs, DataIn, FINAL, LoginRequest, LoginResponse, NopIn, Numbers, STATUS,
    ScsiCommand, ScsiResponse, of_target,
};
use ::iscsi::wire::login::{FULL_FEATURE, OPERATIONAL, TRANSIT};
use ::iscsi::wire::{NO_TAG, opcode, padding};
use client::{Dial, Transport};
use copy::{
    ConnectionLost, CopyError, Disk, End, Endpoint, EndpointError, FileEndpoint, IscsiEndpoint,
    Job, LossCause, OpenMode, Outcome, Request, RequestError, Settings,
};
use scsi::wire::opcode as command;
use scsi::wire::sense::Sense;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::driver::{Driven, pattern};

const BYTES: usize = 1 << 20;

/// Statuses (SAM-5 §5.3.1).
const CHECK_CONDITION: u8 = 0x02;
const BUSY: u8 = 0x08;
const TASK_SET_FULL: u8 = 0x28;
const TASK_ABORTED: u8 = 0x40;

/// The answer to a command.
#[derive(Debug, Clone)]
enum Answer {
    /// Executes it.
    Execute,
    /// Returns this data.
    Data(Vec<u8>),
    /// Ends it with this status.
    Status(u8),
    /// Ends it with CHECK CONDITION and this sense key, code and qualifier.
    Sense(u8, u8, u8),
    /// Ends it with the internal target failure of an earlier command (SPC-4 §4.5.7).
    Deferred,
    /// Sends an asynchronous message and a ping, and does not answer.
    Silence,
    /// Closes the connection.
    Cut,
}

/// Chooses the answer to a command, by its CDB and how many of its operation code came before.
type Script = Box<dyn Fn(&[u8; 16], usize) -> Answer + Send + Sync>;

/// A target with one disk.
struct Target {
    data: Mutex<Vec<u8>>,
    /// Operation codes so far.
    codes: Mutex<Vec<u8>>,
    /// The ISID of each session so far.
    isids: Mutex<Vec<[u8; 6]>>,
    /// The addresses to which the next logins are redirected.
    moved: Mutex<Vec<&'static str>>,
    /// Whether its disk has no identity, and is another one after [`Answer::Cut`].
    changes: bool,
    script: Script,
}

impl Target {
    fn new(script: impl Fn(&[u8; 16], usize) -> Answer + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self::with(Box::new(script)))
    }

    fn with(script: Script) -> Self {
        Self {
            data: Mutex::new(pattern(3, BYTES)),
            codes: Mutex::default(),
            isids: Mutex::default(),
            moved: Mutex::default(),
            changes: false,
            script,
        }
    }

    fn endpoint(self: &Arc<Self>) -> IscsiEndpoint {
        let target = self.clone();
        let dial: Dial = Arc::new(move || Ok(target.connect()));
        let names = ["iqn.2026-01.test:host", "iqn.2026-01.test:disk"];
        IscsiEndpoint::new("iscsi://target", names[0], names[1], 0, dial)
    }

    fn connect(self: &Arc<Self>) -> Box<dyn Transport> {
        let (mine, theirs) = UnixStream::pair().unwrap();
        let target = self.clone();
        // Errors of a client that disconnects are ignored.
        thread::spawn(move || drop(target.serve(theirs)));
        Box::new(mine)
    }

    fn open(self: &Arc<Self>) -> (Disk, Driven) {
        let (disk, connection) = self.endpoint().open().unwrap();
        (disk, Driven::new(connection))
    }

    fn sessions(&self) -> usize {
        self.isids.lock().unwrap().len()
    }

    fn count(&self, code: u8) -> usize {
        self.codes.lock().unwrap().iter().filter(|it| **it == code).count()
    }

    fn serve(&self, stream: UnixStream) -> std::io::Result<()> {
        let mut session = Session { stream, stat_sn: 0, exp_cmd_sn: 1 };
        let (header, _) = session.receive()?;
        self.isids.lock().unwrap().push(LoginRequest::of(&header).isid);
        let moved = self.moved.lock().unwrap().pop();
        session.log_in(moved)?;
        loop {
            let (header, data) = session.receive()?;
            if header.opcode() != opcode::SCSI_COMMAND {
                continue;
            }
            session.exp_cmd_sn = header.cmd_sn().wrapping_add(1);
            let request = ScsiCommand::of(&header);
            let count = self.count(request.cdb[0]);
            self.codes.lock().unwrap().push(request.cdb[0]);
            let answer = match (self.script)(&request.cdb, count) {
                Answer::Execute => self.execute(&request.cdb, &data),
                answer => answer,
            };
            if self.changes && matches!(answer, Answer::Cut) {
                *self.data.lock().unwrap() = pattern(4, BYTES);
            }
            session.answer(&request, answer)?;
        }
    }

    fn execute(&self, cdb: &[u8; 16], written: &[u8]) -> Answer {
        let block = |at: std::ops::Range<usize>| {
            cdb[at].iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let (long, short) = ((block(2..10), block(10..14)), (block(2..6), block(7..9)));
        let range = |(lba, len): (usize, usize)| lba * 512..(lba + len) * 512;
        let read =
            |range: std::ops::Range<usize>| Answer::Data(self.data.lock().unwrap()[range].to_vec());
        match cdb[0] {
            command::INQUIRY if cdb[1] == 0 => Answer::Data(inquiry()),
            command::INQUIRY if cdb[2] == 0x83 && !self.changes => Answer::Data(identification()),
            command::MODE_SENSE_6 => Answer::Data(vec![3, 0, 0, 0]),
            command::SERVICE_ACTION_IN_16 if cdb[1] == command::READ_CAPACITY_16 => {
                Answer::Data(capacity())
            }
            command::READ_CAPACITY_10 => Answer::Data(capacity()[4..12].to_vec()),
            command::READ_16 => read(range(long)),
            command::READ_10 => read(range(short)),
            command::WRITE_16 => {
                self.data.lock().unwrap()[range(long)].copy_from_slice(written);
                Answer::Status(0)
            }
            command::WRITE_10 => {
                self.data.lock().unwrap()[range(short)].copy_from_slice(written);
                Answer::Status(0)
            }
            command::SYNCHRONIZE_CACHE_10 => Answer::Status(0),
            _ => Answer::Sense(5, 0x20, 0),
        }
    }
}

fn inquiry() -> Vec<u8> {
    let mut data = vec![b' '; 36];
    data[..8].copy_from_slice(&[0, 0, 6, 2, 31, 0, 0, 2]);
    data[8..20].copy_from_slice(b"TEST    DISK");
    data
}

fn identification() -> Vec<u8> {
    [&[0, 0x83, 0, 12, 1, 3, 0, 8][..], &[0x50, 1, 2, 3, 4, 5, 6, 7]].concat()
}

fn capacity() -> Vec<u8> {
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&(BYTES as u64 / 512 - 1).to_be_bytes());
    data[8..12].copy_from_slice(&512_u32.to_be_bytes());
    data
}

/// The target's side of a connection.
struct Session {
    stream: UnixStream,
    stat_sn: u32,
    exp_cmd_sn: u32,
}

impl Session {
    fn receive(&mut self) -> std::io::Result<(Bhs, Vec<u8>)> {
        let mut header = [0; 48];
        self.stream.read_exact(&mut header)?;
        let header = Bhs::read_from_bytes(&header).unwrap();
        let len = header.data_len.get() as usize;
        let mut data = vec![0; len + padding(len)];
        self.stream.read_exact(&mut data)?;
        data.truncate(len);
        Ok((header, data))
    }

    fn send<H: IntoBytes + Immutable>(&mut self, header: &H, data: &[u8]) -> std::io::Result<()> {
        let mut bytes = header.as_bytes().to_vec();
        bytes[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        bytes.extend_from_slice(data);
        bytes.extend(vec![0; padding(data.len())]);
        self.stream.write_all(&bytes)
    }

    fn numbers(&mut self, counts: bool) -> Numbers {
        let stat_sn = self.stat_sn;
        self.stat_sn += u32::from(counts);
        let max = self.exp_cmd_sn.wrapping_add(63);
        Numbers {
            stat_sn: stat_sn.into(),
            exp_cmd_sn: self.exp_cmd_sn.into(),
            max_cmd_sn: max.into(),
        }
    }

    fn log_in(&mut self, moved: Option<&str>) -> std::io::Result<()> {
        let flags = TRANSIT | OPERATIONAL << 2 | FULL_FEATURE;
        let numbers = self.numbers(true);
        let header = LoginResponse::of(&of_target(opcode::LOGIN_RESPONSE));
        let header = LoginResponse { flags, numbers, itt: 0.into(), tsih: 1.into(), ..header };
        if let Some(address) = moved {
            let text = format!("TargetAddress={address}\0");
            return self.send(&LoginResponse { status: [1, 2], ..header }, text.as_bytes());
        }
        self.send(
            &header,
            b"InitialR2T=No\0FirstBurstLength=65536\0MaxRecvDataSegmentLength=65536\0",
        )
    }

    fn answer(&mut self, request: &ScsiCommand, answer: Answer) -> std::io::Result<()> {
        let itt = request.itt;
        let (status, data) = match answer {
            Answer::Status(status) => (status, Vec::new()),
            Answer::Sense(key, asc, ascq) => {
                let sense = Sense::new(key, asc, ascq);
                (CHECK_CONDITION, [&[0, 18], sense.as_bytes()].concat())
            }
            Answer::Deferred => {
                let mut sense = Sense::new(4, 0x44, 0).as_bytes().to_vec();
                sense[0] = 0x71;
                (CHECK_CONDITION, [&[0, 18], &sense[..]].concat())
            }
            Answer::Data(mut data) => {
                data.truncate(request.expected.get() as usize);
                let numbers = self.numbers(true);
                let header = DataIn::of(&of_target(opcode::DATA_IN));
                let (flags, ttt) = (FINAL | STATUS, NO_TAG.into());
                return self.send(&DataIn { flags, itt, ttt, numbers, ..header }, &data);
            }
            Answer::Silence => return self.ping(),
            Answer::Cut => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            Answer::Execute => unreachable!("it was executed"),
        };
        let (numbers, header) =
            (self.numbers(true), ScsiResponse::of(&of_target(opcode::SCSI_RESPONSE)));
        self.send(&ScsiResponse { flags: FINAL, itt, status, numbers, ..header }, &data)
    }

    /// Sends what is no answer to a command until the initiator gives up.
    fn ping(&mut self) -> std::io::Result<()> {
        loop {
            let numbers = self.numbers(true);
            let header = AsyncMessage::of(&of_target(opcode::ASYNC_MESSAGE));
            let (flags, tag) = (FINAL, NO_TAG.into());
            self.send(&AsyncMessage { flags, tag, numbers, event: 0, ..header }, &[0, 0])?;
            let numbers = self.numbers(false);
            let header = NopIn::of(&of_target(opcode::NOP_IN));
            let (itt, ttt) = (NO_TAG.into(), NO_TAG.into());
            self.send(&NopIn { flags, itt, ttt, numbers, ..header }, &[])?;
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Answers by which a target says that a command may be sent again.
fn transient() -> [Answer; 6] {
    [
        Answer::Status(BUSY),
        Answer::Status(TASK_SET_FULL),
        Answer::Status(TASK_ABORTED),
        // Becoming ready; internal target failure; mode parameters changed.
        Answer::Sense(2, 4, 1),
        Answer::Sense(0xb, 0x44, 0),
        Answer::Sense(6, 0x2a, 1),
    ]
}

// ---- busy targets

#[test]
fn transient_status_is_retried_on_the_same_session() {
    let codes = [command::READ_16, command::WRITE_16, command::SYNCHRONIZE_CACHE_10];
    for answer in transient() {
        let shown = format!("{answer:?}");
        let target = Target::new(move |cdb, before| match before {
            0 | 1 if codes.contains(&cdb[0]) => answer.clone(),
            _ => Answer::Execute,
        });
        let (_, mut driven) = target.open();
        assert_eq!(driven.read(512, 4096).unwrap(), pattern(3, BYTES)[512..4608], "{shown}");
        driven.write(8192, &[9; 4096]).unwrap();
        assert_eq!(target.data.lock().unwrap()[8192..12288], [9; 4096], "{shown}");
        driven.flush().unwrap();
        assert_eq!(codes.map(|code| target.count(code)), [3; 3], "{shown}");
        assert_eq!(target.sessions(), 1, "{shown}");
    }
}

#[test]
fn transient_status_is_retried_in_the_probe() {
    for answer in transient() {
        let shown = format!("{answer:?}");
        let target = Target::new(move |cdb, before| match (cdb[0], before) {
            (command::INQUIRY | command::SERVICE_ACTION_IN_16, 0 | 1) => answer.clone(),
            _ => Answer::Execute,
        });
        let (disk, _) = target.open();
        assert_eq!((disk.bytes, target.sessions()), (BYTES as u64, 1), "{shown}");
    }
}

#[test]
fn commands_behind_a_busy_one_wait_for_it() {
    let target = Target::new(|cdb, before| match (cdb[0], before) {
        (command::READ_16, 0) => Answer::Status(TASK_SET_FULL),
        _ => Answer::Execute,
    });
    let (_, mut driven) = target.open();
    let buffer = driven.buffer(512);
    driven.submit(Request::Read { offset: 0, buffer });
    let begun = Instant::now();
    while driven.connection.free_slots() != 0 {
        driven.connection.advance().unwrap();
        assert!(begun.elapsed().as_secs() < 20, "it takes more commands");
    }
    assert_eq!(driven.wait(1).unwrap()[0].result, Ok(()));
    assert_ne!(driven.connection.free_slots(), 0);
}

#[test]
fn target_that_stays_busy_ends_the_request() {
    for answer in [Answer::Status(BUSY), Answer::Sense(2, 4, 1)] {
        let target = Target::new(move |cdb, _| match cdb[0] {
            command::READ_16 => answer.clone(),
            _ => Answer::Execute,
        });
        let endpoint = target.endpoint().with_timeout(Duration::from_millis(800));
        let mut driven = Driven::new(endpoint.open().unwrap().1);
        let begun = Instant::now();
        let error = driven.read(0, 4096).unwrap_err();
        assert_eq!(error, RequestError::Busy);
        assert!(error.to_string().contains("busy or not ready"), "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
        // The pause grows.
        assert!((2..=5).contains(&target.count(command::READ_16)));
        assert_eq!(target.sessions(), 1);
        driven.flush().unwrap();
    }
}

#[test]
fn command_that_is_aborted_again_and_again_ends_the_session() {
    for answer in [Answer::Sense(0xb, 0x44, 0), Answer::Status(TASK_ABORTED)] {
        let target = Target::new(move |cdb, _| match cdb[0] {
            command::READ_16 => answer.clone(),
            _ => Answer::Execute,
        });
        let (_, mut driven) = target.open();
        let buffer = driven.buffer(4096);
        driven.submit(Request::Read { offset: 0, buffer });
        let ConnectionLost { reason, cause } = driven.wait(1).unwrap_err();
        assert!(
            cause == LossCause::Broken && reason.contains("aborts a command again and again"),
            "{reason}"
        );
        assert_eq!((target.count(command::READ_16), target.sessions()), (6, 1));
    }
}

/// The copy does without WRITE SAME.
#[test]
fn optional_command_that_is_aborted_is_not_supported() {
    let target = Target::new(|cdb, _| match cdb[0] {
        command::WRITE_SAME_16 => Answer::Sense(0xb, 0x44, 0),
        _ => Answer::Execute,
    });
    let (_, mut driven) = target.open();
    driven.submit(Request::Zero { offset: 0, len: 4096 });
    assert_eq!(driven.wait(1).unwrap()[0].result, Err(RequestError::Unsupported));
}

/// A copy that was begun takes a disk with another identity, size or limit for another one.
#[test]
fn question_that_is_aborted_again_and_again_is_not_a_no() {
    let questions = [
        [command::INQUIRY, 0, 0],
        [command::SERVICE_ACTION_IN_16, command::READ_CAPACITY_16, 0],
        [command::INQUIRY, 1, 0x80],
        [command::INQUIRY, 1, 0x83],
        [command::INQUIRY, 1, 0xb0],
        [command::MODE_SENSE_6, 8, 0x3f],
    ];
    // At once: each takes seconds.
    thread::scope(|scope| {
        for (at, head) in questions.into_iter().enumerate() {
            scope.spawn(move || {
                let target = Target::new(move |cdb, _| match (cdb[..3] == head, at % 2) {
                    (true, 0) => Answer::Sense(0xb, 0x44, 0),
                    (true, _) => Answer::Deferred,
                    _ => Answer::Execute,
                });
                let failed = target.endpoint().open().err();
                let Some(EndpointError::Temporary(sentence)) = failed else {
                    panic!("{head:02x?}: {failed:?}")
                };
                assert!(sentence.contains("aborts a command again and again"), "{sentence}");
            });
        }
    });
}

#[test]
fn each_question_has_attempts_of_its_own() {
    let before = Mutex::new(([0; 16], 0));
    let target = Target::new(move |cdb, _| {
        let mut before = before.lock().unwrap();
        if before.0 != *cdb {
            *before = (*cdb, 0);
        }
        before.1 += 1;
        match before.1 {
            1 => Answer::Sense(0xb, 0x44, 0),
            2 => Answer::Deferred,
            _ => Answer::Execute,
        }
    });
    let (disk, _) = target.open();
    assert_eq!((disk.bytes, target.sessions()), (BYTES as u64, 1));
    assert!(disk.identity.contains("naa"), "{}", disk.identity);
}

#[test]
fn disk_that_does_not_become_ready_is_not_opened() {
    let target = Target::new(|cdb, _| match cdb[0] {
        command::SERVICE_ACTION_IN_16 => Answer::Sense(2, 4, 1),
        _ => Answer::Execute,
    });
    let endpoint = target.endpoint().with_timeout(Duration::from_millis(300));
    match endpoint.open().err() {
        // A copy that was begun tries again later.
        Some(EndpointError::Temporary(sentence)) => {
            assert!(sentence.contains("busy or not ready"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn disk_that_may_be_another_one_is_connected_again() {
    // Reset; commands cleared by another initiator; capacity or INQUIRY data changed.
    for (asc, ascq) in [(0x29, 0), (0x2f, 0), (0x2a, 9), (0x3f, 3)] {
        let target = Target::new(move |cdb, before| match (cdb[0], before) {
            (command::READ_16, 0) => Answer::Sense(6, asc, ascq),
            _ => Answer::Execute,
        });
        let (_, mut driven) = target.open();
        let buffer = driven.buffer(4096);
        driven.submit(Request::Read { offset: 0, buffer });
        let ConnectionLost { reason, cause } = driven.wait(1).unwrap_err();
        assert!(
            cause == LossCause::Broken && reason.contains("reset, removed or changed"),
            "{reason}"
        );
    }
}

#[test]
fn pings_and_messages_are_no_progress_of_a_command() {
    let target = Target::new(|cdb, _| match cdb[0] {
        command::READ_16 => Answer::Silence,
        _ => Answer::Execute,
    });
    let endpoint = target.endpoint().with_timeout(Duration::from_secs(1));
    let mut driven = Driven::new(endpoint.open().unwrap().1);
    let buffer = driven.buffer(4096);
    driven.submit(Request::Read { offset: 0, buffer });
    let begun = Instant::now();
    let lost = driven.wait(1).unwrap_err();
    assert!(lost.reason.contains("no answer in 1 seconds"), "{}", lost.reason);
    assert!(begun.elapsed().as_secs() < 20);
}

// ---- sessions

#[test]
fn lost_session_is_reinstated() {
    let target = Target::new(|cdb, before| match (cdb[0], before) {
        (command::READ_16, 0) => Answer::Cut,
        _ => Answer::Execute,
    });
    let endpoint = target.endpoint();
    let (_disk, other) = endpoint.open().unwrap();
    let mut driven = Driven::new(endpoint.open().unwrap().1);
    let buffer = driven.buffer(4096);
    driven.submit(Request::Read { offset: 0, buffer });
    driven.wait(1).unwrap_err();
    drop(driven);
    let (_disk, again) = endpoint.open().unwrap();
    let (_disk, elsewhere) = target.endpoint().open().unwrap();
    let isids = target.isids.lock().unwrap().clone();
    assert_eq!(isids[1], isids[2], "the lost session lives on");
    // None replaces one that is in use.
    let mut used = vec![isids[0], isids[1], isids[3]];
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 3, "{isids:?}");
    drop((other, again, elsewhere));
}

/// A target that was restarted may listen before it has its disks.
#[test]
fn disk_that_was_there_is_waited_for() {
    let later = Arc::new(AtomicBool::new(false));
    let is_absent = later.clone();
    let target = Target::new(move |cdb, _| match cdb[0] {
        command::INQUIRY if is_absent.load(Ordering::SeqCst) => Answer::Data(vec![0x7f; 36]),
        _ => Answer::Execute,
    });
    let endpoint = target.endpoint();
    endpoint.open().unwrap();
    later.store(true, Ordering::SeqCst);
    let absent = endpoint.open().err();
    assert!(matches!(absent, Some(EndpointError::Temporary(_))), "{absent:?}");
    let never = target.endpoint().open().err();
    assert!(matches!(never, Some(EndpointError::Permanent(_))), "{never:?}");
    later.store(false, Ordering::SeqCst);
    endpoint.open().unwrap();
}

/// One that is not mapped for two seconds, and one whose medium is inserted again.
#[test]
fn medium_that_was_there_is_waited_for() {
    let later = Arc::new(AtomicBool::new(false));
    let is_gone = later.clone();
    let target = Target::new(move |cdb, _| match cdb[0] {
        command::INQUIRY => Answer::Execute,
        _ if is_gone.load(Ordering::SeqCst) => Answer::Sense(2, 0x3a, 0),
        _ => Answer::Execute,
    });
    let endpoint = target.endpoint();
    endpoint.open().unwrap();
    later.store(true, Ordering::SeqCst);
    let before = target.codes.lock().unwrap().len();
    let failed = endpoint.open().err();
    assert!(matches!(&failed, Some(EndpointError::Temporary(it)) if it.contains("no medium")));
    // The next attempt comes after a pause.
    assert_eq!(target.codes.lock().unwrap().len(), before + 2);
    assert!(matches!(target.endpoint().open().err(), Some(EndpointError::Permanent(_))));
}

#[test]
fn redirection_is_followed_a_few_times() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let endpoint = |target: &Arc<Target>| {
        let (target, asked) = (target.clone(), asked.clone());
        target.endpoint().with_redirection(Arc::new(move |address| {
            asked.lock().unwrap().push(address.to_owned());
            Ok(target.connect())
        }))
    };
    let target = Target::new(|_, _| Answer::Execute);
    *target.moved.lock().unwrap() = vec!["[2001:db8::1]:3261,1", "192.0.2.1,1"];
    let (disk, _) = endpoint(&target).open().unwrap();
    assert_eq!((disk.bytes, disk.name.as_str()), (BYTES as u64, "iscsi://target"));
    assert_eq!(*asked.lock().unwrap(), ["192.0.2.1", "[2001:db8::1]:3261"]);
    // Without a callback, or without end.
    *target.moved.lock().unwrap() = vec!["192.0.2.9"; 100];
    for (endpoint, expected) in [
        (target.endpoint(), "moved to 192.0.2.9: name that address"),
        (endpoint(&target), "redirected more than 4 times, at last to 192.0.2.9"),
    ] {
        match endpoint.open().err() {
            Some(EndpointError::Permanent(sentence)) => {
                assert!(sentence.contains(expected), "{sentence}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked.lock().unwrap().len(), 2 + 4);
}

// ---- old targets

#[test]
fn disk_without_16_byte_commands_is_read_and_written() {
    let target = Target::new(|cdb, _| match cdb[0] {
        0x80..0xa0 => Answer::Sense(5, 0x20, 0),
        _ => Answer::Execute,
    });
    let (disk, mut driven) = target.open();
    assert_eq!((disk.bytes, disk.block), (BYTES as u64, 512));
    assert_eq!(driven.read(512, 4096).unwrap(), pattern(3, BYTES)[512..4608]);
    driven.write(8192, &[9; 4096]).unwrap();
    assert_eq!(target.data.lock().unwrap()[8192..12288], [9; 4096]);
}

/// X41: as with an NBD server, which reports no more than a name.
#[test]
fn x41_disk_without_identity_is_told_by_its_data() {
    let script = |cdb: &[u8; 16], before: usize| match (cdb[0], before) {
        // After the samples that are taken at the start.
        (command::READ_16, 5) => Answer::Cut,
        _ => Answer::Execute,
    };
    let target = Arc::new(Target { changes: true, ..Target::with(Box::new(script)) });
    let endpoint = target.endpoint();
    let (disk, _) = endpoint.open().unwrap();
    assert_eq!(disk.identity, "iscsi iqn.2026-01.test:disk 0");
    let image = std::env::temp_dir().join(format!("changed-disk-{}", std::process::id()));
    let job = Job {
        source: End::Disk(Box::new(endpoint)),
        destination: End::Disk(Box::new(FileEndpoint::destination(&image, OpenMode::Replace, ""))),
        settings: Settings { connections: 1, chunk: 64 << 10, ..Settings::default() },
        check: None,
    };
    let report = job.run(&AtomicBool::new(false), &mut |_| {});
    let _ = std::fs::remove_file(image);
    let changed = matches!(report.outcome, Outcome::Failed(CopyError::DifferentDisk { .. }));
    assert!(changed, "{report:?}");
}
