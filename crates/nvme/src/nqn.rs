//! NVMe Qualified Names of subsystems (NVMe Base 2.0 §4.5).

use std::path::Path;

/// Maximum length of an NQN in bytes (NVMe Base 2.0 §4.5).
const MAX_LEN: usize = 223;

/// Returns the UUID-based NQN (NVMe Base 2.0 §4.5).
pub fn from_uuid(uuid: &[u8; 16]) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", hyphenated(uuid))
}

/// Returns the text form of a UUID (RFC 9562 §4).
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

/// Returns `BASE.NAME` with the last component of `path`; `_` replaces invalid characters.
///
/// # Errors
/// Fails if the NQN is too long.
pub fn under(base: &str, path: &Path) -> Result<String, String> {
    let last = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let nqn = format!("{base}.{}", last.chars().map(plain).collect::<String>());
    if nqn.len() > MAX_LEN {
        return Err(format!(
            "{nqn} has {} bytes, and an NVMe Qualified Name at most {MAX_LEN}: choose a shorter --nqn",
            nqn.len()
        ));
    }
    Ok(nqn)
}

/// Checks the value of `--nqn`: printable ASCII without a slash. It should start with `nqn.YYYY-MM.`
/// and a reversed domain name, but hosts do not check that, and short names are useful in tests.
///
/// # Errors
/// Fails if it is empty, too long, or contains an invalid character.
pub fn check_base(base: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_graphic() && c != '/';
    if base.is_empty() || base.len() > MAX_LEN || !base.chars().all(plain) {
        return Err(format!(
            "--nqn {base} cannot be the beginning of a name: it has 1 to {MAX_LEN} characters of printable ASCII \
             and no slash, such as nqn.2026-01.com.example:laptop"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn default_name_is_the_uuid_form_of_the_specification() {
        let uuid = [0x2f, 0x6d, 0x1c, 0x52, 0, 1, 0x40, 2, 0x80, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(
            from_uuid(&uuid),
            "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0001-4002-8003-040506070809"
        );
    }

    #[test]
    fn base_is_extended_by_the_last_path_component() {
        let base = "nqn.2026-01.com.example:laptop";
        let name = |path: &str| under(base, Path::new(path)).unwrap();
        assert_eq!(name("/dev/sda"), format!("{base}.sda"));
        assert_eq!(name("my disk.img"), format!("{base}.my_disk.img"));
        assert_eq!(name("/dev/disk\n"), format!("{base}.disk_"));
    }

    #[test]
    fn name_is_at_most_223_bytes() {
        let base = format!("nqn.2026-01.com.example:{}", "x".repeat(190));
        assert_eq!(under(&base, Path::new("12345678")).unwrap().len(), 223);
        assert!(under(&base, Path::new("123456789")).unwrap_err().contains("224 bytes"));
    }

    #[test]
    fn base_is_printable_ascii_without_slash() {
        for base in ["nqn.2026-01.com.example", "nqn.2026-01.com.example:a:b", "quux"] {
            assert_eq!(check_base(base), Ok(()));
        }
        for base in ["", "a b", "a/b", "\u{e9}", "a\n", &"x".repeat(224)] {
            assert!(check_base(base).is_err(), "{base}");
        }
    }
}
