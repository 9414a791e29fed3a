//! Result of a copy: as text, as a JSON event, and as an exit status (`docs/copy.md`).

use std::ops::Range;

use ::copy::{CopyError, Outcome, Report};
use console::decimal;

use super::event::{Event, Finished, hexadecimal, length, mismatches};
use super::progress::{ProgressReporter, duration};
use failure::Failure;

/// I/O or connection failure.
const FAILED: u8 = 1;
/// Bad sectors.
const BAD: u8 = 3;
/// Verification failed.
const MISMATCH: u8 = 4;
/// Rejected before it started.
const REFUSED: u8 = 5;
/// Stopped by a signal.
const INTERRUPTED: u8 = 6;
/// Protocol violation by the peer.
const VIOLATION: u8 = 7;

/// The source is not what was expected.
const UNEXPECTED: u8 = 8;

/// Maximum number of ranges listed in human-readable output.
const MAX_NAMED: usize = 16;
/// Maximum number of range events of each kind; the map has all.
const MAX_EVENTS: usize = 1000;

/// Names for the messages about the result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) source: &'a str,
    pub(super) destination: &'a str,
    /// The command that resumes the copy, if there is a map.
    pub(super) resume_command: Option<&'a str>,
    pub(super) map: Option<&'a str>,
}

/// Rejects a copy before anything is written.
pub(super) fn refused(sentence: impl std::fmt::Display) -> Failure {
    Failure::with_status(REFUSED, sentence)
}

/// Reports how the copy ended, and what is left to do.
///
/// # Errors
/// Fails with the exit status of the outcome, unless it is success.
pub(super) fn conclude(
    report: &Report,
    names: Names<'_>,
    advice: &[String],
    reporter: &mut ProgressReporter,
) -> Result<(), Failure> {
    let failure = failure(report, names);
    report_ranges(report, reporter);
    if report.padded > 0 {
        let note = padded(names.destination, report.padded);
        reporter.note(&note);
    }
    if failure.as_ref().is_none_or(|failure| failure.status() == BAD)
        && reporter.is_human_readable()
    {
        summary(report).iter().for_each(|line| reporter.note(line));
    }
    advice.iter().for_each(|advice| reporter.note(advice));
    let reason = failure.as_ref().map(ToString::to_string);
    reporter.event(&Event::Finished(Finished::new(report, reason)));
    failure.map_or(Ok(()), Err)
}

pub(super) fn padded(destination: &str, zeros: u64) -> String {
    format!("the last block of {destination} is filled up with {zeros} bytes of zeros")
}

fn failure(report: &Report, names: Names<'_>) -> Option<Failure> {
    Some(match &report.outcome {
        Outcome::Success => return None,
        Outcome::BadSectors => Failure::with_status(BAD, bad_sectors(report, names)),
        Outcome::VerifyFailed(ranges) => Failure::with_status(MISMATCH, differing(ranges, names)),
        Outcome::Refused(refusal) => refused(refusal),
        Outcome::Interrupted => Failure::with_status(INTERRUPTED, interrupted(names)),
        Outcome::Failed(trouble) => {
            let status = match trouble {
                CopyError::Violation { .. } => VIOLATION,
                CopyError::Unexpected(_) => UNEXPECTED,
                _ => FAILED,
            };
            let way = match status {
                UNEXPECTED => "to copy all of it again",
                _ => "to try again from there",
            };
            match names.resume_command {
                Some(line) => Failure::with_status(status, format!("{trouble}; {way}: {line}")),
                None => Failure::with_status(status, trouble),
            }
        }
    })
}

fn bad_sectors(report: &Report, names: Names<'_>) -> String {
    let verified = if report.verified > 0 { " and verified" } else { "" };
    let named = names.map.map(|map| format!("; {map} names them")).unwrap_or_default();
    format!(
        "{}: {} could not be read, in {}; all else was copied{verified}{named}",
        names.source,
        decimal(length(&report.bad)),
        counted(report.bad.len(), "place"),
    )
}

fn differing(ranges: &[Range<u64>], names: Names<'_>) -> String {
    let first = ranges.first().map(|range| format!(", first at byte {}", range.start));
    let resume_command = names.resume_command.map(|line| format!("; to copy these again: {line}"));
    format!(
        "{} does not hold what was read from {}: {} differ in {}{}; the copy is not to be used{}",
        names.destination,
        names.source,
        decimal(length(ranges)),
        counted(ranges.len(), "place"),
        first.unwrap_or_default(),
        resume_command.unwrap_or_default(),
    )
}

fn interrupted(names: Names<'_>) -> String {
    match names.resume_command {
        Some(line) => format!("interrupted; to go on from there: {line}"),
        None => "interrupted; without --map it begins anew the next time".to_owned(),
    }
}

fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Reports unreadable and differing ranges, up to a limit.
fn report_ranges(report: &Report, reporter: &mut ProgressReporter) {
    if reporter.is_human_readable() {
        print_ranges(&report.bad, "could not be read", reporter);
        print_ranges(mismatches(report), "differ", reporter);
        return;
    }
    range_events(report).for_each(|event| reporter.event(&event));
}

