//! The session of one connection: the Admin queue or an I/O queue of a controller. Parses PDUs and
//! dispatches commands to the other modules.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Account, Buffer, DirectRecv, Event, Fence, Grant, KeyId, Notice, Outcome, Peer, Purpose,
    Reason, Session, Step, Ticket,
};
use zerocopy::IntoBytes;

use super::admin::Admin;
use super::auth::InBandAuth;
use super::binding::Binding;
use super::controller::ControllerType;
use super::fused::FusedFirst;
use super::slots::{SlotState, Slots};
use super::{
    DISCOVERY_IDLE_TIMEOUT, HANDSHAKE_TIMEOUT, KEEP_ALIVE_GRACE, MAX_CAPSULE_DATA, MAX_TRANSFER,
    Port, Target,
};
use crate::status::Status;
use crate::tcp::{Deframer, Framer, Pdu, Piece, Side, Violation, pdu};
use crate::wire::command::Sqe;
use crate::wire::completion::Cqe;

/// Session of one NVMe/TCP connection on the target side.
#[derive(Debug)]
pub struct Queue {
    pub(super) target: Arc<Target>,
    pub(super) peer: Peer,
    pub(super) port: Port,
    pub(super) now: Instant,
    pub(super) opened_at: Instant,
    pub(super) state: ConnectionState,
    pub(super) deframer: Deframer,
    pub(super) framer: Framer,
    pub(super) steps: VecDeque<Step>,
    /// Bytes to send in `out`.
    pub(super) queued_bytes: usize,
    /// Slot that receives the payload of the current PDU, if any.
    pub(super) incoming: Option<u16>,
    /// A command with in-capsule data that waits for a buffer.
    pub(super) stalled: Option<(Sqe, u32)>,
    /// Buffers for in-capsule data. A separate account: a command that waits for one blocks the
    /// receive stream, so it must not depend on data further back in the stream.
    pub(super) capsule_buffers: Account,
    /// Buffers for all other transfers.
    pub(super) transfer_buffers: Account,
    /// Buffers for commands that already hold one. A separate account prevents a deadlock between
    /// such commands.
    pub(super) second_phase_buffers: Account,
    pub(super) slots: Slots,
    /// Slots that wait for a transfer buffer, in order.
    pub(super) awaiting_buffer: VecDeque<u16>,
    /// Slots that wait for a second-phase buffer.
    pub(super) awaiting_second_phase: VecDeque<u16>,
    /// Slots that wait for another request's exclusive access to the disk to end.
    pub(super) awaiting_exclusive: VecDeque<u16>,
    /// A fused first command. The next command must be its second.
    pub(super) fused: Option<FusedFirst>,
    pub(super) binding: Option<Binding>,
    pub(super) admin: Option<Box<Admin>>,
    /// Authentication state, if the host has DH-HMAC-CHAP keys.
    pub(super) auth: Option<Box<InBandAuth>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// Expects ICReq.
    AwaitingIcReq,
    /// Expects Connect.
    AwaitingConnect,
    /// Connected to a controller.
    Live,
    /// The program stops: requests in flight complete, nothing is received.
    Stopping,
    /// Closed, or closing.
    Closed,
}

/// Back-pressure: no commands are received while this many bytes are to be sent. A command of 72
/// bytes can request a megabyte.
const MAX_QUEUED_BYTES: usize = 1 << 18;

/// Minimum rest of a payload in bytes to receive it directly into its buffer.
const MIN_DIRECT_RECV: u32 = 8192;

impl Queue {
    pub(super) fn new(
        target: Arc<Target>,
        peer: Peer,
        port: Port,
        account: Account,
        now: Instant,
    ) -> Self {
        Self {
            target,
            peer,
            port,
            now,
            opened_at: now,
            state: ConnectionState::AwaitingIcReq,
            deframer: Deframer::new(Side::Target, MAX_CAPSULE_DATA),
            framer: Framer::default(),
            steps: VecDeque::new(),
            queued_bytes: 0,
            incoming: None,
            stalled: None,
            capsule_buffers: account.sibling(Purpose::Stream),
            second_phase_buffers: account.sibling(Purpose::SecondPhase),
            transfer_buffers: account,
            slots: Slots::new(1),
            awaiting_buffer: VecDeque::new(),
            awaiting_second_phase: VecDeque::new(),
            awaiting_exclusive: VecDeque::new(),
            fused: None,
            binding: None,
            admin: None,
            auth: None,
        }
    }

