//! The rules of iSCSI that an initiator can violate, one name each.

use crate::wire::login::Status;

/// A protocol violation of the initiator. The connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Violation {
    AnswersTooLong,
    CmdSnSkipped,
    DataDigestWrong,
    DataNotExpected,
    DataOffsetWrong,
    DataTooLong,
    HeaderDigestWrong,
    KeyInvalid,
    LoginExpected,
    LoginFieldsChanged,
    LoginFlagsInvalid,
    LoginInFullFeature,
    LoginRequestsTooMany,
    SegmentTooLong,
    TextMalformed,
    TextTooLong,
    VersionUnsupported,
}

impl Violation {
    /// Returns the name of the rule, for the journal.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AnswersTooLong => "AnswersTooLong",
            Self::CmdSnSkipped => "CmdSnSkipped",
            Self::DataDigestWrong => "DataDigestWrong",
            Self::DataNotExpected => "DataNotExpected",
            Self::DataOffsetWrong => "DataOffsetWrong",
            Self::DataTooLong => "DataTooLong",
            Self::HeaderDigestWrong => "HeaderDigestWrong",
            Self::KeyInvalid => "KeyInvalid",
            Self::LoginExpected => "LoginExpected",
            Self::LoginFieldsChanged => "LoginFieldsChanged",
            Self::LoginFlagsInvalid => "LoginFlagsInvalid",
            Self::LoginInFullFeature => "LoginInFullFeature",
            Self::LoginRequestsTooMany => "LoginRequestsTooMany",
            Self::SegmentTooLong => "SegmentTooLong",
            Self::TextMalformed => "TextMalformed",
            Self::TextTooLong => "TextTooLong",
            Self::VersionUnsupported => "VersionUnsupported",
        }
    }

    /// Returns what the initiator did, as a clause for the user.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::AnswersTooLong => "sent more keys than can be answered",
            Self::CmdSnSkipped => "left out a command sequence number",
            Self::DataDigestWrong => "sent data with a wrong digest",
            Self::DataNotExpected => "sent data that was not requested",
            Self::DataOffsetWrong => "sent data at a wrong offset",
            Self::DataTooLong => "sent more data than was requested",
            Self::HeaderDigestWrong => "sent a header with a wrong digest",
            Self::KeyInvalid => "sent an invalid or repeated key",
            Self::LoginExpected => "did not log in: it is not an iSCSI initiator",
            Self::LoginFieldsChanged => "changed its session during the login",
            Self::LoginFlagsInvalid => "sent invalid login stages",
            Self::LoginInFullFeature => "logged in twice on one connection",
            Self::LoginRequestsTooMany => "sent too many login requests",
            Self::SegmentTooLong => "sent a PDU that is too long",
            Self::TextMalformed => "sent malformed text keys",
            Self::TextTooLong => "sent too many text keys",
            Self::VersionUnsupported => "does not support this version of iSCSI",
        }
    }

    /// Returns the status of the login response, if it happens in the login phase.
    pub(super) fn login_status(self) -> Status {
        match self {
            Self::VersionUnsupported => Status::UNSUPPORTED_VERSION,
            Self::LoginFlagsInvalid | Self::LoginRequestsTooMany => Status::INVALID_REQUEST,
            _ => Status::INITIATOR_ERROR,
        }
    }
}
