//! The full feature phase: dispatch of requests, sequence numbers, pings and logout.

use std::sync::Arc;

use export::{DirectRecv, Outcome, Reason, Ticket};

use super::authorizer::Authorizer;
use super::disk::{Cx, Disk};
use super::link::{Data, Link};
use super::login::Accepted;
use super::negotiation::Parameters;
use super::outbox::Outbox;
use super::receiver::{Receiver, Sink};
use super::registry::Registration;
use super::text_exchange::{MAX_TEXT, TextExchange};
use super::{MAX_PING, Violation};
use crate::wire::NO_TAG;
use crate::wire::bhs::{
    AsyncMessage, Bhs, LogoutRequest, LogoutResponse, NopIn, NopOut, of_target,
};
use crate::wire::opcode::{self, event, logout, reject};

/// The tag of a ping.
const PING: u32 = 1;

/// A connection in full feature phase.
#[derive(Debug)]
pub(super) struct FullFeature {
    link: Link,
    parameters: Parameters,
    cid: u16,
    receiver: Receiver,
    registration: Arc<Registration>,
    /// The name of the target; `None` in a discovery session, as is the disk.
    target: Option<String>,
    disk: Option<Disk>,
    text: TextExchange,
    state: State,
    /// The header of the PDU that is being received.
    header: Option<Bhs>,
}

#[derive(Debug)]
enum State {
    Running,
    /// The initiator logs out: the response follows when all tasks are off the disk.
    LoggingOut(LogoutRequest),
    /// The program stops: the session ends when all tasks are off the disk.
    Stopping,
}

impl FullFeature {
    pub(super) fn new(
        accepted: Accepted,
        registration: Arc<Registration>,
        target: Option<String>,
        disk: Option<Disk>,
    ) -> Self {
        let Accepted { mut link, parameters, cid } = accepted;
        link.set_max_send(parameters.max_send);
        link.max_burst = parameters.max_burst & !3;
        (link.header_digest, link.data_digest) = (parameters.header_digest, parameters.data_digest);
        let mut receiver = Receiver::new();
        receiver.set_digests(parameters.header_digest, parameters.data_digest);
        let (text, state) = (TextExchange::default(), State::Running);
        Self {
            link,
            parameters,
            cid,
            receiver,
            registration,
            target,
            disk,
            text,
            state,
            header: None,
        }
    }

    pub(super) fn disk(&mut self) -> Option<&mut Disk> {
        self.disk.as_mut()
    }

    pub(super) fn shared_disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Returns whether another session has replaced this one.
    pub(super) fn is_replaced(&self) -> bool {
        self.registration.is_replaced()
    }

    pub(super) fn can_receive(&self) -> bool {
        let stops = |disk: &Disk| disk.is_stalled() || disk.is_ending();
        matches!(self.state, State::Running) && !self.disk.as_ref().is_some_and(stops)
    }

