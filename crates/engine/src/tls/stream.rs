//! A TLS channel as a blocking or non-blocking byte stream, for clients.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use export::Channel;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::outbox::LARGE;
use super::record::{CONTENT, Kind, OPENED, OVERHEAD, Opener, RecordError};
use super::records::{Opened, Records, SMALL};
use super::s2n::{Established, Handshake, HandshakeError, Progress};
use super::{Psk, TrafficKey, Trust};
use crate::recv_buffer::RecvBuffer;

/// Size of a receive in bytes.
const RECV_SIZE: usize = 512 << 10;

/// Most bytes that are encrypted and sent at once, while they are in the CPU cache.
const MAX_WRITE: usize = 256 << 10;

/// Size of the buffer for their records. Pieces that are not copied have records of their own.
const SEND_BUFFER: usize = SMALL + MAX_WRITE + (2 * MAX_WRITE / LARGE + 2) * OVERHEAD;

/// Establishes a channel on `socket` with a PSK, by `deadline` at the latest. The socket stays
/// blocking or non-blocking, and so is the [`Stream`].
///
/// # Errors
/// `PermissionDenied`: the other end does not know the key, or does not support TLS 1.3. Any other
/// kind: the connection was lost during the handshake, or the other end took too long; a retry may
/// help.
pub fn connect(socket: TcpStream, key: Psk, deadline: Instant) -> io::Result<Stream> {
    let socket = Arc::new(socket);
    let handshake = Handshake::begin(socket.clone(), key).map_err(key_refused)?;
    complete(socket, handshake, deadline, key_refused)
}

/// Establishes a channel with certificates: that of the other end must satisfy `trust`.
///
/// # Errors
/// Fails if the other end has no such certificate, does not support TLS 1.3 or takes too long, if
/// the connection is lost, or if `trust` cannot be used. That the other end does not accept our
/// certificate may become visible only at the first read.
pub fn connect_certified(
    socket: TcpStream,
    trust: &Trust,
    deadline: Instant,
) -> io::Result<Stream> {
    trust.check()?;
    let socket = Arc::new(socket);
    let handshake = trust.begin(socket.clone()).map_err(certificate_refused)?;
    complete(socket, handshake, deadline, certificate_refused)
}

/// Does the handshake of a client with a PSK on a connection whose records the kernel processes afterwards: returns the keys for
/// sending and for receiving. The socket must not block.
///
/// # Errors
/// As [`connect`].
pub fn traffic_keys(
    socket: Arc<OwnedFd>,
    key: Psk,
    deadline: Instant,
) -> io::Result<(TrafficKey, TrafficKey)> {
    let handshake = Handshake::begin(socket.clone(), key).map_err(key_refused)?;
    let established = established(socket.as_fd(), handshake, deadline, key_refused)?;
    let keys = (established.sealer.traffic_key(), established.opener.traffic_key());
    let (Some(send), Some(receive)) = keys else { return Err(ErrorKind::Unsupported.into()) };
    Ok((send, receive))
}

fn complete(
    socket: Arc<TcpStream>,
    handshake: Handshake,
    deadline: Instant,
    refused: fn(HandshakeError) -> io::Error,
) -> io::Result<Stream> {
    let established = established(socket.as_fd(), handshake, deadline, refused)?;
    Stream::new(socket, established).ok_or_else(|| ErrorKind::OutOfMemory.into())
}

fn established(
    socket: BorrowedFd<'_>,
    mut handshake: Handshake,
    deadline: Instant,
    refused: fn(HandshakeError) -> io::Error,
) -> io::Result<Established> {
    loop {
        match handshake.advance().map_err(refused)? {
            Progress::Done(established) => return Ok(*established),
            Progress::WantRead => wait(socket, PollFlags::IN, deadline)?,
            Progress::WantWrite => wait(socket, PollFlags::OUT, deadline)?,
        }
    }
}

fn key_refused(failed: HandshakeError) -> io::Error {
    let reason = failed.reason;
    match failed.is_cut {
        true => connection_lost(),
        false => io::Error::new(
            ErrorKind::PermissionDenied,
            format!("the other end did not accept the key, or does not have it: {reason}"),
        ),
    }
}

fn certificate_refused(failed: HandshakeError) -> io::Error {
    let reason = failed.reason;
    match failed.is_cut {
        true => connection_lost(),
        false => io::Error::new(
            ErrorKind::PermissionDenied,
            format!("the two ends do not accept each other's certificates: {reason}"),
        ),
    }
}

/// The peer closed the connection during the handshake. It may be restarting, and has not refused
/// anything.
fn connection_lost() -> io::Error {
    io::Error::new(ErrorKind::ConnectionAborted, "the connection ended during the TLS handshake")
}

