//! One connection: its phases, and the dispatch of input in each.

use std::sync::Arc;
use std::time::Instant;

use export::{
    Account, Catalogue, DirectRecv, Event, Fence, Head, Notice, Outcome, Peer, Reason, Segment,
    Step, Ticket,
};
use zerocopy::IntoBytes;

use super::authorizer::Authorizer;
use super::negotiation::{Negotiation, Next};
use super::outbox::Outbox;
use super::transmission::Transmission;
use super::{NEGOTIATION_TIMEOUT, Start, Violation};
use crate::wire::handshake::Hello;

/// The server side of one connection.
#[derive(Debug)]
pub struct Session {
    authorizer: Authorizer,
    account: Account,
    opened: Instant,
    phase: Phase,
    out: Outbox,
}

#[derive(Debug)]
enum Phase {
    Negotiation(Negotiation),
    Transmission(Box<Transmission>),
    /// Closed, or about to be.
    Closed,
}

impl Session {
    pub(super) fn new(
        catalogue: Arc<Catalogue>,
        peer: Peer,
        start: Start,
        account: Account,
        now: Instant,
    ) -> Self {
        let mut out = Outbox::default();
        if start == Start::Hello {
            out.send(Segment::head(Head::new(Hello::new().as_bytes())));
        }
        let authorizer = Authorizer::new(catalogue, peer);
        let phase = Phase::Negotiation(Negotiation::new(start));
        Self { authorizer, account, opened: now, phase, out }
    }

    /// Processes one message from the start of `left`. Returns the number of bytes consumed; zero
    /// if it is incomplete.
    fn step(&mut self, left: &[u8]) -> Result<usize, Violation> {
        match &mut self.phase {
            Phase::Negotiation(negotiation) => {
                let (n, next) = negotiation.receive(left, &mut self.authorizer, &mut self.out)?;
                self.go_on(next);
                Ok(n)
            }
            Phase::Transmission(transmission) => {
                let n = transmission.receive(left, &mut self.out)?;
                self.close_if_aborted();
                Ok(n)
            }
            Phase::Closed => Ok(0),
        }
    }

    fn go_on(&mut self, next: Next) {
        match next {
            Next::Negotiate => {}
            Next::Transmit(attachment) => {
                attachment.report_attached(self.authorizer.peer(), &mut self.out);
                let transmission = Transmission::new(attachment, &self.account);
                self.phase = Phase::Transmission(Box::new(transmission));
            }
            Next::Close(reason) => self.close(reason),
        }
    }

    fn violated(&mut self, violation: Violation) {
        let (peer, rule) = (self.authorizer.peer().clone(), violation.name());
        self.out.report(Event::Violation { peer, rule });
        self.close(Reason::Violation);
    }

    fn close(&mut self, reason: Reason) {
        if !matches!(self.phase, Phase::Closed) {
            self.tear_down(reason);
            self.out.close(reason);
        }
    }

    /// Drops all state of the connection and reports the detachment. From then on, writes in flight
    /// count as orphaned.
    fn tear_down(&mut self, reason: Reason) {
        self.out.drop_delayed();
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        if let Phase::Transmission(mut transmission) = phase {
            transmission.report_detached(self.authorizer.peer(), reason, &mut self.out);
        }
    }

    fn close_if_aborted(&mut self) {
        if matches!(&self.phase, Phase::Transmission(transmission) if transmission.is_aborted()) {
            self.close(Reason::Ended);
        }
    }

    /// Handles a change of shared state.
    fn changed(&mut self) {
        match &mut self.phase {
            Phase::Negotiation(negotiation) => {
                let next = negotiation.changed(&mut self.authorizer, &mut self.out);
                self.go_on(next);
            }
            Phase::Transmission(transmission) => {
                match transmission.changed(&mut self.authorizer, &mut self.out) {
                    Some(reason) => self.close(reason),
                    None => self.close_if_aborted(),
                }
            }
            Phase::Closed => {}
        }
    }

    fn stop(&mut self) {
        match &mut self.phase {
            Phase::Negotiation(_) => self.close(Reason::Stopping),
            Phase::Transmission(transmission) => {
                transmission.stop(&mut self.out);
                self.close_if_aborted();
            }
            Phase::Closed => {}
        }
    }

    /// Resumes requests that waited for memory. Closes the connection if that was the last request.
    fn resume(&mut self) {
        let Phase::Transmission(transmission) = &mut self.phase else { return };
        transmission.resume(&mut self.out);
        let end = transmission.end().filter(|_| self.out.is_empty());
        match end {
            Some(reason) => self.close(reason),
            None => self.close_if_aborted(),
        }
    }
}

impl export::Session for Session {
    fn receive(&mut self, _now: Instant, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.can_receive() {
            let left = bytes.get(taken..).unwrap_or_default();
            match self.step(left) {
                Ok(0) => break,
                Ok(n) => taken += n,
                Err(violation) => {
                    self.violated(violation);
                    break;
                }
            }
        }
        if matches!(self.phase, Phase::Closed) { bytes.len() } else { taken }
    }

    fn complete(&mut self, _now: Instant, ticket: Ticket, outcome: Outcome) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.complete(&ticket, outcome, &mut self.out);
            self.close_if_aborted();
        }
    }

    fn notify(&mut self, _now: Instant, notice: &Notice) {
        match notice {
            Notice::Disconnected => self.tear_down(Reason::Peer),
            Notice::Stopping => self.stop(),
            Notice::StateChanged => self.changed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            if let Phase::Negotiation(negotiation) = &mut self.phase {
                negotiation.timed_out(&mut self.authorizer, &mut self.out);
            }
            self.close(Reason::Timeout);
        }
    }

    fn poll(&mut self) -> Option<Step> {
        if self.out.is_empty() {
            self.resume();
        }
        self.out.pop()
    }

    fn deadline(&self) -> Option<Instant> {
        let negotiating = matches!(self.phase, Phase::Negotiation(_));
        negotiating.then(|| self.opened + NEGOTIATION_TIMEOUT)
    }

    fn can_receive(&self) -> bool {
        let may = match &self.phase {
            Phase::Negotiation(negotiation) => negotiation.can_receive(),
            Phase::Transmission(transmission) => transmission.can_receive(),
            Phase::Closed => false,
        };
        may && !self.out.is_full()
    }

    fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Transmission(_))
    }

    fn fence(&self) -> Option<&Arc<Fence>> {
        match &self.phase {
            Phase::Transmission(transmission) => Some(transmission.fence()),
            _ => None,
        }
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        if !self.can_receive() {
            return None;
        }
        match &mut self.phase {
            Phase::Transmission(transmission) => transmission.direct_recv(),
            _ => None,
        }
    }

    fn direct_received(&mut self, _now: Instant, window: DirectRecv, got: usize) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.direct_received(window, got, &mut self.out);
            self.close_if_aborted();
        }
    }
}
