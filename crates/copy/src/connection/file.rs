//! Connections to local disks: a regular file through the page cache, or a block device with
//! `O_DIRECT`. What was written to a file is read back with `O_DIRECT` too, from the disk.
//!
//! Requests are carried out synchronously when they are submitted; the threads of a copy provide
//! the parallelism. A device that another program holds exclusively is refused, and a destination
//! is claimed exclusively.

mod write_back;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use export::{Extent, Fault, Pool};
use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom, fadvise, fallocate, seek};
use rustix::io::Errno;

use write_back::WriteBack;

use crate::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, Request,
    RequestError,
};

/// How a destination treats an existing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must not exist. Ignored for a block device.
    CreateNew,
    /// An existing file is truncated first, unless its length is right.
    Replace,
    /// An existing file of the right length is written further.
    Resume,
}

/// A local file or block device.
#[derive(Debug)]
pub struct FileEndpoint {
    path: PathBuf,
    /// `None` for a source.
    destination: Option<OpenMode>,
    identity: String,
    opened: Mutex<Option<Arc<Opened>>>,
    blank: AtomicBool,
}

/// State shared by all connections of an endpoint.
#[derive(Debug)]
struct Opened {
    file: File,
    device: bool,
    in_memory: bool,
    /// The same file with `O_DIRECT`; `None` if its file system does not support it.
    direct: OnceLock<Option<File>>,
    /// `None` for a device and a file in memory.
    write_back: Option<WriteBack>,
    /// Set after a failed flush: earlier writes may be lost, whatever a later flush returns.
    /// Flushes are serialized because the kernel reports an error to only one of several concurrent
    /// callers.
    flush_failed: Mutex<bool>,
    /// The device was removed. Its name may be that of another device later.
    removed: AtomicBool,
}

/// Maximum bytes of one hole, to bound the time of a request.
const MAX_HOLE: u64 = 1 << 30;

/// `f_type` of the file systems that have no disk.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
const RAMFS_MAGIC: rustix::fs::FsWord = 0x8584_58f6;

/// Maximum extents per answer.
const MAX_EXTENTS: usize = 512;

impl FileEndpoint {
    /// A source. `identity` identifies a device besides its size (model and serial number); empty
    /// if unknown.
    pub fn source(path: &Path, identity: &str) -> Self {
        Self::new(path, None, identity)
    }

    /// A destination.
    pub fn destination(path: &Path, mode: OpenMode, identity: &str) -> Self {
        Self::new(path, Some(mode), identity)
    }

    fn new(path: &Path, destination: Option<OpenMode>, identity: &str) -> Self {
        Self {
            path: path.to_owned(),
            destination,
            identity: identity.to_owned(),
            opened: Mutex::new(None),
            blank: AtomicBool::new(false),
        }
    }

