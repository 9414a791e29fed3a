//! The bytes of a file on a web server, in a registry or in a bucket.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{Response, StatusCode, header};
use ureq::{BodyReader, ResponseExt as _};

use crate::origin::Origin;
use crate::parts::{MIN_SILENCE, Parts, silence};
use crate::retries::{PAUSE, waiting};
use crate::s3::Object;
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
    reader: BodyReader<'static>,
    patience: Duration,
    /// When the last byte was received.
    progress: Instant,
    pause: Duration,
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

    /// As [`Self::open`], but a server that cannot be reached or is busy is asked again for `patience`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_waiting(
        location: &Location,
        access: &Access,
        patience: Duration,
    ) -> Result<Self, Error> {
        waiting(patience, || Self::open(location, access, patience))
    }

    /// Requests an object of a bucket.
    pub(crate) fn of(object: Object, patience: Duration) -> Result<Self, Error> {
        Self::from(Origin::Bucket(Box::new(object)), patience)
    }

    fn from(mut origin: Origin, patience: Duration) -> Result<Self, Error> {
        let mut response = whole(&mut origin, silence(patience))?;
        let (mut length, headers) = (length(response.headers()), response.headers());
        let has_ranges = headers.get(header::ACCEPT_RANGES).is_none_or(|value| value != "none");
        let version = Version::from_headers(headers);
        let is_fixed = origin.blob().is_some();
        if let Some((_, bytes)) = origin.blob() {
            if length.is_some_and(|length| length != bytes) {
                return Err(Error::Image("its size is not that of the manifest"));
            }
            length = Some(bytes);
        }
        let parts = length.filter(|_| has_ranges && (is_fixed || version.is_some()));
        let parts = parts.map(|length| (version.filter(|_| !is_fixed), length));
        if parts.is_none() {
            response = whole(&mut origin, patience.max(MIN_SILENCE))?;
        }
        let (source, hash) = (response.get_uri().clone(), origin.blob().map(|(hash, _)| hash));
        let reader = response.into_body().into_reader();
        let (progress, pause) = (Instant::now(), PAUSE[0]);
        let of_version = |(version, length)| Parts { origin, source, version, length, patience };
        let parts = parts.map(of_version);
        Ok(Self { parts, hash, length, at: 0, reader, patience, progress, pause })
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
        let Some(parts) = &mut self.parts else {
            return Err(Error::NoRanges { at: self.at, reason });
        };
        while self.progress.elapsed() < self.patience {
            match parts.get(self.at, None) {
                Ok(Some(reader)) => {
                    self.reader = reader;
                    return Ok(());
                }
                Ok(None) => return Err(Error::NoRanges { at: self.at, reason }),
                Err(error) if matches!(error, Error::Http(_)) || error.is_temporary() => {
                    reason = error.to_string();
                }
                Err(error) => return Err(error),
            }
            thread::sleep(self.pause);
            self.pause = (self.pause * 2).min(PAUSE[1]);
        }
        Err(Error::Stalled { seconds: self.patience.as_secs(), reason })
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
