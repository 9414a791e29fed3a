//! Opens a volume: attaches the disk of another machine, or takes one of this machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use daemon::device::Device;
use daemon::examine::{LIMIT, examine};
use failure::Failure;
use keys::record::Allowed;
use linux::block::{self, DeviceNumber, Disk};
use linux::disk::examine::is_busy;
use linux::fabrics::{Controller, controllers};
use linux::in_use::Machine;
use linux::reason::Asked;
use linux::tree::Tree;
use remote::machine;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use varlink::message::Reply;

use super::caller::Caller;
use super::interface::{AcquireInput, no_such_volume, read_only_volume, system_error};
use super::{Provider, report};
use crate::attach::{AttachError, Stage, attach_disks};
use crate::options::attach::Attach;

/// Attempts to lock a disk: two seconds.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Opens a volume for a caller. Returns its block device, and whether that is open for reading only.
///
/// # Errors
/// Fails with the reply.
pub(super) fn acquire(
    provider: &Provider,
    input: &AcquireInput,
    caller: Caller,
) -> Result<(OwnedFd, bool), Reply> {
    caller.may_acquire(&input.name, input.allow_interactive_authentication)?;
    // What is written is written by an explicit wish only.
    let writable = input.read_only == Some(false);
    let device = match input.name.split_once('/') {
        Some((machine, disk)) if !machine.is_empty() => {
            if disk.is_empty() || !(caller.is_root() || is_paired(provider, machine)) {
                return Err(no_such_volume());
            }
            remote_device(provider, &input.name, writable)?
        }
        _ => local_device(&input.name, writable)?,
    };
    input.check_type()?;
    Ok((device, !writable))
}

/// Returns whether this machine was paired with the other one. Others than root must not have this
/// machine connect to an address of their choice.
fn is_paired(provider: &Provider, machine: &str) -> bool {
    let known = machine::readable_targets(provider.keys.as_deref()).unwrap_or_default();
    known.iter().any(|target| target.matches(machine))
}

/// Attaches the disk of another machine, unless it is attached already, and opens it. For writing only if nothing
/// of this machine uses it.
fn remote_device(provider: &Provider, name: &str, writable: bool) -> Result<OwnedFd, Reply> {
    let options = Attach::of(name.to_owned(), provider.keys.clone(), provider.mdns_port);
    let (attached, failed) = attach_disks(&options).map_err(|error| refusal(name, &error))?;
    if let Some(failure) = failed {
        report(&format!("{name}: {failure}"));
        return Err(system_error(errno_of(&failure)));
    }
    let devices = attached.iter().flat_map(|disk| disk.devices.iter().map(|it| (&disk.nqn, it)));
    let (nqn, device) = only(name, devices.collect(), |(_, device)| &device.path)?;
    if writable && device.access == Allowed::ReadOnly {
        return Err(read_only_volume());
    }
    let tree = Tree::machine();
    let machine = snapshot(&tree)?;
    let disk = machine.disks.iter().find(|disk| disk.node == Path::new(&device.path));
    let disk = disk.ok_or_else(|| system_error(Errno::NODEV))?;
    if writable {
        check_use(name, &tree, &machine, (disk, true))?;
    }
    let opened = open_judged(&tree, disk, writable)?;
    // The device may be of another connection by now. While it is open, its number is not used again.
    let is_its = |known: &Controller| known.subsystem == *nqn && known.disks.contains(&disk.name);
    if !controllers(&tree).iter().any(is_its) {
        return Err(system_error(Errno::NODEV));
    }
    if writable {
        lock(&opened, &disk.node)?;
        check_unheld(&tree, disk)?;
    }
    Ok(opened)
}

/// Returns the only device of a volume.
///
/// # Errors
/// Fails with the reply if there is none, or more than one: a name must not stand for any of several disks.
fn only<T>(name: &str, devices: Vec<T>, path: impl Fn(&T) -> &str) -> Result<T, Reply> {
    if devices.is_empty() {
        report(&format!("{name} is connected, but its disk has not come yet"));
        return Err(system_error(Errno::TIMEDOUT));
    }
    let paths = devices.iter().map(path).collect::<Vec<_>>().join(", ");
    let count = devices.len();
    devices.into_iter().next().filter(|_| count == 1).ok_or_else(|| {
        report(&format!("{name} is not given away: it is not one disk but {count} ({paths})"));
        system_error(Errno::NOTUNIQ)
    })
}

fn refusal(name: &str, error: &AttachError) -> Reply {
    report(&format!("{name}: {}", error.failure));
    match error.stage {
        Stage::Disk => no_such_volume(),
        Stage::Machine if error.failure.status() != 3 => system_error(Errno::HOSTUNREACH),
        Stage::Machine | Stage::Setup => system_error(errno_of(&error.failure)),
    }
}

/// Returns the error of the kernel that is nearest to a failure.
fn errno_of(failure: &Failure) -> Errno {
    if failure.status() == 3 { Errno::ACCESS } else { Errno::IO }
}

