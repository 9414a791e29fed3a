//! Version and memory size of a kernel image. x86 only (Documentation/arch/x86/boot).

use crate::error::Error;
use object::LittleEndian;
use object::pe::ImageNtHeaders64;
use object::read::pe::PeFile;

/// Offset of the magic number of the boot protocol.
const MAGIC: usize = 0x202;
/// Offset of the pointer to the version, relative to [`START`].
const VERSION: usize = 0x20e;
const START: usize = 0x200;
/// Maximum length of the version.
const MAX_LEN: usize = 256;

/// A kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel<'a> {
    /// The whole file.
    pub bytes: &'a [u8],
    /// Release as printed by `uname -r`, such as `6.12.117+deb13-amd64`.
    pub release: String,
    /// Bytes of memory where firmware starts it.
    pub memory: u32,
}

impl<'a> Kernel<'a> {
    /// Parses a bzImage with an EFI stub.
    ///
    /// # Errors
    /// Fails if it is not one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let release = release(bytes).ok_or(Error::NoKernel)?;
        let file = PeFile::<ImageNtHeaders64>::parse(bytes).map_err(|_| Error::NoKernel)?;
        let memory = file.nt_headers().optional_header.size_of_image.get(LittleEndian);
        Ok(Self { bytes, release, memory })
    }
}

/// The release: the first word of the version.
fn release(bytes: &[u8]) -> Option<String> {
    if bytes.get(MAGIC..MAGIC.checked_add(4)?)? != b"HdrS" {
        return None;
    }
    let offset = bytes.get(VERSION..)?.first_chunk::<2>()?;
    let text = bytes.get(START.checked_add(usize::from(u16::from_le_bytes(*offset)))?..)?;
    let text = text.get(..text.len().min(MAX_LEN))?.split(|&byte| byte == 0).next()?;
    let word = std::str::from_utf8(text).ok()?.split_whitespace().next()?;
    Some(word.to_owned())
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
    }

    #[test]
    fn invalid_kernel_is_refused() {
        let bytes = fake::kernel("6.12.0-test");
        for cut in [0, 2, 0x203, 0x20f, 0x210] {
            assert!(matches!(Kernel::parse(&bytes[..cut]), Err(Error::NoKernel)), "{cut}");
        }
        let mut far = bytes;
        far[VERSION..VERSION + 2].copy_from_slice(&[0xff, 0xff]);
        assert!(matches!(Kernel::parse(&far), Err(Error::NoKernel)));
    }
}
