//! Netlink sockets for uevents and routing messages, and the framing of routing messages.

use crate::syscall::set_socket_option;
use rustix::io::Errno;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketAddrAny};
use rustix::net::{SocketFlags, SocketType, bind, recvfrom, sendto, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The maximum length of a datagram: a dump comes in pieces of 32 KiB at most, a uevent of 4 KiB.
const LONGEST: usize = 64 << 10;
/// The receive buffer of the socket, in bytes.
const QUEUE: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(2);
const KERNEL: u32 = 0;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const REQUEST_DUMP: u16 = 0x301;
const REQUEST_ACKNOWLEDGED: u16 = 0x5;
const INTERRUPTED: u16 = 0x10;

const SOL_NETLINK: i32 = 270;
/// `NETLINK_ADD_MEMBERSHIP` of `linux/netlink.h`.
const ADD_MEMBERSHIP: i32 = 1;

/// The result of [`Socket::receive`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received<'a> {
    /// A datagram from the kernel.
    Datagram(&'a [u8]),
    /// No pending datagram, or, on a blocking socket, none in time.
    Nothing,
    /// Datagrams were lost.
    Lost,
}

/// A netlink socket with its receive buffer.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a non-blocking socket that listens to the groups in the mask `groups`.
    pub(crate) fn listening(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        Self::open(protocol, groups, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    /// Opens a blocking socket for generic netlink, without a group. Nothing is received after `patience`, if it is given.
    pub(crate) fn generic(patience: Option<Duration>) -> io::Result<Self> {
        let socket = Self::open(Some(GENERIC), 0, SocketFlags::CLOEXEC)?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, patience)?;
        Ok(socket)
    }

    /// Joins a multicast group, by its number (netlink(7)).
    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        Ok(set_socket_option(self.as_fd(), (SOL_NETLINK, ADD_MEMBERSHIP), &group.to_ne_bytes())?)
    }

    fn open(protocol: Option<Protocol>, groups: u32, flags: SocketFlags) -> io::Result<Self> {
        let descriptor = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        // Failure is harmless: lost datagrams are reported, and only root may exceed the limit.
        if sockopt::set_socket_recv_buffer_size_force(&descriptor, QUEUE).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&descriptor, QUEUE);
        }
        bind(&descriptor, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { descriptor, buffer: vec![0; LONGEST] })
    }

    /// Returns the next datagram from the kernel; skips those of other processes.
    pub(crate) fn receive(&mut self) -> io::Result<Received<'_>> {
        let length = loop {
            match recvfrom(&self.descriptor, &mut self.buffer[..], RecvFlags::TRUNC) {
                Ok((_, length, Some(sender))) if is_kernel(&sender) => break length,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::NOBUFS) => return Ok(Received::Lost),
                Err(error) => return Err(error.into()),
            }
        };
        Ok(self.buffer.get(..length).map_or(Received::Lost, Received::Datagram))
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(KERNEL, 0);
        sendto(&self.descriptor, message, SendFlags::empty(), &kernel)?;
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn is_kernel(sender: &SocketAddrAny) -> bool {
    SocketAddrNetlink::try_from(sender.clone()).is_ok_and(|sender| sender.pid() == KERNEL)
}

/// Dumps all objects of a kind. Returns the payloads of the replies of type `answer`.
pub(crate) fn dump(question: u16, answer: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::open(None, 0, SocketFlags::CLOEXEC)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
    // If the table changes during the dump, the dump is repeated.
    for _ in 0..3 {
        socket.send(&request(question, REQUEST_DUMP, body))?;
        if let Some(payloads) = collect(&mut socket, answer)? {
            return Ok(payloads);
        }
    }
    Err(io::Error::other("the kernel's table of addresses changes faster than it can be read"))
}

