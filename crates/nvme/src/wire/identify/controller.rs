//! Identify Controller: CNS 01h, and CNS 06h for the NVM command set.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::text::NQN_FIELD;

/// The Identify Controller data structure, CNS 01h: 4096 bytes (NVMe Base 2.0 §5.17.2.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor identifier; 0 without PCI.
    pub vid: U16,
    /// PCI subsystem vendor identifier.
    pub ssvid: U16,
    /// Serial number, ASCII.
    pub sn: [u8; 20],
    /// Model number, ASCII.
    pub mn: [u8; 40],
    /// Firmware revision, ASCII.
    pub fr: [u8; 8],
    /// Recommended arbitration burst: 2^n commands.
    pub rab: u8,
    /// IEEE OUI, least significant byte first.
    pub ieee: [u8; 3],
    /// Multi-path and sharing: see [`cmic`].
    pub cmic: u8,
    /// Maximum Data Transfer Size: 2^n memory pages; 0 means no limit.
    pub mdts: u8,
    /// Controller identifier.
    pub cntlid: U16,
    /// Version, in the format of the VS property.
    pub ver: U32,
    /// Runtime D3 resume latency in microseconds.
    pub rtd3r: U32,
    /// Runtime D3 entry latency in microseconds.
    pub rtd3e: U32,
    /// Optional asynchronous events: bits of [`crate::wire::feature::aec`].
    pub oaes: U32,
    /// Controller attributes: see [`ctratt`].
    pub ctratt: U32,
    /// Read recovery levels.
    pub rrls: U16,
    /// Boot partition capabilities.
    pub bpcap: u8,
    pub(crate) _rsvd103: [u8; 1],
    /// NVM subsystem shutdown latency in microseconds.
    pub nssl: U32,
    pub(crate) _rsvd108: [u8; 2],
    /// Power loss signaling.
    pub plsi: u8,
    /// Controller type: see [`cntrltype`].
    pub cntrltype: u8,
    /// FRU globally unique identifier.
    pub fguid: [u8; 16],
    /// Command retry delay 1, in units of 100 ms.
    pub crdt1: U16,
    /// Command retry delay 2, in units of 100 ms.
    pub crdt2: U16,
    /// Command retry delay 3, in units of 100 ms.
    pub crdt3: U16,
    pub(crate) _rsvd134: [u8; 119],
    /// NVM subsystem report: bit 0 storage device, bit 1 enclosure.
    pub nvmsr: u8,
    /// VPD write cycle information.
    pub vwci: u8,
    /// Management endpoint capabilities.
    pub mec: u8,
    /// Optional Admin commands: see [`oacs`].
    pub oacs: U16,
    /// Abort Command Limit, 0's based.
    pub acl: u8,
    /// Asynchronous Event Request Limit, 0's based.
    pub aerl: u8,
    /// Firmware updates: bit 0 slot 1 read-only, bits 3:1 slots.
    pub frmw: u8,
    /// Log page attributes: see [`lpa`].
    pub lpa: u8,
    /// Error log entries, 0's based.
    pub elpe: u8,
    /// Power states, 0's based.
    pub npss: u8,
    /// Admin vendor specific command configuration.
    pub avscc: u8,
    /// Autonomous power state transitions.
    pub apsta: u8,
    /// Warning composite temperature in kelvins.
    pub wctemp: U16,
    /// Critical composite temperature in kelvins.
    pub cctemp: U16,
    /// Maximum time for firmware activation, in units of 100 ms.
    pub mtfa: U16,
    /// Host memory buffer preferred size, in units of 4 KiB.
    pub hmpre: U32,
    /// Host memory buffer minimum size, in units of 4 KiB.
    pub hmmin: U32,
    /// Total capacity in bytes.
    pub tnvmcap: U128,
    /// Unallocated capacity in bytes.
    pub unvmcap: U128,
    /// Replay protected memory block support.
    pub rpmbs: U32,
    /// Extended self-test time in minutes.
    pub edstt: U16,
    /// Self-test options.
    pub dsto: u8,
    /// Firmware update granularity.
    pub fwug: u8,
    /// Keep Alive granularity, in units of 100 ms; 0 if unsupported.
    pub kas: U16,
    /// Host controlled thermal management attributes.
    pub hctma: U16,
    /// Minimum thermal management temperature in kelvins.
    pub mntmt: U16,
    /// Maximum thermal management temperature in kelvins.
    pub mxtmt: U16,
    /// Sanitize capabilities.
    pub sanicap: U32,
    /// Host memory buffer minimum descriptor size, in units of 4 KiB.
    pub hmminds: U32,
    /// Host memory buffer maximum descriptors.
    pub hmmaxd: U16,
    /// NVM set identifier maximum.
    pub nsetidmax: U16,
    /// Endurance group identifier maximum.
    pub endgidmax: U16,
    /// ANA transition time in seconds.
    pub anatt: u8,
    /// ANA capabilities.
    pub anacap: u8,
    /// ANA group identifier maximum.
    pub anagrpmax: U32,
    /// Number of ANA group identifiers.
    pub nanagrpid: U32,
    /// Persistent event log size, in units of 64 KiB.
    pub pels: U32,
    /// Domain identifier.
    pub domainid: U16,
    pub(crate) _rsvd358: [u8; 10],
    /// Maximum endurance group capacity in bytes.
    pub megcap: U128,
    pub(crate) _rsvd384: [u8; 128],
    /// Submission queue entry size: minimum 2^n in bits 3:0, maximum in 7:4.
    pub sqes: u8,
    /// Completion queue entry size: minimum 2^n in bits 3:0, maximum in 7:4.
    pub cqes: u8,
    /// Maximum outstanding commands of a queue; mandatory over fabrics.
    pub maxcmd: U16,
    /// Number of namespaces: the maximum NSID.
    pub nn: U32,
    /// Optional NVM commands: see [`oncs`].
    pub oncs: U16,
    /// Fused operations: bit 0 Compare and Write.
    pub fuses: U16,
    /// Format NVM attributes.
    pub fna: u8,
    /// Volatile write cache: see [`vwc`].
    pub vwc: u8,
    /// Atomic write unit normal, in blocks, 0's based.
    pub awun: U16,
    /// Atomic write unit power fail, in blocks, 0's based.
    pub awupf: U16,
    /// I/O command set vendor specific command configuration.
    pub icsvscc: u8,
    /// Namespace write protection capabilities.
    pub nwpc: u8,
    /// Atomic compare and write unit, in blocks, 0's based.
    pub acwu: U16,
    /// Optional Copy formats: bit n for format n.
    pub ocfs: U16,
    /// SGL support: see [`sgls`].
    pub sgls: U32,
    /// Maximum number of allowed namespaces; 0 means NN.
    pub mnan: U32,
    /// Maximum domain namespace attachments.
    pub maxdna: U128,
    /// Maximum I/O controller namespace attachments.
    pub maxcna: U32,
    pub(crate) _rsvd564: [u8; 204],
    /// Subsystem NQN, NUL-terminated.
    pub subnqn: [u8; NQN_FIELD],
    pub(crate) _rsvd1024: [u8; 768],
    /// I/O command capsule size, in units of 16 bytes: at least 4.
    pub ioccsz: U32,
    /// I/O response capsule size, in units of 16 bytes: at least 1.
    pub iorcsz: U32,
    /// In-capsule data offset, in units of 16 bytes: 0.
    pub icdoff: U16,
    /// Fabrics controller attributes: bit 0 static controllers.
    pub fcatt: u8,
    /// Maximum SGL data block descriptors of a command.
    pub msdbd: u8,
    /// Optional Fabrics commands: bit 0 Disconnect.
    pub ofcs: U16,
    /// Discovery controller type: 0 not reported, 1 DDC, 2 CDC.
    pub dctype: u8,
    pub(crate) _rsvd1807: [u8; 241],
    /// Power state descriptors.
    pub psd: [PowerState; 32],
    /// Vendor specific.
    pub vs: [u8; 1024],
}
const _: () = assert!(size_of::<IdentifyController>() == 4096);

