//! Follows the block devices of the machine: those that are lent as they go or change size, and with `--all` those that
//! come. It knows no host.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use export::{Access, Export};
use linux::block::{self, Disk};
use linux::in_use::Machine;
use linux::reason::{Asked, Code, Verdict};
use linux::uevent::{Action, Message, Uevents};

use crate::device::Device;
use crate::disk_filter::{DiskFilter, Selection};
use crate::examine::{Examiner, LIMIT, SLOW};
use crate::lend::{ExaminedDisk, LendOptions, LendRequest, LentDisk, devices_to_examine};
use failure::Failure;

/// A disk that comes is announced in many events: how long to wait for the last of them.
const SETTLE: Duration = Duration::from_millis(200);
/// The device manager looks at a new disk for a while; a disk that could not be had is asked for once more.
const RECHECK: Duration = Duration::from_secs(2);

/// Between two tries to list the disks of a machine that fails to list them, at most; the first is after [`SETTLE`].
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Between two looks at whether the descriptors of a disk that is lent no longer are closed.
const RELEASE: Duration = Duration::from_millis(500);

/// What is to be done about what happened.
#[derive(Debug)]
pub enum Change {
    /// Lend it.
    Added(Box<LentDisk>),
    /// Lend it no longer.
    Removed(Device),
    /// It has another size, in bytes.
    Resized(Device, u64),
    /// Say it.
    Note(String),
}

/// A disk, as far as it can be told from others.
#[derive(Debug)]
struct PositionHolder {
    device: Device,
    fingerprint: Option<[u8; 16]>,
}

/// Follows the block devices.
#[derive(Debug)]
pub struct Hotplug {
    options: LendOptions,
    /// Which of the disks that come are lent; nothing if none is.
    filter: Option<DiskFilter>,
    /// The disks that are lent writable when they come again. Not by their paths: another disk may come by the same.
    writable: HashSet<[u8; 16]>,
    /// Who was lent writable because its place was named: the right is for that disk, not for the next one there.
    positions: HashMap<String, PositionHolder>,
    uevents: Option<Uevents>,
    /// Kernel names of disks to look at, and when.
    pending: HashSet<String>,
    /// Whether to look at all disks.
    all: bool,
    due: Option<Instant>,
    /// How long to wait before another try if the disks cannot be listed; it doubles with each.
    pause: Duration,
    /// Those to look at once more, each at its time.
    rechecks: HashMap<String, Instant>,
    /// Disks that are lent no longer, each as long as a descriptor of it is open: until then it is busy.
    closing: Vec<(Device, Weak<Export>)>,
    /// Asks disks what is on them.
    examiner: Examiner,
    /// Kernel names of disks that are lent, or not, when they have answered.
    examining: HashSet<String>,
    /// When one of them has answered, if that was after the last look.
    answered: Option<Instant>,
    /// Why disks are not lent, as it was said.
    reported: HashMap<String, String>,
}

impl Hotplug {
    /// Starts to listen to the kernel.
    pub fn open(options: LendOptions, filter: Option<DiskFilter>) -> Self {
        let uevents = Uevents::open().ok();
        let examiner = Examiner::new(options.tree.clone());
        Self {
            // Use is allowed for disks that are named, never for all.
            options: LendOptions { allow_in_use: false, ..options },
            filter,
            writable: HashSet::new(),
            positions: HashMap::new(),
            uevents,
            pending: HashSet::new(),
            all: false,
            due: None,
            pause: SETTLE,
            rechecks: HashMap::new(),
            closing: Vec::new(),
            examiner,
            examining: HashSet::new(),
            answered: None,
            reported: HashMap::new(),
        }
    }

    /// Whether the kernel tells nothing here.
    pub fn is_unavailable(&self) -> bool {
        self.uevents.is_none()
    }

