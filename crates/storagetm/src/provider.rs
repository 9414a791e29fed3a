//! `storagetm provider`: disks of other machines as volumes of a storage provider of systemd, by the
//! varlink interface `io.systemd.StorageProvider`.
//!
//! | module | content |
//! |---|---|
//! | `interface` | the interface: its description, parameters and errors |
//! | `volumes` | the volumes that there are |
//! | `acquire` | attaches or opens a volume |
//! | `caller` | whether the caller may acquire one |
//! | `users` | limits the connections of each user |

mod acquire;
mod caller;
mod interface;
mod users;
mod volumes;

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use console::escape_unprintable;
use daemon::listeners::path::{self, SocketFile};
use failure::{Failure, spawn_error};
use linux::peer::Peer;
use linux::signal::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with, sockopt};
use varlink::connection::{Connection, ConnectionError};
use varlink::message::{Call, Reply};
use varlink::service;

use crate::options::provider::Provider as Options;
use caller::Caller;
use interface::SERVICE;
use users::Users;

/// Connections that are served at a time; more wait.
const MAX_CONNECTIONS: usize = 256;

/// A connection on which nothing happens for this long is closed.
const IDLE: Duration = Duration::from_secs(300);

/// Interval of further attempts to accept a connection when there is no room for one.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What volumes are made of.
#[derive(Debug)]
struct Provider {
    /// Directory of the keys of paired machines; `None` for the default.
    keys: Option<PathBuf>,
    mdns_port: Option<u16>,
}

/// Serves volumes: to the client of the socket that systemd handed over, or to all of a listening
/// socket until a signal.
///
/// # Errors
/// Fails if the socket cannot be used.
pub(crate) fn provide(options: &Options) -> Result<(), Failure> {
    let provider = Arc::new(Provider { keys: options.keys.clone(), mdns_port: options.mdns_port });
    let handed = linux::activation::take().map_err(Failure::new)?;
    if handed.is_empty() {
        let (socket, _file) = bind(&options.listen)?;
        return accept_until_signal(&socket, &provider);
    }
    for handed in handed {
        match sockopt::socket_acceptconn(&handed.socket) {
            Ok(true) => accept_until_signal(&handed.socket, &provider)?,
            _ => {
                let peer = Peer::of(&handed.socket).map_err(Failure::new)?;
                provider.serve(handed.socket, peer);
            }
        }
    }
    Ok(())
}

/// Listens at a path, for all users as systemd's own providers do: what a caller may is decided per call.
fn bind(path: &Path) -> Result<(OwnedFd, Option<SocketFile>), Failure> {
    let refused = |error: &io::Error| {
        let reason = match error.kind() {
            ErrorKind::AddrInUse => "another program listens there".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(format!("cannot listen at {}: {reason}", path.display()))
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|error| refused(&error))?;
    }
    let socket = path::bind(path).map_err(|error| refused(&error))?;
    let file = SocketFile::of(path);
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
        .map_err(|error| refused(&error))?;
    Ok((socket, file))
}

fn accept_until_signal(socket: &OwnedFd, provider: &Arc<Provider>) -> Result<(), Failure> {
    let mut signals = Signals::open()
        .map_err(|error| Failure::new(format!("signals cannot be received: {error}")))?;
    let users = Arc::new(Users::default());
    loop {
        // A full table leaves connections in the queue of the socket, and is looked at again.
        let is_full = users.connections() >= MAX_CONNECTIONS;
        let flags = if is_full { PollFlags::empty() } else { PollFlags::IN };
        let mut ends = [PollFd::new(socket, flags), PollFd::new(&signals, PollFlags::IN)];
        let pause = Timespec::try_from(RETRY_INTERVAL).ok().filter(|_| is_full);
        let _ = poll(&mut ends, pause.as_ref());
        let ends = |signal: &Signal| {
            matches!(signal, Signal::Interrupt | Signal::Terminate | Signal::HangUp)
        };
        if signals.receive().iter().any(ends) {
            return Ok(());
        }
        if !is_full && is_readable(socket) {
            accept(socket, provider, &users);
        }
    }
}

