//! Uploads of objects: in parts of one size, which are sent by some threads, each again if it fails.
//!
//! At the end the hash of hashes that the server names for the object is compared with that of what was sent. Where the
//! server names none, the object is read back. An upload that fails is aborted, so that the server keeps no parts of it.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::body::Body;
use crate::retries::Retries;
use crate::s3::{Completed, Object, Part, names_of};
use crate::{Error, Hash};

/// The most parts, and the smallest and the largest part in bytes (S3, Multipart upload limits: 5 MiB and 5 GiB).
const MAX_PARTS: u64 = 10_000;
const MIN_PART: u64 = 8 << 20;
const MAX_PART: u64 = 5 << 30;
const MIB: u64 = 1 << 20;
/// The most parts that are sent at a time, and their memory, unless one part takes more.
const MAX_THREADS: u64 = 4;
const MAX_MEMORY: u64 = 256 << 20;
/// How long requests that are under way are waited for before an upload is aborted, and how often it is looked whether they ended.
const LEAVE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(1);
/// Bytes that are read back at a time.
const PIECE: usize = 1 << 20;

/// An upload that has begun. What is written to it becomes the object when it is finished.
pub struct Upload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    sender: Option<SyncSender<(usize, Vec<u8>)>>,
    part: Vec<u8>,
    part_bytes: usize,
    /// Parts that were handed over.
    parts: usize,
    replaces: bool,
    /// Whether the server keeps parts of it, as far as is known.
    is_open: bool,
}

/// What the threads share.
struct Shared {
    object: Object,
    upload: String,
    with_checksums: bool,
    patience: Duration,
    stop: Arc<AtomicBool>,
    has_failed: AtomicBool,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    parts: Vec<Option<Part>>,
    failed: Option<Error>,
}

/// An object that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its size.
    pub bytes: u64,
    /// The number of its parts.
    pub parts: usize,
    /// How it was verified.
    pub proof: Proof,
}

/// How an object was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Nothing was compared: the credentials do not allow to ask for the object.
    Nothing,
    /// Only its size was compared.
    Size,
    /// The server names the right SHA-256 or MD5 of its parts.
    Hash(&'static str),
    /// It was read back.
    ReadBack,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str(
                "the server says that it has stored it, and the credentials do not allow to look",
            ),
            Self::Size => {
                f.write_str("the server has as many bytes; their hashes were not compared")
            }
            Self::Hash(name) => write!(
                f,
                "the server has as many bytes, and names the {name} hashes of what was sent"
            ),
            Self::ReadBack => f.write_str(
                "the server names no hashes of it, so it was read back: it has what was sent",
            ),
        }
    }
}

