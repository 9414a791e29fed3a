//! Pauses between attempts at a request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use ureq::http::{HeaderMap, header};

use crate::Error;

/// Pause after a failure, at first and at most, unless the server names another one.
const PAUSE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(10)];
/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Returns what `open` returns, which is called again for `patience` while its error is temporary, as that of a server which cannot
/// be reached or is busy. Calls `tell` with the first such error.
///
/// # Errors
/// Fails with the last error of `open`.
pub fn waiting<T>(
    patience: Duration,
    tell: &mut dyn FnMut(&Error),
    mut open: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    let mut retries = Retries::new(patience, &[]);
    let mut is_told = false;
    loop {
        match open() {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) && error.is_temporary() {
                    tell(&error);
                }
                retries.wait(error)?;
            }
        }
    }
}

/// Decides whether a request is made again.
#[derive(Debug)]
pub(crate) struct Retries<'a> {
    patience: Duration,
    /// When the first attempt failed, or the last progress was made.
    since: Option<Instant>,
    pause: Duration,
    stops: &'a [&'a AtomicBool],
}

impl<'a> Retries<'a> {
    /// Requests are made again for this time after the first failure, however long that request took, unless one of
    /// `stops` is set.
    pub(crate) fn new(patience: Duration, stops: &'a [&'a AtomicBool]) -> Self {
        Self { patience, since: None, pause: PAUSE[0], stops }
    }

    /// Takes the time that was waited until the first failure from the one in which requests are made again. Returns whether some
    /// of it is left.
    pub(crate) fn spend(&mut self, waited: Duration) -> bool {
        self.since = Instant::now().checked_sub(waited);
        waited < self.patience
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// Fails with the error of the last attempt if there is to be no other one.
    pub(crate) fn wait(&mut self, error: Error) -> Result<(), Error> {
        match error.is_temporary() && self.pause(error.retry_after()) {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Pauses, as long as the server asks for if it does. Returns whether there is to be another attempt: not if the pause
    /// would be longer than what is left of the time.
    pub(crate) fn pause(&mut self, asked: Option<Duration>) -> bool {
        let pause = asked.unwrap_or_default().max(self.pause);
        let begin = Instant::now();
        let since = *self.since.get_or_insert(begin);
        if pause > self.patience.saturating_sub(since.elapsed()) {
            return false;
        }
        self.pause = (self.pause * 2).min(PAUSE[1]);
        while let Some(left) = pause.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
            if self.stops.iter().any(|stop| stop.load(Ordering::Acquire)) {
                return false;
            }
            thread::sleep(LOOK.min(left));
        }
        true
    }
}

/// Returns how long a server asks to wait before the next request (RFC 9110 §10.2.3): a number of seconds, or a time, by the
/// clock of its answer if that has a `Date`.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok();
    let asked = text(header::RETRY_AFTER)?.trim();
    if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are longer than anybody waits.
        return Some(Duration::from_secs(asked.parse().unwrap_or(u64::MAX)));
    }
    let time = |text: &str| DateTimeParser::new().parse_timestamp(text).ok();
    let now = text(header::DATE).and_then(time).unwrap_or_else(Timestamp::now);
    let seconds = time(asked)?.as_second().saturating_sub(now.as_second());
    Some(Duration::from_secs(seconds.try_into().unwrap_or(0)))
}

#[cfg(test)]
mod test {
    use ureq::http::HeaderValue;

    use super::*;

    #[test]
    fn retry_after_is_a_number_or_a_time() {
        let after = |asked: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            let value = |text: &str| HeaderValue::from_str(text).unwrap();
            headers.insert(header::RETRY_AFTER, value(asked));
            headers.extend(date.map(|date| (header::DATE, value(date))));
            retry_after(&headers).map(|after| after.as_secs())
        };
        let date = Some("Tue, 15 Nov 1994 12:45:26 GMT");
        assert_eq!(after("120", None), Some(120));
        assert_eq!(after("99999999999999999999999", None), Some(u64::MAX));
        assert_eq!(after("Tue, 15 Nov 1994 12:47:00 GMT", date), Some(94));
        assert_eq!(after("Tue, 15 Nov 1994 12:45:00 GMT", date), Some(0));
        assert_eq!(after("Tue, 15 Nov 1994 12:45:00 GMT", None), Some(0));
        for malformed in ["", "-1", "1.5", "soon"] {
            assert_eq!(after(malformed, date), None, "{malformed}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn pause_longer_than_the_patience_is_not_begun() {
        let mut retries = Retries::new(Duration::from_secs(300), &[]);
        let begin = Instant::now();
        assert!(!retries.pause(Some(Duration::from_secs(301))));
        assert!(!retries.pause(Some(Duration::from_secs(u64::MAX))));
        assert!(retries.pause(Some(Duration::from_millis(300))));
        let time = begin.elapsed().as_millis();
        assert!((300..20_000).contains(&time), "{time}");
        assert!(!Retries::new(Duration::ZERO, &[]).pause(None));
    }
}
