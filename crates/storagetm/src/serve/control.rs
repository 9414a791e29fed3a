//! The control socket: a varlink service (`io.github.storagetm.Serve`) for the user that started the
//! program. It is served by the loop itself, so that a call sees and changes the state between two
//! events; whatever takes long is answered later.

mod calls;

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::{Duration, Instant};

use daemon::event::ServeEvent;
use daemon::listeners::path::{self, SocketFile};
use export::Export;
use failure::Failure;
use linux::peer::Peer;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use serde_json::{Value, json};
use varlink::connection::{Connection, ConnectionError};
use varlink::message::Reply;

use super::Context;
use super::additions::Ticket;
use super::exports::Exports;
use super::network::Network;
use crate::control::own_paths;

/// Clients that are served at a time.
const MAX_CLIENTS: usize = 16;

/// Calls that one client can have answered before the others get their turn.
const CALLS_AT_A_TIME: usize = 16;

/// Pause after there was no descriptor for a client.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of the checks whether a withdrawn disk is flushed and closed.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The control socket and its clients.
#[derive(Debug, Default)]
pub(super) struct Control {
    listener: Option<Listener>,
    /// When clients are accepted again, after there was no descriptor for one.
    accept_due: Option<Instant>,
    clients: Vec<Client>,
}

/// What calls look at and change.
pub(super) struct Parts<'a> {
    pub(super) exports: &'a mut Exports,
    pub(super) network: &'a Network,
}

#[derive(Debug)]
struct Client {
    connection: Connection,
    state: State,
    /// Whether calls may have been received that are not answered yet.
    is_behind: bool,
}

/// What the next reply to a client is about.
#[derive(Debug)]
enum State {
    /// Its next call.
    Idle,
    /// A disk that is being opened.
    Adding(Ticket),
    /// A disk that was withdrawn.
    Removing(Removal),
    /// The next event. So many were lost since the last one; and so many of those that are recorded
    /// are older than the reader's first ones.
    Events { lost: u64, skip: usize },
}

/// A withdrawn disk.
#[derive(Debug)]
struct Removal {
    name: String,
    export: Weak<Export>,
    /// Until when its end is waited for, once it is flushed.
    end: Option<Instant>,
}

impl Control {
    /// Listens at `path`; without one at the user's own path, if there is one. Also returns a note if that is not
    /// possible.
    ///
    /// # Errors
    /// Fails if `path` was given and cannot be listened on.
    pub(super) fn open(path: Option<&Path>) -> Result<(Self, Option<String>), Failure> {
        let (listener, note) = match path {
            Some(path) => (Some(listen(path).map_err(|error| cannot_listen(path, &error))?), None),
            None => match listen_at_one(&own_paths()) {
                Ok(listener) => (listener, None),
                Err(failure) => {
                    let what = "storagetm status, add and remove do not reach this storagetm serve";
                    (None, Some(format!("{what}: {failure}")))
                }
            },
        };
        Ok((Self { listener, ..Self::default() }, note))
    }

