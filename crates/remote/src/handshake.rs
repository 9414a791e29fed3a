//! TLS handshakes for the kernel's connections to paired machines, in the place of tlshd.

use std::io;
use std::path::PathBuf;
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

/// Does the handshakes that the kernel asks for, each on a thread, with the keys of the machines in the store at `keys`.
/// Returns when it is registered; goes on until the process ends.
///
/// # Errors
/// Fails if the kernel has no such requests (Linux 6.5), or this user is not root.
pub fn serve(tree: &Tree, keys: PathBuf) -> io::Result<()> {
    let mut handshakes = Handshakes::listen()?;
    let tree = tree.clone();
    thread::Builder::new().name("handshakes".to_owned()).spawn(move || {
        // It ends if the socket fails: connections that exist go on.
        while let Ok(request) = handshakes.receive() {
            let (tree, keys, answer) = (tree.clone(), keys.clone(), handshakes.answer());
            thread::spawn(move || reply(&tree, &keys, request, answer));
        }
    })?;
    Ok(())
}

fn reply(tree: &Tree, keys: &std::path::Path, request: Request, answer: Answer) {
    let outcome = shake_hands(tree, keys, &request);
    // It fails if the kernel has given up meanwhile.
    let _ = answer.send(&request, &outcome);
}

/// Does one handshake. Returns the serial number of its key.
fn shake_hands(tree: &Tree, keys: &std::path::Path, request: &Request) -> io::Result<i32> {
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
