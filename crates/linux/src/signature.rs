//! Recognizes the contents of a disk by the signatures of file systems, volume managers and
//! encryption. Input is untrusted.

use crate::medium::{ReadAt, Tolerant, array, label, le32, le64, utf16, window};
use crate::partition::{self, Table, guid_text};
use serde::{Deserialize, Serialize};
use std::io;

mod member;

/// Covers every signature except those counted from the end: the last is that of btrfs at 64 KiB.
const HEAD: usize = 72 << 10;

/// The format of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are those of the formats; `word` has them in lower case.
pub enum Kind {
    Ext2,
    Ext3,
    Ext4,
    ExtJournal,
    Xfs,
    Btrfs,
    Bcachefs,
    F2fs,
    Jfs,
    Gfs2,
    Vfat,
    Exfat,
    Ntfs,
    HfsPlus,
    Apfs,
    Iso9660,
    Udf,
    Squashfs,
    Erofs,
    Swap,
    Hibernation,
    Luks1,
    Luks2,
    Home,
    BitLocker,
    Integrity,
    Verity,
    Lvm2,
    Md,
    FirmwareRaid,
    Zfs,
    Bcache,
    Vdo,
    Drbd,
    Stratis,
    Ceph,
}

impl Kind {
    /// Returns a stable word: that of `blkid` if it has one.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::ExtJournal => "jbd",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Bcachefs => "bcachefs",
            Self::F2fs => "f2fs",
            Self::Jfs => "jfs",
            Self::Gfs2 => "gfs2",
            Self::Vfat => "vfat",
            Self::Exfat => "exfat",
            Self::Ntfs => "ntfs",
            Self::HfsPlus => "hfsplus",
            Self::Apfs => "apfs",
            Self::Iso9660 => "iso9660",
            Self::Udf => "udf",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::Swap => "swap",
            Self::Hibernation => "swsuspend",
            Self::Luks1 => "luks1",
            Self::Luks2 => "luks2",
            Self::Home => "home",
            Self::BitLocker => "bitlocker",
            Self::Integrity => "dm-integrity",
            Self::Verity => "dm-verity",
            Self::Lvm2 => "lvm2",
            Self::Md => "md",
            Self::FirmwareRaid => "firmware-raid",
            Self::Zfs => "zfs",
            Self::Bcache => "bcache",
            Self::Vdo => "vdo",
            Self::Drbd => "drbd",
            Self::Stratis => "stratis",
            Self::Ceph => "ceph",
        }
    }
}

/// A signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The format.
    pub kind: Kind,
    /// The UUID, as the format's own tools print it.
    pub uuid: Option<String>,
    /// The label, without control characters.
    pub label: Option<String>,
    /// The number of member devices (btrfs, bcachefs, md); 1 for all others.
    pub devices: u64,
    /// The RAID level (md).
    pub level: Option<i32>,
}

/// All signatures of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The partition table.
    pub table: Option<Table>,
    /// The signatures, in the order of [`Kind`].
    pub signatures: Vec<Signature>,
    /// The first examined offset that the disk failed to read, in bytes. Signatures there are not
    /// known.
    pub unreadable: Option<u64>,
}

/// Probes a disk of `bytes` bytes. Reads less than a megabyte; unreadable regions are skipped.
///
/// # Errors
/// Fails if reading fails for a reason other than an I/O error of the disk.
pub fn probe<R: ReadAt + ?Sized>(reader: &R, bytes: u64) -> io::Result<Contents> {
    let reader = &Tolerant::new(reader);
    let head = window(reader, 0, HEAD)?;
    let mut signatures: Vec<Signature> = ROWS.iter().filter_map(|row| row.find(&head)).collect();
    signatures.extend(udf(&head));
    signatures.extend(member::find(reader, &head, bytes)?);
    signatures.sort_by_key(|signature| signature.kind as u8);
    signatures.dedup_by_key(|signature| signature.kind);
    let table = partition::read(reader)?;
    Ok(Contents { table, signatures, unreadable: reader.first_failure() })
}

/// The position and form of a UUID.
enum Uuid {
    None,
    /// 16 bytes.
    Bytes(usize),
    /// Characters, at most this many.
    Text(usize, usize),
    /// 32 characters, printed in groups as LVM does.
    Lvm(usize),
    /// A 32-bit number, printed as `1234-ABCD`.
    Short(usize),
    /// A 64-bit number, printed as 16 digits.
    Long(usize),
}

