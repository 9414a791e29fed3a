//! A transport that executes each command at once, with disk requests that can be held.

use std::collections::VecDeque;
use std::sync::Arc;

use export::{
    Access, Account, Admitted, Buffer, Export, Fault, Grant, Identity, Op, Pool, Request, Ticket,
};
use scsi::{Command, Job, Nexus, Port, Response, Step, Transfer};
use testkit::execute;

pub(crate) const SECTOR: usize = 512;

/// A disk with its initiators.
pub(crate) struct World {
    pub(crate) disk: Vec<u8>,
    pub(crate) export: Arc<Export>,
    pub(crate) initiators: Vec<Initiator>,
    /// Results of the next disk requests.
    pub(crate) faults: VecDeque<Result<(), Fault>>,
    /// The operations of all disk requests.
    pub(crate) ops: Vec<(Op, u64, u64)>,
    pub(crate) notifications: usize,
}

pub(crate) struct Initiator {
    pub(crate) grant: Grant,
    pub(crate) nexus: Nexus,
    pub(crate) account: Account,
}

/// How far a job has come.
pub(crate) enum Progress {
    Done(Response),
    Waiting(Box<Job>),
    /// A disk request is held.
    Submitted(Box<Job>, Admitted),
}

/// Creates the export of a disk of 512 blocks.
fn export(geometry: (u32, u32)) -> Export {
    let identity = Identity {
        uuid: *b"\xa1\x02\x03\x04\x05\x06\x87\x08\x89\x0a\x0b\x0c\x0d\x0e\x0f\x10",
        serial: "S1234".to_owned(),
        model: "A model of more than 16 characters".to_owned(),
        firmware: "1.2".to_owned(),
        ..Identity::default()
    };
    testkit::export("disk", "disk", identity, geometry, u64::from(geometry.0) * 512)
}

/// The port of an iSCSI target.
pub(crate) fn port() -> Port {
    Port {
        standard: 0x0960,
        protocol: Some(5),
        device: "iqn.2026-01.org.example:disk".to_owned(),
        name: "iqn.2026-01.org.example:disk,t,0x0001".to_owned(),
        relative: 1,
    }
}

impl World {
    /// Creates a disk of 512 blocks with 512 bytes, and one initiator that has taken its unit
    /// attention.
    pub(crate) fn new() -> Self {
        Self::of((512, 4096), |_| {})
    }

    pub(crate) fn read_only() -> Self {
        Self::of((512, 4096), |export| export.access = Access::ReadOnly)
    }

    /// Creates a disk of 512 blocks with that logical and physical size, changed by `change`.
    pub(crate) fn of(geometry: (u32, u32), change: impl FnOnce(&mut Export)) -> Self {
        let mut export = export(geometry);
        change(&mut export);
        let disk = (0..251).cycle().take(usize::try_from(export.bytes()).unwrap()).collect();
        let mut world = Self {
            disk,
            export: Arc::new(export),
            initiators: Vec::new(),
            faults: VecDeque::new(),
            ops: Vec::new(),
            notifications: 0,
        };
        world.add();
        world
    }

    /// Adds an initiator that has taken its unit attention. Returns its index.
    pub(crate) fn add(&mut self) -> usize {
        let number = self.initiators.len();
        let id = [0x40, 0, 0, 0, 0, u8::try_from(number).unwrap()];
        let grant = Grant::new(self.export.clone());
        let grant = grant.with_registrant("iqn.2026-01.org.example:host", &id, 1);
        let nexus = Nexus::new(&grant, Arc::new(port()));
        let account = Pool::new(1 << 22).open();
        self.initiators.push(Initiator { grant, nexus, account });
        assert_eq!(code(&self.send(number, &[0], &[])), (0x29, 0));
        number
    }

    /// Notifies all initiators of a change.
    pub(crate) fn notify(&mut self) {
        self.initiators.iter_mut().for_each(|one| one.nexus.changed(&one.grant));
    }

    /// Replaces the export by another one of the same disk.
    pub(crate) fn replace(&mut self) {
        self.export.withdraw();
        self.export = Arc::new(export((512, 4096)));
        self.initiators.iter_mut().for_each(|one| one.grant = Grant::new(self.export.clone()));
    }

    /// Executes a command of the first initiator.
    pub(crate) fn run(&mut self, cdb: &[u8]) -> Response {
        self.send(0, cdb, &[])
    }

    /// Executes a command of the first initiator that sends data.
    pub(crate) fn run_out(&mut self, cdb: &[u8], data: &[u8]) -> Response {
        self.send(0, cdb, data)
    }

    /// Executes a command. The data of a read is that of the response.
    pub(crate) fn send(&mut self, who: usize, cdb: &[u8], data: &[u8]) -> Response {
        self.send_to(who, [0; 8], cdb, data)
    }

