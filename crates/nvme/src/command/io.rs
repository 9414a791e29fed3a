//! I/O commands of the NVM command set (NVM 1.0 §3); does not know the disk that they are for.

use zerocopy::little_endian::U32;

use super::{Transfer, bit, byte, check_psdt, dwords, entry, flag, invalid_field, quad, word};
use crate::status::Status;
use crate::wire::dataset::{CopyRange0, CopyRange1, DsmRange};
use crate::wire::opcode::io as opcode;
use crate::wire::{Fuse, Sqe};

const LIMITED_RETRY: u32 = 31;
const FUA: u32 = 30;
const DEALLOCATE: u32 = 25;
const AD: u32 = 2;

/// An I/O command. `nlb` counts blocks: 1 to 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCommand {
    /// What was written before is to be on stable storage.
    Flush {
        /// Namespace, or FFFFFFFFh for all.
        nsid: u32,
    },
    /// Blocks from the disk.
    Read {
        /// Namespace.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Blocks.
        nlb: u32,
        /// From stable storage.
        fua: bool,
        /// No long retries.
        limited_retry: bool,
    },
    /// Blocks to the disk.
    Write {
        /// Namespace.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Blocks.
        nlb: u32,
        /// On stable storage before the answer.
        fua: bool,
        /// No long retries.
        limited_retry: bool,
    },
    /// Whether blocks on the disk equal those that are sent.
    Compare {
        /// Namespace.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Blocks.
        nlb: u32,
        /// From stable storage.
        fua: bool,
        /// No long retries.
        limited_retry: bool,
    },
    /// Zeroes to the disk.
    WriteZeroes {
        /// Namespace.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Blocks.
        nlb: u32,
        /// On stable storage before the answer.
        fua: bool,
        /// The blocks may be deallocated if they then read as zeroes.
        deallocate: bool,
    },
    /// Whether blocks can be read.
    Verify {
        /// Namespace.
        nsid: u32,
        /// First block.
        slba: u64,
        /// Blocks.
        nlb: u32,
        /// From stable storage.
        fua: bool,
        /// No long retries.
        limited_retry: bool,
    },
    /// What is to become of ranges; the list of [`DsmRange`] goes with it.
    DatasetManagement {
        /// Namespace.
        nsid: u32,
        /// Ranges in the list: 1 to 256.
        ranges: u16,
        /// The ranges may be deallocated. Without it the command is a hint.
        deallocate: bool,
    },
    /// Blocks to another place; the list of sources goes with it.
    Copy {
        /// Namespace.
        nsid: u32,
        /// First block of the destination.
        sdlba: u64,
        /// Source ranges in the list: 1 to 256.
        ranges: u16,
        /// Format of the list: 0 for [`CopyRange0`], 1 for [`CopyRange1`], no other.
        format: u8,
        /// On stable storage before the answer.
        fua: bool,
    },
}

impl IoCommand {
    /// The command in an entry of an I/O queue.
    ///
    /// # Errors
    /// Invalid Command Opcode for what is not in the list; Invalid Field for PRPs, FUSE 11b, or an
    /// unknown Copy format.
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
            _ => Self::parse_blocks(sqe),
        }
    }

    /// The commands that name blocks by SLBA and NLB.
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
        // NVM 1.0 §3.2.2: a format that the controller does not support is an Invalid Field.
        copy_range_len(format).ok_or_else(invalid_field)?;
        Ok(Self::Copy {
            nsid: sqe.nsid.get(),
            sdlba: quad(sqe.cdw10, sqe.cdw11),
            ranges: ranges(sqe.cdw12),
            format,
            fua: bit(sqe.cdw12, FUA),
        })
    }

    /// The namespace that the command is for.
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
            | Self::Copy { nsid, .. } => nsid,
        }
    }

    /// The data that goes with the command, on a namespace with blocks of `2^block_shift` bytes. A
    /// length beyond 64 bits becomes the largest, which no SGL has.
    #[must_use]
    pub fn data_len(&self, block_shift: u8) -> Transfer {
        match *self {
            Self::Read { nlb, .. } => Transfer::to_host(bytes(nlb, block_shift)),
            Self::Write { nlb, .. } | Self::Compare { nlb, .. } => {
                Transfer::from_host(bytes(nlb, block_shift))
            }
            Self::DatasetManagement { ranges, .. } => list(ranges, size_of::<DsmRange>()),
            Self::Copy { ranges, format, .. } => list(ranges, copy_range_len(format).unwrap_or(0)),
            Self::Flush { .. } | Self::WriteZeroes { .. } | Self::Verify { .. } => Transfer::None,
        }
    }

    /// Whether the data of the command is blocks of the namespace.
    #[must_use]
    pub const fn moves_blocks(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Compare { .. })
    }

    /// The entry of the command, with command identifier 0 and an SGL of no bytes: `with_data` gives
    /// it the right one.
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

/// A count of 1 to 65536 as the wire has it; one out of range becomes the nearest that is in it.
pub(super) fn zeros_based(count: u32) -> u16 {
    u16::try_from(count.saturating_sub(1)).unwrap_or(u16::MAX)
}

/// NR, bits 7:0 of a dword: 1 to 256 ranges.
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
