//! `storagetm serve`: exports disks until it is stopped. One event loop handles hot-plug,
//! addresses, hosts and the user; the data path is in the engine.

mod config;
mod disks;
mod endpoints;
mod event_limit;
mod faults;
mod flushes;
mod mdns;
mod pairing;
mod screen;
mod shutdown;
mod socket_activation;
mod startup;
mod timers;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::{Model, Pairing, State, TargetMode, Unavailable};
use engine::Driver;
use export::{Event, Export};
use linux::inhibit::Inhibitor;
use linux::net::{Address, Changes};
use linux::signal::{Signal, Signals};
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::console_ui::ConsoleUi;
use crate::options::Serve;
use crate::output::Output;
use crate::terminal_keys::TerminalKeys;
pub(crate) use config::ServeConfig;
use daemon::access_control::{AccessControl, PendingPairing};
use daemon::event::{ServeEvent, peer_of};
use daemon::hotplug::Hotplug;
use daemon::inbox::{Inbox, Pending};
use daemon::lend::LentDisk;
use daemon::listeners::Listeners;
use daemon::rate_limit::CountedEvent;
use daemon::status::{Status, loopback_advice};
use daemon::worker::Worker;
use dnssd::Announcer;
use endpoints::unserved_address_note;
use event_limit::EventLimit;
use failure::Failure;
use faults::Faults;
use flushes::Flushes;
use protocol::Protocol;
use socket_activation::InheritedSockets;
use timers::Timers;

/// Interval at which counters and buttons are polled in target mode.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which the sizes of image files are polled: the kernel does not report changes.
const SIZE_INTERVAL: Duration = Duration::from_secs(2);
/// Changes within this time are shown together.
const COALESCE: Duration = Duration::from_millis(200);

/// Why the program stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// A signal.
    Signalled,
    /// The user requested a power-off.
    PowerOff,
    /// The user requested a restart.
    Restart,
    /// The worker process failed for good.
    Failed,
}

/// Exports disks until a signal.
///
/// # Errors
/// Fails with a sentence if nothing can be exported.
pub(crate) fn serve(options: Serve) -> Result<(), Failure> {
    // Before any other descriptor is opened: passed sockets have the next numbers
    // (sd_listen_fds(3)).
    let inherited = InheritedSockets::take(&options)?;
    let json = options.json;
    let config = ServeConfig::of_options(options)?;
    // A program that passes sockets uses standard output itself.
    let quiet = inherited.is_some() && !json;
    let output = Output::open(&Tree::machine(), json, config.is_target(), quiet);
    run(config, output, open_inbox()?, inherited, None).map(drop)
}

/// Exports disks in target mode, until the console UI or a signal ends it. The threads that
/// configure the machine post to `inbox`.
///
/// # Errors
/// Fails with a sentence if nothing can be exported.
pub(crate) fn target_mode(
    config: ServeConfig,
    inbox: Inbox,
    console_ui: ConsoleUi,
) -> Result<StopReason, Failure> {
    run(config, Output::silent(), inbox, None, Some(console_ui))
}

fn run(
    config: ServeConfig,
    output: Output,
    inbox: Inbox,
    inherited: Option<InheritedSockets>,
    console_ui: Option<ConsoleUi>,
) -> Result<StopReason, Failure> {
    startup::raise_limits();
    let mut signals = Signals::open()
        .map_err(|error| Failure::new(format!("signals cannot be received: {error}")))?;
    let mut server = Server::open(config, output, inbox, inherited, console_ui)?;
    server.announce();
    let end = server.run(&mut signals);
    let failure_reason = server.failure_reason.take();
    let is_of_machine = server.console_ui.is_some();
    // In target mode possible losses were shown on the screen, and must not prevent the power-off.
    let lost = Some(server.close(end)).filter(|lost| !lost.is_empty() && !is_of_machine);
    let sentence = failure_reason.or_else(|| Some(lost?.join("; ")));
    sentence.map_or(Ok(end), |sentence| Err(Failure::new(sentence)))
}

/// Opens the inbox for notes of other threads.
///
/// # Errors
/// Fails if no descriptor is available.
pub(crate) fn open_inbox() -> Result<Inbox, Failure> {
    Inbox::open().map_err(|error| Failure::new(format!("no descriptor for events: {error}")))
}

