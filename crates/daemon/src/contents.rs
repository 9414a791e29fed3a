//! Summarizes the contents of a disk for the screen: partition table, file systems, labels.

use linux::block::Disk;
use linux::in_use::{Machine, Probe};
use linux::partition::Scheme;
use linux::signature::Signature;

/// Describes what was found on a disk and its partitions, such as `GPT: vfat "EFI", ext4 "root"`. Empty if nothing was
/// recognised or read.
pub(crate) fn describe(machine: &Machine, disk: &Disk, findings: &dyn Probe) -> String {
    let found = findings.contents(disk).unwrap_or_default();
    let is_part =
        |other: &&Disk| other.part.as_ref().is_some_and(|part| part.whole_disk == disk.name);
    let parts = machine.disks.iter().filter(is_part);
    let on_parts = parts.filter_map(|part| findings.contents(part).ok());
    let on_parts = on_parts.flat_map(|contents| contents.signatures);
    let marks: Vec<String> = found.signatures.into_iter().chain(on_parts).map(mark).collect();
    let marks = marks.join(", ");
    let Some(table) = found.table else { return marks };
    let scheme = match table.scheme {
        Scheme::Gpt => "GPT",
        Scheme::Mbr => "MBR",
    };
    match (marks.is_empty(), table.entries.len()) {
        (false, _) => format!("{scheme}: {marks}"),
        (true, 1) => format!("{scheme}: 1 partition"),
        (true, number) => format!("{scheme}: {number} partitions"),
    }
}

fn mark(signature: Signature) -> String {
    match signature.label {
        Some(label) => format!("{} \"{label}\"", signature.kind.word()),
        None => signature.kind.word().to_owned(),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use linux::signature::{Contents, Kind};
    use linux::tree::Tree;
    use std::io;
    use testkit::Scratch;

    struct Found(Vec<(&'static str, Contents)>);

    impl Probe for Found {
        fn contents(&self, disk: &Disk) -> io::Result<Contents> {
            let found = self.0.iter().find(|(name, _)| *name == disk.name);
            found.map(|(_, contents)| contents.clone()).ok_or_else(|| io::Error::other("unread"))
        }

        fn is_busy(&self, _: &Disk) -> io::Result<bool> {
            Ok(false)
        }
    }

    fn marked(kind: Kind, label: Option<&str>) -> Contents {
        let label = label.map(str::to_owned);
        let signature = Signature { kind, uuid: None, label, devices: 1, level: None };
        Contents { signatures: vec![signature], ..Contents::default() }
    }

    /// A disk with two partitions.
    fn machine(folder: &Scratch) -> Machine {
        let write = |path: &str, text: &str| {
            let path = folder.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/self/mountinfo", "");
        write("proc/swaps", "");
        std::fs::create_dir_all(folder.0.join("sys/class/block")).unwrap();
        for (place, name, number) in
            [("sda", "sda", "8:0"), ("sda/sda1", "sda1", "8:1"), ("sda/sda2", "sda2", "8:2")]
        {
            write(&format!("sys/devices/{place}/dev"), number);
            write(&format!("sys/devices/{place}/size"), "2048");
            if name != "sda" {
                write(&format!("sys/devices/{place}/partition"), &name[3..]);
                write(&format!("sys/devices/{place}/start"), "2048");
            }
            let link = folder.0.join("sys/class/block").join(name);
            std::os::unix::fs::symlink(format!("../../devices/{place}"), link).unwrap();
        }
        Machine::snapshot(&Tree::at(&folder.0)).unwrap()
    }

    #[test]
    fn disk_is_described_with_its_partitions() {
        let folder = Scratch::new();
        let machine = machine(&folder);
        let disk = machine.disk("sda").unwrap();
        let described =
            |found: Vec<(&'static str, Contents)>| describe(&machine, disk, &Found(found));
        assert_eq!(described(vec![]), "");
        assert_eq!(described(vec![("sda", marked(Kind::Ext4, Some("data")))]), "ext4 \"data\"");
        let parts =
            vec![("sda1", marked(Kind::Vfat, Some("EFI"))), ("sda2", marked(Kind::Ext4, None))];
        assert_eq!(described(parts), "vfat \"EFI\", ext4");
        let parts =
            vec![("sda1", marked(Kind::Vfat, None)), ("sda2", marked(Kind::Home, Some("alice")))];
        assert_eq!(described(parts), "vfat, home \"alice\"");
    }
}
