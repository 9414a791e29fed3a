//! The thread for all that comes before a session: negotiators in the clear where this end speaks first, and handshakes; many
//! at once, each with a deadline, few handshakes of each address. It knows no driver but by the one call that gives a
//! connection away, and no cipher.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use export::{Auth, Network, Peer, Purpose, Secret};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::hello::{self, Hello};
use super::limit::HandshakeLimiter;
use super::records::Records;
use super::s2n::{Agreed, Failed, Handshake, Progress};
use super::wrapped::Wrapped;
use super::{Hash, Psk};
use crate::inbox::{Inbox, Message};
use crate::link::Link;
use crate::listen::Adopt;
use crate::negotiation::{Negotiation, Progress as NegotiationProgress};
use crate::recv_buffer::RecvBuffer as Bytes;
use crate::security::{CLEAR, CROWD, ListenerConfig, refuse};
use crate::{Limits, Open, Sink};

/// A peer that has not yet been let in.
pub(crate) struct Incoming {
    pub(crate) link: Arc<Link>,
    pub(crate) config: Arc<ListenerConfig>,
    /// When it is given up.
    pub(crate) until: Instant,
}

/// The thread.
pub(crate) struct Handshaker {
    auth: Arc<Mutex<Vec<Incoming>>>,
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Handshaker {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is no thread or no descriptor to be had.
    pub(crate) fn start(limits: Limits, sink: Sink, adopt: Adopt) -> io::Result<Self> {
        let (auth, inbox) = (Arc::new(Mutex::default()), Inbox::new()?);
        let (entry, wake_fd) = (auth.clone(), inbox.clone());
        let host = move || {
            let host = Host {
                auth: entry,
                inbox: wake_fd,
                limiter: HandshakeLimiter::new(limits),
                at_once: limits.at_once.max(1),
                pending: Vec::new(),
                reported: ReportLimit::default(),
                flooded: ReportLimit::default(),
                sink,
                adopt,
            };
            host.run();
        };
        let thread = std::thread::Builder::new().name("handshake".to_owned()).spawn(host)?;
        Ok(Self { auth, inbox, thread: Some(thread) })
    }

    /// Takes a peer in, to be greeted, or to make a handshake with it.
    pub(crate) fn admit(&self, incoming: Incoming) {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner).push(incoming);
        // Wakes the thread; who has come is in the list.
        self.inbox.put(Message::Notice(export::Notice::StateChanged));
    }
}

impl Drop for Handshaker {
    /// Ends the thread, and all handshakes with it.
    fn drop(&mut self) {
        self.inbox.put(Message::Quit);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

/// Lets a few of many things through: so many in a row, and one a second in the long run.
#[derive(Debug, Default)]
pub(crate) struct ReportLimit {
    lately: u32,
    since: Option<Instant>,
}

/// Reports in a row of things that anybody can bring about.
const REPORTS: u32 = 10;

impl ReportLimit {
    /// Whether one more is not too often.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_secs();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed > 0 {
            self.since = Some(now);
        }
        self.lately = self.lately.saturating_sub(passed);
        let rare = self.lately < REPORTS;
        self.lately += u32::from(rare);
        rare
    }
}

/// What the thread knows.
struct Host {
    auth: Arc<Mutex<Vec<Incoming>>>,
    inbox: Arc<Inbox>,
    limiter: HandshakeLimiter,
    at_once: usize,
    /// MakeNegotiator and handshakes on their way, the oldest first.
    pending: Vec<PendingHandshake>,
    /// How often it was reported lately that a handshake failed, and that one was not begun.
    reported: ReportLimit,
    flooded: ReportLimit,
    sink: Sink,
    adopt: Adopt,
}

/// A negotiation or a handshake on its way.
struct PendingHandshake {
    incoming: Incoming,
    source: Network,
    phase: Phase,
    /// What makes its session in the end.
    open: Open,
    /// What it waits for.
    waits: PollFlags,
}

enum Phase {
    /// It is spoken in the clear.
    Negotiator(Box<Negotiation>),
    /// The ClientHello is coming.
    Hello(Vec<u8>),
    /// The library has it.
    Shake(Handshake),
}

