//! A SCSI disk with two initiators under arbitrary commands: CDBs, parameter lists, jobs that are
//! completed in any order, fail or are dropped, and changes of the disk. Checks that every command
//! ends with a well-formed response of at most the allocation length, and that no exclusive access
//! is left behind.

use export::{Admitted, Fault};
use scsi::{Attention, Command, Job, Response, Status};

use crate::input::Input;
use crate::scsi_world::{Progress, World};

/// Maximum number of jobs in progress.
const MAX_JOBS: usize = 6;

/// Supported operation codes.
const OPCODES: [u8; 45] = [
    0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1e, 0x23, 0x25, 0x28, 0x2a, 0x2e,
    0x2f, 0x34, 0x35, 0x37, 0x41, 0x42, 0x55, 0x5a, 0x5e, 0x5f, 0x83, 0x84, 0x88, 0x89, 0x8a, 0x8b,
    0x8e, 0x8f, 0x90, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa8, 0xaa, 0xae, 0xaf, 0xb7,
];

/// A job in progress.
struct InProgress {
    who: usize,
    job: Box<Job>,
    /// The disk request that is held; without it, the job waits.
    held: Option<Admitted>,
    /// Data of the initiator that has not been received yet.
    data: Vec<u8>,
}

struct Harness<'a> {
    input: Input<'a>,
    world: World,
    jobs: Vec<InProgress>,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let geometry = if input.bit() { (512, 4096) } else { (4096, 4096) };
    let mut world = World::of(geometry, |_| {});
    world.add();
    let mut harness = Harness { input, world, jobs: Vec::new() };
    for _ in 0..300 {
        if harness.input.is_over() {
            break;
        }
        harness.step();
    }
    harness.end();
}

impl Harness<'_> {
    fn step(&mut self) {
        match self.input.byte() % 8 {
            0..=3 => self.command(),
            4 | 5 => self.finish(),
            6 => self.event(),
            _ => self.fault(),
        }
    }

    fn command(&mut self) {
        if self.jobs.len() >= MAX_JOBS {
            return self.finish();
        }
        let mut cdb = [0; 16];
        for _ in 0..self.input.byte() % 6 {
            let (at, byte) = (self.input.below(16), self.input.byte());
            cdb[at] = byte;
        }
        let choice = usize::from(self.input.byte());
        cdb[0] = OPCODES.get(choice % 48).copied().unwrap_or(cdb[0]);
        let who = usize::from(self.input.bit());
        let lun = if self.input.byte() == 1 { [0, 1, 0, 0, 0, 0, 0, 0] } else { [0; 8] };
        match self.world.begin(who, lun, &cdb) {
            Command::Done(response) => check(&response),
            Command::Read(transfer) | Command::Write(transfer) => {
                let end = transfer.lba.checked_add(transfer.blocks.into());
                assert!(end.is_some_and(|end| end <= self.world.export.blocks()));
            }
            Command::Job(job) => {
                let data = self.data(usize::try_from(job.data_out()).unwrap());
                self.advance(InProgress { who, job, held: None, data });
            }
        }
    }

    /// Returns data of an initiator: chosen bytes, and then one byte repeated.
    fn data(&mut self, len: usize) -> Vec<u8> {
        let chosen = usize::from(self.input.byte());
        let mut data = self.input.take(chosen.min(len)).to_vec();
        data.resize(len, self.input.byte());
        data
    }

    fn advance(&mut self, current: InProgress) {
        let InProgress { who, job, held, data } = current;
        let mut left = &data[..];
        let progress = match held {
            Some(admitted) => self.world.finish(who, job, admitted, &mut left),
            None => self.world.advance(who, job, &mut left),
        };
        let data = left.to_vec();
        match progress {
            Progress::Done(response) => {
                check(&response);
                assert!(!response.is_good() || data.is_empty());
            }
            Progress::Waiting(job) => self.jobs.push(InProgress { who, job, held: None, data }),
            Progress::Submitted(job, admitted) => {
                self.jobs.push(InProgress { who, job, held: Some(admitted), data });
            }
        }
    }

    /// Completes a held disk request, or polls a job that waits.
    fn finish(&mut self) {
        if self.jobs.is_empty() {
            return;
        }
        let at = self.input.below(self.jobs.len());
        let current = self.jobs.swap_remove(at);
        self.advance(current);
    }

    fn event(&mut self) {
        match self.input.byte() % 8 {
            0 if !self.jobs.is_empty() => {
                // Aborted once its request is off the disk.
                let at = self.input.below(self.jobs.len());
                let InProgress { held, .. } = self.jobs.swap_remove(at);
                held.into_iter().for_each(|admitted| drop(admitted.finish(Ok(()))));
            }
            1 => {
                let bytes = u64::from(self.input.byte()) << 12;
                let limit = self.world.disk.len() as u64;
                self.world.export.resize(bytes.min(limit));
            }
            2 => self.world.initiators[0].nexus.attend(Attention::Reset),
            3 if self.jobs.is_empty() => self.world.replace(),
            _ => self.world.notify(),
        }
    }

    fn fault(&mut self) {
        let fault = Fault::ALL.get(usize::from(self.input.byte() % 16)).copied();
        self.world.faults.push_back(fault.map_or(Ok(()), Err));
    }

    /// Completes everything.
    fn end(mut self) {
        for _ in 0..10_000 {
            let Some(current) = self.jobs.pop() else { break };
            let waits = current.held.is_none();
            self.advance(current);
            if waits && !self.jobs.is_empty() {
                // Another one must end first.
                self.jobs.rotate_right(1);
            }
        }
        assert!(self.jobs.is_empty(), "jobs wait for each other");
        assert!(!self.world.export.is_being_written());
    }
}

fn check(response: &Response) {
    assert_eq!(response.sense.is_some(), response.status == Status::CheckCondition);
    assert!(response.data.is_empty() || response.is_good());
}
