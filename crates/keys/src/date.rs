//! Parses and formats points in time in UTC: `2026-12-01T15:00:00Z`, `2026-12-01`, `7d`.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const DAY: u64 = 24 * 60 * 60;
const YEARS: std::ops::RangeInclusive<u64> = 1970..=9999;

/// A point in time in seconds (RFC 3339 §5.6, only `Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timestamp(SystemTime);

impl Timestamp {
    /// Truncates to seconds.
    pub fn new(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(at(since.as_secs()))
    }

    pub fn time(self) -> SystemTime {
        self.0
    }
}

/// Converts seconds since 1970; saturates at the end of the year 9999.
fn at(seconds: u64) -> SystemTime {
    let last = days_before(10_000).saturating_mul(DAY).saturating_sub(1);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds.min(last))).unwrap_or(UNIX_EPOCH)
}

impl FromStr for Timestamp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text)
            .map(|seconds| Self(at(seconds)))
            .ok_or("a date looks like 2026-12-01 or 2026-12-01T15:00:00Z")
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
        let since = timestamp.0.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (days, second) = (since / DAY, since % DAY);
        let (year, month, day) = calendar(days);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
    }
}

/// Seconds since 1970.
fn parse(text: &str) -> Option<u64> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let [year, month, day] = numbers(date, '-', &[4, 2, 2])?.try_into().ok()?;
    let time = if time.len() == 5 { format!("{time}:00") } else { time.to_owned() };
    let [hour, minute, second] = numbers(&time, ':', &[2, 2, 2])?.try_into().ok()?;
    let length = if YEARS.contains(&year) { month_length(year, month)? } else { 0 };
    let fits = (1..=length).contains(&day) && hour < 24 && minute < 60 && second < 60;
    let months: u64 = (1..month).filter_map(|month| month_length(year, month)).sum();
    fits.then(|| (days_before(year) + months + day - 1) * DAY + hour * 3600 + minute * 60 + second)
}

/// Parses numbers of exactly these widths, separated by `between`.
fn numbers(text: &str, between: char, widths: &[usize]) -> Option<Vec<u64>> {
    let parts: Vec<&str> = text.split(between).collect();
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let right = parts.iter().map(|part| part.len()).eq(widths.iter().copied());
    let numbers = || parts.iter().map(|part| part.parse().ok()).collect();
    if right && parts.iter().all(|part| digits(part)) { numbers() } else { None }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days of a month, 1 to 12.
fn month_length(year: u64, month: u64) -> Option<u64> {
    match month {
        2 => Some(if is_leap(year) { 29 } else { 28 }),
        4 | 6 | 9 | 11 => Some(30),
        1..=12 => Some(31),
        _ => None,
    }
}

/// Days from 1970-01-01 to January 1st of `year`, which is at least 1970.
fn days_before(year: u64) -> u64 {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Converts days since 1970 to year, month and day.
fn calendar(days: u64) -> (u64, u64, u64) {
    let year = YEARS.take_while(|year| days_before(*year) <= days).last().unwrap_or(1970);
    let mut rest = days.saturating_sub(days_before(year));
    for month in 1..=12 {
        let length = month_length(year, month).unwrap_or(31);
        if rest < length {
            return (year, month, rest + 1);
        }
        rest -= length;
    }
    (year, 12, 31)
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

    fn seconds(text: &str) -> Option<u64> {
        parse(text)
    }

    /// Reference: `date -u -d @SECONDS`.
    #[test]
    fn moments_are_those_of_the_calendar() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-12-01T00:00:00Z", 1_796_083_200),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
            assert_eq!(String::from(Timestamp(at(expected))), text);
        }
        assert_eq!(seconds("2026-12-01"), Some(1_796_083_200));
        assert_eq!(seconds("2026-12-01T15:30Z"), Some(1_796_083_200 + 15 * 3600 + 1800));
        assert_eq!(String::from(Timestamp(at(u64::MAX))), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn what_is_no_moment_is_refused() {
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
    fn an_expiry_is_a_while_or_a_date_and_still_to_come() {
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
