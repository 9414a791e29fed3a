//! Whether the files of homes fit in their file systems once all of their blocks are written.

use export::{Access, Base};
use rustix::fs::{FileType, fstat, fstatvfs};

use super::user_of;
use crate::lend::LentDisk;

/// What the file of a home may need.
#[derive(Debug)]
struct Need {
    user: String,
    /// The device number of its file system.
    file_system: u64,
    /// Bytes of the file that are not stored.
    missing: u64,
    /// Bytes that are free in the file system.
    free: u64,
}

/// Returns a note for each file system that has less space than its homes may need.
pub(super) fn notes(lent_disks: &[LentDisk]) -> Vec<String> {
    shortages(lent_disks.iter().filter_map(need).collect())
}

/// Returns what a home may need; `None` for a block device, and if hosts do not write to the file.
fn need(lent: &LentDisk) -> Option<Need> {
    let backing = lent.export.backing();
    let Base::Raw(file) = backing.base() else { return None };
    if lent.export.access == Access::ReadOnly || backing.overlay().is_some() {
        return None;
    }
    let stat = fstat(file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let stored = u64::try_from(stat.st_blocks).ok()?.saturating_mul(512);
    let system = fstatvfs(file).ok()?;
    Some(Need {
        user: user_of(lent).to_owned(),
        file_system: stat.st_dev,
        missing: lent.export.bytes().saturating_sub(stored),
        free: system.f_bavail.saturating_mul(system.f_frsize),
    })
}

fn shortages(mut needs: Vec<Need>) -> Vec<String> {
    needs.retain(|need| need.missing > 0);
    needs.sort_by_key(|need| need.file_system);
    needs.chunk_by(|one, other| one.file_system == other.file_system).filter_map(shortage).collect()
}

/// Returns a note if the homes of one file system may need more than it has.
fn shortage(needs: &[Need]) -> Option<String> {
    let missing = needs.iter().fold(0u64, |sum, need| sum.saturating_add(need.missing));
    let free = needs.iter().map(|need| need.free).min()?;
    let users: Vec<&str> = needs.iter().map(|need| need.user.as_str()).collect();
    (missing > free).then(|| {
        format!(
            "the homes of {} may need {} more of this machine's disk, which has {} free: then writes fail",
            users.join(", "),
            console::decimal(missing),
            console::decimal(free)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_of_a_file_system_share_its_space() {
        let need = |user: &str, file_system, missing| Need {
            user: user.to_owned(),
            file_system,
            missing,
            free: 100,
        };
        assert!(shortages(vec![need("a", 1, 60), need("b", 2, 60), need("c", 1, 40)]).is_empty());
        let notes = shortages(vec![need("a", 1, 60), need("b", 2, 60), need("c", 1, 41)]);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].starts_with("the homes of a, c may need"), "{notes:?}");
    }
}
