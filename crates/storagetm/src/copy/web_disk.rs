//! A file of a web server, an object of a bucket or an image in a registry as a disk: any part of it can be read, and all
//! parts are of one version. A copy from it can be continued from a map.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ::copy::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, Request,
    RequestError,
};
use export::{Buffer, Pool};
use fetch::{Error, Parts};
use rustix::event::PollFlags;

/// Requests of one connection: one is answered while another one waits.
const DEPTH: usize = 2;

/// Most connections to one server.
const MAX_CONNECTIONS: usize = 16;

/// One version of a file of a server.
#[derive(Clone)]
pub(super) struct WebDisk(Arc<File>);

/// The names of a file.
pub(super) struct Source {
    /// For people.
    pub(super) name: String,
    /// For maps, without the version.
    pub(super) identity: String,
}

struct File {
    source: Source,
    /// The version that connections have, and the address that has sent it.
    parts: Mutex<Parts>,
    bytes: u64,
    version: String,
    /// Until when the server asks not to be asked.
    busy: Mutex<Option<Instant>>,
    /// Bytes that the hash of the file was computed with, and where they are: later reads return them, whatever the
    /// server sends then.
    checked: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl File {
    /// Keeps what the server asks for with an error.
    fn note(&self, error: &Error) {
        if let Some(busy) = error.retry_after().and_then(|it| Instant::now().checked_add(it)) {
            *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = Some(busy);
        }
    }

    /// Returns how long the server asks to wait for still.
    fn busy(&self) -> Option<Duration> {
        let busy = *self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Puts the bytes that were checked into what was read at `offset`.
    fn put_checked(&self, offset: u64, bytes: &mut [u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        for (at, checked) in &*self.checked.lock().unwrap_or_else(PoisonError::into_inner) {
            let (from, to) = ((*at).max(offset), at.saturating_add(checked.len() as u64).min(end));
            let within = |start: u64| {
                let index = |position: u64| usize::try_from(position.checked_sub(start)?).ok();
                Some(index(from)?..index(to)?)
            };
            let (Some(source), Some(target)) = (within(*at), within(offset)) else { continue };
            if let (Some(source), Some(target)) = (checked.get(source), bytes.get_mut(target)) {
                target.copy_from_slice(source);
            }
        }
    }
}

impl WebDisk {
    /// The version of the file that `parts` has.
    pub(super) fn new(source: Source, parts: Parts) -> Self {
        let version = parts.version();
        Self::of_version(source, parts, version)
    }

    /// As [`Self::new`], but with the version that a map calls `before`, if that is one of this file.
    pub(super) fn of_map(source: Source, parts: Parts, before: &str) -> Self {
        let version = version_of(&source, before).map_or_else(|| parts.version(), str::to_owned);
        Self::of_version(source, parts, version)
    }

    fn of_version(source: Source, parts: Parts, version: String) -> Self {
        let bytes = parts.length();
        let (busy, checked) = (Mutex::default(), Mutex::default());
        Self(Arc::new(File { source, parts: Mutex::new(parts), bytes, version, busy, checked }))
    }

    /// Returns the length of the file in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Keeps bytes that are part of what is checked, for all later reads.
    pub(super) fn keep_checked(&self, offset: u64, bytes: &[u8]) {
        let mut checked = self.0.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.push((offset, bytes.to_vec()));
    }

    /// Returns the identity of the file, which differs for each version of it.
    pub(super) fn identity(&self) -> String {
        format!("{} {}", self.0.source.identity, self.0.version)
    }

    /// Returns whether `identity` is of another version of the file.
    pub(super) fn is_other_version(&self, identity: &str) -> bool {
        version_of(&self.0.source, identity).is_some_and(|version| version != self.0.version)
    }

    /// Returns the properties of the disk.
    pub(super) fn disk(&self) -> Disk {
        Disk {
            name: self.0.source.name.clone(),
            bytes: self.0.bytes,
            block: 1,
            max_transfer: u32::try_from(Pool::MAX_BUFFER).unwrap_or(u32::MAX),
            max_connections: MAX_CONNECTIONS,
            remote: true,
            identity: self.identity(),
            ..Disk::default()
        }
    }

    /// Returns a connection to the version that the disk was opened with.
    fn connect(&self) -> Result<Parts, EndpointError> {
        let File { source: Source { name, .. }, parts, .. } = &*self.0;
        if let Some(busy) = self.0.busy() {
            let seconds = busy.as_secs() + 1;
            return Err(EndpointError::Temporary(format!(
                "{name}: the server asks to wait for {seconds} seconds"
            )));
        }
        let known = parts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let connected = known.again().map_err(|error| {
            self.0.note(&error);
            let text = format!("{name}: {error}");
            match error.is_temporary() {
                true => EndpointError::Temporary(text),
                false => EndpointError::Permanent(text),
            }
        })?;
        // The next one begins at the address that has answered this one.
        *parts.lock().unwrap_or_else(PoisonError::into_inner) = connected.clone();
        Ok(connected)
    }
}

/// Returns the version in an identity of this file, which the name of a changed partition table may follow.
fn version_of<'a>(source: &Source, identity: &'a str) -> Option<&'a str> {
    let version = identity.strip_prefix(&source.identity)?.strip_prefix(' ')?;
    let tag = version.strip_prefix('"').and_then(|rest| rest.find('"'));
    let end = tag.map(|end| end + 2).or_else(|| version.find(" table "));
    version.get(..end.unwrap_or(version.len()))
}

impl Endpoint for WebDisk {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let name = &self.0.source.name;
        let parts = self.connect()?;
        let connection = WebConnection::start(parts, self.0.clone())
            .map_err(|error| EndpointError::Temporary(format!("{name}: {error}")))?;
        Ok((self.disk(), Box::new(connection)))
    }
}

