//! Parses sizes of the demo disk: `64M`, `1G`.

use std::str::FromStr;

/// Size of the demo disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    /// Smallest size: 4 MiB, enough for partition tables and a file system.
    pub const MIN: u64 = 4 << 20;
    /// Largest size: 1 TiB.
    pub const MAX: u64 = 1 << 40;

    /// The size in bytes, a multiple of 1 MiB.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = &'static str;

    /// Parses a size with a unit (see [`console::parse_size`]).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = console::parse_size(text).ok_or("a size is a number and M, G or T: 64M, 1G")?;
        match (Self::MIN..=Self::MAX).contains(&bytes) {
            true if bytes.is_multiple_of(1 << 20) => Ok(Self(bytes)),
            true => Err("the size is a multiple of 1M"),
            false => Err("the size goes from 4M to 1T"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        for (text, bytes) in [
            ("4M", 4 << 20),
            ("64M", 64 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "M", "64", "-1M", "3M", "2T", "1.5G", "99999999999999999999G", "64X", "é"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