fn range_events(report: &Report) -> impl Iterator<Item = Event<'static>> {
    let parts = |range: &Range<u64>| (range.start, range.end.saturating_sub(range.start));
    let bad = report.bad.iter().take(MAX_EVENTS).map(parts);
    let mismatches = mismatches(report).iter().take(MAX_EVENTS).map(parts);
    let bad = bad.map(|(offset, bytes)| Event::Bad { offset, bytes });
    bad.chain(mismatches.map(|(offset, bytes)| Event::Mismatch { offset, bytes }))
}

fn print_ranges(ranges: &[Range<u64>], what: &str, reporter: &mut ProgressReporter) {
    for range in ranges.iter().take(MAX_NAMED) {
        let bytes = range.end.saturating_sub(range.start);
        reporter.note(&format!("{bytes} bytes at {} {what}", range.start));
    }
    if let Some(more) = ranges.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        reporter.note(&format!("and {} more", counted(more, "place")));
    }
}

/// Summarizes what was done, in two lines.
fn summary(report: &Report) -> Vec<String> {
    let moved = report.copied.saturating_add(report.zeroes);
    let seconds = report.elapsed.as_secs_f64();
    let time = if seconds < 10.0 { format!("{seconds:.1} s") } else { duration(report.elapsed) };
    let mut first = format!("copied {} in {time}", decimal(moved));
    if seconds >= 0.1 {
        let rate = u128::from(moved) * 1000 / report.elapsed.as_millis().max(1);
        first += &format!(", {}/s", decimal(u64::try_from(rate).unwrap_or(u64::MAX)));
    }
    let parts = [
        (report.zeroes, "of it zeros that were not sent"),
        (report.earlier, "had been copied before"),
        (report.resent, "sent again"),
        (report.verified, "verified"),
        (report.read_behind, "of it while the rest was written, and not once more after that"),
    ];
    for (bytes, what) in parts {
        if bytes > 0 {
            first += &format!("; {} {what}", decimal(bytes));
        }
    }
    let hash = report.hash.as_ref().map(|hash| format!("BLAKE3 {}", hexadecimal(hash)));
    std::iter::once(first).chain(hash).collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use ::copy::Refusal;
    use std::time::Duration;

    fn report(outcome: Outcome) -> Report {
        Report {
            outcome,
            bytes: 1 << 20,
            copied: 1 << 19,
            zeroes: 1 << 19,
            earlier: 0,
            resent: 0,
            verified: 1 << 20,
            read_behind: 0,
            bad: Vec::new(),
            padded: 0,
            hash: None,
            elapsed: Duration::from_secs(1),
        }
    }

    const NAMES: Names<'_> = Names {
        source: "a",
        destination: "b",
        resume_command: Some("storagetm copy a b"),
        map: Some("m"),
    };

    fn exit_of(report: &Report) -> (u8, String) {
        let failure = failure(report, NAMES);
        failure.map_or((0, String::new()), |failure| (failure.status(), failure.to_string()))
    }

    /// The exit statuses are a contract: `docs/copy.md`.
    #[test]
    fn each_outcome_has_its_exit_status() {
        assert_eq!(exit_of(&report(Outcome::Success)).0, 0);
        let lost = CopyError::Lost { name: "a".to_owned(), reason: "reset".to_owned() };
        let (status, said) = exit_of(&report(Outcome::Failed(lost)));
        assert!(status == 1 && said.contains("to try again from there: storagetm copy a b"));
        let broken = CopyError::Violation { name: "a".to_owned(), reason: "it lies".to_owned() };
        let (status, said) = exit_of(&report(Outcome::Failed(broken)));
        assert!(status == 7 && said.starts_with("a violated its protocol: it lies"));
        let mut bad = report(Outcome::BadSectors);
        bad.bad = vec![512..1024, 4096..8192];
        let said = "a: 4.6 kB could not be read, in 2 places; all else was copied and verified; m names them";
        assert_eq!(exit_of(&bad), (3, said.to_owned()));
        let (status, said) =
            exit_of(&report(Outcome::VerifyFailed(std::iter::once(65536..131_072).collect())));
        assert!(status == 4 && said.contains("first at byte 65536") && said.contains("1 place,"));
        assert_eq!(exit_of(&report(Outcome::Refused(Refusal::Pipes))).0, 5);
        let (status, said) = exit_of(&report(Outcome::Interrupted));
        assert!(status == 6 && said.ends_with("storagetm copy a b"));
    }

    #[test]
    fn events_of_ranges_are_bounded_and_counted() {
        let ranges: Vec<Range<u64>> = (0..5000).map(|n| n * 1024..n * 1024 + 512).collect();
        let report =
            Report { bad: ranges.clone(), ..report(Outcome::VerifyFailed(ranges[..7].to_vec())) };
        let events: Vec<String> = range_events(&report).map(|event| event.line()).collect();
        let named = |name: &str| events.iter().filter(|event| event.contains(name)).count();
        assert_eq!((named("\"bad\""), named("\"mismatch\"")), (MAX_EVENTS, 7));
        let end = Event::Finished(Finished::new(&report, None)).line();
        assert!(end.contains("\"bad_ranges\":5000,\"mismatches\":7,"), "{end}");
    }

    #[test]
    fn summary_lists_only_what_was_done() {
        let mut done = report(Outcome::Success);
        done.hash = Some([1; 32]);
        let lines = summary(&done);
        assert_eq!(
            lines[0],
            "copied 1 MB in 1.0 s, 1 MB/s; 524.3 kB of it zeros that were not sent; 1 MB verified"
        );
        assert!(lines[1].starts_with("BLAKE3 0101"));
    }
}
