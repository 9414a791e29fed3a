//! The rules of NBD that a client can violate, one name each.

/// A protocol violation of the client. The connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the name is the rule")]
pub enum Violation {
    BytesAfterStartTls,
    ClientFlagsUnknown,
    ExportNameMalformed,
    ExportNameWithExtendedHeaders,
    OptionMagicWrong,
    OptionTooLong,
    OptionsTooMany,
    PayloadTooLong,
    RequestMagicWrong,
    TlsWithoutFixedNewstyle,
}

impl Violation {
    /// Returns the name of the rule, for the journal.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BytesAfterStartTls => "BytesAfterStartTls",
            Self::ClientFlagsUnknown => "ClientFlagsUnknown",
            Self::ExportNameMalformed => "ExportNameMalformed",
            Self::ExportNameWithExtendedHeaders => "ExportNameWithExtendedHeaders",
            Self::OptionMagicWrong => "OptionMagicWrong",
            Self::OptionTooLong => "OptionTooLong",
            Self::OptionsTooMany => "OptionsTooMany",
            Self::PayloadTooLong => "PayloadTooLong",
            Self::RequestMagicWrong => "RequestMagicWrong",
            Self::TlsWithoutFixedNewstyle => "TlsWithoutFixedNewstyle",
        }
    }

    /// Returns what the client did, as a clause for the user.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::BytesAfterStartTls => "sent cleartext after STARTTLS",
            Self::ClientFlagsUnknown => "sent unknown client flags",
            Self::ExportNameMalformed => "sent an invalid export name",
            Self::ExportNameWithExtendedHeaders => {
                "sent EXPORT_NAME after negotiating extended headers"
            }
            Self::OptionMagicWrong | Self::RequestMagicWrong => {
                "sent a wrong magic number: it is not an NBD client"
            }
            Self::OptionTooLong => "sent an option that is too long",
            Self::OptionsTooMany => "sent too many options",
            Self::PayloadTooLong => "sent a request that is too long",
            Self::TlsWithoutFixedNewstyle => {
                "does not support the fixed newstyle handshake, which TLS requires"
            }
        }
    }
}
