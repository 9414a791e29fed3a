//! An NVMe client for tests: attaches a disk in plaintext or with TLS under any name, and sends
//! any command.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::tls::{self, Stream};
use export::{Account, Buffer, Pool, Secret};
use nvme::auth::chap::{Key, system_random};
use nvme::auth::{Credentials, Group, Hash, psk};
use nvme::command::{IoCommand, ReservationRequest};
use nvme::host::{Completion, Controller, Options, Payload, Queue, Step};
use nvme::status::Status;
use nvme::wire::Sqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData};

/// Time limit of one answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An NVMe client with the identity that it claims.
#[derive(Clone)]
pub(crate) struct NvmeClient {
    pub(crate) host: String,
    pub(crate) disk: String,
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// Number of entries of the I/O queue.
    pub(crate) depth: u16,
}

impl NvmeClient {
    pub(crate) fn new(host: &str, disk: &str) -> Self {
        Self { host: host.to_owned(), disk: disk.to_owned(), credentials: None, depth: 8 }
    }

    /// Authenticates with DH-HMAC-CHAP and this key (`DHHC-1:…`).
    pub(crate) fn with_credentials(self, key: &str) -> Self {
        let credentials = Credentials {
            key: Key::parse(key.as_bytes()).unwrap(),
            controller: None,
            hashes: vec![Hash::Sha256],
            groups: vec![Group::Ffdhe2048],
            concatenate: false,
            random: system_random,
        };
        Self { credentials: Some(Arc::new(credentials)), ..self }
    }

    fn queue(&self, options: Options, cntlid: u16) -> Queue {
        let data = ConnectData::emit([7; 16], cntlid, &self.disk, &self.host).unwrap();
        match &self.credentials {
            Some(credentials) => Queue::with_credentials(options, data, credentials.clone()),
            None => Queue::new(options, data),
        }
    }

    /// Attaches the disk over streams that `connect` opens.
    pub(crate) fn attach<S: Read + Write>(
        &self,
        mut connect: impl FnMut() -> io::Result<S>,
    ) -> Result<Attached<S>, String> {
        let mut connect = || connect().map_err(|error| error.to_string());
        let memory = Pool::new(4 << 20).open();
        let (mut admin, cntlid) =
            QueueConnection::open(connect()?, self.queue(Options::admin(), CNTLID_DYNAMIC))?;
        let mut controller = Controller::new(cntlid, 1);
        while let Some(command) = controller.next_command() {
            let payload = match command.len {
                0 => Payload::None,
                len => Payload::Receive(memory.take(len).unwrap()),
            };
            let Completion { status, result, buffer, .. } = admin.execute(command.sqe, payload)?;
            let bytes = buffer.as_ref().map_or(&[][..], Buffer::bytes);
            controller.complete(status, result, bytes).map_err(|trouble| format!("{trouble:?}"))?;
        }
        let options = Options::io(1, self.depth, controller.capsule_data());
        let (io, _) = QueueConnection::open(connect()?, self.queue(options, cntlid))?;
        Ok(Attached { admin, io, memory })
    }

    /// Attaches the disk in plaintext.
    pub(crate) fn attach_plain(&self, address: SocketAddr) -> Result<Attached<TcpStream>, String> {
        self.attach(|| connect(address))
    }

    /// Attaches the disk over TLS with this key (`NVMeTLSkey-1:…`).
    pub(crate) fn attach_tls(
        &self,
        address: SocketAddr,
        key: &str,
    ) -> Result<Attached<Stream>, String> {
        self.attach(|| connect_tls(address, disk_psk(key, &self.host, &self.disk)))
    }
}

/// Derives the TLS PSK of a host for a disk.
pub(crate) fn disk_psk(key: &str, host: &str, disk: &str) -> tls::Psk {
    let key = Secret::new(key.as_bytes().to_vec());
    let psk = psk::derive_psks(&key, false, host, disk).unwrap().remove(0);
    tls::Psk { identity: psk.identity, secret: psk.secret, hash: tls::Hash::Sha256, key: None }
}

