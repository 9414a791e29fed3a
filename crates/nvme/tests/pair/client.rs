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
pub(crate) struct AttachParams {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) hpda: u8,
    pub(crate) flow_control: bool,
    pub(crate) entries: u16,
    pub(crate) queues: u16,
    pub(crate) keep_alive: u32,
    pub(crate) subsystem: &'static str,
    pub(crate) host: &'static str,
    pub(crate) host_id: [u8; 16],
}

impl Default for AttachParams {
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
            host_id: [3; 16],
        }
    }
}

impl AttachParams {
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
        ConnectData::emit(self.host_id, cntlid, self.subsystem, self.host).unwrap()
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
        let client = self.attach(&AttachParams::default());
        let io = client.io[0];
        (client, io)
    }

    /// Attaches a disk: Admin queue, initialization as in Linux, I/O queues.
    pub(crate) fn attach(&mut self, params: &AttachParams) -> Client {
        let (admin, cntlid) = self.open_admin(params);
        let mut controller = Controller::new(cntlid, params.queues);
        self.initialize(admin, &mut controller).unwrap();
        let queues = if params.subsystem == DISCOVERY_NQN { 0 } else { controller.queues() };
        let io = (1..=queues)
            .map(|qid| self.open_io(params, cntlid, qid, controller.capsule_data()))
            .collect();
        Client { admin, io, controller, cntlid }
    }

    /// Connects an Admin queue.
    pub(crate) fn open_admin(&mut self, params: &AttachParams) -> (usize, u16) {
        let admin = self.connect(params.options(Options::admin()), params.data(CNTLID_DYNAMIC));
        self.run();
        let cntlid =
            self.connections[admin].connected.expect("the Admin queue was not connected").cntlid;
        (admin, cntlid)
    }

    /// Connects an I/O queue.
    pub(crate) fn open_io(
        &mut self,
        params: &AttachParams,
        cntlid: u16,
        qid: u16,
        capsule: u32,
    ) -> usize {
        let options = params.options(Options::io(qid, params.entries, capsule));
        let io = self.connect(options, params.data(cntlid));
        self.run();
        let refused = self.connections[io].refused;
        assert!(self.connections[io].connected.is_some(), "refused: {refused:?}");
        io
    }

    /// Initializes a controller as Linux does.
    pub(crate) fn initialize(
        &mut self,
        conn: usize,
        controller: &mut Controller,
    ) -> Result<(), InitError> {
        while let Some(ask) = controller.next_command() {
            let payload = match ask.len {
                0 => Payload::None,
                len => Payload::Receive(self.buffer(len)),
            };
            let done = self.command(conn, ask.sqe, payload);
            let page = done.buffer.as_ref().map_or(&[][..], Buffer::bytes);
            controller.complete(done.status, done.result, page)?;
        }
        Ok(())
    }

    /// Submits a command without waiting for its completion.
    pub(crate) fn submit(&mut self, conn: usize, sqe: Sqe, payload: Payload, tag: u32) -> u16 {
        self.connections[conn].host.submit(sqe, payload, tag).expect("the queue has no room")
    }

    /// Sends a command, and runs until it completes.
    pub(crate) fn command(&mut self, conn: usize, sqe: Sqe, payload: Payload) -> Completion {
        self.submit(conn, sqe, payload, u32::MAX);
        self.run();
        self.completion(conn, u32::MAX).unwrap_or_else(|| {
            let Connection { host_end, target_end } = self.ends(conn);
            panic!("no answer; host {host_end:?}, target {target_end:?}")
        })
    }

    fn ends(&self, conn: usize) -> Connection {
        let conn = &self.connections[conn];
        Connection { host_end: conn.host_end, target_end: conn.target_end }
    }

    /// Returns the completion of a command, if it has completed.
    pub(crate) fn completion(&mut self, conn: usize, tag: u32) -> Option<Completion> {
        let done = &mut self.connections[conn].done;
        let at = done.iter().position(|done| done.tag == tag)?;
        Some(done.remove(at))
    }

    /// Returns the status of a command, which must have completed.
    pub(crate) fn status(&mut self, conn: usize, tag: u32) -> Status {
        self.completion(conn, tag).expect("no answer").status
    }

    /// Sends a command without data.
    pub(crate) fn send_dataless(&mut self, conn: usize, sqe: Sqe) -> Completion {
        self.command(conn, sqe, Payload::None)
    }

    /// Returns the data of an Admin command.
    pub(crate) fn page(&mut self, conn: usize, command: AdminCommand) -> Result<Vec<u8>, Status> {
        let len = command.data_len().len() as usize;
        let done = self.command(conn, command.emit(), Payload::Receive(self.buffer(len)));
        if done.status.is_success() {
            Ok(done.buffer.unwrap().bytes().to_vec())
        } else {
            Err(done.status)
        }
    }

    /// Returns a host buffer with these bytes.
    pub(crate) fn host_buffer(&self, bytes: &[u8]) -> Rc<Buffer> {
        let mut buffer = self.buffer(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        Rc::new(buffer)
    }

    pub(crate) fn read(&mut self, conn: usize, lba: u64, nlb: u32) -> Result<Vec<u8>, Status> {
        let buffer = self.buffer(nlb as usize * 512);
        let done = self.command(conn, read(lba, nlb), Payload::Receive(buffer));
        if done.status.is_success() {
            Ok(done.buffer.unwrap().bytes().to_vec())
        } else {
            Err(done.status)
        }
    }

    pub(crate) fn write(&mut self, conn: usize, lba: u64, bytes: &[u8]) -> Status {
        let nlb = u32::try_from(bytes.len() / 512).unwrap();
        self.command(conn, write(lba, nlb), Payload::Send(self.host_buffer(bytes))).status
    }

    /// Property Set of CC.
    pub(crate) fn configure(&mut self, conn: usize, cc: Cc) -> Status {
        let (attrib, offset) = (PropertySize::Four, property::CC);
        self.send_dataless(
            conn,
            FabricsCommand::PropertySet { attrib, offset, value: cc.0.into() }.emit(),
        )
        .status
    }

    /// Property Get.
    pub(crate) fn property(&mut self, conn: usize, attrib: PropertySize, offset: u32) -> u64 {
        let done = self.send_dataless(conn, FabricsCommand::PropertyGet { attrib, offset }.emit());
        assert!(done.status.is_success());
        done.result
    }
}

/// Ends of a connection.
struct Connection {
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
