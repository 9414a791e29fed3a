//! Log pages.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::text::{self, NQN_FIELD, NqnError};

/// Log page identifiers (NVMe Base 2.0 §5.16.1).
pub mod lid {
    /// Supported Log Pages.
    pub const SUPPORTED_LOG_PAGES: u8 = 0x00;
    /// Error Information.
    pub const ERROR_INFORMATION: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT: u8 = 0x03;
    /// Changed Namespace List: a [`super::super::identify::NamespaceList`].
    pub const CHANGED_NAMESPACE_LIST: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Asymmetric Namespace Access.
    pub const ANA: u8 = 0x0c;
    /// Feature Identifiers Supported and Effects.
    pub const FEATURE_EFFECTS: u8 = 0x12;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Reservation Notification.
    pub const RESERVATION: u8 = 0x80;
}

/// Supported Log Pages, 00h: 1024 bytes (NVMe Base 2.0 §5.16.1.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SupportedLogPages {
    /// By log page identifier: bit 0 LSUPP, bit 1 index offset supported.
    pub lids: [U32; 256],
}
const _: () = assert!(size_of::<SupportedLogPages>() == 1024);

impl SupportedLogPages {
    /// Bit 0 of an entry: LSUPP.
    pub const SUPPORTED: u32 = 1 << 0;

    /// Creates the page for these log pages.
    #[must_use]
    pub fn emit(lids: &[u8]) -> Self {
        Self { lids: table_of(lids, Self::SUPPORTED) }
    }
}

/// An entry of Error Information, 01h: 64 bytes (NVMe Base 2.0 §5.16.1.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ErrorEntry {
    /// Error count, from 1; 0 is an empty entry.
    pub error_count: U64,
    /// Submission queue of the command.
    pub sqid: U16,
    /// Command identifier.
    pub cid: U16,
    /// Status field of the completion, with phase tag.
    pub status: U16,
    /// Parameter Error Location: byte in bits 7:0, bit in 10:8; FFFFh if none.
    pub parameter_error_location: U16,
    /// First failed block.
    pub lba: U64,
    /// NSID.
    pub nsid: U32,
    /// Vendor specific log page with details, or 0.
    pub vs: u8,
    /// Transport type: 3 is TCP.
    pub trtype: u8,
    /// Command set.
    pub csi: u8,
    /// Opcode of the command.
    pub opc: u8,
    /// Command specific information.
    pub cs: U64,
    /// Transport specific information.
    pub trtype_info: U16,
    pub(crate) _rsvd42: [u8; 21],
    /// Version of this entry: 1 if TRTYPE to TRTYPE_INFO are valid.
    pub lpver: u8,
}
const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// SMART / Health Information, 02h: 512 bytes (NVMe Base 2.0 §5.16.1.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SmartLog {
    /// Critical warnings: see [`critical_warning`].
    pub critical_warning: u8,
    /// Composite Temperature in kelvins; 0 if unknown.
    pub ctemp: U16,
    /// Available Spare in percent.
    pub avsp: u8,
    /// Available Spare Threshold in percent.
    pub avspt: u8,
    /// Percentage Used; may exceed 100.
    pub pused: u8,
    /// Endurance group critical warnings.
    pub egcws: u8,
    pub(crate) _rsvd7: [u8; 25],
    /// Data Units Read, in units of 1000 times 512 bytes, rounded up.
    pub dur: U128,
    /// Data Units Written, in units of 1000 times 512 bytes, rounded up.
    pub duw: U128,
    /// Host Read Commands (with Compare and Verify).
    pub hrc: U128,
    /// Host Write Commands.
    pub hwc: U128,
    /// Controller Busy Time in minutes.
    pub cbt: U128,
    /// Power cycles.
    pub pwrc: U128,
    /// Power On Hours.
    pub poh: U128,
    /// Unexpected Power Losses.
    pub upl: U128,
    /// Media and data integrity errors.
    pub mdie: U128,
    /// Number of Error Information Log Entries.
    pub neile: U128,
    /// Warning Composite Temperature Time in minutes.
    pub wctt: U32,
    /// Critical Composite Temperature Time in minutes.
    pub cctt: U32,
    /// Temperature sensors in kelvins; 0 if absent.
    pub tsen: [U16; 8],
    pub(crate) _rsvd216: [u8; 296],
}
const _: () = assert!(size_of::<SmartLog>() == 512);

