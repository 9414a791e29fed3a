//! The exported disks: hot-plug, size changes, attached hosts, and flushes after the last host has
//! detached.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use console::{Disk, Host};
use daemon::device::Device;
use daemon::event::ServeEvent;
use daemon::flush::Flush;
use daemon::hotplug::{Change, Hotplug};
use daemon::inbox::Inbox;
use daemon::lend::{LendRequest, LentDisk};
use daemon::overlay::{self, OverlayOptions};
use daemon::status::Status;
use daemon::worker::WriteTracker;
use export::{Access, Base, Event, Export, ExportId, Policy};
use failure::{Failure, spawn_error};
use nvme::nqn;

use super::additions::{Additions, Ticket};
use super::config::ServeConfig;
use super::disks::{Requested, beside, known, open_present, open_requested};
pub(super) use super::flushes::FlushState;
use super::flushes::Flushes;
use super::network::Network;
use super::rescue::MapKeeper;
use super::{COALESCE, Context};

/// Interval at which the sizes of image files are polled: the kernel does not report changes.
const SIZE_INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Exports {
    lent: Vec<LentDisk>,
    /// The same disks in the same order, with their hosts.
    status: Status,
    hotplug: Hotplug,
    /// Whether disks are served; false after the user has withdrawn all.
    serving: bool,
    /// When the sizes of image files are polled.
    sizes_due: Option<Instant>,
    /// Flushes of disks whose last host has detached.
    flushes: Flushes,
    /// Disks that are added by the control socket.
    additions: Additions,
    /// Saves the map of a disk that fails.
    map_keeper: Option<MapKeeper>,
    /// Receives failures of flushes.
    inbox: Inbox,
}

/// Why a disk is not withdrawn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotRemoved {
    /// No disk of that name is exported.
    Unknown,
    /// These hosts have attached it.
    Attached(Vec<String>),
    /// So many bytes that hosts have written are in memory only, and lost with it.
    HasChanges(u64),
}

impl Exports {
    /// Opens the disks. Returns notes about disks that are left out.
    ///
    /// # Errors
    /// Fails if a disk that was given by name cannot be opened, or if no disks can be listed.
    pub(super) fn open(
        config: &ServeConfig,
        inbox: &Inbox,
    ) -> Result<(Self, Vec<String>), Failure> {
        let mut hotplug = Hotplug::open(config.lend.clone(), config.filter.clone())?;
        let Requested { mut lent, map_keeper, mut notes } = open_requested(config, inbox)?;
        if config.filter.is_some() {
            notes.extend(open_present(&mut hotplug, &mut lent)?);
        }
        let exports = Self {
            lent,
            status: Status::default(),
            hotplug,
            serving: true,
            sizes_due: None,
            flushes: Flushes::default(),
            additions: Additions::new(config, inbox),
            map_keeper,
            inbox: inbox.clone(),
        };
        Ok((exports, notes))
    }

    /// Returns whether later disks cannot be detected.
    pub(super) fn is_hotplug_unavailable(&self) -> bool {
        self.hotplug.is_unavailable()
    }

    /// Sends the opened disks to the worker.
    ///
    /// # Errors
    /// Fails if a read-only disk is open for writing, or if the reservations of a disk cannot be read.
    pub(super) fn start(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        for lent in std::mem::take(&mut self.lent) {
            self.add(lent, cx)?;
        }
        Ok(())
    }

    fn add(&mut self, lent: LentDisk, cx: &mut Context<'_>) -> Result<(), Failure> {
        cx.worker.lend(&lent.export)?;
        self.status.add_disk(lent.export.clone());
        if lent.file_bytes().is_some() {
            self.sizes_due.get_or_insert_with(|| Instant::now() + SIZE_INTERVAL);
        }
        lent.notes.iter().for_each(|note| cx.ui.note(note.clone()));
        self.lent.push(lent);
        Ok(())
    }

    /// Returns the exports and their hosts.
    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    /// Returns the disks for the screen.
    pub(super) fn shown(&self) -> Vec<Disk> {
        let mut shown = self.status.disks();
        for (disk, lent) in shown.iter_mut().zip(&self.lent) {
            disk.writes = lent.device.as_ref().and_then(|device| self.hotplug.writes(device));
        }
        shown
    }

    pub(super) fn is_serving(&self) -> bool {
        self.serving
    }

