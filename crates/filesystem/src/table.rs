//! Tables of clusters, and the chains in them: of FAT (FAT specification §4) and exFAT (§4.1).

use std::io;
use std::ops::Range;

use linux::medium::ReadAt;

use crate::node::{Cursor, Entry, Extent, FileError, Place, Refusal};
use crate::window::{le16, le32, read};

/// Bytes of a table per read, from a multiple of that; all of one with entries of 12 bits.
const WINDOW: u64 = 8 << 10;
/// Reads of a table, entries and extents per call, so that a call reads a bounded part of the disk.
const MAX_WINDOWS: u32 = 6;
const MAX_LINKS: u64 = 4096;
const MAX_EXTENTS: usize = 64;
/// Bytes of a directory per call.
const PIECE: u64 = 16 << 10;

/// Bits of an entry of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Twelve,
    Sixteen,
    /// 28 bits in 32.
    ThirtyTwo,
    /// 32 bits of exFAT.
    Exfat,
}

impl Width {
    /// Returns the bytes of that many entries.
    pub(crate) fn bytes(self, entries: u64) -> u64 {
        match self {
            Self::Twelve => (entries * 3).div_ceil(2),
            Self::Sixteen => entries * 2,
            Self::ThirtyTwo | Self::Exfat => entries * 4,
        }
    }

    /// Returns how many whole entries that many bytes have.
    pub(crate) fn entries(self, bytes: u64) -> u64 {
        match self {
            Self::Twelve => bytes * 2 / 3,
            Self::Sixteen => bytes / 2,
            Self::ThirtyTwo | Self::Exfat => bytes / 4,
        }
    }

    /// Returns an entry of a table (§4).
    pub(crate) fn entry(self, table: &[u8], number: u64) -> Option<u32> {
        let number = usize::try_from(number).ok()?;
        match self {
            Self::Twelve => {
                let pair = u32::from(le16(table, number.checked_mul(3)? / 2)?);
                Some(if number % 2 == 0 { pair & 0xfff } else { pair >> 4 })
            }
            Self::Sixteen => le16(table, number.checked_mul(2)?).map(u32::from),
            Self::ThirtyTwo => le32(table, number.checked_mul(4)?).map(|entry| entry & 0x0fff_ffff),
            Self::Exfat => le32(table, number.checked_mul(4)?),
        }
    }

    /// Returns the first of the values that end a chain.
    fn end(self) -> u32 {
        match self {
            Self::Twelve => 0xff8,
            Self::Sixteen => 0xfff8,
            Self::ThirtyTwo => 0x0fff_fff8,
            Self::Exfat => 0xffff_fff8,
        }
    }
}

/// What follows a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Next(u32),
    End,
    /// Free, bad, or no cluster of the volume.
    Broken,
}

/// The clusters of a volume, and their table.
#[derive(Debug, Clone)]
pub(crate) struct Chains {
    pub(crate) width: Width,
    /// Position of the table.
    pub(crate) table: u64,
    /// Position of the first cluster, which has the number 2.
    pub(crate) data: u64,
    /// Size of a cluster in bytes.
    pub(crate) cluster: u64,
    pub(crate) clusters: u64,
}

/// The clusters of a file or directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contents {
    pub(crate) first: u32,
    /// Whether they are contiguous, without entries in the table.
    pub(crate) is_contiguous: bool,
    /// Length in bytes; of a directory at most.
    pub(crate) bytes: u64,
    /// Bytes from here on are zeros.
    pub(crate) valid: u64,
}

impl Contents {
    /// Returns the clusters of an entry of `bytes` bytes.
    ///
    /// # Errors
    /// Fails if it has none.
    pub(crate) fn of(entry: &Entry, bytes: u64) -> Result<Self, Refusal> {
        let Place::Clusters { first, is_contiguous, valid } = entry.place else {
            return Err(Refusal::NoContents);
        };
        Ok(Self { first, is_contiguous, bytes, valid })
    }
}

/// Parses a part of a directory. Returns its entries, how many bytes they take, and whether the last one is among them.
pub(crate) type ParseEntries = fn(&[u8]) -> (Vec<Entry>, usize, bool);

/// The part of a table that was read last.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
    reads: u32,
}