impl Upload {
    /// Begins to upload an object of at most this size. Memory is taken for up to five parts, but for not more than
    /// 256 MiB or two parts; a part has 8 MiB, or as much as an
    /// object of 10,000 parts needs. An existing object is replaced only if `replaces`, where the server supports `If-None-Match`. Requests
    /// that fail are made again for `patience`, unless `stop` is set.
    ///
    /// # Errors
    /// Fails if the object is too large, or if the server cannot be reached or refuses.
    pub fn begin(
        object: Object,
        max_bytes: u64,
        replaces: bool,
        patience: Duration,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let part = part_size(max_bytes).ok_or(Error::TooLarge)?;
        let part_bytes = usize::try_from(part).map_err(|_| Error::TooLarge)?;
        let stops = [&*stop];
        let mut retries = Retries::new(patience, &stops);
        let (upload, with_checksums) = loop {
            match object.create_upload() {
                Ok(created) => break created,
                Err(error) => retries.wait(error)?,
            }
        };
        let done = Mutex::default();
        let has_failed = AtomicBool::new(false);
        let shared = Shared { object, upload, with_checksums, patience, stop, has_failed, done };
        let shared = Arc::new(shared);
        // Without room: a part that no thread has taken stays with the writer.
        let (sender, receiver) = sync_channel(0);
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads(part)).map(|_| {
            let (shared, receiver) = (shared.clone(), receiver.clone());
            let work = move || shared.work(&receiver);
            thread::Builder::new().name("upload".to_owned()).spawn(work)
        });
        let threads: io::Result<Vec<_>> = threads.collect();
        let mut upload = Self {
            shared,
            threads: Vec::new(),
            sender: Some(sender),
            part: Vec::new(),
            part_bytes,
            parts: 0,
            replaces,
            is_open: true,
        };
        match threads {
            Ok(threads) => upload.threads = threads,
            Err(error) => return Err(upload.cancel(Error::Write(error))),
        }
        Ok(upload)
    }

    /// Returns what aborts the upload from another thread, unless the object was put together, without waiting for requests. It
    /// returns the command that does it if that fails.
    pub fn aborter(&self) -> impl FnOnce() -> Option<String> + Send + use<> {
        let shared = self.shared.clone();
        move || {
            shared.has_failed.store(true, Ordering::Release);
            let Shared { object, upload, .. } = &*shared;
            object.abort(upload).err().map(|_| object.command_to_abort(upload))
        }
    }

    /// Sends the last part, puts the object together, and compares its size and, if `verify`, its content. Aborts the upload if
    /// that fails before there is an object.
    ///
    /// # Errors
    /// Fails if a part could not be sent, or if the object does not hold what was sent.
    pub fn finish(mut self, verify: bool) -> Result<Stored, Error> {
        if let Err(error) = self.hand_over() {
            return Err(self.cancel(Error::Write(error)));
        }
        self.join();
        let parts = match self.shared.parts(self.parts) {
            Ok(parts) => parts,
            Err(error) => return Err(self.cancel(error)),
        };
        match self.put_together(&parts) {
            Ok(completed) => {
                self.is_open = false;
                let stored = self.verified(&parts, verify, Some(&completed), self.shared.patience);
                stored.map_err(|error| match error {
                    Error::Gone | Error::Differs { .. } => error,
                    error => Error::Unverified(Box::new(error)),
                })
            }
            Err((error, true)) => self.found_out(&parts, error),
            Err((error, false)) => Err(self.cancel(error)),
        }
    }

    /// Puts the object together.
    ///
    /// # Errors
    /// Fails with an error, and whether the server may have put it together nevertheless: the answer to one request was lost.
    fn put_together(&self, parts: &[Part]) -> Result<Completed, (Error, bool)> {
        let Shared { object, upload, patience, stop, .. } = &*self.shared;
        let stops = [&**stop];
        let mut retries = Retries::new(*patience, &stops);
        let (mut replaces, mut is_repeated) = (self.replaces, false);
        loop {
            let error = match object.complete(upload, parts, replaces) {
                Ok(completed) => return Ok(completed),
                // A server that does not know the condition: it is asked whether there is an object.
                Err(Error::Object(refusal)) if !replaces && refusal.is_unsupported() => {
                    match object.head() {
                        Ok(None) => {
                            replaces = true;
                            continue;
                        }
                        Ok(Some(_)) => return Err((Error::Exists, is_repeated)),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            is_repeated |= error.is_temporary();
            retries.wait(error).map_err(|error| (error, is_repeated))?;
        }
    }

    /// Checks whether the server has completed the object although its answer was lost. It is ours only if it holds what was
    /// sent. Else the upload is aborted, and that failed with `error`.
    fn found_out(mut self, parts: &[Part], error: Error) -> Result<Stored, Error> {
        // The server has been waited for.
        let is_answer = !error.is_temporary();
        let patience = if is_answer { self.shared.patience } else { Duration::ZERO };
        match self.verified(parts, true, None, patience) {
            Ok(stored) => {
                self.is_open = false;
                Ok(stored)
            }
            // One of the right size, after an answer that the upload is no more or that there is an object.
            Err(unknown) if is_answer && !is_other(&unknown) => {
                Err(self.cancel(Error::Unverified(Box::new(unknown))))
            }
            Err(_) => Err(self.cancel(error)),
        }
    }

    /// Aborts the upload. Returns the reason: that of the first part that could not be sent, else `error`.
    pub fn cancel(mut self, error: Error) -> Error {
        let left = self.abort();
        let failed = self.shared.done().failed.take();
        let error = failed.unwrap_or(error);
        match left {
            None => error,
            Some(command) => Error::Left { error: Box::new(error), command },
        }
    }

    /// Aborts the upload. Returns the command that does it if that fails. Requests that do not end are not waited for.
    fn abort(&mut self) -> Option<String> {
        self.is_open = false;
        self.shared.has_failed.store(true, Ordering::Release);
        self.sender = None;
        let end = Instant::now() + LEAVE;
        while Instant::now() < end && self.threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(LOOK);
        }
        let Shared { object, upload, .. } = &*self.shared;
        let aborted = object.abort(upload).or_else(|_| object.abort(upload));
        aborted.err().map(|_| object.command_to_abort(upload))
    }

    /// Waits until all parts are sent, or one of them fails, or the user stops it. A part is missing then.
    fn join(&mut self) {
        self.sender = None;
        let Shared { stop, has_failed, .. } = &*self.shared;
        let is_over = || [&**stop, has_failed].iter().any(|it| it.load(Ordering::Acquire));
        while !is_over() && self.threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(LOOK);
        }
    }

    /// Gives the current part to a thread.
    fn hand_over(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        if part.is_empty() && self.parts > 0 {
            return Ok(());
        }
        self.parts += 1;
        let mut part = (self.parts, part);
        loop {
            if self.shared.stop.load(Ordering::Acquire) {
                return Err(io::Error::other("interrupted"));
            }
            let is_open = !self.shared.has_failed.load(Ordering::Acquire);
            let sent = self.sender.as_ref().filter(|_| is_open).map(|it| it.try_send(part));
            match sent {
                Some(Ok(())) => return Ok(()),
                Some(Err(TrySendError::Full(again))) => part = again,
                _ => return Err(io::Error::other("a part could not be sent")),
            }
            thread::sleep(LOOK);
        }
    }

    /// Compares the object with what was sent. Without `verify` its size is enough, if it has the entity tag that `completed` names.
    fn verified(
        &self,
        parts: &[Part],
        verify: bool,
        completed: Option<&Completed>,
        patience: Duration,
    ) -> Result<Stored, Error> {
        let Shared { object, stop, .. } = &*self.shared;
        let bytes = parts.iter().map(|part| part.bytes).sum();
        let stored = |proof| Ok(Stored { bytes, parts: parts.len(), proof });
        let stops = [&**stop];
        let mut retries = Retries::new(patience, &stops);
        let head = loop {
            match (object.head(), completed) {
                (Ok(head), _) => break head.ok_or(Error::Gone)?,
                // Credentials may allow to write only.
                (Err(Error::Object(refusal)), Some(Completed { tag, checksum }))
                    if refusal.is_denied() =>
                {
                    return match named(parts, tag, checksum.as_deref()) {
                        Some(proof) => stored(proof),
                        None if verify => Err(Error::Object(refusal)),
                        None => stored(Proof::Nothing),
                    };
                }
                (Err(error), _) => retries.wait(error)?,
            }
        };
        if head.bytes != bytes {
            return Err(Error::Size { sent: bytes, there: head.bytes });
        }
        let is_that = completed.is_some_and(|completed| completed.tag == head.tag);
        match named(parts, &head.tag, head.checksum.as_deref()) {
            _ if !verify && is_that => stored(Proof::Size),
            Some(proof) => stored(proof),
            None => {
                read_back(Body::of(object.clone(), patience)?, parts, stop)?;
                stored(Proof::ReadBack)
            }
        }
    }
}

