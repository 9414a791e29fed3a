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

use crate::choice::{Choice, Said};
use crate::device::Device;
use crate::examine::{Examiner, LIMIT, SLOW};
use crate::lend::{Known, Loan, Terms, Wanted, examined_for};
use failure::Failure;

/// A disk that comes is announced in many events: how long to wait for the last of them.
const SETTLE: Duration = Duration::from_millis(200);
/// The device manager looks at a new disk for a while; a disk that could not be had is asked for once more.
const AGAIN: Duration = Duration::from_secs(2);

/// Between two tries to list the disks of a machine that fails to list them, at most; the first is after [`SETTLE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Between two looks at whether the descriptors of a disk that is lent no longer are closed.
const RELEASE: Duration = Duration::from_millis(500);

/// What is to be done about what happened.
#[derive(Debug)]
pub enum Change {
    /// Lend it.
    Came(Box<Loan>),
    /// Lend it no longer.
    Went(Device),
    /// It has another size, in bytes.
    Resized(Device, u64),
    /// Say it.
    Note(String),
}

/// A disk, as far as it can be told from others.
#[derive(Debug)]
struct Holder {
    device: Device,
    fingerprint: Option<[u8; 16]>,
}

/// Follows the block devices.
#[derive(Debug)]
pub struct Follow {
    terms: Terms,
    /// Which of the disks that come are lent; nothing if none is.
    choice: Option<Choice>,
    /// The disks that are lent writable when they come again. Not by their paths: another disk may come by the same.
    writable: HashSet<[u8; 16]>,
    /// Who was lent writable because its place was named: the right is for that disk, not for the next one there.
    places: HashMap<String, Holder>,
    uevents: Option<Uevents>,
    /// Kernel names of disks to look at, and when.
    pending: HashSet<String>,
    /// Whether to look at all disks.
    all: bool,
    due: Option<Instant>,
    /// How long to wait before another try if the disks cannot be listed; it doubles with each.
    pause: Duration,
    /// Those to look at once more, each at its time.
    again: HashMap<String, Instant>,
    /// Disks that are lent no longer, each as long as a descriptor of it is open: until then it is busy.
    leaving: Vec<(Device, Weak<Export>)>,
    /// Asks disks what is on them.
    examiner: Examiner,
    /// Kernel names of disks that are lent, or not, when they have answered.
    waiting: HashSet<String>,
    /// When one of them has answered, if that was after the last look.
    answered: Option<Instant>,
    /// Why disks are not lent, as it was said.
    said: HashMap<String, String>,
}

impl Follow {
    /// Starts to listen to the kernel.
    pub fn open(terms: Terms, choice: Option<Choice>) -> Self {
        let uevents = Uevents::open().ok();
        let examiner = Examiner::new(terms.tree.clone());
        Self {
            // Use is allowed for disks that are named, never for all.
            terms: Terms { allow_in_use: false, ..terms },
            choice,
            writable: HashSet::new(),
            places: HashMap::new(),
            uevents,
            pending: HashSet::new(),
            all: false,
            due: None,
            pause: SETTLE,
            again: HashMap::new(),
            leaving: Vec::new(),
            examiner,
            waiting: HashSet::new(),
            answered: None,
            said: HashMap::new(),
        }
    }

    /// Whether the kernel tells nothing here.
    pub fn is_deaf(&self) -> bool {
        self.uevents.is_none()
    }

