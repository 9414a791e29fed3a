//! One connection: its phases, and the dispatch of input in each.

use std::sync::Arc;
use std::time::Instant;

use export::{Account, DirectRecv, Event, Fence, Notice, Outcome, Peer, Reason, Step, Ticket};
use scsi::Port;

use super::attachment::Attachment;
use super::authorizer::Authorizer;
use super::disk::Disk;
use super::full_feature::FullFeature;
use super::login::{Failure, Login, PORTAL_GROUP, Progress, refused};
use super::outbox::Outbox;
use super::receiver::{Receiver, Sink};
use super::registry::SessionId;
use super::{LOGIN_TIMEOUT, PING_AFTER, PING_TIMEOUT, Server, Violation};
use crate::wire::bhs::{Bhs, of_target};
use crate::wire::login::Status;
use crate::wire::opcode;
use crate::wire::text::MAX_TEXT;

/// The target side of one connection, which is one session.
#[derive(Debug)]
pub struct Session {
    server: Arc<Server>,
    authorizer: Authorizer,
    account: Account,
    phase: Phase,
    out: Outbox,
    deadline: Instant,
    /// Whether the deadline is that of the answer to a ping.
    pinged: bool,
}

#[derive(Debug)]
enum Phase {
    Login(Box<Login>, Receiver),
    FullFeature(Box<FullFeature>),
    /// Closed, or about to be.
    Closed,
}

impl Session {
    pub(super) fn new(server: Arc<Server>, peer: Peer, account: Account, now: Instant) -> Self {
        let authorizer = Authorizer::new(server.catalogue.clone(), peer);
        let phase = Phase::Login(Box::new(Login::new(server.random)), Receiver::new());
        let (out, deadline) = (Outbox::default(), now + LOGIN_TIMEOUT);
        Self { server, authorizer, account, phase, out, deadline, pinged: false }
    }

    /// Processes a part of a PDU from the start of `left`. Returns the number of bytes consumed; zero
    /// if more are needed.
    fn step(&mut self, left: &[u8]) -> Result<usize, Violation> {
        let (login, receiver) = match &mut self.phase {
            Phase::Login(login, receiver) => (login, receiver),
            Phase::FullFeature(full) => {
                return full.receive(left, &self.authorizer, &mut self.out);
            }
            Phase::Closed => return Ok(0),
        };
        let (header, data, len) = if receiver.is_receiving() {
            match receiver.data(left)? {
                (len, Some((header, Sink::Text(text, _)))) => (header, text, len),
                (len, _) => return Ok(len),
            }
        } else {
            let Some((header, len)) = receiver.header(left)? else { return Ok(0) };
            Login::check(&header)?;
            if header.data_len.get() != 0 {
                receiver.expect(header, Sink::Text(Vec::new(), MAX_TEXT));
                return Ok(len);
            }
            (header, Vec::new(), len)
        };
        let progress = login.request(&header, &data, &mut self.authorizer, &mut self.out);
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Complete) => self.establish(),
            Err(failure) => self.login_failed(&header, failure),
        }
        Ok(len)
    }

    // ---- login

    /// Begins the full feature phase, unless writes of lost connections are in flight.
    fn establish(&mut self) {
        if let Err(failure) = self.try_establish() {
            self.login_failed(&of_target(opcode::LOGIN_REQUEST), failure);
        }
    }

    fn try_establish(&mut self) -> Result<(), Failure> {
        let Phase::Login(login, _) = &self.phase else { return Ok(()) };
        login.check_handle(|tsih| self.server.registry.has(tsih))?;
        let (host, isid) = (&self.authorizer.initiator, login.isid());
        let grant = login.grant(&self.authorizer)?;
        let grant = grant.map(|grant| grant.with_registrant(host, &isid, PORT_ID));
        let target = grant.is_some().then(|| login.target().to_owned());
        let id = SessionId {
            initiator: self.authorizer.initiator.clone(),
            proven: self.authorizer.proven,
            isid: login.isid(),
            target: target.clone().unwrap_or_default(),
        };
        if self.server.registry.replace(&id) {
            self.out.notify();
        }
        // A late write of a connection that was lost must not overwrite newer data.
        if grant.as_ref().is_some_and(|grant| grant.export().has_orphans()) {
            return Ok(());
        }
        let registration = self.server.registry.register(id, grant.as_ref());
        let registration = registration
            .ok_or_else(|| refused(Status::OUT_OF_RESOURCES, "there are too many sessions"))?;
        let Phase::Login(login, _) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Ok(());
        };
        let accepted = login.accept(registration.tsih(), &mut self.out);
        let disk = grant.map(|grant| {
            let port = port(target.as_deref().unwrap_or_default());
            let attachment = Attachment::new(grant, &self.authorizer, &mut self.out);
            let (registry, registration) = (self.server.registry.clone(), registration.clone());
            Disk::new(attachment, Arc::new(port), &self.account, registry, registration)
        });
        let full = FullFeature::new(accepted, registration, target, disk);
        self.phase = Phase::FullFeature(Box::new(full));
        Ok(())
    }

    fn login_failed(&mut self, header: &Bhs, failure: Failure) {
        let Phase::Login(login, _) = &mut self.phase else { return };
        login.fail(header, failure, &mut self.out);
        match failure {
            Failure::Violation(violation) => self.violated(violation),
            Failure::Refused(refusal) => {
                let target = login.target().to_owned();
                self.authorizer.report_refused(&target, refusal.reason, &mut self.out);
                self.close(Reason::Refused);
            }
        }
    }

    // ---- the end

    /// Ends the connection of a peer that has broken a rule.
    fn broken(&mut self, violation: Violation) {
        if let Phase::FullFeature(full) = &mut self.phase {
            full.reject(violation, &mut self.out);
        }
        self.violated(violation);
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
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        let Phase::FullFeature(mut full) = phase else { return };
        if let Some(disk) = full.disk() {
            disk.attachment.report_detached(&self.authorizer, reason, &mut self.out);
            if disk.is_awaited() {
                self.out.notify();
            }
        }
    }

    /// Handles a change of shared state.
    fn changed(&mut self) {
        match &mut self.phase {
            Phase::Login(login, _) if login.is_pending() => self.establish(),
            Phase::FullFeature(full) => {
                if let Some(reason) = full.changed(&self.authorizer, &mut self.out) {
                    self.close(reason);
                }
            }
            Phase::Login(..) | Phase::Closed => {}
        }
    }

    fn stop(&mut self) {
        match &mut self.phase {
            Phase::Login(..) => self.close(Reason::Stopping),
            Phase::FullFeature(full) => full.stop(&mut self.out),
            Phase::Closed => {}
        }
    }

    /// Resumes requests that waited for memory. Closes the connection if it is to end.
    fn resume(&mut self) {
        let Phase::FullFeature(full) = &mut self.phase else { return };
        if let Some(reason) = full.resume(&mut self.out) {
            self.close(reason);
        }
    }

    /// Notes that the peer has sent something.
    fn heard(&mut self, now: Instant) {
        if matches!(self.phase, Phase::FullFeature(_)) {
            (self.deadline, self.pinged) = (now + PING_AFTER, false);
        }
    }

    /// Handles the timeout of the login or of a ping, or pings the initiator.
    fn timed_out(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Login(login, _) => {
                if login.is_pending() {
                    let target = login.target().to_owned();
                    let refusal = login.time_out(&mut self.out);
                    self.authorizer.report_refused(&target, refusal.reason, &mut self.out);
                }
                self.close(Reason::Timeout);
            }
            Phase::FullFeature(_) if self.pinged => self.close(Reason::Timeout),
            // What the peer has sent is not being received.
            Phase::FullFeature(full) if !full.can_receive() => self.deadline = now + PING_AFTER,
            Phase::FullFeature(full) => {
                full.ping(&mut self.out);
                (self.deadline, self.pinged) = (now + PING_TIMEOUT, true);
            }
            Phase::Closed => {}
        }
    }
}

