//! TLS handshakes by s2n-tls, behind a safe interface.
//!
//! # Callbacks
//!
//! The library is given three functions. It calls them only from within [`Handshake::advance`], on
//! the calling thread, and retains none of the pointers that it passes to them:
//!
//! - [`receive`] and [`send`] transfer bytes from and to the socket. Their context is the address
//!   of a [`Wire`], which is on the heap, belongs to the [`Handshake`] and is freed after the
//!   connection. Between two calls into the library only [`Handshake`] accesses it, and during one
//!   only these two functions.
//! - [`on_secret`] receives the traffic secrets in text form. It has no context: the secrets go to
//!   a thread-local list, which is emptied after each call into the library.

#![allow(unsafe_code, reason = "the one file of the crate that the TLS library calls back into")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use export::Channel;
use s2n_tls::config::{Builder, Config};
use s2n_tls::connection::Connection;
use s2n_tls::enums::{Blinding, ClientAuthType, Mode, PskHmac, Version};
use s2n_tls::error::{Error, ErrorType};
use s2n_tls::ffi::s2n_connection;
use s2n_tls::psk::Psk as Key;
use s2n_tls::security::Policy;
use zeroize::Zeroizing;

use super::peer_name::{ExpectedAddress, PeerName};
use super::record::{Opener, Sealer};
use super::suite::{Suite, Traffic};
use super::{Hash, Psk};

/// Security policy with PSKs: TLS 1.3 with AES-GCM or ChaCha20-Poly1305, and X25519 or a NIST
/// curve. The earlier versions in this policy require a certificate, and none is configured.
const POLICY: &str = "20240503";

/// Security policy with certificates: TLS 1.3 only; ECDSA with a NIST curve, or RSA.
const CERTIFIED: &str = "CloudFront-Upstream-TLS-1-3-2025";

/// Label of the channel binding (RFC 8446 §7.5).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-storagetm-channel";

/// Limit on received bytes. The library would process meaningless records forever.
const MAX_HANDSHAKE: usize = 64 << 10;

/// More steps than a handshake within one process takes.
const MAX_STEPS: usize = 10;

/// A socket for a handshake.
pub(super) type Socket = Arc<dyn AsFd + Send + Sync>;

/// State of a handshake.
pub(crate) enum Progress {
    /// Waits for the socket to become readable.
    WantRead,
    /// Waits for the socket to become writable.
    WantWrite,
    /// Complete.
    Done(Box<Established>),
}

/// The result of a handshake.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) channel: Channel,
    /// Whether this end is the client, which may receive tickets.
    pub(super) is_client: bool,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
}

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) struct HandshakeError {
    /// Message of the library.
    pub(super) reason: &'static str,
    /// Whether nothing was sent yet, so that an alert must be in clear text.
    pub(crate) is_early: bool,
    /// Whether the connection was lost before an alert of the peer.
    pub(super) is_cut: bool,
}

/// A handshake in progress.
pub(crate) struct Handshake {
    /// `Some` until it is dropped, which happens before `wire` is freed.
    connection: Option<Connection>,
    wire: NonNull<Wire>,
    peer_auth: PeerAuth,
    secrets: Vec<Secret>,
    mode: Mode,
}

/// How the peer is authenticated.
enum PeerAuth {
    /// By one of these PSKs.
    Keys(Vec<Psk>),
    /// A client, by its certificate if it has one or must have one.
    Client { name: PeerName, required: bool },
    /// A server, by a certificate with this name.
    Server(String),
}

