//! Servers that lie, at the other end of a socket (X41): the connection is lost, and the place is not opened again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use copy::{
    Dial, Endpoint, EndpointError, NbdEndpoint, NvmeEndpoint, NvmeHost, Request as DiskRequest,
    Transport, any_subsystem,
};
use nbd::wire::handshake::Hello;
use nbd::wire::option::{self, InfoExport, ReplyHeader};
use nbd::wire::reply::SimpleReply;
use nbd::wire::request::{Request, flags};
use zerocopy::{FromBytes, IntoBytes};

use crate::driver::Driven;

/// Each connection leads to a new thread that says this.
fn liar(says: fn(UnixStream) -> std::io::Result<()>) -> (Dial, Arc<Mutex<Vec<JoinHandle<()>>>>) {
    let threads = Arc::new(Mutex::new(Vec::new()));
    let started = threads.clone();
    let dial: Dial = Arc::new(move || {
        let (mine, theirs) = UnixStream::pair().unwrap();
        // Whether the client hangs up on it is the client's affair.
        let thread = thread::spawn(move || drop(says(theirs)));
        started.lock().unwrap().push(thread);
        Ok(Box::new(mine) as Box<dyn Transport>)
    });
    (dial, threads)
}

fn skip(stream: &mut UnixStream, count: usize) -> std::io::Result<()> {
    stream.read_exact(&mut vec![0; count])
}

/// Opens an export of so many bytes to whoever asks, in the oldest manner.
fn open(stream: &mut UnixStream, bytes: u64) -> std::io::Result<()> {
    stream.write_all(Hello::new().as_bytes())?;
    skip(stream, 4)?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let asked = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        skip(stream, usize::from(header[15]))?;
        let reply = |kind, len| ReplyHeader::new(asked, kind, len).as_bytes().to_vec();
        if asked != option::GO {
            stream.write_all(&reply(option::ERR_UNSUP, 0))?;
            continue;
        }
        let info = InfoExport::new(bytes, flags::HAS_FLAGS);
        let said = [reply(option::REP_INFO, 12), info.as_bytes().to_vec(), reply(option::ACK, 0)];
        return stream.write_all(&said.concat());
    }
}

/// Answers the first read twice.
fn answers_twice(mut stream: UnixStream) -> std::io::Result<()> {
    open(&mut stream, 1 << 20)?;
    let mut header = [0; size_of::<Request>()];
    stream.read_exact(&mut header)?;
    let request = Request::read_from_bytes(&header).unwrap();
    let reply = SimpleReply::new(0, request.cookie.get());
    let data = vec![1; usize::try_from(request.len.get()).unwrap()];
    stream.write_all(&[reply.as_bytes(), &data, reply.as_bytes()].concat())?;
    skip(&mut stream, usize::MAX >> 40)
}

/// Says that the export has 2^63 bytes.
fn boasts(mut stream: UnixStream) -> std::io::Result<()> {
    open(&mut stream, 1 << 63)
}

#[test]
fn x41_a_server_that_answers_twice_is_not_asked_again() {
    let (dial, threads) = liar(answers_twice);
    let place = NbdEndpoint::new("nbd://liar", "", dial);
    let mut driven = Driven::new(place.open().unwrap().1);
    let buffer = driven.buffer(4096);
    driven.submit(DiskRequest::Read { offset: 0, buffer });
    // The right answer counts, if it comes before the wrong one.
    let lost = driven.wait(2).map(|completions| completions.len()).unwrap_err();
    assert!(lost.reason.contains("CookieUnknown"), "{}", lost.reason);
    drop(driven);
    match place.open().err() {
        Some(EndpointError::Violation(sentence)) => {
            assert!(sentence.contains("(CookieUnknown)"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
    let threads = std::mem::take(&mut *threads.lock().unwrap());
    assert_eq!(threads.len(), 1, "it was connected to once");
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn x41_a_server_that_boasts_is_refused() {
    let (dial, _threads) = liar(boasts);
    match NbdEndpoint::new("nbd://liar", "", dial).open().err() {
        Some(EndpointError::Violation(sentence)) => {
            assert!(sentence.contains("2^63 bytes or more (SizeImpossible)"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
}

/// Sends what is no PDU of a target.
fn babbles(mut stream: UnixStream) -> std::io::Result<()> {
    stream.write_all(&[1; 4096])?;
    skip(&mut stream, usize::MAX >> 40)
}

#[test]
fn x41_nvme_target_that_breaks_its_protocol_is_refused() {
    let (dial, _threads) = liar(babbles);
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:host".to_owned();
    let host = NvmeHost { nqn, id: [3; 16], credentials: None };
    let place =
        NvmeEndpoint::new("nvme://liar", "nqn.2024-01.test:disk", host, any_subsystem(dial));
    match place.open().err() {
        Some(EndpointError::Violation(sentence)) => {
            assert!(sentence.contains("broke a rule of NVMe/TCP"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
}
