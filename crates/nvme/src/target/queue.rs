//! The commands in flight of a connection, what is sent for them, and their access to the disk.

use std::collections::VecDeque;
use std::sync::Arc;

use export::{
    Account, Body, Buffer, Event, Exclusive, Export, Fault, Grant, KeyId, Op, Peer, Reason,
    Request, ReservationCommand, Settling, Ticket,
};

use super::binding::Binding;
use super::capsule::{Capsule, LengthCheck};
use super::controller::Controller;
use super::outbox::Outbox;
use super::slots::{BufferWait, SlotState, Slots};
use super::transfers::Transfers;
use super::work::Work;
use super::{MAX_TRANSFER, fault_status};
use crate::command::DataPointer;
use crate::status::Status;
use crate::tcp::pdu;
use crate::wire::completion::Cqe;

/// What all commands of a connection use.
#[derive(Debug)]
pub(super) struct Queue {
    transfers: Transfers,
    out: Outbox,
    /// Set by Connect.
    binding: Option<Binding>,
    /// Slots that wait for another request's exclusive access to the disk to end, or for a
    /// reservation command to settle.
    awaiting_exclusive: VecDeque<u16>,
}

impl Queue {
    pub(super) fn new(account: Account) -> Self {
        Self {
            transfers: Transfers::new(account),
            out: Outbox::default(),
            binding: None,
            awaiting_exclusive: VecDeque::new(),
        }
    }

    /// Binds the connection to a queue of a controller.
    pub(super) fn bind(&mut self, binding: Binding) {
        self.transfers.resize(binding.entries());
        self.binding = Some(binding);
    }

    /// Drops all commands that were not submitted to the disk, and leaves the controller, or ends
    /// it if this is the Admin queue. Writes in flight become orphans.
    pub(super) fn leave(&mut self, peer: &Peer, reason: Reason) {
        self.awaiting_exclusive.clear();
        self.transfers.clear();
        if let Some(binding) = &self.binding {
            binding.leave();
        }
        self.report_attached(peer, None, None, reason);
        self.binding = None;
        self.out.notify();
    }

    pub(super) fn out(&mut self) -> &mut Outbox {
        &mut self.out
    }

    /// Returns whether so much is to be sent that no command may be received.
    pub(super) fn is_full(&self) -> bool {
        self.out.is_full()
    }

    pub(super) fn transfers(&mut self) -> &mut Transfers {
        &mut self.transfers
    }

    pub(super) fn slots(&self) -> &Slots {
        self.transfers.slots()
    }

    pub(super) fn slots_mut(&mut self) -> &mut Slots {
        self.transfers.slots_mut()
    }

    pub(super) fn binding(&self) -> Option<&Binding> {
        self.binding.as_ref()
    }

    pub(super) fn binding_mut(&mut self) -> Option<&mut Binding> {
        self.binding.as_mut()
    }

    /// Returns the controller of the queue.
    pub(super) fn controller(&self) -> Result<&Arc<Controller>, Status> {
        let binding = self.binding.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        Ok(binding.controller())
    }

    /// Returns the access to the disk.
    pub(super) fn grant(&self) -> Option<&Grant> {
        self.binding.as_ref()?.grant()
    }

    /// Returns whether the disk can be reserved.
    pub(super) fn supports_reservations(&self) -> bool {
        self.grant().is_none_or(|grant| grant.export().supports_reservations())
    }

    /// Returns the binary logarithm of the block size.
    pub(super) fn shift(&self) -> u8 {
        self.grant().map_or(9, |grant| grant.export().geometry.shift())
    }

    /// Sets the operation of a slot.
    pub(super) fn set_work(&mut self, tag: u16, work: Work) {
        if let Some(current) = self.slots_mut().work_mut(tag) {
            *current = work;
        }
    }

    /// Takes the operation of a slot, to be set again unless the command completes.
    pub(super) fn take_work(&mut self, tag: u16) -> Work {
        self.slots_mut().work_mut(tag).map(std::mem::take).unwrap_or_default()
    }

    // ---- responses

    /// Completes a command with `status` and result zero.
    pub(super) fn finish(&mut self, tag: u16, status: Status) {
        self.finish_with(tag, status, 0);
    }

    /// Completes a command with a result in dwords 0 and 1.
    pub(super) fn finish_with(&mut self, tag: u16, status: Status, result: u64) {
        let Some((cid, work)) = self.slots_mut().release(tag) else { return };
        if let Some(binding) = self.binding.as_ref().filter(|_| !status.is_success()) {
            binding.log_error(cid, status, work.lba());
        }
        drop(work);
        self.respond(Cqe::new(cid, status).with_result(result));
    }

    /// Completes a command that returns data. If SQ flow control is disabled, the SUCCESS flag of
    /// the last C2HData PDU replaces the response capsule (NVMe/TCP 1.0 §3.3.2.2).
    pub(super) fn finish_with_data(&mut self, tag: u16, body: Body, len: usize) {
        let Some((cid, _)) = self.slots_mut().release(tag) else { return };
        let elide_response = self.binding.as_ref().is_some_and(|binding| binding.head().is_none());
        let flags = pdu::flag::LAST_PDU | if elide_response { pdu::flag::SUCCESS } else { 0 };
        self.out.data(flags, cid, body, len);
        if !elide_response {
            self.respond(Cqe::new(cid, Status::SUCCESS));
        }
    }