    fn opened(&self) -> Result<Arc<Opened>, EndpointError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*opened {
            let removed = opened.removed.load(Ordering::Acquire);
            let reason = || format!("{} was removed: connect it again", self.path.display());
            return if removed {
                Err(EndpointError::Permanent(reason()))
            } else {
                Ok(opened.clone())
            };
        }
        let blank = Arc::new(self.open_again()?);
        *opened = Some(blank.clone());
        Ok(blank)
    }

    fn open_again(&self) -> Result<Opened, EndpointError> {
        let meta = self.path.metadata().map_err(|error| self.unreachable(&error))?;
        let device = meta.file_type().is_block_device();
        if !device && !meta.is_file() {
            let what = "is neither a file nor a block device: name one";
            return Err(EndpointError::Permanent(format!("{} {what}", self.path.display())));
        }
        let file = if device { self.open_device() } else { self.open_file() };
        let file = file.map_err(|error| self.explain(&error))?;
        if self.destination.is_none() {
            let _ = fadvise(&file, 0, None, Advice::Sequential);
        }
        let in_memory = !device && is_in_memory(&file).map_err(|error| self.explain(&error))?;
        Ok(Opened {
            file,
            device,
            in_memory,
            direct: OnceLock::new(),
            write_back: (!device && !in_memory).then(WriteBack::default),
            flush_failed: Mutex::new(false),
            removed: AtomicBool::new(false),
        })
    }

    fn open_file(&self) -> io::Result<File> {
        // Readable too, for verification.
        OpenOptions::new().read(true).write(self.destination.is_some()).open(&self.path)
    }

    /// Opens with `O_DIRECT` if the device supports it. `O_EXCL` without `O_CREAT` claims a
    /// destination, so that it cannot be mounted meanwhile.
    fn open_device(&self) -> io::Result<File> {
        let claim = if self.destination.is_some() { OFlags::EXCL } else { OFlags::empty() };
        let open = |flags: OFlags| {
            let flags = i32::try_from(flags.bits()).unwrap_or(0);
            let writable = self.destination.is_some();
            OpenOptions::new().read(true).write(writable).custom_flags(flags).open(&self.path)
        };
        open(claim | OFlags::DIRECT).or_else(|error| match Errno::from_io_error(&error) {
            Some(Errno::INVAL) => open(claim),
            _ => Err(error),
        })
    }

    fn create(&self, mode: OpenMode, bytes: u64) -> Result<(), EndpointError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let open = |options: &OpenOptions| options.open(&self.path);
        let made = match mode {
            OpenMode::Resume => None,
            OpenMode::CreateNew => Some(open(options.clone().create_new(true))),
            // A race with another program that creates the file is not an error.
            OpenMode::Replace => open(options.clone().create_new(true)).ok().map(Ok),
        };
        let made = made.transpose().map_err(|error| self.explain(&error))?;
        let is_new = made.is_some();
        // A dangling symbolic link is followed.
        let file = made.map_or_else(|| open(options.create(mode == OpenMode::Replace)), Ok);
        let file = file.map_err(|error| self.explain(&error))?;
        if mode == OpenMode::Resume {
            return self.extend(&file, bytes);
        }
        // Not every file-like destination can be resized.
        if !is_new && bytes != 0 && file.metadata().is_ok_and(|meta| meta.len() == bytes) {
            return Ok(());
        }
        let resized = file.set_len(0).and_then(|()| file.set_len(bytes));
        if let Err(error) = resized {
            if is_new {
                let _ = std::fs::remove_file(&self.path);
            }
            return Err(self.explain(&error));
        }
        // Makes the directory entry durable where the file system supports it.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let _ = File::open(folder.unwrap_or_else(|| Path::new("."))).and_then(|it| it.sync_all());
        self.blank.store(true, Ordering::Release);
        Ok(())
    }

    /// Extends a partial copy of ddrescue, which is only as long as the part that was copied.
    fn extend(&self, file: &File, bytes: u64) -> Result<(), EndpointError> {
        let there = file.metadata().map_err(|error| self.explain(&error))?.len();
        let name = self.path.display();
        if there > bytes {
            let other = format!("{name} has {there} bytes, more than the {bytes} of the source");
            return Err(EndpointError::Permanent(other));
        }
        if there == bytes {
            return Ok(());
        }
        file.set_len(bytes).map_err(|error| self.explain(&error))
    }

    fn unreachable(&self, error: &io::Error) -> EndpointError {
        EndpointError::Temporary(format!("{}: {error}", self.path.display()))
    }

    fn explain(&self, error: &io::Error) -> EndpointError {
        let name = self.path.display();
        match Errno::from_io_error(error) {
            Some(Errno::BUSY) => {
                EndpointError::Permanent(format!("{name} is in use: unmount it first"))
            }
            Some(Errno::EXIST) => EndpointError::Permanent(format!("{name} exists already")),
            Some(errno) if fault(errno) == Some(Fault::Gone) => self.unreachable(error),
            _ => EndpointError::Permanent(format!("{name}: {error}")),
        }
    }

    fn describe(&self, opened: &Opened) -> io::Result<Disk> {
        let bytes = seek(&opened.file, SeekFrom::End(0))?;
        let block = if opened.device { rustix::fs::ioctl_blksszget(&opened.file)? } else { 1 };
        let writable = self.destination.is_some();
        Ok(Disk {
            name: self.path.display().to_string(),
            bytes,
            block,
            sector: opened.device.then_some(block),
            writable,
            reports_extents: !opened.device,
            max_zero: if writable { MAX_HOLE } else { 0 },
            max_transfer: u32::try_from(Pool::MAX_BUFFER).unwrap_or(u32::MAX),
            max_connections: usize::MAX,
            remote: false,
            in_memory: opened.in_memory,
            blank: self.blank.load(Ordering::Acquire),
            identity: self.identity.clone(),
        })
    }
}

