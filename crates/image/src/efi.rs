//! A unified kernel image (UAPI group specification): a kernel, an initramfs and a command line in
//! one EFI program. Firmware starts the stub, which finds the rest in its own sections. Not signed.

use crate::architecture::Architecture;
use crate::error::Error;
use crate::kernel::Kernel;
use object::LittleEndian as LE;
use object::pe::{
    IMAGE_DIRECTORY_ENTRY_SECURITY, IMAGE_SCN_CNT_CODE, IMAGE_SCN_CNT_INITIALIZED_DATA,
    IMAGE_SCN_MEM_EXECUTE, IMAGE_SCN_MEM_READ, ImageNtHeaders64, ImageSectionHeader,
};
use object::read::pe::PeFile;

/// Offsets from the PE signature (PE Format, "COFF File Header" and "Optional Header"). The
/// optional header starts at 24.
mod at {
    pub(super) const SECTIONS: usize = 6;
    pub(super) const SIZE_OF_DATA: usize = 24 + 8;
    pub(super) const SIZE_OF_IMAGE: usize = 24 + 56;
    pub(super) const CHECKSUM: usize = 24 + 64;
    pub(super) const DIRECTORIES: usize = 24 + 112;
}

/// Size of a section header.
const SECTION: usize = 40;

/// Parts of the image.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The stub: systemd's `linuxx64.efi.stub`, or `linuxaa64.efi.stub` for a kernel of ARM64.
    pub stub: &'a [u8],
    pub kernel: &'a Kernel<'a>,
    pub initramfs: &'a [u8],
    pub command_line: &'a str,
    /// Name for boot loaders, in the format of os-release(5).
    pub os_release: &'a str,
}

/// Makes the EFI program.
///
/// # Errors
/// Fails if the stub is invalid or has no room in its header, or if the result would exceed 4 GiB.
pub fn make(parts: &Parts<'_>) -> Result<Vec<u8>, Error> {
    let mut image = Image::open(parts.stub, parts.kernel.architecture)?;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| Error::TooLarge);
    let data = [
        (b".osrel\0\0", parts.os_release.as_bytes()),
        (b".cmdline", parts.command_line.as_bytes()),
        (b".uname\0\0", parts.kernel.release.as_bytes()),
        (b".initrd\0", parts.initramfs),
    ];
    image.check_room(data.len().saturating_add(1))?;
    for (name, bytes) in data {
        let flags = IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ;
        image.add(name, bytes, length(bytes)?, flags.0)?;
    }
    // The kernel must be last: older stubs start it in place, and it unpacks itself over what
    // follows.
    let kernel = parts.kernel;
    let flags = IMAGE_SCN_CNT_CODE | IMAGE_SCN_MEM_EXECUTE | IMAGE_SCN_MEM_READ;
    image.add(b".linux\0\0", kernel.bytes, length(kernel.bytes)?.max(kernel.memory), flags.0)?;
    image.finish()
}

/// An EFI program that sections are added to.
#[derive(Debug)]
struct Image {
    bytes: Vec<u8>,
    /// Offset of the PE signature.
    header: usize,
    /// Offset of the next section header, and end of the headers.
    next: usize,
    headers_end: usize,
    sections: u16,
    /// Address of the next section in memory.
    address: u32,
    memory_alignment: u32,
    file_alignment: u32,
    data: u32,
}

impl Image {
    fn open(stub: &[u8], architecture: Architecture) -> Result<Self, Error> {
        let file = PeFile::<ImageNtHeaders64>::parse(stub).map_err(|_| Error::NoStub)?;
        match Architecture::of_efi(stub) {
            Some(own) if own == architecture => {}
            Some(_) => return Err(Error::ForeignStub(architecture)),
            None => return Err(Error::NoStub),
        }
        let optional = &file.nt_headers().optional_header;
        let offset = file.dos_header().nt_headers_offset();
        let header = usize::try_from(offset).map_err(|_| Error::NoStub)?;
        let coff = &file.nt_headers().file_header;
        let table = usize::from(coff.size_of_optional_header.get(LE)).saturating_add(24);
        let sections = coff.number_of_sections.get(LE);
        let used = usize::from(sections).saturating_mul(SECTION);
        if is_image(&file) {
            return Err(Error::NoStub);
        }
        let bytes = unsigned(stub, &file)?;
        let (first, end) = taken(&file);
        let said = usize::try_from(optional.size_of_headers.get(LE)).unwrap_or(0);
        let mut image = Self {
            bytes,
            header,
            next: header.saturating_add(table).saturating_add(used),
            headers_end: said.min(first),
            sections,
            address: optional.size_of_image.get(LE).max(end),
            memory_alignment: alignment(optional.section_alignment.get(LE))?,
            file_alignment: alignment(optional.file_alignment.get(LE))?,
            data: optional.size_of_initialized_data.get(LE),
        };
        image.pad()?;
        Ok(image)
    }

