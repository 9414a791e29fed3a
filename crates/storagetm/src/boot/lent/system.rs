//! The systems on an attached disk: partitions with a file system that has an init and says what it is.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use console::decimal;
use linux::block;
use linux::partition::{Entry, Scheme, guid_text, mbr_signature};
use linux::root::{self, Root};
use linux::signature::{Kind, Signature, probe};
use linux::tree::Tree;

use failure::Failure;

/// Where a file system is mounted to be looked at.
const LOOK: &str = "/lent/look";
/// How long the kernel may take to show the partitions.
const PARTITIONS: Duration = Duration::from_secs(5);
/// The types of root partitions (Discoverable Partitions Specification): x86-64 and ARM64.
const ROOT_TYPES: [&str; 2] =
    ["4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "b921b045-1df0-41c3-af44-4c6f280d3fae"];
/// What is started as init, as systems have it.
const INITS: [&str; 3] = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// A partition, or a whole disk without a partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) device: PathBuf,
    /// Its number in the partition table; 0 is the whole disk.
    pub(super) number: u32,
    pub(super) bytes: u64,
    /// The type, the GUID and the name in the partition table, as text.
    pub(super) kind: String,
    pub(super) guid: String,
    pub(super) name: String,
    /// What is on it.
    pub(super) contents: Option<Kind>,
    pub(super) uuid: String,
    pub(super) label: String,
    /// Whether it holds the image of a system that hibernated.
    pub(super) hibernated: bool,
    /// The system on it.
    pub(super) system: Option<System>,
    /// Why its file system could not be looked into.
    pub(super) problem: Option<String>,
}

/// A system that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct System {
    /// `PRETTY_NAME` of os-release(5).
    pub(super) name: String,
    /// The path of its init.
    pub(super) init: String,
}

/// Which system is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    /// That on the volume with this index.
    One(usize),
    /// Several, on these volumes: the user has to choose.
    Ask(Vec<usize>),
    /// None: the reason.
    None(String),
}

/// Returns the driver of a file system that may hold a root, and its options for a mount that writes nothing: without
/// the journal.
pub(super) fn driver(kind: Kind) -> Option<(&'static str, &'static str)> {
    match kind {
        Kind::Ext3 | Kind::Ext4 => Some(("ext4", "noload")),
        Kind::Ext2 => Some(("ext4", "")),
        Kind::Xfs => Some(("xfs", "norecovery,nouuid")),
        _ => None,
    }
}

/// Which system is wanted, over all attempts: none but the one that was named, until a person chooses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The value of `storagetm.root`.
    named: Option<String>,
    /// Whether a person is asked even if there is one system only: it may not be the one that was named.
    asks: bool,
}

impl Wanted {
    pub(super) fn of(named: Option<String>) -> Self {
        Self { named, asks: false }
    }

    /// A person chooses from now on.
    pub(super) fn forget(&mut self) {
        self.asks |= self.named.take().is_some();
    }

    /// Chooses the system that was named; if none was, the only one, unless it is to be asked for.
    pub(super) fn choose(&self, volumes: &[Volume]) -> Choice {
        match choose(volumes, self.named.as_deref()) {
            Choice::One(at) if self.asks => Choice::Ask(vec![at]),
            choice => choice,
        }
    }
}

/// Chooses by `wanted`, the value of `storagetm.root`, else the only system; of several those in root partitions first.
fn choose(volumes: &[Volume], wanted: Option<&str>) -> Choice {
    let systems: Vec<usize> =
        (0..).zip(volumes).filter(|(_, it)| it.system.is_some()).map(|(at, _)| at).collect();
    if let Some(wanted) = wanted {
        let found = (0..).zip(volumes).find(|(_, volume)| volume.is_called(wanted));
        return match found {
            Some((at, volume)) if volume.system.is_some() => Choice::One(at),
            Some((_, volume)) => Choice::None(format!(
                "No system that can be started is on {wanted}: {}.",
                volume.shown()
            )),
            None => Choice::None(format!("The disk has no {wanted}. It has {}.", summary(volumes))),
        };
    }
    match systems.as_slice() {
        [] => Choice::None(format!(
            "No system that can be started was found: ext4 and XFS are looked into, not LVM, RAID, encryption or btrfs. \
             The disk has {}.",
            summary(volumes)
        )),
        [one] => Choice::One(*one),
        _ => {
            let is_root = |at: &usize| volumes.get(*at).is_some_and(Volume::is_root_type);
            let (roots, others): (Vec<usize>, Vec<usize>) = systems.into_iter().partition(is_root);
            Choice::Ask([roots, others].concat())
        }
    }
}

