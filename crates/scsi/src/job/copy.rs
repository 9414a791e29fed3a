//! EXTENDED COPY: reads and writes one piece after the other.

use std::rc::Rc;

use export::{Buffer, Grant};

use super::work::{Action, DiskRequest, Work};
use crate::copy::{Part, check_length, parse};
use crate::range::Blocks;
use crate::response::Response;
use crate::settings::{LastCopy, Settings};

/// EXTENDED COPY (LID1).
#[derive(Debug)]
pub(super) struct ExtendedCopy {
    length: u32,
    list: Option<Buffer>,
    /// The parts, last first.
    parts: Option<Vec<Part>>,
    /// The destination of the piece that is read or written.
    piece: Option<Blocks>,
    /// A piece that was read.
    data: Option<Buffer>,
    writing: bool,
    state: LastCopy,
    /// Where the initiator finds the state.
    settings: Rc<Settings>,
}

impl ExtendedCopy {
    pub(super) fn new(length: u32, settings: Rc<Settings>) -> Result<Self, Response> {
        check_length(length)?;
        let state = LastCopy { list_id: 0, succeeded: None, segments: 0, bytes: 0 };
        let (list, parts, piece, data) = Default::default();
        Ok(Self { length, list, parts, piece, data, writing: false, state, settings })
    }

    /// Reads the next piece, or ends the copy.
    fn read(&mut self, grant: &Grant) -> Action {
        let parts = self.parts.get_or_insert_default();
        while let Some(part) = parts.last_mut() {
            if part.source.blocks != 0 {
                let source = part.source.split_piece(grant);
                self.piece = Some(Blocks { lba: part.destination, blocks: source.blocks });
                part.destination = part.destination.saturating_add(source.blocks.into());
                return Action::read(grant, source, false);
            }
            parts.pop();
            self.state.segments += 1;
        }
        self.state.succeeded = Some(true);
        self.settings.last_copy.set(Some(self.state));
        Action::End(Response::good())
    }
}

impl Work for ExtendedCopy {
    fn data_out(&self) -> u64 {
        self.length.into()
    }

    fn next(&mut self, grant: &Grant) -> Action {
        if self.length == 0 {
            return Action::End(Response::good());
        }
        if let Some(list) = self.list.take() {
            match parse(grant, list.bytes()) {
                Ok((list_id, parts)) => {
                    self.parts = Some(parts.into_iter().rev().collect());
                    // Failed unless it ends.
                    self.state = LastCopy { list_id, succeeded: Some(false), ..self.state };
                    let begun = LastCopy { succeeded: None, ..self.state };
                    self.settings.last_copy.set(Some(begun));
                }
                Err(response) => return Action::End(response),
            }
        }
        if self.parts.is_none() {
            return Action::Receive(usize::try_from(self.length).unwrap_or(usize::MAX));
        }
        match (self.data.take(), self.piece) {
            (Some(data), Some(piece)) => {
                self.writing = true;
                Action::Request(DiskRequest::write(piece, false, data))
            }
            _ => self.read(grant),
        }
    }

    fn received(&mut self, buffer: Buffer) {
        self.list = Some(buffer);
    }

    fn completed(&mut self, buffer: Option<Buffer>) {
        if !std::mem::take(&mut self.writing) {
            self.data = buffer;
        } else if let Some(buffer) = buffer {
            self.state.bytes += buffer.len() as u64;
        }
    }
}

impl Drop for ExtendedCopy {
    fn drop(&mut self) {
        if self.parts.is_some() {
            self.settings.last_copy.set(Some(self.state));
        }
    }
}
