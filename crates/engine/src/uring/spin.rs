//! Whether to poll for the next event before sleeping, from the length of the latest waits.

use std::time::Duration;

/// Waits count for at most this multiple of the polling time, so that a few short waits outweigh
/// one long pause.
const CAP: u32 = 8;

/// The usual length of waits, and the limit on polling.
#[derive(Debug)]
pub(crate) struct Spin {
    most: Duration,
    usual: Duration,
    /// Number of waits during which polling is suspended.
    blind: u32,
    /// The value of `blind` after the next poll without success.
    next_blind: u32,
}

/// Upper limit of `blind`.
const BLIND: u32 = 256;

impl Spin {
    /// Returns a state that polls for at most `most` before each sleep.
    pub(crate) fn new(most: Duration) -> Self {
        Self { most, usual: most * CAP, blind: 0, next_blind: 1 }
    }

    /// Returns how long to poll now; `None` if the wait will probably be longer than that.
    pub(crate) fn budget(&self) -> Option<Duration> {
        let watches = !self.most.is_zero() && self.usual <= self.most && self.blind == 0;
        watches.then_some(self.most)
    }

    /// Records the length of a wait.
    pub(crate) fn waited(&mut self, wait: Duration) {
        self.usual = (self.usual * 3 + wait.min(self.most * CAP)) / 4;
        self.blind = self.blind.saturating_sub(1);
    }

    /// Records whether an event arrived during a poll. If often none arrives although waits are
    /// short, the thread that would cause it shares this CPU, and runs only while this one sleeps.
    pub(crate) fn watched(&mut self, came: bool) {
        if came {
            (self.blind, self.next_blind) = (0, 1);
        } else {
            // The current wait is counted when it ends.
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
    fn only_short_waits_are_polled() {
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
    fn unsuccessful_polling_is_reduced() {
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
    fn zero_polling_time_disables_polling() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.waited(Duration::ZERO);
        assert_eq!(spin.budget(), None);
    }
}
