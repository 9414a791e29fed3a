//! What is to be known of a kernel image: its version, and what firmware must reserve for it.
//!
//! Knows the x86 form only (the kernel's documentation, arch/x86/boot).

use crate::error::Error;
use object::LittleEndian;
use object::pe::ImageNtHeaders64;
use object::read::pe::PeFile;

/// Where the header of the boot protocol has its magic word.
const MAGIC: usize = 0x202;
/// Where it says how far behind [`START`] the version is.
const VERSION: usize = 0x20e;
const START: usize = 0x200;
/// No version is longer.
const LONGEST: usize = 256;

/// A kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// The release, as `uname -r` says it: `6.12.117+deb13-amd64`.
    pub release: String,
    /// What it takes in memory where firmware starts it, in bytes.
    pub memory: u32,
}

impl<'a> Kernel<'a> {
    /// Reads a bzImage with an EFI part.
    ///
    /// Errors: it is none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let release = release(bytes).ok_or(Error::NoKernel)?;
        let file = PeFile::<ImageNtHeaders64>::parse(bytes).map_err(|_| Error::NoKernel)?;
        let memory = file.nt_headers().optional_header.size_of_image.get(LittleEndian);
        Ok(Self { bytes, release, memory })
    }
}

/// The first word of the version, which is the release.
fn release(bytes: &[u8]) -> Option<String> {
    if bytes.get(MAGIC..MAGIC.checked_add(4)?)? != b"HdrS" {
        return None;
    }
    let offset = bytes.get(VERSION..)?.first_chunk::<2>()?;
    let text = bytes.get(START.checked_add(usize::from(u16::from_le_bytes(*offset)))?..)?;
    let text = text.get(..text.len().min(LONGEST))?.split(|&byte| byte == 0).next()?;
    let word = std::str::from_utf8(text).ok()?.split_whitespace().next()?;
    Some(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efi::fake;

    #[test]
    fn the_release_and_the_size_are_read() {
        let bytes = fake::kernel("6.12.0-test (someone@somewhere) #1");
        let kernel = Kernel::parse(&bytes).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.memory), ("6.12.0-test", 0x40_0000));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let bytes = fake::kernel("6.12.0-test");
        for cut in [0, 2, 0x203, 0x20f, 0x210] {
            assert!(matches!(Kernel::parse(&bytes[..cut]), Err(Error::NoKernel)), "{cut}");
        }
        let mut far = bytes;
        far[VERSION..VERSION + 2].copy_from_slice(&[0xff, 0xff]);
        assert!(matches!(Kernel::parse(&far), Err(Error::NoKernel)));
    }
}
