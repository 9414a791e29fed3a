//! One connection to the server, as the target sees it: who is there shows the code, waits for the owner, and is told
//! what it may have. It knows no socket and no TLS, only the channel's value.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{
    Event, Head, Notice, Outcome, PairingRequest, Peer, Reason, Segment, Session, Step, Ticket,
};

use crate::IDENTITY;
use crate::agreement::{self, Agreement, Binding, Seal, Tag};
use crate::cpace::Said;
use crate::frame::{Frame, Reader, VERSION, Violation};
use crate::message::{self, FromHost, Hello, Why};
use crate::server::{Attempt, PairingServer, Verdict};

/// How long a host has to show the code.
const EXCHANGE: Duration = Duration::from_secs(10);
/// How long the owner has to answer.
const ANSWER: Duration = Duration::from_mins(2);

/// One connection to the server.
#[derive(Debug)]
pub struct PairingSession {
    server: Arc<PairingServer>,
    peer: Peer,
    binding: Binding,
    now: Instant,
    phase: Phase,
    until: Option<Instant>,
    reader: Reader,
    out: VecDeque<Step>,
}

enum Phase {
    /// Hello is to come.
    Opening,
    /// The proof is to come.
    Trying(Box<Try>),
    /// The owner is asked.
    Waiting(Box<Wait>),
    /// Closed, or about to be.
    Closed,
}

struct Try {
    attempt: Attempt,
    agreement: Agreement,
    hello: Hello,
}

struct Wait {
    server: Arc<PairingServer>,
    number: u64,
    seal: Seal,
    host: String,
}

impl Drop for Wait {
    /// However the session goes, nobody is asked for who does not wait.
    fn drop(&mut self) {
        self.server.forget(self.number);
    }
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Opening => "Opening",
            Self::Trying(_) => "Trying",
            Self::Waiting(_) => "Waiting",
            Self::Closed => "Closed",
        })
    }
}

impl PairingSession {
    pub(crate) fn new(server: Arc<PairingServer>, peer: Peer, now: Instant) -> Self {
        let fit = peer.channel.as_ref().filter(|it| it.identity == IDENTITY && it.key.is_none());
        let binding = fit.map(|channel| channel.binding);
        let mut session = Self {
            server,
            peer,
            binding: binding.unwrap_or_default(),
            now,
            phase: Phase::Opening,
            until: Some(now + EXCHANGE),
            reader: Reader::default(),
            out: VecDeque::new(),
        };
        if binding.is_none() {
            session.report("", "not in the channel for pairing");
            session.close(Reason::Refused);
        }
        session
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), Violation> {
        let said = FromHost::parse(frame)?;
        match (std::mem::replace(&mut self.phase, Phase::Closed), said) {
            (Phase::Opening, FromHost::Hello(hello)) => {
                self.hello(hello);
                Ok(())
            }
            (Phase::Trying(it), FromHost::Confirm(tag)) => {
                self.confirm(*it, &tag);
                Ok(())
            }
            (phase, _) => {
                self.phase = phase;
                Err(Violation::OutOfTurn)
            }
        }
    }

    /// The server is asked first: who may not try now costs nothing.
    fn hello(&mut self, hello: Hello) {
        match self.server.begin(hello.kind, self.now) {
            Ok(attempt) => self.answer(attempt, hello),
            Err(hold) => {
                if hold.loud {
                    self.report(&hello.host, hold.why.text());
                }
                self.send(message::refused(hold.why, hold.seconds));
                self.close(Reason::Refused);
            }
        }
    }

    fn answer(&mut self, mut attempt: Attempt, hello: Hello) {
        let random = std::mem::take(&mut attempt.random);
        let half = agreement::begin(&attempt.code, &self.binding, random);
        let share = half.share;
        let (beside, ours) = (hello.beside(), [VERSION]);
        let host = Said { share: &hello.share, beside: &beside };
        let target = Said { share: &share, beside: &ours };
        match Agreement::of(half, &hello.share, &self.binding, host, target) {
            Ok(agreement) => {
                self.send(message::answer(&share));
                self.phase = Phase::Trying(Box::new(Try { attempt, agreement, hello }));
            }
            Err(_) => self.wrong(attempt, &hello.host),
        }
    }

    fn confirm(&mut self, it: Try, tag: &Tag) {
        let Try { attempt, agreement, hello } = it;
        if !agreement.is_host_tag(tag) {
            return self.wrong(attempt, &hello.host);
        }
        let Some(number) = attempt.succeed(self.now) else {
            self.report(&hello.host, Why::Closed.text());
            self.send(message::refused(Why::Closed, 0));
            return self.close(Reason::Refused);
        };
        let name = self.server.name();
        self.send(message::welcome(&agreement.target_tag(name), name));
        self.wait(number, agreement, hello);
    }

