//! I/O commands of the NVM command set (NVM 1.0 §3).

use zerocopy::little_endian::U32;

use super::reservation::ReservationRequest;
use super::{Transfer, bit, byte, check_psdt, dwords, entry, flag, invalid_field, quad, word};
use crate::status::Status;
use crate::wire::dataset::{CopyRange0, CopyRange1, DsmRange};
use crate::wire::opcode::io as opcode;
use crate::wire::{Fuse, Sqe};

const LIMITED_RETRY: u32 = 31;
const FUA: u32 = 30;
const DEALLOCATE: u32 = 25;
const AD: u32 = 2;

/// An I/O command. `nlb` is a count: 1 to 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCommand {
    /// Flush: earlier writes are on stable storage when it completes.
    Flush {
        /// NSID, or FFFFFFFFh for all namespaces.
        nsid: u32,
    },
    /// Read.
    Read {
        /// NSID.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Number of blocks.
        nlb: u32,
        /// Force Unit Access: read from stable storage.
        fua: bool,
        /// Limited Retry.
        limited_retry: bool,
    },
    /// Write.
    Write {
        /// NSID.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Number of blocks.
        nlb: u32,
        /// Force Unit Access: on stable storage when it completes.
        fua: bool,
        /// Limited Retry.
        limited_retry: bool,
    },
    /// Compare: fails unless the blocks equal the data.
    Compare {
        /// NSID.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Number of blocks.
        nlb: u32,
        /// Force Unit Access: read from stable storage.
        fua: bool,
        /// Limited Retry.
        limited_retry: bool,
    },
    /// Write Zeroes.
    WriteZeroes {
        /// NSID.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Number of blocks.
        nlb: u32,
        /// Force Unit Access: on stable storage when it completes.
        fua: bool,
        /// Deallocate: allows deallocation if the blocks then read as zeros.
        deallocate: bool,
    },
    /// Verify: checks that the blocks are readable.
    Verify {
        /// NSID.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Number of blocks.
        nlb: u32,
        /// Force Unit Access: read from stable storage.
        fua: bool,
        /// Limited Retry.
        limited_retry: bool,
    },
    /// Dataset Management, with a list of [`DsmRange`].
    DatasetManagement {
        /// NSID.
        nsid: u32,
        /// Number of ranges: 1 to 256.
        ranges: u16,
        /// Attribute Deallocate. Other attributes are hints.
        deallocate: bool,
    },
    /// Copy, with a list of source ranges.
    Copy {
        /// NSID.
        nsid: u32,
        /// First block of the destination.
        sdlba: u64,
        /// Number of source ranges: 1 to 256.
        ranges: u16,
        /// Descriptor format: 0 for [`CopyRange0`], 1 for [`CopyRange1`].
        format: u8,
        /// Force Unit Access: on stable storage when it completes.
        fua: bool,
    },
    /// A reservation command.
    Reservation {
        /// NSID.
        nsid: u32,
        /// Which one.
        request: ReservationRequest,
    },
}

