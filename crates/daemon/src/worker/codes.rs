//! The codes of the worker: pairing, and the code for reading by HTTPS.

use std::time::Instant;

use export::Secret;
use pair::{FailedAttempts, Verdict};

use super::messages::{Request, TriesWire};
use super::{State, Worker};

impl Worker {
    /// Enables pairing. The code is reported by [`WorkerEvent::Pairing`]. `name` is shown to
    /// clients that know the code.
    pub fn enable_pairing(&self, name: &str) {
        let mut state = self.shared.state();
        state.pairing = Some(name.to_owned());
        state.send_pairing();
    }

    /// Replaces the code that admits to reading by HTTPS. Ends what was begun with another one.
    pub fn set_reading_code(&self, code: web::Code) {
        let mut state = self.shared.state();
        state.reading_code = Some(code);
        state.send_reading_code();
    }

    /// Generates a new code and resets the count of failed attempts: a user at this machine asked
    /// for it.
    pub fn unlock(&self) {
        let mut state = self.shared.state();
        state.tries = FailedAttempts::default();
        state.send(&Request::Unlock);
    }

    /// Answers the pairing request with this number.
    pub fn answer(&self, number: u64, verdict: Verdict) {
        let mut state = self.shared.state();
        state.unanswered.retain(|waiting| *waiting != number);
        state.send(&Request::Answer { number, verdict });
    }
}

impl State {
    pub(super) fn send_pairing(&self) {
        let Some(name) = self.pairing.clone() else { return };
        let tries = TriesWire::new(&self.tries, Instant::now());
        self.send(&Request::EnablePairing { name, tries });
    }

    pub(super) fn send_reading_code(&self) {
        if let Some(code) = &self.reading_code {
            let code = Secret::new(code.text().as_bytes().to_vec());
            self.send(&Request::SetReadingCode { code });
        }
    }
}
