//! How an end of a copy is doing, over all connections to it: since when it has answered nothing, and for how long it is lost.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How an end is doing.
#[derive(Debug)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Requests in flight on all connections.
    in_flight: usize,
    /// When a request was answered last, or the first of those in flight was sent.
    answered: Instant,
    /// Since when connections to it are lost or cannot be made, with no request answered.
    lost: Option<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(State { in_flight: 0, answered: Instant::now(), lost: None }))
    }
}

impl Health {
    /// A request is sent.
    pub(crate) fn sent(&self) {
        let mut state = self.lock();
        if state.in_flight == 0 {
            state.answered = Instant::now();
        }
        state.in_flight += 1;
    }

    /// A request was answered, well or not.
    pub(crate) fn answered(&self) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        (state.answered, state.lost) = (Instant::now(), None);
    }

    /// A connection was lost with so many requests in flight, or could not be made.
    pub(crate) fn lost(&self, in_flight: usize) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(in_flight);
        state.lost.get_or_insert_with(Instant::now);
    }

    /// For how long connections have been lost with no request answered in between.
    pub(crate) fn lost_for(&self) -> Duration {
        self.lock().lost.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// For how long the requests in flight have waited with no answer to any of them; nothing without requests.
    pub(crate) fn stalled_for(&self) -> Option<Duration> {
        let state = self.lock();
        (state.in_flight > 0).then(|| state.answered.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
