//! NVMe Qualified Names of subsystems (NVMe Base 2.0 §4.5).

use std::path::Path;

use export::ExportId;

/// Maximum length of an NQN in bytes (NVMe Base 2.0 §4.5).
const MAX_LEN: usize = 223;

/// Prefix of a UUID-based NQN (NVMe Base 2.0 §4.5).
const UUID: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// Returns the NQN of the subsystem of an export: the UUID form, or the name that the user chose.
pub fn of(id: &ExportId) -> String {
    match id {
        ExportId::Uuid(_) => format!("{UUID}{id}"),
        ExportId::Name(name) => name.clone(),
    }
}

/// Returns the identifier of the export whose subsystem has this name.
pub fn export_id(nqn: &str) -> ExportId {
    let uuid = nqn.strip_prefix(UUID).and_then(parse_uuid);
    uuid.map_or_else(|| nqn.into(), ExportId::Uuid)
}

/// Parses the hyphenated form in lower case, the only one in which [`of`] writes it.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let uuid = u128::from_str_radix(&digits, 16).ok()?.to_be_bytes();
    (ExportId::Uuid(uuid).to_string() == text).then_some(uuid)
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
    fn uuid_form_is_written_and_read() {
        let id = ExportId::Uuid([0x2f, 0x6d, 0x1c, 0x52, 0, 1, 0x40, 2, 0x80, 3, 4, 5, 6, 7, 8, 9]);
        let name = "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0001-4002-8003-040506070809";
        assert_eq!(of(&id), name);
        assert_eq!(export_id(name), id);
    }

    #[test]
    fn names_in_any_other_form_stay_as_they_are() {
        let upper = "nqn.2014-08.org.nvmexpress:uuid:2F6D1C52-0001-4002-8003-040506070809";
        for name in [upper, "nqn.2026-01.com.example:sda", "nqn.2014-08.org.nvmexpress:uuid:1", ""]
        {
            assert_eq!(export_id(name), ExportId::from(name));
            assert_eq!(of(&export_id(name)), name);
        }
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
