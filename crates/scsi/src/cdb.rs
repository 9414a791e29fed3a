//! Parses command descriptor blocks (SPC-4 §4.2, SBC-3).

use crate::range::Blocks;
use crate::supported::{Supported, with_opcode};
use crate::wire::opcode as op;
use crate::wire::sense::Sense;

/// A command descriptor block with its fields. Lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cdb {
    TestUnitReady,
    RequestSense { allocation: u32 },
    Inquiry { page: Option<u8>, allocation: u32 },
    ReadCapacity10,
    ReadCapacity16 { allocation: u32 },
    ReadFormatCapacities { allocation: u32 },
    ReadDefectData { twelve: bool, lists: u8, allocation: u32 },
    ReportLuns { select: u8, allocation: u32 },
    ReportOpcodes(ReportOpcodes),
    ModeSense(ModeSense),
    ModeSelect { ten: bool, length: u32 },
    StartStop(StartStop),
    PreventAllow { prevent: bool },
    Read(Blocks),
    Write { range: Blocks, durable: bool },
    WriteAtomic { range: Blocks, durable: bool },
    WriteAndVerify { range: Blocks, compare: bool },
    Verify { range: Blocks, check: ByteCheck },
    Synchronize(Blocks),
    PreFetch(Blocks),
    CompareAndWrite { range: Blocks, durable: bool },
    OrWrite { range: Blocks, durable: bool },
    WriteSame { range: Blocks, unmap: bool, no_data: bool },
    Unmap { length: u32 },
    GetLbaStatus { lba: u64, allocation: u32 },
    ExtendedCopy { length: u32 },
    CopyStatus { list_id: u8, allocation: u32 },
    CopyParameters { allocation: u32 },
    ReserveUnit,
    ReleaseUnit,
    PersistentIn { action: u8, allocation: u32 },
    PersistentOut(PersistentOut),
}

/// PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PersistentOut {
    pub(crate) action: u8,
    pub(crate) scope: u8,
    pub(crate) kind: u8,
    pub(crate) length: u32,
}

/// MODE SENSE (6) or (10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModeSense {
    pub(crate) ten: bool,
    /// Whether block descriptors are returned.
    pub(crate) descriptors: bool,
    /// Page control.
    pub(crate) control: u8,
    pub(crate) page: u8,
    pub(crate) subpage: u8,
    pub(crate) allocation: u32,
}

/// REPORT SUPPORTED OPERATION CODES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReportOpcodes {
    /// Whether to return timeouts.
    pub(crate) timeouts: bool,
    pub(crate) options: u8,
    pub(crate) opcode: u8,
    pub(crate) action: u16,
    pub(crate) allocation: u32,
}

/// START STOP UNIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StartStop {
    pub(crate) power_condition: u8,
    pub(crate) no_flush: bool,
    pub(crate) load_or_eject: bool,
    pub(crate) start: bool,
}

/// The fields of a CDB by offset.
struct Fields<'a>(&'a [u8; 16]);

impl Fields<'_> {
    fn has(&self, at: usize, bit: u8) -> bool {
        self.0[at] & bit != 0
    }

    fn number<const N: usize>(&self, at: usize) -> u64 {
        self.0[at..at + N].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn word(&self, at: usize) -> u32 {
        u32::from(self.0[at]) << 8 | u32::from(self.0[at + 1])
    }

    fn dword(&self, at: usize) -> u32 {
        self.word(at) << 16 | self.word(at + 2)
    }

    fn ten(&self) -> Blocks {
        Blocks { lba: self.number::<4>(2), blocks: self.word(7) }
    }

    fn twelve(&self) -> Blocks {
        Blocks { lba: self.number::<4>(2), blocks: self.dword(6) }
    }

    fn sixteen(&self) -> Blocks {
        Blocks { lba: self.number::<8>(2), blocks: self.dword(10) }
    }

    /// Returns the range of a 6-byte command, in which a length of 0 is 256 blocks (SBC-3).
    fn six(&self) -> Blocks {
        let blocks = if self.0[4] == 0 { 256 } else { self.0[4].into() };
        Blocks { lba: self.number::<3>(1) & 0x1f_ffff, blocks }
    }

    fn is_durable(&self) -> bool {
        self.has(1, 0x08)
    }

    /// Returns BYTCHK, of which one value is reserved.
    fn byte_check(&self) -> Result<ByteCheck, Sense> {
        match self.0[1] >> 1 & 3 {
            0 => Ok(ByteCheck::Nothing),
            1 => Ok(ByteCheck::Blocks),
            3 => Ok(ByteCheck::OneBlock),
            _ => Err(Sense::INVALID_FIELD_IN_CDB.with_field(1)),
        }
    }
}

/// What VERIFY compares with the blocks (BYTCHK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteCheck {
    /// Nothing.
    Nothing,
    /// As many blocks of the initiator.
    Blocks,
    /// One block of the initiator, with each.
    OneBlock,
}

