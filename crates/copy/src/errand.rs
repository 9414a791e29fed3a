//! One work at a time at one end, waited for: samples before a copy, comparing after it, and pipes. It knows no plan.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::traffic::{Came, Side, Target, Traffic};
use crate::{Ended, Failed, Trouble, Work};

/// A way to one end, for one work at a time.
pub(crate) struct Errand<'a> {
    target: Target,
    traffic: Traffic,
    stop: &'a AtomicBool,
}

/// How long to wait at once.
const WAIT: Duration = Duration::from_millis(100);

/// Why a work was not done.
#[derive(Debug)]
pub(crate) enum Undone {
    /// The copy was told to stop.
    Stopped,
    /// The end was lost; it is there again, and what was not flushed may have been lost.
    Lost,
    /// It cannot be done.
    Trouble(Trouble),
}

impl<'a> Errand<'a> {
    pub(crate) fn new(target: &Target, patience: Duration, stop: &'a AtomicBool) -> Self {
        let traffic = Traffic::new(Some(target), None, patience);
        Self { target: target.clone(), traffic, stop }
    }

    /// From now on what is read comes from the disk itself.
    pub(crate) fn distrust(&mut self) -> Result<(), Undone> {
        self.reach()?;
        if let Some(lane) = self.traffic.lane(Side::Source) {
            lane.distrust();
        }
        Ok(())
    }

    /// Does a work, and waits for it. How it ended is the caller's to judge.
    pub(crate) fn run(&mut self, work: Work) -> Result<Ended, Undone> {
        self.reach()?;
        let reads = match work {
            Work::Read { offset, .. } => Some(offset),
            _ => None,
        };
        self.traffic.submit(Side::Source, 0, work);
        loop {
            match self.traffic.next() {
                Some(Came::Ended(_, ended)) => {
                    if let (Some(offset), Ok(()), Some(buffer)) =
                        (reads, ended.result, &ended.buffer)
                    {
                        self.target.keep_sample(offset, buffer.bytes());
                    }
                    return Ok(ended);
                }
                Some(Came::Lost(..)) => {
                    self.reach()?;
                    return Err(Undone::Lost);
                }
                Some(other) => self.judge(other)?,
                None => drop(self.traffic.wait(WAIT)),
            }
            self.look()?;
        }
    }

    /// Keeps the way alive while nothing is under way on it.
    pub(crate) fn tend(&mut self) -> Result<(), Undone> {
        match self.traffic.next() {
            Some(Came::Lost(..)) => {
                self.reach()?;
                return Err(Undone::Lost);
            }
            Some(other) => self.judge(other)?,
            None => {}
        }
        self.look()
    }

    /// What a read that failed, and not for a bad sector, makes of the copy.
    pub(crate) fn failed(&self, range: &Range<u64>, result: Result<(), Failed>) -> Undone {
        let why = result.err().unwrap_or(Failed::Refused);
        let (offset, len) = (range.start, range.end - range.start);
        Undone::Trouble(Trouble::Read { name: self.name(), offset, len, why })
    }

    /// Waits until the end is there.
    fn reach(&mut self) -> Result<(), Undone> {
        while !self.traffic.has_room(Side::Source) {
            match self.traffic.next() {
                Some(came) => self.judge(came)?,
                None if self.traffic.wait(WAIT) => {}
                None => std::thread::sleep(WAIT),
            }
            self.look()?;
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.target.disk.name.clone()
    }

    fn look(&self) -> Result<(), Undone> {
        if self.stop.load(Ordering::Acquire) { Err(Undone::Stopped) } else { Ok(()) }
    }

    fn judge(&self, came: Came) -> Result<(), Undone> {
        let name = self.name();
        match came {
            Came::Gone(_, why) => Err(Undone::Trouble(Trouble::Lost { name, why })),
            Came::Changed(_, why) => Err(Undone::Trouble(Trouble::Changed { name, why })),
            Came::Broken(_, why) => Err(Undone::Trouble(Trouble::Violation { name, why })),
            _ => Ok(()),
        }
    }
}
