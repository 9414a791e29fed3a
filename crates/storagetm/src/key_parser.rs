//! Parses terminal input into keys. Escape sequences (arrows, function keys, replies of the
//! terminal) contain letters that must not be taken for keys.

use console::Key;

const ESCAPE: u8 = 0x1b;

/// Parser state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum KeyParser {
    /// Outside of a sequence.
    #[default]
    Plain,
    /// After ESC: a letter is a key with Alt, or starts a longer sequence.
    Escaped,
    /// After CSI (ECMA-48 §5.4), up to the final byte.
    Control {
        /// No byte has followed yet: a second bracket is a function key of the Linux console.
        first: bool,
        /// Last parameter byte.
        parameter: u8,
    },
    /// One more byte follows (SS3): arrows in application mode.
    Last,
    /// One more byte follows, which is not a key.
    Function,
}

impl KeyParser {
    /// Returns the key that this byte completes.
    pub(crate) fn receive(&mut self, byte: u8) -> Option<Key> {
        let (next, key) = match (*self, byte) {
            (_, ESCAPE) => (Self::Escaped, None),
            (Self::Plain, key) => (Self::Plain, Some(Key::Byte(key))),
            (Self::Escaped, b'[') => (Self::Control { first: true, parameter: 0 }, None),
            (Self::Escaped, b'O') => (Self::Last, None),
            (Self::Control { first: true, .. }, b'[') => (Self::Function, None),
            (Self::Control { .. }, parameter @ 0x20..=0x3f) => {
                (Self::Control { first: false, parameter }, None)
            }
            (Self::Control { parameter, .. }, b'~') => (Self::Plain, number_key(parameter)),
            (Self::Control { .. } | Self::Last, last) => (Self::Plain, letter_key(last)),
            (Self::Escaped | Self::Function, _) => (Self::Plain, None),
        };
        *self = next;
        key
    }
}

fn letter_key(last: u8) -> Option<Key> {
    match last {
        b'A' => Some(Key::Up),
        b'B' => Some(Key::Down),
        b'H' => Some(Key::Home),
        b'F' => Some(Key::End),
        _ => None,
    }
}

fn number_key(parameter: u8) -> Option<Key> {
    match parameter {
        b'1' | b'7' => Some(Key::Home),
        b'4' | b'8' => Some(Key::End),
        b'5' => Some(Key::PageUp),
        b'6' => Some(Key::PageDown),
        _ => None,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = KeyParser::default();
        bytes.iter().filter_map(|byte| keys.receive(*byte)).collect()
    }

    #[test]
    fn letters_in_escape_sequences_are_not_keys() {
        for sequence in [
            &b"\x1b[D"[..], // left
            b"\x1b[[D",     // F4 of a virtual terminal
            b"\x1b[[A",     // F1 of a virtual terminal
            b"\x1bOP",      // F1
            b"\x1bOR",      // F3
            b"\x1b[1;2P",   // F1 with shift
            b"\x1b[24;80R", // where the cursor is
            b"\x1b[?62;c",  // which terminal it is
            b"\x1bd",       // Alt-d
            b"\x1b\x1b[D",  // ESC, then left
        ] {
            let text = sequence.escape_ascii();
            let wanted = [Key::Byte(b'x'), Key::Byte(b'y')];
            assert_eq!(keys(&[b"x", sequence, b"y"].concat()), wanted, "{text}");
        }
    }

    #[test]
    fn arrows_and_page_keys_are_keys_of_their_own() {
        for (sequence, key) in [
            (&b"\x1b[A"[..], Key::Up),
            (b"\x1bOB", Key::Down),
            (b"\x1b[1;5A", Key::Up),
            (b"\x1b[5~", Key::PageUp),
            (b"\x1b[6~", Key::PageDown),
            (b"\x1b[H", Key::Home),
            (b"\x1b[4~", Key::End),
        ] {
            assert_eq!(keys(sequence), [key], "{}", sequence.escape_ascii());
        }
    }
}
