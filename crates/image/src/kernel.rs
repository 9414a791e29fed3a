//! Version, architecture and memory size of a kernel image that EFI firmware can start.

use std::io::{self, Read};

use crate::architecture::Architecture;
use crate::error::Error;
use object::LittleEndian;
use object::pe::ImageNtHeaders64;
use object::read::pe::PeFile;

/// The boot protocol of x86 (Documentation/arch/x86/boot).
mod x86 {
    /// Offset of the magic number of the boot protocol.
    pub(super) const MAGIC: usize = 0x202;
    /// Offset of the pointer to the version, relative to [`START`].
    pub(super) const VERSION: usize = 0x20e;
    pub(super) const START: usize = 0x200;
}

/// A compressed image of other architectures (drivers/firmware/efi/libstub/zboot-header.S).
mod zboot {
    pub(super) const MAGIC: usize = 4;
    /// Offsets of the position and size of the compressed image, and of the name of the compression.
    pub(super) const OFFSET: usize = 8;
    pub(super) const SIZE: usize = 12;
    pub(super) const COMPRESSION: usize = 24;
}

/// Offset of the magic number of an ARM64 image (Documentation/arch/arm64/booting.rst).
const ARM_MAGIC: usize = 56;
/// The text before the version in an uncompressed image, which is followed by a digit.
const BANNER: &[u8] = b"Linux version ";
/// Maximum length of the version.
const MAX_LEN: usize = 256;
/// Maximum size of a decompressed image.
const MAX_IMAGE: u64 = 256 << 20;

/// A kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel<'a> {
    /// The whole file.
    pub bytes: &'a [u8],
    pub architecture: Architecture,
    /// Release as printed by `uname -r`, such as `6.12.117+deb13-amd64`.
    pub release: String,
    /// Bytes of memory where firmware starts it.
    pub memory: u32,
}

impl<'a> Kernel<'a> {
    /// Parses an image with an EFI stub.
    ///
    /// # Errors
    /// Fails if it is not one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let architecture = Architecture::of_efi(bytes).ok_or(Error::NoKernel)?;
        let release = match architecture {
            Architecture::X86_64 => bz_image_release(bytes),
            Architecture::Aarch64 => arm_release(bytes),
        };
        let release = release.ok_or(Error::NoKernel)?;
        let file = PeFile::<ImageNtHeaders64>::parse(bytes).map_err(|_| Error::NoKernel)?;
        let memory = file.nt_headers().optional_header.size_of_image.get(LittleEndian);
        Ok(Self { bytes, architecture, release, memory })
    }
}

fn bz_image_release(bytes: &[u8]) -> Option<String> {
    if !has(bytes, x86::MAGIC, b"HdrS") {
        return None;
    }
    let offset = bytes.get(x86::VERSION..)?.first_chunk::<2>()?;
    let start = x86::START.checked_add(usize::from(u16::from_le_bytes(*offset)))?;
    first_word(bytes.get(start..)?)
}

fn arm_release(bytes: &[u8]) -> Option<String> {
    if has(bytes, ARM_MAGIC, b"ARM\x64") {
        return banner(bytes);
    }
    if has(bytes, zboot::MAGIC, b"zimg") {
        return banner(&decompressed(bytes)?);
    }
    None
}

/// Returns the image in a compressed one.
fn decompressed(bytes: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| {
        let word = bytes.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*word)).ok()
    };
    let content = bytes.get(word(zboot::OFFSET)?..)?.get(..word(zboot::SIZE)?)?;
    let has_compression = |name: &[u8]| has(bytes, zboot::COMPRESSION, name);
    let mut image = Vec::new();
    let read = |mut reader: &mut dyn Read, image: &mut Vec<u8>| {
        Read::by_ref(&mut reader).take(MAX_IMAGE).read_to_end(image)
    };
    let done = if has_compression(b"gzip\0") {
        read(&mut flate2::read::GzDecoder::new(content), &mut image)
    } else if has_compression(b"zstd\0") || has_compression(b"zstd22\0") {
        zstd::Decoder::new(content).and_then(|mut decoder| read(&mut decoder, &mut image))
    } else {
        Err(io::ErrorKind::Unsupported.into())
    };
    done.ok().map(|_| image)
}

/// Returns the release in an uncompressed image.
fn banner(image: &[u8]) -> Option<String> {
    let mut places = image.windows(BANNER.len()).enumerate();
    let found = places.find_map(|(at, window)| {
        let rest = image.get(at..)?.get(BANNER.len()..).filter(|_| window == BANNER)?;
        rest.first().is_some_and(u8::is_ascii_digit).then_some(rest)
    });
    first_word(found?)
}

/// The first word of a text that ends with zero.
fn first_word(text: &[u8]) -> Option<String> {
    let text = text.get(..text.len().min(MAX_LEN))?.split(|&byte| byte == 0).next()?;
    let text = String::from_utf8_lossy(text);
    text.split_whitespace().next().map(str::to_owned)
}

fn has(bytes: &[u8], at: usize, wanted: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efi::fake;

    #[test]
    fn release_and_size_are_parsed() {
        let bytes = fake::kernel("6.12.0-test (someone@somewhere) #1");
        let kernel = Kernel::parse(&bytes).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.memory), ("6.12.0-test", 0x40_0000));
        assert_eq!(kernel.architecture, Architecture::X86_64);
    }

    #[test]
    fn release_of_an_arm_kernel_is_its_banner() {
        let bytes = fake::arm_kernel(b"Linux version %s\0..Linux version 6.12.0-arm64 (a@b) #1\0");
        let kernel = Kernel::parse(&bytes).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.memory), ("6.12.0-arm64", 0x40_0000));
        assert_eq!(kernel.architecture, Architecture::Aarch64);
        assert!(matches!(Kernel::parse(&fake::arm_kernel(b"none")), Err(Error::NoKernel)));
    }

    #[test]
    fn release_of_a_compressed_arm_kernel_is_its_banner() {
        let text = b"...Linux version 6.12.0-arm64 (a@b) #1\0";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, text).unwrap();
        let zstd = zstd::bulk::compress(text, 1).unwrap();
        for (name, content) in [("gzip", gzip.finish().unwrap()), ("zstd22", zstd)] {
            let bytes = fake::compressed_kernel(name, &content);
            assert_eq!(Kernel::parse(&bytes).unwrap().release, "6.12.0-arm64", "{name}");
        }
        let unknown = fake::compressed_kernel("lzo", text);
        assert!(matches!(Kernel::parse(&unknown), Err(Error::NoKernel)));
    }

    #[test]
    fn invalid_kernel_is_refused() {
        let bytes = fake::kernel("6.12.0-test");
        for cut in [0, 2, 0x203, 0x20f, 0x210] {
            assert!(matches!(Kernel::parse(&bytes[..cut]), Err(Error::NoKernel)), "{cut}");
        }
        let mut far = bytes;
        far[x86::VERSION..x86::VERSION + 2].copy_from_slice(&[0xff, 0xff]);
        assert!(matches!(Kernel::parse(&far), Err(Error::NoKernel)));
    }
}
