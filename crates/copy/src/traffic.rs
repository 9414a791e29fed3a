//! What one thread has under way at both ends: work is sent, what ended is collected, and an end that is lost is reached
//! again. It knows no plan.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

use crate::lane::until;
use crate::{Disk, Ended, Lane, Place, PlaceError, Waits, Work};

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// An end of the copy: where it is, and what it was when the copy began.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) place: Arc<dyn Place>,
    pub(crate) disk: Arc<Disk>,
}

/// What came from an end.
#[derive(Debug)]
pub(crate) enum Came {
    /// A work ended.
    Ended(Side, Ended),
    /// The end was lost, with all that was under way there.
    Lost(Side, String),
    /// It is there again.
    Back(Side),
    /// It does not come back.
    Gone(Side, String),
    /// What came back is another disk.
    Changed(Side, String),
}

/// The ways to both ends, or to one of them alone.
pub(crate) struct Traffic {
    source: Option<Way>,
    destination: Option<Way>,
}

impl Traffic {
    /// Opens the ways, at the first call of [`Traffic::next`]. An end that is lost is tried for as long as `patience`.
    pub(crate) fn new(
        source: Option<&Target>,
        destination: Option<&Target>,
        patience: Duration,
    ) -> Self {
        let way = |target| Way::new(target, patience);
        Self { source: source.map(way), destination: destination.map(way) }
    }

    fn way(&mut self, side: Side) -> Option<&mut Way> {
        match side {
            Side::Source => self.source.as_mut(),
            Side::Destination => self.destination.as_mut(),
        }
    }

    fn ways(&self) -> impl Iterator<Item = &Way> {
        self.source.iter().chain(&self.destination)
    }

    /// Does not wait for an end that was never there.
    #[must_use]
    pub(crate) fn at_once(mut self) -> Self {
        self.source.iter_mut().chain(&mut self.destination).for_each(|way| way.lost = None);
        self
    }

    /// Whether all ends are there.
    pub(crate) fn is_whole(&self) -> bool {
        self.ways().all(|way| way.lane.is_some())
    }

    /// Whether an end takes one more work.
    pub(crate) fn has_room(&mut self, side: Side) -> bool {
        self.lane(side).is_some_and(|lane| lane.room() > 0)
    }

    /// Begins a work; there must be room.
    pub(crate) fn submit(&mut self, side: Side, tag: u32, work: Work) {
        if let Some(lane) = self.lane(side) {
            lane.submit(tag, work);
        }
    }

    /// The way to an end, if it is there.
    pub(crate) fn lane(&mut self, side: Side) -> Option<&mut dyn Lane> {
        match &mut self.way(side)?.lane {
            Some(lane) => Some(&mut **lane),
            None => None,
        }
    }

    /// The file or device of an end, if it is one of this machine.
    pub(crate) fn local(&self, side: Side) -> Option<BorrowedFd<'_>> {
        let way = match side {
            Side::Source => self.source.as_ref(),
            Side::Destination => self.destination.as_ref(),
        };
        way?.lane.as_ref()?.local()
    }

    /// Goes on at both ends; the next thing that came.
    pub(crate) fn next(&mut self) -> Option<Came> {
        let source = self.source.as_mut().and_then(|way| way.next(Side::Source));
        source.or_else(|| self.destination.as_mut()?.next(Side::Destination))
    }

    /// Waits until something may have come, but not longer than `most`. Tells at once if there is nothing to wait for.
    pub(crate) fn wait(&self, most: Duration) -> bool {
        let now = Instant::now();
        let lanes = || self.ways().filter_map(|way| way.lane.as_deref());
        let timeout = lanes().fold(most, |most, lane| until(lane.deadline(), now, most));
        let mut fds: Vec<PollFd<'_>> = lanes().filter_map(interest).collect();
        if fds.is_empty() {
            return false;
        }
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        // Interrupted, or out of memory for a moment: the caller looks and comes again.
        let _ = poll(&mut fds, Some(&timeout));
        true
    }
}

fn interest(lane: &dyn Lane) -> Option<PollFd<'_>> {
    match lane.waits() {
        Waits::Nothing => None,
        Waits::For(fd, flags) => Some(PollFd::from_borrowed_fd(fd, flags)),
    }
}

/// The way to one end.
struct Way {
    target: Target,
    lane: Option<Box<dyn Lane>>,
    patience: Duration,
    /// When it was lost, or was first to be reached; none if it is of no use to wait for it.
    lost: Option<Instant>,
    again: Instant,
    pause: Duration,
    /// It is of no use to try again.
    over: bool,
}

/// The pause before an end is tried again, at first and at most.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

impl Way {
    fn new(target: &Target, patience: Duration) -> Self {
        Self {
            target: target.clone(),
            lane: None,
            patience,
            lost: Some(Instant::now()),
            again: Instant::now(),
            pause: PAUSE,
            over: false,
        }
    }

    fn next(&mut self, side: Side) -> Option<Came> {
        let Some(lane) = &mut self.lane else { return self.reach(side) };
        // What has already ended may hold data; a lane that is lost has none any more.
        if let Err(lost) = lane.advance() {
            self.lane = None;
            let now = Instant::now();
            (self.lost, self.again, self.pause) = (Some(now), now, PAUSE);
            return Some(Came::Lost(side, lost.to_string()));
        }
        lane.ended().map(|ended| Came::Ended(side, ended))
    }

    fn reach(&mut self, side: Side) -> Option<Came> {
        if self.over || Instant::now() < self.again {
            return None;
        }
        match self.target.place.open() {
            Ok((disk, lane)) => Some(self.arrive(side, &disk, lane)),
            Err(PlaceError::Unreachable(_)) if self.may_wait() => {
                self.again = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(LONGEST);
                None
            }
            Err(error) => {
                self.over = true;
                Some(Came::Gone(side, error.to_string()))
            }
        }
    }

    fn may_wait(&self) -> bool {
        self.lost.is_some_and(|since| since.elapsed() < self.patience)
    }

    fn arrive(&mut self, side: Side, disk: &Disk, lane: Box<dyn Lane>) -> Came {
        if let Some(why) = change(&self.target.disk, disk) {
            self.over = true;
            return Came::Changed(side, why);
        }
        self.lane = Some(lane);
        Came::Back(side)
    }
}

/// In what a disk differs from what it was.
pub(crate) fn change(before: &Disk, now: &Disk) -> Option<String> {
    if now.bytes != before.bytes {
        return Some(format!("it has {} bytes, it had {}", now.bytes, before.bytes));
    }
    if now.identity != before.identity {
        return Some(format!("it is \"{}\", it was \"{}\"", now.identity, before.identity));
    }
    let smaller = now.largest < before.largest || now.block > before.block;
    let locked = before.writable && !now.writable;
    (smaller || locked).then(|| "it allows less than before".to_owned())
}
