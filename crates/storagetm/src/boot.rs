//! `storagetm boot`: target mode, a machine that only exports its disks.
//!
//! PID 1 (`init`) is small: it mounts the kernel's file systems, starts a child, reaps orphaned
//! processes, and powers the machine off. The child (`target_mode`) does the rest, so that a crash
//! of it can still be shown on the screen. With the kernel parameter `storagetm.boot` the child attaches
//! a lent disk instead, and PID 1 becomes the init of the system on it (`lent`). `now` restarts a running machine into target mode.

mod init;
mod lent;
mod now;
mod status;
mod target_mode;

use crate::options::boot::Boot;
use failure::Failure;

/// Runs PID 1 or its child, or restarts this machine into target mode.
///
/// # Errors
/// Fails if this machine was not booted by an image of storagetm and is not to be restarted, or if
/// it cannot export its disks.
pub(crate) fn boot(options: &Boot) -> Result<(), Failure> {
    if std::process::id() == 1 {
        init::run()
    } else if target_mode::is_target_mode() {
        target_mode::run().map(|never| match never {})
    } else if options.now {
        now::run(options)
    } else {
        Err(Failure::usage(
            "storagetm boot takes the whole machine over: --now restarts this one into target mode, storagetm image makes a \
             medium that starts another; here, storagetm serve --all lends the disks",
        ))
    }
}
