//! Architectures that storagetm is built for.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A processor architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Architecture {
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// Returns the architecture of this machine.
    ///
    /// # Errors
    /// Fails if it is none of these.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let name = std::env::consts::ARCH;
        let mut all = Self::ALL.into_iter();
        all.find(|it| it.name() == name)
            .with_context(|| format!("storagetm is not built for {name}"))
    }

    /// Returns the architecture of an ELF program.
    ///
    /// # Errors
    /// Fails if it is none of these.
    pub(crate) fn of(program: &Path) -> Result<Self> {
        let bytes = fs::read(program).with_context(|| program.display().to_string())?;
        match image::Architecture::of_elf(&bytes) {
            Some(image::Architecture::X86_64) => Ok(Self::X86_64),
            Some(image::Architecture::Aarch64) => Ok(Self::Aarch64),
            None => bail!("{} is no program for x86-64 or ARM64", program.display()),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Returns Debian's name of it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Returns Rust's target.
    pub(crate) fn triple(self) -> String {
        format!("{}-unknown-linux-gnu", self.name())
    }

    /// Returns the name of a program of the C toolchain for it, as distributions have it.
    pub(crate) fn tool(self, name: &str) -> String {
        match Self::of_this_machine() {
            Ok(own) if own == self => name.to_owned(),
            _ => format!("{}-linux-gnu-{name}", self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architecture_of_a_program_is_read() {
        let own = Architecture::of(Path::new("/proc/self/exe")).unwrap();
        assert_eq!(own, Architecture::of_this_machine().unwrap());
        assert!(Architecture::of(Path::new("/etc/passwd")).is_err());
    }
}
