//! Selects disks by name before they exist: at boot a disk appears when its driver has found it.

use std::fmt;

use linux::block::Disk;

/// Selects a disk by name, serial number or WWN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSelector(String);

impl DiskSelector {
    /// `name` is a path below `/dev`, a name of the kernel, the device mapper or LVM, a serial
    /// number or a WWN.
    pub fn new(name: &str) -> Self {
        Self(name.trim().to_owned())
    }

    /// Returns whether it selects this disk. Without udev there is no `/dev/disk/by-id`, so the
    /// serial number or WWN at the end of such a path is compared.
    fn matches(&self, disk: &Disk) -> bool {
        self.matches_position(disk) || self.matches_serial(disk)
    }

    /// Returns whether the name depends only on the order of discovery.
    fn matches_position(&self, disk: &Disk) -> bool {
        disk.has_name(&self.0)
    }

    fn matches_serial(&self, disk: &Disk) -> bool {
        let (serial, wwn) = (disk.hardware.serial.as_deref(), disk.hardware.wwn.as_deref());
        !disk.is_partition() && [serial, wwn].into_iter().flatten().any(|own| self.matches_id(own))
    }

    /// Compares with a serial number or WWN, or the end of a link in `/dev/disk/by-id`. udev writes
    /// an underscore for a blank, and `0x` for `naa.`.
    fn matches_id(&self, own: &str) -> bool {
        let own = own.to_ascii_lowercase().replace(' ', "_");
        let own = own.strip_prefix("naa.").unwrap_or(&own);
        let called = self.0.to_ascii_lowercase().replace(' ', "_");
        match called.strip_prefix("/dev/disk/by-id/") {
            Some(link) => link
                .strip_suffix(own)
                .is_some_and(|before| ["_", "-", "-0x"].iter().any(|end| before.ends_with(end))),
            None => ["", "naa.", "0x"].iter().any(|start| called.strip_prefix(start) == Some(own)),
        }
    }
}

impl fmt::Display for DiskSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which disks to export with `--all`, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFilter {
    /// Disks to export beside `writable`; if empty, all disks.
    pub only: Vec<DiskSelector>,
    /// Disks to export writable.
    pub writable: Vec<DiskSelector>,
    /// Disks to export with an overlay, beside `only`, not writable.
    pub overlay: Vec<DiskSelector>,
    /// Whether all disks that are not writable have an overlay.
    pub overlay_all: bool,
}

/// How a disk was selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// As one of all disks.
    Any,
    /// By name.
    Named,
    /// By name, writable.
    Writable,
}

impl DiskFilter {
    /// Returns how the disk is selected; `None` if it is not to be exported.
    pub fn select(&self, disk: &Disk) -> Option<Selection> {
        let is_writable = self.writable.iter().any(|selector| selector.matches(disk));
        if is_writable && !self.is_named_with_overlay(disk) {
            Some(Selection::Writable)
        } else {
            self.select_read_only(disk)
        }
    }

    /// Like [`Self::select`], ignoring `writable`.
    pub fn select_read_only(&self, disk: &Disk) -> Option<Selection> {
        let is_named = self.only.iter().any(|selector| selector.matches(disk))
            || self.is_named_with_overlay(disk);
        let any = self.only.is_empty().then_some(Selection::Any);
        if is_named { Some(Selection::Named) } else { any }
    }

    /// Returns whether the disk, if it is selected and not writable, has an overlay.
    pub fn has_overlay(&self, disk: &Disk) -> bool {
        self.overlay_all || self.is_named_with_overlay(disk)
    }

    fn is_named_with_overlay(&self, disk: &Disk) -> bool {
        self.overlay.iter().any(|selector| selector.matches(disk))
    }

    /// The selector, if the disk is selected as writable only by a name that another disk may get
    /// later.
    pub fn writable_by_position(&self, disk: &Disk) -> Option<&DiskSelector> {
        if self.writable.iter().any(|selector| selector.matches_serial(disk)) {
            return None;
        }
        self.writable.iter().find(|selector| selector.matches_position(disk))
    }

    /// Returns whether no disk is named.
    pub fn is_empty(&self) -> bool {
        self.only.is_empty() && self.writable.is_empty() && self.overlay.is_empty()
    }

