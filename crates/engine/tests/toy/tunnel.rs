//! TLS for the clients of the tests: a thread per connection forwards bytes between a plain socket
//! and a TLS stream, with the end of each direction.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::Security;
use engine::tls::{self, Hash, Psk, Stream};
use export::Secret;
use rustix::event::{PollFd, PollFlags, poll};

static SECURED: Mutex<Option<HashSet<SocketAddr>>> = Mutex::new(None);

/// The one key of the tests.
pub(crate) fn key() -> Psk {
    Psk {
        identity: "NVMe1R02 host subsystem".to_owned(),
        secret: Secret::new(vec![0x5a; 48]),
        hash: Hash::Sha384,
        key: None,
    }
}

/// Returns settings that require this key.
pub(crate) fn security() -> Security {
    Security::keyed(Arc::new(|| vec![key()]))
}

/// Records whether TLS is required at this address, which another test may have used before.
pub(crate) fn expect(address: SocketAddr, secured: bool) {
    let mut all = SECURED.lock().unwrap();
    let all = all.get_or_insert_default();
    if secured {
        all.insert(address);
    } else {
        all.remove(&address);
    }
}

/// Connects, with TLS if required at that address.
pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let outer = TcpStream::connect(address)?;
    if !SECURED.lock().unwrap().as_ref().is_some_and(|all| all.contains(&address)) {
        return Ok(outer);
    }
    outer.set_nodelay(true)?;
    let stream = tls::connect(outer, key(), Instant::now() + Duration::from_secs(60))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    std::thread::spawn(move || carry(far, stream));
    Ok(near)
}

/// Bytes forwarded at once.
const PIECE: usize = 256 << 10;

struct Tunnel {
    far: TcpStream,
    stream: Stream,
    /// Bytes for the client that its socket has not taken.
    back: Vec<u8>,
    /// Whether the client, and the server, may still send.
    client: bool,
    server: bool,
}

/// Forwards until both directions have ended or one fails; then both are closed.
fn carry(far: TcpStream, stream: Stream) {
    far.set_nodelay(true).unwrap();
    far.set_nonblocking(true).unwrap();
    stream.socket().set_nonblocking(true).unwrap();
    let mut tunnel = Tunnel { far, stream, back: Vec::new(), client: true, server: true };
    while tunnel.client || tunnel.server || !tunnel.back.is_empty() {
        if tunnel.step().is_err() {
            break;
        }
    }
    let _ = tunnel.far.shutdown(Shutdown::Both);
}

fn would_block<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl Tunnel {
    fn step(&mut self) -> io::Result<()> {
        self.wait()?;
        would_block(self.stream.flush())?;
        let mut piece = vec![0; PIECE];
        if self.client && !self.stream.has_unsent() {
            match would_block(self.far.read(&mut piece))? {
                Some(0) => {
                    self.client = false;
                    self.stream.close()?;
                }
                Some(len) => self.stream.write_all(&piece[..len])?,
                None => {}
            }
        }
        if self.server && self.back.is_empty() {
            match would_block(self.stream.read(&mut piece))? {
                Some(0) => self.server = false,
                Some(len) => self.back.extend_from_slice(&piece[..len]),
                None => {}
            }
        }
        if let Some(sent) = would_block(self.far.write(&self.back))? {
            self.back.drain(..sent);
        }
        if !self.server && self.back.is_empty() {
            self.far.shutdown(Shutdown::Write)?;
            // The server has finished: nothing more is expected from the client.
            return Err(ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        if self.stream.has_unread() && self.back.is_empty() {
            return Ok(());
        }
        let (mut near, mut wide) = (PollFlags::empty(), PollFlags::empty());
        near.set(PollFlags::IN, self.client && !self.stream.has_unsent());
        near.set(PollFlags::OUT, !self.back.is_empty());
        wide.set(PollFlags::IN, self.server && self.back.is_empty());
        wide.set(PollFlags::OUT, self.stream.has_unsent());
        let mut fds = [PollFd::new(&self.far, near), PollFd::new(&self.stream, wide)];
        poll(&mut fds, None)?;
        Ok(())
    }
}
