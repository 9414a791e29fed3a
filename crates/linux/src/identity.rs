//! Identifiers of an exported disk that are stable across reboots, ports and kernel names.

use crate::block::Disk;
use crate::hardware::{Hardware, hex, unhex};
use crate::partition::Table;
use crate::tree::Tree;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Domain separation of these hashes.
const DOMAIN: &str = "storagetm disk identity 1";
const SERIAL: usize = 20;
const MODEL: usize = 40;
const FIRMWARE: usize = 8;

/// What an identity is derived from, in order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    WorldWideName,
    /// Serial number and model.
    Serial,
    /// The UUID of a stacked device (LVM, LUKS, RAID) or of a home directory, and this machine.
    Stack,
    /// The disk GUID of the partition table, and this machine.
    DiskGuid,
    /// This machine and the path.
    Path,
}

/// The identifiers of an exported disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// A hash of the source (RFC 9562 §5.8, version 8). Differs from every UUID on the disk itself.
    pub uuid: [u8; 16],
    /// The disk's NGUID, or its 16-byte world-wide name in that form.
    pub nguid: Option<[u8; 16]>,
    /// The disk's EUI-64, or its 8-byte world-wide name in that form.
    pub eui64: Option<[u8; 8]>,
    /// The serial number: 1 to 20 printable ASCII characters.
    pub serial: String,
    /// The model: 1 to 40 printable ASCII characters.
    pub model: String,
    /// The firmware's revision: 1 to 8 printable ASCII characters.
    pub firmware: String,
    pub source: Source,
}

/// The identifier of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineId {
    pub bytes: [u8; 16],
    /// Stable across reboots.
    pub stable: bool,
}

impl MachineId {
    /// Parses 32 hexadecimal digits, with or without hyphens. Returns `None` for identifiers that
    /// many machines share.
    pub fn parse(digits: &str) -> Option<Self> {
        let bytes = <[u8; 16]>::try_from(unhex(&digits.replace('-', ""))?).ok()?;
        (!SHARED.contains(&bytes)).then_some(Self { bytes, stable: true })
    }
}

/// Placeholder UUIDs of firmware whose vendor did not assign one.
const SHARED: [[u8; 16]; 4] = [
    [0; 16],
    [0xff; 16],
    [3, 0, 2, 0, 4, 0, 5, 0, 0, 6, 0, 7, 0, 8, 0, 9],
    [0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9],
];

const FIRMWARE_ID: &str = "sys/class/dmi/id/product_uuid";

/// Returns the firmware's UUID, if it has one.
pub fn firmware_id(tree: &Tree) -> Option<MachineId> {
    MachineId::parse(&tree.attribute(FIRMWARE_ID)?)
}

/// Returns `/etc/machine-id`, else D-Bus's, else the firmware's UUID, else the boot ID. In an
/// initrd the firmware's UUID is preferred: `/etc/machine-id` there was generated at this boot.
pub fn machine_id(tree: &Tree) -> MachineId {
    let mut lasting = ["etc/machine-id", "var/lib/dbus/machine-id", FIRMWARE_ID];
    if tree.path("etc/initrd-release").exists() {
        lasting.rotate_right(1);
    }
    let read = |path: &str| MachineId::parse(&tree.attribute(path)?);
    lasting.iter().find_map(|path| read(path)).unwrap_or_else(|| {
        let boot = read("proc/sys/kernel/random/boot_id").map(|id| id.bytes);
        MachineId { bytes: boot.unwrap_or_default(), stable: false }
    })
}

