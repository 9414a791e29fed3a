//! The map of a disk that fails (`--map`): read at the start, and saved while the disk is served.
//!
//! The worker records what it finds out in a file in memory. A thread of this process reads that every few seconds,
//! makes the image durable, and then replaces the map: so the map never calls anything finished that is not on stable
//! storage.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ::copy::map::{self, Map, State};
use console::decimal;
use daemon::inbox::Inbox;
use daemon::lend::{LendRequest, LentDisk, RescueRequest, image_identity};
use export::{Base, BlockMap, RescueState, RescueTrouble};
use failure::{Failure, spawn_error};
use rustix::io::Errno;

use crate::copy::map_file::{is_allocated_map, is_map_file, read_map};
use crate::options::rescue::Rescue;

/// How often what was found out is saved.
const INTERVAL: Duration = Duration::from_secs(3);

/// How a disk that fails is lent.
#[derive(Debug, Clone)]
pub(super) struct RescueOptions {
    /// The map.
    pub(super) map: PathBuf,
    /// The file with what is finished.
    pub(super) image: Option<PathBuf>,
    /// Whether bad blocks are read once more.
    pub(super) retry_bad: bool,
}

/// A map that was read; `None` if there was none.
pub(super) type LoadedMap = (PathBuf, Option<Map>);

impl RescueOptions {
    /// Returns how the only disk is lent, if that is by a map.
    ///
    /// # Errors
    /// Fails if several disks are to be lent, of which a map cannot be.
    pub(super) fn of(options: &Rescue, disks: &[LendRequest]) -> Result<Option<Self>, Failure> {
        let Rescue { map, image, retry_bad } = options;
        match (map, disks) {
            (None, _) => Ok(None),
            (Some(map), [_]) => {
                let (map, image) = (map.clone(), image.clone());
                Ok(Some(Self { map, image, retry_bad: *retry_bad }))
            }
            (Some(_), _) => Err(Failure::usage("a map is of one disk: name one with --map")),
        }
    }

    /// Reads the map of `disk`. Returns what is lent by it, and the map.
    ///
    /// # Errors
    /// Fails with a message for the user if it cannot be read, is none, or is of a copy of a part of the disk.
    pub(super) fn load(&self, disk: &Path) -> Result<(RescueRequest, LoadedMap), Failure> {
        let name = self.map.display();
        let is_map = |path: &Path| is_map_file(path, &self.map);
        if is_map(disk) || self.image.as_deref().is_some_and(is_map) {
            return Err(Failure::new(format!(
                "the map {name} is a file of its own, and so are {name}.bak and {name}.new beside it: neither the disk \
                 nor the image"
            )));
        }
        let loaded = read_map(&self.map).map_err(Failure::new)?;
        if loaded.as_ref().is_some_and(|map| is_allocated_map(&map.metadata.source)) {
            return Err(Failure::new(format!(
                "the map {name} is of a copy with --allocated, whose image has zeros for the rest: name another map"
            )));
        }
        let known = loaded.iter().flat_map(Map::runs).filter(|(_, state)| *state != State::Untried);
        let end = known.map(|(range, _)| range.end).max().unwrap_or(0);
        let ranges = |state| loaded.iter().flat_map(|map: &Map| map.all(state)).collect();
        let metadata = loaded.as_ref().map(|map| &map.metadata);
        let source = metadata.map(|it| it.source.as_str()).filter(|it| is_of_local_disk(it));
        let request = RescueRequest {
            map: self.map.clone(),
            image: self.image.clone(),
            bytes: metadata.and_then(|it| it.bytes),
            end,
            source: source.unwrap_or_default().to_owned(),
            destination: metadata.map(|it| it.destination.clone()).unwrap_or_default(),
            finished: ranges(State::Finished),
            bad: if self.retry_bad { Vec::new() } else { ranges(State::Bad) },
        };
        Ok((request, (self.map.clone(), loaded)))
    }
}

