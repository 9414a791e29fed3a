//! Commands in flight.

use std::rc::Rc;

use export::Buffer;

use super::{Command, Violation};

/// A command in flight.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tag: u32,
    pub(super) command: Command,
    /// Bytes received or sent so far.
    pub(super) done: usize,
    /// DataSN or R2TSN of the next PDU of the target; `None` until the command is sent.
    pub(super) next_sn: Option<u32>,
}

/// The slots of one session. An initiator task tag is the slot number plus a use counter above it,
/// so that a duplicate response matches no command.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<(u32, Option<Entry>)>,
    free: Vec<u16>,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        Self {
            slots: (0..count).map(|at| (at.into(), None)).collect(),
            free: (0..count).rev().collect(),
        }
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Stores `entry` and returns its tag, or `None` if all slots are in use.
    pub(super) fn claim(&mut self, entry: Entry) -> Option<u32> {
        let (itt, place) = self.slots.get_mut(usize::from(self.free.pop()?))?;
        *place = Some(entry);
        Some(*itt)
    }

    fn slot(&mut self, itt: u32) -> Result<&mut (u32, Option<Entry>), Violation> {
        let slot = self.slots.get_mut((itt & 0xffff) as usize);
        slot.filter(|slot| slot.0 == itt).ok_or(Violation::TagUnknown)
    }

    pub(super) fn find(&mut self, itt: u32) -> Result<&mut Entry, Violation> {
        self.slot(itt)?.1.as_mut().ok_or(Violation::TagUnknown)
    }

    /// Returns a command that the target has received or will receive.
    pub(super) fn sent(&mut self, itt: u32) -> Result<&mut Entry, Violation> {
        let entry = self.find(itt)?;
        if entry.next_sn.is_some() { Ok(entry) } else { Err(Violation::TagUnknown) }
    }

    /// Removes the command and frees its slot.
    pub(super) fn release(&mut self, itt: u32) -> Result<Entry, Violation> {
        self.sent(itt)?;
        let slot = self.slot(itt)?;
        let entry = slot.1.take().ok_or(Violation::TagUnknown)?;
        slot.0 = itt.wrapping_add(0x1_0000);
        self.free.extend(u16::try_from(itt & 0xffff));
        Ok(entry)
    }
}

/// Data of a command.
#[derive(Debug)]
pub enum Data {
    /// None.
    None,
    /// Received into the buffer, at most as much as it is long.
    In(Option<Buffer>),
    /// A part of the buffer is sent.
    Out {
        /// Contains the data.
        buffer: Rc<Buffer>,
        /// Index of the first byte.
        start: usize,
        /// Length of the data.
        len: usize,
    },
}

impl Entry {
    /// Counts a PDU of the target for this command. Returns whether `sn` is its number.
    pub(super) fn counts(&mut self, sn: u32) -> bool {
        let expected = self.next_sn.replace(sn.wrapping_add(1));
        expected == Some(sn)
    }
}

impl Data {
    /// Returns the length in bytes.
    pub(super) fn expected(&self) -> usize {
        match self {
            Self::None => 0,
            Self::In(buffer) => buffer.as_ref().map_or(0, Buffer::len),
            Self::Out { len, .. } => *len,
        }
    }
}
