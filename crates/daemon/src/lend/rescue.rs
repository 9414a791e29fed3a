//! A failing disk that is lent as what a map says: what is finished is read from an image, and the rest from the disk
//! when a host wants it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use console::decimal;
use export::{Base, BlockMap, RescueLayout, RescueState, RescuedDisk, Source};
use failure::Failure;
use linux::disk::{Kind, OpenFor, Opened, open};
use linux::memory;
use linux::tree::Tree;
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};

/// The part of the memory that the map of a disk may take (divisor).
const MEMORY_PART: u64 = 16;

/// What is known of a failing disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RescueRequest {
    /// Path of the map, for messages.
    pub map: PathBuf,
    /// The file with what is finished. Created if it does not exist and nothing is.
    pub image: Option<PathBuf>,
    /// The length of the disk for which the map was made, in bytes, if it says so.
    pub bytes: Option<u64>,
    /// Where the last range ends of which the map knows anything, in bytes.
    pub end: u64,
    /// The identity of that disk; empty if the map does not say it.
    pub source: String,
    /// The [`image_identity`] of the image with which the map was made; another text if it was not made here.
    pub destination: String,
    /// Ranges that are finished, in ascending order.
    pub finished: Vec<Range<u64>>,
    /// Ranges that cannot be read.
    pub bad: Vec<Range<u64>>,
}

/// The files beside a failing disk.
#[derive(Debug)]
pub(super) struct RescueFiles {
    record: OwnedFd,
    image: Option<OwnedFd>,
    limit: u64,
    note: String,
}

impl RescueFiles {
    /// Opens the image, and makes the record of what the map says. `identity` is that of the opened disk; empty if it
    /// has none.
    ///
    /// # Errors
    /// Fails with a message for the user if the map or the image does not fit the disk.
    pub(super) fn open(
        request: &RescueRequest,
        opened: &Opened,
        identity: &str,
        tree: &Tree,
    ) -> Result<Self, Failure> {
        check(request, opened, identity)?;
        let image = request.image.as_deref();
        let image = image.map(|image| open_image(image, request, opened, tree)).transpose()?;
        let limit = memory::available(tree) / MEMORY_PART;
        let record = record(request, opened, (image.is_some(), limit))?;
        let note = note(request, opened);
        Ok(Self { record, image, limit, note })
    }

    /// Returns a note for the user.
    pub(super) fn note(&self) -> String {
        self.note.clone()
    }

    /// Returns the files with the disk.
    pub(super) fn base(self, disk: OwnedFd) -> Result<Base, Failure> {
        let layout = RescueLayout { has_image: self.image.is_some(), limit: self.limit };
        let files = [Some(disk), Some(self.record), self.image].into_iter().flatten().collect();
        let disk = RescuedDisk::new(files, layout).map(Base::Rescued);
        disk.ok_or_else(|| Failure::new("the files of the disk are missing".to_owned()))
    }
}

/// Checks that the map is one of the disk.
fn check(request: &RescueRequest, opened: &Opened, identity: &str) -> Result<(), Failure> {
    let (map, disk) = (request.map.display(), opened.path.display());
    let wrong = |reason: String| Failure::new(format!("{map} is not the map of {disk}: {reason}"));
    if opened.tail != 0 {
        return Err(Failure::new(format!(
            "{disk} ends with a part of a block, and cannot be lent by a map"
        )));
    }
    let end = request.end;
    let bytes = request.bytes.unwrap_or(opened.bytes);
    if bytes != opened.bytes || end > opened.bytes {
        let there = if bytes == opened.bytes { end } else { bytes };
        return Err(wrong(format!("it is for {there} bytes, and the disk has {}", opened.bytes)));
    }
    if !request.source.is_empty() && !identity.is_empty() && request.source != identity {
        return Err(wrong(format!(
            "it is for \"{}\", and this disk is \"{identity}\"; if it is the same disk by another adapter, remove the \
             line \"# storagetm source\" from {map}",
            request.source
        )));
    }
    Ok(())
}

/// Returns what tells an image from other files, also from one that takes its place.
pub fn image_identity(image: &Metadata) -> String {
    let made = image.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    format!("image {} {}", image.ino(), made.unwrap_or_default().as_nanos())
}

/// Opens the image for reading and writing, locked against other programs.
fn open_image(
    path: &Path,
    request: &RescueRequest,
    disk: &Opened,
    tree: &Tree,
) -> Result<OwnedFd, Failure> {
    let name = path.display();
    let cannot =
        |error: io::Error| Failure::new(format!("{name} cannot be used as the image: {error}"));
    let map = request.map.display();
    if path.canonicalize().is_ok_and(|image| image == disk.path) {
        return Err(Failure::new(format!("{name} is the disk itself: the image is another file")));
    }
    prepare_image(path, request, disk)?;
    let image = open(tree, path, OpenFor::Writing, false).map_err(Failure::new)?;
    if image.kind != Kind::Image {
        return Err(Failure::new(format!(
            "{name} is no file: only a file can be the image of a disk that fails"
        )));
    }
    let end = request.finished.iter().map(|range| range.end).max().unwrap_or(0);
    let (bytes, image) = (image.bytes + image.tail, image.descriptor);
    if bytes < end || bytes > disk.bytes {
        return Err(Failure::new(format!(
            "{name} is not the image of {}: it has {bytes} bytes, the disk has {}, and {map} calls bytes up to {end} \
             finished",
            disk.path.display(),
            disk.bytes
        )));
    }
    rustix::fs::ftruncate(&image, disk.bytes).map_err(|errno| cannot(errno.into()))?;
    // What was read once is in the page cache, and writes need no alignment.
    let flags = fcntl_getfl(&image).map_err(|errno| cannot(errno.into()))?;
    fcntl_setfl(image.as_fd(), flags - OFlags::DIRECT).map_err(|errno| cannot(errno.into()))?;
    Ok(image)
}