    /// Descriptors to poll.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listener = self.listener.iter().filter(|_| self.accept_due.is_none());
        let listener = listener.map(|(socket, _)| (socket.as_fd(), PollFlags::IN));
        let clients = self.clients.iter().map(|it| (it.connection.as_fd(), it.interest()));
        listener.chain(clients)
    }

    /// Returns when [`Self::run`] is due.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let waits = |client: &Client| matches!(client.state, State::Removing(_));
        let poll = self.clients.iter().any(waits).then(|| now + POLL_INTERVAL);
        // Their calls are received: the socket does not become readable.
        let behind = self.clients.iter().any(|client| client.is_behind).then_some(now);
        poll.into_iter().chain(behind).chain(self.accept_due).min()
    }

    /// Answers calls, and sends the events since the last time.
    pub(super) fn run(&mut self, parts: &mut Parts<'_>, cx: &mut Context<'_>) {
        self.accept(cx.now);
        for (ticket, added) in parts.exports.take_added(parts.network, cx) {
            let is_it = |it: &&mut Client| matches!(it.state, State::Adding(own) if own == ticket);
            if let Some(client) = self.clients.iter_mut().find(is_it) {
                client.state = State::Idle;
                let _ = client
                    .connection
                    .reply(&calls::added(&added, parts.exports, parts.network), None);
            }
        }
        self.clients.retain_mut(|client| client.turn(parts, cx).is_ok());
        let events = cx.ui.take_recorded();
        self.clients.retain_mut(|client| client.send_events(&events).is_ok());
        let is_reader = |client: &Client| matches!(client.state, State::Events { .. });
        if !self.clients.iter().any(is_reader) {
            cx.ui.end_recording();
        }
    }

    /// Accepts clients of the same user and of root. Others, and more than [`MAX_CLIENTS`], are cut off.
    fn accept(&mut self, now: Instant) {
        let Some((listener, _)) = &self.listener else { return };
        if self.accept_due.is_some_and(|due| now < due) {
            return;
        }
        self.accept_due = None;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let socket = match accept_with(listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => {
                    // The socket stays readable.
                    self.accept_due = Some(now + RETRY_INTERVAL);
                    return;
                }
            };
            let Ok(Peer { user, .. }) = Peer::of(&socket) else { continue };
            let is_allowed = user.is_root() || user == rustix::process::geteuid();
            if is_allowed && self.clients.len() < MAX_CLIENTS {
                self.clients.push(Client::new(Connection::new(socket), State::Idle));
            }
        }
    }

    /// Sends the last events before the end.
    pub(super) fn close(mut self, events: &[Value]) {
        for client in &mut self.clients {
            let _ = client.send_events(events);
        }
    }
}

/// A listening socket and its file.
type Listener = (OwnedFd, Option<SocketFile>);

fn cannot_listen(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot listen at {}: {error}", path.display()))
}

/// Listens at the first of the paths at which nobody else does. Returns `None` if there are no paths.
///
/// # Errors
/// Fails if it is not possible at any of them.
fn listen_at_one(paths: &[PathBuf]) -> Result<Option<Listener>, Failure> {
    let mut last = None;
    for path in paths {
        match listen(path) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) => last = Some(cannot_listen(path, &error)),
        }
    }
    last.map_or(Ok(None), Err)
}

/// Listens at a path that only this user may connect to.
fn listen(path: &Path) -> std::io::Result<Listener> {
    let socket = path::bind(path)?;
    let file = SocketFile::of(path);
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok((socket, file))
}

impl Client {
    fn new(connection: Connection, state: State) -> Self {
        Self { connection, state, is_behind: false }
    }

    fn interest(&self) -> PollFlags {
        match self.state {
            State::Idle => self.connection.interest(),
            _ if self.connection.has_pending() => PollFlags::OUT,
            // Its end is reported all the same; calls wait.
            _ => PollFlags::empty(),
        }
    }

    /// Continues what the client waits for, and answers its calls.
    ///
    /// # Errors
    /// Fails if the connection has ended.
    fn turn(&mut self, parts: &mut Parts<'_>, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        self.connection.flush()?;
        self.continue_removal(parts, cx.now)?;
        self.is_behind = false;
        let mut answered = 0;
        while matches!(self.state, State::Idle) && answered < CALLS_AT_A_TIME {
            let Some(call) = self.connection.receive()? else { return Ok(()) };
            self.answer(&call, parts, cx)?;
            answered += 1;
        }
        self.is_behind = answered == CALLS_AT_A_TIME;
        if !matches!(self.state, State::Idle) && self.connection.is_closed() {
            return Err(ConnectionError::Closed);
        }
        Ok(())
    }

    fn continue_removal(&mut self, parts: &Parts<'_>, now: Instant) -> Result<(), ConnectionError> {
        let State::Removing(removal) = &mut self.state else { return Ok(()) };
        let flush = parts.exports.flush_state(&removal.export);
        let Some(reply) = calls::removed(removal, flush, now) else { return Ok(()) };
        self.state = State::Idle;
        self.connection.reply(&reply, None)
    }

