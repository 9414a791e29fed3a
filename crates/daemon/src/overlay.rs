//! Overlays in memory: what hosts write to a disk is kept there, and the disk is not changed.

use std::io;
use std::os::fd::OwnedFd;

use export::{Backing, BlockMap, Export, Identity, Overlay};
use linux::tree::Tree;
use linux::{identity, memory};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;

/// The overlay of an exported disk.
#[derive(Debug, Clone, Serialize)]
pub struct OverlayRef {
    kept_in: &'static str,
    limit: u64,
}

impl OverlayRef {
    pub(crate) fn of(export: &Export) -> Option<Self> {
        let Backing::Overlay(overlay) = export.backing() else { return None };
        Some(Self { kept_in: "memory", limit: overlay.limit() })
    }
}

/// Returns the most that each of `overlays` overlays may keep: a quarter of the memory together.
pub fn limit(tree: &Tree, overlays: usize) -> u64 {
    memory::available(tree) / 4 / (overlays.max(1) as u64)
}

/// The table of the map may take this part of the limit.
const TABLE_SHARE: u64 = 8;

/// Returns the backing of a disk of `bytes` bytes in blocks of `block` bytes, of which changes are kept
/// in memory: `limit` bytes at most, with the table of the map.
///
/// # Errors
/// Fails if the disk is too large for the limit, or if memory is exhausted.
pub(crate) fn in_memory(base: OwnedFd, bytes: u64, block: u32, limit: u64) -> io::Result<Backing> {
    let table = BlockMap::table_bytes(bytes / u64::from(block.max(1)));
    if table > limit / TABLE_SHARE {
        return Err(io::Error::other(format!(
            "it is too large for an overlay in memory: the table of its blocks takes {}, and the \
             overlay {} at most",
            console::decimal(table),
            console::decimal(limit)
        )));
    }
    let file = |name| memfd_create(name, MemfdFlags::CLOEXEC);
    let (data, map) = (file("overlay")?, file("overlay-map")?);
    ftruncate(&data, bytes)?;
    Ok(Backing::Overlay(Overlay::new(base, data, map, limit - table)))
}

/// Returns the identity of a new overlay over the disk `base`: that of another disk, so that no host
/// takes it for a path to the disk, nor for an earlier overlay whose changes are gone.
///
/// # Errors
/// Fails if there are no random bytes.
pub(crate) fn identity(base: Identity) -> io::Result<Identity> {
    let mut instance = [0; 16];
    getrandom(&mut instance, GetRandomFlags::empty())?;
    let (uuid, serial) = identity::of_overlay(&base.uuid, &instance);
    Ok(Identity { uuid, nguid: None, eui64: None, serial, ..base })
}

/// Returns the message for the user about an overlay over the disk at `path`.
pub(crate) fn note(path: &str, limit: u64) -> String {
    format!(
        "what hosts write to {path} is kept in memory, {} at most, which may be swapped to a disk, and \
         is gone when storagetm ends or the disk is removed; {path} itself is not changed; all hosts \
         share what is written, so mount it on one at a time",
        console::decimal(limit)
    )
}

/// Returns how many bytes of the limit are used: by the data, and by the map, which is in its file and
/// in the worker. Returns `None` without an overlay.
pub(crate) fn kept(export: &Export) -> Option<u64> {
    let Backing::Overlay(overlay) = export.backing() else { return None };
    let stored = |file: &OwnedFd| {
        let blocks = fstat(file).map_or(0, |stat| stat.st_blocks);
        u64::try_from(blocks).unwrap_or(0) * 512
    };
    Some(stored(overlay.data()) + 2 * stored(overlay.map_file()))
}

#[cfg(test)]
mod test {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use export::Geometry;

    use super::*;

    #[test]
    fn what_is_kept_is_counted_in_pages() {
        let base = File::open("/dev/zero").unwrap().into();
        let backing = in_memory(base, 1 << 20, 512, 1 << 16).unwrap();
        let geometry = Geometry::new(512, 512).unwrap();
        let export = Export::new("a", "a", Identity::default(), geometry, 1 << 20, backing);
        assert_eq!(kept(&export), Some(0));
        let data = export.backing().written().try_clone_to_owned().unwrap();
        File::from(data).write_all_at(&[1; 512], 8192).unwrap();
        assert_eq!(kept(&export), Some(4096));
        let Backing::Overlay(overlay) = export.backing() else { panic!("no overlay") };
        File::from(overlay.map_file().try_clone().unwrap()).write_all_at(&[1], 0).unwrap();
        assert_eq!(kept(&export), Some(3 * 4096), "the map counts twice, as for the limit");
        assert!((1 << 16) - overlay.limit() < 256, "the table is counted");
    }

    #[test]
    fn overlay_with_a_table_beyond_its_limit_is_refused() {
        let base = || File::open("/dev/zero").unwrap().into();
        let refused = in_memory(base(), 1 << 50, 512, 1 << 30).unwrap_err().to_string();
        assert!(refused.contains("too large for an overlay"), "{refused}");
        assert!(in_memory(base(), 1 << 40, 512, 1 << 30).is_ok());
    }
}