/// Transport between the library and the socket.
struct Wire {
    socket: Socket,
    /// Bytes that were received before the handshake, of which `taken` were passed to the library.
    early: Vec<u8>,
    taken: usize,
    /// Bytes passed to the library in total.
    came: usize,
    /// Bytes sent.
    sent: usize,
    /// Whether the socket has refused the last send.
    is_full: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

struct Secret(Role, Traffic);

thread_local! {
    /// Secrets that [`on_secret`] has received during the current call into the library.
    static SECRETS: RefCell<Vec<Secret>> = const { RefCell::new(Vec::new()) };
}

/// Initializes the library by a handshake with itself, before the process drops privileges.
///
/// # Errors
/// Fails if the library cannot be used.
pub(super) fn prepare() -> io::Result<()> {
    let (near, far) = UnixStream::pair()?;
    let key = || {
        let secret = export::Secret::new(vec![1; 32]);
        Psk { identity: "nobody".to_owned(), secret, hash: Hash::Sha256, key: None }
    };
    let failed = |failed: HandshakeError| io::Error::other(failed.reason);
    let mut client = Handshake::begin(Arc::new(near), key()).map_err(failed)?;
    let mut server = Handshake::serve(Arc::new(far), Vec::new(), vec![key()]).map_err(failed)?;
    for _ in 0..MAX_STEPS {
        client.advance().map_err(failed)?;
        if let Progress::Done(_) = server.advance().map_err(failed)? {
            return Ok(());
        }
    }
    Err(io::Error::other("the handshake does not complete"))
}

fn config() -> Result<Config, &'static str> {
    static CONFIG: OnceLock<Result<Config, &'static str>> = OnceLock::new();
    let build = || builder(POLICY)?.build();
    CONFIG.get_or_init(|| build().map_err(|error: Error| error.message())).clone()
}

/// Returns the base configuration for handshakes with certificates.
///
/// # Errors
/// Fails if memory cannot be allocated.
pub(super) fn certified() -> Result<Builder, Error> {
    builder(CERTIFIED)
}

fn builder(policy: &str) -> Result<Builder, Error> {
    let mut builder = Config::builder();
    builder.with_system_certs(false)?;
    builder.set_security_policy(&Policy::from_version(policy)?)?;
    // SAFETY: the context is null, and `on_secret` does not use it.
    unsafe { builder.set_key_log_callback(Some(on_secret), ptr::null_mut())? };
    Ok(builder)
}

impl Handshake {
    /// Starts a handshake as server with PSKs; `early` was already received.
    ///
    /// # Errors
    /// Fails if memory cannot be allocated, or the library does not accept a key.
    pub(crate) fn serve(
        socket: Socket,
        early: Vec<u8>,
        keys: Vec<Psk>,
    ) -> Result<Self, HandshakeError> {
        Self::with_keys(Mode::Server, socket, early, keys).map_err(|error| failed(&error, true))
    }

    /// Starts a handshake as client with a PSK.
    ///
    /// # Errors
    /// Fails if memory cannot be allocated, or the library does not accept the key.
    pub(super) fn begin(socket: Socket, key: Psk) -> Result<Self, HandshakeError> {
        Self::with_keys(Mode::Client, socket, Vec::new(), vec![key])
            .map_err(|error| failed(&error, true))
    }

    /// Starts a handshake as server with the certificate in `config`, which asks for a certificate
    /// of the client as `wanted`.
    ///
    /// # Errors
    /// Fails if memory cannot be allocated.
    pub(super) fn serve_certified(
        socket: Socket,
        early: Vec<u8>,
        config: Config,
        wanted: ClientAuthType,
    ) -> Result<Self, HandshakeError> {
        let name = PeerName::default();
        let required = wanted == ClientAuthType::Required;
        let make = || {
            let peer_auth = PeerAuth::Client { name: name.clone(), required };
            let mut this = Self::new(Mode::Server, socket, early, config, peer_auth)?;
            if let Some(connection) = &mut this.connection {
                connection.set_client_auth_type(wanted)?;
                connection.set_verify_host_callback(name)?;
            }
            Ok(this)
        };
        make().map_err(|error| failed(&error, true))
    }

