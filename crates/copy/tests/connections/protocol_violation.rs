//! Servers that violate their protocol (X41): the connection is lost, and the endpoint is not
//! opened again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use client::{Dial, Transport, ignoring_subsystem};
use copy::{Endpoint, EndpointError, Request as DiskRequest};
use copy::{IscsiEndpoint, NbdEndpoint, NvmeEndpoint, NvmeHost};
use nbd::wire::handshake::Hello;
use nbd::wire::option::{self, InfoExport, ReplyHeader};
use nbd::wire::reply::SimpleReply;
use nbd::wire::request::{Request, flags};
use zerocopy::{FromBytes, IntoBytes};

use crate::driver::Driven;

/// A server that runs `behavior` in a thread for each connection.
fn serve_with(
    behavior: fn(UnixStream) -> std::io::Result<()>,
) -> (Dial, Arc<Mutex<Vec<JoinHandle<()>>>>) {
    let threads = Arc::new(Mutex::new(Vec::new()));
    let started = threads.clone();
    let dial: Dial = Arc::new(move || {
        let (mine, theirs) = UnixStream::pair().unwrap();
        // Errors of a client that disconnects are ignored.
        let thread = thread::spawn(move || drop(behavior(theirs)));
        started.lock().unwrap().push(thread);
        Ok(Box::new(mine) as Box<dyn Transport>)
    });
    (dial, threads)
}

fn skip(stream: &mut UnixStream, count: usize) -> std::io::Result<()> {
    stream.read_exact(&mut vec![0; count])
}

/// Opens an export of this size with `NBD_OPT_EXPORT_NAME`.
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
fn reply_twice(mut stream: UnixStream) -> std::io::Result<()> {
    open(&mut stream, 1 << 20)?;
    let mut header = [0; size_of::<Request>()];
    stream.read_exact(&mut header)?;
    let request = Request::read_from_bytes(&header).unwrap();
    let reply = SimpleReply::new(0, request.cookie.get());
    let data = vec![1; usize::try_from(request.len.get()).unwrap()];
    stream.write_all(&[reply.as_bytes(), &data, reply.as_bytes()].concat())?;
    skip(&mut stream, usize::MAX >> 40)
}

/// Announces an export of 2^63 bytes.
fn announce_impossible_size(mut stream: UnixStream) -> std::io::Result<()> {
    open(&mut stream, 1 << 63)
}

#[test]
fn x41_duplicate_reply_disconnects_for_good() {
    let (dial, threads) = serve_with(reply_twice);
    let endpoint = NbdEndpoint::new("nbd://server", "", dial);
    let mut driven = Driven::new(endpoint.open().unwrap().1);
    let buffer = driven.buffer(4096);
    driven.submit(DiskRequest::Read { offset: 0, buffer });
    // The correct reply counts if it comes before the wrong one.
    let lost = driven.wait(2).map(|completions| completions.len()).unwrap_err();
    assert!(lost.reason.contains("CookieUnknown"), "{}", lost.reason);
    drop(driven);
    match endpoint.open().err() {
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
fn x41_impossible_export_size_is_refused() {
    let (dial, _threads) = serve_with(announce_impossible_size);
    match NbdEndpoint::new("nbd://server", "", dial).open().err() {
        Some(EndpointError::Violation(sentence)) => {
            assert!(sentence.contains("2^63 bytes or more (SizeImpossible)"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
}

/// Sends bytes that are not a PDU.
fn send_garbage(mut stream: UnixStream) -> std::io::Result<()> {
    stream.write_all(&[1; 4096])?;
    skip(&mut stream, usize::MAX >> 40)
}

#[test]
fn x41_nvme_protocol_violation_is_refused() {
    let (dial, _threads) = serve_with(send_garbage);
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:host".to_owned();
    let host = NvmeHost { nqn, id: [3; 16], credentials: None };
    let endpoint =
        NvmeEndpoint::new("nvme://target", "nqn.2024-01.test:disk", host, ignoring_subsystem(dial));
    match endpoint.open().err() {
        Some(EndpointError::Violation(sentence)) => {
            assert!(sentence.contains("violated NVMe/TCP"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn x41_iscsi_protocol_violation_is_refused_for_good() {
    let (dial, threads) = serve_with(send_garbage);
    let endpoint =
        IscsiEndpoint::new("iscsi://target", "iqn.2026-01.test:h", "iqn.2026-01.test:d", 0, dial);
    for _ in 0..2 {
        match endpoint.open().err() {
            Some(EndpointError::Violation(sentence)) => {
                assert!(sentence.contains("(AhsUnexpected)"), "{sentence}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(threads.lock().unwrap().len(), 1, "it was connected to once");
}
