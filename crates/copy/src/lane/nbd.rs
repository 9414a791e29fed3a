//! A disk that another machine, or another program, lends by NBD. It knows how to ask for it, and not how it is reached.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use export::{Buffer, DirectRecv, Pool};
use nbd::client::{
    self, Client, End, Listing, NotNow, Opened, Options, Purpose, Reason, Refusal, Request, Start,
    Step, Violation,
};
use nbd::wire::errno;
use nbd::wire::request::flags;

use super::{Ended, Failed, Lane, Lost, SILENCE, Waits, Work};
use crate::place::{Disk, Place, PlaceError};
use crate::wire::{Dial, Line, Talks, Wire, read_until};

/// How long a server may take to open an export.
const PATIENCE: Duration = Duration::from_secs(30);

/// Requests that can be under way on one connection.
const DEPTH: u16 = 64;

/// Zeros that are asked for at once, in bytes, of a server that says when that takes as long as writing them.
const FAST_ZEROES: u64 = 1 << 30;

/// The same of any other: as many as it can write in a few moments.
const SLOW_ZEROES: u64 = 32 << 20;

/// Connections to one server, at most.
const LANES: usize = 16;

/// An export of an NBD server.
#[derive(Clone)]
pub struct NbdPlace {
    name: String,
    export: String,
    dial: Dial,
    secured: bool,
    broken: Arc<OnceLock<Violation>>,
    /// Whether it was there before: then a server that does not have it may yet come to itself.
    opened: Arc<AtomicBool>,
}

impl std::fmt::Debug for NbdPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NbdPlace({})", self.name)
    }
}

impl NbdPlace {
    /// The export of that name, or if it is empty the one that the server chooses. People call it `name`, as
    /// `nbd://host/export`; `dial` connects to the server.
    #[must_use]
    pub fn new(name: &str, export: &str, dial: Dial) -> Self {
        let (name, export) = (name.to_owned(), export.to_owned());
        Self { name, export, dial, secured: false, broken: Arc::default(), opened: Arc::default() }
    }

    /// The same, where `dial` has agreed on TLS by [`start_tls`] and made the TLS handshake.
    #[must_use]
    pub fn secured(self) -> Self {
        Self { secured: true, ..self }
    }

    /// What the server lends.
    ///
    /// # Errors
    /// It cannot be reached, or does not want to tell.
    pub fn list(&self) -> Result<Vec<Listing>, PlaceError> {
        let (talk, step) = self.connect(Purpose::List)?;
        drop(talk);
        match step {
            Step::Listed(listed) => Ok(listed),
            Step::Refused(refusal) => Err(self.refused(&refusal)),
            _ => Err(PlaceError::Refused(format!("{}: the server gave no list", self.name))),
        }
    }

    /// What the export is like, without using it.
    ///
    /// # Errors
    /// As for [`Place::open`].
    pub fn look(&self) -> Result<Opened, PlaceError> {
        let (talk, step) = self.connect(Purpose::Look)?;
        drop(talk);
        match step {
            Step::Opened(opened) => Ok(*opened),
            Step::Refused(refusal) => Err(self.refused(&refusal)),
            _ => Err(PlaceError::Refused(format!("{}: the server told nothing", self.name))),
        }
    }

    /// Connects, and goes on to the first step that is no sending.
    fn connect(&self, purpose: Purpose) -> Result<(Talk, Step), PlaceError> {
        let start = if self.secured { Start::Secured } else { Start::Clear };
        let options = Options { purpose, start, depth: DEPTH, ..Options::new(&self.export) };
        let wire = (self.dial)()?;
        let mut talk = Talk::new(wire, options).map_err(|error| self.unreachable(&error))?;
        let deadline = Instant::now() + PATIENCE;
        match talk.wait_for_step(deadline).map_err(|error| self.unreachable(&error))? {
            Step::Close(End::Violation(violation)) => Err(self.broke(violation)),
            step => Ok((talk, step)),
        }
    }

    fn unreachable(&self, error: &io::Error) -> PlaceError {
        PlaceError::Unreachable(format!("{}: {error}", self.name))
    }

    fn broke(&self, violation: Violation) -> PlaceError {
        let violation = *self.broken.get_or_init(|| violation);
        PlaceError::Violation(format!("{}: {violation}", self.name))
    }

