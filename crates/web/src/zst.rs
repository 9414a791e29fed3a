//! Compression of a disk while it is sent (Zstandard, RFC 8878), in chunks (RFC 9112 §7.1).
//!
//! The disk is one frame, which has its length and whose last block is sent at the end: what is cut off is
//! incomplete for decoders, too. Each piece is a chunk, which takes the memory of the piece.

use std::fmt;
use std::io::Write as _;
use std::ops::Range;

use export::{Body, Buffer, Head, Network, Segment};
use zstd::stream::raw::{self, CParameter, InBuffer, Operation as _, OutBuffer};
use zstd::zstd_safe::compress_bound;

use crate::slots::{Slot, Slots};

/// Length of a piece: the largest block of a frame (RFC 8878 §3.1.1.2.4). To compress it takes less than a
/// millisecond, for which other connections of the thread wait.
pub(crate) const PIECE: u64 = 128 << 10;

/// The level of compression: the fastest that is not negative.
const LEVEL: i32 = 1;

/// Logarithm of the window (RFC 8878 §3.1.1.1.2): a piece, which decoders must keep in memory.
const WINDOW_LOG: u32 = 17;

/// Length of the longest frame header and of some block headers (RFC 8878 §3.1.1): so many more bytes
/// than the piece a chunk of blocks that are not compressed may have.
const MAX_EXCESS: usize = 32;

/// Maximum number of encoders: each takes about a megabyte.
const MAX_ENCODERS: usize = 16;

/// Ends a chunk.
const END: &[u8] = b"\r\n";

/// The encoders of all connections.
#[derive(Debug)]
pub(crate) struct Encoders(Slots);

impl Default for Encoders {
    fn default() -> Self {
        Self(Slots::new(MAX_ENCODERS))
    }
}

impl Encoders {
    /// Returns an encoder for a disk of `bytes`; `None` if this host has as many as are left, or if there
    /// is no memory for one.
    pub(crate) fn get(&self, host: Network, bytes: u64) -> Option<Encoder> {
        let slot = self.0.get(host)?;
        let mut stream = raw::Encoder::new(LEVEL).ok()?;
        stream.set_parameter(CParameter::WindowLog(WINDOW_LOG)).ok()?;
        stream.set_pledged_src_size(Some(bytes)).ok()?;
        Some(Encoder { stream, blocks: Vec::new(), has_sent: false, _slot: slot })
    }
}

/// Compresses the pieces of one response.
pub(crate) struct Encoder {
    stream: raw::Encoder<'static>,
    /// The blocks of a piece, before they are copied to its memory.
    blocks: Vec<u8>,
    /// Whether a chunk was sent, whose end comes with the next one.
    has_sent: bool,
    _slot: Slot,
}

impl Encoder {
    /// Returns the chunk with a piece: the bytes `part` of `data`. `None` if it cannot be compressed: there
    /// is no memory, or the disk has become longer.
    pub(crate) fn chunk(&mut self, mut data: Buffer, part: Range<usize>) -> Option<Segment> {
        let len = self.compress(data.bytes().get(part)?)?;
        let excess = len.saturating_sub(data.bytes().len());
        let (first, rest) = self.blocks.get(..len)?.split_at_checked(excess)?;
        if len == 0 || excess > MAX_EXCESS {
            return None;
        }
        data.bytes_mut().get_mut(..rest.len())?.copy_from_slice(rest);
        let (head, len) = (head(self.has_sent, len, first), rest.len());
        self.has_sent = true;
        Some(Segment::with_body(head, Body::Whole(data), 0, len))
    }

    /// Compresses a piece to `blocks`. Returns their length.
    fn compress(&mut self, piece: &[u8]) -> Option<usize> {
        self.blocks.resize(compress_bound(piece.len()) + MAX_EXCESS, 0);
        let mut output = OutBuffer::around(self.blocks.as_mut_slice());
        let mut input = InBuffer::around(piece);
        self.stream.run(&mut input, &mut output).ok()?;
        let left = self.stream.flush(&mut output).ok()?;
        (left == 0 && input.pos() == piece.len()).then(|| output.pos())
    }

    /// Returns the end of the last chunk, the chunk with the last block of the frame, and the end of all
    /// chunks. `None` if the disk has become shorter.
    pub(crate) fn end(&mut self) -> Option<Segment> {
        let mut last = [0; MAX_EXCESS];
        let mut output = OutBuffer::around(&mut last[..]);
        let left = self.stream.finish(&mut output, true).ok()?;
        let len = output.pos();
        let mut head = head(self.has_sent, len, last.get(..len).filter(|_| left == 0)?);
        head.push(END);
        head.push(b"0\r\n\r\n");
        Some(Segment::head(head))
    }
}

/// Returns the end of the last chunk, if there is one, and the start of a chunk of `len` bytes: its length,
/// and `more` of it.
fn head(has_sent: bool, len: usize, more: &[u8]) -> Head {
    let mut head = Head::new(if has_sent { END } else { &[] });
    let mut line = [0; 24];
    let mut rest = &mut line[..];
    // There is room for the length of any piece.
    let _ = write!(rest, "{len:x}\r\n");
    let left = rest.len();
    head.push(line.get(..line.len() - left).unwrap_or_default());
    head.push(more);
    head
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder(has sent: {})", self.has_sent)
    }
}
