//! The Admin command set, and the controller's configuration (NVMe Base 2.0 §3.5, §5). What pages hold is in `identify`,
//! `log`, `feature` and `discovery`; events are in `event`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use export::{Body, Buffer, Grant, Op, Outcome, Step};

use super::TRANSFER;
use super::controller::{Abort, Kind};
use super::event::Events;
use super::fabrics::Connect;
use super::feature::Features;
use super::io::Work;
use super::queue::Queue;
use super::transfer::Size;
use crate::command::{AdminCommand, Transfer};
use crate::status::Status;
use crate::wire::command::Sqe;
use crate::wire::fabrics::{Cc, ConnectData, Csts};
use crate::wire::opcode;

/// A command that waits for its data, or for something to happen.
#[derive(Debug)]
pub(super) enum Waiting {
    /// Connect, for its data.
    Connect(Connect),
    /// Connect, for the writes of connections that have ended.
    Orphans(Connect, Box<ConnectData>),
    /// Authentication Send, for its message.
    Message,
    /// An Admin command, for its data.
    Data(AdminCommand),
    /// Asynchronous Event Request, for an event.
    Event,
    /// Abort, for the queue of the command that it names.
    Abort,
    /// A shutdown, for the writes of the I/O queues, and then for the disk to have put everything on stable storage.
    Shutdown,
}

/// What only the Admin queue of a controller knows.
#[derive(Debug)]
pub(super) struct Admin {
    pub(super) cc: Cc,
    pub(super) csts: Csts,
    pub(super) events: Events,
    pub(super) features: Features,
    /// Slots of Asynchronous Event Requests, oldest first.
    pub(super) requests: VecDeque<u16>,
    /// The shutdown that has not ended.
    shutdown: Option<Shutdown>,
    /// The discovery log, as it was when its reading began.
    pub(super) log: Option<Arc<[u8]>>,
}

/// A shutdown of the controller that has not ended.
#[derive(Debug, Clone, Copy)]
struct Shutdown {
    /// Slot of its command.
    at: u16,
    /// Whether the disk flushes: before that, writes are in flight.
    flushing: bool,
}

/// Asynchronous Event Requests that may wait: AERL 3, zero's based.
pub(super) const EVENT_REQUESTS: usize = 4;

/// Aborts that may wait: ACL 3, zero's based.
pub(super) const ABORTS: usize = 4;

impl Admin {
    pub(super) fn new(generation: u64, grant: Option<&Grant>) -> Self {
        Self {
            cc: Cc::default(),
            csts: Csts::default(),
            events: Events::new(generation, grant),
            features: Features::default(),
            requests: VecDeque::new(),
            shutdown: None,
            log: None,
        }
    }
}

/// What a command gives to the host.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing but dword 0.
    Dword(u32),
    /// A page.
    Page(Vec<u8>),
}

