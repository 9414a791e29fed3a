//! The Admin command set and controller configuration (NVMe Base 2.0 §3.5, §5). `identify`,
//! `log`, `feature` and `discovery` build the data structures; `event` handles events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use export::{Body, Buffer, Grant, Op, Outcome, Step};

use super::MAX_TRANSFER;
use super::controller::{Abort, ControllerType};
use super::event::Events;
use super::fabrics::Connect;
use super::feature::Features;
use super::io::Work;
use super::queue::Queue;
use super::transfer::LengthCheck;
use crate::command::{AdminCommand, Transfer};
use crate::status::Status;
use crate::wire::command::Sqe;
use crate::wire::fabrics::{Cc, ConnectData, Csts};
use crate::wire::opcode;

/// An Admin or Fabrics command that is pending.
#[derive(Debug)]
pub(super) enum PendingAdmin {
    /// Connect: waits for its data.
    Connect(Connect),
    /// Connect: waits for orphaned writes of earlier connections to end.
    BlockedConnect(Connect, Box<ConnectData>),
    /// Authentication Send: waits for its message.
    AuthMessage,
    /// An Admin command: waits for its data.
    Data(AdminCommand),
    /// Asynchronous Event Request: waits for an event.
    Event,
    /// Abort: waits for the queue that owns the command.
    Abort,
    /// Shutdown: waits for writes of the I/O queues in flight, then for the flush of the disk.
    Shutdown,
}

/// State of a controller that only its Admin queue uses.
#[derive(Debug)]
pub(super) struct Admin {
    pub(super) cc: Cc,
    pub(super) csts: Csts,
    pub(super) events: Events,
    pub(super) features: Features,
    /// Slots of outstanding Asynchronous Event Requests, oldest first.
    pub(super) requests: VecDeque<u16>,
    /// The shutdown in progress.
    shutdown: Option<Shutdown>,
    /// Snapshot of the discovery log, taken when it was read from offset zero.
    pub(super) log: Option<Arc<[u8]>>,
}

/// A shutdown of the controller in progress.
#[derive(Debug, Clone, Copy)]
struct Shutdown {
    /// Slot of the Property Set that requested it.
    tag: u16,
    /// Whether the flush was submitted. Before that, writes are in flight.
    flushing: bool,
}

/// Maximum of outstanding Asynchronous Event Requests: AERL 3, zero's based.
pub(super) const MAX_EVENT_REQUESTS: usize = 4;

/// Maximum of outstanding Aborts: ACL 3, zero's based.
pub(super) const MAX_ABORTS: usize = 4;

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

/// Result of a successful Admin command.
#[derive(Debug)]
pub(super) enum AdminResult {
    /// Dword 0 of the completion; no data.
    Dword(u32),
    /// Data for the host.
    Page(Vec<u8>),
}

