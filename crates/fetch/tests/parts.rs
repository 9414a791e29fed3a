//! Parts of files, of web servers that send others, none, or those of another version.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::TcpStream;
use std::time::Duration;

use fetch::{Access, Error, Parts};
use testkit::web::{Request, Server, reply, send, send_part};

const TAG: &str = "ETag: \"one\"\r\n";

/// The file of the servers.
fn file() -> Vec<u8> {
    (0..50_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn serve(answer: impl Fn(usize, &Request, &mut TcpStream) + Send + 'static) -> (String, Server) {
    let server = Server::start(answer);
    (format!("http://{}/image.raw", server.authority), server)
}

fn open(url: &str) -> Result<Parts, Error> {
    Parts::open(&url.parse().unwrap(), &Access::default(), Duration::from_secs(2))
}

/// Sends the part that is asked for.
fn part(request: &Request, headers: &str, stream: &mut TcpStream) {
    send_part(stream, (&file(), request.part()), headers, usize::MAX);
}

#[test]
fn parts_are_read_in_any_order() {
    let (url, server) = serve(|_, request, stream| part(request, TAG, stream));
    let mut parts = open(&url).unwrap();
    assert_eq!((parts.length(), parts.version().as_str()), (200_000, "\"one\""));
    for (offset, len) in [(150_000, 50_000), (0, 1), (7, 10_000)] {
        let mut bytes = vec![0; len];
        parts.read_at(offset as u64, &mut bytes).unwrap();
        assert!(bytes == file()[offset..offset + len]);
    }
    let requests = server.requests();
    assert_eq!(requests[1].header("range"), Some("bytes=150000-199999"));
    assert!(requests[1..].iter().all(|request| request.header("if-range") == Some("\"one\"")));
}

#[test]
fn r52_server_without_parts_or_version_is_refused() {
    let date = "Date: Tue, 15 Nov 1994 12:45:26 GMT\r\n";
    let same = "Last-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\n";
    let weak = "ETag: W/\"one\"\r\n";
    let cases = [
        (String::new(), "no version"),
        (weak.to_owned(), "no version"),
        (format!("{weak}{date}Last-Modified: Tue, 15 Nov 1994 12:00:00 GMT\r\n"), "no version"),
        (format!("{date}{same}"), "no version"),
        (same.to_owned(), "no version"),
        (format!("{TAG}Content-Encoding: gzip\r\n"), "compresses it"),
    ];
    for (headers, reason) in cases {
        let (url, _) = serve(move |_, request, stream| part(request, &headers, stream));
        let error = open(&url).unwrap_err();
        assert!(matches!(error, Error::NoParts(text) if text.contains(reason)), "{error}");
    }
    let (url, _) = serve(|_, _, stream| send(stream, (&file(), None), TAG, usize::MAX));
    assert!(matches!(open(&url), Err(Error::NoParts(_))));
    let (url, _) = serve(|_, _, stream| reply(stream, "416 Range Not Satisfiable", TAG, b""));
    assert!(matches!(open(&url), Err(Error::NoParts(_))));
    let headers = "ETag: \"one\"\r\nContent-Range: bytes 0-0/*\r\n";
    let (url, _) = serve(move |_, _, stream| reply(stream, "206 Partial Content", headers, b"0"));
    assert!(matches!(open(&url), Err(Error::NoParts(_))));
    // A time that is old enough is a version.
    let headers = format!("{date}Last-Modified: Tue, 15 Nov 1994 12:44:26 GMT\r\n");
    let (url, _) = serve(move |_, request, stream| part(request, &headers, stream));
    assert_eq!(open(&url).unwrap().version(), "Tue, 15 Nov 1994 12:44:26 GMT");
}

/// Reads a part of a server that answers the first request well, and the next ones by `answer`.
fn read(answer: impl Fn(&Request, &mut TcpStream) + Send + 'static) -> Error {
    let (url, _) = serve(move |number, request, stream| match number {
        0 => part(request, TAG, stream),
        _ => answer(request, stream),
    });
    open(&url).unwrap().read_at(1000, &mut [0; 500]).unwrap_err()
}

#[test]
fn r52_part_of_another_version_is_not_read() {
    let two = "ETag: \"two\"\r\n";
    let whole = read(move |_, stream| send(stream, (&file(), None), two, usize::MAX));
    assert!(matches!(whole, Error::Changed), "{whole}");
    let other = read(move |request, stream| part(request, two, stream));
    assert!(matches!(other, Error::Changed), "{other}");
    for unnamed in ["", "ETag: W/\"one\"\r\n"] {
        let unnamed = read(move |request, stream| part(request, unnamed, stream));
        assert!(matches!(unnamed, Error::Changed), "{unnamed}");
    }
    let grown = read(|request, stream| {
        send_part(stream, (&[0; 200_001], request.part()), TAG, usize::MAX);
    });
    assert!(matches!(grown, Error::Changed), "{grown}");
    let shorter = read(|_, stream| reply(stream, "416 Range Not Satisfiable", TAG, b""));
    assert!(matches!(shorter, Error::Changed), "{shorter}");
}

#[test]
fn r52_other_and_short_parts_are_not_read() {
    for (first, end) in [(999, 1499), (1000, 1499), (1000, 1501), (1001, 1500)] {
        let error = read(move |_, stream| {
            send_part(stream, (&file(), Some((first, Some(end)))), TAG, usize::MAX);
        });
        assert!(matches!(error, Error::OtherPart), "{first} {end}: {error}");
    }
    let cut = read(|request, stream| send_part(stream, (&file(), request.part()), TAG, 499));
    assert!(matches!(cut, Error::Cut | Error::Http(_)), "{cut}");
    let range = "ETag: \"one\"\r\nContent-Range: bytes 1000-1499/200000\r\n";
    for bytes in [400, 600] {
        let error = read(move |_, stream| {
            reply(stream, "206 Partial Content", range, &vec![0; bytes]);
        });
        assert!(matches!(error, Error::Cut | Error::TooLong(500)), "{bytes}: {error}");
    }
}

#[test]
fn x56_password_of_parts_is_not_sent_to_another_host() {
    let (other, server) = serve(|_, request, stream| part(request, TAG, stream));
    let other = other.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let (url, _) = serve(move |_, _, stream| {
        reply(stream, "302 Found", &format!("Location: {other}\r\n"), b"");
    });
    let mut parts = open(&url.replace("http://", "http://anna:secret@")).unwrap();
    parts.read_at(0, &mut [0; 500]).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.header("authorization").is_none()));
}
