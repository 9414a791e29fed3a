//! Get Features and Set Features (NVMe Base 2.0 §5.15, §5.27). No feature is saveable.

use std::time::Instant;

use export::{Access, Cache, Grant, ReservationCommand};
use zerocopy::{FromBytes, IntoBytes};

use super::AdminResult;
use super::event::Events;
use crate::status::Status;
use crate::target::context::Context;
use crate::target::controller::ControllerType;
use crate::target::queue::Queue;
use crate::target::{MAX_IO_QUEUES, NSID, NSID_ALL};
use crate::wire::feature::{
    EXTENDED_HOST_IDENTIFIER, HostBehavior, NumberOfQueues, RESERVATION_PERSISTENCE, Timestamp,
    VOLATILE_WRITE_CACHE_ENABLE, aec, capability, fid, sel,
};

/// Feature values that are stored and returned, without further effect.
#[derive(Debug, Default)]
pub(super) struct Features {
    arbitration: u32,
    power: u32,
    temperature: u32,
    recovery: u32,
    atomicity: u32,
    behavior: Option<HostBehavior>,
    /// Timestamp of the host in milliseconds, and when it was set.
    time: Option<(u64, Instant)>,
    /// Elements of Controller Metadata.
    metadata: Vec<Element>,
}

#[derive(Debug, PartialEq, Eq)]
struct Element {
    kind: u8,
    revision: u8,
    value: Vec<u8>,
}

/// Features that exist only where the disk can be reserved.
const RESERVATION_FEATURES: &[u8] = &[fid::RESERVATION_MASK, fid::RESERVATION_PERSISTENCE];

/// Features of an I/O controller.
const IO_FEATURES: &[u8] = &[
    fid::ARBITRATION,
    fid::POWER_MANAGEMENT,
    fid::TEMPERATURE_THRESHOLD,
    fid::ERROR_RECOVERY,
    fid::VOLATILE_WRITE_CACHE,
    fid::NUMBER_OF_QUEUES,
    fid::WRITE_ATOMICITY,
    fid::ASYNC_EVENT_CONFIGURATION,
    fid::TIMESTAMP,
    fid::KEEP_ALIVE_TIMER,
    fid::HOST_BEHAVIOR_SUPPORT,
    fid::CONTROLLER_METADATA,
    fid::HOST_IDENTIFIER,
    fid::RESERVATION_MASK,
    fid::RESERVATION_PERSISTENCE,
    fid::NAMESPACE_WRITE_PROTECTION,
];

/// Features of a discovery controller (NVMe Base 2.0 §3.1.2.3).
const DISCOVERY_FEATURES: &[u8] = &[
    fid::ASYNC_EVENT_CONFIGURATION,
    fid::KEEP_ALIVE_TIMER,
    fid::HOST_IDENTIFIER,
    fid::CONTROLLER_METADATA,
];

/// Supported bits of Asynchronous Event Configuration, for each controller type.
pub(super) const IO_EVENTS: u32 = aec::NAMESPACE_ATTRIBUTE | aec::ANA_CHANGE;
pub(super) const DISCOVERY_EVENTS: u32 = aec::DISCOVERY_CHANGE;

/// Maximum length of Host Metadata in bytes.
const MAX_METADATA: usize = 4096;

/// Namespace Write Protection Config: write protected.
const WRITE_PROTECTED: u32 = 1;

/// Returns the features of the controller.
pub(super) fn supported(queue: &Queue) -> Result<Vec<u8>, Status> {
    let features = match queue.controller()?.kind() {
        ControllerType::Io => IO_FEATURES,
        ControllerType::Discovery => DISCOVERY_FEATURES,
    };
    let all = queue.supports_reservations();
    let offered = |fid: &u8| all || !RESERVATION_FEATURES.contains(fid);
    Ok(features.iter().copied().filter(offered).collect())
}

fn check_feature(queue: &Queue, fid: u8) -> Result<(), Status> {
    if supported(queue)?.contains(&fid) { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) }
}

