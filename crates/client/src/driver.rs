//! Drives one client session over its connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::buffered::{self, BufferedTransport};
use crate::session::{ClientSession, Output};
use crate::transport::Transport;

/// How long a session may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    end: Instant,
    answer: Duration,
}

impl Deadline {
    /// The end of a period that begins now.
    pub fn after(period: Duration) -> Self {
        Self { end: Instant::now() + period, answer: period }
    }

    /// Also limits the time without any answer.
    #[must_use]
    pub fn with_answers_within(self, answer: Duration) -> Self {
        Self { answer, ..self }
    }

    /// Whether the period is over.
    pub fn has_passed(&self) -> bool {
        Instant::now() >= self.end
    }

    /// When the next answer must have arrived.
    fn next(&self) -> Instant {
        self.end.min(Instant::now() + self.answer)
    }
}

/// A session and its connection.
#[derive(Debug)]
pub struct Driver<S: ClientSession> {
    transport: BufferedTransport,
    session: S,
}

impl<S: ClientSession> Driver<S> {
    /// Takes over a connection and makes it non-blocking.
    ///
    /// # Errors
    /// Fails as the system call does.
    pub fn new(transport: Box<dyn Transport>, session: S) -> io::Result<Self> {
        Ok(Self { transport: BufferedTransport::new(transport)?, session })
    }

    /// The session.
    pub fn session(&self) -> &S {
        &self.session
    }

    /// The session, to submit to. [`Driver::poll`] takes over what it sends.
    pub fn session_mut(&mut self) -> &mut S {
        &mut self.session
    }

    /// Queues what the session sends. Returns its next step, or `None` if it needs more input.
    pub fn poll(&mut self) -> Option<S::Step> {
        loop {
            match self.session.poll()? {
                Output::Send(segment) => self.transport.push(segment),
                Output::Step(step) => return Some(step),
            }
        }
    }

    /// Sends and receives as much as possible without blocking. Returns whether anything was
    /// received.
    ///
    /// # Errors
    /// Fails if the connection is lost. Data received before the loss is processed first: it may
    /// contain the reason.
    pub fn exchange(&mut self) -> io::Result<bool> {
        self.transport.exchange(&mut self.session)
    }

    /// Sends as much as possible without blocking.
    ///
    /// # Errors
    /// Fails if the connection is lost.
    pub fn flush(&mut self) -> io::Result<()> {
        self.transport.flush()
    }

    /// Sends and receives until the session has a step.
    ///
    /// # Errors
    /// Fails if the connection is lost, or with `TimedOut` if the deadline passes.
    pub fn wait_for_step(&mut self, deadline: Deadline) -> io::Result<S::Step> {
        loop {
            if let Some(step) = self.poll() {
                return Ok(step);
            }
            match self.exchange()? {
                true => drop(buffered::check(deadline.end)?),
                false => self.transport.wait(deadline.next())?,
            }
        }
    }

    /// When data was last received, or the connection was opened.
    pub fn last_received(&self) -> Instant {
        self.transport.last_received()
    }

    /// The poll flags for its descriptor.
    pub fn poll_flags(&self) -> PollFlags {
        self.transport.poll_flags()
    }
}

impl<S: ClientSession> AsFd for Driver<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

impl<S: ClientSession> Drop for Driver<S> {
    /// Sends the farewell if that does not block.
    fn drop(&mut self) {
        if self.session.disconnect() {
            while self.poll().is_some() {}
            let _ = self.transport.flush();
        }
    }
}

#[cfg(test)]
mod test {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Consumes everything and never has a step.
    struct Insatiable;

    impl ClientSession for Insatiable {
        type Step = ();

        fn receive(&mut self, bytes: &[u8]) -> usize {
            bytes.len()
        }

        fn poll(&mut self) -> Option<Output<()>> {
            None
        }
    }

    /// Is always readable until `end`, a byte at a time.
    struct Flood {
        socket: UnixStream,
        end: Instant,
    }

    impl Read for Flood {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            Ok(bytes.len().min(usize::from(Instant::now() < self.end)))
        }
    }

    impl Write for Flood {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Flood {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
    }

    impl Transport for Flood {
        fn set_nonblocking(&self, _on: bool) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn server_that_sends_without_end_is_given_up() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let flood = Flood { socket, end: Instant::now() + Duration::from_secs(5) };
        let mut driver = Driver::new(Box::new(flood), Insatiable).unwrap();
        let failed = driver.wait_for_step(Deadline::after(Duration::from_millis(50))).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::TimedOut);
    }
}
