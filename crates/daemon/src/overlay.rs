//! Overlays in memory: what hosts write to a disk is kept there, and the disk is not changed.

use std::io;
use std::os::fd::OwnedFd;

use console::KeptChanges;
use export::{Backing, BlockMap, Export, Identity, MAX_STATES, Overlay, OverlayHost};
use linux::tree::Tree;
use linux::{identity, memory};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;

/// How overlays are kept.
#[derive(Debug, Clone, Copy)]
pub struct OverlayOptions {
    /// The most that one may keep, in bytes.
    pub limit: u64,
    /// Whether all hosts see what any of them has written. Else each sees only what it has written
    /// itself.
    pub is_shared: bool,
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
        let Backing::Overlay(overlay) = export.backing() else { return None };
        Some(Self { kept_in: "memory", limit: overlay.limit(), shared: !overlay.is_private() })
    }
}

/// Returns the most that each of `overlays` overlays may keep: a quarter of the memory together.
pub fn limit(tree: &Tree, overlays: usize) -> u64 {
    memory::available(tree) / 4 / (overlays.max(1) as u64)
}

/// The table of the map may take this part of the limit.
const TABLE_SHARE: u64 = 8;

/// Returns the backing of a disk of `bytes` bytes in blocks of `block` bytes, of which changes are kept
/// in memory.
///
/// # Errors
/// Fails if the disk is too large for the limit, or if memory is exhausted.
pub(crate) fn in_memory(
    base: OwnedFd,
    bytes: u64,
    block: u32,
    options: OverlayOptions,
) -> io::Result<Backing> {
    let OverlayOptions { limit, is_shared } = options;
    let table = BlockMap::table_bytes(bytes / u64::from(block.max(1)));
    if table > limit / TABLE_SHARE {
        return Err(io::Error::other(format!(
            "it is too large for an overlay in memory: the table of its blocks takes {}, and the \
             overlay {} at most",
            console::decimal(table),
            console::decimal(limit)
        )));
    }
    let mut files = vec![base];
    for _ in 0..if is_shared { 1 } else { MAX_STATES } {
        let data = memfd_create("overlay", MemfdFlags::CLOEXEC)?;
        ftruncate(&data, bytes)?;
        files.extend([data, memfd_create("overlay-map", MemfdFlags::CLOEXEC)?]);
    }
    let overlay = Overlay::new(files, limit, !is_shared);
    overlay.map(Backing::Overlay).ok_or_else(|| io::ErrorKind::InvalidInput.into())
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
pub(crate) fn note(path: &str, OverlayOptions { limit, is_shared }: OverlayOptions) -> String {
    let limit = console::decimal(limit);
    let (whose, share) = match is_shared {
        true => ("", "; all hosts share what is written, so mount it on one at a time".to_owned()),
        false => (
            " for each host apart",
            format!(
                "; there is room for {MAX_STATES} hosts that write, half of them without a key, and \
                 one host gets half of what the others leave of {limit}"
            ),
        ),
    };
    format!(
        "what hosts write to {path} is kept in memory{whose}, {limit} at most, which may be swapped to a \
         disk, and is gone when storagetm ends or the disk is removed; {path} itself is not \
         changed{share}"
    )
}

/// Returns how many bytes of the limit are used: by the data, and by the map, which is in its file and
/// in the worker. Returns `None` without an overlay.
pub(crate) fn kept(export: &Export) -> Option<KeptChanges> {
    let Backing::Overlay(overlay) = export.backing() else { return None };
    let mut kept = KeptChanges::default();
    for state in 0..overlay.states() {
        let Some((_, data, map)) = overlay.state(state) else { continue };
        let bytes = stored(data) + 2 * stored(map);
        kept.bytes += bytes;
        // What the worker has written is shown escaped.
        let host = host_of(map).filter(|host| bytes > 0 && *host != OverlayHost::All);
        kept.by_host.extend(host.map(|host| (host.to_string(), bytes)));
    }
    Some(kept)
}

fn stored(file: &OwnedFd) -> u64 {
    let blocks = fstat(file).map_or(0, |stat| stat.st_blocks);
    u64::try_from(blocks).unwrap_or(0) * 512
}

/// Returns the host that the file with a map names.
fn host_of(map: &OwnedFd) -> Option<OverlayHost> {
    let mut head = [0; 1024];
    let len = rustix::io::pread(map, &mut head, 0).ok()?;
    OverlayHost::parse_head(head.get(..len)?)
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
        let options = OverlayOptions { limit: 1 << 16, is_shared: false };
        let backing = in_memory(base, 1 << 20, 512, options).unwrap();
        let geometry = Geometry::new(512, 512).unwrap();
        let export = Export::new("a", "a", Identity::default(), geometry, 1 << 20, backing);
        let kept = || kept(&export).unwrap();
        assert_eq!(kept(), KeptChanges::default());
        let Backing::Overlay(overlay) = export.backing() else { panic!("no overlay") };
        let write = |file: &OwnedFd, bytes: &[u8]| {
            File::from(file.try_clone().unwrap()).write_all_at(bytes, 0).unwrap();
        };
        let (_, data, map) = overlay.state(3).unwrap();
        write(data, &[1; 512]);
        assert_eq!((kept().bytes, kept().by_host.len()), (4096, 0));
        write(map, &OverlayHost::Named("nqn.a".to_owned()).head());
        let bytes = 3 * 4096;
        assert_eq!(kept().bytes, bytes, "the map counts twice, as for the limit");
        assert_eq!(kept().by_host, [("nqn.a".to_owned(), bytes)]);
    }

    #[test]
    fn overlay_with_a_table_beyond_its_limit_is_refused() {
        let base = || File::open("/dev/zero").unwrap().into();
        let options = OverlayOptions { limit: 1 << 30, is_shared: true };
        let refused = in_memory(base(), 1 << 50, 512, options).unwrap_err().to_string();
        assert!(refused.contains("too large for an overlay"), "{refused}");
        assert!(in_memory(base(), 1 << 40, 512, options).is_ok());
    }
}
