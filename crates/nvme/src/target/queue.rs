//! One connection: the Admin queue or an I/O queue of a controller, from the first byte to the last. Cuts commands out of
//! the stream, gathers their data, and answers them; what they do is in the other files. It knows no socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use export::{
    Account, Body, Buffer, Event, Exclusive, Fault, Grant, Landing, News, Op, Outcome, Peer,
    Reason, Request, Session, Step, Ticket,
};
use zerocopy::IntoBytes;

use super::admin::Admin;
use super::controller::{Controller, Kind};
use super::fused::First;
use super::io::{Work, direction};
use super::slots::{Filling, Slots, Stage};
use super::{CAPSULE_DATA, DISCOVERY_IDLE, HANDSHAKE, KEEP_ALIVE_GRACE, Port, TRANSFER, Target};
use crate::command::DataPointer;
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
    opened: Instant,
    phase: Phase,
    deframer: Deframer,
    framer: Framer,
    pub(super) out: VecDeque<Step>,
    /// Bytes to be sent in `out`.
    owed: usize,
    /// Where the payload of the PDU that is coming belongs: a slot, or nowhere.
    incoming: Option<u16>,
    /// A command with data in its capsule, for which there is no memory yet.
    stalled: Option<(Sqe, u32)>,
    /// Memory for data in capsules. It has its own account: a command that waits for it stops the stream, so it must never
    /// wait for data that is behind it in the stream.
    capsules: Account,
    /// Memory for all other transfers.
    transfers: Account,
    /// Memory for reads of commands that hold memory already: they must not wait for one another.
    pub(super) seconds: Account,
    pub(super) slots: Slots,
    /// Slots that wait for memory, in order.
    starved: VecDeque<u16>,
    /// Slots that wait for memory of `seconds`.
    pub(super) late: VecDeque<u16>,
    /// Slots that wait for their turn to write, while another request has the disk for itself.
    pub(super) contending: VecDeque<u16>,
    /// The first half of a fused pair whose second must be the next command.
    pub(super) fused: Option<First>,
    pub(super) link: Option<Link>,
    pub(super) admin: Option<Box<Admin>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
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

/// What a queue is once it is connected.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) controller: Arc<Controller>,
    /// Queue identifier; zero is the Admin queue.
    pub(super) qid: u16,
    /// How often the controller had been reset when the queue joined it.
    pub(super) resets: u32,
    /// Entries of the submission queue.
    pub(super) entries: u16,
    /// Submission queue head, or nothing without flow control.
    pub(super) head: Option<u16>,
    /// What the host may do with the disk; nothing for a discovery controller, or while there is no disk.
    pub(super) grant: Option<Grant>,
    /// The export that was reported as attached, until it is reported as detached.
    pub(super) attached: Option<Arc<export::Export>>,
}

/// With this many bytes to be sent it takes no more commands: a page of a megabyte costs its asker 72 bytes.
const OWED: usize = 1 << 18;

impl Link {
    /// Whether a reset has deleted the queue: all but the Admin queue.
    pub(super) fn is_stale(&self) -> bool {
        self.qid != 0 && self.resets != self.controller.resets.load(Ordering::Acquire)
    }
}

