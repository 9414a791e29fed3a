//! `storagetm serve`: lends disks until it is told to stop. One loop waits for the machine, the hosts and the owner; the
//! data path is the engine's.

mod announcing;
mod churn;
mod disks;
mod end;
mod faults;
mod flushes;
mod given;
mod open;
mod reach;
mod screen;
mod strangers;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::attach::Nbd;
use console::{Model, Pairing, State, TargetMode, Unavailable};
use engine::Driver;
use export::{Event, Export};
use linux::inhibit::Inhibitor;
use linux::net::{Address, Changes};
use linux::signal::{Signal, Signals};
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::desk::Desk;
use crate::keyboard::Keyboard;
use crate::options::{Io, Serve};
use crate::output::Output;
use churn::Churn;
use daemon::access_control::{AccessControl, PendingPairing};
use daemon::event::{ServeEvent, peer_of};
use daemon::hotplug::Hotplug;
use daemon::inbox::{Inbox, Pending};
use daemon::lend::LentDisk;
use daemon::listen::Protocol;
use daemon::listeners::Listeners;
use daemon::rate_limit::CountedEvent;
use daemon::settings::Settings;
use daemon::status::{Status, loopback_advice};
use daemon::worker::Worker;
use dnssd::Announcer;
use failure::Failure;
use faults::Faults;
use flushes::Flushes;
use given::Given;
use nvme::nqn;
use reach::beyond;

/// How often counters and buttons are looked at on a machine that does nothing else.
const LOOK: Duration = Duration::from_secs(1);
/// How often the sizes of image files are looked at: the kernel does not report that one has grown.
const SIZES: Duration = Duration::from_secs(2);
/// Changes that come together are shown together.
const COALESCE: Duration = Duration::from_millis(200);

/// Why it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was told to, by a signal.
    Told,
    /// Somebody at the machine wants it to power off.
    PowerOff,
    /// Somebody at the machine wants it to restart.
    Restart,
    /// Nothing serves any more.
    Broken,
}

/// Lends disks until a signal says to stop.
///
/// # Errors
/// Why nothing is lent: one sentence.
pub(crate) fn serve(options: &Serve) -> Result<(), Failure> {
    // Before this program opens anything: what it was handed has the next numbers.
    let given = Given::take(options)?;
    if let Some(base) = &options.nqn {
        nqn::check_base(base).map_err(Failure::usage)?;
    }
    let tree = Tree::machine();
    let settings = if options.boot_settings { Settings::read(&tree) } else { Settings::default() };
    // Whoever hands sockets over has standard output for itself.
    let quiet = given.is_some() && !options.json;
    let output = Output::open(&tree, options.json, options.boot_settings, quiet);
    run(options, settings, output, open_mailbox()?, given, None).map(drop)
}

/// Lends all disks of a machine that does nothing else, until somebody at the `desk` or a signal says to stop. What the
/// threads that bring the machine up say comes by the `mailbox`.
///
/// # Errors
/// Why nothing can be lent: one sentence.
pub(crate) fn lend_all(settings: Settings, inbox: Inbox, desk: Desk) -> Result<End, Failure> {
    run(&Serve::everything(), settings, Output::silent(), inbox, None, Some(desk))
}

fn run(
    options: &Serve,
    settings: Settings,
    output: Output,
    inbox: Inbox,
    given: Option<Given>,
    desk: Option<Desk>,
) -> Result<End, Failure> {
    raise_limits();
    let mut signals = Signals::open()
        .map_err(|error| Failure::new(format!("signals cannot be received: {error}")))?;
    let mut server = Server::open(options, settings, output, inbox, given, desk)?;
    server.announce();
    let end = server.run(&mut signals);
    let broken = server.broken.take();
    let is_of_machine = server.desk.is_some();
    // A machine that ends has shown what may be lost, and must end all the same.
    let lost = Some(server.close(end)).filter(|lost| !lost.is_empty() && !is_of_machine);
    let sentence = broken.or_else(|| Some(lost?.join("; ")));
    sentence.map_or(Ok(end), |sentence| Err(Failure::new(sentence)))
}

/// Where other threads put what they have to say.
///
/// # Errors
/// There is no descriptor for it.
pub(crate) fn open_mailbox() -> Result<Inbox, Failure> {
    Inbox::open().map_err(|error| Failure::new(format!("no descriptor for events: {error}")))
}

/// A descriptor a connection and two a disk: as many as are to be had. What io_uring shares with the program counts as
/// locked memory before Linux 5.12, for the process that talks to hosts, too, which is not root's.
fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let mut limit = getrlimit(resource);
        limit.current = limit.maximum;
        let _ = setrlimit(resource, limit);
    }
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

