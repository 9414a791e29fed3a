//! Deadlines of the serve loop.

use std::time::Instant;

/// Deadlines of deferred work.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// Redraw the screen.
    pub(super) draw: Option<Instant>,
    /// Print the full text where no screen is drawn.
    pub(super) full_text: bool,
    /// Reread the machine's addresses.
    pub(super) addresses: Option<Instant>,
    /// Send a watchdog notification.
    pub(super) watchdog: Option<Instant>,
    /// Poll counters and buttons.
    pub(super) poll_counters: Option<Instant>,
    /// The lockout after a wrong pairing code ends.
    pub(super) code: Option<Instant>,
    /// Poll the sizes of exported image files.
    pub(super) sizes: Option<Instant>,
}
