//! Identification of a disk: model, serial number, firmware revision, world-wide names.
//!
//! Reads sysfs first, which exists in every initrd, and fills gaps from the udev database.

use crate::transport::Transport;
use crate::tree::Tree;
use std::fmt::Write;
use std::path::Path;

/// The identification of a disk; every part is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hardware {
    /// The model, with the vendor in front where they are apart.
    pub model: Option<String>,
    /// The serial number.
    pub serial: Option<String>,
    /// The firmware's revision.
    pub firmware: Option<String>,
    /// A world-wide name: `naa.` or `eui.` and lower-case hexadecimal digits.
    pub wwn: Option<String>,
    /// The UUID that an NVMe namespace reports.
    pub uuid: Option<[u8; 16]>,
    /// The NGUID that an NVMe namespace reports.
    pub nguid: Option<[u8; 16]>,
    /// The EUI-64 that an NVMe namespace reports.
    pub eui64: Option<[u8; 8]>,
    /// The number of an NVMe namespace: the serial number is that of the whole drive.
    pub namespace: Option<u64>,
}

impl Hardware {
    /// Reads it. `place` is the disk's directory with links resolved, `number` its `MAJOR:MINOR`.
    pub(crate) fn read(tree: &Tree, transport: Transport, place: &Path, number: &str) -> Self {
        let seen = match transport {
            Transport::Mmc => mmc(tree, place),
            _ => scsi(tree, place).or(ata(tree, place)).or(plain(tree, place)),
        };
        let seen = seen.or(Self { serial: usb_serial(tree, transport, place), ..Self::default() });
        seen.or(database(tree, number))
    }

    /// Fills gaps from `other`.
    fn or(self, other: Self) -> Self {
        Self {
            model: self.model.or(other.model),
            serial: self.serial.or(other.serial),
            firmware: self.firmware.or(other.firmware),
            wwn: self.wwn.or(other.wwn),
            uuid: self.uuid.or(other.uuid),
            nguid: self.nguid.or(other.nguid),
            eui64: self.eui64.or(other.eui64),
            namespace: self.namespace.or(other.namespace),
        }
    }
}

/// Reads plain attributes, as NVMe and virtio have them.
fn plain(tree: &Tree, place: &Path) -> Hardware {
    let device = |name: &str| tree.attribute(place.join("device").join(name));
    let own = |name: &str| tree.attribute(place.join(name));
    let wwn = own("wwid").or_else(|| device("wwid")).and_then(|name| world_wide(&name));
    Hardware {
        model: device("model"),
        serial: device("serial").or_else(|| own("serial")),
        firmware: device("firmware_rev").or_else(|| device("rev")),
        wwn,
        uuid: own("uuid").and_then(|text| identifier(&text)),
        nguid: own("nguid").and_then(|text| identifier(&text)),
        eui64: own("eui").and_then(|text| identifier(&text)).filter(is_global),
        namespace: tree.number(place.join("nsid")),
    }
}

fn mmc(tree: &Tree, place: &Path) -> Hardware {
    let device = |name: &str| tree.attribute(place.join("device").join(name));
    let serial = device("serial").map(|text| text.trim_start_matches("0x").to_owned());
    Hardware { model: device("name"), serial, firmware: device("fwrev"), ..Hardware::default() }
}

/// Parses INQUIRY data: vendor and product, unit serial number (page 80h), identification (page
/// 83h).
fn scsi(tree: &Tree, place: &Path) -> Hardware {
    let device = place.join("device");
    let Some(vendor) = tree.attribute(device.join("vendor")) else { return Hardware::default() };
    let model = tree.attribute(device.join("model"));
    let page = |name: &str| tree.bytes(device.join(name)).unwrap_or_default();
    // With the vendor "ATA" the product is a model cut to 16 characters: page 89h has all of it.
    let model = match vendor.as_str() {
        "ATA" => ata(tree, place).model.or(model),
        // PCI and virtio devices have a number there.
        number if number.starts_with("0x") => None,
        vendor => model.map(|model| format!("{vendor} {model}")),
    };
    Hardware {
        model,
        serial: unit_serial(&page("vpd_pg80")),
        wwn: unit_name(&page("vpd_pg83")),
        ..Hardware::default()
    }
}

