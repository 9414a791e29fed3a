//! `storagetm inspect`: the process that looks at what is on a disk. It gives its rights away before it sees a byte of it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use linux::gpt::{Shape, fitted};
use linux::medium::ReadAt;
use linux::sandbox;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::words::{self, Order, Said, Seen, Sight, Task};
use failure::Failure;

/// Bytes of memory that it may have: what a disk says of itself must not cost more.
const MEMORY: u64 = 4 << 30;

/// Looks, until it has said what it has seen.
///
/// # Errors
/// It was not started by storagetm.
pub(crate) fn work() -> Result<(), Failure> {
    let stranger =
        || Failure::usage("storagetm inspect is a part of storagetm copy, which starts it");
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|_| stranger())?;
    rustix::net::getsockname(&socket).map_err(|_| stranger())?;
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    // What a kernel lacks of this is no reason not to look: the others hold.
    let _ = sandbox::drop_privileges(parent);
    let _ = sandbox::restrict_files();
    let _ = setrlimit(Resource::As, Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) });
    let _ = sandbox::restrict_syscalls();
    // Nobody is there to be told.
    let _ = look(&socket.into());
    Ok(())
}

/// The other process's disk, as far as it gives it.
struct Disk<'a>(Mutex<&'a UnixStream>);

impl ReadAt for Disk<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let len = buffer.len().min(words::LONGEST_READ);
        Said::Read { offset, len }.emit(&mut *socket)?;
        words::answered(&mut *socket, buffer)
    }
}

/// Does what the other process wants to know.
pub(super) fn look(mut socket: &UnixStream) -> io::Result<()> {
    let order = Order::parse(&mut socket)?;
    let disk = Disk(Mutex::new(socket));
    let bytes = order.bytes;
    let seen = match &order.task {
        Task::Usage => filesystem::usage(&disk, bytes).map(Sight::Usage),
        Task::Owners(ranges) => filesystem::owners(&disk, bytes, ranges).map(Sight::Owners),
        Task::Survey(block) => {
            let block = Some(*block).filter(|block| *block != 0);
            filesystem::survey(&disk, bytes, block).map(Sight::Survey)
        }
        Task::Fit(block, to) => {
            let fitted = fitted(&disk, Shape { block: *block, bytes }, *to);
            fitted.map(|fitted| Sight::Fit(fitted.map_err(|unfit| unfit.to_string())))
        }
    };
    let trouble = |error: io::Error| Seen::Trouble(format!("the disk cannot be read: {error}"));
    let seen = seen.map_or_else(trouble, Seen::Sight);
    Said::Seen(seen).emit(&mut socket)
}