    /// Starts a handshake as client with the certificates in `config`. The server's must contain
    /// `name`, a host name or an address.
    ///
    /// # Errors
    /// Fails if memory cannot be allocated, or the name cannot be used.
    pub(super) fn begin_certified(
        socket: Socket,
        config: Config,
        name: &str,
    ) -> Result<Self, HandshakeError> {
        let make = || {
            let peer_auth = PeerAuth::Server(name.to_owned());
            let mut this = Self::new(Mode::Client, socket, Vec::new(), config, peer_auth)?;
            match (name.parse(), &mut this.connection) {
                // An address must not be used as a server name (RFC 6066 §3).
                (Ok(address), Some(connection)) => {
                    connection.set_verify_host_callback(ExpectedAddress(address))?;
                }
                (Err(_), Some(connection)) => drop(connection.set_server_name(name)?),
                (_, None) => {}
            }
            Ok(this)
        };
        make().map_err(|error| failed(&error, true))
    }

    fn with_keys(
        mode: Mode,
        socket: Socket,
        early: Vec<u8>,
        keys: Vec<Psk>,
    ) -> Result<Self, Error> {
        let config = config().map_err(|reason| Error::application(reason.into()))?;
        let psks = keys.iter().map(psk).collect::<Result<Vec<_>, _>>()?;
        let mut this = Self::new(mode, socket, early, config, PeerAuth::Keys(keys))?;
        if let Some(connection) = &mut this.connection {
            psks.iter().try_for_each(|key| connection.append_psk(key))?;
        }
        Ok(this)
    }

    fn new(
        mode: Mode,
        socket: Socket,
        early: Vec<u8>,
        config: Config,
        peer_auth: PeerAuth,
    ) -> Result<Self, Error> {
        let mut connection = Connection::new(mode);
        connection.set_config(config)?;
        connection.set_blinding(Blinding::SelfService)?;
        let wire = Wire { socket, early, taken: 0, came: 0, sent: 0, is_full: false };
        let wire = NonNull::from(Box::leak(Box::new(wire)));
        let connection = Some(connection);
        let mut this = Self { connection, wire, peer_auth, secrets: Vec::new(), mode };
        this.attach()?;
        Ok(this)
    }

    fn attach(&mut self) -> Result<(), Error> {
        let context: *mut c_void = self.wire.as_ptr().cast();
        let Some(connection) = &mut self.connection else { return Ok(()) };
        connection.set_receive_callback(Some(receive))?;
        connection.set_send_callback(Some(send))?;
        // SAFETY: the wire is freed when this is dropped, after the connection.
        unsafe {
            connection.set_receive_context(context)?;
            connection.set_send_context(context)?;
        }
        Ok(())
    }

    /// Continues the handshake without blocking.
    ///
    /// # Errors
    /// Fails if the handshake has failed. The connection can only be closed then.
    pub(crate) fn advance(&mut self) -> Result<Progress, HandshakeError> {
        let Some(connection) = &mut self.connection else { return Ok(Progress::WantRead) };
        let progress = connection.poll_negotiate().map_ok(drop);
        SECRETS.with_borrow_mut(|secrets| self.secrets.append(secrets));
        match progress {
            Poll::Pending if self.wire().is_full => Ok(Progress::WantWrite),
            Poll::Pending => Ok(Progress::WantRead),
            Poll::Ready(Ok(())) => {
                self.agree().map(|established| Progress::Done(Box::new(established)))
            }
            Poll::Ready(Err(error)) => Err(failed(&error, self.wire().sent == 0)),
        }
    }

    fn wire(&self) -> &Wire {
        // SAFETY: the wire exists until this is dropped, and the library, which also has its
        // address, is not running.
        unsafe { self.wire.as_ref() }
    }