/// A power state descriptor: 32 bytes (NVMe Base 2.0 §5.17.2.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PowerState {
    /// Maximum power, in centiwatts unless bit 0 of the flags is set.
    pub mp: U16,
    pub(crate) _rsvd2: u8,
    /// Bit 0: MP is in units of 0.0001 W; bit 1: non-operational.
    pub flags: u8,
    /// Entry latency in microseconds.
    pub enlat: U32,
    /// Exit latency in microseconds.
    pub exlat: U32,
    /// Relative read throughput.
    pub rrt: u8,
    /// Relative read latency.
    pub rrl: u8,
    /// Relative write throughput.
    pub rwt: u8,
    /// Relative write latency.
    pub rwl: u8,
    /// Idle power.
    pub idlp: U16,
    /// Idle power scale, bits 7:6.
    pub ips: u8,
    pub(crate) _rsvd19: u8,
    /// Active power.
    pub actp: U16,
    /// Workload in bits 2:0, active power scale in bits 7:6.
    pub apws: u8,
    pub(crate) _rsvd23: [u8; 9],
}
const _: () = assert!(size_of::<PowerState>() == 32);

/// The I/O Command Set specific Identify Controller data structure of the NVM command set,
/// CNS 06h: 4096 bytes (NVM 1.0 §4.1.5.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// Verify size limit: 2^n memory pages; 0 means no limit.
    pub vsl: u8,
    /// Write Zeroes size limit: 2^n memory pages; 0 means no limit.
    pub wzsl: u8,
    /// Write Uncorrectable size limit: 2^n memory pages; 0 means no limit.
    pub wusl: u8,
    /// Dataset Management ranges limit; 0 means no limit.
    pub dmrl: u8,
    /// Dataset Management range size limit in blocks; 0 means no limit.
    pub dmrsl: U32,
    /// Dataset Management size limit in blocks; 0 means no limit.
    pub dmsl: U64,
    pub(crate) _rsvd16: [u8; 4080],
}
const _: () = assert!(size_of::<IdentifyControllerNvm>() == 4096);

