//! The server's end of a connection. Nothing blocks, so that one thread can serve many; memory is
//! bounded: one call of [`MAX_CALL`] bytes is received, and replies of [`MAX_PENDING`] bytes wait.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use crate::message::{Call, Reply, Splitter, TooLong, frame};

/// The longest call in bytes.
pub const MAX_CALL: usize = 64 << 10;

/// The most bytes of replies that wait for a client that does not read them.
pub const MAX_PENDING: usize = 1 << 20;

/// The bytes of one read.
const PIECE: usize = 4096;

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The client closed it.
    #[error("the client has closed the connection")]
    Closed,
    /// The client sent something that is no call.
    #[error("the client sent no call: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the client sent {0}")]
    TooLong(#[from] TooLong),
    /// The client does not read its replies.
    #[error("the client does not read its replies")]
    Stalled,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for ConnectionError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// A reply, or the rest of one, that waits to be sent.
#[derive(Debug)]
struct Pending {
    frame: Vec<u8>,
    sent: usize,
    /// Sent with the first byte.
    descriptor: Option<OwnedFd>,
}

/// A connection to a client.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    splitter: Splitter,
    pending: VecDeque<Pending>,
    /// Bytes in `pending` that are not sent yet.
    waiting: usize,
}

impl Connection {
    /// Takes a connected Unix socket.
    pub fn new(socket: OwnedFd) -> Self {
        let splitter = Splitter::new(MAX_CALL);
        Self { socket, splitter, pending: VecDeque::new(), waiting: 0 }
    }

