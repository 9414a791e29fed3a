//! The handshake thread: everything that precedes a session. It runs cleartext negotiations, where
//! this end sends first, and TLS handshakes; many concurrently, each with a deadline, with rate
//! limits per address.

pub(super) mod limit;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use export::{Auth, Network, Peer, Purpose, Secret, TokenBucket, TokenRate};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::inbox::{Inbox, Message};
use crate::link::Link;
use crate::negotiation::{Negotiation, Progress as NegotiationProgress};
use crate::recv_buffer::RecvBuffer as Bytes;
use crate::security::{ListenerConfig, PLAIN_REFUSED, TOO_MANY, refuse};
use crate::tls::hello::{self, Hello};
use crate::tls::{
    Established, Handshake, HandshakeError, Hash, Progress, Psk, Records, TlsSession,
};
use crate::{Adopt, Limits, MakeSession, Sink};
use limit::HandshakeLimiter;

/// A connection without a session yet.
pub(crate) struct Incoming {
    pub(crate) link: Arc<Link>,
    pub(crate) config: Arc<ListenerConfig>,
    /// Deadline of the handshake.
    pub(crate) until: Instant,
}

/// Handle of the handshake thread.
pub(crate) struct Handshaker {
    queue: Arc<Mutex<Vec<Incoming>>>,
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Handshaker {
    /// Starts the thread.
    ///
    /// # Errors
    /// Fails if a thread or descriptor cannot be created.
    pub(crate) fn start(limits: Limits, sink: Sink, adopt: Adopt) -> io::Result<Self> {
        let (queue, inbox) = (Arc::new(Mutex::default()), Inbox::new()?);
        let (entry, wake_fd) = (queue.clone(), inbox.clone());
        let run = move || {
            let thread = HandshakeThread {
                queue: entry,
                inbox: wake_fd,
                limiter: HandshakeLimiter::new(limits),
                at_once: limits.at_once.max(1),
                pending: Vec::new(),
                failure_reports: TokenBucket::full(REPORTS, Instant::now()),
                flood_reports: TokenBucket::full(REPORTS, Instant::now()),
                sink,
                adopt,
            };
            thread.run();
        };
        let thread = std::thread::Builder::new().name("handshake".to_owned()).spawn(run)?;
        Ok(Self { queue, inbox, thread: Some(thread) })
    }

    /// Starts a negotiation or a handshake on a connection.
    pub(crate) fn admit(&self, incoming: Incoming) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(incoming);
        // Only wakes the thread; the connection is in the queue.
        self.inbox.push(Message::Notice(export::Notice::StateChanged));
    }
}

impl Drop for Handshaker {
    /// Ends the thread, and all handshakes with it.
    fn drop(&mut self) {
        self.inbox.push(Message::Quit);
        if let Some(thread) = self.thread.take() {
            // The panic of a thread has already been printed.
            drop(thread.join());
        }
    }
}

/// Rate limit for reports that any peer can cause.
pub(crate) const REPORTS: TokenRate = TokenRate { per_second: 1, burst: 10 };

/// State of the thread.
struct HandshakeThread {
    queue: Arc<Mutex<Vec<Incoming>>>,
    inbox: Arc<Inbox>,
    limiter: HandshakeLimiter,
    at_once: usize,
    /// Negotiations and handshakes in progress, the oldest first.
    pending: Vec<PendingHandshake>,
    /// Rate limits on reports of failed handshakes, and of refused attempts.
    failure_reports: TokenBucket,
    flood_reports: TokenBucket,
    sink: Sink,
    adopt: Adopt,
}

/// A negotiation or a handshake in progress.
struct PendingHandshake {
    incoming: Incoming,
    source: Network,
    phase: Phase,
    /// Makes the session in the end.
    open: MakeSession,
    /// The events on the socket that it waits for.
    interest: PollFlags,
}

enum Phase {
    /// Cleartext negotiation.
    Negotiation(Box<Negotiation>),
    /// Receiving the ClientHello.
    Hello(Vec<u8>),
    /// The TLS handshake itself.
    Handshake(Handshake),
}

