//! Hot-plug of block devices: withdraws exports whose disk is removed, announces new sizes, and
//! with `--all` exports disks that are added.

mod change;
mod openings;
mod overlays;
mod select;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use export::Export;
use linux::block::{self, Disk};
use linux::in_use::Machine;
use linux::reason::{Asked, Code, Verdict};
use linux::tree::Tree;
use linux::uevent::{Action, Message, Uevents};

use crate::device::Device;
use crate::disk_filter::{DiskFilter, Selection};
use crate::examine::{Examiner, LIMIT, SLOW, wait_for};
use crate::lend::{ExaminedDisk, LendOptions, LentDisk, devices_to_examine};
pub use change::Change;
use change::{changed, is_lent};
use failure::Failure;
use openings::{Examined, Opening, Openings};
use overlays::ConsoleOverlays;
use select::{Overlaid, PositionHolder};

/// A new disk causes several uevents: those within this time are handled together.
const SETTLE: Duration = Duration::from_millis(200);
/// udev keeps a new disk open for a while: when to try again to open a busy disk.
const RECHECK: Duration = Duration::from_secs(2);

/// The type of the EFI system partition, which is the first one of every stick.
const EFI_SYSTEM: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// Longest delay between attempts to list the disks; the first one is [`SETTLE`].
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Poll interval while descriptors of a withdrawn disk are still open.
const RELEASE: Duration = Duration::from_millis(500);

/// Watches the block devices of this machine.
#[derive(Debug)]
pub struct Hotplug {
    options: LendOptions,
    /// Which added disks to export; `None` for none.
    filter: Option<DiskFilter>,
    /// Fingerprints of disks to export writable when they are added again. Not by path, since
    /// another disk may appear at it.
    writable: HashSet<[u8; 16]>,
    /// Disks that were exported with an overlay: they are read-only when they are added again.
    overlaid: Overlaid,
    /// Disks that were exported writable because their position was named: another disk at the
    /// position does not get write access.
    positions: HashMap<String, PositionHolder>,
    overlays: ConsoleOverlays,
    uevents: Option<Uevents>,
    /// Kernel names of disks to examine at `due`.
    pending: HashSet<String>,
    /// Whether to examine all disks.
    all: bool,
    due: Option<Instant>,
    /// When disks were last examined.
    looked: Option<Instant>,
    /// Delay before the next attempt to list the disks; doubles with each.
    pause: Duration,
    /// Kernel names of disks to examine again, and when.
    rechecks: HashMap<String, Instant>,
    /// Withdrawn disks with open descriptors, which are busy until these are closed.
    closing: Vec<(Device, Weak<Export>)>,
    /// Disks that the user has withdrawn: not exported until they are plugged in again.
    excluded: Vec<Device>,
    examiner: Examiner,
    /// Kernel names of disks that are being probed.
    examining: HashSet<String>,
    /// Disks that are being opened.
    openings: Openings,
    /// Disks that have been opened since the last call of [`Hotplug::look`], or cannot be.
    opened: Vec<(Opening, Result<LentDisk, Failure>)>,
    /// When a disk responded after the last call of [`Hotplug::look`].
    answered: Option<Instant>,
    /// Reasons, as reported, why disks are not exported.
    reported: HashMap<String, String>,
}

impl Hotplug {
    /// Subscribes to uevents.
    ///
    /// # Errors
    /// Fails if descriptors are exhausted.
    pub fn open(options: LendOptions, filter: Option<DiskFilter>) -> Result<Self, Failure> {
        let uevents = Uevents::open().ok();
        let examiner = Examiner::new(options.tree.clone());
        Ok(Self {
            // Disks in use may be exported by name, never with `--all`.
            options: LendOptions { allow_in_use: false, ..options },
            filter,
            writable: HashSet::new(),
            overlaid: Overlaid::default(),
            positions: HashMap::new(),
            overlays: ConsoleOverlays::default(),
            uevents,
            pending: HashSet::new(),
            all: false,
            due: None,
            looked: None,
            pause: SETTLE,
            rechecks: HashMap::new(),
            closing: Vec::new(),
            excluded: Vec::new(),
            examiner,
            examining: HashSet::new(),
            openings: Openings::new()?,
            opened: Vec::new(),
            answered: None,
            reported: HashMap::new(),
        })
    }

    /// Returns whether uevents are unavailable.
    pub fn is_unavailable(&self) -> bool {
        self.uevents.is_none()
    }

