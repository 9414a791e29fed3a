//! Signatures of members of arrays and pools that are not at the start of the device: RAID, DRBD,
//! ZFS.

use super::{Kind, Signature, uuid};
use crate::medium::{ReadAt, array, label, le32, le64, window};
use std::io;

const MD_MAGIC: u32 = 0xa92b_4efc;
/// Covers every signature counted from the end: the farthest is that of md 0.90, up to 128 KiB
/// away.
const TAIL: usize = 128 << 10;
const TAIL_BYTES: u64 = 128 << 10;
const MD_UNIT: u64 = 64 << 10;
const ZFS_LABEL: u64 = 256 << 10;
const ZFS_RING: usize = 128 << 10;
const ZFS_MAGIC: u64 = 0x00ba_b10c;
/// DRBD 8.3, 8.4 (clean and not) and 9.
const DRBD_MAGIC: [u32; 3] = [0x8374_026b, 0x8374_026c, 0x8374_026d];

/// Returns all such signatures on a disk of `bytes` bytes that begins with `head`.
pub(super) fn find<R: ReadAt + ?Sized>(
    reader: &R,
    head: &[u8],
    bytes: u64,
) -> io::Result<Vec<Signature>> {
    let mut found = Vec::new();
    found.extend([0, 4096].iter().find_map(|at| md1(head.get(*at..)?)));
    let start = bytes.saturating_sub(TAIL_BYTES);
    let tail = window(reader, start, TAIL)?;
    let at = |place: u64| tail.get(usize::try_from(place.checked_sub(start)?).ok()?..);
    found.extend(md0_place(bytes).and_then(at).and_then(md0));
    found.extend(md1_place(bytes).and_then(at).and_then(md1));
    found.extend(bytes.checked_sub(4096).and_then(at).and_then(drbd));
    found.extend(bytes.checked_sub(1024).and_then(at).and_then(intel));
    found.extend(bytes.checked_sub(512).and_then(at).and_then(ddf));
    found.extend(zfs(reader, bytes)?);
    Ok(found)
}

/// md 0.90: the last whole 64 KiB aligned to 64 KiB.
fn md0_place(bytes: u64) -> Option<u64> {
    (bytes & !(MD_UNIT - 1)).checked_sub(MD_UNIT)
}

/// md 1.0: 8 KiB before the end, aligned to 4 KiB.
fn md1_place(bytes: u64) -> Option<u64> {
    bytes.checked_sub(8192).map(|place| place & !4095)
}

fn md0(sb: &[u8]) -> Option<Signature> {
    let big = match array(sb, 0)? {
        bytes if u32::from_le_bytes(bytes) == MD_MAGIC => false,
        bytes if u32::from_be_bytes(bytes) == MD_MAGIC => true,
        _ => return None,
    };
    let word = |at| array(sb, at).map(if big { u32::from_be_bytes } else { u32::from_le_bytes });
    (word(4)? == 0).then_some(())?;
    let identifier = [20, 52, 56, 60].map(|at| word(at).unwrap_or(0));
    let uuid = identifier.map(|word| format!("{word:08x}")).join(":");
    let (level, devices) = (word(28)?.cast_signed(), word(40)?.into());
    Some(Signature { uuid: Some(uuid), devices, level: Some(level), ..Signature::of(Kind::Md) })
}

fn md1(sb: &[u8]) -> Option<Signature> {
    (le32(sb, 0)? == MD_MAGIC && le32(sb, 4)? == 1).then_some(())?;
    Some(Signature {
        uuid: uuid(sb, 16),
        label: label(&String::from_utf8_lossy(sb.get(32..64)?)),
        devices: le32(sb, 92)?.into(),
        level: Some(le32(sb, 72)?.cast_signed()),
        kind: Kind::Md,
    })
}

fn drbd(metadata: &[u8]) -> Option<Signature> {
    let magic = u32::from_be_bytes(array(metadata, 60)?);
    DRBD_MAGIC.contains(&magic).then(|| Signature::of(Kind::Drbd))
}

/// Intel Matrix RAID (firmware), two sectors from the end.
fn intel(sectors: &[u8]) -> Option<Signature> {
    sectors.starts_with(b"Intel Raid ISM Cfg Sig. ").then(|| Signature::of(Kind::FirmwareRaid))
}