/// Result of [`PendingHandshake::advance`].
enum Step {
    Pending,
    /// Start a cleartext session, which gets these bytes first.
    Plain(Vec<u8>),
    /// Start a handshake, and then a session of this maker.
    StartTls(MakeSession),
    Done(Box<Established>),
    Failed(&'static str),
    Closed,
}

/// Reasons for a refused peer, as phrases.
const UNKNOWN: &str = "no valid key or certificate";
const TIMED_OUT: &str = "the handshake timed out";
const FLOOD: &str = "too many connection attempts from this address";

impl HandshakeThread {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            if self.inbox.has_messages() && self.read_inbox() {
                return;
            }
            self.advance(&ready);
            self.start_new();
        }
    }

    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.inbox.as_fd(), PollFlags::IN)];
        let pending = self.pending.iter();
        fds.extend(
            pending.map(|handshake| PollFd::from_borrowed_fd(handshake.fd(), handshake.interest)),
        );
        let oldest = self.pending.iter().map(|handshake| handshake.incoming.until).min();
        let left = oldest.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect()
    }

    /// Returns whether to end the thread.
    fn read_inbox(&self) -> bool {
        self.inbox.clear_wake();
        self.inbox.take().iter().any(|message| matches!(message, Message::Quit))
    }

    /// Continues those that are ready, and drops those that have timed out.
    fn advance(&mut self, ready: &[bool]) {
        let pending = std::mem::take(&mut self.pending);
        let mut start_tls = Vec::new();
        for (mut handshake, ready) in
            pending.into_iter().zip(ready.iter().chain(std::iter::repeat(&false)))
        {
            let timed_out = handshake.incoming.until <= Instant::now();
            let step = match ready {
                true => handshake.advance(),
                false => Step::Pending,
            };
            match step {
                Step::Pending if timed_out => self.report_timeout(&handshake),
                Step::Pending => self.pending.push(handshake),
                Step::Plain(received) => self.adopt_plain(handshake, received),
                Step::StartTls(open) => start_tls.push(PendingHandshake { open, ..handshake }),
                Step::Done(established) => self.adopt_tls(handshake, *established),
                Step::Failed(reason) => self.report(&handshake, reason),
                Step::Closed => {}
            }
        }
        // Only after all others are back in the list, because those of the same address are counted
        // there.
        start_tls.into_iter().for_each(|handshake| self.start_handshake(handshake));
    }

    /// Starts negotiations and handshakes on new connections.
    fn start_new(&mut self) {
        let new = std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner));
        for incoming in new {
            let peer = incoming.link.peer();
            let source = peer.network();
            let open = incoming.config.open.clone();
            let negotiation = incoming.config.security.negotiation.clone();
            let phase = match negotiation.map(|negotiation| negotiation(&peer)) {
                Some(negotiation) => Phase::Negotiation(Box::new(Negotiation::new(negotiation))),
                None => Phase::Hello(Vec::new()),
            };
            let handshake =
                PendingHandshake { incoming, source, phase, open, interest: PollFlags::OUT };
            match handshake.is_negotiating() {
                true => self.pending.push(handshake),
                false => self.start_handshake(handshake),
            }
        }
    }

    /// Starts a handshake, if the address is within its rate limit. A negotiation is cheap and not
    /// counted.
    fn start_handshake(&mut self, mut handshake: PendingHandshake) {
        if self.limiter.take(handshake.source, Instant::now()) {
            self.make_room(handshake.source);
            (handshake.phase, handshake.interest) = (Phase::Hello(Vec::new()), PollFlags::IN);
            self.pending.push(handshake);
        } else {
            self.report(&handshake, FLOOD);
        }
    }

    /// Drops the oldest handshake of an address that has too many, so that idle connections of one
    /// host do not keep another host at the same address out.
    fn make_room(&mut self, source: Network) {
        let same_source = |handshake: &PendingHandshake| {
            handshake.source == source && !handshake.is_negotiating()
        };
        if self.pending.iter().filter(|handshake| same_source(handshake)).count() >= self.at_once {
            let oldest = self.pending.iter().position(same_source);
            oldest.into_iter().for_each(|at| drop(self.pending.remove(at)));
        }
    }

    /// Reports a timeout, except for a cleartext negotiation where no authentication is required:
    /// such a peer was not refused.
    fn report_timeout(&mut self, handshake: &PendingHandshake) {
        if handshake.incoming.config.security.auth == Auth::Required || !handshake.is_negotiating()
        {
            self.report(handshake, TIMED_OUT);
        }
    }

    fn report(&mut self, handshake: &PendingHandshake, reason: &'static str) {
        let limit =
            if reason == FLOOD { &mut self.flood_reports } else { &mut self.failure_reports };
        if limit.take(1, Instant::now()) {
            refuse(&self.sink, handshake.incoming.link.peer(), reason);
        }
    }

    /// Passes a cleartext connection to a driver, if clear text is accepted.
    fn adopt_plain(&mut self, handshake: PendingHandshake, received: Vec<u8>) {
        if !handshake.incoming.config.allows_plain() {
            return self.report(&handshake, PLAIN_REFUSED);
        }
        handshake.incoming.link.set_early_data(received);
        (self.adopt)(handshake.incoming.link, handshake.open);
    }

    /// Passes a connection with an established channel to a driver.
    fn adopt_tls(&mut self, handshake: PendingHandshake, established: Established) {
        // A public key does not authenticate, so it counts as a failed attempt.
        if established.channel.key.is_some() {
            self.limiter.give_back(handshake.source, Instant::now());
        }
        handshake.incoming.link.set_channel(established.channel.clone());
        if !handshake.incoming.link.has_room() {
            return self.report(&handshake, TOO_MANY);
        }
        // Out of memory: the connection is closed, and the peer may retry.
        let Some(plain) = TlsSession::recv_buffer() else { return };
        (self.adopt)(
            handshake.incoming.link,
            tls_session_maker(Records::new(established), plain, handshake.open),
        );
    }
}

