//! The data that an initiator sends for a command: immediate, unsolicited and solicited
//! (RFC 7143 §4.2.4.2). All of it comes in order (DataPDUInOrder, DataSequenceInOrder).

use export::Buffer;

use super::Violation;
use super::receiver::TaskData;
use crate::wire::NO_TAG;
use crate::wire::bhs::{self, Bhs};

/// The reception of the data of one command.
#[derive(Debug, Default)]
pub(super) struct DataOut {
    /// Offset behind what was received, or is being received.
    offset: u32,
    /// DataSN of the next PDU.
    data_sn: u32,
    /// The most that the current sequence may reach to, while one is expected.
    end: Option<u32>,
    /// The tag of the current sequence.
    ttt: u32,
    r2t_sn: u32,
    /// Offset behind the data that comes without a request. Its memory is that of the stream.
    unsolicited: u32,
    piece: Option<Piece>,
    /// Offset behind the last piece.
    wanted: u32,
}

/// The part of the data that is being received.
#[derive(Debug)]
struct Piece {
    start: u32,
    len: u32,
    /// `None` while there is no memory, and while the data of a PDU is being received.
    buffer: Option<Buffer>,
}

/// A request for data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Solicited {
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) r2t_sn: u32,
}

impl DataOut {
    /// Returns the state of a command with `immediate` bytes of immediate data. Unsolicited PDUs up
    /// to `unsolicited_end` follow if that is set.
    pub(super) fn new(immediate: u32, unsolicited_end: Option<u32>) -> Self {
        let (offset, end, ttt) = (immediate, unsolicited_end, NO_TAG);
        let unsolicited = end.unwrap_or(offset);
        Self { offset, end, ttt, unsolicited, ..Self::default() }
    }

    /// Returns whether PDUs are to come.
    pub(super) fn expects(&self) -> bool {
        self.end.is_some()
    }

    /// Returns the offset behind the data that comes without a request.
    pub(super) fn unsolicited(&self) -> u32 {
        self.unsolicited
    }

    /// Returns whether PDUs are to come that are unsolicited, or go to memory of the stream.
    pub(super) fn holds_stream(&self) -> bool {
        let in_stream = |piece: &Piece| piece.start < self.unsolicited;
        self.expects() && (self.ttt == NO_TAG || self.piece.as_ref().is_some_and(in_stream))
    }

    /// Returns the offset behind what was received.
    pub(super) fn offset(&self) -> u32 {
        self.offset
    }

    /// Expects a piece of `len` bytes at `start`, of which some may have been received.
    pub(super) fn expect_piece(&mut self, start: u32, len: u32) {
        self.piece = Some(Piece { start, len, buffer: None });
        self.wanted = start.saturating_add(len);
    }

    /// Expects the next piece. Returns whether its data has not yet gone by.
    pub(super) fn expect_next_piece(&mut self, len: u32) -> bool {
        let start = self.wanted;
        self.expect_piece(start, len);
        start == 0 || start >= self.offset
    }

    /// Drops the piece: its data is skipped.
    pub(super) fn drop_piece(&mut self) {
        self.piece = None;
    }

    pub(super) fn has_piece(&self) -> bool {
        self.piece.is_some()
    }

    /// Returns the length of the piece if it needs memory.
    pub(super) fn needs_memory(&self) -> Option<usize> {
        let piece = self.piece.as_ref().filter(|piece| piece.buffer.is_none())?;
        usize::try_from(piece.len).ok()
    }

    /// Takes the memory for the piece, or takes it back after a PDU.
    pub(super) fn provide(&mut self, buffer: Buffer) {
        if let Some(piece) = &mut self.piece {
            piece.buffer = Some(buffer);
        }
    }

    /// Takes the piece if it is complete, with its offset.
    pub(super) fn take_complete(&mut self) -> Option<(u32, Buffer)> {
        let offset = self.offset;
        let full = |piece: &mut Piece| offset.saturating_sub(piece.start) >= piece.len;
        let piece = self.piece.take_if(|piece| piece.buffer.is_some() && full(piece))?;
        piece.buffer.map(|buffer| (piece.start, buffer))
    }

    /// Returns the request for what is missing of the piece, if there is memory for it and nothing
    /// else is expected. `ttt` is the tag of the sequence.
    pub(super) fn solicit(&mut self, ttt: u32, max_burst: u32) -> Option<Solicited> {
        let piece = self.piece.as_ref().filter(|piece| piece.buffer.is_some())?;
        let missing = piece.start.saturating_add(piece.len).saturating_sub(self.offset);
        if self.expects() || missing == 0 {
            return None;
        }
        let (offset, len, r2t_sn) = (self.offset, missing.min(max_burst), self.r2t_sn);
        self.r2t_sn = r2t_sn.wrapping_add(1);
        (self.end, self.ttt, self.data_sn) = (Some(offset.saturating_add(len)), ttt, 0);
        Some(Solicited { offset, len, r2t_sn })
    }

    /// Returns where the immediate data goes.
    pub(super) fn immediate(&mut self, slot: u8) -> TaskData {
        self.sink(slot, 0, self.offset)
    }

    /// Checks the header of a Data-Out PDU. Returns where its data goes, and whether it has the next
    /// DataSN.
    pub(super) fn accept(&mut self, slot: u8, header: &Bhs) -> Result<(TaskData, bool), Violation> {
        let pdu = bhs::DataOut::of(header);
        let end = self.end.filter(|_| pdu.ttt.get() == self.ttt);
        let end = end.ok_or(Violation::DataNotExpected)?;
        let (start, len) = (pdu.offset.get(), pdu.data_len.get());
        if start != self.offset {
            return Err(Violation::DataOffsetWrong);
        }
        let is_in_order = pdu.data_sn.get() == self.data_sn;
        let behind = start.checked_add(len).filter(|behind| *behind <= end);
        self.offset = behind.ok_or(Violation::DataTooLong)?;
        self.data_sn = self.data_sn.wrapping_add(1);
        if header.is_final() {
            // A solicited sequence ends where the R2T has said.
            if self.ttt != NO_TAG && self.offset != end {
                return Err(Violation::DataOffsetWrong);
            }
            self.end = None;
        }
        Ok((self.sink(slot, start, self.offset), is_in_order))
    }

    /// Returns the place of the bytes from `start` to `end` in the piece.
    fn sink(&mut self, slot: u8, start: u32, end: u32) -> TaskData {
        let at = |offset: u32, piece: u32| offset.saturating_sub(piece) as usize;
        let (first, buffer) = match &mut self.piece {
            Some(piece) => (piece.start, piece.buffer.take()),
            None => (0, None),
        };
        TaskData { slot, buffer, start: at(start, first), end: at(end, first) }
    }
}
