//! The memory available to this process: that of the machine, or the lowest limit of its control
//! groups and resource limits.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::tree::Tree;

/// The size assumed if none can be read, in bytes.
const UNKNOWN: u64 = 1 << 30;

/// Keeps the memory of this process, also what it will use later, from being swapped out.
///
/// # Errors
/// Fails if the kernel refuses: for users other than root there is a limit (`RLIMIT_MEMLOCK`).
pub fn lock() -> std::io::Result<()> {
    Ok(crate::syscall::lock_memory()?)
}

/// Returns the memory that this process may use, in bytes.
pub fn available(tree: &Tree) -> u64 {
    // The program and its stacks take address space, too.
    let addresses = getrlimit(Resource::As).current.map(|bytes| bytes / 2);
    let data = getrlimit(Resource::Data).current;
    of_machine(tree)
        .into_iter()
        .chain(of_group(tree))
        .chain(addresses)
        .chain(data)
        .min()
        .unwrap_or(UNKNOWN)
}

/// `MemTotal` of proc_meminfo(5).
fn of_machine(tree: &Tree) -> Option<u64> {
    let text = tree.text("proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The lowest `memory.max` of this process's control group and its ancestors (cgroup v2).
fn of_group(tree: &Tree) -> Option<u64> {
    let groups = tree.text("proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limits = Path::new(own).ancestors().filter_map(|group| {
        let file = Path::new("sys/fs/cgroup").join(group).join("memory.max");
        tree.text(file).ok()?.trim().parse().ok()
    });
    limits.min()
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;

    #[test]
    fn lowest_limit_counts() {
        let folder = std::env::temp_dir().join(format!("storagetm-memory-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let tree = Tree::at(&folder);
        write("proc/meminfo", "MemTotal:        1000 kB\nMemFree:          1 kB\n");
        assert_eq!(available(&tree), 1_024_000);
        write("proc/self/cgroup", "0::/a.slice/b.service\n");
        write("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
        assert_eq!(available(&tree), 1_024_000);
        write("sys/fs/cgroup/a.slice/memory.max", "65536\n");
        assert_eq!(available(&tree), 65536);
        fs::remove_dir_all(folder).unwrap();
    }
}
