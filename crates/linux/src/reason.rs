//! Reasons against exporting a disk: codes for programs, sentences for people, and what overrides
//! them.

use crate::signature::Kind;
use crate::transport::Transport;
use std::fmt;

/// What overrides a reason, in ascending order of severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Informational.
    Note,
    /// Prevents writing without `--force`: the contents are not known.
    Unread,
    /// Overridden by naming the disk: excludes it only from `--all`.
    Unasked,
    /// Overridden by allowing disks in use: whether this one is in use cannot be determined.
    Unknown,
    /// Overridden by allowing disks in use, which are then exported read-only.
    InUse,
    /// Cannot be overridden.
    Never,
}

/// How a disk was selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// `--all`.
    ForAll,
    /// By its name.
    ByName,
    /// By its name, and disks in use are allowed.
    ByNameInUse,
}

/// The code of a reason, with a stable word for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// Holds the root file system.
    Root,
    /// Holds a mounted file system.
    Mounted,
    /// Active swap space.
    Swap,
    /// Holds a hibernation image.
    Hibernation,
    /// Part of a RAID array.
    Md,
    /// Part of an LVM volume group.
    Lvm,
    /// Holds an open encrypted volume.
    Crypt,
    /// A path of a multipath disk.
    Multipath,
    /// Part of a btrfs file system of several devices.
    Btrfs,
    /// Part of a ZFS pool.
    Zfs,
    /// Cached, or a cache.
    Bcache,
    /// Mirrored over the network.
    Drbd,
    /// Part of another pool or file system of several devices.
    Member,
    /// Another device is stacked on it.
    Held,
    /// A program has opened it exclusively.
    Busy,
    /// A disk of another machine.
    Network,
    /// A loop device.
    Loop,
    /// A zram device.
    Zram,
    /// A RAM disk.
    Ram,
    /// A diskette drive.
    Floppy,
    /// A drive for optical discs.
    Optical,
    /// The flash memory of the firmware.
    Flash,
    /// A boot partition of an eMMC.
    BootArea,
    /// The kernel's null block device, which stores nothing.
    Null,
    /// A disk emulated by a program.
    Program,
    /// A host-managed zoned disk.
    Zoned,
    /// A partition of a disk that is exported as a whole.
    Partition,
    /// The drive is empty.
    NoMedium,
    /// Its size is 0.
    Empty,
    /// Whether it is in use could not be found out.
    Doubt,
    /// A region that was examined cannot be read.
    Unreadable,
    /// It does not answer requests.
    Silent,
    /// Read-only.
    ReadOnly,
}

