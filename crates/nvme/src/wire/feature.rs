//! Feature identifiers and values, and results of asynchronous events.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature identifiers (NVMe Base 2.0 §5.27.1).
pub mod fid {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// LBA Range Type.
    pub const LBA_RANGE_TYPE: u8 = 0x03;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing: not used over fabrics.
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration: not used over fabrics.
    pub const INTERRUPT_VECTOR: u8 = 0x09;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
    /// Autonomous Power State Transition.
    pub const AUTONOMOUS_POWER_STATE: u8 = 0x0c;
    /// Host Memory Buffer: not used over fabrics.
    pub const HOST_MEMORY_BUFFER: u8 = 0x0d;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0e;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host Controlled Thermal Management.
    pub const HOST_THERMAL_MANAGEMENT: u8 = 0x10;
    /// Non-Operational Power State Config.
    pub const NON_OPERATIONAL_POWER_STATE: u8 = 0x11;
    /// Read Recovery Level Config.
    pub const READ_RECOVERY_LEVEL: u8 = 0x12;
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR_SUPPORT: u8 = 0x16;
    /// I/O Command Set Profile.
    pub const IO_COMMAND_SET_PROFILE: u8 = 0x19;
    /// Enhanced Controller Metadata.
    pub const ENHANCED_CONTROLLER_METADATA: u8 = 0x7d;
    /// Controller Metadata.
    pub const CONTROLLER_METADATA: u8 = 0x7e;
    /// Namespace Metadata.
    pub const NAMESPACE_METADATA: u8 = 0x7f;
    /// Software Progress Marker.
    pub const SOFTWARE_PROGRESS_MARKER: u8 = 0x80;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation Notification Mask.
    pub const RESERVATION_MASK: u8 = 0x82;
    /// Reservation Persistence.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
    /// Namespace Write Protection Config.
    pub const NAMESPACE_WRITE_PROTECTION: u8 = 0x84;
}

/// SEL of Get Features (NVMe Base 2.0 §5.15).
pub mod sel {
    /// Current value.
    pub const CURRENT: u8 = 0;
    /// Default value.
    pub const DEFAULT: u8 = 1;
    /// Saved value.
    pub const SAVED: u8 = 2;
    /// Supported capabilities: see [`super::capability`].
    pub const SUPPORTED_CAPABILITIES: u8 = 3;
}

/// Bits of dword 0 for [`sel::SUPPORTED_CAPABILITIES`].
pub mod capability {
    /// Saveable.
    pub const SAVEABLE: u32 = 1 << 0;
    /// Namespace specific.
    pub const NAMESPACE_SPECIFIC: u32 = 1 << 1;
    /// Changeable.
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// EXHID, bit 0 of dword 11: host identifier of 16 bytes instead of 8.
pub const EXTENDED_HOST_IDENTIFIER: u32 = 1 << 0;

/// WCE, bit 0 of dword 11: volatile write cache enabled.
pub const VOLATILE_WRITE_CACHE_ENABLE: u32 = 1 << 0;

/// Bits of Reservation Notification Mask (NVMe Base 2.0 §5.27.1.26): by the type of a
/// [`ReservationNotification`](super::log::ReservationNotification).
pub const RESERVATION_MASK: u32 = 0b1110;

/// PTPL, bit 0 of dword 11: reservations persist through power loss.
pub const RESERVATION_PERSISTENCE: u32 = 1 << 0;

/// Returns the length of a feature's data in bytes; 0 if dword 11 is the whole value (NVMe Base 2.0
/// §5.27.1).
#[must_use]
pub const fn data_len(fid: u8, cdw11: u32) -> u64 {
    match fid {
        fid::LBA_RANGE_TYPE
        | fid::ENHANCED_CONTROLLER_METADATA
        | fid::CONTROLLER_METADATA
        | fid::NAMESPACE_METADATA => 4096,
        fid::AUTONOMOUS_POWER_STATE => 256,
        fid::TIMESTAMP => 8,
        fid::HOST_BEHAVIOR_SUPPORT => 512,
        fid::HOST_IDENTIFIER if cdw11 & EXTENDED_HOST_IDENTIFIER != 0 => 16,
        fid::HOST_IDENTIFIER => 8,
        _ => 0,
    }
}

/// Number of Queues, as counts: 1 to 65535 (NVMe Base 2.0 §5.27.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// I/O submission queues.
    pub submission: u32,
    /// I/O completion queues.
    pub completion: u32,
}

