//! GRUB for machines with BIOS: the code of the first sector, and its core image. The places that
//! are filled in are those that `xorriso --grub2-mbr --grub2-boot-info -boot-info-table` fills in
//! for `grub-mkrescue`.

use crate::error::Error;

/// Bytes of a sector of BIOS.
const SECTOR: u64 = 512;
/// Sectors of `cdboot.img`, which only CDs start: disks start behind it.
const CD_SECTORS: u64 = 4;
/// Where the first sector of the core image is stored: for `boot_hybrid.img` in the first sector,
/// for `diskboot.img` in the image itself.
const AT_BOOT: usize = 432;
const AT_DISKBOOT: usize = 2548;
/// Where El Torito's boot information table is, and where its checksum begins.
const AT_TABLE: usize = 8;
const AT_SUMMED: usize = 64;
/// Bytes of a sector of a CD, and the sector of the volume descriptor.
const CD_SECTOR: u64 = 2048;
const DESCRIPTOR: u32 = 16;

/// GRUB's parts.
#[derive(Debug, Clone)]
pub struct Bios {
    /// `boot_hybrid.img`.
    pub boot: Vec<u8>,
    /// A core image of the format `i386-pc-eltorito`.
    pub core: Vec<u8>,
}

impl Bios {
    /// The code of the first sector, for a core image at this offset of the disk.
    pub(crate) fn boot_at(&self, core: u64) -> Vec<u8> {
        let mut code = self.boot.clone();
        code.truncate(AT_BOOT);
        code.resize(AT_BOOT, 0);
        code.extend((core / SECTOR).saturating_add(CD_SECTORS).to_le_bytes());
        code
    }

    /// The core image, for this offset of the disk.
    ///
    /// # Errors
    /// Fails if it is too short.
    pub(crate) fn core_at(&self, core: u64) -> Result<Vec<u8>, Error> {
        let mut image = self.core.clone();
        image.resize(image.len().next_multiple_of(4), 0);
        let second = (core / SECTOR).saturating_add(CD_SECTORS).saturating_add(1);
        put(&mut image, AT_DISKBOOT, &second.to_le_bytes())?;
        let word = |number: u64| u32::try_from(number).map_err(|_| Error::NoCore);
        let summed = image.get(AT_SUMMED..).unwrap_or_default();
        let words = summed.chunks_exact(4).filter_map(|word| word.try_into().ok());
        let sum = words.map(u32::from_le_bytes).fold(0, u32::wrapping_add);
        let table = [DESCRIPTOR, word(core / CD_SECTOR)?, word(image.len() as u64)?, sum];
        for (number, value) in table.into_iter().enumerate() {
            put(
                &mut image,
                AT_TABLE.saturating_add(number.saturating_mul(4)),
                &value.to_le_bytes(),
            )?;
        }
        Ok(image)
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) -> Result<(), Error> {
    let place = image.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
    place.ok_or(Error::NoCore)?.copy_from_slice(bytes);
    Ok(())
}
