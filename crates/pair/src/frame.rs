//! Framing: version, message type, length, body.

use crate::agreement::TAG_LEN;

/// The version of the protocol.
pub(crate) const VERSION: u8 = 1;

/// Length of the header in bytes: version, type, length (little-endian).
const HEADER_LEN: usize = 4;

/// Maximum length of a frame in bytes.
pub(crate) const MAX_FRAME_LEN: usize = 1024;

/// A protocol violation of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// Unsupported version of the protocol.
    VersionUnknown,
    /// A frame of more than [`MAX_FRAME_LEN`] bytes.
    FrameTooLong,
    /// Unknown message type.
    TypeUnknown,
    /// The message is not allowed in this phase.
    OutOfTurn,
    /// The body does not match its type.
    BodyMalformed,
}

impl Violation {
    /// Returns the name of the rule, for the journal.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::VersionUnknown => "PairVersionUnknown",
            Self::FrameTooLong => "PairFrameTooLong",
            Self::TypeUnknown => "PairKindUnknown",
            Self::OutOfTurn => "PairOutOfTurn",
            Self::BodyMalformed => "PairBodyMalformed",
        }
    }
}

/// A complete frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) message_type: u8,
    pub(crate) body: Vec<u8>,
}

/// Encodes a frame. The caller must not pass a body that does not fit.
pub(crate) fn emit(message_type: u8, body: &[u8]) -> Vec<u8> {
    debug_assert!(HEADER_LEN + body.len() <= MAX_FRAME_LEN, "a frame holds {MAX_FRAME_LEN} bytes");
    let body = body.get(..MAX_FRAME_LEN - HEADER_LEN).unwrap_or(body);
    let len = u16::try_from(body.len()).unwrap_or_default().to_le_bytes();
    let mut out = vec![VERSION, message_type, len[0], len[1]];
    out.extend_from_slice(body);
    out
}

/// Reassembles frames from received bytes. Buffers at max_len one frame.
#[derive(Debug, Default)]
pub(crate) struct Reader(Vec<u8>);

impl Reader {
    /// Consumes bytes up to the end of the current frame. Returns how many.
    ///
    /// # Errors
    /// Fails if the header is invalid.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let header = self.fill(HEADER_LEN, bytes);
        let wanted = self.wanted()?;
        let taken = header + self.fill(wanted, bytes.get(header..).unwrap_or_default());
        Ok(taken)
    }

    /// Takes the current frame, if it is complete.
    pub(crate) fn take(&mut self) -> Option<Frame> {
        if self.0.len() < HEADER_LEN || self.0.len() < self.wanted().ok()? {
            return None;
        }
        let whole = std::mem::take(&mut self.0);
        Some(Frame { message_type: *whole.get(1)?, body: whole.get(HEADER_LEN..)?.to_vec() })
    }

    /// Returns the length of the current frame, or of its header while that is incomplete.
    fn wanted(&self) -> Result<usize, Violation> {
        let &[version, _, low, high, ..] = self.0.as_slice() else { return Ok(HEADER_LEN) };
        let len = HEADER_LEN + usize::from(u16::from_le_bytes([low, high]));
        match version {
            VERSION if len <= MAX_FRAME_LEN => Ok(len),
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

/// Parses a body from front to back.
#[derive(Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// Parses `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let (front, back) = self.0.split_first_chunk().ok_or(Violation::BodyMalformed)?;
        self.0 = back;
        Ok(*front)
    }

    /// Parses one byte.
    pub(crate) fn byte(&mut self) -> Result<u8, Violation> {
        self.array().map(|[byte]| byte)
    }

    /// Parses a length byte and as many bytes.
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Violation> {
        let len = self.byte()?.into();
        let (front, back) = self.0.split_at_checked(len).ok_or(Violation::BodyMalformed)?;
        self.0 = back;
        Ok(front)
    }

    /// Parses a length byte and text of at max_len `max_len` bytes: UTF-8 without control characters.
    pub(crate) fn text(&mut self, max_len: usize) -> Result<String, Violation> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| Violation::BodyMalformed)?;
        if text.len() > max_len || text.chars().any(char::is_control) {
            return Err(Violation::BodyMalformed);
        }
        Ok(text.to_owned())
    }

    /// Fails if bytes are left.
    pub(crate) fn end(&self) -> Result<(), Violation> {
        if self.0.is_empty() { Ok(()) } else { Err(Violation::BodyMalformed) }
    }
}

/// Appends a length byte and the bytes, at max_len 255.
pub(crate) fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    out.push(len);
    out.extend(bytes.iter().take(len.into()));
}

/// Splits the tag off the end of an authenticated body.
pub(crate) fn split_tag(body: &[u8]) -> Result<(&[u8], &[u8; TAG_LEN]), Violation> {
    body.split_last_chunk().ok_or(Violation::BodyMalformed)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn frames_are_reassembled_from_any_pieces() {
        let mut stream = emit(7, b"body");
        stream.extend(emit(8, b""));
        stream.extend(emit(9, &[1; MAX_FRAME_LEN - HEADER_LEN]));
        for step in [1, 2, 3, 5, 1000, 4096] {
            let (mut reader, mut found) = (Reader::default(), Vec::new());
            for piece in stream.chunks(step) {
                let mut taken = 0;
                while taken < piece.len() {
                    taken += reader.push(&piece[taken..]).unwrap();
                    found.extend(reader.take().map(|frame| (frame.message_type, frame.body.len())));
                }
            }
            assert_eq!(found, [(7, 4), (8, 0), (9, MAX_FRAME_LEN - HEADER_LEN)], "{step}");
        }
    }

    #[test]
    fn invalid_header_is_refused_before_its_body() {
        assert_eq!(Reader::default().push(&[2, 1, 0, 0]), Err(Violation::VersionUnknown));
        assert_eq!(Reader::default().push(&[1, 1, 0xfd, 3]), Err(Violation::FrameTooLong));
        assert_eq!(Reader::default().push(&[1, 1, 0xff, 0xff]), Err(Violation::FrameTooLong));
        assert_eq!(Reader::default().push(&[1, 1, 0xfc, 3]), Ok(4));
    }

    #[test]
    fn texts_are_bounded_and_free_of_control_characters() {
        let read = |bytes: &[u8]| {
            let mut body = Vec::new();
            put_prefixed(&mut body, bytes);
            Fields::new(&body).text(9)
        };
        assert_eq!(read("Gérard".as_bytes()).unwrap(), "Gérard");
        for wrong in [&b"\x1b[2J"[..], b"two\nlines", b"ten letter", b"\xff", "\u{9b}".as_bytes()] {
            assert_eq!(read(wrong), Err(Violation::BodyMalformed), "{wrong:02x?}");
        }
        assert!(Fields::new(&[5, 1]).bytes().is_err());
    }
}