impl NumberOfQueues {
    /// Parses a dword. Returns `None` if a field is FFFFh, which is invalid.
    #[must_use]
    pub const fn parse(dword: u32) -> Option<Self> {
        let (submission, completion) = (dword & 0xffff, dword >> 16);
        if submission == 0xffff || completion == 0xffff {
            return None;
        }
        Some(Self {
            submission: submission.saturating_add(1),
            completion: completion.saturating_add(1),
        })
    }

    /// Returns the dword; clamps counts to the valid range.
    #[must_use]
    pub fn emit(self) -> u32 {
        let zeros_based = |count: u32| count.clamp(1, 0xffff).saturating_sub(1);
        zeros_based(self.completion) << 16 | zeros_based(self.submission)
    }
}

/// Bits of Asynchronous Event Configuration, the same as in Identify's OAES
/// (NVMe Base 2.0 §5.27.1.8).
pub mod aec {
    /// SMART critical warnings, bits 7:0.
    pub const SMART: u32 = 0xff;
    /// Attached namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware activation notices.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// Telemetry log notices.
    pub const TELEMETRY: u32 = 1 << 10;
    /// Asymmetric namespace access change notices.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Normal NVM subsystem shutdown notices.
    pub const SUBSYSTEM_SHUTDOWN: u32 = 1 << 15;
    /// Discovery log page change notices.
    pub const DISCOVERY_CHANGE: u32 = 1 << 31;
}

/// The result of an Asynchronous Event Request: dword 0 of its completion (NVMe Base 2.0 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Event type, bits 2:0.
    pub kind: u8,
    /// Event information, bits 15:8.
    pub info: u8,
    /// Log page with details; reading it unmasks the event. Bits 23:16.
    pub lid: u8,
}

impl AsyncEvent {
    /// Event type 0: error.
    pub const ERROR: u8 = 0;
    /// Event type 1: SMART / health.
    pub const SMART: u8 = 1;
    /// Event type 2: notice.
    pub const NOTICE: u8 = 2;
    /// Event type 6: specific to the I/O command set.
    pub const IO_COMMAND_SET: u8 = 6;

    /// Attached Namespace Attribute Changed.
    pub const NAMESPACE_CHANGED: Self = Self { kind: Self::NOTICE, info: 0x00, lid: 0x04 };
    /// Asymmetric Namespace Access Change.
    pub const ANA_CHANGED: Self = Self { kind: Self::NOTICE, info: 0x03, lid: 0x0c };
    /// Discovery Log Page Change.
    pub const DISCOVERY_CHANGED: Self = Self { kind: Self::NOTICE, info: 0xf0, lid: 0x70 };
    /// Reservation Log Page Available.
    pub const RESERVATION: Self = Self { kind: Self::IO_COMMAND_SET, info: 0x00, lid: 0x80 };
    /// NVM subsystem reliability degraded.
    pub const RELIABILITY: Self = Self { kind: Self::SMART, info: 0x00, lid: 0x02 };

    /// Parses dword 0.
    #[must_use]
    pub const fn parse(dw0: u32) -> Self {
        let [kind, info, lid, _] = dw0.to_le_bytes();
        Self { kind: kind & 0b111, info, lid }
    }

    /// Returns dword 0.
    #[must_use]
    pub const fn emit(self) -> u32 {
        u32::from_le_bytes([self.kind & 0b111, self.info, self.lid, 0])
    }
}

/// An entry of LBA Range Type: 64 bytes (NVM 1.0 §4.1.3.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct LbaRange {
    /// Type: 0 is general purpose.
    pub kind: u8,
    /// Bit 0: may be overwritten; bit 1: hidden from the operating system.
    pub attributes: u8,
    pub(crate) _rsvd2: [u8; 14],
    /// First logical block.
    pub slba: U64,
    /// Length in logical blocks, 0's based.
    pub nlb: U64,
    /// Unique identifier of the range.
    pub guid: [u8; 16],
    pub(crate) _rsvd48: [u8; 16],
}
const _: () = assert!(size_of::<LbaRange>() == 64);

