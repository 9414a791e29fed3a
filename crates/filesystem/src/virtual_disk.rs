//! Virtual disks: files of virtual machine monitors (qcow2, VHD, VHDX, VMDK, VDI) that hold the blocks of a
//! disk in pieces, as runs of bytes. No other file is opened: images that need a parent or another file are
//! refused, as are encrypted and corrupt ones. All numbers are from a possibly hostile file.

mod qcow2;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use std::fmt;
use std::io::{self, ErrorKind, Write};

use flate2::{Decompress, FlushDecompress};
use linux::medium::ReadAt;

use crate::{Container, window};
pub use qcow2::{BackingFile, Qcow2Writer};

/// Most bytes of a table of an image that are read.
const MAX_TABLE: u64 = 64 << 20;
/// Bytes per read of a table.
const TABLE_PIECE: u64 = 1 << 20;
/// Bytes per read of data.
const DATA_PIECE: u64 = 1 << 20;

/// Why an image cannot be read. Each message is a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Missing or inconsistent header.
    Header,
    /// Unsupported version.
    Version(u32),
    /// The image holds only the differences to another one.
    Parent,
    /// The data is in another file.
    DataFile,
    /// The image is encrypted.
    Encrypted,
    /// The image is marked as corrupt.
    Corrupt,
    /// The image has a log that must be applied first.
    Log,
    /// Unsupported variant of the format.
    Variant,
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
            Self::Parent => {
                f.write_str("it needs a backing file, and other files are never opened")
            }
            Self::DataFile => {
                f.write_str("its data is in another file, and other files are never opened")
            }
            Self::Encrypted => f.write_str("it is encrypted"),
            Self::Corrupt => f.write_str("it is marked as corrupt"),
            Self::Log => f.write_str("it was not closed, and its log has to be applied first"),
            Self::Variant => f.write_str("this variant of the format is not known"),
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

/// Where the bytes of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// They are zeros.
    Zeros,
    /// In the file from this offset on. The file may be shorter.
    File(u64),
    /// In this part of the file, compressed.
    Packed {
        /// Its offset.
        offset: u64,
        /// Its length in bytes; the file may end before.
        len: u64,
    },
}

/// Bytes of a virtual disk that are in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of bytes.
    pub len: u64,
    /// Where they are.
    pub place: Place,
}

/// Takes the runs of a virtual disk.
pub type TakeRun<'a> = &'a mut dyn FnMut(Run) -> io::Result<()>;

/// A virtual disk.
pub trait VirtualDisk {
    /// Bytes of the disk.
    fn bytes(&self) -> u64;

    /// Logical block size of the disk in bytes, if the format states it.
    fn block(&self) -> Option<u32> {
        None
    }

    /// Passes each run, from the first byte of the disk to its last. The file may be shorter than a run says.
    ///
    /// # Errors
    /// Fails if the image is damaged, if reading fails, or if `each` fails.
    fn runs(&self, each: TakeRun<'_>) -> io::Result<()>;

    /// Decompresses `len` bytes of a [`Place::Packed`].
    ///
    /// # Errors
    /// Fails if the image is damaged, or if reading fails.
    fn unpack(&self, _offset: u64, _packed: u64, _len: usize) -> io::Result<Vec<u8>> {
        Err(damaged())
    }

    /// Writes the disk from its first to its last byte.
    ///
    /// # Errors
    /// Fails if the image is damaged or truncated, or if reading or writing fails.
    fn write_to(&self, file: &dyn ReadAt, output: &mut dyn Write) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(DATA_PIECE).unwrap_or(0)];
        self.runs(&mut |run| {
            let mut done = 0;
            while done < run.len {
                let len = (run.len - done).min(DATA_PIECE);
                let here = usize::try_from(len).unwrap_or(0);
                match run.place {
                    Place::Zeros => output.write_all(zeros.get(..here).unwrap_or_default())?,
                    Place::File(offset) => {
                        let at = offset.checked_add(done).ok_or_else(damaged)?;
                        output.write_all(&window::read(file, at, len)?.ok_or_else(cut_off)?)?;
                    }
                    Place::Packed { offset, len: packed } => {
                        let all = usize::try_from(run.len).map_err(|_| damaged())?;
                        output.write_all(&self.unpack(offset, packed, all)?)?;
                        return Ok(());
                    }
                }
                done += len;
            }
            Ok(())
        })
    }
}

/// Opens an image of `file_bytes` bytes.
///
/// # Errors
/// Fails if the file cannot be read or is not supported ([`Unreadable`]).
pub fn open<'a>(
    container: Container,
    file: &'a dyn ReadAt,
    file_bytes: u64,
) -> io::Result<Box<dyn VirtualDisk + 'a>> {
    Ok(match container {
        Container::Qcow2 => Box::new(qcow2::Qcow2::open(file)?),
        Container::Vhd => Box::new(vhd::Vhd::open(file, file_bytes)?),
        Container::Vhdx => Box::new(vhdx::Vhdx::open(file)?),
        Container::Vmdk => Box::new(vmdk::Vmdk::open(file, file_bytes)?),
        Container::Vdi => Box::new(vdi::Vdi::open(file)?),
        _ => return Err(ErrorKind::Unsupported.into()),
    })
}

/// Reads a table of an image.
fn table(file: &dyn ReadAt, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    if len > MAX_TABLE {
        return Err(Unreadable::Header.into());
    }
    let mut table = Vec::new();
    let mut at = 0;
    while at < len {
        let offset = offset.checked_add(at).ok_or(Unreadable::Header)?;
        let piece = window::read(file, offset, (len - at).min(TABLE_PIECE))?;
        table.extend(piece.ok_or_else(cut_off)?);
        at += TABLE_PIECE;
    }
    Ok(table)
}

/// Reads bytes of which the last may be beyond the end of the file.
fn read_packed(file: &dyn ReadAt, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut packed = vec![0; usize::try_from(len).unwrap_or(0)];
    let mut filled = 0;
    while let Some(rest) = packed.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(filled as u64))? {
            0 => break,
            read => filled += read,
        }
    }
    packed.truncate(filled);
    Ok(packed)
}

/// Decompresses deflate data to exactly `len` bytes; `has_header` is a zlib header (RFC 1950).
fn inflate(packed: &[u8], len: usize, has_header: bool) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut inflate = Decompress::new(has_header);
    let _ = inflate.decompress(packed, &mut bytes, FlushDecompress::Finish);
    if inflate.total_out() != bytes.len() as u64 {
        return Err(damaged());
    }
    Ok(bytes)
}

fn damaged() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "its tables are damaged")
}

fn cut_off() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "it is cut off")
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or([0; N])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}
