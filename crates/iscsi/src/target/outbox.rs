//! The steps of a session that wait for the driver.

use std::collections::VecDeque;

use export::{Admitted, Event, Reason, Segment, Step};

use super::MAX_SEND_BACKLOG;

/// The steps for the driver, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    steps: VecDeque<Step>,
    /// Bytes in `steps`.
    backlog: usize,
}

impl Outbox {
    pub(super) fn send(&mut self, segment: Segment) {
        self.backlog += segment.len();
        self.steps.push_back(Step::Send(segment));
    }

    pub(super) fn submit(&mut self, admitted: Admitted) {
        self.steps.push_back(Step::Submit(admitted));
    }

    pub(super) fn report(&mut self, event: Event) {
        self.steps.push_back(Step::Report(Box::new(event)));
    }

    pub(super) fn notify(&mut self) {
        self.steps.push_back(Step::Notify);
    }

    pub(super) fn close(&mut self, reason: Reason) {
        self.steps.push_back(Step::Close(reason));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Returns whether so many bytes wait to be sent that no more are received.
    pub(super) fn is_full(&self) -> bool {
        self.backlog >= MAX_SEND_BACKLOG
    }

    /// Returns the next step.
    pub(super) fn pop(&mut self) -> Option<Step> {
        let step = self.steps.pop_front()?;
        if let Step::Send(segment) = &step {
            self.backlog = self.backlog.saturating_sub(segment.len());
        }
        Some(step)
    }
}
