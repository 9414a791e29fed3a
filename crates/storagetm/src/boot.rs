//! `storagetm boot`: target mode, a machine that only exports its disks.
//!
//! PID 1 (`init`) is small: it mounts the kernel's file systems, starts a child, reaps orphaned
//! processes, and powers the machine off. The child (`target_mode`) does the rest, so that a crash
//! of it can still be shown on the screen.

mod init;
mod target_mode;

use std::convert::Infallible;

use crate::options::Boot;
use failure::Failure;

/// Runs PID 1 or its child.
///
/// # Errors
/// Fails if this machine was not booted by an image of storagetm, or if it cannot export its disks.
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
