//! `storagetm copy` from servers that are hostile: it ends in time with a status that names the failure, takes
//! little memory, and shows none of their control characters (X41, X53).

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::scene::{Folder, copy};

/// Time limit of a copy.
const LIMIT: Duration = Duration::from_secs(40);

/// Memory limit in KiB (`VmHWM`): not much more than a copy takes from a server that behaves.
const MEMORY: u64 = 32 << 10;

/// Bytes of the disks.
const DISK: u64 = 4 << 20;

/// Text with escape sequences, a line break and a character that reverses the direction of writing.
const HOSTILE: &str = "\x1b[2J\x1b]0;owned\x07no\r\n\x1b[31mdisk \u{202e}evil";

/// Serves each connection in a thread. Returns the port.
fn serve(
    behavior: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + Copy + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // An error is a client that has disconnected.
            thread::spawn(move || drop(behavior(&mut stream)));
        }
    });
    port
}

/// Sends these bytes again and again, until the client disconnects.
fn flood(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    loop {
        stream.write_all(bytes)?;
    }
}

/// Copies from this URI. Returns the exit status and all that was printed.
fn copied(uri: &str) -> (Option<i32>, String) {
    let folder = Folder::new();
    let line = ["--patience", "1", "--no-verify", uri, &folder.path("copy.img")];
    let mut child = copy(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let (mut memory, begun) = (0, Instant::now());
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < LIMIT, "{uri} takes longer than {LIMIT:?}");
        let status = fs::read_to_string(&status).unwrap_or_default();
        // Before it executes the program, the process shares the memory of this one.
        let own = status.strip_prefix("Name:\tstoragetm\n").unwrap_or_default();
        let peak = own.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse().ok());
        memory = memory.max(peak.unwrap_or(0));
        thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(printed).unwrap();
    println!("{:?} after {:?}, {memory} KiB: {text}", output.status.code(), begun.elapsed());
    assert!(memory < MEMORY, "{uri}: {memory} KiB");
    let is_clean = |c: char| (c == '\n' || !c.is_control()) && c != '\u{202e}';
    assert!(text.chars().all(is_clean), "{text:?}");
    (output.status.code(), text)
}

// ---- NBD

/// What an NBD server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nbd {
    /// Sends bytes without end in place of its greeting.
    Flood,
    /// Sends replies to options that were not asked for, without end.
    FloodReplies,
    /// Refuses the export with control characters.
    HostileRefusal,
    /// Names the export with control characters, and fails each read.
    HostileName,
    /// Lists 100,000 exports with control characters.
    ManyNames,
    /// Prefers blocks of 32 MiB, which is unusual and not wrong.
    LargeBlocks,
    /// Announces 2^63 bytes.
    Size,
    /// Answers with another cookie.
    WrongCookie,
    /// Answers with an error that no standard knows.
    UnknownError,
    /// Ends the connection in the middle of a reply.
    Cut,
    /// Fails each read.
    Unreadable,
}

const REPLY_MAGIC: u64 = 0x3_e889_0455_65a9;
const SIMPLE_REPLY: u32 = 0x6744_6698;

fn bytes<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let header = [option, kind, len].map(u32::to_be_bytes).concat();
    [&REPLY_MAGIC.to_be_bytes()[..], &header, data].concat()
}

fn nbd(mode: Nbd, stream: &mut TcpStream) -> io::Result<()> {
    if mode == Nbd::Flood {
        return flood(stream, &[b'x'; 1 << 16]);
    }
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    if mode == Nbd::FloodReplies {
        return flood(stream, &reply(7, 3, &[]).repeat(1000));
    }
    bytes::<4>(stream)?;
    loop {
        let header: [u8; 16] = bytes(stream)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let (option, len) = (number(8), number(12));
        io::copy(&mut stream.take(len.into()), &mut io::sink())?;
        match option {
            6 | 7 if matches!(mode, Nbd::HostileRefusal | Nbd::ManyNames) => {
                stream.write_all(&reply(option, 0x8000_0006, HOSTILE.as_bytes()))?;
            }
            6 | 7 => {
                stream.write_all(&information(mode, option))?;
                if option == 7 {
                    return nbd_transmission(mode, stream);
                }
            }
            3 => {
                let name = HOSTILE.as_bytes();
                let name = [&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name].concat();
                let count = if mode == Nbd::ManyNames { 100_000 } else { 2 };
                stream.write_all(&reply(3, 2, &name).repeat(count))?;
                stream.write_all(&reply(3, 1, &[]))?;
            }
            2 => return Ok(()),
            _ => stream.write_all(&reply(option, 0x8000_0001, &[]))?,
        }
    }
}

