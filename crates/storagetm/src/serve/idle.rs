//! Restart of a machine in target mode that no host uses, so that one without a screen comes back.

use std::time::{Duration, Instant};

/// The time without an attached host, and its limit.
#[derive(Debug)]
pub(super) struct IdleLimit {
    limit: Option<Duration>,
    /// When it is reached, if no host is attached until then.
    due: Option<Instant>,
}

impl IdleLimit {
    pub(super) fn new(limit: Option<Duration>, now: Instant) -> Self {
        Self { limit, due: limit.and_then(|limit| now.checked_add(limit)) }
    }

    /// Returns whether no host has been attached for as long as the limit.
    pub(super) fn is_reached(&mut self, is_attached: bool, now: Instant) -> bool {
        if is_attached {
            self.due = None;
        } else if self.due.is_none() {
            *self = Self::new(self.limit, now);
        }
        self.due().is_some_and(|due| due <= now)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn limit_starts_anew_when_the_last_host_detaches() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut limit = IdleLimit::new(Some(Duration::from_secs(60)), start);
        assert!(!limit.is_reached(false, at(59)));
        assert!(!limit.is_reached(true, at(60)));
        assert_eq!(limit.due(), None);
        assert!(!limit.is_reached(false, at(600)));
        assert_eq!(limit.due(), Some(at(660)));
        assert!(limit.is_reached(false, at(660)));
    }

    #[test]
    fn without_a_limit_it_is_never_reached() {
        let now = Instant::now();
        let mut limit = IdleLimit::new(None, now);
        assert!(!limit.is_reached(false, now + Duration::from_secs(1 << 30)));
        assert_eq!(limit.due(), None);
    }
}