struct Server {
    worker: Worker,
    access_control: AccessControl,
    /// Tells the networks nearby where disks are had, if it is to.
    announcer: Option<Announcer>,
    /// Where somebody can answer, on a terminal that is not a machine's own.
    keyboard: Option<Keyboard>,
    /// What a person has chosen to see on the screen.
    screen: State,
    /// Why no code is shown, if none is.
    no_code: Option<Unavailable>,
    /// Whether programs are told the codes by which machines are let in.
    tells_codes: bool,
    /// Why nothing is served any more.
    broken: Option<String>,
    listeners: Listeners,
    lent_disks: Vec<LentDisk>,
    status: Status,
    /// What disks have failed to do.
    faults: Faults,
    churn: Churn,
    /// Keeps the machine from sleeping while a disk is attached.
    awake: Inhibitor,
    hotplug: Hotplug,
    inbox: Inbox,
    output: Output,
    machine: String,
    addresses: Vec<Address>,
    address_changes: Option<Changes>,
    digests: bool,
    /// Whether only other machines are to be told where the disks are.
    remote_only: bool,
    alerts: Alerts,
    desk: Option<Desk>,
    /// The only peer there will be, at the other end of this.
    only_peer: Option<OwnedFd>,
    /// Of disks whose last host has let go.
    flushes: Flushes,
}

/// When to do what is not done at once.
#[derive(Debug, Default)]
struct Alerts {
    /// Draw the screen.
    draw: Option<Instant>,
    /// And say all of it where there is no screen.
    anew: bool,
    /// Ask for the machine's addresses.
    addresses: Option<Instant>,
    /// Give a sign of life.
    watchdog: Option<Instant>,
    /// Look at counters and buttons, which do not say by themselves that they have changed.
    look: Option<Instant>,
    /// A pause after a wrong code is over.
    code: Option<Instant>,
    /// Look at the sizes of the image files that are lent.
    sizes: Option<Instant>,
}

impl Server {
    /// What the owner should know from the start.
    fn remember(&mut self, options: &Serve, notes: Vec<String>) {
        notes.into_iter().for_each(|note| self.status.note(note));
        if options.all && self.hotplug.is_unavailable() {
            self.status.note(
                "The kernel does not tell here which disks come and go: only those that are there \
                 now are lent."
                    .to_owned(),
            );
        }
        self.worker.note().into_iter().for_each(|note| self.status.note(note));
        let running = self.worker.driver();
        if options.io == Io::Auto && running.driver == Driver::Blocking {
            self.status.note(format!("The driver is {running}; this is slower."));
        }
    }

    fn keep(&mut self, lent: LentDisk) {
        self.status.add_disk(lent.export.clone());
        if lent.file_bytes().is_some() {
            self.alerts.sizes.get_or_insert_with(|| Instant::now() + SIZES);
        }
        lent.notes.iter().for_each(|note| self.status.note(note.clone()));
        self.lent_disks.push(lent);
    }

    /// Says what is lent, and where.
    fn announce(&mut self) {
        for event in self.listeners.open_events() {
            self.output.say(&event);
        }
        let exports: Vec<Arc<Export>> = self.status.exports().cloned().collect();
        for export in exports {
            self.say_lent(&export);
        }
        self.status.end_startup();
        let model = self.model();
        self.output.show(&model, &self.screen, true);
        self.show_besides(&model);
        self.output.say(&ServeEvent::Ready);
        for note in model.notes {
            self.output.say_to_programs(&ServeEvent::note(note));
        }
        self.output.ready(&self.status.summary());
        self.tell_networks();
        self.alerts.watchdog = self.output.watchdog_interval().map(|time| Instant::now() + time);
    }

    fn say_lent(&mut self, export: &Arc<Export>) {
        let (endpoints, nbd) = (self.endpoints(), self.nbd_endpoints());
        let nqn = nqn::of(&export.id);
        let one = endpoints.iter().map(|at| at.attach(&nqn, self.digests));
        let all = endpoints.iter().map(|at| at.attach_all(self.digests));
        let lines = one.chain(all).collect();
        let uris = nbd.iter().map(|at| at.uri(&export.short)).collect();
        self.output.say(&ServeEvent::lent(export, lines, uris));
    }

