//! Where a disk is, and what there is to know about it before a copy begins. It knows no address.

use crate::Connection;

/// What a place tells about its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What people call it: its path or address.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// The size of a block in bytes: a power of two, 512 at least for a disk, 1 for a file.
    pub block: u32,
    /// The logical block size in bytes, in which a partition table on it counts; none for a file, or if it is not known.
    pub sector: Option<u32>,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether it tells what is data and what is hole.
    pub reports_extents: bool,
    /// The longest range of zeros that it makes at once, in bytes; 0 if it makes none.
    pub max_zero: u64,
    /// The longest read or write, in bytes: at least one page.
    pub max_transfer: u32,
    /// How many connections may be used at once.
    pub max_connections: usize,
    /// Whether it is reached through something that can break, and what was written and not flushed may then be lost.
    pub remote: bool,
    /// Whether nothing has been written to it yet, and all of it reads as zeros.
    pub blank: bool,
    /// Who it is: the same for one disk for ever, and different for another as far as the other end tells. Empty if unknown;
    /// one line.
    pub identity: String,
}

/// Where a disk is.
pub trait Endpoint: Send + Sync {
    /// Opens one more way to the same disk.
    ///
    /// # Errors
    /// Why there is none.
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError>;

    /// The disk is to take this many bytes: called once, before the first [`Endpoint::open`] of a destination. A place that
    /// makes its disk does so now.
    ///
    /// # Errors
    /// It cannot.
    fn prepare(&self, _bytes: u64) -> Result<(), EndpointError> {
        Ok(())
    }
}

/// Why there is no way to a disk. Each is one sentence for people, without a full stop: what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// It may be different in a while: trying again is of use.
    #[error("{0}")]
    Unreachable(String),
    /// It stays so.
    #[error("{0}")]
    Refused(String),
    /// The other end broke the rules of its protocol: nothing that it sends can be relied on.
    #[error("{0}")]
    Violation(String),
}