/// Page 89h: IDENTIFY DEVICE data at byte 60 (SAT-5 §12.4.2), its strings in swapped pairs (ACS-5 §7.13).
fn ata(tree: &Tree, place: &Path) -> Hardware {
    let Ok(page) = tree.bytes(place.join("device/vpd_pg89")) else { return Hardware::default() };
    let words = |from: usize, to: usize| swapped(page.get(60 + 2 * from..60 + 2 * to)?);
    Hardware {
        serial: words(10, 20),
        firmware: words(23, 27),
        model: words(27, 47),
        ..Hardware::default()
    }
}

fn swapped(pairs: &[u8]) -> Option<String> {
    let bytes: Vec<u8> =
        pairs.chunks_exact(2).flat_map(|pair| pair.iter().rev().copied()).collect();
    text(&bytes)
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// Page 80h: four bytes of header (the last two the length), then characters (SPC-5 §7.7.19).
fn unit_serial(page: &[u8]) -> Option<String> {
    let (header, rest) = page.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    text(rest.get(..length).unwrap_or(rest))
}

/// Page 83h: of the designators of the logical unit the longest NAA one, else the longest EUI-64 one (SPC-5 §7.7.6).
fn unit_name(page: &[u8]) -> Option<String> {
    let mut rest = page.get(4..)?;
    let mut best: Option<(bool, &[u8])> = None;
    while let Some(&[_, kind, _, length]) = rest.first_chunk::<4>() {
        let Some(designator) = rest.get(4..4 + usize::from(length)) else { break };
        rest = rest.get(4 + usize::from(length)..).unwrap_or_default();
        let of_unit = kind & 0x30 == 0;
        let naa = kind & 0x0f == 3;
        let better = best.is_none_or(|(n, old)| (naa, designator.len()) > (n, old.len()));
        if of_unit && (naa || kind & 0x0f == 2) && better && is_real(designator) {
            best = Some((naa, designator));
        }
    }
    best.map(|(naa, bytes)| format!("{}.{}", if naa { "naa" } else { "eui" }, hex(bytes)))
}

/// Rejects placeholders: all zeroes or all ones.
fn is_real(bytes: &[u8]) -> bool {
    !bytes.iter().all(|byte| *byte == 0) && !bytes.iter().all(|byte| *byte == 0xff)
}

/// Accepts `naa.…` and `eui.…`; other forms (`t10.`, `nvme.`) are not world-wide names.
fn world_wide(name: &str) -> Option<String> {
    let digits = name.strip_prefix("naa.").or_else(|| name.strip_prefix("eui."))?;
    let bytes = unhex(digits)?;
    let local = <[u8; 8]>::try_from(bytes.as_slice()).is_ok_and(|eui64| !is_global(&eui64));
    let local = local && name.starts_with("eui.");
    let fits = matches!(bytes.len(), 8 | 16) && is_real(&bytes);
    (fits && !local).then(|| name.to_ascii_lowercase())
}

/// Returns whether an EUI-64 is globally unique: the second bit marks it as locally administered
/// (IEEE 802 §8.2.2). QEMU assigns the same local ones in all virtual machines.
fn is_global(eui64: &[u8; 8]) -> bool {
    eui64[0] & 2 == 0
}

/// Parses `N` hexadecimal bytes, with dashes or blanks between them; `None` for zeroes.
fn identifier<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits: String = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let bytes = <[u8; N]>::try_from(unhex(&digits)?).ok()?;
    is_real(&bytes).then_some(bytes)
}

/// Decodes hexadecimal digits of either case.
pub(crate) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

