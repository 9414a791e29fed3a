//! Overlays: what hosts write to a disk is kept in memory or in files, and the disk is not changed.

mod folder;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use console::{KeptByHost, KeptChanges};
use export::{
    Backing, Base, BlockMap, Export, Identity, MAX_STATES, Overlay, OverlayHost, OverlayLayout,
};
use failure::Failure;
use filesystem::Container;
use folder::SHARED;
pub use folder::{BaseDisk, OverlayContents, OverlayFolder, OverlayRecord, StateFiles, list};
use linux::block::{self, Disk};
use linux::disk::Opened;
use linux::tree::Tree;
use linux::{identity, memory};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;

/// How overlays are kept.
#[derive(Debug, Clone)]
pub struct OverlayOptions {
    /// The most memory that one may take, in bytes.
    pub limit: u64,
    /// Whether all hosts see what any of them has written. Else each sees only what it has written
    /// itself.
    pub is_shared: bool,
    /// Where overlays are kept in files; `None` to keep them in memory.
    pub dir: Option<PathBuf>,
}

/// The overlay of an exported disk.
#[derive(Debug, Clone, Serialize)]
pub struct OverlayRef {
    kept_in: &'static str,
    limit: u64,
    shared: bool,
}

impl OverlayRef {
    pub(crate) fn of(export: &Export) -> Option<Self> {
        let overlay = export.backing().overlay()?;
        let OverlayLayout { limit, is_private, is_durable, .. } = overlay.layout();
        let kept_in = if is_durable { "files" } else { "memory" };
        Some(Self { kept_in, limit, shared: !is_private })
    }
}

/// Changes that an overlay keeps.
#[derive(Debug, Clone, Serialize)]
pub struct Kept {
    /// Bytes, of all hosts.
    kept: u64,
    /// Of each host, if each has its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept_by: Vec<KeptBy>,
}

/// Changes of one host that an overlay keeps.
#[derive(Debug, Clone, Serialize)]
struct KeptBy {
    host: String,
    keyed: bool,
    bytes: u64,
}

impl Kept {
    pub(crate) fn of(export: &Export) -> Option<Self> {
        let KeptChanges { bytes: kept, by_host, .. } = kept(export)?;
        let kept_by = by_host.into_iter();
        let kept_by =
            kept_by.map(|it| KeptBy { host: it.host, keyed: it.has_key, bytes: it.bytes });
        Some(Self { kept, kept_by: kept_by.collect() })
    }
}

/// Returns the most memory that each of `overlays` overlays may take: a quarter of all together.
pub fn limit(tree: &Tree, overlays: usize) -> u64 {
    memory::available(tree) / 4 / (overlays.max(1) as u64)
}

/// Returns the most memory that an overlay may take that is added beside the `others`: half of what they leave of half of
/// the memory, so that all together never get more than that. `reserved` is for those that are being opened, in bytes.
pub fn limit_beside<'a>(
    tree: &Tree,
    others: impl Iterator<Item = &'a Export>,
    reserved: u64,
) -> u64 {
    let (mut taken, mut kept_bytes) = (reserved, 0u64);
    for export in others {
        let Some(overlay) = export.backing().overlay() else { continue };
        let layout = overlay.layout();
        taken = taken.saturating_add(layout.limit / layout.map_cost.max(1));
        if !layout.is_durable {
            kept_bytes = kept_bytes.saturating_add(kept(export).map_or(0, |kept| kept.bytes));
        }
    }
    share(memory::available(tree).saturating_add(kept_bytes), taken)
}

/// Returns the limit of one more overlay: `memory` is what all of them can have, `taken` the sum of their limits.
fn share(memory: u64, taken: u64) -> u64 {
    (memory / 2).saturating_sub(taken) / 2
}

/// Memory that overlays leave in target mode, where nothing else uses it, in bytes.
const RESERVE: u64 = 256 << 20;

/// Returns the most memory of all overlays together in target mode.
pub(crate) fn console_budget(tree: &Tree) -> u64 {
    let available = memory::available(tree);
    (available / 2).min(available.saturating_sub(RESERVE))
}

