//! One connection: the Admin queue or an I/O queue of a controller, from the first byte to the last. Cuts commands out of
//! the stream; what becomes of them is in the other files. It knows no socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Account, Buffer, DirectRecv, Event, KeyId, Notice, Outcome, Peer, Purpose, Reason, Session,
    Step, Ticket,
};
use zerocopy::IntoBytes;

use super::admin::Admin;
use super::auth::InBandAuth;
use super::controller::Kind;
use super::fused::First;
use super::link::Link;
use super::slots::{Slots, Stage};
use super::{CAPSULE_DATA, DISCOVERY_IDLE, HANDSHAKE, KEEP_ALIVE_GRACE, Port, TRANSFER, Target};
use crate::status::Status;
use crate::tcp::{Deframer, Framer, Pdu, Piece, Side, Violation, pdu};
use crate::wire::command::Sqe;
use crate::wire::completion::Cqe;

/// One connection, as the target sees it.
#[derive(Debug)]
pub struct Queue {
    pub(super) target: Arc<Target>,
    pub(super) peer: Peer,
    pub(super) port: Port,
    pub(super) now: Instant,
    pub(super) opened: Instant,
    pub(super) phase: Phase,
    pub(super) deframer: Deframer,
    pub(super) framer: Framer,
    pub(super) out: VecDeque<Step>,
    /// Bytes to be sent in `out`.
    pub(super) owed: usize,
    /// Where the payload of the PDU that is coming belongs: a slot, or nowhere.
    pub(super) incoming: Option<u16>,
    /// A command with data in its capsule, for which there is no memory yet.
    pub(super) stalled: Option<(Sqe, u32)>,
    /// Memory for data in capsules. It has its own account: a command that waits for it stops the stream, so it must never
    /// wait for data that is behind it in the stream.
    pub(super) capsules: Account,
    /// Memory for all other transfers.
    pub(super) transfers: Account,
    /// Memory for reads of commands that hold memory already: they must not wait for one another.
    pub(super) seconds: Account,
    pub(super) slots: Slots,
    /// Slots that wait for memory, in order.
    pub(super) starved: VecDeque<u16>,
    /// Slots that wait for memory of `seconds`.
    pub(super) late: VecDeque<u16>,
    /// Slots that wait for their turn to write, while another request has the disk for itself.
    pub(super) contending: VecDeque<u16>,
    /// The first half of a fused pair whose second must be the next command.
    pub(super) fused: Option<First>,
    pub(super) link: Option<Link>,
    pub(super) admin: Option<Box<Admin>>,
    /// Of a host that can prove who it is.
    pub(super) auth: Option<Box<InBandAuth>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Initialize Connection Request is to come.
    Opening,
    /// Connect is to come.
    Connecting,
    /// Connected.
    Live,
    /// The program stops: what the disk has is finished, nothing new is read.
    Stopping,
    /// Closed, or about to be.
    Closed,
}

/// With this many bytes to be sent it takes no more commands: a page of a megabyte costs its asker 72 bytes.
const OWED: usize = 1 << 18;

