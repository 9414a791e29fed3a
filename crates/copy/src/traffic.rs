//! What one thread has under way at both ends: work is sent, what ended is collected, and an end that is lost is reached
//! again. It knows no plan.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

use crate::health::Health;
use crate::lane::until;
use crate::prove::prove;
use crate::sample::{Sample, Samples};
use crate::{Disk, Ended, Lane, Lost, Place, PlaceError, Waits, Work};

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// An end of the copy: where it is, what it was when the copy began, and what is known of it since.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) place: Arc<dyn Place>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) samples: Arc<Samples>,
    pub(crate) health: Arc<Health>,
}

impl Target {
    pub(crate) fn new(place: Arc<dyn Place>, disk: Disk) -> Self {
        Self { place, disk: Arc::new(disk), samples: Arc::default(), health: Arc::default() }
    }

    /// The same end, of whose content nothing is known: whether it holds what was written is still to be seen.
    pub(crate) fn unknown(&self) -> Self {
        Self { samples: Arc::default(), ..self.clone() }
    }

    /// Keeps a sample of what the disk is known to hold at `offset`. A disk of this machine needs none.
    pub(crate) fn keep_sample(&self, offset: u64, bytes: &[u8]) {
        if self.disk.remote
            && let Some(sample) = Sample::of(offset, bytes, self.disk.block)
        {
            self.samples.add(sample);
        }
    }
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
    /// It broke the rules of its protocol.
    Broken(Side, String),
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
        self.source.iter_mut().chain(&mut self.destination).for_each(|way| way.waits = false);
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
        if let Some(way) = self.way(side) {
            way.submit(tag, work);
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

/// The connection to one end.
struct Way {
    target: Target,
    lane: Option<Box<dyn Lane>>,
    patience: Duration,
    /// Whether to try again if there is no connection; not before the first one, where others do the work.
    waits: bool,
    again: Instant,
    pause: Duration,
    /// Requests in flight on the connection.
    in_flight: usize,
    /// Whether it has answered a request.
    answered: bool,
    /// Connections lost one after the other without an answer to any request.
    barren: u32,
    /// Why the last one was lost.
    reason: String,
    /// Samples that are still to be compared before the disk is taken for the same.
    unproven: Option<Vec<Sample>>,
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
            waits: true,
            again: Instant::now(),
            pause: PAUSE,
            in_flight: 0,
            answered: true,
            barren: 0,
            reason: String::new(),
            unproven: None,
            over: false,
        }
    }

    fn submit(&mut self, tag: u32, work: Work) {
        let Some(lane) = &mut self.lane else { return };
        self.in_flight += 1;
        self.target.health.sent();
        lane.submit(tag, work);
    }

    fn next(&mut self, side: Side) -> Option<Came> {
        let Some(lane) = &mut self.lane else { return self.reach(side) };
        // What has already ended may hold data; a lane that is lost has none any more.
        if let Err(lost) = lane.advance() {
            return Some(self.lost(side, lost));
        }
        let ended = lane.ended()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.target.health.answered();
        (self.answered, self.barren, self.pause) = (true, 0, PAUSE);
        Some(Came::Ended(side, ended))
    }

    /// The connection is lost. One that answered nothing is not made again at once.
    fn lost(&mut self, side: Side, lost: Lost) -> Came {
        self.lane = None;
        self.target.health.lost(std::mem::take(&mut self.in_flight));
        if lost.violation {
            self.over = true;
            return Came::Broken(side, lost.reason);
        }
        self.again = Instant::now();
        if !self.answered {
            self.barren += 1;
            self.wait_longer();
        }
        self.reason.clone_from(&lost.reason);
        Came::Lost(side, lost.reason)
    }

    fn wait_longer(&mut self) {
        self.again = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST);
    }

    fn reach(&mut self, side: Side) -> Option<Came> {
        if self.over || Instant::now() < self.again {
            return None;
        }
        // Connections that come about and answer nothing are no progress.
        if self.barren > 1 && !self.may_wait() {
            self.over = true;
            return Some(Came::Gone(side, std::mem::take(&mut self.reason)));
        }
        match self.target.place.open() {
            Ok((disk, lane)) => self.arrive(side, &disk, lane),
            Err(PlaceError::Unreachable(why)) => self.fail(side, why),
            Err(PlaceError::Violation(why)) => {
                self.over = true;
                Some(Came::Broken(side, self.plain(&why)))
            }
            Err(PlaceError::Refused(why)) => {
                self.over = true;
                Some(Came::Gone(side, self.plain(&why)))
            }
        }
    }

    /// There is no connection for now.
    fn fail(&mut self, side: Side, why: String) -> Option<Came> {
        self.target.health.lost(0);
        if self.may_wait() {
            self.wait_longer();
            return None;
        }
        self.over = true;
        Some(Came::Gone(side, self.plain(&why)))
    }

    /// The sentence without the name of the end, which stands beside it.
    fn plain(&self, why: &str) -> String {
        let name = &self.target.disk.name;
        let rest = why.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": "));
        rest.unwrap_or(why).to_owned()
    }

    fn may_wait(&self) -> bool {
        self.waits && self.target.health.lost_for() < self.patience
    }

    fn arrive(&mut self, side: Side, disk: &Disk, mut lane: Box<dyn Lane>) -> Option<Came> {
        if let Some(why) = change(&self.target.disk, disk) {
            self.over = true;
            return Some(Came::Changed(side, why));
        }
        // A server that ends a connection after a few requests must not get only these.
        let most = if self.barren > 0 { 1 } else { usize::MAX };
        let all = || self.target.samples.all().into_iter().take(most).collect();
        let samples = self.unproven.get_or_insert_with(all);
        let before = samples.len();
        match prove(&mut *lane, samples) {
            Ok(None) => self.unproven = None,
            Ok(Some(why)) => {
                self.over = true;
                return Some(Came::Changed(side, why));
            }
            Err(lost) if lost.violation => {
                self.over = true;
                return Some(Came::Broken(side, lost.reason));
            }
            Err(lost) => {
                // Some servers end a connection after a few requests: the next one goes on from there.
                let moved = !samples.is_empty() && samples.len() < before;
                if samples.is_empty() {
                    // Those that were tried cannot be read: then the others.
                    *samples = self.target.samples.all();
                }
                let gone = self.fail(side, lost.reason);
                self.again = if moved { Instant::now() } else { self.again };
                return gone;
            }
        }
        self.lane = Some(lane);
        (self.waits, self.answered) = (true, false);
        Some(Came::Back(side))
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
