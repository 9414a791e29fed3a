//! Decides whether a disk may be exported: finds everything on this machine that uses it, or may.
//!
//! Does not read disks: the caller's [`Probe`] reports their contents and whether they are opened
//! exclusively. What cannot be determined counts as use, except contents that the disk itself fails
//! to read.

mod kernel_target;

use crate::block::{self, DeviceNumber, Disk};
use crate::mount::{self, Mount};
use crate::reason::{Code, Reason, Verdict};
use crate::signature::Contents;
use crate::transport::Transport;
use crate::tree::Tree;
use kernel_target::served;
use rustix::io::Errno;
use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Queries that access the disk itself.
pub trait Probe {
    /// Returns the signatures on the disk.
    fn contents(&self, disk: &Disk) -> io::Result<Contents>;
    /// Returns whether a program or the kernel has opened it exclusively.
    fn is_busy(&self, disk: &Disk) -> io::Result<bool>;
}

/// A use of a device: a mounted file system, swap space, ...
#[derive(Debug, Clone)]
struct Use {
    device: String,
    code: Code,
    text: String,
}

/// A snapshot of the machine's disks and their use.
#[derive(Debug, Clone)]
pub struct Machine {
    pub disks: Vec<Disk>,
    uses: Vec<Use>,
    doubts: Vec<Reason>,
    at_rest: bool,
}

impl Machine {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// Fails if `/sys/class/block` cannot be read. What else cannot be read becomes a reason
    /// against every disk.
    pub fn snapshot(tree: &Tree) -> io::Result<Self> {
        let disks = block::scan(tree)?;
        let mut machine = Self { disks, uses: Vec::new(), doubts: Vec::new(), at_rest: false };
        let mounts = mount::mounts(tree);
        let mounts = machine.or_reason(mounts, "what is mounted cannot be found out");
        let swaps = mount::swaps(tree);
        let swaps = machine.or_reason(swaps, "what is swapped to cannot be found out");
        machine.uses = machine.mounted(tree, &mounts);
        machine.uses.extend(machine.swapped(tree, &swaps));
        machine.uses.extend(machine.looped(tree));
        machine.uses.extend(machine.exported(tree));
        Ok(machine)
    }

    /// For target mode, in which the machine uses none of its disks: a signature (of a RAID array,
    /// of a volume group) then only shows how the disk was used before, and an unreadable disk is
    /// one to be rescued. Actual use still counts.
    pub fn at_rest(self) -> Self {
        Self { at_rest: true, ..self }
    }

    fn or_reason<T: Default>(&mut self, result: io::Result<T>, doubt: &str) -> T {
        result.unwrap_or_else(|error| {
            self.doubts.push(Reason { code: Code::Doubt, text: format!("{doubt}: {error}") });
            T::default()
        })
    }

