//! The start of a connection in the clear, where TLS may or must follow: the hello, and options
//! until STARTTLS (NBD, TLS support). Of what is negotiated here only one client flag carries over
//! to the session.

use zerocopy::{FromBytes, IntoBytes};

use super::{MAX_OPTION_DATA, MAX_SKIP, Violation};
use crate::wire::handshake::{C_FIXED_NEWSTYLE, C_NO_ZEROES, ClientFlags, Hello, IHAVEOPT};
use crate::wire::option::{self, OptionHeader, ReplyHeader};

/// Maximum number of options before STARTTLS.
const MAX_OPTIONS: u32 = 64;

/// What happens to the connection next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Receive more.
    Wait,
    /// Create a session in the clear with [`super::Start::HelloSent`], and pass it all bytes not
    /// consumed.
    Plain,
    /// Start TLS once the reply is sent, and create a session with [`super::Start::InTls`] inside
    /// it.
    StartTls {
        /// Whether the client's flags had [`C_NO_ZEROES`].
        no_zeroes: bool,
    },
    /// Close: the client violated the protocol, as the clause describes.
    Refuse(&'static str),
    /// Send the reply and close: the client is done.
    Close,
}

/// The result of [`Greeter::receive`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaction {
    /// Number of bytes consumed. The rest must be passed again together with what follows.
    pub consumed: usize,
    /// Bytes to send.
    pub reply: Vec<u8>,
    /// What happens next.
    pub next: Next,
}

/// The server side of a connection before its session exists.
#[derive(Debug)]
pub struct Greeter {
    require_tls: bool,
    tls_available: bool,
    hello_sent: bool,
    /// The client flags, once received.
    flags: Option<u32>,
    options: u32,
    /// Bytes of option data still to be skipped.
    skip: u64,
}

/// Creates a greeter. With `require_tls`, no option is answered before TLS. Without
/// `tls_available`, only the hello is sent.
#[must_use]
pub fn greet(require_tls: bool, tls_available: bool) -> Greeter {
    Greeter { require_tls, tls_available, hello_sent: false, flags: None, options: 0, skip: 0 }
}

impl Greeter {
    /// Processes received bytes. Must be called once with no bytes, and then whenever more have
    /// arrived, with all bytes not consumed so far.
    pub fn receive(&mut self, bytes: &[u8]) -> Reaction {
        let mut reaction = Reaction { consumed: 0, reply: Vec::new(), next: Next::Wait };
        if !std::mem::replace(&mut self.hello_sent, true) {
            reaction.reply.extend_from_slice(Hello::new().as_bytes());
        }
        reaction.next = if self.require_tls {
            self.require_starttls(bytes, &mut reaction)
        } else if self.tls_available {
            self.detect_starttls(bytes, &mut reaction)
        } else {
            Next::Plain
        };
        reaction
    }

    /// Optional TLS: consumes nothing unless the first option is STARTTLS.
    fn detect_starttls(&self, bytes: &[u8], reaction: &mut Reaction) -> Next {
        let Ok((flags, rest)) = ClientFlags::read_from_prefix(bytes) else { return Next::Wait };
        let Ok((header, rest)) = OptionHeader::read_from_prefix(rest) else { return Next::Wait };
        let asks = header.magic.get() == IHAVEOPT
            && (header.option.get(), header.len.get()) == (option::STARTTLS, 0);
        match check_flags(flags.get(), true) {
            Ok(()) if asks => {
                reaction.consumed = bytes.len() - rest.len();
                start_tls(flags.get(), rest, reaction)
            }
            _ => Next::Plain,
        }
    }

    /// Required TLS (NBD, FORCEDTLS mode).
    fn require_starttls(&mut self, bytes: &[u8], reaction: &mut Reaction) -> Next {
        let mut left = bytes;
        let next = loop {
            match self.step(&mut left, reaction) {
                Ok(Some(Next::Wait)) => {}
                Ok(Some(next)) => break next,
                Ok(None) => break Next::Wait,
                Err(violation) => break Next::Refuse(violation.description()),
            }
        };
        reaction.consumed = bytes.len() - left.len();
        next
    }

    /// Processes client flags or one option. Returns `None` if it is incomplete.
    fn step(
        &mut self,
        left: &mut &[u8],
        reaction: &mut Reaction,
    ) -> Result<Option<Next>, Violation> {
        self.drop_data(left);
        if left.is_empty() || self.skip != 0 {
            return Ok(None);
        }
        let Some(flags) = self.flags else {
            let Ok((flags, rest)) = ClientFlags::read_from_prefix(left) else { return Ok(None) };
            check_flags(flags.get(), true)?;
            (self.flags, *left) = (Some(flags.get()), rest);
            return Ok(Some(Next::Wait));
        };
        let Ok((header, rest)) = OptionHeader::read_from_prefix(left) else { return Ok(None) };
        *left = rest;
        self.option(&header, flags, rest, reaction).map(Some)
    }

    fn drop_data(&mut self, left: &mut &[u8]) {
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(left.len());
        *left = left.get(skip..).unwrap_or_default();
        self.skip -= skip as u64;
    }

    fn option(
        &mut self,
        header: &OptionHeader,
        flags: u32,
        rest: &[u8],
        reaction: &mut Reaction,
    ) -> Result<Next, Violation> {
        let (option, len) = (header.option.get(), header.len.get());
        self.options += 1;
        self.skip = len.into();
        if header.magic.get() != IHAVEOPT {
            return Err(Violation::OptionMagicWrong);
        }
        if self.options > MAX_OPTIONS {
            return Err(Violation::OptionsTooMany);
        }
        if self.skip > MAX_SKIP / u64::from(MAX_OPTIONS) {
            return Err(Violation::OptionTooLong);
        }
        match option {
            option::STARTTLS if len == 0 => return Ok(start_tls(flags, rest, reaction)),
            option::STARTTLS => push_reply(reaction, option, option::ERR_INVALID),
            option::ABORT => {
                push_reply(reaction, option, option::ACK);
                return Ok(Next::Close);
            }
            // Has no error reply.
            option::EXPORT_NAME => return Ok(Next::Close),
            _ if len > MAX_OPTION_DATA => push_reply(reaction, option, option::ERR_TOO_BIG),
            _ => push_reply(reaction, option, option::ERR_TLS_REQD),
        }
        Ok(Next::Wait)
    }
}

/// Checks the client flags (NBD, Client flags). TLS needs the fixed newstyle.
pub(super) fn check_flags(flags: u32, needed: bool) -> Result<(), Violation> {
    if flags & !(C_FIXED_NEWSTYLE | C_NO_ZEROES) != 0 {
        return Err(Violation::ClientFlagsUnknown);
    }
    if needed && flags & C_FIXED_NEWSTYLE == 0 {
        return Err(Violation::TlsWithoutFixedNewstyle);
    }
    Ok(())
}

/// Accepts STARTTLS. Fails if cleartext follows: the client has to wait for the reply, so it may be
/// injected.
fn start_tls(flags: u32, rest: &[u8], reaction: &mut Reaction) -> Next {
    if !rest.is_empty() {
        return Next::Refuse(Violation::BytesAfterStartTls.description());
    }
    push_reply(reaction, option::STARTTLS, option::ACK);
    Next::StartTls { no_zeroes: flags & C_NO_ZEROES != 0 }
}

fn push_reply(reaction: &mut Reaction, option: u32, kind: u32) {
    reaction.reply.extend_from_slice(ReplyHeader::new(option, kind, 0).as_bytes());
}
