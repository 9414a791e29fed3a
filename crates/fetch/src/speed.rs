//! The least speed of a server: one that sends a byte a minute has not stopped, and is of no use.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use ureq::BodyReader;

/// The least bytes a second, as `--speed-limit` of curl.
pub(crate) const MIN_SPEED: u64 = 1024;

/// Counts what was received in the time that it was waited for. The time between two reads is not the server's.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    pub(crate) waited: Duration,
    bytes: u64,
}

impl Speed {
    pub(crate) fn count(&mut self, waited: Duration, bytes: usize) {
        self.waited = self.waited.saturating_add(waited);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Returns whether it was [`MIN_SPEED`] at least.
    pub(crate) fn is_enough(&self) -> bool {
        u128::from(self.bytes) * 1000 >= u128::from(MIN_SPEED) * self.waited.as_millis()
    }
}

/// The content of a response, which fails if it comes too slowly.
pub(crate) struct Reader {
    body: BodyReader<'static>,
    /// The time over which the speed is measured.
    window: Duration,
    speed: Speed,
}

impl Reader {
    /// Fails when fewer than [`MIN_SPEED`] bytes a second have come in a `window`.
    pub(crate) fn new(body: BodyReader<'static>, window: Duration) -> Self {
        Self { body, window, speed: Speed::default() }
    }
}

impl Read for Reader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let begin = Instant::now();
        let count = self.body.read(bytes)?;
        self.speed.count(begin.elapsed(), count);
        if count == 0 || self.speed.waited < self.window {
            return Ok(count);
        }
        match std::mem::take(&mut self.speed).is_enough() {
            true => Ok(count),
            false => {
                let slow = format!("fewer than {MIN_SPEED} bytes a second came");
                Err(io::Error::new(ErrorKind::TimedOut, slow))
            }
        }
    }
}