impl Queue {
    /// Handles a command of the Admin queue.
    pub(super) fn admin_command(
        &mut self,
        tag: u16,
        sqe: Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        if sqe.opcode == opcode::fabrics::OPCODE {
            return self.fabrics_command(tag, &sqe, capsule);
        }
        let command = AdminCommand::parse(&sqe)?;
        if !self.is_allowed(&command) {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        match command.data_len() {
            Transfer::FromHost(len) => {
                self.set_work(tag, Work::Admin(Box::new(PendingAdmin::Data(command))));
                self.receive_data(tag, &sqe, len, LengthCheck::AtLeast, capsule)
            }
            Transfer::ToHost(len) => {
                Self::check_to_host(
                    &sqe,
                    len.min(MAX_TRANSFER + 1),
                    LengthCheck::AtLeast,
                    capsule.as_ref(),
                )?;
                if len > MAX_TRANSFER {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                self.execute(tag, command)
            }
            Transfer::None => {
                super::io::check_no_data(capsule.as_ref())?;
                self.execute(tag, command)
            }
        }
    }

    /// Returns whether the controller state allows the command: before CSTS.RDY only Keep Alive.
    fn is_allowed(&self, command: &AdminCommand) -> bool {
        let ready = self.binding.as_ref().is_some_and(|binding| binding.controller.is_ready());
        ready || matches!(command, AdminCommand::KeepAlive)
    }

    /// Continues a command whose data was received.
    pub(super) fn admin_data_received(&mut self, tag: u16, waiting: PendingAdmin, buffer: &Buffer) {
        match waiting {
            PendingAdmin::Connect(connect) => self.connect_data_received(tag, connect, buffer),
            PendingAdmin::AuthMessage => self.auth_message(tag, buffer.bytes()),
            PendingAdmin::Data(AdminCommand::SetFeatures { fid, cdw11, .. }) => {
                let done = self.set_feature_data(fid, cdw11, buffer.bytes());
                self.finish_admin(tag, done.map(|()| AdminResult::Dword(0)));
            }
            _ => self.finish(tag, Status::INTERNAL_ERROR),
        }
    }

    fn execute(&mut self, tag: u16, command: AdminCommand) -> Result<(), Status> {
        let finish = match command {
            AdminCommand::Identify { cns, cntid, nsid, csi } => {
                AdminResult::Page(self.identify(cns, cntid, nsid, csi)?)
            }
            AdminCommand::GetLogPage { lid, numd, offset, rae, ot, nsid, .. } => {
                if ot {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                AdminResult::Page(self.log_page(lid, nsid, offset, numd, rae)?)
            }
            AdminCommand::SetFeatures { fid, save, nsid, cdw11, .. } => {
                AdminResult::Dword(self.set_feature(fid, save, nsid, cdw11)?)
            }
            AdminCommand::GetFeatures { fid, sel, nsid, cdw11 } => {
                self.get_feature(fid, sel, nsid, cdw11)?
            }
            AdminCommand::KeepAlive => AdminResult::Dword(0),
            AdminCommand::AsyncEventRequest => return self.request_event(tag),
            AdminCommand::Abort { sqid, cid } => return self.request_abort(tag, sqid, cid),
        };
        self.finish_admin(tag, Ok(finish));
        Ok(())
    }

    fn finish_admin(&mut self, tag: u16, finish: Result<AdminResult, Status>) {
        match finish {
            Ok(AdminResult::Dword(dw0)) => self.finish_with(tag, Status::SUCCESS, dw0.into()),
            Ok(AdminResult::Page(page)) => {
                let len = page.len();
                self.finish_with_data(tag, Body::Shared(page.into()), len);
            }
            Err(status) => self.finish(tag, status),
        }
    }

    // ---- the controller's configuration

    /// Handles Property Set of CC (NVMe Base 2.0 §3.1.3.5).
    pub(super) fn configure(&mut self, tag: u16, cc: Cc) -> Result<(), Status> {
        let (Some(admin), Some(binding)) = (&mut self.admin, &self.binding) else {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        };
        let before = std::mem::replace(&mut admin.cc, cc);
        let controller = binding.controller.clone();
        match (before.en(), cc.en()) {
            (0, 1) => {
                let valid = is_valid_cc(cc, controller.kind);
                admin.csts = Csts::default().with_cfs((!valid).into());
            }
            (1, 0) => self.reset(),
            _ => {}
        }
        self.update_ready();
        let shut_down = cc.shn() != 0 && before.shn() == 0;
        if shut_down {
            self.shut_down(tag)
        } else {
            self.finish(tag, Status::SUCCESS)
        }
        Ok(())
    }

    /// Sets CSTS.RDY to CC.EN once no earlier write is in flight. Clearing it ends a reset; setting
    /// it enables the controller, unless a shutdown is in progress or complete.
    fn update_ready(&mut self) {
        let (Some(admin), Some(binding)) = (&mut self.admin, &self.binding) else { return };
        let (enable, ready) = (admin.cc.en(), admin.csts.rdy());
        let orphans = binding.grant.as_ref().is_some_and(|grant| grant.export().has_orphans());
        let shut_down = admin.cc.shn() != 0 || admin.csts.shst() != 0;
        let may = admin.csts.cfs() == 0 && !orphans && (enable == 0 || !shut_down);
        if enable != ready && may {
            admin.csts = admin.csts.with_rdy(enable);
            binding.controller.set_ready(enable == 1);
        }
    }

    /// Performs a Controller Level Reset: deletes the I/O queues, keeps the Admin queue (NVMe Base
    /// 2.0 §3.7.2).
    fn reset(&mut self) {
        let (Some(admin), Some(binding)) = (&mut self.admin, &self.binding) else { return };
        admin.csts = Csts::default().with_rdy(admin.csts.rdy());
        admin.features = Features::default();
        admin.events.reset();
        let shutdown = admin.shutdown.take();
        binding.controller.close_fences();
        let mut shared = binding.controller.shared();
        shared.granted = 0;
        shared.open.clear();
        // The commands were deleted with their queues. A new queue may use the same identifiers.
        shared.aborts.iter_mut().for_each(|abort| abort.aborted = abort.aborted.or(Some(false)));
        binding.controller.resets.fetch_add(1, Ordering::AcqRel);
        drop(shared);
        binding.controller.write_through.store(false, Ordering::Relaxed);
        for tag in std::mem::take(&mut admin.requests) {
            self.slots.release(tag);
        }
        self.cancel_shutdown(shutdown);
        self.steps.push_back(Step::Notify);
    }

    /// Completes the command of a shutdown that a reset or another shutdown replaced. If its flush
    /// was submitted, the command completes with the flush.
    fn cancel_shutdown(&mut self, shutdown: Option<Shutdown>) {
        if let Some(Shutdown { tag, flushing: false }) = shutdown {
            self.finish(tag, Status::SUCCESS);
        }
    }

    /// Starts a shutdown: fences off the I/O queues. It completes after a flush of the disk (NVMe
    /// Base 2.0 §3.6).
    fn shut_down(&mut self, tag: u16) {
        if let Some(admin) = &mut self.admin {
            admin.csts = admin.csts.with_shst(Csts::SHST_OCCURRING);
            let before = admin.shutdown.replace(Shutdown { tag, flushing: false });
            self.cancel_shutdown(before);
        }
        if let Some(binding) = &self.binding {
            binding.controller.close_fences();
        }
        self.set_work(tag, Work::Admin(Box::new(PendingAdmin::Shutdown)));
        self.steps.push_back(Step::Notify);
        self.continue_shutdown();
    }

    /// Submits the flush of a shutdown once no earlier write is in flight.
    fn continue_shutdown(&mut self) {
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.as_ref());
        if grant.is_some_and(|grant| grant.export().has_orphans()) {
            return;
        }
        let shutdown = self.admin.as_mut().and_then(|admin| admin.shutdown.as_mut());
        let Some(shutdown) = shutdown.filter(|shutdown| !shutdown.flushing) else { return };
        shutdown.flushing = true;
        let tag = shutdown.tag;
        // A disk that is gone, or whose flush failed before, does not block the shutdown.
        if grant.is_none_or(|grant| grant.permits(Op::Flush, 0, 0).is_err()) {
            return self.end_shutdown(tag);
        }
        self.submit(tag, Op::Flush, 0, 0, None, None);
    }

    /// Completes a shutdown after its flush. A failed flush is reported, but not to the host.
    pub(super) fn shutdown_flushed(&mut self, tag: u16, outcome: &Outcome) {
        if let Err(fault) = outcome.result {
            self.report_io_fault(Op::Flush, 0, 0, fault);
        }
        self.end_shutdown(tag);
    }

    fn end_shutdown(&mut self, tag: u16) {
        if let Some(admin) = &mut self.admin
            && admin.shutdown.take_if(|shutdown| shutdown.tag == tag).is_some()
        {
            admin.csts = admin.csts.with_shst(Csts::SHST_COMPLETE);
        }
        self.finish(tag, Status::SUCCESS);
    }

    // ---- Abort

    /// Handles Abort (NVMe Base 2.0 §5.1). Bit 0 of dword 0 is clear if the command was aborted.
    fn request_abort(&mut self, tag: u16, sqid: u16, cid: u16) -> Result<(), Status> {
        let Some(binding) = &self.binding else { return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()) };
        if sqid == 0 {
            let aborted =
                self.slots.find(cid).is_some_and(|other| other != tag) && self.abort_own(cid);
            self.finish_with(tag, Status::SUCCESS, u64::from(!aborted));
            return Ok(());
        }
        let controller = binding.controller.clone();
        let mut shared = controller.shared();
        if shared.aborts.len() >= MAX_ABORTS {
            return Err(Status::ABORT_LIMIT_EXCEEDED.dnr());
        }
        if !shared.open.contains(&sqid) {
            drop(shared);
            self.finish_with(tag, Status::SUCCESS, 1);
            return Ok(());
        }
        shared.aborts.push(Abort { sqid, cid, by: tag, aborted: None });
        drop(shared);
        controller.has_aborts.store(true, Ordering::Release);
        self.set_work(tag, Work::Admin(Box::new(PendingAdmin::Abort)));
        self.steps.push_back(Step::Notify);
        Ok(())
    }

    fn abort_own(&mut self, cid: u16) -> bool {
        if let (Some(admin), Some(tag)) = (&mut self.admin, self.slots.find(cid)) {
            admin.requests.retain(|&other| other != tag);
        }
        self.abort(cid)
    }

    /// Handles a change of shared state: CSTS.RDY, shutdown, completed Aborts, events.
    pub(super) fn admin_changed(&mut self) {
        self.update_ready();
        self.continue_shutdown();
        self.answer_aborts();
        self.check_events();
    }

    fn answer_aborts(&mut self) {
        let Some(controller) = self.binding.as_ref().map(|binding| binding.controller.clone())
        else {
            return;
        };
        let mut shared = controller.shared();
        let open = std::mem::take(&mut shared.open);
        // The commands of a closed queue are gone.
        let settled = |abort: &mut Abort| abort.aborted.is_some() || !open.contains(&abort.sqid);
        let done: Vec<Abort> = shared.aborts.extract_if(.., settled).collect();
        shared.open = open;
        controller.has_aborts.store(!shared.aborts.is_empty(), Ordering::Release);
        drop(shared);
        for abort in done {
            self.finish_with(abort.by, Status::SUCCESS, u64::from(abort.aborted != Some(true)));
        }
    }
}

/// Returns whether the controller can become ready with these values of CC.
fn is_valid_cc(cc: Cc, kind: ControllerType) -> bool {
    let sizes = kind == ControllerType::Discovery || (cc.iosqes() == 6 && cc.iocqes() == 4);
    cc.css() == 0 && cc.mps() == 0 && cc.ams() == 0 && sizes
}
