//! `storagetm index`: the process that reads an image. It drops its privileges before it reads any of it.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use export::{RunTable, Stored};
use failure::Failure;
use filesystem::virtual_disk::{self, Place};
use filesystem::{Container, VirtualDisk};
use linux::medium::ReadAt;
use linux::{partition, sandbox};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Memory limit, against crafted files.
const MAX_MEMORY: u64 = 1 << 30;
/// Processor time in seconds: the map of a crafted file can be endless.
const MAX_TIME: u64 = 600;
/// The block size of a format that states none.
const BLOCK: u32 = 512;

/// Reads the image on standard input, and writes the index to standard output. Writes the size of the disk and
/// of its blocks in bytes to standard error, or why the image cannot be read. The index has at most `limit`
/// bytes.
///
/// # Errors
/// Fails if it was not started by storagetm. Exits with status 1 if the image cannot be read.
pub fn work(format: &str, limit: u64) -> Result<(), Failure> {
    let not_started_by_us =
        || Failure::usage("storagetm index is a part of storagetm serve, which starts it");
    let container = Container::from_name(format).ok_or_else(not_started_by_us)?;
    let own = |stream: BorrowedFd<'_>| stream.try_clone_to_owned().map(File::from);
    let image = own(io::stdin().as_fd()).map_err(|_| not_started_by_us())?;
    let index = own(io::stdout().as_fd()).map_err(|_| not_started_by_us())?;
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    // Best effort: each restriction that the kernel lacks is backed by the others.
    let _ = sandbox::drop_privileges(parent);
    let _ = sandbox::restrict_files();
    for (resource, most) in
        [(Resource::As, MAX_MEMORY), (Resource::Fsize, limit), (Resource::Cpu, MAX_TIME)]
    {
        // The signal of the lower limit says which one it was.
        let limits = Rlimit { current: Some(most), maximum: Some(most.saturating_add(5)) };
        let _ = setrlimit(resource, limits);
    }
    let _ = sandbox::restrict_syscalls();
    let (message, status) = match index_of(container, &image, index) {
        Ok((bytes, block)) => (format!("{bytes} {block}"), 0),
        Err(error) => (error.to_string(), 1),
    };
    let _ = io::stderr().write_all(message.as_bytes());
    std::process::exit(status)
}

/// Writes the index of an image. Returns the size of the disk and of its blocks in bytes.
fn index_of(container: Container, image: &File, index: File) -> io::Result<(u64, u32)> {
    let image_bytes = image.metadata()?.len();
    let disk = virtual_disk::open(container, image, image_bytes)?;
    let mut output = BufWriter::new(&index);
    let mut table = extents(&*disk, image_bytes, &mut output)?;
    output.flush()?;
    let contents = Contents { table: &table, image, index: &index };
    let block = match disk.block() {
        Some(block) => block,
        // As of an image without a format: the one that its partition table was written for.
        None => partition::block_size(&contents)?.unwrap_or(BLOCK),
    };
    complete(&mut table, block, &mut output)?;
    let table = table.encode();
    output.write_all(&table)?;
    output.write_all(&(table.len() as u64).to_le_bytes())?;
    output.flush()?;
    Ok((disk.bytes(), block))
}

/// Has the last run end with a block: reads are of whole blocks. What is in the image may end before.
fn complete(table: &mut RunTable, block: u32, output: &mut impl Write) -> io::Result<()> {
    let bytes = table.bytes();
    let missing = bytes.next_multiple_of(block.into()) - bytes;
    let Some((last, _)) = bytes.checked_sub(1).and_then(|at| table.find(at)) else { return Ok(()) };
    if missing == 0 {
        return Ok(());
    }
    let next = match last {
        Stored::Zeros => Stored::Zeros,
        Stored::Image(offset) => Stored::Image(offset + 1),
        Stored::Index(offset) => {
            output.write_all(&vec![0; usize::try_from(missing).unwrap_or(0)])?;
            Stored::Index(offset + 1)
        }
    };
    table.push(missing, next);
    Ok(())
}