/// Returns the public PSK of the pairing channel.
pub(crate) fn pairing_psk() -> tls::Psk {
    let (identity, secret) = (pair::IDENTITY.to_owned(), Secret::new(pair::PSK.to_vec()));
    tls::Psk { identity, secret, hash: tls::Hash::Sha256, key: None }
}

pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn connect_tls(address: SocketAddr, psk: tls::Psk) -> io::Result<Stream> {
    tls::connect(connect(address)?, psk, Instant::now() + TIMEOUT)
}

/// A queue and its connection.
pub(crate) struct QueueConnection<S> {
    pub(crate) stream: S,
    queue: Queue,
    kept: Vec<u8>,
}

impl<S: Read + Write> QueueConnection<S> {
    fn open(stream: S, queue: Queue) -> Result<(Self, u16), String> {
        let mut connection = Self { stream, queue, kept: Vec::new() };
        match connection.step()? {
            Step::Connected(response) => Ok((connection, response.cntlid)),
            step => Err(format!("Connect: {step:?}")),
        }
    }

    fn step(&mut self) -> Result<Step, String> {
        loop {
            match self.queue.poll() {
                Some(Step::Send(segment)) => {
                    let sent = segment
                        .parts()
                        .into_iter()
                        .try_for_each(|part| self.stream.write_all(part));
                    sent.and_then(|()| self.stream.flush()).map_err(|error| error.to_string())?;
                }
                Some(step) => return Ok(step),
                None => self.receive().map_err(|error| error.to_string())?,
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut some = [0; 4096];
        let landing = self.queue.direct_recv();
        let Some(mut landing) = landing else {
            let got = some_of(self.stream.read(&mut some)?)?;
            self.kept.extend_from_slice(&some[..got]);
            let taken = self.queue.receive(&self.kept);
            self.kept.drain(..taken);
            return Ok(());
        };
        let (start, end) = (landing.start, landing.end);
        let got = some_of(self.stream.read(&mut landing.buffer.bytes_mut()[start..end])?)?;
        self.queue.direct_received(landing, got);
        Ok(())
    }

    fn execute(&mut self, sqe: Sqe, payload: Payload) -> Result<Completion, String> {
        self.queue.submit(sqe, payload, 0).map_err(|not_now| format!("{not_now:?}"))?;
        match self.step()? {
            Step::Completed(done) => Ok(done),
            step => Err(format!("{step:?}")),
        }
    }
}

fn succeeded(done: Completion) -> Result<(), String> {
    if done.status.is_success() { Ok(()) } else { Err(format!("{:?}", done.status)) }
}

fn some_of(got: usize) -> io::Result<usize> {
    if got == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(got) }
}

/// An attached disk; detached when dropped.
pub(crate) struct Attached<S> {
    pub(crate) admin: QueueConnection<S>,
    pub(crate) io: QueueConnection<S>,
    memory: Account,
}

impl<S: Read + Write> Attached<S> {
    /// Reads eight blocks from `slba` on.
    pub(crate) fn read(&mut self, slba: u64) -> Result<Vec<u8>, String> {
        let command = IoCommand::Read { nsid: 1, slba, nlb: 8, fua: false, limited_retry: false };
        let payload = Payload::Receive(self.memory.take(8 * 512).unwrap());
        let done = self.io.execute(command.emit(), payload)?;
        if !done.status.is_success() {
            return Err(format!("{:?}", done.status));
        }
        Ok(done.buffer.unwrap().bytes()[..4096].to_vec())
    }

    /// Writes a block. Returns whether that succeeded.
    pub(crate) fn write(&mut self, slba: u64) -> Result<bool, String> {
        let command = IoCommand::Write { nsid: 1, slba, nlb: 1, fua: true, limited_retry: false };
        let payload = self.payload(1);
        Ok(self.io.execute(command.emit(), payload)?.status.is_success())
    }

