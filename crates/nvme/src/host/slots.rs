//! The commands in flight of a queue, by command identifier.

use std::rc::Rc;

use export::Buffer;

use crate::status::Status;
use crate::tcp::Violation;

/// A command in flight.
#[derive(Debug)]
pub(super) struct Command {
    tag: u32,
    data: Data,
}

impl Command {
    pub(super) fn new(tag: u32, data: Data) -> Self {
        Self { tag, data }
    }

    pub(super) fn data(&mut self) -> &mut Data {
        &mut self.data
    }

    /// Returns the tag of the user, and the transfer.
    pub(super) fn into_parts(self) -> (u32, Data) {
        (self.tag, self.data)
    }
}

/// Data transfer of a command.
#[derive(Debug)]
pub(super) enum Data {
    /// No data, or in-capsule data.
    None,
    /// Connect.
    Connect,
    /// Authentication Send.
    Auth,
    /// Receives data from the controller.
    Receiving(Receiving),
    /// Sends data by R2T; the first `asked` bytes were requested.
    AwaitingR2t { buffer: Rc<Buffer>, requested: u32 },
}

/// Data transfer from the controller.
#[derive(Debug)]
pub(super) struct Receiving {
    /// `None` while the driver receives into it.
    buffer: Option<Buffer>,
    want: u32,
    got: u32,
    /// LAST_PDU was received.
    ended: bool,
    /// A data digest was wrong.
    digest_error: bool,
    /// Authentication Receive.
    auth: bool,
}

impl Receiving {
    /// Returns a transfer that fills `buffer`.
    pub(super) fn new(buffer: Buffer) -> Self {
        let want = length(&buffer);
        Self { buffer: Some(buffer), want, got: 0, ended: false, digest_error: false, auth: false }
    }

    /// Returns the transfer of Authentication Receive: `want` bytes.
    pub(super) fn auth(buffer: Option<Buffer>, want: u32) -> Self {
        Self { buffer, want, got: 0, ended: false, digest_error: false, auth: true }
    }

    /// Returns whether all data was received.
    pub(super) fn is_complete(&self) -> bool {
        self.got == self.want
    }

    /// Returns whether it belongs to Authentication Receive.
    pub(super) fn is_auth(&self) -> bool {
        self.auth
    }

    /// Checks the header of a C2HData PDU: in order, within the buffer.
    pub(super) fn begin(
        &mut self,
        offset: u32,
        len: u32,
        last: bool,
        success: bool,
    ) -> Result<(), Violation> {
        let left = self.want.saturating_sub(self.got);
        if self.ended {
            return Err(Violation::DataUnsolicited);
        }
        if offset != self.got {
            return Err(Violation::DataOffsetNotExpected);
        }
        if len > left {
            return Err(Violation::DataBeyondTransfer);
        }
        if success && !last {
            return Err(Violation::SuccessWithoutLast);
        }
        if len == left && !last {
            return Err(Violation::LastFlagMissing);
        }
        if success && len != left {
            return Err(Violation::DataMissing);
        }
        self.ended = last;
        Ok(())
    }

    /// Stores received payload.
    pub(super) fn append(&mut self, data: &[u8]) {
        let Some(buffer) = &mut self.buffer else { return };
        let start = self.got as usize;
        if let Some(target) = buffer.bytes_mut().get_mut(start..start + data.len()) {
            target.copy_from_slice(data);
        }
        self.advance(data.len());
    }

    fn advance(&mut self, len: usize) {
        #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
        {
            self.got += len as u32;
        }
    }

    /// Ends the payload of a PDU.
    pub(super) fn end(&mut self, digest_ok: bool) {
        self.digest_error |= !digest_ok;
    }

    /// Lends the buffer to the driver, with the index of the next byte.
    pub(super) fn lend(&mut self) -> Option<(Buffer, usize)> {
        Some((self.buffer.take()?, self.got as usize))
    }

    /// Takes the buffer back, with `got` bytes received.
    pub(super) fn take_back(&mut self, buffer: Buffer, got: usize) {
        self.advance(got);
        self.buffer = Some(buffer);
    }

    /// Returns the buffer, and the status of the command: a wrong data digest fails it, the
    /// connection continues (NVMe/TCP 1.0 §3.3.1.1).
    pub(super) fn finish(self, status: Status) -> (Option<Buffer>, Status) {
        let status = if self.digest_error { Status::TRANSIENT_TRANSPORT_ERROR } else { status };
        (self.buffer, status)
    }
}

/// Returns the length of a buffer, which is far below 4 GiB.
pub(super) fn length(buffer: &Buffer) -> u32 {
    u32::try_from(buffer.len()).unwrap_or(u32::MAX)
}

/// The slots of one queue. A command identifier combines the slot number with a count of its uses,
/// so that a repeated response does not match another command.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

#[derive(Debug, Default)]
struct Slot {
    cid: u16,
    command: Option<Command>,
}

/// Bits of a command identifier with the slot number.
const INDEX_MASK: u16 = 0x0fff;

impl Slots {
    /// Creates `count` slots, at most 4096.
    pub(super) fn new(count: u16) -> Self {
        let count = count.min(INDEX_MASK + 1);
        let slots = (0..count).map(|index| Slot { cid: index, command: None }).collect();
        Self { slots, free: (0..count).rev().collect() }
    }

    /// Allocates a slot. Returns the command identifier, or `None` if all are in use.
    pub(super) fn claim(&mut self, command: Command) -> Option<u16> {
        let index = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        slot.command = Some(command);
        Some(slot.cid)
    }

    /// Returns the command with that identifier.
    pub(super) fn find(&mut self, cid: u16) -> Result<&mut Command, Violation> {
        let slot = self.slots.get_mut(usize::from(cid & INDEX_MASK)).filter(|slot| slot.cid == cid);
        slot.and_then(|slot| slot.command.as_mut()).ok_or(Violation::CommandUnknown)
    }

    /// Frees the slot of a command.
    pub(super) fn release(&mut self, cid: u16) -> Result<Command, Violation> {
        let index = cid & INDEX_MASK;
        let slot = self.slots.get_mut(usize::from(index)).filter(|slot| slot.cid == cid);
        let slot = slot.ok_or(Violation::CommandUnknown)?;
        let command = slot.command.take().ok_or(Violation::CommandUnknown)?;
        slot.cid = cid.wrapping_add(INDEX_MASK + 1);
        self.free.push(index);
        Ok(command)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn command() -> Command {
        Command::new(7, Data::None)
    }

    #[test]
    fn identifier_is_valid_until_it_is_released() {
        let mut slots = Slots::new(1);
        let cid = slots.claim(command()).unwrap();
        assert_eq!(slots.find(cid).unwrap().tag, 7);
        assert!(slots.claim(command()).is_none());
        assert_eq!(slots.release(cid).unwrap().tag, 7);
        assert!(slots.release(cid).is_err());
        let next = slots.claim(command()).unwrap();
        assert_ne!(next, cid);
        assert!(slots.find(cid).is_err());
    }
}