    /// Calls `act` with the disk, if there is one.
    fn with_disk<T>(
        &mut self,
        out: &mut Outbox,
        act: impl FnOnce(&mut Disk, &mut Cx<'_>) -> T,
    ) -> Option<T> {
        let Self { link, parameters, receiver, disk, .. } = self;
        let disk = disk.as_mut()?;
        let cx = &mut Cx { link, parameters, receiver, out };
        Some(act(disk, cx))
    }

    // ---- requests

    /// Processes a part of a PDU from the start of `left`. Returns the number of bytes consumed; zero
    /// if more are needed.
    pub(super) fn receive(
        &mut self,
        left: &[u8],
        authorizer: &Authorizer,
        out: &mut Outbox,
    ) -> Result<usize, Violation> {
        if !self.receiver.is_receiving() {
            self.header = None;
            let Some((header, len)) = self.receiver.header(left)? else { return Ok(0) };
            self.header = Some(header);
            self.begin(&header, authorizer, out)?;
            return Ok(len);
        }
        let (n, done) = self.receiver.data(left)?;
        if let Some((header, sink)) = done {
            self.received(&header, sink, authorizer, out)?;
        }
        Ok(n)
    }

    /// Announces as many commands as there are free slots, from the next PDU on.
    fn update_window(&mut self) {
        if let Some(disk) = &self.disk {
            self.link.window = disk.slots.window();
        }
    }

    /// Processes a header.
    fn begin(
        &mut self,
        header: &Bhs,
        authorizer: &Authorizer,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        self.update_window();
        let answers_ping = header.opcode() == opcode::NOP_OUT && header.itt.get() == NO_TAG;
        let reason = match header.opcode() {
            opcode::LOGIN_REQUEST => return Err(Violation::LoginInFullFeature),
            opcode::DATA_OUT if self.disk.is_some() => {
                return self.with_disk(out, |disk, cx| disk.data_out(header, cx)).unwrap_or(Ok(()));
            }
            opcode::SNACK => Some(reject::SNACK),
            opcode::SCSI_COMMAND | opcode::TASK_REQUEST if self.disk.is_none() => {
                Some(reject::PROTOCOL)
            }
            opcode::NOP_OUT
            | opcode::SCSI_COMMAND
            | opcode::TASK_REQUEST
            | opcode::TEXT_REQUEST
            | opcode::LOGOUT_REQUEST => None,
            _ => Some(reject::NOT_SUPPORTED),
        };
        if let Some(reason) = reason {
            self.link.reject(header, reason, out);
            self.receiver.skip(header);
            return Ok(());
        }
        if !answers_ping && !self.is_next(header)? {
            self.receiver.skip(header);
            return Ok(());
        }
        if header.opcode() == opcode::SCSI_COMMAND {
            return self.with_disk(out, |disk, cx| disk.command(header, cx)).unwrap_or(Ok(()));
        }
        let most = if header.opcode() == opcode::TEXT_REQUEST { MAX_TEXT + 1 } else { MAX_PING };
        let sink = Sink::Text(Vec::new(), most);
        if header.data_len.get() == 0 {
            return self.received(header, sink, authorizer, out);
        }
        self.receiver.expect(*header, sink);
        Ok(())
    }

    /// Returns whether a request is the next one, and counts it. Requests outside the window and
    /// duplicates are ignored (RFC 7143 §4.2.2.1).
    fn is_next(&mut self, header: &Bhs) -> Result<bool, Violation> {
        if header.is_immediate() {
            return Ok(true);
        }
        let ahead = header.cmd_sn().wrapping_sub(self.link.exp_cmd_sn);
        if ahead >= self.link.window {
            return Ok(false);
        }
        if ahead != 0 {
            // On one connection nothing that was sent earlier can still come.
            return Err(Violation::CmdSnSkipped);
        }
        self.link.exp_cmd_sn = self.link.exp_cmd_sn.wrapping_add(1);
        Ok(true)
    }

    /// Processes a PDU whose data has been received.
    fn received(
        &mut self,
        header: &Bhs,
        sink: Sink,
        authorizer: &Authorizer,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let text = match sink {
            Sink::Skip => return Ok(()),
            Sink::Task(data) => {
                self.with_disk(out, |disk, cx| disk.data_received(data, cx));
                return Ok(());
            }
            Sink::Text(text, _) => text,
        };
        self.update_window();
        match header.opcode() {
            opcode::NOP_OUT => self.nop(header, text, out),
            opcode::TEXT_REQUEST => {
                let target = self.target.as_deref();
                return self.text.request(header, &text, target, authorizer, &mut self.link, out);
            }
            opcode::TASK_REQUEST => {
                self.with_disk(out, |disk, cx| disk.manage(header, cx));
            }
            _ => self.log_out(header, out),
        }
        Ok(())
    }

    /// Answers a ping of the initiator.
    fn nop(&mut self, header: &Bhs, mut data: Vec<u8>, out: &mut Outbox) {
        let nop = NopOut::of(header);
        if nop.itt.get() == NO_TAG {
            return;
        }
        data.truncate(self.link.max_send);
        let mut reply = NopIn::of(&of_target(opcode::NOP_IN));
        (reply.lun, reply.itt, reply.ttt) = (nop.lun, nop.itt, NO_TAG.into());
        reply.numbers = self.link.next_numbers();
        self.link.send(&reply, Data::of(data), out);
    }

    /// Pings the initiator, which must answer.
    pub(super) fn ping(&mut self, out: &mut Outbox) {
        let mut ping = NopIn::of(&of_target(opcode::NOP_IN));
        ping.ttt = PING.into();
        self.update_window();
        ping.numbers = self.link.numbers();
        self.link.send(&ping, Data::NONE, out);
    }

    fn log_out(&mut self, header: &Bhs, out: &mut Outbox) {
        let request = LogoutRequest::of(header);
        let refusal = match request.flags & 0x7f {
            logout::CLOSE_SESSION => None,
            logout::CLOSE_CONNECTION if request.cid.get() == self.cid => None,
            logout::CLOSE_CONNECTION => Some(logout::NO_CONNECTION),
            _ => Some(logout::NO_RECOVERY),
        };
        match refusal {
            Some(response) => self.answer_logout(&request, response, out),
            None => {
                self.state = State::LoggingOut(request);
                self.with_disk(out, |disk, cx| disk.abort_all(cx));
            }
        }
    }

    fn answer_logout(&mut self, request: &LogoutRequest, code: u8, out: &mut Outbox) {
        let mut response = LogoutResponse::of(&of_target(opcode::LOGOUT_RESPONSE));
        (response.response, response.itt) = (code, request.itt);
        response.numbers = self.link.next_numbers();
        self.link.send(&response, Data::NONE, out);
    }

    // ---- events

    pub(super) fn complete(&mut self, ticket: &Ticket, outcome: Outcome, out: &mut Outbox) {
        self.with_disk(out, |disk, cx| disk.complete(ticket, outcome, cx));
    }

    /// Handles a change of shared state. Returns why to end the session, if there is a reason.
    pub(super) fn changed(&mut self, authorizer: &Authorizer, out: &mut Outbox) -> Option<Reason> {
        if self.is_replaced() {
            return Some(Reason::Ended);
        }
        let disk = self.disk.as_mut()?;
        let reason = disk.attachment.recheck(authorizer, out);
        if reason.is_none() {
            self.with_disk(out, |disk, cx| disk.changed(cx));
        }
        reason
    }

    /// Tells the initiator that the session ends. Nothing more is received.
    pub(super) fn stop(&mut self, out: &mut Outbox) {
        if !matches!(self.state, State::Running) {
            return;
        }
        let mut message = AsyncMessage::of(&of_target(opcode::ASYNC_MESSAGE));
        message.event = event::DROP_SESSION;
        self.update_window();
        message.numbers = self.link.next_numbers();
        self.link.send(&message, Data::NONE, out);
        self.state = State::Stopping;
    }

    /// Resumes commands that waited for memory. Returns why to end the session, if it is to end now.
    pub(super) fn resume(&mut self, out: &mut Outbox) -> Option<Reason> {
        self.with_disk(out, |disk, cx| disk.resume(cx));
        let disk = self.disk.as_ref();
        let is_off_disk = disk.is_none_or(|disk| disk.submitted == 0);
        match &self.state {
            State::Running => disk.is_some_and(|disk| disk.is_over).then_some(Reason::Peer),
            State::Stopping => is_off_disk.then_some(Reason::Stopping),
            State::LoggingOut(request) if disk.is_none_or(|disk| disk.slots.is_idle()) => {
                let request = *request;
                if let Some(disk) = disk {
                    disk.attachment.leave();
                }
                self.answer_logout(&request, logout::CLOSED, out);
                Some(Reason::Peer)
            }
            State::LoggingOut(_) => None,
        }
    }

    /// Rejects the PDU with which the initiator has broken a rule.
    pub(super) fn reject(&mut self, violation: Violation, out: &mut Outbox) {
        let reason = match violation {
            // The header may be anything.
            Violation::HeaderDigestWrong => return,
            Violation::DataDigestWrong => reject::DATA_DIGEST,
            _ => reject::PROTOCOL,
        };
        if let Some(header) = self.header {
            self.link.reject(&header, reason, out);
        }
    }

    pub(super) fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.receiver.direct_recv()
    }

    pub(super) fn direct_received(&mut self, window: DirectRecv, len: usize) {
        self.receiver.direct_received(window, len);
    }
}
