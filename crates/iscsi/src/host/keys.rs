//! The operational keys of the initiator (RFC 7143 §13): what it offers, and the result.

use super::{Offer, Violation};
use crate::wire::text::{boolean, number, push};

/// The result of the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    pub(super) initial_r2t: bool,
    pub(super) immediate_data: bool,
    /// The longest data segment that the target receives.
    pub(super) max_send: u32,
    pub(super) first_burst: u32,
    pub(super) max_burst: u32,
}

impl Parameters {
    /// Returns the values of keys that the target does not answer: the defaults.
    pub(super) fn new(offer: &Offer) -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: offer.immediate_data,
            max_send: 8192,
            first_burst: (64 << 10).min(offer.first_burst),
            max_burst: (256 << 10).min(offer.max_burst),
        }
    }

    /// Processes a key of the target. Keys that were not offered are ignored.
    pub(super) fn receive(
        &mut self,
        offer: &Offer,
        key: &str,
        value: &str,
    ) -> Result<(), Violation> {
        if matches!(value, "NotUnderstood" | "Irrelevant" | "Reject") {
            return Ok(());
        }
        let within = |least, most| {
            number(value).filter(|n| (least..=most).contains(n)).ok_or(Violation::KeyInvalid)
        };
        let yes = || boolean(value).ok_or(Violation::KeyInvalid);
        match key {
            "HeaderDigest" => self.header_digest = digest(value)?,
            "DataDigest" => self.data_digest = digest(value)?,
            "InitialR2T" => self.initial_r2t = yes()? || offer.initial_r2t,
            "ImmediateData" => self.immediate_data = yes()? && offer.immediate_data,
            "MaxRecvDataSegmentLength" => self.max_send = within(512, (1 << 24) - 1)?,
            "FirstBurstLength" => self.first_burst = within(512, offer.first_burst)?,
            "MaxBurstLength" => self.max_burst = within(512, offer.max_burst)?,
            "MaxConnections" | "MaxOutstandingR2T" => drop(within(1, 1)?),
            "ErrorRecoveryLevel" => drop(within(0, 0)?),
            _ => {}
        }
        Ok(())
    }
}

fn digest(value: &str) -> Result<bool, Violation> {
    match value {
        "None" => Ok(false),
        "CRC32C" => Ok(true),
        _ => Err(Violation::KeyInvalid),
    }
}

/// Appends the keys of a discovery session or, if `normal`, of one with a disk.
pub(super) fn push_offer(text: &mut Vec<u8>, offer: &Offer, normal: bool) {
    let yes = |yes: bool| if yes { "Yes" } else { "No" };
    let digests = if offer.digests { "CRC32C,None" } else { "None,CRC32C" };
    push(text, "HeaderDigest", digests);
    push(text, "DataDigest", digests);
    push(text, "MaxRecvDataSegmentLength", &offer.max_recv.to_string());
    push(text, "DefaultTime2Wait", "2");
    push(text, "DefaultTime2Retain", "0");
    push(text, "ErrorRecoveryLevel", "0");
    if normal {
        push(text, "InitialR2T", yes(offer.initial_r2t));
        push(text, "ImmediateData", yes(offer.immediate_data));
        push(text, "MaxBurstLength", &offer.max_burst.to_string());
        push(text, "FirstBurstLength", &offer.first_burst.to_string());
        push(text, "MaxOutstandingR2T", "1");
        push(text, "MaxConnections", "1");
        push(text, "DataPDUInOrder", "Yes");
        push(text, "DataSequenceInOrder", "Yes");
    }
}