/// The table of the map may take this part of the limit.
const TABLE_SHARE: u64 = 8;

/// Returns where the partitions of a disk start.
fn partitions(tree: &Tree, disk: Option<&Disk>) -> Vec<u64> {
    let Some(disk) = disk else { return Vec::new() };
    let all = block::scan(tree).unwrap_or_default();
    let parts = all.into_iter().filter_map(|other| other.part);
    parts.filter(|part| part.whole_disk == disk.name).map(|part| part.start).collect()
}

/// A new overlay, or one that is continued.
#[derive(Debug)]
pub(crate) struct NewOverlay {
    layout: OverlayLayout,
    bytes: u64,
    /// `None` for an overlay in memory.
    pub(crate) folder: Option<OverlayFolder>,
}

impl NewOverlay {
    /// Returns an overlay over an opened disk, as the options demand. `container` is the format of the file that the
    /// disk is in.
    ///
    /// # Errors
    /// Fails if the disk is too large for the limit, or if the files cannot be used.
    pub(crate) fn over(
        opened: &Opened,
        identity: &Identity,
        disk: Option<&Disk>,
        container: Option<Container>,
        (tree, options): (&Tree, &OverlayOptions),
    ) -> Result<Self, Failure> {
        let base = BaseDisk {
            path: &opened.path,
            container,
            file: opened.descriptor.as_fd(),
            uuid: identity.uuid,
            bytes: opened.bytes,
            block: opened.logical_block,
            partitions: &partitions(tree, disk),
        };
        Self::new(&base, options)
    }

    /// Returns whether what is written is durable only after a flush.
    pub(crate) fn is_cached(&self) -> bool {
        self.folder.is_some()
    }

    fn new(base: &BaseDisk<'_>, options: &OverlayOptions) -> Result<Self, Failure> {
        let table = BlockMap::table_bytes(base.bytes / u64::from(base.block.max(1)));
        if table > options.limit / TABLE_SHARE {
            return Err(Failure::new(format!(
                "{} cannot be lent: it is too large for an overlay: the table of its blocks takes {} of \
                 memory, and all of the overlay {} at most",
                base.path.display(),
                console::decimal(table),
                console::decimal(options.limit)
            )));
        }
        let dir = options.dir.as_ref();
        let folder = dir.map(|dir| OverlayFolder::of_disk(dir, base)).transpose()?;
        let (mut limit, mut map_cost) = (options.limit, 1);
        if let Some(folder) = &folder {
            limit = folder.limit()?;
            map_cost = (limit / options.limit.max(1)).max(1);
        }
        let (is_private, is_durable) = (!options.is_shared, folder.is_some());
        let layout = OverlayLayout { limit, map_cost, is_private, is_durable };
        Ok(Self { layout, bytes: base.bytes, folder })
    }

    /// Returns its identity over the disk `base`: that of another disk, so that no host takes it for a
    /// path to the disk, nor for an earlier overlay whose changes are gone.
    ///
    /// # Errors
    /// Fails if there are no random bytes.
    pub(crate) fn identity(&self, base: Identity) -> Result<Identity, Failure> {
        let mut instance = [0; 16];
        match &self.folder {
            Some(folder) => instance = *folder.instance(),
            None => {
                let drawn = getrandom(&mut instance, GetRandomFlags::empty());
                drawn.map_err(|error| Failure::new(format!("no random bytes: {error}")))?;
            }
        }
        let (uuid, serial) = identity::of_overlay(&base.uuid, &instance);
        Ok(Identity { uuid, nguid: None, eui64: None, serial, own_serial: None, ..base })
    }