impl Drop for Upload {
    /// Aborts an upload that was not finished.
    fn drop(&mut self) {
        if self.is_open {
            self.abort();
        }
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.part.capacity() == 0 {
            // Parts of a large disk are large.
            self.part.try_reserve_exact(self.part_bytes)?;
        }
        let room = self.part_bytes - self.part.len();
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.part.extend_from_slice(taken);
        if self.part.len() == self.part_bytes {
            self.hand_over()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl Shared {
    fn done(&self) -> std::sync::MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends parts up to the last one. After a failure, parts are thrown away.
    fn work(&self, receiver: &Mutex<Receiver<(usize, Vec<u8>)>>) {
        loop {
            let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, bytes)) = next else { return };
            if self.has_failed.load(Ordering::Acquire) {
                continue;
            }
            let sent = self.send(number, &bytes);
            let mut done = self.done();
            match sent {
                Ok(part) => {
                    let len = done.parts.len().max(number);
                    done.parts.resize(len, None);
                    if let Some(place) = done.parts.get_mut(number - 1) {
                        *place = Some(part);
                    }
                }
                Err(error) => {
                    self.has_failed.store(true, Ordering::Release);
                    done.failed.get_or_insert(error);
                }
            }
        }
    }

    fn send(&self, number: usize, bytes: &[u8]) -> Result<Part, Error> {
        let stops = [&*self.stop, &self.has_failed];
        let mut retries = Retries::new(self.patience, &stops);
        loop {
            let part = (self.upload.as_str(), number, self.with_checksums);
            match self.object.put_part(part, bytes) {
                Ok(part) => return Ok(part),
                Err(error) => retries.wait(error)?,
            }
        }
    }

    /// Returns all the parts. [`Upload::cancel`] returns the reason if one is missing.
    fn parts(&self, count: usize) -> Result<Vec<Part>, Error> {
        let mut done = self.done();
        let parts: Option<Vec<Part>> = done.parts.drain(..).collect();
        let parts = parts.filter(|parts| parts.len() == count);
        parts.ok_or_else(|| Error::Write(io::Error::other("a part is missing")))
    }
}

/// Returns the size of the parts of an object.
fn part_size(max_bytes: u64) -> Option<u64> {
    let size = max_bytes.div_ceil(MAX_PARTS).checked_next_multiple_of(MIB)?.max(MIN_PART);
    (size <= MAX_PART).then_some(size)
}

/// Returns how many threads send parts of this size: the part that is filled takes memory as well.
fn threads(part: u64) -> u64 {
    (MAX_MEMORY / part).saturating_sub(1).clamp(1, MAX_THREADS)
}

/// Returns the hash that these names of an object prove.
fn named(parts: &[Part], tag: &str, checksum: Option<&str>) -> Option<Proof> {
    let (md5, sha256) = names_of(parts);
    match () {
        () if checksum == Some(&sha256) => Some(Proof::Hash("SHA-256")),
        () if tag.eq_ignore_ascii_case(&md5) => Some(Proof::Hash("MD5")),
        () => None,
    }
}

/// Returns whether an error proves that an object is not what was sent.
fn is_other(error: &Error) -> bool {
    matches!(error, Error::Gone | Error::Size { .. } | Error::Differs { .. })
}

/// Compares an object with the hashes of its parts, until `stop` is set.
fn read_back(mut body: Body, parts: &[Part], stop: &AtomicBool) -> Result<(), Error> {
    let mut piece = vec![0; PIECE];
    let mut start = 0;
    for part in parts {
        let (mut hash, mut left) = (Sha256::new(), part.bytes);
        while left > 0 {
            if stop.load(Ordering::Acquire) {
                return Err(Error::Stopped);
            }
            let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let count = body.read(piece.get_mut(..len).unwrap_or_default())?;
            if count == 0 {
                return Err(Error::Differs { start, end: start + part.bytes });
            }
            hash.update(piece.get(..count).unwrap_or_default());
            left = left.saturating_sub(count as u64);
        }
        if Hash::from(hash.finalize()) != part.sha256 {
            return Err(Error::Differs { start, end: start + part.bytes });
        }
        start += part.bytes;
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ten_thousand_parts_suffice() {
        for bytes in [0, 1, MIB, 80 << 30, (80 << 30) + 1, 1 << 40, 20 << 40, MAX_PARTS * MAX_PART]
        {
            let part = part_size(bytes).unwrap();
            assert!(bytes.div_ceil(part) <= MAX_PARTS && (MIN_PART..=MAX_PART).contains(&part));
        }
        assert_eq!(part_size(80 << 30), Some(9 << 20));
        assert_eq!(part_size(MAX_PARTS * MAX_PART + 1), None);
        assert_eq!(part_size(u64::MAX), None);
    }

    #[test]
    fn parts_in_memory_are_bounded_with_the_one_that_is_filled() {
        for (mib, number) in [(8, 4), (51, 4), (64, 3), (85, 2), (128, 1), (256, 1), (5 << 10, 1)] {
            assert_eq!(threads(mib * MIB), number, "{mib}");
            assert!(mib > 128 || (number + 1) * mib <= 256, "{mib}");
        }
    }
}