    /// Returns whether a disk is being flushed, or a flush has failed.
    pub(super) fn is_flushing(&self) -> bool {
        self.flushes.any_pending()
    }

    /// Saves the map of a disk that fails for the last time, until `end`. Returns what is known of the disk, or a
    /// sentence if the map could not be saved.
    pub(super) fn save_map(&mut self, end: Instant) -> Option<Result<String, String>> {
        self.map_keeper.take().map(|keeper| keeper.finish(end))
    }

    /// Returns notes about disks that were requested and do not exist.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        self.hotplug.missing().into_iter().map(|disk| format!("There is no disk {disk} yet."))
    }

    /// Records attachments; hosts with a key are named as in `policy`.
    pub(super) fn record(&mut self, event: &Event, policy: &Policy) {
        self.status.record(event, policy);
    }

    /// Readable when there are changes of disks.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.hotplug.descriptors()
    }

    /// Receives changes of disks. Does not block.
    pub(super) fn receive(&mut self, now: Instant) {
        self.hotplug.receive(now);
    }

    /// Returns when [`Self::run_timers`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.hotplug.due().into_iter().chain(self.sizes_due).min()
    }

    pub(super) fn run_timers(&mut self, network: &Network, cx: &mut Context<'_>) {
        if self.hotplug.due().is_some_and(|at| at <= cx.now) {
            self.apply_hotplug(network, cx);
        }
        if self.sizes_due.is_some_and(|at| at <= cx.now) {
            self.update_file_sizes(cx);
        }
        if self.map_keeper.as_ref().is_some_and(MapKeeper::is_image_lost) {
            self.withdraw_rescued(cx);
        }
    }

    /// Withdraws the disk that is lent by a map: its image no longer has what was written to it.
    fn withdraw_rescued(&mut self, cx: &mut Context<'_>) {
        let is_it = |lent: &mut LentDisk| matches!(lent.export.backing().base(), Base::Rescued(_));
        let rescued: Vec<LentDisk> = self.lent.extract_if(.., is_it).collect();
        for lent in rescued {
            self.withdraw_disk(&lent, "its image has lost data", cx);
            self.hotplug.exclude(&lent);
        }
    }

    fn apply_hotplug(&mut self, network: &Network, cx: &mut Context<'_>) {
        for change in self.hotplug.look(&self.lent, cx.now) {
            match change {
                Change::Added(lent) if self.serving => self.lend(*lent, network, cx),
                Change::Added(_) => {}
                Change::Removed(device) => self.withdraw(&device, cx),
                Change::Resized(device, bytes) => {
                    let lent = self.lent.iter().find(|lent| lent.device.as_ref() == Some(&device));
                    if let Some(lent) = lent {
                        resize(&lent.export, bytes, cx);
                    }
                }
                Change::Note(note) => cx.ui.report(&ServeEvent::note(note)),
                Change::Over(note) => cx.ui.remove_note(&note),
            }
        }
    }

    fn lend(&mut self, lent: LentDisk, network: &Network, cx: &mut Context<'_>) {
        if let Err(failure) = self.lend_beside(lent, network, cx) {
            cx.ui.report(&ServeEvent::note(failure));
        }
    }

    /// Exports an opened disk beside the others, and reports it.
    fn lend_beside(
        &mut self,
        lent: LentDisk,
        network: &Network,
        cx: &mut Context<'_>,
    ) -> Result<Arc<Export>, Failure> {
        let lent = beside(&self.lent, lent)?;
        let export = lent.export.clone();
        self.add(lent, cx)?;
        cx.worker.wait_until_published(&export);
        cx.ui.emit(&network.lent_event(&export));
        cx.ui.draw_soon(true);
        Ok(export)
    }

    /// Starts to open a disk that is to be exported beside the others. An overlay is in files in `dir` if that is
    /// given. Returns `None` if too many disks are being opened.
    ///
    /// # Errors
    /// Fails if no thread can be started.
    pub(super) fn add_later(
        &mut self,
        wanted: LendRequest,
        is_shared: bool,
        dir: Option<PathBuf>,
    ) -> Result<Option<Ticket>, Failure> {
        let others = self.lent.iter().map(|lent| &*lent.export);
        let reserved = self.additions.reserved();
        let limit = overlay::limit_beside(self.hotplug.tree(), others, reserved);
        self.additions.open(wanted, OverlayOptions { limit, is_shared, dir }, known(&self.lent))
    }

    /// Exports the disks that have been opened since the last call. Returns which they are, or why
    /// they are not exported.
    pub(super) fn take_added(
        &mut self,
        network: &Network,
        cx: &mut Context<'_>,
    ) -> Vec<(Ticket, Result<Arc<Export>, Failure>)> {
        let opened = self.additions.take();
        let lend = |(ticket, lent): (Ticket, Result<LentDisk, Failure>)| {
            let lent = lent.and_then(|lent| {
                let export = self.lend_beside(lent, network, cx)?;
                self.lent.last().into_iter().for_each(|lent| self.hotplug.include(lent));
                Ok(export)
            });
            (ticket, lent)
        };
        opened.into_iter().map(lend).collect()
    }

    /// Withdraws the disk with that name, path or NQN, and flushes it. With `--all` it is not
    /// exported again until it is plugged in again. Returns the export, which lives as long as the
    /// disk is open.
    ///
    /// # Errors
    /// Fails if there is none, or, unless `force`, if hosts have attached it or an overlay in memory
    /// has changes.
    pub(super) fn remove(
        &mut self,
        name: &str,
        force: bool,
        cx: &mut Context<'_>,
    ) -> Result<Weak<Export>, NotRemoved> {
        let is_it = |lent: &LentDisk| {
            let export = &lent.export;
            [export.short.as_str(), export.name.as_str()].contains(&name)
                || nqn::of(&export.id) == name
        };
        let at = self.lent.iter().position(is_it).ok_or(NotRemoved::Unknown)?;
        let shown = self.lent.get(at).and_then(|lent| self.shown_of(&lent.export));
        if let Some(reason) = shown.filter(|_| !force).and_then(in_the_way) {
            return Err(reason);
        }
        let lent = self.lent.remove(at);
        self.withdraw_disk(&lent, "it was removed at the machine", cx);
        self.hotplug.exclude(&lent);
        self.flush_unused(&lent.export, cx);
        Ok(Arc::downgrade(&lent.export))
    }

    /// Returns the hosts that have attached an export.
    pub(super) fn attached(&self, export: &Arc<Export>) -> Vec<Host> {
        self.shown_of(export).map(|disk| disk.attached).unwrap_or_default()
    }

    fn shown_of(&self, export: &Arc<Export>) -> Option<Disk> {
        let mut exports = self.status.exports().zip(self.status.disks());
        exports.find(|(known, _)| Arc::ptr_eq(known, export)).map(|(_, disk)| disk)
    }

    /// Returns the state of the flush of a withdrawn disk.
    pub(super) fn flush_state(&self, export: &Weak<Export>) -> FlushState {
        self.flushes.state_of(export)
    }

    fn withdraw(&mut self, device: &Device, cx: &mut Context<'_>) {
        let of_it = |lent: &mut LentDisk| lent.device.as_ref() == Some(device);
        let gone: Vec<LentDisk> = self.lent.extract_if(.., of_it).collect();
        for lent in gone {
            self.withdraw_disk(&lent, "the disk or its medium is gone", cx);
        }
    }

    /// Withdraws all disks, and serves none until [`Self::serve_again`].
    pub(super) fn withdraw_all(&mut self, cx: &mut Context<'_>) {
        self.serving = false;
        for lent in std::mem::take(&mut self.lent) {
            self.withdraw_disk(&lent, "it was taken back at the machine", cx);
            self.flush_when_detached(&lent.export, cx);
        }
    }

    pub(super) fn serve_again(&mut self, now: Instant) {
        self.serving = true;
        self.hotplug.rescan_all(now);
    }

    /// Lends a disk again with an overlay, or read-only without one: to hosts another disk.
    pub(super) fn set_overlay(&mut self, disk: &ExportId, is_wanted: bool, cx: &mut Context<'_>) {
        let Some(at) = self.lent.iter().position(|lent| lent.export.id == *disk) else { return };
        let lent = self.lent.remove(at);
        let reason = match is_wanted {
            true => "it is lent again with an overlay",
            false => "its overlay was ended at the machine",
        };
        self.withdraw_disk(&lent, reason, cx);
        self.hotplug.choose_overlay(&lent, is_wanted, cx.now);
    }

    fn withdraw_disk(&mut self, lent: &LentDisk, reason: &'static str, cx: &mut Context<'_>) {
        self.hotplug.release(lent);
        cx.worker.withdraw(&lent.export);
        self.status.remove_disk(&lent.export);
        cx.ui.report(&ServeEvent::withdrawn(&lent.export, reason));
    }

    /// Polls the sizes of image files.
    pub(super) fn update_file_sizes(&mut self, cx: &mut Context<'_>) {
        let lent = self.lent.iter();
        let sizes: Vec<_> =
            lent.filter_map(|lent| Some((&lent.export, lent.file_bytes()?))).collect();
        self.sizes_due = (!sizes.is_empty()).then(|| cx.now + SIZE_INTERVAL);
        sizes.into_iter().for_each(|(export, bytes)| resize(export, bytes, cx));
    }

    /// Returns the size of an image file that was truncated, if that is why a read failed.
    pub(super) fn file_end_before(&self, event: &Event) -> Option<u64> {
        let Event::Fault { export, op: "read", offset, len, .. } = event else { return None };
        let lent = self.lent.iter().find(|lent| Arc::ptr_eq(&lent.export, export))?;
        let bytes = lent.file_bytes()?;
        let end = export.geometry.blocks_for(bytes) << export.geometry.shift();
        (offset.saturating_add(*len) > end).then_some(bytes)
    }

    /// In target mode, flushes a writable disk when its last host has detached: it may be unplugged
    /// then.
    pub(super) fn flush_when_detached(&mut self, export: &Arc<Export>, cx: &mut Context<'_>) {
        if cx.ui.is_target_mode() {
            self.flush_unused(export, cx);
        }
    }

    /// Flushes a writable disk that no host has attached.
    fn flush_unused(&mut self, export: &Arc<Export>, cx: &mut Context<'_>) {
        if self.status.is_attached(export) || export.access == Access::ReadOnly {
            return;
        }
        if !self.flushes.begin(export) {
            return;
        }
        let (of, flushes, inbox) = (export.clone(), self.flushes.clone(), self.inbox.clone());
        let writes = cx.worker.writes(export);
        let flush = move || {
            if let Err(error) = flush(&of, &writes, &flushes) {
                // The kernel reports a write-back error once: no later flush may report success.
                writes.fail_flush();
                let sentence = unflushed(&of, &error);
                inbox.note(sentence.clone());
                flushes.fail(&of, sentence);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("flush".to_owned()).spawn(flush) {
            let sentence = unflushed(export, &spawn_error(&error));
            cx.ui.report(&ServeEvent::note(&sentence));
            self.flushes.fail(export, sentence);
        }
    }

    /// Waits for running flushes until `end`. Returns a sentence for each possible loss.
    pub(super) fn wait_for_flushes(&self, end: Instant) -> Vec<String> {
        self.flushes.wait(end)
    }
}

/// Returns why a disk is removed by force only, if so.
fn in_the_way(disk: Disk) -> Option<NotRemoved> {
    let mut hosts: Vec<String> = disk.attached.into_iter().map(called).collect();
    hosts.dedup();
    if !hosts.is_empty() {
        return Some(NotRemoved::Attached(hosts));
    }
    let changes = disk.kept.filter(|kept| !kept.in_files && kept.bytes > 0);
    changes.map(|kept| NotRemoved::HasChanges(kept.bytes))
}

/// Returns the name of a host for people.
fn called(host: Host) -> String {
    let named = host.known_as.unwrap_or(host.nqn);
    if named.is_empty() { host.address } else { named }
}

fn resize(export: &Arc<Export>, bytes: u64, cx: &mut Context<'_>) {
    let before = export.bytes();
    if export.resize(bytes) {
        cx.worker.resize(export);
        cx.ui.report(&ServeEvent::resized(export, before));
    }
}

/// Flushes a disk until nothing has been written since.
fn flush(export: &Arc<Export>, writes: &WriteTracker, flushes: &Flushes) -> io::Result<()> {
    loop {
        // Writes of a disconnected host may still be in flight.
        while writes.in_flight() {
            std::thread::sleep(COALESCE);
        }
        Flush::start(export.backing().written()).and_then(Flush::outcome)?;
        if !flushes.end(export) {
            return Ok(());
        }
    }
}

fn unflushed(export: &Export, reason: &dyn std::fmt::Display) -> String {
    format!(
        "{} could not be flushed ({reason}): what was written to it last may be lost",
        export.name
    )
}
