//! One copy: what is to be done, how far it is, and how it ended. It knows no way to do it.

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::{Endpoint, EndpointError};

/// One end of a copy.
pub enum End {
    /// A disk or a file.
    Disk(Box<dyn Endpoint>),
    /// A pipe, or whatever is read or written from its start to its end.
    Pipe(Pipe),
}

/// A pipe as an end of a copy.
pub struct Pipe {
    /// The pipe.
    pub descriptor: OwnedFd,
    /// What was read of it already: it comes before the rest.
    pub head: Vec<u8>,
    /// How much comes in all, where that is known.
    pub bytes: Option<u64>,
    /// Called once it has ended: whether all came, or a sentence why not.
    pub finish: Option<Finish>,
}

/// Finds out at the end of a pipe whether all came that should.
pub type Finish = Box<dyn FnOnce() -> Result<(), String> + Send>;

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

/// One copy that is to be made, by [`Job::run`].
#[derive(Debug)]
pub struct Job {
    /// Where the data comes from.
    pub source: End,
    /// Where it goes to.
    pub destination: End,
    /// StageConfig.
    pub settings: Settings,
}

/// How a copy is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Connections to each end, and threads; an end may allow fewer.
    pub connections: usize,
    /// Whether to read the destination at the end and to compare it with what was read.
    pub verify: bool,
    /// Whether to compute the BLAKE3 hash of the whole disk, holes included, which have to be hashed as well: a second
    /// for some gigabytes. To a disk it comes only with `verify`.
    pub hash: bool,
    /// How often bad sectors are tried again after they were first found.
    pub retries: u32,
    /// Bytes a second, at most.
    pub rate: Option<u64>,
    /// Whether zeros become holes at the destination, where it can; otherwise they are written. Between two files of this
    /// machine and without `verify` the kernel copies, and only what is a hole of the source becomes one.
    pub sparse: bool,
    /// The file that tells how far the copy is; if it is there, the copy goes on from it.
    pub map: Option<PathBuf>,
    /// How long to try to reach an end again that was lost.
    pub reconnect_timeout: Duration,
    /// Bytes of a request, as large as both ends allow it: a power of two from 64 KiB to 1 MiB.
    pub chunk: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 4,
            verify: true,
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

/// What a copy is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Checks both ends; nothing has been written.
    Checking,
    /// Copies in large pieces, and skips ahead where it meets bad sectors.
    Copying,
    /// Finds the edges of bad areas.
    Trimming,
    /// Reads bad areas sector by sector.
    Scraping,
    /// Tries bad sectors again; which time this is, from 1.
    Retrying(u32),
    /// Has the destination put all on stable storage.
    Flushing,
    /// Reads the destination and compares.
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

/// How far a copy is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes that are done with: copied, or found to be zeros, or bad; while verifying, bytes compared. It never falls
    /// but once, when verifying begins, and is never above `total`.
    pub done: u64,
    /// Bytes there are; none for a pipe.
    pub total: Option<u64>,
    /// Bytes a second, lately; what was skipped as a hole is counted.
    pub rate: u64,
    /// How long it takes still, if that can be said; without verifying as long as it has not begun.
    pub eta: Option<Duration>,
    /// Bytes that could not be read so far.
    pub bad: u64,
    /// Requests that the source failed so far.
    pub errors: u64,
    /// Bytes that were not sent because they are zeros.
    pub zeroes: u64,
    /// An end that is being reached again just now: its name, and why it was lost.
    pub reconnecting: Option<(String, String)>,
    /// An end that has answered none of the requests in flight for some seconds: its name, and for how long.
    pub stalled: Option<(String, Duration)>,
    /// Since the beginning.
    pub elapsed: Duration,
}

/// How a copy ended.
#[derive(Debug)]
pub struct Report {
    /// StageConfig.
    pub outcome: Outcome,
    /// The length of the source in bytes; 0 if it never got so far.
    pub bytes: u64,
    /// Bytes that this run read and wrote.
    pub copied: u64,
    /// Bytes of zeros that this run did not send.
    pub zeroes: u64,
    /// Bytes that were finished by an earlier run.
    pub earlier: u64,
    /// Bytes that were sent again after an end was lost.
    pub resent: u64,
    /// Bytes of the destination that were compared, holes included.
    pub verified: u64,
    /// What could not be read, in rising order.
    pub bad: Vec<Range<u64>>,
    /// Zeros that were added to the end of a pipe to fill up the last block of the destination.
    pub padded: u64,
    /// BLAKE3 of the whole disk, as `b3sum` tells it; none if not all was read or it was not asked for.
    pub hash: Option<[u8; 32]>,
    /// How long it took.
    pub elapsed: Duration,
}

