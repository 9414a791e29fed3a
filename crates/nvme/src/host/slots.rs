//! The commands in flight of a queue, by command identifier.

use std::rc::Rc;

use export::Buffer;

use crate::tcp::Violation;

/// A command in flight.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) tag: u32,
    pub(super) data: Data,
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
    pub(super) buffer: Option<Buffer>,
    pub(super) want: u32,
    pub(super) got: u32,
    /// LAST_PDU was received.
    pub(super) ended: bool,
    /// A data digest was wrong.
    pub(super) digest_error: bool,
    /// Authentication Receive.
    pub(super) auth: bool,
}

impl Receiving {
    /// Returns a transfer of `want` bytes.
    pub(super) fn new(want: u32) -> Self {
        Self { buffer: None, want, got: 0, ended: false, digest_error: false, auth: false }
    }
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
        Command { tag: 7, data: Data::None }
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
