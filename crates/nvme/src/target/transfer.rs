//! The data of commands: gathered from capsules and H2CData PDUs, as far as there is memory for it. It knows which slot
//! the data is for, and not what the command does with it.

use export::Buffer;

use super::TRANSFER;
use super::queue::Queue;
use super::slots::{Filling, Stage};
use crate::command::DataPointer;
use crate::status::Status;
use crate::tcp::{Violation, pdu};
use crate::wire::command::Sqe;
use zerocopy::IntoBytes;

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

impl Queue {
    /// Data of an H2CData PDU is coming (NVMe/TCP 1.0 §3.6.2.8).
    pub(super) fn data(
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
    pub(super) fn filling(&mut self) -> Option<&mut Filling> {
        match &mut self.slots.get(self.incoming?)?.stage {
            Stage::Filling(filling) => Some(filling),
            _ => None,
        }
    }

    pub(super) fn payload(&mut self, data: &[u8]) {
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

    pub(super) fn payload_ended(&mut self, undamaged: bool) {
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

    pub(super) fn filled(&mut self, at: u16) -> Option<Buffer> {
        let slot = self.slots.get(at)?;
        match std::mem::replace(&mut slot.stage, Stage::Waiting) {
            Stage::Filling(filling) => filling.buffer,
            _ => None,
        }
    }

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

    pub(super) fn fill(&mut self, at: u16, buffer: Option<Buffer>, want: u32, solicited: bool) {
        if let Some(slot) = self.slots.get(at) {
            slot.stage =
                Stage::Filling(Filling { buffer, got: 0, want, damaged: false, solicited });
        }
    }

    /// Asks the host for all the data of a command at once, as soon as there is memory for it.
    pub(super) fn ask(&mut self, at: u16, want: u32) {
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
    pub(super) fn feed(&mut self) {
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

    pub(super) fn resume(&mut self) {
        let Some((sqe, data)) = self.stalled.take() else { return };
        if let Err(violation) = self.capsule(sqe, data) {
            let capsule =
                [&[pdu::kind::CAPSULE_CMD, 0, 72, 0, 0, 0, 0, 0], sqe.as_bytes()].concat();
            self.violated(violation, &capsule);
        }
    }
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
