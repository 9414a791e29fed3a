//! The thread for all that comes before a session: greetings in the clear where this end speaks first, and handshakes; many
//! at once, each with a deadline, few handshakes of each address. It knows no driver but by the one call that gives a
//! connection away, and no cipher.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use export::{Door, Network, Peer, Purpose, Secret};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::hello::{self, Hello};
use super::limit::Ration;
use super::records::Records;
use super::seam::{Agreed, Failed, Handshake, Progress};
use super::wrapped::Wrapped;
use super::{Hash, Psk};
use crate::door::{CLEAR, CROWD, Entrance, refuse};
use crate::greeting::{Next, Prelude};
use crate::link::Link;
use crate::listen::Adopt;
use crate::mailbox::{Mailbox, Message};
use crate::stage::Stage as Bytes;
use crate::{Limits, Open, Sink};

/// A peer that has not yet been let in.
pub(crate) struct Newcomer {
    pub(crate) link: Arc<Link>,
    pub(crate) entrance: Arc<Entrance>,
    /// When it is given up.
    pub(crate) until: Instant,
}

/// The thread.
pub(crate) struct Lobby {
    door: Arc<Mutex<Vec<Newcomer>>>,
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Lobby {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is no thread or no descriptor to be had.
    pub(crate) fn start(limits: Limits, sink: Sink, adopt: Adopt) -> io::Result<Self> {
        let (door, mailbox) = (Arc::new(Mutex::default()), Mailbox::new()?);
        let (entry, bell) = (door.clone(), mailbox.clone());
        let host = move || {
            let host = Host {
                door: entry,
                mailbox: bell,
                ration: Ration::new(limits),
                at_once: limits.at_once.max(1),
                guests: Vec::new(),
                reported: Often::default(),
                flooded: Often::default(),
                sink,
                adopt,
            };
            host.run();
        };
        let thread = std::thread::Builder::new().name("handshake".to_owned()).spawn(host)?;
        Ok(Self { door, mailbox, thread: Some(thread) })
    }

    /// Takes a peer in, to be greeted, or to make a handshake with it.
    pub(crate) fn admit(&self, newcomer: Newcomer) {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).push(newcomer);
        // Wakes the thread; who has come is in the list.
        self.mailbox.put(Message::News(export::News::Changed));
    }
}

impl Drop for Lobby {
    /// Ends the thread, and all handshakes with it.
    fn drop(&mut self) {
        self.mailbox.put(Message::Quit);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            drop(thread.join());
        }
    }
}

/// Lets a few of many things through: so many in a row, and one a second in the long run.
#[derive(Debug, Default)]
pub(crate) struct Often {
    lately: u32,
    since: Option<Instant>,
}

/// Reports in a row of things that anybody can bring about.
const REPORTS: u32 = 10;