/// Opens a disk of this machine that is not in use.
fn local_device(name: &str, writable: bool) -> Result<OwnedFd, Reply> {
    let tree = Tree::machine();
    let machine = snapshot(&tree)?;
    let disk = machine.disks.iter().find(|disk| disk.bytes > 0 && disk.has_name(name));
    let disk = disk.ok_or_else(no_such_volume)?;
    check_use(name, &tree, &machine, (disk, writable))?;
    let opened = open_judged(&tree, disk, writable)?;
    if writable {
        lock(&opened, &disk.node)?;
    }
    check_unheld(&tree, disk)?;
    Ok(opened)
}

fn snapshot(tree: &Tree) -> Result<Machine, Reply> {
    Machine::snapshot(tree).map_err(|error| {
        report(&format!("the disks of this machine cannot be listed: {error}"));
        system_error(Errno::IO)
    })
}

/// Succeeds if nothing uses the disk; with `writable` also only if it may be written to.
fn check_use(
    name: &str,
    tree: &Tree,
    machine: &Machine,
    (disk, writable): (&Disk, bool),
) -> Result<(), Reply> {
    let findings = examine(tree, machine.examined_for(disk), |_| LIMIT);
    let verdict = machine.judge(disk, &findings);
    if !verdict.allows(Asked::ByName) {
        let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
        report(&format!("{name} is not given away: {}", reasons.join(", ")));
        return Err(system_error(Errno::BUSY));
    }
    if writable && (disk.read_only || !verdict.allows_writing(false)) {
        return Err(read_only_volume());
    }
    Ok(())
}

/// Opens a disk. Fails if its name or number is that of another one by now.
fn open_judged(tree: &Tree, disk: &Disk, writable: bool) -> Result<OwnedFd, Reply> {
    let opened = open(&disk.path(tree), writable)?;
    let now = block::by_number(tree, disk.number);
    let is_same = now.is_some_and(|now| Device::of(&now) == Device::of(disk));
    match is_same && number_of(&opened) == Some(disk.number) {
        true => Ok(opened),
        false => Err(system_error(Errno::NODEV)),
    }
}

/// Locks a disk that is open for writing (flock(2)): no other caller gets it for writing until the descriptor, which the
/// caller gets, is closed. udev holds the lock while it probes a disk; that is waited for.
fn lock(device: &OwnedFd, path: &Path) -> Result<(), Reply> {
    for _ in 0..LOCK_TRIES {
        match flock(device, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => thread::sleep(LOCK_PAUSE),
            Err(errno) => return Err(system_error(errno)),
        }
    }
    report(&format!(
        "{} is not given away for writing: another program has locked it",
        path.display()
    ));
    Err(system_error(Errno::BUSY))
}

/// Succeeds unless the kernel or a program holds the disk exclusively, for which it may have been opened since it
/// was judged.
fn check_unheld(tree: &Tree, disk: &Disk) -> Result<(), Reply> {
    match is_busy(&disk.path(tree)) {
        Ok(false) => Ok(()),
        Ok(true) => {
            report(&format!("{} is not given away: it is in use by now", disk.name));
            Err(system_error(Errno::BUSY))
        }
        Err(error) => Err(system_error(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
    }
}

fn number_of(device: &OwnedFd) -> Option<DeviceNumber> {
    let number = rustix::fs::fstat(device).ok()?.st_rdev;
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    Some(DeviceNumber { major, minor })
}

fn open(path: &Path, writable: bool) -> Result<OwnedFd, Reply> {
    open_block(path, writable).map(OwnedFd::from).map_err(|error| {
        report(&format!("{} cannot be opened: {error}", path.display()));
        match Errno::from_io_error(&error) {
            Some(Errno::ROFS | Errno::PERM) if writable => read_only_volume(),
            errno => system_error(errno.unwrap_or(Errno::IO)),
        }
    })
}

/// Opens a block device.
fn open_block(path: &Path, writable: bool) -> io::Result<File> {
    let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits();
    let flags = i32::try_from(flags).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path)?;
    match file.metadata()?.file_type().is_block_device() {
        true => Ok(file),
        false => Err(Errno::NOTBLK.into()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_block_devices_are_given_away() {
        for path in ["/dev/null", "/proc/self/stat", "/"] {
            let error = open_block(Path::new(path), false).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTBLK), "{path}");
        }
    }

    #[test]
    fn volume_is_never_one_of_several_disks() {
        let devices = |count| ["/dev/nvme1n1", "/dev/nvme1n2"][..count].to_vec();
        let of = |count| only("desk/a", devices(count), |path| path);
        assert_eq!(of(0), Err(system_error(Errno::TIMEDOUT)));
        assert_eq!(of(1), Ok("/dev/nvme1n1"));
        assert_eq!(of(2), Err(system_error(Errno::NOTUNIQ)));
    }

    #[test]
    fn failures_are_told_apart() {
        let reply = |stage, failure| refusal("desk/a", &AttachError { stage, failure });
        let refused = Failure::refused("x");
        assert_eq!(reply(Stage::Disk, refused.clone()), no_such_volume());
        assert_eq!(reply(Stage::Machine, refused.clone()), system_error(Errno::ACCESS));
        assert_eq!(reply(Stage::Machine, Failure::new("x")), system_error(Errno::HOSTUNREACH));
        assert_eq!(reply(Stage::Setup, Failure::new("x")), system_error(Errno::IO));
    }
}
