//! The interface of a client session.

use export::{DirectRecv, Segment};

/// The host side of a protocol as a state machine without I/O.
pub trait ClientSession {
    /// What a session wants of its user.
    type Step;

    /// Processes received bytes and returns how many were consumed. The rest is offered again
    /// together with the bytes that follow.
    fn receive(&mut self, bytes: &[u8]) -> usize;

    /// The next segment to send, or step.
    fn poll(&mut self) -> Option<Output<Self::Step>>;

    /// The buffer that the next bytes belong in, if any.
    fn direct_recv(&mut self) -> Option<DirectRecv> {
        None
    }

    /// Returns the buffer after `len` bytes were received into it.
    fn direct_received(&mut self, _direct_recv: DirectRecv, _len: usize) {}

    /// Queues the protocol's farewell. Returns whether it has one.
    fn disconnect(&mut self) -> bool {
        false
    }
}

/// The output of a session.
#[derive(Debug)]
pub enum Output<S> {
    /// To be sent.
    Send(Segment),
    /// Anything else.
    Step(S),
}