    pub(crate) fn send_to(
        &mut self,
        who: usize,
        lun: scsi::Lun,
        cdb: &[u8],
        data: &[u8],
    ) -> Response {
        match self.begin(who, lun, cdb) {
            Command::Done(response) => response,
            Command::Read(transfer) => self.read(who, transfer),
            Command::Write(transfer) => self.write(who, transfer, data),
            Command::Job(job) => {
                let mut data = data;
                let mut progress = self.advance(who, job, &mut data);
                loop {
                    match progress {
                        Progress::Done(response) => return response,
                        Progress::Waiting(_) => panic!("waits for others"),
                        Progress::Submitted(job, admitted) => {
                            progress = self.finish(who, job, admitted, &mut data);
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn begin(&mut self, who: usize, lun: scsi::Lun, cdb: &[u8]) -> Command {
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        let Initiator { grant, nexus, .. } = &mut self.initiators[who];
        nexus.command(grant, lun, &padded)
    }

    /// Begins a command that is a job.
    pub(crate) fn job(&mut self, who: usize, cdb: &[u8]) -> Box<Job> {
        match self.begin(who, [0; 8], cdb) {
            Command::Job(job) => job,
            other => panic!("{other:?}"),
        }
    }

    /// Advances a job until it ends, waits or makes a disk request.
    pub(crate) fn advance(&mut self, who: usize, mut job: Box<Job>, data: &mut &[u8]) -> Progress {
        let Initiator { grant, account, .. } = &self.initiators[who];
        loop {
            match job.poll(grant, 7).expect("nothing to do") {
                Step::Receive { len } => {
                    let (now, later) = data.split_at_checked(len).expect("too much is received");
                    *data = later;
                    job.received(filled(account, now));
                }
                Step::Allocate { len, .. } => {
                    let mut buffer = account.take(len).unwrap();
                    buffer.bytes_mut().fill(testkit::POISON);
                    job.provide(buffer);
                }
                Step::Submit(admitted) => return Progress::Submitted(job, admitted),
                Step::Wait => return Progress::Waiting(job),
                Step::Notify => self.notifications += 1,
                Step::Done(response) => {
                    assert!(!job.is_exclusive());
                    assert!(job.poll(grant, 7).is_none());
                    return Progress::Done(response);
                }
            }
        }
    }

    /// Completes a disk request of a job, and advances it.
    pub(crate) fn finish(
        &mut self,
        who: usize,
        mut job: Box<Job>,
        admitted: Admitted,
        data: &mut &[u8],
    ) -> Progress {
        let outcome = self.perform(admitted);
        job.complete(outcome);
        self.advance(who, job, data)
    }

    fn perform(&mut self, mut admitted: Admitted) -> export::Outcome {
        let result = self.faults.pop_front().unwrap_or(Ok(()));
        let block = u64::from(self.export.geometry.block());
        self.ops.push((admitted.op(), admitted.offset() / block, admitted.len() / block));
        if result.is_ok() {
            execute(&mut self.disk, &mut admitted);
        }
        admitted.finish(result).outcome
    }

    fn read(&mut self, who: usize, transfer: Transfer) -> Response {
        let mut data = Vec::new();
        for (lba, buffer) in self.pieces(who, transfer) {
            match self.submit(who, Op::Read, lba, buffer) {
                Ok(buffer) => data.extend_from_slice(buffer.bytes()),
                Err(fault) => return Response::fault(fault, Op::Read, lba),
            }
        }
        Response { data, ..Response::good() }
    }

    fn write(&mut self, who: usize, transfer: Transfer, mut data: &[u8]) -> Response {
        let op = Op::Write { durable: transfer.durable };
        for (lba, mut buffer) in self.pieces(who, transfer) {
            let (now, later) = data.split_at(buffer.len());
            data = later;
            buffer.bytes_mut().copy_from_slice(now);
            if let Err(fault) = self.submit(who, op, lba, buffer) {
                return Response::fault(fault, op, lba);
            }
        }
        Response::good()
    }

    /// Returns a buffer for each piece, of at most three blocks.
    fn pieces(&self, who: usize, transfer: Transfer) -> Vec<(u64, Buffer)> {
        let block = self.export.geometry.block() as usize;
        let starts = (0..transfer.blocks).step_by(3);
        let piece = |start| {
            let len = block * 3.min(transfer.blocks - start) as usize;
            (transfer.lba + u64::from(start), self.initiators[who].account.take(len).unwrap())
        };
        starts.map(piece).collect()
    }

    fn submit(&mut self, who: usize, op: Op, lba: u64, buffer: Buffer) -> Result<Buffer, Fault> {
        let blocks = (buffer.len() >> self.export.geometry.shift()) as u64;
        let request = Request { op, lba, blocks, buffer: Some(buffer), ticket: Ticket::new(7) };
        let admitted = self.initiators[who].grant.admit(request).map_err(|denied| denied.fault)?;
        let outcome = self.perform(admitted);
        outcome.result.map(|()| outcome.buffer.unwrap())
    }

    /// Returns the bytes of a range of blocks.
    pub(crate) fn blocks(&self, lba: usize, blocks: usize) -> &[u8] {
        let block = self.export.geometry.block() as usize;
        &self.disk[lba * block..(lba + blocks) * block]
    }
}

fn filled(account: &Account, data: &[u8]) -> Buffer {
    let mut buffer = account.take(data.len()).unwrap();
    buffer.bytes_mut().copy_from_slice(data);
    buffer
}

/// Returns the additional sense code and qualifier of a response.
pub(crate) fn code(response: &Response) -> (u8, u8) {
    response.sense.unwrap_or(scsi::Sense::NONE).code()
}

/// Returns a CDB of 10 bytes.
pub(crate) fn ten(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.push(0);
    cdb.extend(blocks.to_be_bytes());
    cdb.push(0);
    cdb
}

/// Returns a CDB of 16 bytes.
pub(crate) fn sixteen(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(blocks.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}
