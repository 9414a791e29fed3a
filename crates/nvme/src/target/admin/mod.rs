//! The Admin queue: the Admin command set and the properties of the controller (NVMe Base 2.0 §3.5,
//! §5). One module holds each command.

mod abort;
mod configuration;
mod discovery;
mod event;
mod feature;
mod identify;
mod log;
mod reservation;

use export::{Body, Buffer, Grant, Outcome};

use configuration::Configuration;
use event::Events;
use feature::Features;
use log::{LogRequest, Logs};

use super::MAX_TRANSFER;
use super::capsule::{Capsule, LengthCheck};
use super::context::Context;
use super::queue::Queue;
use super::work::Work;
use crate::command::{AdminCommand, FabricsCommand, PropertySize, Transfer};
use crate::status::Status;
use crate::wire::fabrics::{Cc, property};
use crate::wire::feature::fid;

/// State of a controller that only its Admin queue uses.
#[derive(Debug)]
pub(super) struct AdminQueue {
    configuration: Configuration,
    events: Events,
    features: Features,
    logs: Logs,
}

/// Result of a successful Admin command.
#[derive(Debug)]
enum AdminResult {
    /// Dword 0 of the completion; no data.
    Dword(u32),
    /// Data for the host.
    Page(Vec<u8>),
}

impl AdminQueue {
    pub(super) fn new(cx: &Context, grant: Option<&Grant>) -> Self {
        Self {
            configuration: Configuration::default(),
            events: Events::new(cx.target().catalogue().generation(), grant),
            features: Features::default(),
            logs: Logs::default(),
        }
    }

