//! The files of a bootable medium.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Files by path, such as `EFI/BOOT/BOOTX64.EFI`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Adds a file, in place of another with this path.
    pub fn add(&mut self, path: &str, content: Vec<u8>) {
        self.0.insert(path.to_owned(), content);
    }

    /// All files, sorted by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(path, content)| (path.as_str(), content.as_slice()))
    }

    /// The SHA-256 of all paths and contents.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (path, content) in &self.0 {
            for bytes in [path.as_bytes(), content] {
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
        }
        hash.finalize().into()
    }
}

/// Returns the directory of a path; empty for one in the root.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}