/// Wraps a session maker, so that its session uses `records`. It makes one session, since there is
/// one connection.
fn tls_session_maker(records: Records, plain: Bytes, open: MakeSession) -> MakeSession {
    let records = Mutex::new(Some((records, plain)));
    Arc::new(move |peer: Peer, account, now| {
        let records = records.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sealed = account.sibling(Purpose::TlsRecords);
        let session = open(peer.clone(), account, now);
        match records {
            Some((records, plain)) => {
                Box::new(TlsSession::new(records, plain, session, sealed, peer, now))
            }
            None => session,
        }
    })
}

impl PendingHandshake {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.incoming.link.as_fd()
    }

    fn is_negotiating(&self) -> bool {
        matches!(self.phase, Phase::Negotiation(_))
    }

    fn advance(&mut self) -> Step {
        match &mut self.phase {
            Phase::Negotiation(negotiation) => match negotiation.advance(&self.incoming.link) {
                NegotiationProgress::Waits(wanted) => {
                    self.interest = wanted;
                    Step::Pending
                }
                NegotiationProgress::Plain(received) => Step::Plain(received),
                NegotiationProgress::Secure(open) => Step::StartTls(open),
                NegotiationProgress::Refuse(reason) => Step::Failed(reason),
                NegotiationProgress::Closed => Step::Closed,
            },
            Phase::Hello(received) => match receive_hello(&self.incoming.link, received) {
                Ok(Some(name)) => self.begin(&name),
                Ok(None) => Step::Pending,
                Err(step) => step,
            },
            Phase::Handshake(_) => self.continue_handshake(),
        }
    }

    /// Passes the ClientHello to the TLS library, with the key of the first identity in it.
    fn begin(&mut self, name: &[u8]) -> Step {
        let Phase::Hello(received) = &mut self.phase else { return Step::Closed };
        let received = std::mem::take(received);
        match self.serve(received, name) {
            Ok(handshake) => self.phase = Phase::Handshake(handshake),
            Err(failed) => return self.fail(&failed),
        }
        self.continue_handshake()
    }

    /// Selects certificates, if configured, for a peer that offers no PSK; else PSKs.
    fn serve(&self, received: Vec<u8>, name: &[u8]) -> Result<Handshake, HandshakeError> {
        let (security, socket) = (&self.incoming.config.security, self.incoming.link.clone());
        match &security.certificates {
            Some(certificates) if name.is_empty() => {
                certificates.serve(socket, received, security.auth)
            }
            _ => {
                let known = security.keys.as_ref().map_or_else(Vec::new, |keys| keys());
                let keys = select_psk(known, name).into_iter().collect();
                Handshake::serve(socket, received, keys)
            }
        }
    }

    fn continue_handshake(&mut self) -> Step {
        let Phase::Handshake(handshake) = &mut self.phase else { return Step::Closed };
        match handshake.advance() {
            Ok(Progress::WantRead) => self.interest = PollFlags::IN,
            Ok(Progress::WantWrite) => self.interest = PollFlags::OUT,
            Ok(Progress::Done(established)) => return Step::Done(established),
            Err(failed) => return self.fail(&failed),
        }
        Step::Pending
    }

    /// Sends a decrypt_error alert, whatever the reason: a peer without a key must not learn which
    /// identities exist (RFC 8446 §6.2, unknown_psk_identity).
    fn fail(&self, failed: &HandshakeError) -> Step {
        const DECRYPT_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 51];
        if failed.is_early {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // The peer may have closed the connection.
            let _ = rustix::net::send(&self.incoming.link, &DECRYPT_ERROR, flags);
        }
        Step::Failed(UNKNOWN)
    }
}