fn aborted() -> io::Error {
    io::Error::new(ErrorKind::ConnectionAborted, "the TLS session was aborted")
}

fn wait(socket: BorrowedFd<'_>, wanted: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).ok();
    let mut fds = [PollFd::new(&socket, wanted)];
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(0) => Err(io::Error::new(ErrorKind::TimedOut, "the other end does not answer")),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A TLS channel as a byte stream. Dropping it cuts the connection; call [`Stream::close`] first to
/// end it properly.
pub struct Stream {
    socket: Arc<TcpStream>,
    channel: Channel,
    records: Records,
    inbox: RecvBuffer,
    /// Decrypted bytes that were not read yet.
    plain: RecvBuffer,
    /// Encrypted bytes that the socket has not taken.
    outbox: RecvBuffer,
    /// Small pieces that are encrypted together.
    scratch: Box<[u8]>,
    end_of_stream: bool,
    /// Whether one end has violated the protocol: nothing is read or sent any more.
    broken: bool,
}

impl Stream {
    fn new(socket: Arc<TcpStream>, established: Established) -> Option<Self> {
        let (inbox, plain) = (RecvBuffer::new(RECV_SIZE)?, RecvBuffer::new(OPENED)?);
        let (outbox, scratch) = (RecvBuffer::new(SEND_BUFFER)?, vec![0; CONTENT].into());
        let channel = established.channel.clone();
        let records = Records::new(established);
        Some(Self {
            socket,
            channel,
            records,
            inbox,
            plain,
            outbox,
            scratch,
            end_of_stream: false,
            broken: false,
        })
    }

    /// Returns the properties of the channel.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Returns the socket, to change its mode or to wait for it.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Returns whether there are queued bytes that the socket has not taken.
    pub fn has_unsent(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Returns whether there are bytes to read that have already been received, which polling the
    /// socket does not show.
    pub fn has_unread(&self) -> bool {
        let whole = Opener::body(self.inbox.unread()).is_ok_and(|body| body.is_some());
        whole || !self.plain.is_empty()
    }

    /// Updates the keys of this end, and with `both` requests the other end to do so (RFC 8446
    /// §4.6.3).
    ///
    /// # Errors
    /// As for sending.
    pub fn update(&mut self, both: bool) -> io::Result<()> {
        self.flush()?;
        let len = self.records.sealer.update(both, self.outbox.spare());
        self.outbox.fill(len);
        self.flush()
    }

    /// Returns the number of key updates by the other end.
    pub fn updates_seen(&self) -> u64 {
        self.records.updates_seen()
    }

    /// Sends a close_notify alert and closes the sending side.
    ///
    /// # Errors
    /// As for sending.
    pub fn close(&mut self) -> io::Result<()> {
        self.flush()?;
        let mut small = [0; SMALL];
        let len = self.records.close(&mut small);
        self.queue(&small, len);
        self.flush()?;
        self.socket.shutdown(std::net::Shutdown::Write)
    }

    /// Decrypts one received record, into `into` if it fits. Returns the number of bytes there, or
    /// `None` if no record is complete.
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
                self.end_of_stream = true;
                Some(0)
            }
            Some(Opened::FatalAlert) => return Err(aborted()),
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

    /// Fails after a violation.
    fn check(&self) -> io::Result<()> {
        if self.broken { Err(aborted()) } else { Ok(()) }
    }

    /// Queues the KeyUpdate that must precede the next data, if any.
    fn queue_pending_update(&mut self) {
        let mut small = [0; SMALL];
        let len = self.records.pending_update(&mut small);
        self.queue(&small, len);
    }

    /// Queues the first `len` bytes of a record.
    fn queue(&mut self, record: &[u8; SMALL], len: usize) {
        let spare = self.outbox.spare().get_mut(..len);
        spare.zip(record.get(..len)).into_iter().for_each(|(to, from)| to.copy_from_slice(from));
        self.outbox.fill(len);
    }

    /// Sends what the socket takes. `WouldBlock` is not an error.
    fn send(&mut self) -> io::Result<()> {
        match self.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Encrypts up to [`MAX_WRITE`] bytes to the end of the queue, small pieces together. Returns how
    /// many.
    fn seal(&mut self, pieces: &[IoSlice<'_>]) -> usize {
        let Self { records, outbox, scratch, .. } = self;
        let mut seal = |content: &[u8]| {
            if !content.is_empty() {
                let len = records.sealer.seal(Kind::Data, content, outbox.spare());
                outbox.fill(len);
            }
        };
        let (mut taken, mut copied) = (0, 0);
        for piece in pieces {
            let piece = piece.get(..MAX_WRITE - taken).unwrap_or(piece);
            taken += piece.len();
            if copied + piece.len() > CONTENT || piece.len() >= LARGE {
                scratch.get(..copied).into_iter().for_each(&mut seal);
                copied = 0;
            }
            match scratch.get_mut(copied..copied + piece.len()) {
                Some(copy) if piece.len() < LARGE => {
                    copy.copy_from_slice(piece);
                    copied += piece.len();
                }
                _ => piece.chunks(CONTENT).for_each(&mut seal),
            }
        }
        scratch.get(..copied).into_iter().for_each(&mut seal);
        taken
    }
}

impl Read for Stream {
    /// Reads what was received, and waits for more only if there is nothing. Returns 0 after a
    /// close_notify; fails if the connection ends without one.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let mut got = self.plain.read_into(into);
        while got < into.len() && !self.end_of_stream {
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
    /// Encrypts and sends up to 256 KiB. What the socket does not take is queued, and sent by
    /// [`Write::flush`] or before more is accepted.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        self.flush()?;
        self.queue_pending_update();
        let taken = self.seal(pieces);
        self.send()?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.has_unsent() {
            match (&*self.socket).write(self.outbox.unread()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => self.outbox.consume(sent),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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

#[cfg(test)]
mod test {
    use std::net::TcpListener;

    use zeroize::Zeroizing;

    use super::super::record::Sealer;
    use super::super::suite::Suite;
    use super::*;

    /// What one end sends with, the other receives with.
    #[test]
    fn traffic_keys_of_both_ends_belong_together() {
        use std::os::unix::net::UnixStream;
        use std::time::Duration;
        for hash in [super::super::Hash::Sha256, super::super::Hash::Sha384] {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let key = || {
                let secret = export::Secret::new(vec![7; 48]);
                Psk { identity: "name".to_owned(), secret, hash, key: None }
            };
            let (client_key, deadline) = (key(), Instant::now() + Duration::from_secs(20));
            let client = std::thread::spawn(move || {
                traffic_keys(Arc::new(near.into()), client_key, deadline).unwrap()
            });
            far.set_nonblocking(true).unwrap();
            let far = Arc::new(far);
            let server = Handshake::serve(far.clone(), Vec::new(), vec![key()]).unwrap();
            let server = established(far.as_fd(), server, deadline, key_refused).unwrap();
            let (send, receive) = client.join().unwrap();
            let theirs = server.opener.traffic_key().unwrap();
            assert_eq!((send.cipher, &send.key, send.iv), (theirs.cipher, &theirs.key, theirs.iv));
            let ours = server.sealer.traffic_key().unwrap();
            assert_eq!((receive.cipher, &receive.key), (ours.cipher, &ours.key));
            assert_ne!(send.key, receive.key);
        }
    }

    #[test]
    fn pieces_of_any_size_arrive_and_small_ones_share_a_record() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let socket = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (mut peer, _) = listener.accept().unwrap();
        let secret = || Zeroizing::new(vec![5; 32]);
        let mut opener = Opener::new(Suite::Aes128, secret()).unwrap();
        let channel = Channel {
            key: None,
            certified: false,
            identity: String::new(),
            cipher: String::new(),
            binding: [0; 32],
        };
        let sealer = Sealer::new(Suite::Aes128, secret()).unwrap();
        let established = Established {
            channel,
            is_client: true,
            sealer,
            opener: Opener::new(Suite::Aes128, secret()).unwrap(),
        };
        let mut stream = Stream::new(socket, established).unwrap();
        let sizes =
            [72, 4096, 0, 72, 4096, LARGE, 3 * CONTENT + 1, LARGE - 1, LARGE - 1, LARGE - 1, 9];
        let pieces: Vec<Vec<u8>> = (0u8..).zip(sizes).map(|(fill, len)| vec![fill; len]).collect();
        let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        assert_eq!(stream.write_vectored(&slices).unwrap(), sizes.iter().sum());
        drop(stream);
        let (mut bytes, mut rest, mut lens) = (Vec::new(), Vec::new(), Vec::new());
        peer.read_to_end(&mut rest).unwrap();
        let mut rest = &rest[..];
        while let Some(body) = Opener::body(rest).unwrap() {
            let mut out = vec![0; OPENED];
            let (_, len) = opener.open(body, &mut out).unwrap();
            bytes.extend_from_slice(&out[..len]);
            lens.push(len);
            rest = &rest[Records::len(body)..];
        }
        assert!(rest.is_empty() && bytes == pieces.concat());
        let copied = [2 * (LARGE - 1), LARGE - 1 + 9];
        assert_eq!(
            lens,
            [2 * (72 + 4096), LARGE, CONTENT, CONTENT, CONTENT, 1, copied[0], copied[1]]
        );
    }
}