/// The replies to `NBD_OPT_GO`.
fn information(mode: Nbd, option: u32) -> Vec<u8> {
    let size = if mode == Nbd::Size { 1 << 63 } else { DISK };
    let export = [&[0, 0][..], &u64::to_be_bytes(size), &[0, 1]].concat();
    let mut replies = reply(option, 3, &export);
    if mode == Nbd::HostileName {
        replies.extend(reply(option, 3, &[&[0, 1], HOSTILE.as_bytes()].concat()));
        replies.extend(reply(option, 3, &[&[0, 2], HOSTILE.as_bytes()].concat()));
    }
    if mode == Nbd::LargeBlocks {
        let sizes = [1_u32 << 16, 1 << 25, u32::MAX].map(u32::to_be_bytes).concat();
        replies.extend(reply(option, 3, &[&[0, 3][..], &sizes].concat()));
    }
    replies.extend(reply(option, 1, &[]));
    replies
}

fn nbd_transmission(mode: Nbd, stream: &mut TcpStream) -> io::Result<()> {
    loop {
        let header: [u8; 28] = bytes(stream)?;
        let len = u32::from_be_bytes(header[24..].try_into().unwrap()) as usize;
        let answer = |error: u32, flip: u8, data: &[u8]| {
            let mut cookie: [u8; 8] = header[8..16].try_into().unwrap();
            cookie[7] ^= flip;
            let head = [SIMPLE_REPLY, error].map(u32::to_be_bytes).concat();
            [&head[..], &cookie, data].concat()
        };
        let data = vec![0xaa; if header[7] == 0 { len } else { 0 }];
        match (header[7], mode) {
            (2, _) => return Ok(()),
            (0, Nbd::WrongCookie) => stream.write_all(&answer(0, 1, &data))?,
            (0, Nbd::UnknownError) => stream.write_all(&answer(0xdead_beef, 0, &[]))?,
            (0, Nbd::Unreadable | Nbd::HostileName) => stream.write_all(&answer(5, 0, &[]))?,
            (0, Nbd::Cut) => return stream.write_all(&answer(0, 0, &data[..len / 2])),
            _ => stream.write_all(&answer(0, 0, &data))?,
        }
    }
}

#[test]
fn x41_hostile_nbd_servers_end_a_copy() {
    let modes = [
        (Nbd::Flood, 5),
        (Nbd::FloodReplies, 5),
        (Nbd::HostileRefusal, 5),
        (Nbd::HostileName, 3),
        (Nbd::ManyNames, 5),
        (Nbd::LargeBlocks, 0),
        (Nbd::Size, 5),
        (Nbd::WrongCookie, 5),
        (Nbd::UnknownError, 1),
        (Nbd::Cut, 5),
        (Nbd::Unreadable, 3),
    ];
    let mut others = Vec::new();
    for (mode, status) in modes {
        let port = serve(move |stream| nbd(mode, stream));
        let (ended, text) = copied(&format!("nbd://127.0.0.1:{port}/disk"));
        others.extend((ended != Some(status)).then_some((mode, ended, text)));
    }
    assert!(others.is_empty(), "{others:#?}");
}

// ---- NVMe/TCP