    /// Sends the response to Connect, the first response of the new queue.
    pub(super) fn respond_connect(&mut self, cid: u16, dw0: u32) {
        let cqe = Cqe::new(cid, Status::SUCCESS).with_dw0(dw0);
        // Without flow control SQHD is FFFFh here (NVMe Base 2.0 §6.3).
        let head = self.binding.as_ref().and_then(Binding::head).unwrap_or(u16::MAX);
        self.out.response(cqe.with_sqhd(head));
    }

    pub(super) fn respond(&mut self, cqe: Cqe) {
        let head = self.binding.as_ref().and_then(Binding::head).unwrap_or(0);
        self.out.response(cqe.with_sqhd(head));
    }

    // ---- data from the host

    /// Receives `len` bytes of data for a command, from its capsule or by R2T.
    pub(super) fn receive_data(
        &mut self,
        capsule: Capsule<'_>,
        len: u64,
        check: LengthCheck,
    ) -> Result<(), Status> {
        let (tag, sgl) = (capsule.tag(), &capsule.sqe().sgl1);
        let want = sgl.length.get();
        let has = u64::from(want);
        check.apply(has, len)?;
        if has == 0 || has > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD.dnr());
        }
        match (DataPointer::parse(sgl)?, capsule.into_buffer()) {
            (DataPointer::InCapsule { .. }, Some(buffer)) if buffer.len() as u64 == has => {
                self.transfers.receive_in_capsule(tag, buffer, want);
            }
            (DataPointer::InCapsule { .. }, _) => return Err(Status::DATA_SGL_LENGTH_INVALID.dnr()),
            (DataPointer::Transport { .. }, None) => self.send_r2t(tag, want),
            (DataPointer::Transport { .. }, Some(_)) => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(())
    }

    /// Requests all data of a command by one R2T, as soon as a buffer is available.
    pub(super) fn send_r2t(&mut self, tag: u16, want: u32) {
        match self.transfers.allocate(tag, want as usize) {
            Some(buffer) => {
                self.transfers.receive_solicited(tag, buffer, want);
                let cid = self.slots().cid(tag).unwrap_or(0);
                self.out.r2t(cid, tag, want);
            }
            None => self.transfers.wait_for_buffer(tag, BufferWait::R2t(want)),
        }
    }

    // ---- disk requests

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
        let Some((binding, grant)) =
            self.binding.as_ref().and_then(|binding| Some((binding, binding.grant()?)))
        else {
            return self.finish(tag, Status::INVALID_NAMESPACE.dnr());
        };
        let admitted = match exclusive {
            Some(exclusive) => grant.admit_exclusive(request, exclusive),
            None => grant.admit(request),
        };
        match admitted {
            Ok(admitted) => {
                binding.count(op, admitted.len());
                // The data of a Read is only sent, unless its digest is computed.
                let is_read = matches!(self.transfers.slots().work(tag), Some(Work::Read { .. }));
                let admitted = admitted.allow_in_place(is_read && !self.out.has_data_digest());
                self.transfers.slots_mut().set_state(tag, SlotState::Submitted);
                self.out.submit(admitted);
            }
            Err(denied) if denied.fault == Fault::Busy => {
                self.await_exclusive(tag, Some(denied.request));
            }
            Err(denied) => self.fail_unreported(tag, op, denied.fault),
        }
    }

    /// Submits a flush of the target itself. Returns whether there is a disk that admits it.
    pub(super) fn submit_own_flush(&mut self, tag: u16) -> bool {
        let ticket = Ticket::new(tag.into());
        let Some(Ok(admitted)) = self.grant().map(|grant| grant.admit_own_flush(ticket)) else {
            return false;
        };
        self.transfers.slots_mut().set_state(tag, SlotState::Submitted);
        self.out.submit(admitted);
        true
    }

    /// Executes a reservation command. Completes it once it has settled.
    pub(super) fn reserve(&mut self, tag: u16, command: ReservationCommand, persist: Option<bool>) {
        // Keys may arrive after the reset that deleted the queue.
        if self.binding.as_ref().is_some_and(|binding| !binding.is_usable()) {
            return self.finish(tag, Status::ABORTED_SQ_DELETION);
        }
        let Some(grant) = self.grant() else {
            return self.finish(tag, Status::INVALID_NAMESPACE.dnr());
        };
        match grant.reserve(command, persist) {
            Ok(settling) => {
                self.out.notify();
                self.settle(tag, settling);
            }
            Err(error) => self.finish(tag, Status::from_reservation_error(error)),
        }
    }

    /// Completes a reservation command, or makes it wait until it has settled.
    pub(super) fn settle(&mut self, tag: u16, settling: Settling) {
        match settling.result() {
            Some(Ok(())) => self.finish(tag, Status::SUCCESS),
            Some(Err(_)) => self.finish(tag, Status::INTERNAL_ERROR),
            None => {
                self.set_work(tag, Work::Settling(Box::new(settling)));
                self.slots_mut().set_state(tag, SlotState::Pending);
                self.await_exclusive(tag, None);
            }
        }
    }

    /// Makes a command wait for another one's exclusive access to end: with a request that was
    /// refused for that reason, or before the command has one.
    pub(super) fn await_exclusive(&mut self, tag: u16, request: Option<Request>) {
        if let Some(request) = request {
            self.slots_mut().set_state(tag, SlotState::AwaitingExclusive(request));
        }
        self.awaiting_exclusive.push_back(tag);
    }

    /// Returns how many slots wait for exclusive access to end.
    pub(super) fn awaiting_exclusive(&self) -> usize {
        self.awaiting_exclusive.len()
    }

    /// Takes the next slot that waits for exclusive access to end.
    pub(super) fn next_awaiting_exclusive(&mut self) -> Option<u16> {
        self.awaiting_exclusive.pop_front()
    }

    /// Completes a command whose disk request failed, and reports that.
    pub(super) fn fail_io(
        &mut self,
        tag: u16,
        op: Op,
        lba: u64,
        blocks: u32,
        fault: Option<Fault>,
    ) {
        let fault = fault.unwrap_or(Fault::Io);
        self.report_io_fault(op, lba, blocks.into(), fault);
        self.fail_unreported(tag, op, fault);
    }

    /// Completes a command whose disk request was refused.
    pub(super) fn fail_unreported(&mut self, tag: u16, op: Op, fault: Fault) {
        self.finish(tag, fault_status(fault, op));
    }

    // ---- commands that end early

    /// Aborts a command that has not been submitted to the disk (NVMe Base 2.0 §5.1). Returns
    /// whether it was aborted.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let Some(tag) = self.slots().find(cid) else { return false };
        let submitted = matches!(self.slots().state(tag), Some(SlotState::Submitted));
        let abortable = !submitted && self.slots().work(tag).is_some_and(Work::is_abortable);
        if abortable {
            self.complete_early(tag, Status::ABORT_REQUESTED);
        }
        abortable
    }

    /// Completes a command that has not been submitted to the disk with `status`. If an R2T is
    /// outstanding, the slot is kept until the host has sent the data, which is discarded.
    pub(super) fn complete_early(&mut self, tag: u16, status: Status) {
        if matches!(self.slots().state(tag), None | Some(SlotState::Submitted)) {
            return;
        }
        self.awaiting_exclusive.retain(|&other| other != tag);
        let cid = self.slots().cid(tag);
        match cid.filter(|_| self.transfers.cancel(tag)) {
            Some(cid) => self.respond(Cqe::new(cid, status)),
            None => self.finish(tag, status),
        }
    }

    /// Handles the completion of a disk request after [`Queue::leave`].
    pub(super) fn completed_after_leave(&mut self, tag: u16) {
        let held_exclusive = self.slots().work(tag).is_some_and(Work::holds_exclusive);
        self.slots_mut().release(tag);
        if held_exclusive || self.slots().none_submitted() {
            self.out.notify();
        }
    }

    // ---- events

    /// Reports a disk request that failed.
    pub(super) fn report_io_fault(&mut self, op: Op, lba: u64, blocks: u64, fault: Fault) {
        let Some(export) = self.grant().map(|grant| grant.export().clone()) else { return };
        let shift = export.geometry.shift();
        let (op, offset, len) = (op.name(), lba << shift, blocks << shift);
        self.out.report(Event::Fault { export, op, offset, len, fault });
    }

    /// Reports that the host of this queue was denied access.
    pub(super) fn report_refused(&mut self, peer: &Peer, reason: &'static str) {
        let Ok(controller) = self.controller() else { return };
        let (host, wanted) =
            (controller.host().nqn().to_owned(), controller.subsystem().to_owned());
        self.out.report(Event::Refused { peer: peer.clone(), host, wanted, reason });
    }

    /// Reports the export that the host, with the key it has `proven`, has attached from now on,
    /// and the detach of the one before.
    pub(super) fn report_attached(
        &mut self,
        peer: &Peer,
        proven: Option<KeyId>,
        now: Option<Arc<Export>>,
        reason: Reason,
    ) {
        let Some(binding) = &mut self.binding else { return };
        if binding.attached().is_none() && now.is_none() {
            return;
        }
        let (peer, host) = (peer.clone(), binding.controller().host().nqn().to_owned());
        if let Some((export, bytes)) = binding.attach(now.clone()) {
            let (peer, host, read, written) =
                (peer.clone(), host.clone(), bytes.read(), bytes.written());
            self.out.report(Event::Detached { export, peer, host, reason, read, written });
        }
        if let Some(export) = now {
            let no_room = binding.grant().is_some_and(Grant::has_no_room);
            self.out.report(Event::Attached { export, peer, host, proven, no_room });
        }
    }
}