/// What became of a step.
enum Step {
    Waits,
    /// It goes on in the clear, with these bytes first.
    Plain(Vec<u8>),
    /// A handshake follows, and then a session of this maker.
    Secured(Open),
    Done(Box<Agreed>),
    Failed(&'static str),
    Gone,
}

/// Why a peer was refused, for people.
const UNKNOWN: &str = "with no key that is known here";
const LATE: &str = "without a key in time";
const FLOOD: &str = "too many attempts from one address";

impl Host {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            if self.inbox.is_full() && self.read_inbox() {
                return;
            }
            self.advance(&ready);
            self.welcome();
        }
    }

    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.inbox.as_fd(), PollFlags::IN)];
        let pending = self.pending.iter();
        fds.extend(
            pending.map(|handshake| PollFd::from_borrowed_fd(handshake.fd(), handshake.waits)),
        );
        let oldest = self.pending.iter().map(|handshake| handshake.incoming.until).min();
        let left = oldest.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect()
    }

    /// Tells whether to end.
    fn read_inbox(&self) -> bool {
        self.inbox.clear_wake();
        self.inbox.take().iter().any(|message| matches!(message, Message::Quit))
    }

    /// Goes on with those that are ready, and gives up those that are late.
    fn advance(&mut self, ready: &[bool]) {
        let pending = std::mem::take(&mut self.pending);
        let mut secured = Vec::new();
        for (mut handshake, ready) in
            pending.into_iter().zip(ready.iter().chain(std::iter::repeat(&false)))
        {
            let late = handshake.incoming.until <= Instant::now();
            let step = match ready {
                true => handshake.advance(),
                false => Step::Waits,
            };
            match step {
                Step::Waits if late => self.report_late(&handshake),
                Step::Waits => self.pending.push(handshake),
                Step::Plain(came) => self.let_in(handshake, came),
                Step::Secured(open) => secured.push(PendingHandshake { open, ..handshake }),
                Step::Done(agreed) => self.hand_over(handshake, *agreed),
                Step::Failed(why) => self.report(&handshake, why),
                Step::Gone => {}
            }
        }
        // Not before all others are back in the list, in which those of the same address are counted.
        secured.into_iter().for_each(|handshake| self.shake_hands(handshake));
    }

    /// Begins with those that came.
    fn welcome(&mut self) {
        let fresh = std::mem::take(&mut *self.auth.lock().unwrap_or_else(PoisonError::into_inner));
        for incoming in fresh {
            let peer = incoming.link.peer();
            let source = Network::of(peer.remote);
            let open = incoming.config.open.clone();
            let negotiation = incoming.config.security.negotiation.clone();
            let phase = match negotiation.map(|negotiation| negotiation(&peer)) {
                Some(negotiation) => Phase::Negotiator(Box::new(Negotiation::new(negotiation))),
                None => Phase::Hello(Vec::new()),
            };
            let handshake =
                PendingHandshake { incoming, source, phase, open, waits: PollFlags::OUT };
            match handshake.is_greeted() {
                true => self.pending.push(handshake),
                false => self.shake_hands(handshake),
            }
        }
    }

    /// Begins a handshake, if the address has one left. A negotiation costs so little that it is not counted.
    fn shake_hands(&mut self, mut handshake: PendingHandshake) {
        if self.limiter.take(handshake.source, Instant::now()) {
            self.make_room(handshake.source);
            (handshake.phase, handshake.waits) = (Phase::Hello(Vec::new()), PollFlags::IN);
            self.pending.push(handshake);
        } else {
            self.report(&handshake, FLOOD);
        }
    }

    /// Gives up the one of an address that has waited longest, if it has too many: who opens connections and says nothing
    /// cannot keep a neighbour out who does.
    fn make_room(&mut self, source: Network) {
        let of_it =
            |handshake: &PendingHandshake| handshake.source == source && !handshake.is_greeted();
        if self.pending.iter().filter(|handshake| of_it(handshake)).count() >= self.at_once {
            let oldest = self.pending.iter().position(of_it);
            oldest.into_iter().for_each(|at| drop(self.pending.remove(at)));
        }
    }

    /// Where nothing need be shown, nobody was refused who did not go on.
    fn report_late(&mut self, handshake: &PendingHandshake) {
        if handshake.incoming.config.security.auth == Auth::Required || !handshake.is_greeted() {
            self.report(handshake, LATE);
        }
    }

    fn report(&mut self, handshake: &PendingHandshake, why: &'static str) {
        let often = if why == FLOOD { &mut self.flooded } else { &mut self.reported };
        if often.allows(Instant::now()) {
            refuse(&self.sink, handshake.incoming.link.peer(), why);
        }
    }

    /// Gives a connection in the clear to a driver, if that is let in now.
    fn let_in(&mut self, handshake: PendingHandshake, came: Vec<u8>) {
        if !handshake.incoming.config.lets_plain_in() {
            return self.report(&handshake, CLEAR);
        }
        handshake.incoming.link.leave(came);
        (self.adopt)(handshake.incoming.link, handshake.open);
    }

    /// Gives the connection to a driver.
    fn hand_over(&mut self, handshake: PendingHandshake, agreed: Agreed) {
        // A key that everybody knows proves nothing, and costs as much as a wrong one.
        if agreed.channel.key.is_some() {
            self.limiter.give_back(handshake.source);
        }
        handshake.incoming.link.secure(agreed.channel.clone());
        if !handshake.incoming.link.has_room() {
            return self.report(&handshake, CROWD);
        }
        // Without memory for it the connection is closed: its peer may try again.
        let Some(phase) = Wrapped::recv_buffer() else { return };
        (self.adopt)(handshake.incoming.link, wrap(Records::new(agreed), phase, handshake.open));
    }
}

