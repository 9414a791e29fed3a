//! How fast a copy may be, as it is typed: `500K`, `20M`, `1G`. It knows no clock.

use std::str::FromStr;

/// Bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// The slowest: 4 KiB a second.
    const LEAST: u64 = 4 << 10;

    /// Bytes a second.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = &'static str;

    /// Parses a size for each second (see [`console::parse_size`]).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = console::parse_size(text);
        let bytes = bytes.ok_or("a rate is bytes a second, with K, M or G: 500K, 20M")?;
        if bytes < Self::LEAST { Err("the slowest is 4K") } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn rates_are_bytes_a_second_with_or_without_a_unit() {
        for (text, bytes) in [
            ("4096", 4096),
            ("500K", 500 << 10),
            ("20M", 20 << 20),
            ("1GiB", 1 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Rate(bytes)), "{text}");
        }
        for text in ["", "K", "0", "1K", "-1M", "1.5M", "99999999999T", "1X"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
