//! Whether to watch for the next event for a moment before sleeping. It knows only how long the last waits were.

use std::time::Duration;

/// Waits longer than this many budgets count as this many, so that one pause is forgotten after a few short waits.
const CAP: u32 = 8;

/// The usual length of the waits between events, and what may be spent on watching.
#[derive(Debug)]
pub(crate) struct Spin {
    most: Duration,
    usual: Duration,
}

impl Spin {
    /// Watches for `most` at most before each sleep.
    pub(crate) fn new(most: Duration) -> Self {
        Self { most, usual: most * CAP }
    }

    /// How long to watch now; nothing if the wait will probably be longer than that.
    pub(crate) fn budget(&self) -> Option<Duration> {
        (!self.most.is_zero() && self.usual <= self.most).then_some(self.most)
    }

    /// Takes note of the length of a wait.
    pub(crate) fn waited(&mut self, wait: Duration) {
        self.usual = (self.usual * 3 + wait.min(self.most * CAP)) / 4;
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    #[test]
    fn short_waits_are_watched_and_long_ones_slept() {
        let mut spin = Spin::new(MOST);
        assert_eq!(spin.budget(), None);
        (0..20).for_each(|_| spin.waited(Duration::from_micros(10)));
        assert_eq!(spin.budget(), Some(MOST));
        spin.waited(Duration::from_secs(1));
        assert_eq!(spin.budget(), None);
        (0..8).for_each(|_| spin.waited(Duration::from_micros(10)));
        assert_eq!(spin.budget(), Some(MOST));
    }

    #[test]
    fn no_budget_is_no_watching() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.waited(Duration::ZERO);
        assert_eq!(spin.budget(), None);
    }
}