    fn check_room(&self, sections: usize) -> Result<(), Error> {
        let end = self.next.saturating_add(sections.saturating_mul(SECTION));
        if end > self.headers_end { Err(Error::FullStub(sections)) } else { Ok(()) }
    }

    /// Adds a section that takes `memory` bytes when loaded.
    fn add(
        &mut self,
        name: &[u8; 8],
        content: &[u8],
        memory: u32,
        flags: u32,
    ) -> Result<(), Error> {
        let offset = u32::try_from(self.bytes.len()).map_err(|_| Error::TooLarge)?;
        let address = aligned(self.address, self.memory_alignment)?;
        self.bytes.extend_from_slice(content);
        self.pad()?;
        let end = u32::try_from(self.bytes.len()).map_err(|_| Error::TooLarge)?;
        let size = end.saturating_sub(offset);
        let mut header = name.to_vec();
        for word in [memory, address, size, offset, 0, 0, 0, flags] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        self.put(self.next, &header)?;
        self.next = self.next.saturating_add(SECTION);
        self.sections = self.sections.saturating_add(1);
        self.address = address.checked_add(memory.max(1)).ok_or(Error::TooLarge)?;
        self.data = self.data.saturating_add(size);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>, Error> {
        let memory = aligned(self.address, self.memory_alignment)?;
        let sections = self.sections.to_le_bytes();
        self.put(self.header.saturating_add(at::SECTIONS), &sections)?;
        let words = [
            (at::SIZE_OF_DATA, self.data),
            (at::SIZE_OF_IMAGE, memory),
            // Not checked by firmware for programs; 0 means none.
            (at::CHECKSUM, 0),
        ];
        for (place, word) in words {
            self.put(self.header.saturating_add(place), &word.to_le_bytes())?;
        }
        Ok(self.bytes)
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        let place = self.bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes.len()));
        place.ok_or(Error::NoStub)?.copy_from_slice(bytes);
        Ok(())
    }

    fn pad(&mut self) -> Result<(), Error> {
        let length = u32::try_from(self.bytes.len()).map_err(|_| Error::TooLarge)?;
        let length = aligned(length, self.file_alignment)?;
        self.bytes.resize(usize::try_from(length).map_err(|_| Error::TooLarge)?, 0);
        Ok(())
    }
}

/// Whether the stub is already a complete image, whose own kernel would be started.
fn is_image(file: &PeFile<'_, ImageNtHeaders64>) -> bool {
    file.section_table().iter().any(|section| section.name == *b".linux\0\0")
}

/// Offset of the first section in the file, and end of the last one in memory.
fn taken(file: &PeFile<'_, ImageNtHeaders64>) -> (usize, u32) {
    let sections = file.section_table();
    let offsets = sections.iter().map(|section| section.pointer_to_raw_data.get(LE));
    let first = offsets.filter(|&offset| offset > 0).min();
    let end = |section: &ImageSectionHeader| {
        section.virtual_address.get(LE).saturating_add(section.virtual_size.get(LE))
    };
    let end = sections.iter().map(end).max().unwrap_or(0);
    (first.and_then(|offset| usize::try_from(offset).ok()).unwrap_or(usize::MAX), end)
}

/// The stub without its signature, which would be invalid afterwards.
fn unsigned(stub: &[u8], file: &PeFile<'_, ImageNtHeaders64>) -> Result<Vec<u8>, Error> {
    let mut bytes = stub.to_vec();
    let Some(signature) = file.data_directory(IMAGE_DIRECTORY_ENTRY_SECURITY) else {
        return Ok(bytes);
    };
    // Unlike other directories this one contains a file offset.
    let offset = usize::try_from(signature.virtual_address.get(LE)).map_err(|_| Error::NoStub)?;
    if offset > 0 {
        bytes.truncate(offset);
    }
    let header =
        usize::try_from(file.dos_header().nt_headers_offset()).map_err(|_| Error::NoStub)?;
    let entry = at::DIRECTORIES.saturating_add(IMAGE_DIRECTORY_ENTRY_SECURITY.saturating_mul(8));
    let place = header.saturating_add(entry);
    let end = place.saturating_add(8);
    bytes.get_mut(place..end).ok_or(Error::NoStub)?.fill(0);
    Ok(bytes)
}

fn alignment(value: u32) -> Result<u32, Error> {
    if value.is_power_of_two() { Ok(value) } else { Err(Error::NoStub) }
}

