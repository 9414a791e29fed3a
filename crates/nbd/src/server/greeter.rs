//! The beginning of a connection in the clear, where TLS may or must follow: the hello, and options until STARTTLS (NBD,
//! TLS support). Nothing that is said here counts later but one client flag. It knows no socket and no export.

use zerocopy::{FromBytes, IntoBytes};

use super::{DRAIN, OPTION_DATA, Violation};
use crate::wire::handshake::{C_FIXED_NEWSTYLE, C_NO_ZEROES, ClientFlags, Hello, IHAVEOPT};
use crate::wire::option::{self, OptionHeader, ReplyHeader};

/// Options that are answered before a client is given up that does not send STARTTLS.
const OPTIONS: u32 = 64;

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// More must come.
    Wait,
    /// A session goes on in the clear, with [`super::Start::HelloSent`] and all bytes that were not taken.
    Plain,
    /// TLS begins once all is said, and then a session with [`super::Start::InTls`].
    Secure {
        /// Whether the client's flags had [`C_NO_ZEROES`].
        no_zeroes: bool,
    },
    /// The client broke a rule, as a piece of a sentence says: close.
    Refuse(&'static str),
    /// The client is done: say what there is to say, and close.
    Close,
}

/// What a [`Greeter`] does about bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaction {
    /// So many of them are done with; the others are to be offered again, with what came after them.
    pub take: usize,
    /// To be sent.
    pub say: Vec<u8>,
    /// What becomes of the connection.
    pub then: Next,
}

/// Speaks first on a connection.
#[derive(Debug)]
pub struct Greeter {
    secured_only: bool,
    tls: bool,
    said_hello: bool,
    /// The client's flags, once they have come.
    flags: Option<u32>,
    options: u32,
    /// Data of an option that is dropped.
    skip: u64,
}

/// A greeter: where `secured_only`, nothing is answered before TLS; where not even `tls` is to be had, it only says hello.
#[must_use]
pub fn greet(secured_only: bool, tls: bool) -> Greeter {
    Greeter { secured_only, tls, said_hello: false, flags: None, options: 0, skip: 0 }
}

impl Greeter {
    /// To be called once with no bytes, and then with all that have come and were not taken, whenever more came.
    pub fn receive(&mut self, bytes: &[u8]) -> Reaction {
        let mut reaction = Reaction { take: 0, say: Vec::new(), then: Next::Wait };
        if !std::mem::replace(&mut self.said_hello, true) {
            reaction.say.extend_from_slice(Hello::new().as_bytes());
        }
        reaction.then = if self.secured_only {
            self.insist(bytes, &mut reaction)
        } else if self.tls {
            self.look(bytes, &mut reaction)
        } else {
            Next::Plain
        };
        reaction
    }

    /// TLS is the client's choice: nothing is taken until it is known that it comes.
    fn look(&self, bytes: &[u8], reaction: &mut Reaction) -> Next {
        let Ok((flags, rest)) = ClientFlags::read_from_prefix(bytes) else { return Next::Wait };
        let Ok((header, rest)) = OptionHeader::read_from_prefix(rest) else { return Next::Wait };
        let asks = header.magic.get() == IHAVEOPT
            && (header.option.get(), header.len.get()) == (option::STARTTLS, 0);
        match check_flags(flags.get(), true) {
            Ok(()) if asks => {
                reaction.take = bytes.len() - rest.len();
                start_tls(flags.get(), rest, reaction)
            }
            _ => Next::Plain,
        }
    }

    /// TLS must come (NBD, FORCEDTLS mode).
    fn insist(&mut self, bytes: &[u8], reaction: &mut Reaction) -> Next {
        let mut left = bytes;
        let next = loop {
            match self.step(&mut left, reaction) {
                Ok(Some(Next::Wait)) => {}
                Ok(Some(next)) => break next,
                Ok(None) => break Next::Wait,
                Err(violation) => break Next::Refuse(violation.why()),
            }
        };
        reaction.take = bytes.len() - left.len();
        next
    }

    /// One thing more; nothing if it has not come whole.
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
        if self.options > OPTIONS {
            return Err(Violation::OptionsTooMany);
        }
        if self.skip > DRAIN / u64::from(OPTIONS) {
            return Err(Violation::OptionTooLong);
        }
        match option {
            option::STARTTLS if len == 0 => return Ok(start_tls(flags, rest, reaction)),
            option::STARTTLS => say(reaction, option, option::ERR_INVALID),
            option::ABORT => {
                say(reaction, option, option::ACK);
                return Ok(Next::Close);
            }
            // It cannot be answered with an error.
            option::EXPORT_NAME => return Ok(Next::Close),
            _ if len > OPTION_DATA => say(reaction, option, option::ERR_TOO_BIG),
            _ => say(reaction, option, option::ERR_TLS_REQD),
        }
        Ok(Next::Wait)
    }
}

/// The client's flags (NBD, Client flags): those that the hello offers, and the fixed newstyle where TLS is `needed`.
pub(super) fn check_flags(flags: u32, needed: bool) -> Result<(), Violation> {
    if flags & !(C_FIXED_NEWSTYLE | C_NO_ZEROES) != 0 {
        return Err(Violation::ClientFlagsUnknown);
    }
    if needed && flags & C_FIXED_NEWSTYLE == 0 {
        return Err(Violation::TlsWithoutFixedNewstyle);
    }
    Ok(())
}

/// What follows in the clear was put there by somebody else: the client waits for the answer.
fn start_tls(flags: u32, rest: &[u8], reaction: &mut Reaction) -> Next {
    if !rest.is_empty() {
        return Next::Refuse(Violation::BytesAfterStartTls.why());
    }
    say(reaction, option::STARTTLS, option::ACK);
    Next::Secure { no_zeroes: flags & C_NO_ZEROES != 0 }
}

fn say(reaction: &mut Reaction, option: u32, kind: u32) {
    reaction.say.extend_from_slice(ReplyHeader::new(option, kind, 0).as_bytes());
}
