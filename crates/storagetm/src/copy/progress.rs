//! Progress of a copy: a bar on a terminal, a line every ten seconds elsewhere, or JSON events.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ::copy::{Phase, Progress};
use console::{decimal, escape_unprintable};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use linux::tty;

use super::event::Event;
use crate::nonblocking::NonBlockingWriter;
use failure::Failure;

/// Interval of lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of JSON progress events.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the end waits for a slow reader.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Progress bar with and without a known total.
const BAR: &str = "{prefix:>9} [{wide_bar}] {msg}";
const SPINNER: &str = "{prefix:>9} {spinner} {msg}";

/// Reports progress and results in one of three forms.
pub(super) struct ProgressReporter {
    form: Form,
    /// Interval of lines and events.
    interval: Duration,
    phase: Option<Phase>,
    said: Instant,
    /// The connection being re-established, as last reported.
    reconnecting: Option<String>,
}

enum Form {
    Bar(ProgressBar),
    Lines,
    Json(NonBlockingWriter<OwnedFd>),
}

impl ProgressReporter {
    /// JSON goes to standard output, or to standard error if the data does; human-readable output
    /// goes to standard error. Progress is reported at this interval, or at the usual one.
    ///
    /// # Errors
    /// Fails if no descriptor is available.
    pub(super) fn open(
        json: bool,
        data_on_stdout: bool,
        interval: Option<Duration>,
    ) -> Result<Self, Failure> {
        let form = match (json, data_on_stdout) {
            (true, _) => Form::Json(NonBlockingWriter::new(stream(data_on_stdout)?)),
            (false, _) if tty::is_terminal(&io::stderr()) => Form::Bar(bar()),
            (false, _) => Form::Lines,
        };
        let default = if json { EVENT_INTERVAL } else { LINE_INTERVAL };
        let interval = interval.unwrap_or(default);
        Ok(Self { form, interval, phase: None, said: Instant::now(), reconnecting: None })
    }

    /// Writes the event in JSON mode.
    pub(super) fn event(&mut self, event: &Event<'_>) {
        if let Form::Json(writer) = &mut self.form {
            push(writer, event);
        }
    }

    /// Prints a sentence, or writes it as a note event.
    pub(super) fn note(&mut self, sentence: &str) {
        match &mut self.form {
            Form::Json(writer) => push(writer, &Event::Note { message: sentence }),
            Form::Bar(bar) => bar.suspend(|| print_line(sentence)),
            Form::Lines => print_line(sentence),
        }
    }

    /// Reports progress if an interval has passed.
    pub(super) fn progress(&mut self, progress: &Progress) {
        self.report_reconnecting(progress);
        let is_new = self.phase != Some(progress.phase) && progress.phase != Phase::Checking;
        let is_due = is_new || self.said.elapsed() >= self.interval;
        match &mut self.form {
            Form::Bar(bar) => show(bar, progress),
            Form::Lines if is_due => print_line(&line(progress)),
            Form::Json(writer) if is_due => {
                push(writer, &Event::progress(&progress.phase.to_string(), progress));
            }
            Form::Lines | Form::Json(_) => return,
        }
        (self.phase, self.said) = (Some(progress.phase), Instant::now());
    }

    /// Reports once that a connection was lost, and once that it is back.
    fn report_reconnecting(&mut self, progress: &Progress) {
        let name = progress.reconnecting.as_ref().map(|(name, _)| name.clone());
        if name == self.reconnecting {
            return;
        }
        match &progress.reconnecting {
            Some((name, reason)) if matches!(self.form, Form::Json(_)) => {
                self.event(&Event::Reconnecting { name, reason });
            }
            Some((name, reason)) => {
                self.note(&format!("{name} was lost ({reason}); it is being reached again"));
            }
            None => self.note("it is there again, and the copy goes on"),
        }
        self.reconnecting = name;
    }

    /// Removes the bar.
    pub(super) fn clear(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }

    /// Writes pending events.
    pub(super) fn close(&mut self) {
        self.clear();
        if let Form::Json(writer) = &mut self.form {
            writer.drain(DRAIN_TIMEOUT);
        }
    }

    /// Returns whether the reader of the events has closed the pipe.
    pub(super) fn reader_gone(&mut self) -> bool {
        let Form::Json(writer) = &mut self.form else { return false };
        writer.check_closed();
        writer.is_closed()
    }

    pub(super) fn is_human_readable(&self) -> bool {
        !matches!(self.form, Form::Json(_))
    }
}

fn push(writer: &mut NonBlockingWriter<OwnedFd>, event: &Event<'_>) {
    writer.push_line(&event.line(), |count| Event::Lost { count }.line());
}

fn stream(data_on_stdout: bool) -> Result<OwnedFd, Failure> {
    let copied = match data_on_stdout {
        true => rustix::io::dup(io::stderr()),
        false => rustix::io::dup(io::stdout()),
    };
    copied.map_err(|error| Failure::new(format!("standard output cannot be used: {error}")))
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.with_style(style(SPINNER))
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ").tick_chars("-\\|/ ")
}

