//! Output of a queue: disk requests, which pass the gate, and responses to the host.

use export::{Body, Buffer, Event, Exclusive, Fault, Grant, Op, Request, Step, Ticket};

use super::binding::Binding;
use super::controller::ControllerType;
use super::io::{Work, direction};
use super::queue::Queue;
use super::slots::SlotState;
use crate::status::Status;
use crate::tcp::pdu;
use crate::wire::completion::Cqe;

impl Queue {
    pub(super) fn send(&mut self, segment: export::Segment) {
        self.queued_bytes += segment.len();
        self.steps.push_back(Step::Send(segment));
    }

    /// Completes a command with `status` and result zero.
    pub(super) fn finish(&mut self, tag: u16, status: Status) {
        self.finish_with(tag, status, 0);
    }

    /// Completes a command with a result in dwords 0 and 1.
    pub(super) fn finish_with(&mut self, tag: u16, status: Status, result: u64) {
        let Some(slot) = self.slots.get(tag) else { return };
        let (cid, lba) = (slot.cid, slot.work.lba());
        self.slots.release(tag);
        if !status.is_success() {
            self.log_error(cid, status, lba);
        }
        self.respond(Cqe::new(cid, status).with_result(result));
    }

    pub(super) fn log_error(&mut self, cid: u16, status: Status, lba: u64) {
        let Some(binding) = &self.binding else { return };
        let nsid = u32::from(binding.controller.kind == ControllerType::Io && binding.qid != 0);
        binding.controller.log_error(binding.qid, cid, status.to_field(), nsid, lba);
    }

    /// Completes a command that returns data. If SQ flow control is disabled, the SUCCESS flag of
    /// the last C2HData PDU replaces the response capsule (NVMe/TCP 1.0 §3.3.2.2).
    pub(super) fn finish_with_data(&mut self, tag: u16, body: Body, len: usize) {
        let Some(cid) = self.slots.get(tag).map(|slot| slot.cid) else { return };
        let elide_response = self.binding.as_ref().is_some_and(|binding| binding.head.is_none());
        let flags = pdu::flag::LAST_PDU | if elide_response { pdu::flag::SUCCESS } else { 0 };
        let (steps, queued_bytes) = (&mut self.steps, &mut self.queued_bytes);
        let mut send = |segment: export::Segment| {
            *queued_bytes += segment.len();
            steps.push_back(Step::Send(segment));
        };
        self.framer.data(pdu::kind::C2H_DATA, flags, cid, 0, body, 0, len, &mut send);
        self.slots.release(tag);
        if !elide_response {
            self.respond(Cqe::new(cid, Status::SUCCESS));
        }
    }

    /// Sends the response to Connect, the first response of the new queue.
    pub(super) fn respond_connect(&mut self, cid: u16, dw0: u32, flow_control: bool) {
        let cqe = Cqe::new(cid, Status::SUCCESS).with_dw0(dw0);
        // Without flow control SQHD is FFFFh here (NVMe Base 2.0 §6.3).
        match flow_control {
            true => self.respond(cqe),
            false => {
                let response = self.framer.response(cqe.with_sqhd(u16::MAX));
                self.send(response);
            }
        }
    }

    pub(super) fn respond(&mut self, cqe: Cqe) {
        let head = self.binding.as_ref().and_then(|binding| binding.head);
        let response = self.framer.response(cqe.with_sqhd(head.unwrap_or(0)));
        self.send(response);
    }

    pub(super) fn advance_head(&mut self) {
        if let Some(Binding { head: Some(head), entries, .. }) = &mut self.binding {
            *head = head.checked_add(1).filter(|next| next < entries).unwrap_or(0);
        }
    }

    /// Submits a request to the disk after [`Grant::admit`]. Completes the command if the request
    /// is refused; queues it if another request holds exclusive access.
    pub(super) fn submit(
        &mut self,
        tag: u16,
        op: Op,
        lba: u64,
        blocks: u64,
        buffer: Option<Buffer>,
        exclusive: Option<&Exclusive>,
    ) {
        let request = Request { op, lba, blocks, buffer, ticket: Ticket::new(tag.into()) };
        // Data of a write may arrive after the reset that deleted its queue. The write must not
        // overwrite newer data.
        if self.binding.as_ref().is_some_and(|binding| !binding.is_usable()) {
            return self.finish(tag, Status::ABORTED_SQ_DELETION);
        }
        let Some(grant) = self.binding.as_ref().and_then(|binding| binding.grant.as_ref()) else {
            return self.finish(tag, Status::INVALID_NAMESPACE.dnr());
        };
        let admitted = match exclusive {
            Some(exclusive) => grant.admit_exclusive(request, exclusive),
            None => grant.admit(request),
        };
        match admitted {
            Ok(admitted) => {
                if let Some(binding) = &self.binding {
                    binding.counters.add(op, admitted.len());
                }
                self.set_slot_state(tag, SlotState::Submitted);
                self.steps.push_back(Step::Submit(admitted));
            }
            Err(denied) if denied.fault == Fault::Busy => {
                if grant.export().was_released() {
                    self.steps.push_back(Step::Notify);
                }
                self.set_slot_state(tag, SlotState::AwaitingExclusive(denied.request));
                self.awaiting_exclusive.push_back(tag);
            }
            Err(denied) => self.fail_with_fault(tag, denied.fault, op),
        }
    }

    /// Completes a command whose disk request failed.
    pub(super) fn fail_with_fault(&mut self, tag: u16, fault: Fault, op: Op) {
        self.finish(tag, Status::from_fault(fault, direction(op)));
    }

    pub(super) fn set_slot_state(&mut self, tag: u16, state: SlotState) {
        if let Some(slot) = self.slots.get(tag) {
            slot.state = state;
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
        self.steps.push_back(Step::Report(Event::Fault {
            export,
            op: op.name(),
            offset,
            len,
            fault,
        }));
    }

    /// Reports a disk request that failed.
    pub(super) fn report_io_fault(&mut self, op: Op, lba: u64, blocks: u64, fault: Fault) {
        if let Some(grant) = self.binding.as_ref().and_then(|binding| binding.grant.clone()) {
            self.report_fault(&grant, op, lba, blocks, fault);
        }
    }

    /// Retries a request that waited for another one's exclusive access to end.
    pub(super) fn retry_exclusive(&mut self, tag: u16) {
        let Some(slot) = self.slots.get(tag) else { return };
        match std::mem::replace(&mut slot.state, SlotState::Pending) {
            SlotState::AwaitingExclusive(Request { op, lba, blocks, buffer, .. }) => {
                match (std::mem::take(&mut slot.work), buffer) {
                    (Work::FusedPair(pair), Some(buffer)) => self.write_pair(tag, pair, buffer),
                    (work, buffer) => {
                        slot.work = work;
                        self.submit(tag, op, lba, blocks, buffer, None);
                    }
                }
            }
            SlotState::Pending => self.drive(tag, None),
            other => slot.state = other,
        }
    }
}