struct Server {
    worker: Worker,
    access_control: AccessControl,
    /// Announces the disks by multicast DNS, if enabled.
    announcer: Option<Announcer>,
    /// Keys of the terminal, outside of target mode.
    terminal_keys: Option<TerminalKeys>,
    /// View state of the screen.
    screen: State,
    /// Why no pairing code is shown, if so.
    pairing_unavailable: Option<Unavailable>,
    /// Whether pairing codes are reported as JSON events.
    reports_codes: bool,
    /// Why the worker failed for good.
    failure_reason: Option<String>,
    listeners: Listeners,
    lent_disks: Vec<LentDisk>,
    status: Status,
    /// Failed requests of disks.
    faults: Faults,
    event_limit: EventLimit,
    /// Prevents suspend while a disk is attached.
    sleep_inhibitor: Inhibitor,
    hotplug: Hotplug,
    inbox: Inbox,
    output: Output,
    machine: String,
    addresses: Vec<Address>,
    address_changes: Option<Changes>,
    digests: bool,
    /// Whether loopback addresses are left out of what is shown.
    remote_only: bool,
    timers: Timers,
    console_ui: Option<ConsoleUi>,
    /// The socket of the only client (`--stdin`).
    only_peer: Option<OwnedFd>,
    /// Flushes of disks whose last host has detached.
    flushes: Flushes,
}

impl Server {
    /// Adds notes about the configuration.
    fn add_startup_notes(&mut self, notes: Vec<String>, is_all: bool, driver: Driver) {
        notes.into_iter().for_each(|note| self.status.note(note));
        if is_all && self.hotplug.is_unavailable() {
            self.status.note(
                "The kernel does not tell here which disks come and go: only those that are there \
                 now are lent."
                    .to_owned(),
            );
        }
        self.worker.note().into_iter().for_each(|note| self.status.note(note));
        let running = self.worker.driver();
        if driver == Driver::Auto && running.driver == Driver::Blocking {
            self.status.note(format!("The driver is {running}; this is slower."));
        }
    }

    fn add_lent_disk(&mut self, lent: LentDisk) {
        self.status.add_disk(lent.export.clone());
        if lent.file_bytes().is_some() {
            self.timers.sizes.get_or_insert_with(|| Instant::now() + SIZE_INTERVAL);
        }
        lent.notes.iter().for_each(|note| self.status.note(note.clone()));
        self.lent_disks.push(lent);
    }

    /// Reports the exported disks and endpoints, and that startup is complete.
    fn announce(&mut self) {
        for event in self.listeners.open_events() {
            self.output.report(&event);
        }
        let exports: Vec<Arc<Export>> = self.status.exports().cloned().collect();
        for export in exports {
            self.report_lent(&export);
        }
        self.status.end_startup();
        let model = self.model();
        self.output.show(&model, &self.screen, true);
        self.show_other_screens(&model);
        self.output.report(&ServeEvent::Ready);
        for note in model.notes {
            self.output.report_json(&ServeEvent::note(note));
        }
        self.output.ready(&self.status.summary());
        self.announce_mdns();
        self.timers.watchdog = self.output.watchdog_interval().map(|time| Instant::now() + time);
    }

    fn report_lent(&mut self, export: &Arc<Export>) {
        self.output.report(&ServeEvent::lent(export, &self.endpoints(), self.digests));
    }

    /// Returns the model of the screen.
    fn model(&self) -> Model {
        let endpoints = self.endpoints();
        let loopback_advice = loopback_advice(&endpoints).filter(|_| !self.listeners.are_fixed());
        let mut model = self.status.model(&self.machine, endpoints, self.digests);
        // State before messages: the newest message is the last.
        model.notes.splice(0..0, self.current_notes(loopback_advice));
        let pairing_unavailable = || self.pairing_unavailable.map(Pairing::Unavailable);
        model.pairing = self.access_control.pairing(&model.endpoints).or_else(pairing_unavailable);
        model.access_request = self.access_control.prompt();
        let flushing = self.flushes.any_pending();
        let mode = self.console_ui.as_ref().map(ConsoleUi::current_mode);
        model.target_mode = mode.map(|mode| TargetMode { flushing, ..mode });
        model.link = self.link();
        for disk in &mut model.disks {
            let is_it = |lent: &&LentDisk| lent.export.id == disk.id;
            let Some(lent) = self.lent_disks.iter().find(is_it) else { continue };
            disk.writes = lent.device.as_ref().and_then(|device| self.hotplug.writes(device));
            disk.contents.clone_from(&lent.contents);
        }
        model
    }

