//! qcow2 (QEMU, docs/interop/qcow2.txt), versions 2 and 3, with zero and compressed clusters. Images with a
//! backing file or an external data file are refused.

mod writer;

use std::io::{self, Read};

use linux::medium::ReadAt;
use zstd::stream::read::Decoder;

use super::{
    Place, Run, TakeRun, Unreadable, VirtualDisk, be32, be64, cut_off, damaged, inflate,
    read_packed, table,
};
use crate::window;
pub use writer::{BackingFile, Qcow2Writer};

/// Mask of the cluster offset in a table entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Reserved bits of L1 and L2 entries.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Limits of QEMU: the cluster size as a power of two, and the size of the L1 table in bytes.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const L1_MOST: u64 = 32 << 20;
/// Unit of the length of a compressed cluster, in bytes.
const SECTOR: u64 = 512;
/// Length of a version 3 header without additional fields, and with the compression type.
const HEADER: u64 = 104;

mod incompatible {
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
}

/// A qcow2 image.
pub(super) struct Qcow2<'a> {
    file: &'a dyn ReadAt,
    bits: u32,
    bytes: u64,
    is_zstd: bool,
    /// Whether an L2 entry can mark a cluster of zeros (version 3).
    has_zeros: bool,
    l1: Vec<u64>,
}

impl<'a> Qcow2<'a> {
    pub(super) fn open(file: &'a dyn ReadAt) -> io::Result<Self> {
        let head = window::read(file, 0, 72)?.ok_or(Unreadable::Header)?;
        let version = be32(&head, 4);
        if !head.starts_with(b"QFI\xfb") {
            return Err(Unreadable::Header.into());
        }
        if !(2..=3).contains(&version) {
            return Err(Unreadable::Version(version).into());
        }
        if be64(&head, 8) != 0 {
            return Err(Unreadable::Parent.into());
        }
        if be32(&head, 32) != 0 {
            return Err(Unreadable::Encrypted.into());
        }
        let is_zstd = if version == 3 { features(file)? } else { false };
        let (bits, bytes) = (be32(&head, 20), be64(&head, 24));
        if !CLUSTER_BITS.contains(&bits) || i64::try_from(bytes).is_err() {
            return Err(Unreadable::Header.into());
        }
        let l1 = l1(file, &head, bits, bytes)?;
        Ok(Self { file, bits, bytes, is_zstd, has_zeros: version == 3, l1 })
    }

    fn cluster(&self) -> u64 {
        1 << self.bits
    }

    /// The L2 table of an L1 entry; `None` if it is unallocated.
    fn l2(&self, entry: u64) -> io::Result<Option<Vec<u8>>> {
        let offset = entry & OFFSET;
        if entry & L1_RESERVED != 0 || !offset.is_multiple_of(self.cluster()) {
            return Err(damaged());
        }
        if offset == 0 {
            return Ok(None);
        }
        window::read(self.file, offset, self.cluster())?.ok_or_else(cut_off).map(Some)
    }

    fn place(&self, entry: u64) -> io::Result<Place> {
        if entry & COMPRESSED != 0 {
            let bits = 62 - (self.bits - 8);
            let offset = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            let len = (sectors + 1) * SECTOR - offset % SECTOR;
            return Ok(Place::Packed { offset, len });
        }
        let offset = entry & OFFSET;
        let is_zero = self.has_zeros && entry & ZERO != 0;
        let reserved = entry & L2_RESERVED != 0 || (!self.has_zeros && entry & ZERO != 0);
        if reserved || !offset.is_multiple_of(self.cluster()) {
            return Err(damaged());
        }
        Ok(if is_zero || offset == 0 { Place::Zeros } else { Place::File(offset) })
    }
}

impl VirtualDisk for Qcow2<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn runs(&self, each: TakeRun<'_>) -> io::Result<()> {
        let span = self.cluster() << (self.bits - 3);
        let mut at = 0;
        for entry in &self.l1 {
            let end = self.bytes.min(at + span);
            let Some(table) = self.l2(*entry)? else {
                each(Run { len: end - at, place: Place::Zeros })?;
                at = end;
                continue;
            };
            for number in 0_usize.. {
                let len = self.cluster().min(end - at);
                if len == 0 {
                    break;
                }
                each(Run { len, place: self.place(be64(&table, number * 8))? })?;
                at += len;
            }
        }
        Ok(())
    }

    fn unpack(&self, offset: u64, packed: u64, len: usize) -> io::Result<Vec<u8>> {
        let packed = read_packed(self.file, offset, packed)?;
        let cluster = usize::try_from(self.cluster()).unwrap_or(0);
        let mut bytes = if self.is_zstd {
            let mut bytes = vec![0; cluster];
            let mut decoder = Decoder::with_buffer(&packed[..])?.single_frame();
            decoder.read_exact(&mut bytes).map_err(|_| damaged())?;
            bytes
        } else {
            inflate(&packed, cluster, false)?
        };
        bytes.truncate(len);
        Ok(bytes)
    }
}

/// Checks the features of version 3. Returns whether the compression is zstd.
fn features(file: &dyn ReadAt) -> io::Result<bool> {
    use incompatible::{COMPRESSION, CORRUPT, DATA_FILE, DIRTY};
    let head = window::read(file, 0, HEADER)?.ok_or(Unreadable::Header)?;
    let bits = be64(&head, 72);
    // Dirty is accepted: only reference counts may be wrong, which do not matter for reading.
    // Extended L2 entries are not supported.
    let unknown = bits & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION);
    if bits & DATA_FILE != 0 {
        return Err(Unreadable::DataFile.into());
    }
    if bits & CORRUPT != 0 {
        return Err(Unreadable::Corrupt.into());
    }
    if unknown != 0 {
        return Err(Unreadable::Feature(unknown).into());
    }
    if bits & COMPRESSION == 0 {
        return Ok(false);
    }
    let kind = window::read(file, HEADER, 1)?.ok_or(Unreadable::Header)?;
    match kind.first() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        other => Err(Unreadable::Compression(other.copied().unwrap_or(0)).into()),
    }
}

/// The L1 entries for the size of the disk.
fn l1(file: &dyn ReadAt, head: &[u8], bits: u32, bytes: u64) -> io::Result<Vec<u64>> {
    let needed = bytes.div_ceil(1 << (bits + bits - 3));
    let (entries, offset) = (u64::from(be32(head, 36)), be64(head, 40));
    let len = needed * 8;
    if entries < needed || len > L1_MOST || !offset.is_multiple_of(1 << bits) {
        return Err(Unreadable::Header.into());
    }
    let table = table(file, offset, len)?;
    Ok(table.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
}