/// Host Behavior Support: 512 bytes (NVMe Base 2.0 §5.27.1.18).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct HostBehavior {
    /// Advanced Command Retry Enable: 0 or 1.
    pub acre: u8,
    /// Extended Telemetry Data Area 4 Supported: 0 or 1.
    pub etdas: u8,
    /// LBA Format Extension Enable: 0 or 1.
    pub lbafee: u8,
    pub(crate) _rsvd3: [u8; 509],
}
const _: () = assert!(size_of::<HostBehavior>() == 512);

/// Timestamp: 8 bytes (NVMe Base 2.0 §5.27.1.11).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Timestamp {
    /// Milliseconds since 1970: 48 bits, little endian.
    pub milliseconds: [u8; 6],
    /// Bit 0: the clock may have stopped; bits 3:1: origin.
    pub attributes: u8,
    pub(crate) _rsvd7: u8,
}
const _: () = assert!(size_of::<Timestamp>() == 8);

impl Timestamp {
    /// ORIGIN 001b: set by Set Features.
    pub const SET_BY_HOST: u8 = 1 << 1;

    /// Creates a timestamp from the lower 48 bits of `milliseconds`.
    #[must_use]
    pub const fn new(milliseconds: u64, attributes: u8) -> Self {
        let [a, b, c, d, e, f, ..] = milliseconds.to_le_bytes();
        Self { milliseconds: [a, b, c, d, e, f], attributes, _rsvd7: 0 }
    }

    /// Returns the time in milliseconds.
    #[must_use]
    pub const fn get(self) -> u64 {
        let [a, b, c, d, e, f] = self.milliseconds;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn golden_number_of_queues() {
        let queues = NumberOfQueues { submission: 4, completion: 8 };
        assert_eq!(NumberOfQueues::parse(0x0007_0003), Some(queues));
        assert_eq!(queues.emit(), 0x0007_0003);
        assert_eq!(NumberOfQueues::parse(0xffff_0003), None);
        assert_eq!(NumberOfQueues::parse(0x0003_ffff), None);
        assert_eq!(NumberOfQueues { submission: 0, completion: 70000 }.emit(), 0xfffe_0000);
    }

    #[test]
    fn golden_events() {
        assert_eq!(AsyncEvent::NAMESPACE_CHANGED.emit(), 0x0004_0002);
        assert_eq!(AsyncEvent::DISCOVERY_CHANGED.emit(), 0x0070_f002);
        assert_eq!(AsyncEvent::parse(0x0070_f002), AsyncEvent::DISCOVERY_CHANGED);
        assert_eq!(AsyncEvent::RELIABILITY.emit(), 0x0002_0001);
    }

    #[test]
    fn feature_data_lengths() {
        assert_eq!(data_len(fid::HOST_IDENTIFIER, 0), 8);
        assert_eq!(data_len(fid::HOST_IDENTIFIER, 1), 16);
        assert_eq!(data_len(fid::TIMESTAMP, 0), 8);
        assert_eq!(data_len(fid::HOST_BEHAVIOR_SUPPORT, 0), 512);
        assert_eq!(data_len(fid::CONTROLLER_METADATA, 0), 4096);
        assert_eq!(data_len(fid::NUMBER_OF_QUEUES, u32::MAX), 0);
        assert_eq!(data_len(fid::KEEP_ALIVE_TIMER, 5000), 0);
    }

    #[test]
    fn golden_timestamp() {
        let time = Timestamp::new(0x0102_0304_0506, Timestamp::SET_BY_HOST);
        assert_eq!(time.as_bytes(), [6, 5, 4, 3, 2, 1, 2, 0]);
        assert_eq!(time.get(), 0x0102_0304_0506);
    }

    #[test]
    fn golden_lba_range() {
        let mut bytes = [0; 64];
        bytes[..2].copy_from_slice(&[1, 3]); // file system, both attributes
        bytes[16] = 8; // SLBA
        bytes[24] = 7; // NLB
        let range = LbaRange::read_from_bytes(&bytes).unwrap();
        assert_eq!((range.kind, range.attributes), (1, 3));
        assert_eq!((range.slba.get(), range.nlb.get()), (8, 7));
        assert_eq!(offset_of!(LbaRange, guid), 32);
    }

    #[test]
    fn golden_host_behavior() {
        let mut bytes = [0; 512];
        bytes[..3].copy_from_slice(&[1, 0, 1]); // retry delays, no telemetry, LBA formats
        let behavior = HostBehavior::read_from_bytes(&bytes).unwrap();
        assert_eq!((behavior.acre, behavior.etdas, behavior.lbafee), (1, 0, 1));
    }
}
