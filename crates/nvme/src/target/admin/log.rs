//! Log pages (NVMe Base 2.0 §5.16).

use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use super::event::Events;
use super::{AdminResult, discovery, feature};
use crate::status::Status;
use crate::target::NSID;
use crate::target::context::Context;
use crate::target::controller::{Controller, ControllerType, ERROR_ENTRIES};
use crate::target::queue::Queue;
use crate::wire::identify::NamespaceList;
use crate::wire::log::{
    AnaLog, CommandEffects, ErrorEntry, FeatureEffects, FirmwareSlot, ReservationNotification,
    SmartLog, SupportedLogPages, ana, critical_warning, lid,
};
use crate::wire::opcode::{admin, io};
use crate::wire::text::emit_ascii;

const IO_PAGES: &[u8] = &[
    lid::SUPPORTED_LOG_PAGES,
    lid::ERROR_INFORMATION,
    lid::SMART,
    lid::FIRMWARE_SLOT,
    lid::CHANGED_NAMESPACE_LIST,
    lid::COMMAND_EFFECTS,
    lid::ANA,
    lid::FEATURE_EFFECTS,
    lid::RESERVATION,
];

const DISCOVERY_PAGES: &[u8] =
    &[lid::SUPPORTED_LOG_PAGES, lid::ERROR_INFORMATION, lid::FEATURE_EFFECTS, lid::DISCOVERY];

const ADMIN_COMMANDS: &[u8] = &[
    admin::GET_LOG_PAGE,
    admin::IDENTIFY,
    admin::ABORT,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT_REQUEST,
    admin::KEEP_ALIVE,
];

const READ_COMMANDS: &[u8] = &[io::FLUSH, io::READ, io::COMPARE, io::VERIFY];

const RESERVATION_COMMANDS: &[u8] = &[
    io::RESERVATION_REGISTER,
    io::RESERVATION_REPORT,
    io::RESERVATION_ACQUIRE,
    io::RESERVATION_RELEASE,
];

const WRITE_COMMANDS: &[u8] = &[io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT, io::COPY];

/// SMART data unit: thousands of 512 bytes, rounded up.
const SMART_UNIT: u64 = 512_000;

/// The fields of Get Log Page.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogRequest {
    /// Log page identifier.
    pub(super) page: u8,
    pub(super) nsid: u32,
    pub(super) offset: u64,
    /// Whether the offset is an index.
    pub(super) ot: bool,
    /// Length in bytes.
    pub(super) len: u64,
    /// Retain Asynchronous Event.
    pub(super) retain: bool,
    /// Return Groups Only, of the ANA log.
    pub(super) groups_only: bool,
}

/// State of the log pages.
#[derive(Debug, Default)]
pub(super) struct Logs {
    /// Snapshot of the discovery log, taken when it was read from offset zero.
    discovery: Option<Arc<[u8]>>,
}

impl Logs {
    /// Handles Get Log Page: returns a part of a log page, padded with zeros.
    pub(super) fn read(
        &mut self,
        cx: &Context,
        queue: &mut Queue,
        events: &mut Events,
        request: &LogRequest,
    ) -> Result<AdminResult, Status> {
        let invalid = Status::INVALID_FIELD.dnr();
        if request.ot {
            return Err(invalid);
        }
        let log = self.whole(cx, queue, events, request)?;
        events.send(queue);
        let offset = usize::try_from(request.offset).map_err(|_| invalid)?;
        let mut part = log.get(offset..).ok_or(invalid)?.to_vec();
        part.resize(usize::try_from(request.len).map_err(|_| invalid)?, 0);
        Ok(AdminResult::Page(part))
    }