/// Makes the image if there is none, or lengthens an empty one.
///
/// # Errors
/// Fails if it has data of which the map knows nothing, or if there is none of which the map knows something.
fn prepare_image(path: &Path, request: &RescueRequest, disk: &Opened) -> Result<(), Failure> {
    let (name, map) = (path.display(), request.map.display());
    let cannot =
        |error: io::Error| Failure::new(format!("{name} cannot be used as the image: {error}"));
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound && request.finished.is_empty() => {
            let mut new = OpenOptions::new();
            let new = new.write(true).create_new(true).mode(0o600).open(path);
            new.and_then(|file| file.set_len(disk.bytes)).map_err(cannot)?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::new(format!(
                "{map} calls {} finished, but there is no {name}: name the image that has them, or leave --image out",
                decimal(sum(&request.finished))
            )));
        }
        // A map that was made with it, and not saved since.
        Ok(meta) if meta.is_file() && request.destination == image_identity(&meta) => {}
        Ok(meta) if request.finished.is_empty() && meta.is_file() && meta.blocks() > 0 => {
            return Err(Failure::new(format!(
                "{name} has data of which {map} knows nothing, and it would be overwritten: name another image, or \
                 the map that belongs to it"
            )));
        }
        Ok(meta) if request.finished.is_empty() && meta.is_file() && meta.len() == 0 => {
            let file = OpenOptions::new().write(true).open(path);
            file.and_then(|file| file.set_len(disk.bytes)).map_err(cannot)?;
        }
        Ok(_) => {}
        Err(error) => return Err(cannot(error)),
    }
    Ok(())
}

/// Makes the record: a file in memory with what is known of each block. A block of which only a part is known counts
/// as unknown. Without an image, what is finished is read from the disk.
fn record(
    request: &RescueRequest,
    opened: &Opened,
    (has_image, limit): (bool, u64),
) -> Result<OwnedFd, Failure> {
    let cannot = |error: io::Error| Failure::new(format!("no memory for the map: {error}"));
    let file = memfd_create("rescue", MemfdFlags::CLOEXEC).map_err(|errno| cannot(errno.into()))?;
    let file = File::from(file);
    let block = u64::from(opened.logical_block);
    let blocks = opened.bytes / block;
    let too_large = || {
        Failure::new(format!(
            "{} is in too many pieces for the memory of this machine ({} at most)",
            request.map.display(),
            decimal(limit)
        ))
    };
    if BlockMap::table_bytes(blocks) > limit {
        return Err(too_large());
    }
    let map = BlockMap::new(blocks);
    let finished = request.finished.iter().map(|range| (range, RescueState::Kept));
    let bad = request.bad.iter().map(|range| (range, RescueState::Bad));
    for (range, state) in finished.filter(|_| has_image).chain(bad) {
        let range = range.start.div_ceil(block)..range.end / block;
        if range.start < range.end {
            let store = |at, bytes: &[u8]| file.write_all_at(bytes, at);
            map.set(range, Source::from(state), store).map_err(cannot)?;
        }
        // In the file, and in the memory of two processes for a moment.
        let taken = file.metadata().map_err(cannot)?.blocks().saturating_mul(512);
        if taken.saturating_mul(2) > limit {
            return Err(too_large());
        }
    }
    Ok(file.into())
}

fn note(request: &RescueRequest, opened: &Opened) -> String {
    let (map, disk) = (request.map.display(), opened.path.display());
    let (finished, bad) = (sum(&request.finished), sum(&request.bad));
    let known_bad = match bad {
        0 => String::new(),
        _ => format!(
            "; {} are known to be bad and are not read again, unless with --retry-bad",
            decimal(bad)
        ),
    };
    match &request.image {
        Some(image) => format!(
            "{disk} is lent as {map} says: {} are read from {image}, and the rest from the disk when a host wants it, \
             and kept in {image}{known_bad}",
            decimal(finished),
            image = image.display()
        ),
        None => format!(
            "{disk} is lent as {map} says, without an image: what hosts want is read from the disk each time, and \
             what cannot be read is recorded in the map{known_bad}"
        ),
    }
}

fn sum(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum()
}

#[cfg(test)]
mod test {
    use std::os::fd::OwnedFd;

    use linux::block::DeviceNumber;

    use super::*;

