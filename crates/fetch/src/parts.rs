//! Parts of one version of a file, and a file of which any part can be read.

use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::time::Duration;

use ureq::ResponseExt as _;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};

use crate::origin::{Origin, Part};
use crate::speed::Reader;
use crate::version::{Range, Version};
use crate::{Access, Error, Hash, Location, registry};

/// How long a server may send nothing: as long as the caller has patience, but no less than this.
pub(crate) const MIN_SILENCE: Duration = Duration::from_secs(5);
/// The most of a server that sends parts of files: the next request continues the file.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// Returns how long a server that sends parts of files may send nothing.
pub(crate) fn silence(patience: Duration) -> Duration {
    patience.clamp(MIN_SILENCE, MAX_SILENCE)
}

/// One version of a file of which the server sends any part. Requests are made one after the other, over one
/// connection if the server keeps it.
#[derive(Clone)]
pub struct Parts {
    pub(crate) origin: Origin,
    /// The address that has sent the file, to which the server redirected.
    pub(crate) source: Uri,
    /// The version; `None` if a hash decides, as for a blob of a registry.
    pub(crate) version: Option<Version>,
    pub(crate) length: u64,
    pub(crate) patience: Duration,
    /// Whether the caller compares the hash of the whole file.
    pub(crate) is_hashed: bool,
}