fn is_readable(socket: &OwnedFd) -> bool {
    let mut ends = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut ends, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Accepts a connection and serves it on a thread of its own. One of a user that has too many is closed.
fn accept(socket: &OwnedFd, provider: &Arc<Provider>, users: &Arc<Users>) {
    let Ok(client) = accept_with(socket, SocketFlags::CLOEXEC) else {
        // Without a descriptor the client stays in the queue, and the socket readable.
        return thread::sleep(RETRY_INTERVAL);
    };
    let Ok(peer) = Peer::of(&client) else { return };
    let Some(place) = users.admit(peer.user) else { return };
    let provider = provider.clone();
    let serve = move || {
        let _place = place;
        provider.serve(client, peer);
    };
    if let Err(error) = thread::Builder::new().name("provider".to_owned()).spawn(serve) {
        report(&format!("a client is not served: {}", spawn_error(&error)));
    }
}

/// Writes a sentence to standard error, which is the journal under systemd.
fn report(sentence: &str) {
    let _ = writeln!(io::stderr(), "storagetm: {}", escape_unprintable(sentence, true));
}

impl Provider {
    /// Answers the calls of a client until it closes the connection.
    fn serve(&self, socket: OwnedFd, peer: Peer) {
        let ended = self.answer_all(&mut Connection::new(socket), Caller::new(peer));
        if let Err(error) = ended
            && !matches!(error, ConnectionError::Closed)
        {
            report(&format!("a client is cut off: {error}"));
        }
    }

    fn answer_all(
        &self,
        connection: &mut Connection,
        caller: Caller,
    ) -> Result<(), ConnectionError> {
        loop {
            connection.flush_all(IDLE)?;
            match connection.receive()? {
                Some(call) => self.answer(&call, connection, caller)?,
                None if !connection.wait(IDLE)? => return Ok(()),
                None => {}
            }
        }
    }

    fn answer(
        &self,
        call: &Call,
        connection: &mut Connection,
        caller: Caller,
    ) -> Result<(), ConnectionError> {
        let (replies, descriptor) = match SERVICE.answer(call) {
            Some(reply) => (vec![reply], None),
            None => self.call(call, caller),
        };
        if call.oneway {
            return Ok(());
        }
        let last = replies.len().saturating_sub(1);
        let mut descriptor = descriptor;
        for (at, reply) in replies.into_iter().enumerate() {
            let reply = if at < last { reply.continued() } else { reply };
            connection.reply(&reply, descriptor.take())?;
            // A list may be longer than what can wait.
            connection.flush_all(IDLE)?;
        }
        Ok(())
    }

    /// Returns the replies, and a descriptor that belongs to the only one.
    fn call(&self, call: &Call, caller: Caller) -> (Vec<Reply>, Option<OwnedFd>) {
        let (_, method) = call.split();
        let result = match method {
            "Acquire" => return self.acquire_volume(call, caller),
            _ if !call.more => Err(service::expected_more()),
            "ListVolumes" => self.list_volumes(call, caller),
            _ => interface::no_templates(call),
        };
        (result.unwrap_or_else(|error| vec![error]), None)
    }

    fn list_volumes(&self, call: &Call, caller: Caller) -> Result<Vec<Reply>, Reply> {
        let filter: interface::ListInput = service::input(call)?;
        caller.may_list()?;
        let volumes = volumes::list(self, filter.match_name.as_deref());
        let replies: Vec<Reply> = volumes.iter().map(Reply::new).collect();
        if replies.is_empty() { Err(interface::no_such_volume()) } else { Ok(replies) }
    }

    fn acquire_volume(&self, call: &Call, caller: Caller) -> (Vec<Reply>, Option<OwnedFd>) {
        let acquired = interface::AcquireInput::of(call)
            .and_then(|input| acquire::acquire(self, &input, caller));
        match acquired {
            Ok((device, read_only)) => (vec![interface::acquired(read_only)], Some(device)),
            Err(error) => (vec![error], None),
        }
    }
}