fn summary(volumes: &[Volume]) -> String {
    let shown: Vec<String> = volumes.iter().map(Volume::shown).collect();
    if shown.is_empty() { "no partition".to_owned() } else { shown.join("; ") }
}

impl Volume {
    fn is_root_type(&self) -> bool {
        ROOT_TYPES.contains(&self.kind.as_str())
    }

    /// Returns whether a text means this volume: its number or device, `UUID=`, `LABEL=`, `PARTUUID=` or `PARTLABEL=` as
    /// fstab(5) has them, or the link of udev below `/dev/disk/by-uuid` and so on.
    pub(super) fn is_called(&self, text: &str) -> bool {
        let text = text.trim_matches('"');
        let Some((tag, value)) = tag(text) else {
            return text.parse() == Ok(self.number) || Path::new(text) == self.device;
        };
        let is = |own: &str| !own.is_empty() && own.eq_ignore_ascii_case(&value);
        match tag.as_str() {
            "UUID" => is(&self.uuid),
            "PARTUUID" => is(&self.guid),
            "LABEL" => !self.label.is_empty() && self.label == value,
            "PARTLABEL" => !self.name.is_empty() && self.name == value,
            _ => false,
        }
    }

    /// A line about it: `partition 2: Debian GNU/Linux 13 (trixie), 1 GB, ext4`.
    pub(super) fn shown(&self) -> String {
        let place = match self.number {
            0 => "the whole disk".to_owned(),
            number => format!("partition {number}"),
        };
        let contents = self.contents.map_or("unknown contents", Kind::word);
        let system = self.system.as_ref().map(|it| format!("{}, ", it.name)).unwrap_or_default();
        let problem =
            self.problem.as_ref().map(|it| format!(", not mounted: {it}")).unwrap_or_default();
        format!("{place}: {system}{}, {contents}{problem}", decimal(self.bytes))
    }
}

/// Returns the tag and the value of `UUID=VALUE` and its kind, or of udev's link `/dev/disk/by-uuid/VALUE`.
fn tag(text: &str) -> Option<(String, String)> {
    let link = text.strip_prefix("/dev/disk/by-").and_then(|rest| rest.split_once('/'));
    if let Some((kind, value)) = link {
        return Some((kind.to_ascii_uppercase(), decoded(value)));
    }
    let (tag, value) = text.split_once('=')?;
    Some((tag.to_owned(), value.trim_matches('"').to_owned()))
}

/// Decodes `\xHH`, by which udev writes a byte that a name of a link must not have.
fn decoded(link: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = link;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        match after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => bytes.push(byte),
            None => return link.to_owned(),
        }
        rest = after.get(2..).unwrap_or_default();
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns what is to be said about a system that hibernated on one of the volumes: its memory has the file systems as they
/// were then, and what changes them damages them when it resumes.
///
/// # Errors
/// Fails if there is one and its file systems are to be written to.
pub(super) fn check_hibernation(
    volumes: &[Volume],
    write: bool,
) -> Result<Option<String>, Failure> {
    let Some(image) = volumes.iter().find(|volume| volume.hibernated) else { return Ok(None) };
    let what = format!("A system of this disk has hibernated ({})", image.shown());
    if write {
        return Err(Failure::refused(format!(
            "{what}: what it resumes with would damage file systems that were written to; resume it and shut it down there, \
             or leave storagetm.boot.write out"
        )));
    }
    Ok(Some(format!("{what}: what was in its memory only is missing here.")))
}