impl Often {
    /// Whether one more is not too often.
    pub(crate) fn is_rare(&mut self, now: Instant) -> bool {
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
    door: Arc<Mutex<Vec<Newcomer>>>,
    mailbox: Arc<Mailbox>,
    ration: Ration,
    at_once: usize,
    /// Greetings and handshakes on their way, the oldest first.
    guests: Vec<Guest>,
    /// How often it was reported lately that a handshake failed, and that one was not begun.
    reported: Often,
    flooded: Often,
    sink: Sink,
    adopt: Adopt,
}

/// A greeting or a handshake on its way.
struct Guest {
    newcomer: Newcomer,
    source: Network,
    stage: Stage,
    /// What makes its session in the end.
    open: Open,
    /// What it waits for.
    waits: PollFlags,
}

enum Stage {
    /// It is spoken in the clear.
    Greeting(Box<Prelude>),
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
            if self.mailbox.is_full() && self.read_mail() {
                return;
            }
            self.advance(&ready);
            self.welcome();
        }
    }

    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.mailbox.as_fd(), PollFlags::IN)];
        let guests = self.guests.iter();
        fds.extend(guests.map(|guest| PollFd::from_borrowed_fd(guest.fd(), guest.waits)));
        let oldest = self.guests.iter().map(|guest| guest.newcomer.until).min();
        let left = oldest.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        fds.iter().skip(1).map(|fd| !fd.revents().is_empty()).collect()
    }

    /// Tells whether to end.
    fn read_mail(&self) -> bool {
        self.mailbox.hush();
        self.mailbox.take().iter().any(|message| matches!(message, Message::Quit))
    }

    /// Goes on with those that are ready, and gives up those that are late.
    fn advance(&mut self, ready: &[bool]) {
        let guests = std::mem::take(&mut self.guests);
        let mut secured = Vec::new();
        for (mut guest, ready) in
            guests.into_iter().zip(ready.iter().chain(std::iter::repeat(&false)))
        {
            let late = guest.newcomer.until <= Instant::now();
            let step = match ready {
                true => guest.advance(),
                false => Step::Waits,
            };
            match step {
                Step::Waits if late => self.report_late(&guest),
                Step::Waits => self.guests.push(guest),
                Step::Plain(came) => self.let_in(guest, came),
                Step::Secured(open) => secured.push(Guest { open, ..guest }),
                Step::Done(agreed) => self.hand_over(guest, *agreed),
                Step::Failed(why) => self.report(&guest, why),
                Step::Gone => {}
            }
        }
        // Not before all others are back in the list, in which those of the same address are counted.
        secured.into_iter().for_each(|guest| self.shake_hands(guest));
    }

    /// Begins with those that came.
    fn welcome(&mut self) {
        let fresh = std::mem::take(&mut *self.door.lock().unwrap_or_else(PoisonError::into_inner));
        for newcomer in fresh {
            let peer = newcomer.link.peer();
            let source = Network::of(peer.remote);
            let open = newcomer.entrance.open.clone();
            let greeting = newcomer.entrance.security.greeting.clone();
            let stage = match greeting.map(|greeting| greeting(&peer)) {
                Some(greeting) => Stage::Greeting(Box::new(Prelude::new(greeting))),
                None => Stage::Hello(Vec::new()),
            };
            let guest = Guest { newcomer, source, stage, open, waits: PollFlags::OUT };
            match guest.is_greeted() {
                true => self.guests.push(guest),
                false => self.shake_hands(guest),
            }
        }
    }

    /// Begins a handshake, if the address has one left. A greeting costs so little that it is not counted.
    fn shake_hands(&mut self, mut guest: Guest) {
        if self.ration.take(guest.source, Instant::now()) {
            self.make_room(guest.source);
            (guest.stage, guest.waits) = (Stage::Hello(Vec::new()), PollFlags::IN);
            self.guests.push(guest);
        } else {
            self.report(&guest, FLOOD);
        }
    }

    /// Gives up the one of an address that has waited longest, if it has too many: who opens connections and says nothing
    /// cannot keep a neighbour out who does.
    fn make_room(&mut self, source: Network) {
        let of_it = |guest: &Guest| guest.source == source && !guest.is_greeted();
        if self.guests.iter().filter(|guest| of_it(guest)).count() >= self.at_once {
            let oldest = self.guests.iter().position(of_it);
            oldest.into_iter().for_each(|at| drop(self.guests.remove(at)));
        }
    }

    /// Where nothing need be shown, nobody was refused who did not go on.
    fn report_late(&mut self, guest: &Guest) {
        if guest.newcomer.entrance.security.door == Door::Keyed || !guest.is_greeted() {
            self.report(guest, LATE);
        }
    }

    fn report(&mut self, guest: &Guest, why: &'static str) {
        let often = if why == FLOOD { &mut self.flooded } else { &mut self.reported };
        if often.is_rare(Instant::now()) {
            refuse(&self.sink, guest.newcomer.link.peer(), why);
        }
    }

    /// Gives a connection in the clear to a driver, if that is let in now.
    fn let_in(&mut self, guest: Guest, came: Vec<u8>) {
        if !guest.newcomer.entrance.lets_plain_in() {
            return self.report(&guest, CLEAR);
        }
        guest.newcomer.link.leave(came);
        (self.adopt)(guest.newcomer.link, guest.open);
    }

    /// Gives the connection to a driver.
    fn hand_over(&mut self, guest: Guest, agreed: Agreed) {
        // A key that everybody knows proves nothing, and costs as much as a wrong one.
        if agreed.channel.key.is_some() {
            self.ration.give_back(guest.source);
        }
        guest.newcomer.link.secure(agreed.channel.clone());
        if !guest.newcomer.link.has_room() {
            return self.report(&guest, CROWD);
        }
        // Without memory for it the connection is closed: its peer may try again.
        let Some(stage) = Wrapped::stage() else { return };
        (self.adopt)(guest.newcomer.link, wrap(Records::new(agreed), stage, guest.open));
    }
}

