//! Reception of PDUs: header, digests, data and padding, split anywhere.

use export::{Buffer, DirectRecv};
use zerocopy::FromBytes;

use super::negotiation::MAX_RECV;
use super::{MIN_DIRECT_RECV, Violation};
use crate::wire::bhs::{Bhs, LEN};
use crate::wire::digest::{Crc32c, crc32c};
use crate::wire::padding;

/// Receives one PDU at a time.
#[derive(Debug)]
pub(super) struct Receiver {
    header_digest: bool,
    data_digest: bool,
    incoming: Option<Incoming>,
}

/// A PDU whose header has been received.
#[derive(Debug)]
struct Incoming {
    header: Bhs,
    sink: Sink,
    /// Bytes of data not received yet.
    left: usize,
    /// The digest of the bytes so far, if not all of them are kept.
    crc: Option<Box<Crc32c>>,
    tail: Tail,
}

/// Padding and data digest.
#[derive(Debug, Default)]
struct Tail {
    bytes: [u8; 7],
    /// Bytes received, and their number in all.
    received: usize,
    len: usize,
}

/// Where the data of a PDU goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// Nowhere.
    Skip,
    /// To the heap: the first bytes, at most so many.
    Text(Vec<u8>, usize),
    /// To the buffer of a write.
    Task(TaskData),
}

/// Data for the task in a slot.
#[derive(Debug)]
pub(super) struct TaskData {
    pub(super) slot: u8,
    /// The buffer, unless the driver receives into it.
    pub(super) buffer: Option<Buffer>,
    /// Index of the first byte of this PDU.
    pub(super) start: usize,
    /// Index behind its last byte.
    pub(super) end: usize,
}

impl Sink {
    /// Takes bytes of the data, of which `left` are outstanding. Returns how many were consumed.
    fn take(&mut self, bytes: &[u8], left: usize) -> usize {
        let count = left.min(bytes.len());
        let bytes = bytes.get(..count).unwrap_or_default();
        match self {
            Self::Skip => {}
            Self::Text(text, most) => {
                let room = most.saturating_sub(text.len());
                text.extend_from_slice(bytes.get(..room.min(count)).unwrap_or_default());
            }
            Self::Task(TaskData { buffer, end, .. }) => {
                let at = end.saturating_sub(left);
                let place = buffer.as_mut().map(Buffer::bytes_mut).unwrap_or_default();
                // What the command does not want is skipped.
                let place = place.get_mut(at..).unwrap_or_default();
                let wanted = place.len().min(count);
                if let (Some(to), Some(from)) = (place.get_mut(..wanted), bytes.get(..wanted)) {
                    to.copy_from_slice(from);
                }
            }
        }
        count
    }

    /// Returns whether some of the data goes to a command, and some is skipped.
    fn is_cut(&self) -> bool {
        matches!(self, Self::Task(TaskData { buffer: Some(buffer), end, .. }) if *end > buffer.len())
    }

    /// Returns the data, unless it was skipped or cut off.
    fn data(&self, len: usize) -> Option<&[u8]> {
        match self {
            Self::Skip => None,
            Self::Text(text, _) => Some(&text[..]).filter(|text| text.len() == len),
            Self::Task(TaskData { buffer, start, end, .. }) => {
                buffer.as_ref().and_then(|buffer| buffer.bytes().get(*start..*end))
            }
        }
    }
}

impl Receiver {
    /// Returns a receiver for the login phase.
    pub(super) fn new() -> Self {
        Self { header_digest: false, data_digest: false, incoming: None }
    }

    /// Sets whether headers and data have digests from now on.
    pub(super) fn set_digests(&mut self, header: bool, data: bool) {
        (self.header_digest, self.data_digest) = (header, data);
    }

    /// Returns whether the data of a PDU is incomplete.
    pub(super) fn is_receiving(&self) -> bool {
        self.incoming.is_some()
    }

