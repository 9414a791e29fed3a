//! Features: what Set Features sets and Get Features gets (NVMe Base 2.0 §5.15, §5.27). None is saved.

use std::sync::atomic::Ordering;
use std::time::Instant;

use export::{Access, Cache};
use zerocopy::{FromBytes, IntoBytes};

use super::IO_QUEUES;
use super::admin::Answer;
use super::controller::Kind;
use super::io::{ALL, NSID};
use super::queue::Queue;
use crate::status::Status;
use crate::wire::feature::{
    EXTENDED_HOST_IDENTIFIER, HostBehavior, NumberOfQueues, Timestamp, VOLATILE_WRITE_CACHE_ENABLE,
    aec, capability, fid, sel,
};

/// The values of a controller's features that are nothing but values.
#[derive(Debug, Default)]
pub(super) struct Features {
    arbitration: u32,
    power: u32,
    temperature: u32,
    recovery: u32,
    atomicity: u32,
    behavior: Option<HostBehavior>,
    /// Milliseconds that the host gave, and when.
    time: Option<(u64, Instant)>,
    /// Elements of Controller Metadata: type, revision and value.
    metadata: Vec<Element>,
}

#[derive(Debug, PartialEq, Eq)]
struct Element {
    kind: u8,
    revision: u8,
    value: Vec<u8>,
}

