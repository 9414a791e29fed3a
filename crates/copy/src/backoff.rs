//! Pauses between attempts that fail.

use std::time::Duration;

/// The longest pause.
const MAX: Duration = Duration::from_secs(5);

/// A pause that doubles with each attempt, up to five seconds.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    next: Duration,
}

impl Backoff {
    /// A backoff whose first pause is `first`.
    pub(crate) fn new(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// Returns the pause before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(MAX);
        pause
    }

    /// Begins again with the first pause, after an attempt that succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pause_doubles_up_to_five_seconds() {
        let mut backoff = Backoff::new(Duration::from_millis(800));
        let pauses: Vec<u128> = (0..5).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 800);
    }
}
