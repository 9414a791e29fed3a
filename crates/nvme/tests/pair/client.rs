//! Helpers of a host that attaches a disk as Linux does, and sends commands one by one.

use std::rc::Rc;

use export::Buffer;
use nvme::command::{AdminCommand, FabricsCommand, IoCommand, PropertySize};
use nvme::host::{Completion, Controller, InitError, Options, Payload};
use nvme::status::Status;
use nvme::wire::Sqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, Cc, ConnectData, DISCOVERY_NQN, property};

use crate::world::{DISK, World};

pub(crate) const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:host";

/// Parameters of an attachment.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) hpda: u8,
    pub(crate) flow_control: bool,
    pub(crate) entries: u16,
    pub(crate) queues: u16,
    pub(crate) keep_alive: u32,
    pub(crate) subsystem: &'static str,
    pub(crate) host: &'static str,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            hpda: 0,
            flow_control: true,
            entries: 128,
            queues: 1,
            keep_alive: 0,
            subsystem: DISK,
            host: HOST,
        }
    }
}

impl Manner {
    /// Options of a queue.
    pub(crate) fn options(&self, options: Options) -> Options {
        Options {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            hpda: self.hpda,
            flow_control: self.flow_control,
            keep_alive: if options.qid == 0 { self.keep_alive } else { 0 },
            ..options
        }
    }

    /// The data of Connect.
    pub(crate) fn data(&self, cntlid: u16) -> ConnectData {
        ConnectData::emit([3; 16], cntlid, self.subsystem, self.host).unwrap()
    }
}

/// An attached disk, with the indexes of its connections.
pub(crate) struct Client {
    pub(crate) admin: usize,
    pub(crate) io: Vec<usize>,
    pub(crate) controller: Controller,
    pub(crate) cntlid: u16,
}

impl World {
    /// Attaches a disk with default parameters. Returns its I/O queue, too.
    pub(crate) fn attach_default(&mut self) -> (Client, usize) {
        let client = self.attach(&Manner::default());
        let io = client.io[0];
        (client, io)
    }

    /// Attaches a disk: Admin queue, initialization as in Linux, I/O queues.
    pub(crate) fn attach(&mut self, manner: &Manner) -> Client {
        let (admin, cntlid) = self.open_admin(manner);
        let mut controller = Controller::new(cntlid, manner.queues);
        self.initialize(admin, &mut controller).unwrap();
        let queues = if manner.subsystem == DISCOVERY_NQN { 0 } else { controller.queues() };
        let io = (1..=queues)
            .map(|qid| self.open_io(manner, cntlid, qid, controller.capsule_data()))
            .collect();
        Client { admin, io, controller, cntlid }
    }

    /// Connects an Admin queue.
    pub(crate) fn open_admin(&mut self, manner: &Manner) -> (usize, u16) {
        let admin = self.connect(manner.options(Options::admin()), manner.data(CNTLID_DYNAMIC));
        self.run();
        let cntlid = self.lines[admin].connected.expect("the Admin queue was not connected").cntlid;
        (admin, cntlid)
    }

    /// Connects an I/O queue.
    pub(crate) fn open_io(
        &mut self,
        manner: &Manner,
        cntlid: u16,
        qid: u16,
        capsule: u32,
    ) -> usize {
        let options = manner.options(Options::io(qid, manner.entries, capsule));
        let io = self.connect(options, manner.data(cntlid));
        self.run();
        let refused = self.lines[io].refused;
        assert!(self.lines[io].connected.is_some(), "refused: {refused:?}");
        io
    }

    /// Initializes a controller as Linux does.
    pub(crate) fn initialize(
        &mut self,
        line: usize,
        controller: &mut Controller,
    ) -> Result<(), InitError> {
        while let Some(ask) = controller.next_command() {
            let payload = match ask.len {
                0 => Payload::None,
                len => Payload::Receive(self.buffer(len)),
            };
            let done = self.command(line, ask.sqe, payload);
            let page = done.buffer.as_ref().map_or(&[][..], Buffer::bytes);
            controller.complete(done.status, done.result, page)?;
        }
        Ok(())
    }

    /// Submits a command without waiting for its completion.
    pub(crate) fn submit(&mut self, line: usize, sqe: Sqe, payload: Payload, tag: u32) -> u16 {
        self.lines[line].host.submit(sqe, payload, tag).expect("the queue has no room")
    }

