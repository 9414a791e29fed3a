//! The commands that a queue has under way, each in a slot; the slot's number is the tag of its transfer and of its disk
//! request. It knows no PDU.

use export::{Buffer, Request};

use super::io::Work;
use super::transfer::Starving;

/// A command under way.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) cid: u16,
    pub(super) stage: Stage,
    pub(super) work: Work,
    /// Whether the host may use `cid` again.
    answered: bool,
}

/// How far a command is.
#[derive(Debug)]
pub(super) enum Stage {
    /// No command.
    Free,
    /// Waits for memory.
    Starved(Starving),
    /// Its data is coming.
    Filling(Filling),
    /// Waits for something else than memory, data or disk.
    Waiting,
    /// Its request waits for its turn to write.
    Contending(Request),
    /// The driver has its request.
    OnDisk,
    /// It was aborted while data was coming that the host must still send: the data goes nowhere.
    Discarding { got: u32, want: u32 },
}

/// Data of a command that is coming.
#[derive(Debug)]
pub(super) struct Filling {
    /// Nothing while the driver receives into it.
    pub(super) buffer: Option<Buffer>,
    pub(super) got: u32,
    pub(super) want: u32,
    /// Whether a data digest was wrong: the data is thrown away and the host told to try again.
    pub(super) damaged: bool,
    /// Whether it comes because the host was asked for it.
    pub(super) solicited: bool,
}

/// The slots of one queue.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Command identifiers that the host may not use again yet, a bit each: hosts choose them as they like, and a queue
    /// may have a thousand.
    busy: Box<[u64]>,
}

/// Words of a bit for each command identifier.
const WORDS: usize = (1 << 16) / 64;

impl Slots {
    /// Slots for a queue of that many entries.
    pub(super) fn new(entries: u16) -> Self {
        let slot = || Slot { cid: 0, stage: Stage::Free, work: Work::None, answered: true };
        let slots = (0..entries).map(|_| slot()).collect();
        Self { slots, free: (0..entries).rev().collect(), busy: vec![0; WORDS].into() }
    }

    /// A slot for command `cid`; nothing if all are taken.
    pub(super) fn claim(&mut self, cid: u16) -> Option<u16> {
        let at = self.free.pop()?;
        if let Some(slot) = self.slots.get_mut(usize::from(at)) {
            (slot.cid, slot.stage, slot.answered) = (cid, Stage::Waiting, false);
        }
        if let Some(word) = self.busy.get_mut(usize::from(cid) / 64) {
            *word |= 1 << (cid % 64);
        }
        Some(at)
    }

    /// Frees a slot. Its command identifier may be used again.
    pub(super) fn release(&mut self, at: u16) {
        self.forget_cid(at);
        if let Some(slot) = self.slots.get_mut(usize::from(at)) {
            (slot.stage, slot.work) = (Stage::Free, Work::None);
            self.free.push(at);
        }
    }

    /// Lets the host use the slot's command identifier again, though the slot is still needed.
    pub(super) fn forget_cid(&mut self, at: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(at)) else { return };
        if std::mem::replace(&mut slot.answered, true) {
            return;
        }
        if let Some(word) = self.busy.get_mut(usize::from(slot.cid) / 64) {
            *word &= !(1 << (slot.cid % 64));
        }
    }

    /// Whether a command has not been answered.
    pub(super) fn has(&self, cid: u16) -> bool {
        self.busy.get(usize::from(cid) / 64).is_some_and(|word| word >> (cid % 64) & 1 != 0)
    }

    /// The slot of a command that has not been answered.
    pub(super) fn find(&self, cid: u16) -> Option<u16> {
        let own = |slot: &Slot| slot.cid == cid && !slot.answered;
        let at = self.slots.iter().position(own).filter(|_| self.has(cid))?;
        u16::try_from(at).ok()
    }

    /// The slot of that number, if there is such.
    pub(super) fn get(&mut self, at: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(at))
    }

    /// Frees every slot whose request is not with the driver, and tells whether that was the end of a claim on a disk.
    pub(super) fn clear(&mut self) {
        for at in 0..self.slots.len() {
            let idle = !matches!(self.slots[at].stage, Stage::OnDisk | Stage::Free);
            if let (true, Ok(at)) = (idle, u16::try_from(at)) {
                self.release(at);
            }
        }
    }

    /// Whether no request is with the driver.
    pub(super) fn are_off_disk(&self) -> bool {
        !self.slots.iter().any(|slot| matches!(slot.stage, Stage::OnDisk))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_command_is_found_until_it_is_answered() {
        let mut slots = Slots::new(4);
        let at = slots.claim(0xffff).unwrap();
        assert_eq!(slots.find(0xffff), Some(at));
        assert!(slots.has(0xffff) && !slots.has(0));
        assert_eq!(slots.find(0), None);
        slots.release(at);
        assert_eq!(slots.find(0xffff), None);
        assert_eq!(slots.free.len(), 4);
    }

    #[test]
    fn no_more_commands_than_entries() {
        let mut slots = Slots::new(2);
        assert!(slots.claim(1).is_some());
        assert!(slots.claim(2).is_some());
        assert!(slots.claim(3).is_none());
    }

    #[test]
    fn a_forgotten_identifier_can_be_used_while_its_slot_is_kept() {
        let mut slots = Slots::new(2);
        let first = slots.claim(7).unwrap();
        slots.forget_cid(first);
        assert_eq!(slots.find(7), None);
        let second = slots.claim(7).unwrap();
        assert_ne!(first, second);
        assert_eq!(slots.find(7), Some(second));
    }
}
