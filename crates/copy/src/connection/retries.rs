//! Requests that the target could not carry out now: they are sent again on the same connection,
//! after a pause that grows, as Linux does. A lost connection would cost all requests in flight and
//! what is not flushed.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// The first pause.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a request that is aborted is sent again: as often as Linux does.
const MAX_ABORTED: u32 = 5;

/// Why a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The target or the disk is busy or not ready: time passes by which it may be.
    Busy,
    /// It was aborted, for a reason that may not pass.
    Aborted,
}

/// The attempts of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempts {
    since: Instant,
    aborted: u32,
}

impl Attempts {
    /// The first attempt begins now.
    pub(super) fn begin() -> Self {
        Self { since: Instant::now(), aborted: 0 }
    }

    /// Returns whether to try again: an aborted request a few times, one that finds the target
    /// busy until `timeout` after the first attempt.
    pub(super) fn again(&mut self, cause: Cause, timeout: Duration) -> bool {
        match cause {
            Cause::Busy => self.since.elapsed() < timeout,
            Cause::Aborted => {
                self.aborted += 1;
                self.aborted <= MAX_ABORTED
            }
        }
    }
}

/// The requests of a connection that wait to be sent again. Until they are, no other is begun.
#[derive(Debug)]
pub(super) struct Retries<T> {
    waiting: Vec<T>,
    backoff: Backoff,
    resume_at: Option<Instant>,
    /// Most requests in flight.
    limit: usize,
    /// Requests that succeeded since the limit was changed.
    succeeded: usize,
    max: usize,
}

impl<T> Retries<T> {
    /// No request waits; at most `max` are in flight.
    pub(super) fn new(max: usize) -> Self {
        Self {
            waiting: Vec::new(),
            backoff: new_backoff(),
            resume_at: None,
            limit: max,
            succeeded: 0,
            max,
        }
    }

    /// Lets a request wait.
    pub(super) fn postpone(&mut self, request: T) {
        self.waiting.push(request);
        if self.resume_at.is_none() {
            self.resume_at = Some(Instant::now() + self.backoff.next());
        }
    }

    /// Records that the target has room for no more than the `in_flight` requests that it has.
    pub(super) fn target_full(&mut self, in_flight: usize) {
        (self.limit, self.succeeded) = (in_flight.max(1), 0);
    }

    /// Records that a request was carried out. The limit grows slowly: by one as often as that many
    /// requests succeed.
    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
        self.succeeded += 1;
        if self.limit < self.max && self.succeeded >= self.limit {
            (self.limit, self.succeeded) = (self.limit + 1, 0);
        }
    }

    /// Returns how many more requests may be begun while `in_flight` are in flight.
    pub(super) fn room(&self, in_flight: usize) -> usize {
        if self.waiting.is_empty() { self.limit.saturating_sub(in_flight) } else { 0 }
    }

    /// Returns whether no request waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a request that is to be sent now, while `in_flight` are in flight.
    pub(super) fn next(&mut self, in_flight: usize) -> Option<T> {
        if self.resume_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        self.resume_at = None;
        if in_flight < self.limit { self.waiting.pop() } else { None }
    }

    /// When the pause ends.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.resume_at
    }
}

/// The pauses before a request is sent again.
pub(super) fn new_backoff() -> Backoff {
    Backoff::new(PAUSE)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn requests_wait_for_one_pause_together() {
        let mut retries = Retries::new(4);
        assert_eq!((retries.room(1), retries.next(0)), (3, None));
        retries.postpone(1);
        let at = retries.resume_at().unwrap();
        retries.postpone(2);
        assert_eq!((retries.resume_at(), retries.room(0), retries.next(0)), (Some(at), 0, None));
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        assert_eq!((retries.next(0), retries.next(0)), (Some(2), Some(1)));
        assert!(retries.is_empty() && retries.room(2) == 2);
    }

    #[test]
    fn full_target_gets_as_many_as_it_has_room_for() {
        let mut retries = Retries::<u8>::new(4);
        retries.target_full(2);
        assert_eq!((retries.room(0), retries.room(2), retries.room(3)), (2, 0, 0));
        (0..2).for_each(|_| retries.succeeded());
        assert_eq!(retries.room(0), 3);
        (0..100).for_each(|_| retries.succeeded());
        assert_eq!(retries.room(0), 4);
        retries.target_full(0);
        assert_eq!(retries.room(0), 1);
    }

    #[test]
    fn attempts_are_bounded_by_number_and_by_time() {
        let mut attempts = Attempts::begin();
        let timeout = Duration::from_secs(60);
        let aborted = (0..100).filter(|_| attempts.again(Cause::Aborted, timeout)).count();
        assert_eq!(aborted, 5);
        assert!(attempts.again(Cause::Busy, timeout));
        assert!(!attempts.again(Cause::Busy, Duration::ZERO));
    }
}
