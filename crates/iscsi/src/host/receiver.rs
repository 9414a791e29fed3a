//! Reception of the PDUs of a target: header, data, padding and digests, split anywhere.

use export::{Buffer, DirectRecv};
use zerocopy::FromBytes;

use super::Violation;
use crate::wire::bhs::{Bhs, LEN};
use crate::wire::digest::{Crc32c, crc32c};
use crate::wire::opcode::{DATA_IN, R2T, SCSI_RESPONSE};
use crate::wire::padding;

/// Minimum number of outstanding data bytes for a direct receive.
const MIN_DIRECT_RECV: usize = 8192;

/// Receives one PDU at a time.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    /// Bytes of headers and data of PDUs that answer commands.
    pub(super) received: u64,
    incoming: Option<Incoming>,
}

/// A PDU whose header has been received.
#[derive(Debug)]
struct Incoming {
    header: Bhs,
    sink: Sink,
    /// Bytes of data not received yet.
    left: usize,
    crc: Option<Box<Crc32c>>,
    /// Padding and digest received, and their length in all.
    tail: Vec<u8>,
    tail_len: usize,
}

/// Where the data of a PDU goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// To the heap.
    Bytes(Vec<u8>),
    /// To the buffer of a read, from this index on; `None` while the driver receives into it.
    Buffer(Option<Buffer>, usize),
}

impl Receiver {
    /// Returns whether a header is expected next.
    pub(super) fn is_idle(&self) -> bool {
        self.incoming.is_none()
    }

    /// Parses the header at the start of `bytes`, whose data is at most `max` bytes. Returns it with
    /// its length on the wire, or `None` if it is incomplete.
    pub(super) fn header(&self, bytes: &[u8], max: u32) -> Result<Option<(Bhs, usize)>, Violation> {
        let len = if self.header_digest { LEN + 4 } else { LEN };
        let Some((covered, digest)) = bytes.get(..len).map(|all| all.split_at(LEN)) else {
            return Ok(None);
        };
        if self.header_digest && crc32c(&[covered]) != digest {
            return Err(Violation::HeaderDigestWrong);
        }
        let Ok(header) = Bhs::read_from_bytes(covered) else { return Ok(None) };
        if header.ahs_len != 0 {
            return Err(Violation::AhsUnexpected);
        }
        if header.data_len.get() > max {
            return Err(Violation::SegmentTooLong);
        }
        Ok(Some((header, len)))
    }

    /// Expects the data of a PDU whose header has been consumed.
    pub(super) fn expect(&mut self, header: Bhs, sink: Sink) {
        let left = header.data_len.get() as usize;
        self.count(&header, LEN);
        let digests = self.data_digest && left != 0;
        let tail_len = padding(left) + if digests { 4 } else { 0 };
        let crc = digests.then(Box::default);
        self.incoming = Some(Incoming { header, sink, left, crc, tail: Vec::new(), tail_len });
    }

    /// Takes bytes of the PDU. Returns how many were consumed.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        let Some(Incoming { header, left, .. }) = &self.incoming else { return 0 };
        let (header, count) = (*header, (*left).min(bytes.len()));
        self.count(&header, count);
        let Some(incoming) = &mut self.incoming else { return 0 };
        let (data, rest) = bytes.split_at(count);
        incoming.store(data);
        let missing = incoming.tail_len - incoming.tail.len();
        let tail = rest.get(..missing.min(rest.len())).unwrap_or_default();
        if incoming.left != 0 {
            return count;
        }
        incoming.tail.extend_from_slice(tail);
        count + tail.len()
    }

    fn count(&mut self, header: &Bhs, len: usize) {
        if matches!(header.opcode(), DATA_IN | R2T | SCSI_RESPONSE) {
            self.received = self.received.saturating_add(len as u64);
        }
    }

    /// Returns the PDU once it is complete.
    pub(super) fn complete(&mut self) -> Result<Option<(Bhs, Sink)>, Violation> {
        let whole = |it: &mut Incoming| it.left == 0 && it.tail.len() == it.tail_len;
        let Some(incoming) = self.incoming.take_if(whole) else { return Ok(None) };
        if let Some(mut crc) = incoming.crc {
            let (padding, digest) = incoming
                .tail
                .split_at(incoming.tail_len.saturating_sub(4).min(incoming.tail.len()));
            crc.update(padding);
            if crc.finish() != digest {
                return Err(Violation::DataDigestWrong);
            }
        }
        Ok(Some((incoming.header, incoming.sink)))
    }

    /// See [`super::Initiator::direct_recv`].
    pub(super) fn direct_recv(&mut self) -> Option<DirectRecv> {
        let incoming = self.incoming.as_mut().filter(|it| it.left >= MIN_DIRECT_RECV)?;
        let Sink::Buffer(buffer, start) = &mut incoming.sink else { return None };
        let (start, end) = (*start, *start + incoming.left);
        Some(DirectRecv { buffer: buffer.take()?, start, end, token: 0 })
    }

    /// See [`super::Initiator::direct_received`].
    pub(super) fn direct_received(&mut self, direct: DirectRecv, got: usize) {
        let DirectRecv { buffer, start, end, .. } = direct;
        let got = got.min(end.saturating_sub(start));
        let Some(incoming) = &mut self.incoming else { return };
        self.received = self.received.saturating_add(got as u64);
        if let Some(crc) = &mut incoming.crc {
            crc.update(buffer.bytes().get(start..start + got).unwrap_or_default());
        }
        incoming.left = incoming.left.saturating_sub(got);
        incoming.sink = Sink::Buffer(Some(buffer), start + got);
    }
}

impl Incoming {
    fn store(&mut self, data: &[u8]) {
        if let Some(crc) = &mut self.crc {
            crc.update(data);
        }
        self.left -= data.len();
        match &mut self.sink {
            Sink::Bytes(bytes) => bytes.extend_from_slice(data),
            Sink::Buffer(buffer, at) => {
                let place = buffer.as_mut().map(Buffer::bytes_mut).unwrap_or_default();
                if let Some(place) = place.get_mut(*at..*at + data.len()) {
                    place.copy_from_slice(data);
                }
                *at += data.len();
            }
        }
    }
}