    /// Returns the device with a kernel name.
    pub fn disk(&self, name: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.name == name)
    }

    /// Returns the reasons against exporting `disk`.
    pub fn judge(&self, disk: &Disk, probe: &dyn Probe) -> Verdict {
        let mut reasons = self.doubts.clone();
        reasons.extend(self.own(disk));
        for member in self.family(disk) {
            reasons.extend(self.used(disk, member));
        }
        reasons.extend(self.examined(disk, probe));
        Verdict::new(reasons)
    }

    /// Returns the devices to be probed to judge `disk`: the disk and its partitions; empty if the
    /// disk is not examined.
    pub fn examined_for<'a>(&'a self, disk: &'a Disk) -> Vec<&'a Disk> {
        // An empty floppy drive takes seconds to report that.
        if disk.bytes == 0 || disk.transport == Transport::Floppy {
            return Vec::new();
        }
        let parts = self.family(disk).into_iter().filter(|other| other.bytes > 0);
        parts.filter(|other| other.name == disk.name || !disk.is_partition()).collect()
    }

    /// Returns the reasons that follow from the disk itself.
    fn own(&self, disk: &Disk) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut add = |code, text: String| reasons.push(Reason { code, text });
        if disk.bytes == 0 {
            match disk.removable {
                true => add(Code::NoMedium, "there is no medium in the drive".to_owned()),
                false => add(Code::Empty, "its size is zero".to_owned()),
            }
        }
        if let Some((code, text)) = Code::of_transport(disk.transport) {
            add(code, text.to_owned());
        }
        if let Some(lower) = self.lowest(disk).into_iter().find(|d| d.transport.is_network()) {
            add(Code::Network, from_elsewhere(disk, lower));
        }
        if let Some(part) = &disk.part {
            add(
                Code::Partition,
                format!("it is a partition: {} is lent as a whole", part.whole_disk),
            );
        }
        if disk.transport == Transport::Mmc && disk.whole().contains("boot") {
            add(Code::BootArea, "it is the area from which this machine starts".to_owned());
        }
        if disk.zoned.as_deref() == Some("host-managed") {
            add(Code::Zoned, "its zones must be written in order".to_owned());
        }
        if disk.read_only {
            add(
                Code::ReadOnly,
                "it cannot be written: the disk or its medium is read-only".to_owned(),
            );
        }
        reasons
    }

    /// Returns the disk, its partitions, and for a partition the whole disk.
    fn family<'a>(&'a self, disk: &'a Disk) -> Vec<&'a Disk> {
        let related = |other: &&Disk| {
            let is_part = other.part.as_ref().is_some_and(|part| part.whole_disk == disk.name);
            let is_whole = disk.part.as_ref().is_some_and(|part| part.whole_disk == other.name);
            is_part || is_whole
        };
        std::iter::once(disk).chain(self.disks.iter().filter(related)).collect()
    }

    /// Returns the devices stacked on a device, directly or indirectly: holders, their partitions,
    /// and so on.
    fn above<'a>(&'a self, device: &'a Disk) -> Vec<&'a Disk> {
        self.follow(device, |disk| {
            let parts = self
                .disks
                .iter()
                .filter(|d| d.part.as_ref().is_some_and(|p| p.whole_disk == disk.name));
            let holders = disk.stacking.holders.iter().map(String::as_str);
            // The partitions of the device itself are in `family`.
            let parts = parts.filter(|_| disk.name != device.name).map(|part| part.name.as_str());
            holders.chain(parts).collect()
        })
    }

    /// Returns the device, its whole disk, and the devices that it is stacked on, directly or
    /// indirectly.
    fn lowest<'a>(&'a self, device: &'a Disk) -> Vec<&'a Disk> {
        let mut all = self.follow(device, |disk| {
            disk.stacking.slaves.iter().map(String::as_str).chain([disk.whole()]).collect()
        });
        all.insert(0, device);
        all
    }

    /// Returns the transitive closure of `next`, each device once, without the start.
    fn follow<'a>(
        &'a self,
        start: &'a Disk,
        next: impl Fn(&'a Disk) -> Vec<&'a str>,
    ) -> Vec<&'a Disk> {
        let mut seen = HashSet::from([start.name.as_str()]);
        let mut found = Vec::new();
        let mut open = vec![start];
        while let Some(disk) = open.pop() {
            let fresh: Vec<&Disk> = next(disk)
                .into_iter()
                .filter(|name| seen.insert(*name))
                .filter_map(|name| self.disk(name))
                .collect();
            found.extend(&fresh);
            open.extend(fresh);
        }
        found
    }

    /// Returns the uses of a member of the disk's family and of all that is stacked on it, and its
    /// holders themselves.
    fn used(&self, disk: &Disk, member: &Disk) -> Vec<Reason> {
        let above = self.above(member);
        let mut reasons = Vec::new();
        for device in std::iter::once(member).chain(above) {
            for found in self.uses.iter().filter(|found| found.device == device.name) {
                let place = place(disk, member, Some(device));
                reasons.push(Reason { code: found.code, text: format!("{}{place}", found.text) });
            }
        }
        for name in &member.stacking.holders {
            reasons.push(self.held(disk, member, name));
        }
        reasons
    }

    fn held(&self, disk: &Disk, member: &Disk, holder: &str) -> Reason {
        let known = self.disk(holder);
        let dm = known.and_then(|holder| holder.stacking.dm_uuid.as_deref()).unwrap_or_default();
        let transport = known.map_or(Transport::Unknown, |holder| holder.transport);
        let (code, text) = Code::of_holder(transport, dm);
        let name = known.and_then(|holder| holder.stacking.dm_name.as_deref()).unwrap_or(holder);
        Reason { code, text: format!("{text} {name}{}", place(disk, member, None)) }
    }

    /// Returns the reasons from signatures on the disk and its partitions, and whether it is opened
    /// exclusively.
    fn examined(&self, disk: &Disk, probe: &dyn Probe) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let examined = self.examined_for(disk);
        if examined.is_empty() {
            return reasons;
        }
        for member in examined {
            match probe.contents(member) {
                Ok(contents) => {
                    if !self.at_rest {
                        reasons.extend(signature_reasons(disk, member, &contents));
                    }
                    reasons.extend(contents.unreadable.map(|at| unreadable(disk, member, at)));
                }
                Err(error) => reasons.push(unexamined(disk, member, &error)),
            }
        }
        match probe.is_busy(disk) {
            Ok(false) => {}
            Ok(true) => reasons.push(Reason {
                code: Code::Busy,
                text: "opened exclusively by another program or by the kernel".to_owned(),
            }),
            Err(error) => reasons.push(unexamined(disk, disk, &error)),
        }
        reasons
    }

    /// Converts mounts to uses of devices.
    fn mounted(&self, tree: &Tree, mounts: &[Mount]) -> Vec<Use> {
        let pools = btrfs_pools(tree);
        let mut uses = Vec::new();
        for mount in mounts {
            // The root of a container is an ordinary mount.
            let ours = matches!(mount.process, None | Some(1));
            let code = if ours && mount.point == "/" { Code::Root } else { Code::Mounted };
            for device in self.devices_of(tree, mount, &pools) {
                uses.push(Use { device, code, text: describe(mount) });
            }
        }
        // A pool is listed only while it is mounted somewhere, perhaps in a namespace that is not
        // visible.
        for device in pools.into_iter().flatten() {
            if !uses.iter().any(|found| found.device == device) {
                let text = "part of a mounted btrfs file system".to_owned();
                uses.push(Use { device, code: Code::Mounted, text });
            }
        }
        uses
    }

    /// Returns the devices of a mount: by number, by source, and all devices of their btrfs pool.
    fn devices_of(&self, tree: &Tree, mount: &Mount, pools: &[Vec<String>]) -> Vec<String> {
        let by_number = self.disks.iter().find(|disk| disk.number == mount.number);
        let mut names: Vec<String> = by_number.map(|disk| disk.name.clone()).into_iter().collect();
        names.extend(self.sources(tree, &mount.source));
        let pools = pools.iter().filter(|pool| pool.iter().any(|name| names.contains(name)));
        let others: Vec<String> = pools.flatten().cloned().collect();
        names.extend(others);
        names.sort();
        names.dedup();
        names
    }

    /// Returns the devices in the source of a mount; several are separated by colons.
    fn sources(&self, tree: &Tree, source: &str) -> Vec<String> {
        let paths =
            std::iter::once(source).chain(source.split(':').filter(|_| source.contains(':')));
        paths.filter_map(|path| self.at_path(tree, path)).collect()
    }

    /// Returns the device of a path. Only nodes in `/dev` are found: other paths, such as that in
    /// `server:/path`, may be on a file server that does not respond.
    fn at_path(&self, tree: &Tree, path: &str) -> Option<String> {
        if !path.starts_with("/dev/") {
            return None;
        }
        let metadata = std::fs::metadata(tree.path(path)).ok();
        let number = metadata.filter(|m| m.file_type().is_block_device()).map(|m| number(m.rdev()));
        let node = tree.resolve(path);
        let is_it = |disk: &&Disk| Some(disk.number) == number || node.as_ref() == Some(&disk.node);
        self.disks.iter().find(is_it).map(|disk| disk.name.clone())
    }

    fn swapped(&self, tree: &Tree, swaps: &[String]) -> Vec<Use> {
        let devices = swaps.iter().filter_map(|path| self.at_path(tree, path));
        let text = "in use as swap space".to_owned();
        devices.map(|device| Use { device, code: Code::Swap, text: text.clone() }).collect()
    }

    /// Returns the disks behind loop devices, which hold them neither exclusively nor as `holders`.
    fn looped(&self, tree: &Tree) -> Vec<Use> {
        let backed = self.disks.iter().filter_map(|disk| {
            let device = self.at_path(tree, disk.stacking.backing_file.as_deref()?)?;
            let text = format!("attached as {}", disk.name);
            Some(Use { device, code: Code::Held, text })
        });
        backed.collect()
    }

    /// Returns the disks that the kernel's own targets export.
    fn exported(&self, tree: &Tree) -> Vec<Use> {
        let served = served(tree).into_iter();
        let uses = served.filter_map(|it| {
            let device = self.at_path(tree, &it.path)?;
            Some(Use { device, code: Code::Held, text: it.text.to_owned() })
        });
        uses.collect()
    }
}