    /// Readable when there are uevents, and when disks have answered.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.uevents.as_ref().map(AsFd::as_fd).into_iter().chain(self.examiner.descriptor())
    }

    /// When to call [`Hotplug::look`].
    pub fn due(&self) -> Option<Instant> {
        let rechecks = self.rechecks.values().copied();
        let others = [self.due, self.examiner.due(), self.answered];
        others.into_iter().flatten().chain(rechecks).min()
    }

    /// Takes uevents, and what disks have answered; never waits.
    pub fn receive(&mut self, now: Instant) {
        for answered in self.examiner.receive() {
            self.answered = Some(now);
            if answered.is_late {
                // The disk was left out: all of it is looked at anew.
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
        self.due = Some(now + SETTLE);
    }

    fn schedule_all(&mut self, now: Instant) {
        self.all = true;
        self.due = Some(now + SETTLE);
    }

    /// The first look, at every disk.
    ///
    /// # Errors
    /// A sentence: the machine does not tell which disks it has.
    pub fn initial_scan(&mut self, lent_disks: &[LentDisk]) -> Result<Vec<Change>, Failure> {
        let machine = self.options.look().map_err(|error| {
            Failure::new(format!(
                "the disks of this machine cannot be listed: {error}; is /sys mounted?"
            ))
        })?;
        let writable = lent_disks.iter().filter(|lent| lent.export.access == Access::Writable);
        self.writable = writable.filter_map(|lent| lent.fingerprint).collect();
        let names: HashSet<String> = machine.disks.iter().map(|disk| disk.name.clone()).collect();
        let now = Instant::now();
        self.examine_new(&machine, &names, lent_disks, now);
        // The device manager may be looking at some of them just now.
        self.rechecks.extend(names.into_iter().map(|name| (name, now + RECHECK)));
        Ok(self.wait_for_answers(lent_disks, now + LIMIT))
    }

    /// Waits for the disks to answer until `end`, but for those that are slower than all others.
    fn wait_for_answers(&mut self, lent_disks: &[LentDisk], end: Instant) -> Vec<Change> {
        let (mut changes, mut patience) = (Vec::new(), end);
        loop {
            let now = Instant::now();
            changes.extend(self.lend_ready(lent_disks, now));
            if self.examining.is_empty() || now >= patience {
                return changes;
            }
            if self.examiner.wait(patience) {
                let now = Instant::now();
                self.receive(now);
                patience = end.min(now + SLOW);
            }
        }
    }

    /// Takes note of a disk that is lent no longer. It is not lent again before its descriptors are closed.
    pub fn release(&mut self, lent: &LentDisk) {
        let device = lent.device.clone();
        self.closing.extend(device.map(|device| (device, Arc::downgrade(&lent.export))));
    }

    fn is_closing(&self, disk: &Disk) -> bool {
        self.closing.iter().any(|(device, _)| device.is(disk.number))
    }

    /// Forgets what was lent: the next look is a first one, at every disk.
    pub fn rescan_all(&mut self, now: Instant) {
        self.reported.clear();
        self.schedule_all(now);
    }

    /// Requests to write and to discard that the kernel has sent to the disk since it is there: the fifth and the twelfth
    /// number of `stat` (the kernel's Documentation/block/stat.rst; before Linux 4.18 there is no twelfth), of a partition
    /// those of the whole disk.
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

    /// Those that were asked for by name and are not there.
    pub fn missing(&self) -> Vec<String> {
        let Some(filter) = &self.filter else { return Vec::new() };
        if filter.is_empty() {
            return Vec::new();
        }
        let disks = block::scan(&self.options.tree).unwrap_or_default();
        filter.missing(&disks).map(ToString::to_string).collect()
    }

    /// Looks at what was named since the last time.
    pub fn look(&mut self, lent_disks: &[LentDisk], now: Instant) -> Vec<Change> {
        self.due = None;
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

    /// Has those of `names` examined that are not lent.
    fn examine_new(
        &mut self,
        machine: &Machine,
        names: &HashSet<String>,
        lent_disks: &[LentDisk],
        now: Instant,
    ) {
        self.reported.retain(|name, _| machine.disk(name).is_some());
        self.closing.retain(|(_, export)| export.strong_count() > 0);
        let named = machine.disks.iter().filter(|disk| names.contains(&disk.name));
        for disk in named.filter(|disk| !is_lent(disk, lent_disks)) {
            if self.filter.as_ref().is_none_or(|filter| filter.select(disk).is_none()) {
                continue;
            }
            if self.is_closing(disk) {
                self.rechecks.insert(disk.name.clone(), now + RELEASE);
                continue;
            }
            for device in devices_to_examine(machine, disk) {
                self.examiner.ask(device, now);
            }
            self.examining.insert(disk.name.clone());
        }
    }

    /// Lends those that were examined and may be lent. One that has not answered for too long is left out.
    fn lend_ready(&mut self, lent_disks: &[LentDisk], now: Instant) -> Vec<Change> {
        // An answer that has come is in time, however late this is called.
        self.receive(now);
        self.answered = None;
        self.examiner.expire(now);
        if self.examining.is_empty() {
            return Vec::new();
        }
        let Ok(machine) = self.options.look() else {
            self.schedule_retry(now);
            return Vec::new();
        };
        let examining = std::mem::take(&mut self.examining);
        let free = machine.disks.iter().filter(|disk| examining.contains(&disk.name));
        let free = free.filter(|disk| !is_lent(disk, lent_disks));
        let (ready, others): (Vec<&Disk>, Vec<&Disk>) =
            free.partition(|disk| self.has_answered(&machine, disk, now));
        self.examining.extend(others.into_iter().map(|disk| disk.name.clone()));
        let findings = self.examiner.findings().clone();
        if self.examining.is_empty() {
            self.examiner.forget();
        }
        let examined = ready.into_iter().map(|disk| ExaminedDisk {
            machine: &machine,
            disk,
            findings: &findings,
        });
        examined.filter_map(|examined| self.lend_one(&examined)).collect()
    }

    /// The disks could not be listed: they are listed again, later each time, and none that was announced is lost.
    fn schedule_retry(&mut self, now: Instant) {
        if self.due.is_none() {
            self.due = Some(now + self.pause);
            self.pause = MAX_PAUSE.min(self.pause * 2);
        }
    }

    /// Whether all is known of a disk that will be. What is new since it was asked about is asked for.
    fn has_answered(&mut self, machine: &Machine, disk: &Disk, now: Instant) -> bool {
        let devices = devices_to_examine(machine, disk);
        for device in &devices {
            if !self.examiner.findings().has(device) {
                // Has no effect while it is being examined.
                self.examiner.ask(device, now);
            }
        }
        let (examiner, findings) = (&self.examiner, self.examiner.findings());
        // One that may only look the same does not hold it up for long.
        let is_own = |device: &Disk| device.whole() == disk.whole();
        let is_over = |device: &Disk| match is_own(device) {
            true => examiner.is_late(device),
            false => examiner.is_slow(device),
        };
        devices.into_iter().all(|device| findings.has(device) || is_over(device))
    }

    fn lend_one(&mut self, examined: &ExaminedDisk<'_>) -> Option<Change> {
        let ExaminedDisk { machine, disk, findings } = *examined;
        let selection = self.filter.as_ref()?.select(disk)?;
        let verdict = machine.judge(disk, findings);
        let is_replacement = selection == Selection::Writable && self.is_replacement(examined);
        let selection =
            if is_replacement { self.filter.as_ref()?.select_read_only(disk)? } else { selection };
        let selection = if self.is_writable(examined) { Selection::Writable } else { selection };
        if !self.allowed(&verdict, selection) {
            return self.report_refusal(disk, &verdict, selection);
        }
        if selection == Selection::Any && boots_target_mode(examined) {
            let sentence = format!(
                "{} is not lent: it is a stick that boots into target mode",
                disk.path(&self.options.tree).display()
            );
            return self.report(&disk.name, sentence);
        }
        let writable = selection == Selection::Writable;
        let request = LendRequest { path: disk.path(&self.options.tree), writable };
        match self.options.lend_examined(&request, examined) {
            Ok(mut lent) => {
                self.reported.remove(&disk.name);
                if is_replacement && !writable {
                    lent.notes.push(replacement_note(disk));
                }
                if writable {
                    self.record_position(examined);
                }
                Some(Change::Added(Box::new(lent)))
            }
            Err(failure) => self.report(&disk.name, failure.to_string()),
        }
    }

    /// With `--all`, a disk that was named is lent as if it had been named alone.
    fn allowed(&self, verdict: &Verdict, selection: Selection) -> bool {
        match selection {
            Selection::Any => verdict.allows(Asked::ForAll),
            Selection::Named => verdict.allows(Asked::ByName),
            Selection::Writable => verdict.allows_writing(self.options.force),
        }
    }

    fn is_writable(&self, examined: &ExaminedDisk<'_>) -> bool {
        let is_one = |fingerprint| self.writable.contains(&fingerprint);
        !self.writable.is_empty() && self.options.fingerprint(examined).is_some_and(is_one)
    }

    /// Whether another disk than this was lent writable by the name of its place.
    fn is_replacement(&self, examined: &ExaminedDisk<'_>) -> bool {
        let position =
            self.filter.as_ref().and_then(|filter| filter.writable_by_position(examined.disk));
        let holder = position.and_then(|position| self.positions.get(&position.to_string()));
        holder.is_some_and(|holder| {
            let fingerprint = self.options.fingerprint(examined);
            let is_same = fingerprint.is_some() && fingerprint == holder.fingerprint;
            !is_same && !holder.device.is_still(examined.disk)
        })
    }

    /// Takes note of who was lent writable by the name of its place.
    fn record_position(&mut self, examined: &ExaminedDisk<'_>) {
        let position =
            self.filter.as_ref().and_then(|filter| filter.writable_by_position(examined.disk));
        let Some(position) = position.map(ToString::to_string) else { return };
        let fingerprint = self.options.fingerprint(examined);
        self.positions
            .insert(position, PositionHolder { device: Device::of(examined.disk), fingerprint });
    }

    /// Says why a disk is left out, where its owner may wonder: not for what is never meant, such as its partitions,
    /// unless it was named.
    fn report_refusal(
        &mut self,
        disk: &Disk,
        verdict: &Verdict,
        selection: Selection,
    ) -> Option<Change> {
        let is_use = verdict.is_in_use() && verdict.allows(Asked::ByNameInUse);
        // A drive that is there and shows no disk is asked about, too.
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

/// Whether it is what `storagetm image --disk` makes: very likely what this machine was booted from.
fn boots_target_mode(examined: &ExaminedDisk<'_>) -> bool {
    let table = examined.findings.contents(examined.disk).ok().and_then(|contents| contents.table);
    let entries = table.map(|table| table.entries).unwrap_or_default();
    matches!(&entries[..], [entry] if entry.name.as_deref() == Some(linux::boot::PARTITION_NAME))
}

fn is_lent(disk: &Disk, lent_disks: &[LentDisk]) -> bool {
    lent_disks.iter().any(|lent| lent.device == Some(Device::of(disk)))
}

fn replacement_note(disk: &Disk) -> String {
    format!(
        "{} is lent read-only: another disk was there when it was named writable",
        disk.node.display()
    )
}

/// The names, and of partitions those of the whole disks.
fn whole_names<'a>(machine: &Machine, names: impl Iterator<Item = &'a String>) -> HashSet<String> {
    let whole = |name: &String| match machine.disk(name) {
        Some(disk) => disk.whole().to_owned(),
        None => name.clone(),
    };
    names.flat_map(|name| [name.clone(), whole(name)]).collect()
}

/// Which of the lent disks went or have another size.
fn changed(disks: &[Disk], lent_disks: &[LentDisk]) -> Vec<Change> {
    let lent = lent_disks.iter().filter_map(|lent| Some((lent, lent.device.as_ref()?)));
    lent.filter_map(|(lent, device)| {
        let now = disks.iter().find(|disk| Device::of(disk) == *device);
        let block = u64::from(lent.export.geometry.block());
        match now.map(|disk| disk.bytes) {
            None | Some(0) => Some(Change::Removed(device.clone())),
            // A device has whole blocks, whatever size it reports.
            Some(bytes) if bytes - bytes % block != lent.export.bytes() => {
                Some(Change::Resized(device.clone(), bytes - bytes % block))
            }
            Some(_) => None,
        }
    })
    .collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::disk_filter::DiskSelector;
    use export::{Geometry, Identity};
    use linux::tree::Tree;
    use std::fs;
    use std::path::PathBuf;

    /// A machine made of files, with one disk.
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
                machine,
                at_rest: false,
            };
            let hotplug = Hotplug::open(options, Some(DiskFilter::default()));
            let examiner = Examiner::new(Tree::at(&self.0)).within();
            Hotplug { uevents: None, examiner, ..hotplug }
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Looks, and again when the disks have answered.
    fn look(hotplug: &mut Hotplug, now: Instant) -> Vec<Change> {
        let mut changes = hotplug.look(&[], now);
        while !hotplug.examining.is_empty() && hotplug.examiner.wait(Instant::now() + LIMIT) {
            hotplug.receive(now);
            changes.extend(hotplug.lend_ready(&[], now));
        }
        changes
    }

    /// Asks a question about the first disk as it is now.
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
    fn a_lent_disk_is_hotpluged_as_it_grows_goes_or_becomes_another() {
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
    fn a_disk_in_use_is_left_out_and_that_is_said_once() {
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
    fn a_place_that_is_named_writable_is_for_the_disk_that_was_there() {
        let fake = Fake::new("position");
        fake.write("sys/class/block/sdz/device/serial", "S1\n");
        let named = |name| DiskFilter { only: Vec::new(), writable: vec![DiskSelector::new(name)] };
        let mut hotplug = Hotplug { filter: Some(named("/dev/sdz")), ..fake.hotplug() };
        let is_replacement =
            |hotplug: &Hotplug| examined(&fake, |examined| hotplug.is_replacement(examined));
        assert!(!is_replacement(&hotplug));
        examined(&fake, |examined| hotplug.record_position(examined));
        assert!(!is_replacement(&hotplug));
        fake.disk(2048, 8);
        assert!(!is_replacement(&hotplug), "the same disk has come again");
        fake.write("sys/class/block/sdz/device/serial", "S2\n");
        assert!(is_replacement(&hotplug));
        hotplug.filter = Some(named("S2"));
        assert!(!is_replacement(&hotplug), "it was named by what only it has");
    }

    #[test]
    fn why_a_disk_that_was_named_is_not_lent_is_said() {
        let fake = Fake::new("named");
        fake.disk(0, 7);
        let mut hotplug = fake.hotplug();
        assert!(hotplug.initial_scan(&[]).unwrap().is_empty());
        let only = DiskFilter { only: vec![DiskSelector::new("sdz")], writable: Vec::new() };
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

    #[test]
    fn a_stick_that_boots_into_target_mode_is_lent_only_by_name() {
        let fake = Fake::new("stick");
        let stick = image::disk::Disk::image(b"an EFI program").unwrap();
        fs::write(fake.0.join("dev/sdz"), stick.whole()).unwrap();
        fake.disk(stick.bytes / 512, 7);
        let mut hotplug = fake.hotplug();
        let changes = hotplug.initial_scan(&[]).unwrap();
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert!(note.contains("it is a stick that boots into target mode"), "{note}");
        let named = DiskFilter { only: vec![DiskSelector::new("sdz")], writable: Vec::new() };
        let mut hotplug = Hotplug { filter: Some(named), ..hotplug };
        let changes = hotplug.initial_scan(&[]).unwrap();
        // Named, it is opened; what is no block device is then refused for that.
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert!(note.starts_with("/dev/sdz") && !note.contains("stick"), "{note}");
    }

    #[test]
    fn disk_is_lent_again_when_its_descriptors_are_closed() {
        let fake = Fake::new("rechecks");
        fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
        let mut hotplug = fake.hotplug();
        let before = lent(&fake.disks()[0]);
        // As held by a flush that has not ended.
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
