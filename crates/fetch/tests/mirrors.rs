//! Files behind a redirector, whose nodes name different versions of the same file.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fetch::{Access, Body, Error, Parts};
use testkit::web::{Request, Server, reply, send, send_part};

/// The file of the nodes.
fn file() -> Vec<u8> {
    (0..50_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// A node of the file, which has this entity tag, until `is_dead` says so of a request.
fn node(tag: &'static str, max: usize, is_dead: impl Fn(usize) -> bool + Send + 'static) -> Server {
    Server::start(move |number, request, stream| {
        if !is_dead(number) {
            let is_same = request.header("if-range").is_none_or(|wanted| wanted == tag);
            let part = request.part().filter(|_| is_same);
            send_part(stream, (&file(), part), &format!("ETag: {tag}\r\n"), max);
        }
    })
}

/// Redirects the requests to the nodes in turn. Returns the URL, too.
fn redirector(nodes: &[&Server]) -> (String, Server) {
    let nodes: Vec<String> = nodes.iter().map(|node| node.authority.clone()).collect();
    let server = Server::start(move |number, _, stream: &mut TcpStream| {
        let node = &nodes[number % nodes.len()];
        reply(stream, "302 Found", &format!("Location: http://{node}/image.raw\r\n"), b"");
    });
    (format!("http://{}/image.raw", server.authority), server)
}

const PATIENCE: Duration = Duration::from_secs(2);

fn read(url: &str, is_hashed: bool) -> Result<Vec<u8>, Error> {
    let mut body = Body::open(&url.parse().unwrap(), &Access::default(), PATIENCE)?;
    if is_hashed {
        body.let_hash_decide();
    }
    let (mut all, mut piece) = (Vec::new(), vec![0; 60_000]);
    loop {
        match body.read(&mut piece)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

#[test]
fn r52_node_that_sent_the_file_is_asked_for_the_rest() {
    let (one, two) = (node("\"1\"", 70_000, |_| false), node("\"2\"", usize::MAX, |_| false));
    let (url, redirector) = redirector(&[&one, &two]);
    assert!(read(&url, false).unwrap() == file());
    assert_eq!((redirector.requests().len(), two.requests().len()), (1, 0));
}

#[test]
fn r52_node_that_is_gone_is_left() {
    for answers in [false, true] {
        // It closes connections, or answers and sends nothing.
        let gone = move |_: usize, request: &Request, stream: &mut TcpStream| match request.first()
        {
            None => send(stream, (&file(), None), "ETag: \"1\"\r\n", 70_000),
            Some(first) if answers => send(stream, (&file(), Some(first)), "ETag: \"1\"\r\n", 0),
            Some(_) => {}
        };
        let (one, two) = (Server::start(gone), node("\"1\"", usize::MAX, |_| false));
        let (url, _redirector) = redirector(&[&one, &two]);
        assert!(read(&url, false).unwrap() == file());
        assert_eq!(two.requests()[0].first(), Some(70_000));
    }
}

#[test]
fn r52_other_version_of_another_node_needs_the_hash() {
    let nodes = || {
        let one = node("\"1\"", 70_000, |number| number > 0);
        (one, node("\"2\"", usize::MAX, |_| false))
    };
    let (one, two) = nodes();
    let (url, _redirector) = redirector(&[&one, &two]);
    let error = read(&url, false).unwrap_err();
    let reason = error.to_string();
    assert!(matches!(error, Error::Stalled { .. }), "{reason}");
    assert!(reason.contains("the file is of another version"), "{reason}");
    let (one, two) = nodes();
    let (url, _redirector) = redirector(&[&one, &two]);
    assert!(read(&url, true).unwrap() == file());
}

#[test]
fn r52_file_that_changed_everywhere_is_not_waited_for() {
    let tags = ["\"1\"", "\"2\""];
    let changes = move |number: usize, request: &Request, stream: &mut TcpStream| {
        let tag = tags[number.min(1)];
        let is_same = request.header("if-range").is_none_or(|wanted| wanted == tag);
        let part = request.part().filter(|_| is_same);
        let max = if number == 0 { 70_000 } else { usize::MAX };
        send_part(stream, (&file(), part), &format!("ETag: {tag}\r\n"), max);
    };
    let one = Server::start(changes);
    let (url, _redirector) = redirector(&[&one]);
    assert!(matches!(read(&url, false), Err(Error::Changed)));
}

#[test]
fn r52_further_connections_ask_the_node_of_the_first() {
    let dead = Arc::new(AtomicUsize::new(usize::MAX));
    let theirs = dead.clone();
    let one = node("\"1\"", usize::MAX, move |number| number >= theirs.load(Ordering::Relaxed));
    let two = node("\"2\"", usize::MAX, |_| false);
    let (url, redirector) = redirector(&[&one, &two]);
    let mut first = Parts::open(&url.parse().unwrap(), &Access::default(), PATIENCE).unwrap();
    let mut part = vec![0; 1000];
    let mut second = first.again().unwrap();
    for parts in [&mut first, &mut second] {
        parts.read_at(5000, &mut part).unwrap();
        assert!(part == file()[5000..6000]);
    }
    assert_eq!((redirector.requests().len(), two.requests().len()), (1, 0));
    dead.store(0, Ordering::Relaxed);
    let error = second.read_at(5000, &mut part).unwrap_err();
    assert!(matches!(error, Error::OtherVersion(_)) && error.is_temporary(), "{error}");
    assert!(first.again().is_err());
    first.let_hash_decide();
    let mut third = first.again().unwrap();
    third.read_at(5000, &mut part).unwrap();
    assert!(part == file()[5000..6000]);
}

#[test]
fn r52_hash_does_not_excuse_another_length() {
    let one = node("\"1\"", 70_000, |number| number > 0);
    let two = Server::start(|_, request, stream| {
        send_part(stream, (&[7; 200_001], request.part()), "ETag: \"2\"\r\n", usize::MAX);
    });
    let (url, _redirector) = redirector(&[&one, &two]);
    assert!(matches!(read(&url, true), Err(Error::Changed)));
}