/// Returns whether an identity in a map is one of a disk of this machine, which ends with its identifier. A disk that was
/// copied over the network has another one there.
fn is_of_local_disk(source: &str) -> bool {
    let last = source.rsplit(' ').next().unwrap_or_default();
    last.len() == 32 && last.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Saves the map of a disk, on a thread of its own: the image may be slow.
#[derive(Debug)]
pub(super) struct MapKeeper {
    path: PathBuf,
    is_image_lost: Arc<AtomicBool>,
    /// Dropped to end the thread.
    stop: Sender<()>,
    ended: Receiver<io::Result<Map>>,
}

impl MapKeeper {
    /// Starts to save the map of the disk. Messages go to `inbox`.
    ///
    /// # Errors
    /// Fails with a message for the user if the map cannot be saved, or if descriptors or threads are exhausted.
    pub(super) fn start(
        lent: &LentDisk,
        (path, map): LoadedMap,
        inbox: &Inbox,
    ) -> Result<Self, Failure> {
        let export = &lent.export;
        let cannot = |error: io::Error| {
            Failure::new(format!("the map {} cannot be saved: {error}", path.display()))
        };
        let Base::Rescued(disk) = export.backing().base() else {
            return Err(Failure::new(format!("{} is not lent by a map", export.name)));
        };
        let own = |file: &OwnedFd| file.try_clone().map(File::from).map_err(cannot);
        let image = disk.image().map(own).transpose()?;
        let mut map = map.unwrap_or_else(|| new_map(lent)).resized(export.bytes());
        if let Some(image) = image.as_ref().filter(|_| map.sum(State::Finished) == 0) {
            // So that it is known if nothing is saved until a crash.
            map.metadata.destination = image_identity(&image.metadata().map_err(cannot)?);
        }
        let is_image_lost = Arc::new(AtomicBool::new(false));
        let mut saver = Saver {
            disk: export.name.clone(),
            map,
            path: path.clone(),
            record: own(disk.record())?,
            image,
            is_image_lost: is_image_lost.clone(),
            blocks: export.blocks(),
            block: export.geometry.block().into(),
            modified: None,
            is_due: false,
            trouble: RescueTrouble::default(),
            inbox: inbox.clone(),
        };
        // At the start, so that a map that cannot be saved is known before anything is read.
        saver.save().map_err(cannot)?;
        if is_image_lost.load(Ordering::Acquire) {
            return Err(Failure::new(format!("the image of {} cannot be synced", export.name)));
        }
        let (stop, stopped) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let run = move || {
            let done = saver.run(&stopped);
            let _ = end.send(done.map(|()| saver.map));
        };
        let thread = thread::Builder::new().name("map".to_owned()).spawn(run);
        thread.map_err(|error| Failure::new(spawn_error(&error)))?;
        Ok(Self { path, is_image_lost, stop, ended })
    }

    /// Returns whether the image has lost data that was written to it.
    pub(super) fn is_image_lost(&self) -> bool {
        self.is_image_lost.load(Ordering::Acquire)
    }

    /// Saves the map for the last time. Returns what it says, or a sentence if it could not be saved until `end`, or
    /// the image has lost data.
    pub(super) fn finish(self, end: Instant) -> Result<String, String> {
        let Self { path, is_image_lost, stop, ended } = self;
        drop(stop);
        let done = ended.recv_timeout(end.saturating_duration_since(Instant::now()));
        let path = path.display();
        match done {
            Ok(Ok(_)) if is_image_lost.load(Ordering::Acquire) => Err(format!(
                "the image of {path} has lost what was written to it last: the map does not call that finished"
            )),
            Ok(Ok(map)) => Ok(format!(
                "{path}: {} are finished, {} are bad, and {} are left",
                decimal(map.sum(State::Finished)),
                decimal(map.sum(State::Bad)),
                decimal(map.bytes() - map.sum(State::Finished) - map.sum(State::Bad))
            )),
            Ok(Err(error)) => Err(format!("{path} could not be saved ({error})")),
            Err(_) => Err(format!("{path} could not be saved in time")),
        }
    }
}

/// Returns the map of a disk of which nothing is known.
fn new_map(lent: &LentDisk) -> Map {
    let mut map = Map::new(lent.export.bytes());
    map.metadata.bytes = Some(lent.export.bytes());
    map.metadata.source.clone_from(&lent.stable_name);
    map.metadata.complete = true;
    map
}

/// What saves the map.
struct Saver {
    /// The path of the disk.
    disk: String,
    map: Map,
    path: PathBuf,
    record: File,
    image: Option<File>,
    /// Whether it has failed to become durable. The kernel reports that once (fsync(2)), and what was written before may
    /// be lost although later calls succeed.
    is_image_lost: Arc<AtomicBool>,
    blocks: u64,
    block: u64,
    /// When the record was changed that was saved last.
    modified: Option<(i64, i64)>,
    /// Whether it is saved again although its time is the same.
    is_due: bool,
    /// What was reported.
    trouble: RescueTrouble,
    inbox: Inbox,
}

impl Saver {
    /// Saves what was found out until `stopped` is closed, and then once more.
    fn run(&mut self, stopped: &Receiver<()>) -> io::Result<()> {
        let mut was_reported = false;
        while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
            self.report_trouble();
            let saved = self.save_changes();
            if let Err(error) = &saved
                && !was_reported
            {
                let path = self.path.display();
                self.inbox.note(format!("{path} cannot be saved now ({error}); it is tried again"));
            }
            was_reported = saved.is_err();
        }
        self.report_trouble();
        self.save()
    }

    /// Saves the map if the record was changed.
    fn save_changes(&mut self) -> io::Result<()> {
        let record = self.record.metadata()?;
        let modified = (record.mtime(), record.mtime_nsec());
        let is_changed = self.modified.replace(modified) != Some(modified);
        if !is_changed && !self.is_due {
            return Ok(());
        }
        // Once more the next time: a change within the resolution of the time does not show.
        self.is_due = is_changed;
        let saved = self.save();
        self.is_due |= saved.is_err();
        saved
    }

    /// Saves what the record says: first the image is made durable. Once that has failed, nothing more is called
    /// finished.
    fn save(&mut self) -> io::Result<()> {
        let found = BlockMap::load(self.blocks, |at, into| read_or_zeros(&self.record, at, into))?;
        let is_lost = self.is_image_lost.load(Ordering::Acquire);
        if let Some(image) = self.image.as_ref().filter(|_| !is_lost)
            && let Err(error) = image.sync_data()
        {
            self.is_image_lost.store(true, Ordering::Release);
            self.inbox.note(format!(
                "the image of {} has lost data that was written to it ({error}): the disk is withdrawn, and {} does not \
                 call that finished",
                self.disk,
                self.path.display()
            ));
        }
        self.include(&found);
        map::save(&self.map, &self.path)
    }

    /// Enters what was found out into the map. What is finished stays so.
    fn include(&mut self, found: &BlockMap) {
        let is_lost = self.is_image_lost.load(Ordering::Acquire);
        let finished: Vec<Range<u64>> = self.map.all(State::Finished).collect();
        let (mut finished, mut at) = (finished.into_iter().peekable(), 0);
        while at < self.blocks {
            let (bits, len) = found.run(at, self.blocks);
            let range = at * self.block..(at + len) * self.block;
            at += len.max(1);
            match RescueState::from(bits) {
                RescueState::Kept if !is_lost => self.map.set(range, State::Finished),
                RescueState::Bad => {
                    let mut start = range.start;
                    while finished.next_if(|known| known.end <= start).is_some() {}
                    while let Some(known) = finished.next_if(|known| known.end <= range.end) {
                        self.map.set(start..known.start.max(start), State::Bad);
                        start = known.end;
                    }
                    let next = finished.peek().map_or(range.end, |known| known.start);
                    self.map.set(start..next.min(range.end), State::Bad);
                }
                RescueState::Kept | RescueState::Unknown => {}
            }
        }
    }

    /// Reports once what prevents that more is kept.
    fn report_trouble(&mut self) {
        let mut bytes = [0; RescueTrouble::BYTES];
        if read_or_zeros(&self.record, 0, &mut bytes).is_err() {
            return;
        }
        let trouble = RescueTrouble::parse(bytes);
        if trouble == self.trouble {
            return;
        }
        self.trouble = trouble;
        let (disk, map) = (&self.disk, self.path.display());
        if let Some(errno) = trouble.image_error {
            let error = io::Error::from(Errno::from_raw_os_error(errno));
            self.inbox.note(format!(
                "the image of {disk} cannot be written ({error}): what hosts read of the disk is not kept"
            ));
        }
        if let Some(at) = trouble.differs_at {
            self.inbox.note(format!(
                "{disk} and the image differ at byte {at}: one of them does not belong to {map}; nothing more is read \
                 from the disk"
            ));
        }
    }
}

