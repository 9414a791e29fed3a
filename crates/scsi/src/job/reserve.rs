//! PERSISTENT RESERVE OUT, RESERVE (6) and RELEASE (6): a change of reservations, which is answered
//! when it has settled.

use export::{Buffer, Grant, ReservationCommand, Settling};

use super::work::{Action, Work};
use crate::cdb::PersistentOut;
use crate::reservation::{Change, change, check, failed};
use crate::response::Response;
use crate::wire::sense::Sense;

/// A reservation command.
#[derive(Debug)]
pub(super) struct Reserve {
    state: State,
    data_out: u32,
}

#[derive(Debug)]
enum State {
    /// The parameter list is to be received.
    Out(PersistentOut),
    Received(PersistentOut, Buffer),
    Decided(Change),
    Settling(Settling),
}

impl Reserve {
    pub(super) fn persistent(out: PersistentOut) -> Result<Self, Response> {
        check(out)?;
        Ok(Self { state: State::Out(out), data_out: out.length })
    }

    pub(super) fn unit(command: ReservationCommand) -> Self {
        Self { state: State::Decided((command, None)), data_out: 0 }
    }
}

impl Work for Reserve {
    fn data_out(&self) -> u64 {
        self.data_out.into()
    }

    fn next(&mut self, grant: &Grant) -> Action {
        let change = match &self.state {
            State::Out(_) => {
                return Action::Receive(usize::try_from(self.data_out).unwrap_or(usize::MAX));
            }
            State::Settling(settling) => {
                return match settling.result() {
                    None => Action::Wait,
                    Some(Ok(())) => Action::End(Response::good()),
                    // The medium is not that of the disk.
                    Some(Err(_)) => Action::End(Sense::INTERNAL_TARGET_FAILURE.into()),
                };
            }
            State::Decided(change) => *change,
            State::Received(out, list) => match change(grant, *out, list.bytes()) {
                Ok(Some(change)) => change,
                Ok(None) => return Action::End(Response::good()),
                Err(response) => return Action::End(response),
            },
        };
        let (command, persist) = change;
        match grant.reserve(command, persist) {
            Ok(settling) => {
                self.state = State::Settling(settling);
                Action::Notify
            }
            Err(error) => Action::End(failed(error)),
        }
    }

    fn received(&mut self, buffer: Buffer) {
        if let State::Out(out) = self.state {
            self.state = State::Received(out, buffer);
        }
    }
}
