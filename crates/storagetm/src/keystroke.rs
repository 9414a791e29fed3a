//! The keys in what a terminal sends: letters are keys, and the sequences that arrows, function keys and the answers of
//! terminals come as are not, though letters are in them. It knows no terminal and no meaning of a key.

const ESCAPE: u8 = 0x1b;

/// Where in a sequence the next byte stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Keys {
    /// In none.
    #[default]
    Plain,
    /// Behind ESC: a letter there is a key with Alt, or begins a longer sequence.
    Escaped,
    /// Behind CSI (ECMA-48 §5.4): up to the final byte. A second bracket at once is a function key of Linux' own terminal.
    Control(bool),
    /// Behind what says that one more byte follows.
    Last,
}

impl Keys {
    /// The key, if the next byte is one by itself.
    pub(crate) fn receive(&mut self, byte: u8) -> Option<u8> {
        let (next, key) = match (*self, byte) {
            (_, ESCAPE) => (Self::Escaped, None),
            (Self::Plain, key) => (Self::Plain, Some(key)),
            (Self::Escaped, b'[') => (Self::Control(true), None),
            (Self::Escaped, b'O') | (Self::Control(true), b'[') => (Self::Last, None),
            (Self::Control(_), 0x20..=0x3f) => (Self::Control(false), None),
            (Self::Escaped | Self::Control(_) | Self::Last, _) => (Self::Plain, None),
        };
        *self = next;
        key
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<u8> {
        let mut keys = Keys::default();
        bytes.iter().filter_map(|byte| keys.receive(*byte)).collect()
    }

    #[test]
    fn no_letter_of_a_sequence_is_a_key() {
        for sequence in [
            &b"\x1b[D"[..], // left
            b"\x1b[[D",     // F4 of a virtual terminal
            b"\x1bOP",      // F1
            b"\x1bOR",      // F3
            b"\x1b[1;2P",   // F1 with shift
            b"\x1b[24;80R", // where the cursor is
            b"\x1b[?62;c",  // which terminal it is
            b"\x1bd",       // Alt-d
            b"\x1b\x1b[D",  // ESC, then left
        ] {
            let text = sequence.escape_ascii();
            assert_eq!(keys(&[b"x", sequence, b"y"].concat()), b"xy", "{text}");
        }
    }
}