    /// Returns the backing, over the files of the disk.
    ///
    /// # Errors
    /// Fails if memory is exhausted, or if a file cannot be used.
    pub(crate) fn backing(&self, base: Base) -> Result<Backing, Failure> {
        let mut files = Vec::new();
        let states = if self.layout.is_private { MAX_STATES } else { 1 };
        for number in 0..states {
            let name = if self.layout.is_private { number.to_string() } else { SHARED.to_owned() };
            let opened = match &self.folder {
                None => self.in_memory().map(Vec::from),
                Some(folder) => in_files(folder.state(&name)?).map(Vec::from),
            };
            files.extend(opened.map_err(|error| {
                Failure::new(format!("the files of an overlay cannot be made: {error}"))
            })?);
        }
        let overlay = Overlay::new(files, self.layout).map(|overlay| Backing::over(base, overlay));
        overlay.ok_or_else(|| Failure::new("the files of an overlay cannot be made"))
    }

    fn in_memory(&self) -> io::Result<[OwnedFd; 2]> {
        let data = memfd_create("overlay", MemfdFlags::CLOEXEC)?;
        ftruncate(&data, self.bytes)?;
        Ok([data, memfd_create("overlay-map", MemfdFlags::CLOEXEC)?])
    }

    /// Returns the message for the user about the overlay over the disk at `path`.
    pub(crate) fn note(&self, path: &str) -> String {
        let limit = console::decimal(self.layout.limit);
        let (whose, share) = match self.layout.is_private {
            false => {
                ("", "; all hosts share what is written, so mount it on one at a time".to_owned())
            }
            true => (
                " separately for each host",
                format!(
                    "; there is room for {MAX_STATES} hosts that write, half of them without a key, \
                     and one host gets half of what the others leave of {limit}"
                ),
            ),
        };
        let kept = match &self.folder {
            None => format!(
                "in memory{whose}, {limit} at most, which may be swapped to a disk, and is gone when \
                 storagetm ends or the disk is removed"
            ),
            Some(folder) => format!(
                "in files in {}{whose}, {limit} at most, until it is discarded",
                folder.path().display()
            ),
        };
        format!("what hosts write to {path} is kept {kept}; {path} itself is not changed{share}")
    }
}

/// Returns the files of a state, and between them a map in memory, which outlives a worker.
fn in_files(state: StateFiles) -> io::Result<[OwnedFd; 3]> {
    let map = File::from(memfd_create("overlay-map", MemfdFlags::CLOEXEC)?);
    let (mut at, mut page) = (0, [0; 4096]);
    // As long as the file is: holes stay holes.
    let len = state.map.metadata()?.len();
    while at < len {
        let read = state.map.read_at(&mut page, at)?;
        let bytes = page.get(..read).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or(io::ErrorKind::UnexpectedEof)?;
        if bytes.iter().any(|byte| *byte != 0) {
            map.write_all_at(bytes, at)?;
        }
        at += read as u64;
    }
    Ok([state.data.into(), map.into(), state.map.into()])
}

/// Returns how many bytes of the limit are used: by the data, and by the map, which is in its file and
/// in the worker. Returns `None` without an overlay.
pub(crate) fn kept(export: &Export) -> Option<KeptChanges> {
    let overlay = export.backing().overlay()?;
    let in_files = overlay.layout().is_durable;
    let mut kept = KeptChanges { in_files, ..KeptChanges::default() };
    for state in 0..overlay.states() {
        let Some((_, data, map)) = overlay.state(state) else { continue };
        // In files, the memory for the map is not counted.
        let stored = |file: &OwnedFd| engine::stored_bytes(file).unwrap_or(0);
        let map_bytes = overlay.durable_map(state).map_or_else(|| 2 * stored(map), stored);
        let bytes = stored(data) + map_bytes;
        kept.bytes += bytes;
        // What the worker has written is shown escaped.
        let host = host_of(map).filter(|host| bytes > 0 && *host != OverlayHost::All);
        kept.by_host.extend(host.map(|host| {
            let (host, has_key) = (host.text().to_owned(), host.has_key());
            KeptByHost { host, has_key, bytes }
        }));
    }
    Some(kept)
}

/// Returns the host that the file with a map names.
fn host_of(map: &OwnedFd) -> Option<OverlayHost> {
    let mut header = [0; 1024];
    let len = rustix::io::pread(map, &mut header, 0).ok()?;
    OverlayHost::parse_header(header.get(..len)?)
}