/// Bits of the critical warning.
pub mod critical_warning {
    /// Available spare below the threshold.
    pub const SPARE: u8 = 1 << 0;
    /// Temperature out of range.
    pub const TEMPERATURE: u8 = 1 << 1;
    /// NVM subsystem reliability degraded.
    pub const RELIABILITY: u8 = 1 << 2;
    /// Media read-only (other than by namespace write protection).
    pub const READ_ONLY: u8 = 1 << 3;
}

/// Firmware Slot Information, 03h: 512 bytes (NVMe Base 2.0 §5.16.1.4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FirmwareSlot {
    /// Active slot in bits 2:0, slot after the next reset in bits 6:4.
    pub afi: u8,
    pub(crate) _rsvd1: [u8; 7],
    /// Firmware revision of each slot, ASCII; 0 if empty.
    pub frs: [[u8; 8]; 7],
    pub(crate) _rsvd64: [u8; 448],
}
const _: () = assert!(size_of::<FirmwareSlot>() == 512);

impl FirmwareSlot {
    /// Creates the page with one active slot.
    #[must_use]
    pub fn emit(revision: [u8; 8]) -> Self {
        let mut log = Self::new_zeroed();
        log.afi = 1;
        log.frs.iter_mut().take(1).for_each(|slot| *slot = revision);
        log
    }
}

/// Commands Supported and Effects, 05h: 4096 bytes (NVMe Base 2.0 §5.16.1.6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CommandEffects {
    /// By opcode of Admin commands: see [`effect`].
    pub acs: [U32; 256],
    /// By opcode of I/O commands: see [`effect`].
    pub iocs: [U32; 256],
    pub(crate) _rsvd2048: [u8; 2048],
}
const _: () = assert!(size_of::<CommandEffects>() == 4096);

impl CommandEffects {
    /// Creates the page. `admin` are Admin commands without effects, `reading` and `writing` I/O
    /// commands that read and write blocks.
    #[must_use]
    pub fn emit(admin: &[u8], reading: &[u8], writing: &[u8]) -> Self {
        let mut log = Self::new_zeroed();
        log.acs = table_of(admin, effect::SUPPORTED);
        log.iocs = table_of(reading, effect::SUPPORTED);
        for (opcode, entry) in (0..=u8::MAX).zip(&mut log.iocs) {
            if writing.contains(&opcode) {
                entry.set(effect::SUPPORTED | effect::BLOCK_CONTENT_CHANGE);
            }
        }
        log
    }
}

/// Bits of an entry of [`CommandEffects`].
pub mod effect {
    /// CSUPP: the command is supported.
    pub const SUPPORTED: u32 = 1 << 0;
    /// LBCC: logical block content change.
    pub const BLOCK_CONTENT_CHANGE: u32 = 1 << 1;
    /// NCC: namespace capability change.
    pub const NAMESPACE_CAPABILITY_CHANGE: u32 = 1 << 2;
    /// NIC: namespace inventory change.
    pub const NAMESPACE_INVENTORY_CHANGE: u32 = 1 << 3;
    /// CCC: controller capability change.
    pub const CONTROLLER_CAPABILITY_CHANGE: u32 = 1 << 4;
}

/// Feature Identifiers Supported and Effects, 12h: 1024 bytes (NVMe Base 2.0 §5.16.1.18).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FeatureEffects {
    /// By feature identifier: bit 0 FSUPP, bit 1 user data content change, bits 31:20 scope.
    pub fids: [U32; 256],
}
const _: () = assert!(size_of::<FeatureEffects>() == 1024);

