//! The rules of NBD that a server can violate, one name each.

use std::fmt;

/// Generates the enum from a table of names and sentences.
macro_rules! violations {
    ($($name:ident $sentence:literal)*) => {
        /// A protocol violation of the server. The client closes the connection.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Violation { $(
            #[doc = concat!("The server: ", $sentence, ".")]
            $name,
        )* }

        impl Violation {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Returns the name of the rule, for logs.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)* }
            }
        }
    };
}

violations! {
    NotNbd                 "does not speak NBD"
    Oldstyle               "uses the obsolete oldstyle handshake"
    NotFixedNewstyle       "does not support the fixed newstyle handshake"
    NoZeroesMissing        "does not support NO_ZEROES, which is required with TLS"
    BytesBeforeTls         "sent cleartext after its reply to STARTTLS, possibly injected by an attacker"
    ReplyMagicWrong        "sent an option reply with a wrong magic"
    ReplyToOtherOption     "replied to an option that was not sent"
    ReplyTooLong           "sent an option reply that is too long"
    ReplyLengthWrong       "sent an option reply whose length does not match its type"
    ReplyUnexpected        "sent an option reply whose type does not match the option"
    TooManyReplies         "sent too many replies to one option"
    TextWrong              "sent a name that is not UTF-8 or is longer than 4096 bytes"
    ExportInfoMissing      "opened an export without sending its size and flags"
    SizeImpossible         "sent an export size of 2^63 bytes or more"
    FlagsMissing           "sent no transmission flags for the export"
    BlockSizesImpossible   "sent invalid block sizes"
    ContextRepeated        "selected the same metadata context twice"
    HeaderMagicWrong       "sent a reply with a wrong magic"
    CookieUnknown          "replied to a request that is not in flight"
    OffsetWrong            "replied with the offset of another request"
    SimpleForRead          "sent a simple reply to a read although structured replies were negotiated"
    ChunkTypeUnknown       "sent a chunk of unknown type"
    ChunkUnexpected        "sent a chunk whose type does not match the request"
    ChunkLengthWrong       "sent a chunk whose length does not match its type"
    DoneMissing            "sent an empty chunk that does not end the reply"
    ContentBeyondRequest   "sent data outside the requested range"
    ContentRepeated        "sent the same data twice"
    TooManyFragments       "sent the data of a read in too many fragments"
    ContentMissing         "completed a read without sending all data"
    TooManyErrors          "sent too many errors for one request"
    ErrorZero              "sent an error chunk with error value zero"
    ErrorBeyondRequest     "sent an error for an offset outside the requested range"
    ContextUnknown         "sent a metadata context that was not negotiated"
    ExtentEmpty            "sent an empty extent"
    ExtentBeyondRequest    "sent extents outside the requested range"
    ExtentsRepeated        "sent two block status chunks for one request"
    ExtentsMissing         "completed a block status request without extents"
    TooManyExtents         "sent too many extents in one chunk"
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server {} ({})", self.sentence(), self.name())
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn violation_is_formatted_with_its_name() {
        let text = Violation::Oldstyle.to_string();
        assert!(text.starts_with("the server uses the obsolete oldstyle"), "{text}");
        assert!(text.ends_with("(Oldstyle)"), "{text}");
    }
}
