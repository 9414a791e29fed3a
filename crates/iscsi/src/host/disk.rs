//! The commands with which an initiator uses a disk (SBC-3), and the probe of its properties.

use scsi::wire::capacity::{Capacity16, LBPME, LBPRZ};
use scsi::wire::inquiry::{self, Standard, page};
use scsi::wire::opcode;
use scsi::wire::provision::{DEALLOCATED, LbaStatusDescriptor, LbaStatusHeader};
use zerocopy::FromBytes;

use super::{Disposition, Done};
use export::Extent;

/// Length of the answer to each probing command, in bytes.
pub const PROBE_LEN: usize = 4096;

/// Maximum number of unit attentions that a new session is expected to report.
const MAX_ATTENTIONS: u8 = 16;

/// The properties of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskInfo {
    /// Logical block size in bytes.
    pub block: u32,
    /// Size in bytes.
    pub bytes: u64,
    /// Vendor and product.
    pub model: String,
    /// The identifier of the logical unit in page 83h, or its serial number.
    pub identity: String,
    /// Whether it is write-protected.
    pub write_protected: bool,
    /// Longest read or write in blocks; 0 if it is not limited.
    pub max_transfer: u32,
    /// Longest WRITE SAME with UNMAP that zeroes, in blocks; 0 if there is none.
    pub max_zero: u64,
    /// Whether GET LBA STATUS reports holes that read as zeros.
    pub reports_extents: bool,
}

/// Why a disk cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeError {
    /// There is no disk with this logical unit number.
    Absent,
    /// It is not a disk.
    NotDisk,
    /// It does not report its capacity.
    NoCapacity,
    /// Its block size or its size is not supported.
    Geometry,
}

impl std::fmt::Display for ProbeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Absent => "the target has no disk with this logical unit number",
            Self::NotDisk => "the logical unit is not a disk",
            Self::NoCapacity => "the disk does not report its capacity",
            Self::Geometry => "the disk reports an impossible size",
        })
    }
}

/// The questions of a [`Probe`], in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Inquiry,
    Capacity,
    Page(u8),
    Mode,
    LbaStatus,
}

const QUESTIONS: [Question; 8] = [
    Question::Inquiry,
    Question::Capacity,
    Question::Page(page::SERIAL),
    Question::Page(page::IDENTIFICATION),
    Question::Page(page::LIMITS),
    Question::Page(page::PROVISIONING),
    Question::Mode,
    Question::LbaStatus,
];

/// Finds the properties of a disk, a command at a time.
#[derive(Debug, Default)]
pub struct Probe {
    at: usize,
    /// Unit attentions that were reported.
    attentions: u8,
    info: DiskInfo,
    /// Unmapped blocks are supported, and read as zeros.
    zeros: bool,
    write_same: u64,
}

impl Probe {
    /// Returns the next command, which returns at most [`PROBE_LEN`] bytes.
    #[must_use]
    pub fn next_command(&self) -> Option<[u8; 16]> {
        let len = u16::try_from(PROBE_LEN).unwrap_or(u16::MAX).to_be_bytes();
        let mut cdb = [0; 16];
        let head: &[u8] = match QUESTIONS.get(self.at)? {
            Question::Inquiry => &[opcode::INQUIRY, 0, 0, len[0], len[1]],
            Question::Page(code) => &[opcode::INQUIRY, 1, *code, len[0], len[1]],
            Question::Capacity => {
                cdb[13] = 32;
                &[opcode::SERVICE_ACTION_IN_16, opcode::READ_CAPACITY_16]
            }
            // All pages, without block descriptors.
            Question::Mode => &[opcode::MODE_SENSE_6, 8, 0x3f, 0, 255],
            Question::LbaStatus => return Some(extents(0)),
        };
        cdb.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
        Some(cdb)
    }

    /// Processes the end of the command, whose disposition is not one to retry. After a unit
    /// attention, the same one is next.
    ///
    /// # Errors
    /// Fails if the disk cannot be used.
    pub fn complete(&mut self, done: &Done) -> Result<(), ProbeError> {
        let data = done.buffer.as_ref().map_or(&[][..], |buffer| buffer.bytes());
        let data = data.get(..done.len).unwrap_or_default();
        let data = if done.status == 0 { data } else { &[] };
        let Some(question) = QUESTIONS.get(self.at) else { return Ok(()) };
        if done.disposition() == Disposition::Changed && self.attentions < MAX_ATTENTIONS {
            self.attentions += 1;
            return Ok(());
        }
        self.at += 1;
        match *question {
            Question::Inquiry => self.inquiry(data)?,
            Question::Capacity => self.capacity(data)?,
            Question::Page(code) => self.page(code, data),
            Question::Mode => {
                self.info.write_protected = data.get(2).is_some_and(|flags| flags & 0x80 != 0);
            }
            Question::LbaStatus => {
                self.info.reports_extents = self.zeros && !parse_extents(0, 1, data).is_empty();
                self.info.max_zero = if self.zeros { self.write_same } else { 0 };
            }
        }
        Ok(())
    }

    /// Returns the result.
    #[must_use]
    pub fn finish(self) -> DiskInfo {
        self.info
    }

    fn inquiry(&mut self, data: &[u8]) -> Result<(), ProbeError> {
        let peripheral = data.first().copied().unwrap_or(inquiry::ABSENT);
        if peripheral == inquiry::ABSENT || peripheral >> 5 != 0 {
            return Err(ProbeError::Absent);
        }
        if peripheral != inquiry::DISK {
            return Err(ProbeError::NotDisk);
        }
        let mut standard = [0; size_of::<Standard>()];
        standard.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        if let Ok(standard) = Standard::read_from_bytes(&standard) {
            let model = format!("{} {}", printable(&standard.vendor), printable(&standard.product));
            model.trim().clone_into(&mut self.info.model);
        }
        Ok(())
    }

