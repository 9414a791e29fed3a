//! Asynchronous requests to one disk: the interface of a connection, and its implementations.

mod file;
mod iscsi;
mod nbd;
mod nvme;
mod retries;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use export::{Buffer, Extent};
use rustix::event::PollFlags;

pub use file::{FileEndpoint, OpenMode};
pub use iscsi::IscsiEndpoint;
pub use nbd::NbdEndpoint;
pub use nvme::{NvmeEndpoint, NvmeHost};

/// How long the peer may leave all requests unanswered, unless the caller sets less. Longer than a disk takes to
/// spin up or to retry a sector; a dead machine is noticed sooner, by TCP keep-alive.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(180);

/// Removes control characters, for names that are shown.
fn strip_control(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A request to a disk. Offsets and lengths are in bytes, in multiples of the disk's block size.
#[derive(Debug)]
pub enum Request {
    /// Fill the whole buffer from `offset` on.
    Read {
        offset: u64,
        /// At most [`max_transfer`](crate::Disk::max_transfer) bytes.
        buffer: Buffer,
    },
    /// Write a part of the buffer.
    Write {
        /// Position on the disk of the part's first byte.
        offset: u64,
        buffer: Buffer,
        /// The range of the buffer to write: not empty, at most
        /// [`max_transfer`](crate::Disk::max_transfer) bytes.
        part: Range<usize>,
    },
    /// Zero a range without sending the zeros.
    Zero {
        offset: u64,
        /// At most [`max_zero`](crate::Disk::max_zero) bytes, not 0.
        len: u64,
    },
    /// Put everything that completed on this connection on stable storage.
    Flush,
    /// Report data and holes. The answer may cover only the beginning of the range.
    Extents {
        offset: u64,
        /// Not 0.
        len: u64,
    },
}

/// A completed request.
#[derive(Debug)]
pub struct Completion {
    /// The tag that it was submitted with.
    pub tag: u32,
    /// `Ok` if the whole request succeeded.
    pub result: Result<(), RequestError>,
    /// The buffer of the request, if it had one. Its contents are undefined after a failed read.
    pub buffer: Option<Buffer>,
    /// The answer to [`Request::Extents`]; empty for other requests.
    pub extents: Vec<Extent>,
}

impl Completion {
    fn new(tag: u32, result: Result<(), RequestError>, buffer: Option<Buffer>) -> Self {
        Self { tag, result, buffer, extents: Vec::new() }
    }
}

/// Why one request failed; the connection remains usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Unrecoverable medium error.
    #[error("input/output error")]
    Media,
    /// No space left for the write.
    #[error("no space left")]
    NoSpace,
    /// The disk or the range is write-protected.
    #[error("read-only")]
    ReadOnly,
    /// Not supported by the disk; for [`Request::Zero`] also: not faster than writing zeros.
    #[error("not supported by the disk")]
    Unsupported,
    /// The range is beyond the end of the disk, or not aligned to its blocks.
    #[error("out of range, or not aligned to blocks")]
    OutOfRange,
    /// The peer or the disk was busy or not ready, however often the request was sent again.
    #[error("the disk was busy or not ready for too long")]
    Busy,
    /// Any other error of the peer.
    #[error("refused by the peer")]
    Refused,
}

/// The connection was lost, and all requests in flight with it.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct ConnectionLost {
    /// A clause for the user, such as "connection reset by peer".
    pub reason: String,
    pub cause: LossCause,
}

/// What ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossCause {
    /// The network, or an end of the peer.
    Broken,
    /// The peer answered no request in time.
    Silent,
    /// The peer violated its protocol: the connection must not be reopened.
    Violation,
}

impl ConnectionLost {
    /// A loss for this reason.
    pub fn new(reason: impl ToString) -> Self {
        Self { reason: reason.to_string(), cause: LossCause::Broken }
    }

    /// A loss because no request was answered for this time.
    pub fn silent(timeout: Duration) -> Self {
        let reason = format!("no answer in {} seconds", timeout.as_secs_f32().ceil());
        Self { reason, cause: LossCause::Silent }
    }

    /// A loss because the peer violated this rule of its protocol.
    pub fn violation(rule: impl ToString) -> Self {
        Self { reason: rule.to_string(), cause: LossCause::Violation }
    }

    /// Returns whether the peer violated its protocol.
    pub fn is_violation(&self) -> bool {
        self.cause == LossCause::Violation
    }
}

/// What a connection waits for.
#[derive(Debug)]
pub enum Interest<'a> {
    /// Nothing is in flight, or all that was has already completed.
    None,
    /// Readiness of this descriptor.
    Fd(BorrowedFd<'a>, PollFlags),
}

/// One connection to a disk, used by one thread.
///
/// The caller submits while there are [free slots](Connection::free_slots), then calls
/// [`Connection::advance`], takes all [completions](Connection::next_completion), and polls the
/// [descriptor](Connection::interest) when there is nothing to submit. A connection to a local disk
/// may carry out a request within [`Connection::submit`].
pub trait Connection {
    /// Starts a request. The tag must not be in use by a request in flight, and there must be a
    /// [free slot](Connection::free_slots).
    fn submit(&mut self, tag: u32, request: Request);

    /// The number of requests that can be submitted now.
    fn free_slots(&self) -> usize;

    /// Makes progress without blocking. Must also be called when the
    /// [deadline](Connection::deadline) has passed.
    ///
    /// # Errors
    /// Fails if the connection is lost; no further request completes.
    fn advance(&mut self) -> Result<(), ConnectionLost>;

    /// The next completed request, in any order.
    fn next_completion(&mut self) -> Option<Completion>;

    /// The descriptor to poll.
    fn interest(&self) -> Interest<'_>;

    /// The latest time of the next [`Connection::advance`]; `None` if there is none.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Makes subsequent reads come from the disk and not from this machine's page cache.
    fn drop_caches(&mut self) {}

    /// The file itself, if it is a local one that the kernel can copy from or to.
    fn local_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Records that the kernel wrote a range of [the file](Connection::local_fd).
    fn kernel_wrote(&mut self, _range: &Range<u64>) {}
}

/// The time until `deadline`, at most `max`, as a timeout for poll.
pub(crate) fn until(deadline: Option<Instant>, now: Instant, max: Duration) -> Duration {
    deadline.map_or(max, |deadline| deadline.saturating_duration_since(now).min(max))
}