    /// Parses the header at the start of `bytes`. Returns it with its length, which includes
    /// additional header segments and the digest; `None` if it is incomplete.
    pub(super) fn header(&self, bytes: &[u8]) -> Result<Option<(Bhs, usize)>, Violation> {
        let Ok((header, _)) = Bhs::read_from_prefix(bytes) else { return Ok(None) };
        let digested = LEN + usize::from(header.ahs_len) * 4;
        let len = digested + if self.header_digest { 4 } else { 0 };
        let Some(all) = bytes.get(..len) else {
            // The lengths of a header without a digest can be checked at once.
            return if self.header_digest { Ok(None) } else { check(&header).map(|()| None) };
        };
        if self.header_digest {
            let (covered, digest) = all.split_at(digested);
            if crc32c(&[covered]) != digest {
                return Err(Violation::HeaderDigestWrong);
            }
        }
        check(&header)?;
        Ok(Some((header, len)))
    }

    /// Expects the data of a PDU whose header has been consumed.
    pub(super) fn expect(&mut self, header: Bhs, sink: Sink) {
        let left = header.data_len.get() as usize;
        let digest = if self.data_digest { 4 } else { 0 };
        let tail = Tail { len: padding(left) + digest, ..Tail::default() };
        self.incoming = Some(Incoming { header, sink, left, crc: None, tail });
    }

    /// Skips the data of a PDU.
    pub(super) fn skip(&mut self, header: &Bhs) {
        if header.data_len.get() != 0 {
            self.expect(*header, Sink::Skip);
        }
    }

    /// Gives memory to the data for a slot.
    pub(super) fn provide(&mut self, slot: u8, memory: Buffer) {
        if let Some(Incoming { sink: Sink::Task(task), .. }) = &mut self.incoming
            && task.slot == slot
        {
            task.buffer = Some(memory);
        }
    }

    /// Processes bytes of data and what follows it. Returns how many were consumed, and the PDU if
    /// it is complete.
    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<(usize, Option<(Bhs, Sink)>), Violation> {
        let Some(incoming) = &mut self.incoming else { return Ok((0, None)) };
        let data = incoming.sink.take(bytes, incoming.left);
        incoming.left -= data;
        if self.data_digest && incoming.sink.is_cut() {
            let crc = incoming.crc.get_or_insert_default();
            crc.update(bytes.get(..data).unwrap_or_default());
        }
        if incoming.left != 0 {
            return Ok((data, None));
        }
        let tail = incoming.tail.take(bytes.get(data..).unwrap_or_default());
        if !incoming.tail.is_complete() {
            return Ok((data + tail, None));
        }
        let Some(Incoming { header, sink, crc, tail: rest, .. }) = self.incoming.take() else {
            return Ok((data + tail, None));
        };
        let len = header.data_len.get() as usize;
        let whole = || {
            let mut crc = Crc32c::default();
            crc.update(sink.data(len)?);
            Some(crc)
        };
        // Data that was skipped is not checked.
        let crc = if self.data_digest { crc.map(|crc| *crc).or_else(whole) } else { None };
        if crc.is_some_and(|crc| !rest.is_digest_of(crc, padding(len))) {
            return Err(Violation::DataDigestWrong);
        }
        Ok((data + tail, Some((header, sink))))
    }

    /// Returns the buffer of a write for a direct receive, if enough of its data is outstanding.
    pub(super) fn direct_recv(&mut self) -> Option<DirectRecv> {
        let Incoming { sink: Sink::Task(task), left, .. } = self.incoming.as_mut()? else {
            return None;
        };
        let (end, enough) = (task.end, *left >= MIN_DIRECT_RECV);
        let buffer = task.buffer.take_if(|buffer| enough && end <= buffer.len())?;
        Some(DirectRecv { buffer, start: task.end - *left, end: task.end, token: task.slot.into() })
    }

    /// Takes the buffer of a direct receive back, with `len` bytes received into it.
    pub(super) fn direct_received(&mut self, window: DirectRecv, len: usize) {
        let Some(Incoming { sink: Sink::Task(task), left, .. }) = &mut self.incoming else {
            return;
        };
        if u32::from(task.slot) == window.token && task.buffer.is_none() {
            *left -= len.min(*left);
            task.buffer = Some(window.buffer);
        }
    }
}

