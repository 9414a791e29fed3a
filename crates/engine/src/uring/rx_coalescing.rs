//! Receive coalescing: how many requests of a connection to wait for before any is received. A pure
//! controller; the connection reports what was answered and when.
//!
//! A client with many requests in flight tends to send the next one as each completes, so that
//! requests arrive one by one. A wake-up for each costs more than the answer. Coalescing a few
//! costs the client nothing as long as it has other answers to process. Whether it has cannot be
//! observed directly, so it is measured: a level is kept if requests are answered about as fast as
//! without waiting. Across a network with high latency that is not the case.

use std::time::{Duration, Instant};

/// Requests per measurement.
const SLICE: u32 = 1024;

/// Requests before each measurement. Coalescing makes the client send in batches, and the batches
/// last for a while after it has ended: measured at once, its absence seemed as slow.
const WARM_UP: u32 = 1024;

/// Slices with a level, and as many without waiting, alternating, until the medians are compared.
/// Other load on the machine slows some slices of both kinds.
const TRIAL: u32 = 8;

/// This many requests in one turn show that the client has several in flight.
const MIN_REQUESTS: u32 = 4;

/// The first level that is tried, and the largest.
const MIN_LEVEL: usize = 8;
const MAX_LEVEL: usize = 16;

/// Slices until the next trial: after a failed level at first and at most, and after all levels
/// succeeded.
const REST: u32 = 8;
const LONG_REST: u32 = 64;
const KEEP: u32 = 512;

/// Most bytes to wait for. The peer's send window covers that many.
const MAX_BYTES: usize = 32 << 10;

/// The rate that a level must reach, in percent of the rate without waiting.
const MIN_RATE_PERCENT: u64 = 100;

/// Timeout of a wait: constant part, and part per request.
const TIMEOUT: Duration = Duration::from_micros(100);
const TIMEOUT_PER_REQUEST: Duration = Duration::from_micros(20);

/// The controller of one connection.
#[derive(Debug)]
pub(crate) struct RxCoalescing {
    /// Requests to wait for; zero to disable coalescing.
    level: usize,
    trial: Option<Trial>,
    /// Slices until the next trial.
    rest: u32,
    /// The value of `rest` after the next failed level.
    next_rest: u32,
    /// Average bytes per request.
    size: usize,
    /// Bytes per request in the latest turn.
    latest: usize,
    slice: Slice,
}

/// A level under trial.
#[derive(Debug, Clone, Copy)]
struct Trial {
    level: usize,
    slices: u32,
    /// The smallest nanoseconds per request, sorted, without waiting and with.
    took: [[u64; TRIAL as usize]; 2],
}

/// Measurement of one slice.
#[derive(Debug)]
struct Slice {
    /// Requests of the warm-up so far.
    warm_up: u32,
    since: Instant,
    requests: u32,
    bytes: usize,
    /// Most requests in one turn.
    max: u32,
    /// Waits that timed out.
    timeouts: u32,
}

impl Slice {
    fn new(since: Instant) -> Self {
        Self { warm_up: 0, since, requests: 0, bytes: 0, max: 0, timeouts: 0 }
    }
}

impl RxCoalescing {
    /// Returns a controller with coalescing disabled.
    pub(crate) fn new(now: Instant) -> Self {
        let slice = Slice::new(now);
        Self { level: 0, trial: None, rest: 0, next_rest: REST, size: 0, latest: 0, slice }
    }

    /// Reports that `requests` were answered in a turn in which `bytes` were received.
    pub(crate) fn answered(&mut self, now: Instant, requests: u32, bytes: usize) {
        self.latest = bytes / usize::try_from(requests).unwrap_or(usize::MAX).max(1);
        let slice = &mut self.slice;
        if slice.warm_up < WARM_UP {
            slice.warm_up = slice.warm_up.saturating_add(requests);
            slice.since = now;
            return;
        }
        slice.requests = slice.requests.saturating_add(requests);
        slice.bytes = slice.bytes.saturating_add(bytes);
        slice.max = slice.max.max(requests);
        if slice.requests >= SLICE {
            self.size = slice.bytes / usize::try_from(slice.requests).unwrap_or(usize::MAX);
            let took = now.duration_since(slice.since).as_nanos() / u128::from(slice.requests);
            self.end_slice(u64::try_from(took).unwrap_or(u64::MAX));
            self.slice = Slice::new(now);
        }
    }

    /// Ends a slice that took `took` nanoseconds per request.
    fn end_slice(&mut self, took: u64) {
        match self.trial.take() {
            Some(trial) => self.continue_trial(trial, took),
            None if self.rest > 0 => self.rest -= 1,
            None if self.level > 0 || self.slice.max >= MIN_REQUESTS => self.start_trial(MIN_LEVEL),
            None => {}
        }
    }

    fn start_trial(&mut self, level: usize) {
        self.level = level;
        self.trial = Some(Trial { level, slices: 0, took: [[u64::MAX; TRIAL as usize]; 2] });
    }

    fn continue_trial(&mut self, mut trial: Trial, took: u64) {
        let [alone, together] = &mut trial.took;
        let all = if self.level == 0 { alone } else { together };
        // The list stays sorted: its initial values exceed all measurements.
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
        if together.saturating_mul(MIN_RATE_PERCENT) > alone.saturating_mul(100) {
            self.set_level_and_rest(if level > MIN_LEVEL { level / 2 } else { 0 });
        } else if level < MAX_LEVEL {
            self.start_trial((level * 2).min(MAX_LEVEL));
        } else {
            (self.level, self.rest, self.next_rest) = (level, KEEP, REST);
        }
    }