impl FeatureEffects {
    /// Bit 0 of an entry: FSUPP.
    pub const SUPPORTED: u32 = 1 << 0;
    /// Scope, bit 20: namespace.
    pub const SCOPE_NAMESPACE: u32 = 1 << 20;
    /// Scope, bit 21: controller.
    pub const SCOPE_CONTROLLER: u32 = 1 << 21;

    /// Creates the page for these features of a controller.
    #[must_use]
    pub fn emit(fids: &[u8]) -> Self {
        Self { fids: table_of(fids, Self::SUPPORTED | Self::SCOPE_CONTROLLER) }
    }
}

/// Asymmetric Namespace Access, 0Ch, with one group of one namespace: 52 bytes (NVMe Base 2.0
/// §5.16.1.13).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct AnaLog {
    /// Change count of the log.
    pub change_count: U64,
    /// Number of group descriptors.
    pub groups: U16,
    pub(crate) _rsvd10: [u8; 6],
    /// Group identifier.
    pub group: U32,
    /// Number of NSIDs of the group.
    pub namespaces: U32,
    /// Change count of the group.
    pub group_change_count: U64,
    /// State, in bits 3:0: see [`ana`].
    pub state: u8,
    pub(crate) _rsvd33: [u8; 15],
    /// NSID, unless only groups are returned.
    pub nsid: U32,
}
const _: () = assert!(size_of::<AnaLog>() == 52);

impl AnaLog {
    /// Creates the log of group 1, without its namespace if `groups_only`.
    #[must_use]
    pub fn emit(change_count: u64, state: u8, nsid: u32, groups_only: bool) -> Self {
        let (changes, one) = (U64::new(change_count), U32::new(1));
        let mut log = Self {
            change_count: changes,
            groups: U16::new(1),
            group: one,
            group_change_count: changes,
            state,
            ..Self::new_zeroed()
        };
        if !groups_only {
            (log.namespaces, log.nsid) = (one, U32::new(nsid));
        }
        log
    }
}

/// States of asymmetric namespace access, and the bits of ANACAP.
pub mod ana {
    /// Optimized.
    pub const OPTIMIZED: u8 = 0x1;
    /// Inaccessible.
    pub const INACCESSIBLE: u8 = 0x3;
    /// ANACAP: reports Optimized.
    pub const REPORTS_OPTIMIZED: u8 = 1 << 0;
    /// ANACAP: reports Inaccessible.
    pub const REPORTS_INACCESSIBLE: u8 = 1 << 2;
    /// ANACAP: the group of an attached namespace does not change.
    pub const FIXED_GROUP: u8 = 1 << 6;
}

/// Reservation Notification, 80h: 64 bytes (NVMe Base 2.0 §5.16.1.24). Zeros if there is none.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReservationNotification {
    /// Number of notifications so far, from 1.
    pub count: U64,
    /// Type: constants of this type.
    pub kind: u8,
    /// Number of further notifications.
    pub available: u8,
    pub(crate) _rsvd10: [u8; 2],
    /// NSID.
    pub nsid: U32,
    pub(crate) _rsvd16: [u8; 48],
}
const _: () = assert!(size_of::<ReservationNotification>() == 64);

impl ReservationNotification {
    /// Type 1: Registration Preempted.
    pub const REGISTRATION_PREEMPTED: u8 = 1;
    /// Type 2: Reservation Released.
    pub const RESERVATION_RELEASED: u8 = 2;
    /// Type 3: Reservation Preempted.
    pub const RESERVATION_PREEMPTED: u8 = 3;

    /// Creates the page of a notification.
    #[must_use]
    pub fn emit(count: u64, kind: u8, available: u8, nsid: u32) -> Self {
        let (count, nsid) = (U64::new(count), U32::new(nsid));
        Self { count, kind, available, nsid, ..Self::new_zeroed() }
    }
}

