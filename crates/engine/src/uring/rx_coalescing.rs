//! How many requests of a connection to wait for before any is received. It knows no socket: it is told what was answered,
//! and when.
//!
//! A client with many requests under way gets on with them one by one, and so they come one by one. To wake up for each
//! costs more than to answer it; to let some rx_coalescing costs the client nothing as long as it has answers left to get on with.
//! Whether it has cannot be seen, only tried: a number stays if requests are answered about as fast as without waiting. That
//! is not so across a network whose length is what the client waits for.

use std::time::{Duration, Instant};

/// Requests that are answered with one number at a time: many more than rx_coalescing, as those that had gathered are answered fast
/// in the slice after it.
const SLICE: u32 = 512;

/// Slices with a number, and as many without waiting, turn by turn, until the middle ones are compared: whatever else the
/// machine does makes some of both slower.
const TRIAL: u32 = 8;

/// So many requests in one turn show that the client does not wait for each answer.
const EVIDENCE: u32 = 4;

/// The number that is tried first, and the largest.
const FEWEST: usize = 8;
const MOST: usize = 16;

/// Slices until all is tried anew: at first and at most if a number was no good, and if all were good.
const REST: u32 = 8;
const LONG_REST: u32 = 64;
const KEEP: u32 = 512;

/// The most bytes that are waited for. A peer can have so many on the way.
const BYTES: usize = 32 << 10;

/// How fast requests must be answered, in percent of how fast they are without waiting.
const GOOD: u64 = 94;

/// How long a wait may last, and how much longer for each request.
const PATIENCE: Duration = Duration::from_micros(100);
const PATIENCE_EACH: Duration = Duration::from_micros(20);

/// What is waited for, and how well that goes.
#[derive(Debug)]
pub(crate) struct RxCoalescing {
    /// Requests to wait for; zero if none is to wait for another.
    level: usize,
    trial: Option<Trial>,
    /// Slices until the next trial.
    rest: u32,
    /// The same after the next number that is no good.
    next_rest: u32,
    /// Bytes of a request.
    size: usize,
    /// The same in the turn that was last.
    latest: usize,
    slice: Slice,
}

/// A number that is tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    level: usize,
    slices: u32,
    /// Nanoseconds of a request in each slice, without waiting and with.
    took: [[u64; TRIAL as usize]; 2],
}

/// What was answered with one number.
#[derive(Debug)]
struct Slice {
    since: Instant,
    requests: u32,
    bytes: usize,
    /// The most requests of one turn.
    most: u32,
    /// Waits that were for nothing.
    vain: u32,
}

impl Slice {
    fn new(since: Instant) -> Self {
        Self { since, requests: 0, bytes: 0, most: 0, vain: 0 }
    }
}

impl RxCoalescing {
    /// Waits for nothing.
    pub(crate) fn new(now: Instant) -> Self {
        let slice = Slice::new(now);
        Self { level: 0, trial: None, rest: 0, next_rest: REST, size: 0, latest: 0, slice }
    }

    /// So many requests were answered in a turn, for which so many bytes had come.
    pub(crate) fn answered(&mut self, now: Instant, requests: u32, bytes: usize) {
        self.latest = bytes / usize::try_from(requests).unwrap_or(usize::MAX).max(1);
        let slice = &mut self.slice;
        slice.requests = slice.requests.saturating_add(requests);
        slice.bytes = slice.bytes.saturating_add(bytes);
        slice.most = slice.most.max(requests);
        if slice.requests >= SLICE {
            self.size = slice.bytes / usize::try_from(slice.requests).unwrap_or(usize::MAX);
            let took = now.duration_since(slice.since).as_nanos() / u128::from(slice.requests);
            self.judge(u64::try_from(took).unwrap_or(u64::MAX));
            self.slice = Slice::new(now);
        }
    }

    /// A slice is over, in which a request took so many nanoseconds.
    fn judge(&mut self, took: u64) {
        match self.trial.take() {
            Some(trial) => self.go_on(trial, took),
            None if self.rest > 0 => self.rest -= 1,
            None if self.level > 0 || self.slice.most >= EVIDENCE => self.try_out(FEWEST),
            None => {}
        }
    }

    fn try_out(&mut self, level: usize) {
        self.level = level;
        self.trial = Some(Trial { level, slices: 0, took: [[u64::MAX; TRIAL as usize]; 2] });
    }

    fn go_on(&mut self, mut trial: Trial, took: u64) {
        let [alone, together] = &mut trial.took;
        let all = if self.level == 0 { alone } else { together };
        // The list stays sorted: what is in it at first is more than all.
        let at = all.partition_point(|&other| other < took).min(all.len() - 1);
        all[at..].rotate_right(1);
        all[at] = took;
        trial.slices += 1;
        if trial.slices < 2 * TRIAL {
            self.level = if self.level == 0 { trial.level } else { 0 };
            self.trial = Some(trial);
        } else {
            self.decide(trial);
        }
    }

