//! Sequential reader of qcow2 images (QEMU, docs/interop/qcow2.txt), versions 2 and 3, with zero
//! and compressed clusters. Opens no other file: images with a backing file or an external data
//! file are refused, as are encrypted and corrupt ones. All numbers are from a possibly hostile
//! file.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

use flate2::{Decompress, FlushDecompress};
use linux::medium::ReadAt;
use zstd::stream::read::Decoder;

use crate::window;

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

/// Why an image cannot be read. Each message is a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Missing or inconsistent header.
    Header,
    /// Unsupported version.
    Version(u32),
    /// The image has a backing file.
    Backing,
    /// The image has an external data file.
    DataFile,
    /// The image is encrypted.
    Encrypted,
    /// The image is marked as corrupt.
    Corrupt,
    /// Unsupported feature bits.
    Feature(u64),
    /// Unsupported compression type.
    Compression(u8),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("its header is damaged"),
            Self::Version(version) => write!(f, "version {version} of the format is not known"),
            Self::Backing => {
                f.write_str("it needs a backing file, and other files are never opened")
            }
            Self::DataFile => {
                f.write_str("its data is in another file, and other files are never opened")
            }
            Self::Encrypted => f.write_str("it is encrypted"),
            Self::Corrupt => f.write_str("it is marked as corrupt"),
            Self::Feature(bits) => write!(f, "it has features that are not known ({bits:#x})"),
            Self::Compression(kind) => write!(f, "compression {kind} is not known"),
        }
    }
}

impl From<Unreadable> for io::Error {
    fn from(reason: Unreadable) -> Self {
        Self::new(ErrorKind::InvalidData, reason.to_string())
    }
}

/// A qcow2 image.
#[derive(Debug)]
pub struct Qcow2<'a, R: ?Sized> {
    file: &'a R,
    bits: u32,
    bytes: u64,
    is_zstd: bool,
    /// Whether an L2 entry can mark a cluster of zeros (version 3).
    has_zeros: bool,
    l1: Vec<u64>,
}

/// Location of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cluster {
    Zeros,
    At(u64),
    Compressed { offset: u64, len: u64 },
}

impl<'a, R: ReadAt + ?Sized> Qcow2<'a, R> {
    /// Opens an image.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not supported ([`Unreadable`]).
    pub fn open(file: &'a R) -> io::Result<Self> {
        let head = window::read(file, 0, 72)?.ok_or(Unreadable::Header)?;
        let version = be32(&head, 4);
        if !head.starts_with(b"QFI\xfb") {
            return Err(Unreadable::Header.into());
        }
        if !(2..=3).contains(&version) {
            return Err(Unreadable::Version(version).into());
        }
        if be64(&head, 8) != 0 {
            return Err(Unreadable::Backing.into());
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

    /// Bytes of the virtual disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn cluster(&self) -> u64 {
        1 << self.bits
    }

    /// Writes the virtual disk from its first to its last byte.
    ///
    /// # Errors
    /// Fails if the image is damaged or truncated, or if reading or writing fails.
    pub fn write_to(&self, output: &mut impl Write) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(self.cluster()).unwrap_or(0)];
        let span = self.cluster() << (self.bits - 3);
        let mut at = 0;
        for entry in &self.l1 {
            let end = self.bytes.min(at + span);
            let table = self.l2(*entry)?;
            for number in 0_usize.. {
                let len = self.cluster().min(end - at);
                if len == 0 {
                    break;
                }
                let entry = table.as_deref().map_or(0, |table| be64(table, number * 8));
                let len_here = usize::try_from(len).unwrap_or(0);
                match self.place(entry)? {
                    Cluster::Zeros => {
                        output.write_all(zeros.get(..len_here).unwrap_or_default())?
                    }
                    Cluster::At(offset) => {
                        let bytes = window::read(self.file, offset, len)?;
                        output.write_all(&bytes.ok_or_else(cut_off)?)?;
                    }
                    Cluster::Compressed { offset, len } => {
                        let bytes = self.decompressed(offset, len)?;
                        output.write_all(bytes.get(..len_here).unwrap_or_default())?;
                    }
                }
                at += len;
            }
        }
        Ok(())
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

    fn place(&self, entry: u64) -> io::Result<Cluster> {
        if entry & COMPRESSED != 0 {
            let bits = 62 - (self.bits - 8);
            let offset = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            let len = (sectors + 1) * SECTOR - offset % SECTOR;
            return Ok(Cluster::Compressed { offset, len });
        }
        let offset = entry & OFFSET;
        let is_zero = self.has_zeros && entry & ZERO != 0;
        let reserved = entry & L2_RESERVED != 0 || (!self.has_zeros && entry & ZERO != 0);
        if reserved || !offset.is_multiple_of(self.cluster()) {
            return Err(damaged());
        }
        Ok(if is_zero || offset == 0 { Cluster::Zeros } else { Cluster::At(offset) })
    }

    /// A decompressed cluster; its last sector may end beyond the end of the file.
    fn decompressed(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut packed = vec![0; usize::try_from(len).unwrap_or(0)];
        let mut filled = 0;
        while let Some(rest) = packed.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset.saturating_add(filled as u64))? {
                0 => break,
                read => filled += read,
            }
        }
        packed.truncate(filled);
        let mut bytes = vec![0; usize::try_from(self.cluster()).unwrap_or(0)];
        if self.is_zstd {
            let mut decoder = Decoder::with_buffer(&packed[..])?.single_frame();
            decoder.read_exact(&mut bytes).map_err(|_| damaged())?;
            return Ok(bytes);
        }
        let mut inflate = Decompress::new(false);
        let _ = inflate.decompress(&packed, &mut bytes, FlushDecompress::Finish);
        if inflate.total_out() != bytes.len() as u64 {
            return Err(damaged());
        }
        Ok(bytes)
    }
}

/// Checks the features of version 3. Returns whether the compression is zstd.
fn features<R: ReadAt + ?Sized>(file: &R) -> io::Result<bool> {
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
fn l1<R: ReadAt + ?Sized>(file: &R, head: &[u8], bits: u32, bytes: u64) -> io::Result<Vec<u64>> {
    let needed = bytes.div_ceil(1 << (bits + bits - 3));
    let (entries, offset) = (u64::from(be32(head, 36)), be64(head, 40));
    let len = needed * 8;
    if entries < needed || len > L1_MOST || !offset.is_multiple_of(1 << bits) {
        return Err(Unreadable::Header.into());
    }
    let mut table = Vec::new();
    for at in (0..len).step_by(1 << 20) {
        let offset = offset.checked_add(at).ok_or(Unreadable::Header)?;
        let piece = window::read(file, offset, (len - at).min(1 << 20))?.ok_or_else(cut_off)?;
        table.extend(piece.chunks_exact(8).map(|entry| be64(entry, 0)));
    }
    Ok(table)
}

fn damaged() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "its tables are damaged")
}

fn cut_off() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "it is cut off")
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