    /// Handles a command of the Admin queue.
    pub(super) fn command(
        &mut self,
        cx: &Context,
        queue: &mut Queue,
        capsule: Capsule<'_>,
    ) -> Result<(), Status> {
        let tag = capsule.tag();
        let command = AdminCommand::parse(capsule.sqe())?;
        // Before CSTS.RDY only Keep Alive.
        if !queue.controller()?.is_ready() && !matches!(command, AdminCommand::KeepAlive) {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        match command.data_len() {
            Transfer::FromHost(len) => {
                queue.set_work(tag, Work::Admin(Box::new(command)));
                return queue.receive_data(capsule, len, LengthCheck::AtLeast);
            }
            Transfer::ToHost(len) => {
                capsule.check_to_host(len.min(MAX_TRANSFER + 1), LengthCheck::AtLeast)?;
                if len > MAX_TRANSFER {
                    return Err(Status::INVALID_FIELD.dnr());
                }
            }
            Transfer::None => capsule.check_no_data()?,
        }
        self.execute(cx, queue, tag, command)
    }

    /// Executes a command without data from the host: one line for each.
    fn execute(
        &mut self,
        cx: &Context,
        queue: &mut Queue,
        tag: u16,
        command: AdminCommand,
    ) -> Result<(), Status> {
        let result = match command {
            AdminCommand::Identify { cns, cntid, nsid, csi } => {
                identify::page(cx, queue, cns, cntid, nsid, csi)
            }
            AdminCommand::GetLogPage { lid, lsp, numd, offset, rae, ot, nsid, .. } => {
                let groups_only = lsp & 1 != 0;
                let (page, len, retain) = (lid, numd, rae);
                let request = LogRequest { page, nsid, offset, ot, len, retain, groups_only };
                self.logs.read(cx, queue, &mut self.events, &request)
            }
            AdminCommand::SetFeatures { fid, save, nsid, cdw11, .. }
                if fid == fid::RESERVATION_PERSISTENCE =>
            {
                return feature::set_reservation_persistence(queue, tag, save, nsid, cdw11);
            }
            AdminCommand::SetFeatures { fid, save, nsid, cdw11, .. } => {
                self.features.set(queue, &mut self.events, fid, save, nsid, cdw11)
            }
            AdminCommand::GetFeatures { fid, sel, nsid, cdw11 } => {
                self.features.get(cx, queue, &mut self.events, fid, sel, nsid, cdw11)
            }
            AdminCommand::KeepAlive => Ok(AdminResult::Dword(0)),
            AdminCommand::AsyncEventRequest => return self.events.request(queue, tag),
            AdminCommand::Abort { sqid, cid } => {
                return abort::request(queue, &mut self.events, tag, sqid, cid);
            }
        };
        finish(queue, tag, result?);
        Ok(())
    }

    /// Continues a command whose data was received.
    pub(super) fn data_received(
        &mut self,
        cx: &Context,
        queue: &mut Queue,
        tag: u16,
        work: Work,
        buffer: &Buffer,
    ) {
        let result = match work {
            Work::Admin(command) => match *command {
                AdminCommand::SetFeatures { fid, cdw11, .. } => {
                    self.features.set_data(cx, queue, fid, cdw11, buffer.bytes())
                }
                _ => Err(Status::INTERNAL_ERROR),
            },
            _ => Err(Status::INTERNAL_ERROR),
        };
        match result {
            Ok(result) => finish(queue, tag, result),
            Err(status) => queue.finish(tag, status),
        }
    }

    /// Continues a command after its disk request.
    pub(super) fn completed(&mut self, queue: &mut Queue, tag: u16, outcome: &Outcome) {
        if matches!(queue.slots().work(tag), Some(Work::Shutdown)) {
            self.configuration.flushed(queue, tag, outcome);
        }
    }

    /// Handles a Fabrics command of a host that has authenticated.
    pub(super) fn fabrics_command(
        &mut self,
        queue: &mut Queue,
        tag: u16,
        command: FabricsCommand,
    ) -> Result<(), Status> {
        match command {
            FabricsCommand::PropertyGet { attrib, offset } => {
                let value = self.configuration.property(attrib, offset)?;
                queue.finish_with(tag, Status::SUCCESS, value);
                Ok(())
            }
            FabricsCommand::PropertySet { attrib, offset, value } => {
                self.set_property(queue, tag, attrib, offset, value)
            }
            // Disconnect is not valid on the Admin queue (NVMe Base 2.0 §6.4).
            FabricsCommand::Disconnect { .. } => Err(Status::INVALID_QUEUE_TYPE.dnr()),
            _ => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
        }
    }

    /// Handles Property Set: of CC (NVMe Base 2.0 §3.1.3.5).
    fn set_property(
        &mut self,
        queue: &mut Queue,
        tag: u16,
        size: PropertySize,
        offset: u32,
        value: u64,
    ) -> Result<(), Status> {
        let (property::CC, PropertySize::Four, Ok(cc)) = (offset, size, u32::try_from(value))
        else {
            return Err(Status::INVALID_FIELD.dnr());
        };
        let kind = queue.controller()?.kind();
        let requested = self.configuration.set_cc(Cc(cc), kind);
        if requested.reset {
            self.features = Features::default();
            self.events.reset(queue);
            self.configuration.reset(queue);
        }
        self.configuration.update_ready(queue);
        if requested.shutdown {
            self.configuration.shut_down(queue, tag);
        } else {
            queue.finish(tag, Status::SUCCESS);
        }
        Ok(())
    }

    /// Handles a change of shared state: CSTS.RDY, shutdown, completed Aborts, events.
    pub(super) fn changed(&mut self, cx: &Context, queue: &mut Queue) {
        self.configuration.update_ready(queue);
        self.configuration.continue_shutdown(queue);
        abort::answer(queue);
        self.events.check(cx, queue);
    }

    /// Announces that the target stops: the namespace becomes inaccessible by this controller, so
    /// that a host with another path uses that one. Returns whether the host gets that event.
    pub(super) fn announce_stop(&mut self, queue: &mut Queue) -> bool {
        let Ok(controller) = queue.controller() else { return false };
        let is_announced = controller.announces_stop() && self.events.has_request();
        if is_announced {
            controller.set_inaccessible();
            self.events.ana_changed(queue);
        }
        is_announced
    }

    /// Returns whether the host has read the state that was announced.
    pub(super) fn is_stop_known(&self) -> bool {
        self.events.is_ana_known()
    }

    /// Drops an Asynchronous Event Request whose command identifier the host reuses. Returns
    /// whether there was one.
    ///
    /// SPDK's host forgets its requests when it detaches, and reuses their identifiers for the
    /// shutdown.
    pub(super) fn drop_event_request(&mut self, queue: &mut Queue, cid: u16) -> bool {
        let request = queue.slots().find(cid).filter(|&tag| self.events.forget(tag));
        request.is_some_and(|tag| queue.slots_mut().release(tag).is_some())
    }
}

fn finish(queue: &mut Queue, tag: u16, result: AdminResult) {
    match result {
        AdminResult::Dword(dw0) => queue.finish_with(tag, Status::SUCCESS, dw0.into()),
        AdminResult::Page(page) => {
            let len = page.len();
            queue.finish_with_data(tag, Body::Shared(page.into()), len);
        }
    }
}
