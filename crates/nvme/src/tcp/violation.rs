//! Protocol violations of a peer, and the Terminate Connection Request for each (NVMe/TCP 1.0 §3.5,
//! §3.6.2.4, §3.6.2.5).

/// Fatal error status of a Terminate Connection Request.
pub(super) mod fes {
    /// Invalid PDU Header Field; FEI is its offset.
    pub(super) const INVALID_HEADER_FIELD: u16 = 0x01;
    /// PDU Sequence Error.
    pub(super) const SEQUENCE: u16 = 0x02;
    /// Header Digest Error.
    pub(super) const HEADER_DIGEST: u16 = 0x03;
    /// Data Transfer Out of Range.
    pub(super) const OUT_OF_RANGE: u16 = 0x04;
    /// Data Transfer Limit Exceeded (controller) or R2T Limit Exceeded (host).
    pub(super) const LIMIT_EXCEEDED: u16 = 0x05;
    /// Unsupported Parameter; FEI is its offset.
    pub(super) const UNSUPPORTED_PARAMETER: u16 = 0x06;
}

/// A protocol violation. It terminates the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are self-explanatory; `fes_fei` has the field")]
pub enum Violation {
    CapsuleTooLong,
    DataBeyondTransfer,
    DataLengthNotPlen,
    DataLengthZero,
    DataOffsetNotExpected,
    DataTagUnknown,
    DataForOtherCommand,
    DataTooLong,
    DataUnsolicited,
    DigestFlagMissing,
    DigestFlagUnexpected,
    HeaderDigestWrong,
    HeaderLengthWrong,
    HpdaTooLarge,
    IcReqRepeated,
    IcReqMissing,
    LastFlagMissing,
    LastFlagUnexpected,
    PdoOutOfRange,
    PdoUnaligned,
    PduFormatVersionUnknown,
    PduTypeUnknown,
    PduTypeWrongDirection,
    PlenTooShort,
    PlenWrong,
    QueueOverrun,
    SuccessWithoutLast,
    TermReqTooLong,
    CommandUnknown,
    ResponseUnexpected,
    CpdaTooLarge,
    DataMissing,
    DigestsNotAsAsked,
    HeadOutOfRange,
    IcRespMissing,
    IcRespRepeated,
    MaxH2cDataWrong,
    R2tBeyondTransfer,
    R2tLengthZero,
    R2tOffsetNotExpected,
    R2tUnexpected,
}

/// Offsets of PDU fields for FEI.
mod offset {
    pub(super) const TYPE: u32 = 0;
    pub(super) const FLAGS: u32 = 1;
    pub(super) const HLEN: u32 = 2;
    pub(super) const PDO: u32 = 3;
    pub(super) const PLEN: u32 = 4;
    pub(super) const PFV: u32 = 8;
    pub(super) const HPDA: u32 = 10;
    pub(super) const DGST: u32 = 11;
    pub(super) const MAXH2CDATA: u32 = 12;
    pub(super) const CCCID: u32 = 8;
    pub(super) const TTAG: u32 = 10;
    pub(super) const DATAO: u32 = 12;
    pub(super) const DATAL: u32 = 16;
}

