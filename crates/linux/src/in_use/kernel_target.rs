//! What the kernel's own targets serve, by configfs: the NVMe target (nvmet), which holds neither disks nor files exclusively,
//! and LIO (iSCSI and others), which does not hold files.

use std::path::Path;

use crate::tree::Tree;

/// The subsystems of the NVMe target.
const NVMET: &str = "sys/kernel/config/nvmet/subsystems";

/// The backstores of LIO: folders `HBA/NAME`, as `iblock_0/disk`.
const LIO: &str = "sys/kernel/config/target/core";

/// A disk or a file that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    /// As it was configured; perhaps through links.
    pub(super) path: String,
    /// By what.
    pub(super) text: &'static str,
}

/// Returns what is served. What cannot be read, as without a mounted configfs, is not.
pub(super) fn served(tree: &Tree) -> Vec<Served> {
    let mut served = Vec::new();
    let mut add = |path: Option<String>, text| {
        served.extend(path.map(|path| Served { path, text }));
    };
    for subsystem in tree.names(NVMET) {
        let namespaces = Path::new(NVMET).join(subsystem).join("namespaces");
        for namespace in tree.names(&namespaces) {
            let path = enabled(tree, &namespaces.join(namespace), "device_path");
            add(path, "lent by the kernel's own NVMe target");
        }
    }
    for adapter in tree.names(LIO) {
        let adapter = Path::new(LIO).join(adapter);
        for store in tree.names(&adapter) {
            let path = enabled(tree, &adapter.join(store), "udev_path");
            add(path, "lent by the kernel's own SCSI target (LIO)");
        }
    }
    served
}

/// Returns the path in that attribute of the folder, unless it is not enabled. In doubt it is.
fn enabled(tree: &Tree, folder: &Path, attribute: &str) -> Option<String> {
    let is_off = tree.number(folder.join("enable")) == Some(0);
    tree.attribute(folder.join(attribute)).filter(|_| !is_off)
}
