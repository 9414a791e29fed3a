//! Web servers that lose connections, change files, and send what was not asked for.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fetch::{Body, Error};

/// The file of the servers.
fn file() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// A request: its lines.
type Request = Vec<String>;

/// Answers each connection by `answer`, which is given its number, from 0, and the request. Returns
/// the URL, and the requests so far.
fn serve(
    answer: impl Fn(usize, &Request, &mut TcpStream) + Send + 'static,
) -> (String, Arc<Mutex<Vec<Request>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/image.raw", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let theirs = requests.clone();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let lines = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
            let request: Request = lines.map(|line| line.to_ascii_lowercase()).collect();
            theirs.lock().unwrap().push(request.clone());
            answer(number, &request, &mut stream);
        }
    });
    (url, requests)
}

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Sends the file, or the part that is asked for, with `headers`, and no more than `max` bytes of it.
fn send(request: &Request, headers: &str, max: usize, stream: &mut TcpStream) {
    let (file, total) = (file(), file().len());
    let range = header(request, "range").and_then(|range| range.strip_prefix("bytes="));
    let first = range.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok());
    let from = first.unwrap_or(0);
    let status = match first {
        Some(first) => {
            format!("206 Partial Content\r\nContent-Range: bytes {first}-{}/{total}", total - 1)
        }
        None => "200 OK".to_owned(),
    };
    let len = total - from;
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n");
    let _ = write!(stream, "{headers}\r\n");
    let _ = stream.write_all(&file[from..total.min(from + max)]);
}

fn read(url: &str) -> Result<Vec<u8>, Error> {
    let mut body = Body::open(url.parse().unwrap(), Duration::from_secs(2))?;
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
    let (url, requests) = serve(|_, request, stream| send(request, TAG, 150_000, stream));
    assert!(read(&url).unwrap() == file());
    let requests = requests.lock().unwrap();
    let ranges: Vec<_> = requests.iter().map(|request| header(request, "range")).collect();
    assert_eq!(ranges[..3], [None, Some("bytes=150000-"), Some("bytes=300000-")]);
    assert!(requests[1..].iter().all(|request| header(request, "if-range") == Some("\"one\"")));
}

#[test]
fn r52_parts_of_two_versions_are_not_put_together() {
    // A server that follows `If-Range` sends the whole file, another one the part of the new one.
    for follows in [true, false] {
        let (url, _) = serve(move |number, request, stream| match number {
            0 => send(request, TAG, 150_000, stream),
            _ if follows => send(&Vec::new(), "ETag: \"two\"\r\n", usize::MAX, stream),
            _ => send(request, "ETag: \"two\"\r\n", usize::MAX, stream),
        });
        assert!(matches!(read(&url), Err(Error::Changed)));
    }
}

#[test]
fn r52_another_part_than_the_requested_one_is_refused() {
    let (url, _) = serve(|number, request, stream| match number {
        0 => send(request, TAG, 150_000, stream),
        _ => send(&vec!["range: bytes=149999-".to_owned()], TAG, usize::MAX, stream),
    });
    assert!(matches!(read(&url), Err(Error::Changed)));
}

#[test]
fn r52_a_file_without_a_version_is_not_continued() {
    let (url, requests) = serve(|_, request, stream| send(request, "", 150_000, stream));
    assert!(matches!(read(&url), Err(Error::NoRanges { at: 150_000, .. })));
    // Asked for once more at first: without the time limit of a part.
    assert_eq!(requests.lock().unwrap().len(), 2);
}

#[test]
fn a_server_that_stays_away_ends_the_copy() {
    let (url, _) = serve(|number, request, stream| match number {
        0 => send(request, TAG, 150_000, stream),
        _ => write!(stream, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").unwrap(),
    });
    let error = read(&url).unwrap_err();
    assert!(matches!(&error, Error::Stalled { reason, .. } if reason.contains("503")), "{error}");
}

#[test]
fn a_missing_file_is_named_by_its_status() {
    let (url, _) = serve(|_, _, stream| {
        write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let error = read(&url).unwrap_err();
    assert_eq!(error.to_string(), "the server answers 404 Not Found");
}

#[test]
fn x56_endless_redirections_are_not_followed() {
    let (url, requests) = serve(|number, _, stream| {
        write!(stream, "HTTP/1.1 302 Found\r\nLocation: /{number}\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    });
    assert!(read(&url).is_err());
    assert!(requests.lock().unwrap().len() <= 11);
}

#[test]
fn x56_a_password_is_not_sent_to_another_host() {
    let (other, requests) = serve(|_, request, stream| send(request, TAG, usize::MAX, stream));
    // Another name of the same machine.
    let other = other.replace("127.0.0.1", "localhost");
    let (url, first) = serve(move |_, _, stream| {
        write!(stream, "HTTP/1.1 302 Found\r\nLocation: {other}\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    });
    let url = url.replace("http://", "http://anna:secret@");
    assert!(read(&url).unwrap() == file());
    assert!(header(&first.lock().unwrap()[0], "authorization").is_some());
    assert_eq!(header(&requests.lock().unwrap()[0], "authorization"), None);
}
