//! One copy: its settings, its progress and its report.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use crate::thread_io::OpenedEndpoint;
use crate::{Disk, Endpoint, EndpointError, Reader};

/// One end of a copy.
pub enum End {
    /// A disk or a file.
    Disk(Box<dyn Endpoint>),
    /// A pipe, or anything that is read or written sequentially.
    Pipe(Pipe),
}

/// A pipe as one end of a copy.
pub struct Pipe {
    pub descriptor: OwnedFd,
    /// Bytes that were already read from the pipe and precede the rest.
    pub head: Vec<u8>,
    /// Total number of bytes, if it is known.
    pub bytes: Option<u64>,
    /// Called at the end of the pipe: fails if the data is incomplete or not what was expected.
    /// Until it succeeds, the destination has no partition table.
    pub finish: Option<Finish>,
}

/// Checks at the end of a pipe that the data is complete and what was expected.
pub type Finish = Box<dyn FnOnce() -> Result<(), CopyError> + Send>;

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl From<OwnedFd> for Pipe {
    fn from(descriptor: OwnedFd) -> Self {
        Self { descriptor, head: Vec::new(), bytes: None, finish: None }
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk(_) => "Disk",
            Self::Pipe(_) => "Pipe",
        })
    }
}

/// A copy, carried out by [`Job::run`].
#[derive(Debug)]
pub struct Job {
    pub source: End,
    pub destination: End,
    pub settings: Settings,
    /// The check of what was copied from a disk to a disk, before its first and its last bytes are; a pipe has
    /// its own ([`Pipe::finish`]).
    pub check: Option<Check>,
}

/// A check that the destination holds what was expected, but for the ranges that are written only when it has
/// succeeded: until then, the destination has no partition table.
pub struct Check(pub CheckFn);

/// Fails with [`CopyError::Unexpected`] if the destination, with those ranges of the source, is not what was
/// expected.
pub type CheckFn = Box<dyn FnOnce(&Unchecked) -> Result<(), CopyError> + Send>;

/// What a [`Check`] is called with.
pub struct Unchecked {
    /// The ranges that are not copied yet, in ascending order.
    pub held: Vec<Range<u64>>,
    /// Where the check counts the bytes that it has read.
    pub done: AtomicU64,
    /// Set if the check is to fail soon, however.
    pub stop: Arc<AtomicBool>,
    pub(crate) destination: OpenedEndpoint,
    pub(crate) reconnect_timeout: Duration,
}

impl Unchecked {
    /// Returns the destination, to read what it holds.
    pub fn destination(&self) -> Reader<'_> {
        self.read(self.destination.clone())
    }

    /// Returns another disk, to read it.
    pub fn reader(&self, endpoint: Arc<dyn Endpoint>, disk: Disk) -> Reader<'_> {
        self.read(OpenedEndpoint::new(endpoint, disk))
    }

    fn read(&self, end: OpenedEndpoint) -> Reader<'_> {
        Reader::new(end, self.reconnect_timeout, &self.stop)
    }
}

impl fmt::Debug for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unchecked").field("held", &self.held).finish_non_exhaustive()
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

/// Settings of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Connections to each end, and threads; an end may allow fewer.
    pub connections: usize,
    /// Whether to read the destination back and compare it with the source.
    pub verify: bool,
    /// Whether what is written to a disk of this machine is read back while the copy goes on, and only
    /// a sample of it once more after the last write: see decision 21. Requires `verify`.
    pub read_behind: bool,
    /// Whether to compute the BLAKE3 hash of the whole disk. Holes have to be hashed too, at some
    /// gigabytes per second. With a disk as the destination it requires `verify`. Without it, data
    /// that is read back right after its write is not hashed at all, but compared byte by byte.
    pub hash: bool,
    /// Number of retries of bad sectors.
    pub retries: u32,
    /// Rate limit in bytes per second.
    pub rate: Option<u64>,
    /// Whether zeros become holes at the destination if possible; otherwise they are written.
    /// Between two local files on disks without `verify` the kernel copies, and only holes of the
    /// source become holes.
    pub sparse: bool,
    /// Path of the map file; the copy resumes from it if it exists.
    pub map: Option<PathBuf>,
    /// How long a lost end is retried, from its last answer if it is connected and does not answer.
    pub reconnect_timeout: Duration,
    /// Bytes per request, unless an end allows fewer: a power of two from 64 KiB to 1 MiB.
    pub chunk: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 4,
            verify: true,
            read_behind: false,
            hash: true,
            retries: 1,
            rate: None,
            sparse: true,
            map: None,
            reconnect_timeout: Duration::from_secs(300),
            chunk: 1 << 18,
        }
    }
}