/// A payload with less than this still to come is not worth receiving by itself, in bytes.
const LANDING: u32 = 8192;

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
            opened: now,
            phase: Phase::Opening,
            deframer: Deframer::new(Side::Target, CAPSULE_DATA),
            framer: Framer::default(),
            out: VecDeque::new(),
            owed: 0,
            incoming: None,
            stalled: None,
            capsules: account.sibling(Purpose::Stream),
            seconds: account.sibling(Purpose::SecondPhase),
            transfers: account,
            slots: Slots::new(1),
            starved: VecDeque::new(),
            late: VecDeque::new(),
            contending: VecDeque::new(),
            fused: None,
            link: None,
            admin: None,
            auth: None,
        }
    }

    /// Turns the connection into a queue of a controller.
    pub(super) fn go_live(&mut self, link: Link) {
        self.slots = Slots::new(link.entries);
        self.link = Some(link);
        self.phase = Phase::Live;
    }

    fn piece(&mut self, piece: Piece<'_>) -> Result<usize, Violation> {
        match piece {
            Piece::Short => Ok(0),
            Piece::Header(n, pdu) => self.pdu(pdu).map(|()| n),
            Piece::Padding(n) => Ok(n),
            Piece::Payload(data) => {
                self.payload(data);
                Ok(data.len())
            }
            Piece::End(n, undamaged) => {
                self.payload_ended(undamaged);
                Ok(n)
            }
        }
    }

    fn pdu(&mut self, pdu: Pdu) -> Result<(), Violation> {
        match (self.phase, pdu) {
            (_, Pdu::Term { .. }) => {
                self.out.push_back(Step::Report(Event::Violation {
                    peer: self.peer.clone(),
                    rule: "H2CTermReq",
                }));
                self.close(Reason::Peer);
                Ok(())
            }
            (Phase::Opening, Pdu::IcReq(request)) => self.initialize(&request),
            (Phase::Opening, _) => Err(Violation::IcReqMissing),
            (_, Pdu::IcReq(_)) => Err(Violation::IcReqRepeated),
            (_, Pdu::Command { sqe, data }) => self.capsule(sqe, data),
            (_, Pdu::Data { cccid, ttag, offset, len, last, .. }) => {
                self.data(cccid, ttag, offset, len, last)
            }
            _ => Err(Violation::PduTypeWrongDirection),
        }
    }

    /// Initialize Connection Request (NVMe/TCP 1.0 §3.6.2.2).
    fn initialize(&mut self, request: &pdu::IcReq) -> Result<(), Violation> {
        if request.pfv.get() != 0 {
            return Err(Violation::PduFormatVersionUnknown);
        }
        if request.hpda > 31 {
            return Err(Violation::HpdaTooLarge);
        }
        let digests = request.dgst & 0b11;
        let (header, data) = (digests & 1 != 0, digests & 2 != 0);
        // CPDA 0: Linux hosts refuse any other.
        #[allow(clippy::cast_possible_truncation, reason = "1 MiB")]
        let response = pdu::IcResp::new(0, digests, TRANSFER as u32);
        self.send(Framer::plain(response.as_bytes()));
        self.deframer.set_digests(header, data);
        self.framer.set(header, data, request.hpda);
        self.phase = Phase::Connecting;
        Ok(())
    }

    /// A command capsule whose header has come, with `data` bytes to follow in it.
    pub(super) fn capsule(&mut self, sqe: Sqe, data: u32) -> Result<(), Violation> {
        let buffer = match data {
            0 => None,
            _ => match self.capsules.take(data as usize) {
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
        if self.slots.has(cid) && !self.drop_event_request(cid) {
            self.respond(Cqe::new(cid, Status::COMMAND_ID_CONFLICT.dnr()));
            return Ok(());
        }
        let at = self.slots.claim(cid).ok_or(Violation::QueueOverrun)?;
        if let Err(status) = self.dispatch(at, sqe, capsule) {
            self.spoil(at, status);
        }
        Ok(())
    }

    fn dispatch(&mut self, at: u16, sqe: Sqe, capsule: Option<Buffer>) -> Result<(), Status> {
        match self.link.as_ref().map(|link| link.qid) {
            None => self.connect_command(at, sqe, capsule),
            Some(_) if self.is_unproven() => self.unproven_command(at, &sqe, capsule),
            Some(0) => self.admin_command(at, sqe, capsule),
            Some(_) => self.io_command(at, sqe, capsule),
        }
    }

    pub(super) fn violated(&mut self, violation: Violation, header: &[u8]) {
        let (fes, fei) = violation.fes_fei();
        let kind = header.first().copied().unwrap_or_default();
        // Who says wrongly that the connection ends is not told the same.
        if kind != pdu::kind::H2C_TERM_REQ {
            let hlen = pdu::hlen_of(kind).unwrap_or(8).into();
            let header = header.get(..header.len().min(hlen)).unwrap_or_default();
            self.send(Framer::terminate(pdu::kind::C2H_TERM_REQ, fes, fei, header));
        }
        self.out.push_back(Step::Report(Event::Violation {
            peer: self.peer.clone(),
            rule: violation.name(),
        }));
        self.close(Reason::Violation);
    }

    pub(super) fn close(&mut self, reason: Reason) {
        if self.phase != Phase::Closed {
            self.leave(reason);
            self.out.push_back(Step::Close(reason));
        }
    }

    /// The connection is over: its queue leaves its controller, and the Admin queue ends it.
    fn leave(&mut self, reason: Reason) {
        if matches!(reason, Reason::Peer | Reason::Timeout) {
            self.left_unproven();
        }
        self.phase = Phase::Closed;
        self.stalled = None;
        self.starved.clear();
        self.late.clear();
        self.contending.clear();
        self.slots.clear();
        if let Some(link) = &self.link {
            link.leave();
        }
        self.report_attached(None, reason);
        // Writes that the disk has count as orphaned from now on.
        self.link = None;
        self.out.push_back(Step::Notify);
    }

    fn changed(&mut self) {
        let Some(link) = &self.link else { return self.retry_connect() };
        if link.controller.has_ended() || link.is_stale() {
            // When the program stops, what the disk has is still answered.
            return if self.phase == Phase::Stopping {
                self.stop_when_idle()
            } else {
                self.close(Reason::Ended)
            };
        }
        if self.is_turned_out() {
            return;
        }
        self.refresh();
        if self.admin.is_some() {
            self.admin_changed();
        } else {
            self.look_for_aborts();
        }
        for _ in 0..self.contending.len() {
            if let Some(at) = self.contending.pop_front() {
                self.contend(at);
            }
        }
    }

    /// The key of the channel that this connection came in, if it came in one.
    pub(super) fn channel(&self) -> Option<Option<KeyId>> {
        self.peer.channel.as_ref().map(|channel| channel.key)
    }

    fn stop_when_idle(&mut self) {
        if self.phase == Phase::Stopping && self.slots.are_off_disk() {
            self.close(Reason::Stopping);
        }
    }

    /// When the host is given up if it says nothing more.
    pub(super) fn silent_until(&self) -> Option<Instant> {
        let link = self.link.as_ref().filter(|link| link.qid == 0)?;
        let idle = (link.controller.kind == Kind::Discovery).then_some(DISCOVERY_IDLE);
        link.controller.silent_until(KEEP_ALIVE_GRACE, idle)
    }
}

impl Session for Queue {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.now = now;
        self.heard();
        let mut taken = 0;
        while self.can_receive() {
            let Some(left) =
                bytes.get(taken..).filter(|left| !left.is_empty() || self.deframer.at_end())
            else {
                break;
            };
            match self.deframer.next(left).and_then(|piece| match piece {
                Piece::Short => Ok(None),
                piece => self.piece(piece).map(Some),
            }) {
                Ok(Some(n)) => taken += n,
                Ok(None) => break,
                Err(violation) => {
                    self.violated(violation, left);
                    return bytes.len();
                }
            }
        }
        if self.phase == Phase::Closed { bytes.len() } else { taken }
    }

    fn complete(&mut self, now: Instant, ticket: Ticket, outcome: Outcome) {
        self.now = now;
        #[allow(clippy::cast_possible_truncation, reason = "tickets are made of slots")]
        let at = ticket.number() as u16;
        if self.phase == Phase::Closed {
            let had_right = self.slots.get(at).is_some_and(|slot| slot.work.has_right());
            self.slots.release(at);
            if had_right || self.slots.are_off_disk() {
                self.out.push_back(Step::Notify);
            }
            return;
        }
        self.set_stage(at, Stage::Waiting);
        self.drive(at, Some(outcome));
    }

    fn notify(&mut self, now: Instant, news: &Notice) {
        self.now = now;
        match (self.phase, news) {
            (Phase::Closed, _) => {}
            (_, Notice::Disconnected) => self.leave(Reason::Peer),
            (_, Notice::Stopping) => self.phase = Phase::Stopping,
            (_, Notice::StateChanged) => self.changed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        let late = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        match self.phase {
            Phase::Opening | Phase::Connecting if late(Some(self.opened + HANDSHAKE)) => {
                self.report_waiting();
                self.close(Reason::Timeout)
            }
            Phase::Live if late(self.silent_until()) || late(self.proof_due()) => {
                self.close(Reason::Timeout)
            }
            _ => {}
        }
    }

    fn poll(&mut self) -> Option<Step> {
        if self.out.is_empty() {
            self.feed();
            self.resume();
            self.stop_when_idle();
        }
        let step = self.out.pop_front()?;
        if let Step::Send(segment) = &step {
            self.owed -= segment.len();
        }
        Some(step)
    }

    fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Opening | Phase::Connecting => Some(self.opened + HANDSHAKE),
            Phase::Live => self.silent_until().into_iter().chain(self.proof_due()).min(),
            Phase::Stopping | Phase::Closed => None,
        }
    }

    fn can_receive(&self) -> bool {
        let open = matches!(self.phase, Phase::Opening | Phase::Connecting | Phase::Live);
        open && self.stalled.is_none() && self.owed < OWED
    }

    fn is_established(&self) -> bool {
        self.link.is_some() && !self.is_unproven()
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        let left = self.deframer.payload_left();
        let mark = self.incoming?;
        if left < LANDING || !self.deframer.at_payload() || !self.can_receive() {
            return None;
        }
        let filling = self.filling()?;
        let start = filling.got as usize;
        let buffer = filling.buffer.take()?;
        Some(DirectRecv { buffer, start, end: start + left as usize, mark: mark.into() })
    }

    fn direct_received(&mut self, now: Instant, landing: DirectRecv, got: usize) {
        self.now = now;
        let DirectRecv { buffer, start, end, .. } = landing;
        let got = got.min(end - start);
        self.deframer.skip_payload(buffer.bytes().get(start..start + got).unwrap_or_default());
        if let Some(filling) = self.filling() {
            #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
            {
                filling.got += got as u32;
            }
            filling.buffer = Some(buffer);
        }
        self.heard();
        // Whether or not it would take more now: nothing may follow that would bring the end of this payload to light.
        if self.deframer.at_end()
            && let Ok(Piece::End(_, undamaged)) = self.deframer.next(&[])
        {
            self.payload_ended(undamaged);
        }
    }
}