impl Endpoint for FileEndpoint {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let opened = self.opened()?;
        let disk = self.describe(&opened).map_err(|error| self.explain(&error))?;
        Ok((disk, Box::new(FileConnection::new(opened))))
    }

    fn prepare(&self, bytes: u64) -> Result<(), EndpointError> {
        let Some(mode) = self.destination else { return Ok(()) };
        let device = self.path.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        if device { self.opened().map(drop) } else { self.create(mode, bytes) }
    }
}

impl Opened {
    /// The file to read past the page cache. A device is opened with `O_DIRECT` from the start.
    fn direct(&self) -> Option<&File> {
        let open = || {
            if self.device || self.in_memory {
                return None;
            }
            // The path may name another file now.
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
            OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }

    fn written(&self, range: &Range<u64>) {
        if let Some(write_back) = &self.write_back {
            write_back.written(&self.file, range);
        }
    }
}

/// One thread's connection to the file.
#[derive(Debug)]
struct FileConnection {
    opened: Arc<Opened>,
    completion: VecDeque<Completion>,
    lost: Option<Errno>,
    drop_caches: bool,
}

impl FileConnection {
    fn new(opened: Arc<Opened>) -> Self {
        Self { opened, completion: VecDeque::new(), lost: None, drop_caches: false }
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        if self.drop_caches {
            if let Some(direct) = self.opened.direct() {
                let read = read_exact(bytes, offset, |rest, at| direct.read_at(rest, at));
                // Not aligned, as the last bytes of a file may be.
                let unaligned = |error| Errno::from_io_error(error) == Some(Errno::INVAL);
                if !read.as_ref().is_err_and(unaligned) {
                    return read;
                }
            }
            let len = u64::try_from(bytes.len()).ok().and_then(NonZeroU64::new);
            let _ = fadvise(&self.opened.file, offset, len, Advice::DontNeed);
        }
        read_exact(bytes, offset, |rest, at| self.opened.file.read_at(rest, at))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        write_all(bytes, offset, |rest, at| self.opened.file.write_at(rest, at))?;
        self.opened.written(&(offset..offset.saturating_add(bytes.len() as u64)));
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::io::retry_on_intr(|| fallocate(&self.opened.file, flags, offset, len))?)
    }

    fn flush(&self) -> io::Result<()> {
        let mut flush_failed =
            self.opened.flush_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *flush_failed {
            return Err(Errno::IO.into());
        }
        let result = rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.opened.file));
        *flush_failed = result.is_err();
        Ok(result?)
    }

    fn complete(&mut self, tag: u32, result: io::Result<()>, buffer: Option<export::Buffer>) {
        let errno = result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        if let Err(errno) = errno
            && fault(errno) == Some(Fault::Gone)
        {
            self.opened.removed.store(true, Ordering::Release);
            self.lost = Some(errno);
        }
        let result = errno.map_err(request_error);
        self.completion.push_back(Completion { tag, result, buffer, extents: Vec::new() });
    }
}

impl Connection for FileConnection {
    fn submit(&mut self, tag: u32, request: Request) {
        match request {
            Request::Read { offset, mut buffer } => {
                let result = self.read(buffer.bytes_mut(), offset);
                self.complete(tag, result, Some(buffer));
            }
            Request::Write { offset, buffer, part } => {
                let bytes = buffer.bytes().get(part).unwrap_or_default();
                let result = self.write(bytes, offset);
                self.complete(tag, result, Some(buffer));
            }
            Request::Zero { offset, len } => {
                let result = self.zero(offset, len);
                self.complete(tag, result, None);
            }
            Request::Flush => {
                let result = self.flush();
                self.complete(tag, result, None);
            }
            Request::Extents { offset, len } => {
                let (result, extents) = match extents(&self.opened.file, offset, len) {
                    Ok(extents) => (Ok(()), extents),
                    Err(error) => (Err(request_error(error)), Vec::new()),
                };
                self.completion.push_back(Completion { tag, result, buffer: None, extents });
            }
        }
    }

