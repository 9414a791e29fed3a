//! The parts of a disk that are being sent: read in pieces, some of them at once, and sent in order. A piece that cannot be
//! read is read in smaller ones, up to the block that cannot be read.

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
    state: State,
}

#[derive(Debug)]
enum State {
    Reading,
    Read(Buffer),
    Failed(Fault),
    /// To be read anew, in pieces of so many bytes.
    Again(u64),
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
        if let Some(State::Again(most)) = self.pieces.front().map(|piece| &piece.state) {
            let most = *most;
            return self.read_again(most, grant, account, number);
        }
        // Nothing behind a part that may be the last one.
        if self.pieces.iter().any(|piece| matches!(piece.state, State::Again(_))) {
            return None;
        }
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
                    let state = State::Read(data);
                    self.pieces.push_back(Piece { number, blocks: (0, 0), part: 0..len, state });
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
        let most = if self.encoder.is_some() { zst::PIECE } else { PIECE };
        let (piece, end) = next_piece(&range, most, grant, number);
        let buffer = account.take(usize::try_from(piece.blocks.1).ok()?)?;
        self.rest.pop_front();
        if end < range.end {
            self.rest.push_front(Extent::Disk(end..range.end));
        }
        self.pieces.push_back(piece);
        self.admit(number, buffer, grant)
    }

    /// Returns the request for the beginning of the first piece, which is read anew.
    fn read_again(
        &mut self,
        most: u64,
        grant: &Grant,
        account: &Account,
        number: u32,
    ) -> Option<Admitted> {
        let range = self.pieces.front()?.range();
        let (piece, end) = next_piece(&range, most, grant, number);
        let buffer = account.take(usize::try_from(piece.blocks.1).ok()?)?;
        let left = self.pieces.pop_front()?;
        if end < range.end {
            let (rest, _) = next_piece(&(end..range.end), u64::MAX, grant, left.number);
            self.pieces.push_front(Piece { state: left.state, ..rest });
        }
        self.pieces.push_front(piece);
        self.admit(number, buffer, grant)
    }

    /// Returns the request for the piece of this number.
    fn admit(&mut self, number: u32, buffer: Buffer, grant: &Grant) -> Option<Admitted> {
        let piece = self.pieces.iter().find(|piece| piece.number == number)?;
        let (shift, (first, bytes)) = (grant.export().geometry.shift(), piece.blocks);
        let (lba, blocks, buffer) = (first >> shift, bytes >> shift, Some(buffer));
        let ticket = Ticket::new(number);
        match grant.admit(Request { op: Op::Read, lba, blocks, buffer, ticket }) {
            // Without compression the data is only sent.
            Ok(admitted) => Some(admitted.allow_in_place(self.encoder.is_none())),
            Err(denied) => {
                let Denied { fault, .. } = *denied;
                self.end(number, Err(fault), u64::MAX);
                None
            }
        }
    }

    /// Takes the result of the request with this number, on a disk with blocks of `block` bytes. A number that is not
    /// known belongs to an earlier transfer, or to a piece after one that failed. Returns the fault, with the offset and
    /// the length of the request in bytes, if it failed for good.
    pub(crate) fn complete(
        &mut self,
        number: u32,
        result: Result<(), Fault>,
        buffer: Option<Buffer>,
        block: u64,
    ) -> Option<(Fault, (u64, u64))> {
        self.end(number, result.and_then(|()| buffer.ok_or(Fault::Io)), block)
    }

    /// Stores the result of a piece. Nothing after one that failed is read; one of several blocks that the disk could
    /// not read is read in parts, and what was read of those after it is given up. Returns the fault of a piece that
    /// failed, and its blocks.
    fn end(
        &mut self,
        number: u32,
        result: Result<Buffer, Fault>,
        block: u64,
    ) -> Option<(Fault, (u64, u64))> {
        let is_it = |piece: &Piece| piece.number == number && matches!(piece.state, State::Reading);
        let at = self.pieces.iter().position(is_it)?;
        let piece = self.pieces.get_mut(at)?;
        match result {
            Ok(data) => {
                piece.state = State::Read(data);
                None
            }
            Err(Fault::Io) if piece.blocks.1 > block => {
                piece.state = State::Again((piece.blocks.1 / 2).next_power_of_two());
                for piece in self.pieces.iter_mut().skip(at + 1).filter(|piece| piece.blocks.1 > 0)
                {
                    piece.state = State::Again(piece.blocks.1.next_power_of_two());
                }
                None
            }
            Err(fault) => {
                piece.state = State::Failed(fault);
                let blocks = piece.blocks;
                self.pieces.truncate(at + 1);
                self.rest.clear();
                Some((fault, blocks))
            }
        }
    }

    /// Returns the next segment to send, if its data has been read, with the number of bytes of the disk
    /// in it.
    pub(crate) fn next(&mut self) -> Option<(Segment, usize)> {
        let piece = self.pieces.pop_front_if(|piece| matches!(piece.state, State::Read(_)))?;
        let Piece { number, blocks, part, state: State::Read(data) } = piece else { return None };
        let len = part.len();
        let Some(encoder) = &mut self.encoder else {
            let body = Body::Whole(data);
            return Some((Segment::with_body(Head::new(&[]), body, part.start, len), len));
        };
        let Some(segment) = encoder.chunk(data, part) else {
            let state = State::Failed(Fault::Io);
            self.pieces.push_front(Piece { number, blocks, part: 0..0, state });
            return None;
        };
        Some((segment, len))
    }

    /// Returns whether [`Transfer::next`] has a segment.
    pub(crate) fn is_ready(&self) -> bool {
        self.pieces.front().is_some_and(|piece| matches!(piece.state, State::Read(_)))
    }

    /// Returns the fault of the next piece to send, if it could not be read or compressed.
    pub(crate) fn fault(&self) -> Option<Fault> {
        match self.pieces.front()?.state {
            State::Failed(fault) => Some(fault),
            _ => None,
        }
    }
}

impl Piece {
    /// Returns the bytes of the disk to be sent.
    fn range(&self) -> Range<u64> {
        self.blocks.0 + self.part.start as u64..self.blocks.0 + self.part.end as u64
    }
}

/// Returns the next piece of a range, up to the next multiple of `most` bytes, and where it ends on the disk.
fn next_piece(range: &Range<u64>, most: u64, grant: &Grant, number: u32) -> (Piece, u64) {
    let mask = u64::from(grant.export().geometry.block()) - 1;
    let start = range.start;
    // Later pieces start at multiples of their length.
    let end = (start - start % most).saturating_add(most).min(range.end);
    let first = start & !mask;
    let past = end.saturating_add(mask) & !mask;
    let at = |offset: u64| usize::try_from(offset - first).unwrap_or(usize::MAX);
    let (blocks, part) = ((first, past - first), at(start)..at(end));
    (Piece { number, blocks, part, state: State::Reading }, end)
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
