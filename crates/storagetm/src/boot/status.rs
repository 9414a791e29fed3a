//! Exit statuses of the child of PID 1.

/// Requests a power-off.
pub(super) const POWER_OFF: i32 = 10;

/// Requests a restart.
pub(super) const RESTART: i32 = 11;
