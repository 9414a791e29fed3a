//! Copies into a qcow2 image: what is copied comes through a pipe, and a thread writes the clusters that are not zero.
//! At the end the image is read as any other one and compared by its hash.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, PipeReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use ::copy::{CopyError, Outcome, Report};
use failure::Failure;
use filesystem::virtual_disk::{self, Place};
use filesystem::{Container, Qcow2Writer};
use rustix::fs::{Advice, fadvise};

use super::data::Data;
use super::summary::refused;
use crate::options::copy::Copy;
use ::remote::uri::Locator;

/// Bytes of a cluster.
const CLUSTER: u64 = Qcow2Writer::<File>::CLUSTER;

/// Bytes per read when the image is compared.
const PIECE: u64 = 1 << 20;

/// An image that is to be written.
pub(super) struct NewImage {
    pub(super) path: PathBuf,
    pub(super) data: Data,
}

/// An image that is being written.
pub(super) struct Image {
    path: PathBuf,
    bytes: u64,
    writer: JoinHandle<io::Result<File>>,
}

/// Returns whether the destination is a file that is named as a qcow2 image.
pub(super) fn is_wanted(options: &Copy) -> bool {
    let Locator::Path(path) = &options.destination else { return false };
    let is_named = path.extension().is_some_and(|it| it.eq_ignore_ascii_case("qcow2"));
    is_named && options.format.is_none() && path.metadata().map_or(true, |meta| meta.is_file())
}

impl NewImage {
    /// Creates the file, or empties one whose owner has agreed, and starts to write.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub(super) fn start(self) -> Result<Image, Failure> {
        let Self { path, data: Data { pipe, bytes } } = self;
        let cannot =
            |error: io::Error| refused(format!("{} cannot be written: {error}", path.display()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(cannot)?;
        // Of a link, the file is removed after a failure.
        let path = path.canonicalize().map_err(cannot)?;
        let write = move || write(pipe, file, bytes);
        let writer = thread::Builder::new().name("qcow2".to_owned()).spawn(write);
        let writer = writer.map_err(cannot)?;
        Ok(Image { path, bytes, writer })
    }
}

impl Image {
    /// Completes the image of a copy that has ended, and compares it if `verify` is set. Without success the file is
    /// removed.
    pub(super) fn finish(self, report: &mut Report, verify: bool) {
        let written =
            self.writer.join().unwrap_or_else(|_| Err(io::Error::other("internal error")));
        if matches!(report.outcome, Outcome::Success) {
            match written
                .and_then(|file| if verify { hash(&file, self.bytes).map(Some) } else { Ok(None) })
            {
                Err(error) => report.outcome = Outcome::Failed(CopyError::Pipe(error)),
                Ok(None) => {}
                Ok(Some(hash)) if report.hash == Some(hash) => report.verified = self.bytes,
                Ok(Some(_)) => {
                    report.outcome =
                        Outcome::VerifyFailed(std::iter::once(0..self.bytes).collect());
                }
            }
        } else if let (Err(error), Outcome::Failed(CopyError::Pipe(_))) = (written, &report.outcome)
        {
            // The reason for which the pipe was closed.
            report.outcome = Outcome::Failed(CopyError::Pipe(error));
        }
        if !matches!(report.outcome, Outcome::Success) {
            remove(&self.path);
        }
    }
}

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Writes what comes through the pipe. Returns the file, which is on stable storage.
///
/// # Errors
/// Fails if the file cannot be written, or if the data ends early: then the image is incomplete.
fn write(mut data: PipeReader, file: File, bytes: u64) -> io::Result<File> {
    let mut image = Qcow2Writer::new(BufWriter::new(&file), bytes, None)?;
    let mut cluster = Vec::new();
    let mut total = 0;
    for index in 0..bytes.div_ceil(CLUSTER) {
        cluster.clear();
        total += (&mut data).take(CLUSTER).read_to_end(&mut cluster)? as u64;
        if cluster.iter().any(|byte| *byte != 0) {
            image.data(index, &cluster)?;
        }
    }
    if total != bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    image.finish()?.into_inner().map_err(|error| error.into_error())?;
    file.sync_all()?;
    Ok(file)
}

/// Returns the BLAKE3 hash of the disk in an image, read from the disk that it is on.
fn hash(file: &File, bytes: u64) -> io::Result<[u8; 32]> {
    fadvise(file, 0, None, Advice::DontNeed)?;
    let disk = virtual_disk::open(Container::Qcow2, file, file.metadata()?.len())?;
    let (mut hasher, mut left) = (blake3::Hasher::new(), bytes);
    let mut buffer = vec![0; usize::try_from(PIECE).unwrap_or(0)];
    disk.runs(&mut |run| {
        let (mut at, end) = (0, run.len.min(left));
        while at < end {
            let len = usize::try_from((end - at).min(PIECE)).unwrap_or(0);
            let piece = buffer.get_mut(..len).unwrap_or_default();
            match run.place {
                Place::Zeros => piece.fill(0),
                Place::File(offset) => file.read_exact_at(piece, offset + at)?,
                Place::Packed { .. } => return Err(io::ErrorKind::InvalidData.into()),
            }
            hasher.update(piece);
            at += len as u64;
        }
        left -= end;
        Ok(())
    })?;
    if left != 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(*hasher.finalize().as_bytes())
}
