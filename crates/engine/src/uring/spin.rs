//! Whether to watch for the next event for a moment before sleeping. It knows only how long the last waits were, and which of
//! them were watched.

use std::time::Duration;

/// Waits longer than this many budgets count as this many, so that one pause is forgotten after a few short waits.
const CAP: u32 = 8;

/// The usual length of the waits between events, and what may be spent on watching.
#[derive(Debug)]
pub(crate) struct Spin {
    most: Duration,
    usual: Duration,
    /// Waits that are not to be watched.
    blind: u32,
    /// The same after the next that is watched in vain.
    next_blind: u32,
}

/// After watching in vain so often, only one wait in so many is watched.
const BLIND: u32 = 256;

impl Spin {
    /// Watches for `most` at most before each sleep.
    pub(crate) fn new(most: Duration) -> Self {
        Self { most, usual: most * CAP, blind: 0, next_blind: 1 }
    }

    /// How long to watch now; nothing if the wait will probably be longer than that.
    pub(crate) fn budget(&self) -> Option<Duration> {
        let watches = !self.most.is_zero() && self.usual <= self.most && self.blind == 0;
        watches.then_some(self.most)
    }

    /// Takes note of the length of a wait.
    pub(crate) fn waited(&mut self, wait: Duration) {
        self.usual = (self.usual * 3 + wait.min(self.most * CAP)) / 4;
        self.blind = self.blind.saturating_sub(1);
    }

    /// Takes note whether something came while it watched. If it often does not, though waits are short, then who is waited
    /// for shares the processor, and gets it only when this sleeps.
    pub(crate) fn watched(&mut self, came: bool) {
        if came {
            (self.blind, self.next_blind) = (0, 1);
        } else {
            // The wait that is under way is counted when it ends.
            self.blind = self.next_blind + 1;
            self.next_blind = (self.next_blind * 2).min(BLIND);
        }
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
    fn watching_in_vain_is_done_less_and_less() {
        let mut spin = Spin::new(MOST);
        let mut watched = 0;
        for _ in 0..4 * BLIND {
            if spin.budget().is_some() {
                spin.watched(false);
                watched += 1;
            }
            spin.waited(Duration::from_micros(10));
        }
        assert!((8..16).contains(&watched), "{watched}");
        spin.watched(true);
        assert_eq!(spin.budget(), Some(MOST));
    }

    #[test]
    fn no_budget_is_no_watching() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.waited(Duration::ZERO);
        assert_eq!(spin.budget(), None);
    }
}
