//! Data transfers of commands from the host, and the buffers that bound all transfers.

use std::collections::VecDeque;

use export::{Account, Buffer, DirectRecv, Purpose};

use super::receiving::{Receiving, check_pdu};
use super::slots::{BufferWait, SlotState, Slots};
use crate::tcp::Violation;

/// Slots, data transfers and buffers of one connection.
#[derive(Debug)]
pub(super) struct Transfers {
    slots: Slots,
    /// Slot that receives the payload of the current PDU, if any.
    incoming: Option<u16>,
    /// Buffers for in-capsule data. A separate account: a command that waits for one blocks the
    /// receive stream, so it must not depend on data further back in the stream.
    capsule_buffers: Account,
    /// Buffers for all other transfers.
    transfer_buffers: Account,
    /// Buffers for commands that already hold one. A separate account prevents a deadlock between
    /// such commands.
    second_phase_buffers: Account,
    /// Slots that wait for a transfer buffer, in order.
    awaiting_buffer: VecDeque<u16>,
    /// Slots that wait for a second-phase buffer.
    awaiting_second_phase: VecDeque<u16>,
}

/// A command whose data was received.
#[derive(Debug)]
pub(super) struct Received {
    /// Its slot.
    pub(super) tag: u16,
    /// The data, or `None` if a data digest was wrong.
    pub(super) data: Option<Buffer>,
}

impl Transfers {
    /// Creates the transfers of a connection that is not a queue yet: it has one slot. Buffers come
    /// from `account` and siblings of it.
    pub(super) fn new(account: Account) -> Self {
        Self {
            slots: Slots::new(1),
            incoming: None,
            capsule_buffers: account.sibling(Purpose::Stream),
            second_phase_buffers: account.sibling(Purpose::SecondPhase),
            transfer_buffers: account,
            awaiting_buffer: VecDeque::new(),
            awaiting_second_phase: VecDeque::new(),
        }
    }