    /// Binds the connection to a queue of a controller.
    pub(super) fn go_live(&mut self, binding: Binding) {
        self.slots = Slots::new(binding.entries);
        self.binding = Some(binding);
        self.state = ConnectionState::Live;
    }

    fn piece(&mut self, piece: Piece<'_>) -> Result<usize, Violation> {
        match piece {
            Piece::Incomplete => Ok(0),
            Piece::Header(n, pdu) => self.pdu(pdu).map(|()| n),
            Piece::Padding(n) => Ok(n),
            Piece::Payload(data) => {
                self.payload_received(data);
                Ok(data.len())
            }
            Piece::PayloadEnd(n, digest_ok) => {
                self.payload_end(digest_ok);
                Ok(n)
            }
        }
    }

    fn pdu(&mut self, pdu: Pdu) -> Result<(), Violation> {
        match (self.state, pdu) {
            (_, Pdu::Term { .. }) => {
                self.steps.push_back(Step::Report(Event::Violation {
                    peer: self.peer.clone(),
                    rule: "H2CTermReq",
                }));
                self.close(Reason::Peer);
                Ok(())
            }
            (ConnectionState::AwaitingIcReq, Pdu::IcReq(request)) => self.initialize(&request),
            (ConnectionState::AwaitingIcReq, _) => Err(Violation::IcReqMissing),
            (_, Pdu::IcReq(_)) => Err(Violation::IcReqRepeated),
            (_, Pdu::Command { sqe, data }) => self.capsule(sqe, data),
            (_, Pdu::Data { cccid, ttag, offset, len, last, .. }) => {
                self.h2c_data(cccid, ttag, offset, len, last)
            }
            _ => Err(Violation::PduTypeWrongDirection),
        }
    }

    /// Handles ICReq (NVMe/TCP 1.0 §3.6.2.2).
    fn initialize(&mut self, request: &pdu::IcReq) -> Result<(), Violation> {
        if request.pfv.get() != 0 {
            return Err(Violation::PduFormatVersionUnknown);
        }
        if request.hpda > 31 {
            return Err(Violation::HpdaTooLarge);
        }
        let digests = request.dgst & 0b11;
        let (header, data) = (digests & 1 != 0, digests & 2 != 0);
        // CPDA 0: Linux hosts refuse other values.
        #[allow(clippy::cast_possible_truncation, reason = "1 MiB")]
        let response = pdu::IcResp::new(0, digests, MAX_TRANSFER as u32);
        self.send(Framer::plain(response.as_bytes()));
        self.deframer.set_digests(header, data);
        self.framer.set_layout(header, data, request.hpda);
        self.state = ConnectionState::AwaitingConnect;
        Ok(())
    }

    /// Handles a command capsule whose header was received, with `data` bytes to follow.
    pub(super) fn capsule(&mut self, sqe: Sqe, data: u32) -> Result<(), Violation> {
        let buffer = match data {
            0 => None,
            _ => match self.capsule_buffers.take(data as usize) {
                Some(buffer) => Some(buffer),
                None => {
                    self.stalled = Some((sqe, data));
                    return Ok(());
                }
            },
        };
        self.command(sqe, buffer)
    }

    fn command(&mut self, sqe: Sqe, capsule: Option<Buffer>) -> Result<(), Violation> {
        let cid = sqe.cid.get();
        self.advance_head();
        if self.slots.is_outstanding(cid) && !self.drop_event_request(cid) {
            self.respond(Cqe::new(cid, Status::COMMAND_ID_CONFLICT.dnr()));
            return Ok(());
        }
        let tag = self.slots.claim(cid).ok_or(Violation::QueueOverrun)?;
        if let Err(status) = self.dispatch(tag, sqe, capsule) {
            self.fail_command(tag, status);
        }
        Ok(())
    }