    fn opened(bytes: u64, tail: u64) -> Opened {
        Opened {
            descriptor: OwnedFd::from(File::open("/dev/null").unwrap()),
            whole: None,
            path: PathBuf::from("/dev/sdx"),
            kind: Kind::Block,
            number: DeviceNumber { major: 0, minor: 0 },
            bytes,
            tail,
            logical_block: 512,
            physical_block: 4096,
            read_only: true,
            exclusive: true,
            written_by: None,
            direct: false,
            memory_alignment: 1,
            atomic_writes: None,
            volatile_cache: true,
            can_discard: false,
            can_zero: false,
        }
    }

    fn request(source: &str, finished: &[Range<u64>], bad: &[Range<u64>]) -> RescueRequest {
        RescueRequest {
            map: PathBuf::from("rescue.map"),
            image: None,
            bytes: None,
            end: finished.iter().chain(bad).map(|range| range.end).max().unwrap_or(0),
            source: source.to_owned(),
            destination: String::new(),
            finished: finished.to_vec(),
            bad: bad.to_vec(),
        }
    }

    #[test]
    fn map_of_another_disk_is_refused() {
        let disk = opened(1 << 20, 0);
        let refused = |request: &RescueRequest, identity| {
            check(request, &disk, identity).err().map(|failure| failure.to_string())
        };
        assert_eq!(refused(&request("a", &[0..512, 1024..1 << 20], &[]), "a"), None);
        // One of the two has no identity.
        assert_eq!(refused(&request("", &[], &[]), "a"), None);
        assert_eq!(refused(&request("a", &[], &[]), ""), None);
        let said = refused(&request("a", &[], &[]), "b").unwrap();
        assert!(said.contains("it is for \"a\", and this disk is \"b\""), "{said}");
        assert!(said.ends_with("remove the line \"# storagetm source\" from rescue.map"), "{said}");
        let said = refused(&request("", &[], &[0..512, 1 << 20..(1 << 20) + 512]), "").unwrap();
        assert!(said.contains("is for 1049088 bytes"), "{said}");
        let longer = RescueRequest { bytes: Some(1 << 21), ..request("", &[], &[]) };
        assert!(refused(&longer, "").unwrap().contains("is for 2097152 bytes"));
        // Of a larger disk, of which the end was tried and neither finished nor found to be bad.
        let tried = RescueRequest { end: 1 << 21, ..request("", &[0..512, 1024..1536], &[]) };
        assert!(refused(&tried, "").unwrap().contains("is for 2097152 bytes"));
        assert!(check(&request("", &[], &[]), &opened(1 << 20, 100), "").is_err());
    }

    #[test]
    fn record_has_whole_blocks_only() {
        let request = request("", &[0..1000, 2048..4096], &[1500..1600, 5000..6000]);
        let states = |has_image| {
            let file =
                File::from(record(&request, &opened(8192, 0), (has_image, 1 << 20)).unwrap());
            let read = |at, into: &mut [u8]| match file.read_at(into, at) {
                Ok(read) => {
                    into[read..].fill(0);
                    Ok(())
                }
                Err(error) => Err(error),
            };
            let map = BlockMap::load(16, read).unwrap();
            let text = |block| match RescueState::from(map.run(block, block + 1).0) {
                RescueState::Unknown => '?',
                RescueState::Kept => '+',
                RescueState::Bad => '-',
            };
            (0..16).map(text).collect::<String>()
        };
        assert_eq!(states(true), "+???++++??-?????");
        assert_eq!(states(false), "??????????-?????");
        let many: Vec<Range<u64>> = (0..1 << 10).map(|at| at << 24..(at << 24) + 512).collect();
        let request = RescueRequest { bad: many, ..request };
        let refused = record(&request, &opened(1 << 40, 0), (true, 1 << 20)).unwrap_err();
        assert!(refused.to_string().contains("too many pieces"), "{refused}");
    }

    /// A folder that is removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("storagetm-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, contents).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn empty_image_has_nothing_that_is_finished() {
        let folder = Folder::new("empty-image");
        let image = folder.file("image", &[]);
        let (disk, tree) = (opened(8192, 0), Tree::machine());
        let finished = request("", &[0..1024, 2048..4096], &[]);
        assert!(open_image(&image, &finished, &disk, &tree).is_err());
        assert_eq!(image.metadata().unwrap().len(), 0);
        open_image(&image, &request("", &[], &[]), &disk, &tree).unwrap();
        assert_eq!(image.metadata().unwrap().len(), 8192);
    }

    #[test]
    fn image_with_data_is_accepted_by_its_own_map() {
        let folder = Folder::new("own-image");
        let image = folder.file("image", &[7; 8192]);
        let (disk, tree) = (opened(8192, 0), Tree::machine());
        let open = |destination: String| {
            let request = RescueRequest { destination, ..request("", &[], &[]) };
            open_image(&image, &request, &disk, &tree).map(drop)
        };
        let said = open("image 0 0".to_owned()).unwrap_err().to_string();
        assert!(said.contains("would be overwritten"), "{said}");
        open(image_identity(&image.metadata().unwrap())).unwrap();
    }
}
