//! A blocking client for the Admin queue of an NVMe/TCP controller: one command at a time, until a
//! deadline.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use export::{Account, Buffer, Pool};
use nvme::auth::Credentials;
use nvme::host::{Completion, Controller, Options, Payload, Queue, Step};
use nvme::wire::Sqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData};

use super::host_identity::HostIdentity;

/// Bytes of buffer memory for command data.
const BUFFER_POOL: usize = 256 << 10;
/// Poll interval while the controller is being enabled.
const READY_POLL: std::time::Duration = std::time::Duration::from_millis(50);

/// A TCP or TLS stream.
pub(super) trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A connected Admin queue.
pub(super) struct AdminQueue {
    stream: Box<dyn Stream>,
    queue: Queue,
    received: Vec<u8>,
    memory: Account,
    deadline: Instant,
}

impl AdminQueue {
    /// Connects to a controller of `subsystem` and initializes it.
    ///
    /// # Errors
    /// Fails with a clause if the controller refuses the connection, violates the protocol, or is
    /// not ready by `deadline`.
    pub(super) fn open(
        stream: Box<dyn Stream>,
        host: &HostIdentity,
        chap: Option<&Arc<Credentials>>,
        subsystem: &str,
        deadline: Instant,
    ) -> Result<(Self, Controller), String> {
        let data = ConnectData::emit(host.id, CNTLID_DYNAMIC, subsystem, &host.nqn);
        let data = data.map_err(|error| error.to_string())?;
        let queue = match chap {
            Some(chap) => Queue::with_credentials(Options::admin(), data, chap.clone()),
            None => Queue::new(Options::admin(), data),
        };
        let memory = Pool::new(BUFFER_POOL).open();
        let mut admin = Self { stream, queue, received: Vec::new(), memory, deadline };
        let Step::Connected(response) = admin.step()? else {
            return Err("access denied to this host".to_owned());
        };
        if chap.is_none() && response.authentication_required {
            return Err("it requires DH-HMAC-CHAP authentication".to_owned());
        }
        let mut controller = Controller::new(response.cntlid, 1);
        while let Some(command) = controller.next_command() {
            let done = admin.command(command.sqe, command.len)?;
            let bytes = done.buffer.as_ref().map_or(&[][..], Buffer::bytes);
            let completed = controller.complete(done.status, done.result, bytes);
            completed.map_err(|error| error.to_string())?;
            if controller.is_enabling() {
                std::thread::sleep(READY_POLL);
            }
        }
        Ok((admin, controller))
    }

    /// Executes a command that returns `len` bytes of data.
    ///
    /// # Errors
    /// Fails with a clause if the connection is lost.
    pub(super) fn command(&mut self, sqe: Sqe, len: usize) -> Result<Completion, String> {
        let payload = match len {
            0 => Payload::None,
            len => {
                Payload::Receive(self.memory.take(len).ok_or("there is no memory for its answer")?)
            }
        };
        let submitted = self.queue.submit(sqe, payload, 0);
        submitted.map_err(|_| "it takes no command".to_owned())?;
        match self.step()? {
            Step::Completed(done) => Ok(done),
            _ => Err("it ended the connection".to_owned()),
        }
    }

    fn step(&mut self) -> Result<Step, String> {
        loop {
            let result = match self.queue.poll() {
                Some(Step::Send(segment)) => {
                    let parts = segment.parts();
                    let sent = parts.into_iter().try_for_each(|part| self.stream.write_all(part));
                    sent.and_then(|()| self.stream.flush())
                }
                Some(step) => return Ok(step),
                None => self.receive(),
            };
            result.map_err(|error| describe(&error))?;
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self.queue.direct_recv() {
            Some(mut window) => {
                let (start, end) = (window.start, window.end);
                let space = window.buffer.bytes_mut().get_mut(start..end).unwrap_or_default();
                let got = nonzero(self.stream.read(space)?)?;
                self.queue.direct_received(window, got);
            }
            None => {
                let mut some = [0; 4096];
                let got = nonzero(self.stream.read(&mut some)?)?;
                self.received.extend_from_slice(some.get(..got).unwrap_or_default());
                let taken = self.queue.receive(&self.received);
                self.received.drain(..taken);
            }
        }
        Ok(())
    }
}

fn nonzero(got: usize) -> io::Result<usize> {
    if got == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(got) }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer".to_owned(),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "it closed the connection".to_owned(),
        _ => error.to_string(),
    }
}
