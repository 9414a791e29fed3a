//! The short name of an export (such as `sda`) in the vendor specific part of Identify Controller,
//! so that users need not type its NQN.
//!
//! Layout: magic of 8 bytes, length of one byte, UTF-8 text. Other hosts ignore it.

use super::IdentifyController;

const MAGIC: &[u8; 8] = b"storagtm";
/// Maximum length of a name in bytes.
const MAX_NAME: usize = 255;

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
}

#[cfg(test)]
mod test {
    use zerocopy::FromZeros;

    use super::*;

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