/// Makes sessions that speak through `records`: one, as there is one connection.
fn wrap(records: Records, phase: Bytes, open: Open) -> Open {
    let records = Mutex::new(Some((records, phase)));
    Arc::new(move |peer: Peer, account, now| {
        let records = records.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sealed = account.sibling(Purpose::TlsRecords);
        let session = open(peer.clone(), account, now);
        match records {
            Some((records, phase)) => {
                Box::new(Wrapped::new(records, phase, session, sealed, peer, now))
            }
            None => session,
        }
    })
}

impl PendingHandshake {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.incoming.link.as_fd()
    }

    fn is_greeted(&self) -> bool {
        matches!(self.phase, Phase::Negotiator(_))
    }

    fn advance(&mut self) -> Step {
        match &mut self.phase {
            Phase::Negotiator(prelude) => match prelude.advance(&self.incoming.link) {
                NegotiationProgress::Waits(wanted) => {
                    self.waits = wanted;
                    Step::Waits
                }
                NegotiationProgress::Plain(came) => Step::Plain(came),
                NegotiationProgress::Secure(open) => Step::Secured(open),
                NegotiationProgress::Refuse(why) => Step::Failed(why),
                NegotiationProgress::Gone => Step::Gone,
            },
            Phase::Hello(came) => match hear(&self.incoming.link, came) {
                Ok(Some(name)) => self.begin(&name),
                Ok(None) => Step::Waits,
                Err(step) => step,
            },
            Phase::Shake(_) => self.shake(),
        }
    }

    /// Has the library go on from the ClientHello, with the key of the name that it offers first.
    fn begin(&mut self, name: &[u8]) -> Step {
        let Phase::Hello(came) = &mut self.phase else { return Step::Gone };
        let came = std::mem::take(came);
        match self.serve(came, name) {
            Ok(handshake) => self.phase = Phase::Shake(handshake),
            Err(failed) => return self.fail(&failed),
        }
        self.shake()
    }

    /// By certificates, if there are some, with who offers no key.
    fn serve(&self, came: Vec<u8>, name: &[u8]) -> Result<Handshake, Failed> {
        let (security, socket) = (&self.incoming.config.security, self.incoming.link.clone());
        match &security.certificates {
            Some(certificates) if name.is_empty() => {
                Handshake::serve_certified(socket, came, certificates, security.auth)
            }
            _ => {
                let known = security.keys.as_ref().map_or_else(Vec::new, |keys| keys());
                let keys = choose(known, name).into_iter().collect();
                Handshake::serve(socket, came, keys)
            }
        }
    }

    fn shake(&mut self) -> Step {
        let Phase::Shake(handshake) = &mut self.phase else { return Step::Gone };
        match handshake.advance() {
            Ok(Progress::Reads) => self.waits = PollFlags::IN,
            Ok(Progress::Writes) => self.waits = PollFlags::OUT,
            Ok(Progress::Done(agreed)) => return Step::Done(agreed),
            Err(failed) => return self.fail(&failed),
        }
        Step::Waits
    }

    /// Tells the peer that its key is not the right one, whatever it was that is not right: who has no key is not to
    /// learn which names are known (RFC 8446 §6.2, on unknown_psk_identity).
    fn fail(&self, failed: &Failed) -> Step {
        const DECRYPT_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 51];
        if failed.is_early {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // A peer that is gone does not care.
            let _ = rustix::net::send(&self.incoming.link, &DECRYPT_ERROR, flags);
        }
        Step::Failed(UNKNOWN)
    }
}