    fn dispatch(&mut self, tag: u16, sqe: Sqe, capsule: Option<Buffer>) -> Result<(), Status> {
        match self.binding.as_ref().map(|binding| binding.qid) {
            None => self.connect_command(tag, sqe, capsule),
            Some(_) if self.is_unauthenticated() => {
                self.unauthenticated_command(tag, &sqe, capsule)
            }
            Some(0) => self.admin_command(tag, sqe, capsule),
            Some(_) => self.io_command(tag, sqe, capsule),
        }
    }

    pub(super) fn violated(&mut self, violation: Violation, header: &[u8]) {
        let (fes, fei) = violation.fes_fei();
        let kind = header.first().copied().unwrap_or_default();
        // An invalid H2CTermReq is not answered with C2HTermReq.
        if kind != pdu::kind::H2C_TERM_REQ {
            let hlen = pdu::hlen_of(kind).unwrap_or(8).into();
            let header = header.get(..header.len().min(hlen)).unwrap_or_default();
            self.send(Framer::terminate(pdu::kind::C2H_TERM_REQ, fes, fei, header));
        }
        self.steps.push_back(Step::Report(Event::Violation {
            peer: self.peer.clone(),
            rule: violation.name(),
        }));
        self.close(Reason::Violation);
    }

    pub(super) fn close(&mut self, reason: Reason) {
        if self.state != ConnectionState::Closed {
            self.leave(reason);
            self.steps.push_back(Step::Close(reason));
        }
    }

    /// Closes the queue: leaves the controller, or ends it if this is the Admin queue.
    fn leave(&mut self, reason: Reason) {
        if matches!(reason, Reason::Peer | Reason::Timeout) {
            self.report_unauthenticated();
        }
        self.state = ConnectionState::Closed;
        self.stalled = None;
        self.awaiting_buffer.clear();
        self.awaiting_second_phase.clear();
        self.awaiting_exclusive.clear();
        self.slots.clear();
        if let Some(binding) = &self.binding {
            binding.leave();
        }
        self.report_attached(None, reason);
        // Writes in flight become orphans.
        self.binding = None;
        self.steps.push_back(Step::Notify);
    }

    fn state_changed(&mut self) {
        let Some(binding) = &self.binding else { return self.retry_connect() };
        if binding.controller.has_ended() || binding.is_stale() {
            // When the program stops, requests in flight are still completed.
            return if self.state == ConnectionState::Stopping {
                self.stop_when_idle()
            } else {
                self.close(Reason::Ended)
            };
        }
        if self.close_if_revoked() {
            return;
        }
        self.refresh_grant();
        if self.admin.is_some() {
            self.admin_changed();
        } else {
            self.process_aborts();
        }
        for _ in 0..self.awaiting_exclusive.len() {
            if let Some(tag) = self.awaiting_exclusive.pop_front() {
                self.retry_exclusive(tag);
            }
        }
    }

    /// Returns the key of the secure channel of this connection, if it uses one.
    pub(super) fn channel(&self) -> Option<Option<KeyId>> {
        self.peer.channel.as_ref().map(|channel| channel.key)
    }

    fn stop_when_idle(&mut self) {
        if self.state == ConnectionState::Stopping && self.slots.none_submitted() {
            self.close(Reason::Stopping);
        }
    }

    /// Returns when keep-alive expires.
    pub(super) fn keep_alive_deadline(&self) -> Option<Instant> {
        let binding = self.binding.as_ref().filter(|binding| binding.qid == 0)?;
        let idle = (binding.controller.kind == ControllerType::Discovery)
            .then_some(DISCOVERY_IDLE_TIMEOUT);
        binding.controller.keep_alive_deadline(KEEP_ALIVE_GRACE, idle)
    }
}

