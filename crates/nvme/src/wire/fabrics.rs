//! Data structures of Fabrics commands: Connect data, Connect response, properties.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::text::{self, NQN_FIELD, NqnError};

/// Well-known discovery service NQN (NVMe Base 2.0 §4.5).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// CNTLID that requests any controller (dynamic controller model).
pub const CNTLID_DYNAMIC: u16 = 0xffff;

/// The data of Connect: 1024 bytes (NVMe Base 2.0 §6.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Controller identifier, or [`CNTLID_DYNAMIC`].
    pub cntlid: U16,
    pub(crate) _rsvd18: [u8; 238],
    /// Subsystem NQN.
    pub subnqn: [u8; NQN_FIELD],
    /// Host NQN.
    pub hostnqn: [u8; NQN_FIELD],
    pub(crate) _rsvd768: [u8; 256],
}
const _: () = assert!(size_of::<ConnectData>() == 1024);

impl ConnectData {
    /// Creates the data of Connect.
    ///
    /// # Errors
    /// Fails if an NQN is empty, longer than 223 bytes, or contains a NUL.
    pub fn emit(
        hostid: [u8; 16],
        cntlid: u16,
        subnqn: &str,
        hostnqn: &str,
    ) -> Result<Self, NqnError> {
        let (subnqn, hostnqn) = (text::emit_nqn(subnqn)?, text::emit_nqn(hostnqn)?);
        Ok(Self { hostid, cntlid: U16::new(cntlid), subnqn, hostnqn, ..Self::new_zeroed() })
    }

    /// Returns the subsystem NQN.
    ///
    /// # Errors
    /// Fails if the field is not a valid NQN.
    pub fn subnqn(&self) -> Result<&str, NqnError> {
        text::parse_nqn(&self.subnqn)
    }

    /// Returns the host NQN.
    ///
    /// # Errors
    /// Fails if the field is not a valid NQN.
    pub fn hostnqn(&self) -> Result<&str, NqnError> {
        text::parse_nqn(&self.hostnqn)
    }
}

/// Bits of Connect's CATTR (NVMe Base 2.0 §6.3).
pub mod cattr {
    /// Priority class, bits 1:0.
    pub const PRIORITY: u8 = 0b11;
    /// Disable SQ Flow Control.
    pub const DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
    /// Individual I/O Queue Deletion Support (Disconnect).
    pub const INDIVIDUAL_IO_QUEUE_DELETION: u8 = 1 << 3;
}

/// Invalid field of Connect, reported in dword 0 (NVMe Base 2.0 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectField {
    /// RECFMT in the command.
    Recfmt,
    /// QID in the command.
    Qid,
    /// SQSIZE in the command.
    Sqsize,
    /// CATTR in the command.
    Cattr,
    /// KATO in the command.
    Kato,
    /// HOSTID in the data.
    Hostid,
    /// CNTLID in the data.
    Cntlid,
    /// SUBNQN in the data.
    Subnqn,
    /// HOSTNQN in the data.
    Hostnqn,
}

impl ConnectField {
    /// Returns dword 0 for Connect Invalid Parameters: offset of the field in bits 15:0; bit 16 is
    /// set for a field of the data.
    #[must_use]
    pub const fn dw0(self) -> u32 {
        const IN_DATA: u32 = 1 << 16;
        match self {
            Self::Recfmt => 40,
            Self::Qid => 42,
            Self::Sqsize => 44,
            Self::Cattr => 46,
            Self::Kato => 48,
            Self::Hostid => IN_DATA,
            Self::Cntlid => IN_DATA | 16,
            Self::Subnqn => IN_DATA | 256,
            Self::Hostnqn => IN_DATA | 512,
        }
    }
}

/// Dword 0 of the response to a successful Connect (NVMe Base 2.0 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    /// Controller identifier.
    pub cntlid: u16,
    /// ATR, bit 17: authentication required.
    pub authentication_required: bool,
    /// ASCR, bit 18: authentication and secure channel required.
    pub secure_channel_required: bool,
}

impl ConnectResponse {
    const ATR: u32 = 1 << 17;
    const ASCR: u32 = 1 << 18;