    fn decide(&mut self, Trial { level, took, .. }: Trial) {
        let [alone, together] = took.map(|all| all[all.len() / 2]);
        if together.saturating_mul(GOOD) > alone.saturating_mul(100) {
            self.give_up(if level > FEWEST { level / 2 } else { 0 });
        } else if level < MOST {
            self.try_out((level * 2).min(MOST));
        } else {
            (self.level, self.rest, self.next_rest) = (level, KEEP, REST);
        }
    }

    fn give_up(&mut self, level: usize) {
        (self.level, self.trial, self.rest) = (level, None, self.next_rest);
        self.next_rest = (self.next_rest * 2).min(LONG_REST);
    }

    /// How many bytes each request had that was answered in the last turn that answered any.
    pub(crate) fn latest(&self) -> usize {
        self.latest
    }

    /// What was waited for did not come in time. Once in a while that may be, with a number that was good until then.
    pub(crate) fn timed_out(&mut self, now: Instant) {
        self.slice.vain += 1;
        if self.trial.is_some() || self.slice.vain > 1 {
            self.give_up(0);
            self.slice = Slice::new(now);
        }
    }

    /// How many bytes to wait for, and how long; nothing if the first are enough.
    pub(crate) fn wanted(&self) -> Option<(usize, Duration)> {
        let level = self.level.min(BYTES / self.size.max(1));
        let count = u32::try_from(level).unwrap_or(0);
        (level > 1).then(|| (level * self.size, PATIENCE + PATIENCE_EACH * count))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// Has slices pass, eight requests in a turn, each of which takes as long as `cost` says for the number of its slice;
    /// gives the number after that.
    fn pass(rx_coalescing: &mut RxCoalescing, slices: u32, cost: fn(usize) -> u64) -> usize {
        for _ in 0..slices * SLICE / 8 {
            let now =
                rx_coalescing.slice.since + Duration::from_micros(cost(rx_coalescing.level) * 8);
            let passed = Duration::from_micros(cost(rx_coalescing.level) * 8)
                * rx_coalescing.slice.requests
                / 8;
            rx_coalescing.answered(now + passed, 8, 8 * 28);
        }
        rx_coalescing.level
    }

    const TRIALS: u32 = 1 + 2 * TRIAL;

    #[test]
    fn a_number_that_costs_the_client_nothing_stays_and_is_tried_anew_at_last() {
        let mut rx_coalescing = RxCoalescing::new(Instant::now());
        assert_eq!(pass(&mut rx_coalescing, TRIALS + 2 * TRIAL, |_| 10), MOST);
        assert_eq!(rx_coalescing.wanted().unwrap().0, MOST * 28);
        assert_eq!(pass(&mut rx_coalescing, KEEP, |_| 30), MOST);
        assert_eq!(pass(&mut rx_coalescing, TRIALS, |level| if level == 0 { 10 } else { 30 }), 0);
    }

    #[test]
    fn a_number_that_slows_the_client_is_given_up_for_longer_and_longer() {
        let slow = |level| if level == 0 { 10 } else { 12 };
        let mut rx_coalescing = RxCoalescing::new(Instant::now());
        for rest in [REST, 2 * REST, 4 * REST] {
            assert_eq!((pass(&mut rx_coalescing, TRIALS, slow), rx_coalescing.rest), (0, rest));
            assert_eq!(rx_coalescing.wanted(), None);
            assert_eq!((pass(&mut rx_coalescing, rest, slow), rx_coalescing.rest), (0, 0));
        }
        // Sixteen is too many where eight are not.
        let slower = |level| if level == MOST { 12 } else { 10 };
        assert_eq!(pass(&mut rx_coalescing, TRIALS + 2 * TRIAL, slower), FEWEST);
    }

    #[test]
    fn who_asks_for_one_thing_at_a_time_is_never_kept_waiting() {
        let mut now = Instant::now();
        let mut rx_coalescing = RxCoalescing::new(now);
        for _ in 0..100 * SLICE {
            now += Duration::from_micros(10);
            rx_coalescing.answered(now, 1, 28);
            assert_eq!(rx_coalescing.wanted(), None);
        }
    }

    #[test]
    fn waits_that_were_for_nothing_end_waiting_and_large_requests_begin_none() {
        let now = Instant::now();
        let mut rx_coalescing = RxCoalescing::new(now);
        assert_eq!(pass(&mut rx_coalescing, 1, |_| 10), FEWEST);
        rx_coalescing.timed_out(now);
        assert_eq!(rx_coalescing.wanted(), None);
        assert_eq!(pass(&mut rx_coalescing, REST + TRIALS + 2 * TRIAL, |_| 10), MOST);
        rx_coalescing.timed_out(now);
        assert!(rx_coalescing.wanted().is_some());
        rx_coalescing.timed_out(now);
        assert_eq!(rx_coalescing.wanted(), None);
        let mut rx_coalescing = RxCoalescing::new(now);
        rx_coalescing.answered(now, SLICE, SLICE as usize * (128 << 10));
        assert_eq!((rx_coalescing.level, rx_coalescing.wanted()), (FEWEST, None));
    }
}