    /// What the screen shows.
    fn model(&self) -> Model {
        let (endpoints, nbd) = (self.endpoints(), self.nbd_endpoints());
        let reached = endpoints.iter().chain(nbd.iter().filter_map(Nbd::endpoint));
        let loopback_advice = loopback_advice(reached).filter(|_| !self.listeners.are_fixed());
        let mut model = self.status.model(&self.machine, endpoints, nbd, self.digests);
        // What stands comes before what has happened: the newest message is the last.
        model.notes.splice(0..0, self.standing(loopback_advice));
        let no_code = || self.no_code.map(Pairing::Unavailable);
        model.pairing = self.access_control.pairing(&model.endpoints).or_else(no_code);
        model.asking = self.access_control.prompt();
        let flushing = self.flushes.are_under_way();
        let mode = self.desk.as_ref().map(Desk::shown);
        model.target_mode = mode.map(|mode| TargetMode { flushing, ..mode });
        model.link = self.link();
        for disk in &mut model.disks {
            let is_it = |lent: &&LentDisk| nqn::of(&lent.export.id) == disk.nqn;
            let Some(lent) = self.lent_disks.iter().find(is_it) else { continue };
            disk.writes = lent.device.as_ref().and_then(|device| self.hotplug.writes(device));
            disk.contents.clone_from(&lent.contents);
        }
        model
    }

    /// What holds just now and is worth knowing, a sentence each.
    fn standing(&self, loopback_advice: Option<&str>) -> Vec<String> {
        let mut notes: Vec<String> = loopback_advice.map(str::to_owned).into_iter().collect();
        notes.extend(self.desk.as_ref().and_then(Desk::note));
        if self.desk.is_some() && self.listeners.is_nearby() {
            notes.extend(beyond(&self.addresses));
        }
        let awaited = |address| format!("This machine does not have the address {address} yet.");
        notes.extend(self.listeners.awaited(&self.addresses).into_iter().map(awaited));
        let waited_for = |disk| format!("There is no disk {disk} yet.");
        notes.extend(self.hotplug.missing().into_iter().map(waited_for));
        notes
    }

    /// Shows it where a screen is not all there is: at the desk, and on a boot splash.
    fn show_besides(&mut self, model: &Model) {
        self.output.show_splash(model);
        let counts = self.output.is_screen() && model.is_attached();
        if self.desk.is_some() || self.output.has_splash() || counts {
            self.alerts.look = Some(Instant::now() + LOOK);
        }
        self.screen.expire(Instant::now());
        let Some(desk) = &mut self.desk else { return };
        desk.show(model, &self.screen);
    }

    /// Waits and does, until told to stop.
    fn run(&mut self, signals: &mut Signals) -> End {
        while !self.output.is_unheard() && !self.has_lost_its_only_peer() {
            self.wait(signals);
            for signal in signals.receive() {
                match signal {
                    Signal::WindowChange => self.redraw_soon(),
                    Signal::Continue => self.come_back(),
                    Signal::ReopenPairing => self.worker.unlock(),
                    Signal::Interrupt | Signal::Terminate | Signal::HangUp => return End::Told,
                }
            }
            let now = Instant::now();
            if let Some(end) = self.read_keys(now) {
                return end;
            }
            self.hotplug.receive(now);
            self.notice_addresses(now);
            self.take_events(now);
            if self.broken.is_some() {
                return End::Broken;
            }
            if self.access_control.has_changed(now) {
                self.follow_owner(now);
            }
            let is_used = self.status.exports().any(|export| self.status.is_attached(export));
            self.awake.update(self.desk.is_some() || is_used, now);
            self.output.write();
            self.output.look();
            self.do_what_is_due(now);
        }
        End::Told
    }

    /// Waits until something can be done.
    fn wait(&self, signals: &Signals) {
        let readable = [
            Some(signals.as_fd()),
            Some(self.inbox.as_fd()),
            self.address_changes.as_ref().map(AsFd::as_fd),
            self.access_control.descriptor(),
            self.keyboard.as_ref().and_then(Keyboard::descriptor),
        ];
        let only_peer = self.only_peer.iter().map(|fd| (fd.as_fd(), PollFlags::empty()));
        let readable = readable.into_iter().flatten().chain(self.hotplug.descriptors());
        let readable = readable.map(|fd| (fd, PollFlags::IN));
        let desk = self.desk.as_ref().into_iter().flat_map(Desk::ends);
        let mut ends: Vec<PollFd<'_>> = readable
            .chain(self.output.descriptor())
            .chain(only_peer)
            .chain(desk)
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        let patience = self.next_alert().map(|at| at.saturating_duration_since(Instant::now()));
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let _ = poll(&mut ends, patience.as_ref());
    }

    fn next_alert(&self) -> Option<Instant> {
        let alerts = &self.alerts;
        let shown = [alerts.draw, alerts.look, alerts.code];
        let own = shown.into_iter().chain([alerts.addresses, alerts.watchdog, alerts.sizes]);
        let own = own.chain([self.churn.due()]);
        let others =
            [self.hotplug.due(), self.access_control.due(), self.keyboard_due(), self.awake.due()];
        own.chain(others).flatten().min()
    }

