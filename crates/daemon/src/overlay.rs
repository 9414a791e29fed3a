//! Overlays in memory: what hosts write to a disk is kept there, and the disk is not changed.

use std::io;
use std::os::fd::OwnedFd;

use export::{Backing, Export, Overlay};
use linux::memory;
use linux::tree::Tree;
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
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

/// Returns the backing of a disk of `bytes` bytes, of which changes are kept in memory.
///
/// # Errors
/// Fails if memory is exhausted.
pub(crate) fn in_memory(base: OwnedFd, bytes: u64, limit: u64) -> io::Result<Backing> {
    let file = |name| memfd_create(name, MemfdFlags::CLOEXEC);
    let (data, map) = (file("overlay")?, file("overlay-map")?);
    ftruncate(&data, bytes)?;
    Ok(Backing::Overlay(Overlay::new(base, data, map, limit)))
}

/// Returns how many bytes of changes are kept; `None` without an overlay.
pub(crate) fn kept(export: &Export) -> Option<u64> {
    let Backing::Overlay(overlay) = export.backing() else { return None };
    let blocks = fstat(overlay.data()).map_or(0, |stat| stat.st_blocks);
    Some(u64::try_from(blocks).unwrap_or(0) * 512)
}

#[cfg(test)]
mod test {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use export::{Geometry, Identity};

    use super::*;

    #[test]
    fn what_is_kept_is_counted_in_pages() {
        let base = File::open("/dev/zero").unwrap().into();
        let backing = in_memory(base, 1 << 20, 1 << 16).unwrap();
        let geometry = Geometry::new(512, 512).unwrap();
        let export = Export::new("a", "a", Identity::default(), geometry, 1 << 20, backing);
        assert_eq!(kept(&export), Some(0));
        let data = export.backing().written().try_clone_to_owned().unwrap();
        File::from(data).write_all_at(&[1; 512], 8192).unwrap();
        assert_eq!(kept(&export), Some(4096));
    }
}
