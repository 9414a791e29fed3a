//! Admin commands (NVMe Base 2.0 §5).

use zerocopy::little_endian::U32;

use super::{Transfer, bit, byte, check_not_fused, dwords, entry, flag, invalid_field, quad, word};
use crate::status::Status;
use crate::wire::feature::{self, sel};
use crate::wire::identify::IDENTIFY_LEN;
use crate::wire::opcode::admin as opcode;
use crate::wire::{Sgl, Sqe};

/// An Admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    /// Get Log Page (§5.16).
    GetLogPage {
        /// NSID; 0 or FFFFFFFFh for the controller.
        nsid: u32,
        /// Log page identifier: see [`crate::wire::log::lid`].
        lid: u8,
        /// Log specific parameter: 7 bits.
        lsp: u8,
        /// Retain Asynchronous Event.
        rae: bool,
        /// Log specific identifier.
        lsi: u16,
        /// Length in bytes: 4 to 16 GiB, a multiple of 4.
        numd: u64,
        /// Offset in bytes (a multiple of 4), or an index if `ot` is set.
        offset: u64,
        /// Offset Type: the offset is an index.
        ot: bool,
        /// UUID Index.
        uuid: u8,
        /// Command Set Identifier.
        csi: u8,
    },
    /// Identify (§5.17): 4096 bytes of data.
    Identify {
        /// Controller or Namespace Structure: see [`crate::wire::identify::cns`].
        cns: u8,
        /// Controller identifier, for some CNS values.
        cntid: u16,
        /// NSID, for some CNS values.
        nsid: u32,
        /// Command Set Identifier, for some CNS values.
        csi: u8,
    },
    /// Abort (§5.1).
    Abort {
        /// Queue of the command to abort.
        sqid: u16,
        /// Identifier of the command to abort.
        cid: u16,
    },
    /// Set Features (§5.27).
    SetFeatures {
        /// Feature identifier: see [`feature::fid`].
        fid: u8,
        /// Save across power cycles.
        save: bool,
        /// NSID, for some features.
        nsid: u32,
        /// Value of most features.
        cdw11: u32,
        /// Feature specific.
        cdw12: u32,
        /// Feature specific.
        cdw13: u32,
        /// Feature specific.
        cdw14: u32,
        /// Feature specific.
        cdw15: u32,
    },
    /// Get Features (§5.15).
    GetFeatures {
        /// Feature identifier: see [`feature::fid`].
        fid: u8,
        /// Select: see [`sel`].
        sel: u8,
        /// NSID, for some features.
        nsid: u32,
        /// Feature specific.
        cdw11: u32,
    },
    /// Asynchronous Event Request (§5.2).
    AsyncEventRequest,
    /// Keep Alive (§5.18).
    KeepAlive,
}

