//! Compression of a disk while it is sent (Zstandard, RFC 8878), in chunks (RFC 9112 §7.1).
//!
//! Each piece of the disk is one frame and one chunk. The compressed frame takes the memory of the piece;
//! a piece that does not become shorter is sent as it is, in a frame with one raw block.

use std::fmt;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;

use export::{Body, Buffer, Head, Segment};
use zstd::bulk::Compressor;

/// Length of a piece: the largest block of a frame (RFC 8878 §3.1.1.2.4). To compress it takes less than a
/// millisecond, for which other connections of the thread wait.
pub(crate) const PIECE: u64 = 128 << 10;

/// The level of compression: the fastest that is not negative.
const LEVEL: i32 = 1;

/// Number of a frame, frame header with a length of four bytes and without a window (RFC 8878 §3.1.1).
const FRAME: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0xa0];

/// Maximum number of encoders: each takes about a megabyte.
const MAX_ENCODERS: usize = 16;

/// Ends a chunk.
const END: &[u8] = b"\r\n";

/// Counts the encoders of all connections.
#[derive(Debug, Default)]
pub(crate) struct Encoders(Arc<()>);

impl Encoders {
    /// Returns an encoder; `None` if there are too many.
    pub(crate) fn get(&self) -> Option<Encoder> {
        (Arc::strong_count(&self.0) <= MAX_ENCODERS).then(|| Encoder::new(self.0.clone()))
    }
}

/// Compresses the pieces of one response.
pub(crate) struct Encoder {
    /// `None` if there was no memory for it.
    compressor: Option<Compressor<'static>>,
    /// The compressed frame, before it is copied to the memory of its piece.
    frame: Vec<u8>,
    /// Whether a chunk was sent, whose end comes with the next one.
    has_sent: bool,
    _counted: Arc<()>,
}

impl Encoder {
    fn new(counted: Arc<()>) -> Self {
        let compressor = Compressor::new(LEVEL).ok();
        Self { compressor, frame: Vec::new(), has_sent: false, _counted: counted }
    }

    /// Returns the chunk with a piece: the bytes `part` of `data`.
    pub(crate) fn chunk(&mut self, mut data: Buffer, part: Range<usize>) -> Segment {
        if let Some(len) = self.compressed(&mut data, &part) {
            return Segment::with_body(self.head(len, &[]), Body::Whole(data), 0, len);
        }
        let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
        let [a, b, c, _] = (len << 3 | 1).to_le_bytes();
        let frame = [&FRAME[..], &len.to_le_bytes(), &[a, b, c]].concat();
        let head = self.head(frame.len() + part.len(), &frame);
        Segment::with_body(head, Body::Whole(data), part.start, part.len())
    }

    /// Compresses the bytes `part` of `data` to its start. Returns the length of the frame; `None` if it
    /// is not shorter.
    fn compressed(&mut self, data: &mut Buffer, part: &Range<usize>) -> Option<usize> {
        let source = data.bytes().get(part.clone())?;
        self.frame.resize(part.len(), 0);
        // Fails if the frame is longer than the piece.
        let len =
            self.compressor.as_mut()?.compress_to_buffer(source, self.frame.as_mut_slice()).ok()?;
        let frame = self.frame.get(..len)?;
        data.bytes_mut().get_mut(..len)?.copy_from_slice(frame);
        Some(len)
    }

    /// Returns the end of the last chunk, and the start of the next one: its length, and `more` of it.
    fn head(&mut self, len: usize, more: &[u8]) -> Head {
        let mut head = Head::new(if self.has_sent { END } else { &[] });
        self.has_sent = true;
        let mut line = [0; 24];
        let mut rest = &mut line[..];
        // There is room for the length of any piece.
        let _ = write!(rest, "{len:x}\r\n");
        let left = rest.len();
        head.push(line.get(..line.len() - left).unwrap_or_default());
        head.push(more);
        head
    }

    /// Returns the end of the last chunk, and of all chunks.
    pub(crate) fn end(&self) -> Segment {
        let mut head = Head::new(if self.has_sent { END } else { &[] });
        head.push(b"0\r\n\r\n");
        Segment::head(head)
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder(has sent: {})", self.has_sent)
    }
}