/// Returns the table entry of a CDB.
fn entry(cdb: &[u8; 16]) -> Result<&'static Supported, Sense> {
    let entries = with_opcode(cdb[0]);
    let action = cdb[1] & 0x1f;
    let mut matching =
        entries.iter().filter(|entry| entry.action.is_none_or(|number| number == action));
    match matching.next() {
        Some(entry) => Ok(entry),
        None if entries.is_empty() => Err(Sense::INVALID_OPCODE),
        None => Err(Sense::INVALID_FIELD_IN_CDB.with_field(1)),
    }
}

impl Cdb {
    /// Parses a CDB, which is padded with zeros or anything else.
    ///
    /// # Errors
    /// Returns sense data if the command is not supported or a bit is set that is not evaluated.
    pub(crate) fn parse(cdb: &[u8; 16]) -> Result<Self, Sense> {
        let entry = entry(cdb)?;
        if let Some(byte) = entry.wrong_byte(cdb) {
            return Err(Sense::INVALID_FIELD_IN_CDB.with_field(byte));
        }
        let fields = Fields(cdb);
        match Self::transfer(&fields)? {
            Some(transfer) => Ok(transfer),
            None => match Self::report(&fields, entry.action)? {
                Some(report) => Ok(report),
                None => Self::control(&fields, entry.action),
            },
        }
    }

