//! Copies what a host has written under an overlay to a file.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use daemon::lend::{Writes, named};
use daemon::overlay::{OverlayFolder, StateFiles};
use export::{Base, BlockMap, Fault, Source, Stored};
use failure::Failure;
use filesystem::{BackingFile, Container, Qcow2Writer};
use linux::tree::Tree;

use super::{
    PIECE, Run, base_disk, buffer, choose, open_disk, read_exact, refuse_interrupted, runs,
    unreadable, written,
};
use crate::options::overlay::Export;

/// Bytes of a cluster of a qcow2 image.
const CLUSTER: u64 = Qcow2Writer::<File>::CLUSTER;

/// Copies what a host has written to a file.
///
/// # Errors
/// Fails with a sentence.
pub(super) fn export(options: &Export) -> Result<(), Failure> {
    let folder = OverlayFolder::open(&options.folder)?;
    let states = written(&folder)?;
    let state = choose(&states, options.host.as_deref())?;
    let cannot = |error: io::Error| {
        Failure::new(format!("{} cannot be written: {error}", options.file.display()))
    };
    if let Some(disk) = &options.qcow2 {
        return export_qcow2(&folder, state, disk, &options.file);
    }
    let new_file = NewFile::create(&options.file)?;
    let mut map_path = options.file.as_os_str().to_owned();
    map_path.push(".map");
    let new_map = NewFile::create(Path::new(&map_path))?;
    let (file, mut map_file) = (&new_file.file, &new_map.file);
    let record = folder.record();
    file.set_len(record.bytes).map_err(cannot)?;
    let mut lines = String::from(
        "# Mapfile. Blocks that a host has written under an overlay\n# current_pos  current_status\n\
         0x00000000     +\n#      pos        size  status\n",
    );
    let map = state.block_map(record).map_err(|error| unreadable(&folder, &error))?;
    for Run { source, at, len } in runs(&map, record.block, PIECE) {
        if source == Source::Overlay {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            let read = state.data.read_exact_at(&mut bytes, at);
            read.map_err(|error| unreadable(&folder, &error))?;
            file.write_all_at(&bytes, at).map_err(cannot)?;
        }
    }
    for Run { source, at, len } in runs(&map, record.block, u64::MAX) {
        let status = if source == Source::Base { '?' } else { '+' };
        lines.push_str(&format!("0x{at:08X}  0x{len:08X}  {status}\n"));
    }
    map_file.write_all(lines.as_bytes()).map_err(cannot)?;
    file.sync_all().and_then(|()| map_file.sync_all()).map_err(cannot)?;
    new_file.keep();
    new_map.keep();
    Ok(())
}

/// A file that did not exist before. It is removed when this is dropped, unless it is kept.
struct NewFile<'a> {
    path: &'a Path,
    file: File,
    is_kept: bool,
}

impl<'a> NewFile<'a> {
    /// Creates the file.
    ///
    /// # Errors
    /// Fails with a sentence, also if it exists.
    fn create(path: &'a Path) -> Result<Self, Failure> {
        let mut new = OpenOptions::new();
        let new = new.write(true).create_new(true).mode(0o600).open(path);
        let file = new.map_err(|error| {
            Failure::new(format!("{} cannot be written: {error}", path.display()))
        })?;
        Ok(Self { path, file, is_kept: false })
    }

    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

/// Makes a qcow2 image of what a host sees, whose backing file is the disk.
fn export_qcow2(
    folder: &OverlayFolder,
    state: &StateFiles,
    disk: &Path,
    to: &Path,
) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new(format!("{} cannot be written: {error}", to.display()));
    let container = folder.record().container();
    let lent = open_disk(disk, Writes::Refused, container)?;
    refuse_interrupted(folder)?;
    engine::prepare(&lent.export).map_err(|fault: Fault| {
        Failure::new(format!("{} cannot be read: {fault}", disk.display()))
    })?;
    folder.check(&base_disk(&lent, disk, container, &folder.record().partitions()))?;
    let map = state.block_map(folder.record()).map_err(|error| unreadable(folder, &error))?;
    // Links are kept: /dev/disk/by-id names the same disk after a restart, and what it leads to may not.
    let backing = std::path::absolute(named(&Tree::machine(), disk)).map_err(failed)?;
    let backing = backing.to_str().ok_or_else(|| {
        Failure::new(format!("{} is not named in UTF-8, as qcow2 needs it", backing.display()))
    })?;
    let (block, bytes) = (u64::from(folder.record().block), folder.record().bytes);
    let base = lent.export.backing().base();
    let changed = Changed { state, map: &map, base, block, bytes };
    let format = container.and_then(Container::qemu_name).unwrap_or("raw");
    let backing = BackingFile { path: backing, format };
    let new_file = NewFile::create(to)?;
    let image = changed.write(BufWriter::new(&new_file.file), backing).map_err(failed)?;
    let image = image.into_inner().map_err(|error| failed(error.into_error()))?;
    image.sync_all().map_err(failed)?;
    new_file.keep();
    Ok(())
}

