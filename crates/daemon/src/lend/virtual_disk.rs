//! Image files in formats of virtual machines, which are lent as the disks in them. A process without
//! privileges reads the image (`storagetm index`), and writes where the blocks of the disk are, and what is
//! compressed, to a file in memory: the index.

mod child;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use export::{Base, Identity, VirtualDisk};
use failure::Failure;
use filesystem::Container;
use linux::disk::{Kind, Opened};
use linux::tree::Tree;
use linux::{identity, memory};
use rustix::fs::{
    MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, fcntl_setfl, memfd_create,
};
use rustix::io::Errno;
use rustix::process::Signal;

use super::reader::message;
use super::request::is_direct;
pub use child::work;

/// Bytes of all indexes of this process, which together take at most a quarter of the memory.
static INDEXED: AtomicU64 = AtomicU64::new(0);

/// A virtual disk that was read.
#[derive(Debug)]
pub(super) struct IndexedDisk {
    index: OwnedFd,
    container: Container,
}

impl IndexedDisk {
    /// Reads the image, and replaces the sizes of the file in `opened` by those of the disk in it.
    ///
    /// # Errors
    /// Fails if the image cannot be read, or if all indexes together take more than a quarter of the memory.
    pub(super) fn read(
        opened: &mut Opened,
        container: Container,
        tree: &Tree,
    ) -> Result<Self, Failure> {
        let path = opened.path.display().to_string();
        let fail = |reason: String| {
            Failure::new(format!(
                "{path} cannot be lent as {container}: {reason}; --format raw lends the file as it is"
            ))
        };
        let errno = |errno: Errno| fail(errno.to_string());
        let limit = memory::available(tree) / 4;
        let limit = limit.saturating_sub(INDEXED.load(Ordering::Relaxed));
        let (found, index) =
            run(opened, container, limit).map_err(|error| fail(error.to_string()))?;
        let Found { bytes, block } = found.map_err(|reason| match reason {
            NoDisk::Reason(reason) => fail(reason),
            NoDisk::Limit(what) => fail(format!(
                "reading it takes too much {what}; unpack it first ({})",
                container.unpack_command(&path)
            )),
        })?;
        let size = rustix::fs::fstat(&index).map_err(errno)?.st_size;
        INDEXED.fetch_add(u64::try_from(size).unwrap_or(0), Ordering::Relaxed);
        // Direct I/O was chosen for the blocks of the file as a disk.
        if is_direct(opened) && opened.logical_block > SMALLEST_BLOCK {
            let flags = fcntl_getfl(&opened.descriptor).map_err(errno)?;
            fcntl_setfl(&opened.descriptor, flags - OFlags::DIRECT).map_err(errno)?;
            opened.direct = false;
        }
        opened.kind = Kind::Image;
        opened.logical_block = block;
        opened.physical_block = opened.physical_block.max(block);
        opened.tail = bytes % u64::from(block);
        opened.bytes = bytes - opened.tail;
        Ok(Self { index, container })
    }

    /// Returns the format.
    pub(super) fn container(&self) -> Container {
        self.container
    }

    /// Returns the files of the disk.
    pub(super) fn base(self, image: OwnedFd) -> Result<Base, Failure> {
        let disk = VirtualDisk::new(vec![image, self.index]);
        disk.map(Base::Virtual).ok_or_else(|| Failure::new("the image has no index".to_owned()))
    }

    /// Returns the identity of the disk in the image whose identity is `image`: the file lent as it is would be
    /// another disk.
    pub(super) fn identity(&self, image: Identity) -> Identity {
        let instance = *blake3::hash(self.container.name().as_bytes()).as_bytes();
        let instance = instance.first_chunk().copied().unwrap_or_default();
        let (uuid, serial) = identity::of_overlay(&image.uuid, &instance);
        Identity { uuid, nguid: None, eui64: None, serial, own_serial: None, ..image }
    }

