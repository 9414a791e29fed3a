//! Writes the archive format of an initramfs: cpio, "newc".
//! Does not know what a machine needs in it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: usize,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

impl Archive {
    /// Adds an empty folder, and those above it.
    pub(super) fn folder(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        if self.folders.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[]);
        }
    }

    /// Adds a file, executable as everything here may be.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.above(path);
        self.entry(path, PROGRAM, content);
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.above(path);
        self.entry(path, LINK, to.as_bytes());
    }

    /// Adds all that is in a folder of this machine and whose path there is wanted, with its permissions.
    pub(super) fn tree(&mut self, root: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        self.branch(root, "", wanted)
    }

    fn branch(&mut self, root: &Path, at: &str, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let entries = root.join(at).read_dir()?.map(|entry| Ok(entry?.file_name()));
        let mut names = entries.collect::<Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            let name = name.to_str().context("a name that is no UTF-8")?;
            let path = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
            if wanted(&path) {
                self.leaf(root, &path, wanted)?;
            }
        }
        Ok(())
    }

    fn leaf(&mut self, root: &Path, path: &str, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let source = root.join(path);
        let about = source.symlink_metadata()?;
        if about.is_dir() {
            self.folder(path);
            return self.branch(root, path, wanted);
        }
        self.above(path);
        if about.is_symlink() {
            let to = fs::read_link(&source)?;
            self.entry(path, LINK, to.to_str().context("a link that is no UTF-8")?.as_bytes());
        } else {
            let content = fs::read(&source).with_context(|| source.display().to_string())?;
            self.entry(path, FILE | (about.permissions().mode() & 0o7777), &content);
        }
        Ok(())
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn above(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, checksum
        let fields =
            [self.entries, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, path.len() + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_header_its_name_and_its_bytes_padded_to_four() {
        let mut archive = Archive::default();
        archive.file("a", b"hello");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"07070100000001000081ed"));
        assert_eq!(&bytes[54..62], b"00000005", "size");
        assert_eq!(&bytes[94..102], b"00000002", "length of the name with its NUL");
        assert_eq!(&bytes[110..120], b"a\0hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.link("bin/sub/sh", "busybox");
        archive.file("bin/other", b"");
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("bin\0") < at("bin/sub\0") && at("bin/sub\0") < at("bin/sub/sh\0"));
        assert_eq!(text.matches("bin\0").count(), 1);
    }
}
