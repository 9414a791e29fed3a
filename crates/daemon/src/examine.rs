//! Probes disks in a helper process (`storagetm examine`), many at a time: a disk that does not
//! respond blocks one thread of that process, and nothing else.
//!
//! The processes exchange lines of JSON over a socket: a [`Question`] for each disk, and an
//! [`Answer`] when the disk has responded.

mod child;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use linux::block::Disk;
use linux::in_use::Probe;
use linux::signature::Contents;
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::device::Device;
pub use child::work;
use ipc::spawn;

/// Timeout after which a disk counts as unresponsive.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Timeout for a rotational disk that the user named, which may have to spin up, and for what may be on one.
pub(crate) const SPIN_UP: Duration = Duration::from_secs(20);

/// Timeout for disks that matter only for comparison with others.
pub const SLOW: Duration = Duration::from_secs(1);

/// Longest answer in bytes; a partition table has at most a megabyte.
const MAX_LEN: usize = 16 << 20;

/// A request to probe a disk.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    number: u64,
    node: PathBuf,
    bytes: u64,
    /// Kernel name of the whole disk. Its partitions are opened exclusively one at a time.
    whole: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    number: u64,
    contents: Result<Contents, Failed>,
    is_busy: Result<bool, Failed>,
}

/// Wire type of an I/O error.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Failed {
    errno: Option<i32>,
    text: String,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error(), text: error.to_string() }
    }
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        let known = failed.errno.map(Self::from_raw_os_error);
        known.unwrap_or_else(|| Self::other(failed.text))
    }
}

/// Result of probing a disk.
#[derive(Debug, Clone)]
struct Finding {
    device: Device,
    contents: Result<Contents, Failed>,
    is_busy: Result<bool, Failed>,
}

/// Results by kernel name. Disks that have not responded are missing.
#[derive(Debug, Clone, Default)]
pub struct Findings(HashMap<String, Finding>);

impl Findings {
    /// Returns whether this very disk has been probed.
    pub fn has(&self, disk: &Disk) -> bool {
        self.of(disk).is_ok()
    }

    fn of(&self, disk: &Disk) -> io::Result<&Finding> {
        let found = self.0.get(&disk.name).filter(|found| found.device == Device::of(disk));
        found.ok_or_else(|| ErrorKind::TimedOut.into())
    }
}

impl Probe for Findings {
    fn contents(&self, disk: &Disk) -> io::Result<Contents> {
        Ok(self.of(disk)?.contents.clone()?)
    }

    fn is_busy(&self, disk: &Disk) -> io::Result<bool> {
        Ok(self.of(disk)?.is_busy.clone()?)
    }
}

/// The helper process and the socket to it.
pub(crate) type Started = (Option<Child>, UnixStream);

/// Sends disks to the helper process and collects the results.
#[derive(Debug)]
pub struct Examiner {
    tree: Tree,
    start: fn() -> io::Result<Started>,
    running: Option<Running>,
    /// Helper processes that were told to exit.
    leaving: Vec<Child>,
    pending: HashMap<u64, Pending>,
    last: u64,
    findings: Findings,
}

#[derive(Debug)]
struct Running {
    child: Option<Child>,
    socket: UnixStream,
    received: Vec<u8>,
}

#[derive(Debug)]
struct Pending {
    device: Device,
    asked: Instant,
    /// Timeout.
    limit: Duration,
    /// Whether it exceeded [`SLOW`], and its timeout.
    is_slow: bool,
    is_late: bool,
}

/// A disk has responded.
#[derive(Debug)]
pub struct Answered {
    /// Kernel name.
    pub name: String,
    /// Whether it had exceeded its timeout.
    pub is_late: bool,
}

impl Examiner {
    /// An examiner for the machine at `tree`. The helper is started on demand.
    pub fn new(tree: Tree) -> Self {
        let start = || spawn::with_socket("examine").map(|(child, socket)| (Some(child), socket));
        Self {
            tree,
            start,
            running: None,
            leaving: Vec::new(),
            pending: HashMap::new(),
            last: 0,
            findings: Findings::default(),
        }
    }