/// Returns the reasons against exporting an image file: it is swap space, attached as a disk of this
/// machine, or exported by the kernel. What cannot be determined is a reason, too.
pub fn judge_image(tree: &Tree, path: &Path) -> Verdict {
    let mut reasons = Vec::new();
    // Compares inodes: a hard link or a bind mount has another path.
    let file = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let this = file(path);
    // A file on another file system is another file. It is not accessed: its server may not
    // respond.
    let mounts = mount::own(tree).unwrap_or_default();
    let home = mount::file_system(&mounts, &tree.inside(path));
    let is_near = |other: &str| mount::file_system(&mounts, Path::new(other)) == home;
    let same = |other: &str| this.is_some() && is_near(other) && file(&tree.path(other)) == this;
    match mount::swaps(tree) {
        Ok(swaps) if swaps.iter().any(|swap| same(swap)) => {
            reasons.push(Reason { code: Code::Swap, text: "in use as swap space".to_owned() });
        }
        Ok(_) => {}
        Err(error) => {
            let text = format!("what is swapped to cannot be found out: {error}");
            reasons.push(Reason { code: Code::Doubt, text });
        }
    }
    for name in tree.names("sys/class/block").iter().filter(|name| name.starts_with("loop")) {
        let file = tree.attribute(format!("sys/class/block/{name}/loop/backing_file"));
        if file.is_some_and(|file| same(&file)) {
            reasons.push(Reason { code: Code::Held, text: format!("attached as {name}") });
        }
    }
    for it in served(tree).into_iter().filter(|it| same(&it.path)) {
        reasons.push(Reason { code: Code::Held, text: it.text.to_owned() });
    }
    Verdict::new(reasons)
}

/// Converts a device number of `stat`.
pub(crate) fn number(rdev: u64) -> DeviceNumber {
    DeviceNumber { major: rustix::fs::major(rdev), minor: rustix::fs::minor(rdev) }
}

/// Returns the devices of each mounted btrfs file system.
fn btrfs_pools(tree: &Tree) -> Vec<Vec<String>> {
    let pools = tree.names("sys/fs/btrfs").into_iter();
    pools.map(|pool| tree.names(format!("sys/fs/btrfs/{pool}/devices"))).collect()
}

fn describe(mount: &Mount) -> String {
    let whose = mount.process.map(|process| format!(" for process {process}"));
    format!("mounted at {}{}", mount.point, whose.unwrap_or_default())
}

fn from_elsewhere(disk: &Disk, lower: &Disk) -> String {
    let word = lower.transport.word();
    match disk.whole() == lower.whole() {
        true => format!("it comes from another machine ({word})"),
        false => {
            format!("it is stacked on {}, which comes from another machine ({word})", lower.whole())
        }
    }
}