/// Makes sessions that speak through `records`: one, as there is one connection.
fn wrap(records: Records, stage: Bytes, open: Open) -> Open {
    let records = Mutex::new(Some((records, stage)));
    Arc::new(move |peer: Peer, account, now| {
        let records = records.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sealed = account.sibling(Purpose::Sealed);
        let session = open(peer.clone(), account, now);
        match records {
            Some((records, stage)) => {
                Box::new(Wrapped::new(records, stage, session, sealed, peer, now))
            }
            None => session,
        }
    })
}

impl Guest {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.newcomer.link.as_fd()
    }

    fn is_greeted(&self) -> bool {
        matches!(self.stage, Stage::Greeting(_))
    }

    fn advance(&mut self) -> Step {
        match &mut self.stage {
            Stage::Greeting(prelude) => match prelude.advance(&self.newcomer.link) {
                Next::Waits(wanted) => {
                    self.waits = wanted;
                    Step::Waits
                }
                Next::Plain(came) => Step::Plain(came),
                Next::Secure(open) => Step::Secured(open),
                Next::Refuse(why) => Step::Failed(why),
                Next::Gone => Step::Gone,
            },
            Stage::Hello(came) => match hear(&self.newcomer.link, came) {
                Ok(Some(name)) => self.begin(&name),
                Ok(None) => Step::Waits,
                Err(step) => step,
            },
            Stage::Shake(_) => self.shake(),
        }
    }

    /// Has the library go on from the ClientHello, with the key of the name that it offers first.
    fn begin(&mut self, name: &[u8]) -> Step {
        let Stage::Hello(came) = &mut self.stage else { return Step::Gone };
        let came = std::mem::take(came);
        match self.serve(came, name) {
            Ok(handshake) => self.stage = Stage::Shake(handshake),
            Err(failed) => return self.fail(&failed),
        }
        self.shake()
    }

    /// By certificates, if there are some, with who offers no key.
    fn serve(&self, came: Vec<u8>, name: &[u8]) -> Result<Handshake, Failed> {
        let (security, socket) = (&self.newcomer.entrance.security, self.newcomer.link.clone());
        match &security.certificates {
            Some(certificates) if name.is_empty() => {
                Handshake::serve_certified(socket, came, certificates, security.door)
            }
            _ => {
                let known = security.keys.as_ref().map_or_else(Vec::new, |keys| keys());
                let keys = choose(known, name).into_iter().collect();
                Handshake::serve(socket, came, keys)
            }
        }
    }

    fn shake(&mut self) -> Step {
        let Stage::Shake(handshake) = &mut self.stage else { return Step::Gone };
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
            let _ = rustix::net::send(&self.newcomer.link, &DECRYPT_ERROR, flags);
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
        let (mut often, now) = (Often::default(), Instant::now());
        let count = |often: &mut Often, at| (0..1000).filter(|_| often.is_rare(at)).count();
        assert_eq!(count(&mut often, now), 10);
        assert_eq!(count(&mut often, now + Duration::from_millis(900)), 0);
        assert_eq!(count(&mut often, now + Duration::from_millis(3100)), 3);
        assert_eq!(count(&mut often, now + Duration::from_secs(3600)), 10);
    }
}
