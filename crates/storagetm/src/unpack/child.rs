//! `storagetm unpack`: the process that unpacks a file. It drops its privileges before it reads any
//! of it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use filesystem::{Container, virtual_disk};
use linux::sandbox;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::UNKNOWN_LENGTH;
use failure::Failure;

/// Memory limit, against crafted files.
const MAX_MEMORY: u64 = 1 << 30;

/// Writes the length and the content of the file on standard input to standard output, and an error
/// message to standard error.
///
/// # Errors
/// Fails if it was not started by storagetm. Exits with status 1 if the file cannot be unpacked
/// completely.
pub(crate) fn work(format: &str) -> Result<(), Failure> {
    let not_started_by_us =
        || Failure::usage("storagetm unpack is a part of storagetm copy, which starts it");
    let container = Container::from_name(format).ok_or_else(not_started_by_us)?;
    let own = |stream: std::os::fd::BorrowedFd<'_>| stream.try_clone_to_owned().map(File::from);
    let input = own(io::stdin().as_fd()).map_err(|_| not_started_by_us())?;
    let output = own(io::stdout().as_fd()).map_err(|_| not_started_by_us())?;
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    // Best effort: each restriction that the kernel lacks is backed by the others.
    let _ = sandbox::drop_privileges(parent);
    let _ = sandbox::restrict_files();
    let _ =
        setrlimit(Resource::As, Rlimit { current: Some(MAX_MEMORY), maximum: Some(MAX_MEMORY) });
    let _ = sandbox::restrict_syscalls();
    if let Err(error) = unpack(container, &input, output) {
        let _ = io::stderr().write_all(error.to_string().as_bytes());
        std::process::exit(1);
    }
    Ok(())
}

fn unpack(container: Container, input: &File, output: File) -> io::Result<()> {
    let mut output = Output { output, length: Some(UNKNOWN_LENGTH) };
    if container.is_virtual_disk() {
        let disk = virtual_disk::open(container, input, input.metadata()?.len())?;
        output.length = Some(disk.bytes());
        disk.write_to(input, &mut output)?;
    } else {
        filesystem::unpack(container, input, &mut output)?;
    }
    output.begin()
}

/// The content, preceded by its length, which is written once the first bytes are known to be
/// valid.
struct Output {
    output: File,
    length: Option<u64>,
}

impl Output {
    fn begin(&mut self) -> io::Result<()> {
        match self.length.take() {
            Some(length) => self.output.write_all(&length.to_le_bytes()),
            None => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begin()?;
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
