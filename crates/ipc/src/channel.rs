//! Message channel between two processes over a Unix socket; a message can carry up to
//! [`MAX_DESCRIPTORS`] file descriptors.
//!
//! Wire format: a frame is a 32-bit little-endian length and that many bytes of JSON. The
//! descriptors are attached to the first byte (`SCM_RIGHTS`). Frames may contain keys, so their
//! memory is wiped.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Length of the frame header in bytes.
const HEADER: usize = 4;

/// Limit on the descriptors of one message.
pub const MAX_DESCRIPTORS: usize = 64;

/// Sending half of a channel.
#[derive(Debug)]
pub struct Sender {
    socket: UnixStream,
    timeout: Option<Duration>,
}

/// Receiving half of a channel.
#[derive(Debug)]
pub struct Receiver {
    socket: UnixStream,
    max_frame: usize,
}

/// Splits one end of a socket pair into halves. Frames of more than `max_frame` bytes are refused
/// when received.
///
/// # Errors
/// Fails if descriptors are exhausted.
pub fn split(socket: UnixStream, max_frame: usize) -> io::Result<(Sender, Receiver)> {
    let other = socket.try_clone()?;
    Ok((Sender { socket: other, timeout: None }, Receiver { socket, max_frame }))
}

impl Sender {
    /// Sends a message with duplicates of the descriptors. Blocks while the socket buffer is full.
    ///
    /// # Errors
    /// Fails if the peer has closed the socket, on timeout, or if there are more than
    /// [`MAX_DESCRIPTORS`].
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = frame(message)?;
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut sent = 0;
        while let Some(rest) = frame.get(sent..).filter(|rest| !rest.is_empty()) {
            let first = if sent == 0 { descriptors } else { &[] };
            match self.send_some(rest, first) {
                Ok(bytes) => sent += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_for_space(deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends as many bytes as the socket buffer has space for, with the descriptors.
    fn send_some(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let is_pushed =
            descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors));
        if descriptors.len() > MAX_DESCRIPTORS || !is_pushed {
            return Err(Errno::INVAL);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags)
    }

    fn wait_for_space(&self, deadline: Option<Instant>) -> io::Result<()> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(ErrorKind::TimedOut.into());
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], left.as_ref());
        Ok(())
    }

    /// Sets the time after which [`Sender::send`] fails if the message is not sent. The stream may
    /// end in a partial frame then and must be closed.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = Some(timeout);
    }

    /// Shuts the socket down for both processes.
    pub fn close(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Receiver {
    /// Waits at most `timeout` for a message or the end of the stream. Returns whether there is
    /// one.
    pub fn is_ready(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let mut ends = [PollFd::new(&self.socket, PollFlags::IN)];
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
            match poll(&mut ends, left.as_ref()) {
                // Interrupted by a signal: wait for the rest of the time.
                Err(Errno::INTR) => {}
                result => return result.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Receives a message and its descriptors. Returns `None` at the end of the stream.
    ///
    /// # Errors
    /// Fails on I/O errors, on malformed, truncated or oversized frames, and on more than
    /// [`MAX_DESCRIPTORS`].
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut header = [0; HEADER];
        let (mut got, descriptors) = self.receive_first(&mut header)?;
        if got == 0 {
            return Ok(None);
        }
        got += self.fill(header.get_mut(got..).unwrap_or_default())?;
        let length = u32::from_le_bytes(header) as usize;
        if got < HEADER || length > self.max_frame {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut body = Zeroizing::new(vec![0; length]);
        if self.fill(&mut body)? < length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(Some((serde_json::from_slice(&body)?, descriptors)))
    }

    fn receive_first(&self, header: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(header)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = retry_on_intr(|| recvmsg(&self.socket, &mut pieces, &mut control, flags))?;
        let descriptors = control.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
        // The kernel closes those for which there is no space.
        let is_truncated = message.flags.contains(ReturnFlags::CTRUNC);
        if is_truncated || descriptors.len() > MAX_DESCRIPTORS {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok((message.bytes, descriptors))
    }

    /// Fills `bytes`. Returns a smaller number only at the end of the stream.
    fn fill(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut got = 0;
        while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match retry_on_intr(|| recv(&self.socket, &mut *rest, RecvFlags::empty()))?.0 {
                0 => break,
                n => got += n,
            }
        }
        Ok(got)
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn retry_on_intr<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Serializes a message. The buffer is allocated in its final size, since growing would leave an
/// unwiped copy.
fn frame(message: &impl Serialize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut length = Length(0);
    serde_json::to_writer(&mut length, message)?;
    let announced = u32::try_from(length.0).map_err(|_| ErrorKind::InvalidData)?;
    let mut frame = Zeroizing::new(Vec::with_capacity(HEADER + length.0));
    frame.extend_from_slice(&announced.to_le_bytes());
    serde_json::to_writer(&mut *frame, message)?;
    Ok(frame)
}

/// Counts bytes that are written.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Read;

    fn pair(max_frame: usize) -> (Sender, Receiver) {
        let (one, two) = UnixStream::pair().unwrap();
        (Sender { socket: one, timeout: None }, Receiver { socket: two, max_frame })
    }

    #[test]
    fn messages_keep_order_and_descriptors() {
        let (sender, mut receiver) = pair(1 << 20);
        let (mut reader, writer) = io::pipe().unwrap();
        let long = "x".repeat(300_000);
        let sending = std::thread::spawn(move || {
            sender.send(&"one", &[]).unwrap();
            sender.send(&long, &[writer.as_fd(), writer.as_fd()]).unwrap();
            sender.send(&"three", &[]).unwrap();
        });
        let (one, none) = receiver.receive::<String>().unwrap().unwrap();
        assert_eq!((one.as_str(), none.len()), ("one", 0));
        let (long, passed) = receiver.receive::<String>().unwrap().unwrap();
        assert_eq!((long.len(), passed.len()), (300_000, 2));
        let (three, none) = receiver.receive::<String>().unwrap().unwrap();
        assert_eq!((three.as_str(), none.len()), ("three", 0));
        assert!(receiver.receive::<String>().unwrap().is_none());
        sending.join().unwrap();
        rustix::io::write(&passed[1], b"through").unwrap();
        drop(passed);
        let mut through = String::new();
        reader.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through");
    }

    #[test]
    fn send_times_out_if_the_peer_does_not_read() {
        let (mut sender, receiver) = pair(1 << 20);
        sender.set_timeout(Duration::from_millis(20));
        let long = "x".repeat(100_000);
        let failed = (0..100).find_map(|_| sender.send(&long, &[]).err()).unwrap();
        assert_eq!(failed.kind(), ErrorKind::TimedOut);
        drop(receiver);
    }

    #[test]
    fn send_times_out_if_the_peer_reads_slowly() {
        let (mut sender, receiver) = pair(8 << 20);
        sender.set_timeout(Duration::from_millis(200));
        let (begun, long) = (Instant::now(), "x".repeat(8 << 20));
        let read = std::thread::spawn(move || {
            while receiver.fill(&mut [0; 1 << 12]).is_ok_and(|got| got > 0) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let sent = sender.send(&long, &[]);
        let took = begun.elapsed();
        sender.close();
        read.join().unwrap();
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn oversized_truncated_or_malformed_frame_fails() {
        let (sender, mut receiver) = pair(8);
        sender.send(&"longer than that", &[]).unwrap();
        assert!(receiver.receive::<String>().is_err());
        for bytes in [&b"\x05"[..], b"\x05\0\0\0\"a", b"\x03\0\0\0abc"] {
            let (mut one, two) = UnixStream::pair().unwrap();
            one.write_all(bytes).unwrap();
            drop(one);
            let mut receiver = Receiver { socket: two, max_frame: 8 };
            assert!(receiver.receive::<String>().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn descriptors_of_a_frame_are_limited() {
        let (sender, mut receiver) = pair(1 << 10);
        let file = std::fs::File::open("/dev/null").unwrap();
        let copies = [file.as_fd(); 100];
        assert!(sender.send(&"too many", &copies[..=MAX_DESCRIPTORS]).is_err());
        sender.send(&"as many", &copies[..MAX_DESCRIPTORS]).unwrap();
        let (text, passed) = receiver.receive::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), passed.len()), ("as many", MAX_DESCRIPTORS));
        // A sender without the limit.
        let frame = frame(&"too many").unwrap();
        for count in [MAX_DESCRIPTORS + 1, copies.len()] {
            let (sender, mut receiver) = pair(1 << 10);
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&copies[..count])));
            sendmsg(&sender.socket, &[IoSlice::new(&frame)], &mut control, SendFlags::empty())
                .unwrap();
            let error = receiver.receive::<String>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
    }
}
