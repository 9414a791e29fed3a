//! A handshake by the TLS library (s2n-tls) behind an interface without unsafe. It knows sockets and keys, no session, and
//! no record after the handshake.
//!
//! # What the library calls back, and when
//!
//! The library is given three functions. It calls them only from within [`Handshake::advance`], on the thread that called
//! that, and keeps no pointer that it hands to them:
//!
//! - [`receive`] and [`send`] move bytes of the socket. Their context is the address of a [`Wire`], which is on the heap,
//!   belongs to the [`Handshake`] and is freed after the connection. Between two calls into the library nobody but
//!   [`Handshake`] touches it, and during one nobody but these two functions.
//! - [`tell`] hears the secrets that the handshake makes, as text. It has no context: what it hears goes to a list of the
//!   thread's own, which is emptied after each call into the library.

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

use export::{Auth, Channel};
use s2n_tls::config::{Builder, Config};
use s2n_tls::connection::Connection;
use s2n_tls::enums::{Blinding, ClientAuthType, Mode, PskHmac, Version};
use s2n_tls::error::{Error, ErrorType};
use s2n_tls::ffi::s2n_connection;
use s2n_tls::psk::Psk as Key;
use s2n_tls::security::Policy;
use zeroize::Zeroizing;

use super::certificates::{Address, Certificates, PeerName, Trust};
use super::record::{Opener, Sealer};
use super::suite::{Suite, Traffic};
use super::{Hash, Psk};

/// What is offered and taken with keys: TLS 1.3 with AES-GCM or ChaCha20-Poly1305, and X25519 or a NIST curve. The versions
/// before, which the policy also names, need a certificate, and there is none.
const POLICY: &str = "20240503";

/// The same with certificates, and nothing before TLS 1.3: ECDSA with a NIST curve, or RSA.
const CERTIFIED: &str = "CloudFront-Upstream-TLS-1-3-2025";

/// For what the value is that both ends of a channel know (RFC 8446 §7.5).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-storagetm-channel";

/// More bytes than a peer says in a handshake. The library would go on with what means nothing for as long as it comes.
const MOST: usize = 64 << 10;

/// More turns than a handshake between two ends of one machine takes.
const ROUNDS: usize = 10;

/// A socket that handshakes are made on.
pub(super) type Socket = Arc<dyn AsFd + Send + Sync>;

/// How far a handshake has come.
pub(super) enum Progress {
    /// Bytes must come first.
    WantRead,
    /// Bytes must leave first.
    WantWrite,
    /// It is over, and this is what came of it.
    Done(Box<Established>),
}

/// What two ends established on.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) channel: Channel,
    /// Whether we are the end that began, to which alone tickets are sent.
    pub(super) is_client: bool,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
}

/// Why a handshake failed.
#[derive(Debug)]
pub(super) struct HandshakeError {
    /// What the library says.
    pub(super) why: &'static str,
    /// Whether the peer has seen nothing of ours yet, so that an alert to it is in the clear.
    pub(super) is_early: bool,
    /// Whether the connection ended before the peer answered with an alert.
    pub(super) is_cut: bool,
}

/// A handshake on its way.
pub(super) struct Handshake {
    /// Here until it is dropped, which is before the wire is.
    connection: Option<Connection>,
    wire: NonNull<Wire>,
    proof: Proof,
    secrets: Vec<Secret>,
    mode: Mode,
}

/// What shows who the other end is.
enum Proof {
    /// That it knows one of these.
    Keys(Vec<Psk>),
    /// We are the server, and our certificates show who we are; theirs, if it must or wants to show one, who they are.
    Client { shown: PeerName, required: bool },
    /// Its certificates, which are those of a server of this name.
    Server(String),
}