    fn refused(&self, refusal: &Refusal) -> PlaceError {
        let sentence = match refusal.reason {
            Reason::Unknown => format!("{}: {refusal}{}", self.name, self.others()),
            Reason::TlsRequired => format!("{}: {refusal}: use nbds:// with a key", self.name),
            _ => format!("{}: {refusal}", self.name),
        };
        match refusal.reason {
            Reason::Shutdown => PlaceError::Unreachable(sentence),
            Reason::Unknown if self.opened.load(Ordering::Relaxed) => {
                PlaceError::Unreachable(sentence)
            }
            _ => PlaceError::Refused(sentence),
        }
    }

    /// What else there is, if the server tells.
    fn others(&self) -> String {
        let listed = match self.connect(Purpose::List) {
            Ok((_, Step::Listed(listed))) => listed,
            _ => Vec::new(),
        };
        let names: Vec<_> = listed.iter().map(|export| shown(&export.name)).take(20).collect();
        match names.is_empty() {
            true => String::new(),
            false => format!(": name one of {}", names.join(", ")),
        }
    }

    fn disk(&self, opened: &Opened) -> Disk {
        let known = if self.export.is_empty() { &opened.name } else { &self.export };
        let block = if opened.bytes.is_multiple_of(512) { 512 } else { 1 };
        let shared = opened.can(flags::CAN_MULTI_CONN);
        Disk {
            name: self.name.clone(),
            bytes: opened.bytes,
            block: opened.minimum.max(block),
            // A minimum below 512 bytes is not the block size of a disk.
            sector: (opened.minimum >= 512).then_some(opened.minimum),
            writable: opened.is_writable(),
            extents: opened.extents,
            zeroes: zeroes(opened),
            largest: opened.largest.min(u32::try_from(Pool::MAX_BUFFER).unwrap_or(u32::MAX)),
            lanes: if shared { LANES } else { 1 },
            remote: true,
            fresh: false,
            identity: identity(opened, known),
        }
    }
}

/// The disk's identity: its UUID if the server announces one, else its name, which another disk may have later.
fn identity(opened: &Opened, name: &str) -> String {
    match opened.uuid {
        Some(uuid) => format!("nbd uuid {:032x}", u128::from_be_bytes(uuid)),
        None => format!("nbd {}", shown(name)),
    }
}

/// The longest range of zeros to be asked for at once.
fn zeroes(opened: &Opened) -> u64 {
    let minimum = u64::from(opened.minimum);
    match (opened.can(flags::SEND_WRITE_ZEROES), opened.can(flags::SEND_FAST_ZERO)) {
        (false, _) => 0,
        (true, true) => FAST_ZEROES / minimum * minimum,
        (true, false) => SLOW_ZEROES / minimum * minimum,
    }
}

/// A name as it may be shown: on one line.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).collect()
}

impl Place for NbdPlace {
    fn open(&self) -> Result<(Disk, Box<dyn Lane>), PlaceError> {
        if let Some(violation) = self.broken.get() {
            return Err(self.broke(*violation));
        }
        let (talk, step) = self.connect(Purpose::Go)?;
        match step {
            Step::Opened(opened) => {
                let disk = self.disk(&opened);
                self.opened.store(true, Ordering::Relaxed);
                Ok((disk, Box::new(NbdLane::new(talk, *opened, self.broken.clone()))))
            }
            Step::Refused(refusal) => {
                // Some servers have one client at a time, and the sentence may take another question.
                drop(talk);
                Err(self.refused(&refusal))
            }
            _ => Err(PlaceError::Refused(format!("{}: the server opened nothing", self.name))),
        }
    }
}

/// Agrees on TLS with an NBD server on a connection that has just been made (NBD, TLS support): the caller then makes the
/// TLS handshake, and gives the secured connection to a place that is [`NbdPlace::secured`].
///
/// # Errors
/// The server cannot be reached, does not want TLS, or broke a rule. `name` is what people call it.
pub fn start_tls(wire: &mut dyn Wire, name: &str) -> Result<(), PlaceError> {
    let mut client = Client::new(Options { start: Start::Secure, ..Options::new("") });
    let deadline = Instant::now() + PATIENCE;
    let unreachable = |error: io::Error| PlaceError::Unreachable(format!("{name}: {error}"));
    let (mut bytes, mut kept) = ([0; Client::LONGEST], 0);
    loop {
        while let Some(step) = client.poll() {
            let refused = match step {
                Step::Send(segment) => {
                    let whole = segment.parts().concat();
                    wire.write_all(&whole).map_err(unreachable)?;
                    continue;
                }
                Step::Secure => return Ok(()),
                Step::Refused(refusal) => refusal.to_string(),
                Step::Close(End::Violation(violation)) => {
                    return Err(PlaceError::Violation(format!("{name}: {violation}")));
                }
                _ => continue,
            };
            return Err(PlaceError::Refused(format!("{name}: {refused}")));
        }
        let place = bytes.get_mut(kept..).unwrap_or_default();
        kept += read_until(wire, place, deadline).map_err(unreachable)?;
        let taken = client.receive(bytes.get(..kept).unwrap_or_default());
        bytes.copy_within(taken..kept, 0);
        kept -= taken;
    }
}

