//! One way to a disk: what may be asked of it, and how it answers. It knows no plan and no other connection.

mod file;
mod nbd;
mod nvme;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use export::{Buffer, Extent};
use rustix::event::PollFlags;

pub use file::{FileEndpoint, OpenMode};
pub use nbd::{NbdEndpoint, start_tls};
pub use nvme::{DiscoveredDisk, NvmeEndpoint, NvmeHost};

/// How long the other end may answer none of the requests that it has. Longer than a disk takes that is being woken, or that
/// fights for a sector: a machine that is gone is noticed sooner, by the connection itself.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(180);

/// What is asked of a disk. Offsets and lengths are in bytes, and whole blocks of the disk.
#[derive(Debug)]
pub enum Request {
    /// Fill the buffer, in all its length, from `offset` on.
    Read {
        /// The first byte.
        offset: u64,
        /// At most [`largest`](crate::Disk::largest) bytes.
        buffer: Buffer,
    },
    /// Write a part of the buffer.
    Write {
        /// Where the part's first byte belongs on the disk.
        offset: u64,
        /// The memory.
        buffer: Buffer,
        /// The part of it: within its length, not empty, at most [`largest`](crate::Disk::largest) bytes.
        part: std::ops::Range<usize>,
    },
    /// Have a range read as zeros, without sending them.
    Zero {
        /// The first byte.
        offset: u64,
        /// At most [`zeroes`](crate::Disk::zeroes) bytes, not 0.
        len: u64,
    },
    /// Put all that was written through this connection, and has ended, on stable storage.
    Flush,
    /// Tell what is data and what is hole. The answer may cover less than the range, from its start on.
    Extents {
        /// The first byte.
        offset: u64,
        /// Not 0.
        len: u64,
    },
}

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// The number that it was submitted with.
    pub tag: u32,
    /// Well, and then in all its length; or why not.
    pub result: Result<(), RequestError>,
    /// The buffer of the request, if it had one. What it holds after a failed read is of no meaning.
    pub buffer: Option<Buffer>,
    /// The answer to [`Request::Extents`]; empty for all else.
    pub extents: Vec<Extent>,
}

/// Why a single request failed; the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The disk has an error in these sectors.
    #[error("input/output error")]
    Media,
    /// There is no room left for the write.
    #[error("no space left")]
    NoSpace,
    /// Nothing may be written there.
    #[error("it is read-only")]
    ReadOnly,
    /// The disk cannot do this; for a [`Request::Zero`] also: not faster than zeros can be written.
    #[error("the disk cannot do this")]
    Unsupported,
    /// The range is not on the disk, or not made of whole blocks.
    #[error("the disk does not have this range")]
    OutOfRange,
    /// The other end gave an error that means none of these.
    #[error("the other end refused it")]
    Refused,
}

/// The way to the disk is gone, with all that was under way on it.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct ConnectionLost {
    /// A clause for people, as "connection reset by peer".
    pub reason: String,
    /// Whether the other end broke the rules of its protocol: nothing that it sends can be relied on.
    pub violation: bool,
}

impl ConnectionLost {
    /// For this reason.
    pub fn new(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), violation: false }
    }

    /// Because the other end broke this rule of its protocol.
    pub fn violation(rule: impl ToString) -> Self {
        Self { reason: rule.to_string(), violation: true }
    }
}

/// What a connection is waiting for.
#[derive(Debug)]
pub enum Interest<'a> {
    /// Nothing: nothing is under way, or all that was has already ended.
    None,
    /// That this descriptor is ready.
    Fd(BorrowedFd<'a>, PollFlags),
}

/// One way to a disk, used by one thread.
///
/// The caller submits as long as there is [room](Connection::free_slots), then calls [`Connection::advance`], takes all that has
/// [ended](Connection::ended), and when there is nothing to submit polls what the connection [waits](Connection::interest) for. A connection to a
/// local disk may do all of a request in [`Connection::submit`].
pub trait Connection {
    /// Begins a request, named by a number that no request under way has. Called only while there is [room](Connection::free_slots).
    fn submit(&mut self, tag: u32, request: Request);

    /// How many requests it takes now.
    fn free_slots(&self) -> usize;

    /// Goes as far as it can without waiting. Also to be called when the [deadline](Connection::deadline) passed.
    ///
    /// # Errors
    /// The way is gone; nothing more ends on it.
    fn advance(&mut self) -> Result<(), ConnectionLost>;

    /// The next request that has ended, in any order.
    fn next_completion(&mut self) -> Option<Completion>;

    /// What it waits for.
    fn interest(&self) -> Interest<'_>;

    /// When to call [`Connection::advance`] at the latest; none if it has no need.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// From now on what is read shall come from the disk itself, not from this machine's memory of what it wrote there.
    fn drop_caches(&mut self) {}

    /// The file or device itself, where it is one of this machine that the kernel can copy from or to.
    fn local_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// How long something may still take, for a poll.
pub(crate) fn until(deadline: Option<Instant>, now: Instant, most: Duration) -> Duration {
    deadline.map_or(most, |deadline| deadline.saturating_duration_since(now).min(most))
}
