//! The parts of a disk that are being sent: read in pieces, some of them at once, and sent in order.

use std::collections::VecDeque;
use std::ops::Range;

use export::{
    Account, Admitted, Body, Buffer, Denied, Fault, Grant, Head, Op, Request, Segment, Ticket,
};

use filesystem::Extent;

use crate::zst::{self, Encoder};
use crate::{MAX_MEMORY, MAX_PIECES, PIECE};

/// A transfer of bytes of a disk.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// What is not submitted yet.
    rest: VecDeque<Extent>,
    /// Pieces that are not sent yet, in the order of the disk.
    pieces: VecDeque<Piece>,
    /// Compresses them, if so.
    encoder: Option<Encoder>,
}

/// A piece of the disk.
#[derive(Debug)]
struct Piece {
    /// The number of its ticket.
    number: u32,
    /// Offset of its first block in bytes, and the length of its blocks.
    blocks: (u64, u64),
    /// The part of its blocks to be sent.
    part: Range<usize>,
    /// Its data, or why it could not be read, once the read has ended.
    result: Option<Result<Buffer, Fault>>,
}

impl Transfer {
    /// Starts a transfer of these bytes.
    pub(crate) fn new(bytes: Range<u64>) -> Self {
        let bytes = Some(bytes).filter(|bytes| !bytes.is_empty());
        Self::of(bytes.map(Extent::Disk).into_iter().collect())
    }

    /// Starts a transfer of these parts of a file, none of which is empty.
    pub(crate) fn of(extents: Vec<Extent>) -> Self {
        Self { rest: extents.into(), pieces: VecDeque::new(), encoder: None }
    }

    /// Starts a transfer of these bytes, compressed and in chunks.
    pub(crate) fn compressed(bytes: Range<u64>, encoder: Encoder) -> Self {
        Self { encoder: Some(encoder), ..Self::new(bytes) }
    }

    /// Returns what follows the last piece.
    ///
    /// # Errors
    /// [`Fault::Io`] if the compressed disk has another length than announced.
    pub(crate) fn trailer(&mut self) -> Result<Option<Segment>, Fault> {
        let end = self.encoder.as_mut().map(Encoder::end);
        end.map(|end| end.ok_or(Fault::Io)).transpose()
    }

    /// Returns whether all bytes were passed to [`Transfer::next`]'s caller.
    pub(crate) fn is_done(&self) -> bool {
        self.rest.is_empty() && self.pieces.is_empty()
    }

    /// Returns the next disk request, with the number `number`; `None` if there is none, no memory for
    /// it now, or if the gate refuses it.
    pub(crate) fn submit(
        &mut self,
        grant: &Grant,
        account: &Account,
        number: u32,
    ) -> Option<Admitted> {
        while self.pieces.len() < MAX_PIECES && account.held() < MAX_MEMORY {
            match self.rest.front_mut()? {
                Extent::Disk(range) => {
                    let range = range.clone();
                    return self.read(range, grant, account, number);
                }
                extent => {
                    let len = usize::try_from(extent.bytes().min(PIECE)).ok()?;
                    let mut data = account.take(len)?;
                    let bytes = data.bytes_mut().get_mut(..len)?;
                    let is_done = fill(extent, bytes);
                    let result = Some(Ok(data));
                    self.pieces.push_back(Piece { number, blocks: (0, 0), part: 0..len, result });
                    self.rest.pop_front_if(|_| is_done);
                }
            }
        }
        None
    }

    /// Returns the request for the next piece of the first part, which is this range of the disk.
    fn read(
        &mut self,
        range: Range<u64>,
        grant: &Grant,
        account: &Account,
        number: u32,
    ) -> Option<Admitted> {
        let (piece, end) = self.next_piece(&range, grant, number);
        let buffer = account.take(usize::try_from(piece.blocks.1).ok()?)?;
        let (shift, (first, bytes)) = (grant.export().geometry.shift(), piece.blocks);
        let ticket = Ticket::new(number);
        let (lba, blocks, buffer) = (first >> shift, bytes >> shift, Some(buffer));
        self.rest.pop_front();
        if end < range.end {
            self.rest.push_front(Extent::Disk(end..range.end));
        }
        self.pieces.push_back(piece);
        match grant.admit(Request { op: Op::Read, lba, blocks, buffer, ticket }) {
            // Without compression the data is only sent.
            Ok(admitted) => Some(admitted.allow_in_place(self.encoder.is_none())),
            Err(denied) => {
                let Denied { fault, .. } = *denied;
                self.end(number, Err(fault));
                None
            }
        }
    }