impl Session for Queue {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.now = now;
        self.restart_keep_alive();
        let mut consumed = 0;
        while self.can_receive() {
            let Some(left) =
                bytes.get(consumed..).filter(|left| !left.is_empty() || self.deframer.at_end())
            else {
                break;
            };
            match self.deframer.next(left).and_then(|piece| match piece {
                Piece::Incomplete => Ok(None),
                piece => self.piece(piece).map(Some),
            }) {
                Ok(Some(n)) => consumed += n,
                Ok(None) => break,
                Err(violation) => {
                    self.violated(violation, left);
                    return bytes.len();
                }
            }
        }
        if self.state == ConnectionState::Closed { bytes.len() } else { consumed }
    }

    fn complete(&mut self, now: Instant, ticket: Ticket, outcome: Outcome) {
        self.now = now;
        #[allow(clippy::cast_possible_truncation, reason = "tickets are made of slots")]
        let tag = ticket.number() as u16;
        if self.state == ConnectionState::Closed {
            let held_exclusive =
                self.slots.get(tag).is_some_and(|slot| slot.work.holds_exclusive());
            self.slots.release(tag);
            if held_exclusive || self.slots.none_submitted() {
                self.steps.push_back(Step::Notify);
            }
            return;
        }
        self.set_slot_state(tag, SlotState::Pending);
        self.drive(tag, Some(outcome));
    }

    fn notify(&mut self, now: Instant, notice: &Notice) {
        self.now = now;
        match (self.state, notice) {
            (ConnectionState::Closed, _) => {}
            (_, Notice::Disconnected) => self.leave(Reason::Peer),
            (_, Notice::Stopping) => self.state = ConnectionState::Stopping,
            (_, Notice::StateChanged) => self.state_changed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        let awaiting_second_phase =
            |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        match self.state {
            ConnectionState::AwaitingIcReq | ConnectionState::AwaitingConnect
                if awaiting_second_phase(Some(self.opened_at + HANDSHAKE_TIMEOUT)) =>
            {
                self.report_blocked_connect();
                self.close(Reason::Timeout)
            }
            ConnectionState::Live
                if awaiting_second_phase(self.keep_alive_deadline())
                    || awaiting_second_phase(self.auth_deadline()) =>
            {
                self.close(Reason::Timeout)
            }
            _ => {}
        }
    }

    fn poll(&mut self) -> Option<Step> {
        if self.steps.is_empty() {
            self.retry_allocations();
            self.resume_stalled();
            self.stop_when_idle();
        }
        let step = self.steps.pop_front()?;
        if let Step::Send(segment) = &step {
            self.queued_bytes -= segment.len();
        }
        Some(step)
    }

    fn deadline(&self) -> Option<Instant> {
        match self.state {
            ConnectionState::AwaitingIcReq | ConnectionState::AwaitingConnect => {
                Some(self.opened_at + HANDSHAKE_TIMEOUT)
            }
            ConnectionState::Live => {
                self.keep_alive_deadline().into_iter().chain(self.auth_deadline()).min()
            }
            ConnectionState::Stopping | ConnectionState::Closed => None,
        }
    }

    fn can_receive(&self) -> bool {
        let open = matches!(
            self.state,
            ConnectionState::AwaitingIcReq
                | ConnectionState::AwaitingConnect
                | ConnectionState::Live
        );
        open && self.stalled.is_none() && self.queued_bytes < MAX_QUEUED_BYTES
    }

    fn is_established(&self) -> bool {
        self.binding.is_some() && !self.is_unauthenticated()
    }

    fn fence(&self) -> Option<&Arc<Fence>> {
        self.binding.as_ref()?.grant.as_ref().map(Grant::fence)
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        let left = self.deframer.payload_left();
        let token = self.incoming?;
        if left < MIN_DIRECT_RECV || !self.deframer.at_payload() || !self.can_receive() {
            return None;
        }
        let receiving = self.receiving()?;
        let start = receiving.got as usize;
        let buffer = receiving.buffer.take()?;
        Some(DirectRecv { buffer, start, end: start + left as usize, token: token.into() })
    }

    fn direct_received(&mut self, now: Instant, recv: DirectRecv, got: usize) {
        self.now = now;
        let DirectRecv { buffer, start, end, .. } = recv;
        let got = got.min(end - start);
        self.deframer.skip_payload(buffer.bytes().get(start..start + got).unwrap_or_default());
        if let Some(receiving) = self.receiving() {
            #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
            {
                receiving.got += got as u32;
            }
            receiving.buffer = Some(buffer);
        }
        self.restart_keep_alive();
        // Regardless of back-pressure: no further bytes may arrive that would trigger the end of
        // this payload.
        if self.deframer.at_end()
            && let Ok(Piece::PayloadEnd(_, digest_ok)) = self.deframer.next(&[])
        {
            self.payload_end(digest_ok);
        }
    }
}
