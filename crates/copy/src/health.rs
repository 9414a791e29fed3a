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
    waiting_since: Instant,
    /// Time of the first loss or failed attempt to connect since the last answer.
    lost_since: Option<Instant>,
    /// Whether a connection was ever lost or could not be made.
    was_lost: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(State {
            in_flight: 0,
            waiting_since: Instant::now(),
            lost_since: None,
            was_lost: false,
        }))
    }
}

impl Health {
    pub(crate) fn record_sent(&self) {
        let mut state = self.lock();
        if state.in_flight == 0 {
            state.waiting_since = Instant::now();
        }
        state.in_flight += 1;
    }

    /// Records an answered request, successful or not.
    pub(crate) fn record_answer(&self) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        (state.waiting_since, state.lost_since) = (Instant::now(), None);
    }

    /// Records a lost connection with this number of requests in flight, or a failed attempt to
    /// connect. `since` is when the endpoint ceased to answer.
    pub(crate) fn record_loss(&self, in_flight: usize, since: Instant) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(in_flight);
        state.lost_since.get_or_insert(since);
        state.was_lost = true;
    }

    /// Returns the time since the first loss after the last answer; zero if there was no loss.
    pub(crate) fn lost_for(&self) -> Duration {
        self.lock().lost_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Returns whether a connection was ever lost or could not be made.
    pub(crate) fn was_lost(&self) -> bool {
        self.lock().was_lost
    }

    /// Returns the time since the last answer, or since the first request in flight was sent. Returns
    /// `None` if no request is in flight.
    pub(crate) fn stalled_for(&self) -> Option<Duration> {
        self.stalled_since().map(|since| since.elapsed())
    }

    /// Returns the time of the last answer, or of the first request in flight. Returns `None` if no request
    /// is in flight.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.in_flight > 0).then_some(state.waiting_since)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
