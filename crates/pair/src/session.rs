//! The server side of one connection: key exchange, key confirmation, and the verdict.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{
    Event, Head, Notice, Outcome, PairingRequest, Peer, Reason, Segment, Session, Step, Ticket,
};

use crate::IDENTITY;
use crate::agreement::{self, Agreement, Authenticator, Binding, Tag};
use crate::cpace::Contribution;
use crate::frame::{Frame, Reader, VERSION, Violation};
use crate::message::{self, FromHost, Hello, RefusalReason};
use crate::server::{Attempt, PairingServer, Verdict};

/// Timeout of the key exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of the verdict.
const VERDICT_TIMEOUT: Duration = Duration::from_mins(2);

/// The server side of one connection.
#[derive(Debug)]
pub struct PairingSession {
    server: Arc<PairingServer>,
    peer: Peer,
    binding: Binding,
    now: Instant,
    phase: Phase,
    deadline: Option<Instant>,
    reader: Reader,
    out: VecDeque<Step>,
}

enum Phase {
    /// Waits for Hello.
    AwaitHello,
    /// Waits for the host's confirmation tag.
    AwaitConfirm(Box<AttemptState>),
    /// Waits for the verdict.
    AwaitVerdict(Box<PendingRequest>),
    /// Closed, or about to be.
    Closed,
}

struct AttemptState {
    attempt: Attempt,
    agreement: Agreement,
    hello: Hello,
}

struct PendingRequest {
    server: Arc<PairingServer>,
    number: u64,
    authenticator: Authenticator,
    host: String,
}

impl Drop for PendingRequest {
    /// Withdraws the request, however the session ends.
    fn drop(&mut self) {
        self.server.withdraw_request(self.number);
    }
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AwaitHello => "AwaitHello",
            Self::AwaitConfirm(_) => "AwaitConfirm",
            Self::AwaitVerdict(_) => "AwaitVerdict",
            Self::Closed => "Closed",
        })
    }
}

impl PairingSession {
    pub(crate) fn new(server: Arc<PairingServer>, peer: Peer, now: Instant) -> Self {
        let sanitize =
            peer.channel.as_ref().filter(|it| it.identity == IDENTITY && it.key.is_none());
        let binding = sanitize.map(|channel| channel.binding);
        let mut session = Self {
            server,
            peer,
            binding: binding.unwrap_or_default(),
            now,
            phase: Phase::AwaitHello,
            deadline: Some(now + EXCHANGE_TIMEOUT),
            reader: Reader::default(),
            out: VecDeque::new(),
        };
        if binding.is_none() {
            session.report("", "not in the TLS channel for pairing");
            session.close(Reason::Refused);
        }
        session
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), Violation> {
        let received = FromHost::parse(frame)?;
        match (std::mem::replace(&mut self.phase, Phase::Closed), received) {
            (Phase::AwaitHello, FromHost::Hello(hello)) => {
                self.hello(hello);
                Ok(())
            }
            (Phase::AwaitConfirm(it), FromHost::Confirm(tag)) => {
                self.confirm(*it, &tag);
                Ok(())
            }
            (phase, _) => {
                self.phase = phase;
                Err(Violation::OutOfTurn)
            }
        }
    }

    /// Asks the server first, so that a rejected attempt costs nothing.
    fn hello(&mut self, hello: Hello) {
        match self.server.begin(hello.code_kind, self.now) {
            Ok(attempt) => self.send_share(attempt, hello),
            Err(rejection) => {
                if rejection.report {
                    self.report(&hello.host, rejection.reason.text());
                }
                self.send(message::emit_refused(rejection.reason, rejection.seconds));
                self.close(Reason::Refused);
            }
        }
    }

    fn send_share(&mut self, mut attempt: Attempt, hello: Hello) {
        let random = std::mem::take(&mut attempt.random);
        let ephemeral = agreement::begin(&attempt.code, &self.binding, random);
        let share = ephemeral.share;
        let (associated_data, ours) = (hello.associated_data(), [VERSION]);
        let host = Contribution { share: &hello.share, associated_data: &associated_data };
        let target = Contribution { share: &share, associated_data: &ours };
        match Agreement::derive(ephemeral, &hello.share, &self.binding, host, target) {
            Ok(agreement) => {
                self.send(message::emit_answer(&share));
                self.phase =
                    Phase::AwaitConfirm(Box::new(AttemptState { attempt, agreement, hello }));
            }
            Err(_) => self.wrong_code(attempt, &hello.host),
        }
    }

    fn confirm(&mut self, it: AttemptState, tag: &Tag) {
        let AttemptState { attempt, agreement, hello } = it;
        if !agreement.is_host_tag(tag) {
            return self.wrong_code(attempt, &hello.host);
        }
        let Some(number) = attempt.succeed(self.now) else {
            self.report(&hello.host, RefusalReason::PairingOff.text());
            self.send(message::emit_refused(RefusalReason::PairingOff, 0));
            return self.close(Reason::Refused);
        };
        let name = self.server.name();
        self.send(message::emit_welcome(&agreement.target_tag(name), name));
        self.request_verdict(number, agreement, hello);
    }

