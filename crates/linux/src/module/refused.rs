//! Modules that are never loaded: they write to disks, or assemble disks, without being asked.

/// Module names and the reason shown to users.
const NAMES: &[(&str, &str)] = &[
    ("bcache", "it would start a cache and write to its disks"),
    ("bcachefs", "it would repair a file system as it finds it"),
    ("btrfs", "it would gather disks to one file system"),
    ("drbd", "it would mirror disks over the network"),
    ("faulty", RAID),
    ("linear", RAID),
    ("md_mod", RAID),
    ("multipath", RAID),
    ("nd_btt", "it would complete interrupted writes on non-volatile memory"),
    ("spl", POOL),
    ("zfs", POOL),
];

/// Prefixes of module names.
const STARTS: &[(&str, &str)] = &[
    ("dm_", "it would build volumes of disks"),
    ("md_cluster", RAID),
    ("raid0", RAID),
    ("raid1", RAID),
    ("raid4", RAID),
    ("raid5", RAID),
    ("raid6", RAID),
];

const RAID: &str = "it would assemble RAID arrays and write to their disks";
const POOL: &str = "it would import pools and write to their disks";

/// Returns why a module (its name with underscores) is never loaded, or `None` if it may be.
pub fn refused(name: &str) -> Option<&'static str> {
    let whole = NAMES.iter().find(|(refused, _)| *refused == name);
    let start = || STARTS.iter().find(|(start, _)| name.starts_with(start));
    whole.or_else(start).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assembling_modules_are_refused() {
        for name in
            ["md_mod", "dm_mod", "dm_raid", "raid10", "raid456", "bcache", "zfs", "btrfs", "nd_btt"]
        {
            assert!(refused(name).is_some(), "{name}");
        }
        // Drivers of real adapters need the first two; the others are network and storage drivers.
        for name in ["raid_class", "megaraid_sas", "dmfe", "dm9601", "mdio", "nvme", "aacraid"] {
            assert!(refused(name).is_none(), "{name}");
        }
    }
}
