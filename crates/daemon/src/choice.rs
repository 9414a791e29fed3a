//! Disks that were asked for before they were there: at boot a disk comes when its driver has found it. It knows no
//! device node.

use std::fmt;

use linux::block::Disk;

/// How a disk is called by those who cannot see it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called(String);

impl Called {
    /// A path below `/dev`, a name of the kernel, of the device mapper or of LVM, a serial number or a world-wide name.
    pub fn new(name: &str) -> Self {
        Self(name.trim().to_owned())
    }

    /// Whether that is this disk. Without a device manager there is no `/dev/disk/by-id`: the serial number or the
    /// world-wide name at the end of such a path tells.
    fn is(&self, disk: &Disk) -> bool {
        self.is_place_of(disk) || self.is_number_of(disk)
    }

    /// Whether the disk is called so only because it was found in that order.
    fn is_place_of(&self, disk: &Disk) -> bool {
        disk.has_name(&self.0)
    }

    fn is_number_of(&self, disk: &Disk) -> bool {
        let (serial, wwn) = (disk.hardware.serial.as_deref(), disk.hardware.wwn.as_deref());
        !disk.is_partition() && [serial, wwn].into_iter().flatten().any(|own| self.tells(own))
    }

    /// Whether it is that number, or a link of `/dev/disk/by-id` that ends with it. The device manager has an underscore
    /// for a blank, and `0x` for what the kernel calls `naa.`.
    fn tells(&self, own: &str) -> bool {
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

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of all disks are lent, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Those, and the writable ones; all disks if none is named here.
    pub only: Vec<Called>,
    /// Those that hosts can change.
    pub writable: Vec<Called>,
}

/// What was said of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It is one of all.
    Any,
    /// It was named.
    Named,
    /// It was named writable.
    Writable,
}

impl Choice {
    /// What was said of a disk; nothing if it is not to be lent.
    pub fn of(&self, disk: &Disk) -> Option<Said> {
        let is_writable = self.writable.iter().any(|call| call.is(disk));
        if is_writable { Some(Said::Writable) } else { self.of_reading(disk) }
    }

    /// What was said of a disk beside what may be written to.
    pub fn of_reading(&self, disk: &Disk) -> Option<Said> {
        let is_named = self.only.iter().any(|call| call.is(disk));
        let any = self.only.is_empty().then_some(Said::Any);
        if is_named { Some(Said::Named) } else { any }
    }

    /// The place by which a disk was named writable, if it was by nothing else: another disk may be there later.
    pub fn writable_place(&self, disk: &Disk) -> Option<&Called> {
        if self.writable.iter().any(|call| call.is_number_of(disk)) {
            return None;
        }
        self.writable.iter().find(|call| call.is_place_of(disk))
    }

    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.only.is_empty() && self.writable.is_empty()
    }

    /// Those that are not there.
    pub fn missing<'a>(&'a self, disks: &'a [Disk]) -> impl Iterator<Item = &'a Called> {
        let all = self.only.iter().chain(&self.writable);
        all.filter(|call| !disks.iter().any(|disk| call.is(disk)))
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
        let root = std::env::temp_dir().join(format!("storagetm-choice-{id}-{call}"));
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

    fn choice(only: &[&str], writable: &[&str]) -> Choice {
        let calls = |names: &[&str]| names.iter().map(|name| Called::new(name)).collect();
        Choice { only: calls(only), writable: calls(writable) }
    }

    #[test]
    fn without_names_it_is_any_disk() {
        for disk in disks() {
            assert_eq!(Choice::default().of(&disk), Some(Said::Any));
        }
    }

    #[test]
    fn a_disk_is_known_by_each_of_its_names_and_the_others_are_left_out() {
        let disks = disks();
        for name in ["sdb", "/dev/sdb", "wd-s2", "/dev/disk/by-id/ata-Example_WD-S2"] {
            let choice = choice(&[name], &[]);
            let said: Vec<_> = disks.iter().map(|disk| choice.of(disk)).collect();
            assert_eq!(said, [None, Some(Said::Named)], "{name}");
        }
    }

    #[test]
    fn numbers_are_known_as_the_device_manager_writes_them() {
        let tells = |called: &str, own| Called::new(called).tells(own);
        let naa = "naa.5000c50056789abc";
        for called in ["/dev/disk/by-id/wwn-0x5000c50056789abc", "0x5000C50056789ABC", naa] {
            assert!(tells(called, naa), "{called}");
        }
        assert!(tells("/dev/disk/by-id/nvme-eui.0025384b31404c21", "eui.0025384b31404c21"));
        assert!(tells("/dev/disk/by-id/usb-Maker_Stick_AB_12-0", "AB 12-0"));
        assert!(!tells("/dev/disk/by-id/ata-Example_XS2", "S2"));
        assert!(!tells("/dev/disk/by-id/ata-Example_S2-part1", "S2"));
    }

    #[test]
    fn a_writable_disk_alone_leaves_the_others_as_they_are() {
        let disks = disks();
        let choice = choice(&[], &["S1", "S9"]);
        let said: Vec<_> = disks.iter().map(|disk| choice.of(disk)).collect();
        assert_eq!(said, [Some(Said::Writable), Some(Said::Any)]);
        let missing: Vec<String> = choice.missing(&disks).map(ToString::to_string).collect();
        assert_eq!(missing, ["S9"]);
    }
}