/// Phase of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Checking both ends; nothing has been written.
    Checking,
    /// Copying in large pieces, skipping ahead at bad sectors.
    Copying,
    /// Finding the edges of bad areas.
    Trimming,
    /// Reading bad areas sector by sector.
    Scraping,
    /// Retrying bad sectors; the number of the retry, from 1.
    Retrying(u32),
    /// Flushing the destination.
    Flushing,
    /// Reading the destination and comparing.
    Verifying,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checking => "checking",
            Self::Copying => "copying",
            Self::Trimming => "trimming",
            Self::Scraping => "scraping",
            Self::Retrying(_) => "retrying",
            Self::Flushing => "flushing",
            Self::Verifying => "verifying",
        })
    }
}

/// Progress of a copy.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub phase: Phase,
    /// Bytes copied, zeroed or found bad; while verifying, bytes compared, or read by a [`Check`]. Grows within
    /// a stage and begins anew with the next one: a check, the copy of the ends after it, a verification. Never above `total`.
    pub done: u64,
    /// Total bytes; `None` for a pipe of unknown length.
    pub total: Option<u64>,
    /// Current rate in bytes per second, including skipped holes.
    pub rate: u64,
    /// Estimated remaining time of the current phase, if it can be estimated. Verification is not
    /// included before it starts.
    pub eta: Option<Duration>,
    /// Bytes that could not be read.
    pub bad: u64,
    /// Failed reads of the source.
    pub errors: u64,
    /// Bytes that were not sent because they are zeros.
    pub zeroes: u64,
    /// An end that is being reconnected: its name, and why it was lost.
    pub reconnecting: Option<(String, String)>,
    /// An end that has answered none of the requests in flight for some seconds: its name, and for
    /// how long.
    pub stalled: Option<(String, Duration)>,
    /// Time since the start.
    pub elapsed: Duration,
}

/// Result of a copy.
#[derive(Debug)]
pub struct Report {
    pub outcome: Outcome,
    /// Length of the source in bytes; 0 if it was not determined.
    pub bytes: u64,
    /// Bytes read and written by this run.
    pub copied: u64,
    /// Bytes of zeros that this run did not send.
    pub zeroes: u64,
    /// Bytes finished by earlier runs.
    pub earlier: u64,
    /// Bytes sent again after a lost connection.
    pub resent: u64,
    /// Bytes of the destination that were compared, including holes.
    pub verified: u64,
    /// Bytes of these that were read back before the last write, and not once more after it.
    pub read_behind: u64,
    /// Unreadable ranges, in ascending order.
    pub bad: Vec<Range<u64>>,
    /// Zeros appended to the data of a pipe to fill the last block of the destination.
    pub padded: u64,
    /// BLAKE3 hash of the whole disk, as printed by `b3sum`; `None` if not everything was read or
    /// it was not requested.
    pub hash: Option<[u8; 32]>,
    /// Total time.
    pub elapsed: Duration,
}

/// How a copy ended.
#[derive(Debug)]
pub enum Outcome {
    /// Everything was copied and, if requested, verified.
    Success,
    /// Everything readable was copied and, if requested, verified; the rest is [`Report::bad`].
    BadSectors,
    /// The destination differs from the source in these ranges, in ascending order.
    VerifyFailed(Vec<Range<u64>>),
    /// The copy was refused before anything was written.
    Refused(Refusal),
    /// The copy was interrupted. It can be resumed from a map.
    Interrupted,
    /// The copy failed. It can be resumed from a map.
    Failed(CopyError),
}

