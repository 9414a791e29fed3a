//! TLS handshakes for the kernel's connections to paired machines, in the place of tlshd.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use engine::tls::{self, Psk};
use keys::target::Target;
use linux::handshake::{Answer, Cipher, Handshakes, Request, TrafficKey, install};
use linux::keyring;
use linux::tree::Tree;
use nvme::auth::psk::Identity;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::credentials::nvme_psk_named;
use crate::machine;

/// How long a handshake takes if the kernel does not limit it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before requests are listened for again after a failure.
const PAUSE: Duration = Duration::from_secs(2);

/// Does the handshakes that the kernel asks for, each on a thread, with the keys of the machines in the store at `keys`.
/// Returns when it is registered; goes on until the process ends: after a failure, which is written to the kernel's log, it
/// registers again.
///
/// # Errors
/// Fails if the kernel has no such requests (Linux 6.5), or this user is not root.
pub fn serve(tree: &Tree, keys: PathBuf) -> io::Result<()> {
    let mut registered = Some(Handshakes::listen()?);
    let tree = tree.clone();
    thread::Builder::new().name("handshakes".to_owned()).spawn(move || {
        let receive = |it: &mut Handshakes| Ok((it.receive()?, it.answer()));
        let failed = |error: &io::Error| {
            log(&tree, &format!("requests for TLS handshakes: {error}; trying again"));
            thread::sleep(PAUSE);
        };
        loop {
            let (request, answer) = next(&mut registered, Handshakes::listen, receive, failed);
            begin(&tree, &keys, request, answer);
        }
    })?;
    Ok(())
}

/// Returns the next request, from the socket that is open, or a new one. `failed` gets what went wrong meanwhile.
fn next<L, R>(
    open: &mut Option<L>,
    listen: impl Fn() -> io::Result<L>,
    receive: impl Fn(&mut L) -> io::Result<R>,
    failed: impl Fn(&io::Error),
) -> R {
    loop {
        let received = match open {
            Some(socket) => receive(socket),
            None => listen().and_then(|socket| receive(open.insert(socket))),
        };
        match received {
            Ok(request) => return request,
            Err(error) => {
                *open = None;
                failed(&error);
            }
        }
    }
}

/// Does a handshake on a thread. If there can be none, the kernel is told so, and tries again.
fn begin(tree: &Tree, keys: &Path, request: Request, answer: Answer) {
    let request = Arc::new(request);
    let work = {
        let (tree, keys, request) = (tree.clone(), keys.to_owned(), Arc::clone(&request));
        move || reply(&tree, &keys, &request, answer)
    };
    if let Err(error) = thread::Builder::new().name("handshake".to_owned()).spawn(work) {
        log(tree, &format!("a TLS handshake cannot be done: {error}"));
        let _ = answer.send(&request, &Err(error));
    }
}

/// Writes a line to the kernel's log, as a warning; the console may belong to another program.
fn log(tree: &Tree, line: &str) {
    // There is nowhere else to say it.
    let _ = OpenOptions::new()
        .write(true)
        .open(tree.path("dev/kmsg"))
        .and_then(|mut log| log.write_all(format!("<4>storagetm: {line}\n").as_bytes()));
}

fn reply(tree: &Tree, keys: &Path, request: &Request, answer: Answer) {
    let outcome = shake_hands(tree, keys, request);
    // It fails if the kernel has given up meanwhile.
    let _ = answer.send(request, &outcome);
}

/// Does one handshake. Returns the serial number of its key.
fn shake_hands(tree: &Tree, keys: &Path, request: &Request) -> io::Result<i32> {
    let targets = machine::readable_targets(Some(keys)).unwrap_or_default();
    let named = |serial: &i32| Some((*serial, psk(&targets, &keyring::identity(tree, *serial)?)?));
    let (serial, psk) = request.keys.iter().find_map(named).ok_or(Errno::NOKEY)?;
    let socket = Arc::new(request.socket.try_clone()?);
    let flags = fcntl_getfl(&socket)?;
    fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
    let deadline = Instant::now() + request.timeout.unwrap_or(TIMEOUT);
    let (send, receive) = tls::traffic_keys(Arc::clone(&socket), psk, deadline)?;
    install(&socket, &traffic(&send), &traffic(&receive))?;
    fcntl_setfl(&socket, flags)?;
    Ok(serial)
}

/// Returns the PSK with this identity, if it is that of a stored machine.
fn psk(targets: &[Target], identity: &str) -> Option<Psk> {
    let parsed = Identity::parse(identity).filter(|it| !it.generated)?;
    let own = targets.iter().filter(|target| target.host == parsed.host);
    own.filter_map(|target| nvme_psk_named(&target.tls, (&target.host, parsed.subsystem), identity))
        .next()
}

fn traffic(key: &tls::TrafficKey) -> TrafficKey<'_> {
    let cipher = match key.cipher {
        tls::Cipher::Aes128Gcm => Cipher::Aes128Gcm,
        tls::Cipher::Aes256Gcm => Cipher::Aes256Gcm,
        tls::Cipher::ChaCha20Poly1305 => Cipher::ChaCha20Poly1305,
    };
    TrafficKey { cipher, key: &key.key, iv: &key.iv }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[test]
    fn requests_are_received_after_failures() {
        let (listened, errors) = (Cell::new(0), RefCell::new(Vec::new()));
        let listen = || {
            listened.set(listened.get() + 1);
            if listened.get() == 1 { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(0) }
        };
        // Each socket gives two requests, then fails.
        let receive = |count: &mut u32| {
            *count += 1;
            if *count > 2 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(*count) }
        };
        let failed = |error: &io::Error| errors.borrow_mut().push(error.kind());
        let mut open = Some(1);
        let all: Vec<u32> = (0..4).map(|_| next(&mut open, listen, receive, failed)).collect();
        assert_eq!((all, listened.get()), (vec![2, 1, 2, 1], 3));
        let failures =
            [io::ErrorKind::TimedOut, io::ErrorKind::OutOfMemory, io::ErrorKind::TimedOut];
        assert_eq!(*errors.borrow(), failures);
    }

    /// The identities are those that are inserted into the kernel's keyring.
    #[test]
    fn psk_is_found_by_its_identity() {
        let target = Target::sample("desk", "10.0.0.1");
        let disk = "nqn.2024-01.test:disk";
        let inserted = keys::keyring::psks(target.tls.text(), &target.host, &[disk]).unwrap();
        let all = [Target::sample("other", "10.0.0.2"), target];
        for one in &inserted {
            let found = psk(&all, &one.identity).unwrap();
            assert_eq!((found.identity, found.secret), (one.identity.clone(), one.secret.clone()));
        }
        let last = &inserted.last().unwrap().identity;
        assert!(psk(&all, &last.replace(disk, "nqn.2024-01.test:other")).is_none());
        assert!(psk(&all, "nonsense").is_none());
    }
}