impl Chains {
    /// Returns the position of a cluster by its number, if there is such a one.
    pub(crate) fn place(&self, cluster: u32) -> Option<u64> {
        let from_zero = u64::from(cluster).checked_sub(2)?;
        (from_zero < self.clusters).then(|| self.bytes(&(from_zero..from_zero)).start)
    }

    /// Returns the position of clusters, counted from 0.
    pub(crate) fn bytes(&self, clusters: &Range<u64>) -> Range<u64> {
        let at = |cluster: u64| self.data.saturating_add(cluster.saturating_mul(self.cluster));
        at(clusters.start)..at(clusters.end)
    }

    /// Returns what follows a cluster in its chain.
    pub(crate) fn link<R: ReadAt + ?Sized>(&self, disk: &R, cluster: u32) -> io::Result<Link> {
        self.link_by(disk, cluster, &mut Window::default())
    }

    fn link_by<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        cluster: u32,
        window: &mut Window,
    ) -> io::Result<Link> {
        let all = self.width.bytes(self.clusters + 2);
        let offset = match self.width {
            Width::Twelve => 0,
            width => width.bytes(cluster.into()),
        };
        let start = offset - offset % WINDOW;
        if window.bytes.is_empty() || window.start != start {
            let len = WINDOW.min(all.saturating_sub(start));
            let bytes = read(disk, self.table.saturating_add(start), len)?.unwrap_or_default();
            *window = Window { start, bytes, reads: window.reads + 1 };
        }
        let number = u64::from(cluster) - self.width.entries(start);
        let entry = self.width.entry(&window.bytes, number);
        Ok(match entry {
            Some(next) if next >= self.width.end() => Link::End,
            Some(next) if self.place(next).is_some() => Link::Next(next),
            _ => Link::Broken,
        })
    }

    /// Returns extents of a file from `from` on, at least one unless that is its end, and where they end.
    ///
    /// # Errors
    /// The disk cannot be read, or the chain ends before the file.
    pub(crate) fn extents<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        file: &Contents,
        from: &Cursor,
    ) -> Result<(Vec<Extent>, Cursor), FileError> {
        let (mut at, mut extents) = (from.clone(), Vec::new());
        if at.offset == 0 {
            at.cluster = file.first;
        }
        let valid = file.valid.min(file.bytes);
        let (mut window, mut links) = (Window::default(), 0);
        while at.offset < valid
            && extents.len() < MAX_EXTENTS
            && window.reads < MAX_WINDOWS
            && links < MAX_LINKS
        {
            let left = valid - at.offset;
            let most = left.div_ceil(self.cluster);
            let start = self.place(at.cluster).ok_or(Refusal::Damaged)?;
            let (count, link) = match file.is_contiguous {
                true if u64::from(at.cluster) - 2 + most > self.clusters => {
                    return Err(Refusal::Damaged.into());
                }
                true => (most, Link::End),
                false => self.run(disk, at.cluster, most.min(MAX_LINKS), &mut window)?,
            };
            let len = count.saturating_mul(self.cluster).min(left);
            extents.push(Extent::Disk(start..start + len));
            at.offset += len;
            links += count;
            match link {
                Link::Next(next) => at.cluster = next,
                Link::End | Link::Broken if at.offset < valid => {
                    return Err(Refusal::Damaged.into());
                }
                Link::End | Link::Broken => {}
            }
        }
        if at.offset >= valid && at.offset < file.bytes {
            extents.push(Extent::Zeros(file.bytes - at.offset));
            at.offset = file.bytes;
        }
        Ok((extents, at))
    }

    /// Returns how many clusters, `most` at most, are contiguous in a chain from `first` on, and what follows the
    /// last one.
    fn run<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        first: u32,
        most: u64,
        window: &mut Window,
    ) -> io::Result<(u64, Link)> {
        let (mut count, mut last) = (1, first);
        loop {
            let link = self.link_by(disk, last, window)?;
            if count >= most || link != Link::Next(last.saturating_add(1)) {
                return Ok((count, link));
            }
            (count, last) = (count + 1, last + 1);
        }
    }

    /// Returns entries of a directory from `from` on, and where the next ones are; `None` at the end.
    ///
    /// # Errors
    /// The disk cannot be read, or the directory has clusters that the volume does not have.
    pub(crate) fn entries<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        directory: &Contents,
        from: &Cursor,
        parse: ParseEntries,
    ) -> Result<(Vec<Entry>, Option<Cursor>), FileError> {
        if directory.bytes == 0 {
            return Ok((Vec::new(), None));
        }
        let (piece, next) = self.piece(disk, directory, from)?;
        let bytes = [&from.carry[..], &piece].concat();
        let (entries, used, is_end) = parse(&bytes);
        let carry = bytes.get(used..).unwrap_or_default().to_vec();
        Ok((entries, next.filter(|_| !is_end).map(|next| Cursor { carry, ..next })))
    }

    /// Reads a piece of a directory from `from` on. Returns where the next one begins; `None` at the end.
    fn piece<R: ReadAt + ?Sized>(
        &self,
        disk: &R,
        directory: &Contents,
        from: &Cursor,
    ) -> Result<(Vec<u8>, Option<Cursor>), FileError> {
        let mut at = Cursor { carry: Vec::new(), ..from.clone() };
        if at.offset == 0 {
            at.cluster = directory.first;
        }
        let within = at.offset % self.cluster;
        let left = directory.bytes.saturating_sub(at.offset).min(self.cluster - within);
        let start = self.place(at.cluster).ok_or(Refusal::Damaged)?;
        let bytes = read(disk, start + within, left.min(PIECE))?.ok_or(Refusal::Damaged)?;
        at.offset += bytes.len() as u64;
        if at.offset >= directory.bytes || bytes.is_empty() {
            return Ok((bytes, None));
        }
        if at.offset.is_multiple_of(self.cluster) {
            let link = match directory.is_contiguous {
                true => Link::Next(at.cluster.saturating_add(1)),
                false => self.link(disk, at.cluster)?,
            };
            match link {
                Link::Next(next) => at.cluster = next,
                Link::End => return Ok((bytes, None)),
                Link::Broken => return Err(Refusal::Damaged.into()),
            }
        }
        Ok((bytes, Some(at)))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn entries_of_twelve_bits_are_in_pairs() {
        let table = [0xf8, 0xff, 0xff, 0x23, 0x61, 0x45];
        let entries: Vec<_> = (0..5).map(|at| Width::Twelve.entry(&table, at)).collect();
        assert_eq!(entries, [Some(0xff8), Some(0xfff), Some(0x123), Some(0x456), None]);
        assert_eq!((Width::Twelve.bytes(3), Width::Twelve.entries(6)), (5, 4));
    }

    /// A table with entries of 16 bits at 0, and 8 clusters of 512 bytes from 512 on.
    fn chains(entries: &[u16]) -> (Chains, Vec<u8>) {
        let mut disk: Vec<u8> =
            [0xfff8, 0xffff].iter().chain(entries).flat_map(|it| it.to_le_bytes()).collect();
        disk.resize(512 * 9, 0);
        (Chains { width: Width::Sixteen, table: 0, data: 512, cluster: 512, clusters: 8 }, disk)
    }

    fn all(entries: &[u16], file: &Contents) -> Result<Vec<Extent>, FileError> {
        let (chains, disk) = chains(entries);
        chains.extents(&disk[..], file, &Cursor::default()).map(|(extents, _)| extents)
    }

    #[test]
    fn contiguous_clusters_are_one_extent() {
        let file = Contents { first: 2, is_contiguous: false, bytes: 1900, valid: 1900 };
        let extents = all(&[3, 6, 0, 0, 7, 0xffff], &file).unwrap();
        assert_eq!(extents, [Extent::Disk(512..1536), Extent::Disk(2560..3436)]);
        let file = Contents { is_contiguous: true, valid: 600, ..file };
        assert_eq!(all(&[], &file).unwrap(), [Extent::Disk(512..1112), Extent::Zeros(1300)]);
    }

    #[test]
    fn broken_chains_are_damaged() {
        let file = Contents { first: 2, is_contiguous: false, bytes: 1900, valid: 1900 };
        for entries in [&[3, 0][..], &[3, 0xffff], &[3, 0xfff7], &[3, 100], &[3, 1]] {
            let error = all(entries, &file).unwrap_err();
            assert!(matches!(error, FileError::Refused(Refusal::Damaged)), "{entries:?}");
        }
        let file = Contents { first: 7, is_contiguous: true, ..file };
        assert!(all(&[], &file).is_err());
    }
}
