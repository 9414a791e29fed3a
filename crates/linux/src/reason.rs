//! Why a disk is not lent: codes for programs, sentences for people, and what may override them.
//!
//! Does not know how the reasons are found.

use crate::signature::Kind;
use crate::transport::Transport;
use std::fmt;

/// What it takes to lend the disk in spite of a reason; the heavier come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Nothing: it is only to be known.
    Note,
    /// Nothing to read it; to write it, explicit permission, since what is on it is not known.
    Unread,
    /// To name the disk: it is only not among all disks.
    Unasked,
    /// To allow disks in use: whether this one is could not be found out.
    Unknown,
    /// To allow disks in use, which are lent read-only then.
    InUse,
    /// It cannot be lent.
    Never,
}

/// How the disk was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// All disks were.
    ForAll,
    /// It was, by its name.
    ByName,
    /// It was, by its name, and disks in use are allowed.
    ByNameInUse,
}

/// The kind of a reason, with a stable word for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// It holds the root file system.
    Root,
    /// A file system on it is mounted.
    Mounted,
    /// It is swapped to.
    Swap,
    /// It holds the image of a machine that sleeps.
    Hibernation,
    /// Part of a RAID array.
    Md,
    /// Part of an LVM volume group.
    Lvm,
    /// An open encrypted volume stands on it.
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
    /// Another device stands on it.
    Held,
    /// A program has it for itself.
    Busy,
    /// It comes from another machine.
    Network,
    /// A file as a disk.
    Loop,
    /// Compressed memory.
    Zram,
    /// Memory.
    Ram,
    /// A diskette drive.
    Floppy,
    /// A drive for optical discs.
    Optical,
    /// Raw flash of the machine's own firmware.
    Flash,
    /// The area of an eMMC from which the machine starts.
    BootArea,
    /// A device for tests that keeps nothing.
    Null,
    /// A disk that a program makes.
    Program,
    /// A disk of zones that must be written in order.
    Zoned,
    /// A partition: the disk is lent as a whole.
    Partition,
    /// The drive is empty.
    NoMedium,
    /// It has no bytes.
    Empty,
    /// Whether it is in use could not be found out.
    Doubt,
    /// A part of it that was examined cannot be read.
    Unreadable,
    /// It does not answer requests.
    Silent,
    /// It cannot be written.
    ReadOnly,
}

impl Code {
    /// The stable word.
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

    /// What it takes to lend the disk all the same.
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

    /// A transport that keeps a disk from being lent unasked, and the words for it.
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

    /// What it means that another device stands on the disk: by that device's transport and identifier.
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

    /// A mark that says that the disk is part of something larger; `devices` is how many parts the mark tells of.
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

/// One reason: the code, and words for people without a full stop ("mounted at /home (partition sda2)").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The kind.
    pub code: Code,
    /// The words.
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
    /// What speaks against it, the heaviest first, each said once.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// Orders the reasons and drops repetitions.
    pub fn new(mut reasons: Vec<Reason>) -> Self {
        reasons.sort_by_key(|reason| (std::cmp::Reverse(reason.code.weight()), reason.code));
        reasons.dedup();
        Self { reasons }
    }

    /// Whether the disk may be lent when it is asked for in this way.
    pub fn allows(&self, asked: Asked) -> bool {
        let most = match asked {
            Asked::ForAll => Weight::Unread,
            Asked::ByName => Weight::Unasked,
            Asked::ByNameInUse => Weight::InUse,
        };
        self.reasons.iter().all(|reason| reason.code.weight() <= most)
    }

    /// Whether it may be lent to be written: never a disk in use, nor one that cannot be written; with `force` one whose
    /// content cannot be read.
    pub fn allows_writing(&self, force: bool) -> bool {
        let forbids = |reason: &Reason| {
            reason.code == Code::ReadOnly || (reason.code.weight() == Weight::Unread && !force)
        };
        self.allows(Asked::ByName) && !self.reasons.iter().any(forbids)
    }

    /// The reasons of that weight.
    pub fn of_weight(&self, weight: Weight) -> impl Iterator<Item = &Reason> {
        self.reasons.iter().filter(move |reason| reason.code.weight() == weight)
    }

    /// Whether the disk is in use, or may be.
    pub fn is_in_use(&self) -> bool {
        self.uses().next().is_some()
    }

    /// The uses of the disk, known ones before possible ones.
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
    fn what_was_asked_overrides_what_it_may() {
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
    fn what_is_not_known_is_told_apart_from_use() {
        let doubt = verdict(&[Code::Doubt]);
        assert!(doubt.is_in_use() && doubt.of_weight(Weight::InUse).next().is_none());
        let broken = verdict(&[Code::Unreadable]);
        assert!(!broken.is_in_use());
        assert_eq!(verdict(&[Code::Doubt, Code::Swap]).uses().count(), 2);
    }

    #[test]
    fn the_heaviest_reason_comes_first_and_each_once() {
        let verdict = verdict(&[Code::ReadOnly, Code::Loop, Code::Swap, Code::Root, Code::Swap]);
        let codes: Vec<_> = verdict.reasons.iter().map(|reason| reason.code).collect();
        assert_eq!(codes, [Code::Root, Code::Swap, Code::Loop, Code::ReadOnly]);
        assert!(verdict.is_in_use());
    }
}
