//! How a disk request can fail: a closed list, which each protocol maps to its own status codes.

use std::fmt;
use std::io;

/// Why a disk request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The disk reported an error for these sectors.
    Io,
    /// No space left for the write (a sparse image on a full file system).
    NoSpace,
    /// The export, or the grant, is read-only.
    ReadOnly,
    /// The range goes beyond the end of the disk.
    OutOfRange,
    /// The range or the buffer is not a multiple of the block size.
    Misaligned,
    /// The disk does not support the operation.
    Unsupported,
    /// The disk was removed or withdrawn, or the connection may no longer write.
    Gone,
    /// Another request has exclusive access: retry after the next
    /// [`Notice::StateChanged`](crate::Notice::StateChanged).
    Busy,
}

impl Fault {
    /// Every fault, for tests that mappings are total.
    pub const ALL: [Self; 8] = [
        Self::Io,
        Self::NoSpace,
        Self::ReadOnly,
        Self::OutOfRange,
        Self::Misaligned,
        Self::Unsupported,
        Self::Gone,
        Self::Busy,
    ];

    /// Maps an errno to a fault.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            ENOSPC | EDQUOT | EFBIG => Self::NoSpace,
            EPERM | EACCES | EROFS | EBADF => Self::ReadOnly,
            EINVAL => Self::Misaligned,
            EOPNOTSUPP | ENOSYS | ENOTTY => Self::Unsupported,
            ENODEV | ENXIO | ENOMEDIUM | ESHUTDOWN => Self::Gone,
            _ => Self::Io,
        }
    }
}

const EPERM: i32 = 1;
const ENXIO: i32 = 6;
const EBADF: i32 = 9;
const EACCES: i32 = 13;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;
const ESHUTDOWN: i32 = 108;
const EDQUOT: i32 = 122;
const ENOMEDIUM: i32 = 123;

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        error.raw_os_error().map_or(Self::Io, Self::from_errno)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "the disk reported an error",
            Self::NoSpace => "no space left",
            Self::ReadOnly => "read-only",
            Self::OutOfRange => "beyond the end of the disk",
            Self::Misaligned => "not made of whole blocks",
            Self::Unsupported => "not supported by the disk",
            Self::Gone => "the disk is gone",
            Self::Busy => "held by another request",
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn errno_becomes_the_fault_that_a_peer_can_act_on() {
        for (errno, fault) in [
            (5, Fault::Io),
            (28, Fault::NoSpace),
            (30, Fault::ReadOnly),
            (22, Fault::Misaligned),
            (95, Fault::Unsupported),
            (19, Fault::Gone),
            (61, Fault::Io),
        ] {
            assert_eq!(Fault::from(io::Error::from_raw_os_error(errno)), fault, "errno {errno}");
        }
    }
}
