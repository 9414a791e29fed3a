//! The submission queue of a connection.

use crate::tcp::Violation;

/// State of the submission queue.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    entries: u16,
    /// Entries after the last reported head.
    unacknowledged: u16,
    /// The last reported head.
    head: u16,
    flow_control: bool,
    in_flight: u16,
}

impl SubmissionQueue {
    pub(super) fn new(entries: u16, flow_control: bool) -> Self {
        Self { entries, unacknowledged: 0, head: 0, flow_control, in_flight: 0 }
    }

    /// Returns the number of commands in flight.
    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Returns whether there is a free entry.
    pub(super) fn can_submit(&self) -> bool {
        let full = self.entries.saturating_sub(1);
        self.in_flight < full && (!self.flow_control || self.unacknowledged < full)
    }

    /// Counts a submitted command.
    pub(super) fn advance(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
        self.unacknowledged = self.unacknowledged.saturating_add(1);
    }

    /// Counts a completed command.
    pub(super) fn complete(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Processes SQHD (NVMe Base 2.0 §3.3.3.2).
    pub(super) fn update_head(&mut self, head: u16) -> Result<(), Violation> {
        if !self.flow_control {
            return Ok(());
        }
        let forward = u32::from(head) + u32::from(self.entries) - u32::from(self.head);
        let consumed = u16::try_from(forward % u32::from(self.entries)).unwrap_or(u16::MAX);
        if head >= self.entries || consumed > self.unacknowledged {
            return Err(Violation::HeadOutOfRange);
        }
        (self.head, self.unacknowledged) = (head, self.unacknowledged - consumed);
        Ok(())
    }
}
