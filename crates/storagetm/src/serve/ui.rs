//! What the user sees and presses: events and messages, the screen of a terminal, the consoles of
//! target mode.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use console::{Action, Key, Model, State, TargetMode, UsbPort};
use daemon::event::ServeEvent;
use daemon::messages::Messages;
use rustix::event::PollFlags;
use serde_json::Value;

use super::{StopReason, coalesced};
use crate::console_ui::{self, ConsoleUi};
use crate::output::Output;
use crate::terminal_keys::TerminalKeys;

/// Interval at which counters and buttons are polled in target mode, and the terminal while another
/// job is in its foreground.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Minimum time for the reader of the last events.
pub(super) const MIN_DRAIN_TIME: Duration = Duration::from_secs(1);

pub(super) struct Ui {
    output: Output,
    /// Consoles and power button, in target mode.
    console_ui: Option<ConsoleUi>,
    /// Keys of the terminal, outside of target mode.
    terminal_keys: Option<TerminalKeys>,
    /// View state of the screen.
    state: State,
    messages: Messages,
    draw_due: Option<Instant>,
    /// When a change was last drawn.
    drawn: Option<Instant>,
    /// Whether the next drawing prints the full text where there is no screen.
    full_text: bool,
    /// When counters and buttons are polled.
    poll_due: Option<Instant>,
    watchdog_due: Option<Instant>,
    /// Events since the last [`Self::take_recorded`], if they are recorded.
    recorded: Option<Vec<Value>>,
}

impl Ui {
    pub(super) fn open(output: Output, console_ui: Option<ConsoleUi>) -> Self {
        let has_terminal = console_ui.is_none() && output.is_screen();
        Self {
            terminal_keys: if has_terminal { TerminalKeys::open() } else { None },
            output,
            console_ui,
            state: State::default(),
            messages: Messages::default(),
            draw_due: None,
            drawn: None,
            full_text: false,
            poll_due: None,
            watchdog_due: None,
            recorded: None,
        }
    }

    pub(super) fn is_target_mode(&self) -> bool {
        self.console_ui.is_some()
    }

    /// Returns whether a person can read and answer a question.
    pub(super) fn has_screen(&self) -> bool {
        self.console_ui.is_some() || self.terminal_keys.is_some()
    }

    pub(super) fn target_mode(
        &self,
        serving: bool,
        flushing: bool,
        usb: UsbPort,
    ) -> Option<TargetMode> {
        let hardware = self.console_ui.as_ref()?.hardware().to_owned();
        Some(TargetMode { hardware, serving, flushing, usb })
    }

    /// Returns a note about the machine itself, in target mode.
    pub(super) fn machine_note(&self) -> Option<String> {
        self.console_ui.as_ref().and_then(ConsoleUi::note)
    }

    /// Reports an event, and schedules a redraw.
    pub(super) fn report(&mut self, event: &ServeEvent) {
        self.emit(event);
        if event.is_message() {
            event.sentence().into_iter().for_each(|sentence| self.messages.add(sentence));
        }
        self.draw_soon(false);
    }

    /// Reports an event, and leaves the screen as it is.
    pub(super) fn emit(&mut self, event: &ServeEvent) {
        self.output.report(event);
        if let Some(recorded) = &mut self.recorded {
            recorded.extend(serde_json::to_value(event).ok());
        }
    }

    /// Starts to record events, unless they are recorded already. They must be taken in each turn of
    /// the loop. Returns how many there are.
    pub(super) fn start_recording(&mut self) -> usize {
        self.recorded.get_or_insert_default().len()
    }

    /// Ends the recording of events.
    pub(super) fn end_recording(&mut self) {
        self.recorded = None;
    }

