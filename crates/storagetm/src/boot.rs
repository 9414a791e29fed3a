//! `storagetm boot`: a machine that does nothing but lend its disks.
//!
//! The first program (`init`) stays small: it mounts what the kernel offers, starts a second process, takes in orphans,
//! and ends the machine. That second process (`target_mode`) does the rest, so that whatever happens to it, there is still
//! somebody who can say so on the screen.

mod init;
mod target_mode;

use std::convert::Infallible;

use crate::options::Boot;
use failure::Failure;

/// Runs the machine, or the part of it that this process is.
///
/// # Errors
/// This is no machine that was booted for it, or why it cannot lend.
pub(crate) fn boot(_: &Boot) -> Result<Infallible, Failure> {
    if std::process::id() == 1 {
        init::run()
    } else if target_mode::is_target_mode() {
        target_mode::run()
    } else {
        Err(Failure::usage(
            "storagetm boot takes the whole machine over, and is started by the kernel only (make \
             such a machine with storagetm image); here, storagetm serve --all lends the disks",
        ))
    }
}
