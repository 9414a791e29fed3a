//! Parses and formats points in time in UTC: `2026-12-01T15:00:00Z`, `2026-12-01`, `7d`.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::SignedDuration;
use jiff::civil::{DateTime, date};
use serde::{Deserialize, Serialize};

const DAY: u64 = 24 * 60 * 60;
const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);

/// The forms of a timestamp, the first of which is written.
const FORMATS: [&str; 3] = ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d"];

/// A point in time in seconds, from 1970 to 9999 (RFC 3339 §5.6, only `Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timestamp(DateTime);

impl Timestamp {
    /// Truncates to seconds, and clamps to the range.
    pub fn new(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let seconds = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        let last = date(9999, 12, 31).at(23, 59, 59, 0);
        Self(EPOCH.saturating_add(seconds).min(last))
    }

    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + self.0.duration_since(EPOCH).unsigned_abs()
    }
}

impl FromStr for Timestamp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let timestamp = FORMATS.into_iter().find_map(|format| {
            let day = || Some(jiff::civil::Date::strptime(format, text).ok()?.at(0, 0, 0, 0));
            let time = DateTime::strptime(format, text).ok().or_else(day)?;
            // The parser is more tolerant than the format.
            let is_exact = time.strftime(format).to_string() == text;
            (is_exact && time >= EPOCH).then_some(Self(time))
        });
        timestamp.ok_or("a date looks like 2026-12-01 or 2026-12-01T15:00:00Z")
    }
}

impl TryFrom<String> for Timestamp {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(timestamp: Timestamp) -> Self {
        timestamp.0.strftime(FORMATS[0]).to_string()
    }
}

/// An expiry as the user types it: a duration or a date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// After this duration.
    In(Duration),
    /// At this time.
    At(SystemTime),
}

const EXPIRY: &str =
    "say for how long (30m, 2h, 7d, 4w), or until when (2026-12-01, 2026-12-01T15:00:00Z, in UTC)";

impl FromStr for Expiry {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(timestamp) = text.parse::<Timestamp>() {
            return Ok(Self::At(timestamp.time()));
        }
        let unit = match text.chars().next_back() {
            Some('m') => 60,
            Some('h') => 60 * 60,
            Some('d') => DAY,
            Some('w') => 7 * DAY,
            _ => return Err(EXPIRY),
        };
        let number =
            text.get(..text.len() - 1).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let number: u64 = number.and_then(|digits| digits.parse().ok()).ok_or(EXPIRY)?;
        let seconds = number.checked_mul(unit).filter(|seconds| *seconds > 0).ok_or(EXPIRY)?;
        Ok(Self::In(Duration::from_secs(seconds)))
    }
}

impl Expiry {
    /// Returns the point in time; `None` if it is not in the future.
    pub fn from(self, now: SystemTime) -> Option<Timestamp> {
        let time = match self {
            Self::In(duration) => now.checked_add(duration)?,
            Self::At(time) => time,
        };
        (time > now).then(|| Timestamp::new(time))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn seconds(text: &str) -> Option<u64> {
        let time = text.parse::<Timestamp>().ok()?.time();
        Some(time.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    /// Reference: `date -u -d @SECONDS`.
    #[test]
    fn timestamps_match_the_calendar() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-12-01T00:00:00Z", 1_796_083_200),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
            assert_eq!(String::from(Timestamp::new(at(expected))), text);
        }
        assert_eq!(seconds("2026-12-01"), Some(1_796_083_200));
        assert_eq!(seconds("2026-12-01T15:30Z"), Some(1_796_083_200 + 15 * 3600 + 1800));
        assert_eq!(String::from(Timestamp::new(at(1 << 60))), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn malformed_timestamp_is_refused() {
        for wrong in [
            "",
            "2026",
            "2026-13-01",
            "2026-00-01",
            "2026-02-29",
            "2026-12-1",
            "2026-12-00",
            "1969-12-31",
            "10000-01-01",
            "2026-12-01T",
            "2026-12-01T24:00:00Z",
            "2026-12-01T15:00:00",
            "2026-12-01 15:00:00Z",
            "2026-12-01T15:00:00+01:00",
            "+026-12-01",
            "2026-12-01Z",
        ] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn expiry_is_a_duration_or_future_date() {
        let now = at(1_796_083_200);
        let after = |text: &str| text.parse::<Expiry>().ok()?.from(now).map(String::from);
        assert_eq!(after("2h").as_deref(), Some("2026-12-01T02:00:00Z"));
        assert_eq!(after("90m").as_deref(), Some("2026-12-01T01:30:00Z"));
        assert_eq!(after("7d").as_deref(), Some("2026-12-08T00:00:00Z"));
        assert_eq!(after("1w"), after("7d"));
        assert_eq!(after("2027-01-01").as_deref(), Some("2027-01-01T00:00:00Z"));
        for wrong in [
            "2026-12-01",
            "2020-01-01",
            "0h",
            "h",
            "2",
            "-2h",
            "2y",
            "99999999999999999999d",
            "é",
            "",
        ] {
            assert_eq!(after(wrong), None, "{wrong}");
        }
    }
}
