//! What a connection has for the driver: segments to send, disk requests, events.

use std::collections::VecDeque;

use export::{Admitted, Body, Event, Reason, Segment, Step};

use crate::tcp::{Framer, pdu};
use crate::wire::completion::Cqe;

/// Back-pressure: no commands are received while this many bytes are to be sent. A command of 72
/// bytes can request a megabyte.
const MAX_QUEUED_BYTES: usize = 1 << 18;

/// The steps that the driver has not taken yet, and the builder of PDUs.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    framer: Framer,
    steps: VecDeque<Step>,
    /// Bytes of the segments in `steps`.
    queued_bytes: usize,
}

impl Outbox {
    /// Sets digests and the alignment of data, from the next PDU on.
    pub(super) fn set_layout(&mut self, header: bool, data: bool, hpda: u8) {
        self.framer.set_layout(header, data, hpda);
    }

    /// Returns whether data is sent with a digest.
    pub(super) fn has_data_digest(&self) -> bool {
        self.framer.has_data_digest()
    }

    pub(super) fn send(&mut self, segment: Segment) {
        self.queued_bytes += segment.len();
        self.steps.push_back(Step::Send(segment));
    }

    /// Sends a response capsule.
    pub(super) fn response(&mut self, cqe: Cqe) {
        let response = self.framer.response(cqe);
        self.send(response);
    }

    /// Sends an R2T for `len` bytes.
    pub(super) fn r2t(&mut self, cid: u16, tag: u16, len: u32) {
        let r2t = self.framer.r2t(cid, tag, 0, len);
        self.send(r2t);
    }

    /// Sends `len` bytes of data for a command in one C2HData PDU.
    pub(super) fn data(&mut self, flags: u8, cid: u16, body: Body, len: usize) {
        let Self { framer, steps, queued_bytes } = self;
        let mut send = |segment: Segment| {
            *queued_bytes += segment.len();
            steps.push_back(Step::Send(segment));
        };
        framer.data(pdu::kind::C2H_DATA, flags, cid, 0, body, 0, len, &mut send);
    }

    pub(super) fn submit(&mut self, admitted: Admitted) {
        self.steps.push_back(Step::Submit(admitted));
    }

    pub(super) fn report(&mut self, event: Event) {
        self.steps.push_back(Step::Report(Box::new(event)));
    }

    /// Makes the driver notify all sessions of a change of shared state.
    pub(super) fn notify(&mut self) {
        self.steps.push_back(Step::Notify);
    }

    pub(super) fn close(&mut self, reason: Reason) {
        self.steps.push_back(Step::Close(reason));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Returns whether so much is to be sent that no command may be received.
    pub(super) fn is_full(&self) -> bool {
        self.queued_bytes >= MAX_QUEUED_BYTES
    }

    /// Takes the next step.
    pub(super) fn next(&mut self) -> Option<Step> {
        let step = self.steps.pop_front()?;
        if let Step::Send(segment) = &step {
            self.queued_bytes -= segment.len();
        }
        Some(step)
    }
}
