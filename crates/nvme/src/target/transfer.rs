//! Data transfers of commands: in-capsule data and H2CData PDUs, bounded by available buffers.

use export::Buffer;

use super::MAX_TRANSFER;
use super::queue::Queue;
use super::slots::{Receiving, SlotState};
use crate::command::DataPointer;
use crate::status::Status;
use crate::tcp::{Violation, pdu};
use crate::wire::command::Sqe;
use zerocopy::IntoBytes;

/// How the length in the data pointer must relate to that of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LengthCheck {
    /// Equal: blocks.
    Exact,
    /// At least: data structures. Linux hosts send 4096 bytes with any Dataset Management.
    AtLeast,
}

/// What a slot that waits for a buffer does with it.
#[derive(Debug, Clone, Copy)]
pub(super) enum BufferWait {
    /// Requests that many bytes by R2T.
    R2t(u32),
    /// Submits a read to the disk.
    Read,
}

impl Queue {
    /// Handles the header of an H2CData PDU (NVMe/TCP 1.0 §3.6.2.8).
    pub(super) fn h2c_data(
        &mut self,
        cccid: u16,
        ttag: u16,
        offset: u32,
        len: u32,
        last: bool,
    ) -> Result<(), Violation> {
        let slot = self.slots.get(ttag).ok_or(Violation::DataTagUnknown)?;
        let (got, want) = match &slot.state {
            SlotState::Receiving(receiving) if receiving.solicited => {
                (receiving.got, receiving.want)
            }
            SlotState::Discarding { got, want } => (*got, *want),
            _ => return Err(Violation::DataUnsolicited),
        };
        if slot.cid != cccid {
            return Err(Violation::DataForOtherCommand);
        }
        check_data(offset, len, last, got, want)?;
        self.incoming = Some(ttag);
        if let SlotState::Discarding { got, .. } = &mut slot.state {
            *got += len;
            self.incoming = None;
            if last {
                self.slots.release(ttag);
            }
        }
        Ok(())
    }

    /// Returns the transfer that the current payload belongs to.
    pub(super) fn receiving(&mut self) -> Option<&mut Receiving> {
        match &mut self.slots.get(self.incoming?)?.state {
            SlotState::Receiving(receiving) => Some(receiving),
            _ => None,
        }
    }

    pub(super) fn payload_received(&mut self, data: &[u8]) {
        let Some(Receiving { buffer: Some(buffer), got, .. }) = self.receiving() else { return };
        let start = *got as usize;
        if let Some(target) = buffer.bytes_mut().get_mut(start..start + data.len()) {
            target.copy_from_slice(data);
        }
        #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
        {
            *got += data.len() as u32;
        }
    }

    pub(super) fn payload_end(&mut self, digest_ok: bool) {
        let tag = self.incoming;
        let Some(receiving) = self.receiving() else { return };
        receiving.digest_error |= !digest_ok;
        let (whole, digest_error) = (receiving.got == receiving.want, receiving.digest_error);
        self.incoming = None;
        if let (true, Some(tag)) = (whole, tag) {
            let buffer = self.take_received(tag);
            match buffer {
                Some(buffer) if !digest_error => self.data_received(tag, buffer),
                _ => self.fail_command(tag, Status::TRANSIENT_TRANSPORT_ERROR),
            }
        }
    }

    pub(super) fn take_received(&mut self, tag: u16) -> Option<Buffer> {
        let slot = self.slots.get(tag)?;
        match std::mem::replace(&mut slot.state, SlotState::Pending) {
            SlotState::Receiving(receiving) => receiving.buffer,
            _ => None,
        }
    }