fn aligned(value: u32, alignment: u32) -> Result<u32, Error> {
    value.checked_next_multiple_of(alignment).ok_or(Error::TooLarge)
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSection};

    fn made(stub: &[u8]) -> Result<Vec<u8>, Error> {
        let kernel = fake::kernel("6.12.0-test #1");
        make(&Parts {
            stub,
            kernel: &Kernel::parse(&kernel).unwrap(),
            initramfs: &[7; 5000],
            command_line: "quiet",
            os_release: "ID=storagetm\n",
        })
    }

    #[test]
    fn every_part_is_a_section() {
        let image = made(&fake::stub(8)).unwrap();
        let file = PeFile::<ImageNtHeaders64>::parse(image.as_slice()).unwrap();
        let data = |name| file.section_by_name(name).unwrap().data().unwrap();
        assert!(data(".osrel").starts_with(b"ID=storagetm\n"));
        assert!(data(".cmdline").starts_with(b"quiet"));
        assert!(data(".uname").starts_with(b"6.12.0-test"));
        assert!(data(".initrd").starts_with(&[7; 5000]));
        assert!(data(".linux").starts_with(b"MZ"));
        assert!(data(".text").starts_with(b"stub"));
    }

    #[test]
    fn stub_and_kernel_may_be_of_arm() {
        let kernel = fake::arm_kernel(b"Linux version 6.12.0-arm64 (a@b)");
        let kernel = Kernel::parse(&kernel).unwrap();
        let stub = fake::of_arm(fake::stub(8));
        let parts = |stub| Parts {
            stub,
            kernel: &kernel,
            initramfs: &[7; 5000],
            command_line: "quiet",
            os_release: "ID=storagetm\n",
        };
        let image = make(&parts(&stub)).unwrap();
        assert_eq!(Architecture::of_efi(&image), Some(Architecture::Aarch64));
        let foreign = make(&parts(&fake::stub(8)));
        assert!(matches!(foreign, Err(Error::ForeignStub(Architecture::Aarch64))));
    }

    #[test]
    fn sections_are_aligned_and_disjoint() {
        let image = made(&fake::stub(8)).unwrap();
        let file = PeFile::<ImageNtHeaders64>::parse(image.as_slice()).unwrap();
        let (mut memory, mut bytes) = (0, 0);
        for section in file.section_table().iter() {
            let (address, offset) =
                (section.virtual_address.get(LE), section.pointer_to_raw_data.get(LE));
            assert!(address >= memory && address % 4096 == 0, "{address:x}");
            assert!(offset >= bytes && offset % 512 == 0, "{offset:x}");
            memory = address + section.virtual_size.get(LE);
            bytes = offset + section.size_of_raw_data.get(LE);
        }
        assert_eq!(bytes as usize, image.len());
        let whole = file.nt_headers().optional_header.size_of_image.get(LE);
        assert_eq!(whole, memory.next_multiple_of(4096));
        let linux = file.section_by_name(".linux").unwrap();
        assert_eq!(linux.size(), 0x40_0000, "what the kernel asks for");
    }

    #[test]
    fn signature_of_the_stub_is_removed() {
        let plain = fake::stub(8);
        let mut signed = plain.clone();
        let place = fake::HEADER + at::DIRECTORIES + 8 * IMAGE_DIRECTORY_ENTRY_SECURITY;
        signed[place..place + 4]
            .copy_from_slice(&u32::try_from(plain.len()).unwrap().to_le_bytes());
        signed[place + 4..place + 8].copy_from_slice(&8u32.to_le_bytes());
        signed.extend([9; 8]);
        assert_eq!(made(&signed).unwrap(), made(&plain).unwrap());
    }

    #[test]
    fn invalid_or_full_stub_is_refused() {
        assert!(matches!(made(&fake::stub(4)), Err(Error::FullStub(5))));
        assert!(matches!(made(b"MZ"), Err(Error::NoStub)));
        let mut stub = fake::stub(8);
        assert!(matches!(made(&made(&stub).unwrap()), Err(Error::NoStub)), "a finished image");
        stub[fake::HEADER + 24 + 60] = 0xff;
        stub[fake::HEADER + 24 + 61] = 0xff;
        assert!(made(&stub).is_ok(), "headers end where the first section begins");
        let foreign = made(&fake::of_arm(stub));
        assert!(matches!(foreign, Err(Error::ForeignStub(Architecture::X86_64))));
        let stub = fake::stub(8);
        for cut in [0, 60, fake::HEADER + 10, fake::HEADER + 200] {
            assert!(matches!(made(&stub[..cut]), Err(Error::NoStub)), "{cut}");
        }
    }
}