/// Returns a table with `bits` at the indexes `numbers`.
fn table_of(numbers: &[u8], bits: u32) -> [U32; 256] {
    let mut table = [U32::ZERO; 256];
    for (number, entry) in (0..=u8::MAX).zip(&mut table) {
        if numbers.contains(&number) {
            entry.set(bits);
        }
    }
    table
}

/// Header of the Discovery log page, 70h: 1024 bytes (NVMe Base 2.0 §5.16.1.23).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// Generation counter: changes with the entries.
    pub genctr: U64,
    /// Number of entries.
    pub numrec: U64,
    /// Record format: 0.
    pub recfmt: U16,
    pub(crate) _rsvd18: [u8; 1006],
}
const _: () = assert!(size_of::<DiscoveryHeader>() == 1024);

impl DiscoveryHeader {
    /// Creates the header of a log with `numrec` entries.
    #[must_use]
    pub fn emit(genctr: u64, numrec: u64) -> Self {
        Self { genctr: U64::new(genctr), numrec: U64::new(numrec), ..Self::new_zeroed() }
    }
}

/// An entry of the Discovery log page: 1024 bytes (NVMe Base 2.0 §5.16.1.23, NVMe/TCP 1.0 §3.1.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// Transport type: 3 is TCP.
    pub trtype: u8,
    /// Address family: see [`adrfam`].
    pub adrfam: u8,
    /// Subsystem type: see [`subtype`].
    pub subtype: u8,
    /// Transport requirements: see [`treq`].
    pub treq: u8,
    /// Port identifier.
    pub portid: U16,
    /// Controller identifier: FFFFh for dynamic controllers.
    pub cntlid: U16,
    /// Maximum Admin submission queue entries: at least 32.
    pub asqsz: U16,
    /// Entry flags: see [`eflags`].
    pub eflags: U16,
    pub(crate) _rsvd12: [u8; 20],
    /// TCP port, ASCII.
    pub trsvcid: [u8; 32],
    pub(crate) _rsvd64: [u8; 192],
    /// Subsystem NQN, NUL-terminated.
    pub subnqn: [u8; NQN_FIELD],
    /// IP address, ASCII.
    pub traddr: [u8; 256],
    /// TSAS byte 0: see [`sectype`].
    pub sectype: u8,
    pub(crate) _rsvd769: [u8; 255],
}
const _: () = assert!(size_of::<DiscoveryEntry>() == 1024);

impl DiscoveryEntry {
    /// TRTYPE of TCP.
    pub const TRTYPE_TCP: u8 = 3;

    /// Creates an entry for TCP without security: dynamic controllers, an Admin queue of 32
    /// entries, SQ flow control optional.
    ///
    /// # Errors
    /// Fails if `subnqn` is empty, longer than 223 bytes, or contains a NUL.
    pub fn emit(
        subtype: u8,
        adrfam: u8,
        traddr: &str,
        port: u16,
        subnqn: &str,
    ) -> Result<Self, NqnError> {
        Ok(Self {
            trtype: Self::TRTYPE_TCP,
            adrfam,
            subtype,
            treq: treq::NOT_SPECIFIED | treq::DISABLE_SQ_FLOW_CONTROL,
            cntlid: U16::new(u16::MAX),
            asqsz: U16::new(32),
            trsvcid: text::emit_ascii(&port.to_string()),
            traddr: text::emit_ascii(traddr),
            subnqn: text::emit_nqn(subnqn)?,
            ..Self::new_zeroed()
        })
    }

    /// Sets bits 1:0 of [`treq`], and [`sectype`].
    #[must_use]
    pub fn secured(self, treq: u8, sectype: u8) -> Self {
        Self { treq: self.treq & !0b11 | treq & 0b11, sectype, ..self }
    }
}

