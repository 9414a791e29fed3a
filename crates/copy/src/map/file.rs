//! Map files: saved atomically, with a backup of the previous one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::{Map, ParseError};

/// Why a map cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MapReadError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] io::Error),
    /// The content is invalid, and so is that of the backup.
    #[error("{0}: repair it, or remove it to start over")]
    Content(#[from] ParseError),
}

/// Reads a map. Returns `None` if the file does not exist or is empty. If it is truncated or
/// invalid, its backup is read instead, if that is intact.
///
/// # Errors
/// Fails if neither can be read.
pub fn load(path: &Path) -> Result<Option<Map>, MapReadError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let map = Map::parse(&text);
    if map.as_ref().is_ok_and(|map| map.metadata.complete || map.metadata.bytes.is_none()) {
        return Ok(Some(map?));
    }
    let before = read(&beside(path, ".bak")).ok().flatten();
    match before.and_then(|text| Map::parse(&text).ok()).filter(|map| map.metadata.complete) {
        Some(before) => Ok(Some(before)),
        None if text.trim().is_empty() => Ok(None),
        None => Ok(Some(map?)),
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read(path) {
        // Bytes that are not text are reported as an invalid line.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a map atomically and durably.
///
/// # Errors
/// Fails if the file or its directory cannot be written; the old map is still there.
pub fn save(map: &Map, path: &Path) -> io::Result<()> {
    let fresh = write(map, path)?;
    let kept = beside(path, ".bak");
    let _ = std::fs::remove_file(&kept);
    // A hard link, so that the map exists at any moment. File systems without hard links get no backup.
    let _ = std::fs::hard_link(path, &kept);
    std::fs::rename(&fresh, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Checks that a map can be saved, without replacing the old one.
///
/// # Errors
/// Fails as [`save`] would.
pub(crate) fn probe(map: &Map, path: &Path) -> io::Result<()> {
    std::fs::remove_file(write(map, path)?)
}

/// Writes a map to a new file beside the old one. Leaves nothing behind on failure.
fn write(map: &Map, path: &Path) -> io::Result<PathBuf> {
    let fresh = beside(path, ".new");
    let mut file = File::create(&fresh)?;
    let written = file.write_all(map.emit().as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written.map(|()| fresh)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::map::State;

    #[test]
    fn r41_truncated_map_is_replaced_by_its_backup() {
        let dir = std::env::temp_dir().join(format!("storagetm-map-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("map");
        assert!(load(&path).unwrap().is_none());
        let mut map = Map::new(1 << 20);
        map.metadata.bytes = Some(1 << 20);
        map.metadata.complete = true;
        map.set(0..512, State::Finished);
        save(&map, &path).unwrap();
        let before = map.clone();
        map.set(0..1024, State::Finished);
        save(&map, &path).unwrap();
        assert_eq!(load(&path).unwrap(), Some(map.clone()));
        let text = map.emit();
        for len in 0..text.len() - 1 {
            std::fs::write(&path, &text[..len]).unwrap();
            assert_eq!(load(&path).unwrap(), Some(before.clone()), "{len}");
        }
        std::fs::write(&path, [0; 300]).unwrap();
        assert_eq!(load(&path).unwrap(), Some(before));
        std::fs::remove_file(dir.join("map.bak")).unwrap();
        assert!(matches!(load(&path), Err(MapReadError::Content(_))));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
