//! Bounded reads of small files in `/sys`, `/proc`, `/etc`, below a root path that tests can
//! replace.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The maximum bytes read of a file: `/proc/<pid>/mountinfo` of a large machine is the longest.
const LONGEST: u64 = 16 << 20;

/// A root path: `/` except in tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

impl Default for Tree {
    fn default() -> Self {
        Self::machine()
    }
}

impl Tree {
    /// The tree of this machine: the root is `/`.
    pub fn machine() -> Self {
        Self::at("/")
    }

    /// The tree below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the path of `inside` (absolute or relative, without a difference) below the root.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        self.root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The reverse of [`Tree::path`]: returns `outside` as seen from the root.
    pub fn inside(&self, outside: &Path) -> PathBuf {
        Path::new("/").join(outside.strip_prefix(&self.root).unwrap_or(outside))
    }

    /// Reads a file, at most 16 MiB.
    ///
    /// # Errors
    /// Fails if it cannot be opened or read.
    pub fn bytes(&self, inside: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(inside))?.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a text file; invalid UTF-8 is replaced.
    pub fn text(&self, inside: impl AsRef<Path>) -> io::Result<String> {
        self.bytes(inside).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads an attribute: the text without surrounding blanks and NUL bytes; `None` if absent or
    /// empty.
    pub fn attribute(&self, inside: impl AsRef<Path>) -> Option<String> {
        let text = self.text(inside).ok()?;
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Reads a decimal number; `None` if absent or not a number.
    pub fn number(&self, inside: impl AsRef<Path>) -> Option<u64> {
        self.attribute(inside)?.parse().ok()
    }

    /// Reads a flag: whether the attribute is a number other than 0; `false` if absent.
    pub fn flag(&self, inside: impl AsRef<Path>) -> bool {
        self.number(inside).is_some_and(|number| number != 0)
    }

    /// Returns the names in a directory in natural order; empty if it cannot be read.
    pub fn names(&self, inside: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(inside)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_by(|a, b| natural(a, b));
        names
    }

    /// Resolves links; returns the path as seen from the root (it starts with `/`).
    pub fn resolve(&self, inside: impl AsRef<Path>) -> Option<PathBuf> {
        let target = self.path(inside).canonicalize().ok()?;
        let root = self.root.canonicalize().ok()?;
        let inside = target.strip_prefix(root).ok()?;
        Some(Path::new("/").join(inside))
    }
}

/// Natural order: `sda2` before `sda10`.
pub fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    key(a).cmp(&key(b)).then_with(|| a.cmp(b))
}

/// Splits a name into texts, each with the value of the digits after it.
fn key(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.len().min(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        let (word, tail) = rest.split_at(text);
        let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (number, tail) = tail.split_at(digits);
        parts.push((word.to_owned(), number.parse().unwrap_or(0)));
        rest = tail;
    }
    parts
}

#[cfg(test)]
pub(crate) mod fake {
    //! A directory that replaces the machine in tests.

    use super::Tree;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A temporary directory, removed on drop.
    #[derive(Debug)]
    pub(crate) struct Fake {
        pub(crate) root: PathBuf,
    }

    impl Fake {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("storagetm-linux-{}-{number}", std::process::id());
            let root = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&root).unwrap();
            Self { root }
        }

        pub(crate) fn tree(&self) -> Tree {
            Tree::at(&self.root)
        }

        pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
            let path = self.root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
            self
        }

        /// Makes `link` a link to `target`, both below the root.
        pub(crate) fn link(&self, link: &str, target: &str) -> &Self {
            let up = "../".repeat(Path::new(link).components().count() - 1);
            let path = self.root.join(link);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let _ = std::fs::create_dir_all(self.root.join(target));
            std::os::unix::fs::symlink(format!("{up}{target}"), path).unwrap();
            self
        }

        /// Makes a whole disk at `/sys/devices/DEVICE/block/NAME`.
        pub(crate) fn disk(&self, device: &str, name: &str, number: &str, sectors: u64) -> &Self {
            self.node(&format!("sys/devices/{device}/block/{name}"), name, number, sectors);
            self.file(&format!("sys/class/block/{name}/queue/logical_block_size"), "512\n")
        }

        /// Makes partition `number` of `disk`, which must exist.
        pub(crate) fn part(&self, disk: &str, part: &str, dev: &str, number: u32) -> &Self {
            let place = self.tree().resolve(format!("sys/class/block/{disk}")).unwrap();
            let place = place.strip_prefix("/").unwrap().join(part);
            self.node(place.to_str().unwrap(), part, dev, 1000);
            self.file(&format!("sys/class/block/{part}/partition"), format!("{number}\n"));
            self.file(&format!("sys/class/block/{part}/start"), "2048\n")
        }

        fn node(&self, place: &str, name: &str, number: &str, sectors: u64) -> &Self {
            self.file(&format!("{place}/dev"), format!("{number}\n"));
            self.file(&format!("{place}/size"), format!("{sectors}\n"));
            self.link(&format!("sys/class/block/{name}"), place);
            self.link(&format!("sys/dev/block/{number}"), place);
            self.file(&format!("dev/{name}"), "")
        }

        /// Stacks `upper` on `lower`.
        pub(crate) fn hold(&self, lower: &str, upper: &str) -> &Self {
            self.file(&format!("sys/class/block/{lower}/holders/{upper}"), "");
            self.file(&format!("sys/class/block/{upper}/slaves/{lower}"), "")
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    #[test]
    fn attributes_are_trimmed_and_absent_ones_are_none() {
        let fake = Fake::new();
        fake.file("sys/a", "  word \0\n").file("sys/n", "12\n").file("sys/empty", "\n");
        let tree = fake.tree();
        assert_eq!(tree.attribute("/sys/a").as_deref(), Some("word"));
        assert_eq!(tree.number("sys/n"), Some(12));
        assert_eq!(tree.attribute("sys/empty"), None);
        assert_eq!(tree.number("sys/a"), None);
        assert!(tree.flag("sys/n") && !tree.flag("sys/missing"));
    }

    #[test]
    fn names_are_in_natural_order() {
        let fake = Fake::new();
        for name in ["sda10", "sda2", "sdb", "nvme10n1", "nvme2n1", "sda"] {
            fake.file(&format!("d/{name}"), "");
        }
        let names = fake.tree().names("d");
        assert_eq!(names, ["nvme2n1", "nvme10n1", "sda", "sda2", "sda10", "sdb"]);
    }

    #[test]
    fn link_out_of_the_tree_is_not_followed() {
        let fake = Fake::new();
        std::os::unix::fs::symlink("/etc", fake.root.join("out")).unwrap();
        fake.file("in/file", "").link("to", "in/file");
        assert_eq!(fake.tree().resolve("out"), None);
        assert_eq!(fake.tree().resolve("to"), Some(PathBuf::from("/in/file")));
    }
}