/// Values of SECTYPE (NVMe/TCP 1.0 §3.1.1).
pub mod sectype {
    /// No secure channel.
    pub const NONE: u8 = 0;
    /// TLS 1.3 or later.
    pub const TLS_1_3: u8 = 2;
}

/// Values of ADRFAM.
pub mod adrfam {
    /// IPv4.
    pub const IPV4: u8 = 1;
    /// IPv6.
    pub const IPV6: u8 = 2;
}

/// Values of SUBTYPE.
pub mod subtype {
    /// Referral to another discovery subsystem.
    pub const REFERRAL: u8 = 1;
    /// NVM subsystem.
    pub const NVM: u8 = 2;
    /// Current discovery subsystem.
    pub const CURRENT_DISCOVERY: u8 = 3;
}

/// Bits of TREQ.
pub mod treq {
    /// Bits 1:0: secure channel not specified.
    pub const NOT_SPECIFIED: u8 = 0;
    /// Bits 1:0: secure channel required.
    pub const REQUIRED: u8 = 1;
    /// Bits 1:0: secure channel not required.
    pub const NOT_REQUIRED: u8 = 2;
    /// Disabling of SQ flow control supported.
    pub const DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
}

/// Bits of EFLAGS.
pub mod eflags {
    /// Duplicate Returned Information: another port returns the same.
    pub const DUPLICATE: u16 = 1 << 0;
    /// Explicit Persistent Connection Support for Discovery.
    pub const PERSISTENT_CONNECTIONS: u16 = 1 << 1;
}

#[cfg(test)]
mod test {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn golden_supported_log_pages() {
        let log = SupportedLogPages::emit(&[lid::SUPPORTED_LOG_PAGES, lid::SMART, lid::DISCOVERY]);
        assert_eq!(log.as_bytes()[..12], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(log.as_bytes()[0x70 * 4], 1);
        assert_eq!(log.lids.iter().filter(|entry| entry.get() != 0).count(), 3);
    }

    #[test]
    fn golden_error_entry() {
        #[rustfmt::skip]
        let bytes: [u8; 64] = [
            5, 0, 0, 0, 0, 0, 0, 0,          // error 5
            1, 0,  0x34, 0x12,               // queue 1, CID 1234h
            0x02, 0x45,                      // status field: 2h/81h, More
            0xff, 0xff,                      // no parameter
            0x10, 0, 0, 0, 0, 0, 0, 0,       // block 16
            1, 0, 0, 0,                      // NSID 1
            0, 3, 0, 2,                      // VS, TCP, NVM, Read
            0, 0, 0, 0, 0, 0, 0, 0,  9, 0,   // CS, TRTYPE information
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            1,                               // version
        ];
        let entry = ErrorEntry::read_from_bytes(&bytes).unwrap();
        assert_eq!((entry.error_count.get(), entry.sqid.get(), entry.cid.get()), (5, 1, 0x1234));
        assert_eq!((entry.status.get(), entry.parameter_error_location.get()), (0x4502, 0xffff));
        assert_eq!((entry.lba.get(), entry.nsid.get()), (16, 1));
        assert_eq!((entry.vs, entry.trtype, entry.csi, entry.opc), (0, 3, 0, 2));
        assert_eq!((entry.cs.get(), entry.trtype_info.get(), entry.lpver), (0, 9, 1));
    }

