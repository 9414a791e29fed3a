//! The UUID of a disk inside the description of its export, as `… urn:uuid:UUID` (RFC 9562 §4). NBD
//! has no field for it.

/// Prefix of the UUID.
const URN: &str = "urn:uuid:";

/// Length of a UUID as text.
const LEN: usize = 36;

/// Formats `uuid` as a URN.
pub(crate) fn urn(uuid: &[u8; 16]) -> String {
    let mut text = URN.to_owned();
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Returns the UUID at the end of a description, if there is one.
pub(crate) fn parse(description: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(description).ok()?;
    let (before, digits) = text.rsplit_once(URN)?;
    let apart = before.is_empty() || before.ends_with(' ');
    let dashed = digits.bytes().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    if !apart || digits.len() != LEN || !dashed {
        return None;
    }
    let digits: String = digits.chars().filter(|c| *c != '-').collect();
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn uuid_in_a_description_is_read_back() {
        let uuid = *b"\x6d\x1c\x3b\x02\x0f\x3a\x4b\x53\x9d\x9e\x0d\x8a\x2f\x6f\x7a\x11";
        let text = urn(&uuid);
        assert_eq!(text, "urn:uuid:6d1c3b02-0f3a-4b53-9d9e-0d8a2f6f7a11");
        for text in [
            text.clone(),
            format!("/dev/sda {text}"),
            text.to_uppercase().replace("URN:UUID", "urn:uuid"),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(uuid), "{text}");
        }
        let short = &text[..text.len() - 1];
        let signed = text.replace("uuid:6d", "uuid:+d");
        for wrong in ["", "/dev/sda", short, &format!("x{text}"), &format!("{text} x"), &signed] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(parse(b"\xff"), None);
    }
}
