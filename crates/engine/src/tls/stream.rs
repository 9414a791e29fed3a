//! A channel as a stream of bytes on a socket of one's own: for who connects. It knows no session and no protocol.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use export::Channel;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::record::{CONTENT, Kind, OPENED, Opener, RecordError};
use super::records::{Opened, Records, SMALL, sealed_len};
use super::s2n::{Established, Handshake, HandshakeError, Progress};
use super::{Psk, Trust};
use crate::recv_buffer::RecvBuffer;

/// Bytes that are received at once.
const INBOX: usize = 512 << 10;

/// Sealed bytes that may wait for the socket before no more are taken.
const OUTBOX: usize = 1 << 20;

/// Makes a channel on `socket` with that key, by `deadline` at the latest. Whether the socket blocks stays as it is, and
/// is how the [`Stream`] reads and writes.
///
/// # Errors
/// Permission denied: the other end does not know that key, or does not speak TLS 1.3. Any other kind: the connection ended or
/// broke during the handshake, or the other end took too long; trying again may help.
pub fn connect(socket: TcpStream, key: Psk, deadline: Instant) -> io::Result<Stream> {
    let socket = Arc::new(socket);
    let handshake = Handshake::begin(socket.clone(), key).map_err(refused)?;
    shake(socket, handshake, deadline, refused)
}

/// The same with certificates: the other end must show one that `trust` is about.
///
/// # Errors
/// The other end has no such certificate, does not speak TLS 1.3, or takes too long; or the connection broke; or what is to be
/// trusted makes no sense. That our own certificate does not please the other end may be seen only with the first read.
pub fn connect_certified(
    socket: TcpStream,
    trust: &Trust,
    deadline: Instant,
) -> io::Result<Stream> {
    trust.check()?;
    let socket = Arc::new(socket);
    let handshake = Handshake::begin_certified(socket.clone(), trust).map_err(distrusted)?;
    shake(socket, handshake, deadline, distrusted)
}

fn shake(
    socket: Arc<TcpStream>,
    mut handshake: Handshake,
    deadline: Instant,
    refused: fn(HandshakeError) -> io::Error,
) -> io::Result<Stream> {
    let established = loop {
        match handshake.advance().map_err(refused)? {
            Progress::Done(established) => break *established,
            Progress::WantRead => wait(&socket, PollFlags::IN, deadline)?,
            Progress::WantWrite => wait(&socket, PollFlags::OUT, deadline)?,
        }
    };
    Stream::new(socket, established).ok_or_else(|| ErrorKind::OutOfMemory.into())
}

fn refused(failed: HandshakeError) -> io::Error {
    let why = failed.why;
    match failed.is_cut {
        true => cut(),
        false => io::Error::new(
            ErrorKind::PermissionDenied,
            format!("the other end did not accept the key, or does not have it: {why}"),
        ),
    }
}

fn distrusted(failed: HandshakeError) -> io::Error {
    let why = failed.why;
    match failed.is_cut {
        true => cut(),
        false => io::Error::new(
            ErrorKind::PermissionDenied,
            format!("the two ends do not accept each other's certificates: {why}"),
        ),
    }
}

/// The peer went away in the handshake: it may be restarting, and has refused nothing.
fn cut() -> io::Error {
    io::Error::new(ErrorKind::ConnectionAborted, "the connection ended during the TLS handshake")
}

fn given_up() -> io::Error {
    io::Error::new(ErrorKind::ConnectionAborted, "an end of the channel has given it up")
}

fn wait(socket: &TcpStream, wanted: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).ok();
    let mut fds = [PollFd::new(socket, wanted)];
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(0) => Err(io::Error::new(ErrorKind::TimedOut, "the other end does not answer")),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A channel as a stream of bytes. Dropping it cuts the connection; [`Stream::close`] says before that nothing follows.
pub struct Stream {
    socket: Arc<TcpStream>,
    channel: Channel,
    records: Records,
    inbox: RecvBuffer,
    /// Opened bytes that nobody has read.
    plain: RecvBuffer,
    /// Sealed bytes, of which the socket took `sent`.
    outbox: Vec<u8>,
    sent: usize,
    ended: bool,
    /// Whether an end broke a rule: nothing is read or sent any more.
    broken: bool,
}

impl Stream {
    fn new(socket: Arc<TcpStream>, established: Established) -> Option<Self> {
        let (inbox, plain) = (RecvBuffer::new(INBOX)?, RecvBuffer::new(OPENED)?);
        let (channel, outbox) = (established.channel.clone(), Vec::new());
        let records = Records::new(established);
        Some(Self {
            socket,
            channel,
            records,
            inbox,
            plain,
            outbox,
            sent: 0,
            ended: false,
            broken: false,
        })
    }

