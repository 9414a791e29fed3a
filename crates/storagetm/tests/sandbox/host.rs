//! A host on a blocking stream: attaches a disk and reads it.

use std::io::{Read, Write};

use export::{Account, Buffer, Pool};
use nvme::command::IoCommand;
use nvme::host::{Completion, Controller, Credentials, Options, Payload, Queue, Step};
use nvme::wire::Sqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData};

use std::sync::Arc;

/// The NQN of the host.
pub(crate) const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";

/// A queue and its connection.
struct Wire<S> {
    stream: S,
    queue: Queue,
    kept: Vec<u8>,
}

impl<S: Read + Write> Wire<S> {
    fn open(stream: S, queue: Queue) -> (Self, u16) {
        let mut wire = Self { stream, queue, kept: Vec::new() };
        match wire.step() {
            Step::Connected(response) => (wire, response.cntlid),
            step => panic!("Connect: {step:?}"),
        }
    }

    fn step(&mut self) -> Step {
        loop {
            match self.queue.poll() {
                Some(Step::Send(segment)) => {
                    segment
                        .parts()
                        .into_iter()
                        .for_each(|part| self.stream.write_all(part).unwrap());
                    self.stream.flush().unwrap();
                }
                Some(step) => return step,
                None => self.receive(),
            }
        }
    }

    fn receive(&mut self) {
        if let Some(mut landing) = self.queue.direct_recv() {
            let (start, end) = (landing.start, landing.end);
            let got = self.stream.read(&mut landing.buffer.bytes_mut()[start..end]).unwrap();
            assert_ne!(got, 0, "the connection ended");
            return self.queue.direct_received(landing, got);
        }
        let mut some = [0; 4096];
        let got = self.stream.read(&mut some).unwrap();
        assert_ne!(got, 0, "the connection ended");
        self.kept.extend_from_slice(&some[..got]);
        let taken = self.queue.receive(&self.kept);
        self.kept.drain(..taken);
    }

    fn ask(&mut self, sqe: Sqe, payload: Payload) -> Completion {
        self.queue.submit(sqe, payload, 0).unwrap();
        match self.step() {
            Step::Completed(done) => done,
            step => panic!("{step:?}"),
        }
    }
}

/// An attached disk; detached when dropped.
pub(crate) struct Attached<S> {
    _admin: Wire<S>,
    io: Wire<S>,
    memory: Account,
}

/// Attaches the disk `nqn` over streams that `connect` opens.
pub(crate) fn attach<S: Read + Write>(
    nqn: &str,
    credentials: Option<Arc<Credentials>>,
    mut connect: impl FnMut() -> S,
) -> Attached<S> {
    let memory = Pool::new(4 << 20).open();
    let data = |cntlid| ConnectData::emit([7; 16], cntlid, nqn, NQN).unwrap();
    let queue = |options, data| match &credentials {
        Some(credentials) => Queue::with_credentials(options, data, credentials.clone()),
        None => Queue::new(options, data),
    };
    let first = queue(Options::admin(), data(CNTLID_DYNAMIC));
    let (mut admin, cntlid) = Wire::open(connect(), first);
    let mut controller = Controller::new(cntlid, 1);
    while let Some(ask) = controller.next_command() {
        let payload = match ask.len {
            0 => Payload::None,
            len => Payload::Receive(memory.take(len).unwrap()),
        };
        let Completion { status, result, buffer, .. } = admin.ask(ask.sqe, payload);
        let bytes = buffer.as_ref().map_or(&[][..], Buffer::bytes);
        controller.complete(status, result, bytes).unwrap();
    }
    let options = Options::io(1, 8, controller.capsule_data());
    let (io, _) = Wire::open(connect(), queue(options, data(cntlid)));
    Attached { _admin: admin, io, memory }
}

impl<S: Read + Write> Attached<S> {
    /// Reads eight blocks from `slba` on. Returns whether that succeeded.
    pub(crate) fn read(&mut self, slba: u64) -> Vec<u8> {
        let command = IoCommand::Read { nsid: 1, slba, nlb: 8, fua: false, limited_retry: false };
        let payload = Payload::Receive(self.memory.take(8 * 512).unwrap());
        let done = self.io.ask(command.emit(), payload);
        assert!(done.status.is_success(), "{:?}", done.status);
        done.buffer.unwrap().bytes()[..4096].to_vec()
    }

    /// Writes a block with FUA. Returns whether that succeeded.
    pub(crate) fn write(&mut self, slba: u64, byte: u8) -> bool {
        let mut buffer = self.memory.take(512).unwrap();
        buffer.bytes_mut()[..512].fill(byte);
        let command = IoCommand::Write { nsid: 1, slba, nlb: 1, fua: true, limited_retry: false };
        let wrote = self.io.ask(command.emit(), Payload::Send(buffer.into()));
        let flushed = self.io.ask(IoCommand::Flush { nsid: 1 }.emit(), Payload::None);
        wrote.status.is_success() && flushed.status.is_success()
    }
}