/// The bytes' way between the library and the socket.
struct Wire {
    socket: Socket,
    /// Bytes that came before the library was asked, of which it has `taken` so many.
    early: Vec<u8>,
    taken: usize,
    /// Bytes that the library took in all.
    came: usize,
    /// Bytes that were sent.
    sent: usize,
    /// Whether the socket took none at the last try.
    is_full: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

struct Secret(Role, Traffic);

thread_local! {
    /// What [`tell`] heard during the call into the library that is under way on this thread.
    static SECRETS: RefCell<Vec<Secret>> = const { RefCell::new(Vec::new()) };
}

/// Has the library load all that it needs of the system, by a handshake with itself: once, before the process gives its
/// rights up.
///
/// # Errors
/// The library cannot be used here.
pub(super) fn prepare() -> io::Result<()> {
    let (near, far) = UnixStream::pair()?;
    let key = || {
        let secret = export::Secret::new(vec![1; 32]);
        Psk { identity: "nobody".to_owned(), secret, hash: Hash::Sha256, key: None }
    };
    let failed = |failed: HandshakeError| io::Error::other(failed.why);
    let mut client = Handshake::begin(Arc::new(near), key()).map_err(failed)?;
    let mut server = Handshake::serve(Arc::new(far), Vec::new(), vec![key()]).map_err(failed)?;
    for _ in 0..ROUNDS {
        client.advance().map_err(failed)?;
        if let Progress::Done(_) = server.advance().map_err(failed)? {
            return Ok(());
        }
    }
    Err(io::Error::other("the two ends do not come together"))
}

fn config() -> Result<Config, &'static str> {
    static CONFIG: OnceLock<Result<Config, &'static str>> = OnceLock::new();
    let build = || builder(POLICY)?.build();
    CONFIG.get_or_init(|| build().map_err(|error: Error| error.message())).clone()
}

/// The beginning of what the library is told about handshakes with certificates; it tells us their secrets.
///
/// # Errors
/// There is no memory.
pub(super) fn certified() -> Result<Builder, Error> {
    builder(CERTIFIED)
}

fn builder(policy: &str) -> Result<Builder, Error> {
    let mut builder = Config::builder();
    builder.with_system_certs(false)?;
    builder.set_security_policy(&Policy::from_version(policy)?)?;
    // SAFETY: the context is null, and `tell` does not use it.
    unsafe { builder.set_key_log_callback(Some(on_secret), ptr::null_mut())? };
    Ok(builder)
}

impl Handshake {
    /// One of the end that waits for the other, which said `early` already.
    ///
    /// # Errors
    /// There is no memory for it, or a key that the library does not take.
    pub(super) fn serve(
        socket: Socket,
        early: Vec<u8>,
        keys: Vec<Psk>,
    ) -> Result<Self, HandshakeError> {
        Self::with_keys(Mode::Server, socket, early, keys).map_err(|error| failed(&error, true))
    }

    /// One of the end that begins.
    ///
    /// # Errors
    /// There is no memory for it, or the library does not take the key.
    pub(super) fn begin(socket: Socket, key: Psk) -> Result<Self, HandshakeError> {
        Self::with_keys(Mode::Client, socket, Vec::new(), vec![key])
            .map_err(|error| failed(&error, true))
    }

    /// One of the end that waits for the other, by certificates. At a [`Auth::Required`] the other end must show one, too.
    ///
    /// # Errors
    /// There is no memory for it; or the other end must show a certificate, and there is no authority that says which.
    pub(super) fn serve_certified(
        socket: Socket,
        early: Vec<u8>,
        certificates: &Certificates,
        auth: Auth,
    ) -> Result<Self, HandshakeError> {
        let required = auth == Auth::Required;
        let wanted = match (certificates.verifies_clients(), required) {
            (true, true) => ClientAuthType::Required,
            (true, false) => ClientAuthType::Optional,
            (false, false) => ClientAuthType::None,
            (false, true) => {
                let why = "no authority is known";
                return Err(HandshakeError { why, is_early: true, is_cut: false });
            }
        };
        let shown = PeerName::default();
        let make = || {
            let proof = Proof::Client { shown: shown.clone(), required };
            let config = certificates.config();
            let mut this = Self::new(Mode::Server, socket, early, config, proof)?;
            if let Some(connection) = &mut this.connection {
                connection.set_client_auth_type(wanted)?;
                connection.set_verify_host_callback(shown)?;
            }
            Ok(this)
        };
        make().map_err(|error| failed(&error, true))
    }

