//! Parses replies of an NBD server from a stream; skips payload.

use anyhow::{Context, Result, bail};

/// "NBD, Simple reply message" and "NBD, Structured reply chunk message": the magic numbers.
const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;
/// "NBD, Structured reply flags": this chunk is the last one.
const DONE: u16 = 1;
/// "NBD, Structured reply types": this bit marks errors.
const FAILED: u16 = 1 << 15;

/// A parser of replies.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// Bytes of payload to skip.
    skip: usize,
    /// The request that is completed then.
    ends: Option<u64>,
    /// The payload of a simple reply.
    payload: usize,
}

impl Replies {
    /// Simple replies have `payload` bytes of payload.
    pub(super) fn new(payload: usize) -> Self {
        Self { payload, ..Self::default() }
    }

    /// Parses `bytes` and calls `ended` with the cookie of each completed request. Returns the
    /// number of bytes consumed.
    pub(super) fn receive(&mut self, bytes: &[u8], mut ended: impl FnMut(u64)) -> Result<usize> {
        let mut at = 0;
        loop {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            at += skipped;
            if self.skip != 0 {
                return Ok(at);
            }
            if let Some(cookie) = self.ends.take() {
                ended(cookie);
            }
            match self.header(bytes.get(at..).unwrap_or_default())? {
                0 => return Ok(at),
                len => at += len,
            }
        }
    }

    /// Parses a header; `None` if it is incomplete.
    fn header(&mut self, bytes: &[u8]) -> Result<usize> {
        let Some(&[a, b, c, d, e, f, g, h]) = bytes.first_chunk() else { return Ok(0) };
        let cookie = |bytes: &[u8; 8]| u64::from_be_bytes(*bytes);
        match u32::from_be_bytes([a, b, c, d]) {
            SIMPLE => {
                let Some((_, rest)) = bytes.get(..16).and_then(|it| it.split_first_chunk::<8>())
                else {
                    return Ok(0);
                };
                let error = u32::from_be_bytes([e, f, g, h]);
                if error != 0 {
                    bail!("the server failed a request: error {error}");
                }
                self.skip = self.payload;
                self.ends = rest.first_chunk().map(cookie);
                Ok(16)
            }
            STRUCTURED => {
                let Some((head, length)) =
                    bytes.get(..20).and_then(|it| it.split_last_chunk::<4>())
                else {
                    return Ok(0);
                };
                let (flags, kind) = (u16::from_be_bytes([e, f]), u16::from_be_bytes([g, h]));
                if kind & FAILED != 0 {
                    bail!("the server failed a request: chunk {kind:#x}");
                }
                self.skip = u32::from_be_bytes(*length) as usize;
                let cookie = head.last_chunk().map(cookie).context("no cookie")?;
                self.ends = (flags & DONE != 0).then_some(cookie);
                Ok(20)
            }
            other => bail!("no reply begins with {other:#x}"),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// Two complete replies of eight bytes, one of them in two chunks.
    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(SIMPLE.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(7u64.to_be_bytes());
        bytes.extend([0xaa; 8]);
        for (flags, len) in [(0u16, 12u32), (DONE, 0)] {
            bytes.extend(STRUCTURED.to_be_bytes());
            bytes.extend(flags.to_be_bytes());
            bytes.extend([0, u8::from(len != 0)]);
            bytes.extend(9u64.to_be_bytes());
            bytes.extend(len.to_be_bytes());
            bytes.extend(vec![0xbb; len as usize]);
        }
        bytes
    }

    #[test]
    fn stream_is_parsed_however_it_is_split() {
        let stream = stream();
        for cut in 1..=stream.len() {
            let mut replies = Replies::new(8);
            let (mut kept, mut ends) = (Vec::new(), Vec::new());
            for piece in stream.chunks(cut) {
                kept.extend_from_slice(piece);
                let taken = replies.receive(&kept, |cookie| ends.push(cookie)).unwrap();
                kept.drain(..taken);
            }
            assert_eq!(ends, [7, 9], "in pieces of {cut}");
        }
    }

    #[test]
    fn error_reply_is_reported() {
        let mut bytes = stream();
        bytes[7] = 5;
        assert!(Replies::default().receive(&bytes, |_| ()).is_err());
        assert!(Replies::default().receive(b"HTTP/1.1", |_| ()).is_err());
    }
}