    fn agree(&mut self) -> Result<Established, HandshakeError> {
        let late = |reason| HandshakeError { reason, is_early: false, is_cut: false };
        let connection = self.connection.as_ref().ok_or_else(|| late("it is over"))?;
        let read = read(connection).map_err(|error| failed(&error, false))?;
        let (identity, cipher, binding) = read;
        let (key, certified, identity) = match &self.peer_auth {
            // The key is proven by now. All keys with this identity belong to the same host.
            PeerAuth::Keys(keys) => {
                let key = keys.iter().find(|key| key.identity == identity);
                (key.ok_or_else(|| late("no key was used"))?.key, false, identity)
            }
            PeerAuth::Client { name, .. } if connection.client_cert_used() => {
                (None, true, name.name())
            }
            PeerAuth::Client { required: true, .. } => {
                return Err(late("no certificate was shown"));
            }
            PeerAuth::Client { .. } => (None, false, String::new()),
            PeerAuth::Server(name) => (None, true, name.clone()),
        };
        let suite = Suite::named(&cipher).ok_or_else(|| late("another cipher suite"))?;
        let (ours, theirs) = match self.mode {
            Mode::Server => (Role::Server, Role::Client),
            Mode::Client => (Role::Client, Role::Server),
        };
        let mut secret = |role| {
            let at = self.secrets.iter().position(|secret| secret.0 == role);
            at.map(|at| self.secrets.swap_remove(at).1).ok_or_else(|| late("no secret was made"))
        };
        let sealer =
            Sealer::new(suite, secret(ours)?).ok_or_else(|| late("a secret of another length"))?;
        let opener = Opener::new(suite, secret(theirs)?)
            .ok_or_else(|| late("a secret of another length"))?;
        let channel = Channel { key, certified, identity, cipher, binding };
        Ok(Established { channel, is_client: self.mode == Mode::Client, sealer, opener })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.connection = None;
        // SAFETY: it was leaked from a box in `new`, and is freed here and nowhere else. The
        // connection that had its address is gone.
        drop(unsafe { Box::from_raw(self.wire.as_ptr()) });
    }
}

/// Returns the selected PSK identity, the cipher suite, and the channel binding.
fn read(connection: &Connection) -> Result<(String, String, [u8; 32]), Error> {
    let mut identity = vec![0; connection.negotiated_psk_identity_length()?];
    if !identity.is_empty() {
        connection.negotiated_psk_identity(&mut identity)?;
    }
    let mut binding = [0; 32];
    connection.tls_exporter(EXPORTER_LABEL, &[], &mut binding)?;
    let is_new = connection.actual_protocol_version()? == Version::TLS13;
    let cipher = if is_new { connection.cipher_suite()? } else { "" };
    Ok((String::from_utf8(identity).unwrap_or_default(), cipher.to_owned(), binding))
}

fn psk(key: &Psk) -> Result<Key, Error> {
    let mut builder = Key::builder()?;
    builder.set_identity(key.identity.as_bytes())?;
    builder.set_secret(key.secret.bytes())?;
    builder.set_hmac(match key.hash {
        Hash::Sha256 => PskHmac::SHA256,
        Hash::Sha384 => PskHmac::SHA384,
    })?;
    builder.build()
}

/// Returns an error of the library as that of a handshake.
pub(super) fn failed(error: &Error, is_early: bool) -> HandshakeError {
    let is_cut = matches!(error.kind(), ErrorType::IOError | ErrorType::ConnectionClosed);
    HandshakeError { reason: error.message(), is_early, is_cut }
}

/// Called by the library to receive up to `len` bytes to `into`.
///
/// # Safety
/// `context` is the address of a [`Wire`] with no other reference to it in use, and `into` that of
/// `len` writable bytes.
unsafe extern "C" fn receive(context: *mut c_void, into: *mut u8, len: u32) -> i32 {
    // SAFETY: guaranteed by the caller.
    let wire = unsafe { &mut *context.cast::<Wire>() };
    if wire.came >= MAX_HANDSHAKE {
        // As if the peer had closed the connection.
        return 0;
    }
    let early = wire.early.get(wire.taken..).unwrap_or_default();
    let some = early.len().min(len as usize);
    if some > 0 {
        // SAFETY: `some` is at most `len`, for which there is room, and `early` is memory of ours.
        unsafe { ptr::copy_nonoverlapping(early.as_ptr(), into, some) };
        wire.taken += some;
        wire.came += some;
        return i32::try_from(some).unwrap_or(-1);
    }
    let socket = wire.socket.as_fd().as_raw_fd();
    // SAFETY: the socket is open, as the wire owns a reference to it, and there is room for `len`
    // bytes.
    let got = unsafe { libc::recv(socket, into.cast(), len as usize, libc::MSG_DONTWAIT) };
    wire.came += usize::try_from(got).unwrap_or(0);
    i32::try_from(got).unwrap_or(-1)
}

