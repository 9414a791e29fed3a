//! The requests that a client has in flight, by cookie.

use export::{Buffer, Extent};

use super::coverage::Coverage;
use super::{Error, Violation};

/// A request in flight.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) tag: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) expected: Expected,
    /// Number of error chunks received. `error` is the first of them.
    pub(super) errors: u32,
    pub(super) error: Option<Error>,
}

/// The result that a reply must carry.
#[derive(Debug)]
pub(super) enum Expected {
    /// No data.
    Nothing,
    /// Data.
    Read {
        /// `None` while the driver receives into it.
        buffer: Option<Buffer>,
        coverage: Coverage,
    },
    /// Extents.
    Extents(ExtentList),
}

/// Extents received so far.
#[derive(Debug, Default)]
pub(super) struct ExtentList {
    pub(super) extents: Vec<Extent>,
    /// Bytes of the range described so far, including extents not kept.
    pub(super) covered: u64,
    /// A block status chunk has been received.
    pub(super) seen: bool,
    /// The limit is reached: further extents are dropped.
    pub(super) full: bool,
}

/// Maximum number of extents kept of one reply: 1.5 MiB.
const MAX_EXTENTS: usize = 1 << 16;

impl ExtentList {
    /// Adds an extent of the reply to a request for `wanted` bytes.
    pub(super) fn add(&mut self, extent: Extent, wanted: u64) -> Result<(), Violation> {
        if extent.len == 0 {
            return Err(Violation::ExtentEmpty);
        }
        let left = wanted.saturating_sub(self.covered);
        if left == 0 {
            return Err(Violation::ExtentBeyondRequest);
        }
        // The last extent may extend beyond the request.
        let extent = Extent { len: extent.len.min(left), ..extent };
        self.covered += extent.len;
        self.keep(extent);
        Ok(())
    }

    fn keep(&mut self, extent: Extent) {
        let room = self.extents.len() < MAX_EXTENTS;
        match self.extents.last_mut() {
            _ if self.full => {}
            Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => {
                last.len += extent.len;
            }
            _ if room => self.extents.push(extent),
            _ => self.full = true,
        }
    }
}

/// The slots of one connection. A cookie is the slot number plus a use counter above it, so that a
/// duplicate reply matches no request.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Slot {
    cookie: u64,
    command: Option<Command>,
}

/// The bits of a cookie that are the slot number.
const SLOT_MASK: u64 = 0xffff;

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        let slots = (0..count).map(|at| Slot { cookie: at.into(), command: None }).collect();
        Self { slots, free: (0..count).rev().collect() }
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Stores `command` and returns its cookie, or `None` if all slots are in use.
    pub(super) fn claim(&mut self, command: Command) -> Option<u64> {
        let at = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(at))?;
        slot.command = Some(command);
        Some(slot.cookie)
    }

    fn slot(&mut self, cookie: u64) -> Option<&mut Slot> {
        let at = usize::try_from(cookie & SLOT_MASK).ok()?;
        self.slots.get_mut(at).filter(|slot| slot.cookie == cookie)
    }

    /// Returns the request with that cookie.
    pub(super) fn find(&mut self, cookie: u64) -> Result<&mut Command, Violation> {
        let command = self.slot(cookie).and_then(|slot| slot.command.as_mut());
        command.ok_or(Violation::CookieUnknown)
    }

    /// Removes the request with that cookie and frees its slot.
    pub(super) fn release(&mut self, cookie: u64) -> Result<Command, Violation> {
        let slot = self.slot(cookie).ok_or(Violation::CookieUnknown)?;
        let command = slot.command.take().ok_or(Violation::CookieUnknown)?;
        slot.cookie = cookie.wrapping_add(SLOT_MASK + 1);
        self.free.extend(u16::try_from(cookie & SLOT_MASK));
        Ok(command)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn command() -> Command {
        Command { tag: 7, offset: 0, len: 0, expected: Expected::Nothing, errors: 0, error: None }
    }

    #[test]
    fn cookie_is_valid_until_released() {
        let mut slots = Slots::new(1);
        let cookie = slots.claim(command()).unwrap();
        assert_eq!(slots.find(cookie).unwrap().tag, 7);
        assert!(slots.claim(command()).is_none());
        assert_eq!((slots.free_slots(), slots.in_flight()), (0, 1));
        assert_eq!(slots.release(cookie).unwrap().tag, 7);
        assert!(slots.release(cookie).is_err());
        let next = slots.claim(command()).unwrap();
        assert_ne!(next, cookie);
        assert_eq!(slots.find(cookie).err(), Some(Violation::CookieUnknown));
    }

    #[test]
    fn extents_are_merged_clipped_and_bounded() {
        let mut list = ExtentList::default();
        for extent in [Extent::data(100), Extent::data(50), Extent::hole(1 << 40)] {
            list.add(extent, 1000).unwrap();
        }
        assert_eq!(list.extents, [Extent::data(150), Extent::hole(850)]);
        assert_eq!(list.add(Extent::data(1), 1000), Err(Violation::ExtentBeyondRequest));
        let mut list = ExtentList::default();
        for _ in 0..MAX_EXTENTS {
            list.add(Extent::data(1), u64::MAX).unwrap();
            list.add(Extent::hole(1), u64::MAX).unwrap();
        }
        assert_eq!(list.extents.len(), MAX_EXTENTS);
        assert_eq!(list.add(Extent::data(0), u64::MAX), Err(Violation::ExtentEmpty));
    }
}
