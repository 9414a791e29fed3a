//! The beginning of a connection: Initialize Connection Request and Response, then Connect (NVMe/TCP 1.0 §3.1.1,
//! NVMe Base 2.0 §6.3). It knows no command after them.

use crate::command::FabricsCommand;
use crate::tcp::{Violation, pdu};
use crate::wire::Sqe;
use crate::wire::fabrics::cattr;

/// How a queue is to be connected.
#[derive(Debug, Clone)]
pub struct Options {
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// Host PDU data alignment, in dwords, zero's based: 0 to 31.
    pub hpda: u8,
    /// Queue identifier: zero is the Admin queue.
    pub qid: u16,
    /// Entries of the submission queue: 2 to 4096. One less than this many commands can be under way.
    pub entries: u16,
    /// Whether the controller reports how far it has read the submission queue. Without, it may leave out the answer to
    /// a read that succeeded.
    pub flow_control: bool,
    /// Keep Alive Timeout in milliseconds; zero is none. For the Admin queue only.
    pub keep_alive: u32,
    /// Bytes of data that a capsule may carry; for an I/O queue, what Identify's IOCCSZ says less the command itself.
    pub capsule_data: u32,
}

/// Bytes of data that every controller takes in a capsule of its Admin queue (NVMe/TCP 1.0 §3.3.2.1).
const ADMIN_CAPSULE_DATA: u32 = 8192;

impl Options {
    /// An Admin queue of 32 entries, as Linux asks for it.
    #[must_use]
    pub fn admin() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            hpda: 0,
            qid: 0,
            entries: 32,
            flow_control: true,
            keep_alive: 0,
            capsule_data: ADMIN_CAPSULE_DATA,
        }
    }

    /// I/O queue `qid`, with `entries` entries and room for `capsule_data` bytes in a capsule.
    #[must_use]
    pub fn io(qid: u16, entries: u16, capsule_data: u32) -> Self {
        Self { qid, entries, capsule_data, ..Self::admin() }
    }

    /// DGST of the Initialize Connection Request.
    pub(super) fn digests(&self) -> u8 {
        u8::from(self.header_digest) | u8::from(self.data_digest) << 1
    }

    pub(super) fn request(&self) -> pdu::IcReq {
        pdu::IcReq::new(self.hpda.min(31), self.digests(), 0)
    }

    pub(super) fn connect(&self) -> Sqe {
        let cattr = if self.flow_control { 0 } else { cattr::DISABLE_SQ_FLOW_CONTROL };
        let (qid, sqsize, kato) = (self.qid, self.entries.into(), self.keep_alive);
        FabricsCommand::Connect { recfmt: 0, qid, sqsize, cattr, kato }.emit()
    }

    /// What Initialize Connection Response must say (NVMe/TCP 1.0 §3.6.2.3).
    ///
    /// # Errors
    /// The field that is wrong. Digests must be those that were asked for: a controller that leaves them out would
    /// have the host believe in a protection that is not there.
    pub(super) fn check(&self, response: &pdu::IcResp) -> Result<(), Violation> {
        let maxh2cdata = response.maxh2cdata.get();
        if response.pfv.get() != 0 {
            return Err(Violation::PduFormatVersionUnknown);
        }
        if response.cpda > 31 {
            return Err(Violation::CpdaTooLarge);
        }
        if response.dgst != self.digests() {
            return Err(Violation::DigestsNotAsAsked);
        }
        if maxh2cdata < 4096 || !maxh2cdata.is_multiple_of(4) {
            return Err(Violation::MaxH2cDataWrong);
        }
        Ok(())
    }
}