    /// Readable when there are uevents, and when disks have answered.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.uevents.as_ref().map(AsFd::as_fd).into_iter().chain(self.examiner.descriptor())
    }

    /// When to call [`Follow::look`].
    pub fn due(&self) -> Option<Instant> {
        let again = self.again.values().copied();
        let others = [self.due, self.examiner.due(), self.answered];
        others.into_iter().flatten().chain(again).min()
    }

    /// Takes uevents, and what disks have answered; never waits.
    pub fn receive(&mut self, now: Instant) {
        for answered in self.examiner.receive() {
            self.answered = Some(now);
            if answered.is_late {
                // The disk was left out: all of it is looked at anew.
                self.note(answered.name, now);
            }
        }
        loop {
            let news = self.uevents.as_mut().map(Uevents::receive);
            match news {
                Some(Ok(Some(Message::Event(event)))) => {
                    if event.action != Action::Other {
                        self.note(event.devname.replace('/', "!"), now);
                    }
                }
                Some(Ok(Some(Message::Lost))) => self.note_all(now),
                Some(Ok(None)) | None => return,
                Some(Err(_)) => {
                    self.uevents = None;
                    return;
                }
            }
        }
    }

    fn note(&mut self, name: String, now: Instant) {
        self.pending.insert(name);
        self.due = Some(now + SETTLE);
    }

    fn note_all(&mut self, now: Instant) {
        self.all = true;
        self.due = Some(now + SETTLE);
    }

    /// The first look, at every disk.
    ///
    /// # Errors
    /// A sentence: the machine does not tell which disks it has.
    pub fn begin(&mut self, loans: &[Loan]) -> Result<Vec<Change>, Failure> {
        let machine = self.terms.look().map_err(|error| {
            Failure::new(format!(
                "the disks of this machine cannot be listed: {error}; is /sys mounted?"
            ))
        })?;
        let writable = loans.iter().filter(|loan| loan.export.access == Access::Writable);
        self.writable = writable.filter_map(|loan| loan.fingerprint).collect();
        let names: HashSet<String> = machine.disks.iter().map(|disk| disk.name.clone()).collect();
        let now = Instant::now();
        self.come(&machine, &names, loans, now);
        // The device manager may be looking at some of them just now.
        self.again.extend(names.into_iter().map(|name| (name, now + AGAIN)));
        Ok(self.gather(loans, now + LIMIT))
    }

    /// Waits for the disks to answer until `end`, but for those that are slower than all others.
    fn gather(&mut self, loans: &[Loan], end: Instant) -> Vec<Change> {
        let (mut changes, mut patience) = (Vec::new(), end);
        loop {
            let now = Instant::now();
            changes.extend(self.settle(loans, now));
            if self.waiting.is_empty() || now >= patience {
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
    pub fn release(&mut self, loan: &Loan) {
        let device = loan.device.clone();
        self.leaving.extend(device.map(|device| (device, Arc::downgrade(&loan.export))));
    }

    fn is_leaving(&self, disk: &Disk) -> bool {
        self.leaving.iter().any(|(device, _)| device.is(disk.number))
    }

    /// Forgets what was lent: the next look is a first one, at every disk.
    pub fn begin_anew(&mut self, now: Instant) {
        self.said.clear();
        self.note_all(now);
    }

    /// Requests to write and to discard that the kernel has sent to the disk since it is there: the fifth and the twelfth
    /// number of `stat` (the kernel's Documentation/block/stat.rst; before Linux 4.18 there is no twelfth), of a partition
    /// those of the whole disk.
    pub fn writes(&self, device: &Device) -> Option<u64> {
        let place = self.terms.tree.path("sys/class/block").join(&device.name);
        let whole = place.canonicalize().ok()?;
        let whole = if whole.join("partition").exists() { whole.parent()? } else { &whole };
        let counts = std::fs::read_to_string(whole.join("stat")).ok()?;
        let counts: Vec<&str> = counts.split_whitespace().collect();
        let writes: u64 = counts.get(4)?.parse().ok()?;
        let discards = counts.get(11).and_then(|count| count.parse().ok());
        Some(writes.saturating_add(discards.unwrap_or(0)))
    }

    /// Those that were asked for by name and are not there.
    pub fn missing(&self) -> Vec<String> {
        let Some(choice) = &self.choice else { return Vec::new() };
        if choice.is_empty() {
            return Vec::new();
        }
        let disks = block::scan(&self.terms.tree).unwrap_or_default();
        choice.missing(&disks).map(ToString::to_string).collect()
    }

    /// Looks at what was named since the last time.
    pub fn look(&mut self, loans: &[Loan], now: Instant) -> Vec<Change> {
        self.due = None;
        let second: HashSet<String> =
            self.again.extract_if(|_, at| *at <= now).map(|(name, _)| name).collect();
        let Ok(machine) = self.terms.look() else {
            self.pending.extend(second);
            let changes = self.settle(loans, now);
            self.retry(now);
            return changes;
        };
        self.pause = SETTLE;
        let mut names = std::mem::take(&mut self.pending);
        if std::mem::take(&mut self.all) {
            names.extend(machine.disks.iter().map(|disk| disk.name.clone()));
        }
        let mut changes = changed(&machine.disks, loans);
        if self.choice.is_some() {
            let all = whole_names(&machine, names.union(&second));
            self.again.extend(names.into_iter().map(|name| (name, now + AGAIN)));
            self.come(&machine, &all, loans, now);
        }
        changes.extend(self.settle(loans, now));
        changes
    }

    /// Has those of `names` examined that are not lent.
    fn come(&mut self, machine: &Machine, names: &HashSet<String>, loans: &[Loan], now: Instant) {
        self.said.retain(|name, _| machine.disk(name).is_some());
        self.leaving.retain(|(_, export)| export.strong_count() > 0);
        let named = machine.disks.iter().filter(|disk| names.contains(&disk.name));
        for disk in named.filter(|disk| !is_lent(disk, loans)) {
            if self.choice.as_ref().is_none_or(|choice| choice.of(disk).is_none()) {
                continue;
            }
            if self.is_leaving(disk) {
                self.again.insert(disk.name.clone(), now + RELEASE);
                continue;
            }
            for examined in examined_for(machine, disk) {
                self.examiner.ask(examined, now);
            }
            self.waiting.insert(disk.name.clone());
        }
    }

    /// Lends those that were examined and may be lent. One that has not answered for too long is left out.
    fn settle(&mut self, loans: &[Loan], now: Instant) -> Vec<Change> {
        // An answer that has come is in time, however late this is called.
        self.receive(now);
        self.answered = None;
        self.examiner.expire(now);
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let Ok(machine) = self.terms.look() else {
            self.retry(now);
            return Vec::new();
        };
        let waiting = std::mem::take(&mut self.waiting);
        let free = machine.disks.iter().filter(|disk| waiting.contains(&disk.name));
        let free = free.filter(|disk| !is_lent(disk, loans));
        let (ready, others): (Vec<&Disk>, Vec<&Disk>) =
            free.partition(|disk| self.has_answered(&machine, disk, now));
        self.waiting.extend(others.into_iter().map(|disk| disk.name.clone()));
        let findings = self.examiner.findings().clone();
        if self.waiting.is_empty() {
            self.examiner.forget();
        }
        let known =
            ready.into_iter().map(|disk| Known { machine: &machine, disk, findings: &findings });
        known.filter_map(|known| self.come_one(&known)).collect()
    }

    /// The disks could not be listed: they are listed again, later each time, and none that was announced is lost.
    fn retry(&mut self, now: Instant) {
        if self.due.is_none() {
            self.due = Some(now + self.pause);
            self.pause = LONGEST_PAUSE.min(self.pause * 2);
        }
    }

    /// Whether all is known of a disk that will be. What is new since it was asked about is asked for.
    fn has_answered(&mut self, machine: &Machine, disk: &Disk, now: Instant) -> bool {
        let examined = examined_for(machine, disk);
        for device in &examined {
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
        examined.into_iter().all(|device| findings.has(device) || is_over(device))
    }

    fn come_one(&mut self, known: &Known<'_>) -> Option<Change> {
        let Known { machine, disk, findings } = *known;
        let said = self.choice.as_ref()?.of(disk)?;
        let verdict = machine.judge(disk, findings);
        let is_other = said == Said::Writable && self.is_other(known);
        let said = if is_other { self.choice.as_ref()?.of_reading(disk)? } else { said };
        let said = if self.is_writable(known) { Said::Writable } else { said };
        if !self.allowed(&verdict, said) {
            return self.refuse(disk, &verdict, said);
        }
        if said == Said::Any && boots_target_mode(known) {
            let sentence = format!(
                "{} is not lent: it is a stick that boots into target mode",
                disk.path(&self.terms.tree).display()
            );
            return self.say(&disk.name, sentence);
        }
        let writable = said == Said::Writable;
        let wanted = Wanted { path: disk.path(&self.terms.tree), writable };
        match self.terms.lend_examined(&wanted, known) {
            Ok(mut loan) => {
                self.said.remove(&disk.name);
                if is_other && !writable {
                    loan.notes.push(other_there(disk));
                }
                if writable {
                    self.hold(known);
                }
                Some(Change::Came(Box::new(loan)))
            }
            Err(failure) => self.say(&disk.name, failure.to_string()),
        }
    }

    /// With `--all`, a disk that was named is lent as if it had been named alone.
    fn allowed(&self, verdict: &Verdict, said: Said) -> bool {
        match said {
            Said::Any => verdict.allows(Asked::ForAll),
            Said::Named => verdict.allows(Asked::ByName),
            Said::Writable => verdict.allows_writing(self.terms.force),
        }
    }

    fn is_writable(&self, known: &Known<'_>) -> bool {
        let is_one = |print| self.writable.contains(&print);
        !self.writable.is_empty() && self.terms.fingerprint(known).is_some_and(is_one)
    }

    /// Whether another disk than this was lent writable by the name of its place.
    fn is_other(&self, known: &Known<'_>) -> bool {
        let place = self.choice.as_ref().and_then(|choice| choice.writable_place(known.disk));
        let holder = place.and_then(|place| self.places.get(&place.to_string()));
        holder.is_some_and(|holder| {
            let print = self.terms.fingerprint(known);
            let is_same = print.is_some() && print == holder.fingerprint;
            !is_same && !holder.device.is_still(known.disk)
        })
    }

    /// Takes note of who was lent writable by the name of its place.
    fn hold(&mut self, known: &Known<'_>) {
        let place = self.choice.as_ref().and_then(|choice| choice.writable_place(known.disk));
        let Some(place) = place.map(ToString::to_string) else { return };
        let fingerprint = self.terms.fingerprint(known);
        self.places.insert(place, Holder { device: Device::of(known.disk), fingerprint });
    }

    /// Says why a disk is left out, where its owner may wonder: not for what is never meant, such as its partitions,
    /// unless it was named.
    fn refuse(&mut self, disk: &Disk, verdict: &Verdict, said: Said) -> Option<Change> {
        let is_use = verdict.is_in_use() && verdict.allows(Asked::ByNameInUse);
        // A drive that is there and shows no disk is asked about, too.
        let shown = [Code::Silent, Code::Optical, Code::NoMedium];
        let is_shown = verdict.reasons.iter().any(|reason| shown.contains(&reason.code));
        if said == Said::Any && (!(is_use || is_shown) || disk.is_partition()) {
            return None;
        }
        let reason = verdict.reasons.first()?;
        let path = disk.path(&self.terms.tree);
        let sentence = format!("{} is not lent: {reason}", path.display());
        self.say(&disk.name, sentence)
    }

    fn say(&mut self, name: &str, sentence: String) -> Option<Change> {
        let known = self.said.insert(name.to_owned(), sentence.clone());
        (known.as_deref() != Some(&sentence)).then_some(Change::Note(sentence))
    }
}

/// Whether it is what `storagetm image --disk` makes: very likely what this machine was booted from.
fn boots_target_mode(known: &Known<'_>) -> bool {
    let table = known.findings.contents(known.disk).ok().and_then(|contents| contents.table);
    let entries = table.map(|table| table.entries).unwrap_or_default();
    matches!(&entries[..], [entry] if entry.name.as_deref() == Some(linux::boot::PARTITION_NAME))
}

fn is_lent(disk: &Disk, loans: &[Loan]) -> bool {
    loans.iter().any(|loan| loan.device == Some(Device::of(disk)))
}

fn other_there(disk: &Disk) -> String {
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
fn changed(disks: &[Disk], loans: &[Loan]) -> Vec<Change> {
    let lent = loans.iter().filter_map(|loan| Some((loan, loan.device.as_ref()?)));
    lent.filter_map(|(loan, device)| {
        let now = disks.iter().find(|disk| Device::of(disk) == *device);
        let block = u64::from(loan.export.geometry.block());
        match now.map(|disk| disk.bytes) {
            None | Some(0) => Some(Change::Went(device.clone())),
            // A device has whole blocks, whatever size it reports.
            Some(bytes) if bytes - bytes % block != loan.export.bytes() => {
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
    use crate::choice::Called;
    use export::{Geometry, Identity};
    use linux::tree::Tree;
    use std::fs;
    use std::path::PathBuf;

    /// A machine made of files, with one disk.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let name = format!("storagetm-follow-{}-{name}", std::process::id());
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

        fn follow(&self) -> Follow {
            let tree = Tree::at(&self.0);
            let machine = linux::identity::machine_id(&tree);
            let terms = Terms {
                tree,
                base: None,
                allow_in_use: false,
                force: false,
                machine,
                at_rest: false,
            };
            let follow = Follow::open(terms, Some(Choice::default()));
            let examiner = Examiner::new(Tree::at(&self.0)).within();
            Follow { uevents: None, examiner, ..follow }
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Looks, and again when the disks have answered.
    fn look(follow: &mut Follow, now: Instant) -> Vec<Change> {
        let mut changes = follow.look(&[], now);
        while !follow.waiting.is_empty() && follow.examiner.wait(Instant::now() + LIMIT) {
            follow.receive(now);
            changes.extend(follow.settle(&[], now));
        }
        changes
    }

    /// Asks a question about the first disk as it is now.
    fn known<T>(fake: &Fake, question: impl FnOnce(&Known<'_>) -> T) -> T {
        let machine = Machine::snapshot(&Tree::at(&fake.0)).unwrap();
        let findings = linux::disk::Live { tree: Tree::at(&fake.0) };
        question(&Known { machine: &machine, disk: &machine.disks[0], findings: &findings })
    }

    fn loan(disk: &Disk) -> Loan {
        let geometry = Geometry::new(512, 512).unwrap();
        let null = fs::File::open("/dev/null").unwrap().into();
        let export = Export::new("sdz", "nqn", Identity::default(), geometry, disk.bytes, null);
        Loan::new(Arc::new(export), Some(Device::of(disk)))
    }

    #[test]
    fn a_lent_disk_is_followed_as_it_grows_goes_or_becomes_another() {
        let fake = Fake::new("changes");
        let loans = [loan(&fake.disks()[0])];
        assert!(changed(&fake.disks(), &loans).is_empty());
        fake.disk(4096, 7);
        let changes = changed(&fake.disks(), &loans);
        assert!(matches!(changes[..], [Change::Resized(_, 2_097_152)]), "{changes:?}");
        for (sectors, diskseq) in [(0, 7), (2048, 8)] {
            fake.disk(sectors, diskseq);
            assert!(matches!(changed(&fake.disks(), &loans)[..], [Change::Went(_)]));
        }
        assert!(matches!(changed(&[], &loans)[..], [Change::Went(_)]));
    }

    #[test]
    fn drive_without_a_medium_is_named() {
        let fake = Fake::new("drive");
        fake.disk(0, 7);
        fake.write("sys/class/block/sdz/removable", "1\n");
        let mut follow = fake.follow();
        let changes = follow.begin(&[]).unwrap();
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(note, "/dev/sdz is not lent: there is no medium in the drive");
    }

    #[test]
    fn a_disk_in_use_is_left_out_and_that_is_said_once() {
        let fake = Fake::new("use");
        fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
        let mut follow = fake.follow();
        let changes = follow.begin(&[]).unwrap();
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(note, "/dev/sdz is not lent: mounted at /home");
        let now = Instant::now();
        follow.note("sdz".to_owned(), now);
        assert!(look(&mut follow, now).is_empty());
        assert_eq!(follow.due(), Some(now + AGAIN));
        assert!(look(&mut follow, now + SETTLE).is_empty());
        assert_eq!(follow.due(), Some(now + AGAIN), "the second look is not spent early");
        assert!(look(&mut follow, now + AGAIN).is_empty());
        assert_eq!(follow.due(), None);
    }

    #[test]
    fn another_disk_by_the_same_name_is_not_writable() {
        let fake = Fake::new("writable");
        fake.write("sys/class/block/sdz/device/serial", "S1\n");
        let disks = fake.disks();
        let mut lent = loan(&disks[0]);
        Arc::get_mut(&mut lent.export).unwrap().access = Access::Writable;
        let mut follow = fake.follow();
        lent.fingerprint = known(&fake, |known| follow.terms.fingerprint(known));
        follow.begin(&[lent]).unwrap();
        let is_writable = || known(&fake, |known| follow.is_writable(known));
        assert!(is_writable());
        fake.disk(2048, 8);
        assert!(is_writable(), "the same disk has come again");
        fake.write("sys/class/block/sdz/device/serial", "S2\n");
        assert!(!is_writable());
    }

    #[test]
    fn a_place_that_is_named_writable_is_for_the_disk_that_was_there() {
        let fake = Fake::new("place");
        fake.write("sys/class/block/sdz/device/serial", "S1\n");
        let named = |name| Choice { only: Vec::new(), writable: vec![Called::new(name)] };
        let mut follow = Follow { choice: Some(named("/dev/sdz")), ..fake.follow() };
        let is_other = |follow: &Follow| known(&fake, |known| follow.is_other(known));
        assert!(!is_other(&follow));
        known(&fake, |known| follow.hold(known));
        assert!(!is_other(&follow));
        fake.disk(2048, 8);
        assert!(!is_other(&follow), "the same disk has come again");
        fake.write("sys/class/block/sdz/device/serial", "S2\n");
        assert!(is_other(&follow));
        follow.choice = Some(named("S2"));
        assert!(!is_other(&follow), "it was named by what only it has");
    }

    #[test]
    fn why_a_disk_that_was_named_is_not_lent_is_said() {
        let fake = Fake::new("named");
        fake.disk(0, 7);
        let mut follow = fake.follow();
        assert!(follow.begin(&[]).unwrap().is_empty());
        let only = Choice { only: vec![Called::new("sdz")], writable: Vec::new() };
        let mut follow = Follow { choice: Some(only), ..follow };
        let changes = follow.begin(&[]).unwrap();
        assert!(matches!(&changes[..], [Change::Note(_)]), "{changes:?}");
    }

    #[test]
    fn discards_count_as_writes() {
        let fake = Fake::new("writes");
        let follow = fake.follow();
        let device = Device::of(&fake.disks()[0]);
        assert_eq!(follow.writes(&device), None);
        for (counts, writes) in
            [("1 2 3 4 5 6 7 8 9 10 11", 5), ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", 17)]
        {
            fake.write("sys/class/block/sdz/stat", counts);
            assert_eq!(follow.writes(&device), Some(writes));
        }
    }

    #[test]
    fn a_stick_that_boots_into_target_mode_is_lent_only_by_name() {
        let fake = Fake::new("stick");
        let stick = image::disk::Disk::image(b"an EFI program").unwrap();
        fs::write(fake.0.join("dev/sdz"), stick.whole()).unwrap();
        fake.disk(stick.bytes / 512, 7);
        let mut follow = fake.follow();
        let changes = follow.begin(&[]).unwrap();
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert!(note.contains("it is a stick that boots into target mode"), "{note}");
        let named = Choice { only: vec![Called::new("sdz")], writable: Vec::new() };
        let mut follow = Follow { choice: Some(named), ..follow };
        let changes = follow.begin(&[]).unwrap();
        // Named, it is opened; what is no block device is then refused for that.
        let [Change::Note(note)] = &changes[..] else { panic!("{changes:?}") };
        assert!(note.starts_with("/dev/sdz") && !note.contains("stick"), "{note}");
    }

    #[test]
    fn disk_is_lent_again_when_its_descriptors_are_closed() {
        let fake = Fake::new("again");
        fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
        let mut follow = fake.follow();
        let before = loan(&fake.disks()[0]);
        // As held by a flush that has not ended.
        let held = before.export.clone();
        follow.release(&before);
        drop(before);
        let mut now = Instant::now();
        follow.begin_anew(now);
        for _ in 0..10 {
            now = follow.due().unwrap();
            assert!(look(&mut follow, now).is_empty(), "it is judged while it is busy");
        }
        drop(held);
        now = follow.due().unwrap();
        let changes = look(&mut follow, now);
        assert!(matches!(&changes[..], [Change::Note(_)]), "{changes:?}");
    }

    #[test]
    fn failed_scan_is_retried_and_loses_no_disk() {
        for all in [false, true] {
            let fake = Fake::new("silent");
            fake.write("proc/self/mountinfo", "25 1 8:400 / /home rw - ext4 /dev/sdz rw\n");
            let mut follow = fake.follow();
            fs::remove_dir_all(fake.0.join("sys")).unwrap();
            assert!(follow.begin(&[]).unwrap_err().to_string().contains("/sys"));
            let mut now = Instant::now();
            if all {
                follow.begin_anew(now)
            } else {
                follow.note("sdz".to_owned(), now)
            }
            let mut pauses = Vec::new();
            for _ in 0..10 {
                now = follow.due().unwrap();
                assert!(follow.look(&[], now).is_empty());
                pauses.push(follow.due().unwrap() - now);
            }
            assert_eq!(pauses[..3], [SETTLE, SETTLE * 2, SETTLE * 4]);
            assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
            fake.disk(2048, 7);
            now = follow.due().unwrap();
            let changes = look(&mut follow, now);
            assert!(matches!(&changes[..], [Change::Note(_)]), "{changes:?}");
        }
    }
}