/// A client on its connection.
struct Talk {
    line: Line,
    client: Client,
}

impl Talks for Client {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.direct_recv()
    }

    fn direct_received(&mut self, direct_recv: DirectRecv, got: usize) {
        self.direct_received(direct_recv, got);
    }
}

impl Talk {
    fn new(wire: Box<dyn Wire>, options: Options) -> io::Result<Self> {
        Ok(Self { line: Line::new(wire)?, client: Client::new(options) })
    }

    /// The next step that is no sending.
    fn poll(&mut self) -> Option<Step> {
        loop {
            match self.client.poll()? {
                Step::Send(segment) => self.line.push(segment),
                step => return Some(step),
            }
        }
    }

    fn wait_for_step(&mut self, deadline: Instant) -> io::Result<Step> {
        loop {
            if let Some(step) = self.poll() {
                return Ok(step);
            }
            if !self.line.exchange(&mut self.client)? {
                self.line.wait(deadline)?;
            }
        }
    }
}

impl Drop for Talk {
    /// Says goodbye, if that takes no waiting.
    fn drop(&mut self) {
        self.client.disconnect();
        while self.poll().is_some() {}
        let _ = self.line.flush();
    }
}

/// One connection to an export.
struct NbdLane {
    talk: Talk,
    opened: Opened,
    broken: Arc<OnceLock<Violation>>,
    /// The memory of writes under way, and of those whose bytes are not yet sent though they were answered.
    writes: Vec<(u32, Rc<Buffer>)>,
    late: Vec<(u32, Result<(), Failed>)>,
    /// Works under way that the caller can do without.
    spare: Vec<u32>,
    ended: VecDeque<Ended>,
    /// When the first of the requests under way was submitted, if nothing came since.
    since: Instant,
}

impl NbdLane {
    fn new(talk: Talk, opened: Opened, broken: Arc<OnceLock<Violation>>) -> Self {
        Self {
            talk,
            opened,
            broken,
            writes: Vec::new(),
            late: Vec::new(),
            spare: Vec::new(),
            ended: VecDeque::new(),
            since: Instant::now(),
        }
    }

    fn request(&mut self, tag: u32, work: Work) -> Option<Request> {
        Some(match work {
            Work::Read { offset, buffer } => Request::Read { offset, buffer },
            Work::Write { offset, buffer, part } => {
                let (buffer, start, len) = (Rc::new(buffer), part.start, part.len());
                self.writes.push((tag, buffer.clone()));
                Request::Write { offset, buffer, start, len, durable: false }
            }
            Work::Zero { offset, len } => {
                let fast = self.opened.can(flags::SEND_FAST_ZERO);
                self.spare.push(tag);
                Request::Zero { offset, len, no_hole: false, fast, durable: false }
            }
            // A server without this command keeps nothing back (NBD, Ordering of messages and writes).
            Work::Flush if !self.opened.can(flags::SEND_FLUSH) => return None,
            Work::Flush => Request::Flush,
            Work::Extents { offset, len } => {
                let most = u64::from(u32::MAX) / u64::from(self.opened.minimum.max(1));
                let most = most * u64::from(self.opened.minimum.max(1));
                self.spare.push(tag);
                Request::Extents { offset, len: len.min(most) }
            }
        })
    }

    fn plain(tag: u32, result: Result<(), Failed>, buffer: Option<Buffer>) -> Ended {
        Ended { tag, result, buffer, extents: Vec::new() }
    }