/// The contents of the disk.
struct Contents<'a> {
    table: &'a RunTable,
    image: &'a File,
    index: &'a File,
}

impl ReadAt for Contents<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some((stored, len)) = self.table.find(offset) else { return Ok(0) };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..len).unwrap_or_default();
        match stored {
            Stored::Zeros => {
                buffer.fill(0);
                Ok(len)
            }
            Stored::Image(offset) => FileExt::read_at(self.image, buffer, offset),
            Stored::Index(offset) => FileExt::read_at(self.index, buffer, offset),
        }
    }
}

/// Writes what is compressed. Returns where the blocks are.
///
/// # Errors
/// Fails if the image is damaged, is shorter than its blocks, or has too many pieces.
fn extents(
    disk: &dyn VirtualDisk,
    image_bytes: u64,
    output: &mut impl Write,
) -> io::Result<RunTable> {
    let (mut table, mut unpacked) = (RunTable::default(), 0);
    disk.runs(&mut |run| {
        if run.len == 0 {
            return Ok(());
        }
        let stored = match run.place {
            Place::Zeros => Stored::Zeros,
            Place::File(offset) if offset.saturating_add(run.len) > image_bytes => {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "it is cut off"));
            }
            Place::File(offset) => Stored::Image(offset),
            Place::Packed { offset, len } => {
                let size = usize::try_from(run.len).map_err(|_| ErrorKind::InvalidData)?;
                output.write_all(&disk.unpack(offset, len, size)?)?;
                unpacked += run.len;
                Stored::Index(unpacked - run.len)
            }
        };
        match table.push(run.len, stored) {
            true => Ok(()),
            false => Err(io::Error::other(
                "its blocks are in too many pieces; unpack it first with qemu-img convert",
            )),
        }
    })?;
    Ok(table)
}

#[cfg(test)]
mod test {
    use super::*;
    use filesystem::virtual_disk::{Run, TakeRun};

    /// Two packed clusters around zeros and a cluster of the file.
    struct Disk;

    impl VirtualDisk for Disk {
        fn bytes(&self) -> u64 {
            2048
        }

        fn runs(&self, each: TakeRun<'_>) -> io::Result<()> {
            let packed = |offset| Place::Packed { offset, len: 9 };
            let places = [packed(1), Place::Zeros, Place::File(4096), packed(2)];
            places.into_iter().try_for_each(|place| each(Run { len: 512, place }))
        }

        fn unpack(&self, offset: u64, _: u64, len: usize) -> io::Result<Vec<u8>> {
            Ok(vec![u8::try_from(offset).unwrap(); len])
        }
    }

    #[test]
    fn last_run_ends_with_a_block() {
        for (stored, next) in [
            (Stored::Zeros, Stored::Zeros),
            (Stored::Image(512), Stored::Image(612)),
            (Stored::Index(0), Stored::Index(100)),
        ] {
            let (mut table, mut output) = (RunTable::default(), Vec::new());
            table.push(100, stored);
            complete(&mut table, 512, &mut output).unwrap();
            assert_eq!((table.bytes(), table.find(100)), (512, Some((next, 412))));
            assert_eq!(output.len(), if stored == Stored::Index(0) { 412 } else { 0 });
        }
    }

    #[test]
    fn compressed_runs_are_unpacked_into_the_index() {
        let mut output = Vec::new();
        let table = extents(&Disk, 8192, &mut output).unwrap();
        assert!(extents(&Disk, 4096, &mut Vec::new()).is_err(), "the image is cut off");
        assert_eq!(output, [[1; 512], [2; 512]].concat());
        let mut expected = RunTable::default();
        for stored in [Stored::Index(0), Stored::Zeros, Stored::Image(4096), Stored::Index(512)] {
            expected.push(512, stored);
        }
        assert_eq!(table.encode(), expected.encode());
    }
}
