//! Commands in flight of a queue, each in a slot. The slot number is the transfer tag and the
//! ticket of the disk request.

use export::Request;

use super::receiving::Receiving;
use super::work::Work;

/// A command in flight.
#[derive(Debug)]
struct Slot {
    cid: u16,
    state: SlotState,
    work: Work,
    /// Whether the host may reuse `cid`.
    answered: bool,
}

/// State of a slot.
#[derive(Debug)]
pub(super) enum SlotState {
    /// Not in use.
    Free,
    /// Waits for a buffer.
    AwaitingBuffer(BufferWait),
    /// Receives data from the host.
    Receiving(Receiving),
    /// Waits for anything other than a buffer, data or the disk.
    Pending,
    /// The request waits for another one's exclusive access to the disk to end.
    AwaitingExclusive(Request),
    /// The request was submitted to the driver.
    Submitted,
    /// The command was aborted with an R2T outstanding: its data is discarded.
    Discarding { got: u32, want: u32 },
}

/// What a slot that waits for a buffer does with it.
#[derive(Debug, Clone, Copy)]
pub(super) enum BufferWait {
    /// Requests that many bytes by R2T.
    R2t(u32),
    /// Submits a read to the disk.
    Read,
}

/// The slots of one queue.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Bitmap of outstanding command identifiers. Hosts may choose any, and a queue may have a
    /// thousand entries.
    outstanding: Box<[u64]>,
}

/// Words of the bitmap.
const BITMAP_WORDS: usize = (1 << 16) / 64;

impl Slots {
    /// Creates the slots of a queue with `entries` entries.
    pub(super) fn new(entries: u16) -> Self {
        let slot = || Slot { cid: 0, state: SlotState::Free, work: Work::None, answered: true };
        let slots = (0..entries).map(|_| slot()).collect();
        Self {
            slots,
            free: (0..entries).rev().collect(),
            outstanding: vec![0; BITMAP_WORDS].into(),
        }
    }

    /// Takes a slot for command `cid`. Returns `None` if all are in use.
    pub(super) fn claim(&mut self, cid: u16) -> Option<u16> {
        let tag = self.free.pop()?;
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            (slot.cid, slot.state, slot.answered) = (cid, SlotState::Pending, false);
        }
        if let Some(word) = self.outstanding.get_mut(usize::from(cid) / 64) {
            *word |= 1 << (cid % 64);
        }
        Some(tag)
    }

    /// Frees a slot and its command identifier. Returns the identifier and the command.
    pub(super) fn release(&mut self, tag: u16) -> Option<(u16, Work)> {
        self.release_cid(tag);
        let slot = self.slots.get_mut(usize::from(tag))?;
        slot.state = SlotState::Free;
        self.free.push(tag);
        Some((slot.cid, std::mem::take(&mut slot.work)))
    }

    /// Frees the command identifier of a slot that stays in use.
    pub(super) fn release_cid(&mut self, tag: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        if std::mem::replace(&mut slot.answered, true) {
            return;
        }
        if let Some(word) = self.outstanding.get_mut(usize::from(slot.cid) / 64) {
            *word &= !(1 << (slot.cid % 64));
        }
    }

    /// Returns whether a command with that identifier is outstanding.
    pub(super) fn is_outstanding(&self, cid: u16) -> bool {
        self.outstanding.get(usize::from(cid) / 64).is_some_and(|word| word >> (cid % 64) & 1 != 0)
    }

    /// Returns the slot of an outstanding command.
    pub(super) fn find(&self, cid: u16) -> Option<u16> {
        let own = |slot: &Slot| slot.cid == cid && !slot.answered;
        let tag = self.slots.iter().position(own).filter(|_| self.is_outstanding(cid))?;
        u16::try_from(tag).ok()
    }

    /// Returns the command identifier of a slot.
    pub(super) fn cid(&self, tag: u16) -> Option<u16> {
        Some(self.slots.get(usize::from(tag))?.cid)
    }

    /// Returns the command in a slot.
    pub(super) fn work(&self, tag: u16) -> Option<&Work> {
        Some(&self.slots.get(usize::from(tag))?.work)
    }

    /// Returns the command in a slot, to change its state.
    pub(super) fn work_mut(&mut self, tag: u16) -> Option<&mut Work> {
        Some(&mut self.slots.get_mut(usize::from(tag))?.work)
    }

    /// Returns the state of a slot.
    pub(super) fn state(&self, tag: u16) -> Option<&SlotState> {
        Some(&self.slots.get(usize::from(tag))?.state)
    }

    /// Returns the state of a slot, to change it.
    pub(super) fn state_mut(&mut self, tag: u16) -> Option<&mut SlotState> {
        Some(&mut self.slots.get_mut(usize::from(tag))?.state)
    }

    pub(super) fn set_state(&mut self, tag: u16, state: SlotState) {
        if let Some(current) = self.state_mut(tag) {
            *current = state;
        }
    }

    /// Frees every slot whose request was not submitted.
    pub(super) fn clear(&mut self) {
        for tag in 0..self.slots.len() {
            let idle = !matches!(self.slots[tag].state, SlotState::Submitted | SlotState::Free);
            if let (true, Ok(tag)) = (idle, u16::try_from(tag)) {
                self.release(tag);
            }
        }
    }

    /// Returns whether no request is submitted.
    pub(super) fn none_submitted(&self) -> bool {
        !self.slots.iter().any(|slot| matches!(slot.state, SlotState::Submitted))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_command_is_found_until_it_is_answered() {
        let mut slots = Slots::new(4);
        let tag = slots.claim(0xffff).unwrap();
        assert_eq!(slots.find(0xffff), Some(tag));
        assert!(slots.is_outstanding(0xffff) && !slots.is_outstanding(0));
        assert_eq!(slots.find(0), None);
        assert_eq!(slots.release(tag).map(|(cid, _)| cid), Some(0xffff));
        assert_eq!(slots.find(0xffff), None);
        assert_eq!(slots.free.len(), 4);
    }

    #[test]
    fn commands_are_limited_to_the_queue_entries() {
        let mut slots = Slots::new(2);
        assert!(slots.claim(1).is_some());
        assert!(slots.claim(2).is_some());
        assert!(slots.claim(3).is_none());
    }

    #[test]
    fn released_identifier_can_be_reused_while_its_slot_is_kept() {
        let mut slots = Slots::new(2);
        let first = slots.claim(7).unwrap();
        slots.release_cid(first);
        assert_eq!(slots.find(7), None);
        let second = slots.claim(7).unwrap();
        assert_ne!(first, second);
        assert_eq!(slots.find(7), Some(second));
    }
}