    /// Returns whether the command writes blocks.
    pub(crate) fn writes(self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::WriteAtomic { .. }
                | Self::WriteAndVerify { .. }
                | Self::CompareAndWrite { .. }
                | Self::OrWrite { .. }
                | Self::WriteSame { .. }
                | Self::Unmap { .. }
                | Self::ExtendedCopy { .. }
        )
    }

    /// Parses a command on a range of blocks.
    fn transfer(fields: &Fields<'_>) -> Result<Option<Self>, Sense> {
        let durable = fields.is_durable();
        Ok(Some(match fields.0[0] {
            op::READ_6 => Self::Read(fields.six()),
            op::READ_10 => Self::Read(fields.ten()),
            op::READ_12 => Self::Read(fields.twelve()),
            op::READ_16 => Self::Read(fields.sixteen()),
            op::WRITE_6 => Self::Write { range: fields.six(), durable: false },
            op::WRITE_10 => Self::Write { range: fields.ten(), durable },
            op::WRITE_12 => Self::Write { range: fields.twelve(), durable },
            op::WRITE_16 => Self::Write { range: fields.sixteen(), durable },
            op::WRITE_ATOMIC_16 => {
                let range = Blocks { lba: fields.number::<8>(2), blocks: fields.word(12) };
                Self::WriteAtomic { range, durable }
            }
            op::WRITE_AND_VERIFY_10 => Self::write_and_verify(fields, fields.ten())?,
            op::WRITE_AND_VERIFY_12 => Self::write_and_verify(fields, fields.twelve())?,
            op::WRITE_AND_VERIFY_16 => Self::write_and_verify(fields, fields.sixteen())?,
            op::VERIFY_10 => Self::verify(fields, fields.ten())?,
            op::VERIFY_12 => Self::verify(fields, fields.twelve())?,
            op::VERIFY_16 => Self::verify(fields, fields.sixteen())?,
            op::SYNCHRONIZE_CACHE_10 => Self::Synchronize(fields.ten()),
            op::SYNCHRONIZE_CACHE_16 => Self::Synchronize(fields.sixteen()),
            op::PRE_FETCH_10 => Self::PreFetch(fields.ten()),
            op::PRE_FETCH_16 => Self::PreFetch(fields.sixteen()),
            op::ORWRITE_16 => Self::OrWrite { range: fields.sixteen(), durable },
            op::COMPARE_AND_WRITE => {
                let range = Blocks { lba: fields.number::<8>(2), blocks: fields.0[13].into() };
                Self::CompareAndWrite { range, durable }
            }
            op::WRITE_SAME_10 => Self::write_same(fields, fields.ten(), false),
            op::WRITE_SAME_16 => Self::write_same(fields, fields.sixteen(), fields.has(1, 1)),
            _ => return Ok(None),
        }))
    }

    fn write_and_verify(fields: &Fields<'_>, range: Blocks) -> Result<Self, Sense> {
        let compare = match fields.byte_check()? {
            ByteCheck::Nothing => false,
            ByteCheck::Blocks => true,
            // All blocks are written.
            ByteCheck::OneBlock => return Err(Sense::INVALID_FIELD_IN_CDB.with_field(1)),
        };
        Ok(Self::WriteAndVerify { range, compare })
    }

    fn verify(fields: &Fields<'_>, range: Blocks) -> Result<Self, Sense> {
        Ok(Self::Verify { range, check: fields.byte_check()? })
    }

    fn write_same(fields: &Fields<'_>, range: Blocks, no_data: bool) -> Self {
        Self::WriteSame { range, unmap: fields.has(1, 0x08), no_data }
    }

    /// Parses a command that returns information.
    fn report(fields: &Fields<'_>, action: Option<u8>) -> Result<Option<Self>, Sense> {
        let bytes = fields.0;
        Ok(Some(match (bytes[0], action) {
            (op::REQUEST_SENSE, _) => Self::RequestSense { allocation: bytes[4].into() },
            (op::INQUIRY, _) => {
                let page = fields.has(1, 1).then_some(bytes[2]);
                if page.is_none() && bytes[2] != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Self::Inquiry { page, allocation: fields.word(3) }
            }
            (op::READ_CAPACITY_10, _) => {
                let partial = fields.has(8, 1);
                if !partial && fields.dword(2) != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Self::ReadCapacity10
            }
            (op::READ_FORMAT_CAPACITIES, _) => {
                Self::ReadFormatCapacities { allocation: fields.word(7) }
            }
            (op::READ_DEFECT_DATA_10, _) => {
                let (lists, allocation) = (bytes[2], fields.word(7));
                Self::ReadDefectData { twelve: false, lists, allocation }
            }
            (op::READ_DEFECT_DATA_12, _) => {
                let (lists, allocation) = (bytes[1], fields.dword(6));
                Self::ReadDefectData { twelve: true, lists, allocation }
            }
            (op::REPORT_LUNS, _) => {
                Self::ReportLuns { select: bytes[2], allocation: fields.dword(6) }
            }
            (op::PERSISTENT_RESERVE_IN, Some(action)) => {
                Self::PersistentIn { action, allocation: fields.word(7) }
            }
            (op::RECEIVE_COPY_RESULTS, Some(op::RECEIVE_COPY_STATUS)) => {
                Self::CopyStatus { list_id: bytes[2], allocation: fields.dword(10) }
            }
            (op::RECEIVE_COPY_RESULTS, _) => Self::CopyParameters { allocation: fields.dword(10) },
            (_, Some(op::READ_CAPACITY_16)) => {
                Self::ReadCapacity16 { allocation: fields.dword(10) }
            }
            (_, Some(op::GET_LBA_STATUS)) => {
                Self::GetLbaStatus { lba: fields.number::<8>(2), allocation: fields.dword(10) }
            }
            (op::MAINTENANCE_IN, _) => Self::ReportOpcodes(ReportOpcodes {
                timeouts: fields.has(2, 0x80),
                options: bytes[2] & 7,
                opcode: bytes[3],
                action: u16::from_be_bytes([bytes[4], bytes[5]]),
                allocation: fields.dword(6),
            }),
            _ => return Ok(None),
        }))
    }

    /// Parses any other command.
    fn control(fields: &Fields<'_>, action: Option<u8>) -> Result<Self, Sense> {
        let bytes = fields.0;
        Ok(match (bytes[0], action) {
            (op::TEST_UNIT_READY, _) => Self::TestUnitReady,
            (op::MODE_SENSE_6, _) => Self::mode_sense(fields, false, bytes[4].into()),
            (op::MODE_SENSE_10, _) => Self::mode_sense(fields, true, fields.word(7)),
            (op::MODE_SELECT_6, _) => Self::mode_select(fields, false, bytes[4].into())?,
            (op::MODE_SELECT_10, _) => Self::mode_select(fields, true, fields.word(7))?,
            (op::EXTENDED_COPY, _) => Self::ExtendedCopy { length: fields.dword(10) },
            (op::UNMAP, _) => Self::Unmap { length: fields.word(7) },
            (op::RESERVE_6, _) => Self::ReserveUnit,
            (op::RELEASE_6, _) => Self::ReleaseUnit,
            (op::PERSISTENT_RESERVE_OUT, Some(action)) => Self::PersistentOut(PersistentOut {
                action,
                scope: bytes[2] >> 4,
                kind: bytes[2] & 0x0f,
                length: fields.dword(5),
            }),
            (op::PREVENT_ALLOW, _) => Self::PreventAllow { prevent: fields.has(4, 1) },
            (op::START_STOP_UNIT, _) => Self::StartStop(StartStop {
                power_condition: bytes[4] >> 4,
                no_flush: fields.has(4, 0x04),
                load_or_eject: fields.has(4, 0x02),
                start: fields.has(4, 0x01),
            }),
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }

    fn mode_sense(fields: &Fields<'_>, ten: bool, allocation: u32) -> Self {
        Self::ModeSense(ModeSense {
            ten,
            descriptors: !fields.has(1, 0x08),
            control: fields.0[2] >> 6,
            page: fields.0[2] & 0x3f,
            subpage: fields.0[3],
            allocation,
        })
    }

    /// Parses MODE SELECT: of mode pages (PF), and without saving them (SP).
    fn mode_select(fields: &Fields<'_>, ten: bool, length: u32) -> Result<Self, Sense> {
        let (pages, save) = (fields.has(1, 0x10), fields.has(1, 0x01));
        if save || !pages && length != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(Self::ModeSelect { ten, length })
    }
}
