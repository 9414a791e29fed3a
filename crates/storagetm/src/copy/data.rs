//! The data of a disk that comes through a pipe, for a thread that writes it.

use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;

use ::copy::{Disk, End, Pipe};
use failure::Failure;

use super::summary::refused;
use crate::options::copy::Copy;

/// The data of a disk, as it comes through a pipe.
pub(super) struct Data {
    pub(super) pipe: PipeReader,
    /// Size of the disk.
    pub(super) bytes: u64,
}

/// Returns the data of the source, and the end of the copy to which it goes.
///
/// # Errors
/// Fails if the source is a stream, or if no descriptors are available.
pub(super) fn data(options: &Copy, source: Option<&Disk>) -> Result<(Data, End), Failure> {
    let Some(disk) = source else {
        return Err(refused(format!(
            "{} comes as a stream, which cannot be copied to {}: copy it to a raw image first",
            options.source, options.destination
        )));
    };
    let (pipe, sender) =
        io::pipe().map_err(|error| refused(format!("there is no pipe for the data: {error}")))?;
    // Limited for users without privileges.
    let _ = rustix::pipe::fcntl_setpipe_size(&sender, 1 << 20);
    let end = End::Pipe(Pipe::from(OwnedFd::from(sender)));
    Ok((Data { pipe, bytes: disk.bytes }, end))
}