    fn request_verdict(&mut self, number: u64, agreement: Agreement, hello: Hello) {
        let (authenticator, secret) = agreement.into_parts();
        let Hello { host, name, writable, .. } = hello;
        let server = self.server.clone();
        self.phase = Phase::AwaitVerdict(Box::new(PendingRequest {
            server,
            number,
            authenticator,
            host: host.clone(),
        }));
        self.deadline = Some(self.now + VERDICT_TIMEOUT);
        let request = Arc::new(PairingRequest { number, host, name, writable, secret });
        let event = Event::PairingRequested { peer: self.peer.clone(), request };
        self.out.push_back(Step::Report(Box::new(event)));
    }

    fn wrong_code(&mut self, attempt: Attempt, host: &str) {
        attempt.fail(self.now);
        self.report(host, RefusalReason::WrongCode.text());
        self.send(message::emit_refused(RefusalReason::WrongCode, 0));
        self.close(Reason::Refused);
    }

    /// Sends the verdict, if there is one.
    fn send_verdict(&mut self) {
        let Phase::AwaitVerdict(wait) = &mut self.phase else { return };
        match self.server.verdict(wait.number) {
            None => {}
            Some(Verdict::Granted { access, disks }) => {
                let bytes = message::emit_granted(access, &disks, &mut wait.authenticator);
                self.send(bytes);
                self.close(Reason::Ended);
            }
            Some(Verdict::Denied) => self.deny(RefusalReason::DeniedByAdministrator),
            Some(Verdict::Expired) => self.deny(RefusalReason::Expired),
            Some(Verdict::NoSpace) => self.deny(RefusalReason::NoSpace),
            Some(Verdict::NotStored) => self.deny(RefusalReason::NotStored),
        }
    }

    fn deny(&mut self, reason: RefusalReason) {
        let Phase::AwaitVerdict(wait) = &mut self.phase else { return };
        let (bytes, host) = (
            message::emit_refused_authenticated(reason, &mut wait.authenticator),
            wait.host.clone(),
        );
        self.send(bytes);
        self.report(&host, reason.text());
        self.close(Reason::Refused);
    }

    /// Ends the attempt or request. A client that disconnects after receiving the target's share
    /// has used up one attempt.
    fn abandon(&mut self, reason: &'static str) {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::AwaitConfirm(it) => {
                it.attempt.fail(self.now);
                self.report(&it.hello.host, reason);
            }
            Phase::AwaitVerdict(wait) => self.report(&wait.host, reason),
            Phase::AwaitHello | Phase::Closed => {}
        }
        self.deadline = None;
    }

    fn violated(&mut self, violation: Violation) {
        let event = Event::Violation { peer: self.peer.clone(), rule: violation.name() };
        self.out.push_back(Step::Report(Box::new(event)));
        self.abandon("violated the pairing protocol");
        self.close(Reason::Violation);
    }

    fn timed_out(&mut self) {
        self.send_verdict();
        match &self.phase {
            Phase::AwaitVerdict(_) => self.deny(RefusalReason::NoAnswer),
            Phase::Closed => {}
            Phase::AwaitHello | Phase::AwaitConfirm(_) => {
                self.abandon("key exchange timed out");
                self.close(Reason::Timeout);
            }
        }
    }

    fn close(&mut self, reason: Reason) {
        self.phase = Phase::Closed;
        self.deadline = None;
        self.out.push_back(Step::Close(reason));
    }

    fn report(&mut self, host: &str, reason: &'static str) {
        let (peer, host) = (self.peer.clone(), host.to_owned());
        let event = Event::Refused { peer, host, wanted: "pairing".to_owned(), reason };
        self.out.push_back(Step::Report(Box::new(event)));
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

    fn notify(&mut self, now: Instant, notice: &Notice) {
        self.now = now;
        match (self.is_closed(), notice) {
            (true, _) => {}
            (false, Notice::StateChanged) => self.send_verdict(),
            (false, Notice::Stopping) => {
                self.abandon("storagetm is stopping");
                self.close(Reason::Stopping);
            }
            (false, Notice::Disconnected) => self.abandon("disconnected before it was paired"),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.timed_out();
        }
    }

    fn poll(&mut self) -> Option<Step> {
        self.out.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        // The steps of a session that was closed at creation are polled at the first call.
        if self.is_closed() && !self.out.is_empty() { Some(self.now) } else { self.deadline }
    }

    fn can_receive(&self) -> bool {
        !self.is_closed()
    }

    fn is_established(&self) -> bool {
        matches!(self.phase, Phase::AwaitVerdict(_))
    }
}
