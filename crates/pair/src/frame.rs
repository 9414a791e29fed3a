//! The frames that both ends speak in: a version, a kind, a length, and so many bytes. It knows not what they mean.

use crate::agreement::TAG;

/// The version of the protocol.
pub(crate) const VERSION: u8 = 1;

/// Bytes before the body: version, kind, length (little-endian).
const HEADER: usize = 4;

/// Bytes of a whole frame at most.
pub(crate) const LARGEST: usize = 1024;

/// A rule of the frames that a peer broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// Another version of the protocol.
    VersionUnknown,
    /// A frame of more than [`LARGEST`] bytes.
    FrameTooLong,
    /// A kind of frame that there is not.
    KindUnknown,
    /// A frame that may not come now.
    OutOfTurn,
    /// A body that is not what its kind has.
    BodyMalformed,
}

impl Violation {
    /// The rule's name, for the journal.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::VersionUnknown => "PairVersionUnknown",
            Self::FrameTooLong => "PairFrameTooLong",
            Self::KindUnknown => "PairKindUnknown",
            Self::OutOfTurn => "PairOutOfTurn",
            Self::BodyMalformed => "PairBodyMalformed",
        }
    }
}

/// A whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
}

/// The bytes of a frame. What does not fit is a mistake of the caller's, and cut off.
pub(crate) fn emit(kind: u8, body: &[u8]) -> Vec<u8> {
    debug_assert!(HEADER + body.len() <= LARGEST, "a frame holds {LARGEST} bytes");
    let body = body.get(..LARGEST - HEADER).unwrap_or(body);
    let len = u16::try_from(body.len()).unwrap_or_default().to_le_bytes();
    let mut out = vec![VERSION, kind, len[0], len[1]];
    out.extend_from_slice(body);
    out
}

/// Puts frames together of bytes that come in any pieces. Holds one frame at most.
#[derive(Debug, Default)]
pub(crate) struct Reader(Vec<u8>);

impl Reader {
    /// Takes as many of `bytes` as the frame needs that is under way; tells how many.
    ///
    /// # Errors
    /// The header breaks a rule.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let header = self.fill(HEADER, bytes);
        let wanted = self.wanted()?;
        let taken = header + self.fill(wanted, bytes.get(header..).unwrap_or_default());
        Ok(taken)
    }

    /// The frame, if it is whole.
    pub(crate) fn take(&mut self) -> Option<Frame> {
        if self.0.len() < HEADER || self.0.len() < self.wanted().ok()? {
            return None;
        }
        let whole = std::mem::take(&mut self.0);
        Some(Frame { kind: *whole.get(1)?, body: whole.get(HEADER..)?.to_vec() })
    }

    /// Bytes of the whole frame, or of its header as long as that is not there.
    fn wanted(&self) -> Result<usize, Violation> {
        let &[version, _, low, high, ..] = self.0.as_slice() else { return Ok(HEADER) };
        let len = HEADER + usize::from(u16::from_le_bytes([low, high]));
        match version {
            VERSION if len <= LARGEST => Ok(len),
            VERSION => Err(Violation::FrameTooLong),
            _ => Err(Violation::VersionUnknown),
        }
    }

    fn fill(&mut self, want: usize, bytes: &[u8]) -> usize {
        let missing = want.saturating_sub(self.0.len()).min(bytes.len());
        self.0.extend(bytes.iter().take(missing));
        missing
    }
}

/// Reads a body from the front to the back.
#[derive(Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let (front, back) = self.0.split_first_chunk().ok_or(Violation::BodyMalformed)?;
        self.0 = back;
        Ok(*front)
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> Result<u8, Violation> {
        self.array().map(|[byte]| byte)
    }

    /// A byte that says how many follow, and those.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Violation> {
        let len = self.byte()?.into();
        let (front, back) = self.0.split_at_checked(len).ok_or(Violation::BodyMalformed)?;
        self.0 = back;
        Ok(front)
    }

    /// The same as text of at most `most` bytes: UTF-8 that has nothing in it to steer a terminal with.
    pub(crate) fn text(&mut self, most: usize) -> Result<String, Violation> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| Violation::BodyMalformed)?;
        if text.len() > most || text.chars().any(char::is_control) {
            return Err(Violation::BodyMalformed);
        }
        Ok(text.to_owned())
    }

    /// Nothing is left.
    pub(crate) fn end(&self) -> Result<(), Violation> {
        if self.0.is_empty() { Ok(()) } else { Err(Violation::BodyMalformed) }
    }
}

/// Appends a byte that says how many follow, and those: at most 255.
pub(crate) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    out.push(len);
    out.extend(bytes.iter().take(len.into()));
}

/// The proof at the end of a sealed body, and what is before it.
pub(crate) fn split_tag(body: &[u8]) -> Result<(&[u8], &[u8; TAG]), Violation> {
    body.split_last_chunk().ok_or(Violation::BodyMalformed)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn frames_come_whole_in_any_pieces() {
        let mut stream = emit(7, b"body");
        stream.extend(emit(8, b""));
        stream.extend(emit(9, &[1; LARGEST - HEADER]));
        for step in [1, 2, 3, 5, 1000, 4096] {
            let (mut reader, mut found) = (Reader::default(), Vec::new());
            for piece in stream.chunks(step) {
                let mut taken = 0;
                while taken < piece.len() {
                    taken += reader.push(&piece[taken..]).unwrap();
                    found.extend(reader.take().map(|frame| (frame.kind, frame.body.len())));
                }
            }
            assert_eq!(found, [(7, 4), (8, 0), (9, LARGEST - HEADER)], "{step}");
        }
    }

    #[test]
    fn a_header_that_breaks_a_rule_is_found_before_its_body_comes() {
        assert_eq!(Reader::default().push(&[2, 1, 0, 0]), Err(Violation::VersionUnknown));
        assert_eq!(Reader::default().push(&[1, 1, 0xfd, 3]), Err(Violation::FrameTooLong));
        assert_eq!(Reader::default().push(&[1, 1, 0xff, 0xff]), Err(Violation::FrameTooLong));
        assert_eq!(Reader::default().push(&[1, 1, 0xfc, 3]), Ok(4));
    }

    #[test]
    fn texts_are_short_and_steer_no_terminal() {
        let read = |bytes: &[u8]| {
            let mut body = Vec::new();
            put(&mut body, bytes);
            Fields::new(&body).text(9)
        };
        assert_eq!(read("Gérard".as_bytes()).unwrap(), "Gérard");
        for wrong in [&b"\x1b[2J"[..], b"two\nlines", b"ten letter", b"\xff", "\u{9b}".as_bytes()] {
            assert_eq!(read(wrong), Err(Violation::BodyMalformed), "{wrong:02x?}");
        }
        assert!(Fields::new(&[5, 1]).bytes().is_err());
    }
}
