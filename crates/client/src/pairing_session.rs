//! The client of a pairing.

use std::sync::Arc;

use export::{Head, Segment};
use pair::Client;
use pair::client::Step;

use crate::session::{ClientSession, Output};

impl ClientSession for Client {
    type Step = Step;

    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes);
        bytes.len()
    }

    fn poll(&mut self) -> Option<Output<Step>> {
        self.poll().map(|step| match step {
            Step::Send(bytes) => {
                Output::Send(Segment::with_shared(Head::new(&[]), Arc::from(bytes)))
            }
            step => Output::Step(step),
        })
    }
}
