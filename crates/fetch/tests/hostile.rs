//! Web servers that lose connections, change files, and send what was not asked for.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fetch::{Access, Body, Error, waiting};
use testkit::web::{Request, Server, reply, send};

/// The file of the servers.
fn file() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// Answers each connection by `answer`, as a server of the file `/image.raw`. Returns its URL, too.
fn serve(answer: impl Fn(usize, &Request, &mut TcpStream) + Send + 'static) -> (String, Server) {
    let server = Server::start(answer);
    (format!("http://{}/image.raw", server.authority), server)
}

/// Sends the file, or the part that is asked for, with `headers`, and no more than `max` bytes of it.
fn part(request: &Request, headers: &str, max: usize, stream: &mut TcpStream) {
    send(stream, (&file(), request.first()), headers, max);
}

fn read(url: &str) -> Result<Vec<u8>, Error> {
    let mut body = Body::open(&url.parse().unwrap(), &Access::default(), Duration::from_secs(2))?;
    let (mut all, mut piece) = (Vec::new(), vec![0; 60_000]);
    loop {
        match body.read(&mut piece)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

const TAG: &str = "ETag: \"one\"\r\n";

#[test]
fn r52_lost_connections_are_continued_at_their_byte() {
    let (url, server) = serve(|_, request, stream| part(request, TAG, 150_000, stream));
    assert!(read(&url).unwrap() == file());
    let requests = server.requests();
    let parts: Vec<_> = requests.iter().map(Request::first).collect();
    assert_eq!(parts[..3], [None, Some(150_000), Some(300_000)]);
    assert!(requests[1..].iter().all(|request| request.header("if-range") == Some("\"one\"")));
}

#[test]
fn r52_parts_of_two_versions_are_not_put_together() {
    // A server that follows `If-Range` sends the whole file, another one the part of the new one.
    for follows in [true, false] {
        let (url, _) = serve(move |number, request, stream| match number {
            0 => part(request, TAG, 150_000, stream),
            _ if follows => send(stream, (&file(), None), "ETag: \"two\"\r\n", usize::MAX),
            _ => part(request, "ETag: \"two\"\r\n", usize::MAX, stream),
        });
        assert!(matches!(read(&url), Err(Error::Changed)));
    }
}

#[test]
fn r52_another_part_than_the_requested_one_is_refused() {
    let (url, _) = serve(|number, request, stream| match number {
        0 => part(request, TAG, 150_000, stream),
        _ => send(stream, (&file(), Some(149_999)), TAG, usize::MAX),
    });
    assert!(matches!(read(&url), Err(Error::OtherPart)));
}

#[test]
fn r52_a_file_without_a_version_is_not_continued() {
    let (url, server) = serve(|_, request, stream| part(request, "", 150_000, stream));
    assert!(matches!(read(&url), Err(Error::NoRanges { at: 150_000, .. })));
    // Asked for once more at first: without the time limit of a part.
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_server_that_stays_away_ends_the_copy() {
    let (url, _) = serve(|number, request, stream| match number {
        0 => part(request, TAG, 150_000, stream),
        _ => reply(stream, "503 Busy", "", b""),
    });
    let error = read(&url).unwrap_err();
    assert!(matches!(&error, Error::Stalled { reason, .. } if reason.contains("503")), "{error}");
}

#[test]
fn server_that_comes_late_is_waited_for_on_request() {
    let answer = |number, request: &Request, stream: &mut TcpStream| match number {
        0 => {}
        1 => reply(stream, "503 Busy", "", b""),
        _ => part(request, TAG, usize::MAX, stream),
    };
    let open = |waits, patience| {
        let (url, _) = serve(answer);
        let (url, access) = (url.parse().unwrap(), Access::default());
        let patience = Duration::from_secs(patience);
        match waits {
            true => waiting(patience, &mut |_| {}, || Body::open(&url, &access, patience)),
            false => Body::open(&url, &access, patience),
        }
    };
    assert_eq!(open(true, 30).unwrap().length(), Some(800_000));
    open(true, 0).unwrap_err();
    open(false, 30).unwrap_err();
    let (url, server) = serve(|_, _, stream| reply(stream, "404 Not Found", "", b""));
    let (url, access) = (url.parse().unwrap(), Access::default());
    let patience = Duration::from_secs(30);
    waiting(patience, &mut |_| {}, || Body::open(&url, &access, patience)).unwrap_err();
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_missing_file_is_named_by_its_status() {
    let (url, _) = serve(|_, _, stream| reply(stream, "404 Not Found", "", b""));
    let error = read(&url).unwrap_err();
    assert_eq!(error.to_string(), "the server answers 404 Not Found");
}

#[test]
fn x56_endless_redirections_are_not_followed() {
    let (url, server) = serve(|number, _, stream| {
        reply(stream, "302 Found", &format!("Location: /{number}\r\n"), b"");
    });
    assert!(read(&url).is_err());
    assert!(server.requests().len() <= 11);
}

#[test]
fn x56_a_password_is_not_sent_to_another_host() {
    let (other, server) = serve(|_, request, stream| part(request, TAG, usize::MAX, stream));
    // Another name of the same machine, which needs no resolver.
    let other = other.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let (url, first) = serve(move |_, _, stream| {
        reply(stream, "302 Found", &format!("Location: {other}\r\n"), b"");
    });
    let url = url.replace("http://", "http://anna:secret@");
    assert!(read(&url).unwrap() == file());
    assert!(first.requests()[0].header("authorization").is_some());
    assert_eq!(server.requests()[0].header("authorization"), None);
}

#[test]
fn silent_server_is_given_up_after_the_patience() {
    // A server that sends parts, and one that does not: each sends the beginning of the file and then nothing.
    for headers in [TAG, ""] {
        let (held, begin) = (Mutex::new(Vec::new()), Instant::now());
        let (url, _) = serve(move |_, request, stream| {
            part(request, headers, 150_000, stream);
            held.lock().unwrap().push(stream.try_clone().unwrap());
        });
        let error = read(&url).unwrap_err();
        assert!(matches!(error, Error::Stalled { .. } | Error::NoRanges { .. }), "{error}");
        let seconds = begin.elapsed().as_secs();
        assert!((5..60).contains(&seconds), "{seconds}");
    }
}

#[test]
fn slow_server_is_waited_for_while_bytes_come() {
    // Longer in all than it may be silent.
    let (url, server) = serve(|_, _, stream| {
        let file = file();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{TAG}\r\n", file.len()).unwrap();
        for piece in file.chunks(file.len().div_ceil(7)) {
            std::thread::sleep(Duration::from_secs(1));
            stream.write_all(piece).unwrap();
        }
    });
    assert!(read(&url).unwrap() == file());
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn server_is_asked_again_when_it_says() {
    // It is waited for as long as it asks, and not longer than the patience.
    for (asked, is_patient) in [("1", true), ("4000", false)] {
        let (url, server) = serve(move |number, request, stream| match number {
            0 => part(request, TAG, 150_000, stream),
            1 => reply(stream, "503 Busy", &format!("Retry-After: {asked}\r\n"), b""),
            _ => part(request, TAG, usize::MAX, stream),
        });
        let begin = Instant::now();
        match read(&url) {
            Ok(all) => assert!(is_patient && all == file()),
            Err(error) => {
                assert!(!is_patient && error.to_string().contains("4000 seconds"), "{error}");
            }
        }
        let millis = begin.elapsed().as_millis();
        assert!(!is_patient || millis >= 1000, "{millis}");
        assert_eq!(server.requests().len(), if is_patient { 3 } else { 2 });
    }
}

#[test]
fn r52_time_of_a_minute_ago_names_a_version() {
    // RFC 9110 §8.8.2.2: another modification in the same second would have the same time.
    let modified = "Last-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\n";
    for (date, is_version) in [("12:45:26", false), ("12:45:40", false), ("12:46:26", true)] {
        let headers = format!("{modified}Date: Tue, 15 Nov 1994 {date} GMT\r\n");
        let (url, server) =
            serve(move |_, request, stream| part(request, &headers, 700_000, stream));
        assert_eq!(read(&url).is_ok(), is_version, "{date}");
        let requests = server.requests();
        assert_eq!(requests.last().unwrap().first().is_some(), is_version, "{date}");
    }
}

#[test]
fn r52_weak_tag_with_a_time_names_no_version() {
    // RFC 9110 §13.1.5: no date in If-Range if there is an entity tag.
    let headers = "ETag: W/\"1\"\r\nLast-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\n\
                   Date: Tue, 15 Nov 1994 13:45:26 GMT\r\n";
    let (url, server) = serve(move |_, request, stream| part(request, headers, 700_000, stream));
    assert!(matches!(read(&url), Err(Error::NoRanges { .. })));
    assert!(server.requests().iter().all(|request| request.header("if-range").is_none()));
}

#[test]
fn x56_server_that_sends_a_byte_now_and_then_is_given_up() {
    let (url, server) = serve(|_, request, stream| {
        part(request, TAG, 1000, stream);
        while stream.write_all(&[7]).is_ok() {
            std::thread::sleep(Duration::from_millis(400));
        }
    });
    let begin = Instant::now();
    let error = read(&url).unwrap_err();
    assert!(error.to_string().contains("bytes a second"), "{error}");
    let seconds = begin.elapsed().as_secs();
    assert!((5..60).contains(&seconds) && server.requests().len() < 5, "{seconds}");
}