/// Returns " (partition sda2, through dm-0)", without the parts that are the disk itself.
fn place(disk: &Disk, member: &Disk, device: Option<&Disk>) -> String {
    let member_words = match (member.name == disk.name, member.is_partition()) {
        (true, _) => None,
        (_, true) => Some(format!("partition {}", member.name)),
        (_, false) => Some(format!("the whole disk {}", member.name)),
    };
    let through = device.filter(|device| device.name != member.name);
    let through = through.map(|device| {
        format!("through {}", device.stacking.dm_name.as_ref().unwrap_or(&device.name))
    });
    let words: Vec<String> = member_words.into_iter().chain(through).collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

fn signature_reasons(disk: &Disk, member: &Disk, contents: &Contents) -> Vec<Reason> {
    let signatures = contents.signatures.iter();
    let found = signatures.filter_map(|mark| Code::of_mark(mark.kind, mark.devices));
    found
        .map(|(code, text)| Reason { code, text: format!("{text}{}", place(disk, member, None)) })
        .collect()
}

/// The disk failed to read a region to be examined: its contents are unknown, which is not use.
fn unreadable(disk: &Disk, member: &Disk, at: u64) -> Reason {
    let place = place(disk, member, None);
    let text = format!("cannot be read at byte {at}{place}; its contents are unknown");
    Reason { code: Code::Unreadable, text }
}

/// The disk could not be examined at all.
fn unexamined(disk: &Disk, member: &Disk, error: &io::Error) -> Reason {
    let place = place(disk, member, None);
    let node = member.node.display();
    let doubt = |text| Reason { code: Code::Doubt, text };
    match (Errno::from_io_error(error), error.kind()) {
        (Some(Errno::NOMEDIUM), _) => {
            Reason { code: Code::NoMedium, text: "there is no medium in the drive".to_owned() }
        }
        (_, ErrorKind::TimedOut) => {
            let starting = if member.rotational { ", and may still be starting" } else { "" };
            Reason { code: Code::Silent, text: format!("it does not answer{place}{starting}") }
        }
        (_, ErrorKind::NotFound) => {
            doubt(format!("cannot be examined{place}: its device node {node} is missing"))
        }
        // Containers return EPERM, also to root.
        (Some(Errno::ACCESS), _) => doubt(format!(
            "cannot be examined{place}: {error}; run this as root, or as a member of the group disk"
        )),
        (Some(Errno::MFILE), _) => doubt(format!(
            "cannot be examined{place}: {error}; raise this program's limit of open files (ulimit -n)"
        )),
        _ => doubt(format!("cannot be examined{place}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::{Asked, Weight};
    use crate::signature::{Kind, Signature};
    use crate::tree::fake::Fake;
    use std::collections::HashMap;

    /// Disks with marks on them, some of them opened by others.
    #[derive(Default)]
    struct Marked {
        marks: HashMap<&'static str, (Kind, u64)>,
        busy: Vec<&'static str>,
        error: Option<Errno>,
        unreadable: Option<u64>,
    }

    impl Probe for Marked {
        fn contents(&self, disk: &Disk) -> io::Result<Contents> {
            if let Some(error) = self.error {
                return Err(error.into());
            }
            let found = self.marks.get(disk.name.as_str());
            let found = found
                .map(|(kind, devices)| Signature { devices: *devices, ..Signature::of(*kind) });
            let signatures = found.into_iter().collect();
            Ok(Contents { signatures, unreadable: self.unreadable, ..Contents::default() })
        }

        fn is_busy(&self, disk: &Disk) -> io::Result<bool> {
            Ok(self.busy.contains(&disk.name.as_str()))
        }
    }

    const ATA: &str = "pci0/ata1/host0/target0:0:0/0:0:0:0";
    const ROOT_ELSEWHERE: &str = "1 0 0:5 / / rw - tmpfs none rw\n";

    /// A machine with sda (sda1, sda2) and sdb, nothing of them in use.
    fn machine() -> Fake {
        let fake = Fake::new();
        fake.disk(ATA, "sda", "8:0", 10_000)
            .part("sda", "sda1", "8:1", 1)
            .part("sda", "sda2", "8:2", 2);
        fake.disk("pci0/ata2/host1/target1:0:0/1:0:0:0", "sdb", "8:16", 10_000);
        fake.file("proc/self/mountinfo", ROOT_ELSEWHERE);
        fake
    }

    fn judge_with(fake: &Fake, name: &str, probe: &dyn Probe) -> Verdict {
        let machine = Machine::snapshot(&fake.tree()).unwrap();
        machine.judge(machine.disk(name).unwrap(), probe)
    }

    fn judge(fake: &Fake, name: &str) -> Vec<(&'static str, String)> {
        let verdict = judge_with(fake, name, &Marked::default());
        verdict.reasons.into_iter().map(|reason| (reason.code.word(), reason.text)).collect()
    }

    #[track_caller]
    fn assert_reasons(fake: &Fake, name: &str, wanted: &[(&str, &str)]) {
        let reasons = judge(fake, name);
        let reasons: Vec<_> = reasons.iter().map(|(code, text)| (*code, text.as_str())).collect();
        assert_eq!(reasons, wanted, "{name}");
    }

    fn mount(fake: &Fake, line: &str) {
        fake.file("proc/self/mountinfo", format!("{ROOT_ELSEWHERE}{line}\n"));
    }

    #[test]
    fn unused_disk_is_allowed() {
        let fake = machine();
        assert_reasons(&fake, "sda", &[]);
        assert!(judge_with(&fake, "sdb", &Marked::default()).allows(Asked::ForAll));
        assert_reasons(
            &fake,
            "sda1",
            &[("partition", "it is a partition: sda is lent as a whole")],
        );
    }

    #[test]
    fn in_target_mode_signatures_do_not_count_and_holders_do() {
        let fake = machine();
        let judge = |probe: &Marked| {
            let machine = Machine::snapshot(&fake.tree()).unwrap().at_rest();
            machine.judge(machine.disk("sdb").unwrap(), probe).allows(Asked::ForAll)
        };
        let marked = Marked { marks: HashMap::from([("sdb", (Kind::Md, 2))]), ..Marked::default() };
        assert!(judge(&marked));
        assert!(!judge_with(&fake, "sdb", &marked).allows(Asked::ForAll));
        assert!(judge(&Marked { unreadable: Some(0), ..Marked::default() }));
        assert!(!judge(&Marked { error: Some(Errno::ACCESS), ..Marked::default() }));
        assert!(!judge(&Marked { busy: vec!["sdb"], ..Marked::default() }));
        mount(&fake, "9 1 8:16 / /mnt rw - ext4 /dev/sdb rw");
        assert!(!judge(&marked));
    }

    #[test]
    fn mounted_partition_affects_its_disk_only() {
        let fake = machine();
        mount(&fake, "9 1 8:2 / /home rw - ext4 /dev/sda2 rw");
        assert_reasons(&fake, "sda", &[("mounted", "mounted at /home (partition sda2)")]);
        assert_eq!(judge(&fake, "sda2")[0], ("mounted", "mounted at /home".to_owned()));
        assert!(judge_with(&fake, "sda1", &Marked::default()).allows(Asked::ByName));
        assert_reasons(&fake, "sdb", &[]);
    }

    #[test]
    fn mounted_whole_disk_affects_its_partitions() {
        let fake = machine();
        mount(&fake, "9 1 8:0 / /mnt rw - xfs /dev/sda rw");
        assert_eq!(judge(&fake, "sda1")[0].1, "mounted at /mnt (the whole disk sda)");
    }

    #[test]
    fn mount_in_another_namespace_counts() {
        let fake = machine();
        fake.file("proc/42/mountinfo", "9 1 8:16 / /data rw - xfs /dev/sdb rw\n");
        assert_reasons(&fake, "sdb", &[("mounted", "mounted at /data for process 42")]);
    }

    #[test]
    fn root_of_a_container_is_an_ordinary_mount() {
        let fake = machine();
        fake.file("proc/42/mountinfo", "9 1 8:16 / / rw - xfs /dev/sdb rw\n");
        assert_reasons(&fake, "sdb", &[("mounted", "mounted at / for process 42")]);
        fake.file("proc/1/mountinfo", "9 1 8:0 / / rw - xfs /dev/sda rw\n");
        assert_reasons(&fake, "sda", &[("root", "mounted at / for process 1")]);
    }

    #[test]
    fn root_is_found_through_luks_and_lvm() {
        let fake = machine();
        fake.disk("virtual", "dm-0", "253:0", 9).disk("virtual", "dm-1", "253:1", 9);
        fake.hold("sda2", "dm-0").hold("dm-0", "dm-1");
        for (dm, name, uuid) in [("dm-0", "vault", "CRYPT-LUKS2-x"), ("dm-1", "vg-root", "LVM-y")] {
            fake.file(&format!("sys/class/block/{dm}/dm/name"), name);
            fake.file(&format!("sys/class/block/{dm}/dm/uuid"), uuid);
        }
        fake.file("proc/self/mountinfo", "1 0 253:1 / / rw - ext4 /dev/mapper/vg-root rw\n");
        let crypt = ("crypt", "opened as the encrypted volume vault (partition sda2)");
        assert_reasons(
            &fake,
            "sda",
            &[("root", "mounted at / (partition sda2, through vg-root)"), crypt],
        );
        assert_reasons(
            &fake,
            "dm-0",
            &[
                ("root", "mounted at / (through vg-root)"),
                ("lvm", "used by the LVM volume vg-root"),
            ],
        );
    }

    #[test]
    fn members_of_the_root_array_are_in_use() {
        let fake = machine();
        fake.disk("virtual", "md0", "9:0", 9).part("md0", "md0p1", "259:0", 1);
        fake.hold("sda1", "md0").hold("sdb", "md0");
        fake.file("proc/self/mountinfo", "1 0 259:0 / / rw - ext4 /dev/md0p1 rw\n");
        assert_reasons(
            &fake,
            "sdb",
            &[("root", "mounted at / (through md0p1)"), ("md", "part of the RAID array md0")],
        );
        assert_eq!(judge(&fake, "sda")[0].0, "root");
        assert_eq!(judge(&fake, "md0")[0].0, "root");
    }

    #[test]
    fn btrfs_is_in_use_on_all_its_devices() {
        let fake = machine();
        mount(&fake, "9 1 0:44 / /pool rw - btrfs /dev/sda2 rw");
        assert_reasons(&fake, "sda", &[("mounted", "mounted at /pool (partition sda2)")]);
        assert_reasons(&fake, "sdb", &[]);
        fake.file("sys/fs/btrfs/abc/devices/sda2", "").file("sys/fs/btrfs/abc/devices/sdb", "");
        fake.file("sys/fs/btrfs/features/x", "");
        assert_reasons(&fake, "sdb", &[("mounted", "mounted at /pool")]);
        fake.file("proc/self/mountinfo", ROOT_ELSEWHERE);
        assert_reasons(&fake, "sdb", &[("mounted", "part of a mounted btrfs file system")]);
    }

    #[test]
    fn mount_source_may_be_a_link_or_several_devices() {
        let fake = machine();
        std::os::unix::fs::symlink("../sda1", fake.root.join("dev").join("link")).unwrap();
        std::fs::create_dir(fake.root.join("dev/mapper")).unwrap();
        std::os::unix::fs::symlink("../sdb", fake.root.join("dev/mapper/data")).unwrap();
        mount(&fake, "9 1 0:44 / /x rw - bcachefs /dev/sda1:/dev/mapper/data rw");
        assert_reasons(&fake, "sdb", &[("mounted", "mounted at /x")]);
        assert_eq!(judge(&fake, "sda")[0].1, "mounted at /x (partition sda1)");
    }

    #[test]
    fn swap_space_is_in_use() {
        let fake = machine();
        fake.file(
            "proc/swaps",
            "Filename Type\n/dev/sda1 partition 1 0 -2\n/swapfile file 1 0 -3\n",
        );
        assert_reasons(&fake, "sda", &[("swap", "in use as swap space (partition sda1)")]);
    }

    #[test]
    fn holders_are_reported_by_kind() {
        let holders = [
            ("bcache0", "", "bcache"),
            ("drbd0", "", "drbd"),
            ("md1", "", "md"),
            ("dm-0", "LVM-x", "lvm"),
            ("dm-0", "CRYPT-x", "crypt"),
            ("dm-0", "mpath-x", "multipath"),
            ("dm-0", "", "held"),
        ];
        for (holder, uuid, code) in holders {
            let fake = machine();
            fake.disk("virtual", holder, "250:0", 9).hold("sdb", holder);
            fake.file(&format!("sys/class/block/{holder}/dm/uuid"), uuid);
            assert_eq!(judge(&fake, "sdb")[0].0, code, "{holder} {uuid}");
        }
        let fake = machine();
        fake.file("sys/class/block/sdb/holders/unseen", "");
        assert_reasons(&fake, "sdb", &[("held", "held by unseen")]);
    }

    #[test]
    fn signature_of_a_member_counts() {
        let marks = [
            (Kind::Lvm2, 1, "lvm"),
            (Kind::Md, 2, "md"),
            (Kind::FirmwareRaid, 1, "md"),
            (Kind::Zfs, 1, "zfs"),
            (Kind::Bcache, 1, "bcache"),
            (Kind::Drbd, 1, "drbd"),
            (Kind::Hibernation, 1, "hibernation"),
            (Kind::Stratis, 1, "member"),
            (Kind::Ceph, 1, "member"),
            (Kind::Vdo, 1, "member"),
            (Kind::ExtJournal, 1, "member"),
            (Kind::Btrfs, 2, "btrfs"),
            (Kind::Bcachefs, 2, "member"),
        ];
        let fake = machine();
        for (kind, devices, code) in marks {
            let probe =
                Marked { marks: HashMap::from([("sda2", (kind, devices))]), ..Marked::default() };
            let verdict = judge_with(&fake, "sda", &probe);
            assert_eq!(verdict.reasons[0].code.word(), code);
            assert!(verdict.reasons[0].text.ends_with("(partition sda2)"), "{verdict:?}");
            assert!(judge_with(&fake, "sda1", &probe).allows(Asked::ByName));
        }
        for (kind, devices) in
            [(Kind::Ext4, 1), (Kind::Luks2, 1), (Kind::Btrfs, 1), (Kind::Swap, 1)]
        {
            let probe =
                Marked { marks: HashMap::from([("sda2", (kind, devices))]), ..Marked::default() };
            assert!(judge_with(&fake, "sda", &probe).allows(Asked::ForAll), "{kind:?}");
        }
    }

    #[test]
    fn disk_opened_exclusively_is_in_use() {
        let fake = machine();
        let probe = Marked { busy: vec!["sdb"], ..Marked::default() };
        let verdict = judge_with(&fake, "sdb", &probe);
        assert_eq!(verdict.reasons[0].code, Code::Busy);
        assert!(!verdict.allows(Asked::ByName) && verdict.allows(Asked::ByNameInUse));
    }

    #[test]
    fn r61_unreadable_disk_is_not_reported_as_in_use() {
        let fake = machine();
        let probe = Marked { unreadable: Some(4096), ..Marked::default() };
        let verdict = judge_with(&fake, "sdb", &probe);
        assert_eq!(verdict.reasons[0].code.word(), "unreadable");
        assert_eq!(
            verdict.reasons[0].text,
            "cannot be read at byte 4096; its contents are unknown"
        );
        assert!(verdict.allows(Asked::ForAll) && !verdict.is_in_use());
        assert!(!verdict.allows_writing(false) && verdict.allows_writing(true));
        let busy = Marked { busy: vec!["sdb"], ..probe };
        assert!(!judge_with(&fake, "sdb", &busy).allows(Asked::ByName));
        let marks = HashMap::from([("sdb", (Kind::Md, 2))]);
        let member = Marked { marks, unreadable: Some(4096), ..Marked::default() };
        assert!(!judge_with(&fake, "sdb", &member).allows(Asked::ByName), "its mark was read");
        fake.file("proc/self/mountinfo", "25 1 8:16 / /home rw - ext4 /dev/sdb rw\n");
        let probe = Marked { unreadable: Some(0), ..Marked::default() };
        assert!(!judge_with(&fake, "sdb", &probe).allows(Asked::ByName));
    }

    #[test]
    fn failure_to_examine_is_reported_with_the_cause() {
        let fake = machine();
        for (error, code, words) in [
            (Errno::NOENT, "doubt", "its device node /dev/sdb is missing"),
            (Errno::MFILE, "doubt", "limit of open files"),
            (Errno::ACCESS, "doubt", "run this as root"),
            (Errno::TIMEDOUT, "no-answer", "it does not answer"),
        ] {
            let probe = Marked { error: Some(error), ..Marked::default() };
            let verdict = judge_with(&fake, "sdb", &probe);
            let reason = &verdict.reasons[0];
            assert_eq!(reason.code.word(), code);
            assert!(reason.text.contains(words), "{reason}");
            assert!(!verdict.allows(Asked::ByName), "{reason}");
            assert!(verdict.of_weight(Weight::InUse).next().is_none(), "{reason}");
        }
    }

    #[test]
    fn rotational_disk_that_times_out_may_be_starting() {
        let fake = machine();
        fake.file("sys/class/block/sda/queue/rotational", "1\n");
        let probe = Marked { error: Some(Errno::TIMEDOUT), ..Marked::default() };
        let text = |name| judge_with(&fake, name, &probe).reasons[0].text.clone();
        assert_eq!(text("sda"), "it does not answer, and may still be starting");
        assert_eq!(text("sdb"), "it does not answer");
    }

    #[test]
    fn failure_to_find_uses_is_a_reason() {
        let fake = machine();
        let probe = Marked { error: Some(Errno::ACCESS), ..Marked::default() };
        let verdict = judge_with(&fake, "sdb", &probe);
        assert_eq!(verdict.reasons[0].code, Code::Doubt);
        assert!(verdict.reasons[0].text.contains("run this as root"));
        assert!(!verdict.allows(Asked::ForAll) && !verdict.allows_writing(false));

        std::fs::remove_file(fake.root.join("proc/self/mountinfo")).unwrap();
        assert_eq!(judge(&fake, "sdb")[0].0, "doubt");
        std::fs::create_dir_all(fake.root.join("proc/swaps")).unwrap();
        fake.file("proc/self/mountinfo", ROOT_ELSEWHERE);
        assert!(judge(&fake, "sdb")[0].1.starts_with("what is swapped to cannot"));
    }

    #[test]
    fn drive_without_medium_is_refused() {
        let fake = machine();
        fake.disk("pci0/usb1/1-1/host6/target6:0:0/6:0:0:0", "sdc", "8:32", 0);
        fake.file("sys/class/block/sdc/removable", "1");
        let verdict = judge_with(&fake, "sdc", &Marked::default());
        assert_eq!(verdict.reasons[0].code, Code::NoMedium);
        assert!(!verdict.allows(Asked::ByNameInUse));
        let probe = Marked { error: Some(Errno::NOMEDIUM), ..Marked::default() };
        assert_eq!(judge_with(&fake, "sdb", &probe).reasons[0].code, Code::NoMedium);
        fake.disk("virtual", "nbd0", "43:0", 0);
        assert_eq!(judge(&fake, "nbd0")[0].0, "empty");
    }

    #[test]
    fn network_disk_is_not_exported_unless_named() {
        let fake = machine();
        fake.disk("platform/host2/session1/target2:0:0/2:0:0:1", "sdc", "8:32", 9);
        fake.part("sdc", "sdc1", "8:33", 1);
        fake.disk("virtual", "dm-0", "253:0", 9).hold("sdc1", "dm-0");
        let verdict = judge_with(&fake, "sdc", &Marked::default());
        let network = verdict.reasons.iter().find(|reason| reason.code == Code::Network).unwrap();
        assert_eq!(network.text, "it comes from another machine (iscsi)");
        assert_reasons(
            &fake,
            "dm-0",
            &[("network", "it is stacked on sdc, which comes from another machine (iscsi)")],
        );
        for (name, number) in
            [("nbd0", "43:0"), ("rbd0", "250:0"), ("drbd1", "147:1"), ("nvme0n1", "259:9")]
        {
            fake.disk(&format!("virtual/{name}"), name, number, 9);
            assert_eq!(judge(&fake, name)[0].0, "network", "{name}");
        }
    }

    #[test]
    fn ram_and_test_devices_are_exported_only_by_name() {
        let kinds = [
            ("loop0", "loop"),
            ("zram0", "zram"),
            ("ram0", "ram"),
            ("fd0", "floppy"),
            ("sr0", "optical"),
            ("mtdblock0", "flash"),
            ("nullb0", "null"),
            ("ublkb0", "program"),
            ("mmcblk0boot1", "boot-area"),
        ];
        let fake = machine();
        for (index, (name, code)) in kinds.into_iter().enumerate() {
            fake.disk(&format!("virtual/{name}"), name, &format!("99:{index}"), 9);
            let verdict = judge_with(&fake, name, &Marked::default());
            assert_eq!(verdict.reasons[0].code.word(), code);
            assert_eq!(verdict.reasons[0].code.weight(), Weight::Unasked);
            assert!(verdict.allows(Asked::ByName) && !verdict.allows(Asked::ForAll));
        }
    }

    #[test]
    fn read_only_medium_and_zones_are_reported() {
        let fake = machine();
        fake.file("sys/class/block/sdb/ro", "1");
        let verdict = judge_with(&fake, "sdb", &Marked::default());
        assert_eq!(verdict.reasons[0].code, Code::ReadOnly);
        assert!(verdict.allows(Asked::ForAll) && !verdict.allows_writing(false));
        fake.file("sys/class/block/sdb/queue/zoned", "host-managed");
        assert_eq!(judge(&fake, "sdb")[0].0, "zoned");
    }

    #[test]
    fn circular_holders_end() {
        let fake = machine();
        fake.disk("virtual", "dm-0", "253:0", 9).disk("virtual", "dm-1", "253:1", 9);
        fake.hold("dm-0", "dm-1").hold("dm-1", "dm-0");
        assert_eq!(judge(&fake, "dm-0")[0].0, "held");
    }

    #[test]
    fn disk_of_a_loop_device_or_nvmet_is_in_use() {
        let fake = machine();
        fake.disk("virtual", "loop0", "7:0", 9);
        fake.file("sys/class/block/loop0/loop/backing_file", "/dev/sdb\n");
        assert_reasons(&fake, "sdb", &[("held", "attached as loop0")]);
        let place = "sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/1/device_path";
        fake.file(place, "/dev/sda1\n");
        assert_reasons(
            &fake,
            "sda",
            &[("held", "lent by the kernel's own NVMe target (partition sda1)")],
        );
        fake.file("sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/1/enable", "0\n");
        assert_reasons(&fake, "sda", &[]);
        fake.file("sys/kernel/config/target/core/iblock_0/disk/udev_path", "/dev/sda\n");
        let reason = ("held", "lent by the kernel's own SCSI target (LIO)");
        assert_reasons(&fake, "sda", &[reason]);
    }

    #[test]
    fn image_that_the_kernel_exports_is_in_use() {
        let fake = machine();
        fake.file("img", "x").file("other", "y");
        let reasons = || {
            let verdict = judge_image(&fake.tree(), &fake.root.join("img"));
            verdict.reasons.into_iter().map(|reason| reason.text).collect::<Vec<_>>()
        };
        let nvmet = "sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/1";
        fake.file(&format!("{nvmet}/device_path"), "/img\n");
        fake.file("sys/kernel/config/target/core/alua/lu_gps", "");
        for (name, path) in [("one", "/img"), ("two", "/other")] {
            let place = format!("sys/kernel/config/target/core/fileio_0/{name}/udev_path");
            fake.file(&place, format!("{path}\n"));
        }
        for enabled in [true, false] {
            fake.file(&format!("{nvmet}/enable"), if enabled { "1\n" } else { "0\n" });
            let mut wanted = vec!["lent by the kernel's own SCSI target (LIO)"];
            wanted.splice(0..0, enabled.then_some("lent by the kernel's own NVMe target"));
            assert_eq!(reasons(), wanted);
        }
    }

    #[test]
    fn image_used_as_swap_or_attached_is_in_use() {
        let fake = machine();
        fake.file("img", "x").disk("virtual", "loop3", "7:3", 9);
        let codes = |fake: &Fake| {
            let verdict = judge_image(&fake.tree(), &fake.root.join("img"));
            verdict.reasons.iter().map(|reason| reason.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(&fake), []);
        fake.file("sys/class/block/loop3/loop/backing_file", "/img\n");
        assert_eq!(codes(&fake), [Code::Held]);
        fake.file("proc/swaps", "Filename\n/img file 1 0 -3\n");
        assert_eq!(codes(&fake), [Code::Swap, Code::Held]);
    }

    #[test]
    fn files_of_other_file_systems_are_not_accessed() {
        let fake = machine();
        fake.file("img", "x").file("mnt/file", "").disk("virtual", "loop3", "7:3", 9);
        std::fs::hard_link(fake.root.join("img"), fake.root.join("mnt/img")).unwrap();
        fake.file("sys/class/block/loop3/loop/backing_file", "/mnt/img\n");
        fake.file("proc/swaps", "Filename\n/mnt/img file 1 0 -3\n");
        let count = || judge_image(&fake.tree(), &fake.root.join("img")).reasons.len();
        assert_eq!(count(), 2, "a hard link on the same file system");
        mount(&fake, "9 1 0:44 / /mnt rw - nfs4 server:/export rw");
        assert_eq!(count(), 0);
    }

    #[test]
    fn sources_outside_of_dev_are_not_accessed() {
        let fake = machine();
        std::os::unix::fs::symlink("dev/sdb", fake.root.join("home")).unwrap();
        mount(&fake, "9 1 0:44 / /mnt rw - nfs4 server:/home rw");
        fake.file("proc/swaps", "Filename\n/home file 1 0 -3\n");
        assert_reasons(&fake, "sdb", &[]);
    }

    #[test]
    fn disk_of_this_machines_root_is_in_use() {
        let machine = Machine::snapshot(&Tree::machine()).unwrap();
        let root = machine.uses.iter().find(|found| found.code == Code::Root);
        // Where the root is not on a disk (a container, an initrd) there is nothing to find.
        if let Some(found) = root {
            let disk = machine.disk(&found.device).unwrap();
            assert!(!machine.judge(disk, &Marked::default()).allows(Asked::ByName));
        }
    }
}
