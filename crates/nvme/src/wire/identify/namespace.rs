//! Identify Namespace: CNS 00h, CNS 05h for the NVM command set, and CNS 08h.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The Identify Namespace data structure of the NVM command set, CNS 00h: 4096 bytes
/// (NVM 1.0 §4.1.5.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size in blocks.
    pub nsze: U64,
    /// Capacity in blocks; 0 if the namespace is inactive.
    pub ncap: U64,
    /// Utilization in blocks.
    pub nuse: U64,
    /// Features: see [`nsfeat`].
    pub nsfeat: u8,
    /// Number of LBA formats, 0's based.
    pub nlbaf: u8,
    /// Formatted LBA size: format index in bits 3:0 and 6:5.
    pub flbas: u8,
    /// Metadata capabilities.
    pub mc: u8,
    /// End-to-end data protection capabilities.
    pub dpc: u8,
    /// End-to-end data protection settings.
    pub dps: u8,
    /// Multi-path and sharing: see [`NMIC_SHARED`].
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress indicator.
    pub fpi: u8,
    /// Deallocated block features: see [`dlfeat`].
    pub dlfeat: u8,
    /// Atomic write unit normal, in blocks, 0's based.
    pub nawun: U16,
    /// Atomic write unit power fail, in blocks, 0's based.
    pub nawupf: U16,
    /// Atomic compare and write unit, in blocks, 0's based.
    pub nacwu: U16,
    /// Atomic boundary size normal, in blocks, 0's based.
    pub nabsn: U16,
    /// Atomic boundary offset, in blocks.
    pub nabo: U16,
    /// Atomic boundary size power fail, in blocks, 0's based.
    pub nabspf: U16,
    /// Optimal I/O boundary in blocks; 0 if none.
    pub noiob: U16,
    /// Capacity in bytes.
    pub nvmcap: U128,
    /// Preferred write granularity, in blocks, 0's based.
    pub npwg: U16,
    /// Preferred write alignment, in blocks, 0's based.
    pub npwa: U16,
    /// Preferred deallocate granularity, in blocks, 0's based.
    pub npdg: U16,
    /// Preferred deallocate alignment, in blocks, 0's based.
    pub npda: U16,
    /// Optimal write size, in blocks, 0's based.
    pub nows: U16,
    /// Maximum Single Source Range Length of Copy in blocks.
    pub mssrl: U16,
    /// Maximum Copy Length in blocks.
    pub mcl: U32,
    /// Maximum Source Range Count of Copy, 0's based.
    pub msrc: u8,
    pub(crate) _rsvd81: [u8; 11],
    /// ANA group identifier.
    pub anagrpid: U32,
    pub(crate) _rsvd96: [u8; 3],
    /// Attributes: see [`NSATTR_WRITE_PROTECTED`].
    pub nsattr: u8,
    /// NVM set identifier.
    pub nvmsetid: U16,
    /// Endurance group identifier.
    pub endgid: U16,
    /// Globally unique identifier; 0 if none.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier; 0 if none.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vs: [u8; 3712],
}
const _: () = assert!(size_of::<IdentifyNamespace>() == 4096);

/// An LBA format: 4 bytes (NVM 1.0 §4.1.5.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata size in bytes.
    pub ms: U16,
    /// Block size: 2^n bytes.
    pub lbads: u8,
    /// Relative performance, bits 1:0: 0 is best.
    pub rp: u8,
}
const _: () = assert!(size_of::<LbaFormat>() == 4);

/// The I/O Command Set specific Identify Namespace data structure of the NVM command set,
/// CNS 05h: 4096 bytes (NVM 1.0 §4.1.5.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyNamespaceNvm {
    /// Logical block storage tag mask.
    pub lbstm: U64,
    /// Protection information capabilities.
    pub pic: u8,
    pub(crate) _rsvd9: [u8; 3],
    /// Extended LBA formats.
    pub elbaf: [U32; 64],
    pub(crate) _rsvd268: [u8; 3828],
}
const _: () = assert!(size_of::<IdentifyNamespaceNvm>() == 4096);

