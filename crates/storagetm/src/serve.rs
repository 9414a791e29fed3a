//! `storagetm serve`: exports disks until it is stopped. One event loop handles hot-plug,
//! addresses, hosts and the user; the data path is in the engine.
//!
//! | module | is |
//! |---|---|
//! | `config` | the configuration of the loop |
//! | `startup`, `shutdown` | the order in which everything is opened and closed |
//! | `network`, `mdns`, `socket_activation` | addresses, listeners, announcements, inherited sockets |
//! | `exports`, `disks`, `additions`, `flushes` | the served disks |
//! | `control` | the control socket, for `storagetm status`, `add` and `remove` |
//! | `rescue` | the map of a disk that fails |
//! | `hosts`, `reading` | access rules and pairing; certificate and code of HTTPS |
//! | `events`, `event_limit`, `faults` | events as they are reported |
//! | `usb` | the USB cable |
//! | `idle` | restart of a machine that no host uses |
//! | `ui` | output, screens and keys |

mod additions;
mod config;
mod control;
mod disks;
mod event_limit;
mod events;
mod exports;
mod faults;
mod flushes;
mod hosts;
mod idle;
mod mdns;
mod network;
mod nvmet;
mod reading;
mod rescue;
mod shutdown;
mod socket_activation;
mod startup;
mod ui;
mod usb;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use console::{Action, Model};
use daemon::access_control::PendingPairing;
use daemon::event::ServeEvent;
use daemon::inbox::{Inbox, Pending};
use daemon::rate_limit::CountedEvent;
use daemon::worker::Worker;
use export::Event;
use failure::Failure;
use linux::inhibit::Inhibitor;
use linux::signal::{Signal, Signals};
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::usb::Usb;
use crate::console_ui::ConsoleUi;
use crate::options::Serve;
use crate::output::Output;
pub(crate) use config::ServeConfig;
use control::{Control, Parts};
use events::Events;
use exports::Exports;
use hosts::Hosts;
use idle::IdleLimit;
use network::Network;
use reading::Reading;
use socket_activation::InheritedSockets;
use ui::Ui;

/// Changes within this time after the last one are shown together.
const COALESCE: Duration = Duration::from_millis(200);

/// Returns when a change is to be shown: at once, or [`COALESCE`] after the last one was.
fn coalesced(last: Option<Instant>, now: Instant) -> Instant {
    last.map_or(now, |last| now.max(last + COALESCE))
}

/// Why the program stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// A signal.
    Signalled,
    /// The user requested a power-off.
    PowerOff,
    /// The user requested a restart.
    Restart,
    /// The worker process failed for good, for this reason.
    Failed(String),
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
    let is_target_mode = server.ui.is_target_mode();
    let lost = server.close(&end);
    match end {
        StopReason::Failed(reason) => Err(Failure::new(reason)),
        // In target mode possible losses were shown on the screen, and must not prevent the
        // power-off.
        end if lost.is_empty() || is_target_mode => Ok(end),
        _ => Err(Failure::new(lost.join("; "))),
    }
}

/// Opens the inbox for notes of other threads.
///
/// # Errors
/// Fails if no descriptor is available.
pub(crate) fn open_inbox() -> Result<Inbox, Failure> {
    Inbox::open().map_err(|error| Failure::new(format!("no descriptor for events: {error}")))
}

/// The event loop and its parts.
struct Server {
    worker: Worker,
    network: Network,
    exports: Exports,
    usb: Usb,
    hosts: Hosts,
    reading: Reading,
    events: Events,
    ui: Ui,
    /// Prevents suspend while a disk is attached.
    sleep_inhibitor: Inhibitor,
    /// Restarts the machine when no host has been attached for some time, in target mode.
    idle_limit: IdleLimit,
    control: Control,
    /// Events of the worker, and notes of other threads.
    inbox: Inbox,
}

/// What the parts use to act and to report.
struct Context<'a> {
    worker: &'a Worker,
    ui: &'a mut Ui,
    now: Instant,
}

impl Server {
    /// Reports the exported disks and endpoints, and that startup is complete.
    fn announce(&mut self) {
        self.network.open_events().iter().for_each(|event| self.ui.emit(event));
        for export in self.exports.status().exports() {
            self.ui.emit(&self.network.lent_event(export));
        }
        let model = self.model();
        self.ui.start(model, &self.exports.status().summary());
        let endpoints = self.network.endpoints();
        let Self { worker, ui, .. } = self;
        self.reading.report(&endpoints, &mut Context { worker, ui, now: Instant::now() });
        self.network.announce();
    }

