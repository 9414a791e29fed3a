//! State of an endpoint over all connections to it: how long it has been lost or unresponsive.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Requests in flight on all connections.
    in_flight: usize,
    /// When a request was last answered, or the first of those in flight was sent.
    answered: Instant,
    /// Since when connections are lost or cannot be made, without an answered request.
    lost: Option<Instant>,
    /// Whether a connection was ever lost or could not be made.
    was_lost: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(State {
            in_flight: 0,
            answered: Instant::now(),
            lost: None,
            was_lost: false,
        }))
    }
}

impl Health {
    /// Records a sent request.
    pub(crate) fn sent(&self) {
        let mut state = self.lock();
        if state.in_flight == 0 {
            state.answered = Instant::now();
        }
        state.in_flight += 1;
    }

    /// Records an answered request, successful or not.
    pub(crate) fn answered(&self) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        (state.answered, state.lost) = (Instant::now(), None);
    }

    /// Records a lost connection with this number of requests in flight, or a failed attempt.
    pub(crate) fn lost(&self, in_flight: usize) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(in_flight);
        state.lost.get_or_insert_with(Instant::now);
        state.was_lost = true;
    }

    /// How long connections have been lost without an answered request in between.
    pub(crate) fn lost_for(&self) -> Duration {
        self.lock().lost.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether a connection was ever lost or could not be made.
    pub(crate) fn was_lost(&self) -> bool {
        self.lock().was_lost
    }

    /// How long all requests in flight have been unanswered; `None` if there are none.
    pub(crate) fn stalled_for(&self) -> Option<Duration> {
        let state = self.lock();
        (state.in_flight > 0).then(|| state.answered.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