    /// Creates a response without required authentication.
    #[must_use]
    pub const fn new(cntlid: u16) -> Self {
        Self { cntlid, authentication_required: false, secure_channel_required: false }
    }

    /// Parses dword 0.
    #[must_use]
    pub const fn parse(dw0: u32) -> Self {
        Self {
            cntlid: (dw0 & 0xffff) as u16,
            authentication_required: dw0 & Self::ATR != 0,
            secure_channel_required: dw0 & Self::ASCR != 0,
        }
    }

    /// Returns dword 0.
    #[must_use]
    pub fn emit(self) -> u32 {
        let atr = if self.authentication_required { Self::ATR } else { 0 };
        let ascr = if self.secure_channel_required { Self::ASCR } else { 0 };
        u32::from(self.cntlid) | atr | ascr
    }
}

/// Offsets of the properties (NVMe Base 2.0 §3.1.3).
pub mod property {
    /// Controller Capabilities: 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version: 4 bytes.
    pub const VS: u32 = 0x08;
    /// Interrupt Mask Set: not used over fabrics.
    pub const INTMS: u32 = 0x0c;
    /// Interrupt Mask Clear: not used over fabrics.
    pub const INTMC: u32 = 0x10;
    /// Controller Configuration: 4 bytes.
    pub const CC: u32 = 0x14;
    /// Controller Status: 4 bytes.
    pub const CSTS: u32 = 0x1c;
    /// NVM Subsystem Reset: 4 bytes.
    pub const NSSR: u32 = 0x20;
    /// NVM Subsystem Shutdown: 4 bytes.
    pub const NSSD: u32 = 0x64;
    /// Controller Ready Timeouts: 4 bytes.
    pub const CRTO: u32 = 0x68;
}

/// Returns VS for a version of the specification (NVMe Base 2.0 §3.1.3.2).
#[must_use]
pub fn version(major: u16, minor: u8, tertiary: u8) -> u32 {
    u32::from(major) << 16 | u32::from(minor) << 8 | u32::from(tertiary)
}