    /// Returns the model of the screen.
    fn model(&self) -> Model {
        let endpoints = self.network.endpoints();
        // State before messages: the newest message is the last.
        let mut notes: Vec<String> = self.ui.machine_note().into_iter().collect();
        notes.extend(self.network.notes(self.ui.is_target_mode()));
        notes.extend(self.exports.notes().chain(self.ui.messages()));
        let (serving, flushing) = (self.exports.is_serving(), self.exports.is_flushing());
        Model {
            machine: self.network.machine().to_owned(),
            pairing: self.hosts.pairing(&endpoints),
            reading: self.reading.access(),
            endpoints,
            digests: self.network.digests(),
            disks: self.exports.shown(),
            notes,
            access_request: self.hosts.prompt(),
            link: network::link(),
            target_mode: self.ui.target_mode(serving, flushing, self.usb.port()),
        }
    }

    fn draw(&mut self) {
        let model = self.model();
        self.ui.draw(&model, &self.exports.status().summary());
        self.hosts.mark_prompted();
    }

    /// The event loop.
    fn run(&mut self, signals: &mut Signals) -> StopReason {
        while !self.ui.is_reader_gone() && !self.network.only_peer_gone() {
            self.wait(signals);
            for signal in signals.receive() {
                match signal {
                    Signal::WindowChange => self.ui.redraw_soon(),
                    Signal::Continue => self.ui.resume_terminal(),
                    Signal::ReopenPairing => {
                        self.worker.unlock();
                        self.renew_reading_code();
                    }
                    Signal::Interrupt | Signal::Terminate | Signal::HangUp => {
                        return StopReason::Signalled;
                    }
                }
            }
            let now = Instant::now();
            if let Some(end) = self.handle_keys(now) {
                return end;
            }
            self.exports.receive(now);
            self.network.receive(now);
            if let Some(reason) = self.handle_events(now) {
                return StopReason::Failed(reason);
            }
            self.hosts.receive(&mut Context { worker: &self.worker, ui: &mut self.ui, now });
            let is_attached = self.exports.status().is_any_attached();
            self.sleep_inhibitor.update(self.ui.is_target_mode() || is_attached, now);
            if self.idle_limit.is_reached(is_attached, now) {
                return StopReason::Restart;
            }
            self.ui.write();
            self.run_timers(now);
            self.run_control(now);
        }
        StopReason::Signalled
    }

    /// Answers the clients of the control socket. Last in each turn: they get all of its events.
    fn run_control(&mut self, now: Instant) {
        let Self { worker, network, exports, control, ui, .. } = self;
        let cx = &mut Context { worker, ui, now };
        control.run(&mut Parts { exports, network }, cx);
    }

    /// Waits for an event or a timer.
    fn wait(&self, signals: &Signals) {
        let own = [
            Some(signals.as_fd()),
            Some(self.inbox.as_fd()),
            self.network.descriptor(),
            self.hosts.descriptor(),
        ];
        let readable = own.into_iter().flatten().chain(self.exports.descriptors());
        let readable = readable.map(|fd| (fd, PollFlags::IN));
        let only_peer = self.network.only_peer().map(|fd| (fd, PollFlags::empty()));
        let mut poll_fds: Vec<PollFd<'_>> = readable
            .chain(only_peer)
            .chain(self.ui.descriptors())
            .chain(self.control.descriptors())
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        let timeout = self.due().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let _ = poll(&mut poll_fds, timeout.as_ref());
    }

    /// Returns the time of the next timer.
    fn due(&self) -> Option<Instant> {
        let parts = [
            self.exports.due(),
            self.usb.due(),
            self.network.due(),
            self.hosts.due(),
            self.events.due(),
            self.ui.due(),
            self.sleep_inhibitor.due(),
            self.idle_limit.due(),
            self.control.due(Instant::now()),
        ];
        parts.into_iter().flatten().min()
    }

    fn run_timers(&mut self, now: Instant) {
        let Self { worker, network, exports, usb, hosts, events, ui, .. } = self;
        let cx = &mut Context { worker, ui, now };
        exports.run_timers(network, cx);
        usb.run_timers(exports.status().exports().next().is_some(), cx);
        if events.due().is_some_and(|at| at <= now) {
            events.take_due(network, hosts, now).iter().for_each(|event| cx.ui.report(event));
        }
        if network.due().is_some_and(|at| at <= now) {
            network.update(cx);
        }
        if self.ui.take_draw_due(now) {
            self.draw();
        }
        if self.ui.take_poll_due(now) {
            let model = self.model();
            if self.ui.refresh(&model) {
                self.hosts.mark_prompted();
            }
        }
        self.hosts.run_timers(&mut self.ui, now);
        self.ui.run_watchdog(now);
    }