    /// Readable when there are uevents or probe results, or when a disk has been opened.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.uevents.as_ref().map(AsFd::as_fd).into_iter().chain(self.results())
    }

    /// Readable when there are probe results, or when a disk has been opened.
    fn results(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.examiner.descriptor().into_iter().chain([self.openings.descriptor()])
    }

    /// When to call [`Hotplug::look`].
    pub fn due(&self) -> Option<Instant> {
        let rechecks = self.rechecks.values().copied();
        let others = [self.due, self.examiner.due(), self.answered];
        others.into_iter().flatten().chain(rechecks).min()
    }

    /// Receives uevents, probe results and opened disks. Does not block.
    pub fn receive(&mut self, now: Instant) {
        self.opened.extend(self.openings.take());
        if !self.opened.is_empty() {
            self.answered = Some(now);
        }
        for answered in self.examiner.receive() {
            self.answered = Some(now);
            if answered.is_late {
                // It had timed out: examine the disk again.
                self.schedule(answered.name, now);
            }
        }
        loop {
            let news = self.uevents.as_mut().map(Uevents::receive);
            match news {
                Some(Ok(Some(Message::Event(event)))) => {
                    if event.action != Action::Other {
                        self.schedule(event.devname.replace('/', "!"), now);
                    }
                }
                Some(Ok(Some(Message::Lost))) => self.schedule_all(now),
                Some(Ok(None)) | None => return,
                Some(Err(_)) => {
                    self.uevents = None;
                    return;
                }
            }
        }
    }

    fn schedule(&mut self, name: String, now: Instant) {
        self.pending.insert(name);
        self.settle(now);
    }

    /// Schedules [`Hotplug::look`]. In target mode no other program wants a new disk first, so it
    /// is examined at once, and later ones [`SETTLE`] after it. Further uevents do not postpone it.
    fn settle(&mut self, now: Instant) {
        let last = if self.options.at_rest { self.looked } else { Some(now) };
        self.due.get_or_insert_with(|| last.map_or(now, |last| now.max(last + SETTLE)));
    }

    fn schedule_all(&mut self, now: Instant) {
        self.all = true;
        self.settle(now);
    }

    /// Examines all disks.
    ///
    /// # Errors
    /// Fails with a message if the disks of this machine cannot be listed.
    pub fn initial_scan(&mut self, lent_disks: &[LentDisk]) -> Result<Vec<Change>, Failure> {
        let machine = self.options.look().map_err(|error| {
            Failure::new(format!(
                "the disks of this machine cannot be listed: {error}; is /sys mounted?"
            ))
        })?;
        self.record_writable(lent_disks);
        let names: HashSet<String> = machine.disks.iter().map(|disk| disk.name.clone()).collect();
        let now = Instant::now();
        self.examine_new(&machine, &names, lent_disks, now);
        // udev may hold some of them open now.
        self.rechecks.extend(names.into_iter().map(|name| (name, now + RECHECK)));
        // In target mode a disk that does not respond must not delay the screen.
        let patience = if self.options.at_rest { SETTLE } else { LIMIT };
        Ok(self.wait_for_answers(lent_disks, now + patience))
    }

    /// Waits until `end` for probe results and for disks to be opened, or until only disks remain that
    /// are much slower than the others.
    fn wait_for_answers(&mut self, lent_disks: &[LentDisk], end: Instant) -> Vec<Change> {
        let (mut changes, mut deadline) = (Vec::new(), end);
        loop {
            let now = Instant::now();
            changes.extend(self.lend_ready(lent_disks, now));
            if !self.is_waiting() || now >= deadline {
                return changes;
            }
            if wait_for(self.results(), deadline) {
                let now = Instant::now();
                self.receive(now);
                deadline = end.min(now + SLOW);
            }
        }
    }

    /// Returns whether disks are being probed or opened.
    fn is_waiting(&self) -> bool {
        !self.examining.is_empty() || !self.openings.is_empty() || !self.opened.is_empty()
    }

    /// Records a withdrawn disk. It is not exported again while its descriptors are open.
    pub fn release(&mut self, lent: &LentDisk) {
        let device = lent.device.clone();
        self.closing.extend(device.map(|device| (device, Arc::downgrade(&lent.export))));
    }

    /// Leaves a withdrawn disk out until it is plugged in again, or all disks are examined again as
    /// at the start.
    pub fn exclude(&mut self, lent: &LentDisk) {
        self.excluded.extend(lent.device.clone());
    }

    /// Ends the exclusion of a disk, which is exported again.
    pub fn include(&mut self, lent: &LentDisk) {
        self.excluded.retain(|device| lent.device.as_ref() != Some(device));
    }

    /// File tree of the machine.
    pub fn tree(&self) -> &Tree {
        &self.options.tree
    }

    fn is_closing(&self, disk: &Disk) -> bool {
        self.closing.iter().any(|(device, _)| device.is(disk.number))
    }

    /// Has all disks examined again, as at the start.
    pub fn rescan_all(&mut self, now: Instant) {
        self.reported.clear();
        self.excluded.clear();
        self.schedule_all(now);
    }

    /// Number of write and discard requests that the kernel sent to the disk (of a partition: to
    /// the whole disk): fields 5 and 12 of `stat` (Documentation/block/stat.rst of the kernel;
    /// field 12 since Linux 4.18).
    pub fn writes(&self, device: &Device) -> Option<u64> {
        let position = self.options.tree.path("sys/class/block").join(&device.name);
        let whole = position.canonicalize().ok()?;
        let whole = if whole.join("partition").exists() { whole.parent()? } else { &whole };
        let counts = std::fs::read_to_string(whole.join("stat")).ok()?;
        let counts: Vec<&str> = counts.split_whitespace().collect();
        let writes: u64 = counts.get(4)?.parse().ok()?;
        let discards = counts.get(11).and_then(|count| count.parse().ok());
        Some(writes.saturating_add(discards.unwrap_or(0)))
    }

    /// Disks that were named and are not present.
    pub fn missing(&self) -> Vec<String> {
        let Some(filter) = &self.filter else { return Vec::new() };
        if filter.is_empty() {
            return Vec::new();
        }
        let disks = block::scan(&self.options.tree).unwrap_or_default();
        filter.missing(&disks).map(ToString::to_string).collect()
    }

    /// Examines the disks of recent uevents.
    pub fn look(&mut self, lent_disks: &[LentDisk], now: Instant) -> Vec<Change> {
        let mut before = self.reported.clone();
        let mut changes = self.look_at_disks(lent_disks, now);
        before.retain(|name, sentence| self.reported.get(name) != Some(sentence));
        changes.extend(before.into_values().map(Change::Over));
        changes
    }

    fn look_at_disks(&mut self, lent_disks: &[LentDisk], now: Instant) -> Vec<Change> {
        self.due = None;
        self.looked = Some(now);
        let second: HashSet<String> =
            self.rechecks.extract_if(|_, at| *at <= now).map(|(name, _)| name).collect();
        let Ok(machine) = self.options.look() else {
            self.pending.extend(second);
            let changes = self.lend_ready(lent_disks, now);
            self.schedule_retry(now);
            return changes;
        };
        self.pause = SETTLE;
        let mut names = std::mem::take(&mut self.pending);
        if std::mem::take(&mut self.all) {
            names.extend(machine.disks.iter().map(|disk| disk.name.clone()));
        }
        let mut changes = changed(&machine.disks, lent_disks);
        if self.filter.is_some() {
            let all = whole_names(&machine, names.union(&second));
            self.rechecks.extend(names.into_iter().map(|name| (name, now + RECHECK)));
            self.examine_new(&machine, &all, lent_disks, now);
        }
        changes.extend(self.lend_ready(lent_disks, now));
        changes
    }

    /// Starts to probe those of `names` that are not exported.
    fn examine_new(
        &mut self,
        machine: &Machine,
        names: &HashSet<String>,
        lent_disks: &[LentDisk],
        now: Instant,
    ) {
        self.reported.retain(|name, _| machine.disk(name).is_some());
        self.closing.retain(|(_, export)| export.strong_count() > 0);
        let is_there = |device: &Device| machine.disks.iter().any(|it| Device::of(it) == *device);
        self.excluded.retain(is_there);
        let named = machine.disks.iter().filter(|disk| names.contains(&disk.name));
        for disk in named.filter(|disk| !is_lent(disk, lent_disks)) {
            if self.filter.as_ref().is_none_or(|filter| filter.select(disk).is_none()) {
                continue;
            }
            if self.excluded.contains(&Device::of(disk)) {
                continue;
            }
            if self.is_closing(disk) {
                self.rechecks.insert(disk.name.clone(), now + RELEASE);
                continue;
            }
            // What opens it may hold it: it would appear to be in use.
            if self.openings.has(disk) || self.options.opener.is_opening(disk.number) {
                self.rechecks.insert(disk.name.clone(), now + RECHECK);
                continue;
            }
            for device in devices_to_examine(machine, disk) {
                self.examiner.ask(device, now);
            }
            self.examining.insert(disk.name.clone());
        }
    }

    /// Exports disks that have been opened, and starts to open those whose probes are complete. A
    /// disk that timed out is left out.
    fn lend_ready(&mut self, lent_disks: &[LentDisk], now: Instant) -> Vec<Change> {
        // A result that has arrived is in time, however late this is called.
        self.receive(now);
        self.answered = None;
        self.examiner.expire(now);
        let mut changes = self.take_opened(now);
        if self.examining.is_empty() {
            return changes;
        }
        let Ok(machine) = self.options.look() else {
            self.schedule_retry(now);
            return changes;
        };
        let examining = std::mem::take(&mut self.examining);
        let free = machine.disks.iter().filter(|disk| examining.contains(&disk.name));
        let free = free.filter(|disk| !is_lent(disk, lent_disks));
        let (ready, others): (Vec<&Disk>, Vec<&Disk>) =
            free.partition(|disk| self.has_answered(&machine, disk, now));
        self.examining.extend(others.into_iter().map(|disk| disk.name.clone()));
        let ready: Vec<Disk> = ready.into_iter().cloned().collect();
        let findings = Arc::new(self.examiner.findings().clone());
        let examined = Examined { machine: Arc::new(machine), findings };
        for disk in &ready {
            match self.openings.has_room() {
                true => changes.extend(self.open_one(disk, &examined)),
                // As soon as another one is open.
                false => drop(self.examining.insert(disk.name.clone())),
            }
        }
        if self.examining.is_empty() {
            self.examiner.forget();
        }
        changes
    }

    /// Lists the disks again after a delay that grows; keeps the pending names.
    fn schedule_retry(&mut self, now: Instant) {
        if self.due.is_none() {
            self.due = Some(now + self.pause);
            self.pause = MAX_PAUSE.min(self.pause * 2);
        }
    }

    /// Returns whether all probes for a disk are complete or timed out. Starts missing ones.
    fn has_answered(&mut self, machine: &Machine, disk: &Disk, now: Instant) -> bool {
        let devices = devices_to_examine(machine, disk);
        for device in &devices {
            if !self.examiner.findings().has(device) {
                // No effect while a probe is in progress.
                self.examiner.ask(device, now);
            }
        }
        let (examiner, findings) = (&self.examiner, self.examiner.findings());
        // Disks that are only compared with have the shorter timeout.
        let is_own = |device: &Disk| device.whole() == disk.whole();
        let is_over = |device: &Disk| match is_own(device) {
            true => examiner.is_late(device),
            false => examiner.is_slow(device),
        };
        devices.into_iter().all(|device| findings.has(device) || is_over(device))
    }

    /// A named disk is exported as if it had been named without `--all`.
    fn allowed(&self, verdict: &Verdict, selection: Selection) -> bool {
        match selection {
            Selection::Any => verdict.allows(Asked::ForAll),
            Selection::Named => verdict.allows(Asked::ByName),
            Selection::Writable => verdict.allows_writing(self.options.force),
        }
    }

    /// Reports why a disk is not exported, unless it is never exported with `--all` anyway, such as
    /// a partition.
    fn report_refusal(
        &mut self,
        disk: &Disk,
        verdict: &Verdict,
        selection: Selection,
    ) -> Option<Change> {
        let is_use = verdict.is_in_use() && verdict.allows(Asked::ByNameInUse);
        // Drives without a medium are reported, too.
        let shown = [Code::Silent, Code::Optical, Code::NoMedium];
        let is_shown = verdict.reasons.iter().any(|reason| shown.contains(&reason.code));
        if selection == Selection::Any && (!(is_use || is_shown) || disk.is_partition()) {
            return None;
        }
        let reason = verdict.reasons.first()?;
        let path = disk.path(&self.options.tree);
        let sentence = format!("{} is not lent: {reason}", path.display());
        self.report(&disk.name, sentence)
    }

    fn report(&mut self, name: &str, sentence: String) -> Option<Change> {
        let previous = self.reported.insert(name.to_owned(), sentence.clone());
        (previous.as_deref() != Some(&sentence)).then_some(Change::Note(sentence))
    }
}