    /// Replaces the helper process by a thread of this process.
    #[cfg(test)]
    pub fn within(mut self) -> Self {
        self.start = || {
            let (own, other) = UnixStream::pair()?;
            std::thread::spawn(move || child::answer(&other));
            Ok((None, own))
        };
        self
    }

    /// Replaces the helper process by one that never answers, as if every disk hung.
    #[cfg(test)]
    pub fn silent(mut self) -> Self {
        static SILENT: std::sync::Mutex<Vec<UnixStream>> = std::sync::Mutex::new(Vec::new());
        self.start = || {
            let (own, other) = UnixStream::pair()?;
            SILENT.lock().map_err(|_| ErrorKind::Other)?.push(other);
            Ok((None, own))
        };
        self
    }

    /// Probes a disk again, unless a probe of it is in progress. If the helper cannot be started,
    /// the error is the result.
    pub fn ask(&mut self, disk: &Disk, now: Instant) {
        self.ask_within(disk, LIMIT, now);
    }

    fn ask_within(&mut self, disk: &Disk, limit: Duration, now: Instant) {
        let device = Device::of(disk);
        if self.pending.values().any(|pending| pending.device == device) {
            return;
        }
        self.findings.0.remove(&disk.name);
        self.last += 1;
        let question = Question {
            number: self.last,
            node: self.tree.path(&disk.node),
            bytes: disk.bytes,
            whole: disk.whole().to_owned(),
        };
        match self.send(&question) {
            Ok(()) => {
                let pending = Pending { device, asked: now, limit, is_slow: false, is_late: false };
                self.pending.insert(question.number, pending);
            }
            Err(error) => self.keep_failed(device, &error.into()),
        }
    }

    fn send(&mut self, question: &Question) -> io::Result<()> {
        if self.running.is_none() {
            let (child, socket) = (self.start)()?;
            socket.set_write_timeout(Some(LIMIT))?;
            self.running = Some(Running { child, socket, received: Vec::new() });
        }
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        let running = self.running.as_mut().ok_or(ErrorKind::NotConnected)?;
        running.socket.write_all(&line)
    }

    fn keep_failed(&mut self, device: Device, failed: &Failed) {
        let finding =
            Finding { contents: Err(failed.clone()), is_busy: Err(failed.clone()), device };
        self.findings.0.insert(finding.device.name.clone(), finding);
    }

    /// Collects results. Does not block.
    pub fn receive(&mut self) -> Vec<Answered> {
        self.leaving.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let Some(running) = &mut self.running else { return Vec::new() };
        let is_over = running.receive().is_err();
        let lines = running.lines();
        let mut answered: Vec<Answered> = lines.iter().filter_map(|line| self.take(line)).collect();
        if is_over {
            answered.extend(self.fail_pending());
        } else if self.pending.is_empty() {
            self.retire();
        }
        answered
    }

    fn take(&mut self, line: &[u8]) -> Option<Answered> {
        let answer: Answer = serde_json::from_slice(line).ok()?;
        let Pending { device, is_late, .. } = self.pending.remove(&answer.number)?;
        let name = device.name.clone();
        let Answer { contents, is_busy, .. } = answer;
        self.findings.0.insert(name.clone(), Finding { device, contents, is_busy });
        Some(Answered { name, is_late })
    }

    /// Handles the death of the helper: pending probes fail.
    fn fail_pending(&mut self) -> Vec<Answered> {
        self.retire();
        let text = "the process that examines disks has ended".to_owned();
        let failed = Failed { errno: None, text };
        let lost: Vec<Pending> = self.pending.drain().map(|(_, pending)| pending).collect();
        let mut answered = Vec::new();
        for Pending { device, is_late, .. } in lost {
            answered.push(Answered { name: device.name.clone(), is_late });
            self.keep_failed(device, &failed);
        }
        answered
    }

    /// Ends the helper process by closing its socket.
    fn retire(&mut self) {
        self.leaving.extend(self.running.take().and_then(|running| running.child));
    }

    /// Marks pending probes that exceed [`SLOW`] or their timeout.
    pub fn expire(&mut self, now: Instant) {
        for pending in self.pending.values_mut() {
            pending.is_slow |= pending.asked + SLOW <= now;
            pending.is_late |= pending.asked + pending.limit <= now;
        }
    }