    fn set_level_and_rest(&mut self, level: usize) {
        (self.level, self.trial, self.rest) = (level, None, self.next_rest);
        self.next_rest = (self.next_rest * 2).min(LONG_REST);
    }

    /// Returns the bytes per request in the latest turn with an answer.
    pub(crate) fn latest(&self) -> usize {
        self.latest
    }

    /// Reports that a wait timed out. A level that has proven good may time out once per slice.
    pub(crate) fn timed_out(&mut self, now: Instant) {
        self.slice.timeouts += 1;
        if self.trial.is_some() || self.slice.timeouts > 1 {
            self.set_level_and_rest(0);
            self.slice = Slice::new(now);
        }
    }

    /// Returns the number of bytes to wait for and the timeout; `None` if coalescing is disabled.
    pub(crate) fn wanted(&self) -> Option<(usize, Duration)> {
        let level = self.level.min(MAX_BYTES / self.size.max(1));
        let count = u32::try_from(level).unwrap_or(0);
        (level > 1).then(|| (level * self.size, TIMEOUT + TIMEOUT_PER_REQUEST * count))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// Simulates slices with eight requests per turn, where `cost` is the time per request in
    /// microseconds for a level. Returns the level after that.
    fn pass(coalescing: &mut RxCoalescing, slices: u32, cost: fn(usize) -> u64) -> usize {
        for _ in 0..slices * (WARM_UP + SLICE) / 8 {
            let now = coalescing.slice.since + Duration::from_micros(cost(coalescing.level) * 8);
            let passed =
                Duration::from_micros(cost(coalescing.level) * 8) * coalescing.slice.requests / 8;
            coalescing.answered(now + passed, 8, 8 * 28);
        }
        coalescing.level
    }

    const TRIALS: u32 = 1 + 2 * TRIAL;

    #[test]
    fn good_level_is_kept_and_tried_again_later() {
        let mut coalescing = RxCoalescing::new(Instant::now());
        assert_eq!(pass(&mut coalescing, TRIALS + 2 * TRIAL, |_| 10), MAX_LEVEL);
        assert_eq!(coalescing.wanted().unwrap().0, MAX_LEVEL * 28);
        assert_eq!(pass(&mut coalescing, KEEP, |_| 30), MAX_LEVEL);
        assert_eq!(pass(&mut coalescing, TRIALS, |level| if level == 0 { 10 } else { 30 }), 0);
    }

    #[test]
    fn bad_level_is_abandoned_with_growing_intervals() {
        let slow = |level| if level == 0 { 10 } else { 12 };
        let mut coalescing = RxCoalescing::new(Instant::now());
        for rest in [REST, 2 * REST, 4 * REST] {
            assert_eq!((pass(&mut coalescing, TRIALS, slow), coalescing.rest), (0, rest));
            assert_eq!(coalescing.wanted(), None);
            assert_eq!((pass(&mut coalescing, rest, slow), coalescing.rest), (0, 0));
        }
        // Sixteen are too many where eight are not.
        let slower = |level| if level == MAX_LEVEL { 12 } else { 10 };
        assert_eq!(pass(&mut coalescing, TRIALS + 2 * TRIAL, slower), MIN_LEVEL);
    }

    #[test]
    fn batches_that_outlast_coalescing_do_not_hide_its_cost() {
        let mut coalescing = RxCoalescing::new(Instant::now());
        let (mut now, mut since_coalesced) = (coalescing.slice.since, u32::MAX);
        for _ in 0..TRIALS * (WARM_UP + SLICE) / 8 {
            since_coalesced =
                if coalescing.level > 0 { 0 } else { since_coalesced.saturating_add(8) };
            now += Duration::from_micros(if since_coalesced < WARM_UP { 12 } else { 10 } * 8);
            coalescing.answered(now, 8, 8 * 28);
        }
        assert_eq!((coalescing.level, coalescing.rest), (0, REST));
    }

    #[test]
    fn queue_depth_of_one_is_never_delayed() {
        let mut now = Instant::now();
        let mut coalescing = RxCoalescing::new(now);
        for _ in 0..100 * SLICE {
            now += Duration::from_micros(10);
            coalescing.answered(now, 1, 28);
            assert_eq!(coalescing.wanted(), None);
        }
    }

    #[test]
    fn timeouts_and_large_requests_disable_coalescing() {
        let now = Instant::now();
        let mut coalescing = RxCoalescing::new(now);
        assert_eq!(pass(&mut coalescing, 1, |_| 10), MIN_LEVEL);
        coalescing.timed_out(now);
        assert_eq!(coalescing.wanted(), None);
        assert_eq!(pass(&mut coalescing, REST + TRIALS + 2 * TRIAL, |_| 10), MAX_LEVEL);
        coalescing.timed_out(now);
        assert!(coalescing.wanted().is_some());
        coalescing.timed_out(now);
        assert_eq!(coalescing.wanted(), None);
        let mut coalescing = RxCoalescing::new(now);
        coalescing.answered(now, WARM_UP, 0);
        coalescing.answered(now, SLICE, SLICE as usize * (128 << 10));
        assert_eq!((coalescing.level, coalescing.wanted()), (MIN_LEVEL, None));
    }
}
