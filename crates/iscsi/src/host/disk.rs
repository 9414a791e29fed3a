//! The commands with which an initiator uses a disk (SBC-3), and the probe of its properties.

use scsi::wire::capacity::{Capacity10, Capacity16, LBPME, LBPRZ};
use scsi::wire::inquiry::{self, Standard, page};
use scsi::wire::opcode;
use scsi::wire::provision::{DEALLOCATED, LbaStatusDescriptor, LbaStatusHeader};
use scsi::wire::sense::key;
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
    /// The identifier of the logical unit in page 83h, or its serial number. Empty if it has none.
    pub identity: String,
    /// Whether no other disk anywhere has this identity. Others are unique within a target, as far as
    /// that goes.
    pub is_global: bool,
    /// Whether it is write-protected.
    pub write_protected: bool,
    /// Longest read or write in blocks; 0 if it is not limited.
    pub max_transfer: u32,
    /// Longest WRITE SAME with UNMAP that zeroes, in blocks; 0 if there is none.
    pub max_zero: u64,
    /// Whether GET LBA STATUS reports holes that read as zeros.
    pub reports_extents: bool,
    /// Whether it has only the commands with 32-bit addresses: at most 2 TiB.
    pub is_short: bool,
}

impl DiskInfo {
    /// Returns READ (16), or READ (10) for a disk without it.
    #[must_use]
    pub fn read(&self, lba: u64, blocks: u32) -> [u8; 16] {
        if self.is_short { short_transfer(opcode::READ_10, lba, blocks) } else { read(lba, blocks) }
    }

    /// Returns WRITE (16), or WRITE (10) for a disk without it.
    #[must_use]
    pub fn write(&self, lba: u64, blocks: u32) -> [u8; 16] {
        match self.is_short {
            true => short_transfer(opcode::WRITE_10, lba, blocks),
            false => write(lba, blocks),
        }
    }
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
    /// It has no medium.
    NoMedium,
    /// It reports one unit attention after another.
    Changing,
}

impl std::fmt::Display for ProbeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Absent => "the target has no disk with this logical unit number",
            Self::NotDisk => "the logical unit is not a disk",
            Self::NoCapacity => "the disk does not report its capacity",
            Self::Geometry => "the disk reports an impossible size",
            Self::NoMedium => "the disk has no medium",
            Self::Changing => "the disk is reset or changed again and again",
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
            Question::Capacity if self.info.is_short => &[opcode::READ_CAPACITY_10],
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

    /// Processes the end of the command, whose disposition is not one to retry, and which is not
    /// that of [an earlier command](Done::is_deferred). After a unit attention, the same one is next.
    ///
    /// # Errors
    /// Fails if the disk cannot be used.
    pub fn complete(&mut self, done: &Done) -> Result<(), ProbeError> {
        let data = done.buffer.as_ref().map_or(&[][..], |buffer| buffer.bytes());
        let data = data.get(..done.len).unwrap_or_default();
        let Some(question) = QUESTIONS.get(self.at) else { return Ok(()) };
        let data = match done.disposition() {
            Disposition::Good => data,
            Disposition::Changed if done.sense.key == key::NOT_READY => {
                return Err(ProbeError::NoMedium);
            }
            Disposition::Changed if self.attentions == MAX_ATTENTIONS => {
                return Err(ProbeError::Changing);
            }
            Disposition::Changed => {
                self.attentions += 1;
                return Ok(());
            }
            Disposition::Busy | Disposition::Aborted | Disposition::Failed => &[],
        };
        // A target before SBC-2.
        let is_unknown = done.sense.key == key::ILLEGAL_REQUEST;
        if *question == Question::Capacity && is_unknown && !self.info.is_short {
            self.info.is_short = true;
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
        let most = u32::from(u16::MAX);
        let max_transfer = match self.info.max_transfer {
            0 if self.info.is_short => most,
            limit if self.info.is_short => limit.min(most),
            limit => limit,
        };
        DiskInfo { max_transfer, ..self.info }
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
        let (last, block) = if self.info.is_short {
            let capacity = Capacity10::read_from_prefix(data);
            let (capacity, _) = capacity.map_err(|_| ProbeError::NoCapacity)?;
            // It does not fit into 32 bits.
            if capacity.last_lba.get() == u32::MAX {
                return Err(ProbeError::NoCapacity);
            }
            (u64::from(capacity.last_lba.get()), capacity.block.get())
        } else {
            let capacity = Capacity16::read_from_prefix(data);
            let (capacity, _) = capacity.map_err(|_| ProbeError::NoCapacity)?;
            self.zeros = capacity.provisioning.get() & (LBPME | LBPRZ) == LBPME | LBPRZ;
            (capacity.last_lba.get(), capacity.block.get())
        };
        let bytes = last.checked_add(1).and_then(|blocks| blocks.checked_mul(block.into()));
        let valid = block.is_power_of_two() && (512..=65536).contains(&block);
        let bytes = bytes.filter(|bytes| valid && *bytes < 1 << 63);
        (self.info.bytes, self.info.block) = (bytes.ok_or(ProbeError::Geometry)?, block);
        Ok(())
    }

    fn page(&mut self, code: u8, data: &[u8]) {
        let Some((&[_, found, high, low], payload)) = data.split_first_chunk() else { return };
        if found != code {
            return;
        }
        // What follows the page is not part of it.
        let len = usize::from(u16::from_be_bytes([high, low])).min(payload.len());
        let payload = payload.get(..len).unwrap_or_default();
        match code {
            page::SERIAL => {
                if let Some(serial) = identifier(payload) {
                    self.info.identity = format!("serial {serial}");
                }
            }
            page::IDENTIFICATION => {
                if let Some(best) = best_designator(payload) {
                    (self.info.identity, self.info.is_global) = (best.text, best.is_global);
                }
            }
            page::LIMITS => self.limits(payload),
            page::PROVISIONING => {
                let flags = payload.get(1).copied().unwrap_or(0);
                if flags & inquiry::provisioning::LBPWS == 0 {
                    self.write_same = 0;
                }
            }
            _ => {}
        }
    }

    /// Processes the payload of page B0h. Older versions of it are shorter, and report no limit in
    /// what they lack.
    fn limits(&mut self, payload: &[u8]) {
        let mut page = [0; size_of::<inquiry::Limits>()];
        page.iter_mut().skip(4).zip(payload).for_each(|(to, from)| *to = *from);
        let Ok(limits) = inquiry::Limits::read_from_bytes(&page) else { return };
        self.info.max_transfer = limits.transfer.get();
        let most = u64::from(u32::MAX);
        self.write_same = match limits.write_same.get() {
            0 => most,
            limit => limit.min(most),
        };
    }
}