/// Looks for systems on an attached disk. The kernel is made to refuse all writes to the disk and to its partitions before
/// anything is read: ext4 cleans up orphaned inodes also when it is mounted read-only without its journal.
///
/// # Errors
/// Fails if the disk or a partition cannot be made read-only, or cannot be read.
pub(super) fn survey(tree: &Tree, device: &Path) -> Result<Vec<Volume>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("{} cannot be read: {error}", device.display()))
    };
    let name = device.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let disk = block::read(tree, name).ok_or_else(|| failed(&"it has gone"))?;
    let protect = |device: &Path| {
        let failed =
            |error| Failure::new(format!("{} cannot be made read-only: {error}", device.display()));
        root::forbid_writes(device).map_err(failed)
    };
    protect(device)?;
    let file = File::open(device).map_err(|error| failed(&error))?;
    let found = probe(&file, disk.bytes).map_err(|error| failed(&error))?;
    let Some(table) = found.table else {
        return Ok(vec![volume(tree, name, None, &found.signatures)?]);
    };
    let signature = match table.scheme {
        Scheme::Mbr => mbr_signature(&file).map_err(|error| failed(&error))?,
        Scheme::Gpt => None,
    };
    let parts = partitions(tree, name, table.entries.len());
    for part in &parts {
        protect(&tree.path(format!("dev/{part}")))?;
    }
    let entry = |number: u32| {
        let entry = table.entries.iter().find(|entry| entry.number == number);
        entry.map(|entry| (entry, part_uuid(entry, signature)))
    };
    parts.iter().map(|part| look_at(tree, part, &entry)).collect()
}

fn look_at<'a>(
    tree: &Tree,
    name: &str,
    entry: &dyn Fn(u32) -> Option<(&'a Entry, String)>,
) -> Result<Volume, Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(format!("{name} cannot be read: {error}"));
    let part = block::read(tree, name).ok_or_else(|| failed(&"it has gone"))?;
    let number = part.part.as_ref().map_or(0, |part| part.number);
    let file = File::open(tree.path(&part.node)).map_err(|error| failed(&error))?;
    let found = probe(&file, part.bytes).map_err(|error| failed(&error))?;
    volume(tree, name, entry(number), &found.signatures)
}

/// Returns the PARTUUID of a partition, as the kernel and udev have it: the GUID, or in an MBR its signature and the number
/// of the partition.
fn part_uuid(entry: &Entry, signature: Option<u32>) -> String {
    match (entry.guid, signature) {
        (Some(guid), _) => guid_text(&guid),
        (None, Some(signature)) => format!("{signature:08x}-{:02x}", entry.number),
        (None, None) => String::new(),
    }
}

/// Returns the partitions of a disk by their kernel names, once there are as many as its table has, or the time is over.
fn partitions(tree: &Tree, disk: &str, wanted: usize) -> Vec<String> {
    let end = Instant::now() + PARTITIONS;
    loop {
        let inside = tree.names(format!("sys/class/block/{disk}"));
        let is_part = |name: &String| {
            let place = format!("sys/class/block/{disk}/{name}");
            tree.number(format!("{place}/partition")).is_some()
                && tree.path(format!("dev/{name}")).exists()
        };
        let parts: Vec<String> = inside.into_iter().filter(is_part).collect();
        if parts.len() >= wanted || Instant::now() >= end {
            return parts;
        }
        sleep(Duration::from_millis(50));
    }
}

fn volume(
    tree: &Tree,
    name: &str,
    entry: Option<(&Entry, String)>,
    signatures: &[Signature],
) -> Result<Volume, Failure> {
    let device = block::read(tree, name);
    let device = device.ok_or_else(|| Failure::new(format!("{name} has gone")))?;
    // A volume with several signatures is in doubt.
    let signature = if let [one] = signatures { Some(one) } else { None };
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let (entry, guid) = entry.map_or((None, String::new()), |(entry, guid)| (Some(entry), guid));
    let mut volume = Volume {
        number: device.part.as_ref().map_or(0, |part| part.number),
        bytes: device.bytes,
        device: tree.path(&device.node),
        kind: entry.map(|entry| entry.kind.clone()).unwrap_or_default(),
        guid,
        name: text(entry.and_then(|entry| entry.name.as_ref())),
        contents: signature.map(|it| it.kind),
        uuid: text(signature.and_then(|it| it.uuid.as_ref())),
        label: text(signature.and_then(|it| it.label.as_ref())),
        hibernated: signatures.iter().any(|it| it.kind == Kind::Hibernation),
        system: None,
        problem: None,
    };
    match volume.contents.and_then(driver).map(|driver| system(&volume.device, driver)) {
        Some(Ok(system)) => volume.system = system,
        Some(Err(error)) => volume.problem = Some(error.to_string()),
        None => {}
    }
    Ok(volume)
}