    /// Sends a command, and runs until it completes.
    pub(crate) fn command(&mut self, line: usize, sqe: Sqe, payload: Payload) -> Completion {
        self.submit(line, sqe, payload, u32::MAX);
        self.run();
        self.taken(line, u32::MAX).unwrap_or_else(|| {
            let Line { host_end, target_end } = self.ends(line);
            panic!("no answer; host {host_end:?}, target {target_end:?}")
        })
    }

    fn ends(&self, line: usize) -> Line {
        let line = &self.lines[line];
        Line { host_end: line.host_end, target_end: line.target_end }
    }

    /// Returns the completion of a command, if it has completed.
    pub(crate) fn taken(&mut self, line: usize, tag: u32) -> Option<Completion> {
        let done = &mut self.lines[line].done;
        let at = done.iter().position(|done| done.tag == tag)?;
        Some(done.remove(at))
    }

    /// Returns the status of a command, which must have completed.
    pub(crate) fn status(&mut self, line: usize, tag: u32) -> Status {
        self.taken(line, tag).expect("no answer").status
    }

    /// Sends a command without data.
    pub(crate) fn say(&mut self, line: usize, sqe: Sqe) -> Completion {
        self.command(line, sqe, Payload::None)
    }

    /// Returns the data of an Admin command.
    pub(crate) fn page(&mut self, line: usize, command: AdminCommand) -> Result<Vec<u8>, Status> {
        let len = command.data_len().len() as usize;
        let done = self.command(line, command.emit(), Payload::Receive(self.buffer(len)));
        if done.status.is_success() {
            Ok(done.buffer.unwrap().bytes().to_vec())
        } else {
            Err(done.status)
        }
    }

    /// Returns a host buffer with these bytes.
    pub(crate) fn filled(&self, bytes: &[u8]) -> Rc<Buffer> {
        let mut buffer = self.buffer(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        Rc::new(buffer)
    }

    pub(crate) fn read(&mut self, line: usize, lba: u64, nlb: u32) -> Result<Vec<u8>, Status> {
        let buffer = self.buffer(nlb as usize * 512);
        let done = self.command(line, read(lba, nlb), Payload::Receive(buffer));
        if done.status.is_success() {
            Ok(done.buffer.unwrap().bytes().to_vec())
        } else {
            Err(done.status)
        }
    }

    pub(crate) fn write(&mut self, line: usize, lba: u64, bytes: &[u8]) -> Status {
        let nlb = u32::try_from(bytes.len() / 512).unwrap();
        self.command(line, write(lba, nlb), Payload::Send(self.filled(bytes))).status
    }

    /// Property Set of CC.
    pub(crate) fn configure(&mut self, line: usize, cc: Cc) -> Status {
        let (attrib, offset) = (PropertySize::Four, property::CC);
        self.say(line, FabricsCommand::PropertySet { attrib, offset, value: cc.0.into() }.emit())
            .status
    }

    /// Property Get.
    pub(crate) fn property(&mut self, line: usize, attrib: PropertySize, offset: u32) -> u64 {
        let done = self.say(line, FabricsCommand::PropertyGet { attrib, offset }.emit());
        assert!(done.status.is_success());
        done.result
    }
}

/// Ends of a connection.
struct Line {
    host_end: Option<nvme::host::CloseReason>,
    target_end: Option<export::Reason>,
}

/// Returns CC of an enabled controller, as Linux sets it.
pub(crate) fn enabled() -> Cc {
    Cc::default().with_iosqes(6).with_iocqes(4).with_en(1)
}

pub(crate) fn read(slba: u64, nlb: u32) -> Sqe {
    IoCommand::Read { nsid: 1, slba, nlb, fua: false, limited_retry: false }.emit()
}

pub(crate) fn write(slba: u64, nlb: u32) -> Sqe {
    IoCommand::Write { nsid: 1, slba, nlb, fua: false, limited_retry: false }.emit()
}

pub(crate) fn write_fua(slba: u64, nlb: u32) -> Sqe {
    IoCommand::Write { nsid: 1, slba, nlb, fua: true, limited_retry: false }.emit()
}

pub(crate) fn compare(slba: u64, nlb: u32) -> Sqe {
    IoCommand::Compare { nsid: 1, slba, nlb, fua: false, limited_retry: false }.emit()
}

pub(crate) fn flush() -> Sqe {
    IoCommand::Flush { nsid: 1 }.emit()
}

/// Returns bytes that differ by block and seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| (at.wrapping_mul(31) ^ at >> 9 ^ seed.wrapping_mul(97)) as u8)
        .collect()
}
