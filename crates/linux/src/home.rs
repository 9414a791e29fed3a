//! Home directories of systemd-homed on a disk: a LUKS2 volume with the subsystem `systemd-home`, by itself or in the
//! only partition of a GPT (Discoverable Partitions Specification, "Per-user Home Partition"). Input is untrusted.
//! Only the binary header is parsed (LUKS2 On-Disk Format 1.1 §2.1), never its JSON.

use crate::hardware::unhex;
use crate::medium::{ReadAt, array, window};
use crate::partition::{self, Scheme, Table};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;

/// The type of a partition that is a home directory.
pub const PARTITION_TYPE: &str = "773f91ef-66d4-49b5-bd83-d683bf40ad16";

/// What systemd-homed writes into the field for a subsystem.
pub const SUBSYSTEM: &[u8] = b"systemd-home";

/// Length of the binary header in bytes.
const HEADER: usize = 512;
/// Magic of the first header, and of the second one.
const MAGICS: [&[u8; 6]; 2] = [b"LUKS\xba\xbe", b"SKUL\xba\xbe"];
const VERSION: u16 = 2;
/// The sizes that a header with its JSON may have (§2.1, table 2), which are also where the second one may be.
const SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// The place of the checksum in the header.
const CHECKSUM: std::ops::Range<usize> = 448..512;
/// Longest name of a user that systemd accepts.
const LONGEST_NAME: usize = 31;

/// A home directory on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The name of the user: valid by [`is_user_name`].
    pub user: String,
    /// The UUID of the LUKS2 volume.
    pub uuid: [u8; 16],
}

/// Returns the home that a disk is; `None` if it is none, or if it holds something else as
/// well. Reads at most a few megabytes.
///
/// # Errors
/// Fails if the medium cannot be read.
pub fn find<R: ReadAt + ?Sized>(reader: &R) -> io::Result<Option<Home>> {
    if let Some(home) = at(reader, 0)? {
        return Ok(Some(home));
    }
    match partition::read(reader)?.as_ref().and_then(only_partition) {
        Some(start) => at(reader, start),
        None => Ok(None),
    }
}

/// Returns the start of the home in bytes, if the table has one partition, and that has the type of homes.
fn only_partition(table: &Table) -> Option<u64> {
    let [only] = table.entries.as_slice() else { return None };
    (table.scheme == Scheme::Gpt && only.kind == PARTITION_TYPE).then_some(only.start)
}

/// Returns whether `table` is that of a disk which may be a home: see [`find`].
pub fn may_be(table: &Table) -> bool {
    only_partition(table).is_some()
}

/// Returns the home whose volume starts at this offset.
fn at<R: ReadAt + ?Sized>(reader: &R, start: u64) -> io::Result<Option<Home>> {
    let first = window(reader, start, HEADER)?;
    if is_whole(reader, start, 0, &first)? {
        return Ok(home(&first));
    }
    // What is there instead of a first header that is damaged does not say where the second one is.
    for size in SIZES {
        let second = window(reader, start.saturating_add(size), HEADER)?;
        if is_whole(reader, start, size, &second)? {
            return Ok(home(&second));
        }
    }
    Ok(None)
}

/// Returns whether `header` is one, for this offset in the volume, and its checksum is right.
fn is_whole<R: ReadAt + ?Sized>(
    reader: &R,
    start: u64,
    offset: u64,
    header: &[u8],
) -> io::Result<bool> {
    let magic = MAGICS[usize::from(offset != 0)];
    let number = |at| array(header, at).map(u64::from_be_bytes);
    let size = number(8).filter(|size| SIZES.contains(size) && (offset == 0 || offset == *size));
    let is_header = header.starts_with(magic)
        && array(header, 6).map(u16::from_be_bytes) == Some(VERSION)
        && number(256) == Some(offset)
        && text(header, 72..104) == Some("sha256");
    let Some(size) = size.filter(|_| is_header) else { return Ok(false) };
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let mut area = window(reader, start.saturating_add(offset), length)?;
    let found: Option<[u8; 32]> = array(&area, CHECKSUM.start);
    let Some(field) = area.get_mut(CHECKSUM) else { return Ok(false) };
    field.fill(0);
    Ok(area.len() == length && found == Some(Sha256::digest(&area).into()))
}

/// Returns the home that a header describes.
fn home(header: &[u8]) -> Option<Home> {
    let label = text(header, 24..72).filter(|_| is_home(header))?;
    // With a realm it is USER@REALM.
    let (user, realm) = label.split_once('@').unwrap_or((label, "home"));
    let is_host = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let is_realm = !realm.is_empty() && realm.chars().all(is_host);
    let uuid = unhex(&text(header, 168..208)?.replace('-', ""))?.try_into().ok()?;
    (is_user_name(user) && is_realm).then(|| Home { user: user.to_owned(), uuid })
}

/// Returns whether the subsystem of a LUKS2 header, whose first 512 bytes are given, is that of homes.
pub(crate) fn is_home(header: &[u8]) -> bool {
    text(header, 208..256).map(str::as_bytes) == Some(SUBSYSTEM)
}

/// Returns the text of a field, up to the first NUL.
fn text(header: &[u8], field: std::ops::Range<usize>) -> Option<&str> {
    let field = header.get(field)?.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(field).ok()
}