/// Returns whether the disk was made by `storagetm image`: probably the boot medium. Every form of it
/// begins with a partition of this name, whatever boot loader is on it, and whatever partitions were
/// added later.
fn boots_target_mode(examined: &ExaminedDisk<'_>) -> bool {
    let table = examined.findings.contents(examined.disk).ok().and_then(|contents| contents.table);
    let first = table.and_then(|table| table.entries.into_iter().next());
    first.is_some_and(|entry| {
        entry.name.as_deref() == Some(linux::boot::PARTITION_NAME) && entry.kind == EFI_SYSTEM
    })
}

/// Adds the whole disks of partitions.
fn whole_names<'a>(machine: &Machine, names: impl Iterator<Item = &'a String>) -> HashSet<String> {
    let whole = |name: &String| match machine.disk(name) {
        Some(disk) => disk.whole().to_owned(),
        None => name.clone(),
    };
    names.flat_map(|name| [name.clone(), whole(name)]).collect()
}

#[cfg(test)]
mod test {
    use super::overlays::GivenOverlay;
    use super::*;
    use crate::disk_filter::DiskSelector;
    use crate::lend::{Opener, opening};
    use crate::overlay;
    use crate::reported::ReportedIdentity;
    use export::{Access, Geometry, Identity};
    use std::fs;
    use std::path::PathBuf;

