//! iSCSI names of targets and initiators (RFC 7143 §4.2.7).

use export::ExportId;
use sha2::{Digest, Sha256};

use crate::wire::text::MAX_NAME;

/// What the names of targets begin with, unless the user has chosen a name.
const PREFIX: &str = "iqn.2026-01.io.github.storagetm:";

/// Returns the name of the target of an export. Two exports with different identifiers have
/// different names.
///
/// A name that the user chose as an NQN keeps its naming authority. Characters that an iSCSI name
/// must not have are replaced; a hash then keeps the name unique.
#[must_use]
pub fn of(id: &ExportId) -> String {
    let name = match id {
        ExportId::Uuid(_) => return format!("{PREFIX}{id}"),
        ExportId::Name(name) => name,
    };
    let (prefix, rest) = match name.strip_prefix("nqn.") {
        Some(rest) => ("iqn.", rest),
        None => (PREFIX, name.as_str()),
    };
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    let plain = format!("{prefix}{rest}");
    if plain.len() <= MAX_NAME && rest.chars().all(valid) {
        return plain;
    }
    let hash = Sha256::digest(name.as_bytes());
    let hash: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let replaced = |c: char| if valid(c) { c } else { '-' };
    let room = MAX_NAME - prefix.len() - hash.len() - 1;
    let rest: String = rest.to_ascii_lowercase().chars().map(replaced).take(room).collect();
    format!("{prefix}{rest}.{hash}")
}

/// Returns the form in which names are compared: lower case (RFC 7143 §4.2.7.2). Returns `None` if
/// `name` is no iSCSI name: empty, too long, or with characters other than printable ASCII.
#[must_use]
pub fn normalized(name: &str) -> Option<String> {
    let valid = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|byte| byte.is_ascii_graphic());
    valid.then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn name_follows_the_export() {
        let id = ExportId::Uuid([0x2f, 0x6d, 0x1c, 0x52, 0, 1, 0x40, 2, 0x80, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(of(&id), "iqn.2026-01.io.github.storagetm:2f6d1c52-0001-4002-8003-040506070809");
        let named = |name: &str| of(&name.into());
        assert_eq!(
            named("nqn.2026-01.com.example:laptop.sda"),
            "iqn.2026-01.com.example:laptop.sda"
        );
        assert_eq!(named("quux"), "iqn.2026-01.io.github.storagetm:quux");
    }

    #[test]
    fn names_with_invalid_characters_stay_unique() {
        let names = ["nqn.2026-01.com.example:my_disk", "nqn.2026-01.com.example:my-disk"];
        let names = [names[0], names[1], "nqn.2026-01.com.example:MY-disk", "My", "my"];
        let made: std::collections::BTreeSet<String> =
            names.iter().map(|name| of(&(*name).into())).collect();
        assert_eq!(made.len(), names.len());
        for name in &made {
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
            assert!(name.chars().all(valid), "{name}");
        }
    }

    #[test]
    fn name_is_at_most_223_bytes() {
        let long = |len: usize| format!("nqn.2026-01.com.example:{}", "x".repeat(len));
        assert_eq!(of(&(&long(199)).into()).len(), 223);
        assert_eq!(of(&(&long(200)).into()).len(), 223);
        assert_ne!(of(&(&long(300)).into()), of(&(&long(301)).into()));
    }

    #[test]
    fn names_are_compared_in_lower_case() {
        let name = "iqn.1991-05.com.microsoft:LAPTOP";
        assert_eq!(normalized(name).as_deref(), Some("iqn.1991-05.com.microsoft:laptop"));
        for name in ["", "a b", "a\u{1b}", "iqn.\u{e9}", &"x".repeat(224)] {
            assert_eq!(normalized(name), None);
        }
    }
}
