//! Output of `storagetm serve`: JSON events, a terminal screen or plain lines, the journal, and the
//! service manager.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use std::{env, io};

use console::{Model, Pairing, State, Style, Unavailable, frame, screen, text};
use linux::journal::{Journal, Priority};
use linux::notify::Notifier;
use linux::plymouth::Plymouth;
use linux::tree::Tree;
use linux::tty;

use rustix::event::PollFlags;

use crate::nonblocking::NonBlockingWriter;
use daemon::event::ServeEvent;

/// Assumed size of a terminal that does not report one.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// Form of standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One JSON event per line.
    Json,
    /// A terminal, redrawn on changes.
    Screen,
    /// A file, a pipe or the journal: lines.
    Plain,
    /// Nothing is written.
    Silent,
}

/// Where events and the screen are written.
#[derive(Debug)]
pub(crate) struct Output {
    form: Form,
    writer: NonBlockingWriter,
    /// The frame on the screen.
    shown: String,
    journal: Option<Journal>,
    notifier: Option<Notifier>,
    splash: Option<Plymouth>,
}

impl Output {
    /// Detects the form of output. If `quiet`, standard output belongs to another program, unless
    /// it is the journal.
    pub(crate) fn open(tree: &Tree, json: bool, splash: bool, quiet: bool) -> Self {
        // The screen is scrolled by keys, so standard input must be a terminal as well.
        let terminal = tty::is_terminal(&io::stdout())
            && tty::is_terminal(&io::stdin())
            && env_is_not("TERM", "dumb");
        let form = match (json, terminal) {
            (true, _) => Form::Json,
            _ if quiet && !is_journal() => Form::Silent,
            (false, true) => Form::Screen,
            (false, false) => Form::Plain,
        };
        let journal = if is_journal() { None } else { Journal::open(tree, "storagetm") };
        Self {
            form,
            writer: NonBlockingWriter::stdout(),
            shown: String::new(),
            journal,
            notifier: Notifier::open().ok(),
            splash: splash.then(Plymouth::open),
        }
    }

    /// No output: target mode has its own screens.
    pub(crate) fn silent() -> Self {
        let (journal, notifier, splash) = (None, None, None);
        let (writer, shown) = (NonBlockingWriter::stdout(), String::new());
        Self { form: Form::Silent, writer, shown, journal, notifier, splash }
    }

    /// Reports an event.
    pub(crate) fn report(&mut self, event: &ServeEvent) {
        let sentence = event.sentence();
        if let Some(sentence) = &sentence {
            let priority = if event.is_problem() { Priority::Warning } else { Priority::Notice };
            self.record(priority, sentence, &event.fields());
        }
        match (self.form, sentence) {
            (Form::Json, _) => self.report_json(event),
            (Form::Plain, Some(sentence)) => self.writer.push(&format!("{sentence}\n")),
            (Form::Plain, None) | (Form::Screen | Form::Silent, _) => {}
        }
    }

    /// Writes an event in JSON mode only.
    pub(crate) fn report_json(&mut self, event: &ServeEvent) {
        if self.form == Form::Json {
            let line = |event: &ServeEvent| format!("{}\n", event.json());
            self.writer.push_line(&line(event), |count| line(&ServeEvent::Lost { count }));
        }
    }

    /// Draws the screen. In plain form prints the full text if `anew`.
    pub(crate) fn show(&mut self, model: &Model, state: &State, anew: bool) {
        match self.form {
            Form::Screen => self.draw(model, state),
            Form::Plain if anew => {
                let style = Style { utf8: is_utf8(), ..Style::PLAIN };
                self.writer.push(&lines(&text(model, style)));
            }
            Form::Plain | Form::Json | Form::Silent => {}
        }
        if anew && self.journal.is_some() {
            // Codes grant access and must not be written to the journal.
            let hidden = Some(Pairing::Unavailable(Unavailable::Hidden));
            let mut model = Model { pairing: hidden, ..model.clone() };
            if let Some(reading) = &mut model.reading {
                (reading.code, reading.is_on_screen) = (None, true);
            }
            for line in text(&model, Style { utf8: true, ..Style::PLAIN })
                .iter()
                .filter(|line| !line.is_empty())
            {
                self.record(Priority::Info, line, &[]);
            }
        }
    }

