//! A data transfer from the host.

use export::Buffer;

use super::MAX_TRANSFER;
use crate::tcp::Violation;

/// State of a data transfer from the host: in-capsule data, or H2CData PDUs.
#[derive(Debug)]
pub(super) struct Receiving {
    /// `None` while the driver receives into it.
    buffer: Option<Buffer>,
    got: u32,
    want: u32,
    /// Where the payload of the current PDU ends.
    pdu_end: u32,
    /// Whether a data digest was wrong. The command fails with a transient transport error.
    digest_error: bool,
    /// Whether it was requested by R2T.
    solicited: bool,
}

impl Receiving {
    /// Returns the transfer of in-capsule data.
    pub(super) fn in_capsule(buffer: Buffer, want: u32) -> Self {
        let buffer = Some(buffer);
        Self { buffer, got: 0, want, pdu_end: want, digest_error: false, solicited: false }
    }

    /// Returns a transfer that was requested by R2T.
    pub(super) fn solicited(buffer: Buffer, want: u32) -> Self {
        Self { solicited: true, pdu_end: 0, ..Self::in_capsule(buffer, want) }
    }

    /// Checks the header of an H2CData PDU, and takes its payload from now on.
    pub(super) fn begin_pdu(&mut self, offset: u32, len: u32, last: bool) -> Result<(), Violation> {
        check_pdu(offset, len, last, self.got, self.want)?;
        self.pdu_end = self.got + len;
        Ok(())
    }

    pub(super) fn is_solicited(&self) -> bool {
        self.solicited
    }

    /// Stores received payload.
    pub(super) fn append(&mut self, data: &[u8]) {
        let Some(buffer) = &mut self.buffer else { return };
        let start = self.got as usize;
        if let Some(target) = buffer.bytes_mut().get_mut(start..start + data.len()) {
            target.copy_from_slice(data);
        }
        self.advance(data.len());
    }

    fn advance(&mut self, len: usize) {
        #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
        {
            self.got += len as u32;
        }
    }

    /// Ends the payload of a PDU. Returns whether all data was received.
    pub(super) fn end_pdu(&mut self, digest_ok: bool) -> bool {
        self.digest_error |= !digest_ok;
        self.got == self.want
    }

    /// Returns the data, or `None` if a data digest was wrong.
    pub(super) fn into_data(self) -> Option<Buffer> {
        self.buffer.filter(|_| !self.digest_error)
    }

    /// Lends the buffer to the driver, with the index of the next byte.
    pub(super) fn lend(&mut self) -> Option<(Buffer, usize)> {
        Some((self.buffer.take()?, self.got as usize))
    }

    /// Takes the buffer back, with `got` bytes received.
    pub(super) fn take_back(&mut self, buffer: Buffer, got: usize) {
        self.advance(got);
        self.buffer = Some(buffer);
    }

    /// Returns the position and the end of the data that the host will send after the current PDU,
    /// if there is any.
    pub(super) fn outstanding(&self) -> Option<(u32, u32)> {
        (self.solicited && self.pdu_end < self.want).then_some((self.pdu_end, self.want))
    }
}

/// Checks H2CData against its R2T: in order, within the requested length, LAST_PDU set on the last
/// one (NVMe/TCP 1.0 §3.3.2.1, §3.6.2.8).
pub(super) fn check_pdu(
    offset: u32,
    len: u32,
    last: bool,
    got: u32,
    want: u32,
) -> Result<(), Violation> {
    if offset != got {
        return Err(Violation::DataOffsetNotExpected);
    }
    if u64::from(len) > MAX_TRANSFER {
        return Err(Violation::DataTooLong);
    }
    if len > want - got {
        return Err(Violation::DataBeyondTransfer);
    }
    match (last, len == want - got) {
        (true, false) => Err(Violation::LastFlagUnexpected),
        (false, true) => Err(Violation::LastFlagMissing),
        _ => Ok(()),
    }
}