    /// Returns notes about the current state.
    fn current_notes(&self, loopback_advice: Option<&str>) -> Vec<String> {
        let mut notes: Vec<String> = loopback_advice.map(str::to_owned).into_iter().collect();
        notes.extend(self.console_ui.as_ref().and_then(ConsoleUi::note));
        if self.console_ui.is_some() && self.listeners.is_nearby() {
            notes.extend(unserved_address_note(&self.addresses));
        }
        let awaited = |address| format!("This machine does not have the address {address} yet.");
        notes.extend(self.listeners.awaited(&self.addresses).into_iter().map(awaited));
        let missing = |disk| format!("There is no disk {disk} yet.");
        notes.extend(self.hotplug.missing().into_iter().map(missing));
        notes
    }

    /// Updates the consoles of target mode and the boot splash.
    fn show_other_screens(&mut self, model: &Model) {
        self.output.show_splash(model);
        let counts = self.output.is_screen() && model.is_attached();
        if self.console_ui.is_some() || self.output.has_splash() || counts {
            self.timers.poll_counters = Some(Instant::now() + POLL_INTERVAL);
        }
        self.screen.expire(Instant::now());
        let Some(console_ui) = &mut self.console_ui else { return };
        console_ui.show(model, &self.screen);
    }

    /// The event loop.
    fn run(&mut self, signals: &mut Signals) -> StopReason {
        while !self.output.reader_gone() && !self.only_peer_gone() {
            self.wait(signals);
            for signal in signals.receive() {
                match signal {
                    Signal::WindowChange => self.redraw_soon(),
                    Signal::Continue => self.resume_terminal(),
                    Signal::ReopenPairing => self.worker.unlock(),
                    Signal::Interrupt | Signal::Terminate | Signal::HangUp => {
                        return StopReason::Signalled;
                    }
                }
            }
            let now = Instant::now();
            if let Some(end) = self.read_keys(now) {
                return end;
            }
            self.hotplug.receive(now);
            self.notice_addresses(now);
            self.handle_events(now);
            if self.failure_reason.is_some() {
                return StopReason::Failed;
            }
            if self.access_control.has_changed(now) {
                self.apply_host_changes(now);
            }
            let is_used = self.status.exports().any(|export| self.status.is_attached(export));
            self.sleep_inhibitor.update(self.console_ui.is_some() || is_used, now);
            self.output.write();
            self.output.check_closed();
            self.run_timers(now);
        }
        StopReason::Signalled
    }

    /// Waits for an event or a timer.
    fn wait(&self, signals: &Signals) {
        let readable = [
            Some(signals.as_fd()),
            Some(self.inbox.as_fd()),
            self.address_changes.as_ref().map(AsFd::as_fd),
            self.access_control.descriptor(),
            self.terminal_keys.as_ref().and_then(TerminalKeys::descriptor),
        ];
        let only_peer = self.only_peer.iter().map(|fd| (fd.as_fd(), PollFlags::empty()));
        let readable = readable.into_iter().flatten().chain(self.hotplug.descriptors());
        let readable = readable.map(|fd| (fd, PollFlags::IN));
        let console_ui = self.console_ui.as_ref().into_iter().flat_map(ConsoleUi::poll_fds);
        let mut poll_fds: Vec<PollFd<'_>> = readable
            .chain(self.output.descriptor())
            .chain(only_peer)
            .chain(console_ui)
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        let timeout = self.next_timer().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let _ = poll(&mut poll_fds, timeout.as_ref());
    }

    fn next_timer(&self) -> Option<Instant> {
        let timers = &self.timers;
        let current_mode = [timers.draw, timers.poll_counters, timers.code];
        let own = current_mode.into_iter().chain([timers.addresses, timers.watchdog, timers.sizes]);
        let own = own.chain([self.event_limit.due()]);
        let others = [
            self.hotplug.due(),
            self.access_control.due(),
            self.terminal_keys_due(),
            self.sleep_inhibitor.due(),
        ];
        own.chain(others).flatten().min()
    }

    /// A return to the foreground causes no event, so it is polled.
    fn terminal_keys_due(&self) -> Option<Instant> {
        let is_away = |terminal_keys: &&TerminalKeys| terminal_keys.descriptor().is_none();
        self.terminal_keys.as_ref().filter(is_away).map(|_| Instant::now() + POLL_INTERVAL)
    }