/// Returns the identity of a block device. `whole` is the disk that a partition is part of, or the
/// disk itself; `table` is that disk's partition table. If it `is_duplicated` on this machine (see
/// [`has_same_names`]), its connection path is part of the identity.
pub fn of_block(
    disk: &Disk,
    whole: &Disk,
    table: Option<&Table>,
    machine: MachineId,
    is_duplicated: bool,
) -> Identity {
    let (source, mut key) = key(whole, table, machine);
    if is_duplicated {
        key.extend(place(whole, machine));
    }
    let key: Vec<&str> = key.iter().map(String::as_str).collect();
    let hardware = &whole.hardware;
    let Some(part) = &disk.part else {
        let named = named(hash(&key), hardware.serial.as_deref(), hardware, source);
        if is_duplicated {
            return named;
        }
        return Identity {
            nguid: hardware.nguid.or_else(|| wide(hardware)),
            eui64: hardware.eui64.or_else(|| narrow(hardware)),
            ..named
        };
    };
    let entry = table.and_then(|table| table.entries.iter().find(|e| e.number == part.number));
    let own = entry.and_then(|entry| entry.guid).map(|guid| hex(&guid));
    let number = part.number.to_string();
    let own = own.as_deref().unwrap_or(&number);
    let serial = hardware.serial.as_ref().map(|serial| suffixed(serial, &number));
    named(hash(&[&key[..], &["partition", own]].concat()), serial.as_deref(), hardware, source)
}

/// Returns the identity of an image: a hash of this machine's identifier and the path with links
/// resolved. A copy elsewhere is another disk, since both may be exported at once.
pub fn of_image(path: &Path, machine: MachineId) -> Identity {
    let path = path.to_string_lossy();
    let uuid = hash(&["image", &hex(&machine.bytes), &path]);
    let hardware = Hardware { model: Some("storagetm image".to_owned()), ..Hardware::default() };
    named(uuid, None, &hardware, Source::Path)
}

/// Returns the identity of a home directory whose volume has this UUID: the same for a file that is renamed, and
/// another one for a copy on another machine.
pub fn of_home(user: &str, volume: &[u8; 16], machine: MachineId) -> Identity {
    let uuid = hash(&["home", &hex(volume), &hex(&machine.bytes)]);
    let model = Some(format!("home of {user}"));
    named(uuid, None, &Hardware { model, ..Hardware::default() }, Source::Stack)
}

/// Returns the UUID and the serial number of one `instance` of an overlay over the disk with the UUID
/// `base`. They differ from those of the disk, whose contents are others.
pub fn of_overlay(base: &[u8; 16], instance: &[u8; 16]) -> ([u8; 16], String) {
    let uuid = hash(&["overlay", &hex(base), &hex(instance)]);
    (uuid, made_serial(&uuid))
}

/// Returns whether two whole disks of one machine have the same names: clones, adapters that report
/// one serial number for all disks, or two paths to one disk, which cannot be told apart.
/// `other_table` reads the other's partition table; it is called only if nothing else identifies
/// the two.
///
/// All such disks get identities with their connection path, in whichever order they appeared, so
/// that two never swap identities.
pub fn has_same_names(
    disk: &Disk,
    table: Option<&Table>,
    other: &Disk,
    other_table: impl FnOnce() -> Option<Table>,
) -> bool {
    let anywhere = MachineId { bytes: [0; 16], stable: false };
    let (source, own) = key(disk, table, anywhere);
    let (other_source, mut others) = key(other, None, anywhere);
    if source == Source::DiskGuid && other_source == Source::Path {
        others = key(other, other_table().as_ref(), anywhere).1;
    }
    source != Source::Path && own == others
}

/// Returns whether only the contents or the connection path can identify a whole disk.
pub fn is_named_by_contents(disk: &Disk) -> bool {
    key(disk, None, MachineId { bytes: [0; 16], stable: false }).0 == Source::Path
}

/// Returns the first NVMe controller identifier to assign; it differs between machines and between
/// processes of one machine.
pub fn first_controller(machine: MachineId, process: u32) -> u16 {
    let [first, second, ..] = hash(&["controllers", &hex(&machine.bytes), &process.to_string()]);
    u16::from_be_bytes([first, second])
}

