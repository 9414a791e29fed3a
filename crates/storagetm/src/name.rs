//! The NVMe Qualified Names of what is lent (NVMe Base 2.0 §4.5). It knows no disk.

use std::path::Path;

/// The longest name, in bytes (NVMe Base 2.0 §4.5).
const LONGEST: usize = 223;

/// The name that follows from a disk's identity.
pub(crate) fn from_identity(uuid: &[u8; 16]) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", hyphenated(uuid))
}

/// The UUID as text (RFC 9562 §4).
fn hyphenated(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// `BASE.NAME`, where the name is the last part of `path`; what a qualified name cannot hold becomes `_`.
///
/// # Errors
/// A sentence: the whole is too long.
pub(crate) fn under(base: &str, path: &Path) -> Result<String, String> {
    let last = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let nqn = format!("{base}.{}", last.chars().map(plain).collect::<String>());
    if nqn.len() > LONGEST {
        return Err(format!(
            "{nqn} has {} bytes, and an NVMe Qualified Name at most {LONGEST}: choose a shorter --nqn",
            nqn.len()
        ));
    }
    Ok(nqn)
}

/// Checks what `--nqn` gives: `nqn.YYYY-MM.` and a domain in reverse, perhaps a colon and more.
///
/// # Errors
/// A sentence.
pub(crate) fn check_base(base: &str) -> Result<(), String> {
    let error = || {
        format!(
            "--nqn {base} is no NVMe Qualified Name: it begins with nqn., a year and month and a \
             domain name in reverse, such as nqn.2026-01.com.example:laptop"
        )
    };
    if base.len() > LONGEST || !base.chars().all(|c| c.is_ascii_graphic()) {
        return Err(error());
    }
    let rest = base.strip_prefix("nqn.").ok_or_else(error)?;
    let (date, domain) = rest.split_once('.').ok_or_else(error)?;
    let domain = domain.split(':').next().unwrap_or_default();
    if is_year_and_month(date) && !domain.is_empty() { Ok(()) } else { Err(error()) }
}

fn is_year_and_month(date: &str) -> bool {
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    match date.split_once('-') {
        Some((year, month)) => year.len() == 4 && month.len() == 2 && digits(year) && digits(month),
        None => false,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_default_name_is_the_uuid_form_of_the_specification() {
        let uuid = [0x2f, 0x6d, 0x1c, 0x52, 0, 1, 0x40, 2, 0x80, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(
            from_identity(&uuid),
            "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0001-4002-8003-040506070809"
        );
    }

    #[test]
    fn a_base_gets_the_last_part_of_the_path() {
        let base = "nqn.2026-01.com.example:laptop";
        let name = |path: &str| under(base, Path::new(path)).unwrap();
        assert_eq!(name("/dev/sda"), format!("{base}.sda"));
        assert_eq!(name("my disk.img"), format!("{base}.my_disk.img"));
        assert_eq!(name("/dev/disk\n"), format!("{base}.disk_"));
    }

    #[test]
    fn a_name_is_at_most_223_bytes() {
        let base = format!("nqn.2026-01.com.example:{}", "x".repeat(190));
        assert_eq!(under(&base, Path::new("12345678")).unwrap().len(), 223);
        assert!(under(&base, Path::new("123456789")).unwrap_err().contains("224 bytes"));
    }

    #[test]
    fn a_base_has_the_form_of_a_qualified_name() {
        for base in ["nqn.2026-01.com.example", "nqn.2026-01.com.example:a:b", "nqn.2014-08.org"] {
            assert_eq!(check_base(base), Ok(()));
        }
        let long = format!("nqn.2026-01.{}", "x".repeat(223));
        for base in [
            "",
            "quux",
            "nqn.",
            "nqn.2026-1.a",
            "nqn.20261.a",
            "nqn.2026-01.",
            "nqn.2026-01.a b",
            &long,
        ] {
            assert!(check_base(base).is_err(), "{base}");
        }
    }
}
