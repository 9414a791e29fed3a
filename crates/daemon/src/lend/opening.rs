//! Opens block devices in a helper process (`storagetm open`). A disk can stop responding after it was examined, and a
//! process that is blocked in open(2) on it cannot exit: the process that serves all other disks must not be.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use failure::{Failure, spawn_error};
use ipc::channel::split;
use ipc::spawn;
use linux::disk::{OpenFor, Opened};
use linux::tree::Tree;
use rustix::net::{AddressFamily, getsockname};
use serde::{Deserialize, Serialize};

use super::{LendOptions, home};
use crate::examine::{LIMIT, Started};

/// Longest message in bytes.
const MAX_FRAME: usize = 1 << 16;

/// Which disk to open, and how: the arguments of [`linux::disk::open`].
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    root: PathBuf,
    path: PathBuf,
    access: OpenFor,
    allow_in_use: bool,
}

/// Opens a disk or a file. A process that is blocked on a file can be killed: it is opened in this one.
///
/// # Errors
/// Fails with a message for the user; its cause is a timeout if a block device does not respond within [`LIMIT`].
pub(super) fn open(
    options: &LendOptions,
    path: &Path,
    access: OpenFor,
    is_block: bool,
) -> Result<Opened, Failure> {
    let (tree, allow_in_use) = (&options.tree, options.allow_in_use);
    if !is_block {
        let opened = linux::disk::open(tree, path, access, allow_in_use);
        return opened.map_err(|error| home::refusal(path, error));
    }
    let question = Question::new(tree, path, access, allow_in_use);
    question.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?.open()
}

/// An open disk, whose descriptors are sent with the message, or a sentence why not.
type Answer = Result<Opened<()>, String>;

impl Question {
    /// # Errors
    /// Fails if `path` is relative and the working directory does not exist.
    fn new(tree: &Tree, path: &Path, access: OpenFor, allow_in_use: bool) -> io::Result<Self> {
        // The helper process has another working directory.
        let path = std::path::absolute(path)?;
        Ok(Self { root: tree.path("/"), path, access, allow_in_use })
    }

    /// Opens the disk in a helper process.
    ///
    /// # Errors
    /// As [`open`].
    fn open(&self) -> Result<Opened, Failure> {
        self.open_with(start, LIMIT)
    }

    fn open_with(
        &self,
        start: fn() -> io::Result<Started>,
        limit: Duration,
    ) -> Result<Opened, Failure> {
        let path = self.path.display();
        let failed = |error: &io::Error| {
            Failure::new(format!("{path} cannot be opened: {}", spawn_error(error)))
        };
        let (child, socket) = start().map_err(|error| failed(&error))?;
        let answer = self.ask(socket, limit);
        // It has answered, or it exits when the disk responds: the socket is closed.
        child.into_iter().for_each(spawn::reap);
        match answer {
            Ok(opened) => opened.map_err(Failure::new),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                Err(Failure::new(format!("{path} is not lent: it does not answer"))
                    .caused_by(&error))
            }
            Err(error) => Err(failed(&error)),
        }
    }

    fn ask(&self, socket: UnixStream, limit: Duration) -> io::Result<Result<Opened, String>> {
        let (sender, mut receiver) = split(socket, MAX_FRAME)?;
        sender.send(self, &[])?;
        if !receiver.is_ready(limit) {
            return Err(ErrorKind::TimedOut.into());
        }
        let Some((answer, descriptors)) = receiver.receive::<Answer>()? else {
            return Err(io::Error::other("the process that opens it has ended"));
        };
        let mut descriptors = descriptors.into_iter();
        let opened = match (answer, descriptors.next()) {
            (Err(sentence), _) => return Ok(Err(sentence)),
            (Ok(opened), Some(disk)) => opened.replace(disk, descriptors.next()).0,
            (Ok(_), None) => return Err(io::Error::other("too many open files")),
        };
        Ok(Ok(opened))
    }
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
    let Some((question, _)) = receiver.receive::<Question>()? else { return Ok(()) };
    let Question { root, path, access, allow_in_use } = question;
    match linux::disk::open(&Tree::at(root), &path, access, allow_in_use) {
        Ok(opened) => {
            let places = opened.whole.as_ref().map(|_| ());
            let (opened, disk, whole) = opened.replace((), places);
            let descriptors: Vec<_> = [&disk].into_iter().chain(&whole).map(AsFd::as_fd).collect();
            sender.send(&Answer::Ok(opened), &descriptors)
        }
        Err(error) => sender.send(&Answer::Err(home::refusal(&path, error).to_string()), &[]),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;
    use testkit::Scratch;

    /// The helper's end of a socket, which nobody reads.
    static SILENT: Mutex<Option<UnixStream>> = Mutex::new(None);

    fn question(folder: &Scratch, name: &str) -> Question {
        let (tree, path) = (Tree::at(&folder.0), folder.0.join(name));
        Question::new(&tree, &path, OpenFor::Writing, false).unwrap()
    }

    #[test]
    fn r60_disk_that_hangs_in_open_is_not_lent() {
        fn start() -> io::Result<Started> {
            let (own, other) = UnixStream::pair()?;
            *SILENT.lock().unwrap() = Some(other);
            Ok((None, own))
        }
        let folder = Scratch::new();
        let failure =
            question(&folder, "sdz").open_with(start, Duration::from_millis(20)).unwrap_err();
        assert!(failure.is_timeout());
        assert!(failure.to_string().ends_with("/sdz is not lent: it does not answer"));
        // Opened too late, the disk is closed again.
        let late = SILENT.lock().unwrap().take().unwrap();
        let disk = File::create(folder.0.join("sdz")).unwrap();
        disk.set_len(1 << 20).unwrap();
        answer(late).unwrap_err();
        question(&folder, "sdz").open().unwrap();
    }

    #[test]
    fn opened_disk_and_its_locks_are_passed() {
        let folder = Scratch::new();
        File::create(folder.0.join("sdz")).unwrap().set_len(1 << 20).unwrap();
        let opened = question(&folder, "sdz").open().unwrap();
        assert_eq!(
            (opened.bytes, opened.logical_block, opened.whole.is_none()),
            (1 << 20, 512, true)
        );
        let link = format!("/proc/self/fd/{}", opened.descriptor.as_raw_fd());
        assert_eq!(std::fs::read_link(link).unwrap(), opened.path);
        let refused = question(&folder, "sdz").open().unwrap_err();
        assert!(refused.to_string().contains("is locked by another program"), "{refused}");
        drop(opened);
        question(&folder, "sdz").open().unwrap();
    }

    #[test]
    fn refusal_and_death_of_the_process_are_reported() {
        let folder = Scratch::new();
        let missing = question(&folder, "none").open().unwrap_err();
        assert!(missing.to_string().contains("there is no such disk"), "{missing}");
        let dead = || UnixStream::pair().map(|(own, _)| (None, own));
        let failure = question(&folder, "sdz").open_with(dead, LIMIT).unwrap_err();
        assert!(!failure.is_timeout(), "{failure}");
        assert!(failure.to_string().contains("/sdz cannot be opened: "), "{failure}");
    }
}