/// An identifier of the logical unit.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Designator {
    is_global: bool,
    rank: u8,
    text: String,
}

impl Designator {
    /// Returns a designator of page 83h (SPC-4 §7.8.6.2) by its code set, type and value; `None` if
    /// it does not identify the unit.
    fn new(code_set: u8, kind: u8, value: &[u8]) -> Option<Self> {
        // A number of zeros, or a text of which nothing can be shown, is that of many disks.
        if value.iter().all(|byte| matches!(byte, 0 | b' ' | b'?')) {
            return None;
        }
        let is_text = code_set != inquiry::code_set::BINARY;
        let text = match is_text {
            true => identifier(value)?,
            false => value.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let (name, rank, is_global) = match kind {
            inquiry::designator::NAA => ("naa", 4, is_registered_naa(value)),
            EUI_64 => ("eui", 3, is_registered_eui(value)),
            SCSI_NAME => ("name", 2, is_text),
            // Vendors of targets have one serial number for each target, or for all.
            T10_VENDOR_ID => ("t10", 1, false),
            _ => return None,
        };
        Some(Self { is_global, rank, text: format!("{name} {text}") })
    }
}

/// Designator types (SPC-4 §7.8.6).
const T10_VENDOR_ID: u8 = 1;
const EUI_64: u8 = 2;
const SCSI_NAME: u8 = 8;

/// Returns whether an NAA (SPC-4 §7.8.6.6) is one of a registered company: neither one that is
/// assigned locally (3), nor one without a company, as tgt has it.
fn is_registered_naa(value: &[u8]) -> bool {
    let Some((&[a, b, c, d, e], _)) = value.split_first_chunk() else { return false };
    // IEEE Extended has the company after 16 bits, the registered ones after 4.
    let (company, len) = match a >> 4 {
        2 => (u32::from_be_bytes([0, c, d, e]), 8),
        5 => (u32::from_be_bytes([a & 15, b, c, d]) >> 4, 8),
        6 => (u32::from_be_bytes([a & 15, b, c, d]) >> 4, 16),
        _ => return false,
    };
    company != 0 && value.len() == len
}

/// Returns whether an EUI-64 (SPC-4 §7.8.6.5) is one of a registered company.
fn is_registered_eui(value: &[u8]) -> bool {
    let company = match value.len() {
        8 | 12 => value.get(..3),
        // After an extension of 8 bytes.
        16 => value.get(8..11),
        _ => None,
    };
    company.is_some_and(|company| company != [0; 3])
}

/// Returns the best identifier of the logical unit in page 83h: one that is unique everywhere if
/// there is one.
fn best_designator(mut list: &[u8]) -> Option<Designator> {
    let mut best = None;
    while let Some((&[codes, kind, _, len], rest)) = list.split_first_chunk() {
        let Some((value, next)) = rest.split_at_checked(usize::from(len)) else { break };
        list = next;
        if kind & 0x30 == inquiry::association::UNIT {
            best = best.max(Designator::new(codes & 15, kind & 15, value));
        }
    }
    best
}

/// Returns a text that identifies a disk, without the padding; other bytes than those of printable
/// ASCII are escaped. `None` if there is none of those.
fn identifier(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = bytes.get(..end)?.trim_ascii();
    (!printable(text).is_empty()).then(|| text.escape_ascii().to_string())
}

fn printable(bytes: &[u8]) -> String {
    let text: String =
        bytes.iter().map(|byte| char::from(*byte)).filter(|c| (' '..='~').contains(c)).collect();
    text.trim().to_owned()
}

/// Returns a command with a 32-bit address, of at most 65535 blocks.
fn short_transfer(code: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = code;
    // The probe has refused a disk that has more.
    let lba = u32::try_from(lba).unwrap_or(u32::MAX);
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&u16::try_from(blocks).unwrap_or(0).to_be_bytes());
    cdb
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

#[cfg(test)]
mod test {
    use super::*;

