//! Overlays in memory: what hosts write to a disk is kept there, and the disk is not changed.

use std::io;
use std::os::fd::OwnedFd;

use export::{Backing, Export, Identity, Overlay};
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

    use export::Geometry;

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