fn check(header: &Bhs) -> Result<(), Violation> {
    if header.data_len.get() > MAX_RECV { Err(Violation::SegmentTooLong) } else { Ok(()) }
}

impl Tail {
    /// Takes as many bytes as are missing. Returns their number.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let place = self.bytes.get_mut(self.received..self.len).unwrap_or_default();
        let count = place.len().min(bytes.len());
        if let (Some(to), Some(from)) = (place.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        self.received += count;
        count
    }

    fn is_complete(&self) -> bool {
        self.received == self.len
    }

    /// Returns whether the digest is that of the data, whose `crc` this is, and the padding.
    fn is_digest_of(&self, mut crc: Crc32c, padding: usize) -> bool {
        let (padding, digest) = self.bytes.split_at(padding);
        crc.update(padding);
        digest.get(..4) == Some(&crc.finish()[..])
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::wire::bhs::of_target;

    fn pdu(data: &[u8], digests: bool) -> Vec<u8> {
        use zerocopy::IntoBytes;
        let mut header = of_target(0);
        header.data_len = u32::try_from(data.len()).unwrap().into();
        let mut bytes = header.as_bytes().to_vec();
        if digests {
            bytes.extend(crc32c(&[header.as_bytes()]));
        }
        let padded = [data, &vec![0; padding(data.len())]].concat();
        bytes.extend(&padded);
        if digests && !data.is_empty() {
            bytes.extend(crc32c(&[&padded]));
        }
        bytes
    }

    fn receive(bytes: &[u8], digests: bool, cut: usize) -> Result<Vec<u8>, Violation> {
        let mut receiver = Receiver::new();
        receiver.set_digests(digests, digests);
        let (header, mut at) = receiver.header(bytes)?.unwrap();
        receiver.expect(header, Sink::Text(Vec::new(), 1 << 20));
        loop {
            let end = bytes.len().min(at + cut);
            let (n, done) = receiver.data(&bytes[at..end])?;
            at += n;
            if let Some((_, Sink::Text(text, _))) = done {
                assert_eq!(at, bytes.len());
                return Ok(text);
            }
            assert!(n > 0);
        }
    }

    #[test]
    fn pdus_are_received_in_pieces_of_any_size() {
        for len in [1, 3, 4, 511, 512] {
            let data: Vec<u8> = (0..=255).cycle().take(len).collect();
            for (digests, cut) in [(false, 1), (true, 1), (true, 3), (true, 1000)] {
                assert_eq!(receive(&pdu(&data, digests), digests, cut), Ok(data.clone()));
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_found_by_a_digest() {
        let good = pdu(&[7; 10], true);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let violation = if bit / 8 < 52 {
                Violation::HeaderDigestWrong
            } else {
                Violation::DataDigestWrong
            };
            // A changed AHS length makes the header longer than what was received.
            let changes_length = bit / 8 == 4;
            if !changes_length {
                assert_eq!(receive(&bytes, true, 1000), Err(violation), "bit {bit}");
            }
        }
    }

    #[test]
    fn incomplete_header_is_left() {
        let bytes = pdu(&[], true);
        let mut receiver = Receiver::new();
        receiver.set_digests(true, true);
        for len in 0..bytes.len() {
            assert_eq!(receiver.header(&bytes[..len]), Ok(None));
        }
        assert!(receiver.header(&bytes).unwrap().is_some());
    }

    #[test]
    fn segment_above_the_limit_is_refused() {
        let mut bytes = pdu(&[], false);
        bytes[5..8].copy_from_slice(&[4, 0, 0]);
        assert!(Receiver::new().header(&bytes).unwrap().is_some());
        bytes[5..8].copy_from_slice(&[4, 0, 1]);
        assert_eq!(Receiver::new().header(&bytes), Err(Violation::SegmentTooLong));
    }
}