    /// Writes whole blocks of 512 bytes.
    pub(crate) fn write_blocks(&mut self, slba: u64, data: &[u8], fua: bool) -> Result<(), String> {
        let nlb = u32::try_from(data.len() / 512).unwrap();
        let command = IoCommand::Write { nsid: 1, slba, nlb, fua, limited_retry: false };
        let mut buffer = self.memory.take(data.len()).unwrap();
        buffer.bytes_mut()[..data.len()].copy_from_slice(data);
        self.io.execute(command.emit(), Payload::Send(Rc::new(buffer))).and_then(succeeded)
    }

    /// Deallocates blocks. Returns whether that succeeded.
    pub(crate) fn deallocate(&mut self, slba: u64, blocks: u32) -> Result<bool, String> {
        let command = IoCommand::DatasetManagement { nsid: 1, ranges: 1, deallocate: true };
        let mut buffer = self.memory.take(16).unwrap();
        let range = [&[0; 4][..], &blocks.to_le_bytes(), &slba.to_le_bytes()].concat();
        buffer.bytes_mut()[..16].copy_from_slice(&range);
        Ok(self.io.execute(command.emit(), Payload::Send(Rc::new(buffer)))?.status.is_success())
    }

    /// Flushes the disk.
    pub(crate) fn flush(&mut self) -> Result<(), String> {
        self.io.execute(IoCommand::Flush { nsid: 1 }.emit(), Payload::None).and_then(succeeded)
    }

    /// Sends a reservation command with these keys. Returns its status.
    pub(crate) fn reserve(
        &mut self,
        request: ReservationRequest,
        (current, other): (u64, u64),
    ) -> Result<Status, String> {
        let keys = [current.to_le_bytes(), other.to_le_bytes()].concat();
        let len = usize::try_from(request.data_len().len()).unwrap();
        let mut buffer = self.memory.take(len).unwrap();
        buffer.bytes_mut().copy_from_slice(&keys[..len]);
        let command = IoCommand::Reservation { nsid: 1, request };
        Ok(self.io.execute(command.emit(), Payload::Send(Rc::new(buffer)))?.status)
    }

    /// Returns the Reservation Status data structure.
    pub(crate) fn reservations(&mut self) -> Result<Vec<u8>, String> {
        let request = ReservationRequest::Report { len: 4096, extended: true };
        let payload = Payload::Receive(self.memory.take(4096).unwrap());
        let done = self.io.execute(IoCommand::Reservation { nsid: 1, request }.emit(), payload)?;
        let page = done.buffer.map(|buffer| buffer.bytes().to_vec());
        page.ok_or_else(|| format!("{:?}", done.status))
    }

    /// Sends an I/O command with data as its opcode implies. Returns whether it succeeded.
    pub(crate) fn execute_io(&mut self, sqe: Sqe) -> Result<bool, String> {
        let payload = self.payload(sqe.opcode);
        Ok(self.io.execute(sqe, payload)?.status.is_success())
    }

    /// Sends an Admin command with data as its opcode implies. Returns whether it succeeded.
    pub(crate) fn execute_admin(&mut self, sqe: Sqe) -> Result<bool, String> {
        let payload = self.payload(sqe.opcode);
        Ok(self.admin.execute(sqe, payload)?.status.is_success())
    }

    /// Returns a block in the direction of the lowest bits of the opcode (NVMe Base 2.0 §3.3.3.1,
    /// CDW0).
    fn payload(&self, opcode: u8) -> Payload {
        let mut buffer = self.memory.take(512).unwrap();
        buffer.bytes_mut()[..512].fill(0xaa);
        match opcode & 0b11 {
            0b01 => Payload::Send(Rc::new(buffer)),
            0b10 => Payload::Receive(buffer),
            _ => Payload::None,
        }
    }
}
