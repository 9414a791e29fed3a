//! Cleartext negotiation before a session or TLS starts, where this end sends first: moves bytes
//! between a socket and its [`Negotiator`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::MakeSession;
use crate::link::Link;
use crate::security::{NegotiationStep, Negotiator, NextStep};

/// Limit on received bytes that the negotiator has not consumed.
const MAX_UNCONSUMED: usize = 8 << 10;

/// Limit on received bytes in total.
const MAX_TOTAL: usize = 16 << 10;

const TOO_LONG: &str = "sent too much data during negotiation";
const DATA_BEFORE_TLS: &str = "sent clear text after it had requested TLS";

/// A negotiation in progress.
pub(crate) struct Negotiation {
    negotiator: Negotiator,
    /// Received bytes that were not consumed.
    received: Vec<u8>,
    /// Whether `received` has bytes that the negotiator may consume without more data: it has
    /// consumed some, and these follow.
    has_unprocessed: bool,
    /// Bytes received in total.
    total_received: usize,
    /// Data still to be sent, and what follows then.
    reply: Vec<u8>,
    next: NextStep,
}

/// State of a negotiation after [`Negotiation::advance`].
pub(crate) enum Progress {
    /// It waits for this event on the socket.
    Waits(PollFlags),
    /// A session takes over in clear text. These bytes were not consumed.
    Plain(Vec<u8>),
    /// A TLS handshake follows, and then a session of this maker.
    Secure(MakeSession),
    /// The peer is refused for this reason.
    Refuse(&'static str),
    /// The connection is to be closed.
    Closed,
}

impl Negotiation {
    /// Starts a negotiation with the greeting.
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

    /// Sends, receives and calls the negotiator until it has to wait. The limits on received bytes
    /// bound the number of iterations.
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
                NextStep::Refuse(reason) => return Progress::Refuse(reason),
                NextStep::Close => return Progress::Closed,
            }
        }
    }

    /// Returns whether the peer has reached one of the limits.
    fn is_over_limit(&self) -> bool {
        self.received.len() >= MAX_UNCONSUMED || self.total_received >= MAX_TOTAL
    }

    /// Sends without blocking. Returns whether everything was sent.
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

    /// Receives without blocking.
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

    /// Passes the received bytes to the negotiator.
    fn process(&mut self) {
        let NegotiationStep { consumed, reply, next } = call(&mut self.negotiator, &self.received);
        self.received.drain(..consumed.min(self.received.len()));
        self.has_unprocessed = consumed > 0 && !self.received.is_empty();
        (self.reply, self.next) = (reply, next);
    }
}

/// Calls the negotiator. If it panics, only its own connection is closed.
fn call(negotiator: &mut Negotiator, bytes: &[u8]) -> NegotiationStep {
    catch_unwind(AssertUnwindSafe(|| negotiator(bytes))).unwrap_or(NegotiationStep {
        consumed: 0,
        reply: Vec::new(),
        next: NextStep::Close,
    })
}

/// Returns whether bytes are waiting in the socket.
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

    /// Bytes that the negotiator does not consume must be removed from the socket, or polling it
    /// would never block.
    #[test]
    fn unconsumed_bytes_do_not_stay_in_the_socket() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let peer = Peer::unix(Auth::None);
        let table = ConnectionTable::new(Bounds { total: 1, unestablished: 1 });
        let link = table.insert(near.into(), peer).unwrap();
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