/// The I/O Command Set Independent Identify Namespace data structure, CNS 08h: 4096 bytes
/// (NVMe Base 2.0 §5.17.2.8).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdentifyNamespaceIndependent {
    /// Command set independent features: see [`independent`].
    pub nsfeat: u8,
    /// Multi-path and sharing: see [`NMIC_SHARED`].
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress indicator.
    pub fpi: u8,
    /// ANA group identifier.
    pub anagrpid: U32,
    /// Attributes: see [`NSATTR_WRITE_PROTECTED`].
    pub nsattr: u8,
    pub(crate) _rsvd9: u8,
    /// NVM set identifier.
    pub nvmsetid: U16,
    /// Endurance group identifier.
    pub endgid: U16,
    /// Status: see [`independent`].
    pub nstat: u8,
    pub(crate) _rsvd15: [u8; 4081],
}
const _: () = assert!(size_of::<IdentifyNamespaceIndependent>() == 4096);

/// Bits of NSFEAT in CNS 00h.
pub mod nsfeat {
    /// Thin provisioned.
    pub const THIN: u8 = 1 << 0;
    /// NAWUN, NAWUPF and NACWU are defined for this namespace.
    pub const ATOMIC: u8 = 1 << 1;
    /// Deallocated or unwritten block error.
    pub const DULBE: u8 = 1 << 2;
    /// NGUID and EUI64 are not reused.
    pub const UID_REUSE: u8 = 1 << 3;
    /// NPWG, NPWA, NPDG, NPDA and NOWS are defined.
    pub const OPTIMAL_PERFORMANCE: u8 = 1 << 4;
}

/// NMIC bit 0: several controllers may have the namespace attached.
pub const NMIC_SHARED: u8 = 1 << 0;

/// NSATTR bit 0: currently write protected.
pub const NSATTR_WRITE_PROTECTED: u8 = 1 << 0;

/// Bits of DLFEAT.
pub mod dlfeat {
    /// Deallocated blocks read as zeroes.
    pub const READS_ZEROES: u8 = 0b001;
    /// Write Zeroes may deallocate.
    pub const WRITE_ZEROES_DEALLOCATE: u8 = 1 << 3;
}

/// Bits of CNS 08h.
pub mod independent {
    /// NSFEAT: identifiers are not reused.
    pub const NSFEAT_UID_REUSE: u8 = 1 << 3;
    /// NSFEAT: rotational media.
    pub const NSFEAT_ROTATIONAL: u8 = 1 << 4;
    /// NSFEAT: no volatile write cache for this namespace.
    pub const NSFEAT_NO_WRITE_CACHE: u8 = 1 << 5;
    /// NSTAT: ready.
    pub const NSTAT_READY: u8 = 1 << 0;
}

