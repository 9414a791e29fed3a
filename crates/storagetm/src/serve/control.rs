//! The control socket: a varlink service (`io.github.storagetm.Serve`) for the user that started the
//! program. It is served by the loop itself, so that a call sees and changes the state between two
//! events; whatever takes long is answered later.

mod calls;

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Weak;
use std::time::{Duration, Instant};

use daemon::event::ServeEvent;
use daemon::listeners::path::{self, SocketFile};
use export::Export;
use failure::Failure;
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
    listener: Option<(OwnedFd, Option<SocketFile>)>,
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
    /// Until when its end is waited for.
    end: Instant,
}

impl Control {
    /// Listens at `path`; without one at the user's own path, if there is one.
    ///
    /// # Errors
    /// Fails if `path` was given and cannot be listened on.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let listener = match path {
            Some(path) => Some(listen(path).map_err(|error| {
                Failure::new(format!("cannot listen at {}: {error}", path.display()))
            })?),
            None => own_paths().iter().find_map(|path| listen(path).ok()),
        };
        Ok(Self { listener, ..Self::default() })
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
        poll.into_iter().chain(self.accept_due).min()
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
            let Ok(connection) = Connection::new(socket) else { continue };
            let user = connection.peer().uid;
            let is_allowed = user.is_root() || user == rustix::process::geteuid();
            if is_allowed && self.clients.len() < MAX_CLIENTS {
                self.clients.push(Client { connection, state: State::Idle });
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

/// Listens at a path that only this user may connect to.
fn listen(path: &Path) -> std::io::Result<(OwnedFd, Option<SocketFile>)> {
    let socket = path::bind(path)?;
    let file = SocketFile::of(path);
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok((socket, file))
}

impl Client {
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
        for _ in 0..CALLS_AT_A_TIME {
            if !matches!(self.state, State::Idle) {
                break;
            }
            let Some(call) = self.connection.receive()? else { return Ok(()) };
            self.answer(&call, parts, cx)?;
        }
        if !matches!(self.state, State::Idle) && self.connection.is_closed() {
            return Err(ConnectionError::Closed);
        }
        Ok(())
    }

    fn continue_removal(&mut self, parts: &Parts<'_>, now: Instant) -> Result<(), ConnectionError> {
        let State::Removing(removal) = &self.state else { return Ok(()) };
        let Some(reply) = calls::removed(removal, parts.exports, now) else { return Ok(()) };
        self.state = State::Idle;
        self.connection.reply(&reply, None)
    }

    fn send_events(&mut self, events: &[Value]) -> Result<(), ConnectionError> {
        let State::Events { skip, .. } = &mut self.state else { return Ok(()) };
        for event in events.iter().skip(std::mem::take(skip)) {
            let State::Events { lost, .. } = &mut self.state else { return Ok(()) };
            let before = (*lost > 0).then_some(ServeEvent::Lost { count: *lost });
            let before = before.and_then(|event| serde_json::to_value(event).ok());
            let mut sent = Ok(());
            for event in before.iter().chain([event]) {
                let reply = Reply::new(json!({ "event": event })).continued();
                sent = sent.and_then(|()| self.connection.reply(&reply, None));
            }
            match sent {
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
        let control = Control::open(Some(&path)).unwrap();
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
        let mut control = Control::open(Some(&path)).unwrap();
        let clients: Vec<UnixStream> =
            (0..MAX_CLIENTS + 3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        control.accept(Instant::now());
        assert_eq!(control.clients.len(), MAX_CLIENTS);
        drop(clients);
    }

    #[test]
    fn events_that_are_not_read_are_counted() {
        let (client, server) = UnixStream::pair().unwrap();
        let connection = Connection::new(server.into()).unwrap();
        let mut reader = Client { connection, state: State::Events { lost: 0, skip: 3 } };
        let events = vec![json!({ "event": "note", "message": "x".repeat(1 << 16) }); 40];
        reader.send_events(&events).unwrap();
        let State::Events { lost, skip: 0 } = reader.state else { panic!() };
        assert!(lost > 0 && lost < 37, "{lost}");
        drop(client);
        assert!(reader.connection.is_closed());
    }
}