/// Fills the buffer, with zeros beyond the end of the file.
fn read_or_zeros(file: &File, mut at: u64, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, at)? {
            0 => break,
            read => {
                at += read as u64;
                into = into.get_mut(read..).unwrap_or_default();
            }
        }
    }
    into.fill(0);
    Ok(())
}

#[cfg(test)]
mod test {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn only_identities_of_local_disks_are_compared() {
        assert!(is_of_local_disk("Example 500 S0 00112233445566778899aabbccddeeff"));
        for source in ["", "nvme nqn.2014-08.org.nvmexpress:uuid:1", "iscsi iqn.1 0", "nbd disk"] {
            assert!(!is_of_local_disk(source), "{source}");
        }
    }

    const BLOCK: u64 = 512;

    /// Returns what saves a map of 16 blocks to `path`, of which the record says these states.
    fn saver(path: PathBuf, map: Map, image: Option<File>, found: &[(u64, RescueState)]) -> Saver {
        let record = memfd_create("record", MemfdFlags::CLOEXEC).map(File::from).unwrap();
        let blocks = BlockMap::new(16);
        for (block, state) in found {
            let store = |at, bytes: &[u8]| record.write_all_at(bytes, at);
            blocks.set(*block..block + 1, (*state).into(), store).unwrap();
        }
        Saver {
            disk: "/dev/sdx".to_owned(),
            map,
            path,
            record,
            image,
            is_image_lost: Arc::default(),
            blocks: 16,
            block: BLOCK,
            modified: None,
            is_due: false,
            trouble: RescueTrouble::default(),
            inbox: Inbox::open().unwrap(),
        }
    }