    /// Returns whether the disk exceeded [`SLOW`].
    pub fn is_slow(&self, disk: &Disk) -> bool {
        self.of(disk).is_some_and(|pending| pending.is_slow)
    }

    /// Returns whether the disk exceeded its timeout.
    pub fn is_late(&self, disk: &Disk) -> bool {
        self.of(disk).is_some_and(|pending| pending.is_late)
    }

    /// Discards all results.
    pub fn forget(&mut self) {
        self.findings.0.clear();
    }

    fn of(&self, disk: &Disk) -> Option<&Pending> {
        let device = Device::of(disk);
        self.pending.values().find(|pending| pending.device == device)
    }

    /// When to call [`Examiner::expire`] next.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.pending.values().filter(|pending| !pending.is_late);
        waiting.map(|one| one.asked + if one.is_slow { one.limit } else { SLOW }).min()
    }

    /// When the last of the pending probes times out.
    fn end(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.asked + pending.limit).max()
    }

    /// The results so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Readable when there are results.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.socket.as_fd())
    }

    /// Waits for a result until `end`. Returns whether there is one.
    pub fn wait(&self, end: Instant) -> bool {
        self.running.is_some() && wait_for(self.descriptor(), end)
    }
}

/// Waits until `end` for one of the descriptors to be readable. Returns whether one is.
pub(crate) fn wait_for<'a>(
    descriptors: impl IntoIterator<Item = BorrowedFd<'a>>,
    end: Instant,
) -> bool {
    let ends = descriptors.into_iter().map(|it| PollFd::from_borrowed_fd(it, PollFlags::IN));
    let mut ends: Vec<PollFd<'_>> = ends.collect();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(&mut ends, left.as_ref()) {
            // Interrupted by a signal: wait for the rest of the time.
            Err(Errno::INTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}

impl Drop for Examiner {
    /// Reaps the helper processes.
    fn drop(&mut self) {
        self.retire();
        self.leaving.drain(..).for_each(spawn::reap);
    }
}

impl Running {
    /// Reads without blocking. Fails at end of file, and if the buffer is full.
    fn receive(&mut self) -> io::Result<()> {
        self.socket.set_nonblocking(true)?;
        let mut some = [0; 1 << 14];
        let result = loop {
            match (&self.socket).read(&mut some) {
                Ok(0) => break Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => self.received.extend_from_slice(some.get(..got).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
            if self.received.len() > MAX_LEN {
                break Err(ErrorKind::InvalidData.into());
            }
        };
        self.socket.set_nonblocking(false)?;
        result
    }

    /// Complete lines.
    fn lines(&mut self) -> Vec<Vec<u8>> {
        let end = self.received.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.received.drain(..end).collect();
        whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(Into::into).collect()
    }
}

/// Probes disks, each for at most its `limit`. Disks that time out are not in the result.
pub fn examine<'a>(
    tree: &Tree,
    disks: impl IntoIterator<Item = &'a Disk>,
    limit: impl Fn(&Disk) -> Duration,
) -> Findings {
    let mut examiner = Examiner::new(tree.clone());
    for disk in disks {
        examiner.ask_within(disk, limit(disk), Instant::now());
    }
    while examiner.end().is_some_and(|end| examiner.wait(end)) {
        examiner.receive();
    }
    std::mem::take(&mut examiner.findings)
}

/// Timeouts of disks when the user named `named`: a rotational disk gets time to spin up.
pub fn limit_for(named: &Disk) -> impl Fn(&Disk) -> Duration {
    let waits = |disk: &Disk| disk.rotational && disk.whole() == named.whole();
    move |disk| if waits(disk) { SPIN_UP } else { LIMIT }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::sync::Mutex;
    use std::thread;

    /// The helper's end of the socket of the last examiner.
    static OTHER: Mutex<Option<UnixStream>> = Mutex::new(None);

    fn start() -> io::Result<Started> {
        let (own, other) = UnixStream::pair()?;
        *OTHER.lock().unwrap() = Some(other);
        Ok((None, own))
    }

    /// A disk that times out is reported as unresponsive, is not probed again, and its result is
    /// late.
    #[test]
    fn r60_unresponsive_disk_is_probed_once() {
        let name = format!("storagetm-examine-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let place = root.join("sys/class/block/sdz");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("dev"), "8:400\n").unwrap();
        fs::write(place.join("size"), "2048\n").unwrap();
        let tree = Tree::at(&root);
        let disk = linux::block::scan(&tree).unwrap().remove(0);
        fs::remove_dir_all(&root).unwrap();

        let mut examiner = Examiner::new(tree);
        examiner.start = start;
        let begun = Instant::now();
        examiner.ask(&disk, begun);
        examiner.ask(&disk, begun);
        assert_eq!(examiner.due(), Some(begun + SLOW));
        examiner.expire(begun + SLOW);
        assert_eq!(examiner.due(), Some(begun + LIMIT));
        assert!(examiner.is_slow(&disk) && !examiner.is_late(&disk));
        assert!(examiner.receive().is_empty());
        examiner.expire(begun + LIMIT);
        assert!(examiner.is_late(&disk) && examiner.due().is_none());
        let found = examiner.findings().contents(&disk);
        assert_eq!(found.unwrap_err().kind(), ErrorKind::TimedOut);
        examiner.ask(&disk, begun + LIMIT);

        let other = OTHER.lock().unwrap().take().unwrap();
        let mut lines = BufReader::new(&other).lines();
        let question: Question = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let contents = Ok(Contents { unreadable: Some(512), ..Contents::default() });
        let answer = Answer { number: question.number, contents, is_busy: Ok(true) };
        let line = serde_json::to_string(&answer).unwrap() + "\n";
        (&other).write_all(line.as_bytes()).unwrap();
        let answered = examiner.receive();
        assert!(matches!(&answered[..], [one] if one.name == "sdz" && one.is_late));
        assert_eq!(examiner.findings().contents(&disk).unwrap().unreadable, Some(512));
        assert!(examiner.findings().is_busy(&disk).unwrap());
        assert!(lines.next().is_none(), "nothing more was asked, and nobody is there any more");
    }

    #[test]
    fn named_rotational_disk_has_time_to_spin_up() {
        let name = format!("storagetm-spin-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        for (number, name) in ["sdx", "sdy", "sdz"].into_iter().enumerate() {
            let place = root.join("sys/class/block").join(name);
            fs::create_dir_all(place.join("queue")).unwrap();
            fs::write(place.join("dev"), format!("8:{number}\n")).unwrap();
            fs::write(place.join("size"), "2048\n").unwrap();
            fs::write(place.join("queue/rotational"), if name == "sdz" { "0" } else { "1" })
                .unwrap();
        }
        let disks = linux::block::scan(&Tree::at(&root)).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let limits = |named| disks.iter().map(limit_for(named)).collect::<Vec<_>>();
        assert_eq!(limits(&disks[0]), [SPIN_UP, LIMIT, LIMIT]);
        assert_eq!(limits(&disks[2]), [LIMIT; 3]);

        let mut examiner = Examiner::new(Tree::machine());
        examiner.start = start;
        let begun = Instant::now();
        for disk in &disks {
            examiner.ask_within(disk, limit_for(&disks[0])(disk), begun);
        }
        examiner.expire(begun + LIMIT);
        let late: Vec<bool> = disks.iter().map(|disk| examiner.is_late(disk)).collect();
        assert_eq!(late, [false, true, true]);
        assert_eq!(examiner.due(), Some(begun + SPIN_UP));
        assert_eq!(examiner.end(), Some(begun + SPIN_UP));
    }

    #[test]
    fn dropped_examiner_leaves_no_zombie() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let child = std::process::Command::new("/bin/true").spawn().unwrap();
        let place = PathBuf::from(format!("/proc/{}", child.id()));
        let mut examiner = Examiner::new(Tree::machine());
        examiner.running = Some(Running { child: Some(child), socket, received: Vec::new() });
        drop(examiner);
        let end = Instant::now() + Duration::from_secs(60);
        while place.exists() {
            assert!(Instant::now() < end, "{} is still there", place.display());
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn dead_examiner_fails_pending_probes() {
        let failed = Failed { errno: Some(13), text: String::new() };
        assert_eq!(io::Error::from(failed).kind(), ErrorKind::PermissionDenied);
        let failed = Failed::from(io::Error::other("some words"));
        assert_eq!(io::Error::from(failed).to_string(), "some words");
    }
}
