//! Adds directories of this machine to an archive.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use image::cpio::Archive;

/// Adds the contents of a directory for which `wanted` returns true, with permissions.
pub(super) fn add(archive: &mut Archive, root: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    branch(archive, root, "", wanted)
}

fn branch(
    archive: &mut Archive,
    root: &Path,
    at: &str,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let entries = root.join(at).read_dir()?.map(|entry| Ok(entry?.file_name()));
    let mut names = entries.collect::<Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        let name = name.to_str().context("a name that is no UTF-8")?;
        let path = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
        if wanted(&path) {
            leaf(archive, root, &path, wanted)?;
        }
    }
    Ok(())
}

fn leaf(
    archive: &mut Archive,
    root: &Path,
    path: &str,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let source = root.join(path);
    let about = source.symlink_metadata()?;
    if about.is_dir() {
        archive.directory(path);
        return branch(archive, root, path, wanted);
    }
    if about.is_symlink() {
        let to = fs::read_link(&source)?;
        archive.link(path, to.to_str().context("a link that is no UTF-8")?);
    } else {
        let content = fs::read(&source).with_context(|| source.display().to_string())?;
        archive.file_with_mode(path, about.permissions().mode(), &content);
    }
    Ok(())
}