/// Receives the rest of the ClientHello, and not a byte more. Returns the first identity in it when
/// it is complete.
fn receive_hello(link: &Link, received: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Step> {
    loop {
        let missing = match hello::parse(received) {
            Hello::Incomplete(missing) => missing,
            Hello::Complete(name) => return Ok(Some(name)),
            Hello::Invalid => return Err(Step::Failed(UNKNOWN)),
        };
        let have = received.len();
        received.resize(have + missing, 0);
        let room = received.get_mut(have..).unwrap_or_default();
        let got = rustix::net::recv(link, room, RecvFlags::DONTWAIT).map(|(got, _)| got);
        received.truncate(have + got.unwrap_or(0));
        match got {
            Ok(0) => return Err(Step::Closed),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(_) => return Err(Step::Closed),
        }
    }
}

/// Returns the key of the first identity that the peer offers, or a random one if there is none:
/// the same work is done, with the same failure, whether the identity is unknown or the key wrong.
/// Further identities are ignored. Otherwise a peer could offer another host's identity before its
/// own, and learn from the selected one whether the other exists.
fn select_psk(known: Vec<Psk>, name: &[u8]) -> Option<Psk> {
    let key = known.into_iter().find(|key| key.identity.as_bytes() == name);
    key.or_else(|| random_psk(name))
}

/// Returns a key that no peer has.
fn random_psk(name: &[u8]) -> Option<Psk> {
    let identity = String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())?;
    let mut secret = vec![0; 32];
    aws_lc_rs::rand::fill(&mut secret).ok()?;
    Some(Psk { identity, secret: Secret::new(secret), hash: Hash::Sha256, key: None })
}

#[cfg(test)]
mod test {

    use super::*;

    fn key(name: &str) -> Psk {
        let secret = Secret::new(vec![1; 32]);
        Psk { identity: name.to_owned(), secret, hash: Hash::Sha256, key: None }
    }

    #[test]
    fn unknown_identity_gets_a_random_key() {
        let (known, name) = ([key("NVMe1R01 a"), key("NVMe1R01 b")], b"NVMe1R01 b");
        assert_eq!(select_psk(known.to_vec(), name), Some(key("NVMe1R01 b")));
        let [one, two] = [(), ()].map(|()| select_psk(vec![key("NVMe1R01 a")], name).unwrap());
        assert_eq!((&one.identity[..], &two.identity[..]), ("NVMe1R01 b", "NVMe1R01 b"));
        assert_ne!(one.secret, two.secret);
        assert_eq!(select_psk(known.to_vec(), b""), None);
    }
}
