//! The operational keys (RFC 7143 §13): what each is negotiated to.

use crate::wire::login::Status;
use crate::wire::text::{boolean, number};

/// The longest data segment that this target receives, and the longest unsolicited data.
pub(super) const MAX_RECV: u32 = 256 << 10;

/// The longest sequence of Data-In or solicited Data-Out PDUs.
const MAX_BURST: u32 = 1 << 20;

/// The highest length that a key can express.
const MAX_LEN: u32 = (1 << 24) - 1;

/// The result of the negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    pub(super) initial_r2t: bool,
    pub(super) immediate_data: bool,
    /// The longest data segment that the initiator receives.
    pub(super) max_send: u32,
    pub(super) max_burst: u32,
    pub(super) first_burst: u32,
}

/// How the value of a key is found.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Yes if both say Yes.
    And(bool),
    /// Yes if one says Yes.
    Or(bool),
    /// The lower number.
    Min { least: u32, most: u32, ours: u32 },
    /// The higher number.
    Max { most: u32, ours: u32 },
    /// The first value of the initiator's list that is in this one.
    List(&'static [&'static str]),
    /// The initiator's own limit, which is not answered.
    Declared { least: u32, most: u32 },
    /// A key of older versions, which is refused.
    Rejected,
}

/// The operational keys, their rules and their defaults. For a list, the number is an index.
const KEYS: [(&str, Rule, u32); 18] = [
    ("HeaderDigest", Rule::List(&["None", "CRC32C"]), 0),
    ("DataDigest", Rule::List(&["None", "CRC32C"]), 0),
    ("MaxConnections", Rule::Min { least: 1, most: 65535, ours: 1 }, 1),
    ("InitialR2T", Rule::Or(false), 1),
    ("ImmediateData", Rule::And(true), 1),
    ("MaxRecvDataSegmentLength", Rule::Declared { least: 512, most: MAX_LEN }, 8192),
    ("MaxBurstLength", Rule::Min { least: 512, most: MAX_LEN, ours: MAX_BURST }, 256 << 10),
    ("FirstBurstLength", Rule::Min { least: 512, most: MAX_LEN, ours: MAX_RECV }, 64 << 10),
    ("DefaultTime2Wait", Rule::Max { most: 3600, ours: 0 }, 2),
    ("DefaultTime2Retain", Rule::Min { least: 0, most: 3600, ours: 0 }, 20),
    ("MaxOutstandingR2T", Rule::Min { least: 1, most: 65535, ours: 1 }, 1),
    ("DataPDUInOrder", Rule::Or(true), 1),
    ("DataSequenceInOrder", Rule::Or(true), 1),
    ("ErrorRecoveryLevel", Rule::Min { least: 0, most: 2, ours: 0 }, 0),
    ("IFMarker", Rule::And(false), 0),
    ("OFMarker", Rule::And(false), 0),
    ("IFMarkInt", Rule::Rejected, 0),
    ("OFMarkInt", Rule::Rejected, 0),
];

/// Keys of RFC 7143 and RFC 7144 that are lists or levels.
const LATER_KEYS: [(&str, Rule); 2] = [
    ("TaskReporting", Rule::List(&["RFC3720"])),
    ("iSCSIProtocolLevel", Rule::Min { least: 0, most: 31, ours: 1 }),
];

/// The negotiation of one connection.
#[derive(Debug)]
pub(super) struct Negotiation {
    values: [u32; KEYS.len()],
    /// The keys that the initiator has sent, as bits.
    seen: u32,
}

impl Negotiation {
    pub(super) fn new() -> Self {
        Self { values: KEYS.map(|(_, _, default)| default), seen: 0 }
    }

    /// Processes a key of the initiator. Returns the value to answer, or `None` if the key is only
    /// declared.
    ///
    /// # Errors
    /// Fails if the key was sent before, or a declared value is invalid.
    pub(super) fn answer(&mut self, key: &str, value: &str) -> Result<Option<String>, Status> {
        let Some(at) = KEYS.iter().position(|(name, ..)| *name == key) else {
            let later = LATER_KEYS.iter().find(|(name, _)| *name == key);
            let answer = later.map(|(_, rule)| answer(*rule, value).1);
            return Ok(Some(answer.unwrap_or_else(|| "NotUnderstood".to_owned())));
        };
        if self.seen >> at & 1 != 0 {
            return Err(Status::INITIATOR_ERROR);
        }
        self.seen |= 1 << at;
        let rule = match (key, KEYS.get(at).map(|(_, rule, _)| *rule)) {
            (_, Some(Rule::Declared { least, most })) => {
                return self.declare(at, value, least, most);
            }
            ("FirstBurstLength", Some(Rule::Min { least, most, ours })) => {
                // It must not be above MaxBurstLength (RFC 7143 §13.14).
                Rule::Min { least, most, ours: ours.min(self.value("MaxBurstLength")) }
            }
            (_, rule) => rule.unwrap_or(Rule::Rejected),
        };
        let (number, text) = answer(rule, value);
        if let (Some(number), Some(place)) = (number, self.values.get_mut(at)) {
            *place = number;
        }
        Ok(Some(text))
    }

    fn declare(
        &mut self,
        at: usize,
        value: &str,
        least: u32,
        most: u32,
    ) -> Result<Option<String>, Status> {
        let valid = number(value).filter(|number| (least..=most).contains(number));
        let number = valid.ok_or(Status::INITIATOR_ERROR)?;
        if let Some(place) = self.values.get_mut(at) {
            *place = number;
        }
        Ok(None)
    }

