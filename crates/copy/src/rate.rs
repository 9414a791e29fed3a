//! Rate limit and rate measurement of a copy.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rate limit shared by all threads. A transfer is charged when it starts and delays the next one,
/// so it may be of any size.
#[derive(Debug)]
pub(crate) struct RateLimit {
    /// Bytes per second; `None` for no limit.
    rate: Option<u64>,
    /// When the next transfer may start.
    available_at: Instant,
}

impl RateLimit {
    pub(crate) fn new(rate: Option<u64>, now: Instant) -> Self {
        Self { rate: rate.map(|rate| rate.max(1)), available_at: now }
    }

    /// Returns the time until the next transfer may start.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        self.available_at.saturating_duration_since(now)
    }

    /// Charges a transfer of `bytes`.
    pub(crate) fn charge(&mut self, bytes: u64, now: Instant) {
        let Some(rate) = self.rate else { return };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.available_at = self.available_at.max(now).checked_add(cost).unwrap_or(now);
    }
}

/// Measures the growth of a counter over a sliding window.
#[derive(Debug)]
pub(crate) struct RateMeter {
    samples: VecDeque<(Instant, u64)>,
    max: u64,
}

/// Length of the window of [`RateMeter`].
const WINDOW: Duration = Duration::from_secs(10);

impl RateMeter {
    pub(crate) fn new(now: Instant, value: u64) -> Self {
        Self { samples: [(now, value)].into(), max: value }
    }

    /// Adds a sample and returns the largest value so far.
    pub(crate) fn sample(&mut self, now: Instant, value: u64) -> u64 {
        self.max = self.max.max(value);
        self.samples.push_back((now, self.max));
        let old = |sample: Option<&(Instant, u64)>| {
            sample.is_some_and(|(then, _)| now.duration_since(*then) > WINDOW)
        };
        while self.samples.len() > 2 && old(self.samples.get(1)) {
            self.samples.pop_front();
        }
        self.max
    }

    /// Growth per second.
    pub(crate) fn rate(&self) -> u64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return 0;
        };
        let nanos = last.0.duration_since(first.0).as_nanos().max(1);
        let per_second = u128::from(last.1 - first.1) * 1_000_000_000 / nanos;
        u64::try_from(per_second).unwrap_or(u64::MAX)
    }

    /// Time until the counter reaches `total`; `None` if it does not grow.
    pub(crate) fn eta(&self, total: u64) -> Option<Duration> {
        let rest = total.saturating_sub(self.max);
        let millis =
            u128::from(rest) * 1000 / u128::from(Some(self.rate()).filter(|rate| *rate > 0)?);
        Some(Duration::from_millis(u64::try_from(millis).ok()?))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn rate_limit_holds_for_any_piece_size() {
        let start = Instant::now();
        let mut limit = RateLimit::new(Some(1 << 20), start);
        let mut now = start;
        for piece in [1 << 10, 1 << 18, 10 << 20] {
            let begun = now;
            for _ in 0..(10 << 20) / piece {
                now += limit.delay(now);
                limit.charge(piece, now);
            }
            now += limit.delay(now);
            let error = (now - begun).abs_diff(Duration::from_secs(10));
            assert!(error < Duration::from_millis(1), "{piece}: {:?}", now - begun);
        }
        let mut unlimited = RateLimit::new(None, start);
        unlimited.charge(u64::MAX, start);
        assert_eq!(unlimited.delay(start), Duration::ZERO);
    }

    #[test]
    fn r47_meter_is_monotonic_and_estimates_remaining_time() {
        let start = Instant::now();
        let mut meter = RateMeter::new(start, 1000);
        for second in 1..=20u64 {
            let now = start + Duration::from_secs(second);
            assert_eq!(meter.sample(now, 1000 + second * 100), 1000 + second * 100);
            assert_eq!(meter.sample(now, 0), 1000 + second * 100);
        }
        assert_eq!(meter.rate(), 100);
        assert_eq!(meter.eta(4000), Some(Duration::from_secs(10)));
        let mut still = RateMeter::new(start, 5);
        still.sample(start + Duration::from_secs(1), 5);
        assert_eq!(still.eta(6), None);
    }
}