/// The position of a label: offset and length in bytes.
enum Label {
    None,
    Text(usize, usize),
    Utf16(usize, usize),
}

/// Refines the kind and the number of devices, from the kind, the head and the offset of the
/// signature.
type Refine = fn(Kind, &[u8], usize) -> Option<(Kind, u64)>;

/// A format. Offsets are from the start of the disk.
struct Row {
    kind: Kind,
    /// Offsets of the signature.
    places: &'static [usize],
    marks: &'static [&'static [u8]],
    uuid: Uuid,
    label: Label,
    /// Refines the match; `None` if it is not this format.
    refine: Refine,
}

/// The ends of the usual page sizes, where swap space has its signature.
const PAGE_ENDS: [usize; 5] = [4086, 8182, 16374, 32758, 65526];

const fn row(
    kind: Kind,
    places: &'static [usize],
    marks: &'static [&'static [u8]],
    uuid: Uuid,
    label: Label,
) -> Row {
    Row { kind, places, marks, uuid, label, refine: |kind, _, _| Some((kind, 1)) }
}

impl Row {
    const fn refined(mut self, refine: Refine) -> Self {
        self.refine = refine;
        self
    }

    fn find(&self, head: &[u8]) -> Option<Signature> {
        let marked = |at: &usize| {
            head.get(*at..).is_some_and(|rest| self.marks.iter().any(|mark| rest.starts_with(mark)))
        };
        let place = *self.places.iter().find(|at| marked(at))?;
        let (kind, devices) = (self.refine)(self.kind, head, place)?;
        let uuid = self.uuid.read(head);
        Some(Signature { kind, uuid, label: self.label.read(head), devices, level: None })
    }
}

impl Uuid {
    fn read(&self, head: &[u8]) -> Option<String> {
        match *self {
            Self::None => None,
            Self::Bytes(at) => uuid(head, at),
            Self::Text(at, length) => label(&String::from_utf8_lossy(head.get(at..at + length)?)),
            Self::Lvm(at) => grouped(head.get(at..at + 32)?),
            Self::Short(at) => {
                let number = le32(head, at)?;
                Some(format!("{:04X}-{:04X}", number >> 16, number & 0xffff))
            }
            Self::Long(at) => le64(head, at).map(|number| format!("{number:016X}")),
        }
    }
}

impl Label {
    fn read(&self, head: &[u8]) -> Option<String> {
        match *self {
            Self::None => None,
            Self::Text(at, length) => label(&String::from_utf8_lossy(head.get(at..at + length)?)),
            Self::Utf16(at, length) => utf16(head.get(at..at + length)?, false),
        }
    }
}

pub(crate) fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    let uuid = array(bytes, at)?;
    (uuid != [0; 16]).then(|| guid_text(&uuid))
}

/// The formats with signatures at the start.
/// The GUID 4967d63b-2e29-4ad8-8399-f6a339e3d001 in the boot sector of a removable disk with BitLocker, which begins as
/// that of FAT32.
const BITLOCKER_TO_GO: &[u8] = b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01";