/// The disk as a host has changed it.
struct Changed<'a> {
    state: &'a StateFiles,
    map: &'a BlockMap,
    base: &'a Base,
    block: u64,
    bytes: u64,
}

impl Changed<'_> {
    /// Writes the image, whose clusters are those that have changed.
    fn write<'f>(
        &self,
        to: BufWriter<&'f File>,
        backing: BackingFile<'_>,
    ) -> io::Result<BufWriter<&'f File>> {
        let mut image = Qcow2Writer::new(to, self.bytes, Some(backing))?;
        let (mut buffer, mut at) = (buffer()?, 0);
        while at < self.bytes {
            let left = self.bytes - at;
            let run = self.run(at, self.bytes);
            // At the end of the disk a part of a cluster is all of it.
            let clusters = if run.len == left { left.div_ceil(CLUSTER) } else { run.len / CLUSTER };
            let clusters = match run.source {
                Source::Base if clusters > 0 => clusters,
                Source::Zeros if clusters > 0 => {
                    (0..clusters).try_for_each(|next| image.zeros(at / CLUSTER + next))?;
                    clusters
                }
                _ => {
                    let len = usize::try_from(left.min(CLUSTER)).unwrap_or(0);
                    let bytes = buffer.bytes_mut().get_mut(..len).unwrap_or_default();
                    self.read(at, bytes)?;
                    image.data(at / CLUSTER, bytes)?;
                    1
                }
            };
            at = at.saturating_add(clusters.saturating_mul(CLUSTER));
        }
        image.finish()
    }

    /// Returns the run of blocks of one source from the byte `at` on, up to `end`.
    fn run(&self, at: u64, end: u64) -> Run {
        let (source, blocks) = self.map.run(at / self.block, end.div_ceil(self.block));
        Run { source, at, len: blocks.saturating_mul(self.block).min(end - at) }
    }

    fn read(&self, start: u64, into: &mut [u8]) -> io::Result<()> {
        let end = start + into.len() as u64;
        let (mut rest, mut at) = (into, start);
        while at < end {
            let run = self.run(at, end);
            let len = usize::try_from(run.len).unwrap_or(0).min(rest.len());
            let (piece, after) = rest.split_at_mut(len);
            match run.source {
                Source::Base => read_base(self.base, at, piece)?,
                Source::Overlay => self.state.data.read_exact_at(piece, at)?,
                Source::Zeros => piece.fill(0),
            }
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (rest, at) = (after, at + len as u64);
        }
        Ok(())
    }
}

/// Reads a range of the disk under an overlay.
fn read_base(base: &Base, mut at: u64, mut into: &mut [u8]) -> io::Result<()> {
    let disk = match base {
        Base::Raw(disk) => return read_exact(disk.as_fd(), at, into),
        Base::Virtual(disk) => disk,
        // Not kept in files, of which this is an export.
        Base::Rescued(_) => return Err(io::ErrorKind::Unsupported.into()),
    };
    while !into.is_empty() {
        let (stored, run) = disk.find(at, at.saturating_add(into.len() as u64));
        let len = usize::try_from(run).map_or(into.len(), |run| run.min(into.len()));
        let (piece, rest) = into.split_at_mut(len);
        match stored {
            Stored::Zeros => piece.fill(0),
            Stored::Image(offset) => read_exact(disk.image().as_fd(), offset, piece)?,
            Stored::Index(offset) => read_exact(disk.index().as_fd(), offset, piece)?,
        }
        (into, at) = (rest, at.saturating_add(run));
    }
    Ok(())
}
