//! The requests that a client has under way, by cookie. It knows no header.

use export::{Buffer, Extent};

use super::coverage::Coverage;
use super::{Error, Violation};

/// A request under way.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) tag: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) what: What,
    /// Errors that came, and the first of them.
    pub(super) errors: u32,
    pub(super) error: Option<Error>,
}

/// What a request is to bring.
#[derive(Debug)]
pub(super) enum What {
    /// Nothing but its end.
    Plain,
    /// Data.
    Read {
        /// Nothing while the driver receives into it.
        buffer: Option<Buffer>,
        coverage: Coverage,
    },
    /// Extents.
    Extents(Telling),
}

/// Extents that are being told.
#[derive(Debug, Default)]
pub(super) struct Telling {
    pub(super) extents: Vec<Extent>,
    /// Bytes that were told of, kept or not.
    pub(super) covered: u64,
    /// Whether a chunk with extents has begun.
    pub(super) seen: bool,
    /// Whether no more are kept.
    pub(super) full: bool,
}

/// Extents that are kept of one reply: 1.5 MiB of them.
const KEPT: usize = 1 << 16;

impl Telling {
    /// An extent comes, of a request for `wanted` bytes.
    pub(super) fn add(&mut self, extent: Extent, wanted: u64) -> Result<(), Violation> {
        if extent.len == 0 {
            return Err(Violation::ExtentEmpty);
        }
        let left = wanted.saturating_sub(self.covered);
        if left == 0 {
            return Err(Violation::ExtentBeyondRequest);
        }
        // The last one may reach beyond the request.
        let extent = Extent { len: extent.len.min(left), ..extent };
        self.covered += extent.len;
        self.keep(extent);
        Ok(())
    }

    fn keep(&mut self, extent: Extent) {
        let room = self.extents.len() < KEPT;
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

/// The slots of one connection. A cookie is a slot's number below a count of its uses, so that a reply that comes twice
/// names no request.
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

/// Bits of a cookie that are the slot's number.
const NUMBER: u64 = 0xffff;

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        let slots = (0..count).map(|at| Slot { cookie: at.into(), command: None }).collect();
        Self { slots, free: (0..count).rev().collect() }
    }

    /// How many requests can still be taken in.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// How many requests are under way.
    pub(super) fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes `command` in and gives it a cookie; nothing if all slots are taken.
    pub(super) fn claim(&mut self, command: Command) -> Option<u64> {
        let at = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(at))?;
        slot.command = Some(command);
        Some(slot.cookie)
    }

    fn slot(&mut self, cookie: u64) -> Option<&mut Slot> {
        let at = usize::try_from(cookie & NUMBER).ok()?;
        self.slots.get_mut(at).filter(|slot| slot.cookie == cookie)
    }

    /// The request of that cookie.
    pub(super) fn find(&mut self, cookie: u64) -> Result<&mut Command, Violation> {
        let command = self.slot(cookie).and_then(|slot| slot.command.as_mut());
        command.ok_or(Violation::CookieUnknown)
    }

    /// Lets go of a request.
    pub(super) fn release(&mut self, cookie: u64) -> Result<Command, Violation> {
        let slot = self.slot(cookie).ok_or(Violation::CookieUnknown)?;
        let command = slot.command.take().ok_or(Violation::CookieUnknown)?;
        slot.cookie = cookie.wrapping_add(NUMBER + 1);
        self.free.extend(u16::try_from(cookie & NUMBER));
        Ok(command)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn command() -> Command {
        Command { tag: 7, offset: 0, len: 0, what: What::Plain, errors: 0, error: None }
    }

    #[test]
    fn a_cookie_names_a_request_until_it_is_released() {
        let mut slots = Slots::new(1);
        let cookie = slots.claim(command()).unwrap();
        assert_eq!(slots.find(cookie).unwrap().tag, 7);
        assert!(slots.claim(command()).is_none());
        assert_eq!((slots.room(), slots.under_way()), (0, 1));
        assert_eq!(slots.release(cookie).unwrap().tag, 7);
        assert!(slots.release(cookie).is_err());
        let next = slots.claim(command()).unwrap();
        assert_ne!(next, cookie);
        assert_eq!(slots.find(cookie).err(), Some(Violation::CookieUnknown));
    }

    #[test]
    fn extents_are_joined_cut_and_bounded() {
        let mut telling = Telling::default();
        for extent in [Extent::data(100), Extent::data(50), Extent::hole(1 << 40)] {
            telling.add(extent, 1000).unwrap();
        }
        assert_eq!(telling.extents, [Extent::data(150), Extent::hole(850)]);
        assert_eq!(telling.add(Extent::data(1), 1000), Err(Violation::ExtentBeyondRequest));
        let mut telling = Telling::default();
        for _ in 0..KEPT {
            telling.add(Extent::data(1), u64::MAX).unwrap();
            telling.add(Extent::hole(1), u64::MAX).unwrap();
        }
        assert_eq!(telling.extents.len(), KEPT);
        assert_eq!(telling.add(Extent::data(0), u64::MAX), Err(Violation::ExtentEmpty));
    }
}