    /// Returns the next call, or `None` if it has not arrived. A client whose replies are not sent
    /// yet must read them first: its calls stay in the socket.
    ///
    /// # Errors
    /// Fails if the client has closed the connection, or sent something else than calls.
    pub fn receive(&mut self) -> Result<Option<Call>, ConnectionError> {
        if self.has_pending() {
            return Ok(None);
        }
        loop {
            if let Some(message) = self.splitter.next_message()? {
                return Ok(Some(serde_json::from_slice(&message)?));
            }
            let mut piece = [0; PIECE];
            // Descriptors that a client sends are closed by the kernel: there is no buffer for them.
            match recv(&self.socket, &mut piece, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(ConnectionError::Closed),
                Ok((bytes, _)) => self.splitter.push(piece.get(..bytes).unwrap_or_default()),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Queues a reply, with a descriptor to be passed with it, and sends what can be sent.
    ///
    /// # Errors
    /// Fails if more than [`MAX_PENDING`] bytes would wait, or if the connection is lost.
    pub fn reply(
        &mut self,
        reply: &Reply,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ConnectionError> {
        self.queue(vec![Pending { frame: frame(reply)?, sent: 0, descriptor }])
    }

    /// Queues replies, all or none of them, and sends what can be sent.
    ///
    /// # Errors
    /// Fails if more than [`MAX_PENDING`] bytes would wait, or if the connection is lost.
    pub fn reply_all(&mut self, replies: &[Reply]) -> Result<(), ConnectionError> {
        let pending = |reply| Ok(Pending { frame: frame(reply)?, sent: 0, descriptor: None });
        let all = replies.iter().map(pending).collect::<serde_json::Result<Vec<_>>>()?;
        self.queue(all)
    }

    fn queue(&mut self, replies: Vec<Pending>) -> Result<(), ConnectionError> {
        let bytes: usize = replies.iter().map(|reply| reply.frame.len()).sum();
        if self.waiting.saturating_add(bytes) > MAX_PENDING {
            return Err(ConnectionError::Stalled);
        }
        self.waiting += bytes;
        self.pending.extend(replies);
        self.flush()
    }

    /// Sends what can be sent without blocking.
    ///
    /// # Errors
    /// Fails if the connection is lost.
    pub fn flush(&mut self) -> Result<(), ConnectionError> {
        while let Some(first) = self.pending.front_mut() {
            match first.send(&self.socket) {
                Ok(bytes) => self.waiting = self.waiting.saturating_sub(bytes),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ConnectionError::Closed),
                Err(errno) => return Err(errno.into()),
            }
            self.pending.pop_front_if(|first| first.sent == first.frame.len());
        }
        Ok(())
    }

    /// Sends everything that waits. Waits for a client that does not read it for at most `timeout` at a time.
    ///
    /// # Errors
    /// Fails if it reads nothing for that long, or if the connection is lost.
    pub fn flush_all(&mut self, timeout: Duration) -> Result<(), ConnectionError> {
        loop {
            self.flush()?;
            if !self.has_pending() {
                return Ok(());
            }
            if !self.wait(timeout)? {
                return Err(ConnectionError::Stalled);
            }
        }
    }

    /// Returns whether replies wait to be sent.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns what to poll the socket for.
    pub fn interest(&self) -> PollFlags {
        if self.has_pending() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// Returns whether the client has closed the connection, whatever it sent before.
    pub fn is_closed(&self) -> bool {
        let mut ends = [PollFd::new(&self.socket, PollFlags::empty())];
        poll(&mut ends, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits until there is something to receive, or room to send. Returns false if there is not
    /// within `timeout`.
    ///
    /// # Errors
    /// Fails if the kernel cannot wait.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut [PollFd::new(&self.socket, self.interest())], timeout.as_ref()) {
            Err(Errno::INTR) => Ok(true),
            ready => Ok(ready? > 0),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Pending {
    /// Sends as much as there is room for. Returns the number of bytes.
    fn send(&mut self, socket: &OwnedFd) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = self.descriptor.as_ref().map(AsFd::as_fd);
        let descriptors = descriptors.as_slice();
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::INVAL);
        }
        let rest = IoSlice::new(self.frame.get(self.sent..).unwrap_or_default());
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let bytes = sendmsg(socket, &[rest], &mut control, flags)?;
        self.sent += bytes;
        self.descriptor = None;
        Ok(bytes)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, recvmsg};
    use serde_json::json;
    use std::io::{IoSliceMut, Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Connection) {
        let (client, server) = UnixStream::pair().unwrap();
        (client, Connection::new(server.into()))
    }

    #[test]
    fn calls_that_arrive_together_are_answered_in_order() {
        let (mut client, mut server) = pair();
        client.write_all(b"{\"method\":\"a.B\"}\0{\"method\":\"a.C\"}\0{\"method").unwrap();
        for name in ["a.B", "a.C"] {
            assert_eq!(server.receive().unwrap().unwrap().method, name);
            server.reply(&Reply::new(json!({ "of": name })), None).unwrap();
        }
        assert!(server.receive().unwrap().is_none());
        client.write_all(b"\":\"a.D\"}\0").unwrap();
        assert_eq!(server.receive().unwrap().unwrap().method, "a.D");
        let expected = b"{\"parameters\":{\"of\":\"a.B\"}}\0{\"parameters\":{\"of\":\"a.C\"}}\0";
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, expected);
        drop(client);
        assert!(matches!(server.receive(), Err(ConnectionError::Closed | ConnectionError::Io(_))));
    }

    #[test]
    fn connection_ends_at_what_is_no_call() {
        for bytes in [&b"\0"[..], b"[]\0", b"{}\0", b"\xff\xff\0", b"{\"method\":1}\0"] {
            let (mut client, mut server) = pair();
            client.write_all(bytes).unwrap();
            let error = server.receive().unwrap_err();
            assert!(matches!(error, ConnectionError::Malformed(_)), "{bytes:?}: {error}");
        }
        let deep = [vec![b'['; 10_000], vec![0]].concat();
        let (mut client, mut server) = pair();
        client.write_all(&deep).unwrap();
        assert!(matches!(server.receive(), Err(ConnectionError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_client_break_the_connection(
            bytes in prop::collection::vec(prop_oneof![Just(0), Just(b'{'), any::<u8>()], 0..300),
        ) {
            let (mut client, mut server) = pair();
            client.write_all(&bytes).unwrap();
            drop(client);
            while server.receive().is_ok_and(|call| call.is_some()) {}
        }
    }

    #[test]
    fn call_above_the_limit_ends_the_connection() {
        let (client, mut server) = pair();
        let mut writer = client.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&vec![b'x'; 2 * MAX_CALL]));
        let error = loop {
            match server.receive() {
                Ok(_) => std::thread::yield_now(),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ConnectionError::TooLong(_)), "{error}");
        drop((server, client));
        let _ = writing.join().unwrap();
    }

    #[test]
    fn replies_to_a_client_that_does_not_read_are_bounded() {
        let (client, mut server) = pair();
        let reply = Reply::new(json!({ "text": "x".repeat(1 << 16) }));
        let error = (0..100).find_map(|_| server.reply(&reply, None).err()).unwrap();
        assert!(matches!(error, ConnectionError::Stalled), "{error}");
        assert!(server.waiting <= MAX_PENDING && server.interest() == PollFlags::OUT);
        drop(client);
        assert!(matches!(server.flush(), Err(ConnectionError::Closed)));
    }

    /// Receives at most 4096 bytes, and a descriptor that comes with them.
    fn receive_with_descriptor(client: &UnixStream) -> (Vec<u8>, Option<OwnedFd>) {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(client, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let passed = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        (bytes[..got.bytes].to_vec(), passed)
    }

    #[test]
    fn descriptor_is_passed_once_with_the_first_byte() {
        let (client, mut server) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        server.reply(&Reply::new(json!({ "n": 0 })), None).unwrap();
        // More than fits into the socket: it is sent in several pieces.
        let reply = Reply::new(json!({ "text": "x".repeat(1 << 19) }));
        let bytes = frame(&reply).unwrap().len();
        server.reply(&reply, Some(writer.into())).unwrap();
        assert!(server.has_pending());
        let before = frame(&Reply::new(json!({ "n": 0 }))).unwrap();
        let mut first = vec![0; before.len()];
        (&client).read_exact(&mut first).unwrap();
        assert_eq!(first, before);
        let sending = std::thread::spawn(move || server.flush_all(Duration::from_secs(10)));
        let (mut got, descriptor) = receive_with_descriptor(&client);
        let mut passed = io::PipeWriter::from(descriptor.unwrap());
        while got.len() < bytes {
            let (piece, descriptor) = receive_with_descriptor(&client);
            assert!(!piece.is_empty() && descriptor.is_none());
            got.extend(piece);
        }
        sending.join().unwrap().unwrap();
        assert_eq!(serde_json::from_slice::<Reply>(&got[..bytes - 1]).unwrap(), reply);
        passed.write_all(b"passed").unwrap();
        drop(passed);
        // Its end shows that the server has kept none.
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "passed");
    }

    #[test]
    fn long_list_is_sent_to_a_client_that_reads_it() {
        let (client, mut server) = pair();
        let reply = Reply::new(json!({ "text": "x".repeat(1 << 16) }));
        let bytes = frame(&reply).unwrap().len() * 40;
        assert!(bytes > 2 * MAX_PENDING);
        let sending = std::thread::spawn(move || {
            (0..40).try_for_each(|_| {
                server.reply(&reply, None)?;
                server.flush_all(Duration::from_secs(10))
            })
        });
        let mut client = client;
        client.read_exact(&mut vec![0; bytes]).unwrap();
        sending.join().unwrap().unwrap();
        let (_silent, mut server) = pair();
        server.reply(&Reply::new(json!({ "text": "x".repeat(1 << 19) })), None).unwrap();
        let error = server.flush_all(Duration::from_millis(1)).unwrap_err();
        assert!(matches!(error, ConnectionError::Stalled), "{error}");
    }

    #[test]
    fn calls_wait_while_replies_do() {
        let (mut client, mut server) = pair();
        client.write_all(b"{\"method\":\"a.B\"}\0").unwrap();
        let reply = Reply::new(json!({ "text": "x".repeat(1 << 19) }));
        server.reply(&reply, None).unwrap();
        assert!(server.has_pending() && server.receive().unwrap().is_none());
        let reading = std::thread::spawn(move || {
            client.read_exact(&mut vec![0; 1 << 19]).unwrap();
            client
        });
        while server.has_pending() {
            assert!(server.wait(Duration::from_secs(10)).unwrap());
            server.flush().unwrap();
        }
        let _client = reading.join().unwrap();
        assert_eq!(server.receive().unwrap().unwrap().method, "a.B");
    }
}
