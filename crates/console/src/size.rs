//! Formats and parses sizes.

const DECIMAL: [&str; 7] = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"];
const BINARY: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Formats in decimal and binary units: `500 GB (465.7 GiB)`.
pub fn size(bytes: u64) -> String {
    if bytes < 1000 {
        return decimal(bytes);
    }
    format!("{} ({})", decimal(bytes), binary(bytes))
}

/// Formats in powers of 1000: `500 GB`.
pub fn decimal(bytes: u64) -> String {
    scaled(bytes, 1000, &DECIMAL)
}

/// Formats in powers of 1024: `465.7 GiB`.
pub fn binary(bytes: u64) -> String {
    scaled(bytes, 1024, &BINARY)
}

/// Formats in the largest unit that gives at least 1, with one decimal unless it is 0.
fn scaled(bytes: u64, base: u128, units: &[&str]) -> String {
    let mut unit: u128 = 1;
    let mut left = units.iter();
    let mut name = left.next().copied().unwrap_or_default();
    for larger in left {
        if tenths(bytes, unit) < base * 10 {
            break;
        }
        unit *= base;
        name = larger;
    }
    let tenths = tenths(bytes, unit);
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        digit => format!("{}.{digit} {name}", tenths / 10),
    }
}

/// Returns tenths of a unit, rounded.
fn tenths(bytes: u64, unit: u128) -> u128 {
    (u128::from(bytes) * 10 + unit / 2) / unit
}

/// Parses a number of bytes with an optional unit K, M, G or T (powers of 1024), which may be
/// followed by `iB`. Returns `None` for another form, or if the size does not fit into 64 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.strip_suffix("iB").unwrap_or(text);
    let shift = match text.chars().next_back()?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let digits = text.len().checked_sub(usize::from(shift > 0))?;
    let number: u64 = text.get(..digits)?.parse().ok()?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn units_of_typed_sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("500K", Some(500 << 10)),
            ("64M", Some(64 << 20)),
            ("1GiB", Some(1 << 30)),
            ("1t", Some(1 << 40)),
            ("", None),
            ("K", None),
            ("iB", None),
            ("-1M", None),
            ("1.5G", None),
            ("64X", None),
            ("é", None),
            ("99999999T", None),
            ("99999999999999999999G", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn sizes_are_formatted_in_both_units() {
        for (bytes, said) in [
            (0, "0 bytes"),
            (512, "512 bytes"),
            (268_435_456, "268.4 MB (256 MiB)"),
            (500_107_862_016, "500.1 GB (465.8 GiB)"),
            (1_000_000_000_000, "1 TB (931.3 GiB)"),
            (999_999_999_999, "1 TB (931.3 GiB)"),
            (u64::MAX, "18.4 EB (16 EiB)"),
        ] {
            assert_eq!(size(bytes), said);
        }
    }
}