/// What an NVMe/TCP target does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nvme {
    /// Sends bytes without end in place of `ICResp`.
    Flood,
    /// Accepts no data from the host (MAXH2CDATA 0).
    NoData,
    /// Answers commands that were never sent, without end.
    FloodResponses,
    /// Sends data without end.
    FloodData,
    /// Sends more data than was asked for.
    TooMuchData,
    /// Asks for the data of a read.
    RequestsReadData,
    /// Answers a read without data.
    WithoutData,
    /// Answers a read twice.
    Twice,
    /// Has a disk of 2^64 - 1 blocks.
    Wrapping,
    /// Has a disk without blocks.
    Empty,
    /// Has an LBA format that does not exist.
    NoFormat,
    /// Is never ready; announces half a second (CAP.TO).
    NotReady,
    /// Cannot read the disk whose model and serial number have control characters.
    Unreadable,
}

fn pdu(kind: u8, flags: u8, header: &[u8], data: &[u8]) -> Vec<u8> {
    let hlen = u8::try_from(8 + header.len()).unwrap();
    let plen = u32::from(hlen) + u32::try_from(data.len()).unwrap();
    let pdo = if kind == 7 { hlen } else { 0 };
    [&[kind, flags, hlen, pdo][..], &plen.to_le_bytes(), header, data].concat()
}

/// A response capsule.
fn response(cid: u16, result: u64, status: u16) -> Vec<u8> {
    let tail = [0, 0, cid, status << 1].map(u16::to_le_bytes).concat();
    pdu(5, 0, &[&result.to_le_bytes()[..], &tail].concat(), &[])
}

/// A C2HData PDU from the beginning of the transfer on.
fn c2h_data(cid: u16, data: &[u8], last: bool) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let numbers = [0, len, 0].map(u32::to_le_bytes).concat();
    pdu(7, if last { 4 } else { 0 }, &[&cid.to_le_bytes()[..], &[0, 0], &numbers].concat(), data)
}

/// Identify Controller (NVMe Base 2.0 §5.17.2.1).
fn identify_controller() -> Vec<u8> {
    let mut page = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(4, &HOSTILE.as_bytes()[..20]);
    put(24, &format!("{HOSTILE:40}").as_bytes()[..40]);
    put(77, &[8, 1, 0]);
    put(80, &0x1_0400_u32.to_le_bytes());
    put(111, &[1]);
    put(259, &[3]);
    put(320, &[10, 0]);
    put(512, &[0x66, 0x44]);
    put(514, &[64, 0]);
    put(516, &[1, 0, 0, 0]);
    put(536, &0x10_0001_u32.to_le_bytes());
    put(768, b"nqn.2014-08.org.nvmexpress:uuid:evil");
    put(1792, &[4, 0, 0, 0, 1, 0, 0, 0]);
    page
}

/// Identify Namespace.
fn identify_namespace(mode: Nvme) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let blocks = match mode {
        Nvme::Wrapping => u64::MAX,
        Nvme::Empty => 0,
        _ => DISK / 512,
    };
    page[..24].copy_from_slice(&[blocks; 3].map(u64::to_le_bytes).concat());
    page[130] = if mode == Nvme::NoFormat { 63 } else { 9 };
    page
}

/// The value of a property (NVMe Base 2.0 §3.1.3).
fn property(mode: Nvme, offset: u32, configuration: u64) -> u64 {
    match offset {
        0 => 0x20_0101_003f | 1 << 37,
        8 => 0x2_0000,
        0x14 => configuration,
        0x1c => u64::from(mode != Nvme::NotReady),
        _ => 0,
    }
}