/// Mounts a file system for a moment, and looks for a system.
fn system(device: &Path, (kind, options): (&str, &str)) -> io::Result<Option<System>> {
    root::mount_to_look(device, Path::new(LOOK), kind, options)?;
    let found = Root::open(Path::new(LOOK)).ok().and_then(|root| identify(&root));
    let _ = root::detach(Path::new(LOOK));
    Ok(found)
}

fn identify(root: &Root) -> Option<System> {
    let release = root.text("etc/os-release").or_else(|_| root.text("usr/lib/os-release")).ok()?;
    let init = INITS.iter().find(|init| root.has_program(init))?;
    Some(System { name: pretty_name(&release), init: (*init).to_owned() })
}

/// Returns `PRETTY_NAME`, else `NAME`, of os-release(5).
fn pretty_name(release: &str) -> String {
    let value = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        let bare = line.trim().trim_matches(['"', '\'']);
        (!bare.is_empty()).then(|| bare.to_owned())
    };
    value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| "Linux".to_owned())
}

#[cfg(test)]
mod test {
    use super::*;

    fn volume(number: u32, kind: &str, name: Option<&str>) -> Volume {
        let system =
            name.map(|name| System { name: name.to_owned(), init: "/sbin/init".to_owned() });
        Volume {
            device: format!("/dev/nvme1n1p{number}").into(),
            number,
            bytes: 1_000_000_000,
            kind: kind.to_owned(),
            guid: format!("0000000{number}-aa"),
            name: format!("part{number}"),
            contents: Some(Kind::Ext4),
            uuid: format!("u-{number}"),
            label: String::new(),
            hibernated: false,
            system,
            problem: None,
        }
    }

    #[test]
    fn only_system_is_chosen_and_several_are_asked_for() {
        let esp = volume(1, "c12a7328", None);
        let debian = volume(2, "0fc63daf", Some("Debian"));
        let fedora = volume(3, ROOT_TYPES[0], Some("Fedora"));
        assert_eq!(choose(&[esp.clone(), debian.clone()], None), Choice::One(1));
        let all = [esp.clone(), debian, fedora];
        assert_eq!(choose(&all, None), Choice::Ask(vec![2, 1]), "the root partition first");
        let Choice::None(reason) = choose(&[esp], None) else { panic!() };
        assert!(reason.contains("partition 1: 1 GB, ext4"), "{reason}");
        assert!(matches!(choose(&[], None), Choice::None(_)));
    }

    #[test]
    fn system_is_chosen_by_what_is_named() {
        let all =
            [volume(1, "", None), volume(2, "", Some("Debian")), volume(3, "", Some("Fedora"))];
        for named in [
            "2",
            "PARTUUID=00000002-AA",
            "UUID=u-2",
            "UUID=\"u-2\"",
            "PARTLABEL=part2",
            "/dev/nvme1n1p2",
            "/dev/disk/by-uuid/u-2",
            "/dev/disk/by-partuuid/00000002-aa",
            "/dev/disk/by-partlabel/par\\x742",
        ] {
            assert_eq!(choose(&all, Some(named)), Choice::One(1), "{named}");
        }
        for named in ["1", "4", "PARTUUID=", "LABEL=", "ID=x", "Debian", "/dev/disk/by-id/u-2"] {
            assert!(matches!(choose(&all, Some(named)), Choice::None(_)), "{named}");
        }
    }

