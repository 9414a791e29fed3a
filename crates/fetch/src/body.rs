//! The bytes of a file on a web server, in a registry or in a bucket.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use ureq::ResponseExt as _;
use ureq::http::{Response, StatusCode, header};

use crate::origin::Origin;
use crate::parts::{MIN_SILENCE, Parts, silence};
use crate::retries::Retries;
use crate::s3::Object;
use crate::speed::{Reader, Speed};
use crate::version::{Version, length};
use crate::{Access, Error, Hash, Location};

/// A file that is read from a web server, a registry or a bucket.
pub struct Body {
    /// The file, if the server sends parts of it.
    parts: Option<Parts>,
    hash: Option<Hash>,
    length: Option<u64>,
    /// Number of bytes that were read.
    at: u64,
    reader: Reader,
    patience: Duration,
    /// What came since there was no progress.
    speed: Speed,
    retries: Retries<'static>,
    /// Where the rest of the file was asked for the last time.
    resumed: Option<u64>,
}

impl Body {
    /// Requests a file. A connection that is lost later is made again until no byte came for `patience`.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, does not prove its identity, or does not give the
    /// file.
    pub fn open(location: &Location, access: &Access, patience: Duration) -> Result<Self, Error> {
        Self::from(Origin::find(location, access)?, patience)
    }

    /// As [`Parts::let_hash_decide`].
    pub fn let_hash_decide(&mut self) {
        self.parts.iter_mut().for_each(Parts::let_hash_decide);
    }

    /// Requests an object of a bucket.
    pub(crate) fn of(object: Object, patience: Duration) -> Result<Self, Error> {
        Self::from(Origin::Bucket(Box::new(object)), patience)
    }

    fn from(mut origin: Origin, patience: Duration) -> Result<Self, Error> {
        let mut response = whole(&mut origin, silence(patience))?;
        let (mut length, headers) = (length(response.headers()), response.headers());
        let has_ranges = headers.get(header::ACCEPT_RANGES).is_none_or(|value| value != "none");
        let version = Version::lasting(headers);
        let is_fixed = origin.blob().is_some();
        if let Some((_, bytes)) = origin.blob() {
            if length.is_some_and(|length| length != bytes) {
                return Err(Error::Image("its size is not that of the manifest"));
            }
            length = Some(bytes);
        }
        let parts = length.filter(|_| has_ranges && (is_fixed || version.is_some()));
        let parts = parts.map(|length| (version.filter(|_| !is_fixed), length));
        let mut window = silence(patience);
        if parts.is_none() {
            window = patience.max(MIN_SILENCE);
            response = whole(&mut origin, window)?;
        }
        let (source, hash) = (response.get_uri().clone(), origin.blob().map(|(hash, _)| hash));
        let reader = Reader::new(response.into_body().into_reader(), window);
        let (speed, retries) = (Speed::default(), Retries::new(patience, &[]));
        let of_version = |(version, length)| {
            let is_hashed = false;
            Parts { origin, source, version, length, patience, is_hashed }
        };
        let (parts, at, resumed) = (parts.map(of_version), 0, None);
        Ok(Self { parts, hash, length, at, reader, patience, speed, retries, resumed })
    }

    /// Returns the SHA-256 that the file must have, if a registry names it. It is not compared here.
    pub fn hash(&self) -> Option<Hash> {
        self.hash
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
        let begin = Instant::now();
        let count = self.read_on(bytes, begin)?;
        self.speed.count(begin.elapsed(), count);
        if self.speed.is_enough() {
            (self.speed, self.retries) = (Speed::default(), Retries::new(self.patience, &[]));
        }
        Ok(count)
    }

    /// Reads some bytes, since `begin`.
    fn read_on(&mut self, bytes: &mut [u8], begin: Instant) -> Result<usize, Error> {
        loop {
            let reason = match self.reader.read(bytes) {
                Ok(0) if bytes.is_empty() => return Ok(0),
                Ok(0) if self.length.is_none_or(|length| self.at == length) => return Ok(0),
                Ok(0) => "it ended early".to_owned(),
                Ok(count) => return self.count(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error.to_string(),
            };
            self.resume(reason, begin)?;
        }
    }

    fn count(&mut self, count: usize) -> Result<usize, Error> {
        self.at = self.at.saturating_add(count as u64);
        match self.length.filter(|length| self.at > *length) {
            Some(length) => Err(Error::TooLong(length)),
            None => Ok(count),
        }
    }

    /// Requests the rest of the file.
    fn resume(&mut self, mut reason: String, begin: Instant) -> Result<(), Error> {
        let Some(parts) = &mut self.parts else {
            return Err(Error::NoRanges { at: self.at, reason });
        };
        let waited = || self.speed.waited.saturating_add(begin.elapsed());
        let mut goes_on = self.retries.spend(waited());
        if self.resumed.replace(self.at) == Some(self.at) {
            // An address that answers and sends nothing.
            parts.leave();
            goes_on = self.retries.pause(None);
        }
        let mut is_other = false;
        while goes_on {
            let asked = match parts.get(self.at, None) {
                Ok(Some(reader)) => {
                    self.reader = reader;
                    return Ok(());
                }
                Ok(None) => return Err(Error::NoRanges { at: self.at, reason }),
                Err(error) if error.is_temporary() => {
                    // What other addresses fail with says less.
                    if !is_other {
                        reason = error.to_string();
                    }
                    is_other |= matches!(error, Error::OtherVersion(_));
                    error.retry_after()
                }
                Err(error) => return Err(error),
            };
            goes_on = self.retries.pause(asked);
        }
        Err(Error::Stalled { seconds: waited().as_secs(), reason })
    }
}

impl Read for Body {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Self::read(self, bytes).map_err(io::Error::other)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Requests the whole file.
fn whole(origin: &mut Origin, silence: Duration) -> Result<Response<ureq::Body>, Error> {
    let response = origin.request(None, silence)?;
    match response.status() {
        StatusCode::OK => Ok(response),
        _ => Err(origin.refusal(response)),
    }
}
