//! Drives `iscsi::host::Initiator` as a [`ClientSession`].

use export::DirectRecv;
use iscsi::host::{Initiator, Step};

use crate::session::{ClientSession, Output};

impl ClientSession for Initiator {
    type Step = Step;

    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }

    fn poll(&mut self) -> Option<Output<Step>> {
        self.poll().map(|step| match step {
            Step::Send(segment) => Output::Send(segment),
            step => Output::Step(step),
        })
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.direct_recv()
    }

    fn direct_received(&mut self, direct_recv: DirectRecv, len: usize) {
        self.direct_received(direct_recv, len);
    }

    /// Logs out.
    fn disconnect(&mut self) -> bool {
        self.disconnect();
        true
    }
}