/// In which of the ways a copy can end it did.
#[derive(Debug)]
pub enum Outcome {
    /// All was copied, and if asked for, verified.
    Success,
    /// All that could be read was copied, and if asked for, verified; the rest is [`Report::bad`].
    BadSectors,
    /// The destination does not hold what was read: these ranges, in rising order.
    VerifyFailed(Vec<Range<u64>>),
    /// It was not begun; nothing was written.
    Refused(Refusal),
    /// It was told to stop. With a map it can go on.
    Interrupted,
    /// It could not go on. With a map it can be tried again.
    Failed(CopyError),
}

/// Why a copy was not begun. Each is a sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The source cannot be opened.
    #[error("{0}")]
    Source(#[source] EndpointError),
    /// The destination cannot be opened or made.
    #[error("{0}")]
    Destination(#[source] EndpointError),
    /// The destination may not be written.
    #[error("{destination} is read-only: lend it writable, or choose another destination")]
    ReadOnly {
        /// Its name.
        destination: String,
    },
    /// The destination is too small.
    #[error("{destination} has {there} bytes, {needed} are needed: choose a larger destination")]
    Smaller {
        /// Its name.
        destination: String,
        /// Its length in bytes.
        there: u64,
        /// The length of the source in bytes.
        needed: u64,
    },
    /// The blocks of the source and of the destination do not fit.
    #[error("{destination} has blocks of {block} bytes, and {bytes} bytes are not whole blocks")]
    Blocks {
        /// Its name.
        destination: String,
        /// Its block size in bytes.
        block: u32,
        /// The length of the source in bytes.
        bytes: u64,
    },
    /// The map is of another disk.
    #[error("the map {map} was made for another disk: {why}")]
    AnotherDisk {
        /// Its path.
        map: String,
        /// What differs.
        why: String,
    },
    /// The map cannot be read or written.
    #[error("the map {map}: {why}")]
    Map {
        /// Its path.
        map: String,
        /// What is wrong with it.
        why: String,
    },
    /// A pipe can neither be started again nor be compared.
    #[error("a pipe cannot go on from a map: leave the map out, or name a file")]
    PipeWithMap,
    /// Both ends are pipes.
    #[error("both ends are pipes: name a disk or a file for one of them")]
    Pipes,
}

/// Why a copy could not go on. Each is a sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The destination failed a write.
    #[error("{name}: writing {len} bytes at {offset} failed: {why}")]
    Write {
        /// The destination.
        name: String,
        /// The first byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// StageConfig.
        why: crate::RequestError,
    },
    /// The source failed in a way that trying again does not mend, or is a disk with bad sectors that goes into a pipe.
    #[error("{name}: reading {len} bytes at {offset} failed: {why}")]
    Read {
        /// The source.
        name: String,
        /// The first byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// StageConfig.
        why: crate::RequestError,
    },
    /// The destination could not put the data on stable storage.
    #[error("{name}: what was written could not be put on stable storage: {why}")]
    Flush {
        /// The destination.
        name: String,
        /// StageConfig.
        why: crate::RequestError,
    },
    /// An end was lost and did not come back in time.
    #[error("{name} was lost ({why}) and did not come back")]
    Lost {
        /// Its name.
        name: String,
        /// The last reason.
        why: String,
    },
    /// An end came back as another disk.
    #[error("{name} came back as another disk: {why}")]
    DifferentDisk {
        /// Its name.
        name: String,
        /// What differs.
        why: String,
    },
    /// An end broke the rules of its protocol: nothing that it sends can be relied on.
    #[error("{name} broke the rules of its protocol: {why}")]
    Violation {
        /// Its name.
        name: String,
        /// Which rule.
        why: String,
    },
    /// The map could not be saved.
    #[error("the map {map} cannot be saved: {why}")]
    Map {
        /// Its path.
        map: String,
        /// Why.
        why: String,
    },
    /// A pipe failed.
    #[error("the pipe failed: {0}")]
    Pipe(#[source] std::io::Error),
    /// What came out of a pipe was not all.
    #[error("{0}")]
    Incomplete(String),
    /// The partition table was to be written anew after the copy, and was not.
    #[error("{name}: all was copied, but its partition table could not be written anew: {why}")]
    PartitionTable {
        /// The destination.
        name: String,
        /// Why.
        why: String,
    },
    /// A pipe ended before its first byte.
    #[error("nothing came from the pipe: see whether the program before it failed")]
    EmptyPipe,
    /// No thread can be started.
    #[error("no thread can be started: {0}")]
    Thread(#[source] std::io::Error),
    /// A thread of the copy ended by a mistake of ours.
    #[error("a thread of the copy stopped by a mistake in this program; please report it")]
    Internal,
}

impl Job {
    /// Makes the copy. Returns when it is done, or could not be, or a while after `stop` was set. `watch` is called in
    /// this thread, several times a second, also while a disk takes long to answer.
    pub fn run(self, stop: &AtomicBool, watch: &mut dyn FnMut(&Progress)) -> Report {
        crate::run::run(self, stop, watch)
    }
}