/// Relative identifier of the one target port.
const PORT_ID: u16 = 1;

/// Returns the target port, for SCSI.
fn port(target: &str) -> Port {
    Port {
        standard: 0x0960,
        protocol: Some(5),
        device: target.to_owned(),
        name: format!("{target},t,0x000{PORTAL_GROUP}"),
        relative: PORT_ID,
    }
}

impl export::Session for Session {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.can_receive() {
            let left = bytes.get(taken..).unwrap_or_default();
            match self.step(left) {
                Ok(0) => break,
                Ok(n) => taken += n,
                Err(violation) => {
                    self.broken(violation);
                    break;
                }
            }
        }
        if taken != 0 {
            self.heard(now);
        }
        if matches!(self.phase, Phase::Closed) { bytes.len() } else { taken }
    }

    fn complete(&mut self, _now: Instant, ticket: Ticket, outcome: Outcome) {
        if let Phase::FullFeature(full) = &mut self.phase {
            full.complete(&ticket, outcome, &mut self.out);
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
            self.timed_out(now);
        }
    }

    fn poll(&mut self) -> Option<Step> {
        if self.out.is_empty() {
            self.resume();
        }
        self.out.pop()
    }

    fn deadline(&self) -> Option<Instant> {
        (!matches!(self.phase, Phase::Closed)).then_some(self.deadline)
    }

    fn can_receive(&self) -> bool {
        let may = match &self.phase {
            Phase::Login(login, _) => !login.is_pending(),
            Phase::FullFeature(full) => full.can_receive(),
            Phase::Closed => false,
        };
        may && !self.out.is_full()
    }

    fn is_established(&self) -> bool {
        matches!(self.phase, Phase::FullFeature(_))
    }

    fn fence(&self) -> Option<&Arc<Fence>> {
        match &self.phase {
            Phase::FullFeature(full) => full.shared_disk().map(|disk| disk.attachment.fence()),
            _ => None,
        }
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        if !self.can_receive() {
            return None;
        }
        match &mut self.phase {
            Phase::FullFeature(full) => full.direct_recv(),
            _ => None,
        }
    }

    fn direct_received(&mut self, now: Instant, window: DirectRecv, got: usize) {
        if let Phase::FullFeature(full) = &mut self.phase {
            full.direct_received(window, got);
            // The data may be complete, and nothing may follow it.
            if let Err(violation) = self.step(&[]) {
                self.broken(violation);
            }
            if got != 0 {
                self.heard(now);
            }
        }
    }
}
