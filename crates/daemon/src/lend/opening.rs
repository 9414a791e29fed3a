//! Opens disks and files in a helper process (`storagetm open`), at most one for each. A disk can stop responding after it was
//! examined, as can the server of a file, and a process that is blocked in open(2) cannot exit: the process that serves all
//! other disks must not be.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use failure::{Failure, spawn_error};
use ipc::channel::split;
use ipc::spawn;
use linux::block::DeviceNumber;
use linux::disk::{OpenFor, Opened};
use linux::tree::Tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, getsockname};
use serde::{Deserialize, Serialize};

use super::{LendOptions, home};
use crate::examine::{SPIN_UP, Started};

/// Longest message in bytes.
const MAX_FRAME: usize = 1 << 16;

/// What a helper process opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Device(DeviceNumber),
    File(PathBuf),
}

/// The helper processes, at most one for each disk: one that is blocked may hold the disk, which would then appear to be in
/// use. Clones share them.
#[derive(Debug, Clone)]
pub struct Opener {
    helpers: Arc<Mutex<Vec<Helper>>>,
    start: fn() -> io::Result<Started>,
}

/// A helper process that has not ended, as far as is known.
#[derive(Debug)]
struct Helper {
    target: Target,
    /// The other end is closed when the process ends.
    socket: UnixStream,
}

/// Which disk to open, and how: the arguments of [`linux::disk::open`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Question {
    root: PathBuf,
    path: PathBuf,
    access: OpenFor,
    allow_in_use: bool,
}

/// What a helper process is to do.
#[derive(Debug, Serialize, Deserialize)]
enum Task {
    Open(Question),
    /// Read the first block of a file.
    Reach(PathBuf),
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The descriptors are sent with the message.
    Opened(Opened<()>),
    /// Why it cannot be opened.
    Refused(String),
    /// The file system has answered, perhaps with an error.
    Reached,
}

/// An answer with its descriptors.
type Answered = (Answer, Vec<OwnedFd>);

impl Question {
    /// # Errors
    /// Fails if `path` is relative and the working directory does not exist.
    pub(super) fn new(
        tree: &Tree,
        path: &Path,
        access: OpenFor,
        allow_in_use: bool,
    ) -> Result<Self, Failure> {
        // The helper process has another working directory.
        let absolute = std::path::absolute(path);
        let path =
            absolute.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        let path = for_another_process(path);
        Ok(Self { root: tree.path("/"), path, access, allow_in_use })
    }
}

/// Returns a path by which another process finds a descriptor of this one.
fn for_another_process(path: PathBuf) -> PathBuf {
    let own = PathBuf::from(format!("/proc/{}", std::process::id()));
    match (path.strip_prefix("/proc/self"), path.strip_prefix("/dev/fd")) {
        (Ok(rest), _) => own.join(rest),
        (_, Ok(number)) => own.join("fd").join(number),
        _ if path == Path::new("/dev/stdin") => own.join("fd/0"),
        _ => path,
    }
}

impl LendOptions {
    /// Checks that the file system of a path responds. What is in `/dev` does, and is not looked at.
    ///
    /// # Errors
    /// Fails with a message for the user if it does not. Its cause is a timeout then.
    pub fn check_reachable(&self, path: &Path) -> Result<(), Failure> {
        match path.starts_with("/dev") {
            true => Ok(()),
            false => self.opener.reach(path, SPIN_UP),
        }
    }
}

impl Default for Opener {
    fn default() -> Self {
        Self { helpers: Arc::default(), start }
    }
}

impl Opener {
    /// Opens a disk, `number` if it is a block device, or a file.
    ///
    /// # Errors
    /// Fails with a message for the user; its cause is a timeout if it does not respond within `limit`.
    pub(super) fn open(
        &self,
        question: &Question,
        number: Option<DeviceNumber>,
        limit: Duration,
    ) -> Result<Opened, Failure> {
        let path = &question.path;
        let target = number.map_or_else(|| Target::File(path.clone()), Target::Device);
        let (answer, descriptors) = self.ask(&target, Task::Open(question.clone()), path, limit)?;
        let mut descriptors = descriptors.into_iter();
        match (answer, descriptors.next()) {
            (Answer::Refused(sentence), _) => Err(Failure::new(sentence)),
            (Answer::Opened(opened), Some(disk)) => Ok(opened.replace(disk, descriptors.next()).0),
            _ => Err(Failure::new(format!(
                "{} cannot be opened: too many open files",
                path.display()
            ))),
        }
    }

