//! An Admin queue of another machine's controller, asked one command after the other until a moment that is set. It knows
//! no address and no disk.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use export::{Account, Buffer, Pool};
use nvme::auth::Credentials;
use nvme::host::{Completion, Controller, Options, Payload, Queue, Step};
use nvme::wire::Sqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData};

use super::who::Who;

/// Bytes of memory for answers.
const MEMORY: usize = 256 << 10;
/// How often a controller is asked whether it is ready.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// A connection in the clear, or a channel.
pub(super) trait Talk: Read + Write {}

impl<T: Read + Write> Talk for T {}

/// An Admin queue that is connected.
pub(super) struct Line {
    stream: Box<dyn Talk>,
    queue: Queue,
    kept: Vec<u8>,
    memory: Account,
    end: Instant,
}

impl Line {
    /// Connects to a controller of that subsystem, and gets to know it.
    ///
    /// # Errors
    /// It refuses, breaks the protocol, or is not done at `end`: a clause.
    pub(super) fn open(
        stream: Box<dyn Talk>,
        who: &Who,
        proof: Option<&Arc<Credentials>>,
        subsystem: &str,
        end: Instant,
    ) -> Result<(Self, Controller), String> {
        let data = ConnectData::emit(who.id, CNTLID_DYNAMIC, subsystem, &who.nqn);
        let data = data.map_err(|error| error.to_string())?;
        let queue = match proof {
            Some(proof) => Queue::with_credentials(Options::admin(), data, proof.clone()),
            None => Queue::new(Options::admin(), data),
        };
        let memory = Pool::new(MEMORY).open();
        let mut line = Self { stream, queue, kept: Vec::new(), memory, end };
        let Step::Connected(response) = line.step()? else {
            return Err("it lets this machine not have that".to_owned());
        };
        if proof.is_none() && response.authentication_required {
            return Err("it wants a proof by DH-HMAC-CHAP".to_owned());
        }
        let mut controller = Controller::new(response.cntlid, 1);
        while let Some(ask) = controller.next_command() {
            let done = line.command(ask.sqe, ask.len)?;
            let bytes = done.buffer.as_ref().map_or(&[][..], Buffer::bytes);
            let learned = controller.complete(done.status, done.result, bytes);
            learned.map_err(|trouble| trouble.to_string())?;
            if controller.is_enabling() {
                std::thread::sleep(LOOK);
            }
        }
        Ok((line, controller))
    }

    /// Carries out a command that gives `len` bytes of data.
    ///
    /// # Errors
    /// The connection broke: a clause.
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
            let moved = match self.queue.poll() {
                Some(Step::Send(segment)) => {
                    let parts = segment.parts();
                    let sent = parts.into_iter().try_for_each(|part| self.stream.write_all(part));
                    sent.and_then(|()| self.stream.flush())
                }
                Some(step) => return Ok(step),
                None => self.receive(),
            };
            moved.map_err(|error| said(&error))?;
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        if Instant::now() >= self.end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self.queue.direct_recv() {
            Some(mut landing) => {
                let (start, end) = (landing.start, landing.end);
                let room = landing.buffer.bytes_mut().get_mut(start..end).unwrap_or_default();
                let got = some_of(self.stream.read(room)?)?;
                self.queue.direct_received(landing, got);
            }
            None => {
                let mut some = [0; 4096];
                let got = some_of(self.stream.read(&mut some)?)?;
                self.kept.extend_from_slice(some.get(..got).unwrap_or_default());
                let taken = self.queue.receive(&self.kept);
                self.kept.drain(..taken);
            }
        }
        Ok(())
    }
}

fn some_of(got: usize) -> io::Result<usize> {
    if got == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(got) }
}

fn said(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer".to_owned(),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => "it closed the connection".to_owned(),
        _ => error.to_string(),
    }
}