    #[test]
    fn smart_offsets_match_the_specification() {
        assert_eq!(offset_of!(SmartLog, ctemp), 1);
        assert_eq!(offset_of!(SmartLog, avsp), 3);
        assert_eq!(offset_of!(SmartLog, avspt), 4);
        assert_eq!(offset_of!(SmartLog, pused), 5);
        assert_eq!(offset_of!(SmartLog, egcws), 6);
        assert_eq!(offset_of!(SmartLog, dur), 32);
        assert_eq!(offset_of!(SmartLog, duw), 48);
        assert_eq!(offset_of!(SmartLog, hrc), 64);
        assert_eq!(offset_of!(SmartLog, hwc), 80);
        assert_eq!(offset_of!(SmartLog, cbt), 96);
        assert_eq!(offset_of!(SmartLog, pwrc), 112);
        assert_eq!(offset_of!(SmartLog, poh), 128);
        assert_eq!(offset_of!(SmartLog, upl), 144);
        assert_eq!(offset_of!(SmartLog, mdie), 160);
        assert_eq!(offset_of!(SmartLog, neile), 176);
        assert_eq!(offset_of!(SmartLog, wctt), 192);
        assert_eq!(offset_of!(SmartLog, cctt), 196);
        assert_eq!(offset_of!(SmartLog, tsen), 200);
    }

    #[test]
    fn golden_smart() {
        let mut bytes = [0; 512];
        bytes[..6].copy_from_slice(&[0x04, 0x2c, 0x01, 100, 10, 1]); // reliability, 300 K, spare, life
        bytes[32..34].copy_from_slice(&[0xe8, 0x03]); // 1000 units read
        bytes[160] = 2; // media errors
        let log = SmartLog::read_from_bytes(&bytes).unwrap();
        assert_eq!(log.critical_warning, critical_warning::RELIABILITY);
        assert_eq!((log.ctemp.get(), log.avsp, log.avspt, log.pused), (300, 100, 10, 1));
        assert_eq!((log.dur.get(), log.mdie.get()), (1000, 2));
        assert_eq!(log.as_bytes(), bytes);
    }

    #[test]
    fn golden_firmware_slot() {
        let log = FirmwareSlot::emit(*b"1.0     ");
        assert_eq!(log.as_bytes()[0], 1);
        assert_eq!(&log.as_bytes()[8..16], b"1.0     ");
        assert!(log.as_bytes()[16..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn golden_command_effects() {
        let log = CommandEffects::emit(&[0x06], &[0x02], &[0x01]);
        assert_eq!(log.as_bytes()[0x06 * 4], 1);
        assert_eq!(log.as_bytes()[1024 + 4..1024 + 12], [3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(log.as_bytes().iter().filter(|&&byte| byte != 0).count(), 3);
    }

    #[test]
    fn golden_feature_effects() {
        let log = FeatureEffects::emit(&[0x07]);
        assert_eq!(log.as_bytes()[28..32], [1, 0, 0x20, 0]);
    }

    #[test]
    fn golden_discovery_header() {
        let header = DiscoveryHeader::emit(0x0102, 3);
        assert_eq!(header.as_bytes()[..18], [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(offset_of!(DiscoveryHeader, recfmt), 16);
    }

    #[test]
    fn golden_discovery_entry() {
        let entry =
            DiscoveryEntry::emit(subtype::NVM, adrfam::IPV4, "192.0.2.1", 4420, "nqn.x").unwrap();
        let bytes = entry.as_bytes();
        // TCP, IPv4, NVM subsystem, flow control can be off; port 0; any controller; 32; no flags
        assert_eq!(bytes[..12], [3, 1, 2, 4, 0, 0, 0xff, 0xff, 32, 0, 0, 0]);
        assert_eq!(&bytes[32..64], format!("{:32}", "4420").as_bytes());
        assert_eq!(&bytes[256..262], b"nqn.x\0");
        assert_eq!(&bytes[512..768], format!("{:256}", "192.0.2.1").as_bytes());
        assert!(bytes[768..].iter().all(|&byte| byte == 0));
        let secured = entry.secured(treq::REQUIRED, sectype::TLS_1_3);
        assert_eq!((secured.as_bytes()[3], secured.as_bytes()[768]), (5, 2));
        assert_eq!(secured.secured(treq::NOT_SPECIFIED, sectype::NONE), entry);
        assert_eq!(offset_of!(DiscoveryEntry, sectype), 768);
        assert_eq!(offset_of!(DiscoveryEntry, eflags), 10);
    }
}
