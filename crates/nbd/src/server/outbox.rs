//! The steps of a session that wait for the driver.

use std::collections::VecDeque;

use export::{Admitted, Event, Reason, Segment, Step};

use super::MAX_SEND_BACKLOG;

/// The steps for the driver, in order. Replies are delayed while a streamed reply is being sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    steps: VecDeque<Step>,
    /// Bytes in `steps` and `delayed`.
    backlog: usize,
    /// Whether a streamed reply has begun and not ended.
    streaming: bool,
    /// Replies delayed until the streamed reply has ended.
    delayed: VecDeque<Segment>,
}

impl Outbox {
    /// Sends a segment, delayed if a streamed reply is being sent.
    pub(super) fn send(&mut self, segment: Segment) {
        self.backlog += segment.len();
        if self.streaming {
            self.delayed.push_back(segment);
        } else {
            self.steps.push_back(Step::Send(segment));
        }
    }

    /// Sends a part of a streamed reply.
    pub(super) fn stream(&mut self, segment: Segment) {
        self.streaming = true;
        self.backlog += segment.len();
        self.steps.push_back(Step::Send(segment));
    }

    /// Ends the streamed reply, and sends the delayed replies.
    pub(super) fn end_stream(&mut self) {
        self.streaming = false;
        self.steps.extend(self.delayed.drain(..).map(Step::Send));
    }

    /// Drops the delayed replies.
    pub(super) fn drop_delayed(&mut self) {
        self.streaming = false;
        let dropped = self.delayed.drain(..).map(|segment| segment.len()).sum();
        self.backlog = self.backlog.saturating_sub(dropped);
    }

    pub(super) fn submit(&mut self, admitted: Admitted) {
        self.steps.push_back(Step::Submit(admitted));
    }

    pub(super) fn report(&mut self, event: Event) {
        self.steps.push_back(Step::Report(Box::new(event)));
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
