//! Endpoints of a copy, and the properties of their disks.

pub use client::ConnectError as EndpointError;

use crate::Connection;

/// Properties of an endpoint's disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Name for people: its path or address.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Block size in bytes: a power of two, at least 512 for a disk, 1 for a file.
    pub block: u32,
    /// Logical block size in bytes, in which a partition table on the disk counts; `None` for a
    /// file, or if it is not known.
    pub sector: Option<u32>,
    /// Whether writes are allowed.
    pub writable: bool,
    /// Whether [`Request::Extents`](crate::Request::Extents) is supported.
    pub reports_extents: bool,
    /// Longest [`Request::Zero`](crate::Request::Zero), in bytes; 0 if it is not supported.
    pub max_zero: u64,
    /// Longest read or write, in bytes: at least one page.
    pub max_transfer: u32,
    /// Maximum number of concurrent connections.
    pub max_connections: usize,
    /// Whether the connection can be lost, and unflushed writes with it.
    pub remote: bool,
    /// Whether nothing has been written yet, so that all of it reads as zeros.
    pub blank: bool,
    /// Whether the contents are in this machine's memory and nowhere else, as those of a file in
    /// tmpfs. A flush does nothing, and no later write can damage what was read back once.
    pub in_memory: bool,
    /// Stable identity of the disk, on one line: the same for one disk at all times, different for
    /// different disks as far as the server reports one. Empty if unknown.
    pub identity: String,
}

/// A disk that can be copied from or to.
pub trait Endpoint: Send + Sync {
    /// Opens one more connection to the disk.
    ///
    /// # Errors
    /// Fails if the disk cannot be reached or opened.
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError>;

    /// Prepares a destination for `bytes` bytes. Called once, before the first [`Endpoint::open`]
    /// of a destination. An endpoint that creates its file does so here.
    ///
    /// # Errors
    /// Fails if the destination cannot be created or resized.
    fn prepare(&self, _bytes: u64) -> Result<(), EndpointError> {
        Ok(())
    }
}
