//! What `storagetm copy --json` says: an event a line. It knows no stream.

use std::ops::Range;

use ::copy::{Outcome, Progress, Report};
use serde::Serialize;

use daemon::event::escaped;

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Event<'a> {
    /// All was looked at, and nothing has been written.
    Started {
        /// As it was typed.
        source: &'a str,
        /// As it was typed.
        destination: &'a str,
        /// Bytes that there are; null for a pipe.
        bytes: Option<u64>,
        /// Whether an earlier copy is gone on with.
        resumed: bool,
    },
    /// How far it is: once a second.
    Progress {
        /// The word for what is being done.
        phase: &'a str,
        /// Bytes that are done with in this phase.
        done: u64,
        /// Bytes that there are; null for a pipe.
        total: Option<u64>,
        /// Bytes a second.
        rate: u64,
        /// Seconds that it takes still, if that can be said.
        eta: Option<u64>,
        /// Bytes that could not be read so far.
        bad: u64,
        /// Requests that the source failed so far.
        errors: u64,
        /// Bytes of zeros that were not sent.
        zeroes: u64,
        /// Since the beginning.
        seconds: f64,
    },
    /// An end is being reached again.
    Reconnecting {
        /// Which.
        name: &'a str,
        /// Why it was lost.
        reason: &'a str,
    },
    /// Events before this one were lost: the reader did not read.
    Lost {
        /// How many.
        count: u64,
    },
    /// Something else worth knowing.
    Note {
        /// A sentence.
        message: &'a str,
    },
    /// A range that could not be read.
    Bad {
        /// Its first byte.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// A range in which the destination does not hold what was read.
    Mismatch {
        /// Its first byte.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// Whose bytes are that could not be read, with --files.
    Owner {
        /// The partition's number; 0 for the whole disk.
        partition: u32,
        /// The file's path in its file system; null for what is no file's.
        path: Option<&'a str>,
    },
    /// The end: nothing follows.
    Finished(Finished),
}

/// How it ended.
#[derive(Debug, Serialize)]
pub(super) struct Finished {
    /// The word for it.
    outcome: &'static str,
    /// The sentence that says why, unless all went well.
    reason: Option<String>,
    /// The length of the source.
    bytes: u64,
    /// Bytes that were read and written.
    copied: u64,
    /// Bytes of zeros that were not sent.
    zeroes: u64,
    /// Bytes that an earlier run had finished.
    earlier: u64,
    /// Bytes that were sent again after an end was lost.
    resent: u64,
    /// Bytes of the destination that were compared.
    verified: u64,
    /// Bytes that could not be read.
    bad: u64,
    /// Ranges that could not be read; only the first of very many are events.
    bad_ranges: usize,
    /// Ranges that differ, likewise.
    mismatches: usize,
    /// BLAKE3 of all of it, in hexadecimal, if all was read.
    hash: Option<String>,
    /// How long it took.
    seconds: f64,
}

impl<'a> Event<'a> {
    /// How far it is, in the phase of that name.
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

    /// A line, with its end.
    pub(super) fn line(&self) -> String {
        // None of the strings or numbers above can fail to be written.
        let json = serde_json::to_string(self).unwrap_or_default();
        escaped(&json) + "\n"
    }
}

impl Finished {
    /// What the report says, and the sentence about it.
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
            bad: length(&report.bad),
            bad_ranges: report.bad.len(),
            mismatches: mismatches(report).len(),
            hash: report.hash.as_ref().map(hexadecimal),
            seconds: tenths(report.elapsed),
        }
    }

    /// It was refused before there was anything to report.
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

/// As `b3sum` writes it.
pub(super) fn hexadecimal(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds, to a tenth.
fn tenths(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// Bytes in the ranges.
pub(super) fn length(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end.saturating_sub(range.start)).fold(0, u64::saturating_add)
}

/// The ranges in which the destination does not hold what was read.
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
        let text = hexadecimal(&[0xaf; 32]);
        assert_eq!((text.len(), &text[..4]), (64, "afaf"));
    }
}