static ROWS: &[Row] = &[
    row(Kind::Ext2, &[0x438], &[b"\x53\xef"], Uuid::Bytes(0x468), Label::Text(0x478, 16))
        .refined(ext),
    row(Kind::Xfs, &[0], &[b"XFSB"], Uuid::Bytes(32), Label::Text(108, 12)),
    row(Kind::Btrfs, &[0x10040], &[b"_BHRfS_M"], Uuid::Bytes(0x10020), Label::Text(0x1012b, 256))
        .refined(btrfs),
    row(Kind::Bcachefs, &[4120], &[BCACHEFS], Uuid::Bytes(4152), Label::Text(4168, 32))
        .refined(bcachefs),
    row(Kind::F2fs, &[1024], &[b"\x10\x20\xf5\xf2"], Uuid::Bytes(1132), Label::Utf16(1148, 1024)),
    row(Kind::Jfs, &[32768], &[b"JFS1"], Uuid::Bytes(32904), Label::Text(32920, 16)),
    row(Kind::Gfs2, &[65536], &[b"\x01\x16\x19\x70"], Uuid::None, Label::None),
    row(Kind::Vfat, &[82], &[b"FAT32   "], Uuid::Short(67), Label::Text(71, 11)).refined(fat),
    row(Kind::Vfat, &[54], &[b"FAT16   ", b"FAT12   "], Uuid::Short(39), Label::Text(43, 11))
        .refined(fat),
    row(Kind::Exfat, &[3], &[b"EXFAT   "], Uuid::Short(100), Label::None),
    row(Kind::Ntfs, &[3], &[b"NTFS    "], Uuid::Long(72), Label::None),
    row(Kind::HfsPlus, &[1024], &[b"H+\0\x04", b"HX\0\x05"], Uuid::None, Label::None),
    row(Kind::Apfs, &[32], &[b"NXSB"], Uuid::Bytes(72), Label::None),
    row(Kind::Iso9660, &[32769], &[b"CD001"], Uuid::None, Label::Text(32808, 32)),
    row(Kind::Squashfs, &[0], &[b"hsqs", b"sqsh"], Uuid::None, Label::None),
    row(Kind::Erofs, &[1024], &[b"\xe2\xe1\xf5\xe0"], Uuid::Bytes(1072), Label::Text(1088, 16)),
    row(
        Kind::Swap,
        &PAGE_ENDS,
        &[b"SWAPSPACE2", b"SWAP-SPACE"],
        Uuid::Bytes(1036),
        Label::Text(1052, 16),
    ),
    row(Kind::Hibernation, &PAGE_ENDS, HIBERNATION, Uuid::Bytes(1036), Label::Text(1052, 16)),
    row(Kind::Hibernation, &[0], &[b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"], Uuid::None, Label::None),
    row(Kind::Luks1, &[0], &[b"LUKS\xba\xbe\0\x01"], Uuid::Text(168, 40), Label::None),
    row(Kind::Luks2, &[0], &[b"LUKS\xba\xbe\0\x02"], Uuid::Text(168, 40), Label::Text(24, 48))
        .refined(luks2),
    row(Kind::BitLocker, &[3], &[b"-FVE-FS-"], Uuid::None, Label::None),
    row(Kind::BitLocker, &[424], &[BITLOCKER_TO_GO], Uuid::None, Label::None),
    row(Kind::Integrity, &[0], &[b"integrt\0"], Uuid::None, Label::None),
    row(Kind::Verity, &[0], &[b"verity\0\0"], Uuid::Bytes(16), Label::None),
    row(Kind::Lvm2, &[24], &[b"LVM2 001"], Uuid::Lvm(32), Label::None).refined(lvm),
    row(Kind::Lvm2, &[536], &[b"LVM2 001"], Uuid::Lvm(544), Label::None).refined(lvm),
    row(Kind::Lvm2, &[1048], &[b"LVM2 001"], Uuid::Lvm(1056), Label::None).refined(lvm),
    row(Kind::Lvm2, &[1560], &[b"LVM2 001"], Uuid::Lvm(1568), Label::None).refined(lvm),
    row(Kind::Bcache, &[4120], &[BCACHE], Uuid::Bytes(4136), Label::None),
    row(Kind::Vdo, &[0], &[b"dmvdo001"], Uuid::None, Label::None),
    row(Kind::Stratis, &[516], &[STRATIS], Uuid::Text(544, 32), Label::None),
    row(Kind::Stratis, &[4612], &[STRATIS], Uuid::Text(4640, 32), Label::None),
    row(Kind::Ceph, &[0], &[b"bluestore block device"], Uuid::Text(23, 36), Label::None),
];

const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
const BCACHEFS: &[u8] = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
const STRATIS: &[u8] = b"!Stra0tis\x86\xff\x02^\x41rh";
/// What hibernation writes over the signature of swap space.
const HIBERNATION: &[&[u8]] = &[b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];

/// LVM prints its identifiers as groups of 6, 4, 4, 4, 4, 4 and 6 characters.
fn grouped(characters: &[u8]) -> Option<String> {
    let mut text = label(&String::from_utf8_lossy(characters))
        .filter(|text| text.is_ascii() && text.len() == 32)?;
    for dash in [26, 22, 18, 14, 10, 6] {
        text.insert(dash, '-');
    }
    Some(text)
}

/// ext3 has a journal; ext4 has extents or another feature that ext3 refuses.
fn ext(_: Kind, head: &[u8], _: usize) -> Option<(Kind, u64)> {
    let (compatible, incompatible, read_only) =
        (le32(head, 0x45c)?, le32(head, 0x460)?, le32(head, 0x464)?);
    let kind = match (incompatible & 0x8, incompatible & !0x16 | read_only & !0x7, compatible & 0x4)
    {
        (0x8, _, _) => Kind::ExtJournal,
        (_, 1.., _) => Kind::Ext4,
        (_, _, 0x4) => Kind::Ext3,
        _ => Kind::Ext2,
    };
    Some((kind, 1))
}

/// A home directory of systemd-homed is a LUKS2 volume with a name in the field for a subsystem.
fn luks2(kind: Kind, head: &[u8], _: usize) -> Option<(Kind, u64)> {
    Some((if crate::home::is_home(head) { Kind::Home } else { kind }, 1))
}

fn btrfs(kind: Kind, head: &[u8], _: usize) -> Option<(Kind, u64)> {
    Some((kind, le64(head, 0x1_0088)?))
}

fn bcachefs(kind: Kind, head: &[u8], _: usize) -> Option<(Kind, u64)> {
    Some((kind, u64::from(*head.get(4096 + 123)?)))
}

fn fat(kind: Kind, head: &[u8], _: usize) -> Option<(Kind, u64)> {
    (head.get(510..512)? == [0x55, 0xaa]).then_some((kind, 1))
}

fn lvm(kind: Kind, head: &[u8], place: usize) -> Option<(Kind, u64)> {
    let start = place.checked_sub(24)?;
    head.get(start..)?.starts_with(b"LABELONE").then_some((kind, 1))
}

/// Volume recognition sequence: structures of 2 KiB from 32 KiB on (ECMA-167 §2/9).
fn udf(head: &[u8]) -> Option<Signature> {
    let mut sectors = head.get(32768..)?.chunks(2048);
    let marked = |sector: &[u8]| matches!(sector.get(1..6), Some(b"NSR02" | b"NSR03"));
    sectors.any(marked).then(|| Signature::of(Kind::Udf))
}

impl Signature {
    /// Returns a signature with nothing but its kind.
    pub(crate) fn of(kind: Kind) -> Self {
        Self { kind, uuid: None, label: None, devices: 1, level: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::Stdio;

    fn disk(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        for (at, mark) in marks {
            disk[*at..*at + mark.len()].copy_from_slice(mark);
        }
        disk
    }

    fn only(marks: &[(usize, &[u8])]) -> Signature {
        let disk = disk(marks);
        let mut found = probe(&disk[..], disk.len() as u64).unwrap().signatures;
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn every_signature_is_found_at_each_offset() {
        for row in ROWS {
            for (place, mark) in
                row.places.iter().flat_map(|p| row.marks.iter().map(move |m| (*p, *m)))
            {
                let lvm: &[u8] = if row.kind == Kind::Lvm2 { b"LABELONE" } else { b"" };
                let boot: &[u8] = if row.kind == Kind::Vfat { b"\x55\xaa" } else { b"" };
                let found = only(&[(place, mark), (place.saturating_sub(24), lvm), (510, boot)]);
                assert_eq!(found.kind, row.kind, "at {place}");
            }
        }
    }

    #[test]
    fn uuids_and_labels_are_read() {
        let bytes: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let xfs = only(&[(0, b"XFSB"), (32, &bytes), (108, b"home\0junk")]);
        assert_eq!(xfs.uuid.as_deref(), Some("00010203-0405-0607-0809-0a0b0c0d0e0f"));
        assert_eq!(xfs.label.as_deref(), Some("home"));
        let fat = only(&[
            (82, b"FAT32   "),
            (510, b"\x55\xaa"),
            (67, &[1, 2, 3, 4]),
            (71, b"STICK      "),
        ]);
        assert_eq!((fat.uuid.as_deref(), fat.label.as_deref()), (Some("0403-0201"), Some("STICK")));
        let luks = only(&[(0, b"LUKS\xba\xbe\0\x02"), (24, b"vault"), (168, b"d6fe-77")]);
        assert_eq!((luks.uuid.as_deref(), luks.label.as_deref()), (Some("d6fe-77"), Some("vault")));
        let pv = only(&[
            (512, b"LABELONE"),
            (536, b"LVM2 001"),
            (544, b"abcdefGHIJklmnOPQRstuvWXYZ012345"),
        ]);
        assert_eq!(pv.uuid.as_deref(), Some("abcdef-GHIJ-klmn-OPQR-stuv-WXYZ-012345"));
    }

    #[test]
    fn number_of_devices_is_read() {
        let btrfs = only(&[(0x10040, b"_BHRfS_M"), (0x10088, &[3]), (0x1012b, b"pool")]);
        assert_eq!((btrfs.devices, btrfs.label.as_deref()), (3, Some("pool")));
        assert_eq!(only(&[(4120, BCACHEFS), (4219, &[2])]).devices, 2);
    }

    #[test]
    fn versions_of_ext_are_distinguished() {
        let mark: (usize, &[u8]) = (0x438, b"\x53\xef");
        let kinds = [
            (0x460, 0x42, Kind::Ext4),
            (0x460, 0x08, Kind::ExtJournal),
            (0x45c, 0x04, Kind::Ext3),
            (0x464, 0x08, Kind::Ext4),
            (0x460, 0x06, Kind::Ext2),
        ];
        for (at, flag, kind) in kinds {
            assert_eq!(only(&[mark, (at, &[flag])]).kind, kind);
        }
    }

    #[test]
    fn udf_is_found_after_an_iso_descriptor() {
        let disk = disk(&[(32769, b"CD001"), (34817, b"BEA01"), (36865, b"NSR03")]);
        let found = probe(&disk[..], disk.len() as u64).unwrap().signatures;
        let kinds: Vec<_> = found.iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [Kind::Iso9660, Kind::Udf]);
    }

    #[test]
    fn hostile_bytes_and_short_disks_do_not_panic() {
        let full = vec![0xff; 200_000];
        for cut in [0, 1, 511, 512, 1080, 4095, 65_536, 70_000, 199_999] {
            for claimed in [0, 1, cut as u64, u64::MAX] {
                probe(&full[..cut], claimed).unwrap();
            }
        }
        let mut marks = disk(&[]);
        for row in ROWS {
            for place in row.places {
                marks[*place..*place + row.marks[0].len()].copy_from_slice(row.marks[0]);
            }
        }
        for cut in (0..marks.len()).step_by(997) {
            probe(&marks[..cut], u64::MAX).unwrap();
        }
    }

    /// Makes an image with a tool of this machine; prints why and returns `None` if the tool is
    /// missing.
    fn made_by(tool: &str, options: &[&str]) -> Option<Contents> {
        let fake = crate::tree::fake::Fake::new();
        let path = fake.root.join("image");
        let image = File::create_new(&path).unwrap();
        image.set_len(64 << 20).unwrap();
        let path = path.to_str().unwrap();
        if programs::lacks("recognition of file systems", &[tool]) {
            return None;
        }
        let run = programs::command(tool)
            .args(options)
            .arg(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let status = run.unwrap();
        assert!(status.success(), "{tool}: {status}");
        Some(probe(&File::open(path).unwrap(), 64 << 20).unwrap())
    }

    #[test]
    fn formats_of_real_tools_are_recognized() {
        const ID: &str = "0f0e0d0c-0b0a-0908-0706-050403020100";
        let tools: [(&str, &[&str], Kind); 6] = [
            ("mkfs.ext4", &["-q", "-F", "-U", ID, "-L", "name"], Kind::Ext4),
            ("mkfs.ext2", &["-q", "-F", "-U", ID, "-L", "name"], Kind::Ext2),
            ("mkfs.ext3", &["-q", "-F", "-U", ID, "-L", "name"], Kind::Ext3),
            ("mkswap", &["-U", ID, "-L", "name"], Kind::Swap),
            ("mkfs.btrfs", &["-q", "-U", ID, "-L", "name", "-M"], Kind::Btrfs),
            ("mkfs.f2fs", &["-q", "-U", ID, "-l", "name"], Kind::F2fs),
        ];
        for (tool, options, kind) in tools {
            let Some(contents) = made_by(tool, options) else { continue };
            let [found] = contents.signatures.as_slice() else { panic!("{contents:?}") };
            assert_eq!((found.kind, found.uuid.as_deref()), (kind, Some(ID)));
            assert_eq!((found.label.as_deref(), found.devices), (Some("name"), 1));
        }
    }
}