/// Encodes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the serial number of the disk's USB device, for disks that do not report one.
fn usb_serial(tree: &Tree, transport: Transport, place: &Path) -> Option<String> {
    if transport != Transport::Usb {
        return None;
    }
    let device = place.ancestors().find(|place| tree.path(place.join("idVendor")).exists())?;
    tree.attribute(device.join("serial"))
}

/// Reads the udev database, if udev runs.
fn database(tree: &Tree, number: &str) -> Hardware {
    let text = tree.text(format!("run/udev/data/b{number}")).unwrap_or_default();
    let value = |key: &str| {
        let mut lines = text.lines();
        let value =
            lines.find_map(|line| line.strip_prefix("E:")?.strip_prefix(key)?.strip_prefix('='))?;
        (!value.is_empty()).then(|| value.trim().to_owned())
    };
    let wwn = value("ID_WWN_WITH_EXTENSION").or_else(|| value("ID_WWN"));
    Hardware {
        model: value("ID_MODEL").map(|model| model.replace('_', " ").trim().to_owned()),
        serial: value("ID_SERIAL_SHORT"),
        firmware: value("ID_REVISION"),
        wwn: wwn.and_then(|wwn| world_wide(&wwn.replacen("0x", "naa.", 1))),
        ..Hardware::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    const PLACE: &str = "sys/devices/pci0/usb1/1-1/block/sdb";

    fn read(fake: &Fake, transport: Transport) -> Hardware {
        Hardware::read(&fake.tree(), transport, Path::new(PLACE), "8:16")
    }

    fn file(fake: &Fake, name: &str, content: impl AsRef<[u8]>) {
        fake.file(&format!("{PLACE}/{name}"), content);
    }

    #[test]
    fn nvme_attributes_are_read() {
        let fake = Fake::new();
        file(&fake, "device/model", "Samsung SSD 990 PRO 1TB                 \n");
        file(&fake, "device/serial", "S6Z1NF0W123456      \n");
        file(&fake, "device/firmware_rev", "0B2QJXD7\n");
        file(&fake, "wwid", "eui.0025384B31404c21\n");
        file(&fake, "eui", "00 25 38 4b 31 40 4c 21\n");
        file(&fake, "nguid", "00000000-0000-0000-0000-000000000000\n");
        let seen = read(&fake, Transport::Nvme);
        assert_eq!(seen.model.as_deref(), Some("Samsung SSD 990 PRO 1TB"));
        assert_eq!(seen.serial.as_deref(), Some("S6Z1NF0W123456"));
        assert_eq!(seen.firmware.as_deref(), Some("0B2QJXD7"));
        assert_eq!(seen.wwn.as_deref(), Some("eui.0025384b31404c21"));
        assert_eq!(seen.eui64, Some([0, 0x25, 0x38, 0x4b, 0x31, 0x40, 0x4c, 0x21]));
        assert_eq!((seen.nguid, seen.uuid), (None, None));
    }

    #[test]
    fn r58_shared_identifier_of_qemu_is_ignored() {
        let fake = Fake::new();
        file(&fake, "device/model", "QEMU NVMe Ctrl\n");
        file(&fake, "wwid", "eui.5254000000000001\n");
        file(&fake, "eui", "52 54 00 00 00 00 00 01\n");
        let seen = read(&fake, Transport::Nvme);
        assert_eq!((seen.wwn, seen.eui64), (None, None));
    }

    #[test]
    fn ata_model_is_read_from_page_89h() {
        let fake = Fake::new();
        file(&fake, "device/vendor", "ATA     \n");
        file(&fake, "device/model", "WDC WD40EFRX-68N\n");
        file(&fake, "device/rev", "0A82\n");
        let mut page = vec![0; 572];
        let mut put = |word: usize, text: &str| {
            let pairs = text.as_bytes().chunks(2).flat_map(|pair| [pair[1], pair[0]]);
            let at = 60 + 2 * word;
            page.splice(at..at + text.len(), pairs);
        };
        put(10, "     WD-WCC1K2345678");
        put(27, "WDC WD40EFRX-68N32N0    ");
        file(&fake, "device/vpd_pg89", &page);
        let seen = read(&fake, Transport::Sata);
        assert_eq!(seen.serial.as_deref(), Some("WD-WCC1K2345678"));
        assert_eq!(seen.model.as_deref(), Some("WDC WD40EFRX-68N32N0"));
        assert_eq!(seen.firmware.as_deref(), Some("0A82"));
    }

    #[test]
    fn scsi_inquiry_data_is_parsed() {
        let fake = Fake::new();
        file(&fake, "device/vendor", "SEAGATE \n");
        file(&fake, "device/model", "ST4000NM0023    \n");
        file(&fake, "device/vpd_pg80", b"\x00\x80\x00\x08Z1Z0ABCDjunk");
        let mut page = vec![0, 0x83, 0, 0];
        page.extend_from_slice(&[0x01, 0x13, 0, 8, 0x50, 0, 0, 0, 0, 0, 0, 9]); // of the port
        page.extend_from_slice(&[0x01, 0x02, 0, 8, 0, 0x25, 0x38, 1, 2, 3, 4, 5]);
        page.extend_from_slice(&[0x01, 0x03, 0, 8, 0x50, 0, 0xc5, 0, 0x56, 0x78, 0x9a, 0xbc]);
        file(&fake, "device/vpd_pg83", &page);
        let seen = read(&fake, Transport::Sas);
        assert_eq!(seen.model.as_deref(), Some("SEAGATE ST4000NM0023"));
        assert_eq!(seen.serial.as_deref(), Some("Z1Z0ABCD"));
        assert_eq!(seen.wwn.as_deref(), Some("naa.5000c50056789abc"));
    }

    #[test]
    fn page_with_wrong_length_does_not_panic() {
        assert_eq!(unit_serial(&[0, 0x80, 0xff, 0xff, b'A']).as_deref(), Some("A"));
        assert_eq!(unit_serial(&[0, 0x80]), None);
        assert_eq!(unit_name(&[0, 0x83, 0, 9, 1, 3, 0, 200, 1]), None);
        assert_eq!(unit_name(&[0, 0x83, 0, 12, 1, 3, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn virtio_mmc_and_usb_attributes_are_read() {
        let fake = Fake::new();
        file(&fake, "serial", "virtual-1\n");
        file(&fake, "device/vendor", "0x1af4\n");
        let seen = read(&fake, Transport::Virtio);
        assert_eq!((seen.serial.as_deref(), seen.model), (Some("virtual-1"), None));

        let fake = Fake::new();
        file(&fake, "device/name", "SD32G\n");
        file(&fake, "device/serial", "0x12ab34cd\n");
        let seen = read(&fake, Transport::Mmc);
        assert_eq!(seen.serial.as_deref(), Some("12ab34cd"));
        assert_eq!(seen.model.as_deref(), Some("SD32G"));

        let fake = Fake::new();
        fake.file("sys/devices/pci0/usb1/1-1/idVendor", "0781")
            .file("sys/devices/pci0/usb1/1-1/serial", "4C53");
        file(&fake, "device/vendor", "SanDisk\n");
        file(&fake, "device/model", "Ultra\n");
        let seen = read(&fake, Transport::Usb);
        assert_eq!(seen.serial.as_deref(), Some("4C53"));
        assert_eq!(seen.model.as_deref(), Some("SanDisk Ultra"));
    }

    #[test]
    fn udev_database_fills_gaps() {
        let fake = Fake::new();
        let lines = "S:disk/by-id/x\nE:ID_MODEL=My_Disk\nE:ID_SERIAL_SHORT=S1\n\
            E:ID_WWN=0x5000c50056789abc\nE:ID_REVISION=\n";
        fake.file("run/udev/data/b8:16", lines);
        let seen = read(&fake, Transport::Sata);
        assert_eq!((seen.model.as_deref(), seen.serial.as_deref()), (Some("My Disk"), Some("S1")));
        assert_eq!((seen.wwn.as_deref(), seen.firmware), (Some("naa.5000c50056789abc"), None));
    }
}