    /// Takes the events that were recorded.
    pub(super) fn take_recorded(&mut self) -> Vec<Value> {
        self.recorded.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Adds a message to the screen.
    pub(super) fn note(&mut self, sentence: String) {
        self.messages.add(sentence);
    }

    /// Removes a message from the screen.
    pub(super) fn remove_note(&mut self, sentence: &str) {
        self.messages.remove(sentence);
        self.draw_soon(false);
    }

    /// Replaces or removes the message of a subject on the screen.
    pub(super) fn set_subject(&mut self, subject: String, sentence: Option<String>) {
        self.messages.set_subject(subject, sentence);
        self.draw_soon(false);
    }

    /// Returns the messages on the screen.
    pub(super) fn messages(&self) -> Vec<String> {
        self.messages.list()
    }

    /// Shows the screen for the first time, and reports that startup is complete.
    pub(super) fn start(&mut self, model: Model, summary: &str) {
        self.messages.end_startup();
        self.output.show(&model, &self.state, true);
        self.show_other_screens(&model);
        self.output.report(&ServeEvent::Ready);
        for note in model.notes {
            self.output.report_json(&ServeEvent::note(note));
        }
        self.output.ready(summary);
        self.watchdog_due = self.output.watchdog_interval().map(|time| Instant::now() + time);
    }

    /// Schedules a redraw: at once, or [`COALESCE`] after the last one. If `full_text`, prints the
    /// full text where there is no screen.
    pub(super) fn draw_soon(&mut self, full_text: bool) {
        self.full_text |= full_text;
        self.draw_due.get_or_insert_with(|| coalesced(self.drawn, Instant::now()));
    }

    /// Schedules a full redraw.
    pub(super) fn redraw_soon(&mut self) {
        self.output.invalidate();
        self.draw_soon(false);
    }

    /// Redraws all screens with the next drawing: other programs may have written to them.
    pub(super) fn invalidate(&mut self) {
        self.console_ui.iter_mut().for_each(ConsoleUi::redraw);
        self.output.invalidate();
    }

    pub(super) fn draw(&mut self, model: &Model, summary: &str) {
        self.drawn = Some(Instant::now());
        let full_text = std::mem::take(&mut self.full_text);
        self.output.show(model, &self.state, full_text);
        self.show_other_screens(model);
        self.output.status(summary);
    }

    /// Updates counters. Returns whether a screen was drawn.
    pub(super) fn refresh(&mut self, model: &Model) -> bool {
        self.console_ui.iter_mut().for_each(ConsoleUi::refresh_buttons);
        let is_drawn = self.output.refresh(model, &self.state);
        self.show_other_screens(model);
        self.console_ui.is_some() || is_drawn
    }

    /// Updates the consoles of target mode and the boot splash.
    fn show_other_screens(&mut self, model: &Model) {
        self.output.show_splash(model);
        let counts = self.output.is_screen() && model.is_attached();
        if self.console_ui.is_some() || self.output.has_splash() || counts {
            self.poll_due = Some(Instant::now() + POLL_INTERVAL);
        }
        self.state.expire(Instant::now());
        if let Some(console_ui) = &mut self.console_ui {
            console_ui.show(model, &self.state);
        }
    }

    pub(super) fn is_power_pressed(&mut self) -> bool {
        self.console_ui.as_mut().is_some_and(ConsoleUi::is_power_pressed)
    }

    /// Returns the keys that were pressed.
    pub(super) fn keys(&mut self) -> Vec<Key> {
        let mut keys = self.console_ui.as_mut().map(ConsoleUi::keys).unwrap_or_default();
        keys.extend(self.terminal_keys.as_mut().map(TerminalKeys::receive).unwrap_or_default());
        if self.terminal_keys.as_mut().is_some_and(TerminalKeys::regained_terminal) {
            self.redraw_soon();
        }
        self.terminal_keys.take_if(|terminal_keys| terminal_keys.is_gone());
        keys
    }

    /// Returns what the key requests. Redraws at once, since the screen is being read.
    pub(super) fn handle_key(&mut self, key: Key, model: &Model, now: Instant) -> Option<Action> {
        self.draw_due = Some(now);
        self.state.handle_key(key, model, now)
    }

    /// Sets the terminal up again after SIGCONT.
    pub(super) fn resume_terminal(&mut self) {
        self.terminal_keys.iter_mut().for_each(TerminalKeys::resume);
        self.redraw_soon();
    }

    /// Descriptors to poll.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let keys = self.terminal_keys.as_ref().and_then(TerminalKeys::descriptor);
        let console_ui = self.console_ui.iter().flat_map(ConsoleUi::poll_fds);
        let keys = keys.map(|fd| (fd, PollFlags::IN));
        keys.into_iter().chain(self.output.descriptor()).chain(console_ui)
    }

    /// Returns the time of the next timer.
    pub(super) fn due(&self) -> Option<Instant> {
        // A return to the foreground causes no event, so it is polled.
        let is_away = |terminal_keys: &&TerminalKeys| terminal_keys.descriptor().is_none();
        let away = self.terminal_keys.as_ref().filter(is_away);
        let away = away.map(|_| Instant::now() + POLL_INTERVAL);
        [self.draw_due, self.poll_due, self.watchdog_due, away].into_iter().flatten().min()
    }

    /// Returns whether [`Self::draw`] is due. It is then no longer scheduled.
    pub(super) fn take_draw_due(&mut self, now: Instant) -> bool {
        self.draw_due.take_if(|at| *at <= now).is_some()
    }

    /// Returns whether [`Self::refresh`] is due. It is then no longer scheduled.
    pub(super) fn take_poll_due(&mut self, now: Instant) -> bool {
        self.poll_due.take_if(|at| *at <= now).is_some()
    }

    pub(super) fn run_watchdog(&mut self, now: Instant) {
        if self.watchdog_due.is_some_and(|at| at <= now) {
            self.output.watchdog();
            self.watchdog_due = self.output.watchdog_interval().map(|time| now + time);
        }
    }

    /// Writes pending output without blocking, and checks whether its reader is gone.
    pub(super) fn write(&mut self) {
        self.output.write();
        self.output.check_closed();
    }

    pub(super) fn is_reader_gone(&self) -> bool {
        self.output.reader_gone()
    }

    /// Ends the screens before the hosts are disconnected. Returns whether there were consoles of
    /// target mode.
    pub(super) fn close(&mut self, end: &StopReason) -> bool {
        let has_consoles = self.console_ui.is_some();
        if let Some(console_ui) = self.console_ui.take() {
            console_ui.close(match end {
                StopReason::Restart => "Disconnecting the hosts; then this machine restarts.\n",
                StopReason::PowerOff => "Disconnecting the hosts; then this machine powers off.\n",
                StopReason::Signalled | StopReason::Failed(_) => {
                    "Disconnecting the hosts; then this machine ends.\n"
                }
            });
        }
        self.terminal_keys = None;
        self.output.stopping();
        has_consoles
    }

    /// Waits until the last events are read, and warns on the consoles of target mode if data may be lost.
    pub(super) fn finish(mut self, had_consoles: bool, lost: &[String]) {
        self.output.drain(MIN_DRAIN_TIME);
        if had_consoles && !lost.is_empty() {
            console_ui::warn(&lost.join("\n"));
        }
    }
}