impl IdentifyNamespace {
    /// Returns the binary logarithm of the block size, or `None` if FLBAS is invalid.
    #[must_use]
    pub fn block_shift(&self) -> Option<u8> {
        let index = usize::from(self.flbas & 0x0f | self.flbas >> 1 & 0x30);
        self.lbaf.get(index).map(|format| format.lbads)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn namespace_offsets_match_the_specification() {
        assert_eq!(offset_of!(IdentifyNamespace, nsze), 0);
        assert_eq!(offset_of!(IdentifyNamespace, ncap), 8);
        assert_eq!(offset_of!(IdentifyNamespace, nuse), 16);
        assert_eq!(offset_of!(IdentifyNamespace, nsfeat), 24);
        assert_eq!(offset_of!(IdentifyNamespace, nlbaf), 25);
        assert_eq!(offset_of!(IdentifyNamespace, flbas), 26);
        assert_eq!(offset_of!(IdentifyNamespace, mc), 27);
        assert_eq!(offset_of!(IdentifyNamespace, dpc), 28);
        assert_eq!(offset_of!(IdentifyNamespace, dps), 29);
        assert_eq!(offset_of!(IdentifyNamespace, nmic), 30);
        assert_eq!(offset_of!(IdentifyNamespace, rescap), 31);
        assert_eq!(offset_of!(IdentifyNamespace, fpi), 32);
        assert_eq!(offset_of!(IdentifyNamespace, dlfeat), 33);
        assert_eq!(offset_of!(IdentifyNamespace, nawun), 34);
        assert_eq!(offset_of!(IdentifyNamespace, nawupf), 36);
        assert_eq!(offset_of!(IdentifyNamespace, nacwu), 38);
        assert_eq!(offset_of!(IdentifyNamespace, nabsn), 40);
        assert_eq!(offset_of!(IdentifyNamespace, nabo), 42);
        assert_eq!(offset_of!(IdentifyNamespace, nabspf), 44);
        assert_eq!(offset_of!(IdentifyNamespace, noiob), 46);
        assert_eq!(offset_of!(IdentifyNamespace, nvmcap), 48);
        assert_eq!(offset_of!(IdentifyNamespace, npwg), 64);
        assert_eq!(offset_of!(IdentifyNamespace, npwa), 66);
        assert_eq!(offset_of!(IdentifyNamespace, npdg), 68);
        assert_eq!(offset_of!(IdentifyNamespace, npda), 70);
        assert_eq!(offset_of!(IdentifyNamespace, nows), 72);
        assert_eq!(offset_of!(IdentifyNamespace, mssrl), 74);
        assert_eq!(offset_of!(IdentifyNamespace, mcl), 76);
        assert_eq!(offset_of!(IdentifyNamespace, msrc), 80);
        assert_eq!(offset_of!(IdentifyNamespace, anagrpid), 92);
        assert_eq!(offset_of!(IdentifyNamespace, nsattr), 99);
        assert_eq!(offset_of!(IdentifyNamespace, nvmsetid), 100);
        assert_eq!(offset_of!(IdentifyNamespace, endgid), 102);
        assert_eq!(offset_of!(IdentifyNamespace, nguid), 104);
        assert_eq!(offset_of!(IdentifyNamespace, eui64), 120);
        assert_eq!(offset_of!(IdentifyNamespace, lbaf), 128);
        assert_eq!(offset_of!(IdentifyNamespace, vs), 384);
    }

    #[test]
    fn other_offsets_match_the_specification() {
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, nsfeat), 0);
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, nmic), 1);
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, rescap), 2);
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, fpi), 3);
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, anagrpid), 4);
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, nsattr), 8);
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, nvmsetid), 10);
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, endgid), 12);
        assert_eq!(offset_of!(IdentifyNamespaceIndependent, nstat), 14);
        assert_eq!(offset_of!(IdentifyNamespaceNvm, lbstm), 0);
        assert_eq!(offset_of!(IdentifyNamespaceNvm, pic), 8);
        assert_eq!(offset_of!(IdentifyNamespaceNvm, elbaf), 12);
    }

    #[test]
    fn golden_namespace() {
        let mut bytes = [0; 4096];
        bytes[..8].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]); // NSZE
        bytes[26] = 1; // FLBAS: the second format
        bytes[33] = 0x09; // DLFEAT
        bytes[99] = 1; // NSATTR
        bytes[104..120].copy_from_slice(&[0xab; 16]); // NGUID
        bytes[130] = 9; // first format: 512 bytes
        bytes[134] = 12; // second format: 4096 bytes
        let data = IdentifyNamespace::read_from_bytes(&bytes).unwrap();
        assert_eq!((data.nsze.get(), data.block_shift()), (1 << 24, Some(12)));
        assert_eq!(data.dlfeat, dlfeat::READS_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATE);
        assert_eq!((data.nsattr, data.nguid), (NSATTR_WRITE_PROTECTED, [0xab; 16]));
        assert_eq!(data.as_bytes(), bytes);
    }

    #[test]
    fn flbas_has_a_six_bit_format_index() {
        let mut bytes = [0; 4096];
        bytes[26] = 0x6f; // format 63
        bytes[128 + 63 * 4 + 2] = 16;
        assert_eq!(IdentifyNamespace::read_from_bytes(&bytes).unwrap().block_shift(), Some(16));
    }

    #[test]
    fn golden_independent() {
        let mut bytes = [0; 4096];
        bytes[0] = 0x18; // NSFEAT: rotational, identifiers not used again
        bytes[8] = 1; // NSATTR: write protected
        bytes[14] = 1; // NSTAT: ready
        let data = IdentifyNamespaceIndependent::read_from_bytes(&bytes).unwrap();
        assert_eq!(data.nsfeat, independent::NSFEAT_ROTATIONAL | independent::NSFEAT_UID_REUSE);
        assert_eq!((data.nsattr, data.nstat), (NSATTR_WRITE_PROTECTED, independent::NSTAT_READY));
    }

    #[test]
    fn golden_namespace_nvm() {
        let mut bytes = [0; 4096];
        bytes[8] = 1; // PIC
        bytes[16] = 0x80; // the second extended format: PIF 1
        let data = IdentifyNamespaceNvm::read_from_bytes(&bytes).unwrap();
        assert_eq!((data.pic, data.elbaf[1].get()), (1, 0x80));
    }
}
