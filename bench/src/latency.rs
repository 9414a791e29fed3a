//! A latency histogram, exact to three percent.

use std::time::Duration;

/// Buckets per power of two.
const STEPS: u32 = 32;

/// Durations by bucket.
#[derive(Debug, Clone)]
pub(crate) struct Latency {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: vec![0; 64 * STEPS as usize], count: 0 }
    }
}

impl Latency {
    /// Adds a duration.
    pub(crate) fn add(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.buckets[bucket(nanos)] += 1;
        self.count += 1;
    }

    /// Returns the percentile.
    pub(crate) fn percentile(&self, percent: u64) -> Duration {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen != 0 {
                return Duration::from_nanos(value(at));
            }
        }
        Duration::ZERO
    }
}

/// Small values have a bucket each; above, a power of two has [`STEPS`].
fn bucket(nanos: u64) -> usize {
    let power = nanos.ilog2();
    let shift = power.saturating_sub(STEPS.ilog2());
    let step = usize::try_from(nanos >> shift).unwrap_or(0);
    shift as usize * STEPS as usize + step
}

/// Returns the least value of a bucket.
fn value(bucket: usize) -> u64 {
    let shift = (bucket / STEPS as usize).saturating_sub(1);
    ((bucket - shift * STEPS as usize) as u64) << shift
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn bucket_starts_at_most_three_percent_below_its_values() {
        for nanos in [1, 31, 32, 33, 63, 64, 1000, 123_456, 987_654_321] {
            let begins = value(bucket(nanos));
            assert!(begins <= nanos && (nanos - begins) * 31 <= nanos, "{nanos} {begins}");
        }
    }

    #[test]
    fn percentiles_are_exact_to_a_bucket() {
        let mut latency = Latency::default();
        (1..=100).for_each(|micros| latency.add(Duration::from_micros(micros)));
        let close = |percent, micros: u64| {
            let nanos = u64::try_from(latency.percentile(percent).as_nanos()).unwrap();
            nanos.abs_diff(micros * 1000) * 30 <= micros * 1000
        };
        assert!(close(50, 50) && close(99, 99));
    }
}
