//! Architectures of machines, and their names in files of programs.

use std::fmt;

use object::LittleEndian as LE;
use object::elf::{EM_AARCH64, EM_X86_64, FileHeader64};
use object::pe::{IMAGE_FILE_MACHINE_AMD64, IMAGE_FILE_MACHINE_ARM64, ImageNtHeaders64};
use object::read::elf::FileHeader;
use object::read::pe::PeFile;

/// The processor architecture of a machine that boots an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    /// Returns the architecture that this program is built for.
    pub fn of_this_machine() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// Returns the architecture of a 64-bit EFI program.
    pub fn of_efi(program: &[u8]) -> Option<Self> {
        let file = PeFile::<ImageNtHeaders64>::parse(program).ok()?;
        match file.nt_headers().file_header.machine.get(LE) {
            IMAGE_FILE_MACHINE_AMD64 => Some(Self::X86_64),
            IMAGE_FILE_MACHINE_ARM64 => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// Returns the architecture of a 64-bit ELF file.
    pub fn of_elf(file: &[u8]) -> Option<Self> {
        match FileHeader64::<LE>::parse(file).ok()?.e_machine(LE) {
            EM_X86_64 => Some(Self::X86_64),
            EM_AARCH64 => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// Returns the suffix of the names of EFI programs, as in `BOOTX64.EFI` (UEFI 2.10 §3.5.1.1), in
    /// small letters.
    pub fn efi_suffix(self) -> &'static str {
        match self {
            Self::X86_64 => "x64",
            Self::Aarch64 => "aa64",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Aarch64 => "ARM64",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efi::fake;

    #[test]
    fn architecture_of_programs_is_read() {
        assert_eq!(Architecture::of_efi(&fake::stub(1)), Some(Architecture::X86_64));
        let arm = fake::of_arm(fake::stub(1));
        assert_eq!(Architecture::of_efi(&arm), Some(Architecture::Aarch64));
        assert_eq!(Architecture::of_efi(&arm[..40]), None);
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(Architecture::of_elf(&own), Architecture::of_this_machine());
        assert_eq!(Architecture::of_elf(&own[..40]), None);
    }
}