impl Drop for Link {
    /// However the Admin queue goes, even by a mistake of ours, its controller goes with it.
    fn drop(&mut self) {
        if self.qid == 0 {
            self.controller.end();
        }
    }
}

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
            capsules: account.sibling(),
            seconds: account.sibling(),
            transfers: account,
            slots: Slots::new(1),
            starved: VecDeque::new(),
            late: VecDeque::new(),
            contending: VecDeque::new(),
            fused: None,
            link: None,
            admin: None,
        }
    }

    /// Turns the connection into a queue of a controller.
    pub(super) fn go_live(&mut self, link: Link) {
        self.slots = Slots::new(link.entries);
        self.link = Some(link);
        self.phase = Phase::Live;
    }

    // ---- what comes in

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
                    peer: self.peer,
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
    fn capsule(&mut self, sqe: Sqe, data: u32) -> Result<(), Violation> {
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
            Some(0) => self.admin_command(at, sqe, capsule),
            Some(_) => self.io_command(at, sqe, capsule),
        }
    }

    /// Data of an H2CData PDU is coming (NVMe/TCP 1.0 §3.6.2.8).
    fn data(
        &mut self,
        cccid: u16,
        ttag: u16,
        offset: u32,
        len: u32,
        last: bool,
    ) -> Result<(), Violation> {
        let slot = self.slots.get(ttag).ok_or(Violation::DataTagUnknown)?;
        let (got, want) = match &slot.stage {
            Stage::Filling(filling) if filling.solicited => (filling.got, filling.want),
            Stage::Discarding { got, want } => (*got, *want),
            _ => return Err(Violation::DataUnsolicited),
        };
        if slot.cid != cccid {
            return Err(Violation::DataForOtherCommand);
        }
        check_data(offset, len, last, got, want)?;
        self.incoming = Some(ttag);
        if let Stage::Discarding { got, .. } = &mut slot.stage {
            *got += len;
            self.incoming = None;
            if last {
                self.slots.release(ttag);
            }
        }
        Ok(())
    }

    /// The buffer that the payload which is coming belongs in.
    fn filling(&mut self) -> Option<&mut Filling> {
        match &mut self.slots.get(self.incoming?)?.stage {
            Stage::Filling(filling) => Some(filling),
            _ => None,
        }
    }

    fn payload(&mut self, data: &[u8]) {
        let Some(Filling { buffer: Some(buffer), got, .. }) = self.filling() else { return };
        let start = *got as usize;
        if let Some(place) = buffer.bytes_mut().get_mut(start..start + data.len()) {
            place.copy_from_slice(data);
        }
        #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
        {
            *got += data.len() as u32;
        }
    }

    fn payload_ended(&mut self, undamaged: bool) {
        let at = self.incoming;
        let Some(filling) = self.filling() else { return };
        filling.damaged |= !undamaged;
        let (whole, damaged) = (filling.got == filling.want, filling.damaged);
        self.incoming = None;
        if let (true, Some(at)) = (whole, at) {
            let buffer = self.filled(at);
            match buffer {
                Some(buffer) if !damaged => self.loaded(at, buffer),
                _ => self.spoil(at, Status::TRANSIENT_TRANSPORT_ERROR),
            }
        }
    }

    fn filled(&mut self, at: u16) -> Option<Buffer> {
        let slot = self.slots.get(at)?;
        match std::mem::replace(&mut slot.stage, Stage::Waiting) {
            Stage::Filling(filling) => filling.buffer,
            _ => None,
        }
    }

    // ---- data of a command

    /// Has the data that a command needs come from the host, at least `len` bytes: from its capsule, or by an R2T.
    /// [`Queue::loaded`] is called when it is there.
    pub(super) fn gather(
        &mut self,
        at: u16,
        sqe: &Sqe,
        len: u64,
        size: Size,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        let want = sqe.sgl1.length.get();
        let (has, fits) = (u64::from(want), u64::from(want) <= TRANSFER);
        if has < len || (size == Size::Exact && has != len) {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        if want == 0 || !fits {
            return Err(Status::INVALID_FIELD.dnr());
        }
        match (DataPointer::parse(&sqe.sgl1)?, capsule) {
            (DataPointer::InCapsule { .. }, Some(buffer)) if buffer.len() as u64 == has => {
                self.fill(at, Some(buffer), want, false);
                self.incoming = Some(at);
            }
            (DataPointer::InCapsule { .. }, _) => return Err(Status::DATA_SGL_LENGTH_INVALID.dnr()),
            (DataPointer::Transport { .. }, None) => self.ask(at, want),
            (DataPointer::Transport { .. }, Some(_)) => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(())
    }

    /// A transfer to the host of `len` bytes: the data pointer must say so.
    pub(super) fn check_to_host(
        sqe: &Sqe,
        len: u64,
        size: Size,
        capsule: Option<&Buffer>,
    ) -> Result<(), Status> {
        let DataPointer::Transport { length } = DataPointer::parse(&sqe.sgl1)? else {
            return Err(Status::SGL_TYPE_INVALID.dnr());
        };
        if capsule.is_some() {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let has = u64::from(length);
        if has < len || (size == Size::Exact && has != len) {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        Ok(())
    }

    fn fill(&mut self, at: u16, buffer: Option<Buffer>, want: u32, solicited: bool) {
        if let Some(slot) = self.slots.get(at) {
            slot.stage =
                Stage::Filling(Filling { buffer, got: 0, want, damaged: false, solicited });
        }
    }

    /// Asks the host for all the data of a command at once, as soon as there is memory for it.
    fn ask(&mut self, at: u16, want: u32) {
        match self.take(at, want as usize) {
            Some(buffer) => {
                self.fill(at, Some(buffer), want, true);
                let cid = self.slots.get(at).map_or(0, |slot| slot.cid);
                let r2t = self.framer.r2t(cid, at, 0, want);
                self.send(r2t);
            }
            None => self.starve(at, Starving::Data(want)),
        }
    }

    /// Memory for a transfer; none while others wait for it, so that none waits for ever.
    pub(super) fn take(&mut self, at: u16, len: usize) -> Option<Buffer> {
        let turn = self.starved.front().is_none_or(|&first| first == at);
        if turn { self.transfers.take(len) } else { None }
    }

    pub(super) fn starve(&mut self, at: u16, starving: Starving) {
        if let Some(slot) = self.slots.get(at) {
            slot.stage = Stage::Starved(starving);
        }
        if self.starved.front() != Some(&at) {
            self.starved.push_back(at);
        }
    }

    /// Goes on with what had to wait for memory.
    fn feed(&mut self) {
        for _ in 0..self.late.len() {
            if let Some(at) = self.late.pop_front() {
                self.drive(at, None);
            }
        }
        while let Some(&at) = self.starved.front() {
            let Some(Stage::Starved(starving)) = self.slots.get(at).map(|slot| &slot.stage) else {
                self.starved.pop_front();
                continue;
            };
            match *starving {
                Starving::Data(want) => self.ask(at, want),
                Starving::Disk => self.drive(at, None),
            }
            if matches!(self.slots.get(at), Some(slot) if matches!(slot.stage, Stage::Starved(_))) {
                return;
            }
            self.starved.pop_front();
        }
    }

    fn resume(&mut self) {
        let Some((sqe, data)) = self.stalled.take() else { return };
        if let Err(violation) = self.capsule(sqe, data) {
            let capsule =
                [&[pdu::kind::CAPSULE_CMD, 0, 72, 0, 0, 0, 0, 0], sqe.as_bytes()].concat();
            self.violated(violation, &capsule);
        }
    }

    // ---- disk requests

    /// Hands a request to the disk, past the gate.
    pub(super) fn submit(
        &mut self,
        at: u16,
        op: Op,
        lba: u64,
        blocks: u64,
        buffer: Option<Buffer>,
        right: Option<&Exclusive>,
    ) {
        let request = Request { op, lba, blocks, buffer, ticket: Ticket::new(at.into()) };
        // A write whose data came after the reset that deleted its queue must not land on newer data.
        if self.link.as_ref().is_some_and(Link::is_stale) {
            return self.answer(at, Status::ABORTED_SQ_DELETION);
        }
        let Some(grant) = self.link.as_ref().and_then(|link| link.grant.as_ref()) else {
            return self.answer(at, Status::INVALID_NAMESPACE.dnr());
        };
        let admitted = match right {
            Some(right) => grant.admit_alone(request, right),
            None => grant.admit(request),
        };
        match admitted {
            Ok(admitted) => {
                self.set_stage(at, Stage::OnDisk);
                self.out.push_back(Step::Submit(admitted));
            }
            Err(denied) if denied.fault == Fault::Busy => {
                self.set_stage(at, Stage::Contending(denied.request));
                self.contending.push_back(at);
            }
            Err(denied) => self.failed(at, denied.fault, op),
        }
    }

    /// A request ended badly: its command ends so, too.
    pub(super) fn failed(&mut self, at: u16, fault: Fault, op: Op) {
        self.answer(at, Status::from_fault(fault, direction(op)));
    }

    pub(super) fn set_stage(&mut self, at: u16, stage: Stage) {
        if let Some(slot) = self.slots.get(at) {
            slot.stage = stage;
        }
    }

    fn report_fault(&mut self, grant: &Grant, op: Op, lba: u64, blocks: u64, fault: Fault) {
        let shift = grant.export().geometry.shift();
        let (offset, len) = (lba << shift, blocks << shift);
        let export = grant.export().clone();
        self.out.push_back(Step::Report(Event::Fault {
            export,
            op: op.word(),
            offset,
            len,
            fault,
        }));
    }

    /// Says that the disk failed a request.
    pub(super) fn note_fault(&mut self, op: Op, lba: u64, blocks: u64, fault: Fault) {
        if let Some(grant) = self.link.as_ref().and_then(|link| link.grant.clone()) {
            self.report_fault(&grant, op, lba, blocks, fault);
        }
    }

    // ---- what goes out

    pub(super) fn send(&mut self, segment: export::Segment) {
        self.owed += segment.len();
        self.out.push_back(Step::Send(segment));
    }

    /// Ends a command with `status` and no result.
    pub(super) fn answer(&mut self, at: u16, status: Status) {
        self.answer_with(at, status, 0);
    }

    /// Ends a command with a result in dwords 0 and 1.
    pub(super) fn answer_with(&mut self, at: u16, status: Status, result: u64) {
        let Some(slot) = self.slots.get(at) else { return };
        let (cid, lba) = (slot.cid, slot.work.lba());
        self.slots.release(at);
        if !status.is_success() {
            self.record(cid, status, lba);
        }
        self.respond(Cqe::new(cid, status).with_result(result));
    }

    fn record(&mut self, cid: u16, status: Status, lba: u64) {
        let Some(link) = &self.link else { return };
        let nsid = u32::from(link.controller.kind == Kind::Io && link.qid != 0);
        link.controller.record(link.qid, cid, status.to_field(), nsid, lba);
    }

    /// Ends a read with its data. Without flow control the last data PDU says that it succeeded, and no capsule follows
    /// (NVMe/TCP 1.0 §3.3.2.2).
    pub(super) fn answer_data(&mut self, at: u16, body: Body, len: usize) {
        let Some(cid) = self.slots.get(at).map(|slot| slot.cid) else { return };
        let elide = self.link.as_ref().is_some_and(|link| link.head.is_none());
        let flags = pdu::flag::LAST_PDU | if elide { pdu::flag::SUCCESS } else { 0 };
        let (out, owed) = (&mut self.out, &mut self.owed);
        let mut send = |segment: export::Segment| {
            *owed += segment.len();
            out.push_back(Step::Send(segment));
        };
        self.framer.data(pdu::kind::C2H_DATA, flags, cid, 0, body, 0, len, &mut send);
        self.slots.release(at);
        if !elide {
            self.respond(Cqe::new(cid, Status::SUCCESS));
        }
    }

    /// Answers Connect: the first answer of the queue that it made.
    pub(super) fn respond_connect(&mut self, cid: u16, dw0: u32, flow_control: bool) {
        let cqe = Cqe::new(cid, Status::SUCCESS).with_dw0(dw0);
        // Without flow control the head is FFFFh here (NVMe Base 2.0 §6.3).
        match flow_control {
            true => self.respond(cqe),
            false => {
                let response = self.framer.response(cqe.with_sqhd(u16::MAX));
                self.send(response);
            }
        }
    }

    fn respond(&mut self, cqe: Cqe) {
        let head = self.link.as_ref().and_then(|link| link.head);
        let response = self.framer.response(cqe.with_sqhd(head.unwrap_or(0)));
        self.send(response);
    }

    fn advance_head(&mut self) {
        if let Some(Link { head: Some(head), entries, .. }) = &mut self.link {
            *head = head.checked_add(1).filter(|next| next < entries).unwrap_or(0);
        }
    }

    // ---- the end

    fn violated(&mut self, violation: Violation, header: &[u8]) {
        let (fes, fei) = violation.fes_fei();
        let kind = header.first().copied().unwrap_or_default();
        // Who says wrongly that the connection ends is not told the same.
        if kind != pdu::kind::H2C_TERM_REQ {
            let hlen = pdu::hlen_of(kind).unwrap_or(8).into();
            let header = header.get(..header.len().min(hlen)).unwrap_or_default();
            self.send(Framer::terminate(pdu::kind::C2H_TERM_REQ, fes, fei, header));
        }
        self.out
            .push_back(Step::Report(Event::Violation { peer: self.peer, rule: violation.name() }));
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
        self.phase = Phase::Closed;
        self.stalled = None;
        self.starved.clear();
        self.late.clear();
        self.contending.clear();
        self.slots.clear();
        if let Some(link) = &mut self.link {
            // Under the lock: a reset, after which another queue may have the identifier, comes before or after.
            let mut shared = link.controller.shared();
            if !link.is_stale() {
                shared.open.remove(&link.qid);
            }
            drop(shared);
            if link.qid == 0 {
                link.controller.end();
            }
        }
        self.report_attached(None, reason);
        self.let_go();
    }

    /// A queue that is closed refers to its controller as long as the disk has requests of it: a new association of the
    /// same host waits for that, and is told when it is over.
    fn let_go(&mut self) {
        if self.slots.are_off_disk() {
            self.link = None;
        }
        self.out.push_back(Step::Rouse);
    }

    // ---- news

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

    /// Tries again what had to wait while another request had the disk for itself.
    fn contend(&mut self, at: u16) {
        let Some(slot) = self.slots.get(at) else { return };
        match std::mem::replace(&mut slot.stage, Stage::Waiting) {
            Stage::Contending(request) => {
                let Request { op, lba, blocks, buffer, .. } = request;
                self.submit(at, op, lba, blocks, buffer, None);
            }
            Stage::Waiting => self.drive(at, None),
            other => slot.stage = other,
        }
    }

    /// The disk of this queue may have gone, come back or been replaced.
    fn refresh(&mut self) {
        let Some(link) = self.link.as_mut().filter(|link| link.controller.kind == Kind::Io) else {
            return;
        };
        link.grant = self.target.catalogue.grant(&self.peer, &link.controller.subsystem).ok();
        let now = link.grant.as_ref().filter(|_| link.qid == 0).map(Grant::export);
        let same = match (&link.attached, now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if !same {
            let now = now.cloned();
            self.report_attached(now, Reason::Ended);
        }
    }

    /// Says which disk the host has attached from now on, if any, and no longer holds on to the one before.
    pub(super) fn report_attached(&mut self, now: Option<Arc<export::Export>>, reason: Reason) {
        let Some(link) = &mut self.link else { return };
        let (peer, host) = (self.peer, link.controller.host.nqn.clone());
        if let Some(export) = std::mem::replace(&mut link.attached, now.clone()) {
            self.out.push_back(Step::Report(Event::Detached {
                export,
                peer,
                host: host.clone(),
                reason,
            }));
        }
        if let Some(export) = now {
            self.out.push_back(Step::Report(Event::Attached { export, peer, host }));
        }
    }

    /// Commands of this queue that an Abort on the Admin queue names (NVMe Base 2.0 §5.1).
    fn look_for_aborts(&mut self) {
        let Some(link) = &self.link else { return };
        if !link.controller.has_aborts.load(Ordering::Acquire) {
            return;
        }
        let (controller, qid) = (link.controller.clone(), link.qid);
        let named = |abort: &super::controller::Abort| abort.sqid == qid && abort.aborted.is_none();
        let cids: Vec<u16> = controller
            .shared()
            .aborts
            .iter()
            .filter(|abort| named(abort))
            .map(|abort| abort.cid)
            .collect();
        for cid in cids {
            let aborted = self.abort(cid);
            let mut shared = controller.shared();
            if let Some(abort) =
                shared.aborts.iter_mut().find(|abort| named(abort) && abort.cid == cid)
            {
                abort.aborted = Some(aborted);
            }
            self.out.push_back(Step::Rouse);
        }
    }

    /// Aborts a command that is not on the disk yet. Tells whether it did.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let Some(at) = self.slots.find(cid) else { return false };
        let Some(slot) = self.slots.get(at) else { return false };
        let busy = matches!(slot.stage, Stage::OnDisk)
            || matches!(slot.work, Work::Pair(_) | Work::Half(_))
            || slot.work.is_abort();
        if !busy {
            self.cut_off(at, Status::ABORT_REQUESTED);
        }
        !busy
    }

    /// Ends a command that is not on the disk, wherever it is. If the host was asked for data that is still to come, the
    /// slot is kept until it has.
    pub(super) fn cut_off(&mut self, at: u16, status: Status) {
        let coming = self.incoming == Some(at);
        let left = if coming { self.deframer.payload_left() } else { 0 };
        let Some(slot) = self.slots.get(at) else { return };
        match slot.stage {
            Stage::OnDisk => return,
            Stage::Filling(Filling { got, want, solicited: true, .. }) if got + left < want => {
                let cid = slot.cid;
                slot.stage = Stage::Discarding { got: got + left, want };
                slot.work = Work::None;
                self.slots.forget_cid(at);
                self.respond(Cqe::new(cid, status));
            }
            _ => self.answer(at, status),
        }
        self.starved.retain(|&other| other != at);
        self.late.retain(|&other| other != at);
        self.contending.retain(|&other| other != at);
        if coming {
            self.incoming = None;
        }
    }

    fn stop_when_idle(&mut self) {
        if self.phase == Phase::Stopping && self.slots.are_off_disk() {
            self.close(Reason::Stopping);
        }
    }

    /// When the host is given up if it says nothing more.
    fn silent_until(&self) -> Option<Instant> {
        let link = self.link.as_ref().filter(|link| link.qid == 0)?;
        let idle = (link.controller.kind == Kind::Discovery).then_some(DISCOVERY_IDLE);
        link.controller.silent_until(KEEP_ALIVE_GRACE, idle)
    }
}

/// What a data pointer must say about the data of its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// Blocks: neither more nor less.
    Exact,
    /// A structure: Linux hosts send 4096 bytes with any Dataset Management.
    AtLeast,
}

/// What a slot that waits for memory will do with it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Starving {
    /// Ask the host for that many bytes.
    Data(u32),
    /// Go on with the disk.
    Disk,
}

/// The rules for the data of an R2T: in order, within what was asked for, and the last PDU marked (NVMe/TCP 1.0
/// §3.3.2.1, §3.6.2.8).
fn check_data(offset: u32, len: u32, last: bool, got: u32, want: u32) -> Result<(), Violation> {
    if offset != got {
        return Err(Violation::DataOffsetNotExpected);
    }
    if u64::from(len) > TRANSFER {
        return Err(Violation::DataTooLong);
    }
    if len > want - got {
        return Err(Violation::DataBeyondTransfer);
    }
    match (last, len == want - got) {
        (true, false) => Err(Violation::LastFlagUnexpected),
        (false, true) => Err(Violation::LastFlagMissing),
        _ => Ok(()),
    }
}

impl Session for Queue {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.now = now;
        if let Some(link) = &self.link {
            link.controller.heard(now);
        }
        let mut taken = 0;
        while self.hungry() {
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
            self.slots.release(at);
            return self.let_go();
        }
        self.set_stage(at, Stage::Waiting);
        self.drive(at, Some(outcome));
    }

    fn tell(&mut self, now: Instant, news: &News) {
        self.now = now;
        match (self.phase, news) {
            (Phase::Closed, _) => {}
            (_, News::Disconnected) => self.leave(Reason::Peer),
            (_, News::Stopping) => self.phase = Phase::Stopping,
            (_, News::Changed) => self.changed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        let late = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        match self.phase {
            Phase::Opening | Phase::Connecting if late(Some(self.opened + HANDSHAKE)) => {
                self.close(Reason::Timeout)
            }
            Phase::Live if late(self.silent_until()) => self.close(Reason::Timeout),
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
            Phase::Live => self.silent_until(),
            Phase::Stopping | Phase::Closed => None,
        }
    }

    fn hungry(&self) -> bool {
        let open = matches!(self.phase, Phase::Opening | Phase::Connecting | Phase::Live);
        open && self.stalled.is_none() && self.owed < OWED
    }

    fn is_established(&self) -> bool {
        self.link.is_some()
    }

    fn landing(&mut self) -> Option<Landing> {
        let left = self.deframer.payload_left();
        let mark = self.incoming?;
        if left < LANDING || !self.deframer.at_payload() || !self.hungry() {
            return None;
        }
        let filling = self.filling()?;
        let start = filling.got as usize;
        let buffer = filling.buffer.take()?;
        Some(Landing { buffer, start, end: start + left as usize, mark: mark.into() })
    }

    fn landed(&mut self, now: Instant, landing: Landing, got: usize) {
        self.now = now;
        let Landing { buffer, start, end, .. } = landing;
        let got = got.min(end - start);
        self.deframer.skip_payload(buffer.bytes().get(start..start + got).unwrap_or_default());
        if let Some(filling) = self.filling() {
            #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
            {
                filling.got += got as u32;
            }
            filling.buffer = Some(buffer);
        }
        if let Some(link) = &self.link {
            link.controller.heard(now);
        }
        // Whether or not it would take more now: nothing may follow that would bring the end of this payload to light.
        if self.deframer.at_end()
            && let Ok(Piece::End(_, undamaged)) = self.deframer.next(&[])
        {
            self.payload_ended(undamaged);
        }
    }
}
