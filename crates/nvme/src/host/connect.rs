//! Parameters of a connection: ICReq, ICResp and Connect (NVMe/TCP 1.0 §3.1.1, NVMe Base 2.0 §6.3).

use crate::command::FabricsCommand;
use crate::tcp::{Violation, pdu};
use crate::wire::Sqe;
use crate::wire::fabrics::cattr;

/// Parameters of a queue.
#[derive(Debug, Clone)]
pub struct Options {
    /// Requests header digests.
    pub header_digest: bool,
    /// Requests data digests.
    pub data_digest: bool,
    /// HPDA: alignment of data in PDUs to the host, in dwords, 0's based: 0 to 31.
    pub hpda: u8,
    /// Queue identifier; zero is the Admin queue.
    pub qid: u16,
    /// Submission queue entries: 2 to 4096. The maximum number of commands in flight is one less.
    pub entries: u16,
    /// SQ flow control. If disabled, the controller may omit the response to a successful read.
    pub flow_control: bool,
    /// Keep Alive Timeout in milliseconds; zero disables it. Admin queue only.
    pub keep_alive: u32,
    /// Maximum in-capsule data in bytes: for an I/O queue IOCCSZ of Identify, minus the command.
    pub capsule_data: u32,
}

/// In-capsule data that every controller accepts on the Admin queue (NVMe/TCP 1.0 §3.3.2.1).
const ADMIN_CAPSULE_DATA: u32 = 8192;

impl Options {
    /// Returns an Admin queue with 32 entries, as Linux has it.
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

    /// Returns I/O queue `qid` with `entries` entries and `capsule_data` bytes of in-capsule data.
    #[must_use]
    pub fn io(qid: u16, entries: u16, capsule_data: u32) -> Self {
        Self { qid, entries, capsule_data, ..Self::admin() }
    }

    /// Returns DGST.
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

    /// Checks ICResp (NVMe/TCP 1.0 §3.6.2.3).
    ///
    /// # Errors
    /// Fails if a field is invalid, or the digests are not those requested: a controller must not
    /// silently disable them.
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