    /// Returns a note for the user. `overlaid`: hosts can write to an overlay.
    pub(super) fn note(&self, path: &str, overlaid: bool) -> String {
        let access = if overlaid { "" } else { ", read-only" };
        format!(
            "{path} is {}, and is lent as the disk in it{access}; --format raw lends the file as it is",
            self.container
        )
    }
}

/// The disk in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    bytes: u64,
    block: u32,
}

/// The smallest block in bytes. Formats align the pieces of a disk to it.
const SMALLEST_BLOCK: u32 = 512;

/// Why there is no disk.
#[derive(Debug, PartialEq, Eq)]
enum NoDisk {
    /// What the process said, or did.
    Reason(String),
    /// It exceeded this limit.
    Limit(&'static str),
}

/// Runs the process. Returns the disk, or why it cannot be read, and the index.
fn run(
    opened: &Opened,
    container: Container,
    limit: u64,
) -> std::io::Result<(Result<Found, NoDisk>, OwnedFd)> {
    // A file description of its own: that of the disk may be for direct I/O.
    let image = File::open(format!("/proc/self/fd/{}", opened.descriptor.as_raw_fd()))?;
    let index = memfd_create("index", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let arguments = ["index", container.name(), &limit.to_string()];
    let child = ipc::spawn::command(&arguments, image.into())
        .stdout(index.try_clone()?)
        .stderr(Stdio::piped())
        .spawn()?;
    let (message, status) = message(child)?;
    let status = status?;
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&index, seals)?;
    Ok((outcome(status, &String::from_utf8_lossy(&message)), index))
}

/// Interprets how the process ended, and its message: two numbers, or why not.
fn outcome(status: ExitStatus, message: &str) -> Result<Found, NoDisk> {
    let ended_by = |signal: Signal| status.signal() == Some(signal.as_raw());
    if ended_by(Signal::XFSZ) || ended_by(Signal::ABORT) {
        return Err(NoDisk::Limit("memory"));
    }
    if ended_by(Signal::XCPU) {
        return Err(NoDisk::Limit("time"));
    }
    let plain: String = message.chars().filter(|c| !c.is_control()).collect();
    if !status.success() {
        let reason = match status.signal() {
            Some(number) => format!("reading it was ended by signal {number}"),
            None if plain.is_empty() => "reading it ended without a reason".to_owned(),
            None => plain,
        };
        return Err(NoDisk::Reason(reason));
    }
    let numbers = plain.split_once(' ').and_then(|(bytes, block)| {
        Some(Found { bytes: bytes.parse().ok()?, block: block.parse().ok()? })
    });
    let is_disk = |found: &Found| {
        let is_block = matches!(found.block, 512 | 4096);
        is_block && (found.block.into()..=MAX_BYTES).contains(&found.bytes)
    };
    numbers
        .filter(is_disk)
        .ok_or_else(|| NoDisk::Reason("it holds no disk of at least one block".to_owned()))
}

/// Largest disk in bytes: sizes and offsets are below 2⁶³.
const MAX_BYTES: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_the_process_is_validated() {
        let ended = |status: i32, message| outcome(ExitStatus::from_raw(status), message);
        assert_eq!(ended(0, "1048576 512"), Ok(Found { bytes: 1 << 20, block: 512 }));
        for message in [
            "",
            "0 512",
            "511 512",
            "1024 513",
            "-1 512",
            "1048576",
            "1024 512 3",
            "x y",
            "18446744073709551615 512",
        ] {
            assert!(ended(0, message).is_err(), "{message}");
        }
        let reason = |text: &str| Err(NoDisk::Reason(text.to_owned()));
        assert_eq!(ended(1 << 8, "its \x1b[1mheader"), reason("its [1mheader"));
        assert_eq!(ended(Signal::XFSZ.as_raw(), ""), Err(NoDisk::Limit("memory")));
        assert_eq!(ended(Signal::XCPU.as_raw(), ""), Err(NoDisk::Limit("time")));
        assert_eq!(ended(Signal::INT.as_raw(), ""), reason("reading it was ended by signal 2"));
    }
}
