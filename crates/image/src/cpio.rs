//! Writer of the initramfs archive format: cpio "newc", as documented in
//! driver-api/early-userspace/buffer-format of the kernel.

use std::collections::BTreeSet;

const FOLDER: u32 = 0o040_755;
const OPEN_FOLDER: u32 = 0o041_777;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7_777;
const CONSOLE: u32 = 0o020_600;
/// Alignment of concatenated archives.
const BLOCK: usize = 512;

/// An archive being written. Inode numbers are consecutive; all files have the same time.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
    time: u32,
}

impl Archive {
    /// An empty archive with this modification time of all files, in seconds since 1970.
    pub fn new(time: u32) -> Self {
        Self { time, ..Self::default() }
    }

    /// Adds a directory and its parents.
    pub fn directory(&mut self, path: &str) {
        self.folder_of_mode(path, FOLDER);
    }

    /// Adds a world-writable directory with the sticky bit.
    pub fn world_writable_directory(&mut self, path: &str) {
        self.folder_of_mode(path, OPEN_FOLDER);
    }

    fn folder_of_mode(&mut self, path: &str, mode: u32) {
        self.above(path);
        if self.folders.insert(path.to_owned()) {
            self.entry(path, mode, (0, 0), &[]);
        }
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.above(path);
        self.entry(path, FILE, (0, 0), content);
    }

    /// Adds an executable.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.above(path);
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// Adds a file with these permissions.
    pub fn file_with_mode(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.above(path);
        self.entry(path, (FILE & !PERMISSIONS) | (permissions & PERMISSIONS), (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.above(path);
        self.entry(path, LINK, (0, 0), to.as_bytes());
    }

    /// Adds the console device, which is opened for the first process.
    pub fn console(&mut self, path: &str) {
        self.above(path);
        self.entry(path, CONSOLE, (5, 1), &[]);
    }

    /// The complete archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.time = 0;
        self.entries = u32::MAX;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self.bytes
    }

    fn above(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries = self.entries.wrapping_add(1);
        // All files are far below 4 GiB: the largest is the program.
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let name = length(path.len().saturating_add(1));
        // inode, mode, uid, gid, links, mtime, size, device (2), device of the node (2), length of the name, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            self.time,
            length(content.len()),
            0,
            0,
            device.0,
            device.1,
            name,
            0,
        ];
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
pub(crate) mod read {
    //! Reader of archives, for tests.

    /// Name, mode and content.
    pub(crate) type Entry = (String, u32, Vec<u8>);

    /// Every entry up to the trailer, and the bytes after it.
    pub(crate) fn entries(mut bytes: &[u8]) -> (Vec<Entry>, &[u8]) {
        let mut found = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name) = (field(1), field(6) as usize, field(11) as usize);
            let content = (110 + name).next_multiple_of(4);
            let path = String::from_utf8(bytes[110..110 + name - 1].to_vec()).unwrap();
            let data = bytes[content..content + size].to_vec();
            bytes = &bytes[(content + size).next_multiple_of(4)..];
            if path == "TRAILER!!!" {
                let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                return (found, &bytes[zeros..]);
            }
            found.push((path, mode, data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_padded_to_four_bytes() {
        let mut archive = Archive::new(0x5a);
        archive.program("a", b"hello");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"07070100000001000081ed"));
        assert_eq!(&bytes[46..54], b"0000005a", "time");
        assert_eq!(&bytes[54..62], b"00000005", "size");
        assert_eq!(&bytes[94..102], b"00000002", "length of the name with its NUL");
        assert_eq!(&bytes[110..120], b"a\0hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % BLOCK, 0);
    }

    #[test]
    fn directories_precede_their_entries_once() {
        let mut archive = Archive::new(0);
        archive.file("lib/modules/x", b"x");
        archive.world_writable_directory("tmp");
        archive.directory("lib/modules");
        archive.console("dev/console");
        archive.link("bin/sh", "busybox");
        archive.file_with_mode("bin/su", 0o104_755, b"");
        let bytes = archive.finish();
        let (entries, rest) = read::entries(&bytes);
        let names: Vec<_> = entries.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        assert_eq!(
            names,
            [
                ("lib", FOLDER),
                ("lib/modules", FOLDER),
                ("lib/modules/x", FILE),
                ("tmp", OPEN_FOLDER),
                ("dev", FOLDER),
                ("dev/console", CONSOLE),
                ("bin", FOLDER),
                ("bin/sh", LINK),
                ("bin/su", 0o104_755),
            ]
        );
        assert!(rest.is_empty());
    }
}