    /// One request at a time: data is written while it is still in the processor's cache.
    fn free_slots(&self) -> usize {
        usize::from(self.completion.is_empty())
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        self.lost.map_or(Ok(()), |errno| Err(ConnectionLost::new(errno)))
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completion.pop_front()
    }

    fn interest(&self) -> Interest<'_> {
        Interest::None
    }

    fn drop_caches(&mut self) {
        self.drop_caches = true;
    }

    fn local_fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.opened.device).then(|| self.opened.file.as_fd())
    }

    fn kernel_wrote(&mut self, range: &Range<u64>) {
        self.opened.written(range);
    }
}

fn fault(errno: Errno) -> Option<Fault> {
    Fault::of_errno(errno.raw_os_error())
}

/// Whether the contents of a file are in memory and nowhere else.
fn is_in_memory(file: &File) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    Ok(kind == TMPFS_MAGIC || kind == RAMFS_MAGIC)
}

/// Maps an error of the kernel.
fn request_error(errno: Errno) -> RequestError {
    match fault(errno) {
        Some(Fault::Io) => RequestError::Media,
        Some(Fault::NoSpace) => RequestError::NoSpace,
        Some(Fault::ReadOnly) => RequestError::ReadOnly,
        Some(Fault::Unsupported) => RequestError::Unsupported,
        Some(Fault::OutOfRange | Fault::Misaligned) => RequestError::OutOfRange,
        Some(Fault::Gone | Fault::Busy | Fault::Reserved) | None => RequestError::Refused,
    }
}

/// Reads exactly `bytes.len()` bytes. An early end of the file is an error.
fn read_exact(
    mut bytes: &mut [u8],
    mut offset: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let got = match read(bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        // The file was truncated.
        let rest = bytes.get_mut(got..).filter(|_| got != 0).ok_or(Errno::INVAL)?;
        offset = offset.saturating_add(got as u64);
        bytes = rest;
    }
    Ok(())
}

/// Writes all bytes.
fn write_all(
    mut bytes: &[u8],
    mut offset: u64,
    mut write: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let put = match write(bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let rest = bytes.get(put..).filter(|_| put != 0).ok_or(Errno::NOSPC)?;
        offset = offset.saturating_add(put as u64);
        bytes = rest;
    }
    Ok(())
}

/// Data and holes of a range, from its start on. Unlike the engine, which reports what it cannot
/// find out as data and what is beyond the end of the file too, a copy fails.
fn extents(file: &File, offset: u64, len: u64) -> Result<Vec<Extent>, Errno> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    let mut extents = Vec::new();
    while at < end && extents.len() < MAX_EXTENTS {
        let data = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => end,
            other => other?.min(end),
        };
        if data > at {
            extents.push(Extent::hole(data - at));
        }
        at = data;
        if at < end {
            let hole = seek(file, SeekFrom::Hole(at))?.min(end);
            extents.push(Extent::data(hole.saturating_sub(at).max(1)));
            at = hole.max(at.saturating_add(1));
        }
    }
    Ok(extents)
}

#[cfg(test)]
mod test {
    use super::*;
    use export::Account;