fn nvme(mode: Nvme, stream: &mut TcpStream) -> io::Result<()> {
    if mode == Nvme::Flood {
        return flood(stream, &[1; 1 << 16]);
    }
    bytes::<128>(stream)?;
    let mut parameters = [0; 120];
    let max_data: u32 = if mode == Nvme::NoData { 0 } else { 1 << 17 };
    parameters[4..8].copy_from_slice(&max_data.to_le_bytes());
    stream.write_all(&pdu(1, 0, &parameters, &[]))?;
    let mut configuration = 0;
    loop {
        let head: [u8; 8] = bytes(stream)?;
        let len = u32::from_le_bytes(head[4..].try_into().unwrap()) as usize;
        let mut body = vec![0; len.saturating_sub(8)];
        stream.read_exact(&mut body)?;
        if head[0] != 4 {
            continue;
        }
        let cid = u16::from_le_bytes([body[2], body[3]]);
        let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        match (body[0], body[4]) {
            (0x7f, 1) => stream.write_all(&response(cid, 1, 0))?,
            (0x7f, 4) => {
                stream.write_all(&response(cid, property(mode, word(44), configuration), 0))?;
            }
            (0x7f, _) => {
                configuration = word(48).into();
                stream.write_all(&response(cid, 0, 0))?;
            }
            (6, _) => identify(mode, cid, body[40], stream)?,
            (2, 1) if len == 72 => read(mode, cid, word(48), stream)?,
            (2, _) => stream
                .write_all(&[c2h_data(cid, &[0; 4096], true), response(cid, 0, 0)].concat())?,
            _ => stream.write_all(&response(cid, 0, 0))?,
        }
    }
}

fn identify(mode: Nvme, cid: u16, cns: u8, stream: &mut TcpStream) -> io::Result<()> {
    if mode == Nvme::FloodResponses {
        return flood(stream, &response(cid ^ 0x7fff, 0, 0).repeat(1000));
    }
    if mode == Nvme::FloodData {
        return flood(stream, &c2h_data(cid, &[0; 4096], false));
    }
    if mode == Nvme::TooMuchData {
        stream.write_all(&c2h_data(cid, &[0; 8192], true))?;
    }
    let page = match cns {
        0 => identify_namespace(mode),
        1 => identify_controller(),
        2 => [&[1, 0, 0, 0][..], &[0; 4092]].concat(),
        3 => [&[3, 16, 0, 0][..], &[9; 16], &[0; 4076]].concat(),
        _ => vec![0; 4096],
    };
    stream.write_all(&[c2h_data(cid, &page, true), response(cid, 0, 0)].concat())
}

fn read(mode: Nvme, cid: u16, dw12: u32, stream: &mut TcpStream) -> io::Result<()> {
    let len = (dw12 as usize % (1 << 16) + 1) * 512;
    let data = c2h_data(cid, &vec![0x5a; len], true);
    let done = response(cid, 0, 0);
    stream.write_all(&match mode {
        Nvme::RequestsReadData => {
            let numbers = [0, u32::try_from(len).unwrap(), 0].map(u32::to_le_bytes).concat();
            pdu(9, 0, &[&cid.to_le_bytes()[..], &[1, 0], &numbers].concat(), &[])
        }
        Nvme::WithoutData => done,
        Nvme::Twice => [data, done.clone(), done].concat(),
        // Unrecovered Read Error.
        Nvme::Unreadable => response(cid, 0, 0x281),
        _ => [data, done].concat(),
    })
}

#[test]
fn x41_hostile_nvme_targets_end_a_copy() {
    let modes = [
        (Nvme::Flood, 5),
        (Nvme::NoData, 5),
        (Nvme::FloodResponses, 5),
        (Nvme::FloodData, 5),
        (Nvme::TooMuchData, 5),
        (Nvme::RequestsReadData, 5),
        (Nvme::WithoutData, 5),
        (Nvme::Twice, 5),
        (Nvme::Wrapping, 5),
        (Nvme::Empty, 5),
        (Nvme::NoFormat, 5),
        (Nvme::NotReady, 5),
        (Nvme::Unreadable, 3),
    ];
    let mut others = Vec::new();
    for (mode, status) in modes {
        let port = serve(move |stream| nvme(mode, stream));
        let uri = format!("nvme://127.0.0.1:{port}/nqn.2014-08.org.nvmexpress:uuid:evil");
        let (ended, text) = copied(&uri);
        others.extend((ended != Some(status)).then_some((mode, ended, text)));
    }
    assert!(others.is_empty(), "{others:#?}");
}