/// Defines a property with its bit fields: first bit and width of each.
macro_rules! bit_fields {
    ($(#[$doc:meta])* $name:ident: $int:ident { $($(#[$field_doc:meta])* $get:ident, $set:ident: $first:literal, $width:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub $int);

        impl $name { $(
            $(#[$field_doc])*
            #[must_use]
            pub const fn $get(self) -> $int {
                self.0 >> $first & ((1 << $width) - 1)
            }

            #[doc = concat!("Sets [`Self::", stringify!($get), "`]. Excess bits of the value are dropped.")]
            #[must_use]
            pub const fn $set(self, value: $int) -> Self {
                let mask = ((1 << $width) - 1) << $first;
                Self(self.0 & !mask | value << $first & mask)
            }
        )* }
    };
}

bit_fields! {
    /// CAP, Controller Capabilities (NVMe Base 2.0 §3.1.3.1).
    Cap: u64 {
        /// Maximum Queue Entries Supported, 0's based.
        mqes, with_mqes: 0, 16;
        /// Contiguous Queues Required: 1 over fabrics.
        cqr, with_cqr: 16, 1;
        /// Arbitration Mechanism Supported.
        ams, with_ams: 17, 2;
        /// Timeout for CSTS.RDY, in units of 500 ms.
        to, with_to: 24, 8;
        /// Doorbell Stride: 0 over fabrics.
        dstrd, with_dstrd: 32, 4;
        /// NVM Subsystem Reset Supported.
        nssrs, with_nssrs: 36, 1;
        /// Command Sets Supported: see the constants.
        css, with_css: 37, 8;
        /// Memory Page Size Minimum: 2^(12 + n) bytes.
        mpsmin, with_mpsmin: 48, 4;
        /// Memory Page Size Maximum: 2^(12 + n) bytes.
        mpsmax, with_mpsmax: 52, 4;
        /// NVM Subsystem Shutdown Supported.
        nsss, with_nsss: 58, 1;
        /// Controller Ready With Media Support (CRMS.CRWMS).
        crwms, with_crwms: 59, 1;
        /// Controller Ready Independent of Media Support (CRMS.CRIMS).
        crims, with_crims: 60, 1;
    }
}

impl Cap {
    /// CSS bit 0: the NVM command set.
    pub const CSS_NVM: u64 = 1 << 0;
    /// CSS bit 6: one or more command sets, reported by Identify.
    pub const CSS_IOCS: u64 = 1 << 6;
    /// CSS bit 7: no I/O command set.
    pub const CSS_NONE: u64 = 1 << 7;
}

bit_fields! {
    /// CC, Controller Configuration (NVMe Base 2.0 §3.1.3.5).
    Cc: u32 {
        /// Enable.
        en, with_en: 0, 1;
        /// Command set selected: 0 NVM, 6 all supported, 7 Admin only.
        css, with_css: 4, 3;
        /// Memory page size: 2^(12 + n) bytes.
        mps, with_mps: 7, 4;
        /// Arbitration mechanism selected.
        ams, with_ams: 11, 3;
        /// Shutdown notification: 0 none, 1 normal, 2 abrupt.
        shn, with_shn: 14, 2;
        /// Size of an I/O submission queue entry: 2^n bytes, so 6.
        iosqes, with_iosqes: 16, 4;
        /// Size of an I/O completion queue entry: 2^n bytes, so 4.
        iocqes, with_iocqes: 20, 4;
        /// Ready independent of media.
        crime, with_crime: 24, 1;
    }
}

impl Cc {
    /// SHN 01b.
    pub const SHN_NORMAL: u32 = 1;
    /// SHN 10b.
    pub const SHN_ABRUPT: u32 = 2;
    /// CSS 110b: every command set that the controller supports.
    pub const CSS_IOCS: u32 = 6;
}

bit_fields! {
    /// CSTS, Controller Status (NVMe Base 2.0 §3.1.3.6).
    Csts: u32 {
        /// Ready.
        rdy, with_rdy: 0, 1;
        /// Controller fatal status.
        cfs, with_cfs: 1, 1;
        /// Shutdown status: 0 normal operation, 1 occurring, 2 complete.
        shst, with_shst: 2, 2;
        /// NVM subsystem reset occurred.
        nssro, with_nssro: 4, 1;
        /// Processing paused.
        pp, with_pp: 5, 1;
    }
}

impl Csts {
    /// SHST 01b.
    pub const SHST_OCCURRING: u32 = 1;
    /// SHST 10b.
    pub const SHST_COMPLETE: u32 = 2;
}

bit_fields! {
    /// CRTO, Controller Ready Timeouts (NVMe Base 2.0 §3.1.3.20).
    Crto: u32 {
        /// Controller Ready With Media Timeout, in units of 500 ms.
        crwmt, with_crwmt: 0, 16;
        /// Controller Ready Independent of Media Timeout, in units of 500 ms.
        crimt, with_crimt: 16, 16;
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::wire::command::ConnectCmd;
    use core::mem::offset_of;

    #[test]
    fn golden_connect_data() {
        let mut bytes = [0; 1024];
        bytes[..16].copy_from_slice(&[7; 16]); // HOSTID
        bytes[16..18].copy_from_slice(&[0xff, 0xff]); // CNTLID
        bytes[256..261].copy_from_slice(b"nqn.s"); // SUBNQN
        bytes[512..517].copy_from_slice(b"nqn.h"); // HOSTNQN
        let data = ConnectData::read_from_bytes(&bytes).unwrap();
        assert_eq!((data.subnqn(), data.hostnqn()), (Ok("nqn.s"), Ok("nqn.h")));
        assert_eq!((data.hostid, data.cntlid.get()), ([7; 16], CNTLID_DYNAMIC));
        assert_eq!(ConnectData::emit([7; 16], CNTLID_DYNAMIC, "nqn.s", "nqn.h"), Ok(data));
    }

    #[test]
    fn nqn_without_nul_is_refused() {
        let mut data = ConnectData::emit([0; 16], 1, "nqn.s", "nqn.h").unwrap();
        data.subnqn = [b'a'; NQN_FIELD];
        assert_eq!(data.subnqn(), Err(NqnError::NotTerminated));
        data.hostnqn = [0; NQN_FIELD];
        assert_eq!(data.hostnqn(), Err(NqnError::Empty));
    }

    #[test]
    fn connect_field_offsets_match_the_layout() {
        let named = [
            (ConnectField::Recfmt, offset_of!(ConnectCmd, recfmt), 40),
            (ConnectField::Qid, offset_of!(ConnectCmd, qid), 42),
            (ConnectField::Sqsize, offset_of!(ConnectCmd, sqsize), 44),
            (ConnectField::Cattr, offset_of!(ConnectCmd, cattr), 46),
            (ConnectField::Kato, offset_of!(ConnectCmd, kato), 48),
            (ConnectField::Hostid, offset_of!(ConnectData, hostid) | 1 << 16, 0x1_0000),
            (ConnectField::Cntlid, offset_of!(ConnectData, cntlid) | 1 << 16, 0x1_0010),
            (ConnectField::Subnqn, offset_of!(ConnectData, subnqn) | 1 << 16, 0x1_0100),
            (ConnectField::Hostnqn, offset_of!(ConnectData, hostnqn) | 1 << 16, 0x1_0200),
        ];
        for (field, offset, dw0) in named {
            assert_eq!((field.dw0(), offset), (dw0, dw0 as usize), "{field:?}");
        }
    }

    #[test]
    fn golden_connect_response() {
        let response =
            ConnectResponse { authentication_required: true, ..ConnectResponse::new(0x1234) };
        assert_eq!(response.emit(), 0x0002_1234);
        assert_eq!(ConnectResponse::parse(0x0002_1234), response);
        assert!(ConnectResponse::parse(0x0004_0001).secure_channel_required);
        assert_eq!(ConnectResponse::new(5).emit(), 5);
    }

    #[test]
    fn golden_cap() {
        let cap = Cap(0x0843_0020_1e01_007f); // from the top: CRWMS, MPSMAX 4, MPSMIN 3, CSS, TO, CQR
        assert_eq!((cap.mqes(), cap.cqr(), cap.to()), (127, 1, 30));
        assert_eq!((cap.css(), cap.crwms(), cap.crims()), (Cap::CSS_NVM, 1, 0));
        assert_eq!((cap.mpsmin(), cap.mpsmax()), (3, 4));
        let bits =
            Cap::default().with_mqes(127).with_cqr(1).with_to(30).with_css(0x41).with_crwms(1);
        assert_eq!(bits.0, 1 << 59 | 0x41 << 37 | 30 << 24 | 1 << 16 | 127);
        assert_eq!(Cap::default().with_crims(1).0, 1 << 60);
        assert_eq!(Cap::default().with_nsss(1).with_nssrs(1).0, 1 << 58 | 1 << 36);
        assert_eq!(Cap::default().with_mpsmax(15).0, 0xf << 52);
    }

    #[test]
    fn golden_cc_and_csts() {
        let cc = Cc(0x0046_0061); // Linux with all command sets: EN, CSS 6, IOSQES 6, IOCQES 4
        assert_eq!((cc.en(), cc.css(), cc.mps(), cc.shn()), (1, Cc::CSS_IOCS, 0, 0));
        assert_eq!((cc.iosqes(), cc.iocqes(), cc.crime()), (6, 4, 0));
        assert_eq!(Cc::default().with_shn(Cc::SHN_NORMAL).0, 0x4000);
        assert_eq!(Csts::default().with_rdy(1).with_shst(Csts::SHST_COMPLETE).0, 0b1001);
        assert_eq!(Csts(0b10).cfs(), 1);
        assert_eq!(Crto::default().with_crwmt(30).with_crimt(2).0, 0x0002_001e);
    }

    #[test]
    fn setting_a_field_keeps_the_others() {
        assert_eq!(Cc(u32::MAX).with_shn(0).0, 0xffff_3fff);
        assert_eq!(Cc(0).with_en(3).0, 1);
        assert_eq!(version(2, 0, 0), 0x0002_0000);
        assert_eq!(version(1, 3, 1), 0x0001_0301);
    }
}