    fn path(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("storagetm-copy-file-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir.join(name)
    }

    fn account() -> Account {
        Pool::new(8 << 20).open()
    }

    fn one(connection: &mut dyn Connection, request: Request) -> Completion {
        connection.submit(7, request);
        connection.advance().unwrap();
        let completion = connection.next_completion().unwrap();
        assert_eq!(completion.tag, 7);
        completion
    }

    #[test]
    fn new_file_is_sparse_and_read_back() {
        let path = path("new");
        let _ = std::fs::remove_file(&path);
        let endpoint = FileEndpoint::destination(&path, OpenMode::CreateNew, "");
        endpoint.prepare(1 << 20).unwrap();
        let (disk, mut connection) = endpoint.open().unwrap();
        assert!(disk.blank && disk.writable && disk.bytes == 1 << 20);
        let account = account();
        let mut buffer = account.take(8192).unwrap();
        buffer.bytes_mut().fill(0x5a);
        let write = Request::Write { offset: 4096, buffer, part: 0..4096 };
        one(&mut *connection, write).result.unwrap();
        one(&mut *connection, Request::Flush).result.unwrap();
        connection.drop_caches();
        let read = Request::Read { offset: 0, buffer: account.take(16384).unwrap() };
        let bytes = one(&mut *connection, read).buffer.unwrap();
        let mut expected = vec![0; 16384];
        expected[4096..8192].fill(0x5a);
        assert_eq!(bytes.bytes(), expected);
        let extents = one(&mut *connection, Request::Extents { offset: 0, len: 1 << 20 }).extents;
        assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), 1 << 20);
        assert!(extents.iter().any(|extent| extent.hole), "{extents:?}");
        one(&mut *connection, Request::Zero { offset: 4096, len: 4096 }).result.unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
        assert!(endpoint.prepare(1 << 20).is_err(), "it exists now");
    }

    #[test]
    fn file_is_read_back_past_the_page_cache() {
        let path = path("direct");
        let _ = std::fs::remove_file(&path);
        let data: Vec<u8> =
            (0..20 << 20).map(|at: u32| at.to_le_bytes()[at as usize % 3]).collect();
        let endpoint = FileEndpoint::destination(&path, OpenMode::CreateNew, "");
        let bytes = data.len() as u64 + 100;
        endpoint.prepare(bytes).unwrap();
        let (disk, mut connection) = endpoint.open().unwrap();
        let account = account();
        for (at, piece) in data.chunks(1 << 20).enumerate() {
            let mut buffer = account.take(1 << 20).unwrap();
            buffer.bytes_mut().copy_from_slice(piece);
            let write = Request::Write { offset: (at << 20) as u64, buffer, part: 0..1 << 20 };
            one(&mut *connection, write).result.unwrap();
        }
        one(&mut *connection, Request::Flush).result.unwrap();
        connection.drop_caches();
        let mut read = |offset: u64, len: usize| {
            let read = Request::Read { offset, buffer: account.take(len).unwrap() };
            one(&mut *connection, read)
        };
        for (offset, len) in [(0, 1 << 20), (3 << 20, 1 << 16), (512, 512), (777, 1 << 16)] {
            let from = usize::try_from(offset).unwrap();
            let completion = read(offset, len);
            completion.result.unwrap();
            assert_eq!(completion.buffer.unwrap().bytes(), &data[from..from + len]);
        }
        assert_eq!(read(20 << 20, 100).buffer.unwrap().bytes(), [0; 100], "the end of the file");
        assert_eq!(read(20 << 20, 4096).result, Err(RequestError::OutOfRange));
        let direct = OpenOptions::new().read(true).custom_flags(0o40000).open(&path);
        let opened = endpoint.opened().unwrap();
        assert_eq!(opened.direct().is_some(), direct.is_ok() && !disk.in_memory);
    }

    #[test]
    fn resumed_file_must_have_right_length() {
        let path = path("continued");
        std::fs::write(&path, [1; 5000]).unwrap();
        let endpoint = FileEndpoint::destination(&path, OpenMode::Resume, "");
        assert!(endpoint.prepare(4999).is_err());
        endpoint.prepare(5000).unwrap();
        assert!(!endpoint.open().unwrap().0.blank);
        assert_eq!(std::fs::read(&path).unwrap(), [1; 5000]);
    }

    #[test]
    fn r21_short_and_interrupted_transfers_are_continued() {
        let disk: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let mut turn = 0;
        let mut read = |rest: &mut [u8], at: u64| {
            turn += 1;
            if turn % 3 == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let from = disk.get(usize::try_from(at).unwrap()..).unwrap_or_default();
            let len = rest.len().min(from.len()).min(7);
            rest[..len].copy_from_slice(&from[..len]);
            Ok(len)
        };
        let mut bytes = [0xee; 300];
        read_exact(&mut bytes, 100, &mut read).unwrap();
        assert_eq!(bytes, disk[100..400]);
        assert_eq!(
            request_error(
                Errno::from_io_error(&read_exact(&mut bytes, 900, read).unwrap_err()).unwrap()
            ),
            RequestError::OutOfRange
        );
        let mut out = Vec::new();
        write_all(&disk, 0, |rest, _| {
            out.extend_from_slice(&rest[..rest.len().min(9)]);
            Ok(rest.len().min(9))
        })
        .unwrap();
        assert_eq!(out, disk);
        assert!(write_all(&disk, 0, |_, _| Ok(0)).is_err());
    }
}