/// Returns the preferred source of a whole disk's identity and its parts. Identifiers from the
/// disk's contents are the same on a clone, which another machine may export: they are combined
/// with the machine identifier.
fn key(disk: &Disk, table: Option<&Table>, machine: MachineId) -> (Source, Vec<String>) {
    let here = |mut key: Vec<String>| {
        key.push(hex(&machine.bytes));
        key
    };
    let guid = table.and_then(|table| table.guid);
    let guid = guid.map(|guid| vec!["gpt".to_owned(), hex(&guid)]);
    let found = [
        (Source::WorldWideName, world_wide(&disk.hardware)),
        (Source::Serial, serial(&disk.hardware, machine)),
        (Source::Stack, stack(disk).map(here)),
        (Source::DiskGuid, guid.map(here)),
    ];
    let found = found.into_iter().find_map(|(source, key)| Some((source, key?)));
    found.unwrap_or_else(|| (Source::Path, place(disk, machine)))
}

fn world_wide(hardware: &Hardware) -> Option<Vec<String>> {
    let name = hardware.wwn.clone();
    let name = name.or_else(|| hardware.nguid.map(|bytes| format!("nguid.{}", hex(&bytes))));
    let name = name.or_else(|| hardware.eui64.map(|bytes| format!("eui.{}", hex(&bytes))));
    let name = name.or_else(|| hardware.uuid.map(|bytes| format!("uuid.{}", hex(&bytes))));
    name.map(|name| vec!["wwn".to_owned(), name])
}

/// Model prefixes of virtual disks: QEMU assigns the same serial numbers in every machine
/// (`QM00001`).
const VIRTUAL: [&str; 6] = ["QEMU", "VMware", "VBOX", "Msft", "Virtual", "BHYVE"];

/// Ignores a serial number of one repeated character. Without a model, or with that of a virtual
/// machine, a serial number is unique on this machine only.
fn serial(hardware: &Hardware, machine: MachineId) -> Option<Vec<String>> {
    let serial = hardware.serial.clone()?;
    let mut characters = serial.chars();
    let first = characters.next()?;
    if characters.all(|c| c == first) && serial.len() > 1 {
        return None;
    }
    let is_virtual = |model: &&String| VIRTUAL.iter().any(|start| model.starts_with(start));
    let maker = hardware.model.as_ref().filter(|model| !is_virtual(model));
    let maker = maker.cloned().unwrap_or_else(|| hex(&machine.bytes));
    let mut key = vec!["serial".to_owned(), serial, maker];
    key.extend(hardware.namespace.map(|number| format!("namespace {number}")));
    Some(key)
}

fn stack(disk: &Disk) -> Option<Vec<String>> {
    let stacking = &disk.stacking;
    let dm = stacking.dm_uuid.clone().map(|uuid| vec!["dm".to_owned(), uuid]);
    dm.or_else(|| stacking.md_uuid.clone().map(|uuid| vec!["md".to_owned(), uuid]))
}

/// Returns where the disk is connected to this machine: the bus address, never the kernel's name,
/// and the namespace of a drive with several. Devices without a bus (`ram0`, `nbd0`, an array
/// without an identifier) have only their node.
fn place(disk: &Disk, machine: MachineId) -> Vec<String> {
    let stacking = &disk.stacking;
    let made = stacking.backing_file.clone().or_else(|| stacking.dm_name.clone());
    let has_no_bus = disk.sysfs_path.components().any(|part| part.as_os_str() == "virtual");
    let node = || disk.node.to_string_lossy().into_owned();
    let path = if has_no_bus { node() } else { disk.address.clone() };
    let mut place = vec!["path".to_owned(), hex(&machine.bytes), made.unwrap_or(path)];
    place.extend(disk.hardware.namespace.map(|number| format!("namespace {number}")));
    place
}

