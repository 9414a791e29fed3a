//! `storagetm recognize`: the process that reads the headers of a disk. It drops its privileges before it reads
//! any of it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use failure::Failure;
use linux::{home, sandbox};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{HOME, NO_HOME};

/// Limits against crafted disks: memory in bytes, and processor time in seconds.
const MAX_MEMORY: u64 = 256 << 20;
const MAX_TIME: u64 = 20;

/// Reads the disk on standard input. Writes to standard error [`HOME`], whose home it is, and the digits of the UUID
/// of its volume; [`NO_HOME`]; or why it cannot be read.
///
/// # Errors
/// Fails if it was not started by storagetm. Exits with status 1 if the disk cannot be read.
pub fn work() -> Result<(), Failure> {
    let disk = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let disk = disk.map_err(|_| {
        Failure::usage("storagetm recognize is a part of storagetm serve, which starts it")
    })?;
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    // Best effort: each restriction that the kernel lacks is backed by the others.
    let _ = sandbox::drop_privileges(parent);
    let _ = sandbox::restrict_files();
    for (resource, most) in
        [(Resource::As, MAX_MEMORY), (Resource::Fsize, 0), (Resource::Cpu, MAX_TIME)]
    {
        let limits = Rlimit { current: Some(most), maximum: Some(most.saturating_add(5)) };
        let _ = setrlimit(resource, limits);
    }
    let _ = sandbox::restrict_syscalls();
    let (message, status) = match home::find(&disk) {
        Ok(Some(home)) => {
            (format!("{HOME} {} {:032x}", home.user, u128::from_be_bytes(home.uuid)), 0)
        }
        Ok(None) => (NO_HOME.to_owned(), 0),
        Err(error) => (error.to_string(), 1),
    };
    let _ = io::stderr().write_all(message.as_bytes());
    std::process::exit(status)
}
