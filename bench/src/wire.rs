//! A host queue on a non-blocking socket. Not a `client::Driver`: it receives 512 KiB at once, to be
//! no slower than the target that it measures.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::SendQueue;
use export::{Buffer, DirectRecv};
use nvme::command::AdminCommand;
use nvme::host::{CloseReason, Completion, Controller, Options, Payload, Queue, Step};
use nvme::wire::Sqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::socket::{Cipher, Socket};

/// NQN of the host.
pub(crate) const HOST: &str =
    "nqn.2014-08.org.nvmexpress:uuid:7d0c1a52-3f0e-4d3b-9a55-0b0f4c4d5e6f";

/// A host queue and its socket.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: Socket,
    pub(crate) queue: Queue,
    send_queue: SendQueue,
    inbox: Box<[u8]>,
    /// Bytes at the start of `inbox` that the queue has not consumed.
    kept: usize,
}

/// Bytes received at once.
const INBOX: usize = 512 << 10;

/// The timeout for anything but a measurement.
const PATIENCE: Duration = Duration::from_secs(20);

impl Wire {
    /// Connects a queue.
    pub(crate) fn open(
        address: SocketAddr,
        cipher: Option<Cipher>,
        options: Options,
        data: ConnectData,
    ) -> Result<(Self, u16)> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("cannot connect to {address}; is the target running?"))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let socket = Socket::new(socket, cipher, Instant::now() + PATIENCE)?;
        let queue = Queue::new(options, data);
        let inbox = vec![0; INBOX].into_boxed_slice();
        let mut wire = Self { socket, queue, send_queue: SendQueue::default(), inbox, kept: 0 };
        match wire.wait_for_step()? {
            Step::Connected(response) => Ok((wire, response.cntlid)),
            Step::Refused(status, dw0) => bail!("the target refused Connect: {status}, {dw0:#x}"),
            step => bail!("the target answered Connect with {step:?}"),
        }
    }

    /// Returns the next step that does not send; `None` if there is none now.
    pub(crate) fn poll(&mut self) -> Option<Step> {
        loop {
            match self.queue.poll()? {
                Step::Send(segment) => self.send_queue.push(segment),
                step => return Some(step),
            }
        }
    }

    /// Sends as much as possible without blocking.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.send_queue.flush(&mut self.socket)?;
        match self.socket.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Receives once. Returns whether anything was received.
    pub(crate) fn receive(&mut self) -> io::Result<bool> {
        match self.queue.direct_recv() {
            Some(landing) => self.receive_in_place(landing),
            None => self.receive_copied(),
        }
    }

    fn receive_in_place(&mut self, mut landing: DirectRecv) -> io::Result<bool> {
        let (start, end) = (landing.start, landing.end);
        let got = received(self.socket.read(&mut landing.buffer.bytes_mut()[start..end]));
        self.queue.direct_received(landing, *got.as_ref().unwrap_or(&0));
        got.map(|got| got != 0)
    }

    fn receive_copied(&mut self) -> io::Result<bool> {
        let got = received(self.socket.read(&mut self.inbox[self.kept..]))?;
        let filled = self.kept + got;
        let taken = self.queue.receive(&self.inbox[..filled]);
        self.inbox.copy_within(taken..filled, 0);
        self.kept = filled - taken;
        Ok(got != 0)
    }

    /// Waits until the socket is readable, or writable if there is data to send.
    pub(crate) fn sleep(&self) -> io::Result<()> {
        if self.socket.has_unread() {
            return Ok(());
        }
        let sends = !self.send_queue.is_empty() || self.socket.has_unsent();
        let send = if sends { PollFlags::OUT } else { PollFlags::empty() };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN | send)];
        poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }))?;
        Ok(())
    }

    fn wait_for_step(&mut self) -> Result<Step> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(step) = self.poll() {
                return Ok(step);
            }
            self.flush()?;
            self.sleep()?;
            self.receive()?;
            if Instant::now() > until {
                bail!("the target does not answer");
            }
        }
    }

    /// Sends a command and waits for its completion.
    pub(crate) fn ask(&mut self, sqe: Sqe, payload: Payload) -> Result<Completion> {
        if self.queue.submit(sqe, payload, 0).is_err() {
            bail!("the queue has no room");
        }
        match self.wait_for_step()? {
            Step::Completed(done) => Ok(done),
            Step::Close(end) => bail!("{}", reason(end)),
            step => bail!("the target answered with {step:?}"),
        }
    }
}

/// Why a connection ended.
pub(crate) fn reason(end: CloseReason) -> String {
    match end {
        CloseReason::Violation(violation) => {
            format!("the target broke a rule: {}", violation.name())
        }
        CloseReason::Terminated { fes, fei } => {
            format!("the target complains: FES {fes:#x}, FEI {fei:#x}")
        }
    }
}

fn received(got: io::Result<usize>) -> io::Result<usize> {
    match got {
        Ok(0) => Err(ErrorKind::ConnectionReset.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// An attached disk: its Admin queue, which keeps the association alive, and an I/O queue.
#[derive(Debug)]
pub(crate) struct Attached {
    _admin: Wire,
    pub(crate) io: Wire,
    /// Binary logarithm of the block size.
    pub(crate) shift: u8,
    pub(crate) blocks: u64,
}

/// Options of the connections.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// Header digests.
    pub(crate) header_digest: bool,
    /// Data digests.
    pub(crate) data_digest: bool,
    /// The TLS cipher.
    pub(crate) cipher: Option<Cipher>,
}

/// Attaches the disk of the subsystem `nqn`, with an I/O queue for `depth` commands.
pub(crate) fn attach(
    address: SocketAddr,
    nqn: &str,
    depth: u16,
    manner: Manner,
    memory: impl Fn(usize) -> Option<Buffer>,
) -> Result<Attached> {
    let data = |cntlid| ConnectData::emit([0x7d; 16], cntlid, nqn, HOST);
    let with = |options| Options {
        header_digest: manner.header_digest,
        data_digest: manner.data_digest,
        flow_control: false,
        ..options
    };
    let (mut admin, cntlid) =
        Wire::open(address, manner.cipher, with(Options::admin()), data(CNTLID_DYNAMIC)?)?;
    let mut controller = Controller::new(cntlid, 1);
    while let Some(ask) = controller.next_command() {
        let payload = match ask.len {
            0 => Payload::None,
            len => Payload::Receive(memory(len).context("no memory for a page")?),
        };
        let Completion { status, result, buffer, .. } = admin.ask(ask.sqe, payload)?;
        controller.complete(status, result, buffer.as_ref().map_or(&[], Buffer::bytes))?;
    }
    let _ = admin.ask(AdminCommand::KeepAlive.emit(), Payload::None)?;
    let namespace = controller.namespaces().first().context("the subsystem has no namespace")?;
    let options = Options::io(1, depth + 1, controller.capsule_data());
    let (io, _) = Wire::open(address, manner.cipher, with(options), data(cntlid)?)?;
    let (shift, blocks) = (namespace.shift(), namespace.identify.nsze.get());
    Ok(Attached { _admin: admin, io, shift, blocks })
}
