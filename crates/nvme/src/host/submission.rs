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

    /// Returns whether there is a free entry. Without commands in flight all are free, whatever head was reported:
    /// a controller has consumed the entry of a command that it completed. Some never report a head.
    pub(super) fn can_submit(&self) -> bool {
        let acknowledged = self.unacknowledged < self.capacity();
        self.in_flight == 0
            || self.in_flight < self.capacity() && (!self.flow_control || acknowledged)
    }

    /// Counts a submitted command.
    pub(super) fn advance(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
        self.unacknowledged = self.unacknowledged.saturating_add(1).min(self.capacity());
    }

    /// Returns the maximum number of entries in use: with one more, a full queue would look empty.
    fn capacity(&self) -> u16 {
        self.entries.saturating_sub(1)
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

#[cfg(test)]
mod test {
    use super::*;

    /// Completes a command, with this head.
    fn completed(queue: &mut SubmissionQueue, head: u16) {
        queue.update_head(head).unwrap();
        queue.complete();
    }

    #[test]
    fn completed_commands_free_their_entries_without_a_head() {
        let mut queue = SubmissionQueue::new(4, true);
        for _ in 0..10 {
            assert!(queue.can_submit());
            queue.advance();
            completed(&mut queue, 0);
        }
        queue.advance();
        assert!(!queue.can_submit(), "the head does not say that the controller has room");
    }

    #[test]
    fn reported_head_frees_entries() {
        let mut queue = SubmissionQueue::new(4, true);
        (0..3).for_each(|_| queue.advance());
        assert!(!queue.can_submit());
        completed(&mut queue, 2);
        assert!(queue.can_submit());
        assert!(queue.update_head(0).is_err(), "a head beyond the tail");
        assert!(queue.update_head(4).is_err(), "a head beyond the queue");
    }
}
