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
    Proof,
    /// Receives data from the controller.
    Incoming(Incoming),
    /// Sends data by R2T; the first `asked` bytes were requested.
    Offered { buffer: Rc<Buffer>, asked: u32 },
}

/// Data transfer from the controller.
#[derive(Debug)]
pub(super) struct Incoming {
    /// `None` while the driver receives into it.
    pub(super) buffer: Option<Buffer>,
    pub(super) want: u32,
    pub(super) got: u32,
    /// LAST_PDU was received.
    pub(super) ended: bool,
    /// A data digest was wrong.
    pub(super) damaged: bool,
    /// Authentication Receive.
    pub(super) proof: bool,
}

impl Incoming {
    /// Returns a transfer of `want` bytes.
    pub(super) fn of(want: u32) -> Self {
        Self { buffer: None, want, got: 0, ended: false, damaged: false, proof: false }
    }
}

/// The slots of one queue. A command identifier combines the slot number with a count of its uses, so
/// that a repeated response does not match another command.
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
const NUMBER: u16 = 0x0fff;

impl Slots {
    /// Creates `count` slots, at most 4096.
    pub(super) fn new(count: u16) -> Self {
        let count = count.min(NUMBER + 1);
        let slots = (0..count).map(|at| Slot { cid: at, command: None }).collect();
        Self { slots, free: (0..count).rev().collect() }
    }

    /// Allocates a slot. Returns the command identifier, or `None` if all are in use.
    pub(super) fn claim(&mut self, command: Command) -> Option<u16> {
        let at = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(at))?;
        slot.command = Some(command);
        Some(slot.cid)
    }

    /// Returns the command with that identifier.
    pub(super) fn find(&mut self, cid: u16) -> Result<&mut Command, Violation> {
        let slot = self.slots.get_mut(usize::from(cid & NUMBER)).filter(|slot| slot.cid == cid);
        slot.and_then(|slot| slot.command.as_mut()).ok_or(Violation::CommandUnknown)
    }

    /// Frees the slot of a command.
    pub(super) fn release(&mut self, cid: u16) -> Result<Command, Violation> {
        let at = cid & NUMBER;
        let slot = self.slots.get_mut(usize::from(at)).filter(|slot| slot.cid == cid);
        let slot = slot.ok_or(Violation::CommandUnknown)?;
        let command = slot.command.take().ok_or(Violation::CommandUnknown)?;
        slot.cid = cid.wrapping_add(NUMBER + 1);
        self.free.push(at);
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