    fn send_events(&mut self, events: &[Value]) -> Result<(), ConnectionError> {
        let State::Events { skip, .. } = &mut self.state else { return Ok(()) };
        for event in events.iter().skip(std::mem::take(skip)) {
            let State::Events { lost, .. } = &mut self.state else { return Ok(()) };
            let before = (*lost > 0).then_some(ServeEvent::Lost { count: *lost });
            let before = before.and_then(|event| serde_json::to_value(event).ok());
            let reply = |event: &Value| Reply::new(json!({ "event": event })).continued();
            let replies: Vec<Reply> = before.iter().chain([event]).map(reply).collect();
            match self.connection.reply_all(&replies) {
                Ok(()) => *lost = 0,
                // It is not waited for.
                Err(ConnectionError::Stalled) => *lost = lost.saturating_add(1),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::os::unix::net::UnixStream;
    use testkit::Scratch;

    #[test]
    fn socket_is_for_its_user_only_and_removed_at_the_end() {
        let folder = Scratch::new();
        let path = folder.0.join("control");
        let (control, _) = Control::open(Some(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Control::open(Some(&path)).unwrap_err();
        assert!(error.to_string().starts_with("cannot listen at "), "{error}");
        drop(control);
        assert!(!path.exists());
    }

    #[test]
    fn clients_above_the_limit_are_cut_off() {
        let folder = Scratch::new();
        let path = folder.0.join("control");
        let (mut control, _) = Control::open(Some(&path)).unwrap();
        let clients: Vec<UnixStream> =
            (0..MAX_CLIENTS + 3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        control.accept(Instant::now());
        assert_eq!(control.clients.len(), MAX_CLIENTS);
        drop(clients);
    }

    #[test]
    fn events_that_are_not_read_are_counted() {
        let (client, server) = UnixStream::pair().unwrap();
        let connection = Connection::new(server.into());
        let mut reader = Client::new(connection, State::Events { lost: 0, skip: 3 });
        let events = vec![json!({ "event": "note", "message": "x".repeat(1 << 16) }); 40];
        reader.send_events(&events).unwrap();
        let State::Events { lost, skip: 0 } = reader.state else { panic!() };
        assert!(lost > 0 && lost < 37, "{lost}");
        // There is room for their number, but not for one more.
        reader.send_events(&events[..1]).unwrap();
        let reading = std::thread::spawn(move || {
            let mut client = varlink::client::Client::over(client);
            client.set_timeout(Some(Duration::from_secs(60))).unwrap();
            let (mut counts, mut notes) = (Vec::new(), 0);
            let each = |mut reply: varlink::message::Parameters| {
                let event = reply.remove("event").unwrap();
                counts.extend(event["count"].as_u64());
                notes += u64::from(event["event"] == "note");
                event["event"] != "stopped"
            };
            client.call_more("a.B", json!({}), each).unwrap();
            (counts, notes)
        });
        reader.connection.flush_all(Duration::from_secs(60)).unwrap();
        reader.send_events(&[json!({ "event": "stopped" })]).unwrap();
        reader.connection.flush_all(Duration::from_secs(60)).unwrap();
        let (counts, notes) = reading.join().unwrap();
        assert_eq!((counts, notes), (vec![lost + 1], 37 - lost));
        assert!(reader.connection.is_closed());
    }

    #[test]
    fn socket_that_cannot_be_opened_is_noted() {
        let folder = Scratch::new();
        fs::write(folder.0.join("file"), "").unwrap();
        let paths = [folder.0.join("file/a"), folder.0.join("none/b")];
        let error = listen_at_one(&paths).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen at {}", paths[1].display())), "{error}");
        assert!(listen_at_one(&[paths[0].clone(), folder.0.join("c")]).unwrap().is_some());
        assert!(listen_at_one(&[]).unwrap().is_none());
    }
}