    /// Reads the first block of a file, which may be on a file system that does not answer. Other errors are left to
    /// what opens the file.
    ///
    /// # Errors
    /// Fails with a message for the user if that takes longer than `limit`, or if no process can be started.
    pub(super) fn reach(&self, path: &Path, limit: Duration) -> Result<(), Failure> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let target = Target::File(path.clone());
        self.ask(&target, Task::Reach(path.clone()), &path, limit).map(drop)
    }

    /// Has a helper process do something.
    ///
    /// # Errors
    /// As [`Self::open`].
    fn ask(
        &self,
        target: &Target,
        task: Task,
        path: &Path,
        limit: Duration,
    ) -> Result<Answered, Failure> {
        let end = Instant::now() + limit;
        let answered = self.begin(target, end).and_then(|(child, socket)| {
            let answered = ask(&socket, &task, end);
            // It has answered, or ends when the disk responds: its answer is refused.
            child.into_iter().for_each(spawn::reap);
            answered
        });
        answered.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => silent(path),
            _ => {
                let (path, error) = (path.display(), spawn_error(&error));
                Failure::new(format!("{path} cannot be opened: {error}"))
            }
        })
    }

    /// Starts a helper process, once an earlier one for the same disk has ended.
    ///
    /// # Errors
    /// Fails if that does not end until `end`, or if none can be started.
    fn begin(&self, target: &Target, end: Instant) -> io::Result<Started> {
        loop {
            let mut helpers = self.running();
            let Some(other) = helpers.iter().find(|helper| helper.target == *target) else {
                let (child, socket) = (self.start)()?;
                let kept = socket.try_clone();
                match kept {
                    Ok(kept) => helpers.push(Helper { target: target.clone(), socket: kept }),
                    Err(error) => {
                        child.into_iter().for_each(spawn::reap);
                        return Err(error);
                    }
                }
                return Ok((child, socket));
            };
            let other = other.socket.try_clone()?;
            drop(helpers);
            if !has_ended(&other, end) {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    /// Replaces the helper processes by such as never answer, as if every disk hung, until
    /// [`tests::end_silent`] ends them.
    #[cfg(test)]
    pub(crate) fn silent(self) -> Self {
        Self { start: tests::silent_start, ..self }
    }

    /// Replaces the helper processes by such as end at once.
    #[cfg(test)]
    pub(crate) fn failing() -> Self {
        let start = || UnixStream::pair().map(|(own, _)| (None, own));
        Self { start, ..Self::default() }
    }

    /// Returns the helper processes that have not ended.
    fn running(&self) -> MutexGuard<'_, Vec<Helper>> {
        let mut helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        helpers.retain(|helper| !has_ended(&helper.socket, now));
        helpers
    }

    /// Returns whether a helper process for this block device has not ended: it may hold the device.
    pub(crate) fn is_opening(&self, number: DeviceNumber) -> bool {
        self.running().iter().any(|helper| helper.target == Target::Device(number))
    }

    /// Waits until no helper process may hold this block device.
    ///
    /// # Errors
    /// Fails with a message for the user if that takes longer than `limit`.
    pub(super) fn wait_for(
        &self,
        number: DeviceNumber,
        path: &Path,
        limit: Duration,
    ) -> Result<(), Failure> {
        let end = Instant::now() + limit;
        let is_it = |helper: &&Helper| helper.target == Target::Device(number);
        let socket = self.running().iter().find(is_it).map(|it| it.socket.try_clone());
        match socket {
            None => Ok(()),
            Some(Ok(socket)) if has_ended(&socket, end) => Ok(()),
            Some(_) => Err(silent(path)),
        }
    }
}

/// Returns why a disk is not lent that does not respond.
fn silent(path: &Path) -> Failure {
    let error = io::Error::from(ErrorKind::TimedOut);
    Failure::new(format!("{} is not lent: it does not answer", path.display())).caused_by(&error)
}

/// Waits until the other end of the socket is closed, at most until `end`. Returns whether it is.
fn has_ended(socket: &UnixStream, end: Instant) -> bool {
    let ended = retry_on_intr(|| {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
        // Only errors and hang-up are waited for: an answer may be there that is not received any more.
        poll(&mut [PollFd::new(socket, PollFlags::empty())], left.as_ref())
    });
    ended.is_ok_and(|ready| ready > 0)
}

/// Sends the task and waits for the answer, at most until `end`. Nothing can be received later.
fn ask(socket: &UnixStream, task: &Task, end: Instant) -> io::Result<Answered> {
    let (sender, mut receiver) = split(socket.try_clone()?, MAX_FRAME)?;
    sender.send(task, &[]).inspect_err(|_| drop(socket.shutdown(Shutdown::Both)))?;
    let is_late = !receiver.is_ready(end.saturating_duration_since(Instant::now()));
    // An answer from now on fails in the helper process, which closes the disk. One from before can be received.
    let _ = socket.shutdown(Shutdown::Read);
    receiver.receive()?.ok_or_else(|| match is_late {
        true => ErrorKind::TimedOut.into(),
        false => io::Error::other("the process that opens it has ended"),
    })
}

#[cfg(not(test))]
fn start() -> io::Result<Started> {
    spawn::with_socket("open").map(|(child, socket)| (Some(child), socket))
}

/// Starts a thread in place of the process: the executable of unit tests is another one.
#[cfg(test)]
fn start() -> io::Result<Started> {
    let (own, other) = UnixStream::pair()?;
    std::thread::spawn(move || answer(other));
    Ok((None, own))
}

/// `storagetm open`: opens one disk.
///
/// # Errors
/// Fails if it was not started by this program.
pub fn work() -> Result<(), Failure> {
    let input = io::stdin().as_fd().try_clone_to_owned().ok();
    let is_socket = |input: &OwnedFd| {
        getsockname(input).is_ok_and(|address| address.address_family() == AddressFamily::UNIX)
    };
    let socket = input.filter(is_socket).ok_or_else(|| {
        Failure::usage("storagetm open is a part of this program, which starts it by itself")
    })?;
    // If the other end has closed, it waits no longer, and the disk is closed again.
    let _ = answer(socket.into());
    Ok(())
}

fn answer(socket: UnixStream) -> io::Result<()> {
    let (sender, mut receiver) = split(socket, MAX_FRAME)?;
    let Some((task, _)) = receiver.receive::<Task>()? else { return Ok(()) };
    let question = match task {
        Task::Open(question) => question,
        Task::Reach(path) => {
            let _ = first_block(&path);
            return sender.send(&Answer::Reached, &[]);
        }
    };
    let Question { root, path, access, allow_in_use } = question;
    match linux::disk::open(&Tree::at(root), &path, access, allow_in_use) {
        Ok(opened) => {
            let places = opened.whole.as_ref().map(|_| ());
            let (opened, disk, whole) = opened.replace((), places);
            let descriptors: Vec<_> = [&disk].into_iter().chain(&whole).map(AsFd::as_fd).collect();
            sender.send(&Answer::Opened(opened), &descriptors)
        }
        Err(error) => sender.send(&Answer::Refused(home::refusal(&path, error).to_string()), &[]),
    }
}

/// Reads the first block of a regular file: not of a device, which may be in use, nor of a pipe, which would block.
fn first_block(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_file() {
        File::open(path)?.read_exact(&mut [0; 512])?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use testkit::Scratch;

    /// The helpers' ends of sockets, which nobody reads.
    static SILENT: Mutex<Vec<UnixStream>> = Mutex::new(Vec::new());

    fn question(folder: &Scratch, name: &str) -> Question {
        let (tree, path) = (Tree::at(&folder.0), folder.0.join(name));
        Question::new(&tree, &path, OpenFor::Writing, false).unwrap()
    }

    fn open(opener: &Opener, question: &Question) -> Result<Opened, Failure> {
        opener.open(question, None, Duration::from_secs(60))
    }

    pub(super) fn silent_start() -> io::Result<Started> {
        let (own, other) = UnixStream::pair()?;
        SILENT.lock().unwrap().push(other);
        Ok((None, own))
    }

    /// Ends the processes of silent openers, as if the disks responded at last.
    pub(crate) fn end_silent() {
        SILENT.lock().unwrap().clear();
    }

    #[test]
    fn r60_disk_that_hangs_in_open_has_one_helper_at_most() {
        static LATE: Mutex<Option<UnixStream>> = Mutex::new(None);
        let hangs = || {
            let (own, other) = UnixStream::pair()?;
            assert!(LATE.lock().unwrap().replace(other).is_none(), "a second helper");
            Ok((None, own))
        };
        let folder = Scratch::new();
        let number = DeviceNumber { major: 8, minor: 400 };
        let mut opener = Opener { start: hangs, ..Opener::default() };
        let question = question(&folder, "sdz");
        let short = Duration::from_millis(20);
        let open = |opener: &Opener| opener.open(&question, Some(number), short);
        let failure = open(&opener).unwrap_err();
        assert!(failure.is_timeout());
        assert!(failure.to_string().ends_with("/sdz is not lent: it does not answer"));
        assert!(opener.clone().is_opening(number));
        assert!(open(&opener).unwrap_err().is_timeout());
        assert!(opener.wait_for(number, &question.path, short).unwrap_err().is_timeout());
        // Opened too late, the disk is closed again, and can be opened.
        let late = LATE.lock().unwrap().take().unwrap();
        File::create(folder.0.join("sdz")).unwrap().set_len(1 << 20).unwrap();
        answer(late).unwrap_err();
        assert!(!opener.is_opening(number));
        opener.wait_for(number, &question.path, short).unwrap();
        opener.start = start;
        opener.open(&question, Some(number), Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn opened_disk_and_its_locks_are_passed() {
        let folder = Scratch::new();
        File::create(folder.0.join("sdz")).unwrap().set_len(1 << 20).unwrap();
        let (opener, question) = (Opener::default(), question(&folder, "sdz"));
        let opened = open(&opener, &question).unwrap();
        assert_eq!(
            (opened.bytes, opened.logical_block, opened.whole.is_none()),
            (1 << 20, 512, true)
        );
        let link = format!("/proc/self/fd/{}", opened.descriptor.as_raw_fd());
        assert_eq!(std::fs::read_link(link).unwrap(), opened.path);
        let refused = open(&opener, &question).unwrap_err();
        assert!(refused.to_string().contains("is locked by another program"), "{refused}");
        drop(opened);
        open(&opener, &question).unwrap();
    }

    #[test]
    fn descriptor_of_this_process_is_opened() {
        let folder = Scratch::new();
        let file = File::create(folder.0.join("disk")).unwrap();
        file.set_len(1 << 20).unwrap();
        for place in ["/proc/self/fd", "/dev/fd"] {
            let path = PathBuf::from(format!("{place}/{}", file.as_raw_fd()));
            let question = Question::new(&Tree::at("/"), &path, OpenFor::Reading, false).unwrap();
            assert!(question.path.starts_with(format!("/proc/{}/fd", std::process::id())));
            assert_eq!(open(&Opener::default(), &question).unwrap().path, folder.0.join("disk"));
        }
    }

    #[test]
    fn file_whose_server_does_not_answer_is_not_reached() {
        let folder = Scratch::new();
        let (path, short) = (folder.0.join("file"), Duration::from_millis(20));
        let hangs = Opener::default().silent().reach(&path, short).unwrap_err();
        assert!(hangs.is_timeout() && hangs.to_string().ends_with("it does not answer"), "{hangs}");
        // Whether it exists is found out by what opens it.
        Opener::default().reach(&path, Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn refusal_and_death_of_the_process_are_reported() {
        let folder = Scratch::new();
        let missing = open(&Opener::default(), &question(&folder, "none")).unwrap_err();
        assert!(missing.to_string().contains("there is no such disk"), "{missing}");
        let failure = open(&Opener::failing(), &question(&folder, "sdz")).unwrap_err();
        assert!(!failure.is_timeout(), "{failure}");
        assert!(failure.to_string().contains("/sdz cannot be opened: "), "{failure}");
    }
}