    /// One of the end that begins, by certificates.
    ///
    /// # Errors
    /// There is no memory for it, or no sense in what is trusted.
    pub(super) fn begin_certified(socket: Socket, trust: &Trust) -> Result<Self, HandshakeError> {
        let make = || {
            let proof = Proof::Server(trust.name.clone());
            let mut this = Self::new(Mode::Client, socket, Vec::new(), trust.config()?, proof)?;
            match (trust.name.parse(), &mut this.connection) {
                // An address is no name to ask a server for (RFC 6066 §3).
                (Ok(address), Some(connection)) => {
                    connection.set_verify_host_callback(Address(address))?;
                }
                (Err(_), Some(connection)) => drop(connection.set_server_name(&trust.name)?),
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
        let config = config().map_err(|why| Error::application(why.into()))?;
        let emitted = keys.iter().map(emit).collect::<Result<Vec<_>, _>>()?;
        let mut this = Self::new(mode, socket, early, config, Proof::Keys(keys))?;
        if let Some(connection) = &mut this.connection {
            emitted.iter().try_for_each(|key| connection.append_psk(key))?;
        }
        Ok(this)
    }

    fn new(
        mode: Mode,
        socket: Socket,
        early: Vec<u8>,
        config: Config,
        proof: Proof,
    ) -> Result<Self, Error> {
        let mut connection = Connection::new(mode);
        connection.set_config(config)?;
        connection.set_blinding(Blinding::SelfService)?;
        let wire = Wire { socket, early, taken: 0, came: 0, sent: 0, is_full: false };
        let wire = NonNull::from(Box::leak(Box::new(wire)));
        let connection = Some(connection);
        let mut this = Self { connection, wire, proof, secrets: Vec::new(), mode };
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

    /// Does what can be done now.
    ///
    /// # Errors
    /// The two do not come together; nothing more is to be done on this connection but to close it.
    pub(super) fn advance(&mut self) -> Result<Progress, HandshakeError> {
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
        // SAFETY: it is there until this is dropped, and the library, which has its address too, is not running.
        unsafe { self.wire.as_ref() }
    }

    fn agree(&mut self) -> Result<Established, HandshakeError> {
        let late = |why| HandshakeError { why, is_early: false, is_cut: false };
        let connection = self.connection.as_ref().ok_or_else(|| late("it is over"))?;
        let read = read(connection).map_err(|error| failed(&error, false))?;
        let (identity, cipher, binding) = read;
        let (key, certified, identity) = match &self.proof {
            // Both ends know the key by now; of several with one name it may be any, and all are the same host's.
            Proof::Keys(keys) => {
                let key = keys.iter().find(|key| key.identity == identity);
                (key.ok_or_else(|| late("no key was used"))?.key, false, identity)
            }
            Proof::Client { shown, .. } if connection.client_cert_used() => {
                (None, true, shown.name())
            }
            Proof::Client { required: true, .. } => return Err(late("no certificate was shown")),
            Proof::Client { .. } => (None, false, String::new()),
            Proof::Server(name) => (None, true, name.clone()),
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
        // SAFETY: it was leaked from a box in `new`, and is freed here and nowhere else. The connection that had its
        // address is gone.
        drop(unsafe { Box::from_raw(self.wire.as_ptr()) });
    }
}

/// The name of the key that was used, the cipher suite, and the value that only this channel has.
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

fn emit(key: &Psk) -> Result<Key, Error> {
    let mut builder = Key::builder()?;
    builder.set_identity(key.identity.as_bytes())?;
    builder.set_secret(key.secret.bytes())?;
    builder.set_hmac(match key.hash {
        Hash::Sha256 => PskHmac::SHA256,
        Hash::Sha384 => PskHmac::SHA384,
    })?;
    builder.build()
}

fn failed(error: &Error, is_early: bool) -> HandshakeError {
    let is_cut = matches!(error.kind(), ErrorType::IOError | ErrorType::ConnectionClosed);
    HandshakeError { why: error.message(), is_early, is_cut }
}

/// The library wants up to `len` bytes at `into`.
///
/// # Safety
/// `context` is the address of a [`Wire`] that nobody else uses now, and `into` that of `len` bytes to be written.
unsafe extern "C" fn receive(context: *mut c_void, into: *mut u8, len: u32) -> i32 {
    // SAFETY: as the caller promises.
    let wire = unsafe { &mut *context.cast::<Wire>() };
    if wire.came >= MOST {
        // As if the peer had gone.
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
    // SAFETY: the socket is open, as the wire owns a share of it, and there is room for `len` bytes.
    let got = unsafe { libc::recv(socket, into.cast(), len as usize, libc::MSG_DONTWAIT) };
    wire.came += usize::try_from(got).unwrap_or(0);
    i32::try_from(got).unwrap_or(-1)
}

/// The library wants the `len` bytes at `from` sent.
///
/// # Safety
/// `context` is the address of a [`Wire`] that nobody else uses now, and `from` that of `len` bytes.
unsafe extern "C" fn send(context: *mut c_void, from: *const u8, len: u32) -> i32 {
    // SAFETY: as the caller promises.
    let wire = unsafe { &mut *context.cast::<Wire>() };
    let socket = wire.socket.as_fd().as_raw_fd();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the socket is open, as the wire owns a share of it, and `from` has `len` bytes.
    let sent = unsafe { libc::send(socket, from.cast(), len as usize, flags) };
    wire.is_full = sent < 0;
    wire.sent += usize::try_from(sent).unwrap_or(0);
    i32::try_from(sent).unwrap_or(-1)
}

/// The library tells a secret: its name, a number of the client's, and the secret in hexadecimal digits.
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
    // SAFETY: as the caller promises, and it is not null.
    let line = unsafe { slice::from_raw_parts(line, len) };
    if let Some(secret) = parse(line) {
        SECRETS.with_borrow_mut(|secrets| secrets.push(secret));
    }
    0
}

/// The two secrets that the records after the handshake are made with; of the others we want nothing.
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

    /// A handshake in which the client is the library's, and stays with it; the server's end, and its socket.
    fn shake(hash: Hash) -> (Handshake, Records, Arc<UnixStream>) {
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

    /// Opens one record that the library has sent.
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

    /// X05: who has a key, be it one that everybody knows, finds out no other name by offering it before that: the first
    /// name decides, known or not.
    #[test]
    fn x05_a_name_before_a_good_key_tells_nothing() {
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
        let mut said = vec![0; 4096];
        let len = (&far).read(&mut said).unwrap();
        said.truncate(len);
        assert_eq!(hello::parse(&said), Hello::Complete(b"guess".to_vec()));
        let far: Socket = Arc::new(far);
        let serve = |key| Handshake::serve(far.clone(), said.clone(), vec![key]).unwrap().advance();
        assert!(serve(named("guess", 1)).is_err_and(|failed| failed.is_early));
        // The key behind it would have been good.
        assert!(serve(named("mine", 7)).is_ok());
    }

    /// A peer that says meaningless things without end does not keep the thread.
    #[test]
    fn a_handshake_without_end_is_given_up() {
        use std::io::Write;
        let (near, far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let mut client = Handshake::begin(near.clone(), key(Hash::Sha256)).unwrap();
        let mut server =
            Handshake::serve(Arc::new(far), Vec::new(), vec![key(Hash::Sha256)]).unwrap();
        let _ = client.advance().unwrap();
        assert!(matches!(server.advance(), Ok(Progress::WantRead)));
        let mut said = 0;
        while server.advance().is_ok() {
            assert!(said <= MOST, "{said} bytes were heard");
            let meaningless = [20, 3, 3, 0, 1, 1].repeat(1000);
            (&*near).write_all(&meaningless).unwrap();
            said += meaningless.len();
        }
    }

    /// Our records are those of another implementation, in both directions and through changes of keys.
    #[test]
    fn records_are_those_of_the_library() {
        use std::io::Write;
        for hash in [Hash::Sha256, Hash::Sha384] {
            let (mut client, mut records, socket) = shake(hash);
            let library = client.connection.as_mut().unwrap();
            for round in 0..6u8 {
                for len in [1, 100, if round == 0 { CONTENT } else { 5000 }] {
                    let said = vec![round; len];
                    assert!(matches!(library.poll_send(&said), Poll::Ready(Ok(n)) if n == len));
                    let heard = loop {
                        match open(&mut records, &socket).unwrap() {
                            (Opened::Control, _) => {}
                            (_, heard) => break heard,
                        }
                    };
                    assert!(heard == said);
                    let mut out = vec![0; CONTENT + 100];
                    let sealed = records.sealer.seal(Kind::Data, &said, &mut out);
                    (&*socket).write_all(&out[..sealed]).unwrap();
                    let mut heard = vec![0; len];
                    assert!(
                        matches!(library.poll_recv(&mut heard), Poll::Ready(Ok(n)) if n == len)
                    );
                    assert!(heard == said);
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
