//! Mounts and swap areas, in every mount namespace that `/proc` shows.

use crate::block::DeviceNumber;
use crate::tree::Tree;
use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mount {
    /// The device number that its files report; major 0 for file systems of several devices.
    pub number: DeviceNumber,
    /// The mount point.
    pub point: String,
    /// The file system type.
    pub kind: String,
    /// The source: a device, or whatever the file system calls it.
    pub source: String,
    /// A process in whose mount namespace it is, unless that is ours.
    pub process: Option<u32>,
}

/// The mounts in our own mount namespace. Errors: `/proc/self/mountinfo` cannot be read.
pub fn own(tree: &Tree) -> io::Result<Vec<Mount>> {
    Ok(parse(&tree.text("proc/self/mountinfo")?, None))
}

/// The number of the file system that a path without links is on, without asking that file system.
pub fn file_system(own: &[Mount], path: &Path) -> Option<DeviceNumber> {
    let above = own.iter().filter(|mount| path.starts_with(&mount.point));
    // Of several at one place the last one counts.
    above.max_by_key(|mount| Path::new(&mount.point).components().count()).map(|mount| mount.number)
}

/// Returns every mount, those of our namespace first.
///
/// # Errors
/// Fails if `/proc/self/mountinfo` cannot be read. Processes that end meanwhile are skipped.
pub fn mounts(tree: &Tree) -> io::Result<Vec<Mount>> {
    let mut mounts = own(tree)?;
    let mut views: HashSet<(PathBuf, PathBuf)> = view(tree, "self").into_iter().collect();
    let mut seen: HashSet<_> = mounts.iter().map(place).collect();
    for name in tree.names("proc") {
        let Ok(process) = name.parse() else { continue };
        let view = view(tree, &name);
        if view.as_ref().is_some_and(|view| views.contains(view)) {
            continue;
        }
        let Ok(text) = tree.text(format!("proc/{name}/mountinfo")) else { continue };
        // Recorded after reading: a process that has just ended was not read.
        views.extend(view.filter(|_| !text.is_empty()));
        let others = parse(&text, Some(process));
        mounts.extend(others.into_iter().filter(|mount| seen.insert(place(mount))));
    }
    Ok(mounts)
}

/// Returns the paths of the swap areas.
///
/// # Errors
/// Fails if `/proc/swaps` exists and cannot be read.
pub fn swaps(tree: &Tree) -> io::Result<Vec<String>> {
    match tree.text("proc/swaps") {
        Ok(text) => Ok(text.lines().skip(1).filter_map(first_word).collect()),
        // A kernel without swap support.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn first_word(line: &str) -> Option<String> {
    line.split_whitespace().next().map(unescape)
}

/// What determines the mounts that a process sees: its namespace and its root.
fn view(tree: &Tree, process: &str) -> Option<(PathBuf, PathBuf)> {
    let link = |name: &str| std::fs::read_link(tree.path(format!("proc/{process}/{name}"))).ok();
    Some((link("ns/mnt")?, link("root")?))
}

fn place(mount: &Mount) -> (DeviceNumber, String, String) {
    (mount.number, mount.point.clone(), mount.source.clone())
}

/// Lines of `proc_pid_mountinfo(5)`: id, parent, number, root, point, options, optional fields, `-`, kind, source, …
fn parse(text: &str, process: Option<u32>) -> Vec<Mount> {
    text.lines().filter_map(|line| parse_line(line, process)).collect()
}

fn parse_line(line: &str, process: Option<u32>) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let mut right = right.split(' ');
    Some(Mount {
        number: left.next()?.parse().ok()?,
        point: unescape(left.nth(1)?),
        kind: right.next()?.to_owned(),
        source: unescape(right.next()?),
        process,
    })
}

/// Decodes the octal escapes of blanks, tabs, line breaks and backslashes.
fn unescape(word: &str) -> String {
    let mut parts = word.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                text.push(char::from(code));
                text.push_str(rest);
            }
            _ => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    const OURS: &str = "27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n\
        28 27 0:44 / /my\\040disk rw - btrfs /dev/sdb\\0111 rw\nbroken\n29 27 x:y / / rw - a b c\n";

    #[test]
    fn our_mounts_come_first_and_others_are_added_once() {
        let fake = Fake::new();
        let theirs = "1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 8:1 / /data rw - xfs /dev/sda1 rw\n";
        fake.file("proc/self/mountinfo", OURS).file("proc/77/mountinfo", theirs);
        fake.file("proc/78/mountinfo", theirs).file("proc/uptime", "1");
        let mounts = mounts(&fake.tree()).unwrap();
        let points: Vec<_> =
            mounts.iter().map(|m| (m.point.as_str(), m.source.as_str(), m.process)).collect();
        let wanted = [
            ("/", "/dev/vda", None),
            ("/my disk", "/dev/sdb\t1", None),
            ("/data", "/dev/sda1", Some(77)),
        ];
        assert_eq!(points, wanted);
        assert_eq!(mounts[0].number.to_string(), "254:0");
    }

    #[test]
    fn missing_own_mountinfo_is_an_error() {
        assert!(mounts(&Fake::new().tree()).is_err());
    }

    #[test]
    fn swap_areas_are_listed_without_the_heading() {
        let fake = Fake::new();
        assert_eq!(swaps(&fake.tree()).unwrap(), [""; 0]);
        fake.file(
            "proc/swaps",
            "Filename\tType\n/dev/dm-1   partition 1 0 -2\n/a\\040b file 1 0 -3\n",
        );
        assert_eq!(swaps(&fake.tree()).unwrap(), ["/dev/dm-1", "/a b"]);
    }

    #[test]
    fn lone_backslash_is_kept() {
        assert_eq!(unescape("a\\"), "a\\");
        assert_eq!(unescape("a\\9b\\134"), "a\\9b\\");
    }
}