impl IoCommand {
    /// Parses an entry of an I/O queue.
    ///
    /// # Errors
    /// Fails with Invalid Command Opcode for unknown opcodes; with Invalid Field for PRPs, FUSE
    /// 11b, or an unknown Copy format.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        check_psdt(sqe)?;
        if sqe.fuse() == Fuse::Reserved {
            return Err(invalid_field());
        }
        let nsid = sqe.nsid.get();
        match sqe.opcode {
            opcode::FLUSH => Ok(Self::Flush { nsid }),
            opcode::DATASET_MANAGEMENT => Ok(Self::DatasetManagement {
                nsid,
                ranges: ranges(sqe.cdw10),
                deallocate: bit(sqe.cdw11, AD),
            }),
            opcode::COPY => Self::parse_copy(sqe),
            opcode::RESERVATION_REGISTER
            | opcode::RESERVATION_REPORT
            | opcode::RESERVATION_ACQUIRE
            | opcode::RESERVATION_RELEASE => {
                Ok(Self::Reservation { nsid, request: ReservationRequest::parse(sqe)? })
            }
            _ => Self::parse_blocks(sqe),
        }
    }

    /// Parses a command with SLBA and NLB.
    fn parse_blocks(sqe: &Sqe) -> Result<Self, Status> {
        let nsid = sqe.nsid.get();
        let slba = quad(sqe.cdw10, sqe.cdw11);
        let nlb = u32::from(word(sqe.cdw12, 0)).saturating_add(1);
        let (fua, limited_retry) = (bit(sqe.cdw12, FUA), bit(sqe.cdw12, LIMITED_RETRY));
        match sqe.opcode {
            opcode::READ => Ok(Self::Read { nsid, slba, nlb, fua, limited_retry }),
            opcode::WRITE => Ok(Self::Write { nsid, slba, nlb, fua, limited_retry }),
            opcode::COMPARE => Ok(Self::Compare { nsid, slba, nlb, fua, limited_retry }),
            opcode::VERIFY => Ok(Self::Verify { nsid, slba, nlb, fua, limited_retry }),
            opcode::WRITE_ZEROES => {
                let deallocate = bit(sqe.cdw12, DEALLOCATE);
                Ok(Self::WriteZeroes { nsid, slba, nlb, fua, deallocate })
            }
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    fn parse_copy(sqe: &Sqe) -> Result<Self, Status> {
        let format = byte(sqe.cdw12, 8) & 0xf;
        // An unsupported format is an invalid field (NVM 1.0 §3.2.2).
        copy_range_len(format).ok_or_else(invalid_field)?;
        Ok(Self::Copy {
            nsid: sqe.nsid.get(),
            sdlba: quad(sqe.cdw10, sqe.cdw11),
            ranges: ranges(sqe.cdw12),
            format,
            fua: bit(sqe.cdw12, FUA),
        })
    }

    /// Returns the NSID.
    #[must_use]
    pub const fn nsid(&self) -> u32 {
        match *self {
            Self::Flush { nsid }
            | Self::Read { nsid, .. }
            | Self::Write { nsid, .. }
            | Self::Compare { nsid, .. }
            | Self::WriteZeroes { nsid, .. }
            | Self::Verify { nsid, .. }
            | Self::DatasetManagement { nsid, .. }
            | Self::Copy { nsid, .. }
            | Self::Reservation { nsid, .. } => nsid,
        }
    }

    /// Returns the data transfer for blocks of `2^block_shift` bytes. Saturates at 64 bits, which
    /// no SGL matches.
    #[must_use]
    pub fn data_len(&self, block_shift: u8) -> Transfer {
        match *self {
            Self::Read { nlb, .. } => Transfer::to_host(bytes(nlb, block_shift)),
            Self::Write { nlb, .. } | Self::Compare { nlb, .. } => {
                Transfer::from_host(bytes(nlb, block_shift))
            }
            Self::DatasetManagement { ranges, .. } => list(ranges, size_of::<DsmRange>()),
            Self::Copy { ranges, format, .. } => list(ranges, copy_range_len(format).unwrap_or(0)),
            Self::Reservation { request, .. } => request.data_len(),
            Self::Flush { .. } | Self::WriteZeroes { .. } | Self::Verify { .. } => Transfer::None,
        }
    }

    /// Returns whether the data consists of blocks of the namespace.
    #[must_use]
    pub const fn moves_blocks(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Compare { .. })
    }

    /// Returns the entry, with command identifier 0 and an SGL of length 0; set it by `with_data`.
    #[must_use]
    pub fn emit(&self) -> Sqe {
        let sqe = match *self {
            Self::Flush { .. } => entry(opcode::FLUSH),
            Self::Read { slba, nlb, fua, limited_retry, .. } => {
                blocks(opcode::READ, slba, nlb, control(fua, limited_retry))
            }
            Self::Write { slba, nlb, fua, limited_retry, .. } => {
                blocks(opcode::WRITE, slba, nlb, control(fua, limited_retry))
            }
            Self::Compare { slba, nlb, fua, limited_retry, .. } => {
                blocks(opcode::COMPARE, slba, nlb, control(fua, limited_retry))
            }
            Self::Verify { slba, nlb, fua, limited_retry, .. } => {
                blocks(opcode::VERIFY, slba, nlb, control(fua, limited_retry))
            }
            Self::WriteZeroes { slba, nlb, fua, deallocate, .. } => blocks(
                opcode::WRITE_ZEROES,
                slba,
                nlb,
                control(fua, false) | flag(deallocate, DEALLOCATE),
            ),
            Self::DatasetManagement { ranges, deallocate, .. } => Sqe {
                cdw10: U32::new(u32::from(zeros_based(ranges.into())) & 0xff),
                cdw11: U32::new(flag(deallocate, AD)),
                ..entry(opcode::DATASET_MANAGEMENT)
            },
            Self::Copy { sdlba, ranges, format, fua, .. } => {
                let (cdw10, cdw11) = dwords(sdlba);
                let nr = u32::from(zeros_based(ranges.into())) & 0xff;
                let cdw12 = U32::new(nr | u32::from(format & 0xf) << 8 | flag(fua, FUA));
                Sqe { cdw10, cdw11, cdw12, ..entry(opcode::COPY) }
            }
            Self::Reservation { request, .. } => request.emit(),
        };
        Sqe { nsid: U32::new(self.nsid()), ..sqe }
    }
}

fn blocks(opcode: u8, slba: u64, nlb: u32, control: u32) -> Sqe {
    let (cdw10, cdw11) = dwords(slba);
    Sqe { cdw10, cdw11, cdw12: U32::new(u32::from(zeros_based(nlb)) | control), ..entry(opcode) }
}

fn control(fua: bool, limited_retry: bool) -> u32 {
    flag(fua, FUA) | flag(limited_retry, LIMITED_RETRY)
}

/// Converts a count of 1 to 65536 to 0's based; clamps other values.
pub(super) fn zeros_based(count: u32) -> u16 {
    u16::try_from(count.saturating_sub(1)).unwrap_or(u16::MAX)
}

/// Parses NR, bits 7:0 of a dword: 1 to 256 ranges.
fn ranges(dword: U32) -> u16 {
    u16::from(byte(dword, 0)).saturating_add(1)
}

fn bytes(nlb: u32, block_shift: u8) -> u64 {
    let block = 1_u64.checked_shl(block_shift.into()).unwrap_or(u64::MAX);
    block.saturating_mul(nlb.into())
}

fn list(ranges: u16, range_len: usize) -> Transfer {
    Transfer::from_host(u64::from(ranges).saturating_mul(range_len as u64))
}

fn copy_range_len(format: u8) -> Option<usize> {
    match format {
        0 => Some(size_of::<CopyRange0>()),
        1 => Some(size_of::<CopyRange1>()),
        _ => None,
    }
}