    /// A request that the export does not offer, or that there was no room for.
    fn impossible(&mut self, tag: u32, request: NotNow) {
        let (request, failed) = match request {
            NotNow::Impossible(request @ Request::Write { .. }) if !self.opened.is_writable() => {
                (request, Failed::ReadOnly)
            }
            NotNow::Impossible(request) => (request, Failed::OutOfRange),
            NotNow::Full(request) | NotNow::NotOpen(request) => (request, Failed::Refused),
        };
        let failed = if self.is_spare(tag) { Failed::Unsupported } else { failed };
        let buffer = match request {
            Request::Read { buffer, .. } => Some(buffer),
            Request::Write { .. } => return self.late.push((tag, Err(failed))),
            _ => None,
        };
        self.ended.push_back(Self::plain(tag, Err(failed), buffer));
    }

    /// Whether the work that ends now is one that the caller can do without.
    fn is_spare(&mut self, tag: u32) -> bool {
        let at = self.spare.iter().position(|of| *of == tag);
        at.map(|at| self.spare.swap_remove(at)).is_some()
    }

    fn take_steps(&mut self) -> Result<(), Lost> {
        while let Some(step) = self.talk.poll() {
            match step {
                Step::Done(done) => self.done(done)?,
                Step::Close(End::Violation(violation)) => {
                    let violation = *self.broken.get_or_init(|| violation);
                    return Err(Lost::violation(violation));
                }
                _ => return Err(Lost::new("the connection ended")),
            }
        }
        Ok(())
    }

    fn done(&mut self, done: client::Done) -> Result<(), Lost> {
        let client::Done { tag, result, buffer, extents } = done;
        // NBD, Terminating the transmission phase: the client is to leave.
        if result.is_err_and(|error| error.errno == errno::ESHUTDOWN) {
            return Err(Lost::new("the server is shutting down"));
        }
        let spare = self.is_spare(tag);
        let result = result.map_err(|error| failed(error.errno, spare));
        match self.writes.iter().any(|(of, _)| *of == tag) {
            true => self.late.push((tag, result)),
            false => self.ended.push_back(Ended { tag, result, buffer, extents }),
        }
        Ok(())
    }

    /// Ends the writes that were answered and whose memory is no longer needed for sending.
    fn end_writes(&mut self) {
        let late = std::mem::take(&mut self.late);
        for (tag, result) in late {
            let Some(at) = self.writes.iter().position(|(of, _)| *of == tag) else { continue };
            let (_, memory) = self.writes.swap_remove(at);
            match Rc::try_unwrap(memory) {
                Ok(buffer) => self.ended.push_back(Self::plain(tag, result, Some(buffer))),
                Err(memory) => {
                    self.writes.push((tag, memory));
                    self.late.push((tag, result));
                }
            }
        }
    }

    fn busy(&self) -> bool {
        self.talk.client.under_way() != 0 || !self.late.is_empty()
    }
}

/// What the server's error stands for (NBD, Error values).
fn failed(errno: u32, spare: bool) -> Failed {
    match errno {
        errno::EIO => Failed::Media,
        errno::EINVAL if spare => Failed::Unsupported,
        errno::ENOSPC => Failed::NoSpace,
        errno::EPERM => Failed::ReadOnly,
        errno::ENOTSUP | errno::EOVERFLOW => Failed::Unsupported,
        errno::EINVAL => Failed::OutOfRange,
        _ => Failed::Refused,
    }
}

impl Lane for NbdLane {
    fn submit(&mut self, tag: u32, work: Work) {
        if !self.busy() {
            self.since = Instant::now();
        }
        let Some(request) = self.request(tag, work) else {
            return self.ended.push_back(Self::plain(tag, Ok(()), None));
        };
        if let Err(request) = self.talk.client.submit(request, tag) {
            self.impossible(tag, request);
        }
    }

    fn room(&self) -> usize {
        self.talk.client.room().saturating_sub(self.late.len())
    }

    fn advance(&mut self) -> Result<(), Lost> {
        self.take_steps()?;
        self.talk.line.exchange(&mut self.talk.client).map_err(Lost::new)?;
        self.take_steps()?;
        self.end_writes();
        match self.deadline() {
            Some(deadline) if deadline <= Instant::now() => {
                Err(Lost::new(format!("no answer in {} seconds", SILENCE.as_secs())))
            }
            _ => Ok(()),
        }
    }

    fn ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    fn waits(&self) -> Waits<'_> {
        use std::os::fd::AsFd;
        match self.busy() {
            true => Waits::For(self.talk.line.as_fd(), self.talk.line.wants()),
            false => Waits::Nothing,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.busy().then(|| self.talk.line.heard().max(self.since) + SILENCE)
    }
}