    /// What protects it.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The socket: to change how it waits, or to wait for it.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether there are bytes to send that the socket did not take.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.outbox.len()
    }

    /// Whether there are bytes to read that have come already: the socket does not tell.
    pub fn has_unread(&self) -> bool {
        let whole = Opener::body(self.inbox.unread()).is_ok_and(|body| body.is_some());
        whole || !self.plain.is_empty()
    }

    /// Changes the keys with which this end seals, and with `both` asks the other end to change its own (RFC 8446 §4.6.3).
    ///
    /// # Errors
    /// As for sending.
    pub fn update(&mut self, both: bool) -> io::Result<()> {
        self.flush()?;
        let mut small = [0; SMALL];
        let len = self.records.sealer.update(both, &mut small);
        self.outbox.extend_from_slice(small.get(..len).unwrap_or_default());
        self.flush()
    }

    /// How often the other end has changed its keys.
    pub fn updates_seen(&self) -> u64 {
        self.records.updates_seen()
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// As for sending.
    pub fn close(&mut self) -> io::Result<()> {
        self.flush()?;
        let mut small = [0; SMALL];
        let len = self.records.close(&mut small);
        self.outbox.extend_from_slice(small.get(..len).unwrap_or_default());
        self.flush()?;
        self.socket.shutdown(std::net::Shutdown::Write)
    }

    /// Opens one record that has come, into `into` if it fits. Gives how many bytes of it are there, and nothing if none
    /// has come whole.
    fn open(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let opened = self.open_record(into);
        self.broken = !matches!(
            opened,
            Ok(Some(Opened::Data(_) | Opened::Control | Opened::CloseNotify) | None)
        );
        let broken = |broken: RecordError| io::Error::new(ErrorKind::InvalidData, broken.name());
        Ok(match opened.map_err(broken)? {
            None => None,
            Some(Opened::Data(len)) => Some(len),
            Some(Opened::Control) => Some(0),
            Some(Opened::CloseNotify) => {
                self.ended = true;
                Some(0)
            }
            Some(Opened::FatalAlert) => return Err(given_up()),
        })
    }

    fn open_record(&mut self, into: &mut [u8]) -> Result<Option<Opened>, RecordError> {
        let Some(body) = Opener::body(self.inbox.unread())? else { return Ok(None) };
        let len = Records::len(body);
        let opened = if into.len() >= Opener::room(body) {
            self.records.open(body, into)?
        } else {
            match self.records.open(body, self.plain.spare())? {
                Opened::Data(len) => {
                    self.plain.fill(len);
                    Opened::Data(self.plain.read_into(into))
                }
                other => other,
            }
        };
        self.inbox.consume(len);
        Ok(Some(opened))
    }

    /// That nothing was broken yet.
    fn check(&self) -> io::Result<()> {
        if self.broken { Err(given_up()) } else { Ok(()) }
    }

    /// Puts in front of the next data what must go before it.
    fn answer_updates(&mut self) {
        let mut small = [0; SMALL];
        let len = self.records.pending_update(&mut small);
        self.outbox.extend_from_slice(small.get(..len).unwrap_or_default());
    }

    /// Sends what the socket takes; that it takes none now is no error.
    fn send(&mut self) -> io::Result<()> {
        match self.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Seals `bytes` behind what waits.
    fn seal(&mut self, bytes: &[u8]) {
        let mut used = self.outbox.len();
        self.outbox.resize(used + sealed_len(bytes.len(), 0), 0);
        for content in bytes.chunks(CONTENT) {
            let room = self.outbox.get_mut(used..).unwrap_or_default();
            used += self.records.sealer.seal(Kind::Data, content, room);
        }
        self.outbox.truncate(used);
    }
}

impl Read for Stream {
    /// Reads what has come, and waits for more only if that is nothing. 0 is the end that the peer said; a connection that
    /// ends without it is an error.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let mut got = self.plain.read_into(into);
        while got < into.len() && !self.ended {
            let room = into.get_mut(got..).unwrap_or_default();
            match self.open(room)? {
                Some(len) => got += len,
                None if got > 0 => break,
                None => {
                    let came = (&*self.socket).read(self.inbox.spare())?;
                    self.inbox.fill(came);
                    if came == 0 {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
        Ok(got)
    }
}

impl Write for Stream {
    /// Seals and sends. What the socket does not take waits: [`Write::flush`] tells when all is sent.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        if self.outbox.len() - self.sent >= OUTBOX {
            self.flush()?;
        }
        // What is sent must not pile up while something always waits.
        if self.sent > self.outbox.len() / 2 {
            self.outbox.drain(..self.sent);
            self.sent = 0;
        }
        self.answer_updates();
        let mut taken = 0;
        for piece in pieces {
            let piece = piece.get(..OUTBOX - taken).unwrap_or(piece);
            self.seal(piece);
            taken += piece.len();
        }
        self.send()?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.has_unsent() {
            let rest = self.outbox.get(self.sent..).unwrap_or_default();
            match (&*self.socket).write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({})", self.channel.cipher)
    }
}
