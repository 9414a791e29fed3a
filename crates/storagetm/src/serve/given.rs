//! What `storagetm serve` was started with: sockets that listen, or one peer. It knows no disk and no protocol.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use export::Door;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, getpeername, getsockname, sockopt};

use super::Server;
use crate::failure::Failure;
use crate::listen::{Listener, Place, Protocols, Serves};
use crate::options::Serve;

/// What this program was started with.
#[derive(Debug)]
pub(super) enum Given {
    /// Sockets that listen.
    Listening(Vec<(Listener, OwnedFd)>),
    /// A peer, at the other end of standard input.
    Peer(OwnedFd),
}

impl Given {
    /// That, if there is something.
    ///
    /// # Errors
    /// It is nothing that hosts can come by.
    pub(super) fn take(options: &Serve) -> Result<Option<Self>, Failure> {
        if options.stdin {
            return standard_input().map(|socket| Some(Self::Peer(socket)));
        }
        let protocols = Protocols::of(&options.protocol);
        let sockets = linux::activation::take().into_iter().map(|handed| {
            let place = place(handed.socket.as_fd())?;
            Ok((Listener::handed(place, &handed.name, protocols), handed.socket))
        });
        let sockets: Vec<_> = sockets.collect::<Result<_, Failure>>()?;
        Ok((!sockets.is_empty()).then_some(Self::Listening(sockets)))
    }

    /// The sockets that listen.
    pub(super) fn listeners(&self) -> impl Iterator<Item = &Listener> {
        let sockets = match self {
            Self::Listening(sockets) => sockets.as_slice(),
            Self::Peer(_) => &[],
        };
        sockets.iter().map(|(listener, _)| listener)
    }
}

impl Server {
    /// Has the worker serve those who come by what was given.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(super) fn receive(&mut self, given: Given) -> Result<(), Failure> {
        match given {
            Given::Peer(socket) => {
                let kept = socket.try_clone().map_err(|error| unusable("standard input", error))?;
                self.worker.adopt(socket, Door::Open, Serves::Nbd);
                self.only_peer = Some(kept);
            }
            Given::Listening(sockets) => {
                for (listener, socket) in sockets {
                    let listener = self.listeners.take(listener);
                    self.worker.accept(socket, listener.door, listener.serves);
                }
            }
        }
        Ok(())
    }

    /// Whether there will never be anybody any more.
    pub(super) fn has_lost_its_only_peer(&self) -> bool {
        let gone = |socket: &OwnedFd| {
            let mut ends = [PollFd::new(socket, PollFlags::RDHUP)];
            let none = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut ends, Some(&none)).is_ok_and(|ready| ready > 0)
        };
        self.only_peer.as_ref().is_some_and(gone)
    }
}

/// The peer at the other end of standard input.
///
/// # Errors
/// There is none.
fn standard_input() -> Result<OwnedFd, Failure> {
    let input = io::stdin();
    let is_peer = getpeername(&input).is_ok_and(|peer| peer.is_some()) && is_stream(input.as_fd());
    if !is_peer {
        return Err(Failure::new(
            "--stdin: standard input is no connected socket; inetd, or a client that starts this \
             program itself, makes it one",
        ));
    }
    input.as_fd().try_clone_to_owned().map_err(|error| unusable("standard input", error))
}

fn is_stream(socket: BorrowedFd<'_>) -> bool {
    sockopt::socket_type(socket) == Ok(SocketType::STREAM)
}

/// Where a socket that was handed over listens.
fn place(socket: BorrowedFd<'_>) -> Result<Place, Failure> {
    let name = "a socket that was handed to this program";
    if !is_stream(socket) || sockopt::socket_acceptconn(socket) != Ok(true) {
        return Err(unusable(name, "it is none that listens for connections"));
    }
    let address = getsockname(socket).map_err(|errno| unusable(name, errno))?;
    if address.address_family() != AddressFamily::UNIX {
        let address = address.try_into().map_err(|_| unusable(name, "it is of no IP address"))?;
        return Ok(Place::Net(address));
    }
    let address = rustix::net::SocketAddrUnix::try_from(address).ok();
    let path = address.as_ref().and_then(|address| address.path_bytes());
    let path = path.and_then(|bytes| std::str::from_utf8(bytes).ok());
    Ok(Place::Path(path.map(PathBuf::from).unwrap_or_default()))
}

fn unusable(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("{what} cannot be used: {why}"))
}
