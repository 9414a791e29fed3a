//! A minimal NBD client connection for load: negotiates, sends requests, and counts replies.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::peer::NAME;
use super::reply::Replies;

/// "NBD, Fixed newstyle negotiation": magic numbers and flags.
const HELLO: &[u8] = b"NBDMAGICIHAVEOPT";
const OPTION: &[u8] = b"IHAVEOPT";
const FIXED_NO_ZEROES: u32 = 3;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
/// "NBD, Request message".
const REQUEST: u32 = 0x2560_9513;

/// Bytes received at once.
const INBOX: usize = 512 << 10;

/// The timeout for anything but a measurement.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection in the transmission phase.
#[derive(Debug)]
pub(super) struct Link {
    socket: TcpStream,
    /// Bytes of the disk.
    pub(super) size: u64,
    replies: Replies,
    inbox: Box<[u8]>,
    kept: usize,
    outbox: Vec<u8>,
    sent: usize,
}

impl Link {
    /// Connects to the disk. `payload` is the payload of each reply, in bytes.
    pub(super) fn open(address: SocketAddr, payload: usize) -> Result<Self> {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let size = negotiate(&mut socket)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            size,
            replies: Replies::new(payload),
            inbox: vec![0; INBOX].into_boxed_slice(),
            kept: 0,
            outbox: Vec::new(),
            sent: 0,
        })
    }

    /// Queues a read of `len` bytes at `offset`, or a write of `data`.
    pub(super) fn ask(&mut self, cookie: u64, offset: u64, len: u32, data: Option<&[u8]>) {
        let out = &mut self.outbox;
        out.extend_from_slice(&REQUEST.to_be_bytes());
        out.extend_from_slice(&[0, 0, 0, u8::from(data.is_some())]);
        out.extend_from_slice(&cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(data.unwrap_or_default());
    }

    /// Sends as much as possible without blocking.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.outbox.len() {
            match self.socket.write(&self.outbox[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    /// Receives once, and calls `ended` with the cookie of each completed request. Returns whether
    /// anything was received.
    pub(super) fn receive(&mut self, ended: impl FnMut(u64)) -> Result<bool> {
        let got = match self.socket.read(&mut self.inbox[self.kept..]) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let filled = self.kept + got;
        let taken = self.replies.receive(&self.inbox[..filled], ended)?;
        self.inbox.copy_within(taken..filled, 0);
        self.kept = filled - taken;
        Ok(true)
    }

    /// Waits until the socket is readable, or writable if there is data to send.
    pub(super) fn sleep(&self) -> io::Result<()> {
        let send = if self.outbox.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN | send)];
        poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }))?;
        Ok(())
    }
}

/// Negotiates and returns the size of the disk in bytes.
fn negotiate(socket: &mut TcpStream) -> Result<u64> {
    let mut hello = [0; 18];
    socket.read_exact(&mut hello).context("the server says no hello")?;
    if !hello.starts_with(HELLO) {
        bail!("the server does not speak fixed newstyle");
    }
    socket.write_all(&FIXED_NO_ZEROES.to_be_bytes())?;
    option(socket, OPT_STRUCTURED_REPLY, &[])?;
    // A server without structured replies refuses the option, and sends simple ones.
    answer(socket)?;
    let length = u32::try_from(NAME.len())?.to_be_bytes();
    // The name, and no particular information.
    option(socket, OPT_GO, &[&length, NAME.as_bytes(), &[0; 2]].concat())?;
    let mut size = None;
    loop {
        match answer(socket)? {
            (REP_ACK, _) => return size.context("the server did not tell a size"),
            (REP_INFO, data) => size = size_of(&data).or(size),
            (other, _) => bail!("the server refuses the disk: {other:#x}"),
        }
    }
}

/// Returns the size, if this is "NBD_INFO_EXPORT".
fn size_of(data: &[u8]) -> Option<u64> {
    let (kind, rest) = data.split_first_chunk::<2>()?;
    (*kind == [0, 0]).then(|| rest.first_chunk().map(|size| u64::from_be_bytes(*size)))?
}

fn option(socket: &mut TcpStream, option: u32, data: &[u8]) -> Result<()> {
    let mut message = OPTION.to_vec();
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&u32::try_from(data.len())?.to_be_bytes());
    message.extend_from_slice(data);
    Ok(socket.write_all(&message)?)
}

/// Returns the type of an option reply, and its data.
fn answer(socket: &mut TcpStream) -> Result<(u32, Vec<u8>)> {
    let mut head = [0; 20];
    socket.read_exact(&mut head)?;
    let [.., a, b, c, d, e, f, g, h] = head;
    let mut data = vec![0; u32::from_be_bytes([e, f, g, h]).min(1 << 16) as usize];
    socket.read_exact(&mut data)?;
    Ok((u32::from_be_bytes([a, b, c, d]), data))
}
