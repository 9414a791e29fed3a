//! How a disk request can fail: a closed list, which each protocol maps to its own status codes.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Why a disk request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// A reservation of another host refuses the operation.
    Reserved,
}

impl Fault {
    /// Every fault, for tests that mappings are total.
    pub const ALL: [Self; 9] = [
        Self::Io,
        Self::NoSpace,
        Self::ReadOnly,
        Self::OutOfRange,
        Self::Misaligned,
        Self::Unsupported,
        Self::Gone,
        Self::Busy,
        Self::Reserved,
    ];

    /// Maps an errno to a fault: [`Fault::Io`] if it has none of its own.
    pub fn from_errno(errno: i32) -> Self {
        Self::of_errno(errno).unwrap_or(Self::Io)
    }

    /// Returns the fault that an errno of a disk stands for. `None` for an errno that is not about
    /// the disk, such as `ENOMEM`: a retry may succeed.
    pub fn of_errno(errno: i32) -> Option<Self> {
        Some(match errno {
            EIO | ENODATA | EILSEQ | ETIMEDOUT | EREMOTEIO => Self::Io,
            ENOSPC | EDQUOT | EFBIG => Self::NoSpace,
            EPERM | EACCES | EROFS | EBADF => Self::ReadOnly,
            EINVAL => Self::Misaligned,
            EOPNOTSUPP | ENOSYS | ENOTTY => Self::Unsupported,
            ENODEV | ENXIO | ENOMEDIUM | ESHUTDOWN => Self::Gone,
            _ => return None,
        })
    }
}

const EPERM: i32 = 1;
const EIO: i32 = 5;
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
const ENODATA: i32 = 61;
const EILSEQ: i32 = 84;
const EOPNOTSUPP: i32 = 95;
const ESHUTDOWN: i32 = 108;
const ETIMEDOUT: i32 = 110;
const EREMOTEIO: i32 = 121;
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
            Self::Reserved => "reserved by another host",
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn each_errno_of_a_disk_has_one_fault() {
        let table: [(Fault, &[i32]); 6] = [
            (Fault::Io, &[5, 61, 84, 110, 121]),
            (Fault::NoSpace, &[27, 28, 122]),
            (Fault::ReadOnly, &[1, 9, 13, 30]),
            (Fault::Misaligned, &[22]),
            (Fault::Unsupported, &[25, 38, 95]),
            (Fault::Gone, &[6, 19, 108, 123]),
        ];
        for errno in 0..200 {
            let row = table.iter().find(|(_, errnos)| errnos.contains(&errno));
            let fault = row.map(|(fault, _)| *fault);
            assert_eq!(Fault::of_errno(errno), fault, "errno {errno}");
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(Fault::from(error), fault.unwrap_or(Fault::Io), "errno {errno}");
        }
    }
}
