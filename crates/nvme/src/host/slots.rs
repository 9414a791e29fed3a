//! The commands that a queue has under way, by command identifier. It knows no PDU.

use std::rc::Rc;

use export::Buffer;

use crate::tcp::Violation;

/// A command under way.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) tag: u32,
    pub(super) data: Data,
}

/// The data of a command, and how much of it has gone over.
#[derive(Debug)]
pub(super) enum Data {
    /// None, or gone with the capsule.
    None,
    /// It is Connect.
    Connect,
    /// It is Authentication Send.
    Proof,
    /// Data that comes from the controller.
    Incoming(Incoming),
    /// Data that the controller may ask for; it has asked for the first `asked` bytes.
    Offered { buffer: Rc<Buffer>, asked: u32 },
}

/// Data that comes from the controller.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Nothing while the driver receives into it.
    pub(super) buffer: Option<Buffer>,
    pub(super) want: u32,
    pub(super) got: u32,
    /// The last data PDU has come.
    pub(super) ended: bool,
    /// A data digest was wrong.
    pub(super) damaged: bool,
    /// It is of Authentication Receive.
    pub(super) proof: bool,
}

impl Incoming {
    /// That many bytes, of which none has come.
    pub(super) fn of(want: u32) -> Self {
        Self { buffer: None, want, got: 0, ended: false, damaged: false, proof: false }
    }
}

/// The slots of one queue. A command identifier is a slot's number below a count of its uses, so that an answer that
/// comes twice names no command.
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

/// Bits of a command identifier that are the slot's number.
const NUMBER: u16 = 0x0fff;

impl Slots {
    /// That many slots, at most 4096.
    pub(super) fn new(count: u16) -> Self {
        let count = count.min(NUMBER + 1);
        let slots = (0..count).map(|at| Slot { cid: at, command: None }).collect();
        Self { slots, free: (0..count).rev().collect() }
    }

    /// Takes `command` in and gives it an identifier; nothing if all are taken.
    pub(super) fn claim(&mut self, command: Command) -> Option<u16> {
        let at = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(at))?;
        slot.command = Some(command);
        Some(slot.cid)
    }

    /// The command of that identifier.
    pub(super) fn find(&mut self, cid: u16) -> Result<&mut Command, Violation> {
        let slot = self.slots.get_mut(usize::from(cid & NUMBER)).filter(|slot| slot.cid == cid);
        slot.and_then(|slot| slot.command.as_mut()).ok_or(Violation::CommandUnknown)
    }

    /// Lets go of a command.
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
    fn an_identifier_names_a_command_until_it_is_released() {
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
