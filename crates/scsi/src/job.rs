//! Commands other than plain reads and writes, as state machines that make one disk request after
//! the other.

mod atomic;
mod copy;
mod plain;
mod provision;
mod reserve;
mod verify;
mod work;
mod write_atomic;

use std::mem;
use std::rc::Rc;

use export::{
    Admitted, Buffer, Exclusive, Fault, Grant, Op, Outcome, Request, ReservationCommand, Ticket,
};

use atomic::{CompareAndWrite, OrWrite};
use copy::ExtendedCopy;
use plain::{Eject, ModeSelect, Plain};
use provision::{LbaStatus, Unmap, WriteSame};
use reserve::Reserve;
use verify::{Verify, WriteAndVerify};
use work::{Action, DiskRequest, Work};
use write_atomic::WriteAtomic;

use crate::cdb::Cdb;
use crate::response::Response;
use crate::settings::Settings;
use crate::wire::sense::Sense;

/// What the transport has to do next for a [`Job`].
#[derive(Debug)]
pub enum Step {
    /// Receive the next `len` bytes from the initiator into a buffer of that length, and pass it to
    /// [`Job::received`].
    Receive {
        /// Length in bytes, at most [`Pool::MAX_BUFFER`](export::Pool::MAX_BUFFER).
        len: usize,
    },
    /// Allocate a buffer of `len` bytes, and pass it to [`Job::provide`].
    Allocate {
        /// Length in bytes, at most [`Pool::MAX_BUFFER`](export::Pool::MAX_BUFFER).
        len: usize,
        /// Whether the command holds a buffer already. The memory must then come from an account
        /// that no command uses which holds none
        /// ([`Purpose::SecondPhase`](export::Purpose::SecondPhase)), or commands may wait for each
        /// other for ever.
        holds_memory: bool,
    },
    /// Execute this disk request ([`export::Step::Submit`]), and pass its outcome to
    /// [`Job::complete`].
    Submit(Admitted),
    /// Another request has exclusive access, or writes of others have to end first: [poll](Job::poll) again after the next
    /// [`Notice::StateChanged`](export::Notice::StateChanged).
    Wait,
    /// Others may be waiting for this, or must know of it: return [`export::Step::Notify`], and
    /// [poll](Job::poll) again at once.
    Notify,
    /// The command has ended.
    Done(Response),
}

/// A command in progress.
///
/// The transport calls [`Job::poll`] when the command has begun, and again after each call of
/// another method that takes `&mut self`. The grant must be that of the command's nexus.
#[derive(Debug)]
pub struct Job {
    work: Box<dyn Work>,
    state: State,
    /// Exclusive access to the disk, from the read to the write of an atomic operation.
    exclusive: Option<Exclusive>,
    /// Operation and first block of the current disk request.
    current: (Op, u64),
}

#[derive(Debug)]
enum State {
    /// The work continues.
    Ready,
    /// A step is in progress.
    Pending,
    /// This disk request waits for its buffer.
    Unprovided(DiskRequest),
    /// This disk request is to be submitted.
    Unsubmitted(DiskRequest),
    /// The command ends with this response.
    Ending(Response),
    /// The command has ended.
    Ended,
}

impl Job {
    /// Creates the job of a command, which may change `settings`. Fails with the response of the
    /// command if it is refused.
    pub(crate) fn new(grant: &Grant, cdb: Cdb, settings: &Rc<Settings>) -> Result<Self, Response> {
        let work: Box<dyn Work> = match cdb {
            Cdb::Synchronize(range) => Box::new(Plain::synchronize(grant, range)?),
            Cdb::PreFetch(range) => Box::new(Plain::pre_fetch(grant, range)?),
            Cdb::ModeSelect { ten, length } => {
                Box::new(ModeSelect::new(ten, length, settings.clone()))
            }
            Cdb::Verify { range, check } => Box::new(Verify::new(grant, range, check)?),
            Cdb::WriteAndVerify { range, compare } => {
                Box::new(WriteAndVerify::new(grant, range, compare)?)
            }
            Cdb::CompareAndWrite { range, durable } => {
                Box::new(CompareAndWrite::new(grant, range, durable)?)
            }
            Cdb::WriteAtomic { range, durable } => {
                Box::new(WriteAtomic::new(grant, range, durable)?)
            }
            Cdb::OrWrite { range, durable } => Box::new(OrWrite::new(grant, range, durable)?),
            Cdb::WriteSame { range, unmap, no_data } => {
                Box::new(WriteSame::new(grant, range, unmap, no_data)?)
            }
            Cdb::Unmap { length } => Box::new(Unmap::new(grant, length)?),
            Cdb::GetLbaStatus { lba, allocation } => {
                Box::new(LbaStatus::new(grant, lba, allocation)?)
            }
            Cdb::ExtendedCopy { length } => Box::new(ExtendedCopy::new(length, settings.clone())?),
            Cdb::PersistentOut(out) => Box::new(Reserve::persistent(out)?),
            Cdb::ReserveUnit => Box::new(Reserve::unit(ReservationCommand::ReserveUnit)),
            Cdb::ReleaseUnit => Box::new(Reserve::unit(ReservationCommand::ReleaseUnit)),
            _ => return Err(Sense::INVALID_OPCODE.into()),
        };
        Ok(Self::from_work(work))
    }

