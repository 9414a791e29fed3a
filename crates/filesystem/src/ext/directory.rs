//! Directories: resolves inode numbers to paths.

use std::collections::BTreeSet;
use std::io;

use linux::medium::ReadAt;

use super::inode::{Inodes, ROOT};
use crate::window::{le16, le32};
use crate::{DirEntries, Owner, path, replace_control};

/// File type of a directory in a directory entry.
const DIRECTORY: u8 = 2;
/// Maximum number of directories to read.
const MAX_LEN: usize = 4 << 20;

/// The paths of the inodes. An inode without a directory entry is named by its number.
pub(super) fn names<R: ReadAt + ?Sized>(
    inodes: &Inodes<'_, R>,
    wanted: &BTreeSet<u64>,
) -> io::Result<BTreeSet<Owner>> {
    if wanted.is_empty() {
        return Ok(BTreeSet::new());
    }
    let named = walk(inodes, wanted)?;
    let owner = |inode: &u64| match path(&named, ROOT, *inode) {
        Some(path) => Owner::File(path),
        None if *inode < 11 => Owner::Structure,
        None => Owner::File(format!("inode {inode}")),
    };
    Ok(wanted.iter().map(owner).collect())
}

/// Reads every directory once, and collects the names of directories and of wanted inodes.
fn walk<R: ReadAt + ?Sized>(
    inodes: &Inodes<'_, R>,
    wanted: &BTreeSet<u64>,
) -> io::Result<DirEntries> {
    let (mut named, mut seen, mut todo) = (DirEntries::new(), BTreeSet::from([ROOT]), vec![ROOT]);
    while let Some(directory) = todo.pop() {
        let Some(inode) = inodes.find(directory)? else { continue };
        for blocks in inodes.directory(&inode)? {
            for block in blocks {
                let Some(bytes) = inodes.layout.read(inodes.disk, block)? else { break };
                for (inode, is_directory, name) in entries(&bytes) {
                    if is_directory || wanted.contains(&inode) {
                        named.entry(inode).or_insert_with(|| (directory, name));
                    }
                    if is_directory && seen.len() < MAX_LEN && seen.insert(inode) {
                        todo.push(inode);
                    }
                }
            }
        }
    }
    Ok(named)
}

/// The entries of a directory block with names for people: inode, whether it is a directory, name.
fn entries(block: &[u8]) -> impl Iterator<Item = (u64, bool, String)> + '_ {
    let real = raw_entries(block)
        .filter(|(inode, _, name)| *inode != 0 && !matches!(*name, b"" | b"." | b".."));
    real.map(|(inode, is_directory, name)| {
        (inode, is_directory, replace_control(&String::from_utf8_lossy(name)))
    })
}

/// The entries of a directory block, also those that are free: inode, whether it is a directory, name.
pub(super) fn raw_entries(block: &[u8]) -> impl Iterator<Item = (u64, bool, &[u8])> {
    let mut rest = block;
    std::iter::from_fn(move || {
        let len = match le16(rest, 4)? {
            // An entry of 64 KiB, whose length does not fit.
            0 | u16::MAX if rest.len() == 1 << 16 => rest.len(),
            len => usize::from(len),
        };
        let entry = rest.get(..len).filter(|entry| entry.len() >= 8)?;
        rest = rest.get(len..).unwrap_or_default();
        let (inode, name_len, kind) = (le32(entry, 0)?, *entry.get(6)?, *entry.get(7)?);
        let name = entry.get(8..8 + usize::from(name_len)).unwrap_or_default();
        Some((u64::from(inode), kind == DIRECTORY, name))
    })
}