impl Violation {
    /// Returns fatal error status and fatal error information for the Terminate Connection Request.
    pub fn fes_fei(self) -> (u16, u32) {
        use fes::{
            HEADER_DIGEST, INVALID_HEADER_FIELD as FIELD, LIMIT_EXCEEDED, OUT_OF_RANGE, SEQUENCE,
            UNSUPPORTED_PARAMETER,
        };
        match self {
            Self::PduTypeUnknown | Self::PduTypeWrongDirection => (FIELD, offset::TYPE),
            Self::DigestFlagMissing
            | Self::DigestFlagUnexpected
            | Self::LastFlagMissing
            | Self::LastFlagUnexpected
            | Self::SuccessWithoutLast => (FIELD, offset::FLAGS),
            Self::HeaderLengthWrong => (FIELD, offset::HLEN),
            Self::PdoOutOfRange | Self::PdoUnaligned => (FIELD, offset::PDO),
            Self::CapsuleTooLong | Self::PlenTooShort | Self::PlenWrong | Self::TermReqTooLong => {
                (FIELD, offset::PLEN)
            }
            Self::DataForOtherCommand | Self::CommandUnknown => (FIELD, offset::CCCID),
            Self::DataTagUnknown => (FIELD, offset::TTAG),
            Self::DataLengthNotPlen | Self::DataLengthZero => (FIELD, offset::DATAL),
            Self::PduFormatVersionUnknown => (UNSUPPORTED_PARAMETER, offset::PFV),
            Self::HpdaTooLarge | Self::CpdaTooLarge => (FIELD, offset::HPDA),
            Self::DigestsNotAsAsked => (FIELD, offset::DGST),
            Self::MaxH2cDataWrong => (FIELD, offset::MAXH2CDATA),
            Self::R2tLengthZero => (FIELD, offset::DATAL),
            Self::R2tOffsetNotExpected => (OUT_OF_RANGE, offset::DATAO),
            Self::R2tBeyondTransfer => (OUT_OF_RANGE, offset::DATAL),
            Self::IcReqRepeated
            | Self::IcReqMissing
            | Self::IcRespMissing
            | Self::IcRespRepeated
            | Self::DataMissing
            | Self::HeadOutOfRange
            | Self::R2tUnexpected
            | Self::DataUnsolicited
            | Self::QueueOverrun
            | Self::ResponseUnexpected => (SEQUENCE, 0),
            Self::HeaderDigestWrong => (HEADER_DIGEST, 0),
            Self::DataOffsetNotExpected => (OUT_OF_RANGE, offset::DATAO),
            Self::DataBeyondTransfer => (OUT_OF_RANGE, offset::DATAL),
            Self::DataTooLong => (LIMIT_EXCEEDED, offset::DATAL),
        }
    }

    /// Returns the name, for the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::CapsuleTooLong => "CapsuleTooLong",
            Self::DataBeyondTransfer => "DataBeyondTransfer",
            Self::DataLengthNotPlen => "DataLengthNotPlen",
            Self::DataLengthZero => "DataLengthZero",
            Self::DataOffsetNotExpected => "DataOffsetNotExpected",
            Self::DataTagUnknown => "DataTagUnknown",
            Self::DataForOtherCommand => "DataForOtherCommand",
            Self::DataTooLong => "DataTooLong",
            Self::DataUnsolicited => "DataUnsolicited",
            Self::DigestFlagMissing => "DigestFlagMissing",
            Self::DigestFlagUnexpected => "DigestFlagUnexpected",
            Self::HeaderDigestWrong => "HeaderDigestWrong",
            Self::HeaderLengthWrong => "HeaderLengthWrong",
            Self::HpdaTooLarge => "HpdaTooLarge",
            Self::IcReqRepeated => "IcReqRepeated",
            Self::IcReqMissing => "IcReqMissing",
            Self::LastFlagMissing => "LastFlagMissing",
            Self::LastFlagUnexpected => "LastFlagUnexpected",
            Self::PdoOutOfRange => "PdoOutOfRange",
            Self::PdoUnaligned => "PdoUnaligned",
            Self::PduFormatVersionUnknown => "PduFormatVersionUnknown",
            Self::PduTypeUnknown => "PduTypeUnknown",
            Self::PduTypeWrongDirection => "PduTypeWrongDirection",
            Self::PlenTooShort => "PlenTooShort",
            Self::PlenWrong => "PlenWrong",
            Self::QueueOverrun => "QueueOverrun",
            Self::SuccessWithoutLast => "SuccessWithoutLast",
            Self::TermReqTooLong => "TermReqTooLong",
            Self::CommandUnknown => "CommandUnknown",
            Self::ResponseUnexpected => "ResponseUnexpected",
            Self::CpdaTooLarge => "CpdaTooLarge",
            Self::DataMissing => "DataMissing",
            Self::DigestsNotAsAsked => "DigestsNotAsAsked",
            Self::HeadOutOfRange => "HeadOutOfRange",
            Self::IcRespMissing => "IcRespMissing",
            Self::IcRespRepeated => "IcRespRepeated",
            Self::MaxH2cDataWrong => "MaxH2cDataWrong",
            Self::R2tBeyondTransfer => "R2tBeyondTransfer",
            Self::R2tLengthZero => "R2tLengthZero",
            Self::R2tOffsetNotExpected => "R2tOffsetNotExpected",
            Self::R2tUnexpected => "R2tUnexpected",
        }
    }
}