    /// A machine in a directory, with one disk.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let name = format!("storagetm-hotplug-{}-{name}", std::process::id());
            let fake = Self(std::env::temp_dir().join(name));
            fake.write("proc/self/mountinfo", "");
            fake.write("proc/swaps", "");
            fake.write("dev/sdz", &"\0".repeat(1 << 20));
            fake.disk(2048, 7);
            fake
        }

        fn write(&self, path: &str, content: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn disk(&self, sectors: u64, diskseq: u64) {
            self.write("sys/class/block/sdz/dev", "8:400\n");
            self.write("sys/class/block/sdz/size", &format!("{sectors}\n"));
            self.write("sys/class/block/sdz/diskseq", &format!("{diskseq}\n"));
        }

        fn disks(&self) -> Vec<Disk> {
            block::scan(&Tree::at(&self.0)).unwrap()
        }

        fn hotplug(&self) -> Hotplug {
            let tree = Tree::at(&self.0);
            let machine = linux::identity::machine_id(&tree);
            let options = LendOptions {
                tree,
                base: None,
                allow_in_use: false,
                force: false,
                removable: false,
                overlay: overlay::OverlayOptions { limit: 0, is_shared: false, dir: None },
                machine,
                at_rest: false,
                reported: ReportedIdentity::default(),
                opener: Opener::default(),
            };
            let hotplug = Hotplug::open(options, Some(DiskFilter::default())).unwrap();
            let examiner = Examiner::new(Tree::at(&self.0)).within();
            Hotplug { uevents: None, examiner, ..hotplug }
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Examines, then waits for the probe results.
    fn look(hotplug: &mut Hotplug, now: Instant) -> Vec<Change> {
        let mut changes = hotplug.look(&[], now);
        while hotplug.is_waiting() && wait_for(hotplug.results(), Instant::now() + LIMIT) {
            hotplug.receive(now);
            changes.extend(hotplug.lend_ready(&[], now));
        }
        changes
    }

    /// Calls `question` with the first disk, examined.
    fn examined<T>(fake: &Fake, question: impl FnOnce(&ExaminedDisk<'_>) -> T) -> T {
        let machine = Machine::snapshot(&Tree::at(&fake.0)).unwrap();
        let findings = linux::disk::Live { tree: Tree::at(&fake.0) };
        question(&ExaminedDisk { machine: &machine, disk: &machine.disks[0], findings: &findings })
    }

    fn lent(disk: &Disk) -> LentDisk {
        let geometry = Geometry::new(512, 512).unwrap();
        let null = fs::File::open("/dev/null").unwrap().into();
        let export = Export::new("sdz", "nqn", Identity::default(), geometry, disk.bytes, null);
        LentDisk::new(Arc::new(export), Some(Device::of(disk)))
    }

    #[test]
    fn exported_disk_follows_resize_removal_and_replacement() {
        let fake = Fake::new("changes");
        let lent_disks = [lent(&fake.disks()[0])];
        assert!(changed(&fake.disks(), &lent_disks).is_empty());
        fake.disk(4096, 7);
        let changes = changed(&fake.disks(), &lent_disks);
        assert!(matches!(changes[..], [Change::Resized(_, 2_097_152)]), "{changes:?}");
        for (sectors, diskseq) in [(0, 7), (2048, 8)] {
            fake.disk(sectors, diskseq);
            assert!(matches!(changed(&fake.disks(), &lent_disks)[..], [Change::Removed(_)]));
        }
        assert!(matches!(changed(&[], &lent_disks)[..], [Change::Removed(_)]));
    }

    #[test]
    fn drive_without_a_medium_is_named() {
        let fake = Fake::new("drive");
        fake.disk(0, 7);
        fake.write("sys/class/block/sdz/removable", "1\n");
        let mut hotplug = fake.hotplug();
        let changes = hotplug.initial_scan(&[]).unwrap();
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(note, "/dev/sdz is not lent: there is no medium in the drive");
    }

    #[test]
    fn disk_in_use_is_skipped_and_reported_once() {
        let fake = Fake::new("use");
        fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
        let mut hotplug = fake.hotplug();
        let changes = hotplug.initial_scan(&[]).unwrap();
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(note, "/dev/sdz is not lent: mounted at /home");
        let now = Instant::now();
        hotplug.schedule("sdz".to_owned(), now);
        assert!(look(&mut hotplug, now).is_empty());
        assert_eq!(hotplug.due(), Some(now + RECHECK));
        assert!(look(&mut hotplug, now + SETTLE).is_empty());
        assert_eq!(hotplug.due(), Some(now + RECHECK), "the second look is not spent early");
        assert!(look(&mut hotplug, now + RECHECK).is_empty());
        assert_eq!(hotplug.due(), None);
    }

    #[test]
    fn earlier_note_about_a_disk_is_over() {
        let fake = Fake::new("over");
        fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
        let mut hotplug = fake.hotplug();
        assert!(matches!(hotplug.initial_scan(&[]).unwrap()[..], [Change::Note(_)]));
        fake.write("proc/self/mountinfo", "");
        let now = Instant::now();
        hotplug.schedule("sdz".to_owned(), now);
        let mut changes = hotplug.look(&[], now);
        while hotplug.is_waiting() && wait_for(hotplug.results(), Instant::now() + LIMIT) {
            changes.extend(hotplug.look(&[], now));
        }
        // The disk itself cannot be opened here.
        let [Change::Note(_), Change::Over(note)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(note, "/dev/sdz is not lent: mounted at /home");
    }

    #[test]
    fn new_disk_is_examined_at_once_in_target_mode() {
        let fake = Fake::new("once");
        let mut hotplug = fake.hotplug();
        hotplug.options.at_rest = true;
        let now = Instant::now();
        hotplug.schedule("sdz".to_owned(), now);
        assert_eq!(hotplug.due(), Some(now));
        hotplug.look(&[], now);
        hotplug.rechecks.clear();
        let later = now + SETTLE / 4;
        hotplug.schedule("sdy".to_owned(), later);
        assert_eq!(hotplug.due(), Some(now + SETTLE));
    }

    #[test]
    fn r60_disk_that_hangs_does_not_delay_target_mode() {
        let fake = Fake::new("hangs");
        let mut hotplug = fake.hotplug();
        hotplug.options.at_rest = true;
        hotplug.examiner = Examiner::new(Tree::at(&fake.0)).silent();
        let begun = Instant::now();
        assert!(hotplug.initial_scan(&[]).unwrap().is_empty());
        assert!(begun.elapsed() < LIMIT, "the screen waits for the first scan");
        assert!(hotplug.look(&[], begun + SLOW).is_empty());
        let changes = hotplug.look(&[], begun + LIMIT * 2);
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(note, "/dev/sdz is not lent: it does not answer");
    }

    #[test]
    fn r60_disks_that_hang_in_open_are_opened_side_by_side() {
        let fake = Fake::new("hanging");
        for (name, number) in [("sdy", 401), ("sdx", 402)] {
            fake.write(&format!("sys/class/block/{name}/dev"), &format!("8:{number}\n"));
            fake.write(&format!("sys/class/block/{name}/size"), "2048\n");
            fake.write(&format!("sys/class/block/{name}/diskseq"), "9\n");
            fake.write(&format!("dev/{name}"), &"\0".repeat(1 << 20));
        }
        let mut hotplug = fake.hotplug();
        hotplug.options.opener = Opener::default().silent();
        let begun = Instant::now();
        hotplug.rescan_all(begun);
        hotplug.look(&[], begun);
        while hotplug.openings.opening() < 3 {
            assert!(wait_for(hotplug.results(), begun + LIMIT));
            assert!(hotplug.look(&[], Instant::now()).is_empty());
        }
        assert!(begun.elapsed() < LIMIT, "the caller waits for the disks");
        let mut notes = Vec::new();
        while hotplug.is_waiting() {
            wait_for(hotplug.results(), Instant::now() + LIMIT);
            notes.extend(hotplug.look(&[], Instant::now()));
        }
        assert!(begun.elapsed() < LIMIT * 2, "one waits for the other");
        assert_eq!(notes.len(), 3, "{notes:?}");
        for note in notes {
            let Change::Note(note) = note else { panic!("{note:?}") };
            assert!(note.ends_with(" is not lent: it does not answer"), "{note}");
        }
        // What opens a disk may hold it, so it is not examined before that has ended.
        let again = |hotplug: &mut Hotplug| {
            let now = Instant::now();
            hotplug.rescan_all(now);
            hotplug.look(&[], now + SETTLE);
            hotplug.examining.len()
        };
        assert_eq!(again(&mut hotplug), 0);
        assert!(hotplug.due().is_some());
        opening::tests::end_silent();
        assert_eq!(again(&mut hotplug), 3);
    }

    #[test]
    fn further_uevents_do_not_postpone_a_disk() {
        let fake = Fake::new("bounded");
        for at_rest in [false, true] {
            let mut hotplug = fake.hotplug();
            hotplug.options.at_rest = at_rest;
            let now = Instant::now();
            hotplug.looked = Some(now);
            for events in 0..20 {
                hotplug.schedule("sdz".to_owned(), now + SETTLE / 2 * events);
                assert_eq!(hotplug.due(), Some(now + SETTLE));
            }
        }
    }

    #[test]
    fn another_disk_by_the_same_name_is_not_writable() {
        let fake = Fake::new("writable");
        fake.write("sys/class/block/sdz/device/serial", "S1\n");
        let disks = fake.disks();
        let mut lent = lent(&disks[0]);
        Arc::get_mut(&mut lent.export).unwrap().access = Access::Writable;
        let mut hotplug = fake.hotplug();
        lent.fingerprint = examined(&fake, |examined| hotplug.options.fingerprint(examined));
        hotplug.initial_scan(&[lent]).unwrap();
        let is_writable = || examined(&fake, |examined| hotplug.is_writable(examined));
        assert!(is_writable());
        fake.disk(2048, 8);
        assert!(is_writable(), "the same disk has come again");
        fake.write("sys/class/block/sdz/device/serial", "S2\n");
        assert!(!is_writable());
    }

    #[test]
    fn disk_that_had_an_overlay_comes_back_read_only() {
        let fake = Fake::new("overlaid");
        fake.write("sys/class/block/sdz/device/serial", "S1\n");
        let disk = &fake.disks()[0];
        let geometry = Geometry::new(512, 512).unwrap();
        let backing = overlay::test::backing(disk.bytes);
        let export =
            Export::new("/dev/sdz", "n", Identity::default(), geometry, disk.bytes, backing);
        let mut under = LentDisk::new(Arc::new(export), Some(Device::of(disk)));
        Arc::get_mut(&mut under.export).unwrap().access = Access::Writable;
        let mut hotplug = fake.hotplug();
        under.fingerprint = examined(&fake, |examined| hotplug.options.fingerprint(examined));
        let mut twin = lent(disk);
        Arc::get_mut(&mut twin.export).unwrap().access = Access::Writable;
        twin.fingerprint = under.fingerprint;
        hotplug.initial_scan(&[under, twin]).unwrap();
        let selected = |hotplug: &Hotplug| examined(&fake, |examined| hotplug.select(examined));
        let (selection, note) = selected(&hotplug).unwrap();
        assert_eq!(selection, Selection::Named, "its twin is writable");
        assert_eq!(
            note.unwrap(),
            "/dev/sdz is lent read-only: its overlay ended when it was removed"
        );
        let named =
            |name| DiskFilter { writable: vec![DiskSelector::new(name)], ..DiskFilter::default() };
        hotplug.filter = Some(named("S1"));
        assert_eq!(selected(&hotplug).unwrap().0, Selection::Named, "it is named writable");
        fake.write("sys/class/block/sdz/device/serial", "S2\n");
        hotplug.filter = Some(named("sdz"));
        assert_eq!(selected(&hotplug).unwrap().0, Selection::Named, "it is at the same place");
    }

    #[test]
    fn overlay_chosen_at_the_console_is_for_that_disk() {
        let fake = Fake::new("console-overlay");
        fake.write("sys/class/block/sdz/device/serial", "S1\n");
        let mut hotplug = fake.hotplug();
        let mut known = lent(&fake.disks()[0]);
        known.fingerprint = examined(&fake, |examined| hotplug.options.fingerprint(examined));
        let wants = |hotplug: &Hotplug| examined(&fake, |examined| hotplug.wants_overlay(examined));
        assert!(!wants(&hotplug), "read-only is the default");
        hotplug.choose_overlay(&known, true, Instant::now());
        assert!(wants(&hotplug) && hotplug.pending.contains("sdz"));
        fake.disk(2048, 8);
        assert!(wants(&hotplug), "the same disk has come again");
        fake.write("sys/class/block/sdz/device/serial", "S2\n");
        assert!(!wants(&hotplug), "another disk is at its place");
        // What was chosen last holds, also against the boot parameters.
        fake.write("sys/class/block/sdz/device/serial", "S1\n");
        hotplug.filter = Some(DiskFilter { overlay_all: true, ..DiskFilter::default() });
        hotplug.choose_overlay(&known, false, Instant::now());
        assert!(!wants(&hotplug));
        fake.write("sys/class/block/sdz/device/serial", "S2\n");
        assert!(wants(&hotplug));
    }

    #[test]
    fn overlays_of_target_mode_leave_memory_for_others() {
        let fake = Fake::new("overlay-memory");
        fake.write("proc/meminfo", "MemTotal:        4194304 kB\n");
        let mut hotplug = fake.hotplug();
        hotplug.filter = Some(DiskFilter { overlay_all: true, ..DiskFilter::default() });
        let limit = |hotplug: &mut Hotplug| examined(&fake, |it| hotplug.overlay_limit(it));
        // Half of the memory, and half of that for a disk that is plugged in later.
        let first = limit(&mut hotplug);
        assert_eq!(first, 1 << 30);
        let export = give(&mut hotplug, &fake.disks()[0], first);
        assert_eq!(limit(&mut hotplug), 1 << 29);
        drop(export);
        assert_eq!(limit(&mut hotplug), first);
    }

    /// Records an overlay of a disk, which is exported until the return value is dropped.
    fn give(hotplug: &mut Hotplug, disk: &Disk, limit: u64) -> Arc<Export> {
        let LentDisk { export, device, .. } = lent(disk);
        hotplug.overlays.given.push(GivenOverlay {
            export: Some(Arc::downgrade(&export)),
            device,
            limit,
        });
        export
    }

    #[test]
    fn overlays_of_several_disks_have_equal_parts() {
        let fake = Fake::new("overlay-parts");
        fake.write("proc/meminfo", "MemTotal:        3145728 kB\n");
        fake.write("proc/self/mountinfo", "25 1 8:402 / /home rw - ext4 /dev/sdx rw\n");
        // The second disk for an overlay; one in use, one for writing, and what is no disk.
        for (name, number, sectors) in
            [("sdy", 401, 2048), ("sdx", 402, 2048), ("sdw", 403, 2048), ("loop0", 404, 0)]
        {
            fake.write(&format!("sys/class/block/{name}/dev"), &format!("8:{number}\n"));
            fake.write(&format!("sys/class/block/{name}/size"), &format!("{sectors}\n"));
            fake.write(&format!("sys/class/block/{name}/diskseq"), "9\n");
            fake.write(&format!("dev/{name}"), &"\0".repeat(1 << 20));
        }
        let mut hotplug = fake.hotplug();
        let writable = vec![DiskSelector::new("sdw")];
        hotplug.filter = Some(DiskFilter { overlay_all: true, writable, ..DiskFilter::default() });
        let disk = |name| fake.disks().into_iter().find(|disk| disk.name == name).unwrap();
        let limit = |hotplug: &mut Hotplug| examined(&fake, |it| hotplug.overlay_limit(it));
        let part = 1 << 29;
        assert_eq!(limit(&mut hotplug), part);
        let first = give(&mut hotplug, &disk("sdz"), part);
        assert_eq!(limit(&mut hotplug), part);
        let _second = give(&mut hotplug, &disk("sdy"), part);
        // What is left is for a third one, and half of it for the next.
        assert_eq!(limit(&mut hotplug), part / 2);
        drop(first);
        assert_eq!(limit(&mut hotplug), part);
        // A disk that was chosen at the console counts as well.
        hotplug.filter = Some(DiskFilter::default());
        hotplug.overlays.given.clear();
        assert_eq!(limit(&mut hotplug), 3 << 28);
        for name in ["sdz", "sdy"] {
            hotplug.choose_overlay(&lent(&disk(name)), true, Instant::now());
        }
        assert_eq!(limit(&mut hotplug), part);
    }

    #[test]
    fn writable_position_is_for_its_first_disk() {
        let fake = Fake::new("position");
        fake.write("sys/class/block/sdz/device/serial", "S1\n");
        let named =
            |name| DiskFilter { writable: vec![DiskSelector::new(name)], ..DiskFilter::default() };
        let mut hotplug = Hotplug { filter: Some(named("/dev/sdz")), ..fake.hotplug() };
        let is_replacement =
            |hotplug: &Hotplug| examined(&fake, |examined| hotplug.is_replacement(examined));
        assert!(!is_replacement(&hotplug));
        examined(&fake, |it| {
            let fingerprint = hotplug.options.fingerprint(it);
            hotplug.record_position(it.disk, fingerprint);
        });
        assert!(!is_replacement(&hotplug));
        fake.disk(2048, 8);
        assert!(!is_replacement(&hotplug), "the same disk has come again");
        fake.write("sys/class/block/sdz/device/serial", "S2\n");
        assert!(is_replacement(&hotplug));
        hotplug.filter = Some(named("S2"));
        assert!(!is_replacement(&hotplug), "it was named by what only it has");
    }

    #[test]
    fn refusal_of_a_named_disk_is_reported() {
        let fake = Fake::new("named");
        fake.disk(0, 7);
        let mut hotplug = fake.hotplug();
        assert!(hotplug.initial_scan(&[]).unwrap().is_empty());
        let only = DiskFilter { only: vec![DiskSelector::new("sdz")], ..DiskFilter::default() };
        let mut hotplug = Hotplug { filter: Some(only), ..hotplug };
        let changes = hotplug.initial_scan(&[]).unwrap();
        assert!(matches!(&changes[..], [Change::Note(_)]), "{changes:?}");
    }

    #[test]
    fn discards_count_as_writes() {
        let fake = Fake::new("writes");
        let hotplug = fake.hotplug();
        let device = Device::of(&fake.disks()[0]);
        assert_eq!(hotplug.writes(&device), None);
        for (counts, writes) in
            [("1 2 3 4 5 6 7 8 9 10 11", 5), ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", 17)]
        {
            fake.write("sys/class/block/sdz/stat", counts);
            assert_eq!(hotplug.writes(&device), Some(writes));
        }
    }

    /// The forms of a stick: one partition, or with BIOS and as a CD image.
    fn sticks() -> [Vec<u8>; 2] {
        [false, true].map(|more| {
            let mut files = image::files::Files::default();
            files.add("EFI/BOOT/BOOTX64.EFI", b"an EFI program".to_vec());
            let bios = image::bios::Bios { boot: vec![1; 512], core: vec![2; 4096] };
            let bios = more.then_some(bios);
            let contents = image::disk::Contents { files, bios, iso: more };
            image::disk::Disk::image(&contents).unwrap().whole()
        })
    }

    #[test]
    fn target_mode_stick_is_exported_only_by_name() {
        for stick in sticks() {
            let fake = Fake::new("stick");
            fake.disk(stick.len() as u64 / 512, 7);
            fs::write(fake.0.join("dev/sdz"), stick).unwrap();
            let mut hotplug = fake.hotplug();
            let changes = hotplug.initial_scan(&[]).unwrap();
            let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
            assert!(note.contains("it is a stick that boots into target mode"), "{note}");
            let named =
                DiskFilter { only: vec![DiskSelector::new("sdz")], ..DiskFilter::default() };
            let mut hotplug = Hotplug { filter: Some(named), ..hotplug };
            let changes = hotplug.initial_scan(&[]).unwrap();
            // A named disk is opened, and refused because it is not a block device.
            let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
            assert!(note.starts_with("/dev/sdz") && !note.contains("stick"), "{note}");
        }
    }

    #[test]
    fn disk_is_lent_again_when_its_descriptors_are_closed() {
        let fake = Fake::new("rechecks");
        fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
        let mut hotplug = fake.hotplug();
        let before = lent(&fake.disks()[0]);
        // Held by a flush in progress.
        let held = before.export.clone();
        hotplug.release(&before);
        drop(before);
        let mut now = Instant::now();
        hotplug.rescan_all(now);
        for _ in 0..10 {
            now = hotplug.due().unwrap();
            assert!(look(&mut hotplug, now).is_empty(), "it is judged while it is busy");
        }
        drop(held);
        now = hotplug.due().unwrap();
        let changes = look(&mut hotplug, now);
        assert!(matches!(&changes[..], [Change::Note(_)]), "{changes:?}");
    }

    #[test]
    fn removed_disk_is_left_out_until_it_is_plugged_in_again() {
        let fake = Fake::new("excluded");
        fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
        let mut hotplug = fake.hotplug();
        let removed = lent(&fake.disks()[0]);
        hotplug.exclude(&removed);
        let looked = |hotplug: &mut Hotplug| {
            let now = Instant::now();
            hotplug.schedule("sdz".to_owned(), now);
            look(hotplug, now + SETTLE)
        };
        assert!(looked(&mut hotplug).is_empty());
        // The note that it is in use shows that it was examined.
        let is_examined = |changes: &[Change]| matches!(changes, [Change::Note(_)]);
        fake.disk(2048, 8);
        assert!(is_examined(&looked(&mut hotplug)));
        hotplug.exclude(&lent(&fake.disks()[0]));
        hotplug.rescan_all(Instant::now());
        assert!(is_examined(&looked(&mut hotplug)));
    }

    #[test]
    fn failed_scan_is_retried_and_loses_no_disk() {
        for all in [false, true] {
            let fake = Fake::new("silent");
            fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
            let mut hotplug = fake.hotplug();
            fs::remove_dir_all(fake.0.join("sys")).unwrap();
            assert!(hotplug.initial_scan(&[]).unwrap_err().to_string().contains("/sys"));
            let mut now = Instant::now();
            if all {
                hotplug.rescan_all(now)
            } else {
                hotplug.schedule("sdz".to_owned(), now)
            }
            let mut pauses = Vec::new();
            for _ in 0..10 {
                now = hotplug.due().unwrap();
                assert!(hotplug.look(&[], now).is_empty());
                pauses.push(hotplug.due().unwrap() - now);
            }
            assert_eq!(pauses[..3], [SETTLE, SETTLE * 2, SETTLE * 4]);
            assert_eq!(pauses.last(), Some(&MAX_PAUSE));
            fake.disk(2048, 7);
            now = hotplug.due().unwrap();
            let changes = look(&mut hotplug, now);
            assert!(matches!(&changes[..], [Change::Note(_)]), "{changes:?}");
        }
    }
}
