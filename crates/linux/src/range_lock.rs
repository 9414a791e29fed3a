//! Byte-range locks (fcntl(2)): detects those of other programs on a disk or an image, and holds
//! our own.
//!
//! They are open file description locks: they stay with the descriptor when it is passed to another
//! process, and conflict with POSIX locks of processes. The scheme is QEMU's
//! (`block/file-posix.c`): every permission is a bit; a program that uses it holds a shared lock on
//! byte 100 + bit, a program that does not share it one on byte 200 + bit.

use crate::syscall::{Conflict, RangeLock, conflict, lock_range};
use crate::tree::Tree;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::Metadata;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

/// The access for which a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenFor {
    /// Read-only.
    Reading,
    /// Reading and writing.
    Writing,
}

/// The first byte of QEMU's used permissions.
const TAKEN: i64 = 100;
/// The first byte of QEMU's unshared permissions.
const UNSHARED: i64 = 200;
/// After the last byte that QEMU locks.
const BEYOND_QEMU: i64 = 300;
/// Reads data that others do not change.
const CONSISTENT_READ: i64 = 0;
/// Changes data.
const WRITE: i64 = 1;
/// Changes the size.
const RESIZE: i64 = 3;

/// The bytes that we lock, besides the first: that is for POSIX lockers of the whole file, and is
/// what libvirt's virtlockd locks. The second byte is not locked: libvirt waits for it.
const READING: [i64; 2] = [TAKEN + CONSISTENT_READ, UNSHARED + WRITE];
const WRITING: [i64; 4] =
    [TAKEN + CONSISTENT_READ, TAKEN + WRITE, UNSHARED + WRITE, UNSHARED + RESIZE];

/// Bytes whose QEMU locks forbid others to read: the program writes, or does not share reading.
const FORBIDS_READING: [i64; 3] = [TAKEN + WRITE, TAKEN + RESIZE, UNSHARED + CONSISTENT_READ];

/// Another program that holds locks on a disk or an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process identifier, if it can be determined.
    pub process: Option<u32>,
    /// The name of the process.
    pub name: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another program")?;
        match (self.process, &self.name) {
            (Some(process), Some(name)) => write!(f, " (process {process}, {name})"),
            (Some(process), None) => write!(f, " (process {process})"),
            _ => Ok(()),
        }
    }
}

/// Why the locks cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Another program holds conflicting locks.
    #[error("in use by {0}")]
    Held(Holder),
    /// A system error.
    #[error("cannot be locked: {0}")]
    System(Errno),
}