/// Called by the library to send the `len` bytes at `from`.
///
/// # Safety
/// `context` is the address of a [`Wire`] with no other reference to it in use, and `from` that of
/// `len` bytes.
unsafe extern "C" fn send(context: *mut c_void, from: *const u8, len: u32) -> i32 {
    // SAFETY: guaranteed by the caller.
    let wire = unsafe { &mut *context.cast::<Wire>() };
    let socket = wire.socket.as_fd().as_raw_fd();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the socket is open, as the wire owns a reference to it, and `from` has `len` bytes.
    let sent = unsafe { libc::send(socket, from.cast(), len as usize, flags) };
    wire.is_full = sent < 0;
    wire.sent += usize::try_from(sent).unwrap_or(0);
    i32::try_from(sent).unwrap_or(-1)
}

/// Called by the library with a line of its key log: label, client random, and the secret in
/// hexadecimal (NSS key log format).
///
/// # Safety
/// `line` is the address of `len` bytes.
unsafe extern "C" fn on_secret(
    _: *mut c_void,
    _: *mut s2n_connection,
    line: *mut u8,
    len: usize,
) -> i32 {
    if line.is_null() {
        return -1;
    }
    // SAFETY: guaranteed by the caller, and it is not null.
    let line = unsafe { slice::from_raw_parts(line, len) };
    if let Some(secret) = parse(line) {
        SECRETS.with_borrow_mut(|secrets| secrets.push(secret));
    }
    0
}

/// Parses one of the two application traffic secrets; the others are ignored.
fn parse(line: &[u8]) -> Option<Secret> {
    let mut words = line.split(|&byte| byte == b' ');
    let role = match words.next()? {
        b"CLIENT_TRAFFIC_SECRET_0" => Role::Client,
        b"SERVER_TRAFFIC_SECRET_0" => Role::Server,
        _ => return None,
    };
    let digits = words.nth(1)?;
    let mut secret = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
    for pair in digits.chunks_exact(2) {
        let text = str::from_utf8(pair).ok()?;
        secret.push(u8::from_str_radix(text, 16).ok()?);
    }
    Some(Secret(role, secret))
}

#[cfg(test)]
mod test {
    use s2n_tls::enums::PeerKeyUpdate;

    use export::Secret as Bytes;

    use super::super::record::{CONTENT, Kind, OPENED};
    use super::super::records::{Opened, Records, SMALL};
    use super::*;

    fn key(hash: Hash) -> Psk {
        let len = if hash == Hash::Sha256 { 32 } else { 48 };
        let secret = Bytes::new(vec![7; len]);
        Psk { identity: "name".to_owned(), secret, hash, key: None }
    }

    /// Completes a handshake. Returns the client, as the library's connection, and the server's
    /// records and socket.
    fn handshake(hash: Hash) -> (Handshake, Records, Arc<UnixStream>) {
        let (near, far) = UnixStream::pair().unwrap();
        let far = Arc::new(far);
        let mut client = Handshake::begin(Arc::new(near), key(hash)).unwrap();
        let mut server = Handshake::serve(far.clone(), Vec::new(), vec![key(hash)]).unwrap();
        loop {
            let _ = client.advance().unwrap();
            if let Progress::Done(established) = server.advance().unwrap() {
                return (client, Records::new(*established), far);
            }
        }
    }

    /// Decrypts one record that the library has sent.
    fn open(records: &mut Records, socket: &UnixStream) -> Result<(Opened, Vec<u8>), ()> {
        use std::io::Read;
        let mut record = vec![0; 5];
        let mut socket = socket;
        socket.read_exact(&mut record).unwrap();
        record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
        socket.read_exact(&mut record[5..]).unwrap();
        let body = records.body(&record).map_err(drop)?.unwrap();
        let mut out = vec![0; OPENED];
        let opened = records.open(body, &mut out).map_err(drop)?;
        let len = if let Opened::Data(len) = opened { len } else { 0 };
        out.truncate(len);
        Ok((opened, out))
    }