    /// Receives `len` bytes of data for a command, from its capsule or by R2T.
    /// [`Queue::data_received`] is called when it is complete.
    pub(super) fn receive_data(
        &mut self,
        tag: u16,
        sqe: &Sqe,
        len: u64,
        size: LengthCheck,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        let want = sqe.sgl1.length.get();
        let (has, fits) = (u64::from(want), u64::from(want) <= MAX_TRANSFER);
        if has < len || (size == LengthCheck::Exact && has != len) {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        if want == 0 || !fits {
            return Err(Status::INVALID_FIELD.dnr());
        }
        match (DataPointer::parse(&sqe.sgl1)?, capsule) {
            (DataPointer::InCapsule { .. }, Some(buffer)) if buffer.len() as u64 == has => {
                self.begin_receive(tag, Some(buffer), want, false);
                self.incoming = Some(tag);
            }
            (DataPointer::InCapsule { .. }, _) => return Err(Status::DATA_SGL_LENGTH_INVALID.dnr()),
            (DataPointer::Transport { .. }, None) => self.send_r2t(tag, want),
            (DataPointer::Transport { .. }, Some(_)) => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(())
    }

    /// Checks the data pointer of a command that transfers `len` bytes to the host.
    pub(super) fn check_to_host(
        sqe: &Sqe,
        len: u64,
        size: LengthCheck,
        capsule: Option<&Buffer>,
    ) -> Result<(), Status> {
        let DataPointer::Transport { length } = DataPointer::parse(&sqe.sgl1)? else {
            return Err(Status::SGL_TYPE_INVALID.dnr());
        };
        if capsule.is_some() {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let has = u64::from(length);
        if has < len || (size == LengthCheck::Exact && has != len) {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        Ok(())
    }

    pub(super) fn begin_receive(
        &mut self,
        tag: u16,
        buffer: Option<Buffer>,
        want: u32,
        solicited: bool,
    ) {
        if let Some(slot) = self.slots.get(tag) {
            slot.state = SlotState::Receiving(Receiving {
                buffer,
                got: 0,
                want,
                digest_error: false,
                solicited,
            });
        }
    }

    /// Requests all data of a command by one R2T, as soon as a buffer is available.
    pub(super) fn send_r2t(&mut self, tag: u16, want: u32) {
        match self.allocate(tag, want as usize) {
            Some(buffer) => {
                self.begin_receive(tag, Some(buffer), want, true);
                let cid = self.slots.get(tag).map_or(0, |slot| slot.cid);
                let r2t = self.framer.r2t(cid, tag, 0, want);
                self.send(r2t);
            }
            None => self.wait_for_buffer(tag, BufferWait::R2t(want)),
        }
    }

    /// Allocates a transfer buffer. Returns `None` while other slots wait for one, to prevent their
    /// starvation.
    pub(super) fn allocate(&mut self, tag: u16, len: usize) -> Option<Buffer> {
        let is_next = self.awaiting_buffer.front().is_none_or(|&first| first == tag);
        if is_next { self.transfer_buffers.take(len) } else { None }
    }

    pub(super) fn wait_for_buffer(&mut self, tag: u16, wait: BufferWait) {
        if let Some(slot) = self.slots.get(tag) {
            slot.state = SlotState::AwaitingBuffer(wait);
        }
        if self.awaiting_buffer.front() != Some(&tag) {
            self.awaiting_buffer.push_back(tag);
        }
    }

    /// Retries the allocations that slots wait for.
    pub(super) fn retry_allocations(&mut self) {
        for _ in 0..self.awaiting_second_phase.len() {
            if let Some(tag) = self.awaiting_second_phase.pop_front() {
                self.drive(tag, None);
            }
        }
        while let Some(&tag) = self.awaiting_buffer.front() {
            let Some(SlotState::AwaitingBuffer(wait)) = self.slots.get(tag).map(|slot| &slot.state)
            else {
                self.awaiting_buffer.pop_front();
                continue;
            };
            match *wait {
                BufferWait::R2t(want) => self.send_r2t(tag, want),
                BufferWait::Read => self.drive(tag, None),
            }
            if matches!(self.slots.get(tag), Some(slot) if matches!(slot.state, SlotState::AwaitingBuffer(_)))
            {
                return;
            }
            self.awaiting_buffer.pop_front();
        }
    }

    pub(super) fn resume_stalled(&mut self) {
        let Some((sqe, data)) = self.stalled.take() else { return };
        if let Err(violation) = self.capsule(sqe, data) {
            let capsule =
                [&[pdu::kind::CAPSULE_CMD, 0, 72, 0, 0, 0, 0, 0], sqe.as_bytes()].concat();
            self.violated(violation, &capsule);
        }
    }
}

/// Checks H2CData against its R2T: in order, within the requested length, LAST_PDU set on the last
/// one (NVMe/TCP 1.0 §3.3.2.1, §3.6.2.8).
fn check_data(offset: u32, len: u32, last: bool, got: u32, want: u32) -> Result<(), Violation> {
    if offset != got {
        return Err(Violation::DataOffsetNotExpected);
    }
    if u64::from(len) > MAX_TRANSFER {
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