/// Bits of CMIC.
pub mod cmic {
    /// More than one port.
    pub const MULTIPLE_PORTS: u8 = 1 << 0;
    /// More than one controller.
    pub const MULTIPLE_CONTROLLERS: u8 = 1 << 1;
    /// Asymmetric namespace access reporting.
    pub const ANA_REPORTING: u8 = 1 << 3;
}

/// Bits of CTRATT.
pub mod ctratt {
    /// Host identifiers of 128 bits supported.
    pub const HOST_ID_128: u32 = 1 << 0;
    /// Traffic Based Keep Alive Support: any command restarts the timer.
    pub const TRAFFIC_KEEP_ALIVE: u32 = 1 << 6;
    /// Extended LBA formats.
    pub const EXTENDED_LBA_FORMATS: u32 = 1 << 15;
}

/// Values of CNTRLTYPE.
pub mod cntrltype {
    /// I/O controller.
    pub const IO: u8 = 1;
    /// Discovery controller.
    pub const DISCOVERY: u8 = 2;
}

/// Bits of OACS.
pub mod oacs {
    /// Security Send and Receive.
    pub const SECURITY: u16 = 1 << 0;
    /// Format NVM.
    pub const FORMAT: u16 = 1 << 1;
    /// Firmware commands.
    pub const FIRMWARE: u16 = 1 << 2;
    /// Namespace management.
    pub const NAMESPACE_MANAGEMENT: u16 = 1 << 3;
}

/// Bits of LPA.
pub mod lpa {
    /// SMART for each namespace.
    pub const SMART_PER_NAMESPACE: u8 = 1 << 0;
    /// Commands Supported and Effects.
    pub const COMMAND_EFFECTS: u8 = 1 << 1;
    /// Get Log Page with an offset and 32 bits of length.
    pub const EXTENDED_DATA: u8 = 1 << 2;
    /// The log pages 00h, 05h (scopes), 12h and 13h.
    pub const SUPPORTED_LOG_PAGES: u8 = 1 << 5;
}

/// Bits of ONCS.
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u16 = 1 << 1;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Save and Select in the feature commands.
    pub const SAVE_AND_SELECT: u16 = 1 << 4;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Timestamp.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
}

