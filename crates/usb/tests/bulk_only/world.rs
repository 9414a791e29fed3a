//! A host at the endpoints of a session, and disks in memory.

use std::sync::Arc;
use std::time::Instant;

use export::{
    Access, Account, Admitted, Catalogue, Event, Export, Fault, Identity, Notice, Peer, Pool,
    Reason, Session as _, Step,
};
use testkit::execute;
use usb::wire::{CBW_SIGNATURE, Cbw, Csw, TO_HOST};
use usb::{Server, Session};
use zerocopy::{FromBytes, IntoBytes};

/// Size of each disk in bytes.
pub(crate) const SIZE: usize = 1 << 20;

/// The message on the bulk-in endpoint that is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    Data(Vec<u8>),
    Halt,
}

pub(crate) struct World {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) server: Arc<Server>,
    pub(crate) account: Account,
    pool: Pool,
    pub(crate) session: Option<Session>,
    pub(crate) disk: Vec<u8>,
    pub(crate) sent: Vec<Sent>,
    pub(crate) events: Vec<Event>,
    pub(crate) closed: Option<Reason>,
    /// Result of the next disk request.
    pub(crate) fault: Option<Fault>,
    /// Whether disk requests wait in `held`.
    pub(crate) hold: bool,
    pub(crate) held: Vec<Admitted>,
    pub(crate) notified: bool,
    tag: u32,
}

/// Creates a disk of [`SIZE`] bytes.
pub(crate) fn disk(name: &str, access: Access) -> Arc<Export> {
    disk_of(name, access, SIZE)
}

/// Creates a disk of this size in bytes.
pub(crate) fn disk_of(name: &str, access: Access, size: usize) -> Arc<Export> {
    let mut export = testkit::export(name, name, Identity::default(), (512, 512), size as u64);
    export.access = access;
    Arc::new(export)
}

impl World {
    pub(crate) fn new(disks: &[Arc<Export>]) -> Self {
        Self::sized(disks, SIZE)
    }

    /// Disks of this size in bytes.
    pub(crate) fn sized(disks: &[Arc<Export>], size: usize) -> Self {
        let catalogue = Arc::new(Catalogue::default());
        disks.iter().for_each(|disk| catalogue.publish(disk.clone()));
        let (pool, server) = (Pool::new(4 << 20), Server::new(catalogue.clone()));
        let mut world = Self {
            account: pool.open(),
            pool,
            catalogue,
            server,
            session: None,
            disk: (0..size).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect(),
            sent: Vec::new(),
            events: Vec::new(),
            closed: None,
            fault: None,
            hold: false,
            held: Vec::new(),
            notified: false,
            tag: 0,
        };
        world.reset();
        world
    }

    /// A writable disk.
    pub(crate) fn writable() -> Self {
        Self::new(&[disk("a", Access::Writable)])
    }

    /// Resets the device: a new session.
    pub(crate) fn reset(&mut self) {
        if let Some(mut session) = self.session.take() {
            session.notify(Instant::now(), &Notice::Disconnected);
            self.drain_of(&mut session);
        }
        // Their session is gone.
        self.held.drain(..).for_each(|job| drop(job.finish(Ok(()))));
        assert_eq!(self.account.held(), 0, "memory is freed");
        self.account = self.pool.open();
        self.closed = None;
        self.sent.clear();
        let session = self.server.session(Peer::usb(), self.account.clone(), Instant::now());
        self.session = Some(session);
    }

    pub(crate) fn session(&mut self) -> &mut Session {
        self.session.as_mut().unwrap()
    }

    /// Executes all steps.
    pub(crate) fn drain(&mut self) {
        let mut session = self.session.take().unwrap();
        self.drain_of(&mut session);
        while std::mem::take(&mut self.notified) {
            session.notify(Instant::now(), &Notice::StateChanged);
            self.drain_of(&mut session);
        }
        self.session = Some(session);
    }

    fn drain_of(&mut self, session: &mut Session) {
        while let Some(step) = session.poll() {
            match step {
                Step::Send(segment) => self.sent.push(Sent::Data(segment.parts().concat())),
                Step::Halt => self.sent.push(Sent::Halt),
                Step::Submit(job) if self.hold => self.held.push(job),
                Step::Submit(job) => self.finish(session, job),
                Step::Report(event) => self.events.push(*event),
                Step::Notify => self.notified = true,
                Step::Close(reason) => self.closed = Some(reason),
            }
        }
    }

