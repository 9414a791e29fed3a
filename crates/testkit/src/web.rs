//! A web server for tests: one connection at a time, one request each.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path and the query.
    pub path: String,
    /// Names in lower case, and values.
    headers: Vec<(String, String)>,
    /// The body, if its length was announced.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns the value of a header with this name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// Returns the first byte of the rest of a file that is asked for, if a part is.
    pub fn first(&self) -> Option<usize> {
        self.part().and_then(|(first, end)| end.is_none().then_some(first))
    }

    /// Returns the part of a file that is asked for: its first byte, and the byte after it, unless it is the end.
    pub fn part(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let end = match last {
            "" => None,
            last => Some(last.parse::<usize>().ok()?.checked_add(1)?),
        };
        Some((first.parse().ok()?, end))
    }
}

/// A running server; its thread lasts as long as the process.
#[derive(Debug)]
pub struct Server {
    /// Address and port.
    pub authority: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers each connection by `answer`, which is given its number, from 0, and the request.
    ///
    /// # Panics
    /// Panics if no port of the loopback is free.
    pub fn start(answer: impl Fn(usize, &Request, &mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let authority = listener.local_addr().expect("a bound socket").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let theirs = requests.clone();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(mut stream) = stream else { continue };
                let Some(request) = receive(&stream) else { continue };
                theirs.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                answer(number, &request, &mut stream);
            }
        });
        Self { authority, requests }
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn receive(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let lines = reader.by_ref().lines().map_while(Result::ok);
    let mut lines = lines.take_while(|line| !line.is_empty());
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let header = |line: String| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.filter_map(header).collect();
    let mut request = Request { method, path, headers, body: Vec::new() };
    let length = request.header("content-length").and_then(|length| length.parse().ok());
    reader.take(length.unwrap_or(0)).read_to_end(&mut request.body).ok()?;
    Some(request)
}

/// Sends a status line such as `404 Not Found`, headers that each end with CRLF, and a body. A client
/// that has left is none of the server's business.
pub fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    let _ = stream.write_all(body);
}

/// Sends a file, or its rest from `first` on, with `headers`, and no more than `max` bytes of it.
pub fn send(
    stream: &mut TcpStream,
    (file, first): (&[u8], Option<usize>),
    headers: &str,
    max: usize,
) {
    send_part(stream, (file, first.map(|first| (first, None))), headers, max);
}

/// Sends a file, or a part of it ([`Request::part`]), as [`send`].
pub fn send_part(
    stream: &mut TcpStream,
    (file, part): (&[u8], Option<(usize, Option<usize>)>),
    headers: &str,
    max: usize,
) {
    let (total, (from, end)) = (file.len(), part.unwrap_or((0, None)));
    let end = end.unwrap_or(total).min(total);
    let status = match part {
        Some(_) => {
            let last = end.saturating_sub(1);
            format!("206 Partial Content\r\nContent-Range: bytes {from}-{last}/{total}")
        }
        None => "200 OK".to_owned(),
    };
    let rest = file.get(from..end).unwrap_or_default();
    let length = rest.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    let _ = stream.write_all(rest.get(..max.min(length)).unwrap_or_default());
}
