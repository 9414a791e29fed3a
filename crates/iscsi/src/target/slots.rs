//! The commands of a session that are in progress.

use export::Op;
use scsi::{Job, Response};

use super::data_out::DataOut;
use super::link::DataInProgress;
use super::reading::Reading;
use super::writing::Writing;
use super::{MAX_IMMEDIATE, MAX_TASKS};

/// The tag of a free slot; tags of tasks have 32 bits.
const NO_TASK: u64 = u64::MAX;

/// Number of slots.
const SLOTS: u8 = MAX_TASKS + MAX_IMMEDIATE;

/// A command in progress.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) itt: u32,
    /// Expected Data Transfer Length in bytes, and in which direction.
    pub(super) expected: u32,
    pub(super) reads: bool,
    pub(super) writes: bool,
    /// Whether the command is immediate, and so does not count in the window.
    pub(super) immediate: bool,
    /// Whether a task management function has aborted it.
    pub(super) aborted: bool,
    /// Whether data for it is being received.
    pub(super) receiving: bool,
    /// Number of disk requests that were made and have not completed.
    pub(super) in_flight: u16,
    /// How many bytes the CDB transfers.
    pub(super) asked: u64,
    pub(super) work: Work,
    pub(super) data_out: DataOut,
    pub(super) data_in: DataInProgress,
}

/// What a command does.
#[derive(Debug, Default)]
pub(super) enum Work {
    /// The slot is free.
    #[default]
    Free,
    Read(Reading),
    Write(Writing),
    Job(Box<Job>, Request),
    /// It has ended, and waits until its data has been received.
    Ended(Response),
}

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// The length of a buffer, and whether the job holds one already.
    pub(super) memory: Option<(usize, bool)>,
    /// The disk request, for reports.
    pub(super) op: Op,
    /// Its offset and length.
    pub(super) range: (u64, u64),
}

impl Request {
    pub(super) const NONE: Self = Self { memory: None, op: Op::Flush, range: (0, 0) };
}

impl Slot {
    /// Returns whether the slot is free.
    pub(super) fn is_free(&self) -> bool {
        matches!(self.work, Work::Free)
    }

    /// Returns the length that the initiator expects to receive.
    pub(super) fn expected_in(&self) -> u32 {
        if self.reads { self.expected } else { 0 }
    }

    /// Returns the length that the initiator expects to send.
    pub(super) fn expected_out(&self) -> u32 {
        if self.writes { self.expected } else { 0 }
    }
}

/// The slots of a session.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    /// The tags of the tasks in the slots, or [`NO_TASK`]: they are searched with each command.
    tags: Box<[u64]>,
    free: Vec<u8>,
    /// How many commands in progress are immediate.
    immediate: u8,
}

impl Slots {
    pub(super) fn new() -> Self {
        let slots = (0..SLOTS).map(|_| Slot::default()).collect();
        let tags = vec![NO_TASK; SLOTS.into()].into();
        Self { slots, tags, free: (0..SLOTS).rev().collect(), immediate: 0 }
    }

    /// Returns how many commands that are not immediate may be added.
    pub(super) fn window(&self) -> u32 {
        let busy = usize::from(SLOTS - self.immediate).saturating_sub(self.free.len());
        u32::from(MAX_TASKS).saturating_sub(u32::try_from(busy).unwrap_or(u32::MAX))
    }

    /// Returns whether an immediate command may be added.
    pub(super) fn takes_immediate(&self) -> bool {
        self.immediate < MAX_IMMEDIATE
    }

    /// Stores a command. Returns its slot, or `None` if there is no room.
    pub(super) fn claim(&mut self, slot: Slot) -> Option<u8> {
        let room = if slot.immediate { self.takes_immediate() } else { self.window() > 0 };
        let at = if room { self.free.pop() } else { None }?;
        self.immediate += u8::from(slot.immediate);
        *self.tags.get_mut(usize::from(at))? = slot.itt.into();
        *self.get(at)? = slot;
        Some(at)
    }

    /// Frees a slot. Returns what was in it.
    pub(super) fn release(&mut self, at: u8) -> Slot {
        let slot = self.get(at).map(std::mem::take).unwrap_or_default();
        if !slot.is_free() {
            self.immediate -= u8::from(slot.immediate);
            self.free.push(at);
            if let Some(tag) = self.tags.get_mut(usize::from(at)) {
                *tag = NO_TASK;
            }
        }
        slot
    }

    pub(super) fn get(&mut self, at: u8) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(at))
    }

    /// Returns the slot of a task.
    pub(super) fn find(&self, itt: u32) -> Option<u8> {
        let at = self.tags.iter().position(|tag| *tag == itt.into())?;
        u8::try_from(at).ok()
    }

    /// Returns whether no command is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == usize::from(SLOTS)
    }

    /// Returns the slots in use, with their numbers.
    pub(super) fn busy(&self) -> impl Iterator<Item = (u8, &Slot)> {
        let all = (0..SLOTS).zip(&self.slots);
        all.filter(|(_, slot)| !slot.is_free())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn slot(immediate: bool) -> Slot {
        Slot { immediate, work: Work::Ended(Response::good()), ..Slot::default() }
    }

    #[test]
    fn immediate_commands_do_not_use_up_the_window() {
        let mut slots = Slots::new();
        let immediate: Vec<u8> =
            (0..MAX_IMMEDIATE).map(|_| slots.claim(slot(true)).unwrap()).collect();
        assert!(!slots.takes_immediate() && slots.claim(slot(true)).is_none());
        assert_eq!(slots.window(), MAX_TASKS.into());
        let others: Vec<u8> = (0..MAX_TASKS).map(|_| slots.claim(slot(false)).unwrap()).collect();
        assert!(slots.window() == 0 && slots.claim(slot(false)).is_none());
        for at in immediate.iter().chain(&others) {
            slots.release(*at);
            slots.release(*at);
        }
        assert!(slots.is_idle() && slots.window() == MAX_TASKS.into());
    }
}
