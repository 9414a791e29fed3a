//! The rules of the protocol that a client can break, one name each: the connection ends. It knows no connection.

/// A rule that the client broke.
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
    /// Its name, for the journal.
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

    /// What the client did, as a piece of a sentence for people.
    #[must_use]
    pub fn why(self) -> &'static str {
        match self {
            Self::BytesAfterStartTls => "went on in the clear after it had asked for TLS",
            Self::ClientFlagsUnknown => "sent flags that there are not",
            Self::ExportNameMalformed => "asked for a disk by no name",
            Self::ExportNameWithExtendedHeaders => {
                "asked for a disk in a way that it had ruled out"
            }
            Self::OptionMagicWrong | Self::RequestMagicWrong => "did not speak NBD",
            Self::OptionTooLong => "sent an option that is too long",
            Self::OptionsTooMany => "sent too many options",
            Self::PayloadTooLong => "sent a request that is too long",
            Self::TlsWithoutFixedNewstyle => "speaks an NBD that is too old for TLS",
        }
    }
}