impl Parts {
    /// Asks for the first byte of a file, to learn its length and its version.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, does not prove its identity, or does not give the file; with
    /// [`Error::NoParts`] if it does not send parts of it, or names no version that lasts.
    pub fn open(location: &Location, access: &Access, patience: Duration) -> Result<Self, Error> {
        let mut origin = Origin::find(location, access)?;
        let first = Part { first: 0, end: Some(1), version: None };
        let response = origin.request(Some(&first), silence(patience))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK => return Err(Error::NoParts("the server does not send parts of it")),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(Error::NoParts("it is empty, or the server does not send parts of it"));
            }
            _ => return Err(origin.refusal(response)),
        }
        let (length, version) = described(response.headers(), origin.blob())?;
        let source = response.get_uri().clone();
        fill(Reader::new(response.into_body().into_reader(), silence(patience)), &mut [0])?;
        Ok(Self { origin, source, version, length, patience, is_hashed: false })
    }

    /// Returns another connection to the same version of the file: the address that has sent it is asked first.
    ///
    /// # Errors
    /// Fails if neither that address nor the one that the user named sends this version.
    pub fn again(&self) -> Result<Self, Error> {
        let mut again = self.clone();
        again.read_at(0, &mut [0])?;
        Ok(again)
    }

    /// Takes a file of the same length from another address if that names another version of it, as some mirrors of one file
    /// do: the caller compares the hash of the whole file, and uses none of it if that is not the expected one.
    pub fn let_hash_decide(&mut self) {
        self.is_hashed = true;
    }

    /// Returns the number of bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Returns the version of the file: a digest, an entity tag with its quotation marks, or a time.
    pub fn version(&self) -> String {
        let named = self.version.as_ref().map(|version| version.as_str().to_owned());
        named.or_else(|| self.hash().map(|hash| registry::digest(&hash))).unwrap_or_default()
    }

    /// Returns the SHA-256 that the file must have, if a registry names it. It is not compared here.
    pub fn hash(&self) -> Option<Hash> {
        self.origin.blob().map(|(hash, _)| hash)
    }

    /// Fills `bytes`, which is not empty, with the part of the file from `offset` on.
    ///
    /// # Errors
    /// Fails if the connection is lost, or if the server sends anything else than that part of this version.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let end = offset.saturating_add(bytes.len() as u64);
        match self.get(offset, Some(end))? {
            Some(reader) => fill(reader, bytes),
            None => Err(Error::NoParts("the server does not send parts of it any more")),
        }
    }

    /// Requests the part from `first` up to `end`, or to the end of the file. Returns `None` if the server sends the
    /// whole file instead, which cannot be another one.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or sends another version or another part.
    pub(crate) fn get(&mut self, first: u64, end: Option<u64>) -> Result<Option<Reader>, Error> {
        let mut failure = None;
        if self.origin.is_redirected(&self.source) {
            let part = Part { first, end, version: self.version.as_ref() };
            let response = self.origin.request_at(&self.source, &part, silence(self.patience));
            match response.and_then(|response| self.answer(response, &part)) {
                Ok(Answer::Part(reader)) => return Ok(Some(reader)),
                Err(error @ Error::OtherPart) => return Err(error),
                // It may be valid for some minutes only, or be that of a server that is gone.
                Ok(Answer::Refusal(response)) => failure = Some(self.origin.refusal(*response)),
                Ok(Answer::Whole) => {}
                Err(error) => failure = Some(error),
            }
        }
        match (self.get_redirected(first, end), failure) {
            (Err(Error::Changed), Some(failure))
                if !self.is_hashed && !matches!(failure, Error::Changed) =>
            {
                Err(Error::OtherVersion(Box::new(failure)))
            }
            (got, _) => got,
        }
    }

    /// Requests a part from the address that the user named, as [`Self::get`], and keeps the one to which it is redirected. If a
    /// hash decides, another version is taken there.
    fn get_redirected(&mut self, first: u64, end: Option<u64>) -> Result<Option<Reader>, Error> {
        let part = Part { first, end, version: self.version.as_ref() };
        let silence = silence(self.patience);
        let response = self.origin.request(Some(&part), silence)?;
        let source = response.get_uri().clone();
        let mut answered = self.answer(response, &part);
        if let (Err(Error::Changed), true, Some(_)) = (&answered, self.is_hashed, &self.version) {
            let part = Part { first, end, version: None };
            let response = match self.origin.is_redirected(&source) {
                true => self.origin.request_at(&source, &part, silence)?,
                false => self.origin.request(Some(&part), silence)?,
            };
            answered = self.answer(response, &part);
            if answered.is_ok() {
                self.version = None;
            }
        }
        let reader = match answered? {
            Answer::Part(reader) => Some(reader),
            Answer::Whole => None,
            Answer::Refusal(response) => return Err(self.origin.refusal(*response)),
        };
        self.source = source;
        Ok(reader)
    }

    /// Checks that an answer is that part of the same version.
    fn answer(&self, response: Response<ureq::Body>, part: &Part<'_>) -> Result<Answer, Error> {
        let length = self.length;
        let headers = response.headers();
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = Range::from_headers(headers);
                let end = part.end.unwrap_or(length);
                let named = Version::from_headers(headers);
                let is_same = match (&named, part.version) {
                    (_, None) => true,
                    (Some(named), Some(version)) => named == version,
                    // A time may be left out where it was asked for (§15.3.7), a tag not.
                    (None, Some(version)) => {
                        !version.is_tag() && !headers.contains_key(header::ETAG)
                    }
                };
                let has_length = |range: Range| range.complete.is_none_or(|it| it == length);
                match range {
                    _ if !is_same => Err(Error::Changed),
                    Some(range) if range.is_part(part.first, end, length) => {
                        let body = response.into_body().into_reader();
                        Ok(Answer::Part(Reader::new(body, silence(self.patience))))
                    }
                    Some(range) if !has_length(range) => Err(Error::Changed),
                    _ => Err(Error::OtherPart),
                }
            }
            StatusCode::OK if part.version.is_none() => Ok(Answer::Whole),
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => Err(Error::Changed),
            _ => Ok(Answer::Refusal(Box::new(response))),
        }
    }

    /// Asks the address that the user named for the next part, and not the one that has sent the last one.
    pub(crate) fn leave(&mut self) {
        if let Origin::Web(_, uri) | Origin::Registry { uri, .. } = &self.origin {
            self.source = uri.clone();
        }
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Returns the length and the version of a file by the headers of its first byte, and by what a registry names.
fn described(
    headers: &HeaderMap,
    blob: Option<(Hash, u64)>,
) -> Result<(u64, Option<Version>), Error> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        return Err(Error::NoParts("the server compresses it on the way"));
    }
    let range = Range::from_headers(headers);
    let length = range.filter(|range| range.is_part(0, 1, range.complete.unwrap_or(0)));
    let length = length.and_then(|range| range.complete);
    let length = length.ok_or(Error::NoParts("the server does not name its length"))?;
    match blob {
        Some((_, bytes)) if bytes == length => Ok((length, None)),
        Some(_) => Err(Error::Image("its size is not that of the manifest")),
        None => match Version::lasting(headers) {
            Some(version) => Ok((length, Some(version))),
            None => Err(Error::NoParts(
                "the server names no version of it that is certain: no strong entity tag (ETag), and no Last-Modified that \
                 is at least a minute older than its answer",
            )),
        },
    }
}

/// Fills `bytes` with all that a response has.
fn fill(mut reader: Reader, bytes: &mut [u8]) -> Result<(), Error> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => Error::Cut,
        _ => Error::Http(error.into()),
    };
    reader.read_exact(bytes).map_err(failed)?;
    // At the end of the response, its connection is kept for the next request.
    match reader.read(&mut [0]).map_err(failed)? {
        0 => Ok(()),
        _ => Err(Error::TooLong(bytes.len() as u64)),
    }
}

/// What a server answers that was asked for a part of a file.
enum Answer {
    Part(Reader),
    /// The whole file, which cannot be another one.
    Whole,
    Refusal(Box<Response<ureq::Body>>),
}