    #[test]
    fn another_system_is_never_started_for_the_one_named() {
        let all = [volume(1, "", None), volume(2, "", Some("Debian"))];
        let mut wanted = Wanted::of(Some("3".to_owned()));
        for _ in 0..3 {
            assert!(matches!(wanted.choose(&all), Choice::None(_)), "however often it is tried");
        }
        wanted.forget();
        wanted.forget();
        assert_eq!(wanted.choose(&all), Choice::Ask(vec![1]), "a person has to say");
        let mut unnamed = Wanted::of(None);
        unnamed.forget();
        assert_eq!(unnamed.choose(&all), Choice::One(1));
        assert_eq!(Wanted::of(Some("2".to_owned())).choose(&all), Choice::One(1));
    }

    /// The device is a regular file without contents, of which the kernel refuses to make it read-only.
    #[test]
    fn disk_that_cannot_be_made_read_only_is_not_looked_at() {
        let folder = testkit::Scratch::new();
        let tree = Tree::at(&folder.0);
        for (path, text) in [
            ("sys/class/block/nvme1n1/size", "8"),
            ("sys/class/block/nvme1n1/dev", "259:1"),
            ("dev/nvme1n1", ""),
        ] {
            let path = folder.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let device = folder.0.join("dev/nvme1n1");
        std::fs::write(&device, [0; 4096]).unwrap();
        let refused = survey(&tree, &device).unwrap_err().to_string();
        assert!(refused.contains("cannot be made read-only"), "{refused}");
    }

    #[test]
    fn hibernated_system_is_not_written_to() {
        let mut all = [volume(1, "", Some("Debian")), volume(2, "", None)];
        for write in [false, true] {
            assert_eq!(check_hibernation(&all, write), Ok(None));
        }
        all[1].hibernated = true;
        all[1].contents = Some(Kind::Hibernation);
        let refused = check_hibernation(&all, true).unwrap_err();
        assert_eq!(refused.status(), 3);
        assert!(refused.to_string().contains("hibernated (partition 2"), "{refused}");
        let note = check_hibernation(&all, false).unwrap().unwrap();
        assert!(note.contains("hibernated (partition 2"), "{note}");
    }

    /// An image is one also beside the signature of what was there before.
    #[test]
    fn image_of_a_hibernated_system_is_recognized() {
        let folder = testkit::Scratch::new();
        let tree = Tree::at(&folder.0);
        let place = folder.0.join("sys/class/block/sda1");
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("size"), "8").unwrap();
        std::fs::write(place.join("dev"), "8:1").unwrap();
        let of = |kind| Signature { kind, uuid: None, label: None, devices: 1, level: None };
        let found = |kinds: &[Kind]| {
            let signatures: Vec<Signature> = kinds.iter().map(|kind| of(*kind)).collect();
            super::volume(&tree, "sda1", None, &signatures).unwrap().hibernated
        };
        assert!(found(&[Kind::Hibernation]) && found(&[Kind::Btrfs, Kind::Hibernation]));
        assert!(!found(&[Kind::Swap]));
    }

    #[test]
    fn file_system_that_cannot_be_mounted_is_named() {
        let mut broken = volume(2, "", None);
        broken.problem = Some("Structure needs cleaning (os error 117)".to_owned());
        let Choice::None(reason) = choose(&[broken], None) else { panic!() };
        assert!(reason.contains("ext4, not mounted: Structure needs cleaning"), "{reason}");
    }

    #[test]
    fn partition_of_an_mbr_has_a_partuuid() {
        let entry =
            Entry { number: 5, kind: "83".to_owned(), guid: None, name: None, start: 0, bytes: 0 };
        assert_eq!(part_uuid(&entry, Some(0xabc)), "00000abc-05");
        assert_eq!(part_uuid(&entry, None), "");
        let guid = Some([0x11; 16]);
        let of_gpt = part_uuid(&Entry { guid, ..entry }, None);
        assert_eq!(of_gpt, "11111111-1111-1111-1111-111111111111");
    }

    #[test]
    fn system_has_a_name_for_people() {
        assert_eq!(
            pretty_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13\"\n"),
            "Debian GNU/Linux 13"
        );
        assert_eq!(pretty_name("NAME='Arch'"), "Arch");
        assert_eq!(pretty_name("VERSION=1\nPRETTY_NAME=\"\"\n"), "Linux");
        let shown = volume(2, "", Some("Debian")).shown();
        assert_eq!(shown, "partition 2: Debian, 1 GB, ext4");
    }
}