/// Features of a controller that lends a disk.
pub(super) const IO: &[u8] = &[
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
pub(super) const DISCOVERY: &[u8] = &[
    fid::ASYNC_EVENT_CONFIGURATION,
    fid::KEEP_ALIVE_TIMER,
    fid::HOST_IDENTIFIER,
    fid::CONTROLLER_METADATA,
];

/// Events that a host of each kind of controller can ask for.
pub(super) const IO_EVENTS: u32 = aec::NAMESPACE_ATTRIBUTE;
pub(super) const DISCOVERY_EVENTS: u32 = aec::DISCOVERY_CHANGE;

/// Bytes of Host Metadata at most.
const METADATA: usize = 4096;

/// Namespace Write Protection Config: write protected until the owner lends it otherwise.
const WRITE_PROTECTED: u32 = 1;

impl Queue {
    fn kind(&self) -> Kind {
        self.link.as_ref().map_or(Kind::Discovery, |link| link.controller.kind)
    }

    fn check_feature(&self, fid: u8) -> Result<(), Status> {
        let known = if self.kind() == Kind::Io { IO } else { DISCOVERY };
        if known.contains(&fid) { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) }
    }

    /// Set Features without data. Gives dword 0.
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
            fid::NUMBER_OF_QUEUES => return self.grant_queues(value),
            fid::VOLATILE_WRITE_CACHE => self.set_write_cache(value)?,
            fid::ASYNC_EVENT_CONFIGURATION => self.set_events(value)?,
            fid::KEEP_ALIVE_TIMER => self.set_keep_alive(value),
            // NVMe Base 2.0 §5.27.1.25: fabrics give it with Connect.
            fid::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            fid::NAMESPACE_WRITE_PROTECTION => return self.refuse_write_protection(nsid, value),
            fid::POWER_MANAGEMENT if value & 0x1f != 0 => return Err(Status::INVALID_FIELD.dnr()),
            _ => *self.plain_feature(fid).ok_or(Status::INVALID_FIELD.dnr())? = value,
        }
        Ok(0)
    }

    fn plain_feature(&mut self, fid: u8) -> Option<&mut u32> {
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

    fn grant_queues(&mut self, value: u32) -> Result<u32, Status> {
        let wanted = NumberOfQueues::parse(value).ok_or(Status::INVALID_FIELD.dnr())?;
        let link = self.link.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        let mut shared = link.controller.shared();
        // NVMe Base 2.0 §5.27.1.5: not after the first I/O queue.
        if !shared.open.is_empty() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let granted = u32::from(IO_QUEUES).min(wanted.submission).min(wanted.completion);
        shared.granted = u16::try_from(granted).unwrap_or(IO_QUEUES);
        Ok(NumberOfQueues { submission: granted, completion: granted }.emit())
    }

    /// With the cache off, every write is durable when it ends.
    fn set_write_cache(&mut self, value: u32) -> Result<(), Status> {
        let link = self.link.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        let off = value & VOLATILE_WRITE_CACHE_ENABLE == 0;
        link.controller.write_through.store(off, Ordering::Relaxed);
        Ok(())
    }

    fn set_events(&mut self, value: u32) -> Result<(), Status> {
        let admin = self.admin.as_mut().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        admin.events.wanted = value;
        self.tell_events();
        Ok(())
    }

    fn set_keep_alive(&mut self, millis: u32) {
        if let Some(link) = &self.link {
            link.controller.keep_alive.store(millis, Ordering::Relaxed);
        }
    }

    /// The owner of the disk decides what may be written, not the host.
    fn refuse_write_protection(&self, nsid: u32, value: u32) -> Result<u32, Status> {
        let current = self.write_protection(nsid)?;
        if value & 0b111 == current { Ok(0) } else { Err(Status::FEATURE_NOT_CHANGEABLE.dnr()) }
    }

    fn write_protection(&self, nsid: u32) -> Result<u32, Status> {
        let grant = self.link.as_ref().and_then(|link| link.grant.as_ref());
        let grant = grant.filter(|_| nsid == NSID).ok_or(Status::INVALID_NAMESPACE.dnr())?;
        Ok(if grant.access() == Access::ReadOnly { WRITE_PROTECTED } else { 0 })
    }

    /// Set Features with data.
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

    /// Get Features.
    pub(super) fn get_feature(
        &mut self,
        fid: u8,
        select: u8,
        nsid: u32,
        cdw11: u32,
    ) -> Result<Answer, Status> {
        self.check_feature(fid)?;
        match select {
            sel::CURRENT => self.current_feature(fid, nsid, cdw11),
            sel::SUPPORTED_CAPABILITIES => Ok(Answer::Dword(capabilities(fid))),
            // Nothing is saved, so what would be saved is the default.
            sel::DEFAULT | sel::SAVED => self.default_feature(fid, nsid, cdw11),
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }

    fn default_feature(&mut self, fid: u8, nsid: u32, cdw11: u32) -> Result<Answer, Status> {
        match fid {
            fid::VOLATILE_WRITE_CACHE => Ok(Answer::Dword(u32::from(self.is_cached()))),
            fid::ASYNC_EVENT_CONFIGURATION | fid::KEEP_ALIVE_TIMER => Ok(Answer::Dword(0)),
            _ if self.plain_feature(fid).is_some() => Ok(Answer::Dword(0)),
            _ => self.current_feature(fid, nsid, cdw11),
        }
    }

    /// Whether writes may be lost until they are flushed.
    pub(super) fn is_cached(&self) -> bool {
        let grant = self.link.as_ref().and_then(|link| link.grant.as_ref());
        grant.is_some_and(|grant| grant.export().cache == Cache::Volatile)
    }

    fn current_feature(&mut self, fid: u8, nsid: u32, cdw11: u32) -> Result<Answer, Status> {
        if let Some(&mut value) = self.plain_feature(fid) {
            return Ok(Answer::Dword(value));
        }
        let missing = Status::COMMAND_SEQUENCE_ERROR.dnr();
        let (admin, link) =
            (self.admin.as_ref().ok_or(missing)?, self.link.as_ref().ok_or(missing)?);
        let controller = &link.controller;
        Ok(match fid {
            fid::VOLATILE_WRITE_CACHE => {
                let on = self.is_cached() && !controller.write_through.load(Ordering::Relaxed);
                Answer::Dword(u32::from(on))
            }
            fid::NUMBER_OF_QUEUES => {
                let granted = u32::from(controller.shared().granted);
                Answer::Dword(NumberOfQueues { submission: granted, completion: granted }.emit())
            }
            fid::ASYNC_EVENT_CONFIGURATION => Answer::Dword(admin.events.wanted),
            fid::KEEP_ALIVE_TIMER => Answer::Dword(controller.keep_alive.load(Ordering::Relaxed)),
            fid::TIMESTAMP => Answer::Page(admin.features.timestamp(self.now).as_bytes().to_vec()),
            fid::HOST_BEHAVIOR_SUPPORT => Answer::Page(admin.features.behavior()),
            fid::CONTROLLER_METADATA => Answer::Page(admin.features.metadata()),
            fid::HOST_IDENTIFIER => Answer::Page(host_identifier(&controller.host.id, cdw11)?),
            fid::NAMESPACE_WRITE_PROTECTION => Answer::Dword(self.write_protection(nsid)?),
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

    /// Controller Metadata (NVMe Base 2.0 §5.27.1.22): adds or replaces elements, or deletes those of the named types.
    fn set_metadata(&mut self, cdw11: u32, data: &[u8]) -> Result<(), Status> {
        const DELETE: u32 = 0b01;
        let named = parse_elements(data).ok_or(Status::INVALID_FIELD.dnr())?;
        self.metadata.retain(|old| named.iter().all(|new| new.kind != old.kind));
        if cdw11 >> 13 & 0b11 != DELETE {
            self.metadata.extend(named);
        }
        let len: usize = self.metadata.iter().map(|element| element.value.len() + 4).sum();
        if len + 2 > METADATA {
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
        page.resize(METADATA, 0);
        page
    }
}

/// The elements of Host Metadata: a count, then type, revision, length and value of each.
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

/// Whether a namespace identifier names the namespace, or all.
pub(super) fn names_any(nsid: u32) -> bool {
    matches!(nsid, 0 | NSID | ALL)
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
    fn metadata_that_lies_about_its_length_is_refused() {
        for data in [&[1, 0, 1][..], &[1, 0, 1, 0, 9, 0, 0], &[]] {
            assert!(Features::default().set_metadata(0, data).is_err(), "{data:?}");
        }
    }
}
