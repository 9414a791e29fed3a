//! The bytes of a file on a web server.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, BodyReader, ResponseExt as _};

use crate::version::{Range, Version, length};
use crate::{Error, Location, client};

/// The longest time of one response of a server that sends parts of files. The next request
/// continues it, so that a connection on which nothing comes any more does not last.
const PART: Duration = Duration::from_secs(60);

/// Pause after a lost connection, at first and at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(10)];

/// A file that is read from a web server.
pub struct Body {
    client: Agent,
    location: Location,
    /// The address to which the server redirected.
    source: Uri,
    /// The version and the length of a file of which the server sends parts.
    whole: Option<(Version, u64)>,
    length: Option<u64>,
    /// Number of bytes that were read.
    at: u64,
    reader: BodyReader<'static>,
    patience: Duration,
    /// When the last byte was received.
    progress: Instant,
    pause: Duration,
}

impl Body {
    /// Requests a file. A connection that is lost later is made again until no byte came for
    /// `patience`.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, does not prove its identity, or does not give the
    /// file.
    pub fn open(location: Location, patience: Duration) -> Result<Self, Error> {
        let client = client::client(&location);
        let mut response = request(&client, &location, Some(PART))?;
        let (length, headers) = (length(response.headers()), response.headers());
        let has_ranges = headers.get(header::ACCEPT_RANGES).is_none_or(|value| value != "none");
        let version = Version::from_headers(headers).filter(|_| has_ranges);
        let whole = version.zip(length);
        if whole.is_none() {
            response = request(&client, &location, None)?;
        }
        let source = response.get_uri().clone();
        let reader = response.into_body().into_reader();
        let (progress, pause) = (Instant::now(), PAUSE[0]);
        Ok(Self {
            client,
            location,
            source,
            whole,
            length,
            at: 0,
            reader,
            patience,
            progress,
            pause,
        })
    }

    /// Returns the number of bytes of the file, if the server announced it.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Reads some bytes; returns 0 at the end of the file, or if `bytes` is empty.
    ///
    /// # Errors
    /// Fails if the connection is lost and the file cannot be read on.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
        loop {
            let reason = match self.reader.read(bytes) {
                Ok(0) if bytes.is_empty() => return Ok(0),
                Ok(0) if self.length.is_none_or(|length| self.at == length) => return Ok(0),
                Ok(0) => "it ended early".to_owned(),
                Ok(count) => return self.count(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error.to_string(),
            };
            self.resume(reason)?;
        }
    }

    fn count(&mut self, count: usize) -> Result<usize, Error> {
        self.at = self.at.saturating_add(count as u64);
        (self.progress, self.pause) = (Instant::now(), PAUSE[0]);
        match self.length.filter(|length| self.at > *length) {
            Some(length) => Err(Error::TooLong(length)),
            None => Ok(count),
        }
    }

    /// Requests the rest of the file.
    fn resume(&mut self, mut reason: String) -> Result<(), Error> {
        let Some((version, length)) = &self.whole else {
            return Err(Error::NoRanges { at: self.at, reason });
        };
        while self.progress.elapsed() < self.patience {
            match self.rest(version, *length) {
                Ok(reader) => {
                    self.reader = reader;
                    return Ok(());
                }
                Err(Error::Http(error)) => reason = error.to_string(),
                Err(Error::Status(status)) if is_temporary(status) => {
                    reason = Error::Status(status).to_string();
                }
                Err(error) => return Err(error),
            }
            thread::sleep(self.pause);
            self.pause = (self.pause * 2).min(PAUSE[1]);
        }
        Err(Error::Stalled { seconds: self.patience.as_secs(), reason })
    }

    fn rest(&self, version: &Version, length: u64) -> Result<BodyReader<'static>, Error> {
        let mut refusal = StatusCode::NOT_FOUND;
        // A server may redirect to an address that is valid for some minutes only.
        for source in [&self.source, self.location.uri()] {
            let request = self.client.get(source).header(header::IF_RANGE, version.as_str());
            let request = request.header(header::RANGE, format!("bytes={}-", self.at));
            let response = request.config().timeout_recv_body(Some(PART)).build().call()?;
            let headers = response.headers();
            match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let range = Range::from_headers(headers);
                    let is_rest = range.is_some_and(|range| range.is_rest(self.at, length));
                    let named = Version::from_headers(headers);
                    return match is_rest && named.is_none_or(|named| named == *version) {
                        true => Ok(response.into_body().into_reader()),
                        false => Err(Error::Changed),
                    };
                }
                StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => return Err(Error::Changed),
                status => refusal = status,
            }
        }
        Err(Error::Status(refusal))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("location", &self.location)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

fn request(
    client: &Agent,
    location: &Location,
    timeout: Option<Duration>,
) -> Result<Response<ureq::Body>, Error> {
    let response = client.get(location.uri()).config().timeout_recv_body(timeout).build().call()?;
    match response.status() {
        StatusCode::OK => Ok(response),
        status => Err(Error::Status(status)),
    }
}

/// Returns whether a server that answers so may give the file later (RFC 9110 §15).
fn is_temporary(status: StatusCode) -> bool {
    let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    status.is_server_error() || later.contains(&status)
}