#[cfg(test)]
pub(crate) mod test {
    use std::path::Path;

    use export::Geometry;

    use super::*;

    #[test]
    fn added_overlays_never_get_more_than_half_of_the_memory() {
        let (memory, mut taken) = (64u64 << 30, 0);
        let first = share(memory, taken);
        assert_eq!(first, memory / 4);
        for _ in 0..100 {
            taken += share(memory, taken);
            assert!(taken <= memory / 2, "{taken}");
        }
        assert_eq!(share(memory, memory), 0);
    }

    #[test]
    fn overlays_that_are_being_opened_count() {
        let folder = testkit::Scratch::new();
        let tree = Tree::at(&folder.0);
        std::fs::create_dir_all(folder.0.join("proc")).unwrap();
        std::fs::write(folder.0.join("proc/meminfo"), "MemTotal: 4194304 kB\n").unwrap();
        let (memory, mut reserved) = (4u64 << 30, 0);
        // As many as are opened at a time, none of which is lent yet.
        for _ in 0..4 {
            reserved += limit_beside(&tree, [].into_iter(), reserved);
            assert!(reserved <= memory / 2, "{reserved}");
        }
        assert!(reserved > memory / 4);
    }

    fn options() -> OverlayOptions {
        OverlayOptions { limit: 1 << 30, is_shared: false, dir: None }
    }

    /// Returns an overlay in memory over a disk of zeros.
    pub(crate) fn backing(bytes: u64) -> Backing {
        test_backing(bytes, &options()).unwrap()
    }

    fn test_backing(bytes: u64, options: &OverlayOptions) -> Result<Backing, Failure> {
        let base = File::open("/dev/zero").unwrap();
        let path = Path::new("/dev/zero");
        let base_disk = BaseDisk {
            path,
            container: None,
            file: base.as_fd(),
            uuid: [1; 16],
            bytes,
            block: 512,
            partitions: &[],
        };
        let overlay = NewOverlay::new(&base_disk, options)?;
        let named = Identity { nguid: Some([1; 16]), eui64: Some([1; 8]), ..Identity::default() };
        let identity = overlay.identity(named).unwrap();
        assert_eq!((identity.nguid, identity.eui64, identity.serial.len()), (None, None, 20));
        overlay.backing(Base::Raw(base.into()))
    }

    #[test]
    fn what_is_kept_is_counted_in_pages() {
        let backing =
            test_backing(1 << 20, &OverlayOptions { limit: 1 << 16, ..options() }).unwrap();
        let geometry = Geometry::new(512, 512).unwrap();
        let export = Export::new("a", "a", Identity::default(), geometry, 1 << 20, backing);
        let kept = || kept(&export).unwrap();
        assert_eq!(kept(), KeptChanges::default());
        let overlay = export.backing().overlay().unwrap();
        let write = |file: &OwnedFd, bytes: &[u8]| {
            File::from(file.try_clone().unwrap()).write_all_at(bytes, 0).unwrap();
        };
        let (_, data, map) = overlay.state(3).unwrap();
        write(data, &[1; 512]);
        assert_eq!((kept().bytes, kept().by_host.len()), (4096, 0));
        write(map, &OverlayHost::Named("nqn.a".to_owned()).header());
        let bytes = 3 * 4096;
        assert_eq!(kept().bytes, bytes, "the map counts twice, as for the limit");
        let [KeptByHost { host, has_key: false, bytes: of_host }] = &kept().by_host[..] else {
            panic!("one host without a key")
        };
        assert_eq!((host.as_str(), *of_host), ("nqn.a", bytes));
    }

    #[test]
    fn overlay_with_a_table_beyond_its_limit_is_refused() {
        let refused = test_backing(1 << 50, &options()).unwrap_err().to_string();
        assert!(refused.contains("too large for an overlay"), "{refused}");
        assert!(test_backing(1 << 40, &options()).is_ok());
    }
}