/// Receives what is still missing of the ClientHello, and not a byte more. Gives the first name in it once it is whole.
fn hear(link: &Link, came: &mut Vec<u8>) -> Result<Option<Vec<u8>>, Step> {
    loop {
        let missing = match hello::parse(came) {
            Hello::Part(missing) => missing,
            Hello::Whole(name) => return Ok(Some(name)),
            Hello::Alien => return Err(Step::Failed(UNKNOWN)),
        };
        let have = came.len();
        came.resize(have + missing, 0);
        let room = came.get_mut(have..).unwrap_or_default();
        let got = rustix::net::recv(link, room, RecvFlags::DONTWAIT).map(|(got, _)| got);
        came.truncate(have + got.unwrap_or(0));
        match got {
            Ok(0) => return Err(Step::Gone),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(_) => return Err(Step::Gone),
        }
    }
}

/// The key of the name that the peer offers first. If we know none, one under that name that nobody knows: the same work is
/// done, and fails in the same way, whether the name is unknown or the key is wrong. The names behind it do not count: who
/// offered another's name before its own would learn from which of the two is taken whether the other is known.
fn choose(known: Vec<Psk>, name: &[u8]) -> Option<Psk> {
    let key = known.into_iter().find(|key| key.identity.as_bytes() == name);
    key.or_else(|| nobody(name))
}

/// A key that nobody knows.
fn nobody(name: &[u8]) -> Option<Psk> {
    let identity = String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())?;
    let mut secret = vec![0; 32];
    aws_lc_rs::rand::fill(&mut secret).ok()?;
    Some(Psk { identity, secret: Secret::new(secret), hash: Hash::Sha256, key: None })
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> Psk {
        let secret = Secret::new(vec![1; 32]);
        Psk { identity: name.to_owned(), secret, hash: Hash::Sha256, key: None }
    }

    #[test]
    fn only_the_key_that_is_offered_is_tried_and_an_unknown_name_gets_one_nobody_has() {
        let (known, name) = ([key("NVMe1R01 a"), key("NVMe1R01 b")], b"NVMe1R01 b");
        assert_eq!(choose(known.to_vec(), name), Some(key("NVMe1R01 b")));
        let [one, two] = [(), ()].map(|()| choose(vec![key("NVMe1R01 a")], name).unwrap());
        assert_eq!((&one.identity[..], &two.identity[..]), ("NVMe1R01 b", "NVMe1R01 b"));
        assert_ne!(one.secret, two.secret);
        assert_eq!(choose(known.to_vec(), b""), None);
    }

    #[test]
    fn reports_of_what_anybody_can_bring_about_are_few() {
        let (mut often, now) = (ReportLimit::default(), Instant::now());
        let count = |often: &mut ReportLimit, at| (0..1000).filter(|_| often.allows(at)).count();
        assert_eq!(count(&mut often, now), 10);
        assert_eq!(count(&mut often, now + Duration::from_millis(900)), 0);
        assert_eq!(count(&mut often, now + Duration::from_millis(3100)), 3);
        assert_eq!(count(&mut often, now + Duration::from_secs(3600)), 10);
    }
}
