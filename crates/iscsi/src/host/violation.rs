//! The rules of iSCSI that a target can violate, one name each.

use std::fmt;

/// Generates the enum from a table of names and clauses.
macro_rules! violations {
    ($($name:ident $clause:literal)*) => {
        /// A protocol violation of the target. The initiator closes the connection.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Violation { $(
            #[doc = concat!("The target: ", $clause, ".")]
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

            fn clause(self) -> &'static str {
                match self { $(Self::$name => $clause,)* }
            }
        }
    };
}

violations! {
    AhsUnexpected       "sent an additional header segment"
    ChapInvalid         "sent an invalid CHAP challenge"
    DataDigestWrong     "sent data with a wrong digest"
    DataEmpty           "sent data of no length"
    DataNotExpected     "sent data for a command that reads none"
    DataOffsetWrong     "sent data out of order"
    DataSnWrong         "sent data with a wrong number"
    DataTooLong         "sent more data than was requested"
    HeaderDigestWrong   "sent a header with a wrong digest"
    KeyInvalid          "sent an invalid value of a text key"
    LoginExpected       "did not answer the login: it is not an iSCSI target"
    LoginStageWrong     "answered the login with a wrong stage"
    LoginTooLong        "did not end the login"
    OpcodeUnexpected    "sent a PDU of an unexpected type"
    PingsTooMany        "sent too many pings"
    R2tInvalid          "requested data that is not to be written"
    R2tsTooMany         "requested the data of a command in too many pieces"
    R2tSnWrong          "requested data with a wrong number"
    SegmentTooLong      "sent a PDU that is too long"
    SenseInvalid        "sent invalid sense data"
    StatSnWrong         "sent a status with a wrong number"
    TagUnknown          "answered a command that is not in flight"
    TextMalformed       "sent malformed text keys"
    TextTooLong         "sent too many text keys"
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the target {} ({})", self.clause(), self.name())
    }
}

impl std::error::Error for Violation {}