impl Code {
    /// Returns the stable word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Mounted => "mounted",
            Self::Swap => "swap",
            Self::Hibernation => "hibernation",
            Self::Md => "md",
            Self::Lvm => "lvm",
            Self::Crypt => "crypt",
            Self::Multipath => "multipath",
            Self::Btrfs => "btrfs",
            Self::Zfs => "zfs",
            Self::Bcache => "bcache",
            Self::Drbd => "drbd",
            Self::Member => "member",
            Self::Held => "held",
            Self::Busy => "busy",
            Self::Network => "network",
            Self::Loop => "loop",
            Self::Zram => "zram",
            Self::Ram => "ram",
            Self::Floppy => "floppy",
            Self::Optical => "optical",
            Self::Flash => "flash",
            Self::BootArea => "boot-area",
            Self::Null => "null",
            Self::Program => "program",
            Self::Zoned => "zoned",
            Self::Partition => "partition",
            Self::NoMedium => "no-medium",
            Self::Empty => "empty",
            Self::Doubt => "doubt",
            Self::Unreadable => "unreadable",
            Self::Silent => "no-answer",
            Self::ReadOnly => "read-only",
        }
    }

    /// Returns the severity.
    pub fn weight(self) -> Weight {
        match self {
            Self::ReadOnly => Weight::Note,
            Self::Unreadable => Weight::Unread,
            Self::Doubt => Weight::Unknown,
            Self::NoMedium | Self::Empty | Self::Silent => Weight::Never,
            Self::Network
            | Self::Loop
            | Self::Zram
            | Self::Ram
            | Self::Floppy
            | Self::Optical
            | Self::Flash
            | Self::BootArea
            | Self::Null
            | Self::Program
            | Self::Zoned
            | Self::Partition => Weight::Unasked,
            _ => Weight::InUse,
        }
    }

    /// Returns the reason that follows from a transport, and its text.
    pub(crate) fn of_transport(transport: Transport) -> Option<(Self, &'static str)> {
        Some(match transport {
            Transport::Loop => (Self::Loop, "it is a file on another disk of this machine"),
            Transport::Zram => (Self::Zram, "it is compressed memory"),
            Transport::Ram => (Self::Ram, "it is memory"),
            Transport::Floppy => (Self::Floppy, "it is a diskette drive"),
            Transport::Optical => (Self::Optical, "it is a drive for optical discs"),
            Transport::Mtd => (Self::Flash, "it is raw flash memory of this machine"),
            Transport::Null => (Self::Null, "it is a device for tests that keeps nothing"),
            Transport::Ublk => (Self::Program, "it is made by a program"),
            _ => return None,
        })
    }

    /// Returns the reason that follows from a holder: by the transport and the UUID of the device
    /// stacked on the disk.
    pub(crate) fn of_holder(transport: Transport, dm_uuid: &str) -> (Self, &'static str) {
        match transport {
            Transport::Md => (Self::Md, "part of the RAID array"),
            Transport::Bcache => (Self::Bcache, "cached by"),
            Transport::Drbd => (Self::Drbd, "mirrored by"),
            _ if dm_uuid.starts_with("LVM-") => (Self::Lvm, "used by the LVM volume"),
            _ if dm_uuid.starts_with("CRYPT-") => (Self::Crypt, "opened as the encrypted volume"),
            _ if dm_uuid.starts_with("mpath-") => (Self::Multipath, "a path of the multipath disk"),
            _ => (Self::Held, "held by"),
        }
    }

    /// Returns the reason if a signature marks the disk as a member of something larger; `devices`
    /// is the number of members.
    pub(crate) fn of_mark(kind: Kind, devices: u64) -> Option<(Self, &'static str)> {
        Some(match kind {
            Kind::Lvm2 => (Self::Lvm, "part of an LVM volume group"),
            Kind::Md => (Self::Md, "part of a RAID array"),
            Kind::FirmwareRaid => (Self::Md, "part of a RAID array of the firmware"),
            Kind::Zfs => (Self::Zfs, "part of a ZFS pool"),
            Kind::Bcache => (Self::Bcache, "part of a bcache set"),
            Kind::Drbd => (Self::Drbd, "mirrored over the network by DRBD"),
            Kind::Hibernation => {
                (Self::Hibernation, "holds the image of a machine that hibernates")
            }
            Kind::Stratis => (Self::Member, "part of a Stratis pool"),
            Kind::Ceph => (Self::Member, "part of a Ceph cluster"),
            Kind::Vdo => (Self::Member, "part of a VDO volume"),
            Kind::ExtJournal => (Self::Member, "the journal of a file system on another disk"),
            Kind::Btrfs if devices != 1 => {
                (Self::Btrfs, "part of a btrfs file system of several disks")
            }
            Kind::Bcachefs if devices != 1 => {
                (Self::Member, "part of a bcachefs file system of several disks")
            }
            _ => return None,
        })
    }
}