    fn whole(
        &mut self,
        cx: &Context,
        queue: &Queue,
        events: &mut Events,
        request: &LogRequest,
    ) -> Result<Arc<[u8]>, Status> {
        let controller = queue.controller()?;
        let pages = pages(queue, controller);
        if !pages.contains(&request.page) {
            return Err(Status::INVALID_LOG_PAGE.dnr());
        }
        if !feature::matches_namespace(request.nsid) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        Ok(match request.page {
            lid::DISCOVERY => self.discovery(cx, controller, events, request),
            lid::CHANGED_NAMESPACE_LIST => changed_namespaces(events, request).as_bytes().into(),
            lid::ANA => ana_log(controller, events, request).as_bytes().into(),
            lid::RESERVATION => reservation_notification(events, request).as_bytes().into(),
            lid::ERROR_INFORMATION => error_log(controller).into(),
            lid::SMART => smart(cx, queue, controller).as_bytes().into(),
            lid::FIRMWARE_SLOT => FirmwareSlot::emit(firmware(queue)).as_bytes().into(),
            lid::COMMAND_EFFECTS => {
                CommandEffects::emit(ADMIN_COMMANDS, &reading(queue), WRITE_COMMANDS)
                    .as_bytes()
                    .into()
            }
            lid::FEATURE_EFFECTS => {
                FeatureEffects::emit(&feature::supported(queue)?).as_bytes().into()
            }
            _ => SupportedLogPages::emit(&pages).as_bytes().into(),
        })
    }

    /// Returns the discovery log. A read from offset zero takes a new snapshot, later reads
    /// continue it. The host reads the generation counter again at the end.
    fn discovery(
        &mut self,
        cx: &Context,
        controller: &Controller,
        events: &mut Events,
        request: &LogRequest,
    ) -> Arc<[u8]> {
        let snapshot = self.discovery.clone().filter(|_| request.offset != 0);
        let log = snapshot.unwrap_or_else(|| discovery::log(cx, controller.host().nqn()).into());
        self.discovery = Some(log.clone());
        if !request.retain {
            events.unmask_discovery();
        }
        log
    }
}

/// Returns the log pages of a controller.
fn pages(queue: &Queue, controller: &Controller) -> Vec<u8> {
    let all = if controller.kind() == ControllerType::Io { IO_PAGES } else { DISCOVERY_PAGES };
    let can_reserve = queue.supports_reservations();
    all.iter().copied().filter(|page| can_reserve || *page != lid::RESERVATION).collect()
}

/// Returns the I/O commands that do not change the disk.
fn reading(queue: &Queue) -> Vec<u8> {
    let reservations = if queue.supports_reservations() { RESERVATION_COMMANDS } else { &[] };
    [READ_COMMANDS, reservations].concat()
}

fn changed_namespaces(events: &mut Events, request: &LogRequest) -> NamespaceList {
    let changed = events.namespace_changed();
    if !request.retain {
        events.unmask_namespace();
    }
    NamespaceList::emit(changed.then_some(NSID))
}

fn ana_log(controller: &Controller, events: &mut Events, request: &LogRequest) -> AnaLog {
    if !request.retain {
        events.unmask_ana();
    }
    let (changes, state) = match controller.is_inaccessible() {
        true => (1, ana::INACCESSIBLE),
        false => (0, ana::OPTIMIZED),
    };
    AnaLog::emit(changes, state, NSID, request.groups_only)
}

fn reservation_notification(events: &mut Events, request: &LogRequest) -> ReservationNotification {
    let page = events.notifications().page(request.retain);
    if !request.retain {
        events.unmask_reservation();
    }
    page
}

fn firmware(queue: &Queue) -> [u8; 8] {
    emit_ascii(queue.grant().map_or("", |grant| &grant.export().identity.firmware))
}

fn smart(cx: &Context, queue: &Queue, controller: &Controller) -> SmartLog {
    let mut log = SmartLog::new_zeroed();
    let hours = cx.target().uptime(cx.now()).as_secs() / 3600;
    log.poh.set(hours.into());
    log.neile.set(controller.errors().1.into());
    (log.avsp, log.avspt) = (100, 10);
    let Some(grant) = queue.grant() else { return log };
    let (export, usage) = (grant.export(), grant.export().usage());
    log.dur.set(usage.bytes_read.div_ceil(SMART_UNIT).into());
    log.duw.set(usage.bytes_written.div_ceil(SMART_UNIT).into());
    log.hrc.set(usage.reads.into());
    log.hwc.set(usage.writes.into());
    log.mdie.set(usage.errors.into());
    if export.has_failed_flush() {
        log.critical_warning = critical_warning::RELIABILITY;
    }
    log
}

/// Returns the error log, newest entry first, padded with zeros.
fn error_log(controller: &Controller) -> Vec<u8> {
    let mut log = controller.errors().0.as_bytes().to_vec();
    log.resize(ERROR_ENTRIES * size_of::<ErrorEntry>(), 0);
    log
}