    /// Selectors that match none of `disks`.
    pub fn missing<'a>(&'a self, disks: &'a [Disk]) -> impl Iterator<Item = &'a DiskSelector> {
        let all = self.only.iter().chain(&self.writable).chain(&self.overlay);
        all.filter(|selector| !disks.iter().any(|disk| selector.matches(disk)))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use linux::block;
    use linux::tree::Tree;
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn disks() -> Vec<Disk> {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let (id, call) = (std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(format!("storagetm-filter-{id}-{call}"));
        for (name, number, serial) in [("sda", "8:0", "S1"), ("sdb", "8:16", "WD-S2")] {
            let folder = root.join("sys/class/block").join(name);
            fs::create_dir_all(folder.join("device")).unwrap();
            fs::write(folder.join("dev"), number).unwrap();
            fs::write(folder.join("size"), "2048").unwrap();
            fs::write(folder.join("device/serial"), serial).unwrap();
        }
        let disks = block::scan(&Tree::at(&root)).unwrap();
        fs::remove_dir_all(&root).unwrap();
        disks
    }

    fn filter(only: &[&str], writable: &[&str]) -> DiskFilter {
        let selectors = |names: &[&str]| names.iter().map(|name| DiskSelector::new(name)).collect();
        DiskFilter { only: selectors(only), writable: selectors(writable), ..DiskFilter::default() }
    }

    #[test]
    fn without_names_every_disk_is_selected() {
        for disk in disks() {
            assert_eq!(DiskFilter::default().select(&disk), Some(Selection::Any));
        }
    }

    #[test]
    fn disk_with_an_overlay_is_not_writable() {
        let disks = disks();
        let overlay = vec![DiskSelector::new("sda")];
        let filter = DiskFilter { overlay: overlay.clone(), ..filter(&[], &["S1"]) };
        assert_eq!(filter.select(&disks[0]), Some(Selection::Named));
        assert_eq!(
            disks.iter().map(|disk| filter.has_overlay(disk)).collect::<Vec<_>>(),
            [true, false]
        );
        // Other disks are exported as without it.
        assert_eq!(filter.select(&disks[1]), Some(Selection::Any));
        let only = DiskFilter { overlay, only: vec![DiskSelector::new("none")], ..filter };
        assert_eq!(
            (only.select(&disks[0]), only.select(&disks[1])),
            (Some(Selection::Named), None)
        );
        assert_eq!(only.missing(&disks).count(), 1);
        let all = DiskFilter { overlay_all: true, ..self::filter(&[], &["sda"]) };
        assert_eq!(all.select(&disks[0]), Some(Selection::Writable));
        assert!(all.has_overlay(&disks[1]) && all.select(&disks[1]) == Some(Selection::Any));
    }

    #[test]
    fn disk_is_selected_by_any_of_its_names() {
        let disks = disks();
        for name in ["sdb", "/dev/sdb", "wd-s2", "/dev/disk/by-id/ata-Example_WD-S2"] {
            let filter = filter(&[name], &[]);
            let selections: Vec<_> = disks.iter().map(|disk| filter.select(disk)).collect();
            assert_eq!(selections, [None, Some(Selection::Named)], "{name}");
        }
    }

    #[test]
    fn serial_numbers_match_udev_links() {
        let matches_id = |called: &str, own| DiskSelector::new(called).matches_id(own);
        let naa = "naa.5000c50056789abc";
        for called in ["/dev/disk/by-id/wwn-0x5000c50056789abc", "0x5000C50056789ABC", naa] {
            assert!(matches_id(called, naa), "{called}");
        }
        assert!(matches_id("/dev/disk/by-id/nvme-eui.0025384b31404c21", "eui.0025384b31404c21"));
        assert!(matches_id("/dev/disk/by-id/usb-Maker_Stick_AB_12-0", "AB 12-0"));
        assert!(!matches_id("/dev/disk/by-id/ata-Example_XS2", "S2"));
        assert!(!matches_id("/dev/disk/by-id/ata-Example_S2-part1", "S2"));
    }

    #[test]
    fn writable_selector_keeps_other_disks_selected() {
        let disks = disks();
        let filter = filter(&[], &["S1", "S9"]);
        let selections: Vec<_> = disks.iter().map(|disk| filter.select(disk)).collect();
        assert_eq!(selections, [Some(Selection::Writable), Some(Selection::Any)]);
        let missing: Vec<String> = filter.missing(&disks).map(ToString::to_string).collect();
        assert_eq!(missing, ["S9"]);
    }
}