    fn info(pages: &[(u8, &[u8])]) -> DiskInfo {
        let mut probe = Probe::default();
        for (code, payload) in pages {
            let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
            let page = [&[0, *code], &len[..], payload, b"beyond the page"].concat();
            probe.page(*code, &page);
        }
        probe.finish()
    }

    /// Returns a designator of the unit.
    fn designator(code_set: u8, kind: u8, value: &[u8]) -> Vec<u8> {
        [&[code_set, kind, 0, u8::try_from(value.len()).unwrap()], value].concat()
    }

    #[test]
    fn identity_is_the_best_that_identifies_the_disk() {
        let registered = [0x50, 1, 2, 3, 4, 5, 6, 7];
        let local = [0x30, 0, 0, 1, 0, 0, 0, 1];
        let of_tgt = [0x60, 0, 0, 0, 0, 0, 0, 0, 0x0e, 0, 0, 0, 0, 1, 0, 1];
        let extended = [0x2f, 0xff, 0, 0, 4, 0, 0, 0];
        for (list, expected) in [
            (designator(1, 3, &registered), ("naa 5001020304050607", true)),
            (designator(1, 3, &local), ("naa 3000000100000001", false)),
            (designator(1, 3, &of_tgt), ("naa 60000000000000000e00000000010001", false)),
            (designator(1, 3, &extended), ("naa 2fff000004000000", true)),
            // Without a company; of the length of another type.
            (designator(1, 3, &[0x2f, 1, 0, 0, 0, 5, 6, 7]), ("naa 2f01000000050607", false)),
            (
                designator(1, 3, &[&registered[..], &[8; 8]].concat()),
                ("naa 50010203040506070808080808080808", false),
            ),
            (designator(1, 3, &[0x60, 1, 2, 3, 4, 5, 6, 7]), ("naa 6001020304050607", false)),
            (designator(1, 2, &[1; 8]), ("eui 0101010101010101", true)),
            (designator(1, 2, &[0, 0, 0, 1, 1, 1, 1, 1]), ("eui 0000000101010101", false)),
            (
                designator(1, 2, &[1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1]),
                ("eui 01010101010101010000000101010101", false),
            ),
            (
                designator(1, 2, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
                ("eui 00000000000000000101010101010101", true),
            ),
            // Of two names that differ in what is not ASCII, each is another one.
            (designator(3, 8, "iqn.a:é".as_bytes()), (r"name iqn.a:\xc3\xa9", true)),
            (designator(3, 8, "iqn.a:è".as_bytes()), (r"name iqn.a:\xc3\xa8", true)),
            (designator(3, 8, b"iqn.a:b,L,0x0\0\0\0"), ("name iqn.a:b,L,0x0", true)),
            (designator(2, 1, b"IET     00010001"), ("t10 IET     00010001", false)),
            (
                [designator(2, 1, b"IET 1"), designator(1, 2, &[1; 8]), designator(1, 3, &local)]
                    .concat(),
                ("eui 0101010101010101", true),
            ),
            // Of the target port; nothing; cut off.
            (designator(1, 0x13, &registered), ("serial 1", false)),
            (designator(1, 3, &[0; 8]), ("serial 1", false)),
            (designator(2, 1, b"????"), ("serial 1", false)),
            (designator(2, 1, &[0xff; 8]), ("serial 1", false)),
            (designator(1, 3, &registered)[..11].to_vec(), ("serial 1", false)),
        ] {
            let info = info(&[(page::SERIAL, b" 1 "), (page::IDENTIFICATION, &list)]);
            assert_eq!((info.identity.as_str(), info.is_global), expected, "{list:02x?}");
        }
    }

    #[test]
    fn empty_serial_number_is_no_identity() {
        for serial in [&b""[..], b"    ", &[0; 4]] {
            assert_eq!(info(&[(page::SERIAL, serial)]).identity, "");
        }
    }

    #[test]
    fn short_page_of_limits_has_the_first_ones() {
        // SBC-2: 16 bytes, with the maximum and the optimal transfer length.
        let old = [0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 0, 64];
        assert_eq!(info(&[(page::LIMITS, &old)]).max_transfer, 256);
        assert_eq!(info(&[(page::LIMITS, &old[..8])]).max_transfer, 256);
        assert_eq!(info(&[(page::LIMITS, &[])]).max_transfer, 0);
    }

    #[test]
    fn old_disk_is_used_with_short_commands() {
        let mut probe = Probe::default();
        let done = |status, key, data: &[u8]| {
            let memory = export::Pool::new(4096).open();
            let mut buffer = memory.take(4096).unwrap();
            buffer.bytes_mut()[..data.len()].copy_from_slice(data);
            let sense = crate::host::Sense { key, code: (0x20, 0), deferred: false };
            Done { tag: 0, status, sense, len: data.len(), buffer: Some(buffer) }
        };
        probe.complete(&done(0, 0, &[0; 36])).unwrap();
        assert_eq!(probe.next_command().unwrap()[0], opcode::SERVICE_ACTION_IN_16);
        probe.complete(&done(2, 5, &[])).unwrap();
        assert_eq!(probe.next_command().unwrap()[0], opcode::READ_CAPACITY_10);
        probe.complete(&done(0, 0, &[0xff, 0xff, 0xff, 0xfe, 0, 0, 2, 0])).unwrap();
        let info = probe.finish();
        assert_eq!((info.bytes, info.block), ((u64::from(u32::MAX)) << 9, 512));
        assert_eq!(info.max_transfer, 65535);
        let read = [0x28, 0, 0xff, 0xff, 0xff, 0xfe, 0, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(info.read(0xffff_fffe, 0x1234), read);
        assert_eq!(info.write(1, 2)[..9], [0x2a, 0, 0, 0, 0, 1, 0, 0, 2]);
    }

    /// Returns the end of a command whose answer is `data`.
    fn answered(status: u8, key: u8, code: (u8, u8), data: &[u8]) -> Done {
        let mut buffer = export::Pool::new(4096).open().take(4096).unwrap();
        buffer.bytes_mut()[..data.len()].copy_from_slice(data);
        let sense = crate::host::Sense { key, code, deferred: false };
        Done { tag: 0, status, sense, len: data.len(), buffer: Some(buffer) }
    }

    #[test]
    fn recovered_error_comes_with_an_answer() {
        let mut probe = Probe::default();
        probe.complete(&answered(2, 1, (0x17, 0), &[0; 36])).unwrap();
        let capacity = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0][..], &[0; 20]].concat();
        probe.complete(&answered(2, 1, (0x17, 0), &capacity)).unwrap();
        assert_eq!((probe.finish().bytes), 1024);
    }

    #[test]
    fn disk_without_medium_or_in_flux_is_refused_at_any_question() {
        for at in 0..QUESTIONS.len() {
            let mut probe = Probe { at, ..Probe::default() };
            let no_medium = probe.complete(&answered(2, 2, (0x3a, 0), &[]));
            assert_eq!(no_medium, Err(ProbeError::NoMedium), "{at}");
            let attention = answered(2, 6, (0x29, 0), &[]);
            for _ in 0..MAX_ATTENTIONS {
                assert_eq!((probe.complete(&attention), probe.at), (Ok(()), at));
            }
            assert_eq!(probe.complete(&attention), Err(ProbeError::Changing), "{at}");
        }
    }

    #[test]
    fn disk_beyond_short_commands_has_no_capacity() {
        let mut probe = Probe { at: 1, ..Probe::default() };
        probe.info.is_short = true;
        let data = [0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0];
        assert_eq!(probe.capacity(&data), Err(ProbeError::NoCapacity));
    }
}
