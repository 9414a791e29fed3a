//! Get Features and Set Features (NVMe Base 2.0 §5.15, §5.27). No feature is saveable.

use std::sync::atomic::Ordering;
use std::time::Instant;

use export::{Access, Cache};
use zerocopy::{FromBytes, IntoBytes};

use super::MAX_IO_QUEUES;
use super::admin::AdminResult;
use super::controller::ControllerType;
use super::io::{NSID, NSID_ALL};
use super::queue::Queue;
use crate::status::Status;
use crate::wire::feature::{
    EXTENDED_HOST_IDENTIFIER, HostBehavior, NumberOfQueues, Timestamp, VOLATILE_WRITE_CACHE_ENABLE,
    aec, capability, fid, sel,
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

/// Features of an I/O controller.
pub(super) const IO_FEATURES: &[u8] = &[
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
    fid::NAMESPACE_WRITE_PROTECTION,
];

/// Features of a discovery controller (NVMe Base 2.0 §3.1.2.3).
pub(super) const DISCOVERY_FEATURES: &[u8] = &[
    fid::ASYNC_EVENT_CONFIGURATION,
    fid::KEEP_ALIVE_TIMER,
    fid::HOST_IDENTIFIER,
    fid::CONTROLLER_METADATA,
];

/// Supported bits of Asynchronous Event Configuration, for each controller type.
pub(super) const IO_EVENTS: u32 = aec::NAMESPACE_ATTRIBUTE;
pub(super) const DISCOVERY_EVENTS: u32 = aec::DISCOVERY_CHANGE;

/// Maximum length of Host Metadata in bytes.
const MAX_METADATA: usize = 4096;

/// Namespace Write Protection Config: write protected.
const WRITE_PROTECTED: u32 = 1;

impl Queue {
    fn kind(&self) -> ControllerType {
        self.binding.as_ref().map_or(ControllerType::Discovery, |binding| binding.controller.kind)
    }

    fn check_feature(&self, fid: u8) -> Result<(), Status> {
        let supported =
            if self.kind() == ControllerType::Io { IO_FEATURES } else { DISCOVERY_FEATURES };
        if supported.contains(&fid) { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) }
    }

    /// Handles Set Features without data. Returns dword 0.
    pub(super) fn set_feature(
        &mut self,
        fid: u8,
        save: bool,
        nsid: u32,
        value: u32,
    ) -> Result<u32, Status> {
        self.check_feature(fid)?;
        if save {
            return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        match fid {
            fid::NUMBER_OF_QUEUES => return self.set_queue_count(value),
            fid::VOLATILE_WRITE_CACHE => self.set_write_cache(value)?,
            fid::ASYNC_EVENT_CONFIGURATION => self.set_events(value)?,
            fid::KEEP_ALIVE_TIMER => self.set_keep_alive(value),
            // Over fabrics, Connect carries it (NVMe Base 2.0 §5.27.1.25).
            fid::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            fid::NAMESPACE_WRITE_PROTECTION => return self.refuse_write_protection(nsid, value),
            fid::POWER_MANAGEMENT if value & 0x1f != 0 => return Err(Status::INVALID_FIELD.dnr()),
            _ => *self.stored_value(fid).ok_or(Status::INVALID_FIELD.dnr())? = value,
        }
        Ok(0)
    }

    fn stored_value(&mut self, fid: u8) -> Option<&mut u32> {
        let features = &mut self.admin.as_mut()?.features;
        match fid {
            fid::ARBITRATION => Some(&mut features.arbitration),
            fid::POWER_MANAGEMENT => Some(&mut features.power),
            fid::TEMPERATURE_THRESHOLD => Some(&mut features.temperature),
            fid::ERROR_RECOVERY => Some(&mut features.recovery),
            fid::WRITE_ATOMICITY => Some(&mut features.atomicity),
            _ => None,
        }
    }

    fn set_queue_count(&mut self, value: u32) -> Result<u32, Status> {
        let requested = NumberOfQueues::parse(value).ok_or(Status::INVALID_FIELD.dnr())?;
        let binding = self.binding.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        let mut shared = binding.controller.shared();
        // Not after the first I/O queue was created (NVMe Base 2.0 §5.27.1.5).
        if !shared.open.is_empty() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let granted = u32::from(MAX_IO_QUEUES).min(requested.submission).min(requested.completion);
        shared.granted = u16::try_from(granted).unwrap_or(MAX_IO_QUEUES);
        Ok(NumberOfQueues { submission: granted, completion: granted }.emit())
    }

    /// Sets the volatile write cache. If it is disabled, every write is durable.
    fn set_write_cache(&mut self, value: u32) -> Result<(), Status> {
        let binding = self.binding.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        let off = value & VOLATILE_WRITE_CACHE_ENABLE == 0;
        binding.controller.write_through.store(off, Ordering::Relaxed);
        Ok(())
    }

    fn set_events(&mut self, value: u32) -> Result<(), Status> {
        let admin = self.admin.as_mut().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        admin.events.enabled = value;
        self.send_events();
        Ok(())
    }

    fn set_keep_alive(&mut self, millis: u32) {
        if let Some(binding) = &self.binding {
            binding.controller.keep_alive.store(millis, Ordering::Relaxed);
        }
    }

    /// Accepts only the current value: the administrator decides about write access, not the host.
    fn refuse_write_protection(&self, nsid: u32, value: u32) -> Result<u32, Status> {
        let current = self.write_protection(nsid)?;
        if value & 0b111 == current { Ok(0) } else { Err(Status::FEATURE_NOT_CHANGEABLE.dnr()) }
    }

    fn write_protection(&self, nsid: u32) -> Result<u32, Status> {
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.as_ref());
        let grant = grant.filter(|_| nsid == NSID).ok_or(Status::INVALID_NAMESPACE.dnr())?;
        Ok(if grant.access() == Access::ReadOnly { WRITE_PROTECTED } else { 0 })
    }

    /// Handles Set Features with data.
    pub(super) fn set_feature_data(
        &mut self,
        fid: u8,
        cdw11: u32,
        data: &[u8],
    ) -> Result<(), Status> {
        self.check_feature(fid)?;
        let now = self.now;
        let invalid = Status::INVALID_FIELD.dnr();
        let features =
            &mut self.admin.as_mut().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?.features;
        match fid {
            fid::TIMESTAMP => {
                let (time, _) = Timestamp::read_from_prefix(data).map_err(|_| invalid)?;
                features.time = Some((time.get(), now));
            }
            fid::HOST_BEHAVIOR_SUPPORT => {
                let (behavior, _) = HostBehavior::read_from_prefix(data).map_err(|_| invalid)?;
                features.behavior = Some(behavior);
            }
            fid::CONTROLLER_METADATA => features.set_metadata(cdw11, data)?,
            fid::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            _ => return Err(invalid),
        }
        Ok(())
    }

    /// Handles Get Features.
    pub(super) fn get_feature(
        &mut self,
        fid: u8,
        select: u8,
        nsid: u32,
        cdw11: u32,
    ) -> Result<AdminResult, Status> {
        self.check_feature(fid)?;
        match select {
            sel::CURRENT => self.current_feature(fid, nsid, cdw11),
            sel::SUPPORTED_CAPABILITIES => Ok(AdminResult::Dword(capabilities(fid))),
            // No feature is saveable, so the saved value is the default.
            sel::DEFAULT | sel::SAVED => self.default_feature(fid, nsid, cdw11),
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }

    fn default_feature(&mut self, fid: u8, nsid: u32, cdw11: u32) -> Result<AdminResult, Status> {
        match fid {
            fid::VOLATILE_WRITE_CACHE => Ok(AdminResult::Dword(u32::from(self.is_cached()))),
            fid::ASYNC_EVENT_CONFIGURATION | fid::KEEP_ALIVE_TIMER => Ok(AdminResult::Dword(0)),
            _ if self.stored_value(fid).is_some() => Ok(AdminResult::Dword(0)),
            _ => self.current_feature(fid, nsid, cdw11),
        }
    }

    /// Returns whether the disk has a volatile write cache.
    pub(super) fn is_cached(&self) -> bool {
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.as_ref());
        grant.is_some_and(|grant| grant.export().cache == Cache::Volatile)
    }

    fn current_feature(&mut self, fid: u8, nsid: u32, cdw11: u32) -> Result<AdminResult, Status> {
        if let Some(&mut value) = self.stored_value(fid) {
            return Ok(AdminResult::Dword(value));
        }
        let missing = Status::COMMAND_SEQUENCE_ERROR.dnr();
        let (admin, binding) =
            (self.admin.as_ref().ok_or(missing)?, self.binding.as_ref().ok_or(missing)?);
        let controller = &binding.controller;
        Ok(match fid {
            fid::VOLATILE_WRITE_CACHE => {
                let on = self.is_cached() && !controller.write_through.load(Ordering::Relaxed);
                AdminResult::Dword(u32::from(on))
            }
            fid::NUMBER_OF_QUEUES => {
                let granted = u32::from(controller.shared().granted);
                AdminResult::Dword(
                    NumberOfQueues { submission: granted, completion: granted }.emit(),
                )
            }
            fid::ASYNC_EVENT_CONFIGURATION => AdminResult::Dword(admin.events.enabled),
            fid::KEEP_ALIVE_TIMER => {
                AdminResult::Dword(controller.keep_alive.load(Ordering::Relaxed))
            }
            fid::TIMESTAMP => {
                AdminResult::Page(admin.features.timestamp(self.now).as_bytes().to_vec())
            }
            fid::HOST_BEHAVIOR_SUPPORT => AdminResult::Page(admin.features.behavior()),
            fid::CONTROLLER_METADATA => AdminResult::Page(admin.features.metadata()),
            fid::HOST_IDENTIFIER => AdminResult::Page(host_identifier(&controller.host.id, cdw11)?),
            fid::NAMESPACE_WRITE_PROTECTION => AdminResult::Dword(self.write_protection(nsid)?),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        })
    }
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