/// The Disk Data Format of RAID controllers (SNIA DDF 2.0 §4.2), in the last sector.
fn ddf(sector: &[u8]) -> Option<Signature> {
    let anchor = u32::from_be_bytes(array(sector, 0)?);
    matches!(anchor, 0xde11_de11 | 0x11de_11de).then(|| Signature::of(Kind::FirmwareRaid))
}

/// Four labels, two at each end; the second half of each is a ring of 1 KiB uberblocks.
fn zfs<R: ReadAt + ?Sized>(reader: &R, bytes: u64) -> io::Result<Option<Signature>> {
    let end = bytes & !(ZFS_LABEL - 1);
    let places =
        [Some(0), Some(ZFS_LABEL), end.checked_sub(2 * ZFS_LABEL), end.checked_sub(ZFS_LABEL)];
    for place in places.into_iter().flatten() {
        let ring = window(reader, place.saturating_add(ZFS_LABEL / 2), ZFS_RING)?;
        if ring.chunks(1024).any(is_uberblock) {
            return Ok(Some(Signature::of(Kind::Zfs)));
        }
    }
    Ok(None)
}

fn is_uberblock(slot: &[u8]) -> bool {
    le64(slot, 0).is_some_and(|word| word == ZFS_MAGIC || word.swap_bytes() == ZFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = (1 << 20) + 24 * 1024;

    fn only(at: usize, mark: &[u8]) -> Signature {
        let mut disk = vec![0; BYTES];
        disk[at..at + mark.len()].copy_from_slice(mark);
        let mut found = find(&disk[..], &disk[..72 << 10], disk.len() as u64).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn array_of(name: &[u8]) -> Vec<u8> {
        let mut sb = vec![0; 256];
        sb[..4].copy_from_slice(&MD_MAGIC.to_le_bytes());
        sb[4] = 1;
        sb[16..32].fill(0xab);
        sb[32..32 + name.len()].copy_from_slice(name);
        sb[72] = 5;
        sb[92] = 3;
        sb
    }

    #[test]
    fn arrays_are_found_at_their_three_places() {
        for at in [0, 4096, BYTES - 8192] {
            let md = only(at, &array_of(b"host:home"));
            assert_eq!((md.kind, md.label.as_deref()), (Kind::Md, Some("host:home")));
            assert_eq!((md.level, md.devices), (Some(5), 3));
            assert_eq!(md.uuid.as_deref(), Some("abababab-abab-abab-abab-abababababab"));
        }
    }

    #[test]
    fn old_arrays_are_found_in_either_byte_order() {
        for turn in [u32::to_le_bytes, u32::to_be_bytes] {
            let mut sb = vec![0; 64];
            for (at, word) in [(0, MD_MAGIC), (20, 0x0102_0304), (28, 1), (40, 2), (60, 9)] {
                sb[at..at + 4].copy_from_slice(&turn(word));
            }
            let md = only((1 << 20) - (64 << 10), &sb);
            assert_eq!(md.uuid.as_deref(), Some("01020304:00000000:00000000:00000009"));
            assert_eq!((md.level, md.devices), (Some(1), 2));
        }
    }

    #[test]
    fn firmware_raid_and_drbd_are_found_at_the_end() {
        assert_eq!(only(BYTES - 1024, b"Intel Raid ISM Cfg Sig. 1.3").kind, Kind::FirmwareRaid);
        assert_eq!(only(BYTES - 512, &[0xde, 0x11, 0xde, 0x11]).kind, Kind::FirmwareRaid);
        assert_eq!(only(BYTES - 4096 + 60, &[0x83, 0x74, 2, 0x6b]).kind, Kind::Drbd);
    }

    #[test]
    fn a_pool_is_found_by_any_of_its_labels() {
        for label in [0, 256, 512, 768] {
            let slot = (label + 128 + 5) << 10;
            assert_eq!(only(slot, &ZFS_MAGIC.to_le_bytes()).kind, Kind::Zfs);
            assert_eq!(only(slot, &ZFS_MAGIC.to_be_bytes()).kind, Kind::Zfs);
        }
    }
}