    fn value(&self, key: &str) -> u32 {
        let at = KEYS.iter().position(|(name, ..)| *name == key);
        at.and_then(|at| self.values.get(at)).copied().unwrap_or(0)
    }

    /// Returns the result.
    pub(super) fn parameters(&self) -> Parameters {
        let max_burst = self.value("MaxBurstLength");
        Parameters {
            header_digest: self.value("HeaderDigest") != 0,
            data_digest: self.value("DataDigest") != 0,
            initial_r2t: self.value("InitialR2T") != 0,
            immediate_data: self.value("ImmediateData") != 0,
            max_send: self.value("MaxRecvDataSegmentLength"),
            max_burst,
            first_burst: self.value("FirstBurstLength").min(max_burst),
        }
    }
}

/// Returns the value of a key, unless the offer is invalid, and the text of the answer.
fn answer(rule: Rule, value: &str) -> (Option<u32>, String) {
    let yes = |yes: bool| (Some(yes.into()), if yes { "Yes" } else { "No" }.to_owned());
    let number_in = |least: u32, most: u32| number(value).filter(|n| (least..=most).contains(n));
    let found = match rule {
        Rule::And(ours) => boolean(value).map(|theirs| yes(theirs && ours)),
        Rule::Or(ours) => boolean(value).map(|theirs| yes(theirs || ours)),
        Rule::Min { least, most, ours } => {
            number_in(least, most).map(|theirs| theirs.min(ours)).map(numeral)
        }
        Rule::Max { most, ours } => number_in(0, most).map(|theirs| theirs.max(ours)).map(numeral),
        Rule::List(ours) => value.split(',').find_map(|offer| {
            let at = ours.iter().position(|known| *known == offer)?;
            Some((u32::try_from(at).ok(), offer.to_owned()))
        }),
        Rule::Declared { .. } | Rule::Rejected => None,
    };
    found.unwrap_or_else(|| (None, "Reject".to_owned()))
}

fn numeral(number: u32) -> (Option<u32>, String) {
    (Some(number), number.to_string())
}

#[cfg(test)]
mod test {
    use super::*;

    fn answers(pairs: &[(&str, &str)]) -> (Vec<Option<String>>, Parameters) {
        let mut negotiation = Negotiation::new();
        let answers =
            pairs.iter().map(|(key, value)| negotiation.answer(key, value).unwrap()).collect();
        (answers, negotiation.parameters())
    }

    fn one(key: &str, value: &str) -> String {
        answers(&[(key, value)]).0.remove(0).unwrap_or_default()
    }

    #[test]
    fn defaults_are_those_of_the_standard() {
        let expected = Parameters {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            max_send: 8192,
            max_burst: 262_144,
            first_burst: 65536,
        };
        assert_eq!(answers(&[]).1, expected);
    }

    /// Every key with offers within, at and beyond its limits.
    #[test]
    fn every_key_is_negotiated_to_its_limits() {
        for (key, offer, answer) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("DataDigest", "X-MD5,CRC32C", "CRC32C"),
            ("DataDigest", "X-MD5", "Reject"),
            ("MaxConnections", "8", "1"),
            ("MaxConnections", "0", "Reject"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "maybe", "Reject"),
            ("ImmediateData", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "262144", "262144"),
            ("MaxBurstLength", "511", "Reject"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("FirstBurstLength", "16776192", "262144"),
            ("FirstBurstLength", "0x10000", "65536"),
            ("DefaultTime2Wait", "2", "2"),
            ("DefaultTime2Wait", "3601", "Reject"),
            ("DefaultTime2Retain", "20", "0"),
            ("MaxOutstandingR2T", "16", "1"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "No", "Yes"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("IFMarker", "Yes", "No"),
            ("OFMarker", "No", "No"),
            ("IFMarkInt", "1~2048", "Reject"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("TaskReporting", "FastAbort", "Reject"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("X-com.example.key", "1", "NotUnderstood"),
        ] {
            assert_eq!(one(key, offer), answer, "{key}={offer}");
        }
    }

    #[test]
    fn invalid_offer_leaves_the_default() {
        let (_, parameters) = answers(&[("MaxBurstLength", "1"), ("ImmediateData", "x")]);
        assert_eq!(parameters, answers(&[]).1);
    }

    #[test]
    fn first_burst_is_at_most_max_burst() {
        let (sent, parameters) =
            answers(&[("MaxBurstLength", "16384"), ("FirstBurstLength", "65536")]);
        assert_eq!(sent[1].as_deref(), Some("16384"));
        assert_eq!(parameters.first_burst, 16384);
        assert_eq!(answers(&[("MaxBurstLength", "512")]).1.first_burst, 512);
    }

    #[test]
    fn repeated_and_invalid_declarations_are_errors() {
        let mut negotiation = Negotiation::new();
        assert_eq!(negotiation.answer("MaxRecvDataSegmentLength", "65536"), Ok(None));
        assert_eq!(negotiation.parameters().max_send, 65536);
        let error = Err(Status::INITIATOR_ERROR);
        assert_eq!(negotiation.answer("MaxRecvDataSegmentLength", "65536"), error);
        for value in ["511", "16777216", "x", ""] {
            assert_eq!(Negotiation::new().answer("MaxRecvDataSegmentLength", value), error);
        }
    }
}