/// Why a copy was refused. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The source cannot be opened.
    #[error("{0}")]
    Source(#[source] EndpointError),
    /// The destination cannot be opened or created.
    #[error("{0}")]
    Destination(#[source] EndpointError),
    /// The destination is read-only.
    #[error("{destination} is read-only: export it writable, or choose another destination")]
    ReadOnly { destination: String },
    /// The destination is too small.
    #[error("{destination} has {there} bytes, {needed} are needed: choose a larger destination")]
    Smaller {
        destination: String,
        /// Length of the destination in bytes.
        there: u64,
        /// Length of the source in bytes.
        needed: u64,
    },
    /// The length of the source is not a multiple of the destination's block size.
    #[error(
        "{destination} has a block size of {block} bytes, and {bytes} bytes are not a multiple of it"
    )]
    Blocks {
        destination: String,
        /// Block size of the destination in bytes.
        block: u32,
        /// Length of the source in bytes.
        bytes: u64,
    },
    /// The map belongs to another disk.
    #[error("the map {map} belongs to another disk: {reason}")]
    AnotherDisk { map: String, reason: String },
    /// The map cannot be read or written.
    #[error("the map {map}: {reason}")]
    Map { map: String, reason: String },
    /// A map was given for a copy from or to a pipe, which cannot be resumed.
    #[error("a copy from or to a pipe cannot be resumed: leave the map out, or name a file")]
    PipeWithMap,
    /// Both ends are pipes.
    #[error("both ends are pipes: name a disk or a file for one of them")]
    Pipes,
}

/// Why a copy failed. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A write to the destination failed.
    #[error("{name}: writing {len} bytes at {offset} failed: {reason}")]
    Write { name: String, offset: u64, len: u64, reason: crate::RequestError },
    /// A read of the source failed permanently, or found a bad sector while copying into a pipe.
    #[error("{name}: reading {len} bytes at {offset} failed: {reason}")]
    Read { name: String, offset: u64, len: u64, reason: crate::RequestError },
    /// A flush of the destination failed.
    #[error("{name}: the flush to stable storage failed: {reason}")]
    Flush { name: String, reason: crate::RequestError },
    /// A connection was lost and could not be restored in time.
    #[error("{name} was lost ({reason}) and could not be reconnected")]
    Lost { name: String, reason: String },
    /// Another disk was found after a reconnect.
    #[error("{name} is another disk after reconnecting: {reason}")]
    DifferentDisk { name: String, reason: String },
    /// A peer violated its protocol: the connection must not be reopened.
    #[error("{name} violated its protocol: {reason}")]
    Violation { name: String, reason: String },
    /// The map cannot be saved.
    #[error("the map {map} cannot be saved: {reason}")]
    Map { map: String, reason: String },
    /// Reading or writing a pipe failed.
    #[error("the pipe failed: {0}")]
    Pipe(#[source] std::io::Error),
    /// The data of a pipe is incomplete.
    #[error("{0}")]
    Incomplete(String),
    /// The data does not have the expected hash.
    #[error("{0}")]
    Unexpected(String),
    /// All data was copied, but the partition table could not be rewritten.
    #[error("{name}: all was copied, but its partition table could not be rewritten: {reason}")]
    PartitionTable { name: String, reason: String },
    /// A pipe ended before its first byte.
    #[error("no data came from the pipe: check whether the program before it failed")]
    EmptyPipe,
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A thread panicked.
    #[error("internal error: a thread of the copy panicked; please report it")]
    Internal,
}

impl Job {
    /// Runs the copy. Returns when it is complete or has failed, or shortly after `stop` was set.
    /// `watch` is called in this thread several times per second, even while a disk does not
    /// answer.
    pub fn run(self, stop: &AtomicBool, watch: &mut dyn FnMut(&Progress)) -> Report {
        crate::run::run(self, stop, watch)
    }
}