/// Takes the locks for reading or writing `file`, held until its open file description is closed.
/// Does not block.
///
/// For writing, `file` must be open for reading and writing, and no other program may have locked
/// any byte. For reading, it must be open for reading, and the locks of other programs must not
/// show that they write; locks of readers do not conflict. If the kernel or the file system does
/// not support such locks, nothing is locked and no conflict is found.
///
/// # Errors
/// Fails if another program holds conflicting locks, or on a system error. Then nothing is locked.
pub fn claim(tree: &Tree, file: impl AsFd, access: OpenFor) -> Result<(), LockError> {
    let file = file.as_fd();
    // Lock first, then check: of two programs that do this at once, at least one finds the locks of
    // the other.
    let found = take(file, access).and_then(|is_free| {
        let other = match access {
            OpenFor::Writing => conflict(file, RangeLock::Write, 0, 0),
            OpenFor::Reading => writer(file),
        };
        Ok((is_free, other?))
    });
    let error = match found {
        Ok((true, None)) => return Ok(()),
        Err(Errno::INVAL | Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        // A lock that was released meanwhile is a conflict all the same.
        Ok((false, None)) => LockError::Held(Holder::default()),
        Ok((_, Some(lock))) => LockError::Held(holder(tree, file, lock)),
        Err(error) => LockError::System(error),
    };
    // Unlocks also the bytes that were not locked.
    let _ = lock_range(file, RangeLock::Unlocked, 0, 0);
    Err(error)
}

/// Takes the locks. Returns whether no other program holds one of them.
fn take(file: BorrowedFd<'_>, access: OpenFor) -> Result<bool, Errno> {
    let (first, shared) = match access {
        OpenFor::Reading => (RangeLock::Read, &READING[..]),
        OpenFor::Writing => (RangeLock::Write, &WRITING[..]),
    };
    let locks = shared.iter().map(|byte| (RangeLock::Read, *byte));
    for (kind, byte) in std::iter::once((first, 0)).chain(locks) {
        match lock_range(file, kind, byte, 1) {
            Ok(()) => {}
            Err(Errno::ACCESS | Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Returns the lock of a program that writes. A shared lock on other bytes than QEMU's is that of a
/// reader.
fn writer(file: BorrowedFd<'_>) -> Result<Option<Conflict>, Errno> {
    if let Some(found) = conflict(file, RangeLock::Read, 0, 0)? {
        return Ok(Some(found));
    }
    for byte in FORBIDS_READING {
        let found = conflict(file, RangeLock::Write, byte, 1)?;
        let of_qemu = |lock: &Conflict| {
            let end = lock.start.saturating_add(lock.len);
            lock.start >= TAKEN && lock.len > 0 && end <= BEYOND_QEMU
        };
        if let Some(found) = found.filter(of_qemu) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Returns the process that holds the lock.
fn holder(tree: &Tree, file: BorrowedFd<'_>, lock: Conflict) -> Holder {
    let known = u32::try_from(lock.process).ok().filter(|process| *process > 0);
    let process = known.or_else(|| find_holder(tree, file));
    let name = process.and_then(|process| tree.attribute(format!("proc/{process}/comm")));
    Holder { process, name: name.map(|name| name.escape_default().to_string()) }
}

/// The kernel does not report the process of an open file description lock: searches for one that
/// has such a lock on this file.
fn find_holder(tree: &Tree, file: BorrowedFd<'_>) -> Option<u32> {
    let own = file.try_clone_to_owned().ok().map(std::fs::File::from)?.metadata().ok()?;
    let this = std::process::id();
    let numbers = tree.names("proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    numbers.filter(|process| *process != this).find(|process| has_locked(tree, *process, &own))
}

fn has_locked(tree: &Tree, process: u32, file: &Metadata) -> bool {
    let same = |other: &Metadata| (other.dev(), other.ino()) == (file.dev(), file.ino());
    // A lock in the format of proc(5): `lock: 1: OFDLCK ADVISORY WRITE -1 08:01:1234 0 EOF`. The
    // device is not compared: that of a btrfs subvolume differs from the one that its files report.
    let inode = format!(":{} ", file.ino());
    let is_locked = |number: &str| {
        let info = tree.text(format!("proc/{process}/fdinfo/{number}")).unwrap_or_default();
        info.lines().any(|line| {
            line.starts_with("lock:") && line.contains("OFDLCK") && line.contains(&inode)
        })
    };
    let numbers = tree.names(format!("proc/{process}/fd")).into_iter();
    numbers.into_iter().any(|number| {
        // `stat` is called only for files of this inode: others may be on a file server that does
        // not respond.
        let open = || tree.path(format!("proc/{process}/fd/{number}")).metadata();
        is_locked(&number) && open().is_ok_and(|open| same(&open))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;
    use std::fs::{File, OpenOptions};
    use std::io::{BufRead, BufReader};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Stdio};

    /// A process that locks `bytes` of a file; killed on drop.
    struct Locker(Child);

    impl Locker {
        /// Prints why and returns `None` without Python. `how` is `OFD` or `POSIX`, `kind` `RDLCK`
        /// or `WRLCK`.
        fn new(path: &Path, how: &str, kind: &str, bytes: &[(i64, i64)]) -> Option<Self> {
            let script = format!(
                "import fcntl, struct, sys\n\
                 f = open(sys.argv[1], 'r+b')\n\
                 for start, length in {bytes:?}:\n \
                 lock = struct.pack('hhqqi4x', fcntl.F_{kind}, 0, start, length, 0)\n \
                 fcntl.fcntl(f, 37 if '{how}' == 'OFD' else fcntl.F_SETLK, lock)\n\
                 print('locked', flush=True)\n\
                 sys.stdin.read()\n"
            );
            if programs::lacks("byte-range locks of others", &["python3"]) {
                return None;
            }
            let mut python = programs::command("python3");
            python.args(["-c", &script]).arg(path);
            let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "locked\n");
            Some(Self(child))
        }
    }

    impl Drop for Locker {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            self.0.wait().unwrap();
        }
    }

    fn image(fake: &Fake) -> PathBuf {
        fake.file("image", [0; 4096]).root.join("image")
    }

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    fn try_claim(path: &Path, access: OpenFor) -> Result<File, LockError> {
        let file = open(path);
        claim(&Tree::machine(), &file, access).map(|()| file)
    }

    #[track_caller]
    fn assert_held_by(result: Result<File, LockError>, locker: &Locker) {
        let Err(LockError::Held(holder)) = result else { panic!("{result:?}") };
        assert_eq!(holder.process, Some(locker.0.id()));
        let text = holder.to_string();
        let process = format!("another program (process {}, python", locker.0.id());
        assert!(text.starts_with(&process), "{text}");
    }

    const WHOLE: &[(i64, i64)] = &[(0, 0)];

    #[test]
    fn r57_any_lock_of_another_program_prevents_writing() {
        let fake = Fake::new();
        let path = image(&fake);
        for how in ["OFD", "POSIX"] {
            for (kind, bytes) in [
                ("WRLCK", WHOLE),
                ("RDLCK", WHOLE),
                ("RDLCK", &[(100, 1)]),
                ("WRLCK", &[(4000, 9)]),
            ] {
                let Some(locker) = Locker::new(&path, how, kind, bytes) else { return };
                assert_held_by(try_claim(&path, OpenFor::Writing), &locker);
                drop(locker);
                try_claim(&path, OpenFor::Writing).unwrap();
            }
        }
    }

    #[test]
    fn r57_writer_prevents_reading_and_reader_does_not() {
        let fake = Fake::new();
        let path = image(&fake);
        // QEMU's locks on an image that its guest writes to, and on one that it only reads.
        let writer: &[(i64, i64)] = &[(100, 1), (101, 1), (103, 1), (201, 1), (203, 1)];
        let reader: &[(i64, i64)] = &[(100, 1), (201, 1), (203, 1)];
        for (how, kind, bytes, free) in [
            ("OFD", "RDLCK", writer, false),
            ("POSIX", "RDLCK", writer, false),
            ("OFD", "WRLCK", &[(4000, 9)][..], false),
            ("POSIX", "WRLCK", WHOLE, false),
            ("OFD", "RDLCK", &[(200, 1)][..], false),
            ("OFD", "RDLCK", reader, true),
            ("OFD", "RDLCK", WHOLE, true),
            ("POSIX", "RDLCK", WHOLE, true),
        ] {
            let Some(locker) = Locker::new(&path, how, kind, bytes) else { return };
            let result = try_claim(&path, OpenFor::Reading);
            match free {
                true => drop(result.unwrap()),
                false => assert_held_by(result, &locker),
            }
        }
    }

    /// Whether another program would find a conflict.
    fn seen(path: &Path, kind: RangeLock, start: i64, len: i64) -> bool {
        conflict(open(path).as_fd(), kind, start, len).unwrap().is_some()
    }

    #[test]
    fn r57_our_locks_conflict_with_qemu_and_posix_locks() {
        let fake = Fake::new();
        let path = image(&fake);
        let reading = try_claim(&path, OpenFor::Reading).unwrap();
        assert!(seen(&path, RangeLock::Write, 0, 0) && !seen(&path, RangeLock::Read, 0, 0));
        // A writing QEMU tests byte 201, a reading one 101 and 200.
        let asked = |byte| seen(&path, RangeLock::Write, byte, 1);
        assert!(asked(201) && !asked(101) && !asked(200));
        let again = try_claim(&path, OpenFor::Reading).unwrap();
        assert!(matches!(try_claim(&path, OpenFor::Writing), Err(LockError::Held(_))));
        drop(again);
        assert!(asked(201), "one that could not have it has taken nothing away");
        // The lock stays with the descriptor, also in another process.
        let handed = reading.try_clone().unwrap();
        drop(reading);
        assert!(asked(201));
        drop(handed);
        assert!(!seen(&path, RangeLock::Write, 0, 0));
        let writing = try_claim(&path, OpenFor::Writing).unwrap();
        assert!(seen(&path, RangeLock::Read, 0, 0) && asked(101) && asked(201));
        assert!(!seen(&path, RangeLock::Write, 1, 1), "libvirt waits for this one");
        assert!(matches!(try_claim(&path, OpenFor::Reading), Err(LockError::Held(_))));
        drop(writing);
    }

    #[test]
    fn files_of_other_inodes_are_not_accessed() {
        let fake = Fake::new();
        let path = image(&fake);
        let file = File::open(&path).unwrap().metadata().unwrap();
        fake.file("proc/9/fd/other", "");
        std::os::unix::fs::symlink(&path, fake.root.join("proc/9/fd/3")).unwrap();
        for (inode, locked) in [(file.ino(), true), (file.ino() + 1, false)] {
            let line = format!("lock:\t1: OFDLCK ADVISORY  WRITE -1 00:13:{inode} 0 EOF\n");
            fake.file("proc/9/fdinfo/3", line);
            assert_eq!(has_locked(&fake.tree(), 9, &file), locked);
        }
    }

    #[test]
    fn r57_failure_to_lock_is_an_error() {
        let fake = Fake::new();
        let file = File::open(image(&fake)).unwrap();
        let result = claim(&Tree::machine(), &file, OpenFor::Writing);
        assert_eq!(result, Err(LockError::System(Errno::BADF)));
    }
}
