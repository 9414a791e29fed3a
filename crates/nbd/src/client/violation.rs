//! The rules of NBD that a server can break, one name each. It knows no connection.

use std::fmt;

/// The table of rules: name, sentence.
macro_rules! violations {
    ($($name:ident $sentence:literal)*) => {
        /// A rule that the server broke: the connection ends.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Violation { $(
            #[doc = concat!("The server: ", $sentence, ".")]
            $name,
        )* }

        impl Violation {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name, for the log.
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
    Oldstyle               "speaks the oldstyle handshake, which has been given up"
    NotFixed               "speaks the newstyle handshake without its corrections"
    NoZeroesMissing        "would send zeros that say nothing behind a secured handshake"
    BytesBeforeSecured     "sent more behind its consent to TLS, which anyone may have put there"
    ReplyMagicWrong        "sent a reply without the mark of one"
    ReplyToOtherOption     "answered an option that was not asked for"
    ReplyTooLong           "sent a reply to an option that is longer than any may be"
    ReplyLengthWrong       "sent a reply to an option whose length does not fit its kind"
    ReplyUnexpected        "sent a reply of a kind that does not belong to the option"
    RepliesEndless         "sent more replies to one option than anyone needs"
    TextWrong              "sent a name that is no UTF-8, or longer than 4096 bytes"
    ExportInfoMissing      "opened an export without saying what it is"
    SizeImpossible         "says that the export has 2^63 bytes or more"
    FlagsMissing           "says of the export that it has no flags"
    BlockSizesImpossible   "says block sizes that cannot be"
    ContextRepeated        "gave the same metadata context twice"
    HeaderMagicWrong       "sent something else where a reply begins"
    CookieUnknown          "answered a request that is not under way"
    OffsetWrong            "answered with the offset of another request"
    SimpleForRead          "answered a read without the structure that was agreed on"
    ChunkTypeUnknown       "sent a chunk of a kind that nobody knows"
    ChunkUnexpected        "sent a chunk that does not belong to the request"
    ChunkLengthWrong       "sent a chunk whose length does not fit its kind"
    DoneMissing            "left a reply open that has nothing to follow"
    ContentBeyondRequest   "sent content that was not asked for"
    ContentRepeated        "sent the same content twice"
    ContentScattered       "sent content in more pieces than anyone can keep count of"
    ContentMissing         "said that it had read, and sent not all of it"
    ErrorsEndless          "sent more errors for one request than there can be"
    ErrorZero              "sent an error that is none"
    ErrorBeyondRequest     "sent an error for content that was not asked for"
    ContextUnknown         "told of a metadata context that was not agreed on"
    ExtentEmpty            "told of an extent of no bytes"
    ExtentBeyondRequest    "told of extents that were not asked for"
    ExtentsRepeated        "told the extents twice"
    ExtentsMissing         "said that it had told the extents, and told none"
    ExtentsEndless         "told more extents than a reply may hold"
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
    fn a_violation_says_what_and_its_name() {
        let text = Violation::Oldstyle.to_string();
        assert!(text.starts_with("the server speaks the oldstyle"), "{text}");
        assert!(text.ends_with("(Oldstyle)"), "{text}");
    }
}
