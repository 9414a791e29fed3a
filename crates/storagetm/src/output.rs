//! Says what happens: as JSON, on a terminal or in plain lines, to the journal and to the service manager.
//! It knows no disk and no host.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use std::{env, io};

use console::{Model, Pairing, State, Style, Unavailable, picture, screen, text};
use linux::journal::{Journal, Priority};
use linux::notify::Notifier;
use linux::plymouth::Plymouth;
use linux::tree::Tree;
use linux::tty;

use rustix::event::PollFlags;

use crate::nonblocking::NonBlockingWriter;
use daemon::event::ServeEvent;

/// The window of a terminal that does not tell its size.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// What standard output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Programs.
    Json,
    /// A person at a terminal: all is drawn anew when something changes.
    Screen,
    /// A file, a pipe, the journal: lines.
    Plain,
    /// Nothing: it is said elsewhere.
    Silent,
}

/// Where it is said.
#[derive(Debug)]
pub(crate) struct Output {
    form: Form,
    writer: NonBlockingWriter,
    /// What is on the screen.
    shown: String,
    journal: Option<Journal>,
    notifier: Option<Notifier>,
    splash: Option<Plymouth>,
}

impl Output {
    /// Finds out what there is. If `quiet`, standard output is somebody else's, unless it is the journal.
    pub(crate) fn open(tree: &Tree, json: bool, splash: bool, quiet: bool) -> Self {
        // What does not fit on a screen is reached by keys.
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

    /// Nowhere: on a machine of its own, the screens are elsewhere.
    pub(crate) fn silent() -> Self {
        let (journal, notifier, splash) = (None, None, None);
        let (writer, shown) = (NonBlockingWriter::stdout(), String::new());
        Self { form: Form::Silent, writer, shown, journal, notifier, splash }
    }

    /// Says what happened.
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

    /// Says to programs what people see on the screen.
    pub(crate) fn report_json(&mut self, event: &ServeEvent) {
        if self.form == Form::Json {
            let line = |event: &ServeEvent| format!("{}\n", event.json());
            self.writer.push_line(&line(event), |count| line(&ServeEvent::Lost { count }));
        }
    }

    /// Draws the screen; where there is none, says all that it would show if `anew`.
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
            // What is on the screen lets in whoever reads it; what is in the journal must not.
            let hidden = Some(Pairing::Unavailable(Unavailable::Hidden));
            let model = Model { pairing: hidden, ..model.clone() };
            for line in text(&model, Style { utf8: true, ..Style::PLAIN })
                .iter()
                .filter(|line| !line.is_empty())
            {
                self.record(Priority::Info, line, &[]);
            }
        }
    }

    /// Shows on a boot splash, of which there is one from time to time, what fits there: one line.
    pub(crate) fn show_splash(&mut self, model: &Model) {
        self.splash.iter_mut().for_each(|splash| splash.show(&console::splash(model)));
    }

    /// Whether [`Output::show_splash`] wants to be called now and then.
    pub(crate) fn has_splash(&self) -> bool {
        self.splash.is_some()
    }

    fn draw(&mut self, model: &Model, state: &State) {
        let (width, rows) = tty::window(io::stdout()).unwrap_or(DEFAULT_SIZE);
        let color = env::var_os("NO_COLOR").is_none();
        let style = Style { width: width.into(), color, utf8: is_utf8() };
        let picture = picture(&screen(model, state, style, rows.into()), style.width);
        if picture != self.shown {
            self.writer.push(&picture);
            self.shown = picture;
        }
    }

    /// Has the screen be drawn again even if nothing changes: somebody else may have written there.
    pub(crate) fn invalidate(&mut self) {
        self.shown.clear();
    }

    /// Draws the screen for figures that change all the time, unless the terminal is behind anyway. Returns whether it has.
    pub(crate) fn refresh(&mut self, model: &Model, state: &State) -> bool {
        let draws = self.form == Form::Screen && !self.writer.has_pending();
        if draws {
            self.draw(model, state);
        }
        draws
    }

    /// A sentence to the journal; that it may be behind or gone is no reason to stop.
    fn record(&self, priority: Priority, sentence: &str, fields: &[(String, String)]) {
        if let Some(journal) = &self.journal {
            let fields: Vec<(&str, &str)> =
                fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let _ = journal.send(priority, sentence, &fields);
        }
    }

    /// Whether there is a person to read it at once, and nobody else.
    pub(crate) fn is_screen(&self) -> bool {
        self.form == Form::Screen
    }

    /// Tells the service manager that all is lent, and how things are.
    pub(crate) fn ready(&self, status: &str) {
        self.status(status);
        let _ = self.notifier.as_ref().map(Notifier::ready);
    }

    /// Tells the service manager how things are.
    pub(crate) fn status(&self, status: &str) {
        let _ = self.notifier.as_ref().map(|notifier| notifier.status(status));
    }

    /// Tells the service manager that the program ends; what is said from now on stands below the screen.
    pub(crate) fn stopping(&mut self) {
        if self.form == Form::Screen {
            self.writer.push("\n");
            self.form = Form::Plain;
        }
        self.splash = None;
        let _ = self.notifier.as_ref().map(Notifier::stopping);
    }

    /// How often the service manager wants a sign of life.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.notifier.as_ref().and_then(Notifier::watchdog_interval)
    }

    /// A sign of life.
    pub(crate) fn watchdog(&self) {
        let _ = self.notifier.as_ref().map(Notifier::watchdog);
    }

    /// Says what still waits to be said, as far as it goes without waiting.
    pub(crate) fn write(&mut self) {
        self.writer.write();
    }

    /// Says what still waits to be said, for at most so long.
    pub(crate) fn drain(&mut self, timeout: Duration) {
        self.writer.drain(timeout);
    }

    /// The descriptor to be polled, and for what: it is writable when more can be said. A program that reads the events
    /// is watched even if nothing waits, since its end is reported whatever is asked for.
    pub(crate) fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let waits = self.writer.has_pending();
        let flags = if waits { PollFlags::OUT } else { PollFlags::empty() };
        let is_watched = waits || (self.form == Form::Json && !self.writer.is_closed());
        is_watched.then(|| (self.writer.as_fd(), flags))
    }

    /// Looks whether the program for which the events are is still there.
    pub(crate) fn check_closed(&mut self) {
        if self.form == Form::Json {
            self.writer.check_closed();
        }
    }

    /// Whether the program for which the events are is gone.
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

/// Whether the locale has more than ASCII (POSIX.1-2017, environment variables: the first that is set decides).
fn is_utf8() -> bool {
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// Whether standard output is the journal already: systemd names its device and inode.
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let output = rustix::fs::fstat(io::stdout());
    output.is_ok_and(|output| stream == format!("{}:{}", output.st_dev, output.st_ino))
}