    /// Shows one line on a boot splash, if there is one.
    pub(crate) fn show_splash(&mut self, model: &Model) {
        self.splash.iter_mut().for_each(|splash| splash.show(&console::splash(model)));
    }

    /// Returns whether [`Output::show_splash`] is to be called regularly.
    pub(crate) fn has_splash(&self) -> bool {
        self.splash.is_some()
    }

    fn draw(&mut self, model: &Model, state: &State) {
        let (width, rows) = tty::window(io::stdout()).unwrap_or(DEFAULT_SIZE);
        let color = env::var_os("NO_COLOR").is_none();
        let style = Style { width: width.into(), color, utf8: is_utf8() };
        let frame = frame(&screen(model, state, style, rows.into()), style.width);
        if frame != self.shown {
            self.writer.push(&frame);
            self.shown = frame;
        }
    }

    /// Forces a redraw: another program may have written to the terminal.
    pub(crate) fn invalidate(&mut self) {
        self.shown.clear();
    }

    /// Redraws changing counters, unless the terminal is slow. Returns whether it did.
    pub(crate) fn refresh(&mut self, model: &Model, state: &State) -> bool {
        let draws = self.form == Form::Screen && !self.writer.has_pending();
        if draws {
            self.draw(model, state);
        }
        draws
    }

    /// Writes to the journal. Errors are ignored.
    fn record(&self, priority: Priority, sentence: &str, fields: &[(String, String)]) {
        if let Some(journal) = &self.journal {
            let fields: Vec<(&str, &str)> =
                fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let _ = journal.send(priority, sentence, &fields);
        }
    }

    pub(crate) fn is_screen(&self) -> bool {
        self.form == Form::Screen
    }

    /// Notifies the service manager that startup is complete (`READY=1`), with a status.
    pub(crate) fn ready(&self, status: &str) {
        self.status(status);
        let _ = self.notifier.as_ref().map(Notifier::ready);
    }

    /// Sends a status to the service manager.
    pub(crate) fn status(&self, status: &str) {
        let _ = self.notifier.as_ref().map(|notifier| notifier.status(status));
    }

    /// Notifies the service manager that the program is stopping. Later output is printed below the
    /// screen.
    pub(crate) fn stopping(&mut self) {
        if self.form == Form::Screen {
            self.writer.push("\n");
            self.form = Form::Plain;
        }
        self.splash = None;
        let _ = self.notifier.as_ref().map(Notifier::stopping);
    }

    /// Interval of watchdog notifications, if the service manager wants them.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.notifier.as_ref().and_then(Notifier::watchdog_interval)
    }

    /// Sends a watchdog notification.
    pub(crate) fn watchdog(&self) {
        let _ = self.notifier.as_ref().map(Notifier::watchdog);
    }

    /// Writes pending output without blocking.
    pub(crate) fn write(&mut self) {
        self.writer.write();
    }

    /// Writes pending output, at most for `timeout`.
    pub(crate) fn drain(&mut self, timeout: Duration) {
        self.writer.drain(timeout);
    }

    /// Returns the descriptor to poll. In JSON mode it is polled even if nothing is pending, to
    /// detect that the reader is gone (POLLERR is always reported).
    pub(crate) fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let waits = self.writer.has_pending();
        let flags = if waits { PollFlags::OUT } else { PollFlags::empty() };
        let is_watched = waits || (self.form == Form::Json && !self.writer.is_closed());
        is_watched.then(|| (self.writer.as_fd(), flags))
    }

    /// Checks whether the reader of the events is gone.
    pub(crate) fn check_closed(&mut self) {
        if self.form == Form::Json {
            self.writer.check_closed();
        }
    }

    /// Returns whether the reader of the events is gone.
    pub(crate) fn reader_gone(&self) -> bool {
        self.form == Form::Json && self.writer.is_closed()
    }
}

fn lines(lines: &[String]) -> String {
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn env_is_not(name: &str, value: &str) -> bool {
    env::var_os(name).is_none_or(|set| set != value)
}

/// Returns whether the locale's encoding is UTF-8 (POSIX.1-2017: the first variable that is set
/// decides).
fn is_utf8() -> bool {
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// Returns whether standard output is the journal: `JOURNAL_STREAM` has its device and inode.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let output = rustix::fs::fstat(io::stdout());
    output.is_ok_and(|output| stream == format!("{}:{}", output.st_dev, output.st_ino))
}
