//! Placeholder for a session that has panicked.

use std::time::Instant;

use export::{Notice, Outcome, Session, Step, Ticket};

/// Ignores everything.
pub(crate) struct FailedSession;

impl Session for FailedSession {
    fn receive(&mut self, _: Instant, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn complete(&mut self, _: Instant, _: Ticket, _: Outcome) {}

    fn notify(&mut self, _: Instant, _: &Notice) {}

    fn tick(&mut self, _: Instant) {}

    fn poll(&mut self) -> Option<Step> {
        None
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn can_receive(&self) -> bool {
        false
    }

    fn is_established(&self) -> bool {
        true
    }
}