/// FUSES bit 0: Compare and Write.
pub const FUSES_COMPARE_AND_WRITE: u16 = 1 << 0;

/// OFCS bit 0: Disconnect.
pub const OFCS_DISCONNECT: u16 = 1 << 0;

/// FCATT bit 0: static controllers; if clear, dynamic.
pub const FCATT_STATIC: u8 = 1 << 0;

/// Bits of VWC.
pub mod vwc {
    /// Volatile write cache present.
    pub const PRESENT: u8 = 1 << 0;
    /// Flush with NSID FFFFFFFFh is not supported.
    pub const FLUSH_ALL_UNSUPPORTED: u8 = 0b10 << 1;
    /// Flush with NSID FFFFFFFFh is supported.
    pub const FLUSH_ALL: u8 = 0b11 << 1;
}

/// Bits of SGLS.
pub mod sgls {
    /// SGLs supported without alignment requirements.
    pub const SUPPORTED: u32 = 0b01;
    /// Keyed data block descriptors supported.
    pub const KEYED: u32 = 1 << 2;
    /// In-capsule offsets supported.
    pub const OFFSET: u32 = 1 << 20;
    /// Transport data block descriptors supported.
    pub const TRANSPORT: u32 = 1 << 21;
}

#[cfg(test)]
mod test {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn controller_offsets_match_the_specification() {
        assert_eq!(offset_of!(IdentifyController, vid), 0);
        assert_eq!(offset_of!(IdentifyController, ssvid), 2);
        assert_eq!(offset_of!(IdentifyController, sn), 4);
        assert_eq!(offset_of!(IdentifyController, mn), 24);
        assert_eq!(offset_of!(IdentifyController, fr), 64);
        assert_eq!(offset_of!(IdentifyController, rab), 72);
        assert_eq!(offset_of!(IdentifyController, ieee), 73);
        assert_eq!(offset_of!(IdentifyController, cmic), 76);
        assert_eq!(offset_of!(IdentifyController, mdts), 77);
        assert_eq!(offset_of!(IdentifyController, cntlid), 78);
        assert_eq!(offset_of!(IdentifyController, ver), 80);
        assert_eq!(offset_of!(IdentifyController, rtd3r), 84);
        assert_eq!(offset_of!(IdentifyController, rtd3e), 88);
        assert_eq!(offset_of!(IdentifyController, oaes), 92);
        assert_eq!(offset_of!(IdentifyController, ctratt), 96);
        assert_eq!(offset_of!(IdentifyController, rrls), 100);
        assert_eq!(offset_of!(IdentifyController, bpcap), 102);
        assert_eq!(offset_of!(IdentifyController, nssl), 104);
        assert_eq!(offset_of!(IdentifyController, plsi), 110);
        assert_eq!(offset_of!(IdentifyController, cntrltype), 111);
        assert_eq!(offset_of!(IdentifyController, fguid), 112);
        assert_eq!(offset_of!(IdentifyController, crdt1), 128);
        assert_eq!(offset_of!(IdentifyController, crdt2), 130);
        assert_eq!(offset_of!(IdentifyController, crdt3), 132);
        assert_eq!(offset_of!(IdentifyController, nvmsr), 253);
        assert_eq!(offset_of!(IdentifyController, vwci), 254);
        assert_eq!(offset_of!(IdentifyController, mec), 255);
        assert_eq!(offset_of!(IdentifyController, oacs), 256);
        assert_eq!(offset_of!(IdentifyController, acl), 258);
        assert_eq!(offset_of!(IdentifyController, aerl), 259);
        assert_eq!(offset_of!(IdentifyController, frmw), 260);
        assert_eq!(offset_of!(IdentifyController, lpa), 261);
        assert_eq!(offset_of!(IdentifyController, elpe), 262);
        assert_eq!(offset_of!(IdentifyController, npss), 263);
        assert_eq!(offset_of!(IdentifyController, avscc), 264);
        assert_eq!(offset_of!(IdentifyController, apsta), 265);
        assert_eq!(offset_of!(IdentifyController, wctemp), 266);
        assert_eq!(offset_of!(IdentifyController, cctemp), 268);
        assert_eq!(offset_of!(IdentifyController, mtfa), 270);
        assert_eq!(offset_of!(IdentifyController, hmpre), 272);
        assert_eq!(offset_of!(IdentifyController, hmmin), 276);
        assert_eq!(offset_of!(IdentifyController, tnvmcap), 280);
        assert_eq!(offset_of!(IdentifyController, unvmcap), 296);
        assert_eq!(offset_of!(IdentifyController, rpmbs), 312);
        assert_eq!(offset_of!(IdentifyController, edstt), 316);
        assert_eq!(offset_of!(IdentifyController, dsto), 318);
        assert_eq!(offset_of!(IdentifyController, fwug), 319);
        assert_eq!(offset_of!(IdentifyController, kas), 320);
        assert_eq!(offset_of!(IdentifyController, hctma), 322);
        assert_eq!(offset_of!(IdentifyController, mntmt), 324);
        assert_eq!(offset_of!(IdentifyController, mxtmt), 326);
        assert_eq!(offset_of!(IdentifyController, sanicap), 328);
        assert_eq!(offset_of!(IdentifyController, hmminds), 332);
        assert_eq!(offset_of!(IdentifyController, hmmaxd), 336);
        assert_eq!(offset_of!(IdentifyController, nsetidmax), 338);
        assert_eq!(offset_of!(IdentifyController, endgidmax), 340);
        assert_eq!(offset_of!(IdentifyController, anatt), 342);
        assert_eq!(offset_of!(IdentifyController, anacap), 343);
        assert_eq!(offset_of!(IdentifyController, anagrpmax), 344);
        assert_eq!(offset_of!(IdentifyController, nanagrpid), 348);
        assert_eq!(offset_of!(IdentifyController, pels), 352);
        assert_eq!(offset_of!(IdentifyController, domainid), 356);
        assert_eq!(offset_of!(IdentifyController, megcap), 368);
        assert_eq!(offset_of!(IdentifyController, sqes), 512);
        assert_eq!(offset_of!(IdentifyController, cqes), 513);
        assert_eq!(offset_of!(IdentifyController, maxcmd), 514);
        assert_eq!(offset_of!(IdentifyController, nn), 516);
        assert_eq!(offset_of!(IdentifyController, oncs), 520);
        assert_eq!(offset_of!(IdentifyController, fuses), 522);
        assert_eq!(offset_of!(IdentifyController, fna), 524);
        assert_eq!(offset_of!(IdentifyController, vwc), 525);
        assert_eq!(offset_of!(IdentifyController, awun), 526);
        assert_eq!(offset_of!(IdentifyController, awupf), 528);
        assert_eq!(offset_of!(IdentifyController, icsvscc), 530);
        assert_eq!(offset_of!(IdentifyController, nwpc), 531);
        assert_eq!(offset_of!(IdentifyController, acwu), 532);
        assert_eq!(offset_of!(IdentifyController, ocfs), 534);
        assert_eq!(offset_of!(IdentifyController, sgls), 536);
        assert_eq!(offset_of!(IdentifyController, mnan), 540);
        assert_eq!(offset_of!(IdentifyController, maxdna), 544);
        assert_eq!(offset_of!(IdentifyController, maxcna), 560);
        assert_eq!(offset_of!(IdentifyController, subnqn), 768);
        assert_eq!(offset_of!(IdentifyController, ioccsz), 1792);
        assert_eq!(offset_of!(IdentifyController, iorcsz), 1796);
        assert_eq!(offset_of!(IdentifyController, icdoff), 1800);
        assert_eq!(offset_of!(IdentifyController, fcatt), 1802);
        assert_eq!(offset_of!(IdentifyController, msdbd), 1803);
        assert_eq!(offset_of!(IdentifyController, ofcs), 1804);
        assert_eq!(offset_of!(IdentifyController, dctype), 1806);
        assert_eq!(offset_of!(IdentifyController, psd), 2048);
        assert_eq!(offset_of!(IdentifyController, vs), 3072);
    }

