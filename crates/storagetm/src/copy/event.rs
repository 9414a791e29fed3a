//! Events of `storagetm copy --json`: one JSON object per line.

use std::ops::Range;

use ::copy::{Outcome, Progress, Report};
use serde::Serialize;

use daemon::event::escaped;

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Event<'a> {
    /// Both ends were examined; nothing has been written.
    Started {
        /// As typed.
        source: &'a str,
        /// As typed.
        destination: &'a str,
        /// Size of the source; null for a pipe.
        bytes: Option<u64>,
        /// Whether an earlier copy is resumed.
        resumed: bool,
    },
    /// Progress, once a second.
    Progress {
        phase: &'a str,
        /// Bytes done in this phase.
        done: u64,
        /// Bytes in total; null for a pipe.
        total: Option<u64>,
        /// Bytes per second.
        rate: u64,
        /// Estimated seconds left, if known.
        eta: Option<u64>,
        /// Unreadable bytes so far.
        bad: u64,
        /// Failed read requests so far.
        errors: u64,
        /// Bytes of zeros that were not sent.
        zeroes: u64,
        /// Seconds since the start.
        seconds: f64,
    },
    /// A connection was lost and is being re-established.
    Reconnecting {
        name: &'a str,
        reason: &'a str,
    },
    /// Events were dropped because the reader was too slow.
    Lost {
        count: u64,
    },
    Note {
        message: &'a str,
    },
    /// An unreadable range.
    Bad {
        offset: u64,
        bytes: u64,
    },
    /// A range in which the destination differs from what was read.
    Mismatch {
        offset: u64,
        bytes: u64,
    },
    /// The owner of unreadable bytes, with --files.
    Owner {
        /// Partition number; 0 for the whole disk.
        partition: u32,
        /// Path in the file system; null if the bytes belong to no file.
        path: Option<&'a str>,
    },
    /// The last event.
    Finished(Finished),
}

/// Result of a copy.
#[derive(Debug, Serialize)]
pub(super) struct Finished {
    outcome: &'static str,
    /// The reason, unless the copy succeeded.
    reason: Option<String>,
    /// Size of the source.
    bytes: u64,
    /// Bytes read and written.
    copied: u64,
    /// Bytes of zeros that were not sent.
    zeroes: u64,
    /// Bytes finished by an earlier run.
    earlier: u64,
    /// Bytes sent again after a connection was lost.
    resent: u64,
    /// Bytes of the destination that were verified.
    verified: u64,
    /// Bytes of these that were verified before the last write, and not once more after it.
    verified_during: u64,
    /// Unreadable bytes.
    bad: u64,
    /// Unreadable ranges; the number of `bad` events is limited.
    bad_ranges: usize,
    /// Differing ranges; the number of `mismatch` events is limited.
    mismatches: usize,
    /// BLAKE3 of the source in hexadecimal, if all of it was read.
    hash: Option<String>,
    /// Duration in seconds.
    seconds: f64,
}

impl<'a> Event<'a> {
    pub(super) fn progress(phase: &'a str, progress: &Progress) -> Self {
        Self::Progress {
            phase,
            done: progress.done,
            total: progress.total,
            rate: progress.rate,
            eta: progress.eta.map(|eta| eta.as_secs()),
            bad: progress.bad,
            errors: progress.errors,
            zeroes: progress.zeroes,
            seconds: tenths(progress.elapsed),
        }
    }

    /// Returns the event as a line of JSON.
    pub(super) fn line(&self) -> String {
        // Serialization of these types cannot fail.
        let json = serde_json::to_string(self).unwrap_or_default();
        escaped(&json) + "\n"
    }
}

impl Finished {
    pub(super) fn new(report: &Report, reason: Option<String>) -> Self {
        Self {
            outcome: word(&report.outcome),
            reason,
            bytes: report.bytes,
            copied: report.copied,
            zeroes: report.zeroes,
            earlier: report.earlier,
            resent: report.resent,
            verified: report.verified,
            verified_during: report.read_behind,
            bad: length(&report.bad),
            bad_ranges: report.bad.len(),
            mismatches: mismatches(report).len(),
            hash: report.hash.as_ref().map(hexadecimal),
            seconds: tenths(report.elapsed),
        }
    }

    /// A copy that was rejected before it started.
    pub(super) fn refused(reason: String) -> Self {
        Self {
            outcome: "refused",
            reason: Some(reason),
            bytes: 0,
            copied: 0,
            zeroes: 0,
            earlier: 0,
            resent: 0,
            verified: 0,
            verified_during: 0,
            bad: 0,
            bad_ranges: 0,
            mismatches: 0,
            hash: None,
            seconds: 0.0,
        }
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "success",
        Outcome::BadSectors => "bad-sectors",
        Outcome::VerifyFailed(_) => "verify-failed",
        Outcome::Refused(_) => "refused",
        Outcome::Interrupted => "interrupted",
        Outcome::Failed(_) => "failed",
    }
}

/// Formats a hash as `b3sum` does.
pub(super) fn hexadecimal(hash: impl AsRef<[u8]>) -> String {
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Rounds to tenths of a second.
fn tenths(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// Total length of the ranges.
pub(super) fn length(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end.saturating_sub(range.start)).fold(0, u64::saturating_add)
}

/// Returns the ranges in which the destination differs from what was read.
pub(super) fn mismatches(report: &Report) -> &[Range<u64>] {
    match &report.outcome {
        Outcome::VerifyFailed(ranges) => ranges,
        _ => &[],
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_event_is_a_line_and_steers_no_terminal() {
        let started = Event::Started {
            source: "a\u{1b}[2J\nb",
            destination: "/dev/sdb",
            bytes: None,
            resumed: false,
        };
        let line = started.line();
        assert_eq!(
            line,
            "{\"event\":\"started\",\"source\":\"a\\u001b[2J\\nb\",\"destination\":\"/dev/sdb\",\
             \"bytes\":null,\"resumed\":false}\n"
        );
        let line = Event::Finished(Finished::refused("why".to_owned())).line();
        assert!(
            line.starts_with("{\"event\":\"finished\",\"outcome\":\"refused\",\"reason\":\"why\"")
        );
        assert_eq!(
            Event::Bad { offset: 512, bytes: 1 }.line(),
            "{\"event\":\"bad\",\"offset\":512,\"bytes\":1}\n"
        );
    }

    #[test]
    fn a_hash_is_written_as_b3sum_writes_it() {
        let text = hexadecimal([0xaf; 32]);
        assert_eq!((text.len(), &text[..4]), (64, "afaf"));
    }
}
