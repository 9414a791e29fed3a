//! The connection registry of libnvme 3: records which program a connection belongs to, so that
//! `nvme disconnect-all` leaves it alone.
//!
//! It is a directory for each controller with a file for each attribute
//! (libnvme/design/REGISTRY.md). Only libnvme's udev rule removes stale entries: without that rule
//! nothing is written.

use std::fs;
use std::io;
use std::path::Path;

use crate::tree::Tree;

const REGISTRY: &str = "run/nvme/registry";
/// The `owner` of connections made by `storagetm attach`.
const OWNER: &str = "storagetm";
/// The rule that removes entries, and the directories that udev(7) reads.
const RULE: &str = "70-nvmf-registry.rules";
const RULES: [&str; 4] =
    ["etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d"];

/// Registers a controller that was just connected, `nvme3`, as this program's. Does nothing if
/// it does not exist.
///
/// # Errors
/// Fails if the registry cannot be written.
pub fn register(tree: &Tree, controller: &str) -> io::Result<()> {
    if !RULES.iter().any(|folder| tree.path(Path::new(folder).join(RULE)).exists()) {
        return Ok(());
    }
    let registry = tree.path(REGISTRY);
    fs::create_dir_all(&registry)?;
    // An entry appears atomically: the rule would treat one without a sequence number as stale.
    let new = registry.join(format!(".{controller}.tmp.{}", std::process::id()));
    let entry = registry.join(controller);
    let written = write(tree, &new).and_then(|()| {
        // The kernel reuses numbers: an existing entry is that of a controller that is gone.
        match fs::remove_dir_all(&entry) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::rename(&new, &entry),
        }
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&new);
    }
    written
}

fn write(tree: &Tree, folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    if let Some(number) = tree.attribute("sys/kernel/uevent_seqnum") {
        fs::write(folder.join("seqnum"), format!("{number}\n"))?;
    }
    fs::write(folder.join("owner"), format!("{OWNER}\n"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn connection_is_registered_if_there_is_a_registry() {
        let root = std::env::temp_dir().join(format!("storagetm-registry-{}", std::process::id()));
        let (tree, text) = (Tree::at(&root), |path: &str| fs::read_to_string(root.join(path)).ok());
        register(&tree, "nvme3").unwrap();
        assert!(!root.join(REGISTRY).exists(), "stale entries would not be removed");
        fs::create_dir_all(root.join(RULES[2])).unwrap();
        fs::write(root.join(RULES[2]).join(RULE), "").unwrap();
        fs::create_dir_all(root.join("sys/kernel")).unwrap();
        fs::write(root.join("sys/kernel/uevent_seqnum"), "4711\n").unwrap();
        fs::create_dir_all(root.join(REGISTRY).join("nvme3")).unwrap();
        fs::write(root.join(REGISTRY).join("nvme3/note"), "of the previous one").unwrap();
        register(&tree, "nvme3").unwrap();
        assert_eq!(text("run/nvme/registry/nvme3/owner").as_deref(), Some("storagetm\n"));
        assert_eq!(text("run/nvme/registry/nvme3/seqnum").as_deref(), Some("4711\n"));
        assert_eq!(text("run/nvme/registry/nvme3/note"), None);
        assert_eq!(fs::read_dir(root.join(REGISTRY)).unwrap().count(), 1);
        fs::remove_dir_all(&root).unwrap();
    }
}
