//! What leaves a queue: requests for the disk, past the gate, and answers for the host. It knows no command.

use export::{Body, Buffer, Event, Exclusive, Fault, Grant, Op, Request, Step, Ticket};

use super::controller::Kind;
use super::io::{Work, direction};
use super::link::Link;
use super::queue::Queue;
use super::slots::Stage;
use crate::status::Status;
use crate::tcp::pdu;
use crate::wire::completion::Cqe;

impl Queue {
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

    pub(super) fn record(&mut self, cid: u16, status: Status, lba: u64) {
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

    pub(super) fn respond(&mut self, cqe: Cqe) {
        let head = self.link.as_ref().and_then(|link| link.head);
        let response = self.framer.response(cqe.with_sqhd(head.unwrap_or(0)));
        self.send(response);
    }

    pub(super) fn advance_head(&mut self) {
        if let Some(Link { head: Some(head), entries, .. }) = &mut self.link {
            *head = head.checked_add(1).filter(|next| next < entries).unwrap_or(0);
        }
    }

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
        if self.link.as_ref().is_some_and(|link| !link.is_usable()) {
            return self.answer(at, Status::ABORTED_SQ_DELETION);
        }
        let Some(grant) = self.link.as_ref().and_then(|link| link.grant.as_ref()) else {
            return self.answer(at, Status::INVALID_NAMESPACE.dnr());
        };
        let admitted = match right {
            Some(right) => grant.admit_exclusive(request, right),
            None => grant.admit(request),
        };
        match admitted {
            Ok(admitted) => {
                if let Some(link) = &self.link {
                    link.traffic.add(op, admitted.len());
                }
                self.set_stage(at, Stage::OnDisk);
                self.out.push_back(Step::Submit(admitted));
            }
            Err(denied) if denied.fault == Fault::Busy => {
                if grant.export().was_released() {
                    self.out.push_back(Step::Notify);
                }
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

    pub(super) fn report_fault(
        &mut self,
        grant: &Grant,
        op: Op,
        lba: u64,
        blocks: u64,
        fault: Fault,
    ) {
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

    /// Tries again what had to wait while another request had the disk for itself.
    pub(super) fn contend(&mut self, at: u16) {
        let Some(slot) = self.slots.get(at) else { return };
        match std::mem::replace(&mut slot.stage, Stage::Waiting) {
            Stage::Contending(Request { op, lba, blocks, buffer, .. }) => {
                match (std::mem::take(&mut slot.work), buffer) {
                    (Work::Pair(pair), Some(buffer)) => self.write_pair(at, pair, buffer),
                    (work, buffer) => {
                        slot.work = work;
                        self.submit(at, op, lba, blocks, buffer, None);
                    }
                }
            }
            Stage::Waiting => self.drive(at, None),
            other => slot.stage = other,
        }
    }
}
