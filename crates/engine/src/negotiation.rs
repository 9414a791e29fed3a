//! What is said in the clear before it is known how a connection goes on, where this end speaks first: the bytes' way between
//! a socket and its [`Negotiator`]. It knows no protocol and no TLS.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::MakeSession;
use crate::link::Link;
use crate::security::{NegotiationStep, Negotiator, NextStep};

/// The most bytes that may wait for the negotiation to take them.
const MAX_UNCONSUMED: usize = 8 << 10;

/// More bytes than anybody says in the clear before it is known how it goes on.
const MAX_TOTAL: usize = 16 << 10;

const TOO_LONG: &str = "sent too much data during negotiation";
const DATA_BEFORE_TLS: &str = "sent clear text after it had requested TLS";

/// A negotiation on its way.
pub(crate) struct Negotiation {
    negotiator: Negotiator,
    /// Bytes that received and were not taken.
    received: Vec<u8>,
    /// Whether they may hold more than the negotiation has total_received: it took some, and these were behind.
    has_unprocessed: bool,
    /// Bytes that received in all.
    total_received: usize,
    /// What is still to be said, and what follows then.
    reply: Vec<u8>,
    next: NextStep,
}

/// How a negotiation goes on.
pub(crate) enum Progress {
    /// It waits for that.
    Waits(PollFlags),
    /// A driver takes over, with these bytes that received and were not taken.
    Plain(Vec<u8>),
    /// TLS follows, and then a session of this maker.
    Secure(MakeSession),
    /// The peer is refused.
    Refuse(&'static str),
    /// It is over.
    Closed,
}

impl Negotiation {
    /// One that has said nothing yet.
    pub(crate) fn new(mut negotiator: Negotiator) -> Self {
        let NegotiationStep { reply, next, .. } = call(&mut negotiator, &[]);
        Self {
            negotiator,
            received: Vec::new(),
            has_unprocessed: false,
            total_received: 0,
            reply,
            next,
        }
    }

    /// Does what can be done now. A peer can keep this going only for as many bytes as it may reply in all.
    pub(crate) fn advance(&mut self, link: &Link) -> Progress {
        loop {
            if matches!(self.next, NextStep::Secure(_))
                && (!self.received.is_empty() || has_more(link))
            {
                return Progress::Refuse(DATA_BEFORE_TLS);
            }
            match self.send(link) {
                Ok(true) => {}
                Ok(false) => return Progress::Waits(PollFlags::OUT),
                Err(_) => return Progress::Closed,
            }
            match std::mem::replace(&mut self.next, NextStep::Wait) {
                NextStep::Wait if self.has_unprocessed => self.process(),
                NextStep::Wait if self.is_over_limit() => return Progress::Refuse(TOO_LONG),
                NextStep::Wait => match self.receive(link) {
                    Ok(()) => self.process(),
                    Err(next) => return next,
                },
                NextStep::Plain => return Progress::Plain(std::mem::take(&mut self.received)),
                NextStep::Secure(open) => return Progress::Secure(open),
                NextStep::Refuse(why) => return Progress::Refuse(why),
                NextStep::Close => return Progress::Closed,
            }
        }
    }

    /// Whether the peer has said all that it may.
    fn is_over_limit(&self) -> bool {
        self.received.len() >= MAX_UNCONSUMED || self.total_received >= MAX_TOTAL
    }

    /// Sends what the socket takes now of what is to be said. Tells whether that was all.
    fn send(&mut self, link: &Link) -> Result<bool, Errno> {
        while !self.reply.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(link, &self.reply, flags) {
                Ok(sent) => drop(self.reply.drain(..sent.min(self.reply.len()))),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    /// Receives what has come.
    fn receive(&mut self, link: &Link) -> Result<(), Progress> {
        let have = self.received.len();
        self.received.resize(MAX_UNCONSUMED, 0);
        let room = self.received.get_mut(have..).unwrap_or_default();
        let got = rustix::net::recv(link, room, RecvFlags::DONTWAIT).map(|(got, _)| got);
        self.received.truncate(have + got.unwrap_or(0));
        match got {
            Ok(0) => Err(Progress::Closed),
            Ok(got) => {
                self.total_received += got;
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Err(Progress::Waits(PollFlags::IN)),
            Err(_) => Err(Progress::Closed),
        }
    }

    /// Has the negotiation hear what has come.
    fn process(&mut self) {
        let NegotiationStep { consumed, reply, next } = call(&mut self.negotiator, &self.received);
        self.received.drain(..consumed.min(self.received.len()));
        self.has_unprocessed = consumed > 0 && !self.received.is_empty();
        (self.reply, self.next) = (reply, next);
    }
}

/// Has the negotiation hear something. One that panics costs its own connection and no other: it is not called again.
fn call(negotiator: &mut Negotiator, bytes: &[u8]) -> NegotiationStep {
    catch_unwind(AssertUnwindSafe(|| negotiator(bytes))).unwrap_or(NegotiationStep {
        consumed: 0,
        reply: Vec::new(),
        next: NextStep::Close,
    })
}

/// Whether bytes wait in the socket.
fn has_more(link: &Link) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(link, &mut [0u8; 1], flags).is_ok_and(|(got, _)| got > 0)
}

#[cfg(test)]
mod test {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use export::{Auth, Peer};

    use super::*;
    use crate::link::{Bounds, ConnectionTable};

    /// Half a word that nobody takes must not have its socket look ready for ever.
    #[test]
    fn what_is_not_taken_does_not_wait_in_the_socket() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let peer =
            Peer { remote: Peer::LOCAL, local: Peer::LOCAL, auth: Auth::None, channel: None };
        let table = ConnectionTable::new(Bounds { total: 1, newcomers: 1 });
        let link = table.enter(near.into(), peer).unwrap();
        let negotiation = |bytes: &[u8]| {
            let next = if bytes.len() < 4 { NextStep::Wait } else { NextStep::Plain };
            let reply = if bytes.is_empty() { b"hello".to_vec() } else { Vec::new() };
            NegotiationStep { consumed: 0, reply, next }
        };
        let mut negotiation = Negotiation::new(Box::new(negotiation));
        for word in [&b""[..], b"a", b"bc"] {
            far.write_all(word).unwrap();
            assert!(matches!(negotiation.advance(&link), Progress::Waits(PollFlags::IN)));
            assert!(!has_more(&link));
        }
        far.read_exact(&mut [0; 5]).unwrap();
        far.write_all(b"de").unwrap();
        let Progress::Plain(received) = negotiation.advance(&link) else { panic!("it waits") };
        assert_eq!(received, b"abcde");
    }
}
