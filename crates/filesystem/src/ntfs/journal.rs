//! Restart pages of the NTFS journal (`$LogFile`): whether it needs a replay.

use crate::window::{le16, le32, le64};

/// Bytes to read: both restart pages of the largest size.
pub(super) const HEAD: u64 = 128 << 10;

const SMALLEST_PAGE: usize = 512;
const LARGEST_PAGE: usize = 64 << 10;
/// No client has the journal open.
const NO_CLIENT: u16 = 0xffff;
/// The volume was cleanly unmounted, although a client has the journal open.
const CLEAN: u16 = 2;
/// Version 2 is that of a mounted volume: unmounting sets it back to 1.1.
const VERSION: u16 = 1;

/// Whether the journal needs no replay, by its first bytes. A journal filled with ones is new, or
/// was emptied after a repair. The later of the two restart pages counts.
pub(super) fn is_clean(head: &[u8]) -> bool {
    if !head.is_empty() && head.iter().all(|byte| *byte == 0xff) {
        return true;
    }
    let first = Restart::parse(head);
    let size = first.as_ref().map_or(4096, |first| first.page);
    let second = head.get(size..).and_then(Restart::parse);
    match (first, second) {
        (Some(one), Some(other)) if one.number == other.number => one.clean && other.clean,
        (Some(one), Some(other)) if one.number > other.number => one.clean,
        (Some(_), Some(other)) => other.clean,
        // The order of the two pages is unknown.
        _ => false,
    }
}

/// A restart page.
struct Restart {
    /// Page size in bytes.
    page: usize,
    /// The log sequence number when it was written.
    number: u64,
    clean: bool,
}

impl Restart {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let page = usize::try_from(le32(bytes, 16)?).ok()?;
        let possible = page.is_power_of_two() && (SMALLEST_PAGE..=LARGEST_PAGE).contains(&page);
        if !bytes.starts_with(b"RSTR") || !possible {
            return None;
        }
        // The area must end before the first two bytes of the update sequence array.
        let area = bytes.get(usize::from(le16(bytes, 24)?)..SMALLEST_PAGE - 2)?;
        let (user, flags) = (le16(area, 12)?, le16(area, 14)?);
        let clean = le16(bytes, 28)? == VERSION && (user == NO_CLIENT || flags & CLEAN != 0);
        Some(Self { page, number: le64(area, 0)?, clean })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn page(number: u8, user: u16, flags: u16, version: u8) -> Vec<u8> {
        let mut page = vec![0; 4096];
        page[..4].copy_from_slice(b"RSTR");
        page[17] = 0x10; // 4096 bytes
        page[21] = 0x10;
        page[24] = 48;
        (page[26], page[28]) = (1, version);
        page[48] = number;
        page[60..62].copy_from_slice(&user.to_le_bytes());
        page[62..64].copy_from_slice(&flags.to_le_bytes());
        page
    }

    fn rests(one: Vec<u8>, other: Vec<u8>) -> bool {
        is_clean(&[one, other, vec![7; 4096]].concat())
    }

    #[test]
    fn empty_journal_is_clean_and_missing_one_is_not() {
        assert!(is_clean(&[0xff; 8192]));
        assert!(!is_clean(&[]));
        assert!(!is_clean(&[0; 8192]));
        assert!(!is_clean(&page(1, NO_CLIENT, 0, 1)));
    }

    #[test]
    fn later_restart_page_counts() {
        assert!(rests(page(2, 0, CLEAN, 1), page(1, 0, 0, 1)));
        assert!(rests(page(1, 0, 0, 1), page(2, NO_CLIENT, 0, 1)));
        assert!(!rests(page(1, 0, CLEAN, 1), page(2, 0, 0, 1)));
        assert!(!rests(page(2, 0, CLEAN, 1), page(2, 0, 0, 1)));
        assert!(!rests(page(2, 0, CLEAN, 1), vec![0; 4096]));
    }

    #[test]
    fn hibernated_windows_is_not_clean() {
        assert!(!rests(page(2, 0, 0, 1), page(2, 0, 0, 1)));
        assert!(!rests(page(2, 0, CLEAN, 2), page(2, 0, CLEAN, 2)));
    }
}