    /// Returns the next piece of a range, and where it ends on the disk.
    fn next_piece(&self, range: &Range<u64>, grant: &Grant, number: u32) -> (Piece, u64) {
        let mask = u64::from(grant.export().geometry.block()) - 1;
        let start = range.start;
        // Later pieces start at multiples of their length.
        let piece = if self.encoder.is_some() { zst::PIECE } else { PIECE };
        let end = (start - start % piece).saturating_add(piece).min(range.end);
        let first = start & !mask;
        let past = end.saturating_add(mask) & !mask;
        let at = |offset: u64| usize::try_from(offset - first).unwrap_or(usize::MAX);
        let (blocks, part) = ((first, past - first), at(start)..at(end));
        (Piece { number, blocks, part, result: None }, end)
    }

    /// Takes the result of the request with this number. A number that is not known belongs to an
    /// earlier transfer, or to a piece after one that failed. Returns the fault, with the offset and the
    /// length of the request in bytes, if it failed.
    pub(crate) fn complete(
        &mut self,
        number: u32,
        result: Result<(), Fault>,
        buffer: Option<Buffer>,
    ) -> Option<(Fault, (u64, u64))> {
        let result = result.and_then(|()| buffer.ok_or(Fault::Io));
        let fault = result.as_ref().err().copied();
        let range = self.end(number, result)?;
        fault.map(|fault| (fault, range))
    }

    /// Stores the result of a piece. Nothing after one that failed is read. Returns its blocks.
    fn end(&mut self, number: u32, result: Result<Buffer, Fault>) -> Option<(u64, u64)> {
        let is_it = |piece: &Piece| piece.number == number && piece.result.is_none();
        let at = self.pieces.iter().position(is_it)?;
        if result.is_err() {
            self.pieces.truncate(at + 1);
            self.rest.clear();
        }
        let piece = self.pieces.get_mut(at)?;
        piece.result = Some(result);
        Some(piece.blocks)
    }

    /// Returns the next segment to send, if its data has been read, with the number of bytes of the disk
    /// in it.
    pub(crate) fn next(&mut self) -> Option<(Segment, usize)> {
        let piece = self.pieces.pop_front_if(|piece| matches!(piece.result, Some(Ok(_))))?;
        let Piece { number, blocks, part, result } = piece;
        let data = result?.ok()?;
        let len = part.len();
        let Some(encoder) = &mut self.encoder else {
            let body = Body::Whole(data);
            return Some((Segment::with_body(Head::new(&[]), body, part.start, len), len));
        };
        let Some(segment) = encoder.chunk(data, part) else {
            let result = Some(Err(Fault::Io));
            self.pieces.push_front(Piece { number, blocks, part: 0..0, result });
            return None;
        };
        Some((segment, len))
    }

    /// Returns whether [`Transfer::next`] has a segment.
    pub(crate) fn is_ready(&self) -> bool {
        self.pieces.front().is_some_and(|piece| matches!(piece.result, Some(Ok(_))))
    }

    /// Returns the fault of the next piece to send, if it could not be read or compressed.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.pieces.front()?.result.as_ref()?.as_ref().err().copied()
    }
}

/// Moves the first bytes of a part that is not on the disk. Returns whether those were all.
fn fill(extent: &mut Extent, to: &mut [u8]) -> bool {
    match extent {
        Extent::Disk(_) => true,
        Extent::Zeros(left) => {
            to.fill(0);
            *left = left.saturating_sub(to.len() as u64);
            *left == 0
        }
        Extent::Bytes(bytes) => {
            let rest = bytes.split_off(to.len().min(bytes.len()));
            to.copy_from_slice(bytes);
            *bytes = rest;
            bytes.is_empty()
        }
    }
}