impl AdminCommand {
    /// Parses an entry of the Admin queue.
    ///
    /// # Errors
    /// Fails with Invalid Command Opcode for unknown opcodes; with Invalid Field for PRPs, a fused
    /// command, or a log page offset that is not a multiple of 4.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        check_not_fused(sqe)?;
        match sqe.opcode {
            opcode::GET_LOG_PAGE => Self::parse_get_log_page(sqe),
            opcode::IDENTIFY => Ok(Self::parse_identify(sqe)),
            opcode::ABORT => Ok(Self::Abort { sqid: word(sqe.cdw10, 0), cid: word(sqe.cdw10, 16) }),
            opcode::SET_FEATURES => Ok(Self::parse_set_features(sqe)),
            opcode::GET_FEATURES => Ok(Self::parse_get_features(sqe)),
            opcode::ASYNC_EVENT_REQUEST => Ok(Self::AsyncEventRequest),
            opcode::KEEP_ALIVE => Ok(Self::KeepAlive),
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    fn parse_get_log_page(sqe: &Sqe) -> Result<Self, Status> {
        let numd = u64::from(word(sqe.cdw11, 0)) << 16 | u64::from(word(sqe.cdw10, 16));
        let (offset, ot) = (quad(sqe.cdw12, sqe.cdw13), bit(sqe.cdw14, 23));
        // Bits 1:0 of an offset in bytes must be clear (NVMe Base 2.0 §5.16).
        if !ot && offset & 0b11 != 0 {
            return Err(invalid_field());
        }
        Ok(Self::GetLogPage {
            nsid: sqe.nsid.get(),
            lid: byte(sqe.cdw10, 0),
            lsp: byte(sqe.cdw10, 8) & 0x7f,
            rae: bit(sqe.cdw10, 15),
            lsi: word(sqe.cdw11, 16),
            numd: numd.saturating_add(1).saturating_mul(4),
            offset,
            ot,
            uuid: byte(sqe.cdw14, 0) & 0x7f,
            csi: byte(sqe.cdw14, 24),
        })
    }

    fn parse_identify(sqe: &Sqe) -> Self {
        Self::Identify {
            cns: byte(sqe.cdw10, 0),
            cntid: word(sqe.cdw10, 16),
            nsid: sqe.nsid.get(),
            csi: byte(sqe.cdw11, 24),
        }
    }

    fn parse_set_features(sqe: &Sqe) -> Self {
        Self::SetFeatures {
            fid: byte(sqe.cdw10, 0),
            save: bit(sqe.cdw10, 31),
            nsid: sqe.nsid.get(),
            cdw11: sqe.cdw11.get(),
            cdw12: sqe.cdw12.get(),
            cdw13: sqe.cdw13.get(),
            cdw14: sqe.cdw14.get(),
            cdw15: sqe.cdw15.get(),
        }
    }

    fn parse_get_features(sqe: &Sqe) -> Self {
        Self::GetFeatures {
            fid: byte(sqe.cdw10, 0),
            sel: byte(sqe.cdw10, 8) & 0b111,
            nsid: sqe.nsid.get(),
            cdw11: sqe.cdw11.get(),
        }
    }

    /// Returns the data transfer. Get Features has none for supported capabilities.
    #[must_use]
    pub const fn data_len(&self) -> Transfer {
        match *self {
            Self::GetLogPage { numd, .. } => Transfer::to_host(numd),
            Self::Identify { .. } => Transfer::ToHost(IDENTIFY_LEN as u64),
            Self::SetFeatures { fid, cdw11, .. } => {
                Transfer::from_host(feature::data_len(fid, cdw11))
            }
            Self::GetFeatures { sel: sel::SUPPORTED_CAPABILITIES, .. } => Transfer::None,
            Self::GetFeatures { fid, cdw11, .. } => {
                Transfer::to_host(feature::data_len(fid, cdw11))
            }
            Self::Abort { .. } | Self::AsyncEventRequest | Self::KeepAlive => Transfer::None,
        }
    }

    /// Returns the entry, with command identifier 0 and an SGL for data PDUs. A log page length
    /// beyond 32 bits is clamped in the SGL.
    #[must_use]
    pub fn emit(&self) -> Sqe {
        let sqe = match *self {
            Self::GetLogPage { .. } => self.emit_get_log_page(),
            Self::Identify { cns, cntid, nsid, csi } => Sqe {
                nsid: U32::new(nsid),
                cdw10: U32::new(u32::from(cns) | u32::from(cntid) << 16),
                cdw11: U32::new(u32::from(csi) << 24),
                ..entry(opcode::IDENTIFY)
            },
            Self::Abort { sqid, cid } => Sqe {
                cdw10: U32::new(u32::from(sqid) | u32::from(cid) << 16),
                ..entry(opcode::ABORT)
            },
            Self::SetFeatures { fid, save, nsid, cdw11, cdw12, cdw13, cdw14, cdw15 } => Sqe {
                nsid: U32::new(nsid),
                cdw10: U32::new(u32::from(fid) | flag(save, 31)),
                cdw11: U32::new(cdw11),
                cdw12: U32::new(cdw12),
                cdw13: U32::new(cdw13),
                cdw14: U32::new(cdw14),
                cdw15: U32::new(cdw15),
                ..entry(opcode::SET_FEATURES)
            },
            Self::GetFeatures { fid, sel, nsid, cdw11 } => Sqe {
                nsid: U32::new(nsid),
                cdw10: U32::new(u32::from(fid) | u32::from(sel & 0b111) << 8),
                cdw11: U32::new(cdw11),
                ..entry(opcode::GET_FEATURES)
            },
            Self::AsyncEventRequest => entry(opcode::ASYNC_EVENT_REQUEST),
            Self::KeepAlive => entry(opcode::KEEP_ALIVE),
        };
        let length = u32::try_from(self.data_len().len()).unwrap_or(u32::MAX);
        sqe.with_data(Sgl::transport(length))
    }

    fn emit_get_log_page(&self) -> Sqe {
        let &Self::GetLogPage { nsid, lid, lsp, rae, lsi, numd, offset, ot, uuid, csi } = self
        else {
            return entry(opcode::GET_LOG_PAGE);
        };
        let dwords_asked = u32::try_from((numd / 4).saturating_sub(1)).unwrap_or(u32::MAX);
        let (numdl, numdu) = (dwords_asked & 0xffff, dwords_asked >> 16);
        let (cdw12, cdw13) = dwords(offset);
        Sqe {
            nsid: U32::new(nsid),
            cdw10: U32::new(
                u32::from(lid) | u32::from(lsp & 0x7f) << 8 | flag(rae, 15) | numdl << 16,
            ),
            cdw11: U32::new(numdu | u32::from(lsi) << 16),
            cdw12,
            cdw13,
            cdw14: U32::new(u32::from(uuid & 0x7f) | flag(ot, 23) | u32::from(csi) << 24),
            ..entry(opcode::GET_LOG_PAGE)
        }
    }

    /// Returns Identify with all other fields zero.
    #[must_use]
    pub const fn identify(cns: u8, nsid: u32) -> Self {
        Self::Identify { cns, cntid: 0, nsid, csi: 0 }
    }

    /// Returns Get Log Page for `len` bytes from `offset`, both multiples of 4, with NSID
    /// FFFFFFFFh.
    #[must_use]
    pub const fn log_page(lid: u8, offset: u64, len: u64) -> Self {
        Self::GetLogPage {
            nsid: 0xffff_ffff,
            lid,
            lsp: 0,
            rae: false,
            lsi: 0,
            numd: len,
            offset,
            ot: false,
            uuid: 0,
            csi: 0,
        }
    }

    /// Returns Set Features with a value in dword 11, not saved, with NSID 0.
    #[must_use]
    pub const fn set_features(fid: u8, cdw11: u32) -> Self {
        Self::SetFeatures {
            fid,
            save: false,
            nsid: 0,
            cdw11,
            cdw12: 0,
            cdw13: 0,
            cdw14: 0,
            cdw15: 0,
        }
    }

    /// Returns Get Features for the current value, with NSID 0.
    #[must_use]
    pub const fn get_features(fid: u8) -> Self {
        Self::GetFeatures { fid, sel: sel::CURRENT, nsid: 0, cdw11: 0 }
    }
}