/// Returns the first half of SHA-256 over the length-prefixed parts, as a UUID of version 8.
fn hash(parts: &[&str]) -> [u8; 16] {
    let mut digest = Sha256::new();
    for part in [DOMAIN].iter().chain(parts) {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    let mut uuid = [0; 16];
    for (to, from) in uuid.iter_mut().zip(digest.finalize()) {
        *to = from;
    }
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

fn named(uuid: [u8; 16], serial: Option<&str>, hardware: &Hardware, source: Source) -> Identity {
    let model = hardware.model.as_deref().and_then(|model| printable_ascii(model, MODEL));
    let firmware = hardware.firmware.as_deref().and_then(|words| printable_ascii(words, FIRMWARE));
    Identity {
        uuid,
        nguid: None,
        eui64: None,
        serial: serial.and_then(ending).unwrap_or_else(|| made_serial(&uuid)),
        model: model.unwrap_or_else(|| "storagetm disk".to_owned()),
        firmware: firmware
            .unwrap_or_else(|| env!("CARGO_PKG_VERSION").chars().take(FIRMWARE).collect()),
        source,
    }
}

fn made_serial(uuid: &[u8; 16]) -> String {
    hex(uuid).chars().take(SERIAL).collect()
}

/// Returns printable ASCII (20h to 7Eh, NVMe Base 2.0 §1.8), truncated to `max_len` characters; `None` if
/// nothing is left.
fn printable_ascii(text: &str, max_len: usize) -> Option<String> {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '_' };
    let text: String = text.trim().chars().map(shown).take(max_len).collect();
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Returns the end of a long serial number, which is the part that differs between disks of a
/// model.
fn ending(serial: &str) -> Option<String> {
    let whole = printable_ascii(serial, usize::MAX)?;
    let skip = whole.len().saturating_sub(SERIAL);
    printable_ascii(whole.get(skip..)?, SERIAL)
}

/// Returns the disk's serial number with a suffix for the partition, in 20 characters.
fn suffixed(serial: &str, number: &str) -> String {
    let suffix = format!("-p{number}");
    let room = SERIAL.saturating_sub(suffix.len());
    let serial = ending(serial).unwrap_or_default();
    let skip = serial.len().saturating_sub(room);
    format!("{}{suffix}", serial.get(skip..).unwrap_or_default())
}

fn name_bytes<const N: usize>(hardware: &Hardware, prefix: &str) -> Option<[u8; N]> {
    unhex(hardware.wwn.as_deref()?.strip_prefix(prefix)?)?.try_into().ok()
}

/// Converts an 8-byte name to EUI-64: a 3-byte OUI and a 5-byte extension. NAA 5 (SPC-5 §7.7.6.6.5)
/// has the same two after a leading digit, which moves between them.
fn narrow(hardware: &Hardware) -> Option<[u8; 8]> {
    let naa = name_bytes(hardware, "naa.").map(u64::from_be_bytes).filter(|name| name >> 60 == 5);
    let turned = naa.map(|name| (turn(name)).to_be_bytes());
    turned.or_else(|| name_bytes(hardware, "eui."))
}

/// Converts a 16-byte name to NGUID: an 8-byte extension, a 3-byte OUI and 5 more bytes (NVMe Base
/// 2.0 §4.5.2). NAA 6 (SPC-5 §7.7.6.6.6) has the extension last.
fn wide(hardware: &Hardware) -> Option<[u8; 16]> {
    let naa = name_bytes(hardware, "naa.").map(u128::from_be_bytes).filter(|name| name >> 124 == 6);
    let turned = naa.map(|name| {
        let (front, extension) = (name >> 64, name << 64);
        let front = u64::try_from(front).unwrap_or_default();
        (extension | u128::from(turn(front))).to_be_bytes()
    });
    turned.or_else(|| name_bytes(hardware, "eui."))
}

/// Moves the leading digit after the next six.
fn turn(name: u64) -> u64 {
    let digit = name >> 60;
    let manufacturer = name << 4 >> 40;
    manufacturer << 40 | digit << 36 | name & 0xf_ffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block;
    use crate::partition::{Entry, Scheme};
    use crate::tree::fake::Fake;

    const MACHINE: MachineId = MachineId { bytes: [1; 16], stable: true };
    const OTHER: MachineId = MachineId { bytes: [2; 16], stable: true };

    fn disk(name: &str) -> Disk {
        let fake = Fake::new();
        fake.disk("pci0/virtio1", name, "254:0", 8).part(name, &format!("{name}1"), "254:1", 1);
        block::read(&fake.tree(), name).unwrap()
    }

    fn with(name: &str, hardware: Hardware) -> Disk {
        Disk { hardware, ..disk(name) }
    }

    fn of(disk: &Disk) -> Identity {
        of_block(disk, disk, None, MACHINE, false)
    }

    fn table() -> Table {
        let entry = Entry {
            number: 1,
            kind: "83".into(),
            guid: Some([8; 16]),
            name: None,
            start: 0,
            bytes: 0,
        };
        Table { scheme: Scheme::Gpt, block_size: 512, guid: Some([9; 16]), entries: vec![entry] }
    }

    fn hardware(wwn: Option<&str>, serial: Option<&str>) -> Hardware {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Hardware {
            wwn: own(wwn),
            serial: own(serial),
            model: Some("M".into()),
            ..Hardware::default()
        }
    }

    #[test]
    fn world_wide_name_alone_determines_the_identity() {
        for known in [hardware(Some("naa.5000c50056789abc"), None), hardware(None, Some("S1"))] {
            let (a, b) = (with("vda", known.clone()), with("vdb", known));
            assert_eq!(of(&a), of_block(&b, &b, Some(&table()), OTHER, false));
        }
    }

    #[test]
    fn serial_of_a_virtual_disk_is_unique_per_machine_only() {
        let disk = with("vda", Hardware { serial: Some("disk0".into()), ..Hardware::default() });
        let (here, there) = (of(&disk), of_block(&disk, &disk, None, OTHER, false));
        assert_eq!((here.serial.as_str(), here.source), ("disk0", Source::Serial));
        assert_ne!(here.uuid, there.uuid);
    }

    #[test]
    fn uuid_is_the_same_in_every_version() {
        let uuid = of(&with("vda", hardware(Some("naa.5000c50056789abc"), None))).uuid;
        assert_eq!(hex(&uuid), "88266406428685f0bcbd961644ee8d1b");
    }

    #[test]
    fn partition_table_and_then_path_identify_a_nameless_disk() {
        let (a, b) = (disk("vda"), disk("vdb"));
        let table = table();
        let by_table = of_block(&a, &a, Some(&table), MACHINE, false);
        assert_eq!(by_table.source, Source::DiskGuid);
        assert_eq!(by_table.uuid, of_block(&b, &b, Some(&table), MACHINE, false).uuid);
        assert_eq!((of(&a).source, of(&a).uuid), (Source::Path, of(&b).uuid));
        assert_ne!(of(&a).uuid, of_block(&a, &a, None, OTHER, false).uuid);
        let zeroes = with("vda", hardware(None, Some("00000000")));
        assert_eq!(of(&zeroes).source, Source::Path);
    }

    #[test]
    fn stacked_device_is_identified_by_its_uuid() {
        let mut dm = disk("vda");
        dm.stacking.dm_uuid = Some("LVM-abc".into());
        assert_eq!(of(&dm).source, Source::Stack);
        let mut file = disk("vda");
        file.stacking.backing_file = Some("/images/a".into());
        assert_ne!(of(&file).uuid, of(&disk("vda")).uuid);
    }

    #[test]
    fn partition_identity_is_derived_from_its_disk() {
        let fake = Fake::new();
        fake.disk("pci0/virtio1", "vda", "254:0", 8).part("vda", "vda1", "254:1", 1);
        let part = block::read(&fake.tree(), "vda1").unwrap();
        let known = hardware(Some("eui.0025384b31404c21"), Some("SERIAL-OF-MORE-THAN-20-CHARS"));
        let whole = with("vda", known);
        let named = of_block(&part, &whole, Some(&table()), MACHINE, false);
        assert_eq!(named.serial, "ORE-THAN-20-CHARS-p1");
        assert_ne!(named.uuid, of_block(&part, &whole, None, MACHINE, false).uuid);
        assert_ne!(named.uuid, of(&whole).uuid);
        assert_eq!((named.eui64, named.nguid), (None, None));
        assert_eq!(of(&whole).eui64, Some([0, 0x25, 0x38, 0x4b, 0x31, 0x40, 0x4c, 0x21]));
    }

    #[test]
    fn world_wide_names_are_converted_to_nvme_identifiers() {
        let narrow = of(&with("vda", hardware(Some("naa.5000c50056789abc"), None)));
        assert_eq!(narrow.eui64.map(|bytes| hex(&bytes)).as_deref(), Some("000c505056789abc"));
        let wide = of(&with("vda", hardware(Some("naa.60014055566677778888999900001111"), None)));
        let nguid = wide.nguid.map(|bytes| hex(&bytes));
        assert_eq!(nguid.as_deref(), Some("88889999000011110014056556667777"));
        assert_eq!(wide.eui64, None);
    }

    #[test]
    fn model_and_serial_are_made_printable() {
        let known = Hardware {
            model: Some("Evil\x1b[2J\u{fc} disk with a name of more than forty characters".into()),
            firmware: Some("1234567890".into()),
            serial: Some("\n\u{e9}\t".into()),
            ..Hardware::default()
        };
        let named = of(&with("vda", known));
        assert_eq!(named.model, "Evil_[2J_ disk with a name of more than");
        assert_eq!((named.firmware.as_str(), named.serial.as_str()), ("12345678", "_"));
        let bare = of(&disk("vda"));
        assert_eq!((bare.serial.len(), bare.model.as_str()), (20, "storagetm disk"));
        assert!(!bare.firmware.is_empty() && bare.firmware.len() <= 8);
    }

    #[test]
    fn images_differ_by_path_and_machine() {
        let a = of_image(Path::new("/a.img"), MACHINE);
        assert_eq!(a, of_image(Path::new("/a.img"), MACHINE));
        assert_ne!(a.uuid, of_image(Path::new("/b.img"), MACHINE).uuid);
        assert_ne!(a.uuid, of_image(Path::new("/a.img"), OTHER).uuid);
        assert_eq!((a.uuid[6] >> 4, a.uuid[8] >> 6), (8, 2));
    }

    /// Disks of two machines made from one template: a partition table, a volume, an array.
    #[test]
    fn r58_clones_on_two_machines_have_different_identities() {
        let table = table();
        let (mut volume, mut array) = (disk("vda"), disk("vda"));
        volume.stacking.dm_uuid = Some("LVM-abc".into());
        array.stacking.md_uuid = Some("01234567:89abcdef".into());
        let model = Some("QEMU HARDDISK".to_owned());
        let serial = Some("QM00001".to_owned());
        let emulated = with("vda", Hardware { model, serial, ..Hardware::default() });
        let disks = [(disk("vda"), Some(&table)), (volume, None), (array, None), (emulated, None)];
        for (disk, table) in disks {
            let here = of_block(&disk, &disk, table, MACHINE, false);
            let there = of_block(&disk, &disk, table, OTHER, false);
            assert_ne!(here.uuid, there.uuid);
            assert_eq!(here, of_block(&disk, &disk, table, MACHINE, false));
        }
        assert_ne!(first_controller(MACHINE, 7), first_controller(OTHER, 7));
        assert_ne!(first_controller(MACHINE, 7), first_controller(MACHINE, 8));
    }

    fn two(hardware: &Hardware) -> (Disk, Disk) {
        let fake = Fake::new();
        fake.disk("pci0/virtio1", "vda", "254:0", 8).disk("pci1/virtio2", "vdb", "254:16", 8);
        let disk = |name: &str| {
            let found = block::read(&fake.tree(), name).unwrap();
            Disk { hardware: hardware.clone(), ..found }
        };
        (disk("vda"), disk("vdb"))
    }

    #[test]
    fn r58_clones_on_one_machine_are_identified_by_path() {
        let table = table();
        for (known, table) in [
            (hardware(Some("naa.5000c50056789abc"), Some("S1")), None),
            (hardware(None, Some("0123456789")), None),
            (Hardware::default(), Some(table)),
        ] {
            let (a, b) = two(&known);
            let table = table.as_ref();
            assert!(has_same_names(&a, table, &b, || table.cloned()));
            let of = |disk: &Disk| of_block(disk, disk, table, MACHINE, true);
            assert_ne!(of(&a).uuid, of(&b).uuid);
            assert_ne!(of(&a).uuid, of_block(&a, &a, table, MACHINE, false).uuid);
            // Linux refuses a namespace whose identifiers another subsystem has.
            assert_eq!((of(&a).nguid, of(&a).eui64), (None, None));
            let renamed = Disk { name: "vdz".into(), node: "/dev/vdz".into(), ..a.clone() };
            assert_eq!(of(&renamed), of(&a), "not by the kernel's name");
        }
        let (a, b) = two(&Hardware::default());
        assert!(!has_same_names(&a, None, &b, || None), "their places tell them apart already");
        let (a, mut b) = two(&hardware(None, Some("S1")));
        b.hardware.serial = Some("S2".into());
        assert!(!has_same_names(&a, None, &b, || panic!("no table is needed")));
    }

    #[test]
    fn r58_second_namespace_of_a_drive_is_another_disk() {
        let namespace = |number| {
            let fake = Fake::new();
            let name = format!("nvme0n{number}");
            fake.disk("pci0/0000:02:00.0/nvme/nvme0", &name, "259:1", 8);
            let place = format!("sys/class/block/{name}");
            fake.file(&format!("{place}/nsid"), format!("{number}\n"));
            fake.file(&format!("{place}/device/serial"), "S1\n");
            fake.file(&format!("{place}/device/model"), "M\n");
            fake.file(&format!("{place}/wwid"), format!("nvme.144d-5331-4d-0000000{number}\n"));
            block::read(&fake.tree(), &name).unwrap()
        };
        let (first, second) = (namespace(1), namespace(2));
        assert_eq!(of(&first).source, Source::Serial);
        assert_ne!(of(&first).uuid, of(&second).uuid);
        assert!(!has_same_names(&first, None, &second, || None));
        let placed = |disk: &Disk| of_block(disk, disk, None, MACHINE, true).uuid;
        assert_ne!(placed(&first), placed(&second));
    }

    #[test]
    fn uuid_shared_by_many_machines_is_ignored() {
        let fake = Fake::new();
        for uuid in [
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
            "00020003-0004-0005-0006-000700080009",
            "00000000-0000-0000-0000-000000000000",
        ] {
            fake.file("sys/class/dmi/id/product_uuid", format!("{uuid}\n"));
            assert_eq!(firmware_id(&fake.tree()), None, "{uuid}");
            assert!(!machine_id(&fake.tree()).stable, "{uuid}");
        }
    }

    #[test]
    fn machine_id_is_read_from_the_first_file_that_has_one() {
        let fake = Fake::new();
        assert!(!machine_id(&fake.tree()).stable);
        fake.file("proc/sys/kernel/random/boot_id", "00112233-4455-6677-8899-aabbccddeeff\n");
        let boot = machine_id(&fake.tree());
        assert_eq!((boot.bytes[15], boot.stable), (0xff, false));
        fake.file("sys/class/dmi/id/product_uuid", "00112233-4455-6677-8899-AABBCCDDEEFE\n");
        assert_eq!(machine_id(&fake.tree()).bytes[15], 0xfe);
        fake.file("etc/machine-id", "uninitialized\n");
        assert_eq!(machine_id(&fake.tree()).bytes[15], 0xfe);
        fake.file("etc/machine-id", "3d1219c7c4c5404aaa1f6d2a48adfda4\n");
        let id = machine_id(&fake.tree());
        assert_eq!((id.bytes[0], id.stable), (0x3d, true));
    }
}
