//! Ranges of blocks.

use export::{Grant, Op};

use crate::limits;
use crate::response::Response;
use crate::wire::sense::Sense;

/// A range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
}

impl Blocks {
    /// Checks range and access of a command, and its length for the limit of transfers.
    ///
    /// # Errors
    /// Returns the response of the command if it is refused.
    pub(crate) fn check(self, grant: &Grant, op: Op) -> Result<(), Response> {
        self.check_up_to(grant, op, limits::transfer(grant.export().geometry))
    }

    /// As [`Blocks::check`], with another limit.
    pub(crate) fn check_up_to(self, grant: &Grant, op: Op, limit: u32) -> Result<(), Response> {
        let permitted = grant.permits(op, self.lba, self.blocks.into());
        permitted.map_err(|fault| Response::fault(fault, op, self.lba))?;
        if self.blocks > limit {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        Ok(())
    }

    /// Returns its length in bytes.
    pub(crate) fn bytes(self, grant: &Grant) -> u64 {
        u64::from(self.blocks) << grant.export().geometry.shift()
    }

    /// Splits off the first piece, of at most [`PIECE`] bytes.
    pub(crate) fn split_piece(&mut self, grant: &Grant) -> Self {
        let blocks = self.blocks.min(PIECE >> grant.export().geometry.shift());
        let piece = Self { lba: self.lba, blocks };
        self.lba = self.lba.saturating_add(blocks.into());
        self.blocks -= blocks;
        piece
    }
}

/// Longest disk request of a job in bytes.
pub(crate) const PIECE: u32 = 256 << 10;