/// Returns whether systemd accepts this as the name of a user (valid names of "User/Group Name Syntax"): up to 31
/// ASCII letters, digits, `_` and `-`, the first of which is a letter or `_`.
pub fn is_user_name(name: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_other = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=LONGEST_NAME).contains(&name.len())
        && name.starts_with(is_first)
        && name.chars().all(is_other)
        && !["root", "nobody"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::{Gpt, Partition};
    use proptest::prelude::*;

    const UUID: &str = "01234567-89ab-4cde-8f01-23456789abcd";
    const SIZE: usize = 0x4000;

    /// A volume of 64 KiB with two headers, as cryptsetup writes them.
    fn volume(label: &str, subsystem: &str) -> Vec<u8> {
        let mut volume = vec![0; 64 << 10];
        for (offset, magic) in [(0, MAGICS[0]), (SIZE, MAGICS[1])] {
            let area = &mut volume[offset..offset + SIZE];
            let mut put =
                |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
            put(0, magic);
            put(6, &VERSION.to_be_bytes());
            put(8, &(SIZE as u64).to_be_bytes());
            put(24, label.as_bytes());
            put(72, b"sha256");
            put(168, UUID.as_bytes());
            put(208, subsystem.as_bytes());
            put(256, &(offset as u64).to_be_bytes());
            put(4096, br#"{"tokens":{}}"#);
            let sum = Sha256::digest(&area[..]);
            area[448..480].copy_from_slice(&sum);
        }
        volume
    }

    /// A disk with a GPT, and a volume in its first partition of `kinds`.
    fn disk(volume: &[u8], kinds: &[&str]) -> Vec<u8> {
        let parts: Vec<Partition<'_>> = (0u64..)
            .zip(kinds)
            .map(|(index, kind)| Partition {
                kind: partition::swap_guid(
                    unhex(&kind.replace('-', "")).unwrap().try_into().unwrap(),
                ),
                guid: [7; 16],
                name: "alice",
                first: 2048 + index * 256,
                last: 2048 + index * 256 + 255,
            })
            .collect();
        let gpt = Gpt::new(512, 4096, [9; 16], &parts);
        let mut disk = vec![0; 4096 * 512];
        let (start, end) = (gpt.start(), gpt.end());
        disk[..start.len()].copy_from_slice(&start);
        let tail = disk.len() - end.len();
        disk[tail..].copy_from_slice(&end);
        disk[2048 * 512..][..volume.len()].copy_from_slice(volume);
        disk
    }

    fn alice() -> Option<Home> {
        let uuid = unhex(&UUID.replace('-', "")).unwrap().try_into().unwrap();
        Some(Home { user: "alice".to_owned(), uuid })
    }

    fn found(disk: &[u8]) -> Option<Home> {
        find(disk).unwrap()
    }

    #[test]
    fn home_is_found_on_a_disk_with_and_without_a_table() {
        let volume = volume("alice", "systemd-home");
        assert_eq!(found(&volume), alice());
        assert_eq!(found(&disk(&volume, &[PARTITION_TYPE])), alice());
    }

    #[test]
    fn disk_with_anything_else_is_no_home() {
        let volume = volume("alice", "systemd-home");
        let linux = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        assert_eq!(found(&disk(&volume, &[linux])), None);
        assert_eq!(found(&disk(&volume, &[PARTITION_TYPE, linux])), None);
        assert_eq!(found(&disk(&self::volume("alice", ""), &[PARTITION_TYPE])), None);
        assert_eq!(found(&self::volume("alice", "other")), None);
        assert_eq!(found(&[0; 4096]), None);
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn second_header_serves_where_the_first_is_damaged() {
        let whole = volume("alice", "systemd-home");
        for at in [0, 30, 208, 448, 5000] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(found(&damaged), alice(), "{at}");
            damaged[SIZE + at] ^= 1;
            assert_eq!(found(&damaged), None, "{at}");
        }
        assert_eq!(found(&whole[..SIZE]), alice());
        assert_eq!(found(&whole[..SIZE - 1]), None);
    }

    #[test]
    fn hostile_user_names_are_refused() {
        for name in ["alice", "_a", "Alice-2", "a@example.com", &"a".repeat(31)] {
            let user = name.split('@').next().map(str::to_owned);
            assert_eq!(found(&volume(name, "systemd-home")).map(|home| home.user), user, "{name}");
        }
        for name in [
            "",
            "-a",
            "1a",
            "a b",
            "a/b",
            "../a",
            "a\n",
            "a\x1b[2J",
            "ä",
            "root",
            "nobody",
            "a.b",
            "a@",
            "@a",
            "a@b c",
            "a@b@c",
            &"a".repeat(32),
        ] {
            assert_eq!(found(&volume(name, "systemd-home")), None, "{name:?}");
        }
        let mut bytes = volume("alice", "systemd-home");
        bytes[25] = 0xff;
        assert_eq!(home(&bytes), None);
    }

    #[test]
    fn x21_corpus_of_home_is_replayed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/home");
        let input = |name: &str| std::fs::read(format!("{folder}/{name}")).unwrap();
        assert_eq!(found(&input("volume")), alice());
        assert_eq!(found(&input("second")), alice());
        assert_eq!(found(&input("hostile-name")), None);
        assert!(crate::homed::parse_key(&String::from_utf8(input("key")).unwrap()).is_some());
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(header in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (home(&header), find(header.as_slice()));
        }
    }
}