impl Features {
    /// Handles Set Features without data.
    pub(super) fn set(
        &mut self,
        queue: &mut Queue,
        events: &mut Events,
        fid: u8,
        save: bool,
        nsid: u32,
        value: u32,
    ) -> Result<AdminResult, Status> {
        check_feature(queue, fid)?;
        if save {
            return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        let controller = queue.controller()?;
        match fid {
            fid::NUMBER_OF_QUEUES => return set_queue_count(queue, value),
            // If the cache is disabled, every write is durable.
            fid::VOLATILE_WRITE_CACHE => {
                controller.set_write_through(value & VOLATILE_WRITE_CACHE_ENABLE == 0);
            }
            fid::ASYNC_EVENT_CONFIGURATION => {
                controller.set_announces_stop(value & aec::ANA_CHANGE != 0);
                events.set_enabled(value);
                events.send(queue);
            }
            fid::KEEP_ALIVE_TIMER => controller.set_keep_alive(value),
            // Over fabrics, Connect carries it (NVMe Base 2.0 §5.27.1.25).
            fid::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            fid::NAMESPACE_WRITE_PROTECTION => refuse_write_protection(queue, nsid, value)?,
            fid::RESERVATION_MASK => {
                check_namespace(queue, nsid, true)?;
                events.notifications().set_mask(value);
            }
            fid::POWER_MANAGEMENT if value & 0x1f != 0 => return Err(Status::INVALID_FIELD.dnr()),
            _ => *self.stored_value(fid).ok_or(Status::INVALID_FIELD.dnr())? = value,
        }
        Ok(AdminResult::Dword(0))
    }

    fn stored_value(&mut self, fid: u8) -> Option<&mut u32> {
        match fid {
            fid::ARBITRATION => Some(&mut self.arbitration),
            fid::POWER_MANAGEMENT => Some(&mut self.power),
            fid::TEMPERATURE_THRESHOLD => Some(&mut self.temperature),
            fid::ERROR_RECOVERY => Some(&mut self.recovery),
            fid::WRITE_ATOMICITY => Some(&mut self.atomicity),
            _ => None,
        }
    }

    /// Handles Set Features with data.
    pub(super) fn set_data(
        &mut self,
        cx: &Context,
        queue: &Queue,
        fid: u8,
        cdw11: u32,
        data: &[u8],
    ) -> Result<AdminResult, Status> {
        check_feature(queue, fid)?;
        let invalid = Status::INVALID_FIELD.dnr();
        match fid {
            fid::TIMESTAMP => {
                let (time, _) = Timestamp::read_from_prefix(data).map_err(|_| invalid)?;
                self.time = Some((time.get(), cx.now()));
            }
            fid::HOST_BEHAVIOR_SUPPORT => {
                let (behavior, _) = HostBehavior::read_from_prefix(data).map_err(|_| invalid)?;
                self.behavior = Some(behavior);
            }
            fid::CONTROLLER_METADATA => self.set_metadata(cdw11, data)?,
            fid::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            _ => return Err(invalid),
        }
        Ok(AdminResult::Dword(0))
    }

    /// Handles Get Features.
    #[allow(clippy::too_many_arguments, reason = "the fields of the command")]
    pub(super) fn get(
        &mut self,
        cx: &Context,
        queue: &Queue,
        events: &mut Events,
        fid: u8,
        select: u8,
        nsid: u32,
        cdw11: u32,
    ) -> Result<AdminResult, Status> {
        check_feature(queue, fid)?;
        let is_stored = self.stored_value(fid).is_some();
        match (select, fid) {
            (sel::CURRENT, _) => self.current(cx, queue, events, fid, nsid, cdw11),
            (sel::SUPPORTED_CAPABILITIES, _) => Ok(AdminResult::Dword(capabilities(fid))),
            // No feature is saveable, so the saved value is the default.
            (sel::DEFAULT | sel::SAVED, fid::VOLATILE_WRITE_CACHE) => {
                Ok(AdminResult::Dword(u32::from(is_cached(queue))))
            }
            (
                sel::DEFAULT | sel::SAVED,
                fid::ASYNC_EVENT_CONFIGURATION | fid::KEEP_ALIVE_TIMER | fid::RESERVATION_MASK,
            ) => Ok(AdminResult::Dword(0)),
            (sel::DEFAULT | sel::SAVED, _) if is_stored => Ok(AdminResult::Dword(0)),
            (sel::DEFAULT | sel::SAVED, _) => self.current(cx, queue, events, fid, nsid, cdw11),
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }

    fn current(
        &mut self,
        cx: &Context,
        queue: &Queue,
        events: &mut Events,
        fid: u8,
        nsid: u32,
        cdw11: u32,
    ) -> Result<AdminResult, Status> {
        if let Some(&mut value) = self.stored_value(fid) {
            return Ok(AdminResult::Dword(value));
        }
        let controller = queue.controller()?;
        Ok(match fid {
            fid::VOLATILE_WRITE_CACHE => {
                AdminResult::Dword(u32::from(is_cached(queue) && !controller.is_write_through()))
            }
            fid::NUMBER_OF_QUEUES => {
                let granted = u32::from(controller.granted_queues());
                let count = NumberOfQueues { submission: granted, completion: granted };
                AdminResult::Dword(count.emit())
            }
            fid::ASYNC_EVENT_CONFIGURATION => AdminResult::Dword(events.enabled()),
            fid::KEEP_ALIVE_TIMER => AdminResult::Dword(controller.keep_alive()),
            fid::TIMESTAMP => AdminResult::Page(self.timestamp(cx.now()).as_bytes().to_vec()),
            fid::HOST_BEHAVIOR_SUPPORT => AdminResult::Page(self.behavior()),
            fid::CONTROLLER_METADATA => AdminResult::Page(self.metadata()),
            fid::HOST_IDENTIFIER => {
                AdminResult::Page(host_identifier(controller.host().id(), cdw11)?)
            }
            fid::NAMESPACE_WRITE_PROTECTION => AdminResult::Dword(write_protection(queue, nsid)?),
            fid::RESERVATION_MASK => {
                check_namespace(queue, nsid, false)?;
                AdminResult::Dword(events.notifications().mask())
            }
            fid::RESERVATION_PERSISTENCE => {
                AdminResult::Dword(reservation_persistence(queue, nsid)?)
            }
            _ => return Err(Status::INVALID_FIELD.dnr()),
        })
    }
}

fn set_queue_count(queue: &Queue, value: u32) -> Result<AdminResult, Status> {
    let requested = NumberOfQueues::parse(value).ok_or(Status::INVALID_FIELD.dnr())?;
    let granted = u32::from(MAX_IO_QUEUES).min(requested.submission).min(requested.completion);
    queue.controller()?.grant_queues(u16::try_from(granted).unwrap_or(MAX_IO_QUEUES))?;
    let count = NumberOfQueues { submission: granted, completion: granted };
    Ok(AdminResult::Dword(count.emit()))
}

/// Accepts only the current value: the administrator decides about write access, not the host.
fn refuse_write_protection(queue: &Queue, nsid: u32, value: u32) -> Result<(), Status> {
    let current = write_protection(queue, nsid)?;
    if value & 0b111 == current { Ok(()) } else { Err(Status::FEATURE_NOT_CHANGEABLE.dnr()) }
}

fn write_protection(queue: &Queue, nsid: u32) -> Result<u32, Status> {
    let grant = queue.grant().filter(|_| nsid == NSID).ok_or(Status::INVALID_NAMESPACE.dnr())?;
    Ok(if grant.access() == Access::ReadOnly { WRITE_PROTECTED } else { 0 })
}

/// Checks that an NSID names the namespace, or all namespaces if `all` is valid.
fn check_namespace(queue: &Queue, nsid: u32, all: bool) -> Result<&Grant, Status> {
    let grant = queue.grant().filter(|_| nsid == NSID || (all && nsid == NSID_ALL));
    grant.ok_or(Status::INVALID_NAMESPACE.dnr())
}

/// Returns whether reservations persist. The feature exists only where they can.
fn reservation_persistence(queue: &Queue, nsid: u32) -> Result<u32, Status> {
    let export = check_namespace(queue, nsid, false)?.export();
    if !export.stores_reservations() {
        return Err(Status::INVALID_FIELD.dnr());
    }
    Ok(export.reservations().is_persistent().into())
}

/// Handles Set Features of Reservation Persistence, which completes when the state is stored.
pub(super) fn set_reservation_persistence(
    queue: &mut Queue,
    tag: u16,
    save: bool,
    nsid: u32,
    value: u32,
) -> Result<(), Status> {
    check_feature(queue, fid::RESERVATION_PERSISTENCE)?;
    if save {
        return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
    }
    if !check_namespace(queue, nsid, true)?.export().stores_reservations() {
        return Err(Status::INVALID_FIELD.dnr());
    }
    let persistent = value & RESERVATION_PERSISTENCE != 0;
    queue.reserve(tag, ReservationCommand::SetPersistence(persistent), None);
    Ok(())
}

/// Returns whether the disk has a volatile write cache.
pub(super) fn is_cached(queue: &Queue) -> bool {
    queue.grant().is_some_and(|grant| grant.export().cache == Cache::Volatile)
}

fn host_identifier(id: &[u8; 16], cdw11: u32) -> Result<Vec<u8>, Status> {
    // Over fabrics it has 16 bytes (NVMe Base 2.0 §5.27.1.25).
    if cdw11 & EXTENDED_HOST_IDENTIFIER == 0 {
        Err(Status::INVALID_FIELD.dnr())
    } else {
        Ok(id.to_vec())
    }
}

fn capabilities(fid: u8) -> u32 {
    match fid {
        fid::HOST_IDENTIFIER => 0,
        fid::NAMESPACE_WRITE_PROTECTION => capability::NAMESPACE_SPECIFIC,
        fid::RESERVATION_MASK | fid::RESERVATION_PERSISTENCE => {
            capability::NAMESPACE_SPECIFIC | capability::CHANGEABLE
        }
        _ => capability::CHANGEABLE,
    }
}

impl Features {
    fn timestamp(&self, now: Instant) -> Timestamp {
        match self.time {
            None => Timestamp::new(0, 0),
            Some((millis, since)) => {
                let passed =
                    u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(0);
                Timestamp::new(millis.wrapping_add(passed), Timestamp::SET_BY_HOST)
            }
        }
    }

    fn behavior(&self) -> Vec<u8> {
        self.behavior
            .as_ref()
            .map_or_else(|| vec![0; size_of::<HostBehavior>()], |set| set.as_bytes().to_vec())
    }

    /// Updates Controller Metadata (NVMe Base 2.0 §5.27.1.22): adds, replaces or deletes elements
    /// by type.
    fn set_metadata(&mut self, cdw11: u32, data: &[u8]) -> Result<(), Status> {
        const DELETE: u32 = 0b01;
        let named = parse_elements(data).ok_or(Status::INVALID_FIELD.dnr())?;
        self.metadata.retain(|old| named.iter().all(|new| new.kind != old.kind));
        if cdw11 >> 13 & 0b11 != DELETE {
            self.metadata.extend(named);
        }
        let len: usize = self.metadata.iter().map(|element| element.value.len() + 4).sum();
        if len + 2 > MAX_METADATA {
            self.metadata.clear();
            return Err(Status::INVALID_FIELD.dnr());
        }
        Ok(())
    }

    fn metadata(&self) -> Vec<u8> {
        let mut page = vec![u8::try_from(self.metadata.len()).unwrap_or(u8::MAX), 0];
        for Element { kind, revision, value } in &self.metadata {
            let len = u16::try_from(value.len()).unwrap_or(0).to_le_bytes();
            page.extend([*kind, *revision, len[0], len[1]]);
            page.extend(value);
        }
        page.resize(MAX_METADATA, 0);
        page
    }
}

/// Parses Host Metadata: a count, then type, revision, length and value of each element. Returns
/// `None` if the data is too short.
fn parse_elements(data: &[u8]) -> Option<Vec<Element>> {
    let (&[count, _], mut rest) = data.split_first_chunk::<2>()?;
    let mut elements = Vec::new();
    for _ in 0..count {
        let (&[kind, revision, low, high], after) = rest.split_first_chunk::<4>()?;
        let (value, after) = after.split_at_checked(u16::from_le_bytes([low, high]).into())?;
        elements.push(Element {
            kind: kind & 0x3f,
            revision: revision & 0x0f,
            value: value.to_vec(),
        });
        rest = after;
    }
    Some(elements)
}

/// Returns whether an NSID names the namespace or all namespaces.
pub(super) fn matches_namespace(nsid: u32) -> bool {
    matches!(nsid, 0 | NSID | NSID_ALL)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn metadata_is_kept_replaced_and_deleted_by_type() {
        let mut features = Features::default();
        let two = [2, 0, 1, 0, 2, 0, b'o', b's', 2, 0, 1, 0, b'x'];
        features.set_metadata(0, &two).unwrap();
        assert_eq!(features.metadata()[..two.len()], two);
        features.set_metadata(0, &[1, 0, 1, 0, 1, 0, b'y']).unwrap();
        assert_eq!(features.metadata()[..12], [2, 0, 2, 0, 1, 0, b'x', 1, 0, 1, 0, b'y']);
        features.set_metadata(0b01 << 13, &[1, 0, 2, 0, 0, 0]).unwrap();
        assert_eq!(features.metadata()[..7], [1, 0, 1, 0, 1, 0, b'y']);
    }

    #[test]
    fn metadata_with_a_wrong_length_is_refused() {
        for data in [&[1, 0, 1][..], &[1, 0, 1, 0, 9, 0, 0], &[]] {
            assert!(Features::default().set_metadata(0, data).is_err(), "{data:?}");
        }
    }
}
