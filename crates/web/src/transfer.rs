//! The part of a disk that is being sent: read in pieces, some of them at once, and sent in order.

use std::collections::VecDeque;
use std::ops::Range;

use export::{
    Account, Admitted, Body, Buffer, Denied, Fault, Grant, Head, Op, Request, Segment, Ticket,
};

use crate::{MAX_MEMORY, MAX_PIECES, PIECE};

/// A transfer of bytes of a disk.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// What is not submitted yet.
    rest: Range<u64>,
    /// Pieces that are not sent yet, in the order of the disk.
    pieces: VecDeque<Piece>,
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
    /// Its data, once it has been read.
    data: Option<Buffer>,
}

/// The failure of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) fault: Fault,
    /// Offset and length in bytes.
    pub(crate) range: (u64, u64),
}

impl Transfer {
    /// Starts a transfer of these bytes.
    pub(crate) fn new(bytes: Range<u64>) -> Self {
        Self { rest: bytes, pieces: VecDeque::new() }
    }

    /// Returns whether all bytes were passed to [`Transfer::next`]'s caller.
    pub(crate) fn is_done(&self) -> bool {
        self.rest.is_empty() && self.pieces.is_empty()
    }

    /// Returns the next disk request, with the number `number`; `None` if there is none, or no memory
    /// for it now.
    ///
    /// # Errors
    /// Returns why the gate refuses it.
    pub(crate) fn submit(
        &mut self,
        grant: &Grant,
        account: &Account,
        number: u32,
    ) -> Result<Option<Admitted>, Failed> {
        let is_full = self.pieces.len() >= MAX_PIECES || account.held() >= MAX_MEMORY;
        if self.rest.is_empty() || is_full {
            return Ok(None);
        }
        let (piece, end) = self.next_piece(grant, number);
        let Some(len) = usize::try_from(piece.blocks.1).ok() else { return Ok(None) };
        let Some(buffer) = account.take(len) else { return Ok(None) };
        let (shift, (first, bytes)) = (grant.export().geometry.shift(), piece.blocks);
        let ticket = Ticket::new(number);
        let (lba, blocks, buffer) = (first >> shift, bytes >> shift, Some(buffer));
        match grant.admit(Request { op: Op::Read, lba, blocks, buffer, ticket }) {
            Ok(admitted) => {
                self.rest.start = end;
                self.pieces.push_back(piece);
                // The data is only sent.
                Ok(Some(admitted.allow_in_place(true)))
            }
            Err(denied) => {
                let Denied { fault, .. } = *denied;
                Err(Failed { fault, range: piece.blocks })
            }
        }
    }

    /// Returns the next piece, and where it ends on the disk.
    fn next_piece(&self, grant: &Grant, number: u32) -> (Piece, u64) {
        let mask = u64::from(grant.export().geometry.block()) - 1;
        let start = self.rest.start;
        // Later pieces start at multiples of their length.
        let end = (start - start % PIECE).saturating_add(PIECE).min(self.rest.end);
        let first = start & !mask;
        let past = end.saturating_add(mask) & !mask;
        let at = |offset: u64| usize::try_from(offset - first).unwrap_or(usize::MAX);
        let (blocks, part) = ((first, past - first), at(start)..at(end));
        (Piece { number, blocks, part, data: None }, end)
    }

    /// Takes the result of the request with this number. A number that is not known belongs to an
    /// earlier transfer.
    ///
    /// # Errors
    /// Returns the failure of the piece.
    pub(crate) fn complete(
        &mut self,
        number: u32,
        result: Result<(), Fault>,
        buffer: Option<Buffer>,
    ) -> Result<(), Failed> {
        let Some(piece) = self.pieces.iter_mut().find(|piece| piece.number == number) else {
            return Ok(());
        };
        result.map_err(|fault| Failed { fault, range: piece.blocks })?;
        piece.data = buffer;
        Ok(())
    }

    /// Returns the next segment to send, if its data has been read.
    pub(crate) fn next(&mut self) -> Option<Segment> {
        let data = self.pieces.front_mut()?.data.take()?;
        let Piece { part, .. } = self.pieces.pop_front()?;
        Some(Segment::with_body(Head::new(&[]), Body::Whole(data), part.start, part.len()))
    }
}
