//! The descriptors and directories of an ISO 9660 medium (ECMA-119) whose files are those of the EFI
//! system partition, each in one piece. It starts by El Torito 1.0: with BIOS by GRUB's core image,
//! with UEFI by the EFI system partition (UEFI 2.10 §13.3.2).

use crate::error::Error;
use crate::files::{Files, parent};
use std::collections::BTreeMap;

/// Bytes before the first descriptor, which belong to the partition table.
pub(crate) const START: usize = 16 * SECTOR;
const SECTOR: usize = 2048;
const SECTOR_U32: u32 = 2048;
/// Sectors of the descriptors, of the path tables and of the boot catalogue.
const FIRST: u32 = 16;
const CATALOGUE: u32 = FIRST + 3;
const PATHS: [u32; 2] = [FIRST + 4, FIRST + 5];
const FOLDERS: u32 = FIRST + 6;
/// The first sector behind all of that: the medium has one mebibyte for it.
const END: u32 = 512;
const END_BYTES: u64 = 1 << 20;

const NAME: &[u8] = b"STORAGETM";
/// Midnight, 1 January 1980, as a directory has it.
const DATE: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];
/// The same as a descriptor has it, and no date.
const LONG_DATE: &[u8; 17] = b"1980010100000000\0";
const NO_DATE: &[u8; 17] = b"0000000000000000\0";
const IS_FOLDER: u8 = 2;
/// Sectors of 512 bytes of GRUB's core image that BIOS loads.
const BIOS_LOADS: u16 = 4;
const PLATFORM_BIOS: u8 = 0;
const PLATFORM_EFI: u8 = 0xef;

/// A medium to be described. Offsets are in bytes.
pub(crate) struct Medium<'a> {
    pub(crate) files: &'a Files,
    /// Returns the offset of a file that is not empty.
    pub(crate) place: &'a dyn Fn(&str) -> Option<u64>,
    /// Size of the medium.
    pub(crate) bytes: u64,
    /// The EFI system partition.
    pub(crate) efi: u64,
    /// GRUB's core image for BIOS.
    pub(crate) bios: Option<u64>,
}

/// A directory.
#[derive(Debug, Default)]
struct Folder<'a> {
    /// Names and paths of its directories.
    folders: Vec<(&'a str, &'a str)>,
    /// Names, offsets and lengths of its files.
    files: Vec<(&'a str, u32, u32)>,
    sector: u32,
    bytes: u32,
}

