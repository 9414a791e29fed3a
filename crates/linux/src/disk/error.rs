//! Errors of opening a disk.

use crate::range_lock::{Holder, OpenFor};
use rustix::io::Errno;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Why a disk could not be opened: one sentence with the path, the problem and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path does not exist.
    #[error(
        "{path}: there is no such disk or file; \"storagetm list\" shows the disks of this machine"
    )]
    Missing {
        /// What was asked for.
        path: PathBuf,
    },
    /// Permission denied.
    #[error(
        "{path}: permission denied; run this as root, or as a user who may open it (disks: group disk)"
    )]
    Permission {
        /// What was asked for.
        path: PathBuf,
    },
    /// It is neither a block device nor a regular file.
    #[error("{path} is {what}; only block devices and image files can be lent")]
    NoDisk {
        /// What was asked for.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// The drive or card reader is empty.
    #[error("{path}: there is no medium in the drive; put one in and try again")]
    NoMedium {
        /// What was asked for.
        path: PathBuf,
    },
    /// Its size is 0.
    #[error("{path} is empty: there is nothing to lend")]
    Empty {
        /// What was asked for.
        path: PathBuf,
    },
    /// An image smaller than one block.
    #[error("{path} has only {bytes} bytes, less than one block of {block}; it cannot be lent")]
    TooSmall {
        /// What was asked for.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The block size.
        block: u32,
    },
    /// It was to be opened for writing and is read-only.
    #[error(
        "{path} cannot be written: the disk or its medium is read-only; lend it without --writable"
    )]
    ReadOnly {
        /// What was asked for.
        path: PathBuf,
    },
    /// The kernel or a program has opened it exclusively.
    #[error(
        "{path} is in use ({reason}); stop that first, or lend it read-only with --allow-in-use"
    )]
    InUse {
        /// What was asked for.
        path: PathBuf,
        /// By what.
        reason: String,
    },
    /// Another program holds byte-range locks, as QEMU does.
    #[error("{path} is in use by {holder}; {}", advice(*.access))]
    Held {
        /// What was asked for.
        path: PathBuf,
        /// By which.
        holder: Holder,
        /// What it was to be opened for.
        access: OpenFor,
    },
    /// Another program holds the `flock`.
    #[error("{path} is locked by another program, perhaps lent already; stop that first")]
    Locked {
        /// What was locked: the disk, or the whole disk of a partition.
        path: PathBuf,
    },
    /// The path was replaced while it was being opened.
    #[error("{path} became something else while it was being opened; try again")]
    Changed {
        /// What was asked for.
        path: PathBuf,
    },
    /// Another system error.
    #[error("{path} cannot be opened: {error}")]
    System {
        /// What was asked for.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
}

fn advice(access: OpenFor) -> &'static str {
    match access {
        OpenFor::Writing => "end that first: a disk in use is never written",
        OpenFor::Reading => "end that first, or lend it read-only all the same with --allow-in-use",
    }
}

impl OpenError {
    pub(super) fn of(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match (error.kind(), Errno::from_io_error(&error)) {
            (_, Some(Errno::NOMEDIUM)) => Self::NoMedium { path },
            (_, Some(Errno::BUSY)) => {
                let reason = "the kernel or another program has it for itself".to_owned();
                Self::InUse { path, reason }
            }
            (_, Some(Errno::ROFS)) => Self::ReadOnly { path },
            (_, Some(Errno::NXIO | Errno::NODEV)) | (ErrorKind::NotFound, _) => {
                Self::Missing { path }
            }
            (_, Some(Errno::ACCESS)) => Self::Permission { path },
            _ => Self::System { path, error },
        }
    }
}