    /// Handles keys and the power button. Returns the reason to stop, if there is one.
    fn handle_keys(&mut self, now: Instant) -> Option<StopReason> {
        // The power button needs no confirmation.
        if self.ui.is_power_pressed() {
            return Some(StopReason::PowerOff);
        }
        for key in self.ui.keys() {
            let model = self.model();
            let action = self.ui.handle_key(key, &model, now);
            let end = action.and_then(|action| self.run_action(action, now));
            if end.is_some() {
                return end;
            }
        }
        None
    }

    fn run_action(&mut self, action: Action, now: Instant) -> Option<StopReason> {
        let Self { worker, exports, usb, hosts, ui, .. } = self;
        let cx = &mut Context { worker, ui, now };
        match action {
            Action::PowerOff => return Some(StopReason::PowerOff),
            Action::Restart => return Some(StopReason::Restart),
            Action::Detach => exports.withdraw_all(cx),
            Action::Serve => exports.serve_again(now),
            Action::ServeUsb => usb.serve(now),
            Action::EndUsb => usb.end(cx),
            Action::SetOverlay { disk, wanted } => exports.set_overlay(&disk, wanted, cx),
            Action::Answer(answer) => hosts.answer(answer, exports, cx),
            Action::NewPairingCode => worker.unlock(),
            Action::NewReadingCode => self.renew_reading_code(),
            Action::Redraw => cx.ui.invalidate(),
        }
        None
    }

    /// Makes a new code for reading.
    fn renew_reading_code(&mut self) {
        let endpoints = self.network.endpoints();
        let Self { worker, ui, .. } = self;
        self.reading.renew(&endpoints, &mut Context { worker, ui, now: Instant::now() });
    }

    /// Handles what the worker and other threads have sent. Returns why nothing is served any more,
    /// if so.
    fn handle_events(&mut self, now: Instant) -> Option<String> {
        let Pending { mut events, mut notes, subjects, view, running, replaced, end, lost } =
            self.inbox.receive();
        if running {
            notes.extend(self.worker.take_restrictions());
        }
        if replaced {
            self.usb.restart(now);
        }
        // The view reflects all events before it.
        if let Some((before, view)) = view {
            let after = events.split_off(before.min(events.len()));
            events.into_iter().for_each(|event| self.handle_event(event, now));
            self.hosts.show_code(view, &self.network.endpoints(), &mut self.ui);
            events = after;
        }
        events.into_iter().for_each(|event| self.handle_event(event, now));
        for note in notes {
            self.ui.report(&ServeEvent::note(note));
        }
        for (subject, sentence) in subjects {
            self.ui.set_subject(subject, sentence);
        }
        if lost > 0 {
            self.ui.report(&ServeEvent::note(format!(
                "{lost} more events were not shown, too many at once"
            )));
        }
        end
    }

    fn handle_event(&mut self, counted: CountedEvent, now: Instant) {
        let Self { worker, network, exports, hosts, events, ui, .. } = self;
        let cx = &mut Context { worker, ui, now };
        exports.record(&counted.event, hosts.policy());
        match &counted.event {
            Event::PairingRequested { peer, request } => {
                let caller = PendingPairing { peer: peer.clone(), request: request.clone() };
                return hosts.pairing_requested(caller, network, exports, cx);
            }
            Event::Detached { export, .. } if !export.is_gone() => {
                exports.flush_when_detached(export, cx);
            }
            _ => {}
        }
        let shrunk = exports.file_end_before(&counted.event);
        let Some(mut event) = events.admit(counted, network, hosts, now) else {
            return cx.ui.draw_soon(false);
        };
        if let (Some(bytes), ServeEvent::Fault { reason, .. }) = (shrunk, &mut event) {
            *reason = format!("the file ends before that, at {bytes} bytes");
        }
        cx.ui.report(&event);
        if shrunk.is_some() {
            exports.update_file_sizes(cx);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn first_change_is_shown_at_once() {
        let now = Instant::now();
        assert_eq!(coalesced(None, now), now);
        assert_eq!(coalesced(Some(now), now + COALESCE * 5), now + COALESCE * 5);
        assert_eq!(coalesced(Some(now), now + COALESCE / 4), now + COALESCE);
    }
}