    fn capacity(&mut self, data: &[u8]) -> Result<(), ProbeError> {
        let Ok((capacity, _)) = Capacity16::read_from_prefix(data) else {
            return Err(ProbeError::NoCapacity);
        };
        let block = capacity.block.get();
        let blocks = capacity.last_lba.get().checked_add(1);
        let bytes = blocks.and_then(|blocks| blocks.checked_mul(block.into()));
        let valid = block.is_power_of_two() && (512..=65536).contains(&block);
        let bytes = bytes.filter(|bytes| valid && *bytes < 1 << 63);
        (self.info.bytes, self.info.block) = (bytes.ok_or(ProbeError::Geometry)?, block);
        self.zeros = capacity.provisioning.get() & (LBPME | LBPRZ) == LBPME | LBPRZ;
        Ok(())
    }

    fn page(&mut self, code: u8, data: &[u8]) {
        let Some((header, payload)) = data.split_at_checked(4) else { return };
        if header.get(1) != Some(&code) {
            return;
        }
        match code {
            page::SERIAL => self.info.identity = format!("serial {}", printable(payload)),
            page::IDENTIFICATION => {
                if let Some(identity) = designator(payload) {
                    self.info.identity = identity;
                }
            }
            page::LIMITS => {
                if let Ok((limits, _)) = inquiry::Limits::read_from_prefix(data) {
                    self.info.max_transfer = limits.transfer.get();
                    let limit = limits.write_same.get();
                    let most = u64::from(u32::MAX);
                    self.write_same = if limit == 0 { most } else { limit.min(most) };
                }
            }
            page::PROVISIONING => {
                let flags = data.get(5).copied().unwrap_or(0);
                if flags & inquiry::provisioning::LBPWS == 0 {
                    self.write_same = 0;
                }
            }
            _ => {}
        }
    }
}

/// Returns the best identifier of the logical unit in page 83h.
fn designator(mut list: &[u8]) -> Option<String> {
    let mut best: Option<(u8, String)> = None;
    while let Some((head, rest)) = list.split_at_checked(4) {
        let [codes, kind, _, len] = head else { break };
        let (value, next) = rest.split_at_checked(usize::from(*len))?;
        list = next;
        // NAA, then EUI-64, then those with text.
        let rank = match kind & 15 {
            inquiry::designator::NAA => 3,
            2 => 2,
            1 => 1,
            _ => 0,
        };
        let of_unit = kind & 0x30 == inquiry::association::UNIT;
        if of_unit && rank > best.as_ref().map_or(0, |(rank, _)| *rank) {
            let text = match codes & 15 {
                inquiry::code_set::BINARY => {
                    value.iter().map(|byte| format!("{byte:02x}")).collect()
                }
                _ => printable(value),
            };
            let name = ["t10", "eui", "naa"].get(usize::from(rank) - 1).copied().unwrap_or("");
            best = Some((rank, format!("{name} {text}")));
        }
    }
    best.map(|(_, identity)| identity)
}

fn printable(bytes: &[u8]) -> String {
    let text: String =
        bytes.iter().map(|byte| char::from(*byte)).filter(|c| (' '..='~').contains(c)).collect();
    text.trim().to_owned()
}

fn transfer(code: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = code;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// Returns READ (16).
#[must_use]
pub fn read(lba: u64, blocks: u32) -> [u8; 16] {
    transfer(opcode::READ_16, lba, blocks)
}

/// Returns WRITE (16).
#[must_use]
pub fn write(lba: u64, blocks: u32) -> [u8; 16] {
    transfer(opcode::WRITE_16, lba, blocks)
}

/// Returns WRITE SAME (16) with UNMAP, whose data is a block of zeros.
#[must_use]
pub fn zero(lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = transfer(opcode::WRITE_SAME_16, lba, blocks);
    cdb[1] = 0x08;
    cdb
}

/// Returns SYNCHRONIZE CACHE (10) of the whole disk.
#[must_use]
pub fn flush() -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode::SYNCHRONIZE_CACHE_10;
    cdb
}

/// Returns GET LBA STATUS from `lba` on, with at most [`PROBE_LEN`] bytes of data.
#[must_use]
pub fn extents(lba: u64) -> [u8; 16] {
    let len = u32::try_from(PROBE_LEN).unwrap_or(u32::MAX);
    let mut cdb = transfer(opcode::SERVICE_ACTION_IN_16, lba, len);
    cdb[1] = opcode::GET_LBA_STATUS;
    cdb
}

/// Parses the data of [`extents`]: the extents from `lba` on, at most `blocks` blocks, with lengths
/// in blocks. Empty if it does not describe `lba`.
#[must_use]
pub fn parse_extents(lba: u64, blocks: u64, data: &[u8]) -> Vec<Extent> {
    let mut extents = Vec::new();
    let Ok((_, mut rest)) = LbaStatusHeader::read_from_prefix(data) else { return extents };
    let (mut at, mut left) = (lba, blocks);
    while let Ok((descriptor, next)) = LbaStatusDescriptor::read_from_prefix(rest) {
        rest = next;
        let start = descriptor.lba.get();
        let Some(end) = start.checked_add(descriptor.blocks.get().into()) else { break };
        // The first one may begin before.
        let first = extents.is_empty() && start <= at;
        if end <= at || left == 0 || !(first || start == at) {
            break;
        }
        let len = (end - at).min(left);
        let is_hole = descriptor.status & 15 == DEALLOCATED;
        extents.push(if is_hole { Extent::hole(len) } else { Extent::data(len) });
        (at, left) = (at + len, left - len);
    }
    extents
}
