//! The log of XFS: whether it ends with the record of an unmount, so that nothing has to be replayed.

use std::io;

use linux::medium::ReadAt;

use super::Layout;
use crate::window::{be32, read};

/// Bytes of a basic block, in which the log is counted.
const BLOCK: u64 = 512;
const MAGIC: u32 = 0xfeed_babe;
/// A header is longer by one block for each of these bytes beyond the first.
const CYCLES: u32 = 32 << 10;
/// The largest record is 256 KiB, and a header of up to eight blocks precedes it.
const MAX_RECORD: u64 = (256 << 10) / BLOCK + 8;
/// Flag of the operation of an unmount.
const UNMOUNT: u8 = 0x20;

/// Returns whether the last record of the log is that of an unmount. What is not certain is not clean.
pub(super) fn is_clean<R: ReadAt + ?Sized>(disk: &R, layout: &Layout) -> io::Result<bool> {
    let log = Log { disk, layout, blocks: (layout.log.end - layout.log.start) / BLOCK };
    let Some(head) = log.head()? else { return Ok(false) };
    for back in 1..=MAX_RECORD.min(log.blocks) {
        // Records go on at the beginning.
        let at = (head + log.blocks - back) % log.blocks;
        let Some(block) = log.block(at)? else { return Ok(false) };
        if be32(&block, 0) == Some(MAGIC) {
            return log.is_unmount(at, &block, head);
        }
    }
    Ok(false)
}

struct Log<'a, R: ?Sized> {
    disk: &'a R,
    layout: &'a Layout,
    /// Its length in basic blocks.
    blocks: u64,
}

impl<R: ReadAt + ?Sized> Log<'_, R> {
    fn block(&self, at: u64) -> io::Result<Option<Vec<u8>>> {
        read(self.disk, self.layout.log.start + at * BLOCK, BLOCK)
    }

    /// The cycle in which a block was written: in its first word, or behind that in a header.
    fn cycle(&self, at: u64) -> io::Result<Option<u32>> {
        let block = self.block(at)?;
        Ok(block.and_then(|block| match be32(&block, 0)? {
            MAGIC => be32(&block, 4),
            cycle => Some(cycle),
        }))
    }

    /// Finds the block behind the last one that was written: the first one of the cycle before.
    fn head(&self) -> io::Result<Option<u64>> {
        let Some(last) = self.blocks.checked_sub(1) else { return Ok(None) };
        let (Some(first_cycle), Some(last_cycle)) = (self.cycle(0)?, self.cycle(last)?) else {
            return Ok(None);
        };
        if first_cycle == last_cycle {
            return Ok(Some(0));
        }
        let (mut new, mut old) = (0, last);
        while old - new > 1 {
            let middle = new + (old - new) / 2;
            match self.cycle(middle)? {
                Some(cycle) if cycle == last_cycle => old = middle,
                Some(_) => new = middle,
                None => return Ok(None),
            }
        }
        Ok(Some(old))
    }

    /// Returns whether the record at this block ends at the head, and is that of an unmount.
    fn is_unmount(&self, at: u64, header: &[u8], head: u64) -> io::Result<bool> {
        let field = |offset| be32(header, offset).unwrap_or(0);
        let (version, length, operations, size) = (field(8), field(12), field(40), field(320));
        let is_long = version & 2 != 0 && size > CYCLES;
        let headers = if is_long { u64::from(size.div_ceil(CYCLES)) } else { 1 };
        let behind = at + headers + u64::from(length).div_ceil(BLOCK);
        let uuid = header.get(304..320);
        let is_own = self.layout.uuids.iter().any(|own| uuid == Some(&own[..]));
        if operations != 1 || behind % self.blocks != head || !is_own {
            return Ok(false);
        }
        // The header of the operation: its first word is replaced by the cycle.
        let operation = self.block((at + headers) % self.blocks)?;
        let flags = operation.and_then(|block| block.get(9).copied());
        Ok(flags.is_some_and(|flags| flags & UNMOUNT != 0))
    }
}
