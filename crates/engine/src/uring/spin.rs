//! Whether to poll for the next event before sleeping, from the length of the latest waits.

use std::time::Duration;

/// Waits count for at most this multiple of the polling time, so that a few short waits outweigh
/// one long pause.
const CAP: u32 = 8;

/// The usual length of waits, and the limit on polling.
#[derive(Debug)]
pub(crate) struct Spin {
    limit: Duration,
    usual: Duration,
    /// Number of waits during which polling is suspended.
    suspended: u32,
    /// The value of `suspended` after the next poll without success.
    next_suspended: u32,
}

/// Upper limit of `suspended`.
const MAX_SUSPENDED: u32 = 256;

impl Spin {
    /// Returns a state that polls for at most `limit` before each sleep.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, usual: limit * CAP, suspended: 0, next_suspended: 1 }
    }

    /// Returns how long to poll now; `None` if the wait will probably be longer than that.
    pub(crate) fn budget(&self) -> Option<Duration> {
        let polls = !self.limit.is_zero() && self.usual <= self.limit && self.suspended == 0;
        polls.then_some(self.limit)
    }

    /// Records the length of a wait.
    pub(crate) fn waited(&mut self, wait: Duration) {
        self.usual = (self.usual * 3 + wait.min(self.limit * CAP)) / 4;
        self.suspended = self.suspended.saturating_sub(1);
    }

    /// Records whether an event arrived during a poll. If often none arrives although waits are
    /// short, the thread that would cause it shares this CPU, and runs only while this one sleeps.
    pub(crate) fn polled(&mut self, has_event: bool) {
        if has_event {
            (self.suspended, self.next_suspended) = (0, 1);
        } else {
            // The current wait is counted when it ends.
            self.suspended = self.next_suspended + 1;
            self.next_suspended = (self.next_suspended * 2).min(MAX_SUSPENDED);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    #[test]
    fn only_short_waits_are_polled() {
        let mut spin = Spin::new(LIMIT);
        assert_eq!(spin.budget(), None);
        (0..20).for_each(|_| spin.waited(Duration::from_micros(10)));
        assert_eq!(spin.budget(), Some(LIMIT));
        spin.waited(Duration::from_secs(1));
        assert_eq!(spin.budget(), None);
        (0..8).for_each(|_| spin.waited(Duration::from_micros(10)));
        assert_eq!(spin.budget(), Some(LIMIT));
    }

    #[test]
    fn unsuccessful_polling_is_reduced() {
        let mut spin = Spin::new(LIMIT);
        let mut polled = 0;
        for _ in 0..4 * MAX_SUSPENDED {
            if spin.budget().is_some() {
                spin.polled(false);
                polled += 1;
            }
            spin.waited(Duration::from_micros(10));
        }
        assert!((8..16).contains(&polled), "{polled}");
        spin.polled(true);
        assert_eq!(spin.budget(), Some(LIMIT));
    }

    #[test]
    fn zero_polling_time_disables_polling() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.waited(Duration::ZERO);
        assert_eq!(spin.budget(), None);
    }
}
