//! VDI (VirtualBox, include/VBox/vd and Storage/VDICore.h): version 1.1, fixed and dynamic images. Snapshots,
//! which need their parent, are refused.

use std::io;

use linux::medium::ReadAt;

use super::{Place, Run, TakeRun, Unreadable, VirtualDisk, cut_off, damaged, le32, le64, table};
use crate::window;

const HEADER: u64 = 512;
const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
/// The kinds of images: dynamic, fixed, and those that need a parent.
const WHOLE_KINDS: [u32; 2] = [1, 2];
/// Blocks without data: never written, and discarded.
const UNALLOCATED: u32 = u32::MAX;
const DISCARDED: u32 = u32::MAX - 1;
/// Limits of the size of a block.
const BLOCK: std::ops::RangeInclusive<u64> = 1 << 12..=1 << 28;

/// A VDI image.
pub(super) struct Vdi {
    bytes: u64,
    block: u64,
    /// Offset of the first block.
    data: u64,
    /// The number of each block in the file.
    table: Vec<u8>,
}

impl Vdi {
    pub(super) fn open(file: &dyn ReadAt) -> io::Result<Self> {
        let header = window::read(file, 0, HEADER)?.ok_or(Unreadable::Header)?;
        if le32(&header, 64) != SIGNATURE {
            return Err(Unreadable::Header.into());
        }
        if le32(&header, 68) != VERSION {
            return Err(Unreadable::Version(le32(&header, 68)).into());
        }
        let has_parent = header.get(424..440).is_some_and(|link| link.iter().any(|it| *it != 0));
        if !WHOLE_KINDS.contains(&le32(&header, 76)) || has_parent {
            return Err(Unreadable::Parent.into());
        }
        // What precedes each block.
        let extra = le32(&header, 380);
        if extra != 0 {
            return Err(Unreadable::Feature(extra.into()).into());
        }
        let (bytes, block) = (le64(&header, 368), u64::from(le32(&header, 376)));
        let count = u64::from(le32(&header, 384));
        let is_known = block.is_power_of_two() && BLOCK.contains(&block);
        if !is_known || count < bytes.div_ceil(block) || i64::try_from(bytes).is_err() {
            return Err(Unreadable::Header.into());
        }
        let table = table(file, le32(&header, 340).into(), bytes.div_ceil(block) * 4)?;
        Ok(Self { bytes, block, data: le32(&header, 344).into(), table })
    }
}

impl VirtualDisk for Vdi {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn runs(&self, each: TakeRun<'_>) -> io::Result<()> {
        let mut at = 0;
        for entry in self.table.chunks_exact(4) {
            let len = self.block.min(self.bytes - at);
            let place = match le32(entry, 0) {
                UNALLOCATED | DISCARDED => Place::Zeros,
                number => {
                    let offset = u64::from(number).checked_mul(self.block);
                    Place::File(
                        offset.and_then(|it| it.checked_add(self.data)).ok_or_else(damaged)?,
                    )
                }
            };
            each(Run { len, place })?;
            at += len;
        }
        if at == self.bytes { Ok(()) } else { Err(cut_off()) }
    }
}
