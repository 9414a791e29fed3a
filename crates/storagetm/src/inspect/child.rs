//! `storagetm inspect`: the process that parses a disk's contents. It drops its privileges before
//! it reads any of it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use linux::gpt::{Shape, fitted};
use linux::medium::ReadAt;
use linux::sandbox;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::protocol::{self, Findings, Message, Reply, Request, Task};
use failure::Failure;

/// Memory limit, against crafted structures.
const MAX_MEMORY: u64 = 4 << 30;

/// Serves one request.
///
/// # Errors
/// Fails if it was not started by storagetm.
pub(crate) fn work() -> Result<(), Failure> {
    let not_started_by_us =
        || Failure::usage("storagetm inspect is a part of storagetm copy, which starts it");
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|_| not_started_by_us())?;
    rustix::net::getsockname(&socket).map_err(|_| not_started_by_us())?;
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    // Best effort: each restriction that the kernel lacks is backed by the others.
    let _ = sandbox::drop_privileges(parent);
    let _ = sandbox::restrict_files();
    let _ =
        setrlimit(Resource::As, Rlimit { current: Some(MAX_MEMORY), maximum: Some(MAX_MEMORY) });
    let _ = sandbox::restrict_syscalls();
    let _ = run_inspection(&socket.into());
    Ok(())
}

/// The disk, read through the parent process.
struct Disk<'a>(Mutex<&'a UnixStream>);

impl ReadAt for Disk<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let len = buffer.len().min(protocol::MAX_READ);
        Message::Read { offset, len }.emit(&mut *socket)?;
        protocol::receive_data(&mut *socket, buffer)
    }
}

/// Executes the parent's request.
pub(super) fn run_inspection(mut socket: &UnixStream) -> io::Result<()> {
    let request = Request::parse(&mut socket)?;
    let disk = Disk(Mutex::new(socket));
    let bytes = request.bytes;
    let reply = match &request.task {
        Task::Usage => filesystem::usage(&disk, bytes).map(Findings::Usage),
        Task::Owners(ranges) => filesystem::owners(&disk, bytes, ranges).map(Findings::Owners),
        Task::Survey(block) => {
            let block = Some(*block).filter(|block| *block != 0);
            filesystem::survey(&disk, bytes, block).map(Findings::Survey)
        }
        Task::Loaders => filesystem::loaders(&disk, bytes).map(Findings::Loaders),
        Task::Fit(block, to, edit) => {
            let fitted = fitted(&disk, Shape { block: *block, bytes }, *to, edit);
            fitted.map(|fitted| Findings::Fit(fitted.map_err(|unfit| unfit.to_string())))
        }
    };
    let trouble = |error: io::Error| Reply::Error(format!("the disk cannot be read: {error}"));
    let reply = reply.map_or_else(trouble, Reply::Findings);
    Message::Reply(reply).emit(&mut socket)
}
