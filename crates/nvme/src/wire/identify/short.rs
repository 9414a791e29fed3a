//! The short name of a disk, in the vendor specific part of Identify Controller: NVMe has no place for the name by which
//! people call a disk, and who copies one should not have to type its NQN.
//!
//! Eight bytes tell that it is there, one how long it is; it is UTF-8. Hosts that do not know it do not look at it.

use super::IdentifyController;

const MARK: &[u8; 8] = b"storagtm";
/// Bytes of the longest name.
const LONGEST: usize = 255;

impl IdentifyController {
    /// Writes the name into the figure; a longer one than 255 bytes, or none, is left out.
    pub fn set_short_name(&mut self, name: &str) {
        let Some(len) = u8::try_from(name.len()).ok().filter(|len| *len > 0) else { return };
        let bytes = MARK.iter().chain([&len]).chain(name.as_bytes());
        self.vs.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    }

    /// The name in the figure, without characters that would speak to a terminal; nothing if it has none.
    #[must_use]
    pub fn short_name(&self) -> Option<String> {
        let (len, rest) = self.vs.strip_prefix(MARK)?.split_first()?;
        let name = rest.get(..usize::from(*len).min(LONGEST))?;
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
        Some(name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
    }
}

#[cfg(test)]
mod test {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_name_comes_back_and_others_have_none() {
        let mut figure = IdentifyController::new_zeroed();
        assert_eq!(figure.short_name(), None);
        figure.set_short_name("sda");
        assert_eq!(figure.vs[..12], *b"storagtm\x03sda");
        assert_eq!(figure.short_name().as_deref(), Some("sda"));
        figure.set_short_name(&"x".repeat(256));
        assert_eq!(figure.short_name().as_deref(), Some("sda"));
        figure.set_short_name("a\u{1b}[2J");
        assert_eq!(figure.short_name().as_deref(), Some("a\u{fffd}[2J"));
        figure.vs[9] = 0xff;
        assert_eq!(figure.short_name(), None);
    }
}