/// A reason: the code, and a text without a full stop ("mounted at /home (partition sda2)").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub code: Code,
    pub text: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a disk may be lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The reasons against it, the most severe first, without duplicates.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// Sorts the reasons and removes duplicates.
    pub fn new(mut reasons: Vec<Reason>) -> Self {
        reasons.sort_by_key(|reason| (std::cmp::Reverse(reason.code.weight()), reason.code));
        reasons.dedup();
        Self { reasons }
    }

    /// Returns whether the disk may be exported if it is selected in this way.
    pub fn allows(&self, asked: Asked) -> bool {
        let max = match asked {
            Asked::ForAll => Weight::Unread,
            Asked::ByName => Weight::Unasked,
            Asked::ByNameInUse => Weight::InUse,
        };
        self.reasons.iter().all(|reason| reason.code.weight() <= max)
    }

    /// Returns whether it may be exported for writing: never a disk in use or a read-only one; with
    /// `force` one whose contents cannot be read.
    pub fn allows_writing(&self, force: bool) -> bool {
        let forbids = |reason: &Reason| {
            reason.code == Code::ReadOnly || (reason.code.weight() == Weight::Unread && !force)
        };
        self.allows(Asked::ByName) && !self.reasons.iter().any(forbids)
    }

    /// Returns the reasons of a severity.
    pub fn of_weight(&self, weight: Weight) -> impl Iterator<Item = &Reason> {
        self.reasons.iter().filter(move |reason| reason.code.weight() == weight)
    }

    /// Returns whether the disk is in use, or may be.
    pub fn is_in_use(&self) -> bool {
        self.uses().next().is_some()
    }

    /// Returns the uses of the disk, known ones before possible ones.
    pub fn uses(&self) -> impl Iterator<Item = &Reason> {
        self.of_weight(Weight::InUse).chain(self.of_weight(Weight::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(codes: &[Code]) -> Verdict {
        let reason = |code: &Code| Reason { code: *code, text: code.word().to_owned() };
        Verdict::new(codes.iter().map(reason).collect())
    }

    #[test]
    fn selection_overrides_reasons() {
        let allowed = |codes: &[Code]| {
            let verdict = verdict(codes);
            let asked = [Asked::ForAll, Asked::ByName, Asked::ByNameInUse];
            (asked.map(|asked| verdict.allows(asked)), verdict.allows_writing(false))
        };
        assert_eq!(allowed(&[]), ([true, true, true], true));
        assert_eq!(allowed(&[Code::ReadOnly]), ([true, true, true], false));
        assert_eq!(allowed(&[Code::Loop]), ([false, true, true], true));
        assert_eq!(allowed(&[Code::Loop, Code::Mounted]), ([false, false, true], false));
        assert_eq!(allowed(&[Code::Doubt]), ([false, false, true], false));
        assert_eq!(allowed(&[Code::NoMedium]), ([false, false, false], false));
        assert_eq!(allowed(&[Code::Silent]), ([false, false, false], false));
        assert_eq!(allowed(&[Code::Unreadable]), ([true, true, true], false));
        assert_eq!(allowed(&[Code::Unreadable, Code::Mounted]), ([false, false, true], false));
        assert!(verdict(&[Code::Unreadable]).allows_writing(true));
        assert!(!verdict(&[Code::Unreadable, Code::ReadOnly]).allows_writing(true));
    }

    #[test]
    fn unknown_use_differs_from_known_use() {
        let doubt = verdict(&[Code::Doubt]);
        assert!(doubt.is_in_use() && doubt.of_weight(Weight::InUse).next().is_none());
        let broken = verdict(&[Code::Unreadable]);
        assert!(!broken.is_in_use());
        assert_eq!(verdict(&[Code::Doubt, Code::Swap]).uses().count(), 2);
    }

    #[test]
    fn reasons_are_sorted_and_unique() {
        let verdict = verdict(&[Code::ReadOnly, Code::Loop, Code::Swap, Code::Root, Code::Swap]);
        let codes: Vec<_> = verdict.reasons.iter().map(|reason| reason.code).collect();
        assert_eq!(codes, [Code::Root, Code::Swap, Code::Loop, Code::ReadOnly]);
        assert!(verdict.is_in_use());
    }
}