    fn finish(&mut self, session: &mut Session, mut job: Admitted) {
        let result = self.fault.take().map_or(Ok(()), Err);
        if result.is_ok() {
            execute(&mut self.disk, &mut job);
        }
        let finished = job.finish(result);
        self.notified |= finished.contended.is_some();
        session.complete(Instant::now(), finished.ticket, finished.outcome);
    }

    /// Completes a held disk request.
    pub(crate) fn complete(&mut self, at: usize) {
        let job = self.held.remove(at);
        let mut session = self.session.take().unwrap();
        self.finish(&mut session, job);
        self.session = Some(session);
        self.drain();
    }

    /// Sends a transfer to the bulk-out endpoint: into windows, or as a wrapper.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        assert_eq!(self.offer(bytes), bytes.len(), "the device receives");
    }

    /// Sends a transfer as far as the device receives it. Returns how many bytes.
    pub(crate) fn offer(&mut self, bytes: &[u8]) -> usize {
        let mut left = bytes;
        while !left.is_empty() && self.closed.is_none() && self.session().can_receive() {
            let now = Instant::now();
            if let Some(mut window) = self.session().direct_recv() {
                let len = left.len().min(window.end - window.start);
                window.buffer.bytes_mut()[window.start..window.start + len]
                    .copy_from_slice(&left[..len]);
                left = &left[len..];
                self.session().direct_received(now, window, len);
            } else {
                assert_eq!(self.session().receive(now, left), left.len());
                left = &[];
            }
            self.drain();
        }
        bytes.len() - left.len()
    }

    /// Returns the wrapper of a command.
    pub(crate) fn cbw(&mut self, lun: u8, cdb: &[u8], to_host: bool, length: u32) -> Cbw {
        self.tag += 1;
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        Cbw {
            signature: CBW_SIGNATURE.into(),
            tag: self.tag.into(),
            length: length.into(),
            flags: if to_host { TO_HOST } else { 0 },
            lun,
            cdb_length: u8::try_from(cdb.len()).unwrap(),
            cdb: padded,
        }
    }

    /// Executes a command that reads `length` bytes. Returns data, whether the pipe was halted,
    /// residue and status.
    pub(crate) fn read(&mut self, lun: u8, cdb: &[u8], length: u32) -> (Vec<u8>, bool, u32, u8) {
        let cbw = self.cbw(lun, cdb, true, length);
        self.send(cbw.as_bytes());
        self.answer()
    }

    /// Executes a command that writes `data`. Returns what [`World::read`] returns.
    pub(crate) fn write(&mut self, lun: u8, cdb: &[u8], data: &[u8]) -> (Vec<u8>, bool, u32, u8) {
        let cbw = self.cbw(lun, cdb, false, u32::try_from(data.len()).unwrap());
        self.send(cbw.as_bytes());
        if !data.is_empty() {
            self.send(data);
        }
        self.answer()
    }

    /// Takes the data and the status of the command.
    pub(crate) fn answer(&mut self) -> (Vec<u8>, bool, u32, u8) {
        let Some(Sent::Data(csw)) = self.sent.pop() else { panic!("no status: {:?}", self.sent) };
        let csw = Csw::read_from_bytes(&csw).expect("13 bytes");
        assert_eq!(csw.tag.get(), self.tag);
        let halted = self.sent.last() == Some(&Sent::Halt);
        let data = self.sent.drain(..).filter_map(|sent| match sent {
            Sent::Data(data) => Some(data),
            Sent::Halt => None,
        });
        (data.collect::<Vec<_>>().concat(), halted, csw.residue.get(), csw.status)
    }

    /// Takes the unit attention condition of a new session.
    pub(crate) fn attended(mut self) -> Self {
        assert_eq!(self.read(0, &[0; 6], 0), (vec![], false, 0, 1));
        self
    }

    /// Returns the sense code.
    pub(crate) fn sense(&mut self, lun: u8) -> (u8, u8, u8) {
        let (data, _, _, status) = self.read(lun, &[3, 0, 0, 0, 18, 0], 18);
        assert_eq!(status, 0);
        (data[2], data[12], data[13])
    }
}

/// READ (10) or WRITE (10).
pub(crate) fn transfer_10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [high, low] = blocks.to_be_bytes();
    [opcode, 0, a, b, c, d, 0, high, low, 0]
}