    /// Creates a job that flushes the disk.
    pub(crate) fn flush() -> Self {
        Self::from_work(Box::new(Plain::flush()))
    }

    /// Creates a job that flushes the disk, which is ejected if that succeeds.
    pub(crate) fn eject(settings: &Rc<Settings>) -> Self {
        Self::from_work(Box::new(Eject::new(settings.clone())))
    }

    fn from_work(work: Box<dyn Work>) -> Self {
        Self { work, state: State::Ready, exclusive: None, current: (Op::Flush, 0) }
    }

    /// Returns how many bytes the CDB asks the initiator to send, in all.
    #[must_use]
    pub fn data_out(&self) -> u64 {
        self.work.data_out()
    }

    /// Returns whether it has exclusive access to the disk. A transport that drops such a job must
    /// return [`export::Step::Notify`].
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.exclusive.is_some()
    }

    /// Returns the next step, or `None` while one is in progress and after the end. A disk request
    /// gets a ticket with this number.
    pub fn poll(&mut self, grant: &Grant, ticket: u32) -> Option<Step> {
        match mem::replace(&mut self.state, State::Pending) {
            State::Ready => {
                let action = self.work.next(grant);
                self.act(action, grant, ticket)
            }
            State::Unsubmitted(request) => Some(self.submit(request, grant, ticket)),
            State::Ending(response) => Some(self.end(response)),
            state => {
                self.state = state;
                None
            }
        }
    }

    /// Takes data of a [`Step::Receive`].
    pub fn received(&mut self, buffer: Buffer) {
        self.work.received(buffer);
        self.state = State::Ready;
    }

    /// Takes the buffer of a [`Step::Allocate`].
    pub fn provide(&mut self, mut buffer: Buffer) {
        self.work.fill(&mut buffer);
        self.state = match mem::replace(&mut self.state, State::Pending) {
            State::Unprovided(request) => {
                State::Unsubmitted(DiskRequest { buffer: Some(buffer), ..request })
            }
            state => state,
        };
    }

    /// Takes the outcome of a [`Step::Submit`].
    pub fn complete(&mut self, outcome: Outcome) {
        let (op, lba) = self.current;
        self.state = match outcome.result {
            Ok(()) => {
                self.work.completed(outcome.buffer);
                State::Ready
            }
            Err(fault) if self.work.tolerates(fault) => State::Ready,
            Err(fault) => State::Ending(self.work.failed(fault, op, lba)),
        };
    }

    fn act(&mut self, action: Action, grant: &Grant, ticket: u32) -> Option<Step> {
        Some(match action {
            Action::Receive(len) => Step::Receive { len },
            Action::Allocate { len, holds_memory, request } => {
                self.state = State::Unprovided(request);
                Step::Allocate { len, holds_memory }
            }
            Action::Request(request) => self.submit(request, grant, ticket),
            Action::Wait => {
                self.state = State::Ready;
                Step::Wait
            }
            Action::Notify => {
                self.exclusive = None;
                self.state = State::Ready;
                Step::Notify
            }
            Action::End(response) => self.end(response),
        })
    }

    /// Ends exclusive access, if there is any, and then the command.
    fn end(&mut self, response: Response) -> Step {
        if self.exclusive.take().is_some() {
            self.state = State::Ending(response);
            return Step::Notify;
        }
        self.state = State::Ended;
        Step::Done(response)
    }

    /// Submits a disk request, which may have to wait.
    fn submit(&mut self, request: DiskRequest, grant: &Grant, ticket: u32) -> Step {
        let DiskRequest { op, lba, blocks, buffer, exclusive } = request;
        if exclusive {
            let right = self.exclusive.take().or_else(|| Exclusive::claim(grant.export()));
            let is_drained = right.as_ref().is_some_and(Exclusive::is_drained);
            let is_stale = right.as_ref().is_some_and(|right| !right.is_for(grant.export()));
            self.exclusive = right;
            if is_stale {
                // The disk was replaced.
                return self.end(Response::fault(Fault::Gone, op, lba));
            }
            if !is_drained {
                self.state = State::Unsubmitted(DiskRequest { op, lba, blocks, buffer, exclusive });
                return Step::Wait;
            }
        }
        self.current = (op, lba);
        let request = Request { op, lba, blocks, buffer, ticket: Ticket::new(ticket) };
        let admitted = match &self.exclusive {
            Some(right) => grant.admit_exclusive(request, right),
            None => grant.admit(request),
        };
        match admitted {
            Ok(admitted) => Step::Submit(admitted),
            Err(denied) if denied.fault == Fault::Busy => {
                let Request { buffer, .. } = denied.request;
                self.state = State::Unsubmitted(DiskRequest { op, lba, blocks, buffer, exclusive });
                Step::Wait
            }
            Err(denied) => self.end(Response::fault(denied.fault, op, lba)),
        }
    }
}