    #[test]
    fn other_offsets_match_the_specification() {
        assert_eq!(offset_of!(PowerState, mp), 0);
        assert_eq!(offset_of!(PowerState, flags), 3);
        assert_eq!(offset_of!(PowerState, enlat), 4);
        assert_eq!(offset_of!(PowerState, exlat), 8);
        assert_eq!(offset_of!(PowerState, rrt), 12);
        assert_eq!(offset_of!(PowerState, rrl), 13);
        assert_eq!(offset_of!(PowerState, rwt), 14);
        assert_eq!(offset_of!(PowerState, rwl), 15);
        assert_eq!(offset_of!(PowerState, idlp), 16);
        assert_eq!(offset_of!(PowerState, ips), 18);
        assert_eq!(offset_of!(PowerState, actp), 20);
        assert_eq!(offset_of!(PowerState, apws), 22);
        assert_eq!(offset_of!(IdentifyControllerNvm, vsl), 0);
        assert_eq!(offset_of!(IdentifyControllerNvm, wzsl), 1);
        assert_eq!(offset_of!(IdentifyControllerNvm, wusl), 2);
        assert_eq!(offset_of!(IdentifyControllerNvm, dmrl), 3);
        assert_eq!(offset_of!(IdentifyControllerNvm, dmrsl), 4);
        assert_eq!(offset_of!(IdentifyControllerNvm, dmsl), 8);
    }

