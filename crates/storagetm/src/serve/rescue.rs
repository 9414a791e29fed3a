//! The map of a disk that fails (`--map`): read at the start, and saved while the disk is served.
//!
//! The worker records what it finds out in a file in memory. A thread of this process reads that every few seconds,
//! makes the image durable, and then replaces the map: so the map never calls anything finished that is not on stable
//! storage.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ::copy::map::{self, Map, State};
use console::decimal;
use daemon::inbox::Inbox;
use daemon::lend::{LendRequest, LentDisk, RescueRequest};
use export::{Base, BlockMap, RescueState, RescueTrouble};
use failure::{Failure, spawn_error};
use rustix::io::Errno;

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

    /// Reads the map. Returns what is lent by it, and the map.
    ///
    /// # Errors
    /// Fails with a message for the user if it cannot be read, or is none.
    pub(super) fn load(&self) -> Result<(RescueRequest, LoadedMap), Failure> {
        let name = self.map.display();
        let loaded = map::load(&self.map);
        let loaded = loaded.map_err(|error| Failure::new(format!("the map {name}: {error}")))?;
        let ranges = |state| loaded.iter().flat_map(|map: &Map| map.all(state)).collect();
        let metadata = loaded.as_ref().map(|map| &map.metadata);
        let source = metadata.map(|it| it.source.as_str()).filter(|it| is_of_local_disk(it));
        let request = RescueRequest {
            map: self.map.clone(),
            image: self.image.clone(),
            bytes: metadata.and_then(|it| it.bytes),
            source: source.unwrap_or_default().to_owned(),
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
        let mut saver = Saver {
            disk: export.name.clone(),
            map: map.unwrap_or_else(|| new_map(lent)).resized(export.bytes()),
            path: path.clone(),
            record: own(disk.record())?,
            image: disk.image().map(own).transpose()?,
            blocks: export.blocks(),
            block: export.geometry.block().into(),
            modified: None,
            is_due: false,
            trouble: RescueTrouble::default(),
            inbox: inbox.clone(),
        };
        // At the start, so that a map that cannot be saved is known before anything is read.
        saver.save().map_err(cannot)?;
        let (stop, stopped) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let run = move || {
            let done = saver.run(&stopped);
            let _ = end.send(done.map(|()| saver.map));
        };
        let thread = thread::Builder::new().name("map".to_owned()).spawn(run);
        thread.map_err(|error| Failure::new(spawn_error(&error)))?;
        Ok(Self { path, stop, ended })
    }

    /// Saves the map for the last time. Returns what it says, or a sentence if it could not be saved until `end`.
    pub(super) fn finish(self, end: Instant) -> Result<String, String> {
        let Self { path, stop, ended } = self;
        drop(stop);
        let done = ended.recv_timeout(end.saturating_duration_since(Instant::now()));
        let path = path.display();
        match done {
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

    /// Saves what the record says: first the image is made durable.
    fn save(&mut self) -> io::Result<()> {
        let found = BlockMap::load(self.blocks, |at, into| read_or_zeros(&self.record, at, into))?;
        if let Some(image) = &self.image {
            image.sync_data()?;
        }
        let mut at = 0;
        while at < self.blocks {
            let (bits, len) = found.run(at, self.blocks);
            let range = at * self.block..(at + len) * self.block;
            match RescueState::from(bits) {
                RescueState::Kept => self.map.set(range, State::Finished),
                RescueState::Bad => self.map.set(range, State::Bad),
                RescueState::Unknown => {}
            }
            at += len.max(1);
        }
        map::save(&self.map, &self.path)
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
                "{disk} is not the disk of {map}: it differs from the image at byte {at}; nothing more is read from it"
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
    use super::*;

    #[test]
    fn only_identities_of_local_disks_are_compared() {
        assert!(is_of_local_disk("Example 500 S0 00112233445566778899aabbccddeeff"));
        for source in ["", "nvme nqn.2014-08.org.nvmexpress:uuid:1", "iscsi iqn.1 0", "nbd disk"] {
            assert!(!is_of_local_disk(source), "{source}");
        }
    }
}
