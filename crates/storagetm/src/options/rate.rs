//! Parses a rate limit: `500K`, `20M`, `1G`.

use std::str::FromStr;

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// Minimum: 4 KiB per second.
    const MIN: u64 = 4 << 10;

    /// Bytes per second.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = &'static str;

    /// Parses a size per second (see [`console::parse_size`]).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = console::parse_size(text);
        let bytes = bytes.ok_or("a rate is in bytes per second, with K, M or G: 500K, 20M")?;
        if bytes < Self::MIN { Err("the minimum is 4K") } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn rates_are_parsed_with_or_without_a_unit() {
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
