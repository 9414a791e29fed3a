//! The process at the other end of a Unix socket (unix(7), SO_PEERCRED).

use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, Uid};

use crate::syscall;

/// A process as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// `None` if it is in a PID namespace that this process does not see.
    pub process: Option<Pid>,
    pub user: Uid,
}

impl Peer {
    /// Returns the process at the other end of a connected Unix socket.
    ///
    /// # Errors
    /// Fails if it is no socket.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let found = syscall::peer(socket.as_fd())?;
        Ok(Self { process: Pid::from_raw(found.pid), user: Uid::from_raw(found.uid) })
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn peer_is_the_process_that_connected() {
        let (one, _other) = UnixStream::pair().unwrap();
        let own = (Some(rustix::process::getpid()), rustix::process::geteuid());
        let peer = Peer::of(&one).unwrap();
        assert_eq!((peer.process, peer.user), own);
        assert!(Peer::of(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