impl Medium<'_> {
    /// All of it from the offset `START` on.
    ///
    /// # Errors
    /// Fails if the medium or a directory is too large.
    pub(crate) fn descriptors(&self) -> Result<Vec<u8>, Error> {
        let folders = self.folders()?;
        let order = path_order(&folders);
        let [little, big] = [false, true].map(|big| path_table(&folders, &order, big));
        let root = folders.get("").ok_or(Error::TooLarge)?;
        let length = u32::try_from(little.len()).map_err(|_| Error::TooLarge)?;
        let mut bytes = self.primary(root, length)?;
        bytes.extend(boot_record());
        bytes.extend(padded(b"\xffCD001\x01".to_vec()));
        bytes.extend(self.catalogue()?);
        bytes.extend(padded(little));
        bytes.extend(padded(big));
        for (path, folder) in &folders {
            bytes.extend(records(folder, folders.get(parent(path)).unwrap_or(folder), &folders));
        }
        let end = usize::try_from(END).map_err(|_| Error::TooLarge)?.saturating_mul(SECTOR);
        if bytes.len().saturating_add(START) > end { Err(Error::TooLarge) } else { Ok(bytes) }
    }

    /// The directories by path, with their places.
    fn folders(&self) -> Result<BTreeMap<&str, Folder<'_>>, Error> {
        let mut folders = BTreeMap::new();
        folders.insert("", Folder::default());
        for (path, content) in self.files.iter() {
            let offset = (self.place)(path).unwrap_or(END_BYTES);
            let length = u32::try_from(content.len()).map_err(|_| Error::TooLarge)?;
            let file = (name(path), sector(offset)?, length);
            add(&mut folders, parent(path)).files.push(file);
        }
        let mut next = FOLDERS;
        for folder in folders.values_mut() {
            let names = folder.folders.iter().map(|(name, _)| name.len());
            let files = folder.files.iter().map(|(name, ..)| file_name(name).len());
            folder.sector = next;
            folder.bytes = space(names.chain(files))?;
            next = next.saturating_add(folder.bytes / SECTOR_U32);
        }
        Ok(folders)
    }

    /// Primary volume descriptor (§8.4).
    fn primary(&self, root: &Folder<'_>, paths: u32) -> Result<Vec<u8>, Error> {
        let mut bytes = b"\x01CD001\x01\0".to_vec();
        bytes.resize(40, b' ');
        bytes.extend(NAME);
        bytes.resize(72, b' ');
        bytes.resize(80, 0);
        bytes.extend(both(
            u32::try_from(self.bytes / u64::from(SECTOR_U32)).map_err(|_| Error::TooLarge)?,
        ));
        bytes.resize(120, 0);
        for word in [1, 1, 2048] {
            bytes.extend(both_halves(word));
        }
        bytes.extend(both(paths));
        let [little, big] = PATHS;
        bytes.extend(little.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(big.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(record(&[0], root.sector, root.bytes, IS_FOLDER));
        // Identifiers of publisher and the like.
        bytes.resize(813, b' ');
        for date in [LONG_DATE, LONG_DATE, NO_DATE, LONG_DATE] {
            bytes.extend(date);
        }
        bytes.extend([1, 0]);
        Ok(padded(bytes))
    }

    /// Boot catalogue (El Torito §2.0).
    fn catalogue(&self) -> Result<Vec<u8>, Error> {
        let efi = sector(self.efi)?;
        let mut bytes = Vec::new();
        // The count of a partition of the size of its medium is 0.
        match self.bios {
            Some(bios) => {
                bytes.extend(validation(PLATFORM_BIOS));
                bytes.extend(boot_entry(sector(bios)?, BIOS_LOADS));
                bytes.extend([0x91, PLATFORM_EFI, 1, 0]);
                bytes.resize(96, 0);
                bytes.extend(boot_entry(efi, 0));
            }
            None => {
                bytes.extend(validation(PLATFORM_EFI));
                bytes.extend(boot_entry(efi, 0));
            }
        }
        Ok(padded(bytes))
    }
}

/// Adds a directory and its parents.
fn add<'a, 'b>(
    folders: &'b mut BTreeMap<&'a str, Folder<'a>>,
    path: &'a str,
) -> &'b mut Folder<'a> {
    if !folders.contains_key(path) {
        add(folders, parent(path)).folders.push((name(path), path));
    }
    folders.entry(path).or_default()
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// A name in its on-disk form (§7.5): with a point and a version.
fn file_name(name: &str) -> Vec<u8> {
    let point = if name.contains('.') { "" } else { "." };
    format!("{name}{point};1").to_ascii_uppercase().into_bytes()
}

/// Bytes of a directory with names of these lengths, in whole sectors, which no record crosses.
fn space(lengths: impl Iterator<Item = usize>) -> Result<u32, Error> {
    let mut bytes = 0_usize;
    for length in [1, 1].into_iter().chain(lengths) {
        bytes = after(bytes, record_length(length));
    }
    u32::try_from(bytes.next_multiple_of(SECTOR)).map_err(|_| Error::TooLarge)
}

/// The end of a record that is written at `bytes` or in the next sector.
fn after(bytes: usize, length: usize) -> usize {
    let left = bytes.next_multiple_of(SECTOR).saturating_sub(bytes);
    let gap = if left < length { left } else { 0 };
    bytes.saturating_add(gap).saturating_add(length)
}

fn record_length(name: usize) -> usize {
    name.saturating_add(33).next_multiple_of(2)
}

/// Directory record (§9.1).
fn record(name: &[u8], sector: u32, bytes: u32, flags: u8) -> Vec<u8> {
    let length = record_length(name.len());
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    let mut record = vec![byte(length), 0];
    record.extend(both(sector));
    record.extend(both(bytes));
    record.extend(DATE);
    record.extend([flags, 0, 0]);
    record.extend(both_halves(1));
    record.push(byte(name.len()));
    record.extend(name);
    record.resize(length, 0);
    record
}

/// The records of a directory, in the order of their names.
fn records(
    folder: &Folder<'_>,
    above: &Folder<'_>,
    folders: &BTreeMap<&str, Folder<'_>>,
) -> Vec<u8> {
    let mut named = BTreeMap::new();
    for (name, path) in &folder.folders {
        let (sector, bytes) = folders.get(path).map_or((0, 0), |it| (it.sector, it.bytes));
        let name = name.to_ascii_uppercase().into_bytes();
        named.insert(name.clone(), record(&name, sector, bytes, IS_FOLDER));
    }
    for (name, sector, bytes) in &folder.files {
        let name = file_name(name);
        named.insert(name.clone(), record(&name, *sector, *bytes, 0));
    }
    let mut bytes = record(&[0], folder.sector, folder.bytes, IS_FOLDER);
    bytes.extend(record(&[1], above.sector, above.bytes, IS_FOLDER));
    for record in named.values() {
        let end = after(bytes.len(), record.len());
        bytes.resize(end.saturating_sub(record.len()), 0);
        bytes.extend(record);
    }
    padded(bytes)
}

/// The directories in the order of a path table (§6.9.1): by depth, then by parent.
fn path_order<'a>(folders: &BTreeMap<&'a str, Folder<'a>>) -> Vec<&'a str> {
    let mut order = vec![""];
    let mut next = 0;
    while let Some(path) = order.get(next) {
        let inside = folders.get(path).map(|folder| folder.folders.clone()).unwrap_or_default();
        order.extend(inside.iter().map(|(_, path)| path));
        next = next.saturating_add(1);
    }
    order
}

/// Path table (§9.4).
fn path_table(folders: &BTreeMap<&str, Folder<'_>>, order: &[&str], big: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in order {
        let name = if path.is_empty() { "\0" } else { name(path) }.to_ascii_uppercase();
        let sector = folders.get(path).map_or(0, |folder| folder.sector);
        let above = order.iter().position(|other| *other == parent(path)).unwrap_or(0);
        let above = u16::try_from(above.saturating_add(1)).unwrap_or(1);
        bytes.extend([u8::try_from(name.len()).unwrap_or(u8::MAX), 0]);
        if big {
            bytes.extend(sector.to_be_bytes());
            bytes.extend(above.to_be_bytes());
        } else {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(above.to_le_bytes());
        }
        bytes.extend(name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(2), 0);
    }
    bytes
}

/// Boot record volume descriptor (El Torito, figure 7).
fn boot_record() -> Vec<u8> {
    let mut bytes = b"\0CD001\x01EL TORITO SPECIFICATION".to_vec();
    bytes.resize(71, 0);
    bytes.extend(CATALOGUE.to_le_bytes());
    padded(bytes)
}

/// Validation entry (figure 2), whose 16-bit words add up to 0.
fn validation(platform: u8) -> Vec<u8> {
    let mut bytes = vec![1, platform, 0, 0];
    bytes.extend(NAME);
    bytes.resize(28, 0);
    bytes.extend([0, 0, 0x55, 0xaa]);
    let words = bytes.chunks_exact(2).filter_map(|word| word.try_into().ok());
    let sum = words.map(u16::from_le_bytes).fold(0, u16::wrapping_add);
    bytes.splice(28..30, 0_u16.wrapping_sub(sum).to_le_bytes());
    bytes
}

/// A bootable entry without emulation (figures 3 and 5).
fn boot_entry(sector: u32, count: u16) -> Vec<u8> {
    let mut bytes = vec![0x88, 0, 0, 0, 0, 0];
    bytes.extend(count.to_le_bytes());
    bytes.extend(sector.to_le_bytes());
    bytes.resize(32, 0);
    bytes
}

fn sector(offset: u64) -> Result<u32, Error> {
    u32::try_from(offset / u64::from(SECTOR_U32)).map_err(|_| Error::TooLarge)
}

/// A number in both byte orders (§7.3.3, §7.2.3).
fn both(number: u32) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn both_halves(number: u16) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use crate::bios::Bios;
    use crate::disk::{Contents, Disk};
    use crate::files::Files;

    fn image() -> (Files, Vec<u8>) {
        let mut files = Files::default();
        files.add("EFI/BOOT/BOOTX64.EFI", vec![1; 5000]);
        files.add("EFI/debian/grub.cfg", b"linux".to_vec());
        files.add("boot/vmlinuz", vec![2; 100_000]);
        files.add("empty", Vec::new());
        for number in 0..99 {
            files.add(&format!("many/{number}"), vec![number; 3]);
        }
        let bios = Bios { boot: vec![0x90; 512], core: vec![3; 60_000] };
        let contents = Contents { files: files.clone(), bios: Some(bios), iso: true };
        (files, Disk::image(&contents).unwrap().whole())
    }

    #[test]
    fn another_program_reads_files_and_boot_entries() {
        if programs::lacks("an ISO 9660 medium", &["xorriso"]) {
            return;
        }
        let folder = std::env::temp_dir().join(format!("storagetm-iso-{}", std::process::id()));
        let (files, bytes) = image();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a.iso"), bytes).unwrap();
        let run = programs::command("xorriso")
            .args(["-indev", "a.iso", "-report_el_torito", "plain", "-osirrox", "on"])
            .args(["-extract", "/", "out"])
            .current_dir(&folder)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        for (path, content) in files.iter() {
            let path = path.to_ascii_uppercase();
            let read = std::fs::read(folder.join("out").join(&path));
            assert!(read.unwrap() == content, "{path}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        for entry in ["BIOS  y   none", "UEFI  y   none"] {
            assert!(told.contains(entry), "{told}");
        }
    }

    #[test]
    fn sums_of_catalogue_and_core_image_are_right() {
        let (_, bytes) = image();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let catalogue = word(17 * 2048 + 71) * 2048;
        let entry = &bytes[catalogue..catalogue + 32];
        let words = entry.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        assert_eq!(words.fold(0, u16::wrapping_add), 0);
        let core = word(catalogue + 32 + 8) * 2048;
        assert_eq!((word(core + 8), word(core + 12), word(core + 16)), (16, core / 2048, 60_000));
        let summed = bytes[core + 64..core + 60_000].chunks(4);
        let sum = summed.map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        assert_eq!(word(core + 20), sum.fold(0, u32::wrapping_add) as usize);
    }
}