    fn run_timers(&mut self, now: Instant) {
        let is_due = |timer: Option<Instant>| timer.is_some_and(|at| at <= now);
        if is_due(self.hotplug.due()) {
            self.apply_hotplug(now);
        }
        if is_due(self.event_limit.due()) {
            self.report_suppressed(now);
        }
        if is_due(self.timers.sizes) {
            self.update_file_sizes(now);
        }
        if is_due(self.timers.addresses) {
            self.timers.addresses = None;
            self.update_listeners();
        }
        if is_due(self.timers.draw) {
            self.timers.draw = None;
            self.draw();
        }
        if is_due(self.timers.poll_counters) {
            self.timers.poll_counters = None;
            self.console_ui.iter_mut().for_each(ConsoleUi::refresh_buttons);
            let model = self.model();
            let is_drawn = self.output.refresh(&model, &self.screen);
            self.show_other_screens(&model);
            if self.console_ui.is_some() || is_drawn {
                self.access_control.mark_prompted();
            }
        }
        if is_due(self.timers.code) {
            self.timers.code = None;
            self.draw_soon(self.reports_codes);
        }
        if is_due(self.timers.watchdog) {
            self.output.watchdog();
            self.timers.watchdog = self.output.watchdog_interval().map(|time| now + time);
        }
    }

    fn draw_soon(&mut self, full_text: bool) {
        self.timers.full_text |= full_text;
        self.timers.draw.get_or_insert_with(|| Instant::now() + COALESCE);
    }

    fn draw(&mut self) {
        let model = self.model();
        self.output.show(&model, &self.screen, std::mem::take(&mut self.timers.full_text));
        self.show_other_screens(&model);
        self.access_control.mark_prompted();
        self.output.status(&self.status.summary());
    }

    /// Reports an event, and schedules a redraw.
    fn report(&mut self, event: &ServeEvent) {
        self.output.report(event);
        if event.is_message() {
            event.sentence().into_iter().for_each(|sentence| self.status.note(sentence));
        }
        self.draw_soon(false);
    }

    fn handle_events(&mut self, now: Instant) {
        let Pending { mut events, notes, subjects, view, end, lost } = self.inbox.receive();
        // The view reflects all events before it.
        if let Some((before, view)) = view {
            let after = events.split_off(before.min(events.len()));
            events.into_iter().for_each(|event| self.handle_event(event, now));
            self.show_code(view);
            events = after;
        }
        events.into_iter().for_each(|event| self.handle_event(event, now));
        self.failure_reason = self.failure_reason.take().or(end);
        for note in notes {
            self.report(&ServeEvent::note(note));
        }
        for (subject, sentence) in subjects {
            self.status.set_subject(subject, sentence);
            self.draw_soon(false);
        }
        if lost > 0 {
            self.report(&ServeEvent::note(format!(
                "{lost} more events were not shown, too many at once"
            )));
        }
    }

    fn handle_event(&mut self, counted: CountedEvent, now: Instant) {
        let CountedEvent { event, count } = counted;
        self.status.record(&event, self.access_control.policy());
        self.faults.record(&event, count);
        match event {
            Event::PairingRequested { peer, request } => {
                return self.pairing_requested(PendingPairing { peer, request }, now);
            }
            Event::Detached { ref export, .. } if !export.is_gone() => {
                self.flush_when_detached(export)
            }
            _ => {}
        }
        if self.event_limit.suppresses(&event, now) {
            return self.draw_soon(false);
        }
        let shrunk = self.file_end_before(&event);
        let mut event =
            serve_event(CountedEvent { event, count }, &self.listeners, &self.access_control);
        if let (Some(bytes), ServeEvent::Fault { reason, .. }) = (shrunk, &mut event) {
            *reason = format!("the file ends before that, at {bytes} bytes");
        }
        self.report(&event);
        if shrunk.is_some() {
            self.update_file_sizes(now);
        }
    }
}

/// Returns the event with its protocol and host name.
fn serve_event(
    counted: CountedEvent,
    listeners: &Listeners,
    access_control: &AccessControl,
) -> ServeEvent {
    let protocol = peer_of(&counted.event).map(|peer| listeners.protocol_of(peer));
    ServeEvent::of(counted, access_control.policy(), protocol.unwrap_or(Protocol::Nvme))
}