impl Queue {
    /// A command of the Admin queue.
    pub(super) fn admin_command(
        &mut self,
        at: u16,
        sqe: Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        if sqe.opcode == opcode::fabrics::OPCODE {
            return self.fabrics_command(at, &sqe, capsule);
        }
        let command = AdminCommand::parse(&sqe)?;
        if !self.is_allowed(&command) {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        match command.data_len() {
            Transfer::FromHost(len) => {
                self.set_work(at, Work::Admin(Box::new(Waiting::Data(command))));
                self.gather(at, &sqe, len, Size::AtLeast, capsule)
            }
            Transfer::ToHost(len) => {
                Self::check_to_host(&sqe, len.min(TRANSFER + 1), Size::AtLeast, capsule.as_ref())?;
                if len > TRANSFER {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                self.carry_out(at, command)
            }
            Transfer::None => {
                super::io::no_data(capsule.as_ref())?;
                self.carry_out(at, command)
            }
        }
    }

    /// Before the controller is enabled only Keep Alive is of use.
    fn is_allowed(&self, command: &AdminCommand) -> bool {
        let ready = self.link.as_ref().is_some_and(|link| link.controller.is_ready());
        ready || matches!(command, AdminCommand::KeepAlive)
    }

    /// The data of a command is there.
    pub(super) fn admin_loaded(&mut self, at: u16, waiting: Waiting, buffer: &Buffer) {
        match waiting {
            Waiting::Connect(connect) => self.connect_loaded(at, connect, buffer),
            Waiting::Message => self.message(at, buffer.bytes()),
            Waiting::Data(AdminCommand::SetFeatures { fid, cdw11, .. }) => {
                let done = self.set_feature_data(fid, cdw11, buffer.bytes());
                self.conclude(at, done.map(|()| Answer::Dword(0)));
            }
            _ => self.answer(at, Status::INTERNAL_ERROR),
        }
    }

    fn carry_out(&mut self, at: u16, command: AdminCommand) -> Result<(), Status> {
        let answer = match command {
            AdminCommand::Identify { cns, cntid, nsid, csi } => {
                Answer::Page(self.identify(cns, cntid, nsid, csi)?)
            }
            AdminCommand::GetLogPage { lid, numd, offset, rae, ot, nsid, .. } => {
                if ot {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                Answer::Page(self.log_page(lid, nsid, offset, numd, rae)?)
            }
            AdminCommand::SetFeatures { fid, save, nsid, cdw11, .. } => {
                Answer::Dword(self.set_feature(fid, save, nsid, cdw11)?)
            }
            AdminCommand::GetFeatures { fid, sel, nsid, cdw11 } => {
                self.get_feature(fid, sel, nsid, cdw11)?
            }
            AdminCommand::KeepAlive => Answer::Dword(0),
            AdminCommand::AsyncEventRequest => return self.request_event(at),
            AdminCommand::Abort { sqid, cid } => return self.request_abort(at, sqid, cid),
        };
        self.conclude(at, Ok(answer));
        Ok(())
    }

    fn conclude(&mut self, at: u16, answer: Result<Answer, Status>) {
        match answer {
            Ok(Answer::Dword(dw0)) => self.answer_with(at, Status::SUCCESS, dw0.into()),
            Ok(Answer::Page(page)) => {
                let len = page.len();
                self.answer_data(at, Body::Shared(page.into()), len);
            }
            Err(status) => self.answer(at, status),
        }
    }

    // ---- the controller's configuration

    /// Property Set of CC (NVMe Base 2.0 §3.1.3.5).
    pub(super) fn configure(&mut self, at: u16, cc: Cc) -> Result<(), Status> {
        let (Some(admin), Some(link)) = (&mut self.admin, &self.link) else {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        };
        let before = std::mem::replace(&mut admin.cc, cc);
        let controller = link.controller.clone();
        match (before.en(), cc.en()) {
            (0, 1) => {
                let valid = is_valid(cc, controller.kind);
                admin.csts = Csts::default().with_cfs((!valid).into());
            }
            (1, 0) => self.reset(),
            _ => {}
        }
        self.follow_enable();
        let shut_down = cc.shn() != 0 && before.shn() == 0;
        if shut_down {
            self.shut_down(at)
        } else {
            self.answer(at, Status::SUCCESS)
        }
        Ok(())
    }

    /// CSTS.RDY follows CC.EN when no write from before is in flight any more: then a reset is over, and an enabled
    /// controller may be used, unless it is being shut down or has been.
    fn follow_enable(&mut self) {
        let (Some(admin), Some(link)) = (&mut self.admin, &self.link) else { return };
        let (enable, ready) = (admin.cc.en(), admin.csts.rdy());
        let orphans = link.grant.as_ref().is_some_and(|grant| grant.export().has_orphans());
        let shut_down = admin.cc.shn() != 0 || admin.csts.shst() != 0;
        let may = admin.csts.cfs() == 0 && !orphans && (enable == 0 || !shut_down);
        if enable != ready && may {
            admin.csts = admin.csts.with_rdy(enable);
            link.controller.set_ready(enable == 1);
        }
    }

    /// Controller Level Reset: the I/O queues go, the Admin queue stays (NVMe Base 2.0 §3.7.2).
    fn reset(&mut self) {
        let (Some(admin), Some(link)) = (&mut self.admin, &self.link) else { return };
        admin.csts = Csts::default().with_rdy(admin.csts.rdy());
        admin.features = Features::default();
        admin.events.reset();
        let shutdown = admin.shutdown.take();
        link.controller.fence_off();
        let mut shared = link.controller.shared();
        shared.granted = 0;
        shared.open.clear();
        // Their commands went with the queues; queues that take their place have others.
        shared.aborts.iter_mut().for_each(|abort| abort.aborted = abort.aborted.or(Some(false)));
        link.controller.resets.fetch_add(1, Ordering::AcqRel);
        drop(shared);
        link.controller.write_through.store(false, Ordering::Relaxed);
        for at in std::mem::take(&mut admin.requests) {
            self.slots.release(at);
        }
        self.call_off(shutdown);
        self.out.push_back(Step::Notify);
    }

    /// Ends the command of a shutdown that a reset or another shutdown has taken the place of. If the disk flushes for it, it
    /// ends with the flush.
    fn call_off(&mut self, shutdown: Option<Shutdown>) {
        if let Some(Shutdown { at, flushing: false }) = shutdown {
            self.answer(at, Status::SUCCESS);
        }
    }

    /// Shutdown: takes no more of the I/O queues, and ends when the disk has put everything on stable storage (NVMe Base 2.0
    /// §3.6).
    fn shut_down(&mut self, at: u16) {
        if let Some(admin) = &mut self.admin {
            admin.csts = admin.csts.with_shst(Csts::SHST_OCCURRING);
            let before = admin.shutdown.replace(Shutdown { at, flushing: false });
            self.call_off(before);
        }
        if let Some(link) = &self.link {
            link.controller.fence_off();
        }
        self.set_work(at, Work::Admin(Box::new(Waiting::Shutdown)));
        self.out.push_back(Step::Notify);
        self.go_on_shutting_down();
    }

    /// Flushes the disk for a shutdown when no write is in flight any more that it would miss.
    fn go_on_shutting_down(&mut self) {
        let grant = self.link.as_ref().and_then(|link| link.grant.as_ref());
        if grant.is_some_and(|grant| grant.export().has_orphans()) {
            return;
        }
        let shutdown = self.admin.as_mut().and_then(|admin| admin.shutdown.as_mut());
        let Some(shutdown) = shutdown.filter(|shutdown| !shutdown.flushing) else { return };
        shutdown.flushing = true;
        let at = shutdown.at;
        // A disk that is gone, or that failed a flush before, does not keep its host from leaving.
        if grant.is_none_or(|grant| grant.permits(Op::Flush, 0, 0).is_err()) {
            return self.end_shutdown(at);
        }
        self.submit(at, Op::Flush, 0, 0, None, None);
    }

    /// The flush of a shutdown ended; the host can do nothing about how.
    pub(super) fn flushed(&mut self, at: u16, outcome: &Outcome) {
        if let Err(fault) = outcome.result {
            self.note_fault(Op::Flush, 0, 0, fault);
        }
        self.end_shutdown(at);
    }

    fn end_shutdown(&mut self, at: u16) {
        if let Some(admin) = &mut self.admin
            && admin.shutdown.take_if(|shutdown| shutdown.at == at).is_some()
        {
            admin.csts = admin.csts.with_shst(Csts::SHST_COMPLETE);
        }
        self.answer(at, Status::SUCCESS);
    }

    // ---- Abort

    /// Abort (NVMe Base 2.0 §5.1). Dword 0 bit 0 is clear if the command was aborted.
    fn request_abort(&mut self, at: u16, sqid: u16, cid: u16) -> Result<(), Status> {
        let Some(link) = &self.link else { return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()) };
        if sqid == 0 {
            let aborted =
                self.slots.find(cid).is_some_and(|other| other != at) && self.abort_own(cid);
            self.answer_with(at, Status::SUCCESS, u64::from(!aborted));
            return Ok(());
        }
        let controller = link.controller.clone();
        let mut shared = controller.shared();
        if shared.aborts.len() >= ABORTS {
            return Err(Status::ABORT_LIMIT_EXCEEDED.dnr());
        }
        if !shared.open.contains(&sqid) {
            drop(shared);
            self.answer_with(at, Status::SUCCESS, 1);
            return Ok(());
        }
        shared.aborts.push(Abort { sqid, cid, by: at, aborted: None });
        drop(shared);
        controller.has_aborts.store(true, Ordering::Release);
        self.set_work(at, Work::Admin(Box::new(Waiting::Abort)));
        self.out.push_back(Step::Notify);
        Ok(())
    }

    fn abort_own(&mut self, cid: u16) -> bool {
        if let (Some(admin), Some(at)) = (&mut self.admin, self.slots.find(cid)) {
            admin.requests.retain(|&other| other != at);
        }
        self.abort(cid)
    }

    /// Something changed: Aborts that the other queues have seen to, and what the host is to be told of.
    pub(super) fn admin_changed(&mut self) {
        self.follow_enable();
        self.go_on_shutting_down();
        self.answer_aborts();
        self.look_for_events();
    }

    fn answer_aborts(&mut self) {
        let Some(controller) = self.link.as_ref().map(|link| link.controller.clone()) else {
            return;
        };
        let mut shared = controller.shared();
        let open = std::mem::take(&mut shared.open);
        // A queue that has gone took its commands with it.
        let settled = |abort: &mut Abort| abort.aborted.is_some() || !open.contains(&abort.sqid);
        let done: Vec<Abort> = shared.aborts.extract_if(.., settled).collect();
        shared.open = open;
        controller.has_aborts.store(!shared.aborts.is_empty(), Ordering::Release);
        drop(shared);
        for abort in done {
            self.answer_with(abort.by, Status::SUCCESS, u64::from(abort.aborted != Some(true)));
        }
    }
}

/// What CC must say for the controller to become ready.
fn is_valid(cc: Cc, kind: Kind) -> bool {
    let sizes = kind == Kind::Discovery || (cc.iosqes() == 6 && cc.iocqes() == 4);
    cc.css() == 0 && cc.mps() == 0 && cc.ams() == 0 && sizes
}