    /// Returns a folder for a map of this test.
    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("storagetm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn image_that_lost_data_once_makes_nothing_finished() {
        let folder = folder("lost-image");
        // It cannot be synced.
        let null = File::open("/dev/null").unwrap();
        let mut map = Map::new(16 * BLOCK);
        map.set(0..BLOCK, State::Finished);
        let found = [(0, RescueState::Kept), (1, RescueState::Kept), (2, RescueState::Bad)];
        let mut saver = saver(folder.join("map"), map, Some(null), &found);
        saver.save().unwrap();
        // The next time the kernel reports nothing.
        saver.image = Some(File::create(folder.join("image")).unwrap());
        saver.save().unwrap();
        let states: Vec<_> = map::load(&saver.path).unwrap().unwrap().runs().collect();
        let wanted = [State::Finished, State::Untried, State::Bad, State::Untried];
        assert_eq!(states.iter().map(|(_, state)| *state).collect::<Vec<_>>(), wanted);
        assert!(saver.is_image_lost.load(Ordering::Acquire));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn finished_part_of_a_bad_block_stays_finished() {
        let folder = folder("finished-part");
        let mut map = Map::new(16 * BLOCK);
        // A part of block 1, and more than blocks 3 and 4.
        let finished = [600..700, 3 * BLOCK - 10..5 * BLOCK + 10];
        finished.iter().for_each(|range| map.set(range.clone(), State::Finished));
        let found = [1, 2, 3, 5, 9].map(|block| (block, RescueState::Bad));
        let mut saver = saver(folder.join("map"), map, None, &found);
        saver.save().unwrap();
        assert_eq!(saver.map.all(State::Finished).collect::<Vec<_>>(), finished);
        let bad: Vec<_> = saver.map.all(State::Bad).collect();
        assert_eq!(bad, [512..600, 700..1526, 2570..3072, 4608..5120]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn map_is_neither_image_nor_of_a_part_of_the_disk() {
        let folder = folder("own-map");
        let (path, disk) = (folder.join("map"), folder.join("disk"));
        let load = |image: Option<PathBuf>| {
            let options = RescueOptions { map: path.clone(), image, retry_bad: false };
            options.load(&disk).map(|(request, _)| request.end).map_err(|error| error.to_string())
        };
        for name in ["map", "map.bak", "map.new", "./map"] {
            assert!(load(Some(folder.join(name))).unwrap_err().contains("of its own"), "{name}");
        }
        assert_eq!(load(Some(folder.join("image"))), Ok(0));
        // The last range is not tried.
        std::fs::write(&path, "0 ? 1\n0 512 +\n512 512 /\n1024 512 ?\n").unwrap();
        assert_eq!(load(None), Ok(1024));
        let part = "# storagetm bytes 512\n# storagetm source a allocated\n0 ? 1\n0 512 +\n# storagetm end\n";
        std::fs::write(&path, part).unwrap();
        assert!(load(None).unwrap_err().contains("--allocated"));
        std::fs::write(&path, "QFI").unwrap();
        assert!(load(None).unwrap_err().contains("is not a map"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