fn show(bar: &ProgressBar, progress: &Progress) {
    if let Some(total) = progress.total.filter(|total| bar.length() != Some(*total)) {
        bar.set_style(style(BAR));
        bar.set_length(total);
    }
    bar.set_prefix(progress.phase.to_string());
    let is_known = progress.phase != Phase::Checking;
    bar.set_message(if is_known { figures(progress) } else { String::new() });
    bar.set_position(progress.done);
    bar.tick();
}

/// Prints to standard error. A write error does not fail the copy.
fn print_line(sentence: &str) {
    let _ = writeln!(io::stderr(), "{}", escape_unprintable(sentence, true));
}

fn line(progress: &Progress) -> String {
    match progress.phase {
        Phase::Checking => "checking both ends".to_owned(),
        phase => format!("{phase}: {}", figures(progress)),
    }
}

/// Formats amount, rate, time left and errors.
fn figures(progress: &Progress) -> String {
    let mut parts = vec![amount(progress)];
    if progress.rate > 0 {
        parts.push(format!("{}/s", decimal(progress.rate)));
    }
    parts.extend(progress.eta.map(|eta| format!("{} left", duration(eta))));
    if let Some((_, since)) = &progress.stalled {
        parts.push(format!("no answer for {}", duration(*since)));
    }
    if progress.bad > 0 {
        parts.push(format!("{} bad", decimal(progress.bad)));
    }
    match progress.errors {
        0 => {}
        1 => parts.push("1 error".to_owned()),
        errors => parts.push(format!("{errors} errors")),
    }
    parts.join(", ")
}

fn amount(progress: &Progress) -> String {
    let Some(total) = progress.total else { return decimal(progress.done) };
    let tenths = u128::from(progress.done) * 1000 / u128::from(total.max(1));
    let (whole, tenth) = (tenths / 10, tenths % 10);
    format!("{whole}.{tenth} % ({} of {})", decimal(progress.done), decimal(total))
}

/// `40 s`, `5 min`, `1 h 02 min`, `2 d 3 h`.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5999 => format!("{minutes} min"),
        6000..=359_999 => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn progress() -> Progress {
        Progress {
            phase: Phase::Copying,
            done: 123_456_789,
            total: Some(1_000_000_000),
            rate: 110_000_000,
            eta: Some(Duration::from_secs(8)),
            bad: 0,
            errors: 0,
            zeroes: 0,
            reconnecting: None,
            stalled: None,
            elapsed: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_line_has_how_much_how_fast_and_how_long() {
        let mut progress = progress();
        assert_eq!(line(&progress), "copying: 12.3 % (123.5 MB of 1 GB), 110 MB/s, 8 s left");
        progress.stalled = Some(("nvme://a/b".to_owned(), Duration::from_secs(4)));
        assert!(line(&progress).ends_with(", 8 s left, no answer for 4 s"));
        progress.stalled = None;
        progress.bad = 4096;
        progress.errors = 2;
        assert!(line(&progress).ends_with(", 4.1 kB bad, 2 errors"));
        (progress.total, progress.eta, progress.phase) = (None, None, Phase::Retrying(2));
        assert!(line(&progress).starts_with("retrying: 123.5 MB, 110 MB/s, 4.1 kB bad"));
        (progress.total, progress.done) = (Some(0), 0);
        assert!(line(&progress).contains("0.0 %"));
        (progress.total, progress.done) = (Some(u64::MAX), u64::MAX);
        assert!(line(&progress).contains("100.0 %"));
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, said) in [
            (0, "0 s"),
            (99, "99 s"),
            (100, "1 min"),
            (3720, "62 min"),
            (7320, "2 h 02 min"),
            (400_000, "4 d 15 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), said);
        }
    }

    #[test]
    fn lost_connection_is_reported_once() {
        let (read, write) = io::pipe().unwrap();
        let form = Form::Json(NonBlockingWriter::new(write.into()));
        let mut reporter = ProgressReporter {
            form,
            interval: EVENT_INTERVAL,
            phase: None,
            said: Instant::now(),
            reconnecting: None,
        };
        let mut progress = progress();
        progress.reconnecting = Some(("nvme://a/b".to_owned(), "timed out".to_owned()));
        (0..3).for_each(|_| reporter.progress(&progress));
        progress.reconnecting = None;
        (0..3).for_each(|_| reporter.progress(&progress));
        reporter.close();
        drop(reporter);
        let said = io::read_to_string(read).unwrap();
        let named = |name: &str| said.matches(&format!("\"event\":\"{name}\"")).count();
        assert_eq!((named("reconnecting"), named("note"), named("progress")), (1, 1, 1), "{said}");
    }
}