    #[test]
    fn golden_controller() {
        let mut bytes = [0; 4096];
        bytes[4..24].copy_from_slice(b"SERIAL              "); // SN
        bytes[77] = 5; // MDTS: 32 pages
        bytes[78..80].copy_from_slice(&[0x02, 0x01]); // CNTLID 258
        bytes[80..84].copy_from_slice(&[0, 0, 2, 0]); // VER 2.0
        bytes[92..96].copy_from_slice(&[0, 1, 0, 0x80]); // OAES: namespaces and discovery
        bytes[320..322].copy_from_slice(&[10, 0]); // KAS: 1 s
        bytes[512..516].copy_from_slice(&[0x66, 0x44, 0x80, 0x00]); // SQES, CQES, MAXCMD 128
        bytes[520..526].copy_from_slice(&[0x8d, 0x01, 1, 0, 0, 0x07]); // ONCS, FUSES, FNA, VWC
        bytes[536..540].copy_from_slice(&[0x01, 0, 0x30, 0]); // SGLS
        bytes[1792..1800].copy_from_slice(&[0x04, 0x04, 0, 0, 1, 0, 0, 0]); // IOCCSZ 1028, IORCSZ 1
        let data = IdentifyController::read_from_bytes(&bytes).unwrap();
        assert_eq!(&data.sn, b"SERIAL              ");
        assert_eq!((data.mdts, data.cntlid.get(), data.ver.get()), (5, 258, 0x0002_0000));
        assert_eq!(data.oaes.get(), 1 << 31 | 1 << 8);
        assert_eq!((data.kas.get(), data.maxcmd.get()), (10, 128));
        let commands = oncs::COMPARE
            | oncs::DATASET_MANAGEMENT
            | oncs::WRITE_ZEROES
            | oncs::VERIFY
            | oncs::COPY;
        assert_eq!(data.oncs.get(), commands);
        assert_eq!(data.fuses.get(), FUSES_COMPARE_AND_WRITE);
        assert_eq!(data.vwc, vwc::PRESENT | vwc::FLUSH_ALL);
        assert_eq!(data.sgls.get(), sgls::SUPPORTED | sgls::OFFSET | sgls::TRANSPORT);
        assert_eq!((data.ioccsz.get(), data.iorcsz.get()), (4 + 16384 / 16, 1));
        assert_eq!(data.as_bytes(), bytes);
    }

    #[test]
    fn golden_controller_nvm() {
        let mut bytes = [0; 4096];
        bytes[..8].copy_from_slice(&[9, 8, 7, 0xff, 0, 0, 1, 0]); // VSL, WZSL, WUSL, DMRL, DMRSL
        let data = IdentifyControllerNvm::read_from_bytes(&bytes).unwrap();
        assert_eq!((data.vsl, data.wzsl, data.wusl, data.dmrl), (9, 8, 7, 255));
        assert_eq!((data.dmrsl.get(), data.dmsl.get()), (65536, 0));
    }
}