    /// X05: a peer with a key, even a public one, cannot probe for identities by offering one
    /// before its own: the first identity decides, whether it exists or not.
    #[test]
    fn x05_first_identity_decides_whether_known_or_not() {
        use super::super::hello::{self, Hello};
        use std::io::Read;
        let named = |name: &str, byte| Psk {
            identity: name.to_owned(),
            secret: Bytes::new(vec![byte; 32]),
            ..key(Hash::Sha256)
        };
        let (near, far) = UnixStream::pair().unwrap();
        let keys = vec![named("guess", 9), named("mine", 7)];
        let mut client =
            Handshake::with_keys(Mode::Client, Arc::new(near), Vec::new(), keys).unwrap();
        let _ = client.advance().unwrap();
        let mut sent = vec![0; 4096];
        let len = (&far).read(&mut sent).unwrap();
        sent.truncate(len);
        assert_eq!(hello::parse(&sent), Hello::Complete(b"guess".to_vec()));
        let far: Socket = Arc::new(far);
        let serve = |key| Handshake::serve(far.clone(), sent.clone(), vec![key]).unwrap().advance();
        assert!(serve(named("guess", 1)).is_err_and(|failed| failed.is_early));
        // The key behind it would have been accepted.
        assert!(serve(named("mine", 7)).is_ok());
    }

    /// A peer that sends meaningless records without end does not occupy the thread.
    #[test]
    fn endless_handshake_is_ended() {
        use std::io::Write;
        let (near, far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let mut client = Handshake::begin(near.clone(), key(Hash::Sha256)).unwrap();
        let mut server =
            Handshake::serve(Arc::new(far), Vec::new(), vec![key(Hash::Sha256)]).unwrap();
        let _ = client.advance().unwrap();
        assert!(matches!(server.advance(), Ok(Progress::WantRead)));
        let mut sent = 0;
        while server.advance().is_ok() {
            assert!(sent <= MAX_HANDSHAKE, "{sent} bytes were received");
            let meaningless = [20, 3, 3, 0, 1, 1].repeat(1000);
            (&*near).write_all(&meaningless).unwrap();
            sent += meaningless.len();
        }
    }

    /// Our records interoperate with another implementation, in both directions and across key
    /// updates.
    #[test]
    fn records_interoperate_with_s2n() {
        use std::io::Write;
        for hash in [Hash::Sha256, Hash::Sha384] {
            let (mut client, mut records, socket) = handshake(hash);
            let library = client.connection.as_mut().unwrap();
            for round in 0..6u8 {
                for len in [1, 100, if round == 0 { CONTENT } else { 5000 }] {
                    let sent = vec![round; len];
                    assert!(matches!(library.poll_send(&sent), Poll::Ready(Ok(n)) if n == len));
                    let received = loop {
                        match open(&mut records, &socket).unwrap() {
                            (Opened::Control, _) => {}
                            (_, received) => break received,
                        }
                    };
                    assert!(received == sent);
                    let mut out = vec![0; CONTENT + 100];
                    let sealed = records.sealer.seal(Kind::Data, &sent, &mut out);
                    (&*socket).write_all(&out[..sealed]).unwrap();
                    let mut received = vec![0; len];
                    assert!(
                        matches!(library.poll_recv(&mut received), Poll::Ready(Ok(n)) if n == len)
                    );
                    assert!(received == sent);
                }
                library.request_key_update(PeerKeyUpdate::KeyUpdateNotRequested).unwrap();
                let mut small = [0; SMALL];
                let len = records.sealer.update(round % 2 == 0, &mut small);
                (&*socket).write_all(&small[..len]).unwrap();
            }
            assert!(records.updates_seen() >= 5);
            let mut small = [0; SMALL];
            let len = records.close(&mut small);
            (&*socket).write_all(&small[..len]).unwrap();
            assert!(matches!(library.poll_recv(&mut [0; 9]), Poll::Ready(Ok(0))));
        }
    }
}
