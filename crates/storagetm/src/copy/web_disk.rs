//! A file of a web server, an object of a bucket or an image in a registry as a disk: any part of it can be read, and all
//! parts are of one version. A copy from it can be continued from a map.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ::copy::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, Request,
    RequestError,
};
use export::{Buffer, Pool};
use fetch::{Access, Error, Location, Parts};
use rustix::event::PollFlags;

/// Requests of one connection: one is answered while another one waits.
const DEPTH: usize = 2;

/// Most connections to one server.
const MAX_CONNECTIONS: usize = 16;

/// One version of a file of a server.
#[derive(Clone)]
pub(super) struct WebDisk(Arc<File>);

struct File {
    location: Location,
    access: Access,
    patience: Duration,
    bytes: u64,
    version: String,
    /// Bytes that the hash of the file was computed with, and where they are: later reads return them, whatever the
    /// server sends then.
    checked: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl File {
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
    pub(super) fn new(
        location: &Location,
        access: Access,
        patience: Duration,
        parts: &Parts,
    ) -> Self {
        let (location, bytes, version) = (location.clone(), parts.length(), parts.version());
        let checked = Mutex::default();
        Self(Arc::new(File { location, access, patience, bytes, version, checked }))
    }

    /// Keeps bytes that are part of what is checked, for all later reads.
    pub(super) fn keep_checked(&self, offset: u64, bytes: &[u8]) {
        let mut checked = self.0.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.push((offset, bytes.to_vec()));
    }

    /// Returns the identity of the file, which differs for each version of it.
    pub(super) fn identity(&self) -> String {
        format!("{} {}", self.0.location, self.0.version)
    }

    /// Returns whether `identity` is of another version of the file.
    pub(super) fn is_other_version(&self, identity: &str) -> bool {
        let version = identity.strip_prefix(&format!("{} ", self.0.location));
        version.is_some_and(|version| !version.starts_with(&self.0.version))
    }

    fn disk(&self) -> Disk {
        Disk {
            name: self.0.location.to_string(),
            bytes: self.0.bytes,
            block: 1,
            max_transfer: u32::try_from(Pool::MAX_BUFFER).unwrap_or(u32::MAX),
            max_connections: MAX_CONNECTIONS,
            remote: true,
            identity: self.identity(),
            ..Disk::default()
        }
    }

    fn connect(&self) -> Result<Parts, EndpointError> {
        let File { location, access, patience, bytes, version, .. } = &*self.0;
        let parts = Parts::open(location, access, *patience).map_err(|error| {
            let text = format!("{location}: {error}");
            match error.is_temporary() || matches!(error, Error::Http(_)) {
                true => EndpointError::Temporary(text),
                false => EndpointError::Permanent(text),
            }
        })?;
        let (length, now) = (parts.length(), parts.version());
        if (length, &now) == (*bytes, version) {
            return Ok(parts);
        }
        Err(EndpointError::Permanent(format!(
            "{location}: it was changed on the server: its version is {now} with {length} bytes, and was {version} with \
             {bytes}"
        )))
    }
}

impl Endpoint for WebDisk {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let name = &self.0.location;
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
        let has_failed = result.is_err();
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