/// A connection, with a thread that waits for the server.
struct WebConnection {
    requests: Sender<Read>,
    answers: Receiver<(Read, Result<(), Error>)>,
    /// Readable when there is an answer.
    wake: UnixStream,
    /// The requests in flight: their tags and buffers.
    waiting: Vec<(u32, Buffer)>,
    completed: VecDeque<Completion>,
}

/// A request of a part, and its answer.
struct Read {
    tag: u32,
    offset: u64,
    bytes: Vec<u8>,
}

impl WebConnection {
    fn start(parts: Parts, file: Arc<File>) -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let (requests, received) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let work = move || serve((parts, &file), &received, &answer, waker);
        thread::Builder::new().name("source".to_owned()).spawn(work)?;
        let (waiting, completed) = (Vec::new(), VecDeque::new());
        Ok(Self { requests, answers, wake, waiting, completed })
    }

    fn complete(&mut self, read: &Read) {
        let Some(at) = self.waiting.iter().position(|(tag, _)| *tag == read.tag) else { return };
        let (tag, mut buffer) = self.waiting.swap_remove(at);
        buffer.bytes_mut().copy_from_slice(&read.bytes);
        let (result, buffer) = (Ok(()), Some(buffer));
        self.completed.push_back(Completion { tag, result, buffer, extents: Vec::new() });
    }
}

/// Answers requests until the connection is dropped, or until one fails.
fn serve(
    (mut parts, file): (Parts, &File),
    requests: &Receiver<Read>,
    answers: &Sender<(Read, Result<(), Error>)>,
    mut waker: UnixStream,
) {
    while let Ok(mut read) = requests.recv() {
        let result = parts.read_at(read.offset, &mut read.bytes);
        file.put_checked(read.offset, &mut read.bytes);
        let has_failed = result.as_ref().inspect_err(|error| file.note(error)).is_err();
        if answers.send((read, result)).is_err() || waker.write_all(&[0]).is_err() || has_failed {
            return;
        }
    }
}

impl Connection for WebConnection {
    fn submit(&mut self, tag: u32, request: Request) {
        match request {
            Request::Read { offset, buffer } => {
                let bytes = vec![0; buffer.len()];
                self.waiting.push((tag, buffer));
                // A thread that has ended is noticed in `advance`.
                let _ = self.requests.send(Read { tag, offset, bytes });
            }
            Request::Write { buffer, .. } => {
                let (result, buffer) = (Err(RequestError::ReadOnly), Some(buffer));
                self.completed.push_back(Completion { tag, result, buffer, extents: Vec::new() });
            }
            Request::Zero { .. } | Request::Flush | Request::Extents { .. } => {
                let (result, buffer) = (Err(RequestError::Unsupported), None);
                self.completed.push_back(Completion { tag, result, buffer, extents: Vec::new() });
            }
        }
    }

    fn free_slots(&self) -> usize {
        DEPTH.saturating_sub(self.waiting.len())
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        // Not readable if nothing was answered.
        let _ = (&self.wake).read(&mut [0; 64]);
        loop {
            match self.answers.try_recv() {
                Ok((read, Ok(()))) => self.complete(&read),
                Ok((_, Err(error @ Error::OtherPart))) => {
                    return Err(ConnectionLost::violation(error));
                }
                Ok((_, Err(error))) => return Err(ConnectionLost::new(error)),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    return Err(ConnectionLost::new("its thread has ended"));
                }
            }
        }
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn interest(&self) -> Interest<'_> {
        match self.waiting.is_empty() {
            true => Interest::None,
            false => Interest::Fd(self.wake.as_fd(), PollFlags::IN),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn version_of_an_identity_is_found() {
        let source = Source { name: String::new(), identity: "https://h/f".to_owned() };
        let version = |identity: &str| version_of(&source, identity).map(str::to_owned);
        let some = |version: &str| Some(version.to_owned());
        assert_eq!(version("https://h/f \"a b\""), some("\"a b\""));
        assert_eq!(version("https://h/f \"a table 1\" table 512 9"), some("\"a table 1\""));
        let time = "Tue, 15 Nov 1994 12:45:26 GMT";
        assert_eq!(version(&format!("https://h/f {time}")), some(time));
        assert_eq!(version(&format!("https://h/f {time} table 512 9")), some(time));
        assert_eq!(version("https://h/f sha256:ab"), some("sha256:ab"));
        for other in ["", "https://h/f", "https://h/f?sha256:12 \"a\"", "https://h/file \"a\""] {
            assert_eq!(version(other), None, "{other}");
        }
    }
}