    fn wait(&mut self, number: u64, agreement: Agreement, hello: Hello) {
        let (seal, secret) = agreement.into_parts();
        let Hello { host, name, writable, .. } = hello;
        let server = self.server.clone();
        self.phase = Phase::Waiting(Box::new(Wait { server, number, seal, host: host.clone() }));
        self.until = Some(self.now + ANSWER);
        let knock = Arc::new(PairingRequest { number, host, name, writable, secret });
        let event = Event::PairingRequested { peer: self.peer.clone(), request: knock };
        self.out.push_back(Step::Report(event));
    }

    fn wrong(&mut self, attempt: Attempt, host: &str) {
        attempt.fail(self.now);
        self.report(host, Why::WrongCode.text());
        self.send(message::refused(Why::WrongCode, 0));
        self.close(Reason::Refused);
    }

    /// The owner may have answered.
    fn look(&mut self) {
        let Phase::Waiting(wait) = &mut self.phase else { return };
        match self.server.verdict(wait.number) {
            None => {}
            Some(Verdict::Granted { access, disks }) => {
                let bytes = message::granted(access, &disks, &mut wait.seal);
                self.send(bytes);
                self.close(Reason::Ended);
            }
            Some(Verdict::Denied) => self.deny(Why::Denied),
            Some(Verdict::Full) => self.deny(Why::Full),
            Some(Verdict::Unkept) => self.deny(Why::Unkept),
        }
    }

    fn deny(&mut self, why: Why) {
        let Phase::Waiting(wait) = &mut self.phase else { return };
        let (bytes, host) = (message::denied(why, &mut wait.seal), wait.host.clone());
        self.send(bytes);
        self.report(&host, why.text());
        self.close(Reason::Refused);
    }

    /// Who has the target's share and goes away has had a guess.
    fn leave(&mut self, why: &'static str) {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Trying(it) => {
                it.attempt.fail(self.now);
                self.report(&it.hello.host, why);
            }
            Phase::Waiting(wait) => self.report(&wait.host, why),
            Phase::Opening | Phase::Closed => {}
        }
        self.until = None;
    }

    fn violated(&mut self, violation: Violation) {
        let event = Event::Violation { peer: self.peer.clone(), rule: violation.name() };
        self.out.push_back(Step::Report(event));
        self.leave("broke the protocol of pairing");
        self.close(Reason::Violation);
    }

    fn late(&mut self) {
        self.look();
        match &self.phase {
            Phase::Waiting(_) => self.deny(Why::Unanswered),
            Phase::Closed => {}
            Phase::Opening | Phase::Trying(_) => {
                self.leave("did not show the code in time");
                self.close(Reason::Timeout);
            }
        }
    }

    fn close(&mut self, reason: Reason) {
        self.phase = Phase::Closed;
        self.until = None;
        self.out.push_back(Step::Close(reason));
    }

    fn report(&mut self, host: &str, why: &'static str) {
        let (peer, host) = (self.peer.clone(), host.to_owned());
        let event = Event::Refused { peer, host, wanted: "pairing".to_owned(), why };
        self.out.push_back(Step::Report(event));
    }

    fn send(&mut self, bytes: Vec<u8>) {
        self.out.push_back(Step::Send(Segment::with_shared(Head::new(&[]), bytes.into())));
    }

    fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }
}

impl Session for PairingSession {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.now = now;
        let mut taken = 0;
        while taken < bytes.len() && !self.is_closed() {
            let pushed = self.reader.push(bytes.get(taken..).unwrap_or_default());
            let done = pushed.and_then(|n| {
                taken += n;
                self.reader.take().map_or(Ok(()), |frame| self.frame(&frame))
            });
            if let Err(violation) = done {
                self.violated(violation);
            }
        }
        bytes.len()
    }

    fn complete(&mut self, _now: Instant, _ticket: Ticket, _outcome: Outcome) {}

    fn notify(&mut self, now: Instant, news: &Notice) {
        self.now = now;
        match (self.is_closed(), news) {
            (true, _) => {}
            (false, Notice::StateChanged) => self.look(),
            (false, Notice::Stopping) => {
                self.leave("storagetm stops");
                self.close(Reason::Stopping);
            }
            (false, Notice::Disconnected) => self.leave("went away before it was let in"),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        if self.until.is_some_and(|until| until <= now) {
            self.late();
        }
    }

    fn poll(&mut self) -> Option<Step> {
        self.out.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        // What was said before anything was asked waits for the first call.
        if self.is_closed() && !self.out.is_empty() { Some(self.now) } else { self.until }
    }

    fn can_receive(&self) -> bool {
        !self.is_closed()
    }

    fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Waiting(_))
    }
}
