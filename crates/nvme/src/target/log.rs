//! Log pages (NVMe Base 2.0 §5.16).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::{FromZeros, IntoBytes};

use super::controller::{Controller, ControllerType, ERROR_ENTRIES};
use super::feature;
use super::io::NSID;
use super::queue::Queue;
use crate::status::Status;
use crate::wire::identify::NamespaceList;
use crate::wire::log::{
    CommandEffects, ErrorEntry, FeatureEffects, FirmwareSlot, SmartLog, SupportedLogPages,
    critical_warning, lid,
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
    lid::FEATURE_EFFECTS,
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

const WRITE_COMMANDS: &[u8] = &[io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT, io::COPY];

/// SMART data unit: thousands of 512 bytes, rounded up.
const SMART_UNIT: u64 = 512_000;

impl Queue {
    /// Returns `len` bytes of a log page from `offset`, padded with zeros. `retain` is Retain
    /// Asynchronous Event.
    pub(super) fn log_page(
        &mut self,
        page: u8,
        nsid: u32,
        offset: u64,
        len: u64,
        retain: bool,
    ) -> Result<Vec<u8>, Status> {
        let log = self.whole_log(page, nsid, offset, retain)?;
        let invalid = Status::INVALID_FIELD.dnr();
        let offset = usize::try_from(offset).map_err(|_| invalid)?;
        let mut part = log.get(offset..).ok_or(invalid)?.to_vec();
        part.resize(usize::try_from(len).map_err(|_| invalid)?, 0);
        Ok(part)
    }

    fn whole_log(
        &mut self,
        page: u8,
        nsid: u32,
        offset: u64,
        retain: bool,
    ) -> Result<Arc<[u8]>, Status> {
        let controller =
            self.binding.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?.controller.clone();
        let pages = if controller.kind == ControllerType::Io { IO_PAGES } else { DISCOVERY_PAGES };
        if !pages.contains(&page) {
            return Err(Status::INVALID_LOG_PAGE.dnr());
        }
        if !feature::matches_namespace(nsid) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        Ok(match page {
            lid::DISCOVERY => self.discovery_part(offset, retain),
            lid::CHANGED_NAMESPACE_LIST => self.changed_namespaces(retain).as_bytes().into(),
            lid::ERROR_INFORMATION => error_log(&controller).into(),
            lid::SMART => self.smart(&controller).as_bytes().into(),
            lid::FIRMWARE_SLOT => FirmwareSlot::emit(self.firmware()).as_bytes().into(),
            lid::COMMAND_EFFECTS => {
                CommandEffects::emit(ADMIN_COMMANDS, READ_COMMANDS, WRITE_COMMANDS)
                    .as_bytes()
                    .into()
            }
            lid::FEATURE_EFFECTS => {
                let features = if controller.kind == ControllerType::Io {
                    feature::IO_FEATURES
                } else {
                    feature::DISCOVERY_FEATURES
                };
                FeatureEffects::emit(features).as_bytes().into()
            }
            _ => SupportedLogPages::emit(pages).as_bytes().into(),
        })
    }

    /// Returns the discovery log. A read from offset zero takes a new snapshot, later reads
    /// continue it. The host reads the generation counter again at the end.
    fn discovery_part(&mut self, offset: u64, retain: bool) -> Arc<[u8]> {
        let snapshot =
            self.admin.as_ref().and_then(|admin| admin.log.clone()).filter(|_| offset != 0);
        let log = snapshot.unwrap_or_else(|| self.discovery_log().into());
        if let Some(admin) = &mut self.admin {
            admin.log = Some(log.clone());
            if !retain {
                admin.events.unmask_discovery();
            }
        }
        self.send_events();
        log
    }

    fn changed_namespaces(&mut self, retain: bool) -> NamespaceList {
        let changed = self.admin.as_ref().is_some_and(|admin| admin.events.changed);
        if let (Some(admin), false) = (&mut self.admin, retain) {
            admin.events.unmask_namespace();
        }
        self.send_events();
        NamespaceList::emit(changed.then_some(NSID))
    }

    fn firmware(&self) -> [u8; 8] {
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.as_ref());
        emit_ascii(grant.map_or("", |grant| &grant.export().identity.firmware))
    }

    fn smart(&self, controller: &Controller) -> SmartLog {
        let mut log = SmartLog::new_zeroed();
        let hours = self.now.saturating_duration_since(self.target.start).as_secs() / 3600;
        log.poh.set(hours.into());
        log.neile.set(controller.errors().1.into());
        (log.avsp, log.avspt) = (100, 10);
        let Some(grant) = self.binding.as_ref().and_then(|binding| binding.grant.as_ref()) else {
            return log;
        };
        let (export, usage) = (grant.export(), &grant.export().usage);
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        log.dur.set(count(&usage.bytes_read).div_ceil(SMART_UNIT).into());
        log.duw.set(count(&usage.bytes_written).div_ceil(SMART_UNIT).into());
        log.hrc.set(count(&usage.reads).into());
        log.hwc.set(count(&usage.writes).into());
        log.mdie.set(count(&usage.errors).into());
        if export.has_failed_flush() {
            log.critical_warning = critical_warning::RELIABILITY;
        }
        log
    }
}

/// Returns the error log, newest entry first, padded with zeros.
fn error_log(controller: &Controller) -> Vec<u8> {
    let mut log = controller.errors().0.as_bytes().to_vec();
    log.resize(ERROR_ENTRIES * size_of::<ErrorEntry>(), 0);
    log
}