    /// Replaces the slots by those of a queue with `entries` entries.
    pub(super) fn resize(&mut self, entries: u16) {
        self.slots = Slots::new(entries);
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(super) fn slots_mut(&mut self) -> &mut Slots {
        &mut self.slots
    }

    /// Frees every slot whose request was not submitted.
    pub(super) fn clear(&mut self) {
        self.awaiting_buffer.clear();
        self.awaiting_second_phase.clear();
        self.slots.clear();
    }

    // ---- data from the host

    /// Returns a buffer for in-capsule data.
    pub(super) fn capsule_buffer(&self, len: u32) -> Option<Buffer> {
        self.capsule_buffers.take(len as usize)
    }

    /// Receives the in-capsule data of a command, which follows in the stream.
    pub(super) fn receive_in_capsule(&mut self, tag: u16, buffer: Buffer, want: u32) {
        let receiving = Receiving::in_capsule(buffer, want);
        self.slots.set_state(tag, SlotState::Receiving(receiving));
        self.incoming = Some(tag);
    }

    /// Receives data that is requested by R2T.
    pub(super) fn receive_solicited(&mut self, tag: u16, buffer: Buffer, want: u32) {
        let receiving = Receiving::solicited(buffer, want);
        self.slots.set_state(tag, SlotState::Receiving(receiving));
    }

    /// Handles the header of an H2CData PDU (NVMe/TCP 1.0 §3.6.2.8).
    pub(super) fn h2c_data(
        &mut self,
        cccid: u16,
        ttag: u16,
        offset: u32,
        len: u32,
        last: bool,
    ) -> Result<(), Violation> {
        let cid = self.slots.cid(ttag).ok_or(Violation::DataTagUnknown)?;
        match self.slots.state_mut(ttag) {
            Some(SlotState::Receiving(receiving)) if receiving.is_solicited() => {
                check_command(cid, cccid)?;
                receiving.begin_pdu(offset, len, last)?;
                self.incoming = Some(ttag);
            }
            Some(SlotState::Discarding { got, want }) => {
                check_command(cid, cccid)?;
                check_pdu(offset, len, last, *got, *want)?;
                *got += len;
                self.incoming = None;
                if last {
                    self.slots.release(ttag);
                }
            }
            _ => return Err(Violation::DataUnsolicited),
        }
        Ok(())
    }

    /// Returns the transfer that the current payload belongs to.
    fn receiving(&mut self) -> Option<&mut Receiving> {
        match self.slots.state_mut(self.incoming?)? {
            SlotState::Receiving(receiving) => Some(receiving),
            _ => None,
        }
    }

    /// Stores payload of the current PDU.
    pub(super) fn payload(&mut self, data: &[u8]) {
        if let Some(receiving) = self.receiving() {
            receiving.append(data);
        }
    }

    /// Ends the payload of the current PDU. Returns the command if its data is complete.
    pub(super) fn payload_end(&mut self, digest_ok: bool) -> Option<Received> {
        let is_complete = self.receiving()?.end_pdu(digest_ok);
        let tag = self.incoming.take()?;
        if !is_complete {
            return None;
        }
        let state = std::mem::replace(self.slots.state_mut(tag)?, SlotState::Pending);
        let SlotState::Receiving(receiving) = state else { return None };
        Some(Received { tag, data: receiving.into_data() })
    }

    /// Lends the driver memory for the `left` next bytes of the stream, which are payload.
    pub(super) fn lend(&mut self, left: u32) -> Option<DirectRecv> {
        let token = self.incoming?.into();
        let (buffer, start) = self.receiving()?.lend()?;
        Some(DirectRecv { buffer, start, end: start + left as usize, token })
    }

    /// Takes the memory back, with `got` bytes received into it.
    pub(super) fn take_back(&mut self, buffer: Buffer, got: usize) {
        if let Some(receiving) = self.receiving() {
            receiving.take_back(buffer, got);
        }
    }

    /// Ends the transfer of a command that completes early. If the host will send more data, keeps
    /// the slot until then, to discard the data. Returns whether it does.
    pub(super) fn cancel(&mut self, tag: u16) -> bool {
        self.awaiting_buffer.retain(|&other| other != tag);
        self.awaiting_second_phase.retain(|&other| other != tag);
        self.incoming.take_if(|incoming| *incoming == tag);
        let outstanding = match self.slots.state(tag) {
            Some(SlotState::Receiving(receiving)) => receiving.outstanding(),
            _ => None,
        };
        let Some((got, want)) = outstanding else { return false };
        self.slots.set_state(tag, SlotState::Discarding { got, want });
        self.slots.work_mut(tag).map(std::mem::take);
        self.slots.release_cid(tag);
        true
    }

    // ---- buffers

    /// Allocates a transfer buffer. Returns `None` while other slots wait for one, to prevent their
    /// starvation.
    pub(super) fn allocate(&self, tag: u16, len: usize) -> Option<Buffer> {
        let is_next = self.awaiting_buffer.front().is_none_or(|&first| first == tag);
        if is_next { self.transfer_buffers.take(len) } else { None }
    }

    /// Makes a slot wait for a transfer buffer.
    pub(super) fn wait_for_buffer(&mut self, tag: u16, wait: BufferWait) {
        self.slots.set_state(tag, SlotState::AwaitingBuffer(wait));
        if self.awaiting_buffer.front() != Some(&tag) {
            self.awaiting_buffer.push_back(tag);
        }
    }

    /// Returns the slot that is first to get a transfer buffer, and what it does with it.
    pub(super) fn first_waiting(&mut self) -> Option<(u16, BufferWait)> {
        while let Some(&tag) = self.awaiting_buffer.front() {
            match self.slots.state(tag) {
                Some(SlotState::AwaitingBuffer(wait)) => return Some((tag, *wait)),
                _ => self.awaiting_buffer.pop_front(),
            };
        }
        None
    }

    /// Allocates a buffer for a command that holds one already. If there is none, the command is to
    /// be driven again later.
    pub(super) fn allocate_second_phase(&mut self, tag: u16, len: usize) -> Option<Buffer> {
        let buffer = self.second_phase_buffers.take(len);
        if buffer.is_none() {
            self.awaiting_second_phase.push_back(tag);
        }
        buffer
    }

    /// Returns how many slots wait for a second-phase buffer.
    pub(super) fn awaiting_second_phase(&self) -> usize {
        self.awaiting_second_phase.len()
    }

    /// Takes the next slot that waits for a second-phase buffer.
    pub(super) fn next_awaiting_second_phase(&mut self) -> Option<u16> {
        self.awaiting_second_phase.pop_front()
    }
}

/// Checks that H2CData names the command of its transfer tag.
fn check_command(cid: u16, cccid: u16) -> Result<(), Violation> {
    if cid == cccid { Ok(()) } else { Err(Violation::DataForOtherCommand) }
}
