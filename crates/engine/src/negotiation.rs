//! What is said in the clear before it is known how a connection goes on, where this end speaks first: the bytes' way between
//! a socket and its [`Negotiator`]. It knows no protocol and no TLS.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::Open;
use crate::link::Link;
use crate::security::{NegotiationStep, Negotiator, NextStep};

/// The most bytes that may wait for the negotiation to take them.
const WAITING: usize = 8 << 10;

/// More bytes than anybody says in the clear before it is known how it goes on.
const MOST: usize = 16 << 10;

const TALKATIVE: &str = "says too much before it says how it goes on";
const EARLY: &str = "spoke in the clear after it had asked for TLS";

/// A negotiation on its way.
pub(crate) struct Negotiation {
    negotiation: Negotiator,
    /// Bytes that came and were not taken.
    came: Vec<u8>,
    /// Whether they may hold more than the negotiation has heard: it took some, and these were behind.
    is_behind: bool,
    /// Bytes that came in all.
    heard: usize,
    /// What is still to be said, and what follows then.
    say: Vec<u8>,
    then: NextStep,
}

/// How a prelude goes on.
pub(crate) enum Progress {
    /// It waits for that.
    Waits(PollFlags),
    /// A driver takes over, with these bytes that came and were not taken.
    Plain(Vec<u8>),
    /// TLS follows, and then a session of this maker.
    Secure(Open),
    /// The peer is refused.
    Refuse(&'static str),
    /// It is over.
    Gone,
}

impl Negotiation {
    /// One that has said nothing yet.
    pub(crate) fn new(mut negotiation: Negotiator) -> Self {
        let NegotiationStep { say, then, .. } = attempt(&mut negotiation, &[]);
        Self { negotiation, came: Vec::new(), is_behind: false, heard: 0, say, then }
    }

    /// Does what can be done now. A peer can keep this going only for as many bytes as it may say in all.
    pub(crate) fn advance(&mut self, link: &Link) -> Progress {
        loop {
            if matches!(self.then, NextStep::Secure(_)) && (!self.came.is_empty() || has_more(link))
            {
                return Progress::Refuse(EARLY);
            }
            match self.send(link) {
                Ok(true) => {}
                Ok(false) => return Progress::Waits(PollFlags::OUT),
                Err(_) => return Progress::Gone,
            }
            match std::mem::replace(&mut self.then, NextStep::Wait) {
                NextStep::Wait if self.is_behind => self.hear(),
                NextStep::Wait if self.is_full() => return Progress::Refuse(TALKATIVE),
                NextStep::Wait => match self.listen(link) {
                    Ok(()) => self.hear(),
                    Err(next) => return next,
                },
                NextStep::Plain => return Progress::Plain(std::mem::take(&mut self.came)),
                NextStep::Secure(open) => return Progress::Secure(open),
                NextStep::Refuse(why) => return Progress::Refuse(why),
                NextStep::Close => return Progress::Gone,
            }
        }
    }

    /// Whether the peer has said all that it may.
    fn is_full(&self) -> bool {
        self.came.len() >= WAITING || self.heard >= MOST
    }

    /// Sends what the socket takes now of what is to be said. Tells whether that was all.
    fn send(&mut self, link: &Link) -> Result<bool, Errno> {
        while !self.say.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(link, &self.say, flags) {
                Ok(sent) => drop(self.say.drain(..sent.min(self.say.len()))),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    /// Receives what has come.
    fn listen(&mut self, link: &Link) -> Result<(), Progress> {
        let have = self.came.len();
        self.came.resize(WAITING, 0);
        let room = self.came.get_mut(have..).unwrap_or_default();
        let got = rustix::net::recv(link, room, RecvFlags::DONTWAIT).map(|(got, _)| got);
        self.came.truncate(have + got.unwrap_or(0));
        match got {
            Ok(0) => Err(Progress::Gone),
            Ok(got) => {
                self.heard += got;
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Err(Progress::Waits(PollFlags::IN)),
            Err(_) => Err(Progress::Gone),
        }
    }

    /// Has the negotiation hear what has come.
    fn hear(&mut self) {
        let NegotiationStep { take, say, then } = attempt(&mut self.negotiation, &self.came);
        self.came.drain(..take.min(self.came.len()));
        self.is_behind = take > 0 && !self.came.is_empty();
        (self.say, self.then) = (say, then);
    }
}

/// Has the negotiation hear something. One that panics costs its own connection and no other: it is not called again.
fn attempt(negotiation: &mut Negotiator, bytes: &[u8]) -> NegotiationStep {
    catch_unwind(AssertUnwindSafe(|| negotiation(bytes))).unwrap_or(NegotiationStep {
        take: 0,
        say: Vec::new(),
        then: NextStep::Close,
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
            let then = if bytes.len() < 4 { NextStep::Wait } else { NextStep::Plain };
            let say = if bytes.is_empty() { b"hello".to_vec() } else { Vec::new() };
            NegotiationStep { take: 0, say, then }
        };
        let mut prelude = Negotiation::new(Box::new(negotiation));
        for word in [&b""[..], b"a", b"bc"] {
            far.write_all(word).unwrap();
            assert!(matches!(prelude.advance(&link), Progress::Waits(PollFlags::IN)));
            assert!(!has_more(&link));
        }
        far.read_exact(&mut [0; 5]).unwrap();
        far.write_all(b"de").unwrap();
        let Progress::Plain(came) = prelude.advance(&link) else { panic!("it waits") };
        assert_eq!(came, b"abcde");
    }
}
