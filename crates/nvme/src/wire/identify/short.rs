//! What storagetm says of an export in the vendor specific part of Identify Controller, which other hosts
//! ignore: its short name (such as `sda`), so that users need not type its NQN, and the key that signs the
//! record of a home directory.
//!
//! | offset | is |
//! |---|---|
//! | 0 | magic of 8 bytes, length of one byte, UTF-8 text |
//! | 264 | magic of 8 bytes, Ed25519 public key of 32 bytes |

use super::IdentifyController;

const MAGIC: &[u8; 8] = b"storagtm";
/// Maximum length of a name in bytes.
const MAX_NAME: usize = 255;
const KEY_MAGIC: &[u8; 8] = b"homedkey";
/// Offset of the key in bytes.
const KEY: usize = MAGIC.len() + 1 + MAX_NAME;

impl IdentifyController {
    /// Sets the short name; ignores an empty one, or one of more than 255 bytes.
    pub fn set_short_name(&mut self, name: &str) {
        let Some(len) = u8::try_from(name.len()).ok().filter(|len| *len > 0) else { return };
        let bytes = MAGIC.iter().chain([&len]).chain(name.as_bytes());
        self.vs.iter_mut().zip(bytes).for_each(|(target, byte)| *target = *byte);
    }

    /// Returns the short name with control characters replaced, or `None` if there is none.
    #[must_use]
    pub fn short_name(&self) -> Option<String> {
        let (len, rest) = self.vs.strip_prefix(MAGIC)?.split_first()?;
        let name = rest.get(..usize::from(*len).min(MAX_NAME))?;
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
        Some(name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
    }

    /// Sets the public key that signs the record of a home directory.
    pub fn set_signing_key(&mut self, key: &[u8; 32]) {
        let bytes = KEY_MAGIC.iter().chain(key);
        self.vs.iter_mut().skip(KEY).zip(bytes).for_each(|(target, byte)| *target = *byte);
    }

    /// Returns the public key that signs the record of a home directory, if there is one.
    #[must_use]
    pub fn signing_key(&self) -> Option<[u8; 32]> {
        self.vs.get(KEY..)?.strip_prefix(KEY_MAGIC)?.first_chunk().copied()
    }
}

#[cfg(test)]
mod test {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn signing_key_round_trips_beside_the_longest_name() {
        let mut identify = IdentifyController::new_zeroed();
        assert_eq!(identify.signing_key(), None);
        identify.set_signing_key(&[7; 32]);
        identify.set_short_name(&"x".repeat(255));
        assert_eq!(identify.vs[264..272], *b"homedkey");
        assert_eq!(identify.signing_key(), Some([7; 32]));
        assert_eq!(identify.short_name().map(|name| name.len()), Some(255));
    }

    #[test]
    fn short_name_round_trips() {
        let mut identify = IdentifyController::new_zeroed();
        assert_eq!(identify.short_name(), None);
        identify.set_short_name("sda");
        assert_eq!(identify.vs[..12], *b"storagtm\x03sda");
        assert_eq!(identify.short_name().as_deref(), Some("sda"));
        identify.set_short_name(&"x".repeat(256));
        assert_eq!(identify.short_name().as_deref(), Some("sda"));
        identify.set_short_name("a\u{1b}[2J");
        assert_eq!(identify.short_name().as_deref(), Some("a\u{fffd}[2J"));
        identify.vs[9] = 0xff;
        assert_eq!(identify.short_name(), None);
    }
}