    /// Nobody says when a terminal comes back from another job.
    fn keyboard_due(&self) -> Option<Instant> {
        let is_away = |keyboard: &&Keyboard| keyboard.descriptor().is_none();
        self.keyboard.as_ref().filter(is_away).map(|_| Instant::now() + LOOK)
    }

    fn do_what_is_due(&mut self, now: Instant) {
        let is_due = |alert: Option<Instant>| alert.is_some_and(|at| at <= now);
        if is_due(self.hotplug.due()) {
            self.follow_disks(now);
        }
        if is_due(self.churn.due()) {
            self.report_churn(now);
        }
        if is_due(self.alerts.sizes) {
            self.follow_sizes(now);
        }
        if is_due(self.alerts.addresses) {
            self.alerts.addresses = None;
            self.follow_addresses();
        }
        if is_due(self.alerts.draw) {
            self.alerts.draw = None;
            self.draw();
        }
        if is_due(self.alerts.look) {
            self.alerts.look = None;
            self.desk.iter_mut().for_each(Desk::look);
            let model = self.model();
            let is_drawn = self.output.refresh(&model, &self.screen);
            self.show_besides(&model);
            if self.desk.is_some() || is_drawn {
                self.access_control.mark_prompted();
            }
        }
        if is_due(self.alerts.code) {
            self.alerts.code = None;
            self.draw_soon(self.tells_codes);
        }
        if is_due(self.alerts.watchdog) {
            self.output.watchdog();
            self.alerts.watchdog = self.output.watchdog_interval().map(|time| now + time);
        }
    }

    fn draw_soon(&mut self, anew: bool) {
        self.alerts.anew |= anew;
        self.alerts.draw.get_or_insert_with(|| Instant::now() + COALESCE);
    }

    fn draw(&mut self) {
        let model = self.model();
        self.output.show(&model, &self.screen, std::mem::take(&mut self.alerts.anew));
        self.show_besides(&model);
        self.access_control.mark_prompted();
        self.output.status(&self.status.summary());
    }

    /// Says what happened, and has the screen show it.
    fn say(&mut self, event: &ServeEvent) {
        self.output.say(event);
        if event.is_message() {
            event.sentence().into_iter().for_each(|sentence| self.status.note(sentence));
        }
        self.draw_soon(false);
    }

    fn take_events(&mut self, now: Instant) {
        let Pending { mut events, notes, subjects, view, end, lost } = self.inbox.receive();
        // Whom it does not name has gone, unless he came after it.
        if let Some((before, view)) = view {
            let after = events.split_off(before.min(events.len()));
            events.into_iter().for_each(|event| self.take_event(event, now));
            self.show_code(view);
            events = after;
        }
        events.into_iter().for_each(|event| self.take_event(event, now));
        self.broken = self.broken.take().or(end);
        for note in notes {
            self.say(&ServeEvent::note(note));
        }
        for (subject, sentence) in subjects {
            self.status.set_subject(subject, sentence);
            self.draw_soon(false);
        }
        if lost > 0 {
            self.say(&ServeEvent::note(format!(
                "{lost} more events were not shown, too many at once"
            )));
        }
    }

    fn take_event(&mut self, counted: CountedEvent, now: Instant) {
        let CountedEvent { event, count } = counted;
        self.status.record(&event, self.access_control.policy());
        self.faults.record(&event, count);
        match event {
            Event::PairingRequested { peer, request } => {
                return self.knocked(PendingPairing { peer, request }, now);
            }
            Event::Detached { ref export, .. } if !export.is_gone() => self.settle(export),
            _ => {}
        }
        if self.churn.hides(&event, now) {
            return self.draw_soon(false);
        }
        let shrunk = self.file_end_before(&event);
        let mut event =
            serve_event(CountedEvent { event, count }, &self.listeners, &self.access_control);
        if let (Some(bytes), ServeEvent::Fault { reason, .. }) = (shrunk, &mut event) {
            *reason = format!("the file ends before that, at {bytes} bytes");
        }
        self.say(&event);
        if shrunk.is_some() {
            self.follow_sizes(now);
        }
    }
}

/// What the engine says, with what is known of whom it is about.
fn serve_event(
    counted: CountedEvent,
    listeners: &Listeners,
    access_control: &AccessControl,
) -> ServeEvent {
    let protocol = peer_of(&counted.event).map(|peer| listeners.protocol_of(peer));
    ServeEvent::of(counted, access_control.policy(), protocol.unwrap_or(Protocol::Nvme))
}
