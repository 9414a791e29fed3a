//! The map that a copy goes on with: found, and told from other files.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ::copy::map::Map;
use failure::Failure;

use super::allocated;
use super::summary::refused;

/// Returns whether a path is the map or one of its backup files, also by another spelling.
pub(crate) fn is_map_file(path: &Path, map: &Path) -> bool {
    let beside = |summary: &str| {
        let mut name = map.as_os_str().to_owned();
        name.push(summary);
        canonical(Path::new(&name))
    };
    let path = canonical(path);
    ["", ".bak", ".new"].into_iter().any(|summary| beside(summary) == path)
}

/// Resolves symbolic links and `..`, also for a file that does not exist yet.
fn canonical(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new(".")).canonicalize();
    let made = || Some(folder.ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(made).unwrap_or_else(|| path.to_owned())
}

/// Reads a map, if it exists.
///
/// # Errors
/// Fails with a sentence for the user if it cannot be read, or if it is a disk or a file of another format, which
/// would be overwritten and may be large.
pub(crate) fn read_map(path: &Path) -> Result<Option<Map>, String> {
    let cannot = |error| format!("the map {} cannot be read: {error}", path.display());
    let another =
        || format!("{} exists and is not a map: name another file, or remove it", path.display());
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(cannot)?.is_file().then_some(()).ok_or_else(another)?,
    }
    let mut first = [0];
    let count = File::open(path).and_then(|mut file| file.read(&mut first)).map_err(cannot)?;
    // First bytes of a map: a comment, a number, an empty line, or NULs left by a crash.
    if count == 1 && !b"#0\n\r\t \0".contains(&first[0]) {
        return Err(another());
    }
    // As the copy loads it: with the backup if the map is truncated.
    ::copy::map::load(path).map_err(|reason| format!("the map {}: {reason}", path.display()))
}

/// Reads the map to resume from, if it exists. Rejects a file of another format, which would be
/// overwritten, and a map of an allocated-only copy without `--allocated`.
pub(super) fn find_map(path: &Path, allocated: bool) -> Result<Option<Map>, Failure> {
    let map = read_map(path).map_err(refused)?;
    let part = map.as_ref().is_some_and(|map| is_allocated_map(&map.metadata.source));
    if part && !allocated {
        return Err(refused(format!(
            "the map {} is of a copy with --allocated: add that, or name another map",
            path.display()
        )));
    }
    Ok(map)
}

/// Returns whether a map with this source identity is of an allocated-only copy. A suffix for a
/// changed partition table may follow.
pub(crate) fn is_allocated_map(source: &str) -> bool {
    source.split_whitespace().any(|word| word == allocated::ALLOCATED)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn allocated_map_is_detected_with_a_changed_table() {
        assert!(
            is_allocated_map("disk 7 allocated")
                && is_allocated_map("disk 7 allocated table 4096 8388608")
        );
        assert!(!is_allocated_map("disk 7 table 4096 8388608") && !is_allocated_map(""));
    }
}