/// Sends a request and waits for the acknowledgement. `flags` determine what happens if the object
/// exists.
pub(crate) fn command(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut socket = Socket::open(None, 0, SocketFlags::CLOEXEC)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
    socket.send(&request(kind, REQUEST_ACKNOWLEDGED | flags, body))?;
    let Received::Datagram(datagram) = socket.receive()? else {
        return Err(io::ErrorKind::TimedOut.into());
    };
    match Messages(datagram).find(|message| message.kind == ERROR) {
        Some(message) if message.payload.first_chunk() == Some(&[0; 4]) => Ok(()),
        Some(message) => Err(refusal(message.payload)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Sends a request on a socket of its own, and returns the payload of the first reply: of type `kind`, or empty for an
/// acknowledgement.
///
/// # Errors
/// Fails with the kernel's error, or if there is no reply in time.
pub(crate) fn ask(kind: u16, acknowledged: bool, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::generic(Some(TIMEOUT))?;
    let flags = if acknowledged { REQUEST_ACKNOWLEDGED } else { REQUEST };
    socket.send(&request(kind, flags, body))?;
    let Received::Datagram(datagram) = socket.receive()? else {
        return Err(io::ErrorKind::TimedOut.into());
    };
    let first = Messages(datagram).find(|it| it.kind == kind || it.kind == ERROR);
    let first = first.ok_or(io::ErrorKind::InvalidData)?;
    match (first.kind, first.payload.first_chunk()) {
        (ERROR, Some(&[0, 0, 0, 0])) => Ok(Vec::new()),
        (ERROR, _) => Err(refusal(first.payload)),
        _ => Ok(first.payload.to_vec()),
    }
}

/// Appends an attribute to a message.
pub(crate) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let Ok(length) = u16::try_from(4 + value.len()) else { return };
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    message
}

/// Returns `None` if the table changed during the dump.
fn collect(socket: &mut Socket, answer: u16) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut payloads = Vec::new();
    let mut whole = true;
    loop {
        let datagram = match socket.receive()? {
            Received::Datagram(datagram) => datagram,
            Received::Nothing => return Err(io::ErrorKind::TimedOut.into()),
            Received::Lost => return Err(Errno::NOBUFS.into()),
        };
        for message in Messages(datagram) {
            whole &= message.flags & INTERRUPTED == 0;
            match message.kind {
                DONE => return Ok(whole.then_some(payloads)),
                ERROR => return Err(refusal(message.payload)),
                kind if kind == answer => payloads.push(message.payload.to_vec()),
                _ => {}
            }
        }
    }
}

fn refusal(payload: &[u8]) -> io::Error {
    let number = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(number.saturating_neg())
}

/// A routing message (`struct nlmsghdr` and its payload).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) payload: &'a [u8],
}

/// The messages of a datagram. Ends at the first that is truncated.
#[derive(Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (flags, _) = rest.split_first_chunk::<2>()?;
        let payload = self.0.get(16..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        let (kind, flags) = (u16::from_ne_bytes(*kind), u16::from_ne_bytes(*flags));
        Some(Message { kind, flags, payload })
    }
}

/// The attributes (`struct rtattr`: type and value) of a message. Ends at the first that is
/// truncated.
#[derive(Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_cut_at_their_lengths() {
        let mut bytes = request(7, 0, &[1, 2, 3]);
        bytes.push(0);
        bytes.extend_from_slice(&request(DONE, 0, &[]));
        let kinds: Vec<_> = Messages(&bytes).map(|m| (m.kind, m.payload.to_vec())).collect();
        assert_eq!(kinds, [(7, vec![1, 2, 3]), (DONE, vec![])]);
        let list: Vec<_> = Attributes(&[5, 0, 1, 0, 9, 0, 0, 0, 6, 0, 2, 0, 8, 8]).collect();
        assert_eq!(list, [(1, &[9][..]), (2, &[8, 8][..])]);
    }

    #[test]
    fn wrong_lengths_end_the_iteration() {
        for length in [0u32, 3, 15, 17, 0xffff_ffff] {
            let mut bytes = request(7, 0, &[]);
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Messages(&bytes).next(), None, "length {length}");
        }
        for length in [0u8, 3, 9] {
            assert_eq!(Attributes(&[length, 0, 1, 0, 9, 0, 0, 0]).next(), None);
        }
        for cut in 0..16 {
            assert_eq!(Messages(&request(7, 0, &[])[..cut]).next(), None);
        }
    }

    #[test]
    fn unknown_dump_request_is_an_error() {
        assert!(dump(0xfff0, 0, &[0; 16]).is_err());
    }

    #[test]
    fn refused_command_is_an_error() {
        // No link has this index.
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        assert!(command(19, 0, &body).unwrap_err().raw_os_error().is_some());
    }

    #[test]
    fn an_attribute_is_padded() {
        let mut body = Vec::new();
        put(&mut body, 3, b"eth");
        put(&mut body, 1, &[7; 4]);
        assert_eq!(body.len(), 16);
        let list: Vec<_> = Attributes(&body).collect();
        assert_eq!(list, [(3, &b"eth"[..]), (1, &[7; 4][..])]);
    }

    #[test]
    fn datagrams_of_processes_are_skipped() {
        let mut socket = Socket::listening(None, 0).unwrap();
        let own = rustix::net::getsockname(&socket).unwrap();
        let own = SocketAddrNetlink::try_from(own).unwrap();
        match sendto(&socket, &request(7, 0, &[]), SendFlags::empty(), &own) {
            Err(Errno::PERM) => return println!("skip datagrams of processes: it needs root"),
            sent => assert!(sent.is_ok(), "{sent:?}"),
        }
        assert_eq!(socket.receive().unwrap(), Received::Nothing);
    }
}
